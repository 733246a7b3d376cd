"""Control: a random part of the picture beside the picture. What any second, closer look gains.

Same two-picture prompt as ViCrop's, so that their difference is where the crop lies. Source: ours.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from harness.types import Box, Method, Request, Response, digest
from methods import _crops


@dataclass(frozen=True)
class RandomCrop(Method):
    """Appends a square of the first picture, its place drawn uniformly.

    side: in pixels of the picture; None is the model's input resolution (336 if it does not say). A
    picture that is no larger is sent alone. seed: of the draws; the place depends on it and on the
    request alone, never on the order of requests.
    """

    name: ClassVar[str] = "random_crop"
    side: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        _crops.require_side("side", self.side)

    def generate(self, requests: Sequence[Request]) -> list[Response]:
        side = _crops.side_for(self.model, self.side)
        choices = [self._choose(request, side) for request in requests]
        return _crops.answer(self.model, requests, choices, self.name)

    def _choose(self, request: Request, side: int) -> _crops.Choice:
        def pick(size: _crops.Size) -> Box:
            draw = random.Random(int(digest([request.digest(), self.seed])[:16], 16))
            x, y = (draw.randint(0, max(0, length - side)) for length in size)
            return (x, y, min(x + side, size[0]), min(y + side, size[1]))

        return _crops.choose(request, pick)


method = RandomCrop
