"""A sweep in several processes: each runs a cell at a time, as `harness.sweep` would, and tells how it goes.

A process keeps its model while there are cells for it, and takes those of a model that nobody else has
before it shares one. Where CUDA devices are visible each process sees one of them. The cache is one file
for all; of two that need the same answer at the same moment, both ask. What the budget leaves is shared out
over the processes, so that together they cannot pass it; a cell whose share was too small goes on with what
others left. A process that dies takes its cell with it, and no other.

Knows processes and cells. Must not know: tasks, models, how anything is shown.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from harness import engine, sweep
from harness.grid import Cell
from harness.sweep import ENDINGS, Outcome, Plan, Show

PATIENCE = 60.0
"""Seconds that a process has to end its cell after it was interrupted."""


def run(
    plan: Plan,
    jobs: int,
    *,
    out: Path = engine.RUNS,
    budget: float | None = None,
    cache: Path | None = None,
    progress: Callable[[str], AbstractContextManager[Show]],
    warn: Callable[[str], None] = lambda _: None,
) -> Iterator[Outcome]:
    """As `sweep.run`, with up to `jobs` cells at once; outcomes come as cells end. cache: the answers' file.

    progress: may be entered again before it is left. An interrupt (Ctrl-C) interrupts every process once
    and yields what they leave; a second one ends them. Raises SpecError for a plan with faults.
    """
    plan.check()
    places = {cell: f"{number}/{len(plan.cells)} {cell.short}" for number, cell in enumerate(plan.cells, 1)}
    todo = []
    for cell in plan.cells:
        if sweep.stored(plan, cell, out) is None:
            todo.append(cell)
            continue
        with progress(places[cell]) as show:
            yield sweep.one(plan, cell, out=out, show=show, warn=warn)
    if todo:
        yield from _Jobs(plan, todo, jobs, out, budget, cache, places, progress, warn).through()


@dataclass
class _Worker:
    """A process and what it is at. model: the one it has loaded."""

    process: BaseProcess
    pipe: Connection
    device: str | None
    cell: Cell | None = None
    model: str = ""
    share: float | None = None
    shown: ExitStack = field(default_factory=ExitStack)
    show: Show = lambda _: None


@dataclass
class _Jobs:
    plan: Plan
    todo: list[Cell]
    jobs: int
    out: Path
    left: float | None
    cache: Path | None
    places: dict[Cell, str]
    progress: Callable[[str], AbstractContextManager[Show]]
    warn: Callable[[str], None]

    def through(self) -> Iterator[Outcome]:
        self.workers: list[_Worker] = []
        self.starved: dict[Cell, tuple[float, Outcome]] = {}  # what was left of its share was too little
        self.fed: Cell | None = None
        self.broken: dict[str, str] = {}
        self.devices = _devices(self.plan)
        try:
            try:
                while self.todo or self._busy():
                    yield from self._hopeless()
                    self._hand_out()
                    if not self._busy():
                        break
                    yield from self._heard(wait([worker.pipe for worker in self._busy()]))
                yield from (outcome for _, outcome in self.starved.values())
            except KeyboardInterrupt:
                yield from self._interrupted()
        finally:
            self._end()

    def _busy(self) -> list[_Worker]:
        return [worker for worker in self.workers if worker.cell is not None]

    # ------------------------------------------------------------ handing out

    def _hopeless(self) -> Iterator[Outcome]:
        """The cells whose model cannot answer anything."""
        for cell in [cell for cell in self.todo if cell.model in self.broken]:
            self.todo.remove(cell)
            yield Outcome(cell, None, self.broken[cell.model])

    def _hand_out(self) -> None:
        """Give cells to those who have none, as far as money reaches."""
        while self.todo and len(self._busy()) < self.jobs:
            share = self._share()
            if share is not None and share <= 0 and self._busy():
                return
            worker, cell = self._match([worker for worker in self.workers if worker.cell is None])
            self.todo.remove(cell)
            self.fed = None
            worker.cell, worker.model, worker.share = cell, cell.model, share
            worker.shown = ExitStack()
            worker.show = worker.shown.enter_context(self.progress(self.places[cell]))
            # Whoever died is found out when its pipe is read.
            with contextlib.suppress(OSError):
                worker.pipe.send((cell, share))

    def _match(self, idle: Sequence[_Worker]) -> tuple[_Worker, Cell]:
        """A process and the cell that suits it: of the model that it has, else of one that nobody has."""
        cells = self.todo if self.fed is None else [self.fed]
        for worker in idle:
            for cell in cells:
                if cell.model == worker.model:
                    return worker, cell
        taken = {worker.model for worker in self._busy()}
        cell = next((cell for cell in cells if cell.model not in taken), cells[0])
        return idle[0] if idle else self._started(), cell

    def _share(self) -> float | None:
        """What a cell that begins now may spend: an equal part of what is not promised to others, or all."""
        if self.left is None:
            return None
        free = self.left - sum(worker.share or 0.0 for worker in self._busy())
        waiting = min(self.jobs - len(self._busy()), len(self.todo)) if self.fed is None else 1
        return max(0.0, free / waiting)

    def _started(self) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        counts = [sum(worker.device == device for worker in self.workers) for device in self.devices]
        device = self.devices[counts.index(min(counts))] if self.devices else None
        threads = None if self.devices else max(1, (os.cpu_count() or 1) // self.jobs)
        process = context.Process(
            target=_work,
            args=(theirs, self.plan.specs, self.plan.limit, self.out, self.cache, device, threads),
            daemon=False,
        )
        process.start()
        theirs.close()
        self.workers.append(_Worker(process, ours, device))
        return self.workers[-1]

    # ------------------------------------------------------------ hearing

    def _heard(self, pipes: Sequence[Any]) -> Iterator[Outcome]:
        for worker in [worker for worker in self.workers if worker.pipe in pipes]:
            try:
                kind, content = worker.pipe.recv()
            except (EOFError, OSError):
                yield self._died(worker)
                continue
            if kind == "progress":
                worker.show(content)
            elif kind == "warn":
                self.warn(content)
            else:
                yield from self._ended(worker, content)

    def _ended(self, worker: _Worker, outcome: Outcome) -> Iterator[Outcome]:
        worker.shown.close()
        cell, share, worker.cell = outcome.cell, worker.share, None
        charged = outcome.run.charged if outcome.run is not None else 0.0
        if self.left is not None:
            self.left = max(0.0, self.left - charged)
        if outcome.hopeless:
            self.broken[cell.model] = outcome.reason
        if share is not None and outcome.reason == ENDINGS["budget"]:
            self.starved[cell] = (share - charged, outcome)
        else:
            yield outcome
        self._feed()

    def _feed(self) -> None:
        """Once nobody else may need the money, let a starved cell go on with all of it. One that had all of
        it ends the sweep, as it would in one process."""
        if self.left is None or self._busy() or not self.starved:
            return
        cell, (had, _) = next(iter(self.starved.items()))
        if self.left > had + 1e-9:
            del self.starved[cell]
            self.fed = cell
            self.todo.insert(0, cell)
        else:
            self.todo.clear()

    def _died(self, worker: _Worker) -> Outcome:
        worker.process.join()
        code = worker.process.exitcode or 0
        why = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        if code == -signal.SIGKILL:
            why += ", as where memory runs out"
        cell, worker.cell = worker.cell, None
        assert cell is not None, "only those who have a cell are listened to"
        if self.left is not None:  # what it spent, nobody knows
            self.left = max(0.0, self.left - (worker.share or 0.0))
        self._retire(worker)
        self._feed()
        return Outcome(cell, None, f"its process ended {why}; repeat the command to resume it")

    # ------------------------------------------------------------ ending

    def _interrupted(self) -> Iterator[Outcome]:
        """Interrupt everyone once, and hear them out."""
        for worker in self._busy():
            with contextlib.suppress(OSError):
                os.kill(worker.process.pid or 0, signal.SIGINT)
        while busy := self._busy():
            pipes = wait([worker.pipe for worker in busy], timeout=PATIENCE)
            if not pipes:
                return
            yield from self._heard(pipes)
        yield from (outcome for _, outcome in self.starved.values())

    def _retire(self, worker: _Worker) -> None:
        worker.shown.close()
        worker.pipe.close()  # which it takes for the end
        self.workers.remove(worker)
        worker.process.join(timeout=10)
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()

    def _end(self) -> None:
        for worker in self._busy():
            with contextlib.suppress(OSError):
                os.kill(worker.process.pid or 0, signal.SIGINT)
        for worker in list(self.workers):
            self._retire(worker)


def _devices(plan: Plan) -> list[str]:
    """The CUDA devices that may be shared out: those visible, unless a spec names one by number."""
    if any("cuda:" in spec for cell in plan.cells for spec in (cell.model, *cell.methods)):
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [device for device in visible.split(",") if device and device != "-1"]
    try:
        import torch
    except ImportError:
        return []
    return [str(number) for number in range(torch.cuda.device_count())]


# ---------------------------------------------------------------- in the process


def _work(
    pipe: Connection,
    metrics: Sequence[str],
    limit: int | None,
    out: Path,
    cache: Path | None,
    device: str | None,
    threads: int | None,
) -> None:
    """Run the cells that come, until the other end is closed."""
    if device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = device
    if threads is not None:
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    with contextlib.suppress(OSError):
        os.setpgid(0, 0)  # Ctrl-C is told by the parent, once
    threading.Thread(target=_follow, daemon=True).start()
    from harness.cache import Answers

    answers = None if cache is None else Answers(cache)
    known: Plan | None = None
    with contextlib.suppress(EOFError, OSError, KeyboardInterrupt):
        while True:
            cell, budget = pipe.recv()
            try:
                known = _planned(known, cell, metrics, limit, answers)
                outcome = _outcome(known, cell, out, budget, answers, pipe)
            except KeyboardInterrupt:
                outcome = Outcome(cell, None, ENDINGS["interrupted"])
            pipe.send(("ended", outcome))


def _planned(known: Plan | None, cell: Cell, metrics: Sequence[str], limit: int | None, answers: Any) -> Plan:
    """The cell's parts; a task and a model that are there already are kept."""
    fresh = sweep.of_cells([cell], metrics, limit, answers)
    if known is not None:
        fresh.tasks |= {spec: task for spec, task in known.tasks.items() if spec in fresh.tasks}
        fresh.models |= {spec: model for spec, model in known.models.items() if spec in fresh.models}
    return fresh


def _outcome(
    plan: Plan, cell: Cell, out: Path, budget: float | None, answers: Any, pipe: Connection
) -> Outcome:
    if plan.faults:  # what could be made before the sweep began cannot be made now
        return Outcome(cell, None, "; ".join(plan.faults))

    def show(now: engine.Progress) -> None:
        pipe.send(("progress", now))

    def warn(message: str) -> None:
        pipe.send(("warn", message))

    return sweep.one(plan, cell, out=out, budget=budget, cache=answers, show=show, warn=warn)


def _follow() -> None:
    """Stop when the parent is gone, however it went."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGINT)
