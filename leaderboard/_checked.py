"""A check as text: the table for the terminal, JSON, JUnit XML, GitHub's annotations.

Knows how verdicts are written. What they mean and where they come from, it does not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness.errors import FoveaError
from leaderboard._compared import _number
from leaderboard.check import Checked, exit_code

_COLOURS = {"worse": "red", "good": None}
_SHOWN = 20  # ids of samples, in a report


def show(rows: Sequence[Checked], others: Sequence[Path], console: Console) -> None:
    """Print the table, why rows are not good, and what differs in how their answers were made."""
    title, names = _shortened(rows)
    console.print(_table(title, names, rows, console))
    for name, row in zip(names, rows, strict=True):
        for words in _notes(row):
            console.print(f"{name}: {words}", markup=False)
    for change, places in _differences(rows).items():
        of = "" if len(places) == len(rows) else f" ({', '.join(names[place] for place in places)})"
        console.print(f"differs from the baseline's: {change}{of}", markup=False)
    if others:
        console.print(f"runs of no row: {', '.join(map(str, others))}", style="dim", markup=False)
    console.print(summary(rows), style="bold", markup=False)
    if (sure := _confidence(rows)) is not None:
        console.print(
            f"loss: the baseline's number less the run's (↓: the reverse), paired, {sure}. worse: all of the "
            "interval is above the tolerance; good: none of it. better/worse: answers that changed.",
            style="dim",
            markup=False,
        )


def _shortened(rows: Sequence[Checked]) -> tuple[str, list[str]]:
    """What the names of all rows begin with, and the rest of each.

    >>> from dataclasses import replace
    >>> blank = Checked("pope (mscoco), hf:demo, none", "good", "f1", True, 0.02, 0.5)
    >>> _shortened([blank, replace(blank, name="pope (mscoco), hf:demo, vicrop")])
    ('pope (mscoco), hf:demo', ['none', 'vicrop'])
    """
    parts = [row.name.split(", ") for row in rows]
    same = 0
    while all(len(part) > same + 1 and part[same] == parts[0][same] for part in parts):
        same += 1
    return ", ".join(parts[0][:same]), [", ".join(part[same:]) for part in parts]


def _table(title: str, names: Sequence[str], rows: Sequence[Checked], console: Console) -> Table:
    """Without the columns that say least, until the rest fits."""
    cells = [{"row": name, **_cells(row)} for name, row in zip(names, rows, strict=True)]
    if len(numbers := {row["number"] for row in cells}) == 1:
        (number,) = numbers
        title = f"{title}: {number}" if title else number
    shown = [name for name in cells[0] if name != "number" or len(numbers) > 1]
    table = _drawn(title, shown, cells, rows)
    unbounded = console.options.update(width=10_000)
    for spare in ("n", "better/worse"):
        if console.measure(table, options=unbounded).maximum <= console.width:
            break
        shown = [name for name in shown if name != spare]
        table = _drawn(title, shown, cells, rows)
    return table


def _drawn(
    title: str, shown: Sequence[str], cells: Sequence[Mapping[str, str]], rows: Sequence[Checked]
) -> Table:
    out = Table(
        title=escape(title), title_justify="left", box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False
    )
    for name in shown:
        words = name in ("row", "number", "verdict")
        out.add_column(
            name, justify="left" if words else "right", overflow="fold", no_wrap=name not in ("row", "loss")
        )
    for cell, row in zip(cells, rows, strict=True):
        out.add_row(*(escape(cell[name]) for name in shown), style=_COLOURS.get(row.verdict, "yellow"))
    return out


def summary(rows: Sequence[Checked]) -> str:
    """`3 rows: 2 good, 1 worse`."""
    verdicts = [row.verdict for row in rows]
    counts = ", ".join(f"{verdicts.count(each)} {each}" for each in dict.fromkeys(sorted(verdicts)))
    return f"{len(rows)} row{'s' if len(rows) != 1 else ''}: {counts}"


def _confidence(rows: Sequence[Checked]) -> str | None:
    judged = [row for row in rows if row.confidence is not None]
    if not judged:
        return None
    level = 100 * (judged[0].confidence or 0)
    if len(judged) == 1:
        return f"with its {level:.4g} % interval"
    return f"with intervals that hold for all {len(judged)} rows at once (95 %; each {level:.4g} %)"


def _cells(row: Checked) -> dict[str, str]:
    """What the table says of a row, by column."""
    n = f"{row.n:,}" if row.n == row.of else f"{row.n:,} of {row.of:,}"
    return {
        "number": row.number + (" ↑" if row.higher_is_better else " ↓"),
        "n": n if row.n else "",
        "baseline": _number(row.before),
        "now": _number(row.now),
        "loss": _loss(row),
        "tolerance": f"{row.tolerance:.3g}",
        "better/worse": f"{len(row.better)}/{len(row.worse)}" if row.loss is not None else "",
        "verdict": "good, better" if row.verdict == "good" and row.improved else row.verdict,
    }


def _loss(row: Checked) -> str:
    if row.loss is None or row.loss.value is None:
        return ""
    if row.loss.low is None or row.loss.high is None:
        return f"{row.loss.value:+.3f}"
    return f"{row.loss.value:+.3f} [{row.loss.low:+.3f}, {row.loss.high:+.3f}]"


def _notes(row: Checked) -> Iterator[str]:
    if row.reason:
        yield f"{row.verdict}: {row.reason}"
    if row.verdict == "worse" and row.path is not None:
        ids = " ".join(row.worse[:_SHOWN]) + (" ..." if len(row.worse) > _SHOWN else "")
        yield f"worse in {len(row.worse):,} samples: {ids}"


def _differences(rows: Sequence[Checked]) -> dict[str, list[int]]:
    """What differs from the baseline, and in which rows."""
    found: dict[str, list[int]] = {}
    for place, row in enumerate(rows):
        for change in row.differs:
            found.setdefault(change, []).append(place)
    return found


def _sentence(row: Checked) -> str:
    """A row's verdict, on one line."""
    words = f"{row.verdict}: {row.number} {_number(row.before) or '?'} → {_number(row.now) or '?'}"
    if loss := _loss(row):
        words += f", loss {loss}"
    words += f", tolerance {row.tolerance:.3g}"
    return words + (f"; {row.reason}" if row.reason else "")


# ---------------------------------------------------------------- for machines


def as_json(rows: Sequence[Checked], others: Sequence[Path]) -> str:
    """Everything, the ids that flipped included."""
    content: list[dict[str, Any]] = []
    for row in rows:
        found = asdict(row)
        loss = found.pop("loss") or dict.fromkeys(("value", "low", "high", "error"))
        found |= {"loss": loss["value"], "low": loss["low"], "high": loss["high"], "error": loss["error"]}
        content.append(found | {"path": str(row.path) if row.path else None, "improved": row.improved})
    return json.dumps(
        {
            "exit": exit_code(rows),
            "summary": summary(rows),
            "rows": content,
            "others": list(map(str, others)),
        },
        indent=1,
        ensure_ascii=False,
    )


def write_junit(rows: Sequence[Checked], baseline: Path, file: Path) -> None:
    """JUnit XML: a test case per row. Worse is a failure; what could not be told is an error, because the
    command does not end well either. Raises FoveaError where the file cannot be written."""
    worse = sum(row.verdict == "worse" for row in rows)
    untold = sum(row.verdict not in ("good", "worse") for row in rows)
    counts = {"tests": str(len(rows)), "failures": str(worse), "errors": str(untold)}
    suites = ElementTree.Element("testsuites", {"name": "fovea check", **counts})
    suite = ElementTree.SubElement(suites, "testsuite", {"name": _clean(baseline.name), **counts})
    for row in rows:
        case = {"name": _clean(row.name), "classname": _clean(f"fovea.check.{baseline.stem}")}
        element = ElementTree.SubElement(suite, "testcase", case)
        if row.verdict != "good":
            kind = "failure" if row.verdict == "worse" else "error"
            said = {"type": row.verdict, "message": _clean(_sentence(row))}
            told = ElementTree.SubElement(element, kind, said)
            told.text = _clean("\n".join([*_notes(row), *(f"differs: {change}" for change in row.differs)]))
        ElementTree.SubElement(element, "system-out").text = _clean(_sentence(row))
    ElementTree.indent(suites)
    try:
        ElementTree.ElementTree(suites).write(file, encoding="utf-8", xml_declaration=True)
    except OSError as error:
        raise FoveaError(f"{file} cannot be written: {error.strerror}; name another file") from None


def _clean(text: str) -> str:
    """Without what XML cannot hold."""
    return re.sub("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", "\ufffd", text)


def for_github(rows: Sequence[Checked], baseline: Path) -> Iterator[str]:
    """GitHub's workflow commands: an error per row that is worse, a warning where it could not be told."""
    file = "" if baseline.is_absolute() else f"file={_property(baseline.as_posix())},"
    for row in rows:
        if row.verdict != "good":
            kind = "error" if row.verdict == "worse" else "warning"
            yield f"::{kind} {file}title={_property(row.name)}::{_data(_sentence(row))}"


def _data(text: str) -> str:
    """
    >>> _data("100 %\\n::error::x")
    '100 %25%0A::error::x'
    """
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    """
    >>> _property("pope (mscoco), vicrop:layer=1")
    'pope (mscoco)%2C vicrop%3Alayer=1'
    """
    return _data(text).replace(":", "%3A").replace(",", "%2C")
