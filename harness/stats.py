"""Intervals and tests: the bootstrap of any reducible metric, and two runs over the same samples.

All numbers of one call share their resample weights, so that a metric's scores, its categories and the
two sides of a pair move together. Samples that share an image are resampled, and swapped, together
(clusters).
Knows counts and `reduce`; knows nothing of tasks, models or files.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from harness.types import Metric

DRAWS = 2000
PERMUTATIONS = 9999
CONFIDENCE = 0.95
POWER = 0.8
_CHUNK = 4_000_000  # weights held at once: 32 MB
_UNDEFINED_SHARE = 0.05  # more undefined draws than this, and there is no interval

Reduce = Callable[[Sequence[Any]], Mapping[str, float | None]]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A number with its interval; each is None where it is undefined."""

    value: float | None
    low: float | None
    high: float | None

    def json(self) -> dict[str, float | None]:
        return {"value": self.value, "low": self.low, "high": self.high}


def bootstrap(
    metric: Metric,
    counts: Sequence[Any],
    clusters: Sequence[Hashable] | None = None,
    *,
    draws: int = DRAWS,
    seed: int = 0,
    method: Literal["percentile", "bca"] = "percentile",
) -> dict[str, Estimate]:
    """95 % intervals of every number that `metric.reduce(counts)` gives.

    counts: per sample, as `metric.measure` returned them. clusters: per sample, whose equal values are
    drawn together (None: each sample by itself). An interval is None where the number is undefined or
    more than 5 % of the draws are. Percentile: Efron & Tibshirani 1993 §13; BCa: §14 (jackknife over
    clusters).
    """
    values = metric.reduce(counts)
    drawn = _draws(metric, [counts], clusters, draws, seed)
    units = _Units(metric, counts, clusters) if method == "bca" else None
    estimates = {}
    for name, value in values.items():
        replicates = _column(drawn[0], name)
        jackknife = _jackknife(units, name) if units is not None else None
        estimates[name] = _interval(value, replicates, jackknife)
    return estimates


def paired_difference(
    metric: Metric,
    ours: Sequence[Any],
    theirs: Sequence[Any],
    clusters: Sequence[Hashable] | None = None,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, Estimate]:
    """`ours - theirs` of every number, with 95 % percentile intervals over the same resamples.

    Both hold the counts of the same samples in the same order; raises ValueError otherwise.
    """
    replicates = _paired_draws(metric, ours, theirs, clusters, draws, seed)
    return {name: _interval(value, drawn, None) for name, (value, drawn) in replicates.items()}


def _paired_draws(
    metric: Metric,
    ours: Sequence[Any],
    theirs: Sequence[Any],
    clusters: Sequence[Hashable] | None,
    draws: int,
    seed: int,
) -> dict[str, tuple[float | None, Floats]]:
    """Of every number, `ours - theirs` and its replicates."""
    if len(ours) != len(theirs):
        raise ValueError(f"a pair needs equal samples; got {len(ours)} and {len(theirs)}")
    mine, other = metric.reduce(ours), metric.reduce(theirs)
    drawn = _draws(metric, [ours, theirs], clusters, draws, seed)
    found = {}
    for name in mine:
        a, b = mine[name], other.get(name)
        value = None if a is None or b is None else a - b
        found[name] = (value, _column(drawn[0], name) - _column(drawn[1], name))
    return found


# ---------------------------------------------------------------- two runs


@dataclass(frozen=True)
class Chance:
    """How often chance alone makes so large a difference. p: two-sided, None where the number is undefined.
    exact: every permutation was counted, none drawn."""

    p: float | None
    exact: bool


@dataclass(frozen=True)
class Paired:
    """One number of two runs over the same samples; what is undefined is None.

    difference: second - first. chance: the permutation test. detectable: the smallest true difference that so
    many samples show in four of five such comparisons (`smallest_difference`).
    """

    first: float | None
    second: float | None
    difference: Estimate
    chance: Chance
    detectable: float | None


def paired(
    metric: Metric,
    first: Sequence[Any],
    second: Sequence[Any],
    clusters: Sequence[Hashable] | None = None,
    *,
    draws: int = DRAWS,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> dict[str, Paired]:
    """Every number of two runs beside each other: `paired_difference`, `permutation_test`, and the spread's
    `smallest_difference`. Both hold the counts of the same samples in the same order."""
    before, after = metric.reduce(first), metric.reduce(second)
    replicates = _paired_draws(metric, second, first, clusters, draws, seed)
    tests = permutation_test(metric, first, second, clusters, permutations=permutations, seed=seed)
    found = {}
    for name, (value, drawn) in replicates.items():
        difference = _interval(value, drawn, None)
        spread = 0.0 if difference.low is None else float(np.nanstd(drawn, ddof=1))
        found[name] = Paired(
            before.get(name), after[name], difference, tests[name], smallest_difference(spread)
        )
    return found


def permutation_test(
    metric: Metric,
    first: Sequence[Any],
    second: Sequence[Any],
    clusters: Sequence[Hashable] | None = None,
    *,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> dict[str, Chance]:
    """Of every number: how often the runs differ so much where chance decides whose answer is whose.

    The two runs' counts are swapped, cluster by cluster (a sign flip of its difference), and both sides
    reduced again: nothing has to be a mean. Exact where all swaps of the clusters that differ are at most
    `permutations` + 1; else that many are drawn, and p is (b + 1) / (m + 1) (Phipson & Smyth 2010). A
    permutation that leaves the number undefined counts against a difference. Raises ValueError unless both
    hold the counts of the same samples.
    """
    if len(first) != len(second):
        raise ValueError(f"a pair needs equal samples; got {len(first)} and {len(second)}")
    if not len(first):
        return {name: Chance(None, True) for name in metric.reduce([])}
    owners = list(range(len(first)) if clusters is None else clusters)
    differ = {owner for owner, one, other in zip(owners, first, second, strict=True) if one != other}
    # Swapping what is equal changes nothing: all of it is one unit, which stays.
    labels = [(owner in differ, owner if owner in differ else None) for owner in owners]
    units = _Units(
        metric, [*first, *second], [*((0, label) for label in labels), *((1, label) for label in labels)]
    )
    swapped = np.array(
        [place for place, label in enumerate(dict.fromkeys(labels)) if label[0]], dtype=np.int64
    )
    exact = len(swapped) < 63 and 2 ** len(swapped) <= permutations + 1
    sides: tuple[list[Any], list[Any]] = ([], [])
    for flips in _flips(len(swapped), permutations, exact, seed, rows=max(1, _CHUNK // units.number)):
        swap = np.zeros((len(flips), units.number // 2), dtype=np.int64)
        swap[:, swapped] = flips
        for side, weights in zip(sides, ((1 - swap, swap), (swap, 1 - swap)), strict=True):
            side.extend(units.reduce(np.hstack(weights)))
    return {
        name: Chance(_share_as_extreme(*(_column(side, name) for side in sides)), exact)
        for name in sides[0][0]
    }


def _flips(
    units: int, permutations: int, exact: bool, seed: int, rows: int
) -> Iterator[npt.NDArray[np.int64]]:
    """Which units are swapped, in blocks (block, units) of 0 and 1: none at first, then all ways or some."""
    rng = np.random.default_rng(seed)
    total = 2**units if exact else permutations + 1
    for start in range(0, total, rows):
        number = np.arange(start, min(total, start + rows))[:, None]
        if exact:
            yield number >> np.arange(units) & 1
        else:
            yield rng.integers(2, size=(len(number), units)) * (number > 0)


def _share_as_extreme(first: Floats, second: Floats) -> float | None:
    """Of permutations, the observed one first: those whose difference is at least its, undefined ones too."""
    differences = np.abs(second - first)
    if np.isnan(differences[0]):
        return None
    rounding = 1e-9 * max(abs(first[0]), abs(second[0]))
    return float(np.mean(~(differences < differences[0] - rounding)))


def smallest_difference(error: float, power: float = POWER) -> float | None:
    """The smallest true difference that a two-sided test at 5 % finds with this power, where estimates of it
    have this standard error; None where nothing varied.

    >>> f"{smallest_difference(0.01):.4f}"
    '0.0280'
    """
    if error < 1e-12:
        return None
    normal = NormalDist()
    return (normal.inv_cdf((1 + CONFIDENCE) / 2) + normal.inv_cdf(power)) * error


@dataclass(frozen=True)
class Outcomes:
    """Places of the samples whose second answer raises and lowers a number. ties: those that leave it.
    undefined: those that leave it without a value."""

    up: tuple[int, ...]
    down: tuple[int, ...]
    ties: int
    undefined: int = 0


def outcomes(metric: Metric, first: Sequence[Any], second: Sequence[Any]) -> dict[str, Outcomes | None]:
    """Of every number: the samples whose second answer, alone put in place of the first, raises or lowers it.

    For a mean that is where a sample's own score is higher or lower. Of a ratio of sums, F1 or rSum it is
    what the sample does to them; of its own it may have none (a right "no" has no F1). None where the first
    run's number is undefined.
    """
    before = metric.reduce(first)
    differ = [place for place, (one, other) in enumerate(zip(first, second, strict=True)) if one != other]
    after = _replaced(metric, first, second, differ) if differ else []
    found: dict[str, Outcomes | None] = {}
    for name, value in before.items():
        if value is None:
            found[name] = None
            continue
        change = _column(after, name) - value
        rounding = 1e-12 * max(1.0, abs(value))
        up, down = (
            tuple(differ[place] for place in np.flatnonzero(moved))
            for moved in (change > rounding, change < -rounding)
        )
        undefined = int(np.isnan(change).sum())
        found[name] = Outcomes(up, down, len(first) - len(up) - len(down) - undefined, undefined)
    return found


def _replaced(
    metric: Metric, first: Sequence[Any], second: Sequence[Any], places: Sequence[int]
) -> list[Mapping[str, float | None]]:
    """The first run's numbers with one sample of the second, for each of `places`."""
    if not metric.additive:
        return [metric.reduce([*first[:at], second[at], *first[at + 1 :]]) for at in places]
    units = _Units(metric, [*first, *second], None)
    ours, theirs = units.sums[: len(first)], units.sums[len(first) :]
    return units.reduce_sums(ours.sum(axis=0) + (theirs - ours)[list(places)])


def right_or_wrong(
    metric: Metric, first: Sequence[Any], second: Sequence[Any]
) -> dict[str, tuple[int, int] | None]:
    """Of every number: how many samples are right in the second run only, and in the first only. None unless
    it is the share, in whatever unit, of the samples that are right, among the same samples in both runs.

    Recall is, over the samples whose truth is yes. Precision is not: of which samples it is, the answers say.
    """
    units = _Units(metric, [*first, *second], None)
    if metric.additive:
        alone = units.reduce_sums(units.sums)
    else:
        alone = [metric.reduce([count]) for count in (*first, *second)]
    numbers = metric.reduce(first), metric.reduce(second)
    return {
        name: _both_right(
            (_column(alone[: len(first)], name), _column(alone[len(first) :], name)),
            (numbers[0][name], numbers[1].get(name)),
        )
        for name in numbers[0]
    }


def _both_right(
    values: tuple[Floats, Floats], numbers: tuple[float | None, float | None]
) -> tuple[int, int] | None:
    """values: of each sample alone, NaN without one, in both runs. numbers: of all of them."""
    known = ~np.isnan(values[0])
    if not known.any() or (known != ~np.isnan(values[1])).any():
        return None
    first, second = (side[known] for side in values)
    if len({0.0, *first.tolist(), *second.tolist()}) > 2:
        return None
    for side, number in zip((first, second), numbers, strict=True):
        if number is None or abs(number - float(side.mean())) > 1e-9 * max(1.0, abs(number)):
            return None
    return int((second > first).sum()), int((second < first).sum())


def mcnemar(better: int, worse: int) -> float:
    """McNemar's exact p of `right_or_wrong`: a binomial test of the samples that changed. It takes them for
    independent: where samples share an image, the permutation test is the one to read.

    >>> mcnemar(8, 1)
    0.0390625
    """
    from scipy.stats import binomtest

    return float(binomtest(better, better + worse).pvalue) if better + worse else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values after Holm's correction over all of them (Holm 1979).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    if not p_values:
        return []
    from statsmodels.stats.multitest import multipletests

    return [float(p) for p in multipletests(p_values, method="holm")[1]]


# ---------------------------------------------------------------- resampling


def resample_weights(units: int, draws: int, seed: int) -> Iterator[npt.NDArray[np.int64]]:
    """How often each of `units` is drawn, in blocks of rows: (block, units); `draws` rows in all."""
    rng = np.random.default_rng(seed)
    block = max(1, _CHUNK // max(1, units))
    for start in range(0, draws, block):
        rows = min(block, draws - start)
        drawn = rng.integers(units, size=(rows, units))
        drawn += np.arange(rows)[:, None] * units
        yield np.bincount(drawn.ravel(), minlength=rows * units).reshape(rows, units)


class _Units:
    """Counts gathered by what is drawn together: sums per cluster, or lists where sums do not do."""

    def __init__(self, metric: Metric, counts: Sequence[Any], clusters: Sequence[Hashable] | None):
        self.metric = metric
        owner = np.arange(len(counts)) if clusters is None else _owners(clusters)
        self.number = int(owner.max()) + 1 if len(owner) else 0
        if metric.additive:
            self.names = sorted({name for count in counts for name in count})
            table = np.array([[count.get(name, 0) for name in self.names] for count in counts], float)
            self.sums = np.zeros((self.number, len(self.names)))
            np.add.at(self.sums, owner, table.reshape(len(counts), len(self.names)))
        else:
            self.lists: list[list[Any]] = [[] for _ in range(self.number)]
            for unit, count in zip(owner, counts, strict=True):
                self.lists[unit].append(count)

    def reduce(self, weights: npt.NDArray[np.int64]) -> list[Mapping[str, float | None]]:
        """One reduction per row of `weights` (rows, units)."""
        if self.metric.additive:
            # Few rows are unlike any other where answers are right or wrong.
            rows, place = np.unique(weights @ self.sums, axis=0, return_inverse=True)
            reduced = [self.metric.reduce([dict(zip(self.names, row, strict=True))]) for row in rows.tolist()]
            return [reduced[at] for at in place.ravel().tolist()]
        out: list[Mapping[str, float | None]] = []
        for row in weights:
            drawn = [c for unit, times in enumerate(row) for _ in range(times) for c in self.lists[unit]]
            out.append(self.metric.reduce(drawn))
        return out

    def reduce_sums(self, sums: Floats) -> list[Mapping[str, float | None]]:
        """One reduction per row of sums (rows, names). Where answers are right or wrong, few rows differ."""
        rows, place = np.unique(sums, axis=0, return_inverse=True)
        reduced = [self.metric.reduce([dict(zip(self.names, row, strict=True))]) for row in rows.tolist()]
        return [reduced[at] for at in place.ravel().tolist()]


def _owners(clusters: Sequence[Hashable]) -> npt.NDArray[np.int64]:
    index: dict[Hashable, int] = {}
    return np.array([index.setdefault(cluster, len(index)) for cluster in clusters], dtype=np.int64)


def _draws(
    metric: Metric,
    sides: Sequence[Sequence[Any]],
    clusters: Sequence[Hashable] | None,
    draws: int,
    seed: int,
) -> list[list[Mapping[str, float | None]]]:
    units = [_Units(metric, counts, clusters) for counts in sides]
    reduced: list[list[Mapping[str, float | None]]] = [[] for _ in units]
    if units[0].number == 0:
        return reduced
    for weights in resample_weights(units[0].number, draws, seed):
        for side, rows in zip(units, reduced, strict=True):
            rows.extend(side.reduce(weights))
    return reduced


def _column(rows: Sequence[Mapping[str, float | None]], name: str) -> Floats:
    return np.array([np.nan if row.get(name) is None else row[name] for row in rows], dtype=float)


# ---------------------------------------------------------------- intervals


def _interval(value: float | None, replicates: Floats, jackknife: Floats | None) -> Estimate:
    defined = replicates[~np.isnan(replicates)]
    if value is None or len(defined) < (1 - _UNDEFINED_SHARE) * max(1, len(replicates)):
        return Estimate(value, None, None)
    tail = (1 - CONFIDENCE) / 2
    shares = (tail, 1 - tail) if jackknife is None else _bca_shares(value, defined, jackknife, tail)
    low, high = np.quantile(defined, shares)
    return Estimate(value, float(low), float(high))


def _bca_shares(value: float, replicates: Floats, jackknife: Floats, tail: float) -> tuple[float, float]:
    """The quantiles to read, after bias (z0) and acceleration; percentile's own where undefined."""
    below = np.mean(replicates < value) + np.mean(replicates == value) / 2
    centred = np.nanmean(jackknife) - jackknife
    spread = float(np.nansum(centred**2)) ** 1.5
    if not 0 < below < 1 or spread == 0:
        return tail, 1 - tail
    normal = NormalDist()
    z0 = normal.inv_cdf(float(below))
    acceleration = float(np.nansum(centred**3)) / (6 * spread)

    def share(p: float) -> float:
        z = z0 + normal.inv_cdf(p)
        return normal.cdf(z0 + z / (1 - acceleration * z))

    return share(tail), share(1 - tail)


def _jackknife(units: _Units, name: str) -> Floats:
    weights = np.ones((units.number, units.number), dtype=np.int64) - np.eye(units.number, dtype=np.int64)
    return _column(units.reduce(weights), name)
