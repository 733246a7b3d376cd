"""What the commands of this room print: the board, and the demo's picture. Runs in, answers out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from harness.types import Metric, Task


def board(
    runs: Sequence[Path],
    metric_from: Callable[[Mapping[str, Any]], Metric],
    console: Console,
    by: Sequence[str] = (),
) -> None:
    """Print a table per comparison: runs of one task, protocol, metric and selection; and beneath it what
    papers report of the same.

    by: groupings (category, answer_type, ...) by which each comparison is also shown.
    """
    from leaderboard.board import comparisons
    from leaderboard.published import SHIPPED, beside, read
    from leaderboard.terminal import breakdown, groupings, reported, table

    published = read(SHIPPED)
    for comparison in comparisons(runs, metric_from):
        console.print(table(comparison, console.width))
        better = comparison.higher_is_better
        theirs = beside(published, comparison.task, comparison.protocol, comparison.number)
        if theirs:
            console.print(reported(theirs, comparison.number, better))
        present = groupings(comparison)
        for name in by:
            if name in present:
                console.print(breakdown(comparison, name))
        if present and not by:
            console.print(f"also by {', '.join(present)}: --by {present[0]}", style="dim", markup=False)


def scenes(task: Task, plain: Path, cropped: Path, picture: Path) -> None:
    """Draw four scenes, fixed before any run, with the crop and both answers, into a PNG."""
    from leaderboard.scenes import draw

    draw(task, plain, cropped, picture)


def samples(
    run: Path,
    ids: Sequence[str],
    folder: Path,
    *,
    wrong: bool,
    task: Callable[[], Task],
    metric_from: Callable[[Mapping[str, Any]], Metric],
    say: Callable[[str], None],
) -> list[str]:
    """Draw samples of a run, one PNG each, saying each path; why the others could not be drawn.

    ids: which; the first eight where none is named (of those answered wrongly, if `wrong`). task: makes the
    run's task again, for pictures that are not files.
    """
    from harness.errors import FoveaError
    from harness.store import read_run
    from leaderboard.samples import Judge, Pictures, choose, show

    judge, picture = Judge(read_run(run), metric_from), Pictures(task)
    faults = []
    for record in choose(run, ids, lambda record: not wrong or judge(record).wrong):
        try:
            say(str(show(run, record, folder, judge, picture)))
        except FoveaError as error:
            faults.append(f"{record.sample_id!r}: {error}")
    return faults


def compare(
    first: Sequence[Path],
    second: Sequence[Path],
    metric_from: Callable[[Mapping[str, Any]], Metric],
    console: Console,
    *,
    by: Sequence[str] = (),
    numbers: Sequence[str] = (),
    flips: bool = False,
    format: str = "",
    say: Callable[[str], None],
    warn: Callable[[str], None],
) -> None:
    """Print the second runs against the first, pair by pair (`leaderboard.compare.partners`).

    by, numbers: as of `leaderboard.compare.compare`. format: json, md or csv; "" is for the terminal.
    """
    from leaderboard import _compared
    from leaderboard.compare import compare, partners

    pairs, alone = partners(first, second)
    for path in alone:
        warn(f"{path} has no partner")
    found = compare(pairs, metric_from, by, numbers)
    if not format:
        _compared.show(found, console, flips)
    elif format == "md":
        say(_compared.markdown(found, flips).rstrip())
    else:
        say({"json": _compared.as_json, "csv": _compared.as_csv}[format](found).rstrip())
