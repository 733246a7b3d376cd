"""What PaliGemma and Gemma 3 share: SigLIP sees the whole picture, squashed to a square.

Knows that tower's shapes. Must not know prompts, masks, rows or requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from adapters._hf_layout import Features, Layout, Span, View
from harness.pictures import Picture
from harness.types import Box, ImportanceMap


class Square(Layout):
    """A picture becomes one square grid of tokens, row by row, that covers all of it."""

    def span(self, size: tuple[int, int]) -> Span:
        count = int(self.processor.image_seq_length)
        side = round(count**0.5)
        cells = np.arange(count).reshape(side, side)
        return Span((self.image_token,) * count, (View(cells, _whole(size)),))

    def pixels(self, picture: Picture) -> Tensor:
        prepared = self.processor.image_processor(images=[picture.open()], return_tensors="pt")
        pixels: Tensor = prepared["pixel_values"][0]
        return pixels

    def encode(self, pixels: Sequence[Tensor]) -> list[Features]:
        batch = torch.stack(list(pixels)).to(self.weights.device, self.weights.dtype)
        encoded = self.weights.get_image_features(pixel_values=batch, return_dict=True)
        return [(features,) for features in encoded.pooler_output]

    def handed(self, features: Sequence[Features]) -> dict[str, Any]:
        encoded = BaseModelOutputWithPooling(pooler_output=torch.stack([tokens for tokens, *_ in features]))
        return {"mm_encoder_outputs": {"image": encoded}}

    def plane(self, gradient: Tensor, picture: Picture) -> ImportanceMap:
        return ImportanceMap(gradient.float().norm(dim=0).cpu().numpy(), _whole(picture.size))


def _whole(size: tuple[int, int]) -> Box:
    return (0.0, 0.0, float(size[0]), float(size[1]))
