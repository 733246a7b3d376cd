"""Control: the whole picture twice. What a second picture in the prompt does by itself.

Same two-picture prompt as ViCrop's, without a closer look. Source: ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from harness.types import Method, Request, Response
from methods import _crops


@dataclass(frozen=True)
class FullTwice(Method):
    """Appends the first picture again, whole."""

    name: ClassVar[str] = "full_twice"

    def generate(self, requests: Sequence[Request]) -> list[Response]:
        choices = [
            _crops.choose(request, lambda size: (0, 0, *size), skip_whole=False) for request in requests
        ]
        return _crops.answer(self.model, requests, choices, self.name)


method = FullTwice
