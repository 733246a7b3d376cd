"""The PaliGemma layout: a prompt whose tokens all see each other, behind its pictures.

Knows PaliGemma's prefix and its token types. Must not know requests or methods.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from adapters._hf_rows import Inputs, Row
from adapters._hf_square import Square


class PaliGemma(Square):
    """PaliGemma 1 and 2: (side / 14)² tokens per picture, 256 at 224 pixels; the grid covers all of it.

    The pictures stand first, then the beginning-of-text token, the text and a newline (template
    "paligemma", the processor's own). A prompt is a prefix: each of its tokens sees all of it. So no
    beginning is shared and a gradient needs the whole prompt's graph, while an answer (an option, too) is
    causal. Positions count from 0 here and from 1 in `generate`: rotary attention sees differences only.
    Maps: of the middle layer, for PaliGemma 2 of the one nearest to it that has no sliding window; no
    paper has a better one. PaliGemma 2 as released caps its attention logits, which no kernel with taps
    does: it answers and scores options under eager attention, and offers no maps.
    """

    causal: ClassVar[bool] = False
    masked: ClassVar[bool] = True

    def along(self, ids: Tensor) -> dict[str, Tensor]:
        return {"token_type_ids": torch.zeros_like(ids)}

    def prepare(self, rows: Sequence[Row], layer: int | None = None) -> Inputs:
        """As ever, but an option is no part of the prefix."""
        inputs = super().prepare(rows, layer)
        types = torch.zeros_like(inputs.ids)
        for place, row in enumerate(rows):
            types[place, types.shape[1] - row.tail :] = 1
        return replace(inputs, along={"token_type_ids": types})


layout = PaliGemma


def gap(config: Any) -> str:
    """Empty: transformers has one tower and one projection for the family."""
    return ""
