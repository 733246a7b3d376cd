"""How a caption was put together from parts of its picture, as a trace tells it: values, no drawing.

Knows the names that such a trace has (patches, pairs, proposals, semantic, overall, overall2, regions,
calls, warnings); which method made it, it does not know. A trace may come from anywhere: what is missing
or of another shape is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.types import Box
from leaderboard._page import plain


@dataclass(frozen=True)
class Sentence:
    """What became of it. ids: which sentences of which candidates it stands for."""

    kind: str
    text: str
    ids: str
    kept: bool
    reason: str
    score: float | None


@dataclass(frozen=True)
class Part:
    """A patch, or (`of`: the names of two) a pair of them. like: the patch whose captions it shares."""

    name: str
    box: Box | None
    candidates: tuple[str, ...]
    sentences: tuple[Sentence, ...]
    caption: str
    like: str = ""
    of: tuple[str, str] | None = None
    iou: float | None = None


@dataclass(frozen=True)
class Parts:
    """A caption's trace. size: of the picture that the boxes lie in, None where it does not say."""

    size: tuple[float, ...] | None
    patches: tuple[Part, ...]
    pairs: tuple[Part, ...]
    proposals: tuple[tuple[Box, str], ...]
    words: tuple[tuple[str, str], ...]
    """(name, text) of what concerns the whole caption."""
    captions: tuple[tuple[str, str], ...]
    """(name, text) of the captions of the whole picture on the way."""
    warnings: tuple[str, ...]


def read(trace: Any) -> Parts | None:
    """The parts that a trace, or one inside it (methods nest), tells of; None where it tells of none.

    >>> read({"patches": [{"pid": "LT", "caption": "A bus."}, 7]}).patches[0].caption
    'A bus.'
    >>> read({"patches": "none"}) is None
    True
    """
    while isinstance(trace, Mapping):
        patches = [_patch(one) for one in _mappings(trace.get("patches"))]
        if patches:
            return _parts(trace, patches)
        trace = trace.get("inner")
    return None


def _parts(trace: Mapping[str, Any], patches: Sequence[Part]) -> Parts:
    overall, then = _text(trace.get("overall")), _text(trace.get("overall2"))
    captions = [("global caption", overall)]
    if then and then != overall:
        captions.append(("global caption with the semantic patch (global′)", then))
    calls = trace.get("calls")
    calls = calls if isinstance(calls, Mapping) else {}
    counted = [f"{_text(name)} {_number(n):,.0f}" for name, n in calls.items() if _number(n) is not None]
    proposals = [(read_box(one.get("box")), one) for one in _mappings(trace.get("proposals"))]
    return Parts(
        size=_numbers(trace.get("size"), 2),
        patches=tuple(patches),
        pairs=tuple(_pair(one) for one in _mappings(trace.get("pairs"))),
        proposals=tuple((box, _proposal(one)) for box, one in proposals if box is not None),
        captions=tuple((name, text) for name, text in captions if text),
        words=tuple(
            (name, text)
            for name, text in (
                ("semantic patch", _semantic(trace.get("semantic"))),
                ("given to the last step", "  ·  ".join(_texts(trace.get("regions")))),
                ("calls by helper", "  ·  ".join(counted)),
            )
            if text
        ),
        warnings=tuple(_texts(trace.get("warnings"))),
    )


def _patch(one: Mapping[str, Any]) -> Part:
    return Part(
        _text(one.get("pid")) or "?",
        read_box(one.get("box")),
        tuple(_texts(one.get("candidates"))),
        tuple(_sentence(each) for each in _mappings(one.get("sentences"))),
        _text(one.get("caption")),
        like=_text(one.get("like")),
    )


def _pair(one: Mapping[str, Any]) -> Part:
    a, b = _text(one.get("a")) or "?", _text(one.get("b")) or "?"
    return Part(
        f"{a}+{b}",
        read_box(one.get("box")),
        (),
        tuple(_sentence(each) for each in _mappings(one.get("sentences"))),
        _text(one.get("caption")),
        of=(a, b),
        iou=_number(one.get("iou")),
    )


def _sentence(one: Mapping[str, Any]) -> Sentence:
    return Sentence(
        _text(one.get("kind")) or "of no kind",
        _text(one.get("text")),
        " ".join(_texts(one.get("ids"))),
        one.get("kept") is True,
        _text(one.get("reason")),
        _number(one.get("score")),
    )


def _proposal(one: Mapping[str, Any]) -> str:
    score = _number(one.get("score"))
    return " ".join([_text(one.get("label")), *([f"{score:.2f}"] if score is not None else [])]).strip()


def _semantic(semantic: Any) -> str:
    """Of which objects, how much of the picture they fill, and whether it became a patch."""
    if not isinstance(semantic, Mapping):
        return ""
    share = _number(semantic.get("share"))
    return ", ".join(
        [
            " + ".join(_texts(semantic.get("names"))) or "no object",
            *([f"{share:.0%} of the picture"] if share is not None else []),
            "used" if semantic.get("used") is True else "not used",
        ]
    )


def _text(value: Any) -> str:
    return plain(value) if isinstance(value, str) else ""


def _texts(value: Any) -> Iterator[str]:
    for one in value if isinstance(value, list | tuple) else ():
        if text := _text(one):
            yield text


def _mappings(value: Any) -> Iterator[Mapping[str, Any]]:
    for one in value if isinstance(value, list | tuple) else ():
        if isinstance(one, Mapping):
            yield one


def _number(value: Any) -> float | None:
    """A finite number of a size that can be drawn."""
    good = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e9
    return float(value) if good else None


def _numbers(value: Any, length: int) -> tuple[float, ...] | None:
    if not isinstance(value, list | tuple) or len(value) != length:
        return None
    numbers = tuple(number for one in value if (number := _number(one)) is not None)
    return numbers if len(numbers) == length else None


def read_box(value: Any) -> Box | None:
    """One that has an inside."""
    edges = _numbers(value, 4)
    if edges is None or edges[2] <= edges[0] or edges[3] <= edges[1]:
        return None
    x1, y1, x2, y2 = edges
    return x1, y1, x2, y2
