"""Answers that were made elsewhere: a JSON, JSONL, CSV or TSV file of predictions, scored like a model.

A model never sees a sample's id, so a request is matched by what it shows: the file name of its first
picture against a column of the file, and, where the file has a column of questions, the question's text.
Knows files of rows. Must not know benchmarks; it asks nobody anything, and what its answers once cost is
unknown.

    replay:captions.jsonl,text=caption_by_mllm        replay:answers.csv,text=pred,id=image
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import events
from harness.errors import ModelError
from harness.pictures import File, Member, Picture
from harness.types import Capability, Model, Pace, Request, Response, Usage

TEXT_COLUMNS = ("prediction", "pred", "response", "answer", "output", "caption", "text")
ID_COLUMNS = ("image_id", "image", "image_path", "file_name", "filename", "img", "picture", "id")
QUESTION_COLUMNS = ("question", "prompt", "query")

Row = dict[str, Any]


def model(file: str, *, text: str | None = None, id: str | None = None) -> Model:
    """The predictions in `file`.

    file: JSON (a list of objects, or one object of id: text), JSONL, CSV or TSV with a header. text: the
    column of answers. id: the column of pictures: file names, paths, or numbers, zero-padded or not. Left
    out, both are found among the usual names. Raises `ModelError`, naming the columns there are.
    """
    path = Path(file).expanduser()
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror} (seen from {Path.cwd()})") from None
    rows = _rows(path, data)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    text_column = _column(path, columns, "text", text, TEXT_COLUMNS)
    others = [column for column in columns if column != text_column]
    question = next((column for column in QUESTION_COLUMNS if column in others), None)
    picture: str | None = None
    if id is not None or question is None or any(column in others for column in ID_COLUMNS):
        picture = _column(path, others, "id", id, ID_COLUMNS)
    return Replay(
        name=path.name,
        sha256=hashlib.sha256(data).hexdigest(),
        text=text_column,
        picture=picture,
        question=question,
        answers=_grouped(rows, text_column, picture, question),
    )


@dataclass(frozen=True)
class Prediction:
    """One row: its answer, None if the file has none there, and its question, if it has those."""

    answer: str | None
    question: str | None


@dataclass(frozen=True, eq=False)
class Replay:
    """A file of predictions. `model()` reads one; `answers` maps a picture's key to its rows."""

    name: str
    sha256: str
    text: str
    picture: str | None
    question: str | None
    answers: dict[str, list[Prediction]]

    @property
    def offers(self) -> frozenset[Capability]:
        return frozenset()

    @property
    def pace(self) -> Pace:
        return Pace(group=1024, free=True)

    def describe(self) -> dict[str, Any]:
        return {
            "adapter": "replay",
            "model": self.name,
            "sha256": self.sha256,
            "text": self.text,
            "id": self.picture,
            "question": self.question,
        }

    def generate(self, requests: Sequence[Request]) -> list[Response]:
        responses = [self._answer(request) for request in requests]
        for response in responses:
            events.report(response.usage)
        return responses

    def _answer(self, request: Request) -> Response:
        usage = Usage(calls=1, images=len(request.images), dollars=None)
        key = picture_key(_name(request.images[0])) if request.images else ""
        rows = self.answers.get(key if self.picture else "", [])
        shown = f"{self.name}: {self._place(request)}"
        if not rows:
            return Response.failed("not_in_file", f"{shown} is not there", usage=usage)
        if self.question is not None:
            asked = {_squeezed(request.question), _squeezed(request.text)}
            found = [row for row in rows if row.question in asked]
            if not found:
                message = (
                    f"{shown} has no row with the question {request.question!r}, but {rows[0].question!r}"
                )
                return Response.failed("not_in_file", message, usage=usage)
            rows = found
        answers = {row.answer for row in rows}
        if len(answers) > 1:
            message = f"{shown} has {len(rows)} rows with different answers; nothing tells them apart"
            return Response.failed("not_in_file", message, usage=usage)
        (answer,) = answers
        if answer is None:
            return Response.failed("not_in_file", f"{shown} has an empty {self.text!r}", usage=usage)
        return Response(answer, usage=usage)

    def _place(self, request: Request) -> str:
        if self.picture is None:
            return f"{self.question} = {request.question!r}"
        return f"{self.picture} = {_name(request.images[0]) if request.images else 'no picture'}"


def picture_key(value: object) -> str:
    """What a file name, a path and a number of the same picture have in common.

    >>> [picture_key(v) for v in ("images/000000247929.jpg", "247929", 247929, 247929.0)]
    ['247929', '247929', '247929', '247929']
    >>> picture_key("COCO_val2014_000000310196.jpg"), picture_key("cat.v2.png"), picture_key("cat.v2")
    ('310196', 'cat.v2', 'cat.v2')
    """
    if isinstance(value, list) and len(value) == 1:
        return picture_key(value[0])
    name = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    name = name.replace("\\", "/").rsplit("/", 1)[-1].strip()
    name = re.sub(r"\.(jpe?g|png|webp|gif|bmp|tiff?)$", "", name, flags=re.IGNORECASE)
    number = re.fullmatch(r"(?:COCO_(?:train|val|test)\d{4}_)?0*(\d+)", name)
    return number.group(1) if number else name


def _name(picture: Picture) -> str:
    """A picture's file name, whatever holds its bytes."""
    source = picture.source
    if isinstance(source, File):
        return source.path.name
    return source.member if isinstance(source, Member) else source.label


def _grouped(
    rows: Iterable[Row], text: str, picture: str | None, question: str | None
) -> dict[str, list[Prediction]]:
    grouped: dict[str, list[Prediction]] = {}
    for row in rows:
        answer = row.get(text)
        key = picture_key(row.get(picture, "")) if picture else ""
        asked = _squeezed(str(row.get(question, ""))) if question else None
        grouped.setdefault(key, []).append(Prediction(None if answer is None else str(answer), asked))
    return grouped


def _squeezed(text: str) -> str:
    return " ".join(text.split())


def _column(path: Path, columns: Sequence[str], knob: str, asked: str | None, usual: Sequence[str]) -> str:
    there = f"the columns are {', '.join(columns) or 'none'}"
    if asked is not None:
        if asked not in columns:
            raise ModelError(f"{path} has no column {asked!r} ({knob}={asked}); {there}")
        return asked
    found = [column for column in usual if column in columns]
    if knob == "text" and len(found) > 1:  # one of them may be the ground truth
        raise ModelError(f"{path} has {' and '.join(found)}; say which holds the answers with text=; {there}")
    if not found:
        raise ModelError(f"{path} has none of the columns {', '.join(usual)}; name one with {knob}=; {there}")
    return found[0]


# ---------------------------------------------------------------- reading


def _rows(path: Path, data: bytes) -> list[Row]:
    readers: dict[str, Callable[[str], Any]] = {
        ".json": json.loads,
        ".jsonl": _json_lines,
        ".csv": lambda text: list(csv.DictReader(io.StringIO(text))),
        ".tsv": lambda text: list(csv.DictReader(io.StringIO(text), delimiter="\t")),
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise ModelError(f"{path} is none of {', '.join(readers)}")
    try:
        rows = reader(data.decode("utf-8-sig"))
    except (ValueError, csv.Error) as error:
        raise ModelError(f"{path} cannot be read: {error}") from None
    if isinstance(rows, dict):
        rows = [{"id": key, "text": text} for key, text in rows.items()]
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows) or not rows:
        raise ModelError(f"{path} holds no rows: a list of objects is expected, or one object of id: text")
    return rows


def _json_lines(text: str) -> list[Any]:
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None
    return rows
