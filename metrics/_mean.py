"""The shape of most metrics: a score of an answer against its targets, averaged over samples.

Knows how such scores are counted and reduced. Must not know: any particular score.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from harness.types import Response, Sample


@dataclass(frozen=True)
class Mean:
    """A metric whose only number is the mean over samples of `score(answer, targets)`, 0 to 1.

    A subclass states its `name`, its `variant` (a field: it is a knob) and its `score`, which is never
    asked about a sample without targets (of a test split): that one counts for nothing. Over no sample
    at all the mean is None.

    >>> class First(Mean):
    ...     def score(self, answer, targets):
    ...         return float(answer == targets[0])
    >>> samples = [Sample("1", targets=("cat",)), Sample("2", targets=("dog",)), Sample("3")]
    >>> counts = First().measure([Response("cat"), Response("cat"), Response("cat")], samples)
    >>> counts
    [{'score': 1.0, 'scored': 1}, {'score': 0.0, 'scored': 1}, {'score': 0.0, 'scored': 0}]
    >>> First().reduce(counts), First().reduce([])
    ({'accuracy': 0.5}, {'accuracy': None})
    """

    number: ClassVar[str] = "accuracy"
    scope: ClassVar[Literal["sample"]] = "sample"
    additive: ClassVar[bool] = True

    def score(self, answer: str, targets: Sequence[str]) -> float:
        raise NotImplementedError(f"{type(self).__name__} defines no score()")

    @property
    def higher_is_better(self) -> Mapping[str, bool]:
        return {self.number: True}

    def measure(self, responses: Sequence[Response], samples: Sequence[Sample]) -> list[dict[str, float]]:
        """Per sample its `score` and whether it was `scored` (0 or 1)."""
        return [
            {"score": self.score(response.text, sample.targets), "scored": 1}
            if sample.targets
            else {"score": 0.0, "scored": 0}
            for response, sample in zip(responses, samples, strict=True)
        ]

    def reduce(self, counts: Sequence[Any]) -> dict[str, float | None]:
        scored = sum(count["scored"] for count in counts)
        # The harness hands over sums, many at once (`harness._columns`); fsum is for a list's own.
        total = counts[0]["score"] if len(counts) == 1 else math.fsum(count["score"] for count in counts)
        return {self.number: total / scored if scored else None}
