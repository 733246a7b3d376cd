"""A sweep: the cells of a grid made and checked as a whole, then run one by one.

Cells that share a model are neighbours, so that its weights load once; its answers are shared through the
cache; every cell is a run that resumes. Knows grids, names and the engine. Must not know what a board is,
or how anything is shown.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from harness import engine, matching, resolve
from harness.cache import Answers
from harness.errors import FoveaError, ModelError
from harness.grid import Cell, Grid, cells, refuse
from harness.types import Metric, Model, Task

Show = Callable[[engine.Progress], None]
_ENDINGS = {"interrupted": "interrupted", "budget": "the budget is spent"}


@dataclass
class Plan:
    """A grid's cells and what they need, made once. faults: why it cannot run, one sentence each."""

    cells: Sequence[Cell]
    limit: int | None
    tasks: dict[str, Task] = field(default_factory=dict)
    models: dict[str, Model] = field(default_factory=dict)
    methods: dict[str, engine.Wrap] = field(default_factory=dict)
    metrics: list[Metric] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def check(self) -> None:
        """Raises SpecError with all faults, if there are any."""
        refuse(self.faults, f"{len(self.cells)} cells, {self.requests:,} requests known")

    def samples(self, cell: Cell) -> int | None:
        """How many a cell asks for; None where its task cannot be made."""
        task = self.tasks.get(cell.task)
        if task is None:
            return None
        retrieval = matching.as_retrieval(task)
        number = len(task.samples) if retrieval is None else len(retrieval.ids)
        return min(number, self.limit or number)

    @property
    def requests(self) -> int:
        """Samples of all cells whose task could be made."""
        return sum(self.samples(cell) or 0 for cell in self.cells)


@dataclass(frozen=True)
class Outcome:
    """What became of a cell: its run, or the reason why there is none."""

    cell: Cell
    run: engine.Run | None
    reason: str = ""

    @property
    def good(self) -> bool:
        return self.run is not None and self.run.status == "complete" and not self.run.failed


def prepare(grid: Grid, limit: int | None = None, cache: Answers | None = None) -> Plan:
    """Make every task, model and method of the grid, and put each method around each model it meets.

    No weights load and nothing is asked. What cannot be made is a fault of the plan; all are collected.
    limit: replaces the grid's.
    """
    plan = Plan(cells(grid), grid.limit if limit is None else limit)

    def attempt(specs: str, make: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return make(*arguments)
        except FoveaError as error:
            plan.faults.append(f"{specs}: {error}")

    def all_of(specs: Iterable[str], make: Callable[..., Any]) -> dict[str, Any]:
        made = {spec: attempt(spec, make, spec, cache) for spec in dict.fromkeys(specs)}
        return {spec: thing for spec, thing in made.items() if thing is not None}

    plan.methods = all_of((spec for cell in plan.cells for spec in cell.methods), resolve.make_method)
    plan.metrics = list(all_of(grid.metrics, resolve.make_metric).values())
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
        try:
            with progress(f"{number}/{len(plan.cells)} {cell.short}") as show:
                result = _run_cell(plan, cell, out, budget, cache, show, warn)
        except FoveaError as error:
            yield Outcome(cell, None, str(error))
            if isinstance(error, ModelError):
                broken[cell.model] = str(error)
        except Exception as error:
            warn(traceback.format_exc())  # a bug: its sentence alone would not find it
            yield Outcome(cell, None, f"{type(error).__name__}: {error}")
        else:
            if budget is not None:
                budget = max(0.0, budget - result.charged)
            if result.status in _ENDINGS:
                yield Outcome(cell, result, _ENDINGS[result.status])
                return
            yield Outcome(cell, result, f"{result.failed} samples failed" if result.failed else "")
        if all(later.model != cell.model for later in plan.cells[number:]):
            plan.models.pop(cell.model)  # and with it its weights


def _run_cell(
    plan: Plan,
    cell: Cell,
    out: Path,
    budget: float | None,
    cache: Answers | None,
    show: Show,
    warn: Callable[[str], None],
) -> engine.Run:
    methods = [plan.methods[spec] for spec in cell.methods]
    task, model = plan.tasks[cell.task], plan.models[cell.model]
    if (retrieval := matching.as_retrieval(task)) is not None:
        return matching.run(retrieval, cast(Any, model), out=out, limit=plan.limit, progress=show, warn=warn)
    result = engine.run(
        task,
        model,
        methods,
        out=out,
        limit=plan.limit,
        budget=budget,
        cache=cache,
        progress=show,
        warn=warn,
    )
    if plan.metrics and result.status not in _ENDINGS:
        engine.score(result.path, plan.metrics)
    return result
