"""TextVQA: questions about the text in photographs, with ten human answers each.

Knows the official files, the hub's columns and the protocols in circulation. Must not know: models,
methods. Singh et al., "Towards VQA Models That Can Read", CVPR 2019; version 0.5.1.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

from harness.pictures import Picture, picture_in
from harness.types import Decoding, Json, Request, Sample, Task
from metrics import vqa
from tasks import _hub
from tasks._source import (
    SHORT,
    Download,
    Loaded,
    Row,
    Size,
    Source,
    check_folder,
    entries,
    fingerprint,
    first_of,
    samples_of,
    select,
    short_question,
    vicrop,
    vicrop_sample,
)

Protocol = Literal["lmms", "llava", "vicrop", "vlmevalkit"]
Split = Literal["validation", "test"]

SOURCE = Source(
    title="TextVQA 0.5.1",
    licence="CC BY 4.0",
    layout="TextVQA_0.5.1_val.json (and TextVQA_Rosetta_OCR_v0.2_val.json for ocr=rosetta), train_images/",
    hub=("lmms-lab/textvqa", "lmms-lab-encoder/textvqa"),
    files=(
        Download(
            "TextVQA_0.5.1_val.json", "https://dl.fbaipublicfiles.com/textvqa/data/TextVQA_0.5.1_val.json"
        ),
        Download(
            "TextVQA_Rosetta_OCR_v0.2_val.json",
            "https://dl.fbaipublicfiles.com/textvqa/data/TextVQA_Rosetta_OCR_v0.2_val.json",
        ),
        Download(
            "train_val_images.zip",
            "https://dl.fbaipublicfiles.com/textvqa/images/train_val_images.zip",
            unpack=".",
        ),
    ),
)

_SIZES = {"validation": 5000, "test": 5734}
_METRICS: dict[Protocol, vqa.Variant] = {
    "lmms": "m4c",
    "llava": "m4c",
    "vicrop": "vicrop",
    "vlmevalkit": "vlmevalkit",
}


def task(
    root: Path | None = None,
    *,
    split: Split = "validation",
    protocol: Protocol = "lmms",
    ocr: Literal["none", "rosetta"] | None = None,
    format: Literal["official", "vicrop"] = "official",
    subset: str | None = None,
    size: Size = "official",
    revision: str | None = None,
) -> Task:
    """TextVQA: 5,000 validation questions, or the 5,734 of the test split, which have no answers.

    root: the official files; without it, the hub. protocol: `lmms` (the question capitalised as
    `str.capitalize` does, 1,024 tokens), `llava` (OCR tokens in the prompt, 128), `vicrop` (20; its score
    is min(1, 0.3 n)), `vlmevalkit`. ocr: whether Rosetta's tokens stand in the prompt, worth several
    points; the default is the protocol's. format=vicrop: root is ViCrop's unified file. subset: as in
    random:500@seed=42. size=any: files of other lengths. revision: of the hub's copy.
    """
    ocr = ocr or ("rosetta" if protocol == "llava" else "none")
    if format == "vicrop":
        loaded = vicrop(root)
        samples = samples_of(loaded, vicrop_sample, "textvqa", (), "any")
    else:
        loaded = _load(root, split, ocr, revision)
        samples = samples_of(loaded, _sample, f"textvqa {split}", [_SIZES[split]], size)
    return Task(
        name="textvqa",
        version="0.5.1",
        protocol=f"{protocol}, ocr={ocr}",
        fingerprint=loaded.fingerprint,
        samples=select(samples, subset),
        request=partial(_request, protocol=protocol, ocr=ocr),
        metrics=(vqa.metric(_METRICS[protocol]),) if split == "validation" else (),
        primary="accuracy",
    )


def submission(pairs: list[tuple[Sample, str]]) -> Json:
    """EvalAI's file: a list of question_id and answer."""
    return [{"question_id": int(sample.id), "answer": answer} for sample, answer in pairs]


def _request(sample: Sample, protocol: Protocol, ocr: str) -> Request:
    question = sample.question.capitalize() if protocol == "lmms" else sample.question
    tokens: list[str] = list(sample.meta.get("ocr_tokens") or ())  # type: ignore[arg-type]
    seen = f"\nReference OCR token: {', '.join(tokens)}" if ocr == "rosetta" else ""
    limits = {"lmms": 1024, "llava": 128, "vicrop": 20, "vlmevalkit": 512}
    return Request(
        sample.images,
        question,
        f"{seen}{' ' if protocol == 'vicrop' else chr(10)}{SHORT}",
        decoding=Decoding(max_tokens=limits[protocol], stop=("ASSISTANT:",) if protocol == "lmms" else ()),
        hints=short_question(sample),
    )


def _sample(row: Row, picture: Picture) -> Sample:
    return Sample(
        id=row.text("question_id"),
        images=(picture,),
        question=row.text("question"),
        targets=row.texts("answers") if row.get("answers") else (),
        meta=row.some("image_id", "ocr_tokens"),
    )


def _load(root: Path | None, split: Split, ocr: str, revision: str | None) -> Loaded:
    if root is None:
        return _hub.load(SOURCE.hub, None, split, revision=revision)
    root = check_folder(Path(root), SOURCE.layout)
    short = {"validation": "val", "test": "test"}[split]
    paths = [first_of(root, f"TextVQA_0.5.1_{short}.json")]
    rows = entries(paths[0], "data")
    if ocr == "rosetta":
        paths.append(first_of(root, f"TextVQA_Rosetta_OCR_v0.2_{short}.json"))
        seen = {row.text("image_id"): row.get("ocr_tokens") for row in entries(paths[1], "data")}
        rows = [
            Row({**row.values, "ocr_tokens": seen.get(row.text("image_id")) or []}, row.where) for row in rows
        ]
    folder = first_of(root, *(("train_images", "images") if short == "val" else ("test_images", "images")))
    pictures = [picture_in(folder, f"{row.text('image_id')}.jpg") for row in rows]
    return Loaded(rows, pictures, fingerprint(paths))
