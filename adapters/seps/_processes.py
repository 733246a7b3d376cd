"""Several processes that train one model, as `accelerate launch` starts them; or the one that is alone.

Knows ranks and tensors. Must not know: models, losses. All processes compute the whole loss of the whole
batch: each encodes its share, and gathers the words and patches of the others.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor


@dataclass(frozen=True)
class Processes:
    """Those that train together, as `accelerate launch` started them, and which of them this is."""

    accelerator: Any
    rank: int
    world: int

    @property
    def first(self) -> bool:
        return self.rank == 0

    @property
    def device(self) -> torch.device:
        return cast(torch.device, self.accelerator.device)

    def all_finite(self, value: Tensor) -> bool:
        """Whether a number is finite for every process."""
        good = torch.isfinite(value.detach()).float()
        if self.world > 1:
            torch.distributed.all_reduce(good, torch.distributed.ReduceOp.MIN)
        return bool(good)

    def sum(self, matrix: Tensor) -> Tensor:
        if self.world > 1:
            matrix = matrix.to(self.device)
            torch.distributed.all_reduce(matrix)
        return matrix.cpu()

    def longest(self, length: int) -> int:
        if self.world == 1:
            return length
        found = torch.tensor(length, device=self.device)
        torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX)
        return int(found)

    def gather(self, parts: Tensor) -> Tensor:
        """All processes' rows, in order of their ranks, with gradient. Rows are of one shape everywhere."""
        return (
            parts
            if self.world == 1
            else cast(Tensor, cast(Any, _Gathered).apply(parts, self.rank, self.world))
        )


@contextlib.contextmanager
def processes(device: str) -> Iterator[Processes]:
    from accelerate import (  # type: ignore[import-untyped]
        Accelerator,
        DistributedDataParallelKwargs,
    )

    # Parameters without a gradient: pooling layers, the score network under mask=topk, a detached Swin.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    accelerator = Accelerator(cpu=device == "cpu", mixed_precision="no", kwargs_handlers=[unused])
    yield Processes(accelerator, accelerator.process_index, accelerator.num_processes)
    if accelerator.num_processes > 1:
        accelerator.end_training()


class _Gathered(torch.autograd.Function):
    """Rows of all processes. Every process computes the same loss of them, so the gradient of one's own rows,
    summed over processes, is that of this process times their number; DDP's mean then gives the whole."""

    @staticmethod
    def forward(ctx: Any, parts: Tensor, rank: int, world: int) -> Tensor:
        ctx.place = (rank, world, len(parts))
        found = [torch.empty_like(parts) for _ in range(world)]
        torch.distributed.all_gather(found, parts.contiguous())
        return torch.cat(found)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        rank, world, rows = ctx.place
        return gradients[0][rank * rows : (rank + 1) * rows] * world, None, None
