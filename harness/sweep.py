"""A sweep: the cells of a grid made and checked as a whole, then run one by one.

Cells that share a model are neighbours, so that its weights load once; its answers are shared through the
cache; every cell is a run that resumes, and one that is complete is read and left alone. Knows grids, names
and the engine. Must not know what a board is, or how anything is shown.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from harness import engine, events, matching, resolve, store
from harness.cache import Answers
from harness.errors import BudgetSpent, FoveaError, ModelError, StoreError
from harness.estimate import estimate
from harness.grid import Cell, Grid, cells, refuse
from harness.summary import metric_json, metric_key
from harness.types import Metric, Model, Task, Usage, canonical

Show = Callable[[engine.Progress], None]
ENDINGS = {"interrupted": "interrupted", "budget": "the budget is spent"}
SAMPLED = 8
"""Samples of a cell whose requests are counted; the rest is taken to be alike."""


@dataclass
class Plan:
    """A grid's cells and what they need, made once. faults: why it cannot run, one sentence each."""

    cells: Sequence[Cell]
    limit: int | None
    tasks: dict[str, Task] = field(default_factory=dict)
    models: dict[str, Model] = field(default_factory=dict)
    methods: dict[str, engine.Wrap] = field(default_factory=dict)
    metrics: list[Metric] = field(default_factory=list)
    specs: tuple[str, ...] = ()
    """Of the metrics."""
    faults: list[str] = field(default_factory=list)

    def check(self, known: str = "") -> None:
        """Raises SpecError with all faults, if there are any. known: what is told before them."""
        refuse(self.faults, f"{known}\n  nothing was run" if known else f"{len(self.cells)} cells")

    def samples(self, cell: Cell) -> int | None:
        """How many a cell asks for; None where its task cannot be made."""
        task = self.tasks.get(cell.task)
        if task is None:
            return None
        retrieval = matching.as_retrieval(task)
        number = len(task.samples) if retrieval is None else len(retrieval.ids)
        return min(number, self.limit or number)

    @property
    def asked(self) -> int:
        """Samples of all cells whose task could be made."""
        return sum(self.samples(cell) or 0 for cell in self.cells)

    def wraps(self, cell: Cell) -> list[engine.Wrap]:
        """The cell's methods, the innermost first."""
        return [self.methods[spec] for spec in cell.methods]

    def made(self, cell: Cell) -> bool:
        """Whether all of the cell's parts could be made."""
        methods = all(spec in self.methods for spec in cell.methods)
        return cell.task in self.tasks and cell.model in self.models and methods


@dataclass(frozen=True)
class Outcome:
    """What became of a cell: its run, or the reason why there is none.

    read: the run was complete before, and nothing of it was touched. hopeless: its model cannot answer
    anything, so its other cells need not be tried.
    """

    cell: Cell
    run: engine.Run | None
    reason: str = ""
    read: bool = False
    hopeless: bool = False

    @property
    def good(self) -> bool:
        return self.run is not None and self.run.status == "complete" and not self.run.failed


def prepare(grid: Grid, limit: int | None = None, cache: Answers | None = None) -> Plan:
    """Make every task, model and method of the grid, and put each method around each model it meets.

    No weights load and nothing is asked. What cannot be made is a fault of the plan; all are collected.
    limit: replaces the grid's.
    """
    return of_cells(cells(grid), grid.metrics, grid.limit if limit is None else limit, cache)


def of_cells(
    some: Sequence[Cell], metrics: Sequence[str], limit: int | None, cache: Answers | None = None
) -> Plan:
    """`prepare`, of these cells."""
    plan = Plan(some, limit, specs=tuple(metrics))

    def attempt(specs: str, make: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return make(*arguments)
        except FoveaError as error:
            plan.faults.append(f"{specs}: {error}")

    def all_of(specs: Iterable[str], make: Callable[..., Any]) -> dict[str, Any]:
        made = {spec: attempt(spec, make, spec, cache) for spec in dict.fromkeys(specs)}
        return {spec: thing for spec, thing in made.items() if thing is not None}

    plan.methods = all_of((spec for cell in plan.cells for spec in cell.methods), resolve.make_method)
    plan.metrics = list(all_of(metrics, resolve.make_metric).values())
    plan.models = all_of((cell.model for cell in plan.cells), resolve.make_model)
    plan.tasks = all_of((cell.task for cell in plan.cells), resolve.make_task)
    for cell in plan.cells:
        if cell.methods and matching.as_retrieval(plan.tasks.get(cell.task)) is not None:
            attempt(cell.short, matching.refuse, cell.task, {"methods": cell.methods})
    matchers = {spec for spec, model in plan.models.items() if hasattr(model, "similarity")}
    for model, chain in dict.fromkeys((cell.model, cell.methods) for cell in plan.cells):
        if model in plan.models.keys() - matchers and chain and all(spec in plan.methods for spec in chain):
            wraps = [plan.methods[spec] for spec in chain]
            attempt(f"{model} · {' > '.join(chain)}", engine.compose, plan.models[model], wraps)
    for task, model in dict.fromkeys((cell.task, cell.model) for cell in plan.cells):
        if task in plan.tasks and model in plan.models:
            attempt(f"{task} · {model}", matching.check, plan.tasks[task], plan.models[model])
    return plan


# ---------------------------------------------------------------- before anything runs


@dataclass(frozen=True)
class Forecast:
    """What the cells that are not complete would use at most, as far as that is known.

    requests, usage: of text models. sampled: they were counted on some samples of each cell only. counted:
    whether every model says what it uses; else tokens in are not all there. unpriced: whether a model's
    price is unknown; usage.dollars is then of the others. matrices: cells of retrieval, which have no
    requests. unknown: cells that could not be estimated. judged: metrics ask judges, whose cost comes on top.
    """

    complete: int = 0
    requests: int = 0
    usage: Usage = Usage()
    sampled: bool = False
    counted: bool = True
    unpriced: bool = False
    matrices: int = 0
    unknown: int = 0
    judged: bool = False


def forecast(
    plan: Plan,
    out: Path = engine.RUNS,
    cache: Answers | None = None,
    told: Callable[[int, int], None] = lambda _done, _of: None,
) -> Forecast:
    """What is left to do, cell by cell. Answers that cells share through the cache are counted for each.

    told: how many cells were looked at, and of how many. Nothing is sent and nothing is written.
    """
    found = Forecast()
    for number, cell in enumerate(plan.cells):
        told(number, len(plan.cells))
        if not plan.made(cell):
            found = replace(found, unknown=found.unknown + 1)
        elif stored(plan, cell, out) is not None:
            found = replace(found, complete=found.complete + 1)
        elif matching.as_retrieval(plan.tasks[cell.task]) is not None:
            found = replace(found, matrices=found.matrices + 1)
        else:
            try:
                found = _with(found, plan, cell, out, cache)
            except FoveaError:  # its cell will say so
                found = replace(found, unknown=found.unknown + 1)
    told(len(plan.cells), len(plan.cells))
    return found


def _with(found: Forecast, plan: Plan, cell: Cell, out: Path, cache: Answers | None) -> Forecast:
    """The forecast with a cell's requests: those of some samples, from the first to the last, times all."""
    task, number = plan.tasks[cell.task], plan.samples(cell) or 0
    places = range(0, number, max(1, -(-number // SAMPLED)))
    some = replace(task, samples=[task.samples[place] for place in places])
    one = estimate(some, plan.models[cell.model], plan.wraps(cell), out=out, cache=cache)
    share, known = number / max(1, len(places)), one.usage.dollars is not None
    asks = any(hasattr(metric, "judge") for metric in plan.metrics)
    return replace(
        found,
        requests=found.requests + round(one.requests * share),
        usage=found.usage + _times(replace(one.usage, dollars=one.usage.dollars or 0.0), share),
        sampled=found.sampled or len(places) < number,
        counted=found.counted and one.priced,
        unpriced=found.unpriced or not known,
        judged=found.judged or one.judged or asks,
    )


def _times(usage: Usage, share: float) -> Usage:
    amounts = {name: value * share for name, value in vars(usage).items()}
    whole = {name: round(amounts[name]) for name in ("calls", "tokens_in", "tokens_out", "images")}
    return Usage(**{**amounts, **whole, "forward_passes": round(amounts["forward_passes"])})


def stored(plan: Plan, cell: Cell, out: Path) -> engine.Run | None:
    """A cell's run, if it is complete with every sample and metric asked for; it is only read."""
    task, model = plan.tasks[cell.task], plan.models[cell.model]
    try:
        if (retrieval := matching.as_retrieval(task)) is not None:
            asked = matching.first(retrieval, plan.limit) if plan.limit is not None else retrieval
            header = matching._header(asked, cast(Any, model))
            path = engine.run_path(out, asked, cast(Any, model), header["id"])  # type: ignore[arg-type]
            selection, metrics = header["selection"]["digest"], asked.metrics
        else:
            chain = engine.compose(model, plan.wraps(cell))
            path = engine.run_path(out, task, chain, store.run_id(engine.identity(task, chain, 0)))
            if not (path / store.RUN).is_file():
                return None
            selection, metrics = engine.select(task, plan.limit, (), 1).json()["digest"], task.metrics
        content = store.read_run(path)
    except (FoveaError, IndexError):  # running it will say what is wrong
        return None
    summary = content.get("summary", {})
    if (
        content.get("status") != "complete"
        or content["selection"]["digest"] != selection
        or summary.get("failed", 1)
        or not {metric_key(metric) for metric in metrics} <= summary["metrics"].keys()
        or not all(_measured(content, metric) for metric in plan.metrics)
    ):
        return None
    return engine.Run(path, "complete", content, summary, content["spending"])


def _measured(content: Mapping[str, Any], metric: Metric) -> bool:
    """Whether a run has the metric with just these knobs, its judge among them."""
    mine = metric_json(metric)
    return mine["key"] in content["summary"]["metrics"] and any(
        entry["key"] == mine["key"] and canonical(entry["knobs"]) == canonical(mine["knobs"])
        for entry in content["metrics"]
    )


def complete(plan: Plan, out: Path) -> bool:
    """Whether nothing is left to run."""
    return not plan.faults and all(stored(plan, cell, out) is not None for cell in plan.cells)


def require_writable(folder: Path) -> None:
    """Raises StoreError unless files can be written in `folder`, which is made now rather than at the end."""
    import tempfile

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise StoreError(
            f"{folder} cannot be written: {error.strerror}. Choose another folder with --out"
        ) from None


# ---------------------------------------------------------------- running


def run(
    plan: Plan,
    *,
    out: Path = engine.RUNS,
    budget: float | None = None,
    cache: Answers | None = None,
    progress: Callable[[str], AbstractContextManager[Show]],
    warn: Callable[[str], None] = lambda _: None,
) -> Iterator[Outcome]:
    """Run the cells, yielding each outcome as it is there. An interrupted cell is the last, and so is one
    that ends with the `budget`, the dollars that all cells together may spend now.

    A cell that fails does not stop the others: one bad night's cell must not cost the night. Where a model
    cannot answer anything, its other cells fail with it, unasked. Raises SpecError for a plan with faults.
    """
    plan.check()
    broken: dict[str, str] = {}
    for number, cell in enumerate(plan.cells, 1):
        if cell.model in broken:
            yield Outcome(cell, None, broken[cell.model])
            continue
        with progress(f"{number}/{len(plan.cells)} {cell.short}") as show:
            outcome = one(plan, cell, out=out, budget=budget, cache=cache, show=show, warn=warn)
        yield outcome
        if outcome.hopeless:
            broken[cell.model] = outcome.reason
        if outcome.run is not None:
            if budget is not None:
                budget = max(0.0, budget - outcome.run.charged)
            if outcome.run.status in ENDINGS:
                return
        if all(later.model != cell.model for later in plan.cells[number:]):
            plan.models.pop(cell.model)  # and with it its weights


def one(
    plan: Plan,
    cell: Cell,
    *,
    out: Path,
    budget: float | None = None,
    cache: Answers | None = None,
    show: Show,
    warn: Callable[[str], None] = lambda _: None,
) -> Outcome:
    """Run a cell, or read it where it is complete. What goes wrong is told in its outcome."""
    try:
        known = stored(plan, cell, out)
        if known is not None:
            number = int(known.summary["n"])
            show(engine.Progress(number, number, 0, number, Usage(), budget))
            return Outcome(cell, known, read=True)
        result = _run_cell(plan, cell, out, budget, cache, show, warn)
    except FoveaError as error:
        return Outcome(cell, None, str(error), hopeless=isinstance(error, ModelError))
    except Exception as error:
        warn(traceback.format_exc())  # a bug: its sentence alone would not find it
        return Outcome(cell, None, f"{type(error).__name__}: {error}")
    if result.status in ENDINGS:
        return Outcome(cell, result, ENDINGS[result.status])
    return Outcome(cell, result, f"{result.failed} samples failed" if result.failed else "")


def _run_cell(
    plan: Plan,
    cell: Cell,
    out: Path,
    budget: float | None,
    cache: Answers | None,
    show: Show,
    warn: Callable[[str], None],
) -> engine.Run:
    task, model = plan.tasks[cell.task], plan.models[cell.model]
    if (retrieval := matching.as_retrieval(task)) is not None:
        return matching.run(retrieval, cast(Any, model), out=out, limit=plan.limit, progress=show, warn=warn)
    result = engine.run(
        task,
        model,
        plan.wraps(cell),
        out=out,
        limit=plan.limit,
        budget=budget,
        cache=cache,
        progress=show,
        warn=warn,
    )
    if plan.metrics and result.status not in ENDINGS:
        judges = events.Counter(None if budget is None else budget - result.charged)
        try:
            with events.counting(judges):
                engine.score(result.path, plan.metrics)
        except BudgetSpent:
            result = replace(result, status="budget")
        result = replace(result, charged=result.charged + judges.charged)
    return result
