"""Intervals of any reducible metric's numbers: of one run, by the bootstrap, and of many runs at once.

Where the best of many is picked or many are tested, `simultaneous` and `holm` make up for it.
Knows counts and `reduce`; knows nothing of tasks, models or files.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np

from harness._columns import Floats
from harness._resampling import Units, resampled, values_of
from harness.types import Metric

DRAWS = 2000
CONFIDENCE = 0.95
_UNDEFINED_SHARE = 0.05  # more undefined draws than this, and there is no interval


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
    drawn = resampled(metric, [counts], clusters, draws, seed)
    units = Units(metric, counts, clusters) if method == "bca" else None
    estimates = {}
    for name, value in values.items():
        replicates = values_of(drawn[0], name)
        jackknife = _jackknife(units, name) if units is not None else None
        estimates[name] = interval(value, replicates, jackknife)
    return estimates


def interval(value: float | None, replicates: Floats, jackknife: Floats | None = None) -> Estimate:
    """A number's 95 % interval from its replicates (NaN: undefined). jackknife: its values without each
    cluster, for BCa; else it is the percentile interval."""
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


def _jackknife(units: Units, name: str) -> Floats:
    weights = np.ones((units.number, units.number), dtype=np.int64) - np.eye(units.number, dtype=np.int64)
    return values_of(units.reduce(weights), name)


# ---------------------------------------------------------------- many at once


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
    drawn = resampled(metric, cells, clusters, draws, seed)
    found = {}
    for name in dict.fromkeys(name for cell in numbers for name in cell):
        values = values_of(numbers, name)
        table = np.array([values_of(rows, name) for rows in drawn]).reshape(len(cells), -1)
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
