"""What the tasks share: reading annotation files, checking them, and the words that many protocols use.

Knows JSON and JSON lines, and how a dataset's files can be wrong: each fault is a DataError that names
the file, the line and the remedy. Must not know: any benchmark's fields, metrics, models.

A picture that is missing or broken, or whose path climbs out of its folder, is no fault here: it becomes
the failure of its own record when a model looks at it (`harness.pictures.picture_in`).
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from harness.errors import DataError
from harness.pictures import Picture, picture_in
from harness.types import Decoding, Hints, Json, Request, Sample

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

    def answers(self, *keys: str) -> tuple[str, ...]:
        """The texts under the first of `keys` that is there, of which there must be one at least.

        >>> Row({"answers": []}, "a.json, data 1").answers("answers")
        Traceback (most recent call last):
            ...
        harness.errors.DataError: a.json, data 1 has no answers, which every sample of this split needs
        """
        found = () if self.get(*keys) is None else self.texts(*keys)
        if not found:
            raise DataError(f"{self.where} has no {keys[0]}, which every sample of this split needs")
        return found

    def number(self, key: str) -> int:
        """The whole number under `key`.

        >>> Row({"image_id": "x"}, "a.json, entry 1").number("image_id")
        Traceback (most recent call last):
            ...
        harness.errors.DataError: a.json, entry 1: image_id is 'x'; it must be a whole number
        """
        text = self.text(key)
        if not re.fullmatch(r"\d{1,18}", text, re.ASCII):
            raise DataError(f"{self.where}: {key} is {text[:40]!r}; it must be a whole number")
        return int(text)

    def some(self, *keys: str) -> dict[str, Json]:
        """Those of `keys` that are there and not null, as they stand, for a sample's meta."""
        return {key: self.values[key] for key in keys if self.values.get(key) is not None}

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


def _json(text: str, where: str, hook: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    try:
        return json.loads(text, object_pairs_hook=hook)
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


# ---------------------------------------------------------------- where a dataset comes from


@dataclass(frozen=True)
class Download:
    """A file that can be had openly. name: where it goes, from the root. size: in bytes, None if unknown.

    unpack: the folder (from the root) that an archive is unpacked into; None for a plain file.
    """

    name: str
    url: str
    size: int | None = None
    sha256: str | None = None
    unpack: str | None = None


@dataclass(frozen=True)
class Source:
    """Where a task's files come from, under which licence, and where they go.

    layout: what `root` must hold, in words. hub: Hugging Face ids with the same rows, the first that
    answers is taken. form: what has to be asked for by hand, and where; empty if nothing has. size:
    samples, in words. metric: what ranks by default.
    """

    title: str
    licence: str
    layout: str
    hub: tuple[str, ...] = ()
    files: tuple[Download, ...] = ()
    form: str = ""
    size: str = ""
    metric: str = ""


@dataclass(frozen=True)
class Loaded:
    """A dataset's rows with their pictures, and the fingerprint of the annotations."""

    rows: Sequence[Row]
    pictures: Sequence[Picture]
    fingerprint: str


def document(path: Path, *, unique: bool = False) -> dict[str, Any]:
    """A JSON file that is one object, as most official annotations are. Raises DataError otherwise.

    unique: refuse a key that comes twice, of which JSON would silently keep the last.
    """
    try:
        content = _json(read(path).decode("utf-8-sig"), str(path), _each_once if unique else None)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8: {error.reason} at byte {error.start}") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} is not an object in braces")
    return content


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} comes twice")
        found[key] = value
    return found


def entries(path: Path, key: str) -> list[Row]:
    """The objects under `key` of a JSON file that is one object."""
    found = document(path).get(key)
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise DataError(f"{path} holds no list of objects under {key!r}")
    return [Row(entry, f"{path}, {key} {number}") for number, entry in enumerate(found, 1)]


def first_of(root: Path, *names: str) -> Path:
    """The first of `names` that exists below `root`. Raises DataError that lists them."""
    for name in names:
        if (root / name).exists():
            return root / name
    raise DataError(f"{root} holds none of {', '.join(names)}")


def vicrop(root: Path | None) -> Loaded:
    """ViCrop's unified file: a JSON list of id, question, labels, image_path and perhaps short_question.

    root: the file, or a folder that holds one data.json. Pictures are below the file's folder, or below
    its images/. (mllms_know: `run.py`.) Raises DataError without a root.
    """
    if root is None:
        raise DataError("format=vicrop needs root=FILE, ViCrop's unified JSON")
    path = Path(root) / "data.json" if Path(root).is_dir() else Path(root)
    found = rows(path)
    folder = path.parent / "images" if (path.parent / "images").is_dir() else path.parent
    pictures = [picture_in(folder, row.text("image_path")) for row in found]
    return Loaded(found, pictures, fingerprint([path]))


def vicrop_sample(row: Row, picture: Picture) -> Sample:
    """The sample of a row of ViCrop's unified file."""
    return Sample(
        id=row.text("id"),
        images=(picture,),
        question=row.text("question"),
        targets=row.texts("labels"),
        meta=row.some("short_question"),
    )


def subset_indices(subset: str | None, population: int) -> Sequence[int]:
    """Which samples a `subset=` asks for, as indices into the file's order, in the order drawn.

    None: all. `random:500@seed=42`: `random.Random(42).sample` over all of them. `sparc500` is that very
    draw, which SPARC's evaluations use (`dataset_loader.py`). Raises DataError for anything else, or for
    more than there are.

    >>> subset_indices("random:3@seed=42", 14847)
    [10476, 1824, 409]
    """
    if subset is None:
        return range(population)
    asked = _SUBSET.fullmatch("random:500@seed=42" if subset == "sparc500" else subset)
    if asked is None:
        raise DataError(f"subset={subset!r} is unknown; say sparc500, or random:500@seed=42")
    size, seed = int(asked[1]), int(asked[2])
    if not 1 <= size <= population:
        raise DataError(f"subset={subset!r} asks for {size:,} of {population:,} samples")
    return random.Random(seed).sample(range(population), size)


_SUBSET = re.compile(r"random:(\d+)@seed=(\d+)")


def samples_of(
    loaded: Loaded,
    make: Callable[[Row, Picture], Sample],
    what: str,
    expected: Sequence[int],
    size: Size,
    subset: str | None = None,
) -> list[Sample]:
    """A sample for each row, in the file's order, or for those of a subset, in the order drawn.

    Raises DataError for an id used twice, and for a wrong number of rows, unless any will do or a random
    part of whatever is there is asked for. (A paper's own draw depends on how many there are.)
    """
    samples = [make(row, picture) for row, picture in zip(loaded.rows, loaded.pictures, strict=True)]
    free = subset is not None and subset.startswith("random:")
    check_size(what, len(samples), expected, "any" if free else size)
    check_ids((sample.id, row.where) for sample, row in zip(samples, loaded.rows, strict=True))
    return select(samples, subset)


def select(samples: Sequence[Sample], subset: str | None) -> list[Sample]:
    """The samples of a subset, in the order drawn."""
    return [samples[index] for index in subset_indices(subset, len(samples))]


def short_question(sample: Sample) -> Hints:
    """What a task tells methods: the short question where the data has one."""
    short = sample.meta.get("short_question")
    return Hints(short_question=None if short is None else str(short))


def asked(sample: Sample, instruction: str, tokens: int) -> Request:
    """The request of a protocol that only adds an instruction: greedy, at most so many new tokens."""
    return Request(
        sample.images,
        sample.question,
        instruction,
        decoding=Decoding(max_tokens=tokens),
        hints=short_question(sample),
    )
