"""The Gemma 3 layout: pictures whose tokens see each other, and layers that see a window.

Knows Gemma 3's frame around a picture, its token types and its sliding windows. Must not know requests
or methods.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor

from adapters._hf_rows import Inputs, Row, Tokens
from adapters._hf_square import Square
from harness.errors import ModelError
from harness.pictures import Picture


class Gemma3(Square):
    """Gemma 3: 256 tokens per picture whatever its shape; their 16 x 16 grid covers all of it.

    A picture stands between blank lines and two marks, and its tokens see each other. Of six layers five
    see a window (1,024 tokens) and every sixth sees everything: maps are of one of those, the nearest to
    the middle (layer 17 of the 4B's 34); no paper has a better one. A sliding layer's map is zero where
    its window does not reach. A window counts columns, padding too, so a beginning is shared only where
    no window can end within the batch. Steering gets a cache that keeps every token; a layer is steered
    by as much as its window shows it. Pan-and-scan (crops behind the picture) is refused.
    """

    masked: ClassVar[bool] = True

    def __init__(self, weights: Any, processor: Any, context: int | None) -> None:
        super().__init__(weights, processor, context)
        if getattr(processor.image_processor, "do_pan_and_scan", None):
            raise ModelError(
                "this checkpoint's image processor turns pan-and-scan on; the hf adapter shows a picture "
                "once. Set do_pan_and_scan to false in its preprocessor_config.json"
            )
        words = self.tokenizer
        self._frame = f"\n\n{words.boi_token}{words.image_token}{words.eoi_token}\n\n"
        self._window = int(weights.config.get_text_config().sliding_window)

    def tokenize(self, text: str, pictures: Sequence[Picture]) -> Tokens:
        """As ever; the frame goes in as text, because its newlines join those around it into one token."""
        return super().tokenize(text.replace(self.tokenizer.boi_token, self._frame), pictures)

    def prefix(self, row: Row) -> tuple[object, ...]:
        """Half a window for the beginning, half for all that follows: their padding then does no harm."""
        if not row.pictures:
            return ()
        begin = len(self._beginning(row))
        more = 0 if row.tail else row.decoding.max_tokens
        longest = max(begin, len(row.tokens) - begin + more)
        return super().prefix(row) if 2 * longest <= self._window else ()

    def along(self, ids: Tensor) -> dict[str, Tensor]:
        return {"token_type_ids": (ids == self.image_token).long()}

    def prepare(self, rows: Sequence[Row], layer: int | None = None) -> Inputs:
        """As ever; but the mask finds a token's type by its column, so a forward needs all of them."""
        inputs = super().prepare(rows, layer)
        return replace(inputs, along={}, extra={**inputs.extra, **self.along(inputs.ids)})


layout = Gemma3


def gap(config: Any) -> str:
    """Why a config's image tokens stand where this file does not know; empty if they do not."""
    if config.get_text_config().use_bidirectional_attention:
        return "this Gemma 3's decoder is no causal one"
    return ""
