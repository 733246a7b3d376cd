"""ViCrop: crop what the model itself attends to, and answer with the crop beside the picture.

"MLLMs Know Where to Look: Training-free Perception of Small Visual Details with Multimodal LLMs"
(Zhang et al., ICLR 2025, arXiv 2502.17422). Reference: saccharomycetes/mllms_know, commit a64c5d5
(`utils.py`: bbox_from_att_image_adaptive; `llava_methods.py`: rel_attention_llava; `run.py`).

Knows boxes in importance maps and the method's waves. Must not know token layouts: the maps come from a
model that offers attention, each with the pixel rectangle that its grid covers.

**The map.** Let a_h(q) be the attention of the last prompt token, in head h of one decoder layer, over
the picture's tokens when the question is q, and q' a question about the picture in general.

    raw_att   M = mean_h a_h(q)
    rel_att   M = mean_h a_h(q) / mean_h a_h(q')        what the question adds to where the model looks

**The box.** For each ratio r of 1, 1.2, ... 2, a window of about base*r pixels a side slides over the
grid. Of the window with the greatest sum, the sharpness is that sum less the mean of its neighbours', per
cell. The sharpest ratio wins; the crop is base*r pixels a side around its window's centre, moved inside
the picture.

**The answer** is the model's, to the same question about [picture, crop].

Repairs of the released code under `fidelity=fixed`, each absent under `released`:

- A map is laid over the pixels that it covers. The released code stretches LLaVA's map, which covers the
  centre square, over the whole picture (`run.py` passes image.size; the processor crops the centre).
- A map with NaN or infinite cells (0/0 where the general attention vanishes) has zeros there. Released:
  a NaN window never wins, and a NaN sharpness beats every number.
- A constant map says nothing, so the whole picture is used, flagged `degenerate`. Released: the top left.
- A window has at least one cell. Released: none where a cell is wider than the base (pictures beyond
  8064 px for LLaVA-1.5), and then the top left corner.
- A box that is the whole picture is not sent as a second picture, flagged `whole`. Released: sent.

Kept in both: ties to the left and then to the top, truncations, the division by the window's area. Not
reproduced: the released code averages heads in bfloat16; maps here are float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from harness.errors import PictureError, SpecError
from harness.types import (
    Box,
    Capability,
    Decoding,
    Failure,
    Fidelity,
    ImportanceMap,
    Json,
    Method,
    ReadMap,
    Request,
    Response,
    Usage,
    require,
)
from methods import _crops

Map = npt.NDArray[np.floating[Any]]

RATIOS = (1, 1.2, 1.4, 1.6, 1.8, 2)
GENERAL_QUESTION = "Write a general description of the image."
ORACLE_RATIO = 1.4
"""The oracle's crop in bases: between the ratios' ends. At 1 the target loses its surroundings: 0.83 on
the demo model's validation scenes (seed 7, 300), where 1.33 gave 0.95 and 1.5 0.957."""
ORACLE_MARGIN = 1.25
"""The oracle's crop is at least this many times the longer side of the target's box."""


@dataclass(frozen=True)
class Vicrop(Method):
    """Appends the part of the first picture that the model's own attention points at.

    locate: `rel_att` and `raw_att` as above; `oracle` crops around the target's box, which a run hands on
    to oracles only (1.4 bases a side, more for a large target): marked and never ranked. layer: 0-based,
    None is the adapter's default of the family. base: the smallest crop's side in pixels; None is the
    model's input resolution (336 for LLaVA-1.5, as the paper). general_question: q'. fidelity: which of
    the two versions above.

    Maps are read with the request's `short_question` where there is one, under its own instruction and
    system text. An inner failure is passed on. Trace: layer, base, grid (rows, cols), rectangle, box,
    degenerate, whole; the map itself is in the response. Cost: two maps and one answer of two pictures.
    """

    name: ClassVar[str] = "vicrop"
    locate: Literal["rel_att", "raw_att", "oracle"] = "rel_att"
    layer: int | None = None
    base: int | None = None
    general_question: str = GENERAL_QUESTION
    fidelity: Fidelity = "fixed"

    def __post_init__(self) -> None:
        _crops.require_side("base", self.base)
        if self.layer is not None and self.layer < 0:
            raise SpecError(f"layer={self.layer}; layers count from 0")
        if self.locate != "oracle":
            require(
                self.model,
                Capability.ATTENTION,
                f"vicrop ({self.locate})",
                "Use an `hf:` model of the LLaVA-1.5 layout with attn=auto, and name the white-box method "
                "first: it stands next to the model. `center_crop` and `random_crop` need only text",
            )

    @property
    def oracle(self) -> bool:
        return self.locate == "oracle" or super().oracle

    def generate(self, requests: Sequence[Request]) -> list[Response]:
        base = _crops.side_for(self.model, self.base)
        if self.locate == "oracle":
            choices = [_around_region(request, base) for request in requests]
        else:
            choices = self._look(requests, base)
        return _crops.answer(self.model, requests, choices, self.name)

    def _look(self, requests: Sequence[Request], base: int) -> list[_crops.Choice]:
        """The first wave: the maps of all requests in one list, and a box from each request's maps."""
        questions = [self._questions(request) for request in requests]
        wave = [
            self._map_request(request, question)
            for request, asked in zip(requests, questions, strict=True)
            for question in asked
        ]
        maps = iter(self.model.generate(wave) if wave else [])
        return [
            self._choose(request, [next(maps) for _ in asked], base)
            for request, asked in zip(requests, questions, strict=True)
        ]

    def _questions(self, request: Request) -> tuple[str, ...]:
        if not request.images:
            return ()
        specific = request.hints.short_question or request.question
        return (specific, self.general_question) if self.locate == "rel_att" else (specific,)

    def _map_request(self, request: Request, question: str) -> Request:
        return Request(
            images=request.images[:1],
            question=question,
            instruction=request.instruction,
            system=request.system,
            decoding=Decoding(max_tokens=0),
            probes=(ReadMap(self.layer),),
        )

    def _choose(self, request: Request, looks: Sequence[Response], base: int) -> _crops.Choice:
        if not looks:
            return _crops.Choice(trace={"skipped": "no image"})
        usage = sum((look.usage for look in looks), Usage())
        failure = next((look.failure for look in looks if look.failure), None)
        if failure is not None:
            return _crops.Choice(usage=usage, failure=failure)
        try:
            size = request.images[0].size
        except PictureError as error:
            return _crops.Choice(usage=usage, failure=Failure(error.kind, str(error)))
        values: Map = looks[0].maps[0].values
        if self.locate == "rel_att":
            values = relative_attention(values, looks[1].maps[0].values)
        covered = looks[0].maps[0].rectangle
        rectangle = _whole_pixels(covered) if self.fidelity == "fixed" else (0, 0, *size)
        box, trace = self._box(values, rectangle, size, base)
        layers = looks[0].trace.get("map_layers")
        trace["layer"] = layers[0] if isinstance(layers, list) else self.layer
        return _crops.Choice(box, trace, usage, (ImportanceMap(values.astype(np.float32), covered),))

    def _box(
        self, values: Map, rectangle: tuple[int, int, int, int], size: _crops.Size, base: int
    ) -> tuple[Box | None, dict[str, Json]]:
        """The crop in the picture's pixels, None for none, and the trace of how it came about."""
        left, top, right, bottom = rectangle
        degenerate = is_degenerate(values)
        x1, y1, x2, y2 = attention_box(values, (right - left, bottom - top), base, self.fidelity)
        box = (x1 + left, y1 + top, x2 + left, y2 + top)
        if degenerate and self.fidelity == "fixed":
            box = (0, 0, *size)
        whole = _crops.is_whole(box, size)
        trace: dict[str, Json] = {
            "locate": self.locate,
            "base": base,
            "grid": list(values.shape),
            "rectangle": list(rectangle),
            "box": list(box),
            "degenerate": degenerate,
            "whole": whole,
        }
        return (None if whole and self.fidelity == "fixed" else box), trace


method = Vicrop


# ---------------------------------------------------------------- the arithmetic


def relative_attention(specific: Map, general: Map) -> Map:
    """How much more the question looks at each cell than a general question does: specific / general.

    Both (rows, cols) of one dtype; the quotient has it too. 0/0 is NaN and x/0 infinite, as released.

    >>> relative_attention(np.float32([[0.2, 0.1]]), np.float32([[0.1, 0.1]])).tolist()
    [[2.0, 1.0]]
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return specific / general


def is_degenerate(importance: Map) -> bool:
    """Whether a map says nothing: all its finite cells, and zeros for the others, are equal."""
    values = _repaired(importance)
    return bool(values.min() == values.max())


def attention_box(
    importance: Map, image_size: tuple[float, float], base: float, fidelity: Fidelity = "fixed"
) -> Box:
    """The crop (x1, y1, x2, y2), in pixels, of a picture that an importance map covers.

    importance: (rows, cols), row 0 at the top, in any unit. image_size: (width, height) of the pixels
    that the map covers; where that is a part of the picture, add its offset to the result. base: pixels.
    A side of the crop is 2 * (base * ratio // 2), or the picture's where that is smaller.

    `released` is bit-equal with mllms_know: utils.py, bbox_from_att_image_adaptive; `fixed` differs as
    the module says, and returns the whole picture for a map that is degenerate.

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
        values, least = _repaired(values), 1
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


def _repaired(importance: Map) -> Map:
    """Zeros where a map is not finite."""
    return np.nan_to_num(importance, nan=0.0, posinf=0.0, neginf=0.0)


# ---------------------------------------------------------------- boxes in the picture


def _whole_pixels(rectangle: Box) -> tuple[int, int, int, int]:
    x1, y1, x2, y2 = (round(edge) for edge in rectangle)
    return (x1, y1, x2, y2)


def _around_region(request: Request, base: int) -> _crops.Choice:
    """The oracle's crop: a square around the target's box, some bases a side, more for a larger target."""
    region = request.hints.region
    if region is None:
        return _crops.Choice(
            failure=Failure(
                "no_region",
                "vicrop:locate=oracle crops around the target's box, and this sample has none; "
                "run it on a task with boxes, such as small_detail",
            )
        )
    x1, y1, x2, y2 = region
    side = round(max(ORACLE_RATIO * base, ORACLE_MARGIN * max(x2 - x1, y2 - y1)))
    center = ((x1 + x2) / 2, (y1 + y2) / 2)
    choice = _crops.choose(request, lambda size: _crops.square(center, side, size))
    return replace(choice, trace={"locate": "oracle", "base": base, **choice.trace})
