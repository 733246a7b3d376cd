"""A-OKVQA: questions that need knowledge of the world; ten direct answers, and four choices.

Knows the official files, the hub's columns and the protocols in circulation. Must not know: models,
methods. Schwenk et al., "A-OKVQA", ECCV 2022; version 1.0, validation split; images COCO 2017.
"""

from __future__ import annotations

import ast
from functools import partial
from pathlib import Path
from string import ascii_uppercase
from typing import Literal

from harness.errors import DataError
from harness.pictures import Picture, picture_in
from harness.types import Decoding, Hints, Metric, Request, Sample, Task
from metrics import aokvqa, choice
from tasks import _hub
from tasks._source import (
    LETTER,
    SHORT,
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
    short_question,
    vicrop,
    vicrop_sample,
)

Protocol = Literal["llava", "lmms", "vicrop", "vlmevalkit"]
Answers = Literal["direct", "choice"]

SOURCE = Source(
    title="A-OKVQA 1.0",
    size="1,145",
    metric="direct answers, or multiple choice",
    licence="Apache-2.0 (annotations); images: COCO 2017's terms",
    layout="aokvqa_v1p0_val.json, val2017/ (or images/)",
    hub=("HuggingFaceM4/A-OKVQA",),
    files=(
        Download(
            "aokvqa_v1p0.tar.gz",
            "https://prior-datasets.s3.us-east-2.amazonaws.com/aokvqa/aokvqa_v1p0.tar.gz",
            unpack=".",
        ),
        Download("val2017.zip", "http://images.cocodataset.org/zips/val2017.zip", unpack="."),
    ),
)

_SIZE = 1145
_TOKENS: dict[Protocol, int] = {"llava": 20, "lmms": 16, "vicrop": 20, "vlmevalkit": 2048}


def task(
    root: Path | None = None,
    *,
    answers: Answers = "direct",
    protocol: Protocol = "llava",
    format: Literal["official", "vicrop"] = "official",
    subset: str | None = None,
    size: Size = "official",
    hf_id: str | None = None,
    revision: str | None = None,
) -> Task:
    """A-OKVQA: the 1,145 validation questions.

    root: the official files; without it, the hub. answers: `direct` (ten free answers; difficult
    questions are left out, as the official evaluation does; the score of normalised answers stands beside
    the official one) or `choice` (of four, by letter). protocol: `vicrop` is the only published one for
    direct answers, and has no other (20 tokens, all questions, both sides normalised); `llava` and `lmms`
    ask with their usual short-answer and letter prompts; `vlmevalkit` has a multiple-choice prompt only.
    format=vicrop: root is ViCrop's unified file (direct answers). subset: as in random:500@seed=42.
    size=any: files of other lengths. hf_id, revision: another dataset of the same columns (a hub's id, or
    a folder), and its commit.
    """
    if protocol == "vlmevalkit" and answers == "direct":
        raise ValueError("protocol=vlmevalkit asks for a choice only; say answers=choice")
    if answers == "choice" and "vicrop" in (protocol, format):
        raise ValueError(
            "ViCrop asks for direct answers only, and its file has no choices; say answers=direct"
        )
    if format == "vicrop":
        loaded = vicrop(root)
        samples = samples_of(loaded, vicrop_sample, "aokvqa", (), "any", subset)
    else:
        tables = _hub.tables(SOURCE.hub, hf_id, revision)
        loaded = tables(None, "validation") if root is None else _load(Path(root))
        samples = samples_of(loaded, partial(_sample, answers=answers), "aokvqa val", [_SIZE], size, subset)
    return Task(
        name="aokvqa",
        version="1.0",
        protocol=protocol if answers == "direct" else f"{protocol}, choice",
        fingerprint=loaded.fingerprint,
        samples=samples,
        request=partial(_request, answers=answers, protocol=protocol),
        metrics=_metrics(answers, protocol),
        primary="accuracy",
        postprocess=str if protocol == "vicrop" else str.strip,  # mllms_know scores what was generated
    )


def _metrics(answers: Answers, protocol: Protocol) -> tuple[Metric, ...]:
    if answers == "choice":
        return (choice.metric("vlmevalkit" if protocol == "vlmevalkit" else "strict"),)
    if protocol == "vicrop":
        return (aokvqa.metric("vicrop"),)
    return (aokvqa.metric("official"), aokvqa.metric("normalised"))


def _request(sample: Sample, answers: Answers, protocol: Protocol) -> Request:
    """The options belong to the question: what a method asks instead of it has none."""
    question, instruction = sample.question, f"{' ' if protocol == 'vicrop' else chr(10)}{SHORT}"
    hints = short_question(sample)
    if answers == "choice":
        options: list[str] = list(sample.meta["options"])  # type: ignore[arg-type]
        listed = "".join(f"\n{letter}. {o}" for letter, o in zip(ascii_uppercase, options, strict=False))
        question, instruction, hints = question + listed, f"\n{LETTER}", Hints(sample.question)
        if protocol == "vlmevalkit":
            question = f"Question: {sample.question}\nOptions:{listed}"
            instruction = "\nPlease select the correct answer from the options above. \n"
    return Request(
        sample.images, question, instruction, decoding=Decoding(max_tokens=_TOKENS[protocol]), hints=hints
    )


def _sample(row: Row, picture: Picture, answers: Answers) -> Sample:
    direct, options, index = _direct_answers(row), row.answers("choices"), row.number("correct_choice_idx")
    if index >= len(options):
        raise DataError(f"{row.where}: correct_choice_idx is {index}; there are {len(options)} choices")
    return Sample(
        id=row.text("question_id"),
        images=(picture,),
        question=row.text("question"),
        targets=direct if answers == "direct" else (options[index],),
        meta={
            "options": list(options),
            "answer_index": index,
            "difficult_direct_answer": bool(row.get("difficult_direct_answer")),
        },
    )


def _direct_answers(row: Row) -> tuple[str, ...]:
    """The ten answers; the hub's copy holds them as the text of a Python list."""
    stored = row.get("direct_answers")
    if isinstance(stored, str):
        try:
            found = ast.literal_eval(stored)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            found = None
        if not isinstance(found, list):
            raise DataError(f"{row.where}: direct_answers is {stored[:60]!r}, which is no list")
        return Row({"direct_answers": found}, row.where).answers("direct_answers")
    return row.answers("direct_answers")


def _load(root: Path) -> Loaded:
    check_folder(root, SOURCE.layout)
    path = first_of(root, "aokvqa_v1p0_val.json")
    folder = first_of(root, "val2017", "images/val2017", "images")
    found = rows(path)
    pictures = [picture_in(folder, f"{row.number('image_id'):012}.jpg") for row in found]
    return Loaded(found, pictures, fingerprint([path]))
