"""What the tasks share: reading annotation files, checking them, and the words that many protocols use.

Knows JSON and JSON lines, and how a dataset's files can be wrong: each fault is a DataError that names
the file, the line and the remedy. Must not know: any benchmark's fields, metrics, models.

A picture that is missing or broken, or whose path climbs out of its folder, is no fault here: it becomes
the failure of its own record when a model looks at it (`harness.pictures.picture_in`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from harness.errors import DataError

SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
DETAIL = "Please describe this image in detail."

Size: TypeAlias = Literal["official", "any"]
"""Whether a dataset must have its official number of samples."""


@dataclass(frozen=True)
class Row:
    """One annotation. where: its file and line, for messages."""

    values: Mapping[str, Any]
    where: str

    def get(self, *keys: str) -> Any:
        """The value of the first of `keys` that is there and not null, else None."""
        return next((self.values[key] for key in keys if self.values.get(key) is not None), None)

    def text(self, *keys: str) -> str:
        """The text under the first of `keys` that is there; a number is taken as it is written.

        >>> Row({"id": 7}, "a.jsonl, line 1").text("image_id", "id")
        '7'
        >>> Row({}, "a.jsonl, line 1").text("question")
        Traceback (most recent call last):
            ...
        harness.errors.DataError: a.jsonl, line 1 has no question
        """
        value = self.get(*keys)
        if value is None:
            raise DataError(f"{self.where} has no {' or '.join(keys)}")
        return self._as_text(value, keys[0])

    def texts(self, *keys: str) -> tuple[str, ...]:
        """The texts under the first of `keys` that is there: a list of them, or one."""
        value = self.get(*keys)
        if value is None:
            raise DataError(f"{self.where} has no {' or '.join(keys)}")
        items = value if isinstance(value, list) else [value]
        return tuple(self._as_text(item, keys[0]) for item in items)

    def _as_text(self, value: Any, key: str) -> str:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise DataError(f"{self.where}: {key} is {json.dumps(value)[:80]}; it must be a text")
        return str(value)


def read(path: Path) -> bytes:
    """A file's bytes. Raises DataError if it cannot be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path} does not exist") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None


def rows(path: Path) -> list[Row]:
    """The objects of a JSON-lines file, or of a JSON file that holds a list of them.

    Blank lines are skipped. Raises DataError for a file that cannot be read, is empty, is not UTF-8 or
    not JSON, or holds something else than objects.
    """
    try:
        text = read(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: {error.reason} at byte {error.start}") from None
    if text.lstrip().startswith("["):
        found = [(f"{path}, entry {number}", entry) for number, entry in enumerate(_json(text, str(path)), 1)]
    else:
        # not splitlines(): U+2028 and its like may stand in a JSON string
        lines = [(f"{path}, line {number}", line) for number, line in enumerate(text.split("\n"), 1)]
        found = [(where, _json(line, where)) for where, line in lines if line.strip()]
    for where, entry in found:
        if not isinstance(entry, dict):
            raise DataError(f"{where} is not an object in braces but {json.dumps(entry)[:80]}")
    if not found:
        raise DataError(f"{path} is empty")
    return [Row(entry, where) for where, entry in found]


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}" if "\n" in text else f"column {error.colno}"
        raise DataError(f"{where} is not JSON: {error.msg} ({place})") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where} is not JSON that can be read: {error}") from None


def fingerprint(paths: Sequence[Path]) -> str:
    """sha256 (hex) of the annotations: of the file's bytes, or of several files' names and sums."""
    sums = [hashlib.sha256(read(path)).hexdigest() for path in paths]
    if len(sums) == 1:
        return sums[0]
    listing = "".join(f"{value}  {path.name}\n" for path, value in zip(paths, sums, strict=True))
    return hashlib.sha256(listing.encode()).hexdigest()


def check_folder(path: Path, holds: str) -> Path:
    """`path`, if it is a folder; else a DataError that says what it should hold."""
    if not path.is_dir():
        what = "is not a folder" if path.exists() else "does not exist"
        raise DataError(f"{path} {what}; it should hold {holds}")
    return path


def check_ids(ids: Iterable[tuple[str, str]]) -> None:
    """`ids` are (id, where it stands); raises DataError for one that comes twice.

    >>> check_ids([("1", "a.jsonl, line 1"), ("1", "a.jsonl, line 9")])
    Traceback (most recent call last):
        ...
    harness.errors.DataError: a.jsonl, line 9 has the id '1', which a.jsonl, line 1 has already
    """
    seen: dict[str, str] = {}
    for name, where in ids:
        if name in seen:
            raise DataError(f"{where} has the id {name!r}, which {seen[name]} has already")
        seen[name] = where


def check_size(what: str, found: int, expected: Sequence[int], size: Size) -> None:
    """Raises DataError unless `found` is one of the `expected` numbers, or `size` is `any`.

    >>> check_size("pope random", 2999, [3000, 2910], "official")
    Traceback (most recent call last):
        ...
    harness.errors.DataError: pope random has 2,999 samples; 3,000 or 2,910 are expected. Say size=any if ...
    """
    if size == "official" and found not in expected:
        numbers = " or ".join(f"{number:,}" for number in expected)
        raise DataError(
            f"{what} has {found:,} samples; {numbers} are expected. Say size=any if it is meant to differ"
        )
