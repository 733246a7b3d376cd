"""Intervals and tests against scipy and statsmodels, and their properties."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pytest
import scipy.stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower

from harness import _resampling, paired, stats
from harness._columns import columns, reduced
from harness.types import Response, Sample


@dataclass(frozen=True)
class Mean:
    """The mean of one number per sample; `additive` chooses the fast or the general way."""

    additive: bool = True
    name: str = "mean"
    variant: str = ""
    scope: Literal["sample", "corpus"] = "sample"

    @property
    def higher_is_better(self) -> Mapping[str, bool]:
        return {"mean": True}

    def measure(self, responses: Sequence[Response], samples: Sequence[Sample]) -> list[Any]:
        raise AssertionError("not measured here")

    def reduce(self, counts: Sequence[Any]) -> dict[str, float | None]:
        n = sum(count["n"] for count in counts)
        return {"mean": sum(count["x"] for count in counts) / n if n else None}


def counts(values: Sequence[float]) -> list[dict[str, float]]:
    return [{"x": float(value), "n": 1} for value in values]


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_intervals_agree_with_scipys_bootstrap(method: Literal["percentile", "bca"]) -> None:
    values = np.random.default_rng(5).gamma(1.0, size=80)
    ours = stats.bootstrap(Mean(), counts(values), draws=20_000, method=method)["mean"]
    scipys = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method=method, rng=np.random.default_rng(6), batch=1000
    ).confidence_interval
    width = scipys.high - scipys.low
    assert ours.low == pytest.approx(scipys.low, abs=0.03 * width)
    assert ours.high == pytest.approx(scipys.high, abs=0.03 * width)


def test_the_fast_way_equals_the_general_way() -> None:
    values = counts(np.random.default_rng(0).random(60))
    clusters = [index // 3 for index in range(60)]
    fast = stats.bootstrap(Mean(additive=True), values, clusters, draws=200)["mean"]
    slow = stats.bootstrap(Mean(additive=False), values, clusters, draws=200)["mean"]
    assert fast.low == pytest.approx(slow.low, abs=1e-12)
    assert fast.high == pytest.approx(slow.high, abs=1e-12)


def test_the_same_counts_give_the_same_interval() -> None:
    values = counts(np.random.default_rng(0).random(50))
    assert stats.bootstrap(Mean(), values) == stats.bootstrap(Mean(), values)


def test_samples_of_one_image_widen_the_interval() -> None:
    values = counts(np.repeat(np.random.default_rng(1).integers(0, 2, 40), 10))
    alone = stats.bootstrap(Mean(), values)["mean"]
    clustered = stats.bootstrap(Mean(), values, [index // 10 for index in range(400)])["mean"]
    assert clustered.low is not None and alone.low is not None
    assert clustered.high - clustered.low > 2 * (alone.high - alone.low)  # type: ignore[operator]


def test_an_undefined_number_has_no_interval() -> None:
    assert stats.bootstrap(Mean(), [{"x": 0, "n": 0}])["mean"] == stats.Estimate(None, None, None)
    assert stats.bootstrap(Mean(), [])["mean"] == stats.Estimate(None, None, None)


def test_a_number_that_is_often_undefined_has_a_value_but_no_interval() -> None:
    rare = [{"x": 1.0, "n": 1}] + [{"x": 0.0, "n": 0}] * 9
    assert stats.bootstrap(Mean(), rare)["mean"] == stats.Estimate(1.0, None, None)


def test_a_paired_difference_uses_the_pairing() -> None:
    rng = np.random.default_rng(2)
    before = rng.random(200)
    after = before + 0.1
    found = paired.paired_difference(Mean(), counts(after), counts(before))["mean"]
    assert found.value == pytest.approx(0.1)
    assert found.low == pytest.approx(0.1) and found.high == pytest.approx(0.1)


def test_a_run_does_not_differ_from_itself() -> None:
    values = counts(np.random.default_rng(3).random(30))
    assert paired.paired_difference(Mean(), values, values)["mean"] == stats.Estimate(0.0, 0.0, 0.0)


def test_unequal_samples_are_not_a_pair() -> None:
    with pytest.raises(ValueError, match="got 2 and 1"):
        paired.paired_difference(Mean(), counts([1, 2]), counts([1]))


def test_weights_draw_every_unit_with_replacement() -> None:
    weights = np.concatenate(list(_resampling.resample_weights(7, 3000, seed=0)))
    assert weights.shape == (3000, 7)
    assert (weights.sum(axis=1) == 7).all()
    assert weights.mean(axis=0) == pytest.approx(np.ones(7), abs=0.1)


# ---------------------------------------------------------------- two runs


def test_a_paired_interval_agrees_with_scipys_bootstrap() -> None:
    rng = np.random.default_rng(4)
    before = rng.gamma(1.0, size=80)
    after = before + rng.normal(0.2, 0.4, size=80)
    ours = paired.paired_difference(Mean(), counts(after), counts(before), draws=20_000)["mean"]
    scipys = scipy.stats.bootstrap(
        (after, before),
        lambda a, b, axis: np.mean(a - b, axis),
        n_resamples=20_000,
        paired=True,
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(6),
        batch=1000,
    ).confidence_interval
    width = scipys.high - scipys.low
    assert ours.low == pytest.approx(scipys.low, abs=0.03 * width)
    assert ours.high == pytest.approx(scipys.high, abs=0.03 * width)


def scipys_p(table: np.ndarray[Any, Any], n: int, permutations: float = np.inf) -> float:
    """scipy's paired permutation test of sum(x) / sum(n), over rows 0 to n - 1 of one side and the next n of
    the other; it knows clusters, if rows are their sums."""

    def statistic(first: Any, second: Any) -> float:
        ratios = [
            float(table[side.astype(int), 0].sum() / table[side.astype(int), 1].sum())
            for side in (first, second)
        ]
        return ratios[1] - ratios[0]

    found = scipy.stats.permutation_test(
        (np.arange(n), np.arange(n, 2 * n)),
        statistic,
        permutation_type="samples",
        n_resamples=permutations,
        vectorized=False,
        rng=np.random.default_rng(1),
    )
    return float(found.pvalue)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("additive", [True, False])
def test_permutations_of_a_ratio_of_sums_are_scipys_where_they_can_be_counted(
    seed: int, additive: bool
) -> None:
    rng = np.random.default_rng(seed)
    table = np.stack([rng.integers(0, 4, 18), rng.integers(1, 5, 18)], axis=1).astype(float)
    first, second = ([{"x": x, "n": n} for x, n in table[rows]] for rows in (slice(9), slice(9, 18)))
    found = paired.permutation_test(Mean(additive), first, second)["mean"]
    assert found.exact
    assert found.p == pytest.approx(scipys_p(table, 9))


def test_clusters_are_swapped_whole_as_scipy_swaps_their_sums() -> None:
    rng = np.random.default_rng(8)
    table = np.stack([rng.integers(0, 4, 48), rng.integers(1, 5, 48)], axis=1).astype(float)
    first, second = ([{"x": x, "n": n} for x, n in table[rows]] for rows in (slice(24), slice(24, 48)))
    clusters = [place % 8 for place in range(24)]
    found = paired.permutation_test(Mean(), first, second, clusters)["mean"]
    sums = np.concatenate([table[:24].reshape(3, 8, 2).sum(0), table[24:].reshape(3, 8, 2).sum(0)])
    assert found.exact and found.p == pytest.approx(scipys_p(sums, 8))


def test_drawn_permutations_come_near_scipys() -> None:
    rng = np.random.default_rng(9)
    before = rng.normal(size=60)
    after = before + rng.normal(0.15, 0.5, size=60)
    found = paired.permutation_test(Mean(), counts(before), counts(after))["mean"]
    scipys = scipy.stats.permutation_test(
        (after - before,), np.mean, permutation_type="samples", n_resamples=9999, rng=rng
    )
    assert not found.exact
    assert found.p == pytest.approx(scipys.pvalue, abs=0.01)


def test_of_right_and_wrong_answers_all_permutations_give_the_sign_test() -> None:
    first, second = counts([0] * 9 + [1] * 20), counts([1] * 8 + [0] + [0] + [1] * 19)
    assert paired.permutation_test(Mean(), first, second)["mean"].p == pytest.approx(paired.mcnemar(8, 1))


def test_only_what_differs_is_counted_so_that_large_runs_with_few_flips_are_exact() -> None:
    first = [0.0] * 5000
    second = [1.0] * 6 + [0.0] * 4994
    found = paired.permutation_test(Mean(), counts(first), counts(second))["mean"]
    assert found == paired.Chance(2 / 2**6, True)


def test_a_run_against_itself_is_always_as_extreme() -> None:
    values = counts(np.random.default_rng(3).random(30))
    assert paired.permutation_test(Mean(), values, values)["mean"] == paired.Chance(1.0, True)
    found = paired.paired(Mean(), values, values)["mean"]
    assert found.difference == stats.Estimate(0.0, 0.0, 0.0) and found.detectable is None


def test_no_samples_and_an_undefined_number_have_no_p() -> None:
    assert paired.permutation_test(Mean(), [], [])["mean"].p is None
    nothing = [{"x": 0, "n": 0}]
    assert paired.permutation_test(Mean(), nothing, nothing)["mean"].p is None
    with pytest.raises(ValueError, match="got 2 and 1"):
        paired.permutation_test(Mean(), counts([1, 2]), counts([1]))


def test_answers_about_one_image_are_less_evidence_than_as_many_images() -> None:
    first, second = counts([0] * 60), counts(([1] * 10 + [0] * 10) * 3)
    alone = paired.permutation_test(Mean(), first, second)["mean"].p
    clustered = paired.permutation_test(Mean(), first, second, [place // 10 for place in range(60)])["mean"].p
    assert alone == pytest.approx(0.0001) and clustered == 2 / 2**3


def test_what_a_comparison_could_show_agrees_with_statsmodels() -> None:
    rng = np.random.default_rng(7)
    before, after = rng.random(400), rng.random(400)
    found = paired.paired(Mean(), counts(before), counts(after))["mean"]
    effect = TTestPower().solve_power(nobs=400, alpha=0.05, power=0.8)
    assert found.detectable == pytest.approx(effect * np.std(after - before, ddof=1), rel=0.05)
    exactly = paired.smallest_difference(float(np.std(after - before, ddof=1) / 20))
    assert exactly == pytest.approx(effect * np.std(after - before, ddof=1), rel=0.005)


@pytest.mark.parametrize(("better", "worse"), [(0, 0), (1, 0), (5, 5), (12, 3), (3, 12), (40, 25)])
def test_mcnemar_is_statsmodels(better: int, worse: int) -> None:
    theirs = mcnemar([[7, better], [worse, 9]], exact=True).pvalue if better + worse else 1.0
    assert paired.mcnemar(better, worse) == pytest.approx(theirs)


@pytest.mark.parametrize("number", [0, 1, 2, 5, 12])
def test_holm_steps_down(number: int) -> None:
    """Holm 1979: the k-th smallest times how many are left, never below the one before, at most 1."""
    p_values = (
        np.random.default_rng(number).choice([0.0, 0.001, 0.004, 0.01, 0.03, 0.2, 1.0], number).tolist()
    )
    wanted, least = [0.0] * len(p_values), 0.0
    for done, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        least = max(least, min(1.0, p_values[place] * (len(p_values) - done)))
        wanted[place] = least
    assert stats.holm(p_values) == pytest.approx(wanted)


@pytest.mark.parametrize("number", [1, 2, 5, 60])
def test_holm_is_statsmodels(number: int) -> None:
    p_values = np.random.default_rng(number).random(number) ** 3
    p_values[number // 2 :] = p_values[: number - number // 2]  # ties
    theirs = multipletests(p_values, method="holm")[1]
    assert stats.holm(p_values.tolist()) == pytest.approx(theirs.tolist(), abs=1e-15)


def test_a_clustered_bootstrap_is_scipys_over_the_clusters_sums() -> None:
    rng = np.random.default_rng(12)
    table = np.stack([rng.integers(0, 3, (60, 4)).sum(axis=1), np.full(60, 4)], axis=1).astype(float)
    values = [{"x": x / 4, "n": 1} for x, _ in table for _ in range(4)]
    clusters = [place for place in range(60) for _ in range(4)]
    ours = stats.bootstrap(Mean(), values, clusters, draws=20_000)["mean"]
    scipys = scipy.stats.bootstrap(
        (table[:, 0], table[:, 1]),
        lambda x, n, axis: x.sum(axis) / n.sum(axis),
        n_resamples=20_000,
        paired=True,
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(6),
    ).confidence_interval
    width = scipys.high - scipys.low
    assert ours.low == pytest.approx(scipys.low, abs=0.03 * width)
    assert ours.high == pytest.approx(scipys.high, abs=0.03 * width)


@pytest.mark.parametrize("scale", [1, 0.3, 1e-7, 1e9])
def test_a_pair_is_the_same_to_the_bit_alone_and_among_others(scale: float) -> None:
    rng = np.random.default_rng(11)
    sides = [
        (rng.integers(0, 4, n) * scale, rng.integers(0, 4, n) * scale) for n in (40, 40, 41, 40, 9, 40) * 4
    ]
    for additive in (True, False):
        chosen = sides if additive else sides[4:6]
        knobs = {"draws": 200, "permutations": 400}
        pairs = [paired.Pair(Mean(additive), counts(one), counts(other)) for one, other in chosen]
        for (one, other), together in zip(chosen, paired.paired_each(pairs, **knobs), strict=True):
            assert paired.paired(Mean(additive), counts(one), counts(other), **knobs) == together


def test_sums_and_lists_draw_the_same_permutations() -> None:
    rng = np.random.default_rng(13)
    before, after = rng.random(30), rng.random(30)
    clusters = [place // 2 for place in range(30)]
    sums, lists = (
        paired.permutation_test(Mean(additive), counts(before), counts(after), clusters, permutations=500)
        for additive in (True, False)
    )
    assert sums == lists and not sums["mean"].exact


def test_permutations_do_not_depend_on_how_many_are_held_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(14)
    sides = counts(rng.random(70)), counts(rng.random(70))
    whole = paired.paired(Mean(), *sides, draws=300, permutations=500)
    for name in ("_kept_bits", "_kept_weights"):
        getattr(_resampling, name).cache_clear()
    monkeypatch.setattr(_resampling, "_BLOCK", 1000)
    assert paired.paired(Mean(), *sides, draws=300, permutations=500) == whole
    monkeypatch.setattr(_resampling, "_CHUNK", 1)  # nothing is kept
    assert paired.permutation_test(Mean(), *sides, permutations=500)["mean"] == whole["mean"].chance
    for name in ("_kept_bits", "_kept_weights"):
        getattr(_resampling, name).cache_clear()


@pytest.mark.parametrize(
    "reduce",
    [
        lambda counts: {"share": counts[0]["x"] / counts[0]["n"] if counts[0]["n"] else None},
        lambda counts: {"f1": 2 * counts[0]["x"] / max(1, counts[0]["x"] + counts[0]["n"])},
        lambda counts: {"sorted": sorted([counts[0]["x"], counts[0]["n"], 3])[1], "odd": -counts[0]["x"]},
        lambda counts: {"fsum": math.fsum(count["x"] for count in counts)},
        lambda counts: {"rounded": round(counts[0]["x"] / 7, 1), "root": counts[0]["n"] ** 0.5},
        lambda counts: {"large": abs(1 - counts[0]["x"])} if counts[0]["x"] > 2 else {"small": 1.0},
        lambda counts: {"parts": float(sum(counts[0]["x"] > k for k in range(9)))},
        lambda counts: {"kind": float(isinstance(counts[0]["x"], float))},
        lambda counts: {"array": float(np.array([counts[0]["x"], 1.0]).sum())},
    ],
)
def test_many_reductions_at_once_are_each_by_itself(reduce: Any) -> None:
    sums = np.random.default_rng(0).integers(0, 6, (300, 2)).astype(float)
    found = reduced(reduce, ["n", "x"], sums)
    alone = columns([reduce([{"n": n, "x": x}]) for n, x in sums.tolist()])
    assert found.keys() == alone.keys()
    for name, column in alone.items():
        assert np.array_equal(found[name], column, equal_nan=True)


def test_a_reduction_that_divides_by_zero_says_so() -> None:
    with pytest.raises(ZeroDivisionError):
        reduced(lambda counts: {"share": 1 / counts[0]["n"]}, ["n"], np.arange(40.0)[:, None])


def test_outcomes_of_a_mean_are_the_samples_own() -> None:
    found = paired.outcomes(Mean(), counts([0, 1, 0.5, 0.2]), counts([1, 0, 0.5, 0.3]))["mean"]
    assert found == paired.Outcomes(up=(0, 3), down=(1,), ties=1)
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 4, 60) / 3, rng.integers(0, 4, 60) / 3
    for additive in (True, False):
        found = paired.outcomes(Mean(additive), counts(first), counts(second))["mean"]
        assert found is not None
        assert found.up == tuple(np.flatnonzero(second > first))
        assert found.down == tuple(np.flatnonzero(second < first))


def test_outcomes_of_a_ratio_are_what_a_sample_does_to_it() -> None:
    first = [{"x": 1, "n": 2}, {"x": 1, "n": 2}, {"x": 0, "n": 0}]
    second = [{"x": 2, "n": 2}, {"x": 2, "n": 5}, {"x": 0, "n": 0}]
    assert paired.outcomes(Mean(), first, second)["mean"] == paired.Outcomes(up=(0,), down=(1,), ties=1)


def test_outcomes_of_an_undefined_number_are_none_and_of_one_that_becomes_so_undefined() -> None:
    nothing, something = [{"x": 0, "n": 0}], [{"x": 1, "n": 1}]
    assert paired.outcomes(Mean(), nothing, something)["mean"] is None
    assert paired.outcomes(Mean(), something, nothing)["mean"] == paired.Outcomes((), (), 0, undefined=1)


def rights(first: Sequence[Any], second: Sequence[Any]) -> tuple[int, int] | None:
    found = [paired.right_or_wrong(Mean(additive), first, second)["mean"] for additive in (True, False)]
    assert found[0] == found[1]
    return found[0]


def test_right_or_wrong_comes_in_any_unit_and_only_among_the_same_samples() -> None:
    assert rights(counts([0, 1, 0]), counts([1, 0, 1])) == (2, 1)
    percent = [{"x": 100.0 * x, "n": 1} for x in (0, 1, 1)]
    assert rights(percent, percent[::-1]) == (1, 1)
    assert rights(counts([0, 0.3]), counts([0, 1])) is None
    unlike = [{"x": 1, "n": 1}, {"x": 0, "n": 0}]
    assert rights(unlike, unlike[::-1]) is None
    weighted = [{"x": 2, "n": 2}, {"x": 0, "n": 1}]
    assert rights(weighted, weighted) is None, "not the mean of its samples"
