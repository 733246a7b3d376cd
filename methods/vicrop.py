"""ViCrop: crop what the model itself looks at, and answer with the crop beside the picture.

"MLLMs Know Where to Look: Training-free Perception of Small Visual Details with Multimodal LLMs"
(Zhang et al., ICLR 2025, arXiv 2502.17422). Reference: saccharomycetes/mllms_know, commit a64c5d5
(`utils.py`; `llava_methods.py`; `run.py`).

Knows the maps' arithmetic and the method's waves. Must not know token layouts: maps come from a model that
offers attention or gradients, each with the pixel rectangle that its grid covers. Boxes in maps are in
`_boxes.py`, tiles in `_tiles.py`, the edge mask in `_edges.py`, the detector in `_detect.py`.

**The map.** Let a_h(q) be the attention of the last prompt token, in head h of one decoder layer, over
the picture's tokens when the question is q, and q' a question about the picture in general. Let v be the
log-probability of the likeliest first token of the answer, and g(q) the norm over the channels of dv/dpixel.

    raw_att     M = mean_h a_h(q)
    rel_att     M = mean_h a_h(q) / mean_h a_h(q')       what the question adds to where the model looks
    grad_att    M = mean_h a_h(q) * relu(dv/da_h)        the attention that makes the answer likelier
    pure_grad   M = block mean of mask * g(q) / g(q')    no attention: pixels that the answer depends on

The mask keeps the half of the pixels with the more detail; a block is a patch of the vision tower.

**The box.** For each ratio r of 1, 1.2, ... 2, a window of about base*r pixels a side slides over the
grid. Of the window with the greatest sum, the sharpness is that sum less the mean of its neighbours', per
cell. The sharpest ratio wins; the crop is base*r pixels a side around its window's centre, moved inside
the picture.

**The answer** is the model's, to the same question about [picture, crop].

**High resolution** (the paper's V*): a map of each tile of the picture, put together, and then one box in
all of it. Nothing is normalised per tile, as released; so a gradient's map (grad_att, pure_grad) weighs
tiles by how sure of its answer the model was in each, which is no property of the picture.

Repairs of the released code under `fidelity=fixed`, each absent under `released`:

- A map is laid over the pixels that it covers. The released code stretches LLaVA's map, which covers the
  centre square, over the whole picture (`run.py` passes image.size; the processor crops the centre).
- A map with NaN or infinite cells (0/0 where the general attention vanishes) has zeros there. Released:
  a NaN window never wins, and a NaN sharpness beats every number. So too at pixels, before the mask.
- A constant map says nothing, so the whole picture is used, flagged `degenerate`. Released: the top left.
- A window has at least one cell. Released: none where a cell is wider than the base (pictures beyond
  8064 px for LLaVA-1.5), and then the top left corner.
- A box that is the whole picture is not sent as a second picture, flagged `whole`. Released: sent.
- The edge mask is of the pixels that the model sees. Released: of the whole picture, squashed, so that
  mask and gradient disagree wherever LLaVA crops. And rounding in flat regions is not detail.
- A picture so narrow that the model sees it on less than a patch has one row or column of blocks. Released:
  no block at all (a failure of its request here, named `no_blocks`).
- Tiles are squares that cover the picture, laid over the pixels that each map covers. Released: rectangles
  with a black overhang, of which LLaVA sees the centres; no tile at all, a division by zero, for a portrait
  of 1024 pixels or less (a failure of its request here, named `no_tiles`).

Kept in both: ties to the left and then to the top, truncations, the division by the window's area,
pure_grad's division by g(q') (transcriptions of the paper have none). Not reproduced: the released code
averages heads in bfloat16; maps here are float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np

from harness.errors import PictureError, SpecError
from harness.pictures import Picture
from harness.types import (
    Box,
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
from methods._boxes import Map, attention_box, is_degenerate, repaired
from methods._detect import Detector, Found
from methods._edges import block_mean, edge_mask
from methods._tiles import LIMIT, Tiling, joined, merged, tiling

GENERAL_QUESTION = "Write a general description of the image."
ORACLE_RATIO = 1.4
"""The oracle's crop in bases: between the ratios' ends. At 1 the target loses its surroundings: 0.83 on
the demo model's validation scenes (seed 7, 300), where 1.33 gave 0.95 and 1.5 0.957."""
ORACLE_MARGIN = 1.25
"""The oracle's crop is at least this many times the longer side of the target's box."""
PAPER_PATCH = 14
"""Pixels; the patch of both of the paper's vision towers, where a model does not say its own."""

KINDS: dict[str, Literal["attention", "gradient", "pixels"]] = {
    "raw_att": "attention",
    "rel_att": "attention",
    "grad_att": "gradient",
    "pure_grad": "pixels",
}
"""What each way to locate reads of the model; the others read nothing."""


@dataclass(frozen=True)
class _View:
    """What is read of a request's first picture: a map per part of it and question."""

    size: _crops.Size
    parts: tuple[Picture, ...]
    questions: tuple[str, ...]
    cut: Tiling | None = None


@dataclass(frozen=True)
class Vicrop(Method):
    """Appends the part of the first picture that the model's own attention or gradient points at.

    locate: `rel_att`, `grad_att`, `pure_grad` and `raw_att` as above. `detector` crops around the likeliest
    box that a zero-shot detector finds for the question's words: for a model that gives only text. `oracle`
    crops around the target's box, which a run hands on to oracles only: marked and never ranked. These two
    crop alike, 1.4 bases a side and more for a large box.

    layer: 0-based decoder layer; `all` is the mean over all; None is the adapter's default of the family.
    base: the smallest crop's side in pixels; None is the model's input resolution (336 for LLaVA-1.5, 224
    for InstructBLIP, as the paper), or 336 for a model of many (the released code has 224 for Qwen2.5-VL).
    high_res: `on` reads maps of tiles, `auto` where a side exceeds 1024 pixels; `off`, because the paper's
    tiles were for V* alone, and no size tells that from its DocVQA. general_question: q'. detector: a
    checkpoint of `AutoModelForZeroShotObjectDetection`, a folder or a hub id, with its knobs if any:
    `detector=(google/owlv2-base-patch16-ensemble,threshold=0.1)`. fidelity: which version, as above.

    Maps are read with the request's `short_question` where there is one, under its own instruction and
    system text. A failed map, of one tile even, fails its request. Trace: locate, layer (None for
    pure_grad), base, grid (rows, cols), rectangle, box, degenerate, whole, tiles (rows, cols), detected
    (label, score, box; None where nothing was, and then the whole picture is used); the map itself is in
    the response. Cost: one map, for rel_att and pure_grad two, per picture or tile, and one answer of two
    pictures.
    """

    name: ClassVar[str] = "vicrop"
    locate: Literal["rel_att", "grad_att", "pure_grad", "raw_att", "detector", "oracle"] = "rel_att"
    layer: int | Literal["all"] | None = None
    base: int | None = None
    high_res: Literal["off", "auto", "on"] = "off"
    general_question: str = GENERAL_QUESTION
    detector: str | None = None
    fidelity: Fidelity = "fixed"

    def __post_init__(self) -> None:
        _crops.require_side("base", self.base)
        kind = KINDS.get(self.locate)
        if self.layer is not None and kind in (None, "pixels"):
            raise SpecError(f"layer={self.layer}, but locate={self.locate} reads no layer")
        if isinstance(self.layer, int) and self.layer < 0:
            raise SpecError(f"layer={self.layer}; layers count from 0")
        if self.high_res != "off" and kind is None:
            raise SpecError(f"high_res={self.high_res} is about maps, and locate={self.locate} reads none")
        if self.detector is not None and self.locate != "detector":
            raise SpecError(f"detector={self.detector} is for locate=detector; this is locate={self.locate}")
        if self.locate == "detector":
            _ = self._finder  # what is wrong with it should be known now
        if kind is not None:
            require(
                self.model,
                ReadMap(kind=kind).needs,
                f"vicrop ({self.locate})",
                "Use an `hf:` model of a known layout, such as LLaVA-1.5's, with attn=auto, and name the "
                "white-box method first: it stands next to the model. `center_crop`, `random_crop` and "
                "`vicrop:locate=detector,detector=CHECKPOINT` need only text",
            )

    @property
    def oracle(self) -> bool:
        return self.locate == "oracle" or super().oracle

    def describe(self) -> dict[str, Any]:
        described = super().describe()
        if self.locate == "detector":
            described["detector"] = self._finder.describe()
        return described

    def generate(self, requests: Sequence[Request]) -> list[Response]:
        base = _crops.side_for(self.model, self.base)
        if self.locate == "oracle":
            choices = [_around_region(request, base) for request in requests]
        elif self.locate == "detector":
            choices = self._detect(requests, base)
        else:
            choices = self._look(requests, base)
        return _crops.answer(self.model, requests, choices, self.name)

    # ------------------------------------------------------------ maps

    def _look(self, requests: Sequence[Request], base: int) -> list[_crops.Choice]:
        """The first wave: the maps of all requests in one list, and a box from each request's maps."""
        views = [self._view(request) for request in requests]
        wave = [
            self._map_request(request, part, question, keep=len(view.parts) == 1)
            for request, view in zip(requests, views, strict=True)
            if isinstance(view, _View)
            for part in view.parts
            for question in view.questions
        ]
        maps = iter(self.model.generate(wave) if wave else [])
        return [
            self._choose(view, [[next(maps) for _ in view.questions] for _ in view.parts], base)
            if isinstance(view, _View)
            else view
            for view in views
        ]

    def _view(self, request: Request) -> _View | _crops.Choice:
        """What to read of a request's first picture, or why nothing is."""
        if not request.images:
            return _crops.NO_IMAGE
        picture = request.images[0]
        specific = request.hints.short_question or request.question
        quotient = self.locate in ("rel_att", "pure_grad")
        questions = (specific, self.general_question) if quotient else (specific,)
        try:
            size = picture.size
            if self.high_res == "off" or (self.high_res == "auto" and max(size) <= LIMIT):
                return _View(size, (picture,), questions)
            cut = tiling(size, self.fidelity)
        except PictureError as error:
            return _crops.Choice(failure=Failure(error.kind, str(error)))
        except ValueError as error:
            remedy = "fidelity=fixed" if self.fidelity == "released" else "high_res=off"
            message = f"vicrop:high_res={self.high_res},fidelity={self.fidelity}: {error}; use {remedy}"
            return _crops.Choice(failure=Failure("no_tiles", message))
        one = len(cut.tiles) == 1  # then it is all of the picture
        return _View(size, (picture,) if one else tuple(map(picture.crop, cut.tiles)), questions, cut)

    def _map_request(self, request: Request, picture: Picture, question: str, *, keep: bool) -> Request:
        return Request(
            images=(picture,),
            question=question,
            instruction=request.instruction,
            system=request.system,
            decoding=Decoding(max_tokens=0),
            probes=(ReadMap(self.layer, KINDS[self.locate], keep),),
        )

    def _choose(self, view: _View, looks: Sequence[Sequence[Response]], base: int) -> _crops.Choice:
        """A box from the looks at each part of a picture, one per question."""
        every = [look for part in looks for look in part]
        usage = sum((look.usage for look in every), Usage())
        failure = next((look.failure for look in every if look.failure), None)
        if failure is not None:
            return _crops.Choice(usage=usage, failure=failure)
        try:
            maps = [self._importance(part, look) for part, look in zip(view.parts, looks, strict=True)]
        except PictureError as error:
            return _crops.Choice(usage=usage, failure=Failure(error.kind, str(error)))
        found = maps[0]
        if view.cut is not None:
            whole = (0, 0, *view.size)
            fixed = self.fidelity == "fixed"
            values = merged(maps, view.cut, view.size) if fixed else joined(maps, view.cut)
            found = ImportanceMap(values.astype(np.float32), whole)
        box, trace = self._box(found, view.size, base)
        layers = every[0].trace.get("map_layers")
        trace["layer"] = layers[0] if isinstance(layers, list) and self.layer is None else self.layer
        if view.cut is not None:
            trace["tiles"] = [view.cut.rows, view.cut.cols]
        return _crops.Choice(box, trace, usage, (found,))

    def _importance(self, picture: Picture, looks: Sequence[Response]) -> ImportanceMap:
        """M, as the module defines it, from what the model gave for q and, where M has one, for q'."""
        own = looks[0].maps[0]
        if len(looks) == 1:
            return own
        values = relative_importance(own.values, looks[1].maps[0].values)
        if self.locate == "pure_grad":
            if self.fidelity == "fixed":
                values = repaired(values)
                picture = picture.crop(_whole_pixels(own.rectangle, picture.size))
            rows, cols = values.shape
            block = _crops.described(self.model, "patch_size") or PAPER_PATCH
            if self.fidelity == "released" and min(rows, cols) < block:
                raise PictureError(
                    f"vicrop:locate=pure_grad,fidelity=released takes blocks of {block} x {block} pixels, "
                    f"and the model sees this picture on {cols} x {rows}; use fidelity=fixed",
                    "no_blocks",
                )
            mask = edge_mask(picture.open(), (rows, cols), self.fidelity)
            values = block_mean(values * mask, block)
        return ImportanceMap(values.astype(np.float32), own.rectangle)

    def _box(
        self, importance: ImportanceMap, size: _crops.Size, base: int
    ) -> tuple[Box | None, dict[str, Json]]:
        """The crop in the picture's pixels, None for none, and the trace of how it came about."""
        values = importance.values
        fixed = self.fidelity == "fixed"
        rectangle = _whole_pixels(importance.rectangle, size) if fixed else (0, 0, *size)
        left, top, right, bottom = rectangle
        degenerate = is_degenerate(values)
        x1, y1, x2, y2 = attention_box(values, (right - left, bottom - top), base, self.fidelity)
        box = (x1 + left, y1 + top, x2 + left, y2 + top)
        if degenerate and fixed:
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
        return (None if whole and fixed else box), trace

    # ------------------------------------------------------------ the detector

    @cached_property
    def _finder(self) -> Detector:
        if self.detector is None:
            raise SpecError(
                "vicrop:locate=detector needs a zero-shot detector; name a folder or a hub id, such as "
                "detector=google/owlv2-base-patch16-ensemble or detector=IDEA-Research/grounding-dino-tiny"
            )
        finder = Detector.from_spec(self.detector)
        if not finder.zero_shot:
            raise SpecError(
                f"detector={self.detector} knows a closed set of labels ({finder.family}); "
                "vicrop:locate=detector asks for the question's words, which a zero-shot detector (OWLv2, "
                "Grounding DINO) can look for"
            )
        return finder

    def _detect(self, requests: Sequence[Request], base: int) -> list[_crops.Choice]:
        """The likeliest box for each request's question in its first picture, and the crop around it."""
        shown = [request for request in requests if request.images]
        found = iter(
            self._finder.detect(
                [request.images[0] for request in shown],
                [(request.hints.short_question or request.question,) for request in shown],
            )
        )
        return [
            _around_best(request, next(found), base) if request.images else _crops.NO_IMAGE
            for request in requests
        ]


method = Vicrop


def relative_importance(specific: Map, general: Map) -> Map:
    """How much more a cell matters to the question than to a general one: specific / general.

    Both (rows, cols) of one dtype; the quotient has it too. 0/0 is NaN and x/0 infinite, as released.

    >>> relative_importance(np.float32([[0.2, 0.1]]), np.float32([[0.1, 0.1]])).tolist()
    [[2.0, 1.0]]
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return specific / general


# ---------------------------------------------------------------- boxes in the picture


def _whole_pixels(rectangle: Box, size: _crops.Size) -> tuple[int, int, int, int]:
    """The nearest whole pixels inside a picture of `size`, one a side at least."""
    spans = []
    for start, end, length in zip(rectangle[:2], rectangle[2:], size, strict=True):
        first = min(max(0, round(start)), length - 1)
        spans.append((first, min(max(first + 1, round(end)), length)))
    (x1, x2), (y1, y2) = spans
    return (x1, y1, x2, y2)


def _around(box: Box, base: int) -> Callable[[_crops.Size], Box]:
    """In a picture of some size, the square around a box: some bases a side, more for a larger box."""
    x1, y1, x2, y2 = box
    side = round(max(ORACLE_RATIO * base, ORACLE_MARGIN * max(x2 - x1, y2 - y1)))
    return lambda size: _crops.square(((x1 + x2) / 2, (y1 + y2) / 2), side, size)


def _everything(size: _crops.Size) -> Box:
    return (0, 0, *size)


def _around_best(request: Request, found: Found, base: int) -> _crops.Choice:
    """The detector's crop: around the likeliest box; the whole picture where nothing was found."""
    if found.failure is not None:
        return _crops.Choice(usage=found.usage, failure=found.failure)
    trace: dict[str, Json] = {"locate": "detector", "base": base, "detected": None}
    pick: Callable[[_crops.Size], Box] = _everything
    if found.detections:
        best = found.detections[0]
        trace["detected"] = {"label": best.label, "score": best.score, "box": list(best.box)}
        pick = _around(best.box, base)
    choice = _crops.choose(request, pick)
    return replace(choice, trace={**trace, **choice.trace}, usage=found.usage)


def _around_region(request: Request, base: int) -> _crops.Choice:
    """The oracle's crop: around the target's box."""
    if not request.images:
        return _crops.NO_IMAGE
    region = request.hints.region
    if region is None:
        return _crops.Choice(
            failure=Failure(
                "no_region",
                "vicrop:locate=oracle crops around the target's box, and this sample has none; "
                "run it on a task with boxes, such as small_detail",
            )
        )
    choice = _crops.choose(request, _around(region, base))
    return replace(choice, trace={"locate": "oracle", "base": base, **choice.trace})
