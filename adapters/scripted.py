"""A model that is a function: the official fake, for tests, dry rehearsals and overhead measurements.

From the command line it gives one answer to everything (`scripted:yes`): the floor that every benchmark
should be compared with. In Python, `Scripted(function)` answers each request with a text or a whole
response. It knows nothing of tasks; it computes no usage beyond one call per request.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from harness import events
from harness.types import Capability, Model, Pace, Request, Response, Usage

_ONE_CALL = Usage(calls=1)


@dataclass(frozen=True)
class Scripted:
    """Answers from `answer`, a function of the request; `name` is its identity."""

    answer: Callable[[Request], str | Response]
    name: str = "function"
    offers: frozenset[Capability] = frozenset()
    pace: Pace = Pace(group=1024, free=True)

    def describe(self) -> dict[str, Any]:
        return {"adapter": "scripted", "model": self.name}

    def generate(self, requests: Sequence[Request]) -> list[Response]:
        answers = [self.answer(request) for request in requests]
        events.report(Usage(calls=len(answers)))
        return [
            Response(answer, usage=_ONE_CALL) if isinstance(answer, str) else answer for answer in answers
        ]


def model(answer: str) -> Model:
    """One answer to everything."""
    return Scripted(lambda _: answer, name=answer)
