"""The board as a folder of static files: a page that sorts, filters, plots, and asks for no network.

The page holds the rows of `_tables.records` as data; `pages/board.js` draws them (DataTables, from itables'
offline bundle) and plots them (plotly, its script once beside the page, loaded when a plot comes into sight).
Equal boards give equal bytes. Knows the page. What the rows mean, it does not.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.errors import FoveaError
from harness.store import read_run
from leaderboard import _web
from leaderboard._tables import EXPLAINED, Section, as_csv, as_json, records, unranked
from leaderboard.terminal import _estimate, groupings, require_groupings

if TYPE_CHECKING:
    from harness.types import Retrieval, Task
    from leaderboard.board import MetricFrom

DIGITS = 7  # of each number on the page; the files beside it have all

_SHARED = ("task", "split", "version", "protocol", "metric", "number", "higher_is_better")
"""Told once per comparison."""


def board(
    sections: Sequence[Section],
    runs: Sequence[Path],
    metric_from: MetricFrom,
    folder: Path,
    by: Sequence[str],
    task: Callable[[Path], Task | Retrieval] | None,
    say: Callable[[str], None],
) -> list[str]:
    """Write the page of a board of `runs`, and with `task` their sample pages, into `folder`; say where. What
    could not be shown on the sample pages comes back."""
    require_groupings([section.comparison for section in sections], by)
    places = _places(sections)
    faults = _samples(sections, places, folder, metric_from, task) if task else []
    pages = {path: place for path, place in places.items() if (folder / place).is_file()}
    without = len(runs) - len(places)
    say(str(write(sections, folder, by=by, without=without, pages=pages)))
    return faults


def _places(sections: Sequence[Section]) -> dict[Path, str]:
    """Where each run's sample page stands: by its id, and by a number besides where runs share one."""
    found: dict[Path, str] = {}
    seen: Counter[str] = Counter()
    for row in (row for section in sections for row in section.comparison.rows):
        seen[row.id] += 1
        again = f"-{seen[row.id]}" if seen[row.id] > 1 else ""
        found[row.path] = f"runs/{row.id}{again}/index.html"
    return found


def _samples(
    sections: Sequence[Section],
    places: Mapping[Path, str],
    folder: Path,
    metric_from: MetricFrom,
    task: Callable[[Path], Task | Retrieval],
) -> list[str]:
    """The sample pages; of a method's run beside the same model without a method, where the board has it."""
    from leaderboard.viewer import export

    faults = []
    for section in sections:
        rows = section.comparison.rows
        plain = {(row.model, read_run(row.path)["id"]): row.path for row in rows if row.complete}
        for row in rows:
            identity = plain.get((row.model, read_run(row.path)["baseline"]))
            pair = [identity, row.path] if identity not in (None, row.path) else [row.path]
            try:
                faults += export(
                    [path for path in pair if path is not None],
                    (folder / places[row.path]).parent,
                    images=folder / "images",
                    assets="../../assets",
                    task=partial(task, row.path),
                    metric_from=metric_from,
                    say=lambda _: None,
                )
            except FoveaError as error:
                faults.append(f"{row.path} has no sample page: {error}")
    return faults


def write(
    board: Sequence[Section],
    folder: Path,
    *,
    by: Sequence[str] = (),
    without: int = 0,
    pages: Mapping[Path, str] | None = None,
) -> Path:
    """Write the page and what it needs below `folder`; the page's path.

    by: groupings to show besides. without: how many runs are on no comparison. pages: where the sample
    page of a run is, from `folder`. StoreError where the folder cannot be written.
    """
    shown = _web.render(
        "board.html.j2",
        assets="assets",
        summary=_summary(board, without),
        explained=EXPLAINED,
        parts=[
            _part(section, name) for section in board for name in by if name in groupings(section.comparison)
        ],
        data=_web.script(_data(board, pages or {})),
    )
    scripts = {
        "datatables.js": _datatables(),
        "plotly.min.js": _web.packaged("plotly", "package_data/plotly.min.js"),
        **{name: _web.shared(name) for name in ("base.css", "theme.js", "board.css", "board.js")},
    }
    files = {"board.csv": as_csv(board, by), "board.json": as_json(board, by), "index.html": shown}
    _web.write(folder, {f"assets/{name}": content for name, content in scripts.items()} | files)
    return folder / "index.html"


def _data(board: Sequence[Section], pages: Mapping[Path, str]) -> dict[str, Any]:
    """The rows by column, papers' variations left out; a link to the sample page where there is one."""
    main = [Section(section.comparison, section.main) for section in board]
    rows = records(main)
    links = {str(path): link for path, link in pages.items()}
    columns = [name for name in rows[0] if name not in (*_SHARED, "by", "value")] if rows else []
    return {
        "comparisons": [
            {name: getattr(section.comparison, name) for name in _SHARED}
            | {
                "title": section.title,
                "facts": section.facts,
                "more": len(section.reported) - len(section.main),
            }
            for section in board
        ],
        "columns": [*columns, "page"],
        "rows": [[*(_short(row[name]) for name in columns), links.get(row["run"] or "")] for row in rows],
    }


def _short(value: Any) -> Any:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


def _summary(board: Sequence[Section], without: int) -> list[str]:
    """How much there is, and what has no rank and why: two sentences.

    >>> _summary([], 2)
    ['No runs with scores.', 'Not shown: 2 runs without a metric, or found twice.']
    """
    rows = [row for section in board for row in section.comparison.rows]
    if not rows:
        words = ["No runs with scores."]
    else:
        sizes = (
            (len(rows), "run"),
            (len({section.comparison.task for section in board}), "task"),
            (len({row.model for row in rows}), "model"),
            (len({row.method for row in rows if row.method != "none"}), "method"),
        )
        words = [" · ".join(_many(number, noun) for number, noun in sizes) + "."]
    reasons = Counter(unranked(row) for row in rows if row.rank is None)
    if reasons:
        why = ", ".join(f"{reason} {number}" for reason, number in sorted(reasons.items()))
        words.append(f"{len(rows) - reasons.total()} ranked, {reasons.total()} not: {why}.")
    alone = sum(row.difference is None and row.rank is not None and row.method != "none" for row in rows)
    if alone:
        words.append(f"{_many(alone, 'ranked run')} without a difference to the same model without a method.")
    theirs = sum(len(section.main) for section in board)
    if theirs:
        words.append(f"Beside them {_many(theirs, 'number')} that papers report, not measured here.")
    if without:
        words.append(f"Not shown: {_many(without, 'run')} without a metric, or found twice.")
    return words


def _many(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _part(section: Section, by: str) -> dict[str, Any]:
    """A grouping as a grid: a line per run, a column per value; empty where the run has none."""
    rows = [row for row in section.comparison.rows if by in row.breakdowns]
    values = sorted({value for row in rows for value in row.breakdowns[by]})

    def cell(part: Any) -> dict[str, str]:
        value, _, interval = _estimate(part).partition(" ") if part else ("", "", "")
        return {"value": value, "interval": interval}

    return {
        "title": f"{section.title} by {by}",
        "number": section.comparison.number,
        "values": values,
        "rows": [
            {
                "model": row.model,
                "method": row.method,
                "note": unranked(row),
                "cells": [cell(row.breakdowns[by].get(value)) for value in values],
            }
            for row in rows
        ],
    }


# ---------------------------------------------------------------- other people's scripts


def _datatables() -> str:
    """itables' bundle as a plain script that sets `DataTable`: a page of a file may load no module."""
    source = _web.packaged("itables", "html/dt_bundle.js")
    exports = re.search(r"\bexport\s*\{([^{}]*)\};?", source)  # the last statement; licences follow
    name = re.search(r"([\w$]+) as default", exports[1]) if exports else None
    if exports is None or name is None:
        raise FoveaError("this itables has another bundle than Fovea knows; pip install 'itables>=2.9,<3'")
    before, after = source[: exports.start()], source[exports.end() :]
    return f"(() => {{\n{before}\nwindow.DataTable = {name[1]};\n{after}\n}})();\n"
