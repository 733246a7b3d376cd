"""The LLaVA-1.5 layout: one grid of tokens per picture, of the pixels that its image processor keeps.

Knows LLaVA-1.5's tower and image processor. Must not know rows, requests or methods.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from adapters._hf_layout import Features, Layout, Span, View, sliding_gap
from harness.pictures import Picture
from harness.types import Box, ImportanceMap


@dataclass(frozen=True)
class Framing:
    """What an image processor does to a picture's frame, in this order.

    pad: to a centred square. resize: an int is the shortest edge, a pair is (height, width). crop: the
    centre (height, width).
    """

    pad: bool = False
    resize: int | tuple[int, int] | None = None
    crop: tuple[int, int] | None = None

    @classmethod
    def of(cls, image_processor: Any) -> Framing:
        """As a transformers image processor is configured."""
        size, crop = image_processor.size, None
        if getattr(image_processor, "do_center_crop", False):
            crop = (image_processor.crop_size.height, image_processor.crop_size.width)
        return cls(
            pad=bool(getattr(image_processor, "do_pad", False)),
            resize=(size.shortest_edge or (size.height, size.width)) if image_processor.do_resize else None,
            crop=crop,
        )

    def rectangle(self, size: tuple[int, int]) -> Box:
        """The pixels of a picture of `size` (width, height) that the model sees.

        LLaVA-1.5 resizes the shortest edge and crops the centre: the sides are invisible to it.

        >>> Framing(resize=336, crop=(336, 336)).rectangle((640, 480))
        (80.0, 0.0, 560.0, 480.0)
        >>> Framing(resize=(96, 96)).rectangle((640, 480))
        (0.0, 0.0, 640.0, 480.0)
        >>> Framing(pad=True, resize=336, crop=(336, 336)).rectangle((640, 480))
        (0.0, -80.0, 640.0, 560.0)
        """
        left, top, (width, height) = 0, 0, size
        if self.pad:
            side = max(size)
            left, top = -((side - width) // 2), -((side - height) // 2)
            width = height = side
        resized_width, resized_height = self._resized(width, height)
        if self.crop is None:
            return (float(left), float(top), float(left + width), float(top + height))
        x_scale, y_scale = width / resized_width, height / resized_height
        x = (resized_width - self.crop[1]) // 2
        y = (resized_height - self.crop[0]) // 2
        return (
            left + x * x_scale,
            top + y * y_scale,
            left + (x + self.crop[1]) * x_scale,
            top + (y + self.crop[0]) * y_scale,
        )

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        if self.resize is None:
            return width, height
        if not isinstance(self.resize, int):
            return self.resize[1], self.resize[0]
        longest = int(self.resize * max(width, height) / min(width, height))
        return (self.resize, longest) if width <= height else (longest, self.resize)


class Llava(Layout):
    """LLaVA-1.5: a fixed-size tower turns each picture into one grid of tokens."""

    def __init__(self, weights: Any, processor: Any, context: int | None) -> None:
        super().__init__(weights, processor, context)
        self._framing = Framing.of(processor.image_processor)
        self._grid, self._tokens = self._measure()

    def _measure(self) -> tuple[tuple[int, int], int]:
        """The grid (rows, columns) and the tokens of a picture: seen on one that nobody sent."""
        height, width = self._prepared(Image.new("RGB", (8, 8))).shape[-2:]
        patch = self.weights.config.vision_config.patch_size
        grid = (height // patch, width // patch)
        dropped = 1 if self.weights.config.vision_feature_select_strategy == "default" else 0
        return grid, grid[0] * grid[1] + self.processor.num_additional_image_tokens - dropped

    def _prepared(self, image: Image.Image) -> Tensor:
        pixels: Tensor = self.processor.image_processor(images=[image], return_tensors="pt")["pixel_values"]
        return pixels[0]

    def span(self, size: tuple[int, int]) -> Span:
        cells = self._grid[0] * self._grid[1]
        lead = self._tokens - cells  # a class token, if the tower keeps one
        grid = np.arange(lead, lead + cells).reshape(self._grid)
        view = View(grid, self._framing.rectangle(size))
        return Span((self.image_token,) * self._tokens, (view,))

    def pixels(self, picture: Picture) -> Tensor:
        return self._prepared(picture.open())

    def encode(self, pixels: Sequence[Tensor]) -> list[Features]:
        batch = torch.stack(list(pixels)).to(self.weights.device, self.weights.dtype)
        encoded = self.weights.get_image_features(pixel_values=batch, return_dict=True)
        return [(features,) for features in encoded.pooler_output]

    def plane(self, gradient: Tensor, picture: Picture) -> ImportanceMap:
        norm = gradient.float().norm(dim=0).cpu().numpy()
        return ImportanceMap(norm, self._framing.rectangle(picture.size))


layout = Llava


def gap(config: Any) -> str:
    """Why a config's image tokens stand where this file does not know; empty if they do not."""
    tower = config.vision_config.model_type
    if tower not in ("clip_vision_model", "siglip_vision_model"):
        return f"this LLaVA's tower is {tower}; a known layout has CLIP's or SigLIP's"
    return sliding_gap(config)
