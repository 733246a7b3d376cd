"""What a response shows of how it came about, as arrays of numbers for a file beside the records.

It knows the names that methods use in their traces (box, degenerate, selected, grid, rectangle), and so
need not know the methods. Files, it does not know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from harness.types import ImportanceMap, Json

GREATEST = 1e9
CELLS = 10**7

Arrays: TypeAlias = Mapping[str, npt.NDArray[Any]]


def trace_arrays(trace: Mapping[str, Json], maps: Sequence[ImportanceMap] = ()) -> Arrays:
    """What a response shows of how it came about, as arrays of numbers; empty where it shows nothing.

    map_0, map_1, ...: (rows, cols), row 0 at the top; float16 where that is off by at most 1/2048 of the
    map's greatest value, float32 otherwise; NaN and infinities as they are. rectangle: float32 (maps, 4),
    the pixels of the first picture that each map covers. box: float32 (4,), the crop. degenerate: whether
    the map was no guide. Of a steered generation: selected, the image tokens of all steps one after the
    other, and selected_offsets, where each step's begin (and the end); selected_cells (rows, cols), which
    image token each cell is, and selected_rectangle, the pixels they cover, where the trace says how the
    tokens lie in the first picture (grid, rectangle; first 0 and stride cols, unless given).
    """
    arrays: dict[str, Any] = {f"map_{k}": _half(one.values) for k, one in enumerate(maps)}
    if maps:
        arrays["rectangle"] = np.array([one.rectangle for one in maps], np.float32)
    layers = [trace]
    while isinstance(inner := layers[-1].get("inner"), Mapping):  # methods nest
        layers.append(inner)
    for layer in layers:
        if "box" not in arrays and _numbers(layer.get("box"), 4):
            arrays["box"] = np.array(layer["box"], np.float32)
        if "degenerate" not in arrays and isinstance(layer.get("degenerate"), bool):
            arrays["degenerate"] = np.array(layer["degenerate"])
        steps = layer.get("selected")
        if isinstance(steps, list) and all(isinstance(step, list) and _numbers(step) for step in steps):
            arrays["selected"] = np.array([token for step in steps for token in step], np.int32)
            arrays["selected_offsets"] = np.cumsum([0, *map(len, steps)], dtype=np.int64)
            if _grid(layer) and _numbers(layer.get("rectangle"), 4):
                arrays["selected_cells"] = _cells(layer)
                arrays["selected_rectangle"] = np.array(layer["rectangle"], np.float32)
    return arrays


def _grid(layer: Mapping[str, Any]) -> bool:
    """Whether it says how its tokens lie, in a grid that some model could have."""
    grid = layer.get("grid")
    return (
        isinstance(grid, list | tuple)
        and _numbers(grid, 2)
        and all(side >= 1 for side in grid)
        and grid[0] * grid[1] <= CELLS
        and _numbers([layer.get("first", 0), layer.get("stride", 0)])
    )


def _cells(layer: Mapping[str, Any]) -> npt.NDArray[np.int32]:
    """The image token of each cell: int32 (rows, cols)."""
    rows, columns = map(int, layer["grid"])
    first, stride = int(layer.get("first", 0)), int(layer.get("stride", columns))
    lines = first + stride * np.arange(rows)
    return (lines[:, None] + np.arange(columns)).astype(np.int32)


def _numbers(value: Json, length: int | None = None) -> bool:
    """Whether it is a list of numbers, of this length, none beyond any pixel or token."""
    return (
        isinstance(value, list | tuple)
        and all(isinstance(one, int | float) and -GREATEST <= one <= GREATEST for one in value)
        and length in (None, len(value))
    )


def _half(values: Any) -> Any:
    """float16, unless the greatest value is beyond it or too small for its precision."""
    greatest = float(np.abs(values[np.isfinite(values)]).max(initial=0))
    limits = np.finfo(np.float16)
    fits = greatest == 0 or float(limits.tiny) <= greatest <= float(limits.max)
    return values.astype(np.float16 if fits else np.float32)
