"""How long answers are: words each, and how many were cut off at the limit of new tokens.

What a captioning task measures while there is no judge: it ranks nothing, but it shows a model that says
little, or never comes to an end. Must not know: datasets, models.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from harness.types import Metric, Response, Sample


@dataclass(frozen=True)
class Length:
    """`words`: their mean number, parted by white space; `cut`: the share of answers that ended because
    they had reached the limit of new tokens; `empty`: the share without a word. No samples: None each."""

    name: ClassVar[str] = "length"
    variant: ClassVar[str] = ""
    scope: ClassVar[Literal["sample"]] = "sample"
    additive: ClassVar[bool] = True

    @property
    def higher_is_better(self) -> Mapping[str, bool]:
        return {"words": True, "cut": False, "empty": False}

    def measure(self, responses: Sequence[Response], samples: Sequence[Sample]) -> list[dict[str, int]]:
        """Per answer its number of `words`, and whether it is `cut` or `empty`."""
        return [
            {"n": 1, "words": words, "cut": int(response.finish_reason == "length"), "empty": int(not words)}
            for response in responses
            for words in [len(response.text.split())]
        ]

    def reduce(self, counts: Sequence[Any]) -> dict[str, float | None]:
        n = sum(count["n"] for count in counts)
        if not n:
            return dict.fromkeys(self.higher_is_better)
        return {name: sum(count[name] for count in counts) / n for name in self.higher_is_better}


def metric() -> Metric:
    """Words per answer, and how many answers were cut off or empty.

    >>> length = metric()
    >>> seen = length.measure([Response("a red  car", "length"), Response("")], [Sample("1"), Sample("2")])
    >>> length.reduce(seen)
    {'words': 1.5, 'cut': 0.5, 'empty': 0.5}
    """
    return Length()
