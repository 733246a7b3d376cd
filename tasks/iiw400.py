"""ImageInWords, 400 images: describe an image in detail, beside a description that people wrote and mended.

Knows the official file and SPARC's prompt. Must not know: models, methods, how a judge works.

Garg et al., "ImageInWords: Unlocking Hyper-Detailed Image Descriptions", EMNLP 2024; the prompt and the
length of SPARC (arXiv 2502.01419, `eval.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from harness.pictures import Picture, picture_in
from harness.types import Decoding, Metric, Model, Request, Sample, Task
from tasks._captions import captioning_metrics
from tasks._source import (
    DETAIL,
    Download,
    Loaded,
    Row,
    Size,
    Source,
    check_folder,
    fingerprint,
    first_of,
    rows,
    samples_of,
    select,
)

SOURCE = Source(
    title="ImageInWords, IIW-400",
    size="400",
    metric="CLAIR, given a judge",
    licence="CC BY 4.0",
    layout="data.jsonl (or IIW-400/data.jsonl), images_aar/",
    files=(
        Download(
            "data.jsonl",
            "https://raw.githubusercontent.com/google/imageinwords/96d393777e2528becd8a7afa1389eb4b65084793/"
            "datasets/IIW-400/data.jsonl",
            size=980_175,
            sha256="88809dde73731208fa98f72430225a9122c8f7e3c4ebcde98e255d62c5f203f2",
        ),
        Download(
            "docci_images_aar.tar.gz",
            "https://storage.googleapis.com/docci/data/docci_images_aar.tar.gz",
            unpack=".",
        ),
    ),
)


def task(
    root: Path,
    *,
    protocol: Literal["sparc"] = "sparc",
    judge: Model | None = None,
    metric: Metric | None = None,
    subset: str | None = None,
    images: Path | None = None,
    size: Size = "official",
) -> Task:
    """Detailed captions of 400 images, to be compared by a judge with human descriptions of 193 words.

    root: holds data.jsonl (or IIW-400/data.jsonl), one image per line with `image/key` and `IIW`. (The hub's
    copy is a script, which `datasets` no longer runs, without the images.) judge: a model that scores
    captions by CLAIR. Without one the run records captions, their lengths and their references, and is
    judged later: `fovea score RUN --metric clair:judge=(...)`. metric: another one than those. subset: as in
    random:50@seed=42. images: the folder of the AAR images, by default root/images_aar, root/images or root
    itself. size=any: a file of another length.
    """
    root = check_folder(Path(root), SOURCE.layout)
    path = first_of(root, "data.jsonl", "IIW-400/data.jsonl")
    folder = first_of(root, "images_aar", "images", ".")
    folder = folder if images is None else check_folder(Path(images), "the DOCCI-AAR images")
    found = rows(path)
    pictures = [picture_in(folder, f"{row.text('image/key')}.jpg") for row in found]
    loaded = Loaded(found, pictures, fingerprint([path]))
    samples = samples_of(loaded, _sample, "iiw400", (400,), size)
    metrics, primary = captioning_metrics(judge, metric)
    return Task(
        name="iiw400",
        version="1",
        protocol=protocol,
        fingerprint=loaded.fingerprint,
        samples=select(samples, subset),
        request=lambda sample: Request(sample.images, sample.question, decoding=Decoding(max_tokens=512)),
        metrics=metrics,
        primary=primary,
    )


def _sample(row: Row, picture: Picture) -> Sample:
    key = row.text("image/key")
    return Sample(key, (picture,), DETAIL, (row.text("IIW"),), meta={"image": f"{key}.jpg"})
