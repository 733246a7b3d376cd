"""GQA: compositional questions about real scenes, one answer each (testdev, balanced).

Knows the official file, the hub's columns and the protocols in circulation. Must not know: models, methods.
Hudson & Manning, "GQA: A New Dataset for Real-World Visual Reasoning", CVPR 2019; questions 1.2.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

from harness.errors import DataError
from harness.pictures import Picture, picture_in
from harness.types import Sample, Task
from metrics import exact
from tasks import _hub
from tasks._source import (
    SHORT,
    Download,
    Loaded,
    Row,
    Size,
    Source,
    asked,
    check_folder,
    document,
    fingerprint,
    first_of,
    samples_of,
    vicrop,
    vicrop_sample,
)

Protocol = Literal["llava", "lmms", "vicrop", "vlmevalkit"]

SOURCE = Source(
    title="GQA 1.2, testdev_balanced",
    size="12,578",
    metric="exact match, LLaVA's",
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
    "vlmevalkit": (f"\n{SHORT}", 2048, "vlmevalkit"),
}


def task(
    root: Path | None = None,
    *,
    protocol: Protocol = "llava",
    format: Literal["official", "vicrop"] = "official",
    subset: str | None = None,
    size: Size = "official",
    hf_id: str | None = None,
    revision: str | None = None,
) -> Task:
    """GQA: the 12,578 questions of testdev_balanced, about 398 images.

    root: the official files; without it, the hub. protocol: `llava` (128 tokens; trailing dots and
    capitals are forgiven), `lmms` (16; punctuation is), `vicrop` (20; the reference may be part of the
    answer, so that "woman" counts as "man"), `vlmevalkit`. Scores are also shown by structural, semantic
    and detailed type, by the question's words and by the steps to its answer. format=vicrop: root is
    ViCrop's unified file. subset: as in random:500@seed=42. size=any: files of other lengths. hf_id,
    revision: another dataset of the same columns (a hub's id, or a folder), and its commit.
    """
    if format == "vicrop":
        loaded = vicrop(root)
        samples = samples_of(loaded, vicrop_sample, "gqa", (), "any", subset)
    else:
        tables = _hub.tables(SOURCE.hub, hf_id, revision)
        loaded = _from_hub(tables) if root is None else _load(Path(root))
        samples = samples_of(loaded, _sample, "gqa testdev_balanced", [_SIZE], size, subset)
    instruction, tokens, variant = _PROTOCOLS[protocol]
    return Task(
        name="gqa",
        version="1.2",
        protocol=protocol,
        fingerprint=loaded.fingerprint,
        samples=samples,
        request=partial(asked, instruction=instruction, tokens=tokens),
        metrics=(exact.metric(variant),),
        primary="accuracy",
        postprocess=str if protocol == "vicrop" else str.strip,  # mllms_know scores what was generated
        breakdowns=("structural", "semantic", "detailed", "words", "steps"),
    )


def _sample(row: Row, picture: Picture) -> Sample:
    kinds, steps = row.get("types"), row.get("semantic")
    types = Row(kinds if isinstance(kinds, dict) else {}, row.where)
    return Sample(
        id=row.text("id"),
        images=(picture,),
        question=row.text("question"),
        targets=(row.text("answer"),),
        meta={
            "image_id": row.text("imageId"),
            **types.some("structural", "semantic", "detailed"),
            "words": f"{len(row.text('question').split()):02}",  # two digits: groups are sorted as texts
            **({"steps": f"{len(steps):02}"} if isinstance(steps, list) else {}),
        },
    )


def _load(root: Path) -> Loaded:
    check_folder(root, SOURCE.layout)
    path = first_of(root, "testdev_balanced_questions.json", "questions1.2/testdev_balanced_questions.json")
    content = document(path, unique=True)
    if not all(isinstance(entry, dict) for entry in content.values()):
        raise DataError(f"{path} is not an object of questions by their ids")
    rows = [Row({**entry, "id": name}, f"{path}, {name}") for name, entry in content.items()]
    pictures = [picture_in(root / "images", f"{row.text('imageId')}.jpg") for row in rows]
    return Loaded(rows, pictures, fingerprint([path]))


def _from_hub(tables: _hub.Tables) -> Loaded:
    """Questions and images are two tables, joined by the image's id."""
    asked = tables("testdev_balanced_instructions", "testdev")
    shown = tables("testdev_balanced_images", "testdev")
    by_id = {row.text("id"): picture for row, picture in zip(shown.rows, shown.pictures, strict=True)}
    missing = {row.text("imageId") for row in asked.rows} - by_id.keys()
    if missing:
        raise DataError(f"the hub's copy of GQA lacks {len(missing)} images, {min(missing)} among them")
    pictures = [by_id[row.text("imageId")] for row in asked.rows]
    return Loaded(asked.rows, pictures, asked.fingerprint)
