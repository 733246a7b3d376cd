"""V*: multiple choice about small things in large photographs.

Knows both forms of the files, the hub's columns and the protocols in circulation. Must not know: models,
methods. Wu & Xie, "V*: Guided Visual Search as a Core Mechanism in Multimodal LLMs", CVPR 2024.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from string import ascii_uppercase
from typing import Any, Literal

from harness.errors import DataError
from harness.pictures import Picture, picture_in
from harness.types import Decoding, Hints, Json, Request, Sample, Task
from metrics import choice
from tasks import _hub
from tasks._source import (
    LETTER,
    SHORT,
    Loaded,
    Row,
    Size,
    Source,
    check_folder,
    check_size,
    document,
    fingerprint,
    rows,
    samples_of,
    vicrop,
    vicrop_sample,
)

Protocol = Literal["lmms", "official", "vicrop", "vlmevalkit"]

SOURCE = Source(
    title="V* bench",
    size="191 = 115 + 76",
    metric="multiple choice",
    licence="none declared; images mostly SA-1B's (research)",
    layout="test_questions.jsonl, direct_attributes/ and relative_position/ (or only the folders)",
    hub=("lmms-lab/vstar-bench", "craigwu/vstar_bench"),
    form="git clone https://huggingface.co/datasets/craigwu/vstar_bench into root",
)

CATEGORIES = {"direct_attributes": 115, "relative_position": 76}
_TOKENS: dict[Protocol, int] = {"lmms": 16, "official": 0, "vicrop": 20, "vlmevalkit": 2048}
_PARSERS: dict[Protocol, choice.Parser | choice.Likelihood] = {
    "lmms": "lmms",
    "official": "likelihood",
    "vicrop": "vicrop",
    "vlmevalkit": "vlmevalkit",
}
_OPTION = re.compile(r"^\(([A-Z])\) ?(.*)$", re.MULTILINE)


def task(
    root: Path | None = None,
    *,
    protocol: Protocol = "lmms",
    parser: choice.Parser | None = None,
    exact_prompt: bool = False,
    format: Literal["official", "vicrop"] = "official",
    shuffle: int = 0,
    subset: str | None = None,
    size: Size = "official",
    hf_id: str | None = None,
    revision: str | None = None,
) -> Task:
    """V*: 191 questions, 115 about attributes (four options) and 76 about positions (two).

    root: test_questions.jsonl and its pictures, or only the folders with a JSON beside each picture, whose
    options are then put in an order drawn from `shuffle` (the first is always the right one there); without
    it, the hub. protocol: `lmms` (letters, 16 tokens), `official` (no text: which option the model finds
    most likely; the folders' own options where they are there), `vicrop` (20 tokens, the options listed as
    in the dataset), `vlmevalkit`. parser: another than the protocol's. exact_prompt: lmms-eval's prompt
    repeats its instruction and loses options with parentheses; true keeps that. format=vicrop: root is
    ViCrop's unified file. subset: as in random:100@seed=42. size=any: files of other lengths. hf_id,
    revision: another dataset (a hub's id, or a folder) with the columns of lmms-lab/vstar-bench, of
    craigwu/vstar_bench or of ohjoonhee/vstar_bench, and its commit.

    The targets' box, where the folders' JSON gives it, is the region for oracle crops.
    """
    if exact_prompt and protocol != "lmms":
        raise ValueError(f"exact_prompt=true is about lmms-eval's prompt; protocol is {protocol}")
    if parser and protocol == "official":
        raise ValueError("protocol=official has no text to parse; leave parser out")
    version = "1"
    if format == "vicrop":
        loaded = vicrop(root)
        samples = samples_of(loaded, _vicrop_sample, "vstar", (), "any", subset)
    else:
        tables = _hub.tables(SOURCE.hub, hf_id, revision)
        loaded = tables(None, "test") if root is None else _load(Path(root), protocol, shuffle)
        if root is not None and not (Path(root) / _QUESTIONS).exists() and protocol != "official":
            version = f"1, shuffle={shuffle}"
        for category, expected in CATEGORIES.items() if subset is None else ():
            number = sum(row.get("category") == category for row in loaded.rows)
            check_size(f"vstar {category}", number, [expected], size)
        samples = samples_of(loaded, _sample, "vstar", [sum(CATEGORIES.values())], size, subset)
    return Task(
        name="vstar",
        version=version,
        protocol=f"{protocol}, to the byte" if exact_prompt else protocol,
        fingerprint=loaded.fingerprint,
        samples=samples,
        request=partial(_request, protocol=protocol, exact_prompt=exact_prompt),
        metrics=(choice.metric(parser or _PARSERS[protocol]),),
        primary="accuracy",
        postprocess=str if protocol == "vicrop" else str.strip,  # mllms_know scores what was generated
    )


def _request(sample: Sample, protocol: Protocol, exact_prompt: bool) -> Request:
    """The options belong to the question: what a method asks instead of it has none."""
    text = str(sample.meta["text"])
    options: list[str] = list(sample.meta["options"])  # type: ignore[arg-type]
    listed = [f"{letter}. {option}" for letter, option in zip(ascii_uppercase, options, strict=False)]
    question, instruction = sample.question, ""
    if protocol == "lmms":
        question = _as_lmms_asks(text) if exact_prompt else "\n".join([question, *listed])
        instruction = f"\n{LETTER}"
    elif protocol == "vicrop":
        question, instruction = text, f" {SHORT}"
    elif protocol == "vlmevalkit":
        question = "\n".join([f"Question: {question}", "Options:", *listed])
        instruction = "\nPlease select the correct answer from the options above. \n"
    region: Any = sample.meta.get("region")
    return Request(
        sample.images,
        question,
        instruction,
        decoding=Decoding(max_tokens=_TOKENS[protocol]),
        hints=Hints(
            str(sample.meta.get("short_question", sample.question)), tuple(region) if region else None
        ),
        options=tuple(options) if protocol == "official" else (),
    )


# ---------------------------------------------------------------- samples


def split_text(text: str) -> tuple[str, list[str]]:
    """The question and the options of a V* text.

    >>> split_text("Is it left or right?\\n(A) right\\n(B) left\\n" + LETTER)
    ('Is it left or right?', ['right', 'left'])
    """
    question = text.split("\n(A)")[0].strip()
    return question, [option.strip() for _, option in _OPTION.findall(text)]


def _as_lmms_asks(text: str) -> str:
    """lmms-eval's question (`tasks/vstar_bench/utils.py`): the last option swallows the instruction, one
    with parentheses of its own is lost, and those after it move up a letter."""
    parts = [part.strip() for part in re.split(r"\s*\([A-D]\)\s*", text)[1:]]
    kept = [part for part in parts if part and not re.search(r"[()]", part)]
    listed = [f"{letter}. {part}" for letter, part in zip("ABCD", kept, strict=False)]
    return "\n".join([text.split("(A)")[0].strip(), *listed]) if listed else text


def joined_text(question: str, options: Sequence[str]) -> str:
    """A V* text again: the question, its lettered options, and the instruction."""
    listed = "".join(f"({letter}) {o}\n" for letter, o in zip(ascii_uppercase, options, strict=False))
    return f"{question}\n{listed}{LETTER}"


def _sample(row: Row, picture: Picture) -> Sample:
    """Of a text with its options and a letter; or of a question, its choices and the right one's number."""
    if row.get("choices") is None:
        text, label = row.text("text"), row.text("label")
        question, options = split_text(text)
    else:
        question, options = row.text("question"), list(row.answers("choices"))
        text, label = joined_text(question, options), _letter(row.number("answer"))
    name = row.where.rpartition(" ")[2] if row.get("question_id") is None else row.text("question_id")
    return Sample(
        id=name,
        images=(picture,),
        question=question,
        targets=(label,),
        category=row.text("category"),
        meta={"text": text, **_options(row, options, label), **row.some("region")},
    )


def _vicrop_sample(row: Row, picture: Picture) -> Sample:
    """Of ViCrop's unified file: the whole text is the question, the letter stands in the labels."""
    plain = vicrop_sample(row, picture)
    question, options = split_text(plain.question)
    label = row.answers("labels")[0]
    meta = {**plain.meta, "text": plain.question, **_options(row, options, label)}
    return replace(plain, question=question, targets=(label,), category=row.get("category"), meta=meta)


def _letter(number: int) -> str:
    return ascii_uppercase[number : number + 1]


def _options(row: Row, options: Sequence[str], label: str) -> dict[str, Json]:
    letters = list(ascii_uppercase[: len(options)])
    if label not in letters:
        raise DataError(f"{row.where}: the label {label!r} names none of the {len(options)} options")
    return {"options": list(options), "answer_index": letters.index(label)}


# ---------------------------------------------------------------- files

_QUESTIONS = "test_questions.jsonl"


def _load(root: Path, protocol: Protocol, shuffle: int) -> Loaded:
    """The questions' file, with the boxes of the folders; or the folders' own questions."""
    check_folder(root, SOURCE.layout)
    paths = [path for category in CATEGORIES for path in sorted((root / category).glob("*.json"))]
    if (root / _QUESTIONS).exists() and not (protocol == "official" and paths):
        boxes = {f"{path.parent.name}/{path.stem}": _box(Row(document(path), str(path))) for path in paths}
        paths = [root / _QUESTIONS, *paths]
        found = [
            Row({**row.values, **boxes.get(row.text("image").rpartition(".")[0], {})}, row.where)
            for row in rows(root / _QUESTIONS)
        ]
    else:
        found = [_from_file(path, None if protocol == "official" else shuffle) for path in paths]
    if not found:
        raise DataError(f"{root} holds neither {_QUESTIONS} nor {' and '.join(CATEGORIES)}")
    return Loaded(found, [picture_in(root, row.text("image")) for row in found], fingerprint(paths))


def _from_file(path: Path, shuffle: int | None) -> Row:
    """The row of a picture's own JSON, whose first option is the right one: shuffled, unless for None."""
    row = Row(document(path), str(path))
    options = list(row.answers("options"))
    order = list(range(len(options)))
    name = f"{path.parent.name}/{path.stem}"
    if shuffle is not None:
        random.Random(f"{shuffle} {name}").shuffle(order)
    pictures = [file for file in sorted(path.parent.glob(f"{path.stem}.*")) if file.suffix != ".json"]
    values = {
        "question_id": name,
        "image": f"{path.parent.name}/{pictures[0].name}" if pictures else f"{name}.jpg",
        "category": path.parent.name,
        "text": joined_text(row.text("question"), [options[place] for place in order]),
        "label": _letter(order.index(0)),
    }
    return Row({**values, **_box(row)}, str(path))


def _box(row: Row) -> Mapping[str, Json]:
    """The rectangle around all targets' boxes (x, y, width, height), as `region`: (x1, y1, x2, y2)."""
    boxes: Any = row.get("bbox") or []
    try:
        corners = [(x + 0, y + 0, x + width, y + height) for x, y, width, height in boxes]
    except (TypeError, ValueError):
        raise DataError(f"{row.where}: bbox is {boxes!r:.80}; it must be a list of [x, y, w, h]") from None
    if not corners:
        return {}
    left, top, right, bottom = zip(*corners, strict=True)
    return {"region": [min(left), min(top), max(right), max(bottom)]}
