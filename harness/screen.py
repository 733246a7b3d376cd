"""What the command line shows: progress, scores, plans, estimates, and how errors end a command.

Knows the terminal and what the harness hands it. Must not know commands or their options.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from harness.errors import BudgetSpent, FoveaError

if TYPE_CHECKING:
    from rich.console import Console

    from harness.engine import Progress, Run
    from harness.sweep import Forecast, Outcome, Plan

COMPLETE, FAULTY, REFUSED, FAILED, SPENT, INTERRUPTED = 0, 1, 2, 3, 4, 130


def exit_code(result: Run) -> int:
    """What the command says of how a run ended."""
    if result.status in _UNFINISHED:
        return _UNFINISHED[result.status]
    return FAILED if result.status != "complete" or result.failed else COMPLETE


def show_cells(plan: Plan) -> None:
    """The cells of a grid, before it runs."""
    from rich.markup import escape
    from rich.table import Table

    table = Table("task", "model", "methods", "samples")
    for column in table.columns:
        column.overflow = "fold"  # a spec's last knob may be all that tells two cells apart
    for cell in plan.cells:
        samples = plan.samples(cell)
        known = "?" if samples is None else f"{samples:,}"
        table.add_row(*map(escape, (cell.task, cell.model, cell.chain, known)))
    console().print(table)


def plan_lines(plan: Plan, left: Forecast) -> str:
    """What a sweep is about to do, and what that would use at most, as far as it is known."""
    known = " known" if any(plan.samples(cell) is None for cell in plan.cells) else ""
    text = f"{len(plan.cells)} cells, {plan.asked:,} samples{known}"
    if left.complete:
        text += f"; {left.complete} cells are complete"
    if left.complete == len(plan.cells):
        return text
    lines = [text]
    if left.matrices:
        lines.append(f"matching  {left.matrices} cells, which have no requests")
    if left.matrices + left.complete + left.unknown < len(plan.cells):
        usage = left.usage
        sampled = " (counted on some samples of each cell)" if left.sampled else ""
        lines.append(f"requests  {left.requests:,} with {usage.images:,} pictures, at most{sampled}")
        tokens_in = f"{usage.tokens_in:,}" + ("" if left.counted else " and those of models that do not say")
        if not left.counted and not usage.tokens_in:
            tokens_in = "not counted"
        lines.append(f"tokens    in {tokens_in}, out {usage.tokens_out:,} at most")
        lines.append(f"dollars   {_dollars_at_most(left)}")
    if left.unknown:
        lines.append(f"unknown   what {left.unknown} cells would use")
    return "\n".join(lines)


def _dollars_at_most(left: Forecast) -> str:
    """What is known of the price, and what is not."""
    amount = left.usage.dollars or 0.0
    if left.unpriced:
        text = "unknown: a model has no known price; state it as price=IN/OUT in its spec"
        text += f". The others: {dollars(amount)} at most" if amount else ""
    elif amount:
        text = f"{dollars(amount)} at most"
    elif left.counted:
        text = dollars(0.0)
    else:
        text = "none counted: the models state no price, as those that run here"
    return text + (", and what the judges of metrics cost" if left.judged else "")


def close_sweep(plan: Plan, ended: Sequence[Outcome]) -> int:
    """How many cells are complete, and which are not and why. The sweep's exit code."""
    bad = [outcome for outcome in ended if not outcome.good]
    typer.echo(f"{len(ended) - len(bad)} of {len(plan.cells)} cells complete")
    for outcome in bad:
        warn(f"{outcome.cell}: {outcome.reason}")
    statuses = {outcome.run.status if outcome.run is not None else outcome.reason for outcome in bad}
    for status, code in _UNFINISHED.items():
        if status in statuses:
            warn(_RESUME[status].format(quoted_command()))
            return code
    return FAILED if bad else COMPLETE


def console() -> Console:
    """The terminal; elsewhere a wide page without colours."""
    from rich.console import Console

    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=160)


def show_result(result: Run) -> None:
    """What a run found, what it spent, where it is, and how to go on."""
    show_scores(result.summary)
    spent, cost = result.spending["spent"]["dollars"], result.spending["usage"]["dollars"]
    if (spent, cost) != (0, 0):
        typer.echo(f"{dollars(spent)} spent now; these answers cost {dollars(cost)}")
    typer.echo(f"{result.path}")
    if result.status in _UNFINISHED:
        warn(_RESUME[result.status].format(quoted_command()))
    elif result.failed:
        warn(_failed(result))


def _failed(result: Run) -> str:
    """How many samples failed, and whether it helps to repeat the command."""
    from harness.store import RECORDS, read_records

    failures = [record.failure for record in read_records(result.path) if record.failure is not None]
    passing = sum(failure.retry for failure in failures)
    text = f"{result.failed} samples failed"
    if passing:
        which = "them" if passing == len(failures) else f"the {passing} that may pass"
        return f"{text}; repeat the command to try {which} again"
    return f"{text}, and would again as things are: {result.path / RECORDS} says why"


_UNFINISHED = {"interrupted": INTERRUPTED, "budget": SPENT}
_RESUME = {
    "interrupted": "interrupted. To resume: {}",
    "budget": "stopped before the budget could be passed. To go on, with as much again: {}",
}


def dollars(amount: float | None) -> str:
    """An amount, to a hundredth of a cent; what is not known is not 0.

    >>> dollars(0.12345), dollars(12), dollars(None)
    ('$0.1235', '$12.0000', '$? (unknown price)')
    """
    return "$? (unknown price)" if amount is None else f"${amount:.4f}"


def _spent(now: Progress) -> str:
    """What was spent, of the budget; nothing where nothing costs."""
    if now.spent.dollars == 0 and now.budget is None:
        return ""
    of = "" if now.budget is None else f" of ${now.budget:.2f}"
    return f"{dollars(now.spent.dollars)} spent{of}"


def quoted_command() -> str:
    """The command that was typed, to be typed again."""
    import shlex

    return shlex.join(["fovea", *sys.argv[1:]])


def show_scores(summary: Any) -> None:
    """Every number of every metric with its interval, and why samples failed."""
    shown = console()
    for kind, number in summary["failures"].items():
        warn(f"{number} failed: {kind}")
    for key, entry in summary["metrics"].items():
        shown.print(f"{key}  scored {entry['n']} of {summary['n']}", markup=False)
        for name, estimate in entry["scores"].items():
            shown.print(f"  {name:<12} {_interval(estimate)}", markup=False)


def _interval(estimate: Any) -> str:
    if estimate["value"] is None:
        return "undefined"
    text = f"{estimate['value']:.4f}"
    if estimate["low"] is not None:
        text += f"  [{estimate['low']:.4f}, {estimate['high']:.4f}]"
    return text


def show_prompts(task: Any, chain: Any, limit: int | None, ids: Any, seed: int) -> None:
    """The first three prompts exactly as sent, and their pictures."""
    from harness import engine

    inner, names = engine.unwrap(chain)
    selection = engine.select(task, limit, ids, 1)
    typer.echo(f"{task.name}, protocol {task.protocol}: {len(selection.samples)} of {selection.of} samples")
    typer.echo(f"methods: {' then '.join(names) or 'none'}\n")
    for sample in selection.samples[:3]:
        request = engine.request_of(task, sample, seed)
        typer.echo(f"--- {sample.id}")
        for picture in request.images:
            typer.echo(f"picture  {picture.source.label}")
        if request.system is not None:
            typer.echo(f"system   {request.system!r}")
        typer.echo(f"text     {request.text!r}")
        render = getattr(inner, "render", None)
        if render is not None:
            typer.echo(f"as sent  {render(request)!r}")
        typer.echo(f"decoding {request.decoding}\n")


def show_estimate(task: Any, model: Any, methods: Any, **asked: Any) -> None:
    """Requests, tokens and dollars at most."""
    from harness.estimate import estimate

    with bar() as progress:
        found = estimate(
            task,
            model,
            methods,
            progress=lambda done, of: progress(f"{task.name}, estimating", done, of),
            **asked,
        )
    usage = found.usage
    ended = f", {found.ended:,} of them answered in this run before" if found.ended else ""
    typer.echo(f"{task.name}: {found.samples:,} samples{ended}")
    cached = f", and {found.cached:,} more that the cache answers for nothing" if found.cached else ""
    typer.echo(f"requests  {found.requests:,} with {usage.images:,} pictures{cached}")
    counted = found.priced or usage.tokens_in
    tokens_in = f"{usage.tokens_in:,}" if counted else "not counted"
    if counted and not found.priced:
        tokens_in += " and those of models that do not say"
    typer.echo(f"tokens    in {tokens_in}, out {usage.tokens_out:,} at most")
    if not (found.priced or usage.dollars or usage.dollars is None):
        typer.echo("dollars   none counted: the model states no price, as one that runs here")
    elif usage.dollars is None:
        typer.echo(
            "dollars   unknown: no price is known for this model; state it as price=IN/OUT in its spec"
        )
    else:
        typer.echo(
            f"dollars   {dollars(usage.dollars)} at most" + (f" ({found.prices})" if found.prices else "")
        )
    if found.judged:
        typer.echo("          and what the judge of its metric costs")


@contextmanager
def progress(what: str) -> Iterator[Any]:
    """A live line on a terminal; elsewhere a line every ten seconds."""
    with progresses(keep=True) as lines, lines(what) as show:
        yield show


@contextmanager
def progresses(keep: bool = False) -> Iterator[Callable[[str], AbstractContextManager[Any]]]:
    """`progress`, of several things, also at once: what makes a line of what is said. A line that ended is
    printed above those that live; keep: it stays among them."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        yield lambda what: nullcontext(_Lines(what))
        return
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[calls]:,} calls, {task.fields[rate]:.1f}/s"),
        TextColumn("{task.fields[cost]}"),
        TextColumn("[red]{task.fields[failed]}[/]"),
        TimeRemainingColumn(),
    ]
    with Bar(*columns, console=console) as bar:
        yield partial(_live, bar, keep)


@contextmanager
def _live(bar: Any, keep: bool, what: str) -> Iterator[Any]:
    """A line among others."""
    from rich.markup import escape

    line = bar.add_task(escape(what), total=None, calls=0, rate=0.0, cost="", failed="")
    began = time.monotonic()
    last: Progress | None = None

    def show(now: Progress) -> None:
        nonlocal last
        last = now
        rate = (now.done - now.resumed) / max(1e-9, time.monotonic() - began)
        failed = f"{now.failed} failed" if now.failed else ""
        bar.update(
            line,
            total=now.total,
            completed=now.done,
            calls=now.spent.calls,
            rate=rate,
            cost=_spent(now),
            failed=failed,
        )

    try:
        yield show
    finally:
        if not keep:
            bar.remove_task(line)
            if last is not None:
                bar.console.print(f"{what}: {last.done}/{last.total}", markup=False)


@contextmanager
def bar() -> Iterator[Any]:
    """As `_progress`, of anything that is counted: a function of what, how much is done, and of how much."""
    from rich.console import Console
    from rich.progress import Progress as Bar

    console = Console(stderr=True, highlight=False)
    told = time.monotonic()
    with Bar(console=console, transient=True, disable=not console.is_terminal) as bar:
        lines: dict[str, Any] = {}

        def show(what: str, done: int, total: int | None) -> None:
            nonlocal told
            if what not in lines:
                lines[what] = bar.add_task(what, total=total)
            bar.update(lines[what], completed=done, total=total)
            if bar.disable and time.monotonic() - told >= 10:
                told = time.monotonic()
                typer.echo(f"{what}: {done:,}" + (f" of {total:,}" if total else ""), err=True)

        yield show


class _Lines:
    """Progress for logs."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.began = self.told = time.monotonic()

    def __call__(self, now: Progress) -> None:
        clock = time.monotonic()
        if clock - self.told < 10 and now.done < now.total:
            return
        self.told = clock
        rate = (now.done - now.resumed) / max(1e-9, clock - self.began)
        left = (now.total - now.done) / rate if rate else 0
        failed = f", {now.failed} failed" if now.failed else ""
        resumed = f" ({now.resumed} resumed)" if now.resumed else ""
        cost = f", {cost}" if (cost := _spent(now)) else ""
        calls = f", {now.spent.calls:,} calls" if now.spent.calls else ""
        ended = f"{now.done}/{now.total}{resumed}{failed}{calls}"
        typer.echo(f"{self.what}: {ended}, {rate:.1f}/s, {left:.0f} s left{cost}", err=True)


def warn(message: str) -> None:
    """A sentence for the user, beside the output."""
    typer.secho(message, err=True, fg="yellow")


def _refuse(error: FoveaError) -> NoReturn:
    typer.secho(f"fovea: {error}", err=True, fg="red")
    sys.exit(REFUSED)


@contextmanager
def errors(verbose: bool) -> Iterator[None]:
    """A user's mistake is a sentence, not a traceback (unless asked for)."""
    if not verbose:
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        yield
    except BudgetSpent as spent:
        warn(f"{spent}. To go on, with as much again: {quoted_command()}")
        raise typer.Exit(SPENT) from None
    except FoveaError as error:
        if verbose:
            raise
        _refuse(error)
    except KeyboardInterrupt:
        warn(_RESUME["interrupted"].format(quoted_command()))
        raise typer.Exit(INTERRUPTED) from None
