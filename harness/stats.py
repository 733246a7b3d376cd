"""Intervals and tests: the bootstrap of any reducible metric, and two runs over the same samples.

All numbers of one call share their resample weights, so that a metric's scores, its categories and the
two sides of a pair move together. Samples that share an image are resampled, and swapped, together
(clusters).
Knows counts and `reduce`; knows nothing of tasks, models or files.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from operator import methodcaller
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from harness._columns import columns, reduced
from harness.types import Metric

DRAWS = 2000
PERMUTATIONS = 9999
CONFIDENCE = 0.95
POWER = 0.8
_CHUNK = 4_000_000  # weights held at once: 32 MB
_BLOCK = 1_000_000  # of them in one product
_BATCH = 16  # pairs in one product
_UNDEFINED_SHARE = 0.05  # more undefined draws than this, and there is no interval

Reduce = Callable[[Sequence[Any]], Mapping[str, float | None]]
Floats = npt.NDArray[np.float64]
Reduced = Mapping[str, Floats] | Sequence[Mapping[str, float | None]]
"""Many reductions: each number's (rows,), or a mapping per row."""


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
    if len(ours) != len(theirs):
        raise ValueError(f"a pair needs equal samples; got {len(ours)} and {len(theirs)}")
    (drawn,) = _drawn_differences([Pair(metric, theirs, ours, clusters)], draws, seed)
    return {name: _interval(value, replicates, None) for name, (value, replicates) in drawn.items()}


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


class Pair:
    """Two runs' counts of the same samples in the same order, gathered by what is drawn and swapped together.

    clusters: per sample, whose equal values belong together (None: each sample by itself). Raises ValueError
    unless both are equally long.
    """

    def __init__(
        self,
        metric: Metric,
        first: Sequence[Any],
        second: Sequence[Any],
        clusters: Sequence[Hashable] | None = None,
    ) -> None:
        if len(first) != len(second):
            raise ValueError(f"a pair needs equal samples; got {len(first)} and {len(second)}")
        self.metric = metric
        self.first, self.second = metric.reduce(first), metric.reduce(second)
        owner = np.arange(len(first)) if clusters is None else _owners(clusters)
        self.number = int(owner.max()) + 1 if len(owner) else 0
        self.both = _Units(metric, [*first, *second], np.concatenate([owner, owner + self.number]))
        if metric.additive:
            self.names = self.both.names
            self.both.sums = sums = _exact(self.both.sums)
            self.sums = sums[: self.number], sums[self.number :]
            self.differ = np.flatnonzero((self.sums[0] != self.sums[1]).any(axis=1))
        else:
            self.lists = self.both.lists[: self.number], self.both.lists[self.number :]
            unlike = [
                place for place, (one, other) in enumerate(zip(*self.lists, strict=True)) if one != other
            ]
            self.differ = np.array(unlike, dtype=np.int64)


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
    pair = Pair(metric, first, second, clusters)
    (found,) = paired_each([pair], draws=draws, permutations=permutations, seed=seed)
    return found


def paired_each(
    pairs: Sequence[Pair],
    *,
    draws: int = DRAWS,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> list[dict[str, Paired]]:
    """`paired` of each, to the same bits, in less time: pairs of equally many clusters share their resamples
    and swaps."""
    found = []
    replicates = _drawn_differences(pairs, draws, seed)
    tests = _chances(pairs, permutations, seed)
    for pair, drawn, test in zip(pairs, replicates, tests, strict=True):
        numbers = {}
        for name, (value, differences) in drawn.items():
            difference = _interval(value, differences, None)
            spread = 0.0 if difference.low is None else float(np.nanstd(differences, ddof=1))
            numbers[name] = Paired(
                pair.first.get(name), pair.second[name], difference, test[name], smallest_difference(spread)
            )
        found.append(numbers)
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
    return _chances([Pair(metric, first, second, clusters)], permutations, seed)[0]


def _drawn_differences(
    pairs: Sequence[Pair], draws: int, seed: int
) -> list[dict[str, tuple[float | None, Floats]]]:
    """Per pair and number: second - first, and its replicates over resamples that both sides share."""
    found: list[dict[str, tuple[float | None, Floats]]] = [{} for _ in pairs]
    for places in _of_one_size(pairs):
        group = [pairs[place] for place in places]
        for place, (first, second) in zip(places, _resampled(group, draws, seed), strict=True):
            pair = pairs[place]
            for name, b in pair.second.items():
                a = pair.first.get(name)
                value = None if a is None or b is None else b - a
                found[place][name] = (value, _column(second, name) - _column(first, name))
    return found


def _of_one_size(pairs: Sequence[Pair]) -> Iterator[list[int]]:
    """Places of pairs of equally many clusters; those of lists by themselves."""
    sizes: dict[tuple[int, int], list[int]] = {}
    for place, pair in enumerate(pairs):
        alone = 0 if pair.metric.additive else place + 1
        sizes.setdefault((pair.number, alone), []).append(place)
    for places in sizes.values():
        for start in range(0, len(places), _BATCH):
            yield places[start : start + _BATCH]


def _resampled(pairs: Sequence[Pair], draws: int, seed: int) -> Iterator[tuple[Reduced, Reduced]]:
    """Both sides of each pair over `draws` resamples of its clusters; all have equally many."""
    number = pairs[0].number
    if not number:
        yield from (({}, {}) for _ in pairs)
    elif pairs[0].metric.additive:
        sums = _products(_weights(number, draws, seed), [table for pair in pairs for table in pair.sums])
        for pair, first, second in zip(pairs, sums[::2], sums[1::2], strict=True):
            yield _both_reduced(pair, first, second)
    else:
        sides: tuple[list[Any], list[Any]] = ([], [])
        for weights in _weights(number, draws, seed):
            for side, lists in zip(sides, pairs[0].lists, strict=True):
                side += _reduced_lists(pairs[0].metric, lists, weights)
        yield sides


def _chances(pairs: Sequence[Pair], permutations: int, seed: int) -> list[dict[str, Chance]]:
    """`permutation_test` of each pair."""
    found = [dict.fromkeys(pair.second, Chance(None, True)) for pair in pairs]
    for places in _of_one_size(pairs):
        counted = [place for place in places if _countable(pairs[place], permutations)]
        drawn = [place for place in places if place not in counted]
        swapped = [(place, _every_swap(pairs[place])) for place in counted if pairs[place].number]
        if drawn:
            group = [pairs[place] for place in drawn]
            swapped += zip(drawn, _drawn_swaps(group, permutations, seed), strict=True)
        for place, sides in swapped:
            for name in pairs[place].second:
                p = _share_as_extreme(*(_column(side, name) for side in sides))
                found[place][name] = Chance(p, place in counted)
    return found


def _countable(pair: Pair, permutations: int) -> bool:
    return len(pair.differ) < 63 and 2 ** len(pair.differ) <= permutations + 1


def _every_swap(pair: Pair) -> tuple[Reduced, Reduced]:
    """Both sides under every swap of the clusters that differ, none first."""
    ways = np.arange(2 ** len(pair.differ))[:, None] >> np.arange(len(pair.differ)) & 1
    if not pair.metric.additive:
        return _swapped_lists(pair, [ways])
    return _sides(pair, _products([ways], [(pair.sums[1] - pair.sums[0])[pair.differ]])[0])


def _drawn_swaps(pairs: Sequence[Pair], permutations: int, seed: int) -> Iterator[tuple[Reduced, Reduced]]:
    """Both sides of each pair under swaps of its clusters drawn at random, none first. All pairs have equally
    many clusters and share the swaps; swapping what is equal changes nothing."""
    flips = _flips(pairs[0].number, permutations, seed)
    if pairs[0].metric.additive:
        moved = _products(flips, [pair.sums[1] - pair.sums[0] for pair in pairs])
        yield from (_sides(pair, one) for pair, one in zip(pairs, moved, strict=True))
    else:
        yield _swapped_lists(pairs[0], (block[:, pairs[0].differ] for block in flips))


def _sides(pair: Pair, moved: Floats) -> tuple[Reduced, Reduced]:
    """Both sides reduced, where swaps have moved so much (rows, names) from the second to the first."""
    first, second = (side.sum(axis=0) for side in pair.sums)
    return _both_reduced(pair, first + moved, second - moved)


def _both_reduced(pair: Pair, first: Floats, second: Floats) -> tuple[Reduced, Reduced]:
    """Two tables of sums, reduced in one go."""
    found = pair.both.reduce_sums(np.concatenate([first, second]))
    rows = len(first)
    return (
        {name: column[:rows] for name, column in found.items()},
        {name: column[rows:] for name, column in found.items()},
    )


def _swapped_lists(pair: Pair, swaps: Iterable[npt.NDArray[Any]]) -> tuple[Reduced, Reduced]:
    """Both sides reduced, under swaps (rows, clusters that differ) of counts that are no sums."""
    sides: tuple[list[Any], list[Any]] = ([], [])
    for block in swaps:
        swap = np.zeros((len(block), pair.number), dtype=np.int64)
        swap[:, pair.differ] = block
        for side, weights in zip(sides, ((1 - swap, swap), (swap, 1 - swap)), strict=True):
            side += _reduced_lists(pair.metric, pair.both.lists, np.hstack(weights))
    return sides


@lru_cache(maxsize=16)
def _kept_flips(units: int, permutations: int, seed: int) -> tuple[npt.NDArray[np.uint8], ...]:
    return tuple(_random_bits(units, permutations, seed))


def _flips(units: int, permutations: int, seed: int) -> Iterator[npt.NDArray[np.uint8]]:
    """Which units are swapped, in blocks (block, units) of 0 and 1: none at first, then some at random."""
    small = units * permutations <= 8 * _CHUNK
    blocks = _kept_flips(units, permutations, seed) if small else _random_bits(units, permutations, seed)
    for place, bits in enumerate(blocks):
        block = np.unpackbits(bits, axis=1, count=units)
        block[: place == 0] = 0
        yield block


def _random_bits(units: int, permutations: int, seed: int) -> Iterator[npt.NDArray[np.uint8]]:
    """A bit per unit, eight to a byte: `permutations` + 1 rows of them, in blocks."""
    rng = np.random.default_rng(seed)
    rows = max(1, _BLOCK // units)
    for start in range(0, permutations + 1, rows):
        size = (min(rows, permutations + 1 - start), -(-units // 64))
        yield rng.integers(2**64, size=size, dtype=np.uint64).astype("<u8").view(np.uint8)


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
    return _reach(power) * error


@lru_cache
def _reach(power: float) -> float:
    normal = NormalDist()
    return normal.inv_cdf((1 + CONFIDENCE) / 2) + normal.inv_cdf(power)


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


def _replaced(metric: Metric, first: Sequence[Any], second: Sequence[Any], places: Sequence[int]) -> Reduced:
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
        alone: Reduced = units.reduce_sums(units.sums)
    else:
        alone = [metric.reduce([count]) for count in (*first, *second)]
    numbers = metric.reduce(first), metric.reduce(second)
    found = {}
    for name, value in numbers[0].items():
        values = _column(alone, name)
        sides = values[: len(first)], values[len(first) :]
        found[name] = _both_right(sides, (value, numbers[1].get(name)))
    return found


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
    p = np.array(p_values, dtype=float)
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(steps, 1.0)
    return [float(each) for each in corrected]


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


def _weights(units: int, draws: int, seed: int) -> Iterable[npt.NDArray[Any]]:
    """`resample_weights`, made once for units that come again."""
    if units * draws > 2 * _CHUNK:
        return resample_weights(units, draws, seed)
    return _kept_weights(units, draws, seed)


@lru_cache(maxsize=16)
def _kept_weights(units: int, draws: int, seed: int) -> tuple[npt.NDArray[np.uint16], ...]:
    """In two bytes each: nobody draws a unit 65,536 times."""
    blocks = (block.astype(np.uint16) for block in resample_weights(units, draws, seed))
    rows = max(1, _BLOCK // units)
    return tuple(block[at : at + rows] for block in blocks for at in range(0, len(block), rows))


class _Units:
    """Counts gathered by what is drawn together: sums per cluster, or lists where sums do not do."""

    def __init__(
        self,
        metric: Metric,
        counts: Sequence[Any],
        clusters: Sequence[Hashable] | npt.NDArray[np.int64] | None,
    ):
        self.metric = metric
        owner = np.arange(len(counts)) if clusters is None else _owners(clusters)
        self.number = int(owner.max()) + 1 if len(owner) else 0
        if metric.additive:
            self.names = sorted(set().union(*counts))
            self.sums = _sums(counts, owner, self.number, self.names)
        else:
            self.lists: list[list[Any]] = [[] for _ in range(self.number)]
            for unit, count in zip(owner, counts, strict=True):
                self.lists[unit].append(count)

    def reduce(self, weights: npt.NDArray[Any]) -> Reduced:
        """One reduction per row of `weights` (rows, units)."""
        if self.metric.additive:
            return self.reduce_sums(weights @ self.sums)
        return _reduced_lists(self.metric, self.lists, weights)

    def reduce_sums(self, sums: Floats) -> dict[str, Floats]:
        """One reduction per row of sums (rows, names)."""
        return reduced(self.metric.reduce, self.names, sums)


def _reduced_lists(
    metric: Metric, lists: Sequence[Sequence[Any]], weights: npt.NDArray[Any]
) -> list[Mapping[str, float | None]]:
    """One reduction per row of `weights` (rows, units), of each unit's counts so many times."""
    return [
        metric.reduce([c for unit, times in enumerate(row) for _ in range(times) for c in lists[unit]])
        for row in weights.tolist()
    ]


def _exact(table: Floats) -> Floats:
    """Sums in steps so small that they change nothing, and so large that any sum of resampled rows is exact:
    then it does not depend on its order, nor on what else is summed with it."""
    most = np.abs(table).max(axis=0, initial=0.0) * len(table)
    step = np.ldexp(1.0, np.maximum(-1022, np.frexp(most)[1] - 51))
    exact: Floats = np.round(table / step) * step
    return exact


def _products(blocks: Iterable[npt.NDArray[Any]], tables: Sequence[Floats]) -> list[Floats]:
    """weights @ table for each of `tables` (units, names): (rows, names). All weights (rows, units) come in
    blocks. Whole numbers whose sums are small are exact in half the bytes."""
    ends = np.cumsum([table.shape[1] for table in tables])
    joined = np.hstack(tables)
    moving = joined.any(axis=0)
    some = joined[:, moving]
    # Resamples hold as many rows as there are units, swaps at most as many.
    small = np.abs(some).max(initial=0.0) * len(some) < 2**24 and (some == np.rint(some)).all()
    kind: Any = np.float32 if small else np.float64
    some = np.ascontiguousarray(some, dtype=kind)
    parts = [block.astype(kind) @ some for block in blocks]
    out = np.zeros((sum(map(len, parts)), joined.shape[1]))
    out[:, moving] = np.concatenate(parts)
    return np.split(out, ends[:-1], axis=1)


def _sums(
    counts: Sequence[Mapping[str, float]], owner: npt.NDArray[np.int64], units: int, names: Sequence[str]
) -> Floats:
    """Each unit's sums by name (units, names); a count without a name adds nothing to it."""
    column = {name: at for at, name in enumerate(names)}
    columns = np.fromiter(map(column.__getitem__, chain.from_iterable(counts)), np.int64)
    values = np.fromiter(chain.from_iterable(map(methodcaller("values"), counts)), np.float64)
    rows = np.repeat(owner, np.fromiter(map(len, counts), np.int64))
    sums = np.bincount(rows * len(names) + columns, weights=values, minlength=units * len(names))
    return sums.astype(np.float64).reshape(units, len(names))


def _owners(clusters: Sequence[Hashable] | npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    if isinstance(clusters, np.ndarray):
        return clusters
    index: dict[Hashable, int] = {}
    return np.array([index.setdefault(cluster, len(index)) for cluster in clusters], dtype=np.int64)


def _draws(
    metric: Metric,
    sides: Sequence[Sequence[Any]],
    clusters: Sequence[Hashable] | None,
    draws: int,
    seed: int,
) -> list[Reduced]:
    units = [_Units(metric, counts, clusters) for counts in sides]
    if units[0].number == 0:
        return [{} for _ in units]
    blocks = _weights(units[0].number, draws, seed)
    if metric.additive:
        products = _products(blocks, [_exact(side.sums) for side in units])
        return [side.reduce_sums(sums) for side, sums in zip(units, products, strict=True)]
    drawn: list[list[Mapping[str, float | None]]] = [[] for _ in units]
    for weights in blocks:
        for side, rows in zip(units, drawn, strict=True):
            rows += _reduced_lists(metric, side.lists, weights)
    return list(drawn)


def _column(rows: Reduced, name: str) -> Floats:
    """A number's (rows,), NaN where it is None."""
    found = rows if isinstance(rows, Mapping) else columns(rows)
    if name in found:
        return found[name]
    number = len(next(iter(found.values()), ())) if isinstance(rows, Mapping) else len(rows)
    return np.full(number, np.nan)


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


# ---------------------------------------------------------------- many runs at once


def simultaneous(
    metric: Metric,
    cells: Sequence[Sequence[Any]],
    contrasts: Sequence[tuple[int, int | None]],
    clusters: Sequence[Hashable] | None = None,
    *,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, list[Estimate]]:
    """Of every number, an interval per contrast; 95 % is how often all of them hold at once.

    cells: the counts of several runs, of the same samples in the same order. contrasts: (a, b) is the number
    of cell a less that of cell b, (a, None) that of a itself. Whichever cell is picked after a look at all
    of them, its interval holds. The width of each is the same multiple of its standard error: the 95 %
    quantile of the largest deviation among them, in standard errors, over resamples that all cells share
    (max-statistic bootstrap, Romano & Wolf 2005). A contrast that is undefined, or is in more than 5 % of
    the draws, has no interval and widens no other. Raises ValueError unless the cells are equally long.
    """
    if len({len(cell) for cell in cells}) > 1:
        raise ValueError(f"cells need equal samples; got {sorted({len(cell) for cell in cells})}")
    numbers = [metric.reduce(cell) for cell in cells]
    drawn = _draws(metric, cells, clusters, draws, seed)
    found = {}
    for name in dict.fromkeys(name for cell in numbers for name in cell):
        values = _column(numbers, name)
        table = np.array([_column(rows, name) for rows in drawn]).reshape(len(cells), -1)
        found[name] = _all_at_once(values, table, contrasts)
    return found


def _all_at_once(
    values: Floats, drawn: Floats, contrasts: Sequence[tuple[int, int | None]]
) -> list[Estimate]:
    """values: (cells,); drawn: (cells, draws). An interval per contrast, in their order."""
    number = drawn.shape[1]
    worst, errors = np.zeros(number), np.full(len(contrasts), np.nan)
    centres = np.array([values[a] - (0 if b is None else values[b]) for a, b in contrasts])
    for place, (a, b) in enumerate(contrasts):
        off = drawn[a] - (0 if b is None else drawn[b]) - centres[place]
        defined = off[~np.isnan(off)]
        if np.isnan(centres[place]) or len(defined) < max(2, (1 - _UNDEFINED_SHARE) * number):
            continue
        errors[place] = float(defined.std(ddof=1))
        if errors[place] > 1e-12:
            worst = np.fmax(worst, np.abs(off) / errors[place])
    width = float(np.quantile(worst, CONFIDENCE)) if number else float("nan")
    return [
        Estimate(
            None if np.isnan(centre) else float(centre),
            None if np.isnan(error) else float(centre - width * error),
            None if np.isnan(error) else float(centre + width * error),
        )
        for centre, error in zip(centres, errors, strict=True)
    ]


# ---------------------------------------------------------------- a difference against a limit


@dataclass(frozen=True)
class Measured(Estimate):
    """An estimate and its standard error; None where there is none."""

    error: float | None


def paired_jackknife(
    metric: Metric,
    ours: Sequence[Any],
    theirs: Sequence[Any],
    clusters: Sequence[Hashable] | None = None,
    *,
    confidence: float = CONFIDENCE,
) -> dict[str, Measured]:
    """`ours - theirs` of every number, with an interval that holds far out in the tails, as many judgements
    at once need it.

    A t interval over the differences' jackknife values (Efron & Tibshirani 1993 §11), one per cluster, with
    one cluster more on either side that changes the number as much as the most influential one did. Without
    those, where few answers differ, too few of the intervals at 99.5 % hold; of the percentile bootstrap's,
    fewer still (`benchmarks/gate.py`). Where no answer differs there is nothing to go by and the interval has
    no width. It is None where the number is undefined, with or without one of the clusters, and of a single
    cluster. Raises ValueError unless both hold the counts of the same samples.
    """
    from scipy.stats import t

    if len(ours) != len(theirs):
        raise ValueError(f"a pair needs equal samples; got {len(ours)} and {len(theirs)}")
    sides = [(_Units(metric, counts, clusters), metric.reduce(counts)) for counts in (ours, theirs)]
    number = sides[0][0].number
    without = [_each_left_out(units) for units, _ in sides] if number > 1 else []
    found = {}
    for name, mine in sides[0][1].items():
        other = sides[1][1].get(name)
        value = None if mine is None or other is None else mine - other
        error = None
        if value is not None and without:
            left = _column(without[0], name) - _column(without[1], name)
            error = None if np.isnan(left).any() else _jackknife_error(left)
        if value is None or error is None:
            found[name] = Measured(value, None, None, None)
            continue
        reach = float(t.ppf((1 + confidence) / 2, number - 1)) * error
        found[name] = Measured(value, value - reach, value + reach, error)
    return found


def _each_left_out(units: _Units) -> Reduced:
    """The numbers without each of the clusters in turn."""
    if units.metric.additive:
        return units.reduce_sums(units.sums.sum(axis=0) - units.sums)
    lists = units.lists
    return [
        units.metric.reduce([count for other, part in enumerate(lists) if other != out for count in part])
        for out in range(units.number)
    ]


def _jackknife_error(left: Floats) -> float:
    """The standard error of a number whose values without each cluster are `left`."""
    number = len(left)
    off = left - left.mean()
    off[np.abs(off) < 1e-12 * max(1.0, float(np.abs(left).max()))] = 0.0  # rounding is no spread
    squares = float(np.sum(off**2) + 2 * np.max(off**2))
    return float(np.sqrt((number - 1) / number * squares))


def needed_samples(
    n: int, error: float, gap: float, confidence: float = CONFIDENCE, power: float = POWER
) -> float | None:
    """About how many samples tell a difference from a limit it is `gap` away from, in so many of tries, where
    n samples have this standard error. None where nothing varied or there is no gap.

    >>> f"{needed_samples(100, 0.05, 0.05):.0f}"
    '785'
    """
    if error < 1e-12 or abs(gap) < 1e-9:
        return None
    normal = NormalDist()
    reach = normal.inv_cdf((1 + confidence) / 2) + normal.inv_cdf(power)
    return n * (reach * error / gap) ** 2
