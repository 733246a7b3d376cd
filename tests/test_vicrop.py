"""ViCrop against its reference (goldens of mllms_know, commit a64c5d5) and its rules, one by one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from adapters import hf
from adapters.scripted import Scripted
from harness.errors import CapabilityError, SpecError
from harness.pictures import Drawing, File, Picture
from harness.resolve import make_method
from harness.types import (
    Capability,
    Decoding,
    Hints,
    ImportanceMap,
    ReadMap,
    Request,
    Response,
    Usage,
)
from methods.center_crop import CenterCrop
from methods.vicrop import (
    GENERAL_QUESTION,
    Vicrop,
    attention_box,
    is_degenerate,
    relative_importance,
)

GOLDENS = Path(__file__).parent / "goldens"
GENERAL = GENERAL_QUESTION
PROMPTS = (
    "What is the color of the bus?",
    "Is there a white cup of coffee on the left side of the table?",
    "Please describe this image.",
    "What does the sign read?",
    "Are there two dogs on the green grass?",
    "one",
)
SIZES = ((100, 80), (640, 480), (333, 500), (1000, 200), (224, 224), (97, 701))
SUFFIX = " Answer the question using a single word or phrase."

GRIDS = ((24, 24), (16, 16), (12, 12), (13, 19), (48, 72), (1, 7), (5, 1))
KINDS = ("lognormal", "peak", "half", "ratio", "signed", "sparse", "steps", "nan", "constant", "inf")


def a_case(seed: int) -> tuple[npt.NDArray[np.float32], tuple[int, int], int]:
    """A map, an image size and a base, drawn from a seed: what `vicrop_boxes.npz` was made from."""
    draw = np.random.RandomState(seed)
    kind = KINDS[min(draw.randint(20), len(KINDS) - 1) if seed % 4 == 0 else draw.randint(6)]
    rows, cols = GRIDS[draw.randint(len(GRIDS) if kind in KINDS[:6] else 4)]
    size = (int(draw.randint(1, 3500)), int(draw.randint(1, 3500)))
    if seed % 41 == 0:
        size = (9000, size[1])  # a cell is wider than the base
    base = (96, 224, 336)[draw.randint(3)]
    noise = np.exp(draw.randn(rows, cols))
    if kind == "peak":
        y, x, spread = draw.randint(rows), draw.randint(cols), draw.uniform(0.5, 4)
        down, across = np.mgrid[:rows, :cols]
        noise = np.exp(-((down - y) ** 2 + (across - x) ** 2) / (2 * spread**2)) + 0.05 * noise
    elif kind == "half":  # as coarse as bfloat16: many ties
        noise = np.round(noise * 128) / 128
    elif kind == "ratio":
        noise = noise / np.exp(draw.randn(rows, cols))
    elif kind == "signed":
        noise = draw.randn(rows, cols)
    elif kind == "sparse":
        noise = noise * (draw.rand(rows, cols) < 0.05)
    elif kind == "steps":
        noise = np.floor(noise)
    elif kind in ("nan", "inf"):
        noise[draw.rand(rows, cols) < 0.02] = float(kind)
    elif kind == "constant":
        noise = np.full((rows, cols), noise[0, 0] * (seed % 3))
    return noise.astype(np.float32), size, base


# ---------------------------------------------------------------- boxes


def test_5000_boxes_are_the_references() -> None:
    golden = np.load(GOLDENS / "vicrop_boxes.npz")
    assert "a64c5d5" in str(golden["source"])
    found = [attention_box(*a_case(seed), "released") for seed in range(len(golden["expected"]))]
    assert len(found) == 5000
    np.testing.assert_array_equal(np.array(found), golden["expected"])


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**31), st.integers(400, 3000), st.integers(400, 3000))
def test_fixed_equals_released_for_a_finite_map_whose_cells_are_smaller_than_the_base(
    seed: int, width: int, height: int
) -> None:
    importance = np.random.RandomState(seed).rand(24, 24).astype(np.float32)
    fixed = attention_box(importance, (width, height), 336)
    assert fixed == attention_box(importance, (width, height), 336, "released")


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**31))
def test_a_box_is_never_empty_and_lies_inside_the_picture(seed: int) -> None:
    importance, (width, height), base = a_case(seed)
    x1, y1, x2, y2 = attention_box(importance, (width, height), base)
    assert 0 <= x1 < x2 <= width
    assert 0 <= y1 < y2 <= height


@pytest.mark.parametrize("value", [0.0, 3.5, np.nan, np.inf])
def test_a_map_that_says_nothing_gives_the_whole_picture_or_as_released_the_top_left(value: float) -> None:
    importance = np.full((24, 24), value, np.float32)
    assert is_degenerate(importance)
    assert attention_box(importance, (1000, 800), 336) == (0, 0, 1000, 800)
    assert attention_box(importance, (1000, 800), 336, "released") == (0, 0, 336, 336)


def test_a_cell_wider_than_the_base_is_found_where_the_released_code_falls_into_the_corner() -> None:
    importance = np.zeros((24, 24), np.float32)
    importance[12, 20] = 1
    released = attention_box(importance, (9000, 3000), 336, "released")
    x1, _, x2, _ = attention_box(importance, (9000, 3000), 336)
    assert released == (0, 0, 336, 336)
    assert x1 <= 20.5 * 9000 / 24 <= x2


def test_one_nan_cell_does_not_decide_a_fixed_box() -> None:
    importance = np.full((24, 24), 0.1, np.float32)
    importance[4, 4] = 5
    clean = attention_box(importance, (1344, 1344), 336)
    importance[20, 20] = np.nan
    assert attention_box(importance, (1344, 1344), 336) == clean


def test_a_picture_no_larger_than_the_base_is_taken_whole() -> None:
    importance = np.random.RandomState(0).rand(24, 24)
    assert attention_box(importance, (335, 335), 336) == (0, 0, 335, 335)


# ---------------------------------------------------------------- maps of a real decoder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.llava(tmp_path_factory.mktemp("llava") / "tiny", side=112, kv_heads=2)


def _questions() -> list[Request]:
    return [
        Request((tiny.photo(k, *size),), question, SUFFIX, decoding=Decoding(max_tokens=3))
        for k, (question, size) in enumerate(zip(PROMPTS, SIZES, strict=True))
    ]


def test_maps_and_boxes_are_the_references_on_shared_weights(checkpoint: Path) -> None:
    golden = np.load(GOLDENS / "vicrop_rel_att.npz")
    assert "a64c5d5" in str(golden["source"])
    model = hf.model(str(checkpoint), template="vicrop", device="cpu", dtype="float32")
    responses = Vicrop(model, layer=2, fidelity="released").generate(_questions())
    for response, reference, box in zip(responses, golden["maps"], golden["boxes"], strict=True):
        assert response.failure is None
        np.testing.assert_allclose(response.maps[0].values, reference, rtol=1e-5)
        assert response.trace["box"] == box.tolist()


def test_a_fixed_box_lies_in_the_square_that_the_model_saw(checkpoint: Path) -> None:
    model = hf.model(str(checkpoint), device="cpu")
    (response,) = Vicrop(model, base=30).generate([_request(images=(tiny.photo(1, 640, 320),))])
    x1, _, x2, _ = response.trace["box"]
    assert response.trace["rectangle"] == [160, 0, 480, 320]
    assert x1 >= 160
    assert x2 <= 480


def test_the_base_is_the_models_resolution_and_the_layer_is_said(checkpoint: Path) -> None:
    (response,) = Vicrop(hf.model(str(checkpoint), device="cpu")).generate(_questions()[1:2])
    assert response.trace["base"] == 112
    assert response.trace["layer"] == 2
    assert response.trace["grid"] == [8, 8]


# ---------------------------------------------------------------- waves, seen through a function


class Watched:
    """A model that looks: its map peaks where it is told to, and it remembers what it was asked."""

    def __init__(self, peak: tuple[int, int] | None = (2, 9), size: tuple[int, int] = (1200, 1200)) -> None:
        self.waves: list[list[Request]] = []
        self.peak = peak
        self.rectangle = (0.0, 0.0, float(size[0]), float(size[1]))
        self.fail: Callable[[Request], bool] = lambda request: False
        self.inner = Scripted(self.answer, offers=frozenset({Capability.ATTENTION}), name="watched")

    @property
    def offers(self) -> frozenset[Capability]:
        return self.inner.offers

    @property
    def pace(self):  # type: ignore[no-untyped-def]
        return self.inner.pace

    def describe(self) -> dict[str, object]:
        return {**self.inner.describe(), "image_size": 100}

    def generate(self, requests: list[Request]) -> list[Response]:
        self.waves.append(list(requests))
        return self.inner.generate(requests)

    def answer(self, request: Request) -> Response:
        usage = Usage(calls=1, tokens_in=10)
        if self.fail(request):
            return Response.failed("broken", "it broke", usage=usage)
        if not any(isinstance(probe, ReadMap) for probe in request.probes):
            return Response("an answer", usage=usage, trace={"deep": 1})
        values = np.ones((12, 12), np.float32)
        if self.peak is not None and request.question != GENERAL:
            values[self.peak] = 9
        return Response(
            "", usage=usage, maps=(ImportanceMap(values, self.rectangle),), trace={"map_layers": [3]}
        )


def _request(**changes: object) -> Request:
    plain = Request((tiny.photo(1, 1200, 1200),), "What?", " Be brief.", system="Sys.")
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]


def test_all_maps_are_one_wave_and_all_answers_another() -> None:
    model = Watched()
    responses = Vicrop(model).generate([_request(), _request(question="Who?")])
    assert [len(wave) for wave in model.waves] == [4, 2]
    assert [request.question for request in model.waves[0]] == ["What?", GENERAL, "Who?", GENERAL]
    assert all(request.decoding.max_tokens == 0 for request in model.waves[0])
    assert all(request.system == "Sys." for wave in model.waves for request in wave)
    assert all(request.instruction == " Be brief." for wave in model.waves for request in wave)
    assert [response.text for response in responses] == ["an answer"] * 2
    assert responses[0].usage == Usage(calls=3, tokens_in=30)


def test_the_general_map_request_of_one_picture_is_the_same_for_all_its_questions() -> None:
    model = Watched()
    Vicrop(model).generate([_request(), _request(question="Who?", decoding=Decoding(max_tokens=9))])
    assert model.waves[0][1].digest() == model.waves[0][3].digest()


def test_raw_attention_needs_one_map() -> None:
    model = Watched()
    Vicrop(model, locate="raw_att").generate([_request()])
    assert [len(wave) for wave in model.waves] == [1, 1]


def test_the_answer_sees_the_picture_and_the_crop_around_the_peak() -> None:
    model = Watched(peak=(2, 9))
    (response,) = Vicrop(model).generate([_request()])
    (final,) = model.waves[1]
    assert final.images[0] == _request().images[0]
    assert final.images[1].crops == ((900, 200, 1000, 300),)
    assert response.trace == {
        "method": "vicrop",
        "locate": "rel_att",
        "base": 100,
        "grid": [12, 12],
        "rectangle": [0, 0, 1200, 1200],
        "box": [900, 200, 1000, 300],
        "degenerate": False,
        "whole": False,
        "layer": 3,
        "inner": {"deep": 1},
    }
    assert response.maps[0].values[2, 9] == 9


def test_the_short_question_is_for_the_map_and_the_question_for_the_answer() -> None:
    model = Watched()
    Vicrop(model).generate([_request(hints=Hints(short_question="Which?"))])
    assert model.waves[0][0].question == "Which?"
    assert model.waves[1][0].question == "What?"


def test_a_box_in_a_part_of_the_picture_is_moved_by_its_offset_which_the_released_code_forgets() -> None:
    wide = _request(images=(tiny.photo(1, 2400, 1200),))
    model = Watched(peak=(5, 9))
    model.rectangle = (599.6, 0.0, 1799.6, 1200.0)
    (fixed,) = Vicrop(model, base=200).generate([wide])
    (released,) = Vicrop(model, base=200, fidelity="released").generate([wide])
    assert fixed.trace["rectangle"] == [600, 0, 1800, 1200]
    assert fixed.trace["box"] == [1400, 400, 1600, 600]
    assert released.trace["rectangle"] == [0, 0, 2400, 1200]
    assert released.trace["box"] == [1800, 400, 2000, 600]


def test_a_degenerate_map_sends_the_picture_alone_and_says_so() -> None:
    model = Watched(peak=None)
    (response,) = Vicrop(model).generate([_request()])
    assert len(model.waves[1][0].images) == 1
    assert response.trace["degenerate"] is True
    assert response.trace["whole"] is True


def test_released_sends_a_small_picture_twice_and_fixed_once() -> None:
    small = _request(images=(tiny.photo(1, 90, 90),))
    model = Watched(size=(90, 90))
    Vicrop(model).generate([small])
    Vicrop(model, fidelity="released").generate([small])
    assert [len(wave[0].images) for wave in model.waves] == [1, 1, 1, 2]


def test_a_failed_map_fails_its_own_request_and_keeps_what_it_cost() -> None:
    model = Watched()
    model.fail = lambda request: request.question == "Who?"
    broken, good = Vicrop(model).generate([_request(question="Who?"), _request()])
    assert broken.failure is not None
    assert broken.failure.kind == "broken"
    assert broken.usage.calls == 2
    assert good.text == "an answer"
    assert len(model.waves[1]) == 1


def test_a_failed_answer_is_passed_on_with_the_cost_of_its_maps() -> None:
    model = Watched()
    model.fail = lambda request: not request.probes
    (response,) = Vicrop(model).generate([_request()])
    assert response.failure is not None
    assert response.usage.calls == 3


def test_only_the_first_of_several_pictures_is_looked_at_and_the_crop_comes_last() -> None:
    model = Watched()
    other = tiny.photo(2, 50, 50)
    Vicrop(model).generate([_request(images=(_request().images[0], other))])
    assert all(len(request.images) == 1 for request in model.waves[0])
    assert model.waves[1][0].images[1] == other
    assert model.waves[1][0].images[2].crops == ((900, 200, 1000, 300),)


def test_of_three_pictures_the_others_are_left_as_they_are() -> None:
    model = Watched()
    others = (tiny.photo(2, 50, 50), tiny.photo(3, 70, 50))
    (response,) = Vicrop(model).generate([_request(images=(_request().images[0], *others))])
    assert model.waves[1][0].images[:3] == (_request().images[0], *others)
    assert len(model.waves[1][0].images) == 4
    assert response.trace["box"] == [900, 200, 1000, 300]


def test_the_maps_say_that_the_answer_will_begin_with_the_same_picture() -> None:
    model = Watched()
    Vicrop(model, layer="all").generate([_request()])
    assert [request.probes for request in model.waves[0]] == [(ReadMap("all", keep=True),)] * 2
    assert model.waves[1][0].images[0] == model.waves[0][0].images[0]


@pytest.mark.parametrize("size", [(1, 1), (5, 3), (1000, 1), (1, 1000), (7680, 4320)])
def test_pictures_of_one_pixel_and_of_8k_are_answered(checkpoint: Path, size: tuple[int, int]) -> None:
    model = hf.model(str(checkpoint), device="cpu")
    green = Picture(Drawing(f"green {size}", size, lambda: Image.new("RGB", size, "green")))
    (response,) = Vicrop(model).generate([_request(images=(green,))])
    assert response.failure is None
    x1, y1, x2, y2 = response.trace["box"]
    assert 0 <= x1 < x2 <= size[0]
    assert 0 <= y1 < y2 <= size[1]


@pytest.mark.parametrize("value", [0.0, 2.5, np.nan, np.inf, -np.inf])
def test_maps_that_say_nothing_are_flagged_and_the_whole_picture_is_used(value: float) -> None:
    def answer(request: Request) -> Response:
        values = np.full((24, 24), value, np.float32)
        return Response(str(len(request.images)), maps=(ImportanceMap(values, (0, 0, 1200, 1200)),))

    for locate in ("raw_att", "rel_att"):
        model = Scripted(answer, offers=frozenset({Capability.ATTENTION}))
        (response,) = Vicrop(model, locate=locate).generate([_request()])  # type: ignore[arg-type]
        assert (response.trace["degenerate"], response.trace["whole"], response.text) == (True, True, "1")


def test_a_request_without_a_picture_goes_on_as_it_came() -> None:
    model = Watched()
    (response,) = Vicrop(model).generate([_request(images=())])
    assert response.text == "an answer"
    assert response.trace["skipped"] == "no image"
    assert len(model.waves) == 1


def test_an_oracle_lets_a_request_without_a_picture_pass_region_or_none() -> None:
    method = Vicrop(Scripted(lambda _: "an answer"), locate="oracle")
    boxed = _request(images=(), hints=Hints(region=(0, 0, 20, 20)))
    for response in method.generate([_request(images=()), boxed]):
        assert (response.text, response.trace["skipped"]) == ("an answer", "no image")


def test_a_picture_that_is_missing_fails_its_own_request(tmp_path: Path) -> None:
    gone = Picture(File(tmp_path / "gone.png"))
    model = Watched()
    broken, good = Vicrop(model).generate([_request(images=(gone,)), _request()])
    assert broken.failure is not None
    assert broken.failure.kind == "missing_picture"
    assert good.failure is None


# ---------------------------------------------------------------- the oracle, knobs and capabilities


def test_the_oracle_crops_around_the_region_and_is_marked() -> None:
    model = Scripted(lambda request: str(request.images[-1].crops))
    method = Vicrop(model, locate="oracle", base=100)
    small, large = method.generate(
        [
            _request(hints=Hints(region=(590, 590, 610, 610))),
            _request(hints=Hints(region=(0, 0, 200, 100))),
        ]
    )
    assert small.text == "((530, 530, 670, 670),)"
    assert large.text == "((0, 0, 250, 250),)"
    assert method.oracle
    assert not Vicrop(Watched()).oracle


def test_the_oracle_without_a_region_says_what_to_do() -> None:
    (response,) = Vicrop(Scripted(lambda _: "x"), locate="oracle").generate([_request()])
    assert response.failure is not None
    assert response.failure.kind == "no_region"
    assert "a task with boxes" in response.failure.message


def test_a_model_without_attention_is_refused_with_the_remedy() -> None:
    with pytest.raises(
        CapabilityError, match=r"vicrop \(rel_att\) needs attention; fake offers generate only"
    ):
        Vicrop(Scripted(lambda _: "", name="fake"))


def test_an_opaque_method_inside_is_refused() -> None:
    with pytest.raises(CapabilityError, match="center_crop offers generate only"):
        Vicrop(CenterCrop(Watched()))


@pytest.mark.parametrize("knobs", [{"layer": -1}, {"base": 0}])
def test_a_knob_that_makes_no_sense_is_refused(knobs: dict[str, int]) -> None:
    with pytest.raises(SpecError):
        Vicrop(Watched(), **knobs)  # type: ignore[arg-type]


@pytest.mark.parametrize(("text", "layer"), [("all", "all"), ("7", 7), ("none", None)])
def test_a_layer_is_a_number_all_or_none(text: str, layer: int | str | None) -> None:
    assert make_method(f"vicrop:layer={text}")(Watched()).describe()["layer"] == layer


def test_a_layer_that_is_none_of_these_is_refused() -> None:
    with pytest.raises(SpecError, match="not a whole number; .* is not one of all"):
        make_method("vicrop:layer=some")


def test_every_knob_is_part_of_its_identity() -> None:
    described = Vicrop(Watched(), layer=3, fidelity="released").describe()
    assert described["method"] == "vicrop"
    assert described["layer"] == 3
    assert described["fidelity"] == "released"
    assert described["model"]["model"] == "watched"


def test_a_ratio_over_nothing_is_not_a_number() -> None:
    ratio = relative_importance(np.float32([[0.0, 1.0, 2.0]]), np.float32([[0.0, 0.0, 1.0]]))
    np.testing.assert_array_equal(ratio, np.float32([[np.nan, np.inf, 2.0]]))
