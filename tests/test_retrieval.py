"""Retrieval: the references' numbers over seeded matrices, the bounds of ties, and a naive count beside ours.

Left out of `goldens/retrieval.json`: `laps_argsort_observed_machine_dependent` (where similarities are
equal, argsort's order is the machine's), which is not copied. CLIP_benchmark's recalls were computed in
float32, hence 1e-6.
"""

import itertools
import json
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from metrics import retrieval
from metrics.retrieval import RankCounter, Ties, ranks, summary

GOLDEN = json.loads((Path(__file__).parent / "goldens" / "retrieval.json").read_text())
TIES: tuple[Ties, ...] = ("pessimistic", "optimistic", "mean")
Matrix = npt.NDArray[Any]


def built(given: dict[str, Any]) -> tuple[Matrix, npt.NDArray[np.int64]]:
    """The matrix that a golden describes: legacy normal noise, row by row, `delta` on every own pair."""
    images, captions = given["n_img"], given["n_cap"]
    rng = np.random.RandomState(given["seed"])
    owner = np.arange(captions) // 5
    similarity = np.empty((images, captions), np.float32 if given["dtype"] == "f32" else np.float64)
    for image, row in enumerate(similarity):
        noise = rng.randn(captions)
        noise[owner == image] += given["delta"]
        row[:] = np.round(noise, 1) if given["dtype"] == "round1" else noise
    return similarity, owner


def flat(nested: dict[str, Any]) -> dict[str, float]:
    """`{"i2t": {"r1": 5}}` as `{"i2t_r1": 5}`."""
    named = {f"{way}_{name}": value for way in ("i2t", "t2i") for name, value in nested[way].items()}
    return {**named, "rsum": nested["rsum"]}


def close(found: dict[str, float | None], expected: dict[str, float]) -> bool:
    return {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-6)


def naive(similarity: Matrix, owner: Matrix) -> dict[Ties, tuple[list[float], list[float]]]:
    """The definition in plain Python."""
    rows, owners = similarity.tolist(), owner.tolist()
    found: dict[str, tuple[list[float], list[float]]] = {}
    above: list[list[int]] = [[], []]
    level: list[list[int]] = [[], []]
    for image, row in enumerate(rows):
        best = max(value for value, own in zip(row, owners, strict=True) if own == image)
        rivals = [value for value, own in zip(row, owners, strict=True) if own != image]
        above[0].append(sum(value > best for value in rivals))
        level[0].append(sum(value == best for value in rivals))
    for caption, image in enumerate(owners):
        own = rows[image][caption]
        rivals = [row[caption] for other, row in enumerate(rows) if other != image]
        above[1].append(sum(value > own for value in rivals))
        level[1].append(sum(value == own for value in rivals))
    for ties, share in zip(TIES, (1.0, 0.0, 0.5), strict=True):
        sides = [[a + share * b for a, b in zip(above[k], level[k], strict=True)] for k in (0, 1)]
        found[ties] = (sides[0], sides[1])
    return found  # type: ignore[return-value]


# ---------------------------------------------------------------- against the references


def test_numbers_equal_those_of_the_references_on_matrices_without_ties() -> None:
    assert len(GOLDEN["cases"]) > 100
    for case in GOLDEN["cases"]:
        similarity, owner = built(case["input"])
        for ties in TIES:
            assert close(summary(similarity, owner, ties), flat(case["expected"]["laps"])), case["input"]
        found = summary(similarity, owner)
        for name, share in case["expected"]["clip_benchmark_0to1"].items():
            way = "t2i" if name.startswith("image_retrieval") else "i2t"
            assert found[f"{way}_r{name.rpartition('@')[2]}"] == pytest.approx(100 * share, abs=1e-4)


def test_ties_give_the_bounds_of_the_goldens() -> None:
    for case in GOLDEN["tie_cases"]:
        similarity, owner = built(case["input"])
        for ties in ("optimistic", "pessimistic"):
            assert close(summary(similarity, owner, ties), flat(case["expected"][ties])), case["input"]
        assert summary(similarity, owner)["tied"] > 0  # type: ignore[operator]


def test_explicit_matrices_give_the_goldens() -> None:
    for case in GOLDEN["explicit_cases"]:
        similarity = np.array(case["input"]["sims"])
        owner = np.arange(similarity.shape[1]) // 5
        for ties in ("optimistic", "pessimistic"):
            assert close(summary(similarity, owner, ties), flat(case["expected"][ties]))


def test_folds_are_pools_of_their_own_and_every_number_their_mean() -> None:
    for case in GOLDEN["fold_cases"]:
        similarity, owner = built(case["input"])
        assert close(summary(similarity, owner, folds=5), flat(case["expected"]["mean"]))
        assert close(summary(similarity, owner), flat(case["expected"]["full_pool"]))


def test_images_may_have_any_number_of_captions() -> None:
    for case in GOLDEN["unequal_cases"]:
        rng = np.random.RandomState(case["input"]["seed"])
        counts = rng.randint(1, 8, size=case["input"]["n_img"])
        assert counts.tolist() == case["input"]["captions_per_image"]
        owner = np.repeat(np.arange(len(counts)), counts)
        similarity = rng.randn(len(counts), len(owner))
        similarity[owner, np.arange(len(owner))] += 1.5
        found = summary(similarity, owner)
        for name, share in case["expected"]["clip_benchmark_0to1"].items():
            way = "t2i" if name.startswith("image_retrieval") else "i2t"
            assert found[f"{way}_r{name.rpartition('@')[2]}"] == pytest.approx(100 * share, abs=1e-4)


def test_a_thousand_images_give_the_golden() -> None:
    case = GOLDEN["large_cases"][0]
    similarity, owner = built(case["input"])
    for ties in ("optimistic", "pessimistic"):
        assert close(summary(similarity, owner, ties), flat(case["expected"][ties]))


@pytest.mark.slow
def test_five_thousand_images_in_five_folds_give_the_golden_in_little_memory() -> None:
    case = GOLDEN["large_cases"][1]
    similarity, owner = built(case["input"])
    assert close(summary(similarity, owner, folds=5), flat(case["expected"]["mean"]))
    tracemalloc.start()
    ranks(similarity, owner)
    beyond = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert beyond < 256 * 2**20


# ---------------------------------------------------------------- against the definition


matrices = hnp.arrays(
    st.sampled_from([np.float32, np.float64, np.int64]),
    st.tuples(st.integers(1, 7), st.integers(7, 15)),
    elements=st.integers(-2, 2),
)


def owners(draw: Any, images: int, captions: int) -> npt.NDArray[np.int64]:
    rest = draw(st.lists(st.integers(0, images - 1), min_size=captions - images, max_size=captions - images))
    return np.array(draw(st.permutations([*range(images), *rest])))


@given(st.data())
def test_ranks_are_the_definition_counted_out(data: st.DataObject) -> None:
    similarity = data.draw(matrices)
    owner = owners(data.draw, *similarity.shape)
    for ties, (of_image, of_caption) in naive(similarity, owner).items():
        found = ranks(similarity, owner, ties)
        assert [found[0].tolist(), found[1].tolist()] == [of_image, of_caption]
        assert {side.dtype for side in found} == {np.dtype(np.float64 if ties == "mean" else np.int64)}


@given(st.data())
def test_the_order_of_images_and_captions_means_nothing(data: st.DataObject) -> None:
    similarity = data.draw(matrices)
    owner = owners(data.draw, *similarity.shape)
    images, captions = similarity.shape
    rows = np.array(data.draw(st.permutations(range(images))))
    columns = np.array(data.draw(st.permutations(range(captions))))
    moved = np.argsort(rows)[owner[columns]]
    before, after = summary(similarity, owner), summary(similarity[rows][:, columns], moved)
    assert after == pytest.approx(before)


@given(st.data())
def test_rows_may_come_in_blocks_of_any_size_and_order(data: st.DataObject) -> None:
    similarity = data.draw(matrices)
    owner = owners(data.draw, *similarity.shape)
    images, captions = similarity.shape
    counter = RankCounter(owner, similarity[owner, np.arange(captions)], images)
    cuts = sorted({0, images, *data.draw(st.lists(st.integers(0, images), max_size=3))})
    for first, last in data.draw(st.permutations(list(itertools.pairwise(cuts)))):
        counter.add(first, similarity[first:last])
    for ties in TIES:
        for found, expected in zip(counter.ranks(ties), ranks(similarity, owner, ties), strict=True):
            assert found.tolist() == expected.tolist()
    assert counter.tied == summary(similarity, owner)["tied"]


def test_blocks_within_a_matrix_and_slabs_between_threads_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rng = np.random.default_rng(0)
    similarity = np.round(rng.standard_normal((700, 1400)), 2)
    owner = rng.permutation(np.arange(1400) % 700)
    expected = [side.tolist() for side in ranks(similarity, owner)]
    monkeypatch.setattr(retrieval, "_SLAB", 1400 * 37)
    monkeypatch.setattr(retrieval, "_BLOCK", 1400 * 5)
    assert [side.tolist() for side in ranks(similarity, owner)] == expected
    monkeypatch.setattr(retrieval, "_BLOCK", 1 << 30)  # 255 rows at once, as many as a byte counts
    monkeypatch.setattr(retrieval, "_SLAB", 1 << 30)
    assert [side.tolist() for side in ranks(np.asfortranarray(similarity), owner)] == expected


def test_a_constant_matrix_is_all_ties() -> None:
    similarity, owner = np.ones((2, 10)), np.arange(10) // 5
    assert summary(similarity, owner, "optimistic")["rsum"] == 600
    assert summary(similarity, owner, "pessimistic")["rsum"] == 300
    assert summary(similarity, owner)["tied"] == 1
    assert ranks(similarity, owner, "mean")[0].tolist() == [2.5, 2.5]


def test_infinities_are_ranked() -> None:
    similarity = np.array([[-np.inf, np.inf, 0.0], [np.inf, -np.inf, 1.0]])
    assert [side.tolist() for side in ranks(similarity, [0, 1, 1])] == [[2, 1], [1, 1, 0]]


# ---------------------------------------------------------------- refusals


def test_a_nan_is_rejected_and_located() -> None:
    similarity = np.zeros((600, 1200), np.float32)
    owner = np.arange(1200) // 2
    similarity[517, 3] = np.nan
    with pytest.raises(ValueError, match="image 517 and caption 3 is not a number"):
        ranks(similarity, owner)
    similarity[517, 3] = 0
    similarity[517, 1034] = np.nan  # an own pair
    with pytest.raises(ValueError, match="image 517 and caption 1034 is not a number"):
        summary(similarity, owner)


@pytest.mark.parametrize(
    ("similarity", "owner", "message"),
    [
        ([1.0, 2.0], [0, 0], "it must be a matrix of real numbers"),
        ([[1j]], [0], "it must be a matrix of real numbers"),
        ([["a"]], [0], "it must be a matrix of real numbers"),
        ([[1.0, 2.0]], [0], "must name the image of each of 2 captions"),
        ([[1.0, 2.0]], [0, 1], "owner names image 1; there are images 0 to 0"),
        ([[1.0, 2.0]], [0, -1], "owner names image -1"),
        ([[1.0, 2.0]], [0.0, 0.0], "it must be a list of row numbers"),
        ([[1.0], [2.0], [3.0]], [1], r"image 0 has no caption \(2 such images\)"),
    ],
)
def test_what_is_no_retrieval_matrix_is_refused(similarity: Any, owner: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ranks(similarity, owner)


def test_unequal_folds_and_an_unknown_tie_policy_are_refused() -> None:
    with pytest.raises(ValueError, match="3 images cannot be cut into 2 equal folds"):
        summary(np.eye(3), [0, 1, 2], folds=2)
    with pytest.raises(ValueError, match="3 images cannot be cut into 0 equal folds"):
        summary(np.eye(3), [0, 1, 2], folds=0)
    with pytest.raises(ValueError, match="use one of pessimistic, optimistic, mean"):
        ranks(np.eye(3), [0, 1, 2], "random")  # type: ignore[arg-type]


def test_rows_are_counted_once_each_and_all_of_them() -> None:
    counter = RankCounter([0, 1, 2], [1.0, 1.0, 1.0], images=3)
    counter.add(1, np.eye(3)[1:2])
    with pytest.raises(ValueError, match="2 of 3 rows are missing; the first is 0"):
        counter.ranks()
    with pytest.raises(ValueError, match="rows 0 to 1 were counted before"):
        counter.add(0, np.eye(3)[:2])
    with pytest.raises(ValueError, match="is no part of a matrix of 3 images x 3 captions"):
        counter.add(2, np.eye(3)[:2])
    with pytest.raises(ValueError, match="is no part of a matrix of 3 images x 3 captions"):
        counter.add(0, np.ones((1, 4)))
    with pytest.raises(ValueError, match="is no part of a matrix of 3 images x 3 captions"):
        counter.add(0, np.ones(3))
    with pytest.raises(ValueError, match="own has shape"):
        RankCounter([0, 1], [1.0], images=2)


def test_no_images_have_no_numbers() -> None:
    found = summary(np.zeros((0, 0)), np.zeros(0, int))
    assert set(found.values()) == {None}
    assert set(found) == set(summary(np.eye(2), [0, 1]))
    assert [side.tolist() for side in ranks(np.zeros((0, 0)), [])] == [[], []]
