"""VQAv2: open questions about COCO images, with ten human answers each.

Knows the official files, the hub's columns and the protocols in circulation. Must not know: models,
methods. Goyal et al., "Making the V in VQA Matter", CVPR 2017; https://visualqa.org.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from harness.errors import DataError
from harness.pictures import Picture, picture_in
from harness.types import Json, Sample, Task
from metrics import vqa
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
    check_ids,
    entries,
    fingerprint,
    first_of,
    samples_of,
    vicrop,
    vicrop_sample,
)

Protocol = Literal["llava", "lmms", "vicrop", "vlmevalkit"]
Split = Literal["validation", "test-dev", "test"]

_HOST = "https://s3.amazonaws.com/cvmlp/vqa/mscoco/vqa"
SOURCE = Source(
    title="VQAv2",
    size="214,354 (test-dev 107,394)",
    metric="VQA accuracy, official",
    licence="CC BY 4.0 (annotations); images: COCO 2014's terms",
    layout="v2_OpenEnded_mscoco_val2014_questions.json, v2_mscoco_val2014_annotations.json, val2014/; for "
    "split=test-dev v2_OpenEnded_mscoco_test-dev2015_questions.json (for split=test test2015), test2015/",
    hub=("lmms-lab/VQAv2", "lmms-lab-encoder/VQAv2"),
    files=(
        Download("v2_Questions_Val_mscoco.zip", f"{_HOST}/v2_Questions_Val_mscoco.zip", unpack="."),
        Download("v2_Annotations_Val_mscoco.zip", f"{_HOST}/v2_Annotations_Val_mscoco.zip", unpack="."),
        Download("val2014.zip", "http://images.cocodataset.org/zips/val2014.zip", unpack="."),
    ),
)

_SIZES = {"validation": 214_354, "test-dev": 107_394, "test": 447_793}
_FILES = {"validation": "val2014", "test-dev": "test-dev2015", "test": "test2015"}
_PROTOCOLS: dict[Protocol, tuple[str, int, vqa.Variant]] = {
    "llava": (f"\n{SHORT}", 128, "official"),
    "lmms": (f"\n{SHORT}", 16, "official"),
    "vicrop": (f" {SHORT}", 20, "vicrop"),
    "vlmevalkit": (f"\n{SHORT}", 2048, "vlmevalkit"),
}


def task(
    root: Path | None = None,
    *,
    split: Split = "validation",
    protocol: Protocol = "llava",
    format: Literal["official", "vicrop"] = "official",
    subset: str | None = None,
    size: Size = "official",
    hf_id: str | None = None,
    revision: str | None = None,
) -> Task:
    """VQAv2: 214,354 validation questions; `test-dev` (107,394) and `test` (447,793) have no answers.

    root: the official files; without it, the hub. protocol: `llava` (128 tokens; published on test-dev),
    `lmms` (16), `vicrop` (20; its score is min(1, 0.3 n)), `vlmevalkit`. Scores are also shown by answer
    type and question type. format=vicrop: root is ViCrop's unified file. subset: as in
    random:500@seed=42. size=any: files of other lengths. hf_id, revision: another dataset of the same
    columns (a hub's id, or a folder), and its commit.
    """
    if format == "vicrop":
        loaded = vicrop(root)
        samples = samples_of(loaded, vicrop_sample, "vqav2", (), "any", subset)
    else:
        tables = _hub.tables(SOURCE.hub, hf_id, revision)
        loaded = tables(None, split.replace("-", "")) if root is None else _load(Path(root), split)
        make = partial(_sample, answered=split == "validation")
        samples = samples_of(loaded, make, f"vqav2 {split}", [_SIZES[split]], size, subset)
    instruction, tokens, variant = _PROTOCOLS[protocol]
    return Task(
        name="vqav2",
        version="2.0",
        protocol=protocol,
        fingerprint=loaded.fingerprint,
        samples=samples,
        request=partial(asked, instruction=instruction, tokens=tokens),
        metrics=(vqa.metric(variant),) if split == "validation" else (),
        primary="accuracy",
        postprocess=str if protocol == "vicrop" else str.strip,  # mllms_know scores what was generated
        breakdowns=("answer_type", "question_type"),
    )


def submission(pairs: Sequence[tuple[Sample, str]]) -> Json:
    """EvalAI's file: question_id and answer, normalised as LLaVA does before it submits."""
    return [{"question_id": int(sample.id), "answer": vqa.normalize(answer)} for sample, answer in pairs]


def _sample(row: Row, picture: Picture, answered: bool) -> Sample:
    return Sample(
        id=row.text("question_id"),
        images=(picture,),
        question=row.text("question"),
        targets=_answers(row) if answered else (),
        meta=row.some("image_id", "answer_type", "question_type"),
    )


def _answers(row: Row) -> tuple[str, ...]:
    """The ten answers; each is an object with the person's confidence beside it."""
    found: Any = row.get("answers") or []
    if not all(isinstance(entry, dict) and isinstance(entry.get("answer"), str) for entry in found):
        raise DataError(f"{row.where}: answers are not objects with an answer each")
    return Row({"answers": [entry["answer"] for entry in found]}, row.where).answers("answers")


def _load(root: Path, split: Split) -> Loaded:
    check_folder(root, SOURCE.layout)
    paths = [first_of(root, f"v2_OpenEnded_mscoco_{_FILES[split]}_questions.json")]
    rows = entries(paths[0], "questions")
    if split == "validation":
        paths.append(first_of(root, "v2_mscoco_val2014_annotations.json"))
        rows = _joined(rows, entries(paths[1], "annotations"))
    images = "val2014" if split == "validation" else "test2015"
    folder = first_of(root, images, f"images/{images}", "images")
    pictures = [picture_in(folder, f"COCO_{images}_{row.number('image_id'):012}.jpg") for row in rows]
    return Loaded(rows, pictures, fingerprint(paths))


def _joined(questions: Sequence[Row], annotations: Sequence[Row]) -> list[Row]:
    """Each question with its annotation, in the questions' order. Raises DataError for one without the
    other, and for a second annotation."""
    check_ids((row.text("question_id"), row.where) for row in annotations)
    by_id = {row.text("question_id"): row for row in annotations}
    for row in questions:
        if row.text("question_id") not in by_id:
            raise DataError(f"{row.where}: question {row.text('question_id')} has no annotation")
    lost = by_id.keys() - {row.text("question_id") for row in questions}
    if lost:
        raise DataError(f"{by_id[min(lost)].where}: there is no question {min(lost)} ({len(lost):,} such)")
    return [Row({**by_id[row.text("question_id")].values, **row.values}, row.where) for row in questions]
