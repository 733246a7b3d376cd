"""The Qwen3-VL layout: Qwen's, with features of the tower's middle layers beside each token.

Knows what its decoder takes beside a picture's tokens. Must not know rows, requests or methods.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers.models.qwen3_vl.modeling_qwen3_vl import BaseModelOutputWithDeepstackFeatures

from adapters._hf_layout import Features
from adapters._hf_qwen import Patches, QwenVL, gap

__all__ = ["gap", "layout"]


class Qwen3VL(QwenVL):
    """Qwen3-VL: one token for 32 x 32 pixels of the resized picture, one grid over all of it.

    As `QwenVL`, within 64 to 16,384 tokens for the checkpoints on the hub. The decoder's first layers each
    add features of one layer of the tower to the picture's tokens (DeepStack): they are kept with the
    tokens' embeddings, and go into the same forward. Maps are of the middle layer; no paper has a better
    one.
    """

    def encode(self, pixels: Sequence[Patches]) -> list[Features]:
        encoded = self._encode(pixels)
        return list(zip(encoded.pooler_output, *encoded.deepstack_features, strict=True))

    def handed(self, features: Sequence[Features]) -> dict[str, Any]:
        tokens, *deep = zip(*features, strict=True)
        encoded = BaseModelOutputWithDeepstackFeatures(
            pooler_output=list(tokens), deepstack_features=[list(layer) for layer in deep]
        )
        return {"mm_encoder_outputs": {"image": encoded}}


layout = Qwen3VL
