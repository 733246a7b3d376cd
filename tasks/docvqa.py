"""DocVQA (single page): questions about scanned documents, scored by ANLS.

Knows the official files, the hub's columns and the protocols in circulation. Must not know: models,
methods. Mathew et al., "DocVQA: A Dataset for VQA on Document Images", WACV 2021 (task 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Literal

from harness.pictures import Picture, picture_in
from harness.types import Json, Sample, Task
from metrics import anls
from tasks import _hub
from tasks._source import (
    SHORT,
    Loaded,
    Row,
    Size,
    Source,
    asked,
    check_folder,
    entries,
    fingerprint,
    first_of,
    samples_of,
    vicrop,
    vicrop_sample,
)

Protocol = Literal["lmms", "vicrop", "vlmevalkit"]
Split = Literal["validation", "test"]

SOURCE = Source(
    title="DocVQA, single page (task 1)",
    size="5,349 (test 5,188)",
    metric="ANLS",
    licence="research use; the portal's terms",
    layout="spdocvqa_qas/val_v1.0_withQT.json (for split=test test_v1.0.json), spdocvqa_images/",
    hub=("lmms-lab/DocVQA", "lmms-lab-encoder/DocVQA"),
    form="register at https://rrc.cvc.uab.es/?ch=17 (Downloads) and unpack questions and images into root",
)

_SIZES = {"validation": 5349, "test": 5188}
_PROTOCOLS: dict[Protocol, tuple[str, int, anls.Variant]] = {
    "lmms": (f"\n{SHORT}", 32, "lmms"),
    "vicrop": (f" {SHORT}", 20, "vicrop_docvqa"),
    "vlmevalkit": (f"\n{SHORT}", 2048, "lmms"),
}


def task(
    root: Path | None = None,
    *,
    split: Split = "validation",
    protocol: Protocol = "lmms",
    format: Literal["official", "vicrop"] = "official",
    subset: str | None = None,
    size: Size = "official",
    hf_id: str | None = None,
    revision: str | None = None,
) -> Task:
    """DocVQA: 5,349 validation questions, or the 5,188 of the test split, which have no answers.

    root: the official files; without it, the hub. protocol: `lmms` (32 tokens, ANLS), `vicrop` (20; its
    score is no ANLS: a label contains the answer or the answer a label), `vlmevalkit`. Scores are also
    shown by question type; a question counts in each of its types. format=vicrop: root is ViCrop's
    unified file. subset: as in random:500@seed=42. size=any: files of other lengths. hf_id, revision:
    another dataset of the same columns (a hub's id, or a folder), and its commit.
    """
    if format == "vicrop":
        loaded = vicrop(root)
        samples = samples_of(loaded, vicrop_sample, "docvqa", (), "any", subset)
    else:
        tables = _hub.tables(SOURCE.hub, hf_id, revision)
        loaded = tables("DocVQA", split) if root is None else _load(Path(root), split)
        make = partial(_sample, answered=split == "validation")
        samples = samples_of(loaded, make, f"docvqa {split}", [_SIZES[split]], size, subset)
    instruction, tokens, variant = _PROTOCOLS[protocol]
    return Task(
        name="docvqa",
        version="1.0",
        protocol=protocol,
        fingerprint=loaded.fingerprint,
        samples=samples,
        request=partial(asked, instruction=instruction, tokens=tokens),
        metrics=(anls.metric(variant),) if split == "validation" else (),
        primary="anls",
        postprocess=str if protocol == "vicrop" else str.strip,  # mllms_know scores what was generated
        breakdowns=("question_types",),
    )


def submission(pairs: Sequence[tuple[Sample, str]]) -> Json:
    """The RRC portal's file: a list of questionId and answer."""
    return [{"questionId": int(sample.id), "answer": answer} for sample, answer in pairs]


def _sample(row: Row, picture: Picture, answered: bool) -> Sample:
    return Sample(
        id=row.text("questionId"),
        images=(picture,),
        question=row.text("question"),
        targets=row.answers("answers") if answered else (),
        meta=row.some("question_types", "docId", "ucsf_document_id", "ucsf_document_page_no"),
    )


def _load(root: Path, split: Split) -> Loaded:
    check_folder(root, SOURCE.layout)
    name = {"validation": "val_v1.0_withQT.json", "test": "test_v1.0.json"}[split]
    path = first_of(root, f"spdocvqa_qas/{name}", name)
    folder = first_of(root, "spdocvqa_images", "images", "documents")
    rows = entries(path, "data")
    # releases differ in the leading folder; only the file's own name matters
    pictures = [picture_in(folder, PurePosixPath(row.text("image")).name) for row in rows]
    return Loaded(rows, pictures, fingerprint([path]))
