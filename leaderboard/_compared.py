"""A comparison as text: tables for the terminal, Markdown, CSV, JSON.

Knows how numbers are written. What they mean and where they come from, it does not.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from leaderboard.compare import SURE, Line, Pair
from leaderboard.terminal import _estimate

_LEFT_OUT = ("McNemar", "could show", "better/tied/worse", "p", "n")
"""Columns that go first where a terminal is narrow."""

_COLOURS = {"better": "green", "worse": "red"}


def show(pairs: Sequence[Pair], console: Console, flips: bool = False) -> None:
    """Print each pair: what is compared, its numbers, its breakdowns. flips: the ids behind the counts."""
    for pair in pairs:
        for words in _heading(pair):
            console.print(words, markup=False)
        for warning in pair.warnings:
            console.print(warning, style="yellow", markup=False)
        for title, lines in _tables(pair):
            console.print(_table(title, lines, console))
            for words in _notes(lines):
                console.print(words, style="dim", markup=False)
        if flips:
            for words in _flips(pair):
                console.print(words, markup=False)
        asked = {line.by for line in pair.lines}
        if more := [name for name in pair.groupings if name not in asked]:
            console.print(f"also by {', '.join(more)}: --by {more[0]}\n", style="dim", markup=False)
    console.print(_footnote(pairs), style="dim", markup=False)


def markdown(pairs: Sequence[Pair], flips: bool = False) -> str:
    """Every pair as a heading, its warnings and a table."""
    parts = []
    for pair in pairs:
        first, *rest = _heading(pair)
        parts.append(f"### {_plain(first)}\n\n" + "".join(f"- {_plain(words)}\n" for words in rest))
        if pair.warnings:
            parts.append("".join(f"> {_plain(warning)}\n" for warning in pair.warnings))
        for title, lines in _tables(pair):
            rows = [_cells(line) for line in lines]
            names = [name for name in rows[0] if any(row[name] for row in rows)]
            table = [names, ["---"] * len(names), *([row[name] for name in names] for row in rows)]
            body = "".join(f"| {' | '.join(map(_plain, row))} |\n" for row in table)
            notes = "".join(f"\n{_plain(words)}\n" for words in _notes(lines))
            parts.append(f"**{_plain(title)}**\n\n{body}{notes}")
        if flips:
            parts.append("".join(f"- {_plain(words)}\n" for words in _flips(pair)))
    return "\n".join([*parts, _plain(_footnote(pairs)) + "\n"])


def as_csv(pairs: Sequence[Pair]) -> str:
    """One line per number, in full precision."""
    out = io.StringIO()
    rows = [_flat(pair, line) for pair in pairs for line in pair.lines]
    if rows:
        writer = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return out.getvalue()


def as_json(pairs: Sequence[Pair]) -> str:
    """Everything, the ids that flipped included."""
    return json.dumps(
        {"family": _family(pairs), "pairs": [_json(pair) for pair in pairs]}, indent=1, ensure_ascii=False
    )


def _json(pair: Pair) -> dict[str, Any]:
    sides = {
        name: {**asdict(side), "path": str(side.path)}
        for name, side in (("first", pair.first), ("second", pair.second))
    }
    lines = []
    for line in pair.lines:
        found = _flat(pair, line)
        for name in ("task", "protocol", "first_id", "second_id"):
            del found[name]
        lines.append(found | {"better_ids": line.better, "worse_ids": line.worse})
    kept = ("task", "protocol", "n", "of", "units", "differs", "warnings", "groupings")
    return {**{name: getattr(pair, name) for name in kept}, **sides, "lines": lines}


def _flat(pair: Pair, line: Line) -> dict[str, Any]:
    found, counted = line.found, line.ties is not None
    return {
        "task": pair.task,
        "protocol": pair.protocol,
        "first_id": pair.first.id,
        "second_id": pair.second.id,
        "metric": line.metric,
        "number": line.number,
        "higher_is_better": line.higher_is_better,
        "by": line.by,
        "value": line.value,
        "n": line.n,
        "of": pair.of,
        "first": found.first,
        "second": found.second,
        "difference": found.difference.value,
        "low": found.difference.low,
        "high": found.difference.high,
        "p": line.p,
        "exact": found.chance.exact if line.p is not None else None,
        "p_holm": line.corrected,
        "verdict": line.verdict,
        "better": len(line.better) if counted else None,
        "ties": line.ties,
        "worse": len(line.worse) if counted else None,
        "undefined": line.undefined if counted else None,
        "mcnemar": line.mcnemar,
        "could_show": found.detectable,
        "note": line.note,
    }


# ---------------------------------------------------------------- tables


def _heading(pair: Pair) -> Iterator[str]:
    images = f", {pair.units:,} images" if pair.units < pair.n else ""
    yield f"{pair.task} ({pair.protocol}): {pair.n:,} of {pair.of:,} samples{images}"
    for name, side in (("A", pair.first), ("B", pair.second)):
        yield f"{name}  {side.model}, {side.method}  ({side.path})"
    for change in pair.differs:
        yield f"   {change}"


def _tables(pair: Pair) -> Iterator[tuple[str, list[Line]]]:
    """A table's title and lines: per metric, all samples and then each grouping."""
    groups: dict[tuple[str, str | None], list[Line]] = {}
    for line in pair.lines:
        groups.setdefault((line.metric, line.by), []).append(line)
    for (metric, by), lines in groups.items():
        yield f"{metric} by {by}" if by else metric, lines


def _notes(lines: Sequence[Line]) -> Iterator[str]:
    for note in dict.fromkeys(line.note for line in lines if line.note):
        yield f"{', '.join(line.number for line in lines if line.note == note)}: {note}"


def _table(title: str, lines: Sequence[Line], console: Console) -> Table:
    """Without the columns that say least, until the rest fits."""
    rows = [_cells(line) for line in lines]
    names = [name for name in rows[0] if any(row[name] for row in rows)]
    table = _drawn(title, names, rows, lines)
    unbounded = console.options.update(width=10_000)
    for spare in _LEFT_OUT:
        if console.measure(table, options=unbounded).maximum <= console.width:
            break
        names = [name for name in names if name != spare]
        table = _drawn(title, names, rows, lines)
    return table


def _drawn(
    title: str, names: Sequence[str], rows: Sequence[Mapping[str, str]], lines: Sequence[Line]
) -> Table:
    out = Table(
        title=escape(title),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )
    for name in names:
        left = name in (names[0], "number", "B is")
        out.add_column(escape(name), justify="left" if left else "right", overflow="fold")
    shown = ""
    for line, row in zip(lines, rows, strict=True):
        first, *rest = (escape(row[name]) for name in names)
        out.add_row("" if first == shown else first, *rest, style=_COLOURS.get(line.verdict))
        shown = first
    return out


def _cells(line: Line) -> dict[str, str]:
    """What a line says, by column, as text."""
    found = line.found
    groups = {line.by: str(line.value)} if line.by is not None else {}
    counts = ""
    if line.ties is not None:
        counts = f"{len(line.better):,}/{line.ties:,}/{len(line.worse):,}"
        counts += f" ({line.undefined} undefined)" if line.undefined else ""
    return {
        **groups,
        "number": line.number + {True: " ↑", False: " ↓", None: ""}[line.higher_is_better],
        "n": f"{line.n:,}",
        "A": _number(found.first),
        "B": _number(found.second),
        "B − A, 95 %": _estimate(found.difference, sign="+"),
        "p": _p(line.p),
        "p, Holm": _p(line.corrected),
        "B is": line.verdict,
        "better/tied/worse": counts,
        "McNemar": _p(line.mcnemar),
        "could show": _number(found.detectable) if line.p is not None else "",
    }


def _flips(pair: Pair) -> Iterator[str]:
    for line in pair.lines:
        of = f"{line.by} {line.value}, " if line.by is not None else ""
        for what, ids in (("better", line.better), ("worse", line.worse)):
            if ids:
                yield f"{of}{line.metric} {line.number}: B is {what} in {len(ids):,}: {' '.join(ids)}"


def _family(pairs: Sequence[Pair]) -> int:
    return sum(line.p is not None for pair in pairs for line in pair.lines)


def _footnote(pairs: Sequence[Pair]) -> str:
    number = _family(pairs)
    words = (
        "Intervals: paired bootstrap. p: paired permutation test. Holm: corrected over the "
        f"{number} test{'s' if number != 1 else ''} shown; below {SURE:g}, B is better or worse. could show: "
        "about the smallest true difference that so many samples find in 4 of 5 tries."
    )
    if any(pair.units < pair.n for pair in pairs):
        words += " Samples of one image are drawn and swapped together; McNemar takes them for independent."
    return words


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _p(value: float | None) -> str:
    """
    >>> [_p(value) for value in (1.0, 0.0304, 0.00012, 0.00002, None)]
    ['1.000', '0.030', '0.0001', '<0.0001', '']
    """
    if value is None:
        return ""
    if value < 0.0001:
        return "<0.0001"
    return f"{value:.{3 if value >= 0.01 else 4}f}"


def _plain(text: str) -> str:
    r"""Safe in a cell of a Markdown table.

    >>> _plain("a|b <i>\nc")
    'a\\|b &lt;i> c'
    """
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").split())
