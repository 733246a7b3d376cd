"""Intervals: the bootstrap of any reducible metric, and the paired difference of two runs.

All numbers of one call share their resample weights, so that a metric's scores, its categories and the
two sides of a pair move together. Samples that share an image are resampled together (clusters).
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
CONFIDENCE = 0.95
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
    if len(ours) != len(theirs):
        raise ValueError(f"a pair needs equal samples; got {len(ours)} and {len(theirs)}")
    mine, other = metric.reduce(ours), metric.reduce(theirs)
    drawn = _draws(metric, [ours, theirs], clusters, draws, seed)
    differences = {}
    for name in mine:
        a, b = mine[name], other.get(name)
        value = None if a is None or b is None else a - b
        differences[name] = _interval(value, _column(drawn[0], name) - _column(drawn[1], name), None)
    return differences


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
            rows = (weights @ self.sums).tolist()
            return [self.metric.reduce([dict(zip(self.names, row, strict=True))]) for row in rows]
        out: list[Mapping[str, float | None]] = []
        for row in weights:
            drawn = [c for unit, times in enumerate(row) for _ in range(times) for c in self.lists[unit]]
            out.append(self.metric.reduce(drawn))
        return out


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
