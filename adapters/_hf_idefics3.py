"""The Idefics3 and SmolVLM layout: a picture squeezed onto tagged tiles, and once more onto a single one.

Knows Idefics3's tiles and the tags between them. Must not know rows, requests or methods.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers.models.idefics3.image_processing_pil_idefics3 import MAX_IMAGE_SIZE

from adapters._hf_layout import Features, Layout, Span, View, merged, sliding_gap
from harness.pictures import Picture
from harness.types import ImportanceMap


class Idefics3(Layout):
    """Idefics3 and SmolVLM: each tile, and the whole picture once more, gives the same few tokens.

    A picture is resized to a given longer side, then squeezed onto whole tiles: the grid of all tiles'
    tokens is the first view, the last tile's the second, and both cover the picture whole. Where one tile
    is enough, there is only that one. Between tiles stand tags, which are no image tokens. Idefics3-8B:
    4 tiles along the longer side, 13 x 13 tokens each, 845 to 2,873 in all beside the tags. A map is of
    the decoder's middle layer by default: mllms_know has none for it.
    """

    def __init__(self, weights: Any, processor: Any, context: int | None) -> None:
        super().__init__(weights, processor, context)
        self._across = math.isqrt(processor.image_seq_len)
        self._spread = functools.cache(self._tagged)

    def span(self, size: tuple[int, int]) -> Span:
        rows, columns = self._tiles(size)
        tokens, places = self._spread(rows, columns)
        return Span(tokens, _views(places, (rows, columns), size))

    def _tagged(self, rows: int, columns: int) -> tuple[tuple[int, ...], npt.NDArray[np.int64]]:
        """Tokens of a picture of so many tiles, and where each tile's stand: (tiles, across, across)."""
        text = self.processor.replace_image_token({"rows": [[rows]], "cols": [[columns]]}, 0)
        tokens = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        places = np.flatnonzero(np.array(tokens) == self.image_token)
        return tuple(tokens), places.reshape(-1, self._across, self._across)

    def _tiles(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of tiles that a picture is cut into; (0, 0) if it is not cut."""
        image_processor = self.processor.image_processor
        side = image_processor.max_image_size["longest_edge"]
        if not image_processor.do_image_splitting:
            return 0, 0
        width, height = _scaled(*size, image_processor.size.longest_edge)
        width, height = (width, height + height % 2) if size[0] >= size[1] else (width + width % 2, height)
        width, height = max(width, 1), max(height, 1)
        if max(width, height) > MAX_IMAGE_SIZE:
            width, height = _scaled(width, height, MAX_IMAGE_SIZE)
            width, height = max(width, 1), max(height, 1)
        width, height = _scaled(width, height, math.ceil(max(width, height) / side) * side)
        rows, columns = math.ceil(height / side), math.ceil(width / side)
        return (rows, columns) if rows * columns > 1 else (0, 0)

    def pixels(self, picture: Picture) -> Tensor:
        """Tiles (T, 3, side, side), the whole picture last."""
        prepared = self.processor.image_processor(images=[picture.open()], return_tensors="pt")
        tiles: Tensor = prepared["pixel_values"][0]
        return tiles

    def encode(self, pixels: Sequence[Tensor]) -> list[Features]:
        tiles = torch.cat(list(pixels)).to(self.weights.device, self.weights.dtype)
        encoded = self.weights.get_image_features(pixel_values=tiles[None], return_dict=True)
        [features] = encoded.pooler_output
        return [(own,) for own in features.split([len(one) * self._across**2 for one in pixels])]

    def plane(self, gradient: Tensor, picture: Picture) -> ImportanceMap:
        """On the pixels of the tiles side by side; those of the last one are shared out by area."""
        norm = gradient.float().norm(dim=1).cpu().numpy()
        places = np.arange(norm.size).reshape(norm.shape)
        return merged(_views(places, self._tiles(picture.size), picture.size), norm.ravel())


def _views(tiles: npt.NDArray[np.int64], grid: tuple[int, int], size: tuple[int, int]) -> tuple[View, ...]:
    """Of tiles (T, side, side): those of the grid (rows, columns) joined, if there is one, and the last.

    >>> [view.cells.tolist() for view in _views(np.arange(12).reshape(3, 2, 2), (1, 2), (640, 480))]
    [[[0, 1, 4, 5], [2, 3, 6, 7]], [[8, 9], [10, 11]]]
    """
    everything = (0.0, 0.0, float(size[0]), float(size[1]))
    whole = View(tiles[-1], everything)
    if not any(grid):
        return (whole,)
    rows, columns = (count * tiles.shape[1] for count in grid)
    lines = tiles[:-1].reshape(*grid, *tiles.shape[1:]).swapaxes(1, 2)
    return (View(lines.reshape(rows, columns), everything), whole)


def _scaled(width: int, height: int, longest: int) -> tuple[int, int]:
    """(width, height) with the longer side as given, the other one rounded down.

    >>> _scaled(640, 480, 1456)
    (1456, 1092)
    """
    if width >= height:
        return longest, int(longest / (width / height))
    return int(longest * (width / height)), longest


layout = Idefics3


def gap(config: Any) -> str:
    """Why a config's image tokens stand where this file does not know; empty if they do not."""
    return sliding_gap(config)
