"""Any other family: its own processor makes the tensors, and it generates text.

Knows the calling conventions that transformers' processors share. Where a family's image tokens stand
is not known here, so nothing is shared between rows and no map can be read.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from PIL.Image import Image
from torch import Tensor

from adapters._hf_rows import Inputs, Pixels, Reading, Row, Tokens, require_pictures, require_room
from harness.errors import CapabilityError, PictureError
from harness.pictures import Picture
from harness.types import ImportanceMap, Json


class Generic:
    """Rows of any `AutoModelForImageTextToText` and its processor."""

    def __init__(self, weights: Any, processor: Any, context: int | None) -> None:
        self._weights = self.decoder = weights
        self._processor = processor
        self._tokenizer = getattr(processor, "tokenizer", processor)
        self._context = context
        self._pixels: Pixels[Image] = Pixels(Picture.open)

    def tokenize(self, text: str, pictures: Sequence[Picture]) -> Tokens:
        return Tokens(tuple(self._tokenizer(text, add_special_tokens=self._special(text))["input_ids"]))

    def kind(self, row: Row) -> tuple[object, ...]:
        # A plain forward counts positions from the padding on, so options are scored one by one.
        # InstructBLIP's processor pads its Q-Former's text on the left, which moves what it reads.
        alone = row.tail or hasattr(self._processor, "qformer_tokenizer")
        return (len(row.pictures), id(row) if alone else None)

    def prefix(self, row: Row) -> tuple[object, ...]:
        return ()

    def ahead(self, rows: Iterable[Row]) -> None:
        self._pixels.ahead(picture for row in rows for picture in row.pictures)

    def prepare(self, rows: Sequence[Row]) -> Inputs:
        images = self._pixels.take(picture for row in rows for picture in row.pictures)
        broken = {key: one for key, one in images.items() if isinstance(one, PictureError)}
        require_pictures(rows, broken)
        nested = [[images[picture.digest] for picture in row.pictures] for row in rows]
        batch = self._processor(
            text=[self._bare(row.text) for row in rows],
            images=nested if any(nested) else None,
            padding=True,
            return_tensors="pt",
            add_special_tokens=self._special(rows[0].text),
        ).to(self._weights.device, self._weights.dtype)
        extra = dict(batch)
        ids, mask = extra.pop("input_ids"), extra.pop("attention_mask")
        require_room(mask.sum(dim=1).tolist(), self._context)
        return Inputs(ids, mask, extra=extra)

    def logits(self, inputs: Inputs, keep: int) -> Tensor:
        logits: Tensor = self._weights(**inputs.whole()).logits
        return logits[:, -keep:]

    def maps(self, rows: Sequence[Row]) -> list[tuple[ImportanceMap, ...]]:
        raise CapabilityError(self._unknown("no map can be read from it"))

    def reading(self, rows: Sequence[Row], inputs: Inputs) -> Reading:
        raise CapabilityError(self._unknown("no map can be read from it"))

    def image_tokens(self, inputs: Inputs) -> Tensor:
        raise CapabilityError(self._unknown("it cannot be steered"))

    def place(self, picture: Picture) -> dict[str, Json]:
        return {}

    def forget(self) -> None:
        """Nothing is kept between batches."""

    def turn(self) -> None:
        """Nothing is kept between lists."""

    def _unknown(self, so: str) -> str:
        family = self._weights.config.model_type
        return f"where {family}'s image tokens stand is not known to the hf adapter: {so}"

    def _bare(self, text: str) -> str:
        """Without placeholders where the processor puts image tokens in by itself, as InstructBLIP's does."""
        reads = hasattr(self._processor, "qformer_tokenizer")
        return text.replace(str(self._processor.image_token), "") if reads else text

    def _special(self, text: str) -> bool:
        """Whether the tokenizer is to add its own special tokens: not if the template brought them."""
        bos = self._tokenizer.bos_token
        return bos is None or not text.startswith(bos)
