"""Resampling: how often each cluster is drawn or swapped, and a metric's numbers under many such draws.

Samples that share an image belong together (clusters). All that is drawn over equally many clusters with one
seed is the same, so that a metric's scores, its categories and the two sides of a pair move together.
Knows counts, clusters and `reduce`; whether the draws make an interval or a test, it does not.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from operator import methodcaller
from typing import Any

import numpy as np
import numpy.typing as npt

from harness._columns import Floats, columns, reduced
from harness.types import Metric

_CHUNK = 4_000_000  # weights held at once: 32 MB
_BLOCK = 1_000_000  # of them in one product

Reduced = Mapping[str, Floats] | Sequence[Mapping[str, float | None]]
"""Many reductions: each number's (rows,), or a mapping per row."""


class Units:
    """Counts gathered by what is drawn together: sums per cluster, or lists where sums do not do."""

    def __init__(
        self,
        metric: Metric,
        counts: Sequence[Any],
        clusters: Sequence[Hashable] | npt.NDArray[np.int64] | None,
    ):
        self.metric = metric
        owner = np.arange(len(counts)) if clusters is None else owners(clusters)
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
        return reduced_lists(self.metric, self.lists, weights)

    def reduce_sums(self, sums: Floats) -> dict[str, Floats]:
        """One reduction per row of sums (rows, names)."""
        return reduced(self.metric.reduce, self.names, sums)


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


def owners(clusters: Sequence[Hashable] | npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The clusters' numbers, from 0 in the order in which they come; numbers stay what they are."""
    if isinstance(clusters, np.ndarray):
        return clusters
    index: dict[Hashable, int] = {}
    return np.array([index.setdefault(cluster, len(index)) for cluster in clusters], dtype=np.int64)


# ---------------------------------------------------------------- draws


def resample_weights(units: int, draws: int, seed: int) -> Iterable[npt.NDArray[Any]]:
    """How often each of `units` is drawn, in blocks of rows: (block, units); `draws` rows in all.

    They are made once for units that come again."""
    if units * draws > 2 * _CHUNK:
        return _drawn_weights(units, draws, seed)
    return _kept_weights(units, draws, seed)


@lru_cache(maxsize=16)
def _kept_weights(units: int, draws: int, seed: int) -> tuple[npt.NDArray[np.uint16], ...]:
    """In two bytes each: nobody draws a unit 65,536 times."""
    blocks = (block.astype(np.uint16) for block in _drawn_weights(units, draws, seed))
    rows = max(1, _BLOCK // units)
    return tuple(block[at : at + rows] for block in blocks for at in range(0, len(block), rows))


def _drawn_weights(units: int, draws: int, seed: int) -> Iterator[npt.NDArray[np.int64]]:
    rng = np.random.default_rng(seed)
    block = max(1, _CHUNK // max(1, units))
    for start in range(0, draws, block):
        rows = min(block, draws - start)
        drawn = rng.integers(units, size=(rows, units))
        drawn += np.arange(rows)[:, None] * units
        yield np.bincount(drawn.ravel(), minlength=rows * units).reshape(rows, units)


def random_swaps(units: int, permutations: int, seed: int) -> Iterator[npt.NDArray[np.uint8]]:
    """Which units are swapped, in blocks (block, units) of 0 and 1: none at first, then some at random."""
    small = units * permutations <= 8 * _CHUNK
    blocks = _kept_bits(units, permutations, seed) if small else _random_bits(units, permutations, seed)
    for place, bits in enumerate(blocks):
        block = np.unpackbits(bits, axis=1, count=units)
        block[: place == 0] = 0
        yield block


@lru_cache(maxsize=16)
def _kept_bits(units: int, permutations: int, seed: int) -> tuple[npt.NDArray[np.uint8], ...]:
    return tuple(_random_bits(units, permutations, seed))


def _random_bits(units: int, permutations: int, seed: int) -> Iterator[npt.NDArray[np.uint8]]:
    """A bit per unit, eight to a byte: `permutations` + 1 rows of them, in blocks."""
    rng = np.random.default_rng(seed)
    rows = max(1, _BLOCK // units)
    for start in range(0, permutations + 1, rows):
        size = (min(rows, permutations + 1 - start), -(-units // 64))
        yield rng.integers(2**64, size=size, dtype=np.uint64).astype("<u8").view(np.uint8)


# ---------------------------------------------------------------- a metric's numbers under them


def resampled(
    metric: Metric,
    sides: Sequence[Sequence[Any]],
    clusters: Sequence[Hashable] | None,
    draws: int,
    seed: int,
) -> list[Reduced]:
    """The numbers of each of `sides`, over `draws` resamples of clusters that all of them share. Each holds
    the counts of the same samples in the same order."""
    units = [Units(metric, counts, clusters) for counts in sides]
    if units[0].number == 0:
        return [{} for _ in units]
    blocks = resample_weights(units[0].number, draws, seed)
    if metric.additive:
        tables = products(blocks, [exact(side.sums) for side in units])
        return [side.reduce_sums(sums) for side, sums in zip(units, tables, strict=True)]
    drawn: list[list[Mapping[str, float | None]]] = [[] for _ in units]
    for weights in blocks:
        for side, rows in zip(units, drawn, strict=True):
            rows += reduced_lists(metric, side.lists, weights)
    return list(drawn)


def products(blocks: Iterable[npt.NDArray[Any]], tables: Sequence[Floats]) -> list[Floats]:
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


def exact(table: Floats) -> Floats:
    """Sums in steps so small that they change nothing, and so large that any sum of resampled rows is exact:
    then it does not depend on its order, nor on what else is summed with it."""
    most = np.abs(table).max(axis=0, initial=0.0) * len(table)
    step = np.ldexp(1.0, np.maximum(-1022, np.frexp(most)[1] - 51))
    rounded: Floats = np.round(table / step) * step
    return rounded


def reduced_lists(
    metric: Metric, lists: Sequence[Sequence[Any]], weights: npt.NDArray[Any]
) -> list[Mapping[str, float | None]]:
    """One reduction per row of `weights` (rows, units), of each unit's counts so many times."""
    return [
        metric.reduce([c for unit, times in enumerate(row) for _ in range(times) for c in lists[unit]])
        for row in weights.tolist()
    ]


def values_of(rows: Reduced, name: str) -> Floats:
    """A number's (rows,), NaN where it is None."""
    found = rows if isinstance(rows, Mapping) else columns(rows)
    if name in found:
        return found[name]
    number = len(next(iter(found.values()), ())) if isinstance(rows, Mapping) else len(rows)
    return np.full(number, np.nan)
