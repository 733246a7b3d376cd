"""The leak probe: honest matchers pass, and each way of seeing the answer is caught."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tiny_match
import tiny_seps
import torch
from PIL import Image

from adapters import clip
from adapters.seps.similarity import Texts, images, matrix, relevance
from adapters.seps.similarity import words as texts_of
from harness.errors import ModelError
from harness.leaks import PROBES, probe
from harness.pictures import Memory, Picture
from harness.types import Matcher, Pool

Scores = npt.NDArray[np.float32]
LEVELS = ("low", "even", "high")
COLOURS = [(red, green, blue) for red in (0, 120, 250) for green in (0, 120, 250) for blue in (0, 250)]
NAMES = [
    f"{['dark', 'mid', 'light'][k // 6]} {['low', 'even', 'high'][k // 2 % 3]} {k % 2}" for k in range(18)
]


def picture(number: int) -> Picture:
    data = io.BytesIO()
    Image.new("RGB", (12, 10), COLOURS[number]).save(data, "PNG")
    return Picture(Memory(data.getvalue(), f"image_{number}.png"))


def pool(counts: Sequence[int] = (5,) * 18, dense_of: Any = "none") -> tuple[Pool, list[int]]:
    """Eighteen squares of a colour each; captions that name the colour, with other words around it."""
    owner = [image for image, number in enumerate(counts) for _ in range(number)]
    texts = tuple(f"view {k * k % 31} of {NAMES[image]} number {k % 7}" for k, image in enumerate(owner))
    described = [f"a long story {k * 5 % 13} about {name} {name}" for k, name in enumerate(NAMES)]
    dense = {"none": (), "image": described, "text": [described[image] for image in owner]}[dense_of]
    return Pool(tuple(map(picture, range(len(counts)))), texts, tuple(dense), dense_of, "the pool"), owner


def words(text: str) -> npt.NDArray[np.float64]:
    """A bag of hashed words, of length 1."""
    bag = np.zeros(64)
    for word in text.split():
        bag[zlib.crc32(word.encode()) % 64] += 1
    return bag / (np.linalg.norm(bag) or 1)


def seen(image: Picture) -> npt.NDArray[np.float64]:
    """What a picture shows, in words of the captions."""
    colour = image.open().getpixel((3, 3))
    return words(NAMES[COLOURS.index(colour)])  # type: ignore[arg-type]


@dataclass
class Toy:
    """Honest: what is seen, and an image's own dense text, against the words of each text."""

    def describe(self) -> dict[str, Any]:
        return {"adapter": "toy", "model": type(self).__name__}

    def similarity(self, pool: Pool, rows: range) -> Scores:
        texts = np.stack([words(text) for text in pool.texts])
        images = np.stack([self.image(pool, row) for row in rows])
        return (images @ texts.T + self.extra(pool, rows)).astype(np.float32)

    def image(self, pool: Pool, row: int) -> npt.NDArray[np.float64]:
        dense = words(pool.dense[row]) if pool.dense_of == "image" else 0.0
        return seen(pool.images[row]) + 0.5 * dense

    def extra(self, pool: Pool, rows: range) -> npt.NDArray[Any]:
        """What a cheat adds; (rows, texts) or what broadcasts to it."""
        return np.zeros((len(rows), len(pool.texts)))


@dataclass
class Cheat(Toy):
    """Adds what `added` makes of a pool and rows."""

    added: Callable[[Pool, range], npt.NDArray[Any]]

    def extra(self, pool: Pool, rows: range) -> npt.NDArray[Any]:
        return self.added(pool, rows)


def caught(matcher: Matcher, pool: Pool, owner: Sequence[int], **knobs: Any) -> set[str]:
    return {leak.probe for leak in probe(matcher, pool, owner, **knobs).leaks}


# ---------------------------------------------------------------- honest ones


@pytest.mark.parametrize("counts", [(5,) * 18, tuple(1 + k % 4 for k in range(18))])
@pytest.mark.parametrize("dense_of", ["none", "image"])
def test_an_honest_matcher_passes_every_probe(counts: Sequence[int], dense_of: str) -> None:
    report = probe(Toy(), *pool(counts, dense_of))
    assert report.honest
    left_out = {"oracle_query"} | ({"dense"} if dense_of == "none" else set())
    assert set(report.probes) == set(PROBES) - left_out
    assert (report.images, report.gain) == (16, None)
    assert str(report).startswith(
        f"{len(report.probes)} probes over 16 images and {report.texts} texts: nothing"
    )


def test_a_dual_encoder_passes_and_ignores_dense_texts_even_those_that_tell(tmp_path: Path) -> None:
    encoder = clip.model(str(tiny_match.clip(tmp_path / "clip")), device="cpu")
    for dense_of in ("none", "image", "text"):
        report = probe(encoder, *pool(dense_of=dense_of), images=6)
        assert report.honest, str(report)
        assert report.gain == (0.0 if dense_of == "text" else None)


class Mirrored:
    """LAPS's head over drawn features, where each patch and each word has its mirror image in the same
    picture or text: as far from every mean, so that rounding alone could say which of two patches is kept."""

    def __init__(self) -> None:
        self.head = tiny_seps.head("laps", patches=50, has_cls=False, ratios=(0.5, 0.4), embed=32)

    def describe(self) -> dict[str, Any]:
        return {"adapter": "toy", "model": "mirrored"}

    def similarity(self, pool: Pool, rows: range) -> Scores:
        shown = [str(pool.images[row].open().getpixel((3, 3))) for row in rows]
        V = torch.stack([self.drawn(name, 25) for name in shown])
        T = torch.stack([self.drawn(text, 4) for text in pool.texts])
        found: Scores = matrix(self.head, V, Texts.of(T, torch.full((len(T),), 8))).numpy()
        return found

    def drawn(self, name: str, count: int) -> torch.Tensor:
        """(2 count, 32): the second half is the first with the halves of each vector exchanged."""
        source = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        one = torch.randn(count, 32, generator=source)
        return torch.cat([one, one.roll(16, dims=1)])


def test_patches_that_rounding_cannot_tell_apart_are_chosen_alike_whatever_is_asked_for() -> None:
    report = probe(Mirrored(), *pool())
    assert report.honest, str(report)


def test_what_decides_which_patches_are_kept_is_the_same_bit_for_bit_alone_and_in_a_block() -> None:
    head = tiny_seps.head("laps", patches=196, has_cls=True, ratios=(0.5, 0.4), embed=64)
    source = torch.Generator().manual_seed(0)
    V, T = torch.randn(9, 197, 64, generator=source), torch.randn(20, 7, 64, generator=source)

    def decides(V: torch.Tensor, T: torch.Tensor) -> torch.Tensor:
        image, text = images(head, V), texts_of(T, torch.full((len(T),), 7))
        return image.centrality[:, None] + relevance(image, text.centre)

    together = decides(V, T)
    alone = [[decides(V[i : i + 1], T[j : j + 1])[0, 0] for j in range(20)] for i in range(9)]
    assert torch.equal(together, torch.stack([torch.stack(row) for row in alone]))


# ---------------------------------------------------------------- dense texts


class Oracle(Toy):
    """As SEPS's released code: a text's scores include a description of the text's own image."""

    def extra(self, pool: Pool, rows: range) -> npt.NDArray[Any]:
        if pool.dense_of != "text":
            return np.zeros((len(rows), len(pool.texts)))
        dense = np.stack([words(text) for text in pool.dense])
        return np.stack([seen(pool.images[row]) for row in rows]) @ dense.T


@pytest.mark.parametrize("dense_of", ["none", "image"])
def test_the_oracle_query_is_harmless_without_its_dense_texts(dense_of: str) -> None:
    assert probe(Oracle(), *pool(dense_of=dense_of)).honest


def test_the_oracle_query_is_caught_and_its_gain_is_measured() -> None:
    report = probe(Oracle(), *pool(dense_of="text"))
    assert [leak.probe for leak in report.leaks] == ["oracle_query"]
    assert report.gain is not None and report.gain > 20
    assert "its dense text is worth +" in str(report)
    assert "a dense text that describes its own image: the answer" in str(report)


def test_one_images_dense_text_changes_its_own_five_columns_under_the_oracle_query() -> None:
    told, owner = pool(dense_of="text")
    dense = tuple(
        "another story" if image == 3 else text for image, text in zip(owner, told.dense, strict=True)
    )
    one, other = (Oracle().similarity(each, range(18)) for each in (told, replace(told, dense=dense)))
    assert np.flatnonzero((one != other).any(axis=0)).tolist() == [15, 16, 17, 18, 19]
    per_image, _ = pool(dense_of="image")
    dense = tuple("another story" if image == 3 else text for image, text in enumerate(per_image.dense))
    one, other = (Toy().similarity(each, range(18)) for each in (per_image, replace(per_image, dense=dense)))
    assert np.flatnonzero((one != other).any(axis=1)).tolist() == [3]


def test_a_text_that_looks_for_its_image_among_all_dense_texts_is_caught() -> None:
    def nearest(pool: Pool, rows: range) -> npt.NDArray[Any]:
        alike = np.stack([words(text) for text in pool.dense]) @ np.stack([words(t) for t in pool.texts]).T
        return (np.arange(len(pool.dense))[:, None] == alike.argmax(axis=0))[rows.start : rows.stop] * 1.0

    assert "dense" in caught(Cheat(nearest), *pool(dense_of="image"))


def test_an_image_that_takes_its_neighbours_dense_text_is_caught() -> None:
    def neighbour(pool: Pool, rows: range) -> npt.NDArray[Any]:
        return np.array(
            [
                [len(pool.dense[row - 1].split()) + zlib.crc32(pool.dense[row - 1].encode()) % 5]
                for row in rows
            ]
        )

    assert "dense" in caught(Cheat(neighbour), *pool(dense_of="image"))


# ---------------------------------------------------------------- other ways to see the answer


def _grid(pool: Pool, rows: range) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    return np.array(rows)[:, None], np.arange(len(pool.texts))[None]


def by_place(pool: Pool, rows: range) -> npt.NDArray[Any]:
    """Text j belongs to image j // 5."""
    image, text = _grid(pool, rows)
    return 0.3 * (text // 5 == image)


def by_order(pool: Pool, rows: range) -> npt.NDArray[Any]:
    """Texts stand in the order of their images, however many each has."""
    image, text = _grid(pool, rows)
    return -0.3 * abs(image / len(pool.images) - text / len(pool.texts))


def by_order_if_five(pool: Pool, rows: range) -> npt.NDArray[Any]:
    """Does it only where the numbers fit, to look honest elsewhere."""
    fits = len(pool.texts) == 5 * len(pool.images)
    return by_place(pool, rows) * fits


def by_siblings(pool: Pool, rows: range) -> npt.NDArray[Any]:
    """A text is read together with the text before it, which is likely to be of the same image."""
    texts = np.stack([words(text) for text in (pool.texts[-1:] + pool.texts)[:-1]])
    return 0.5 * np.stack([seen(pool.images[row]) for row in rows]) @ texts.T


def by_name(pool: Pool, rows: range) -> npt.NDArray[Any]:
    """The file's name says which image it is, and a table which texts that one has."""
    numbers = [pool.images[row].source.label.removeprefix("image_").removesuffix(".png") for row in rows]
    return np.array(
        [[0.3 * (number.isdigit() and NAMES[int(number)] in t) for t in pool.texts] for number in numbers]
    )


def by_digest(pool: Pool, rows: range) -> npt.NDArray[Any]:
    """The bytes say which image it is."""
    table = {picture(number).digest: name for number, name in enumerate(NAMES)}
    return np.array(
        [[0.3 * (table.get(pool.images[row].digest, "?") in t) for t in pool.texts] for row in rows]
    )


def by_batch(pool: Pool, rows: range) -> npt.NDArray[Any]:
    """As a batch norm: what the images asked for together have in common is taken away."""
    texts = np.stack([words(text) for text in pool.texts])
    return -np.mean([seen(pool.images[row]) for row in rows], axis=0) @ texts.T


def by_rivals(pool: Pool, rows: range) -> npt.NDArray[Any]:
    """As an inverted softmax: a text that is like every image is made less like each."""
    every = Toy().similarity(pool, range(len(pool.images)))
    return -0.5 * every.max(axis=0)[None]


def by_other_texts(pool: Pool, rows: range) -> npt.NDArray[Any]:
    """As a softmax over texts."""
    return -np.log(np.exp(Toy().similarity(pool, rows)).sum(axis=1))[:, None]


def by_fingerprint(pool: Pool, rows: range) -> npt.NDArray[Any]:
    """Knows the test set when it sees it."""
    return by_order(pool, rows) * (pool.fingerprint == "the pool")


def by_size(pool: Pool, rows: range) -> npt.NDArray[Any]:
    """Knows the test set by its size."""
    return by_place(pool, rows) * (len(pool.images) == 18)


@pytest.mark.parametrize(
    ("way", "found"),
    [
        (by_place, {"text_order", "image_order", "fewer_texts", "fewer_images", "unpaired"}),
        (by_order, {"text_order", "image_order", "fewer_texts", "fewer_images", "unpaired"}),
        (by_order_if_five, {"text_order", "image_order", "fewer_texts", "fewer_images"}),
        (by_siblings, {"text_order", "fewer_texts", "unpaired"}),
        (by_name, {"names"}),
        (by_digest, {"names"}),
        (by_batch, {"batch", "fewer_images"}),
        (by_rivals, {"fewer_images"}),
        (by_other_texts, {"fewer_texts"}),
        (by_fingerprint, {"whole_pool"}),
        (by_size, {"whole_pool"}),
    ],
)
def test_a_matcher_that_cheats_is_caught(way: Callable[..., Any], found: set[str]) -> None:
    leaks = caught(Cheat(way), *pool())
    assert found <= leaks
    assert not leaks - found - {"whole_pool", "unpaired"}  # what these compare differs in several ways


@pytest.mark.parametrize("counts", [(5,) * 18, tuple(1 + k % 4 for k in range(18))])
@pytest.mark.parametrize("images", [2, 5, 18])
def test_a_cheat_by_order_is_caught_in_any_part_of_any_pool(counts: Sequence[int], images: int) -> None:
    assert "text_order" in caught(Cheat(by_order), *pool(counts), images=images)
    assert "whole_pool" in caught(Cheat(by_fingerprint), *pool(counts), images=images)


def test_a_matcher_that_learns_from_what_it_was_asked_is_caught() -> None:
    asked: list[int] = []

    def state(pool: Pool, rows: range) -> npt.NDArray[Any]:
        asked.append(len(rows))
        return np.full((1, 1), 0.01 * sum(asked)) * _grid(pool, rows)[1]

    assert "repeat" in caught(Cheat(state), *pool())


def test_a_matcher_of_chance_is_told_apart_from_one_that_cheats() -> None:
    draw = np.random.default_rng(0)
    report = probe(Cheat(lambda pool, rows: draw.random((len(rows), len(pool.texts)))), *pool())
    assert report.leaks[0].probe == "repeat"
    assert "asked again, gives other scores" in str(report)


@pytest.mark.parametrize("way", [by_place, by_fingerprint, by_name, by_digest])
def test_a_thousandth_for_the_matching_pair_is_caught(way: Callable[..., Any]) -> None:
    weak = Cheat(lambda pool, rows: way(pool, rows) / 300)
    assert caught(weak, *pool()) & {"text_order", "whole_pool", "names"}


def test_a_tiny_bonus_that_only_breaks_ties_is_caught_where_all_scores_tie() -> None:
    class Same(Toy):
        def similarity(self, pool: Pool, rows: range) -> Scores:
            return (0.5 + 1e-5 * by_place(pool, rows)).astype(np.float32)

    assert "text_order" in caught(Same(), *pool())


# ---------------------------------------------------------------- knobs


def test_rounding_is_no_leak_and_how_much_is_a_knob() -> None:
    def rounding(pool: Pool, rows: range) -> npt.NDArray[Any]:
        return 2e-6 * len(rows) * np.cos(_grid(pool, rows)[1])

    assert probe(Cheat(rounding), *pool()).honest
    assert "batch" in caught(Cheat(rounding), *pool(), tolerance=1e-7)


def test_probes_can_be_left_out() -> None:
    report = probe(Cheat(by_digest), *pool(), skip={"names"}, whole=False)
    assert report.honest
    assert not {"names", "whole_pool"} & set(report.probes)


def test_the_same_seed_probes_the_same_part() -> None:
    one, other = (probe(Cheat(by_place), *pool(), images=7, seed=3) for _ in range(2))
    assert one == other


def test_what_cannot_be_probed_is_refused() -> None:
    whole, owner = pool()
    with pytest.raises(ValueError, match="there is no probe 'name'; skip takes repeat, batch"):
        probe(Toy(), whole, owner, skip={"name"})
    with pytest.raises(ValueError, match="owner must name one of 18 images for each of 90 texts"):
        probe(Toy(), whole, owner[:-1])
    with pytest.raises(ValueError, match="1 images with 5 texts leave nothing to compare"):
        probe(Toy(), whole, owner, images=1)
    for odd in (lambda pool, rows: np.zeros((len(rows), 1, 1)), lambda pool, rows: np.full((1, 1), np.nan)):
        with pytest.raises(ModelError, match="the matcher gave a block of shape"):
            probe(Cheat(odd), whole, owner)
