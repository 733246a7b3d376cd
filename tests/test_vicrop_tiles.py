"""ViCrop in tiles: the released tiling against mllms_know (commit a64c5d5), and the fixed one's geometry."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters import hf
from adapters.scripted import Scripted
from harness.errors import SpecError
from harness.pictures import Drawing, Picture
from harness.types import Box, Capability, Fidelity, ImportanceMap, ReadMap, Request, Response, Usage
from methods._boxes import attention_box
from methods._tiles import LIMIT, joined, merged, tiling
from methods.vicrop import GENERAL_QUESTION, Vicrop

GOLDENS = Path(__file__).parent / "goldens"
_DRAW = np.random.RandomState(0)
SIZES = (
    (2246, 1582),
    (3000, 1100),
    (2000, 1024),
    (700, 1000),
    (512, 1025),
    (7680, 4320),
    (1, 1),
    *((int(width), int(height)) for width, height in _DRAW.randint(1, 4000, (200, 2))),
)


def tile_values(seed: int, count: int) -> list[npt.NDArray[np.float32]]:
    """The maps of a picture's tiles."""
    draw = np.random.RandomState(seed)
    return [np.exp(draw.randn(24, 24)).astype(np.float32) for _ in range(count)]


# ---------------------------------------------------------------- tilings


def test_released_tiles_and_the_box_in_their_maps_are_the_references() -> None:
    golden = np.load(GOLDENS / "vicrop_tiles.npz")
    assert "a64c5d5" in str(golden["source"])
    for seed, (size, last, box) in enumerate(zip(SIZES, golden["last"], golden["boxes"], strict=True)):
        if last[0] == 0:
            with pytest.raises(ValueError, match="no column of tiles"):
                tiling(size, "released")
            continue
        cut = tiling(size, "released")
        assert (cut.rows, cut.cols, *cut.tiles[-1]) == tuple(last)
        assert len(cut.tiles) == cut.rows * cut.cols
        maps = [ImportanceMap(values, (0, 0, 1, 1)) for values in tile_values(seed, len(cut.tiles))]
        assert attention_box(joined(maps, cut), size, 336, "released") == tuple(box)


@pytest.mark.parametrize(
    ("size", "rows", "cols", "tile"), [((2246, 1582), 2, 2, (1123, 791)), ((3000, 1100), 2, 5, (600, 550))]
)
def test_released_tiles_of_two_known_pictures(
    size: tuple[int, int], rows: int, cols: int, tile: tuple[int, int]
) -> None:
    cut = tiling(size, "released")
    assert (cut.rows, cut.cols) == (rows, cols)
    assert cut.tiles[0] == (0, 0, *tile)


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 9000), st.integers(1, 9000))
def test_fixed_tiles_are_squares_that_cover_the_picture_and_nothing_else(width: int, height: int) -> None:
    if max(width, height) > 50 * min(width, height):
        height = width
    cut = tiling((width, height))
    sides = {x2 - x1 for x1, _, x2, _ in cut.tiles} | {y2 - y1 for _, y1, _, y2 in cut.tiles}
    assert len(sides) == 1
    assert max(sides) <= LIMIT
    for axis, length in ((0, width), (1, height)):
        spans = sorted({(tile[axis], tile[axis + 2]) for tile in cut.tiles})
        assert (spans[0][0], spans[-1][1]) == (0, length)
        assert all(after[0] <= before[1] for before, after in itertools.pairwise(spans))
    assert len(cut.tiles) == cut.rows * cut.cols == len(set(cut.tiles))


# ---------------------------------------------------------------- merging


def test_tiles_that_do_not_overlap_are_put_side_by_side() -> None:
    cut = tiling((1800, 1200))
    assert (cut.rows, cut.cols) == (2, 3)
    maps = [ImportanceMap(values, (0, 0, 600, 600)) for values in tile_values(0, 6)]
    np.testing.assert_array_equal(merged(maps, cut, (1800, 1200)), joined(maps, cut))


def test_a_peak_is_where_it_was_in_the_picture_whichever_tile_saw_it() -> None:
    size, cut = (2246, 1582), tiling((2246, 1582))
    for x, y in ((20, 20), (750, 400), (1120, 800), (1500, 780), (2240, 1575)):
        maps = []
        for left, top, right, bottom in cut.tiles:
            values = np.zeros((24, 24), np.float32)
            if left <= x < right and top <= y < bottom:
                values[(y - top) * 24 // (bottom - top), (x - left) * 24 // (right - left)] = 1
            maps.append(ImportanceMap(values, (0, 0, right - left, bottom - top)))
        whole = merged(maps, cut, size)
        rows, cols = whole.shape
        row, col = np.unravel_index(whole.argmax(), whole.shape)
        assert abs((col + 0.5) * size[0] / cols - x) < 791 / 24
        assert abs((row + 0.5) * size[1] / rows - y) < 791 / 24


def test_cells_that_no_tile_sees_are_zero_and_those_that_two_see_are_their_mean() -> None:
    cut = tiling((1500, 1000))  # two squares that overlap by half
    one, three = (ImportanceMap(np.full((4, 4), value, np.float32), (0, 250, 1000, 1000)) for value in (1, 3))
    whole = merged([one, three], cut, (1500, 1000))
    assert whole[0].tolist() == [0] * 6
    assert whole[-1].tolist() == [1, 1, 2, 2, 3, 3]


def test_a_broken_cell_of_one_tile_does_not_spread_to_another() -> None:
    cut = tiling((1500, 1000))
    broken, sound = np.full((4, 4), np.nan, np.float32), np.full((4, 4), 2, np.float32)
    whole = merged(
        [ImportanceMap(values, (0, 0, 1000, 1000)) for values in (broken, sound)], cut, (1500, 1000)
    )
    assert whole[0].tolist() == [0, 0, 1, 1, 2, 2]


# ---------------------------------------------------------------- the method


class Watched(Scripted):
    """A model whose maps peak at one place of the original picture, as far as it sees that."""

    def __init__(self, place: tuple[int, int] = (1900, 300), crops_centre: bool = False) -> None:
        self.place, self.crops_centre = place, crops_centre
        self.asked: list[Request] = []
        offers = frozenset({Capability.ATTENTION})
        super().__init__(self.look, offers=offers, name="watched")

    def look(self, request: Request) -> Response:
        self.asked.append(request)
        usage = Usage(calls=1)
        if not request.probes:
            return Response("an answer", usage=usage)
        picture = request.images[0]
        x1, y1, x2, y2 = self.seen(picture)
        left, top = picture.crops[-1][:2] if picture.crops else (0, 0)
        values = np.ones((24, 24), np.float32)
        col = int((self.place[0] - left - x1) * 24 // (x2 - x1))
        row = int((self.place[1] - top - y1) * 24 // (y2 - y1))
        if request.question != GENERAL_QUESTION and 0 <= col < 24 and 0 <= row < 24:
            values[row, col] = 9
        return Response(maps=(ImportanceMap(values, (x1, y1, x2, y2)),), usage=usage)

    def seen(self, picture: Picture) -> Box:
        width, height = picture.size
        side = min(width, height) if self.crops_centre else None
        if side is None:
            return (0, 0, width, height)
        left, top = (width - side) / 2, (height - side) / 2
        return (left, top, left + side, top + side)


def _request(width: int = 2246, height: int = 1582) -> Request:
    drawn = Picture(Drawing(f"blank {width} {height}", (width, height), lambda: tiny.photo(0).open()))
    return Request((drawn,), "What?", " Be brief.")


@pytest.mark.parametrize("crops_centre", [False, True])
@pytest.mark.parametrize("place", [(1900, 300), (30, 30), (2240, 1500), (740, 800)])
def test_the_box_is_around_the_place_wherever_it_is(place: tuple[int, int], crops_centre: bool) -> None:
    model = Watched(place, crops_centre)
    (response,) = Vicrop(model, high_res="on").generate([_request()])
    x1, y1, x2, y2 = response.trace["box"]
    assert x1 <= place[0] <= x2
    assert y1 <= place[1] <= y2
    assert response.trace["tiles"] == [2, 3]
    assert response.trace["rectangle"] == [0, 0, 2246, 1582]
    assert response.trace["grid"] == list(response.maps[0].values.shape) == [48, 68]
    assert response.maps[0].rectangle == (0, 0, 2246, 1582)


def test_a_model_that_crops_the_centre_misses_in_released_tiles_what_it_finds_in_squares() -> None:
    place = (1118, 300)  # where two released tiles meet
    boxes = []
    both: tuple[Fidelity, ...] = ("fixed", "released")
    for fidelity in both:
        (response,) = Vicrop(Watched(place, True), high_res="on", fidelity=fidelity).generate([_request()])
        boxes.append(response.trace["box"])
    assert boxes[0][0] <= place[0] <= boxes[0][2]
    assert boxes[1] == [0, 0, 336, 336]


def test_all_tiles_of_all_requests_are_one_wave_then_come_the_answers() -> None:
    model = Watched()
    responses = Vicrop(model, high_res="on").generate([_request(), _request(900, 900)])
    looks = [request for request in model.asked if request.probes]
    assert model.asked[: len(looks)] == looks
    assert len(looks) == 2 * (6 + 1)
    assert [request.images[0].crops[0] for request in looks[:12:2]] == list(tiling((2246, 1582)).tiles)
    assert [request.question for request in looks[:2]] == ["What?", GENERAL_QUESTION]
    assert responses[0].usage == Usage(calls=13)
    assert len(model.asked) == len(looks) + 2


def test_only_a_map_of_the_whole_picture_is_worth_keeping() -> None:
    whole, tiles = Watched(), Watched()
    Vicrop(whole).generate([_request()])
    Vicrop(tiles, high_res="on").generate([_request()])
    assert [request.probes for request in whole.asked] == [(ReadMap(keep=True),)] * 2 + [()]
    assert {request.probes for request in tiles.asked} == {(ReadMap(),), ()}


@pytest.mark.parametrize(
    ("size", "tiled"), [((1024, 1024), False), ((1025, 300), True), ((300, 1025), True), ((1, 1), False)]
)
def test_auto_takes_tiles_where_a_side_exceeds_1024_pixels(size: tuple[int, int], tiled: bool) -> None:
    (auto,) = Vicrop(Watched(), high_res="auto").generate([_request(*size)])
    (off,) = Vicrop(Watched()).generate([_request(*size)])
    assert ("tiles" in auto.trace) == tiled
    assert "tiles" not in off.trace


@pytest.mark.parametrize("fidelity", ["fixed", "released"])
def test_one_tile_is_the_picture_itself_and_gives_the_box_that_no_tiles_give(fidelity: Fidelity) -> None:
    tiled, plain = Watched((700, 200)), Watched((700, 200))
    (one,) = Vicrop(tiled, high_res="on", fidelity=fidelity).generate([_request(900, 900)])
    (none,) = Vicrop(plain, fidelity=fidelity).generate([_request(900, 900)])
    assert [request.digest() for request in tiled.asked] == [request.digest() for request in plain.asked]
    assert one.trace == {**none.trace, "tiles": [1, 1]}
    np.testing.assert_array_equal(one.maps[0].values, none.maps[0].values)


def test_a_low_portrait_fails_as_released_and_is_tiled_as_fixed() -> None:
    method = Vicrop(Watched(), high_res="on", fidelity="released")
    portrait, landscape = method.generate([_request(700, 1000), _request(1000, 700)])
    assert portrait.failure is not None
    assert portrait.failure.kind == "no_tiles"
    assert "700 x 1000" in portrait.failure.message
    assert "fidelity=fixed" in portrait.failure.message
    assert landscape.failure is None
    (fixed,) = Vicrop(Watched((350, 900)), high_res="on").generate([_request(700, 1000)])
    assert fixed.trace["tiles"] == [2, 1]
    assert fixed.trace["box"][1] <= 900 <= fixed.trace["box"][3]


@pytest.mark.parametrize("fidelity", ["fixed", "released"])
def test_a_picture_that_is_a_line_is_refused_rather_than_read_in_thousands_of_tiles(
    fidelity: Fidelity,
) -> None:
    model = Watched()
    (response,) = Vicrop(model, high_res="on", fidelity=fidelity).generate([_request(9000, 3)])
    assert response.failure is not None
    assert response.failure.kind == "no_tiles"
    assert "9000 x 3 has 3000 tiles, over 256" in response.failure.message
    assert model.asked == []


def test_released_tiles_reach_over_the_edge() -> None:
    model = Watched()
    Vicrop(model, high_res="on", fidelity="released").generate([_request(2247, 1583)])
    assert model.asked[2 * 3].images[0].crops == ((1124, 792, 2248, 1584),)


def test_a_tile_that_fails_fails_its_request_and_keeps_what_all_cost() -> None:
    class Breaks(Watched):
        def look(self, request: Request) -> Response:
            if request.probes and request.images[0].crops[0][0] == 728:
                return Response.failed("broken", "it broke", usage=Usage(calls=1))
            return super().look(request)

    (response,) = Vicrop(Breaks(), high_res="on").generate([_request()])
    assert response.failure is not None
    assert response.failure.kind == "broken"
    assert response.usage.calls == 12


def test_tiles_that_say_nothing_give_the_whole_picture() -> None:
    (response,) = Vicrop(Watched((-9000, -9000)), high_res="on").generate([_request()])
    assert response.trace["degenerate"] is True
    assert response.trace["whole"] is True


def test_tiles_are_about_maps() -> None:
    with pytest.raises(SpecError, match="high_res=on is about maps, and locate=oracle reads none"):
        Vicrop(Watched(), locate="oracle", high_res="on")


def test_a_real_decoder_reads_tiles_of_a_large_picture_and_says_where_its_box_is(tmp_path: Path) -> None:
    model = hf.model(str(tiny.llava(tmp_path / "tiny", side=112)), device="cpu")
    request = Request((tiny.photo(0, 2050, 1100),), "What does the sign read?", " Be brief.")
    (response,) = Vicrop(model, high_res="auto").generate([request])
    assert response.failure is None
    assert response.trace["tiles"] == [2, 4]
    assert response.trace["grid"] == [16, 30]
    (released,) = Vicrop(model, high_res="auto", fidelity="released").generate([request])
    assert released.trace["tiles"] == [2, 3]
    assert released.trace["grid"] == [16, 24]
