"""SPARC's state during one generation: the moving average, the selection, and each token's gain.

Knows attention calls and where image tokens stand. Must not know models, prompts or pictures.
One row of one layer is read per step, and no step waits for the device (but for `select=random`). To
scale a cached value by alpha is to scale the weight it gets, so the cache stays as it was, and each layer
pays for one multiplication (`benchmarks/whitebox.py` says what that costs).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from harness import taps
from harness.errors import CapabilityError
from harness.types import Json

if TYPE_CHECKING:
    from methods.sparc import SparcSteering


class SparcTap(taps.Tap):
    """Of one batch: see `methods/sparc.py`. Rows do not see each other, so a row's text is its own.

    prompt.image: (B, L), where the image tokens of each row stand in the cache.
    """

    def __init__(self, steering: SparcSteering, prompt: taps.Prompt) -> None:
        self._how = steering
        self._prompt = prompt
        self.layer = _reading(prompt) if steering.layer is None else steering.layer
        self._first, self._last = (0, prompt.depth - 1) if steering.layers is None else steering.layers
        for knob, layer in (("layer", self.layer), ("layers", self._last)):
            if layer >= prompt.depth:
                raise CapabilityError(
                    f"sparc:{knob} asks for layer {layer}; this decoder has layers 0 to {prompt.depth - 1}"
                )
        self._average: Tensor | None = None  # (B, L), over the prompt's tokens, as all that follows
        self._hit: Tensor | None = None  # of the newest step
        self._gain = torch.empty(0)  # (B, K), of this step
        self._selected: list[Tensor] = []
        self._fetched = torch.zeros(0, *prompt.image.shape).bool()
        if steering.select == "random":
            self._draws = [
                (torch.Generator().manual_seed(steering.seed), row.nonzero().flatten())
                for row in prompt.image
            ]

    def before(self, call: taps.AttentionCall) -> None:
        self._check(call)
        if call.layer == 0 and self._hit is not None:
            gain = self._gain[:, : self._hit.shape[1]]
            self._gain = torch.where(self._hit, gain * self._how.alpha, gain)
        if call.layer == self.layer:
            self._read(call)

    def gains(self, call: taps.AttentionCall) -> Tensor | None:
        if self._hit is None or not self._first <= call.layer <= self._last:
            return None
        if more := call.key.shape[2] - self._gain.shape[1]:
            self._gain = torch.nn.functional.pad(self._gain, (0, more), value=1.0)
        return self._gain

    def sees(self, call: taps.AttentionCall) -> Tensor | None:
        """The released prefill: every token of the prompt sees all of it."""
        if not self._how.whole_prompt or call.query.shape[2] == 1:
            return None
        seen = self._prompt.seen.bool()
        unwritten = call.key.shape[2] - seen.shape[1]
        return torch.nn.functional.pad(seen, (0, unwritten))[:, None, None]

    def trace(self, row: int, tokens: int) -> dict[str, Json]:
        """Of a row that decoded so many tokens: what was selected as each but the first was chosen."""
        image = self._prompt.image[row].cpu()
        steps = [
            mask[row, image].nonzero().flatten().tolist() for mask in self._history()[: max(0, tokens - 1)]
        ]
        return {
            "layer": self.layer,
            "tau": self._how.tau,
            "selected": steps,
            "selected_per_step": [len(step) for step in steps],
        }

    def _history(self) -> Tensor:
        """bool (steps, B, L), fetched from the device once."""
        if len(self._fetched) < len(self._selected):
            self._fetched = torch.stack(self._selected).cpu()
        return self._fetched

    def _check(self, call: taps.AttentionCall) -> None:
        rows, length = self._prompt.image.shape
        if call.query.shape[0] != rows:
            raise CapabilityError(f"sparc cannot steer beams: {rows} rows became {call.query.shape[0]}")
        if self._average is not None and call.layer == 0 and call.query.shape[2] > 1:
            raise CapabilityError(
                f"sparc steers one token at a time; {call.query.shape[2]} arrived at once (assisted decoding)"
            )
        if call.key.shape[2] < length:
            raise CapabilityError(
                f"sparc scales the whole prompt's cache; this one holds {call.key.shape[2]} of {length} "
                "tokens (a sliding cache, or a prompt in pieces)"
            )

    def _read(self, call: taps.AttentionCall) -> None:
        image = self._prompt.image
        row = call.row[:, :, : image.shape[1]]
        if self._how.whole_prompt:
            row = row.to(call.query.dtype)  # as released
        looked = row.mean(dim=1)
        if self._average is None:  # a prompt whose rest is one token is still a prompt
            self._average = looked
            self._gain = call.row.new_ones(image.shape)
            # A token that is not an image's is compared with NaN, and so never selected.
            self._tau = looked.new_full(image.shape, self._how.tau).masked_fill(~image, torch.nan)
            return
        change = (looked - self._average) / self._average
        if not self._how.whole_prompt:
            change = change.nan_to_num(0.0, torch.inf, -torch.inf)
        hit = change >= self._tau
        if self._how.select == "all":
            hit = image
        elif self._how.select == "random":
            hit = self._shuffled(hit)
        self._hit = hit
        self._selected.append(hit)
        self._average = (1 - self._how.beta) * looked + self._how.beta * self._average

    def _shuffled(self, hit: Tensor) -> Tensor:
        """As many per row, anywhere; a row draws from its own generator, whatever its batch."""
        drawn = torch.zeros_like(hit)
        for row, (taken, (draw, places)) in enumerate(zip(hit.sum(dim=1).tolist(), self._draws, strict=True)):
            drawn[row, places[torch.randperm(len(places), generator=draw)[:taken].to(places.device)]] = True
        return drawn


def _reading(prompt: taps.Prompt) -> int:
    """The layer nearest 5/8 of the depth, the released 20 of 32, that sees the whole prompt."""
    layers = [layer for layer in range(prompt.depth) if layer not in prompt.windows]
    return min(layers, key=lambda layer: abs(layer - prompt.depth * 5 // 8))
