"""SPARC's state during one generation: the moving average, the selection, and the scaled cache.

Knows attention calls and where image tokens stand. Must not know models, prompts or pictures.
One row of one layer is read per step, what is selected synchronises with the device once per step, and
each layer then pays for gathering, scaling and putting back the selected values alone
(`benchmarks/whitebox.py` says what that costs).
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
        depth = prompt.depth
        self.layer = depth * 5 // 8 if steering.layer is None else steering.layer
        self._first, self._last = (0, depth - 1) if steering.layers is None else steering.layers
        if self.layer >= depth or self._first >= depth:
            wrong = self.layer if self.layer >= depth else self._first
            raise CapabilityError(f"layer {wrong} does not exist: this decoder has layers 0 to {depth - 1}")
        counts = prompt.image.sum(dim=1)
        widest = int(counts.max())
        # Image positions first, in their order; the rest of a shorter row's table is not valid.
        order = torch.argsort((~prompt.image).int(), dim=1, stable=True)
        self._columns = order[:, :widest]
        self._valid = torch.arange(widest, device=counts.device) < counts[:, None]
        # A token that is not valid is compared with NaN, and so never selected.
        self._tau = torch.where(self._valid, steering.tau, torch.nan)
        self._average: Tensor | None = None
        self._row: Tensor | None = None  # of the newest token, in `layer`
        self._hit: Tensor | None = None  # of the newest step
        self._vectors: Tensor | None = None  # what this step scales, in a cache seen as (B * heads * K, dim)
        self._selected: list[Tensor] = []
        self._draws = [torch.Generator().manual_seed(steering.seed) for _ in range(len(counts))]

    def before(self, call: taps.AttentionCall) -> None:
        self._check(call)
        if call.layer == 0 and self._hit is not None:
            self._vectors = self._selection(self._hit, call.value.shape)
        if self._vectors is not None and self._first <= call.layer <= self._last:
            values = call.value.view(-1, call.value.shape[-1])
            scaled = values.index_select(0, self._vectors).mul_(self._how.alpha)
            values.index_copy_(0, self._vectors, scaled)
        if call.layer == self.layer:
            self._read(call)

    def weights(self, call: taps.AttentionCall) -> Tensor | None:
        """What was read of a decoded token's attention need not be made twice."""
        return self._row if call.layer == self.layer else None

    def sees(self, call: taps.AttentionCall) -> Tensor | None:
        """The released prefill: every token of the prompt sees all of it."""
        if not self._how.whole_prompt or call.query.shape[2] == 1:
            return None
        seen = self._prompt.seen.bool()
        unwritten = call.key.shape[2] - seen.shape[1]
        return torch.nn.functional.pad(seen, (0, unwritten))[:, None, None]

    def trace(self, row: int, tokens: int) -> dict[str, Json]:
        """Of a row that decoded so many tokens: what was selected as each but the first was chosen."""
        steps = [mask[row].nonzero().flatten().tolist() for mask in self._selected[: max(0, tokens - 1)]]
        return {
            "layer": self.layer,
            "tau": self._how.tau,
            "selected": steps,
            "selected_per_step": [len(step) for step in steps],
        }

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
        row = taps.last_row(call.query, call.key, call.mask, call.scaling)
        self._row = row if call.query.shape[2] == 1 else None
        if self._how.whole_prompt:
            row = row.to(call.query.dtype)  # as released
        looked = row.mean(dim=1).gather(1, self._columns)
        if self._average is None:  # a prompt whose rest is one token is still a prompt
            self._average, self._tau = looked, self._tau.to(looked.dtype)
            return
        change = (looked - self._average) / self._average
        if not self._how.whole_prompt:
            change = change.nan_to_num(0.0, torch.inf, -torch.inf)
        hit = change >= self._tau
        if self._how.select == "all":
            hit = self._valid
        elif self._how.select == "random":
            hit = self._shuffled(hit)
        self._hit = hit
        self._selected.append(hit)
        self._average = (1 - self._how.beta) * looked + self._how.beta * self._average

    def _selection(self, hit: Tensor, cache: torch.Size) -> Tensor | None:
        """Where the selected values lie in a contiguous cache of shape (B, kv heads, K, dim); None: none."""
        _, heads, length, _ = cache
        rows, places = hit.nonzero(as_tuple=True)
        if not len(rows):
            return None
        lanes = rows[:, None] * heads + torch.arange(heads, device=hit.device)
        return torch.add(self._columns[rows, places][:, None], lanes, alpha=length).flatten()

    def _shuffled(self, hit: Tensor) -> Tensor:
        """As many per row, anywhere; a row draws from its own generator, whatever its batch."""
        drawn = torch.zeros_like(hit)
        for row, (taken, valid) in enumerate(
            zip(hit.sum(dim=1).tolist(), self._valid.sum(dim=1).tolist(), strict=True)
        ):
            places = torch.randperm(valid, generator=self._draws[row])[:taken]
            drawn[row, places.to(hit.device)] = True
        return drawn
