"""GQA: compositional questions about real scenes, one answer each (testdev, balanced).

Knows the official file, the hub's columns and the protocols in circulation. Must not know: models, methods.
Hudson & Manning, "GQA: A New Dataset for Real-World Visual Reasoning", CVPR 2019; questions 1.2.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Literal

from harness.errors import DataError
from harness.pictures import Picture, picture_in
from harness.types import Decoding, Request, Sample, Task
from metrics import exact
from tasks import _hub
from tasks._source import (
    SHORT,
    Download,
    Loaded,
    Row,
    Size,
    Source,
    check_folder,
    document,
    fingerprint,
    first_of,
    samples_of,
    select,
    short_question,
    vicrop,
    vicrop_sample,
)

Protocol = Literal["llava", "lmms", "vicrop", "vlmevalkit"]

SOURCE = Source(
    title="GQA 1.2, testdev_balanced",
    licence="CC BY 4.0",
    layout="testdev_balanced_questions.json, images/",
    hub=("lmms-lab/GQA", "lmms-lab-encoder/GQA"),
    files=(
        Download(
            "questions1.2.zip",
            "https://downloads.cs.stanford.edu/nlp/data/gqa/questions1.2.zip",
            unpack=".",
        ),
        Download("images.zip", "https://downloads.cs.stanford.edu/nlp/data/gqa/images.zip", unpack="."),
    ),
)

_SIZE = 12_578
_PROTOCOLS: dict[Protocol, tuple[str, int, exact.Variant]] = {
    "llava": (f"\n{SHORT}", 128, "llava"),
    "lmms": (f"\n{SHORT}", 16, "lmms"),
    "vicrop": (f" {SHORT}", 20, "vicrop"),
    "vlmevalkit": (f"\n{SHORT}", 512, "vlmevalkit"),
}


def task(
    root: Path | None = None,
    *,
    protocol: Protocol = "llava",
    format: Literal["official", "vicrop"] = "official",
    subset: str | None = None,
    size: Size = "official",
    revision: str | None = None,
) -> Task:
    """GQA: the 12,578 questions of testdev_balanced, about 398 images.

    root: the official files; without it, the hub. protocol: `llava` (128 tokens; trailing dots and
    capitals are forgiven), `lmms` (16; punctuation is), `vicrop` (20; the reference may be part of the
    answer, so that "woman" counts as "man"), `vlmevalkit`. Scores are also shown by structural, semantic
    and detailed type. format=vicrop: root is ViCrop's unified file. subset: as in
    random:500@seed=42. size=any: files of other lengths. revision: of the hub's copy.
    """
    if format == "vicrop":
        loaded = vicrop(root)
        samples = samples_of(loaded, vicrop_sample, "gqa", (), "any")
    else:
        loaded = _load(root, revision)
        samples = samples_of(loaded, _sample, "gqa testdev_balanced", [_SIZE], size)
    instruction, tokens, variant = _PROTOCOLS[protocol]
    return Task(
        name="gqa",
        version="1.2",
        protocol=protocol,
        fingerprint=loaded.fingerprint,
        samples=select(samples, subset),
        request=partial(_request, instruction=instruction, tokens=tokens),
        metrics=(exact.metric(variant),),
        primary="accuracy",
        postprocess=str if protocol == "vicrop" else str.strip,  # mllms_know scores what was generated
        breakdowns=("structural", "semantic", "detailed"),
    )


def _request(sample: Sample, instruction: str, tokens: int) -> Request:
    return Request(
        sample.images,
        sample.question,
        instruction,
        decoding=Decoding(max_tokens=tokens),
        hints=short_question(sample),
    )


def _sample(row: Row, picture: Picture) -> Sample:
    kinds: Any = row.get("types") or {}
    names = ("structural", "semantic", "detailed")
    return Sample(
        id=row.text("id"),
        images=(picture,),
        question=row.text("question"),
        targets=(row.text("answer"),),
        meta={
            "image_id": row.text("imageId"),
            **{name: kinds[name] for name in names if kinds.get(name) is not None},
        },
    )


def _load(root: Path | None, revision: str | None) -> Loaded:
    if root is None:
        return _from_hub(revision)
    root = check_folder(Path(root), SOURCE.layout)
    path = first_of(root, "testdev_balanced_questions.json", "questions1.2/testdev_balanced_questions.json")
    content = document(path)
    if not all(isinstance(entry, dict) for entry in content.values()):
        raise DataError(f"{path} is not an object of questions by their ids")
    rows = [Row({**entry, "id": name}, f"{path}, {name}") for name, entry in content.items()]
    pictures = [picture_in(root / "images", f"{row.text('imageId')}.jpg") for row in rows]
    return Loaded(rows, pictures, fingerprint([path]))


def _from_hub(revision: str | None) -> Loaded:
    """Questions and images are two tables, joined by the image's id."""
    asked = _hub.load(SOURCE.hub, "testdev_balanced_instructions", "testdev", revision=revision)
    shown = _hub.load(SOURCE.hub, "testdev_balanced_images", "testdev", revision=revision)
    by_id = {row.text("id"): picture for row, picture in zip(shown.rows, shown.pictures, strict=True)}
    missing = {row.text("imageId") for row in asked.rows} - by_id.keys()
    if missing:
        raise DataError(f"the hub's copy of GQA lacks {len(missing)} images, {min(missing)} among them")
    pictures = [by_id[row.text("imageId")] for row in asked.rows]
    return Loaded(asked.rows, pictures, asked.fingerprint)
