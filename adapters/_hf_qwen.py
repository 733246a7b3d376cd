"""The Qwen-VL layout: a picture keeps its shape, and its tokens are counted in two directions.

Knows how Qwen's image processor sizes and cuts a picture, and how its decoder counts positions. Must not
know requests, templates or methods.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from adapters._hf_layout import Features, Layout, Span, View, sliding_gap
from adapters._hf_rows import Row
from harness.errors import PictureError
from harness.pictures import Picture
from harness.types import Box, ImportanceMap


class QwenVL(Layout):
    """Qwen2-VL and Qwen2.5-VL: one token for 28 x 28 pixels of the resized picture, one grid over all of it.

    The picture is resized to multiples of 28 with about its own shape, between the image processor's
    limits (4 to 16,384 tokens for those on the hub; `max_pixels` lowers the upper one). Nothing is cut
    off: the grid covers the whole picture. A picture more than 200 times as long as wide is refused, as
    the image processor refuses it. Maps are of layer 22 of Qwen2.5-VL-3B's 36 (mllms_know:
    qwen2_5_methods.py), of the middle layer elsewhere. That code resizes twice, since qwen_vl_utils rounds
    a picture's sides to multiples of 28 before the image processor sees it: under its limit of 256 tokens
    a fifth of all shapes get another grid than from the image processor alone, as here.

    A token has three positions (in time, down and across). They depend on every picture before it, so they
    are counted over whole rows and passed along, rather than left to the offset that the model remembers
    from its last prompt.
    """

    limited: ClassVar[bool] = True

    def __init__(self, weights: Any, processor: Any, context: int | None) -> None:
        super().__init__(weights, processor, context)
        pixels = processor.image_processor
        self._patch = int(pixels.patch_size)
        self._merge = int(pixels.merge_size)

    def _grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of a picture's tokens."""
        limits, factor = self.processor.image_processor.size, self._patch * self._merge
        width, height = size
        try:
            rows, columns = smart_resize(height, width, factor, limits.shortest_edge, limits.longest_edge)
        except ValueError as error:
            raise PictureError(f"a picture of {width} x {height} pixels: {error}", "shape") from None
        return rows // factor, columns // factor

    def span(self, size: tuple[int, int]) -> Span:
        rows, columns = self._grid(size)
        cells = np.arange(rows * columns).reshape(rows, columns)
        return Span((self.image_token,) * cells.size, (View(cells, _whole(size)),))

    def pixels(self, picture: Picture) -> Patches:
        prepared = self.processor.image_processor(images=[picture.open()], return_tensors="pt")
        return Patches(prepared["pixel_values"], prepared["image_grid_thw"])

    def encode(self, pixels: Sequence[Patches]) -> list[Features]:
        encoded = self._encode(pixels)
        return [(tokens,) for tokens in encoded.pooler_output]

    def _encode(self, pixels: Sequence[Patches]) -> Any:
        device = self.weights.device
        values = torch.cat([one.values.to(device) for one in pixels])
        grids = torch.cat([one.grid for one in pixels]).to(device)
        return self.weights.get_image_features(pixel_values=values, image_grid_thw=grids, return_dict=True)

    def positions(self, rows: Sequence[Row], ids: Tensor, mask: Tensor) -> Tensor:
        """(4, B, L): the place in the row, which orders the mask, and the three that the decoder turns by."""
        counted = np.zeros((4, *ids.shape), dtype=np.int64)
        for place, row in enumerate(rows):
            pictures = [
                (start, self._grid(picture.size))
                for start, picture in zip(row.starts, row.pictures, strict=True)
            ]
            counted[:, place, ids.shape[1] - len(row.tokens) :] = count_positions(len(row.tokens), pictures)
        return torch.from_numpy(counted).to(ids.device)

    def differentiable(self, pixels: Patches) -> Patches:
        return replace(pixels, values=super().differentiable(pixels.values))

    def leaf(self, pixels: Patches) -> Tensor:
        return pixels.values

    def plane(self, gradient: Tensor, picture: Picture) -> ImportanceMap:
        """On the resized picture's pixels; each stands in a patch twice, as two frames of a still film."""
        rows, columns = self._grid(picture.size)
        merge, patch = self._merge, self._patch
        frames = self.processor.image_processor.temporal_patch_size
        whole = gradient.float().view(rows, columns, merge, merge, -1, frames, patch, patch)
        norm = whole.sum(dim=5).norm(dim=4).permute(0, 2, 4, 1, 3, 5)
        norm = norm.reshape(rows * merge * patch, columns * merge * patch)
        return ImportanceMap(norm.cpu().numpy(), _whole(picture.size))


@dataclass(frozen=True, eq=False)
class Patches:
    """A picture's patches (P, channels * frames * side * side).

    grid: (1, 3), how many frames, rows and columns of them.
    """

    values: Tensor
    grid: Tensor


def count_positions(length: int, pictures: Sequence[tuple[int, tuple[int, int]]]) -> npt.NDArray[np.int64]:
    """(4, length): each token's place, and its position in time, down and across.

    pictures: by their first token, the (rows, columns) of their tokens. What follows a picture is counted
    on from its longer side.

    >>> count_positions(6, [(1, (1, 3))])
    array([[0, 1, 2, 3, 4, 5],
           [0, 1, 1, 1, 4, 5],
           [0, 1, 1, 1, 4, 5],
           [0, 1, 2, 3, 4, 5]])
    """
    counted = np.tile(np.arange(length), (4, 1))
    for start, (rows, columns) in pictures:
        end = start + rows * columns
        first = counted[1, start]
        counted[1:, end:] -= rows * columns - max(rows, columns)
        counted[1, start:end] = first
        counted[2:, start:end] = first + np.indices((rows, columns)).reshape(2, -1)
    return counted


def _whole(size: tuple[int, int]) -> Box:
    return (0.0, 0.0, float(size[0]), float(size[1]))


layout = QwenVL


def gap(config: Any) -> str:
    """Why a config's image tokens stand where this file does not know; empty if they do not."""
    return sliding_gap(config)
