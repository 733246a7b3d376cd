"""CLIPScore and RefCLIPScore: how well a caption fits its image, and its references, in CLIP's space.

Knows transformers' CLIP and the two formulas. Must not know: datasets, models that write captions. It
looks at the pictures themselves, so it is measured while a run is made, never from stored records.

Hessel et al., "CLIPScore: A Reference-free Evaluation Metric for Image Captioning", EMNLP 2021;
jmhessel/clipscore `clipscore.py`. torchmetrics' CLIPScore is another quantity (100 cos, no prefix).
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from harness.checkpoints import explained, pick_device, quiet, require_whole
from harness.errors import DataError, ModelError, PictureError
from harness.types import Metric, Response, Sample

WEIGHT = 2.5
PREFIX = "A photo depicts "

PAPERS = "openai/clip-vit-base-patch32"
PINNED = "c237dc49a33fc61debc9276459120b7eac67e7ef"
"""The paper's checkpoint, at the commit that has its weights as safetensors."""

_BATCH = 32
_NUMBERS = ("scored", "score", "referenced", "ref_score", "truncated", "unreadable")
_LOADING = threading.Lock()

Vectors = npt.NDArray[np.floating[Any]]


def clipscore(image: Vectors, caption: Vectors, weight: float = WEIGHT) -> float:
    """`weight` * max(cos, 0) of the two vectors (features of any length); 0 to `weight`.

    >>> round(clipscore(np.array([3.0, 4.0]), np.array([1.0, 0.0])), 6)
    1.5
    """
    return weight * max(0.0, _cosine(image, caption))


def refclipscore(score: float, caption: Vectors, references: Sequence[Vectors]) -> float:
    """The harmonic mean of a CLIPScore and the best cosine of `caption` with a reference (at least 0).

    >>> round(refclipscore(1.5, np.array([1.0, 0.0]), [np.array([1.0, 1.0]), np.array([0.0, 1.0])]), 6)
    0.961132
    """
    best = max(0.0, *(_cosine(caption, reference) for reference in references))
    return 2 * score * best / (score + best) if score + best else 0.0


def _cosine(one: Vectors, other: Vectors) -> float:
    return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))


@dataclass(frozen=True)
class ClipScore:
    """CLIPScore of captions on their images, and RefCLIPScore with their references (a sample's targets).

    checkpoint: a folder, or a hub id, of a CLIP (safetensors); the paper's by default. revision: the hub's
    commit, by default a pinned one for the paper's checkpoint. device: as torch names it; `auto` takes a
    GPU if there is one. Everything is computed in float32 (the paper: float16 on a GPU, float32 else).

    Numbers, each a mean over the samples that have it: `CLIPScore`, 0 to 2.5; `RefCLIPScore`, over samples
    with references; `truncated`: the share of captions that CLIP could not read to their end (77 tokens): of
    long captions the score says little. `n_unreadable`: samples left out because their picture cannot be
    read. Raises DataError for a sample without picture: stored records keep the place of their
    pictures only, so that this metric belongs to the task when it is run (`metric=clipscore`).
    """

    checkpoint: str = PAPERS
    revision: str | None = None
    device: str = "auto"

    name: ClassVar[str] = "clipscore"
    scope: ClassVar[Literal["sample"]] = "sample"
    additive: ClassVar[bool] = True

    @property
    def variant(self) -> str:
        """The checkpoint's name, with its revision if one was asked for: scores of two are not comparable."""
        name = self.checkpoint.rstrip("/").rpartition("/")[2]
        return f"{name}@{self.revision}" if self.revision else name

    @property
    def higher_is_better(self) -> Mapping[str, bool]:
        return {"CLIPScore": True, "RefCLIPScore": True}

    def measure(self, responses: Sequence[Response], samples: Sequence[Sample]) -> list[dict[str, float]]:
        """Per sample its two scores, whether it has them, whether its caption was cut."""
        bare = next((sample for sample in samples if not sample.images), None)
        if bare is not None:
            raise DataError(
                f"clipscore needs the picture of sample {bare.id!r}, and stored runs keep only where their "
                "pictures were: give the task metric=clipscore when it is run"
            )
        counts = []
        for start in range(0, len(samples), _BATCH):
            part = slice(start, start + _BATCH)
            counts += self._measure([response.text for response in responses[part]], samples[part])
        return counts

    def _measure(self, captions: Sequence[str], samples: Sequence[Sample]) -> list[dict[str, float]]:
        opened = [_opened(sample) for sample in samples]
        seen = [position for position, image in enumerate(opened) if image is not None]
        counts = [{**dict.fromkeys(_NUMBERS, 0.0), "unreadable": 1.0} for _ in samples]
        if not seen:
            return counts
        with _LOADING:
            clip = _clip(self.checkpoint, self.revision, self.device)
            images = clip.images([opened[position] for position in seen])
            texts, cut = clip.texts(
                [text for position in seen for text in (captions[position], *samples[position].targets)]
            )
        first = 0
        for position, image in zip(seen, images, strict=True):
            caption, *references = texts[first : first + 1 + len(samples[position].targets)]
            score = clipscore(image, caption)
            counts[position] = {
                "scored": 1,
                "score": score,
                "referenced": int(bool(references)),
                "ref_score": refclipscore(score, caption, references) if references else 0.0,
                "truncated": int(cut[first]),
                "unreadable": 0,
            }
            first += 1 + len(references)
        return counts

    def reduce(self, counts: Sequence[Any]) -> dict[str, float | None]:
        total = {name: sum(count[name] for count in counts) for name in _NUMBERS}

        def mean(part: str, whole: str) -> float | None:
            return total[part] / total[whole] if total[whole] else None

        return {
            "CLIPScore": mean("score", "scored"),
            "RefCLIPScore": mean("ref_score", "referenced"),
            "truncated": mean("truncated", "scored"),
            "n_unreadable": total["unreadable"],
        }


def _opened(sample: Sample) -> Any:
    try:
        return sample.images[0].open()
    except PictureError:
        return None


# ---------------------------------------------------------------- the checkpoint


@dataclass(frozen=True)
class _Clip:
    model: Any
    processor: Any

    def images(self, images: Sequence[Any]) -> Vectors:
        """(images, width): the projected features, float32."""
        import torch

        pixels = self.processor.image_processor(images=list(images), return_tensors="pt")
        with torch.inference_mode():
            found = self.model.get_image_features(pixel_values=pixels["pixel_values"].to(self.model.device))
        return self._array(found)

    def texts(self, texts: Sequence[str]) -> tuple[Vectors, list[bool]]:
        """(texts, width), and which were cut at the end of what CLIP can read. The prefix is put here."""
        import torch

        tokenizer, length = self.processor.tokenizer, self.model.config.text_config.max_position_embeddings
        prefixed = [PREFIX + text for text in texts]
        whole = tokenizer(prefixed, verbose=False)["input_ids"]
        rows = []
        with torch.inference_mode():
            for start in range(0, len(texts), _BATCH):
                tokens = tokenizer(
                    prefixed[start : start + _BATCH],
                    padding=True,
                    truncation=True,
                    max_length=length,
                    return_tensors="pt",
                )
                rows.append(self._array(self.model.get_text_features(**tokens.to(self.model.device))))
        return np.concatenate(rows), [len(ids) > length for ids in whole]

    @staticmethod
    def _array(found: Any) -> Vectors:
        return np.asarray(found.pooler_output.float().cpu())


@lru_cache(maxsize=1)
def _clip(checkpoint: str, revision: str | None, device: str) -> _Clip:
    """The checkpoint, loaded once. Raises ModelError."""
    import torch
    from transformers import AutoConfig, AutoProcessor, CLIPModel

    at = {"revision": revision or (PINNED if checkpoint == PAPERS else None)}
    with quiet(), explained(f"clipscore: {checkpoint}"):
        family = AutoConfig.from_pretrained(checkpoint, **at).model_type
        if family != "clip":
            raise ModelError(f"clipscore: {checkpoint} is a {family} model; it must be a clip")
        processor = AutoProcessor.from_pretrained(checkpoint, backend="pil", **at)
        model, report = CLIPModel.from_pretrained(
            checkpoint, output_loading_info=True, dtype=torch.float32, use_safetensors=True, **at
        )
    require_whole(f"clipscore: {checkpoint}", report["missing_keys"])
    where = pick_device(device)
    return _Clip(model.eval().to(where), processor)


def metric(checkpoint: str = PAPERS, revision: str | None = None, device: str = "auto") -> Metric:
    """CLIPScore and RefCLIPScore of captions: see `ClipScore`. Nothing loads before the first caption.

    >>> metric().variant, metric("clips/mine").variant
    ('clip-vit-base-patch32', 'mine')
    """
    return ClipScore(checkpoint, revision, device)
