"""Dense texts for MS-COCO retrieval: describe each image of a split at length, for RUN/dense.jsonl.

Knows nothing but which benchmark's images these are. Must not know: models, methods, similarities.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from harness.types import Task
from tasks import coco_retrieval
from tasks._dense import describing, lines
from tasks._retrieval import Format, Split
from tasks._source import Size

SOURCE = replace(
    coco_retrieval.SOURCE,
    title="MS-COCO, dense texts for retrieval",
    size="5,000 images (val 5,000, train 113,287)",
    metric="words",
)

dense_lines = lines


def task(
    root: Path,
    *,
    protocol: Literal["seps"] = "seps",
    split: Split = "test",
    format: Format = "auto",
    images: Path | None = None,
    size: Size = "official",
) -> Task:
    """One long text per image, in the order of coco_retrieval, by SEPS's prompt and sampling: temperature
    0.2, nucleus 0.9, 500 new tokens at most, and the run's seed.

    A run that has a text for every image leaves them in RUN/dense.jsonl, which coco_retrieval reads:
    `coco_retrieval:root=DIR,dense=RUN/dense.jsonl`; so a captioning model or method is scored by retrieval.
    `fovea score RUN --submission FILE` writes them elsewhere. While it runs only lengths are measured; the
    image's captions are its references, for other metrics later. The other knobs are coco_retrieval's.
    """
    found = coco_retrieval.task(
        root, protocol=("sparse",), split=split, format=format, images=images, size=size
    )
    return describing("coco_dense", found)
