"""Which words of a caption a metric counts as objects, and which of these the picture does not show.

Knows no metric by name: any whose counts have `mentions`, `hallucinated` and `length` is asked about the
caption's words and pairs of words, one at a time. A metric that reads sentences may count otherwise than
its words alone; who shows the words says so where the numbers differ.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from harness.types import Metric, Response, Sample

KEPT, HALLUCINATED = "kept", "hallucinated"
COUNTS = ("mentions", "hallucinated", "length")

_WORD = re.compile(r"\w+(?:[-'’]\w+)*")
_TOGETHER = 1000  # words a metric is asked about at once
_GREATEST = 20_000  # words of one caption; what follows is not marked


def counts_objects(counts: Any) -> bool:
    return isinstance(counts, Mapping) and all(isinstance(counts.get(name), int) for name in COUNTS)


class Objects:
    """A caption in pieces: (text, KEPT or HALLUCINATED or ""), which together are the caption."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric
        self._names: dict[str, bool] = {}
        self._absent: dict[tuple[str, tuple[str, ...]], bool] = {}

    def __call__(self, caption: str, targets: Sequence[str]) -> list[tuple[str, str]]:
        """Raises what the metric raises where its data is missing."""
        words = [(found.start(), found.end()) for found in _WORD.finditer(caption)][:_GREATEST]
        pairs = [(start, end) for (start, _), (_, end) in pairwise(words)]
        pairs = [(start, end) for start, end in pairs if len(caption[start:end].split()) == 2]
        self._learn({caption[start:end] for start, end in (*words, *pairs)})
        marked, free, joined = [], 0, dict(pairs)
        for start, end in words:
            if start < free:
                continue
            for stop in (joined.get(start), end):  # a pair that is one name goes before its words
                if stop is not None and self._names[caption[start:stop]]:
                    marked.append((start, stop))
                    free = stop
                    break
        truth = tuple(targets)
        self._look({caption[start:end] for start, end in marked}, truth)
        pieces, at = [], 0
        for start, end in marked:
            name = caption[start:end]
            pieces += [(caption[at:start], ""), (name, HALLUCINATED if self._absent[name, truth] else KEPT)]
            at = end
        return [piece for piece in (*pieces, (caption[at:], "")) if piece[0]]

    def _learn(self, texts: set[str]) -> None:
        """Whether each text is one object's name: a word that is, or a pair that counts as one."""
        new = sorted(texts - self._names.keys())
        for text, counts in zip(new, self._measured(new, ()), strict=True):
            single = len(text.split()) == 1
            self._names[text] = counts["mentions"] > 0 and (single or counts["length"] == 1)

    def _look(self, names: set[str], truth: tuple[str, ...]) -> None:
        new = sorted(name for name in names if (name, truth) not in self._absent)
        for name, counts in zip(new, self._measured(new, truth), strict=True):
            self._absent[name, truth] = counts["hallucinated"] > 0

    def _measured(self, texts: Sequence[str], truth: tuple[str, ...]) -> list[Any]:
        found: list[Any] = []
        for at in range(0, len(texts), _TOGETHER):
            part = texts[at : at + _TOGETHER]
            found += self._metric.measure(
                [Response(each) for each in part], [Sample("", (), "", truth)] * len(part)
            )
        return found
