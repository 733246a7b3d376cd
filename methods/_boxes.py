"""Where ViCrop crops: a box from an importance map. Pure arithmetic, bit-equal with the released code.

Knows maps and rectangles. Must not know requests, models, or what a map is made of.
Reference: saccharomycetes/mllms_know, commit a64c5d5, `utils.py`: bbox_from_att_image_adaptive.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from harness.types import Box, Fidelity

Map = npt.NDArray[np.floating[Any]]

RATIOS = (1, 1.2, 1.4, 1.6, 1.8, 2)


def is_degenerate(importance: Map) -> bool:
    """Whether a map says nothing: all its finite cells, and zeros for the others, are equal."""
    values = repaired(importance)
    return bool(values.min() == values.max())


def attention_box(
    importance: Map, image_size: tuple[float, float], base: float, fidelity: Fidelity = "fixed"
) -> Box:
    """The crop (x1, y1, x2, y2), in pixels, of a picture that an importance map covers.

    importance: (rows, cols), row 0 at the top, in any unit. image_size: (width, height) of the pixels
    that the map covers; where that is a part of the picture, add its offset to the result. base: pixels.
    A side of the crop is 2 * (base * ratio // 2), or the picture's where that is smaller.

    `released` is bit-equal with mllms_know: utils.py, bbox_from_att_image_adaptive; `fixed` differs as
    `methods.vicrop` says, and returns the whole picture for a map that is degenerate.

    >>> peak = np.zeros((24, 24), np.float32)
    >>> peak[12, 18] = 1
    >>> attention_box(peak, (1344, 1344), 336)
    (728.0, 392.0, 1064.0, 728.0)
    >>> attention_box(np.zeros((24, 24)), (1000, 800), 336)
    (0.0, 0.0, 1000.0, 800.0)
    >>> attention_box(np.zeros((24, 24)), (1000, 800), 336, fidelity="released")
    (0.0, 0.0, 336.0, 336.0)
    """
    width, height = image_size
    whole = (0.0, 0.0, float(width), float(height))
    values: Map = np.asarray(importance)
    if values.dtype != np.float64:
        values = values.astype(np.float32)  # what the released sums are made in
    least = 0
    if fidelity == "fixed":
        if is_degenerate(values):
            return whole
        values, least = repaired(values), 1
    rows, cols = values.shape
    cell_width, cell_height = width / cols, height / rows
    windows = []  # (x, y, columns, rows) in cells, one per ratio
    sharpness = []
    for ratio in RATIOS:
        columns = max(least, min(int(base * ratio / cell_width), cols))
        lines = max(least, min(int(base * ratio / cell_height), rows))
        if columns == cols and lines == rows:
            if ratio == 1:
                return whole
            break  # a window that fills the grid goes on filling it
        x, y, sharp = _sharpest(values, columns, lines)
        windows.append((x, y, columns, lines))
        sharpness.append(sharp)
    best = int(np.argmax(sharpness))  # the first of equals; a NaN before any number
    x, y, columns, lines = windows[best]
    half = base * RATIOS[best] // 2
    center_x = int(x * cell_width + cell_width * columns / 2)
    center_y = int(y * cell_height + cell_height * lines / 2)
    x1, x2 = _inside(center_x, half, width)
    y1, y2 = _inside(center_y, half, height)
    return (x1, y1, x2, y2)


def _inside(center: float, half: float, length: float) -> tuple[float, float]:
    """A span of 2 * half around a centre that is raised first and then lowered, cut at both ends."""
    center = half if center < half else center
    center = length - half if center > length - half else center
    return float(max(0, center - half)), float(min(length, center + half))


def _sharpest(values: Map, columns: int, lines: int) -> tuple[int, int, float]:
    """The greatest window's cell (x, y), and its sum less its neighbours' mean, per cell of the window.

    The sums that decide are numpy's own over slices, in the map's dtype: ties and rounding are part of
    the released result.
    """

    def total(x: int, y: int) -> np.floating[Any]:
        window: np.floating[Any] = values[y : y + lines, x : x + columns].sum()
        return window

    greatest: float | np.floating[Any] = -np.inf
    place = (0, 0)
    for x, y in _contenders(values, columns, lines):
        if (found := total(x, y)) > greatest:
            greatest, place = found, (x, y)
    x, y = place
    last_x, last_y = values.shape[1] - columns, values.shape[0] - lines
    neighbours = [
        float(total(i, j))
        for i, j in ((x - 1, y), (x + 1, y), (x, y - 1), (x, y + 1))
        if 0 <= i <= last_x and 0 <= j <= last_y
    ]
    with np.errstate(divide="ignore", invalid="ignore"):
        return x, y, float((greatest - np.mean(neighbours)) / np.float64(columns * lines))


def _contenders(values: Map, columns: int, lines: int) -> list[tuple[int, int]]:
    """The windows (x, y) that may have the greatest sum, column by column.

    Sums from a table in double precision rule the others out, with a slack far above the rounding of the
    sums that decide. Where such a table is no guide (cells that are not finite, empty windows), all.
    """
    places = (values.shape[1] - columns + 1, values.shape[0] - lines + 1)
    with np.errstate(over="ignore"):
        finite = np.isfinite(np.abs(values).sum())
    if not finite or columns == 0 or lines == 0:
        return [(x, y) for x in range(places[0]) for y in range(places[1])]
    sums = _window_sums(values, columns, lines)
    slack = 1e-4 * _window_sums(np.abs(values), columns, lines).max()
    xs, ys = np.nonzero(sums.max() - slack <= sums.T)
    return list(zip(xs.tolist(), ys.tolist(), strict=True))


def _window_sums(values: Map, columns: int, lines: int) -> npt.NDArray[np.float64]:
    """Of every window: float64 (places down, places across), by a summed-area table."""
    table = np.zeros((values.shape[0] + 1, values.shape[1] + 1))
    np.cumsum(np.cumsum(values, axis=0, dtype=np.float64), axis=1, out=table[1:, 1:])
    below, above = table[lines:], table[:-lines]
    sums: npt.NDArray[np.float64] = (
        below[:, columns:] - below[:, :-columns] - above[:, columns:] + above[:, :-columns]
    )
    return sums


def repaired(importance: Map) -> Map:
    """Zeros where a map is not finite."""
    return np.nan_to_num(importance, nan=0.0, posinf=0.0, neginf=0.0)
