"""Large pictures in tiles: how ViCrop cuts them, and one map from the tiles' maps.

Knows rectangles and maps. Must not know requests or models.
Reference: saccharomycetes/mllms_know, commit a64c5d5, `utils.py`: high_res_split_threshold, high_res.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
import numpy.typing as npt

from harness.types import Fidelity, ImportanceMap
from methods._boxes import Map, repaired

LIMIT = 1024
"""Pixels that a tile's shorter side has at most."""
MOST = 256
"""Tiles of one picture: an 8K photograph has 45; only pictures that are lines would have more."""

Tile = tuple[int, int, int, int]


@dataclass(frozen=True)
class Tiling:
    """Rectangles (x1, y1, x2, y2) in a picture's pixels, row by row, `rows` x `cols` of them."""

    tiles: tuple[Tile, ...]
    rows: int
    cols: int


def tiling(size: tuple[int, int], fidelity: Fidelity = "fixed") -> Tiling:
    """The tiles of a picture of `size` (width, height).

    fixed: squares, as few as cover the picture with `LIMIT` pixels a side at most and the shorter side of
    the picture cut evenly; they overlap where the longer side is no multiple of theirs. A model that
    crops the centre sees all of a square, and one that squashes does not distort it.
    released: rectangles of about the same sides, which reach over the right and lower edges by less than a
    pixel per tile and may be wider than `LIMIT`.

    Raises ValueError beyond `MOST` tiles, and where the released code divides by zero: by the number of
    columns, of a portrait no higher than `LIMIT`.

    >>> tiling((2246, 1582))
    Tiling(tiles=((0, 0, 791, 791), (728, 0, 1519, 791), (1455, 0, 2246, 791), (0, 791, 791, 1582), \
(728, 791, 1519, 1582), (1455, 791, 2246, 1582)), rows=2, cols=3)
    >>> tiling((2246, 1582), "released").tiles[-1]
    (1123, 791, 2246, 1582)
    """
    cut = _squares(*size) if fidelity == "fixed" else _released(*size)
    if len(cut.tiles) > MOST:
        raise ValueError(f"a picture of {size[0]} x {size[1]} has {len(cut.tiles)} tiles, over {MOST}")
    return cut


def _squares(width: int, height: int) -> Tiling:
    shorter = min(width, height)
    side = ceil(shorter / ceil(shorter / LIMIT))
    lefts, tops = _starts(width, side), _starts(height, side)
    return Tiling(tuple((x, y, x + side, y + side) for y in tops for x in lefts), len(tops), len(lefts))


def _released(width: int, height: int) -> Tiling:
    rows = ceil(height / LIMIT)
    cols = int(rows * width / height)
    if cols == 0:
        raise ValueError(
            f"a picture of {width} x {height} has no column of tiles in mllms_know (utils.py, "
            f"high_res_split_threshold: int({rows} * {width} / {height}) is 0, and it divides by that)"
        )
    across, down = ceil(width / cols), ceil(height / rows)
    tiles = [
        (i * across, j * down, (i + 1) * across, (j + 1) * down) for j in range(rows) for i in range(cols)
    ]
    return Tiling(tuple(tiles), rows, cols)


def _starts(length: int, side: int) -> list[int]:
    """Where spans of `side` begin that cover `length` evenly: the first at 0, the last at its end."""
    count = ceil(length / side)
    return [round(k * (length - side) / max(1, count - 1)) for k in range(count)]


def joined(maps: Sequence[ImportanceMap], cut: Tiling) -> Map:
    """The tiles' grids side by side, whatever they cover: the released merging."""
    rows = [[tile.values for tile in maps[k : k + cut.cols]] for k in range(0, len(maps), cut.cols)]
    block: Map = np.block(rows)
    return block


def merged(maps: Sequence[ImportanceMap], cut: Tiling, size: tuple[int, int]) -> Map:
    """One map over a picture of `size` from its tiles' maps, each laid over the pixels that it covers.

    maps: of the tiles in their order, with rectangles in the tile's own pixels; cells that are not finite
    count as zeros. The result, float32, has cells about as large as theirs. A cell has the mean of what
    the tiles say at its centre, and 0 where no tile sees it.

    >>> half = ImportanceMap(np.float32([[1, 2], [3, 4]]), (0, 0, 10, 10))
    >>> merged([half, half], Tiling(((0, 0, 10, 10), (10, 0, 20, 10)), 1, 2), (20, 10)).tolist()
    [[1.0, 2.0, 1.0, 2.0], [3.0, 4.0, 3.0, 4.0]]
    """
    rows, cols = maps[0].values.shape
    x1, y1, x2, y2 = maps[0].rectangle
    shape = (max(1, round(size[1] * rows / (y2 - y1))), max(1, round(size[0] * cols / (x2 - x1))))
    total, seen = np.zeros(shape), np.zeros(shape)
    for tile, (left, top, _, _) in zip(maps, cut.tiles, strict=True):
        rows, cols = tile.values.shape
        x1, y1, x2, y2 = tile.rectangle
        into_x, from_x = _meeting(shape[1], size[0], cols, left + x1, left + x2)
        into_y, from_y = _meeting(shape[0], size[1], rows, top + y1, top + y2)
        total[np.ix_(into_y, into_x)] += repaired(tile.values)[np.ix_(from_y, from_x)]
        seen[np.ix_(into_y, into_x)] += 1
    values: Map = (total / np.maximum(seen, 1)).astype(np.float32)
    return values


def _meeting(
    cells: int, length: int, parts: int, start: float, end: float
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Of `cells` over [0, length], those with their centre in [start, end], and the one of `parts` there."""
    centers = (np.arange(cells) + 0.5) * length / cells
    part = np.floor((centers - start) * parts / (end - start)).astype(np.intp)
    inside = np.nonzero((part >= 0) & (part < parts))[0]
    return inside, part[inside]
