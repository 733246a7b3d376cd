"""Object detectors through transformers: boxes of things in pictures, for the methods that need some.

Knows checkpoints of `AutoModelForObjectDetection` (DETR, RT-DETR, YOLOS: a closed set of labels) and of
`AutoModelForZeroShotObjectDetection` (OWLv2, Grounding DINO: any words). Must not know requests or methods.

Pictures are prepared one by one with Pillow and batched where their tensors have equal shapes, so that
nothing is padded: what is found in a picture does not depend on its neighbours, beyond rounding. Weights
are float32 and load from safetensors alone; no repository's code runs.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from harness.checkpoints import (
    SMALL_FILES,
    WEIGHTS,
    explained,
    fetched,
    located,
    pick_device,
    quiet,
    read_config,
    require_whole,
)
from harness.errors import ModelError, PictureError, SpecError
from harness.pictures import Picture
from harness.types import Box, Failure, Usage
from methods._specs import checkpoint_spec

THRESHOLD = 0.1
"""Of the score, above which a box counts; transformers' own for OWL."""


@dataclass(frozen=True)
class Detection:
    """A thing in a picture: its box in the picture's pixels and inside it, never empty; its score, 0 to 1."""

    box: Box
    score: float
    label: str


@dataclass(frozen=True)
class Found:
    """What was found in one picture, likeliest first, or why nothing could be looked for; what it cost."""

    detections: tuple[Detection, ...] = ()
    usage: Usage = Usage()
    failure: Failure | None = None


@dataclass(frozen=True, eq=False)
class Detector:
    """One checkpoint; `find` and `from_spec` make it. Its weights load when it is first asked.

    name: as records call it. folder: where its files are. hub: its repository, None for a folder.
    revision: the hub's commit, or `sha256:` of the folder's configs and weights. config: transformers'.
    threshold: of the score. device: auto, cpu, cuda, ... batch: pictures at once.
    """

    name: str
    folder: Path
    hub: str | None
    revision: str
    config: Any
    threshold: float = THRESHOLD
    device: str = "auto"
    batch: int = 8
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    @classmethod
    def from_spec(cls, text: str, threshold: float = THRESHOLD) -> Detector:
        """The detector that `[FAMILY:]CHECKPOINT[,threshold=...][,revision=...][,device=...]` names.

        FAMILY is transformers' name of the architecture, such as `detr`, and is checked. threshold: where
        the text names none. Reads the config alone. Raises `SpecError` for what is not such a text,
        `ModelError` as `find` does.
        """
        family, checkpoint, knobs = checkpoint_spec("detector", text, ("threshold", "revision", "device"))
        try:
            threshold = float(knobs.get("threshold", threshold))
        except ValueError:
            threshold = float("nan")
        if not 0 <= threshold <= 1:
            raise SpecError(f"detector={text}: threshold is a number from 0 to 1")
        found = cls.find(
            checkpoint, knobs.get("revision"), threshold=threshold, device=knobs.get("device", "auto")
        )
        if family and family != found.family:
            raise SpecError(f"detector={text}: {checkpoint} is a {found.family}, not a {family}")
        return found

    @classmethod
    def find(cls, name: str, revision: str | None = None, **knobs: Any) -> Detector:
        """The checkpoint in a folder, or else on the hub; knobs are the fields threshold, device and batch.

        Raises `ModelError` for one that is not there, has no safetensors or is no detector's.
        """
        folder, hub, version = located(name, revision)
        config = _detector_config(name, folder)
        return cls(hub or folder.resolve().name, folder, hub, version, config, **knobs)

    @property
    def family(self) -> str:
        """The architecture, by transformers' name for it."""
        return str(self.config.model_type)

    @property
    def zero_shot(self) -> bool:
        """Whether it looks for words; otherwise it knows a closed set of labels."""
        return self.family in _families(zero_shot=True)

    def describe(self) -> dict[str, Any]:
        """Everything that decides what it finds, as JSON."""
        return {
            "detector": self.name,
            "revision": self.revision,
            "family": self.family,
            "threshold": self.threshold,
            "device": self._device.split(":")[0],
        }

    def detect(
        self, pictures: Sequence[Picture], texts: Sequence[Sequence[str]] | None = None
    ) -> list[Found]:
        """What is in each picture, in order.

        texts: per picture, what a zero-shot detector looks for, at least one text each; each becomes the
        label of its boxes (Grounding DINO: the part of it that it saw). None for a closed set. A picture
        that cannot be read or prepared is a failure of its own. Raises `ModelError` if the weights do not
        load.
        """
        if (texts is not None) != self.zero_shot:
            expects = "texts to look for" if self.zero_shot else "no texts: its labels are a closed set"
            raise ValueError(f"{self.name} ({self.family}) takes {expects}")
        found: list[Found] = []
        with self._lock:
            for start in range(0, len(pictures), self.batch):
                part = slice(start, start + self.batch)
                found += self._detect(pictures[part], texts[part] if texts else None)
        return found

    def _detect(self, pictures: Sequence[Picture], texts: Sequence[Sequence[str]] | None) -> list[Found]:
        import torch

        began = time.perf_counter()
        model, processor = self._loaded
        found: list[Found] = [Found()] * len(pictures)
        alike: dict[Any, list[tuple[int, Any, tuple[int, int]]]] = {}  # by the shapes of their tensors
        for place, picture in enumerate(pictures):
            try:
                image = picture.open()
                inputs = self._inputs(processor, image, texts[place] if texts else None)
            except PictureError as error:
                found[place] = Found(failure=Failure(error.kind, str(error)))
                continue
            except (ValueError, ZeroDivisionError) as error:
                message = f"{self.name} cannot prepare {picture.source.label}, {picture.size}: {error}"
                found[place] = Found(failure=Failure("unusable_picture", message))
                continue
            shapes = tuple((key, tuple(value.shape)) for key, value in sorted(inputs.items()))
            alike.setdefault(shapes, []).append((place, inputs, image.size))
        for group in alike.values():
            places, each, sizes = zip(*group, strict=True)
            together = {key: torch.cat([one[key] for one in each]).to(self._device) for key in each[0]}
            with torch.inference_mode():
                outputs = model(**together)
            asked = [list(texts[place]) for place in places] if texts else None
            boxes = self._boxes(processor, outputs, sizes, asked)
            for place, detections in zip(places, boxes, strict=True):
                found[place] = Found(detections, Usage(images=1, forward_passes=1))
        share = (time.perf_counter() - began) / len(pictures)
        return [Found(one.detections, one.usage + Usage(seconds=share), one.failure) for one in found]

    def _inputs(self, processor: Any, image: Any, texts: Sequence[str] | None) -> dict[str, Any]:
        if texts is None:
            return dict(processor(images=image, return_tensors="pt"))
        config = self.config
        longest = getattr(config, "max_text_len", None) or config.text_config.max_position_embeddings
        return dict(
            processor(
                images=image,
                text=[list(texts)],
                truncation=True,
                max_length=longest,
                return_tensors="pt",
            )
        )

    def _boxes(
        self, processor: Any, outputs: Any, sizes: Sequence[tuple[int, int]], texts: list[list[str]] | None
    ) -> list[tuple[Detection, ...]]:
        """transformers' own reading of the outputs; boxes are clipped, and sorted by score."""
        options = {"threshold": self.threshold, "target_sizes": [size[::-1] for size in sizes]}
        if texts is not None:
            read = processor.post_process_grounded_object_detection(outputs, text_labels=texts, **options)
            labels = [one["text_labels"] for one in read]
        else:
            read = processor.post_process_object_detection(outputs, **options)
            labels = [[self.config.id2label[int(label)] for label in one["labels"]] for one in read]
        results = []
        for one, names, (width, height) in zip(read, labels, sizes, strict=True):
            detections = []
            for score, name, (x1, y1, x2, y2) in zip(
                one["scores"].tolist(), names, one["boxes"].tolist(), strict=True
            ):
                box = (max(0.0, x1), max(0.0, y1), min(float(width), x2), min(float(height), y2))
                if box[0] < box[2] and box[1] < box[3]:
                    detections.append(Detection(box, score, name))
            results.append(tuple(sorted(detections, key=lambda detection: -detection.score)))
        return results

    @cached_property
    def _device(self) -> str:
        return pick_device(self.device)

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        """The weights, on their device, and what prepares pictures and texts. Raises `ModelError`."""
        import torch
        import transformers as hf

        if self.hub is not None:
            fetched(self.hub, self.revision, (*SMALL_FILES, WEIGHTS))
        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
        loader = hf.AutoModelForZeroShotObjectDetection if self.zero_shot else hf.AutoModelForObjectDetection
        preparer = hf.AutoProcessor if self.zero_shot else hf.AutoImageProcessor
        with quiet(), explained(f"the detector {self.name} ({self.family})"):
            processor = preparer.from_pretrained(self.folder, backend="pil", **options)
            model, report = loader.from_pretrained(
                self.folder, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **options
            )
            model = model.to(self._device).eval().requires_grad_(False)
        require_whole(self.name, report["missing_keys"])
        return model, processor


# ---------------------------------------------------------------- checkpoints


def _families(*, zero_shot: bool) -> dict[str, Any]:
    from transformers.models.auto import modeling_auto

    if zero_shot:
        return dict(modeling_auto.MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING_NAMES)
    return dict(modeling_auto.MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES)


def _detector_config(name: str, folder: Path) -> Any:
    config = read_config(name, folder)
    known = {*_families(zero_shot=True), *_families(zero_shot=False)}
    if config.model_type not in known:
        raise ModelError(
            f"{name} is a {config.model_type} model, not a detector; these are: {', '.join(sorted(known))}"
        )
    return config
