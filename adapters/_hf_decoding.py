"""Choosing tokens and ending texts, row by row, inside transformers' `generate`.

Knows scores, token ids and decodings. Must not know prompts, pictures or models. A row's choices
depend on its own scores, seed and stops alone, so that its text does not depend on its batch.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harness.types import Decoding

Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True)
class Ended:
    """A finished row. tokens: of the text, without the end token. steps: tokens chosen, with it."""

    text: str
    finish_reason: str
    tokens: int
    steps: int


def choose(scores: Tensor, temperature: float, top_p: float | None, u: float) -> int:
    """The token that `u`, uniform in [0, 1), draws from a row of scores (logits, 1-D).

    The distribution is inverted in the order of the vocabulary and in double precision: a rounding
    difference between batches cannot reorder it.

    >>> [choose(torch.tensor([0.0, 0.0]), 1.0, None, u) for u in (0.1, 0.9)]
    [0, 1]
    >>> choose(torch.tensor([0.0, 3.0]), 1.0, 0.5, 0.01)
    1
    """
    chances = torch.softmax(scores.double().cpu() / temperature, dim=-1)
    if top_p is not None and top_p < 1:
        ranked, _ = chances.sort(descending=True)
        kept = int((ranked.cumsum(0) < top_p).sum())  # the nucleus ends with the token that fills it
        least = ranked[min(kept, len(ranked) - 1)]
        chances = torch.where(chances >= least, chances, torch.zeros_like(chances))
    total = chances.cumsum(0)
    token = int(torch.searchsorted(total, u * float(total[-1]), right=True))
    return min(token, len(chances) - 1)


class Finite:
    """A logits processor that changes nothing, and notes in which steps a row's scores are numbers."""

    def __init__(self) -> None:
        self._good: list[Tensor] = []  # (B,) per step, on the device until the end

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        self._good.append(scores.amax(dim=-1).isfinite())
        return scores

    def steps(self) -> list[int]:
        """Per row, the steps before the first in which nothing could be chosen.

        >>> finite = Finite()
        >>> for scores in ([[0.0, 1.0], [0.0, 1.0]], [[0.0, float("nan")], [2.0, float("-inf")]]):
        ...     _ = finite(torch.zeros(2, 1), torch.tensor(scores))
        >>> finite.steps()
        [1, 2]
        """
        return torch.stack(self._good).int().cumprod(dim=0).sum(dim=0).tolist()


class Sampler:
    """A logits processor that leaves one finite score in each sampled row; greedy rows stay.

    seeds: one per row; row r's n-th token is drawn with the n-th number of its own generator.
    """

    def __init__(self, decodings: Sequence[Decoding], seeds: Sequence[int]) -> None:
        self._rows = [
            (row, decoding, random.Random(seed))
            for row, (decoding, seed) in enumerate(zip(decodings, seeds, strict=True))
            if decoding.temperature > 0
        ]

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        for row, decoding, numbers in self._rows:
            u = numbers.random()
            token = choose(scores[row], decoding.temperature, decoding.top_p, u)
            scores[row] = -torch.inf
            scores[row, token] = 0.0
        return scores


class Ending:
    """A stopping criterion: a row ends at its own length, or when its text holds a stop of its own."""

    def __init__(self, decodings: Sequence[Decoding], limits: Sequence[int], decode: Decode) -> None:
        self._limits = torch.tensor(limits)
        self._stops = [(row, d.stop) for row, d in enumerate(decodings) if d.stop]
        self._decode = decode
        self._prompt: int | None = None

    def __call__(self, ids: Tensor, scores: Any, **_: Any) -> Tensor:
        if self._prompt is None:
            self._prompt = ids.shape[1] - 1
            self._limits = self._limits.to(ids.device)
        done = self._limits <= ids.shape[1] - self._prompt
        for row, stops in self._stops:
            text = self._decode(ids[row, self._prompt :].tolist())
            done[row] |= any(stop in text for stop in stops)
        return done


def finish(
    tokens: Sequence[int], limit: int, ends: frozenset[int], decoding: Decoding, decode: Decode
) -> Ended:
    """Cut a row of new tokens where it ended: at an end token, a stop text (dropped) or its length.

    tokens: what `generate` returned after the prompt, padding included. limit: tokens allowed.
    """
    tokens = tokens[:limit]
    reason = "length"
    steps = len(tokens)
    for index, token in enumerate(tokens):
        if token in ends:
            tokens, reason, steps = tokens[:index], "stop", index + 1
            break
    text = decode(tokens)
    if any(stop in text for stop in decoding.stop):
        used = next(n for n in range(1, len(tokens) + 1) if _stopped(decode(tokens[:n]), decoding))
        text = decode(tokens[:used])
        text = text[: min(text.find(stop) for stop in decoding.stop if stop in text)]
        return Ended(text, "stop", used, used)
    return Ended(text, reason, len(tokens), steps)


def _stopped(text: str, decoding: Decoding) -> bool:
    return any(stop in text for stop in decoding.stop)
