"""TextVQA: questions about the text in photographs, with ten human answers each.

Knows the official files, the hub's columns and the protocols in circulation. Must not know: models,
methods. Singh et al., "Towards VQA Models That Can Read", CVPR 2019; version 0.5.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from harness.errors import DataError
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
    rows,
    samples_of,
    short_question,
    vicrop,
    vicrop_sample,
)

Protocol = Literal["lmms", "llava", "vicrop", "vlmevalkit"]
Split = Literal["validation", "test"]
Ocr = Literal["none", "rosetta"]

SOURCE = Source(
    title="TextVQA 0.5.1",
    size="5,000 (test 5,734)",
    metric="VQA accuracy, m4c",
    licence="CC BY 4.0",
    layout="TextVQA_0.5.1_val.json and train_images/; for ocr=rosetta also TextVQA_Rosetta_OCR_v0.2_val.json "
    "or LLaVA's llava_textvqa_val_v051_ocr.jsonl; for split=test the same of test, and test_images/",
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
_PROTOCOLS: dict[Protocol, tuple[str, int, vqa.Variant, Ocr]] = {
    "lmms": (f"\n{SHORT}", 1024, "m4c", "none"),
    "llava": (f"\n{SHORT}", 128, "m4c", "rosetta"),
    "vicrop": (f" {SHORT}", 20, "vicrop", "none"),
    "vlmevalkit": (f"\n{SHORT}", 2048, "vlmevalkit", "none"),
}
"""Instruction, new tokens at most, metric, OCR tokens in the prompt."""


def task(
    root: Path | None = None,
    *,
    split: Split = "validation",
    protocol: Protocol = "lmms",
    ocr: Literal["auto", "none", "rosetta"] = "auto",
    format: Literal["official", "vicrop"] = "official",
    subset: str | None = None,
    size: Size = "official",
    hf_id: str | None = None,
    revision: str | None = None,
) -> Task:
    """TextVQA: 5,000 validation questions, or the 5,734 of the test split, which have no answers.

    root: the official files; without it, the hub. protocol: `lmms` (the question capitalised as
    `str.capitalize` does, 1,024 tokens), `llava` (OCR tokens in the prompt, 128), `vicrop` (20; its score
    is min(1, 0.3 n)), `vlmevalkit`. ocr: whether Rosetta's tokens stand in the prompt, worth several
    points; `auto` is as the protocol has it, and another choice becomes part of the protocol's name.
    format=vicrop: root is ViCrop's unified file, which has no such tokens. subset: as in
    random:500@seed=42. size=any: files of other lengths. hf_id, revision: another dataset of the same
    columns (a hub's id, or a folder), and its commit.
    """
    _, _, variant, usual = _PROTOCOLS[protocol]
    seen: Ocr = usual if ocr == "auto" else ocr
    if format == "vicrop":
        if seen == "rosetta":
            raise DataError(
                "ViCrop's unified file has no OCR tokens: say ocr=none, or use the official files"
            )
        loaded = vicrop(root)
        samples = samples_of(loaded, vicrop_sample, "textvqa", (), "any", subset)
    else:
        tables = _hub.tables(SOURCE.hub, hf_id, revision)
        loaded = tables(None, split) if root is None else _load(Path(root), split, protocol, seen)
        make = partial(_sample, answered=split == "validation", ocr=seen)
        samples = samples_of(loaded, make, f"textvqa {split}", [_SIZES[split]], size, subset)
    return Task(
        name="textvqa",
        version="0.5.1",
        protocol=protocol if seen == usual else f"{protocol}, ocr={seen}",
        fingerprint=loaded.fingerprint,
        samples=samples,
        request=partial(_request, protocol=protocol),
        metrics=(vqa.metric(variant),) if split == "validation" else (),
        primary="accuracy",
        postprocess=str if protocol == "vicrop" else str.strip,  # mllms_know scores what was generated
    )


def submission(pairs: Sequence[tuple[Sample, str]]) -> Json:
    """EvalAI's file: a list of question_id and answer."""
    return [{"question_id": int(sample.id), "answer": answer} for sample, answer in pairs]


def _request(sample: Sample, protocol: Protocol) -> Request:
    instruction, tokens, _, _ = _PROTOCOLS[protocol]
    seen = f"\nReference OCR token: {sample.meta['ocr']}" if "ocr" in sample.meta else ""
    return Request(
        sample.images,
        sample.question.capitalize() if protocol == "lmms" else sample.question,
        seen + instruction,
        decoding=Decoding(max_tokens=tokens, stop=("ASSISTANT:",) if protocol == "lmms" else ()),
        hints=short_question(sample),
    )


def _sample(row: Row, picture: Picture, answered: bool, ocr: Ocr) -> Sample:
    meta = row.some("image_id")
    if ocr == "rosetta":  # the hub's tokens are a list; those of files are joined already
        meta |= row.some("ocr") if "ocr" in row.values else {"ocr": ", ".join(row.texts("ocr_tokens"))}
    return Sample(
        id=row.text("question_id"),
        images=(picture,),
        question=row.text("question"),
        targets=row.answers("answers") if answered else (),
        meta=meta,
    )


def _load(root: Path, split: Split, protocol: Protocol, ocr: Ocr) -> Loaded:
    check_folder(root, SOURCE.layout)
    short = {"validation": "val", "test": "test"}[split]
    paths = [first_of(root, f"TextVQA_0.5.1_{short}.json")]
    found = entries(paths[0], "data")
    if ocr == "rosetta":
        names = [f"TextVQA_Rosetta_OCR_v0.2_{short}.json", f"llava_textvqa_{short}_v051_ocr.jsonl"]
        paths.append(first_of(root, *(reversed(names) if protocol == "llava" else names)))
        found = _with_ocr(found, paths[1])
    folder = first_of(root, *(("train_images", "images") if short == "val" else ("test_images", "images")))
    pictures = [picture_in(folder, f"{row.text('image_id')}.jpg") for row in found]
    return Loaded(found, pictures, fingerprint(paths))


def _with_ocr(found: Sequence[Row], path: Path) -> list[Row]:
    """The rows with their OCR tokens, by image, or by image and question from LLaVA's file of prompts."""
    seen: dict[tuple[str, str], str | None] = {}
    if path.suffix == ".jsonl":  # question, tokens (a prompt may have no such line), instruction
        for row in rows(path):
            question, *tokens = row.text("text").split("\nReference OCR token: ")
            key = (row.text("question_id"), question.split("\n")[0].lower())  # as LLaVA's eval_textvqa.py
            seen[key] = tokens[0].removesuffix(f"\n{SHORT}") if tokens else None
        keys = [(row.text("image_id"), row.text("question").lower()) for row in found]
    else:
        for row in entries(path, "data"):
            seen[row.text("image_id"), ""] = ", ".join(row.texts("ocr_tokens"))
        keys = [(row.text("image_id"), "") for row in found]
    for row, key in zip(found, keys, strict=True):
        if key not in seen:
            raise DataError(f"{row.where}: {path} has no OCR tokens for the image {key[0]}")
    return [Row({**row.values, "ocr": seen[key]}, row.where) for row, key in zip(found, keys, strict=True)]
