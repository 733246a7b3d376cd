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
    *,
    format: str = "",
    out: Path | None = None,
    task: Callable[[Path], Task] | None = None,
    say: Callable[[str], None] = print,
) -> list[str]:
    """Show a table per comparison: runs of one task, protocol, metric and selection; and beneath it what
    papers report of the same.

    by: groupings (category, answer_type, ...) by which each comparison is also shown. format: html, md, csv,
    latex, json or parquet; "" is for the terminal. out: the file, or html's folder; without it, text is said.
    task: makes a run's task again; with it, html has the sample pages of every run. What could not be shown
    on those comes back.
    """
    from leaderboard.board import comparisons
    from leaderboard.published import SHIPPED, beside, read
    from leaderboard.terminal import breakdown, groupings, reported, require_groupings, table

    published = read(SHIPPED)
    found = comparisons(runs, metric_from)
    if format:
        from leaderboard import _board_page, _tables

        sections = [_tables.Section.of(comparison, published) for comparison in found]
        if format == "html":
            return _board_page.board(sections, runs, metric_from, out or Path("results/board"), by, task, say)
        _tables.write(sections, by, format, out, say)
        return []
    require_groupings(found, by)
    for comparison in found:
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
    return []


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


def view(
    runs: Sequence[Path],
    folder: Path | None,
    *,
    open: bool,
    task: Callable[[], Task],
    metric_from: Callable[[Mapping[str, Any]], Metric],
    say: Callable[[str], None],
) -> list[str]:
    """Write the pages of a run's samples, or of two runs' side by side, saying where; what is not shown.

    folder: `leaderboard.viewer.own_folder(runs)` unless given. open: show them in the browser.
    """
    from leaderboard.viewer import export, own_folder

    folder = folder or own_folder(runs)
    images = folder / "images"
    faults = export(runs, folder, images=images, assets="assets", task=task, metric_from=metric_from, say=say)
    if open:
        import webbrowser

        webbrowser.open((folder / "index.html").resolve().as_uri())
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


def ablation(
    runs: Sequence[Path],
    metric_from: Callable[[Mapping[str, Any]], Metric],
    console: Console,
    folder: Path,
    *,
    name: str,
    about: str,
) -> None:
    """Print a sweep's pivot table and its best cell, and write both with drawings and a page into `folder`.

    runs: in the grid's order. StoreError where the folder cannot be written.
    """
    from leaderboard import _ablation_figures, _ablation_page, _ablation_tables, _web
    from leaderboard.ablation import ablations

    found = ablations(runs, metric_from)
    if not found:
        console.print("these runs have no scores to show", style="dim")
        return
    for one in found:
        for sheet in _ablation_tables.sheets(one):
            console.print(_ablation_tables.terminal(sheet, console.width))
        console.print(_ablation_tables.verdict(one), markup=False, soft_wrap=not console.is_terminal)
        console.print()
    tables = {
        "pivot.md": _ablation_tables.markdown(found, name, about),
        "pivot.csv": _ablation_tables.as_csv(found),
        "pivot.tex": _ablation_tables.latex(found),
    }
    pictures = _ablation_figures.files(found)
    _web.write(folder, {**tables, **pictures, **_ablation_page.files(found, name, about)})
    for picture in (*(each for each in pictures if each.endswith(".png")), "index.html"):
        console.print(str(folder / picture), markup=False, soft_wrap=True)


def check(
    baseline: Path,
    runs: Mapping[str, Path] | Sequence[Path],
    metric_from: Callable[[Mapping[str, Any]], Metric],
    console: Console,
    *,
    reasons: Mapping[str, str] | None = None,
    junit: Path | None = None,
    annotations: bool = False,
    as_json: bool = False,
    say: Callable[[str], None],
    tell: Callable[[str], None],
) -> int:
    """Judge runs against a baseline's file and print the verdicts: 1 where a row is worse, 2 where none is
    but not all are good, else 0.

    runs: paths, or paths by the rows' names, and then `reasons` says why other rows have none. junit: a file
    for JUnit XML. annotations: `tell` GitHub's too.
    """
    from leaderboard import _checked
    from leaderboard._baseline import read
    from leaderboard.check import check, exit_code, match

    known, others = read(baseline), []
    if not isinstance(runs, Mapping):
        matched = match(known, runs)
        runs, reasons, others = matched.runs, matched.reasons, list(matched.others)
    rows = check(known, runs, metric_from, reasons)
    if as_json:
        say(_checked.as_json(rows, others))
    else:
        _checked.show(rows, others, console)
    if junit is not None:
        _checked.write_junit(rows, baseline, junit)
    if annotations:
        for line in _checked.for_github(rows, baseline):
            tell(line)
    return exit_code(rows)


def save_baseline(
    baseline: Path,
    runs: Sequence[Path],
    *,
    tolerance: float | None,
    number: str | None,
    recipe: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    say: Callable[[str], None],
    warn: Callable[[str], None],
) -> None:
    """Write complete runs as a baseline's file (`leaderboard.check.save`), saying each row."""
    from leaderboard.check import save

    written = save(baseline, runs, tolerance=tolerance, number=number, recipe=recipe, warn=warn)
    for row in written.rows:
        n = len(written.keys(row))
        say(f"{row.name}: {row.number} {row.value:.4f} over {n:,} samples, may lose {row.tolerance:g}")
    say(f"{baseline}: {baseline.stat().st_size / 1024:,.0f} KiB")


def to_run_again(baseline: Path, under: float) -> tuple[Sequence[Any], Mapping[str, str]]:
    """The rows of a baseline's file that are asked anew where no run is given, and why the others are not.

    Raises FoveaError where none is.
    """
    from harness.errors import FoveaError
    from leaderboard._baseline import read
    from leaderboard.check import again

    rows, reasons = again(read(baseline), under)
    if not rows:
        why = "\n".join(f"  {name}: {reason}" for name, reason in reasons.items())
        raise FoveaError(f"no row of {baseline} can be run again here:\n{why}")
    return rows, reasons
