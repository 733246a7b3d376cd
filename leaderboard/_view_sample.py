"""One record as a page shows it: values for JSON, none of which a page has to trust or to compute.

Knows the names that traces use (`harness/traces.py`, `_parts.py`) and what is too much for a page, which it
cuts, saying so. Every name that a record brings along (a metric's, a key's) is a value here, never a key.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from harness.store import Record
from harness.traces import Arrays
from harness.types import Json
from leaderboard import _parts, _patches

CELLS = 96  # rows, and columns, of a map at most
STEPS = 20_000  # selected tokens at most, of which each step's are shown
LETTERS = 30_000  # of a trace's or meta's JSON
BOXES = 200
_encode = json.JSONEncoder(ensure_ascii=False, default=str).encode
_DRAWN = ("patches", "pairs", "proposals", "semantic", "overall", "overall2", "regions", "calls", "warnings")


def shown(record: Record, arrays: Arrays) -> dict[str, Json]:
    """What a page says of a record, but for its pictures, its verdict and its numbers. Empty is left out.

    arrays: as `harness.traces.trace_arrays`, of which each may be missing.
    """
    arrays = _sound(arrays)
    parts = _parts.read(record.trace)
    tokens = _tokens(arrays)
    usage = record.usage
    found: dict[str, Json] = {
        "prompt": record.prompt,
        "question": record.question if record.question not in record.prompt else "",
        "system": record.system or "",
        "answer": record.answer,
        "text": record.text if record.text.strip() != record.answer.strip() else "",
        "finish": record.finish_reason if record.finish_reason != "stop" else "",
        "targets": [str(target) for target in record.targets],
        "usage": [
            usage.calls,
            usage.tokens_in,
            usage.tokens_out,
            usage.images,
            usage.forward_passes,
            number(usage.seconds),
            number(usage.dollars),
        ],
        "failure": [record.failure.kind, record.failure.message] if record.failure else [],
        "options": [[number(nll), count] for nll, count in record.option_nll],
        "boxes": [{"name": name, "box": box, "kind": kind} for name, box, kind in _boxes(record.trace)],
        "region": _box(record.meta.get("region")),
        "map": _map(record, arrays),
        "tokens": tokens,
        "parts": _told(parts) if parts is not None else {},
        "offers": _offers(record.trace),
        "notes": list(_notes(record, arrays)),
        "meta": readable({name: value for name, value in record.meta.items() if name != "region"}),
        "counts": readable(record.measures),
        "trace": readable(
            _rest(record.trace, {*(_DRAWN if parts else ()), *(("selected",) if tokens else ())})
        ),
    }
    return {name: value for name, value in found.items() if value not in (None, "", [], {})}


def _sound(arrays: Arrays) -> Arrays:
    """Those of the shapes and kinds that `trace_arrays` gives: a file may hold anything."""
    shapes = {
        "rectangle": 2,
        "selected": 1,
        "selected_offsets": 1,
        "selected_cells": 2,
        "selected_rectangle": 1,
    }
    found = {
        name: values
        for name, values in arrays.items()
        if values.dtype.kind in "biuf"
        and values.ndim == shapes.get(name, 2 if name.startswith("map_") else 0)
    }
    if not {"selected", "selected_offsets"} <= found.keys():
        found.pop("selected_offsets", None)
    if not {"selected_cells", "selected_rectangle"} <= found.keys():
        found.pop("selected_cells", None)
    return found


def number(value: Any) -> float | int | None:
    """A number that JSON has."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
    return value if good else None


def readable(value: Any) -> str:
    """JSON to be read: a line per name, lists of plain values in one; "" where there is nothing.

    >>> print(readable({"box": [1, 2], "inner": {"whole": False}}))
    {
      "box": [1, 2],
      "inner": {
        "whole": false
      }
    }
    """
    if not value:
        return ""
    text = "".join(_lines(value, "\n", LETTERS))
    return text if len(text) <= LETTERS else f"{text[:LETTERS]}\n… cut here: it goes on"


def _lines(value: Any, line: str, room: int) -> Iterator[str]:
    """The pieces of a value's JSON, until there are `room` letters of them."""
    inside = line + "  "
    if isinstance(value, Mapping) and value and len(line) < 100:
        items = [(_encode(str(name)) + ": ", one) for name, one in value.items()]
        ends = "{}"
    elif (
        isinstance(value, list | tuple)
        and len(line) < 100
        and any(isinstance(one, Mapping | list | tuple) for one in value)
    ):
        items, ends = [("", one) for one in value], "[]"
    else:
        yield _encode(value)
        return
    yield ends[0]
    used = 0
    for place, (name, one) in enumerate(items):
        for piece in (("," if place else "") + inside + name, *_lines(one, inside, room - used)):
            used += len(piece)
            yield piece
        if used > room:
            return
    yield line + ends[1]


# ---------------------------------------------------------------- over the picture


def _boxes(trace: Any) -> Iterator[tuple[str, list[float], str]]:
    """(name, box, kind) of the crop and the detection of every method, the outermost first."""
    shown = 0
    while isinstance(trace, Mapping) and shown < BOXES:
        name = " ".join(
            str(trace[key])[:40] for key in ("method", "locate") if isinstance(trace.get(key), str)
        )
        for key, kind in (("box", "crop"), ("detected", "detected")):
            found = trace.get(key)
            label = name or "crop"
            if key == "detected" and isinstance(found, Mapping):
                score = number(found.get("score"))
                label = f"{str(found.get('label', ''))[:40]} {score:.2f}" if score is not None else "detected"
                found = found.get("box")
            if box := _box(found):
                shown += 1
                yield label, box, kind
        trace = trace.get("inner")


def _box(value: Any) -> list[float]:
    """x1, y1, x2, y2 of a box with an inside; else nothing."""
    box = _parts.read_box(value)
    return [round(edge, 2) for edge in box] if box is not None else []


def _map(record: Record, arrays: Arrays) -> dict[str, Json] | None:
    """The first map, in 255 steps from its least to its greatest; 255 is no number."""
    if "map_0" not in arrays or "rectangle" not in arrays or not arrays["rectangle"].size:
        return None
    values = arrays["map_0"].astype(np.float64)
    if not values.size or not (rectangle := _box(arrays["rectangle"][0].tolist())):
        return None
    rows, columns = values.shape
    values = _smaller(values)
    good = np.isfinite(values)
    values = np.where(good, np.clip(values, -1e300, 1e300), 0)
    low, high = (float(values[good].min()), float(values[good].max())) if good.any() else (0.0, 0.0)
    parts = (values - low) / (high - low if high > low else 1.0)
    levels = np.where(good, np.round(254 * np.clip(parts, 0, 1)), 255)
    count = sum(name.startswith("map_") for name in arrays)
    locate, layer = record.trace.get("locate"), record.trace.get("layer")
    name = locate[:40] if isinstance(locate, str) else "map"
    return {
        "name": f"{name}, layer {layer}" if isinstance(layer, int) else name,
        "of": count,
        "grid": [rows, columns],
        "shape": list(values.shape),
        "levels": base64.b64encode(levels.astype(np.uint8).tobytes()).decode(),
        "range": [low, high],
        "rectangle": rectangle,
    }


def _smaller(values: Any) -> Any:
    """Means of equal blocks, where there are more cells than a page needs."""
    rows, columns = values.shape
    if max(rows, columns) <= CELLS:
        return values
    edges = [np.linspace(0, side, min(side, CELLS) + 1).round().astype(int)[:-1] for side in (rows, columns)]
    with np.errstate(all="ignore"):  # what is no number stays none
        sums = np.add.reduceat(np.add.reduceat(values, edges[0], axis=0), edges[1], axis=1)
    sizes = [np.diff([*edge, side]) for edge, side in zip(edges, (rows, columns), strict=True)]
    return sums / np.outer(*sizes)


def _tokens(arrays: Arrays) -> dict[str, Json] | None:
    """The image tokens that each decoded token selected, and the cells they are of."""
    if "selected_offsets" not in arrays:
        return None
    offsets, selected = arrays["selected_offsets"], arrays["selected"]
    found: dict[str, Json] = {"counts": np.diff(offsets).tolist()[:STEPS]}
    if "selected_cells" not in arrays:
        return found
    cells, rectangle = arrays["selected_cells"], _box(arrays["selected_rectangle"].tolist())
    if not rectangle or cells.size > CELLS**2 or not selected.size:
        return found
    place = {int(token): cell for cell, token in enumerate(cells.ravel())}
    often = [0] * cells.size
    for token in selected.tolist():
        if token in place:
            often[place[token]] += 1
    found |= {"shape": list(cells.shape), "rectangle": rectangle, "often": often}
    if selected.size <= STEPS:
        found["steps"] = [
            [place[token] for token in selected[start:end].tolist() if token in place]
            for start, end in pairwise(offsets)
        ]
    return found


# ---------------------------------------------------------------- the words


def _told(parts: _parts.Parts) -> dict[str, Json]:
    """The parts that a caption was put together from, with the colours that they have on every page."""
    drawn = _patches.shown(parts)
    return {
        "size": list(parts.size) if parts.size is not None else [],
        "cards": [_card(part, _patches.colours_of(part, parts)) for part in drawn],
        "more": len(parts.patches) + len(parts.pairs) - len(drawn),
        "proposals": [[label, _box(box)] for box, label in parts.proposals[: _patches.PROPOSALS]],
        "words": [[name, text] for name, text in (*parts.captions, *parts.words)],
        "warnings": list(parts.warnings[:50]),
    }


def _card(part: _parts.Part, colours: Sequence[str]) -> dict[str, Json]:
    return {
        "name": part.name,
        "box": _box(part.box),
        "colours": list(dict.fromkeys(colours)),
        "pair": part.of is not None,
        "like": part.like,
        "iou": number(part.iou),
        "caption": part.caption,
        "candidates": list(part.candidates),
        "sentences": [
            [one.kind, one.ids, one.text, one.kept, one.reason, number(one.score)]
            for one in sorted(part.sentences, key=lambda one: _order(one.kind))
        ],
    }


def _order(kind: str) -> int:
    return _patches.KINDS.index(kind) if kind in _patches.KINDS else len(_patches.KINDS)


def _offers(trace: Mapping[str, Any]) -> Sequence[Sequence[Json]]:
    """[id, score] of a query's likeliest answers, the first first."""
    top, scores = trace.get("top"), trace.get("scores")
    if not isinstance(top, list) or not isinstance(scores, list) or len(top) != len(scores):
        return []
    return [[str(one), number(score)] for one, score in list(zip(top, scores, strict=True))[:100]]


def _notes(record: Record, arrays: Arrays) -> Iterator[str]:
    """What the drawing cannot say."""
    trace = record.trace
    if "map_0" not in arrays and "grid" in trace and "selected" not in trace:
        yield "the map was not kept; a run with --save-traces keeps it"
    if "map_0" in arrays and (lost := int((~np.isfinite(arrays["map_0"])).sum())):
        yield f"{lost:,} of {arrays['map_0'].size:,} cells of the map are no finite number"
    if "selected_offsets" in arrays and "selected_cells" not in arrays:
        yield "where the selected tokens lie in the picture is not known"
    if bool(np.any(arrays.get("degenerate", False))):
        yield "the map was no guide (degenerate)"
    if trace.get("whole"):
        yield "the crop would be the whole picture"
    if isinstance(trace.get("skipped"), str):
        yield f"skipped: {trace['skipped'][:200]}"


def _rest(trace: Any, shown: set[str]) -> Any:
    """A trace without what is shown elsewhere."""
    if not isinstance(trace, Mapping):
        return trace
    return {
        name: _rest(value, shown) if name == "inner" else value
        for name, value in trace.items()
        if name not in shown
    }
