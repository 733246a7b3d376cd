"""The commands that read runs: the board, comparisons, the gate, pictures and pages of samples.

They find the runs that words name and hand them to the leaderboard; what it makes of them they do not know.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from harness import screen
from harness.errors import FoveaError
from harness.screen import COMPLETE, FAULTY

RUNS = Path("results/runs")
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Show tracebacks and libraries' logs.")]
Format = Literal["json", "md", "csv"]
BoardFormat = Literal["html", "md", "csv", "latex", "json", "parquet"]


def board(
    runs: Annotated[list[Path] | None, typer.Argument(help="Run directories, or folders of them.")] = None,
    by: Annotated[
        list[str] | None, typer.Option(help="Also by this grouping (category, answer_type, ...); repeatable.")
    ] = None,
    format: Annotated[
        BoardFormat | None,
        typer.Option(
            help="html: a folder with a page that sorts, filters and plots, from a file or any web host, "
            "without a network. md: tables as GitHub shows them. latex: booktabs tables for a paper. "
            "csv, json, parquet: one table, a line per row, in full precision, empty or null where "
            "something is missing [default: a table for this terminal]."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The file to write, or html's folder [default: the terminal; html: results/board]."
        ),
    ] = None,
    samples: Annotated[
        bool, typer.Option("--samples", help="With html: also a page of every run's samples.")
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Show runs as a leaderboard: score, interval, n of N, difference to no method, cost."""
    from harness import resolve, store
    from harness.errors import SpecError

    with screen.errors(verbose):
        if out is not None and format is None:
            raise SpecError(f"--out {out}: say in which format, --format html, md, csv, ...")
        if samples and format != "html":
            raise SpecError("--samples are pages of the html board: --format html --samples")
        found = run_directories(runs or [RUNS])
        faults = resolve.verb("board")(
            found,
            resolve.metric_from,
            screen.console(),
            by or (),
            format=format or "",
            out=out,
            task=(lambda run: resolve.make_task(store.read_run(run)["task"])) if samples else None,
            say=typer.echo,
        )
        for fault in faults:
            typer.secho(fault, err=True, fg="red")
        raise typer.Exit(FAULTY if faults else COMPLETE)


def compare(
    first: Annotated[str, typer.Argument(help="A: a run directory, a folder of runs, or a quoted glob.")],
    second: Annotated[str, typer.Argument(help="B: likewise; the difference is B - A.")],
    by: Annotated[
        list[str] | None, typer.Option(help="Also by this grouping (category, answer_type, ...); repeatable.")
    ] = None,
    number: Annotated[
        list[str] | None, typer.Option(help="Only this number (accuracy, rsum, ...); repeatable.")
    ] = None,
    flips: Annotated[
        bool, typer.Option("--flips", help="The ids of the samples in which B is better or worse.")
    ] = False,
    format: Annotated[Format | None, typer.Option(help="For a file [default: a table].")] = None,
    verbose: Verbose = False,
) -> None:
    """Compare two runs of one task, sample by sample: differences, intervals, corrected p-values.

    Folders and globs pair runs of the same task: one run of it on one side, with each on the other.
    """
    from harness import resolve

    with screen.errors(verbose):
        resolve.verb("compare")(
            _globbed(first),
            _globbed(second),
            resolve.metric_from,
            screen.console(),
            by=by or (),
            numbers=number or (),
            flips=flips,
            format=format or "",
            say=typer.echo,
            warn=screen.warn,
        )


def check(
    baseline: Annotated[Path, typer.Argument(help="The baseline's file: results/baselines/demo.json, ...")],
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            help="Run directories, folders of them, quoted globs [default: local ones run again]."
        ),
    ] = None,
    save: Annotated[bool, typer.Option("--save", help="Write RUNS as the baseline.")] = False,
    tolerance: Annotated[
        float | None,
        typer.Option(help="With --save: the loss a row may have, in its unit [default: as before, or 0.02]."),
    ] = None,
    number: Annotated[
        str | None, typer.Option(help="With --save: guard this number [default: the task's primary].")
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="With --save: the spec that makes the runs' model again; repeatable."),
    ] = None,
    rerun_under: Annotated[
        float, typer.Option(help="Without RUNS: run local rows again that took fewer seconds than this.")
    ] = 60.0,
    out: Annotated[
        Path | None, typer.Option(help="Keep the runs made again in this folder [default: nowhere].")
    ] = None,
    junit: Annotated[Path | None, typer.Option(help="Also write JUnit XML into this file.")] = None,
    annotations: Annotated[
        bool,
        typer.Option("--annotations", envvar="GITHUB_ACTIONS", help="Also print GitHub's, on stderr."),
    ] = False,
    format: Annotated[Literal["json"] | None, typer.Option(help="For a machine [default: a table].")] = None,
    verbose: Verbose = False,
) -> None:
    """Judge runs against a baseline: exit 1 if a row got worse, 2 if that cannot be told, else 0.

    fovea check --save BASELINE RUNS... writes one. Without RUNS, rows of local models are run again.
    """
    from contextlib import ExitStack
    from tempfile import TemporaryDirectory

    from harness import rerun, resolve

    with screen.errors(verbose), ExitStack() as stack:
        if save:
            resolve.verb("save_baseline")(
                baseline,
                _all_globbed(runs or [str(RUNS)]),
                tolerance=tolerance,
                number=number,
                recipe=rerun.recipes(model or ()),
                say=typer.echo,
                warn=screen.warn,
            )
            return
        _only_with_save({"--tolerance": tolerance, "--number": number, "--model": model})
        found: Any = _all_globbed(runs) if runs else {}
        reasons: dict[str, str] = {}
        if not runs:
            rows, left_out = resolve.verb("to_run_again")(baseline, rerun_under)
            folder = out or Path(stack.enter_context(TemporaryDirectory(prefix="fovea-check-")))
            found, failed = rerun.run(rows, out=folder, progress=screen.progress, warn=screen.warn)
            reasons = {**left_out, **failed}
        code = resolve.verb("check")(
            baseline,
            found,
            resolve.metric_from,
            screen.console(),
            reasons=reasons,
            junit=junit,
            annotations=annotations,
            as_json=format == "json",
            say=typer.echo,
            tell=lambda line: typer.echo(line, err=True),
        )
        raise typer.Exit(code)


def show(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    samples: Annotated[list[str] | None, typer.Argument(help="Their ids; default: the first eight.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the pictures [default: RUN/pictures].")] = None,
    wrong: Annotated[bool, typer.Option("--wrong", help="The first eight answered wrongly.")] = False,
    task: Annotated[
        str | None, typer.Option(help="The run's task, for pictures that are not where they were.")
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Draw samples of a run: the map over the picture, the crop, the answer; one PNG each."""
    from harness import resolve, store

    with screen.errors(verbose):
        faults = resolve.verb("samples")(
            run,
            samples or (),
            out or run / "pictures",
            wrong=wrong,
            task=lambda: resolve.make_task(task or store.read_run(run)["task"]),
            metric_from=resolve.metric_from,
            say=typer.echo,
        )
        for fault in faults:
            typer.secho(fault, err=True, fg="red")
        raise typer.Exit(FAULTY if faults else COMPLETE)


def view(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    other: Annotated[Path | None, typer.Argument(help="Another of the same task, beside it.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the pages [default: RUN/view; of two, results/view/...].")
    ] = None,
    open: Annotated[bool, typer.Option("--open", help="Show them in the browser.")] = False,
    task: Annotated[
        str | None, typer.Option(help="The run's task, for pictures that are not where they were.")
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Write a run's samples as pages: pictures with what was done to them, answers, filters; or two runs'.

    The folder works from the disk and from any web host, and asks the network for nothing.
    """
    from harness import resolve, store

    with screen.errors(verbose):
        faults = resolve.verb("view")(
            [run, *([other] if other else [])],
            out,
            open=open,
            task=lambda: resolve.make_task(task or store.read_run(run)["task"]),
            metric_from=resolve.metric_from,
            say=typer.echo,
        )
        for fault in faults:
            screen.warn(fault)


COMMANDS = (board, compare, check, show, view)


# ---------------------------------------------------------------- which runs


def run_directories(paths: list[Path]) -> list[Path]:
    from harness import store

    found = []
    for path in paths:
        runs = store.find_runs(path)
        if not runs:
            raise FoveaError(f"{path} holds no run. Runs live in {RUNS}/TASK/MODEL/METHOD-ID")
        found += runs
    return found


def _globbed(pattern: str) -> list[Path]:
    """The runs of a directory, a folder or a glob (`results/runs/*/hf-demo/vicrop-*`)."""
    from glob import glob

    from harness import store

    if Path(pattern).exists():
        return run_directories([Path(pattern)])
    paths = sorted(glob(pattern, recursive=True))  # noqa: PTH207 (Path's takes no absolute patterns)
    found = [run for path in paths for run in store.find_runs(Path(path))]
    if not found:
        raise FoveaError(f"{pattern} finds no run. Runs live in {RUNS}/TASK/MODEL/METHOD-ID")
    return list(dict.fromkeys(found))


def _all_globbed(patterns: Sequence[str]) -> list[Path]:
    return list(dict.fromkeys(run for pattern in patterns for run in _globbed(pattern)))


def _only_with_save(given: dict[str, Any]) -> None:
    from harness.errors import SpecError

    for option, value in given.items():
        if value is not None and value != []:
            raise SpecError(
                f"{option} belongs to a baseline that is written: fovea check --save ... {option}"
            )
