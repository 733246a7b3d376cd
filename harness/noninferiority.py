"""Non-inferiority: the difference of two runs over the same samples, to be held against a limit.

Knows counts and `reduce`; which limit, and what is said of a run beyond it, it does not know.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from harness._columns import Floats
from harness._resampling import Reduced, Units, values_of
from harness.paired import POWER
from harness.stats import CONFIDENCE, Estimate
from harness.types import Metric


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
    sides = [(Units(metric, counts, clusters), metric.reduce(counts)) for counts in (ours, theirs)]
    number = sides[0][0].number
    without = [_each_left_out(units) for units, _ in sides] if number > 1 else []
    found = {}
    for name, mine in sides[0][1].items():
        other = sides[1][1].get(name)
        value = None if mine is None or other is None else mine - other
        error = None
        if value is not None and without:
            left = values_of(without[0], name) - values_of(without[1], name)
            error = None if np.isnan(left).any() else _jackknife_error(left)
        if value is None or error is None:
            found[name] = Measured(value, None, None, None)
            continue
        reach = float(t.ppf((1 + confidence) / 2, number - 1)) * error
        found[name] = Measured(value, value - reach, value + reach, error)
    return found


def _each_left_out(units: Units) -> Reduced:
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
