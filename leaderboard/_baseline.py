"""A baseline's file: what runs answered, sample by sample, and how much worse each may become.

Plain JSON, made to be committed and read in a diff: a changed answer changes one line. It holds no path of
the machine that wrote it. Knows the file's shape; how a loss is judged, it does not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeAlias

import msgspec

from harness.errors import FoveaError
from harness.store import Key

SCHEMA = 1
_KIND = "fovea baseline"
_PER_LINE = 25

Number: TypeAlias = int | float | None
Column: TypeAlias = list[Number] | int | float
"""A count of every sample, or the one that all of them have. None: the sample has no such count."""


class Samples(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The samples that rows share. of: how many the task has. clusters: per id, equal where samples share an
    image; None where the image was not known."""

    of: int
    repeats: int
    digest: str
    ids: list[str]
    clusters: list[int | None]

    @property
    def keys(self) -> list[Key]:
        return [(name, repeat) for repeat in range(self.repeats) for name in self.ids]

    @property
    def json(self) -> dict[str, Any]:
        """As a run's header has it."""
        return {
            "n": len(self.ids) * self.repeats,
            "of": self.of,
            "repeats": self.repeats,
            "digest": self.digest,
            "ids": self.ids,
        }


class Rerun(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What makes the row's answers again, beside its methods, samples and seed. seconds: how long it took.
    local: nothing of it is behind a wire, so that asking again costs no money."""

    task: str
    model: str
    seconds: float
    local: bool


class Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A row: one number of one run.

    tolerance: the loss that is allowed, in the number's unit. samples: their name in the file. columns:
    counts by name; or counts, per sample, where they are no flat numbers; neither for a number of a whole
    corpus. rerun: None where nobody could say how.
    """

    name: str
    tolerance: Annotated[float, msgspec.Meta(ge=0)]
    number: str
    value: float
    higher_is_better: bool
    id: str
    methods: list[str]
    samples: str
    metric: dict[str, Any]
    identity: dict[str, Any]
    packages: dict[str, str]
    rerun: Rerun | None = None
    columns: dict[str, Column] | None = None
    counts: list[Any] | None = None


class Baseline(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file."""

    kind: str
    schema: int
    rows: Annotated[list[Entry], msgspec.Meta(min_length=1)]
    samples: dict[str, Samples]

    def keys(self, entry: Entry) -> list[Key]:
        return self.samples[entry.samples].keys

    def counts(self, entry: Entry) -> list[Any] | None:
        """Per sample, in the order of `keys`; None for a number of a whole corpus."""
        if entry.columns is None:
            return entry.counts
        number = len(self.keys(entry))
        columns = {
            name: column if isinstance(column, list) else [column] * number
            for name, column in entry.columns.items()
        }
        return [
            {name: column[at] for name, column in columns.items() if column[at] is not None}
            for at in range(number)
        ]


def read(path: Path) -> Baseline:
    """The baseline in a file. Raises FoveaError where it is none, of a newer schema, or was edited into
    something that cannot be."""
    again = "fovea check --save BASELINE RUNS... writes one"
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise FoveaError(f"{path} does not exist; {again}") from None
    except OSError as error:
        raise FoveaError(f"{path} cannot be read: {error.strerror}; {again}") from None
    try:
        raw = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise FoveaError(f"{path} is no baseline: it is not JSON ({error}); {again}") from None
    if not isinstance(raw, dict) or raw.get("kind") != _KIND or not isinstance(raw.get("schema"), int):
        raise FoveaError(f'{path} is no baseline: it does not begin with "kind": "{_KIND}"; {again}')
    if raw["schema"] > SCHEMA:
        raise FoveaError(
            f"{path} is of schema {raw['schema']}, newer than this Fovea reads ({SCHEMA}); upgrade fovea-eval"
        )
    try:
        baseline = msgspec.convert(raw, Baseline)
    except msgspec.ValidationError as error:
        raise FoveaError(f"{path} cannot be used: {_in_words(str(error), raw)}") from None
    for fault in _faults(baseline):
        raise FoveaError(f"{path} cannot be used: {fault}; {again}")
    return baseline


def _in_words(fault: str, raw: Mapping[str, Any]) -> str:
    """msgspec's sentence, with the row's name for its number."""
    found = re.search(r"`\$\.rows\[(\d+)\]\.?([\w.\[\]]*)`", fault)
    if found is None:
        return fault
    row, field = raw["rows"][int(found[1])], found[2]
    said = f" is {row[field]!r}" if isinstance(row, dict) and field in row else ""
    name = row.get("name", found[1]) if isinstance(row, dict) else found[1]
    return f"the row {name!r}: {field or 'it'}{said}: {fault.partition(' - at ')[0]}"


def _faults(baseline: Baseline) -> Iterator[str]:
    names = [row.name for row in baseline.rows]
    for name in names:
        if names.count(name) > 1:
            yield f"two rows are called {name!r}"
    for key, samples in baseline.samples.items():
        if len(samples.clusters) != len(samples.ids):
            yield f"the samples {key} are {len(samples.ids):,} ids and {len(samples.clusters):,} clusters"
    for row in baseline.rows:
        if row.samples not in baseline.samples:
            yield f"the row {row.name!r} is of the samples {row.samples!r}, which are not there"
            continue
        number = len(baseline.keys(row))
        lists = [row.counts, *(row.columns or {}).values()]
        if any(isinstance(each, list) and len(each) != number for each in lists):
            yield f"the row {row.name!r} does not have one outcome for each of its {number:,} samples"


def pack(counts: Sequence[Any]) -> dict[str, Any]:
    """The fields of an entry that hold counts: columns where they are flat numbers.

    >>> pack([{"score": 1.0, "scored": 1}, {"score": 0.5, "scored": 1}])
    {'columns': {'score': [1, 0.5], 'scored': 1}}
    >>> pack([[1, 2], None])
    {'counts': [[1, 2], None]}
    """
    if not all(isinstance(count, dict) and all(map(_is_number, count.values())) for count in counts):
        return {"counts": list(counts)}
    columns: dict[str, Any] = {}
    for name in dict.fromkeys(name for count in counts for name in count):
        column = [_plain(count.get(name)) for count in counts]
        columns[name] = column[0] if len(set(column)) == 1 else column
    return {"columns": columns}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _plain(value: Number) -> Number:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def write(path: Path, rows: Sequence[Entry], samples: Mapping[str, Samples]) -> None:
    """Write the file in one step. Raises FoveaError where it cannot be."""
    content = msgspec.to_builtins(Baseline(_KIND, SCHEMA, list(rows), dict(samples)))
    for row in content["rows"]:
        for name in ("rerun", "columns", "counts"):
            if row[name] is None:
                del row[name]
    draft = path.with_name(path.name + ".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.write_text("".join(_lines(content)) + "\n", encoding="utf-8", errors="replace")
        draft.replace(path)
    except OSError as error:
        raise FoveaError(f"{path} cannot be written: {error.strerror}; name another file") from None


def _lines(value: Any, margin: str = "") -> Iterator[str]:
    """JSON, an object's fields one per line, a list of plain values so many per line, others one."""
    if isinstance(value, dict) and value and (not margin or len(_json(value)) > 80):
        pairs: list[tuple[str, Any]] = [(f"{_json(name)}: ", inner) for name, inner in value.items()]
        brackets = "{}"
    elif isinstance(value, list) and any(isinstance(inner, dict | list) for inner in value):
        pairs, brackets = [("", inner) for inner in value], "[]"
    elif isinstance(value, list) and len(_json(value)) > 80:
        per_line = _PER_LINE if all(map(_is_number, filter(None, value))) else 10
        rows = [value[at : at + per_line] for at in range(0, len(value), per_line)]
        body = f",\n{margin} ".join(_json(row)[1:-1] for row in rows)
        yield f"[\n{margin} {body}\n{margin}]"
        return
    else:
        yield _json(value)
        return
    for place, (head, inner) in enumerate(pairs):
        yield f"{',' if place else brackets[0]}\n{margin} {head}"
        yield from _lines(inner, margin + " ")
    yield f"\n{margin}{brackets[1]}"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
