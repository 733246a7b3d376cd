"""What the cropping methods share: a square in a picture, and the answer with the crop beside the original.

Knows boxes and requests. Must not know how a method finds its box, nor any model.

Of several pictures only the first, the original, is cropped; the crop is appended after the last, so that
what the question says about the first or second picture stays true. A request without a picture goes on
as it came, and its trace says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from harness.errors import PictureError, SpecError
from harness.types import Box, Failure, ImportanceMap, Json, Model, Request, Response, Usage

PAPER_SIDE = 336
"""Pixels; LLaVA-1.5's input, where a model does not say its own."""

Size = tuple[int, int]


@dataclass(frozen=True)
class Choice:
    """What a method decided about one request before it is answered.

    box: the part of the first picture to append, in its pixels; None appends nothing. usage: spent on
    deciding. failure: why there is no answer.
    """

    box: Box | None = None
    trace: Mapping[str, Json] = field(default_factory=dict)
    usage: Usage = Usage()
    maps: tuple[ImportanceMap, ...] = ()
    failure: Failure | None = None


NO_IMAGE = Choice(trace={"skipped": "no image"})
"""Nothing to crop: the request goes on as it came."""


def choose(request: Request, pick: Callable[[Size], Box], *, skip_whole: bool = True) -> Choice:
    """`pick` a box in a picture of some size (width, height), for methods that need no model to choose.

    skip_whole: a box that is the whole picture is not appended.
    """
    if not request.images:
        return NO_IMAGE
    try:
        size = request.images[0].size
        box = pick(size)
    except PictureError as error:
        return Choice(failure=Failure(error.kind, str(error)))
    whole = is_whole(box, size)
    trace: dict[str, Json] = {"box": list(box), "whole": whole}
    return Choice(None if whole and skip_whole else box, trace)


def answer(
    model: Model, requests: Sequence[Request], choices: Sequence[Choice], method: str
) -> list[Response]:
    """One wave: each request with its crop appended. Usage sums; a failed choice is passed on."""
    asked = [
        _with_crop(request, choice.box)
        for request, choice in zip(requests, choices, strict=True)
        if choice.failure is None
    ]
    answers = iter(model.generate(asked) if asked else [])
    return [
        _folded(next(answers), choice, method)
        if choice.failure is None
        else Response(
            finish_reason="failure",
            usage=choice.usage,
            trace={"method": method, **choice.trace},
            failure=choice.failure,
        )
        for choice in choices
    ]


def _with_crop(request: Request, box: Box | None) -> Request:
    if box is None:
        return request
    first = request.images[0]
    crop = first if is_whole(box, first.size) else first.crop(box)
    return replace(request, images=(*request.images, crop))


def _folded(final: Response, choice: Choice, method: str) -> Response:
    trace: dict[str, Json] = {"method": method, **choice.trace}
    if final.trace:
        trace["inner"] = final.trace
    return replace(final, usage=choice.usage + final.usage, trace=trace, maps=choice.maps or final.maps)


def square(center: tuple[float, float], side: int, size: Size) -> Box:
    """A square of `side` pixels around `center`, moved inside a picture of `size` (width, height).

    Where the picture is smaller than the square, the box spans it.

    >>> square((10, 200), 96, (640, 480))
    (0, 152, 96, 248)
    >>> square((320, 240), 336, (640, 200))
    (152, 0, 488, 200)
    """
    spans = []
    for middle, length in zip(center, size, strict=True):
        start = max(0, min(round(middle - side / 2), length - side))
        spans.append((start, min(start + side, length)))
    (x1, x2), (y1, y2) = spans
    return (x1, y1, x2, y2)


def is_whole(box: Box, size: Size) -> bool:
    """Whether a box is all of a picture of `size`."""
    return tuple(box) == (0, 0, *size)


def side_for(model: Model, asked: int | None) -> int:
    """The side of a crop in pixels: what was asked for, or the model's input resolution, or 336."""
    return asked or described(model, "image_size") or PAPER_SIDE


def described(model: Model, key: str) -> int | None:
    """A number that the innermost model says of itself; None if it does not."""
    found: Any = model.describe()
    while isinstance(found.get("model"), dict):  # methods nest; the innermost model knows
        found = found["model"]
    value = found.get(key)
    return value if isinstance(value, int) else None


def require_side(name: str, value: int | None) -> None:
    """Raise `SpecError` for a side that is no number of pixels."""
    if value is not None and value < 1:
        raise SpecError(f"{name}={value}; it is a number of pixels, 1 or more")
