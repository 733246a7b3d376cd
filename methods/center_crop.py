"""Control: the centre of the picture beside the picture. What a crop gains without looking anywhere.

Same two-picture prompt as ViCrop's, so that their difference is where the crop lies. Source: ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from harness.types import Box, Method, Request, Response
from methods import _crops


@dataclass(frozen=True)
class CenterCrop(Method):
    """Appends the central square of the first picture.

    side: in pixels of the picture; None is the model's input resolution (336 if it does not say). A
    picture that is no larger is sent alone.
    """

    name: ClassVar[str] = "center_crop"
    side: int | None = None

    def __post_init__(self) -> None:
        _crops.require_side("side", self.side)

    def generate(self, requests: Sequence[Request]) -> list[Response]:
        side = _crops.side_for(self.model, self.side)

        def pick(size: _crops.Size) -> Box:
            return _crops.square((size[0] / 2, size[1] / 2), side, size)

        choices = [_crops.choose(request, pick) for request in requests]
        return _crops.answer(self.model, requests, choices, self.name)


method = CenterCrop
