"""The LLaVA-NeXT layout: a tile of the whole picture, then a grid of finer tiles that keeps its shape.

Knows LLaVA-NeXT's tiles and how its model puts their features together. Must not know rows, requests or
methods.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.image_processing_utils import select_best_resolution

from adapters._hf_layout import Features, Layout, Span, View, merged, sliding_gap
from harness.pictures import Picture
from harness.types import Box, ImportanceMap


@dataclass(frozen=True)
class Canvas:
    """Where a picture lies on the canvas that its finer tiles are cut from; (rows, columns) throughout.

    tiles: of the canvas. shape: of the canvas in pixels. content: the picture's pixels on it. corner: the
    first of them; the rest is black padding around the middle.
    """

    tiles: tuple[int, int]
    shape: tuple[int, int]
    content: tuple[int, int]
    corner: tuple[int, int]

    @classmethod
    def of(cls, size: tuple[int, int], side: int, pins: Sequence[Sequence[int]]) -> Canvas:
        """For a picture of `size` (width, height): the canvas among `pins` that shows most of it.

        >>> Canvas.of((640, 480), 336, [[336, 672], [672, 336], [672, 672]])
        Canvas(tiles=(2, 2), shape=(672, 672), content=(504, 672), corner=(84, 0))
        """
        width, height = size
        rows, columns = select_best_resolution((height, width), list(pins))
        by_width, by_height = columns / width, rows / height
        if by_width < by_height:
            content = (min(math.ceil(height * by_width), rows), columns)
        else:
            content = (rows, min(math.ceil(width * by_height), columns))
        corner = ((rows - content[0]) // 2, (columns - content[1]) // 2)
        return cls((rows // side, columns // side), (rows, columns), content, corner)


class LlavaNext(Layout):
    """LLaVA-NeXT (1.6): 24 x 24 tokens of the squashed picture, then those of a grid of finer tiles.

    The finer tiles are cut from a canvas that the picture is fitted into; the model drops what is padding,
    in whole patches, and ends every row of the grid with a newline token: 576 to 2,928 tokens in all. A
    picture has two views: the grid, which covers it but for half a patch more or less at two sides, and
    the first tile, which covers it whole. A picture so narrow that no patch of the canvas is left has the
    second alone (and newline tokens, if it is a tall one). Newline tokens are image tokens to a steering
    method, and in no map. A map is of the decoder's middle layer by default: mllms_know has none for it.
    """

    def __init__(self, weights: Any, processor: Any, context: int | None) -> None:
        super().__init__(weights, processor, context)
        vision = weights.config.vision_config
        self._patch = int(vision.patch_size)
        self._side = int(vision.image_size)
        self._pins = weights.config.image_grid_pinpoints

    def _canvas(self, size: tuple[int, int]) -> Canvas:
        return Canvas.of(size, self._side, self._pins)

    def span(self, size: tuple[int, int]) -> Span:
        across = self._side // self._patch
        whole = View(np.arange(across * across).reshape(across, across), _all_of(size))
        canvas = self._canvas(size)
        rows, columns = canvas.tiles[0] * across, canvas.tiles[1] * across
        cut_rows, cut_columns = _unpadding(size, (rows, columns))
        rows, columns = rows - 2 * cut_rows, columns - 2 * cut_columns
        tokens = (self.image_token,) * (whole.cells.size + rows * (columns + 1))
        if not rows * columns:
            return Span(tokens, (whole,))
        lines = np.arange(whole.cells.size, len(tokens)).reshape(rows, columns + 1)
        x_scale, y_scale = size[0] / canvas.content[1], size[1] / canvas.content[0]
        left = (cut_columns * self._patch - canvas.corner[1]) * x_scale
        top = (cut_rows * self._patch - canvas.corner[0]) * y_scale
        right, bottom = left + columns * self._patch * x_scale, top + rows * self._patch * y_scale
        return Span(tokens, (View(lines[:, :-1], (left, top, right, bottom)), whole))

    def pixels(self, picture: Picture) -> Tiles:
        prepared = self.processor.image_processor(images=[picture.open()], return_tensors="pt")
        return Tiles(prepared["pixel_values"][0], prepared["image_sizes"])

    def encode(self, pixels: Sequence[Tiles]) -> list[Features]:
        tiles = torch.cat([one.tiles for one in pixels]).to(self.weights.device, self.weights.dtype)
        sizes = torch.cat([one.size for one in pixels])
        encoded = self.weights.get_image_features(pixel_values=tiles, image_sizes=sizes, return_dict=True)
        return [(features,) for features in encoded.pooler_output]

    def differentiable(self, pixels: Tiles) -> Tiles:
        return replace(pixels, tiles=super().differentiable(pixels.tiles))

    def leaf(self, pixels: Tiles) -> Tensor:
        return pixels.tiles

    def plane(self, gradient: Tensor, picture: Picture) -> ImportanceMap:
        """On the canvas' pixels that show the picture; those of the first tile are shared out by area."""
        norm = gradient.float().norm(dim=1).cpu().numpy()
        canvas = self._canvas(picture.size)
        (rows, columns), (top, left) = canvas.content, canvas.corner
        places = np.arange(norm.size).reshape(norm.shape)
        grid = places[1:].reshape(*canvas.tiles, self._side, self._side).swapaxes(1, 2).reshape(canvas.shape)
        seen = grid[top : top + rows, left : left + columns]
        everything = _all_of(picture.size)
        return merged([View(seen, everything), View(places[0], everything)], norm.ravel())


@dataclass(frozen=True, eq=False)
class Tiles:
    """A picture's tiles (T, 3, side, side), and its size (1, 2) as (height, width)."""

    tiles: Tensor
    size: Tensor


def _all_of(size: tuple[int, int]) -> Box:
    return (0.0, 0.0, float(size[0]), float(size[1]))


def _unpadding(size: tuple[int, int], grid: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of patches that the model drops at either end of a grid (rows, columns).

    The sums are LLaVA-NeXT's own, with its roundings: at most one of the two is not 0.

    >>> _unpadding((640, 480), (48, 48))
    (6, 0)
    """
    (width, height), (rows, columns) = size, grid
    if width / height > columns / rows:
        return (rows - int(round(height * (columns / width), 7))) // 2, 0
    return 0, (columns - int(round(width * (rows / height), 7))) // 2


layout = LlavaNext


def gap(config: Any) -> str:
    """Why a config's image tokens stand where this file does not know; empty if they do not."""
    tower, kept = config.vision_config.model_type, config.vision_feature_select_strategy
    if (tower, kept) != ("clip_vision_model", "default"):
        return f"this LLaVA-NeXT's tower is {tower} (features: {kept}); a known layout has CLIP's patches"
    return sliding_gap(config)
