"""DOCCI: describe an image in detail, beside a long description by one careful annotator.

Knows the official file, its splits and SPARC's sample and prompt. Must not know: models, methods, how a
judge works.

Onoe et al., "DOCCI: Descriptions of Connected and Contrasting Images", ECCV 2024; the sample, the prompt
and the length of SPARC (arXiv 2502.01419, `dataset_loader.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from harness.errors import DataError
from harness.pictures import Picture, picture_in
from harness.types import Decoding, Metric, Model, Request, Sample, Task
from tasks import _hub
from tasks._captions import captioning_metrics
from tasks._source import (
    DETAIL,
    Download,
    Loaded,
    Row,
    Size,
    Source,
    check_folder,
    check_ids,
    check_size,
    fingerprint,
    first_of,
    rows,
    subset_indices,
)

_FILES = "https://storage.googleapis.com/docci/data/"

SOURCE = Source(
    title="DOCCI",
    size="5,000 test; sparc500 of 14,847",
    metric="CLAIR, given a judge",
    licence="CC BY 4.0",
    layout="docci_descriptions.jsonlines (or .jsonl), images/",
    hub=("not-lain/docci",),
    files=(
        Download("docci_descriptions.jsonlines", f"{_FILES}docci_descriptions.jsonlines"),
        Download("docci_images.tar.gz", f"{_FILES}docci_images.tar.gz", unpack="."),
    ),
)

_SPLITS = {"train": 9647, "test": 5000, "qual_dev": 100, "qual_test": 100}
_SIZES = {**_SPLITS, "all": sum(_SPLITS.values())}


def task(
    root: Path | None = None,
    *,
    protocol: Literal["sparc"] = "sparc",
    judge: Model | None = None,
    metric: Metric | None = None,
    subset: str = "test",
    images: Path | None = None,
    size: Size = "official",
    revision: str | None = None,
) -> Task:
    """Detailed captions, to be compared by a judge with human descriptions of 136 words.

    root: holds docci_descriptions.jsonlines (or .jsonl), one image per line; without it, a copy on the hub
    with the splits train and test. (The official one is a script, which `datasets` no longer runs.) subset:
    a split, `test` (5,000 images, default), `train`, `qual_dev` or `qual_test`; `sparc500`, SPARC's 500
    images, drawn from all 14,847 without regard to splits; or random:50@seed=42 of the test split. judge: a
    model that scores captions by CLAIR. Without one the run records captions, their lengths and their
    references, and is judged later: `fovea score RUN --metric clair:judge=(...)`. metric: another one than
    those. images: by default root/images or root itself. size=any: files of other lengths. revision: of
    the hub's copy.
    """
    split = "all" if subset == "sparc500" else subset if subset in _SPLITS else "test"
    loaded = _load(root, images, split, revision)
    check_size(f"docci {split}", len(loaded.rows), (_SIZES[split],), size)
    named = enumerate(zip(loaded.rows, loaded.pictures, strict=True))
    samples = [_sample(row, picture, f"{split}_{place:05}") for place, (row, picture) in named]
    check_ids((sample.id, row.where) for sample, row in zip(samples, loaded.rows, strict=True))
    drawn = subset_indices(None if subset in _SPLITS else subset, len(samples))
    metrics, primary = captioning_metrics(judge, metric)
    return Task(
        name="docci",
        version="1",
        protocol=protocol,
        fingerprint=loaded.fingerprint,
        samples=[samples[index] for index in drawn],
        request=lambda sample: Request(sample.images, sample.question, decoding=Decoding(max_tokens=512)),
        metrics=metrics,
        primary=primary,
    )


def _load(root: Path | None, images: Path | None, split: str, revision: str | None) -> Loaded:
    """The rows of a split, or of all of them, in the file's order."""
    if root is None:
        if split not in ("train", "test"):
            raise DataError(f"the hub's copy of DOCCI has no {split}: give root=DIR with the official files")
        return _hub.load(SOURCE.hub, None, split, revision=revision)
    root = check_folder(Path(root), SOURCE.layout)
    path = first_of(root, "docci_descriptions.jsonlines", "docci_descriptions.jsonl")
    folder = first_of(root, "images", ".") if images is None else check_folder(Path(images), "DOCCI's images")
    found = [row for row in rows(path) if split in ("all", row.text("split"))]
    pictures = [picture_in(folder, row.text("image_file")) for row in found]
    return Loaded(found, pictures, fingerprint([path]))


def _sample(row: Row, picture: Picture, name: str) -> Sample:
    """name: what the sample is called where the row does not say: the hub's copy has no ids."""
    name = name if row.get("example_id") is None else row.text("example_id")
    description = row.text("description", "answer")
    return Sample(name, (picture,), DETAIL, (description,), row.get("split"), {"image": f"{name}.jpg"})
