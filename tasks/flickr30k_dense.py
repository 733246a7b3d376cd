"""Dense texts for Flickr30K retrieval: describe each image of a split at length, for RUN/dense.jsonl.

Knows nothing but which benchmark's images these are. Must not know: models, methods, similarities.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from harness.types import Task
from tasks import flickr30k_retrieval
from tasks._dense import describing, lines
from tasks._retrieval import Format, Split
from tasks._source import Size

SOURCE = replace(
    flickr30k_retrieval.SOURCE,
    title="Flickr30K, dense texts for retrieval",
    size="1,000 images (val 1,014, train 29,000)",
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
    """One long text per image, in the order of flickr30k_retrieval, by SEPS's prompt and sampling:
    temperature 0.2, nucleus 0.9, 500 new tokens at most, and the run's seed.

    A run that has a text for every image leaves them in RUN/dense.jsonl, which flickr30k_retrieval reads:
    `flickr30k_retrieval:root=DIR,dense=RUN/dense.jsonl`; so a captioning model or method is scored by
    retrieval. `fovea score RUN --submission FILE` writes them elsewhere. While it runs only lengths are
    measured; the image's captions are its references, for other metrics later. The other knobs are
    flickr30k_retrieval's.
    """
    found = flickr30k_retrieval.task(
        root, protocol="sparse", split=split, format=format, images=images, size=size
    )
    return describing("flickr30k_dense", found)
