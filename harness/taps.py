"""Attention taps: look at a decoder's attention while it runs, without patching a forward.

The one place that touches transformers' internals, and it does so through their public extension
point: `register()` adds an attention kernel called "fovea" that runs SDPA (for one token on a CPU,
cheaper sums that give the same), and around it the taps that are active in this context may look, weigh
what is looked at, or stop the forward. A checkpoint opts in with
`attn_implementation={"text_config": KERNEL, "vision_config": "sdpa"}`; its vision tower stays plain.
Nothing has to be restored but a context variable, so an exception leaves the model as it was.

It knows layers, queries, keys and masks, and which tokens are an image's. It must not know
pictures, families' layouts, methods or papers.
Importing it imports torch; importing transformers waits for `register()`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from harness.types import Json, Probe

KERNEL = "fovea"
"""The name of the kernel in transformers' registry. (It must not contain flash, flex or sdpa.)"""


@dataclass(frozen=True)
class AttentionCall:
    """One layer's attention, about to run. B rows, Q new tokens, K tokens in all.

    layer: 0-based. query: (B, heads, Q, dim), positions applied. key, value: (B, kv heads, K, dim);
    with a dynamic or static cache they *are* the cached tensors, not repeated for grouped queries.
    mask: bool (B, 1, Q, K), True where a token may look; None is causal. scaling: of the logits.
    """

    layer: int
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    scaling: float

    @cached_property
    def row(self) -> Tensor:
        """The last token's attention: `last_row`, made once for all who look."""
        return last_row(self.query, self.key, self.mask, self.scaling)


class Tap:
    """Something that looks at attention calls; this one does nothing."""

    def before(self, call: AttentionCall) -> None:
        """Called at every layer before its attention runs."""

    def sees(self, call: AttentionCall) -> Tensor | None:
        """A mask, broadcastable to (B, 1, Q, K), in place of the call's; None keeps that one."""
        return None

    def gains(self, call: AttentionCall) -> Tensor | None:
        """float32 or float64 (B, K), by which each token's weight is multiplied after the softmax; None
        leaves it as it is."""
        return None

    def after(self, call: AttentionCall, output: Tensor) -> Tensor | None:
        """Given what the attention gave, (B, Q, heads, dim), what to use in its place; None keeps it."""
        return None

    def trace(self, row: int, tokens: int) -> dict[str, Json]:
        """What is worth keeping of a batch's row that decoded so many tokens."""
        return {}


@dataclass(frozen=True, eq=False)
class Prompt:
    """Where things stand in a batch's prompts: B rows of L tokens, padded on the left.

    image: bool (B, L), True at image tokens. seen: (B, L), 0 at padding. depth: the decoder's layers.
    windows: those of them (0-based) whose tokens see only what is near.
    """

    image: Tensor
    seen: Tensor
    depth: int
    windows: frozenset[int] = frozenset()


@runtime_checkable
class Steering(Probe, Protocol):
    """A probe that brings its own tap, for exactly one generation of a batch.

    whole_prompt: the prompt must pass in one forward, so no beginning may be shared with other rows.
    """

    @property
    def whole_prompt(self) -> bool: ...

    def tap(self, prompt: Prompt) -> Tap: ...


class StopForward(Exception):
    """Raised inside a forward by a tap that needs nothing above its layer; `stoppable` swallows it."""


_ACTIVE: ContextVar[tuple[Tap, ...]] = ContextVar("fovea_taps", default=())


@contextlib.contextmanager
def active(*taps: Tap) -> Iterator[None]:
    """Within the block, and in this context only, the taps see every call of the "fovea" kernel.

    Blocks nest: the inner taps come after the outer ones. A new thread starts without taps.
    """
    token = _ACTIVE.set(_ACTIVE.get() + taps)
    try:
        yield
    finally:
        _ACTIVE.reset(token)


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """A forward in this block may be ended by a tap; what the tap has read is then all there is."""
    with contextlib.suppress(StopForward):
        yield


class StopTap(Tap):
    """Ends the forward at `layer` (0-based), whose keys and values are in the cache by then."""

    def __init__(self, layer: int) -> None:
        self.layer = layer

    def before(self, call: AttentionCall) -> None:
        if call.layer == self.layer:
            raise StopForward


class RowTap(Tap):
    """Reads one row of attention: how the last token's heads, averaged, look at all tokens before it.

    layers: which ones (0-based). columns: LongTensor (B, N) of key positions to keep, or None for all.
    stop: end the forward once the highest of `layers` is read; its own attention is not computed.
    `rows` then maps a layer to a float32 tensor (B, N), still on the device: of the first forward that
    passes the layer, so that a generation's is its prompt's. No Q x K matrix is made.
    """

    def __init__(self, layers: Iterable[int], *, columns: Tensor | None = None, stop: bool = False) -> None:
        self.layers = frozenset(layers)
        self.columns = columns
        self.stop = stop
        self.rows: dict[int, Tensor] = {}

    def before(self, call: AttentionCall) -> None:
        if call.layer not in self.layers or call.layer in self.rows:
            return
        row = call.row.mean(dim=1)
        self.rows[call.layer] = row if self.columns is None else row.gather(1, self.columns)
        if self.stop and call.layer == max(self.layers):
            raise StopForward


class GradientTap(Tap):
    """Makes the last token's attention weights something that a gradient can be taken of.

    To each layer's weights w it adds zeros z, so that the output becomes (w + z) V: nothing changes, and
    the gradient of anything above by z is its gradient by w, whether w itself belongs to a graph or not.
    layers: which ones (0-based). rows, zeros: by layer, w and z, float32 (B, heads, K). Run the forward
    under `torch.enable_grad()`.
    """

    def __init__(self, layers: Iterable[int]) -> None:
        self.layers = frozenset(layers)
        self.rows: dict[int, Tensor] = {}
        self.zeros: dict[int, Tensor] = {}

    def after(self, call: AttentionCall, output: Tensor) -> Tensor | None:
        if call.layer not in self.layers:
            return None
        row = call.row.detach()
        zeros = torch.zeros_like(row, requires_grad=True)
        rows, heads, length = row.shape
        kv_heads = call.value.shape[1]
        grouped = zeros.view(rows, kv_heads, heads // kv_heads, length)
        nothing = torch.matmul(grouped, call.value[:, :, :length].float())  # (B, kv, group, dim)
        nothing = nothing.reshape(rows, 1, heads, -1).to(output.dtype)
        self.rows[call.layer], self.zeros[call.layer] = row, zeros
        return torch.cat([output[:, :-1], output[:, -1:] + nothing], dim=1)


def last_row(query: Tensor, key: Tensor, mask: Tensor | None, scaling: float) -> Tensor:
    """The attention weights of the last query: (B, heads, K), each row of K summing to 1.

    Shapes as in `AttentionCall`. float32, or float64 of such a model. Grouped queries share their key head
    without repeating it. Padding on the left is whatever the mask hides.

    >>> row = last_row(torch.zeros(1, 2, 3, 4), torch.zeros(1, 1, 3, 4), None, 0.5)
    >>> row.shape, float(row[0, 0, 0])
    (torch.Size([1, 2, 3]), 0.3333333432674408)
    """
    rows, heads, length, dim = query.shape
    kv_heads = key.shape[1]
    if mask is None and key.shape[2] > length > 1:
        # A prefill into an empty static cache: transformers' SDPA cuts the unwritten keys off as well.
        key = key[:, :, :length]
    exact = torch.promote_types(query.dtype, torch.float32)
    last = query[:, :, -1].reshape(rows, kv_heads, heads // kv_heads, dim).to(exact)
    # In this order a CPU reads the keys once along their rows: a quarter to a third cheaper.
    scores = torch.matmul(key.to(exact), last.transpose(2, 3)).transpose(2, 3) * scaling
    scores = scores.reshape(rows, heads, key.shape[2])
    if mask is not None:
        seen = mask[:, :, -1, : key.shape[2]]
        hidden = torch.finfo(scores.dtype).min
        scores = scores.masked_fill(~seen, hidden) if seen.dtype == torch.bool else scores + seen
    return torch.softmax(scores, dim=-1)


def register() -> None:
    """Add the kernel to transformers' registry. An adapter calls this before it loads a checkpoint.

    The mask goes with it: a kernel without a registered mask function would get none.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

    AttentionInterface.register(KERNEL, _attention)
    AttentionMaskInterface.register(KERNEL, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])


def _attention(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **options: Any,
) -> tuple[Tensor, Tensor | None]:
    """transformers' signature of an attention kernel; a kernel of its own where that is cheaper, or SDPA."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    call = AttentionCall(module.layer_idx, query, key, value, attention_mask, scale)
    taps = _ACTIVE.get()
    for tap in taps:
        tap.before(call)
    for tap in taps:
        if (mask := tap.sees(call)) is not None:
            call = replace(call, mask=mask)
    gains = [gain for tap in taps if (gain := tap.gains(call)) is not None]
    weights: Tensor | None = None
    if _small(query):
        output = _of_one(call, gains)
    else:
        from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

        for gain in gains:  # in the gain's precision, and rounded once
            value = torch.mul(value, gain[:, None, :, None], out=torch.empty_like(value))
        output, weights = ALL_ATTENTION_FUNCTIONS["sdpa"](
            module, query, key, value, call.mask, scaling=scaling, dropout=dropout, **options
        )
    for tap in taps:
        if (changed := tap.after(call, output)) is not None:
            output = changed
    return output, weights


def _small(query: Tensor) -> bool:
    """One new token on a CPU: SDPA's blocks are made for many (`benchmarks/whitebox.py`)."""
    full = query.dtype in (torch.float32, torch.float64)
    return query.shape[2] == 1 and query.device.type == "cpu" and full


def _of_one(call: AttentionCall, gains: Iterable[Tensor]) -> Tensor:
    """The attention of one new token, (B, 1, heads, dim), as a kernel gives it."""
    row = call.row
    for gain in gains:
        row = row * gain[:, None]
    rows, heads, length = row.shape
    kv_heads = call.value.shape[1]
    grouped = row.view(rows, kv_heads, heads // kv_heads, length)
    return torch.matmul(grouped, call.value).reshape(rows, 1, heads, -1)
