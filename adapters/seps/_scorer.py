"""A model of this folder at work on a pool: texts are encoded once, images as they are asked for.

Knows the model, its vocabulary and pools. Must not know: which text describes which image, runs, training.
Both the matcher of a checkpoint (`main.py`) and the choice of the best epoch (`train.py`) stand on this, so
that a number seen in training is the number that a run of the same pool gives.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from adapters.seps import data, similarity
from adapters.seps.model import SEPS
from adapters.seps.similarity import Texts
from harness.errors import ModelError
from harness.pictures import Picture
from harness.types import Pool

Precision: TypeAlias = Literal["fp32", "bf16", "fp16"]

HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}

GPU_WORK = 2 * 2**30
"""Bytes that the block of pairs may take on a GPU."""


@contextlib.contextmanager
def arithmetic(device: torch.device, precision: Precision) -> Iterator[None]:
    """How towers compute: half precision where it is asked for, and else whole, not TF32."""
    half = HALVES.get(precision)
    tf32 = torch.backends.cudnn.flags(enabled=True, allow_tf32=half is not None)
    with tf32, torch.autocast(device.type, dtype=half, enabled=half is not None):
        yield


@dataclass(frozen=True)
class _Encoded:
    """A pool's texts. texts: short ones first; place (texts,): where in them each of the pool's stands.
    dense: each once, or None; dense_of: which of them each image, or each of `texts`, has."""

    texts: Texts
    place: Tensor
    dense: Texts | None
    dense_of: Tensor | None


class Scorer:
    """Similarities of a pool's images and texts.

    model: on its device, in evaluation mode while this computes. max_word, dense_max_word: words that count,
    [CLS] included; a text is read whole (as far as its tower reads) before the rest is dropped. batch: images
    or texts encoded at a time. Dense texts are left aside where the model has no use for them (`laps`).
    """

    def __init__(
        self,
        model: SEPS,
        vocabulary: data.Vocabulary,
        *,
        precision: Precision = "fp32",
        max_word: int | None = None,
        dense_max_word: int | None = None,
        batch: int = 64,
    ) -> None:
        config = model.config
        self._model, self._vocabulary, self._precision, self._batch = model, vocabulary, precision, batch
        self._words = max_word or config.max_word
        self._dense_words = dense_max_word or config.dense_max_word
        self._device = next(model.parameters()).device
        self._pool: Pool | None = None
        self._encoded: _Encoded | None = None

    def forget(self) -> None:
        """Let go of the texts: the weights will change."""
        self._pool = self._encoded = None

    def similarity(self, pool: Pool, rows: range) -> npt.NDArray[np.float32]:
        """(len(rows), texts), float32. Raises PictureError."""
        mode = self._model.training
        self._model.eval()
        try:
            with torch.inference_mode(), arithmetic(self._device, self._precision):
                return self._similarity(pool, rows)
        finally:
            self._model.train(mode)

    def _similarity(self, pool: Pool, rows: range) -> npt.NDArray[np.float32]:
        if self._encoded is None or self._pool is not pool:
            self._pool, self._encoded = pool, self._texts(pool)
        known = self._encoded
        side: Literal["image", "text"] = "text" if pool.dense_of == "text" else "image"
        of = known.dense_of
        if of is not None and side == "image":
            of = of[rows.start : rows.stop]
        found = similarity.matrix(
            self._model.head,
            self._images(pool.images[rows.start : rows.stop]),
            known.texts,
            known.dense,
            side,
            of,
            memory=GPU_WORK if self._device.type == "cuda" else similarity.WORK,
        )
        matrix: npt.NDArray[np.float32] = found[:, known.place].numpy()
        return matrix

    def _images(self, pictures: Sequence[Picture]) -> Tensor:
        side = self._model.config.image_size
        found = []
        with ThreadPoolExecutor(8) as readers:
            pixels = readers.map(lambda picture: data.evaluation_pixels(picture.open(), side), pictures)
            for _ in range(0, len(pictures), self._batch):
                part = [one for _, one in zip(range(self._batch), pixels, strict=False)]
                stacked = torch.from_numpy(np.stack(part)).to(self._device)
                found.append(self._model.encode_images(data.normalised(stacked)).float())
        return torch.cat(found)

    def _texts(self, pool: Pool) -> _Encoded:
        texts, place = self._packed(pool.texts, self._words)
        if pool.dense_of == "none" or self._model.config.impl == "laps":
            return _Encoded(texts, place, None, None)
        unique = list(dict.fromkeys(pool.dense))
        dense, dense_place = self._packed(unique, self._dense_words)
        number = dict(zip(unique, dense_place.tolist(), strict=True))
        of = torch.tensor([number[text] for text in pool.dense])
        if pool.dense_of == "text":
            of = of[place.argsort()]
        return _Encoded(texts, place, dense, of)

    def _packed(self, texts: Sequence[str], words: int) -> tuple[Texts, Tensor]:
        """Texts encoded, short ones first, and where each of them stands."""
        if not texts:
            raise ModelError("the pool has no text")
        limit = limit_of(self._model)
        packed = self._vocabulary.pack(texts)
        ids = [self._vocabulary.framed(packed[number][0], limit) for number in range(len(packed))]
        order = np.argsort([len(one) for one in ids], kind="stable")
        parts = []
        for start in range(0, len(order), 4 * self._batch):
            batch, lengths = self._vocabulary.padded([ids[n] for n in order[start : start + 4 * self._batch]])
            batch, lengths = batch.to(self._device), lengths.to(self._device)
            encoded = self._model.encode_texts(batch, mask_of(batch, lengths))[:, :words].float()
            parts.append(Texts.of(encoded, lengths.clamp(max=words)))
        return Texts.joined(parts), torch.from_numpy(order).argsort()


def limit_of(model: SEPS) -> int | None:
    """Ids that the text tower reads, at most."""
    limit = getattr(model.towers.text.config, "max_position_embeddings", None)
    return limit if isinstance(limit, int) else None


def mask_of(ids: Tensor, lengths: Tensor) -> Tensor:
    """1 at words, 0 at pads; (texts, longest)."""
    return (torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]).long()
