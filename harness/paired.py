"""Two runs over the same samples: how much they differ, whether by more than chance, and in which samples.

Both sides of a pair share their resamples. Samples that share an image are resampled, and swapped, together
(clusters).
Knows counts and `reduce`; knows nothing of tasks, models or files.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from harness._columns import Floats
from harness._resampling import (
    Reduced,
    Units,
    exact,
    owners,
    products,
    random_swaps,
    reduced_lists,
    resample_weights,
    values_of,
)
from harness.stats import CONFIDENCE, DRAWS, Estimate, interval
from harness.types import Metric

PERMUTATIONS = 9999
POWER = 0.8
_BATCH = 16  # pairs in one product


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
        owner = np.arange(len(first)) if clusters is None else owners(clusters)
        self.number = int(owner.max()) + 1 if len(owner) else 0
        self.both = Units(metric, [*first, *second], np.concatenate([owner, owner + self.number]))
        if metric.additive:
            self.names = self.both.names
            self.both.sums = sums = exact(self.both.sums)
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
            difference = interval(value, differences)
            spread = 0.0 if difference.low is None else float(np.nanstd(differences, ddof=1))
            numbers[name] = Paired(
                pair.first.get(name), pair.second[name], difference, test[name], smallest_difference(spread)
            )
        found.append(numbers)
    return found


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
    return {name: interval(value, replicates) for name, (value, replicates) in drawn.items()}


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


# ---------------------------------------------------------------- resamples of both sides


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
                found[place][name] = (value, values_of(second, name) - values_of(first, name))
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
        tables = [table for pair in pairs for table in pair.sums]
        sums = products(resample_weights(number, draws, seed), tables)
        for pair, first, second in zip(pairs, sums[::2], sums[1::2], strict=True):
            yield _both_reduced(pair, first, second)
    else:
        sides: tuple[list[Any], list[Any]] = ([], [])
        for weights in resample_weights(number, draws, seed):
            for side, lists in zip(sides, pairs[0].lists, strict=True):
                side += reduced_lists(pairs[0].metric, lists, weights)
        yield sides


# ---------------------------------------------------------------- permutations


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
                p = _share_as_extreme(*(values_of(side, name) for side in sides))
                found[place][name] = Chance(p, place in counted)
    return found


def _countable(pair: Pair, permutations: int) -> bool:
    return len(pair.differ) < 63 and 2 ** len(pair.differ) <= permutations + 1


def _every_swap(pair: Pair) -> tuple[Reduced, Reduced]:
    """Both sides under every swap of the clusters that differ, none first."""
    ways = np.arange(2 ** len(pair.differ))[:, None] >> np.arange(len(pair.differ)) & 1
    if not pair.metric.additive:
        return _swapped_lists(pair, [ways])
    return _sides(pair, products([ways], [(pair.sums[1] - pair.sums[0])[pair.differ]])[0])


def _drawn_swaps(pairs: Sequence[Pair], permutations: int, seed: int) -> Iterator[tuple[Reduced, Reduced]]:
    """Both sides of each pair under swaps of its clusters drawn at random, none first. All pairs have equally
    many clusters and share the swaps; swapping what is equal changes nothing."""
    flips = random_swaps(pairs[0].number, permutations, seed)
    if pairs[0].metric.additive:
        moved = products(flips, [pair.sums[1] - pair.sums[0] for pair in pairs])
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
            side += reduced_lists(pair.metric, pair.both.lists, np.hstack(weights))
    return sides


def _share_as_extreme(first: Floats, second: Floats) -> float | None:
    """Of permutations, the observed one first: those whose difference is at least its, undefined ones too."""
    differences = np.abs(second - first)
    if np.isnan(differences[0]):
        return None
    rounding = 1e-9 * max(abs(first[0]), abs(second[0]))
    return float(np.mean(~(differences < differences[0] - rounding)))


# ---------------------------------------------------------------- power


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


# ---------------------------------------------------------------- sample by sample


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
        change = values_of(after, name) - value
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
    units = Units(metric, [*first, *second], None)
    ours, theirs = units.sums[: len(first)], units.sums[len(first) :]
    return units.reduce_sums(ours.sum(axis=0) + (theirs - ours)[list(places)])


def right_or_wrong(
    metric: Metric, first: Sequence[Any], second: Sequence[Any]
) -> dict[str, tuple[int, int] | None]:
    """Of every number: how many samples are right in the second run only, and in the first only. None unless
    it is the share, in whatever unit, of the samples that are right, among the same samples in both runs.

    Recall is, over the samples whose truth is yes. Precision is not: of which samples it is, the answers say.
    """
    units = Units(metric, [*first, *second], None)
    if metric.additive:
        alone: Reduced = units.reduce_sums(units.sums)
    else:
        alone = [metric.reduce([count]) for count in (*first, *second)]
    numbers = metric.reduce(first), metric.reduce(second)
    found = {}
    for name, value in numbers[0].items():
        values = values_of(alone, name)
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
