"""V*: multiple choice about small things in large photographs.

Knows both forms of the files, the hub's columns and the protocols in circulation. Must not know: models,
methods. Wu & Xie, "V*: Guided Visual Search as a Core Mechanism in Multimodal LLMs", CVPR 2024.
"""

from __future__ import annotations

import random
import re
from functools import partial
from pathlib import Path
from string import ascii_uppercase
from typing import Any, Literal

from harness.errors import DataError
from harness.pictures import Picture, picture_in
from harness.types import Box, Decoding, Hints, Request, Sample, Task
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
    document,
    fingerprint,
    rows,
    samples_of,
    select,
    vicrop,
    vicrop_sample,
)

Protocol = Literal["lmms", "official", "vicrop", "vlmevalkit"]

SOURCE = Source(
    title="V* bench",
    licence="none declared; images mostly SA-1B's (research)",
    layout="test_questions.jsonl, direct_attributes/ and relative_position/ (or only the folders)",
    hub=("lmms-lab/vstar-bench", "craigwu/vstar_bench"),
    form="git clone https://huggingface.co/datasets/craigwu/vstar_bench into root",
)

CATEGORIES = ("direct_attributes", "relative_position")
_SIZE = 191
_TOKENS: dict[Protocol, int] = {"lmms": 16, "official": 0, "vicrop": 20, "vlmevalkit": 512}
_PARSERS: dict[Protocol, Any] = {
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
    revision: str | None = None,
) -> Task:
    """V*: 191 questions, 115 about attributes (four options) and 76 about positions (two).

    root: test_questions.jsonl and its pictures, or only the folders with a JSON beside each picture, whose
    options are then put in an order drawn from `shuffle` (the first is always the right one there);
    without root, the hub. protocol: `lmms` (options as "A. text", 16 tokens), `official` (no letters: the
    option that the model finds most likely; SEAL also pads its pictures to squares), `vicrop` (the
    text as it stands, 20 tokens; the nearest option line), `vlmevalkit`. parser: another than the
    protocol's. exact_prompt: lmms-eval repeats the instruction where the text has it already, and loses
    options with parentheses; true keeps that.
    format=vicrop: root is ViCrop's unified file. subset: as in random:100@seed=42. size=any: files of
    other lengths. revision: of the hub's copy.

    The target's box, where the files give it, is the region for oracle crops.
    """
    if format == "vicrop":
        loaded = vicrop(root)
        samples = samples_of(loaded, _vicrop_sample, "vstar", (), "any")
    else:
        loaded = _load(root, revision, shuffle)
        samples = samples_of(loaded, _sample, "vstar", [_SIZE], size)
    return Task(
        name="vstar",
        version="1",
        protocol=protocol if not exact_prompt else f"{protocol}, to the byte",
        fingerprint=loaded.fingerprint,
        samples=select(samples, subset),
        request=partial(_request, protocol=protocol, exact_prompt=exact_prompt),
        metrics=(choice.metric(parser or _PARSERS[protocol]),),
        primary="accuracy",
        postprocess=str if protocol == "vicrop" else str.strip,  # mllms_know scores what was generated
    )


def _request(sample: Sample, protocol: Protocol, exact_prompt: bool) -> Request:
    text = str(sample.meta["text"])
    options: list[str] = list(sample.meta["options"])  # type: ignore[arg-type]
    listed = [f"{letter}. {option}" for letter, option in zip(ascii_uppercase, options, strict=False)]
    question, instruction = sample.question, ""
    if protocol == "lmms":
        shown = _as_lmms_finds_them(text) if exact_prompt else listed
        instruction = "\n" + "\n".join(shown) + f"\n{LETTER}"
    elif protocol == "vicrop":
        question, instruction = text, f" {SHORT}"
    elif protocol == "vlmevalkit":
        question = f"Question: {sample.question}\n"
        asks = "Please select the correct answer from the options above. \n"
        instruction = "Options:\n" + "\n".join(listed) + f"\n{asks}"
    region: Any = sample.meta.get("region")
    return Request(
        sample.images,
        question,
        instruction,
        decoding=Decoding(max_tokens=_TOKENS[protocol]),
        hints=Hints(sample.question, tuple(region) if region else None),
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


def _as_lmms_finds_them(text: str) -> list[str]:
    """lmms-eval's option lines (`tasks/vstar_bench/utils.py`): the last one swallows the instruction, one
    with parentheses of its own is lost, and those after it move up a letter."""
    parts = [part.strip() for part in re.split(r"\s*\([A-D]\)\s*", text)[1:]]
    kept = [part for part in parts if part and not re.search(r"[()]", part)]
    return [f"{letter}. {part}" for letter, part in zip("ABCD", kept, strict=False)]


def joined_text(question: str, options: list[str]) -> str:
    """A V* text again: the question, its lettered options, and the instruction."""
    listed = "".join(f"({letter}) {o}\n" for letter, o in zip(ascii_uppercase, options, strict=False))
    return f"{question}\n{listed}{LETTER}"


def _sample(row: Row, picture: Picture) -> Sample:
    text, label = row.text("text"), row.text("label")
    question, options = split_text(text)
    if not options or label not in ascii_uppercase[: len(options)]:
        raise DataError(f"{row.where}: the label {label!r} names none of the {len(options)} options")
    region = row.get("region")
    return Sample(
        id=row.text("question_id"),
        images=(picture,),
        question=question,
        targets=(label,),
        category=row.text("category"),
        meta={
            "text": text,
            "options": options,
            "answer_index": ascii_uppercase.index(label),
            **({"region": region} if region else {}),
        },
    )


def _vicrop_sample(row: Row, picture: Picture) -> Sample:
    """Of ViCrop's unified file: the whole text is the question, the letter stands in the labels."""
    plain = vicrop_sample(row, picture)
    question, options = split_text(plain.question)
    label = plain.targets[0] if plain.targets else ""
    if label not in ascii_uppercase[: len(options)] or not label:
        raise DataError(f"{row.where}: the label {label!r} names none of the {len(options)} options")
    return Sample(
        id=plain.id,
        images=plain.images,
        question=str(plain.meta.get("short_question", question)),
        targets=(label,),
        meta={
            "text": plain.question,
            "options": options,
            "answer_index": ascii_uppercase.index(label),
        },
    )


# ---------------------------------------------------------------- files


def _load(root: Path | None, revision: str | None, shuffle: int) -> Loaded:
    if root is None:
        return _hub.load(SOURCE.hub, None, "test", revision=revision)
    root = check_folder(Path(root), SOURCE.layout)
    path = root / "test_questions.jsonl"
    if path.exists():
        found = rows(path)
        return Loaded(found, [picture_in(root, row.text("image")) for row in found], fingerprint([path]))
    paths = [path for category in CATEGORIES for path in sorted((root / category).glob("*.json"))]
    if not paths:
        raise DataError(f"{root} holds neither test_questions.jsonl nor {' and '.join(CATEGORIES)}")
    found = [_from_file(path, shuffle) for path in paths]
    return Loaded(found, [picture_in(root, row.text("image")) for row in found], fingerprint(paths))


def _from_file(path: Path, shuffle: int) -> Row:
    """The row of a picture's own JSON: options shuffled, for there the right one always comes first."""
    row = Row(document(path), str(path))
    options = list(row.texts("options"))
    right = options[0]
    name = f"{path.parent.name}/{path.stem}"
    random.Random(f"{shuffle} {name}").shuffle(options)
    pictures = [file for file in sorted(path.parent.glob(f"{path.stem}.*")) if file.suffix != ".json"]
    values = {
        "question_id": name,
        "image": f"{path.parent.name}/{pictures[0].name}" if pictures else f"{name}.jpg",
        "category": path.parent.name,
        "text": joined_text(row.text("question"), options),
        "label": ascii_uppercase[options.index(right)],
        "region": _around(row.get("bbox")),
    }
    return Row(values, str(path))


def _around(boxes: Any) -> list[float] | None:
    """The rectangle around all targets' boxes (x, y, width, height), as (x1, y1, x2, y2)."""
    if not boxes:
        return None
    corners: list[Box] = [(x, y, x + width, y + height) for x, y, width, height in boxes]
    lows = [min(corner[side] for corner in corners) for side in (0, 1)]
    return lows + [max(corner[side] for corner in corners) for side in (2, 3)]
