"""Numbers that papers report, read from results/published/*.yaml: what a reproduction is held against.

A file is one source: its paper and how its numbers were obtained (`via`, `confidence`), then its entries in
three lists: `scores` (of a method on a task), `costs` (seconds, memory) and `facts` (anything else: sizes of
sets, shares of attention). An entry may name a `via` and `confidence` of its own. Knows these files. Must
not know runs: which row an entry belongs to, the board decides.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from harness.errors import DataError

SHIPPED = Path(__file__).parent.parent / "results" / "published"

Kind = Literal["scores", "costs", "facts"]
Confidence = Literal["read", "transcribed", "digest"]
"""read: in the paper itself. transcribed: in a copy of the paper's table. digest: in a summary's prose."""


class Published(BaseModel):
    """One number of a paper.

    value: in `unit` (percent, s, ms, ...). method: as a spec where it is one of ours (`none` is the
    identity arm). model, task, subset: short names, empty where the number has none. setting: what else
    decides it (high_res, all layers). table: where the paper has it; empty where that is not known.
    confidence, via: how it came here. note: what to know before comparing.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    kind: Kind
    paper: str
    venue: str
    arxiv: str
    method: str = ""
    model: str = ""
    task: str = ""
    subset: str = ""
    protocol: str = ""
    metric: str
    value: float
    unit: str
    setting: str = ""
    table: str = ""
    confidence: Confidence
    via: str
    note: str = ""

    @property
    def what(self) -> tuple[str, ...]:
        """Everything but the number and its provenance: two entries with the same are one too many."""
        own = ("kind", "arxiv", "method", "model", "task", "subset", "protocol", "metric", "unit", "setting")
        return (*(str(getattr(self, name)) for name in own), self.table)


def read(folder: Path) -> list[Published]:
    """Every entry of the folder's files, in the files' order. DataError names file, entry and field."""
    found: list[Published] = []
    for path in sorted(folder.glob("*.yaml")):
        found += _entries(path)
    seen: dict[tuple[str, ...], Published] = {}
    for entry in found:
        if entry.what in seen:
            what = " · ".join(filter(None, entry.what))
            raise DataError(f"{folder}: {what} is given twice: {seen[entry.what].value} and {entry.value}")
        seen[entry.what] = entry
    return found


def beside(entries: Sequence[Published], task: str, protocol: str, number: str) -> list[Published]:
    """The scores among `entries` that may stand beside a board of this task, protocol and number, the best
    first; a subset of the task's samples, and another protocol, are other numbers."""
    found = [
        entry
        for entry in entries
        if (entry.kind, entry.task, entry.subset) == ("scores", task, "")
        and (entry.protocol, entry.metric) == (protocol, number)
    ]
    return sorted(found, key=lambda entry: -entry.value)


def _entries(path: Path) -> Iterator[Published]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise DataError(f"{path} is no mapping of paper, venue, arxiv, via, confidence and {get_args(Kind)}")
    shared = {name: value for name, value in content.items() if name not in get_args(Kind)}
    for kind in get_args(Kind):
        listed = content.get(kind, [])
        if not isinstance(listed, list):
            raise DataError(f"{path}: {kind} is {listed!r}; write a list of entries")
        for place, given in enumerate(listed):
            yield _entry(f"{path}: {kind}[{place}]", {"kind": kind, **shared}, given)


def _entry(where: str, shared: dict[str, Any], given: Any) -> Published:
    if not isinstance(given, dict):
        raise DataError(f"{where} is {given!r}; write metric: ..., value: ..., unit: ...")
    try:
        return Published.model_validate(shared | given)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
        raise DataError(f"{where}: {'; '.join(faults)}") from None
