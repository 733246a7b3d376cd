"""The run: samples to requests, requests through methods and model, responses to records and a summary.

It cuts the samples into groups as the model's pace says, keeps several groups in flight for models that
wait on a wire, and writes every record as its group completes. It knows the eight words; it knows no
benchmark, no model and no method by name.

    from harness.engine import run
    from harness.resolve import make_method, make_model, make_task

    result = run(make_task("small_detail"), make_model("hf:assets/demo"), [make_method("vicrop")])
    print(result.summary["metrics"]["exact[llava]"]["scores"]["accuracy"])
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import events
from harness.cache import Answers, Cached
from harness.errors import BudgetSpent, DataError, PictureError, SpecError
from harness.provenance import now, provenance
from harness.store import (
    Key,
    Record,
    RunDirectory,
    read_records,
    read_run,
    run_id,
    slug,
    trace_path,
)
from harness.summary import (
    measure,
    measured_again,
    metric_json,
    metric_key,
    slim,
    summarise,
    total_usage,
)
from harness.traces import Arrays, trace_arrays
from harness.types import (
    Method,
    Metric,
    Model,
    Request,
    Response,
    Sample,
    Task,
    Usage,
    digest,
)

RUNS = Path("results/runs")
Wrap = Callable[[Model], Model]


@dataclass(frozen=True)
class Progress:
    """Where a run stands: samples ended (of them failed and resumed), of `total`; what was spent now, of
    how many dollars."""

    done: int
    total: int
    failed: int
    resumed: int
    spent: Usage
    budget: float | None = None


@dataclass(frozen=True)
class Run:
    """What a run left behind. status: complete, interrupted, stopped (too many failures), or budget (the
    next call could have cost more than was left). charged: dollars against the budget."""

    path: Path
    status: str
    header: Mapping[str, Any]
    summary: Mapping[str, Any]
    spending: Mapping[str, Any]
    charged: float = 0.0

    @property
    def failed(self) -> int:
        return int(self.summary["failed"])


@dataclass(frozen=True)
class Selection:
    """Which samples are asked for, in the task's order, each `repeats` times."""

    samples: tuple[Sample, ...]
    of: int
    repeats: int = 1

    @property
    def keys(self) -> list[Key]:
        return [(sample.id, repeat) for repeat in range(self.repeats) for sample in self.samples]

    def json(self) -> dict[str, Any]:
        ids = [sample.id for sample in self.samples]
        return {
            "n": len(ids) * self.repeats,
            "of": self.of,
            "repeats": self.repeats,
            "digest": digest([ids, self.repeats]),
            "ids": ids,
        }


def run(
    task: Task,
    model: Model,
    methods: Sequence[Wrap] = (),
    *,
    out: Path = RUNS,
    limit: int | None = None,
    samples: Sequence[str] = (),
    repeats: int = 1,
    seed: int = 0,
    batch: int | None = None,
    max_failures: int | None = None,
    save_traces: bool = False,
    budget: float | None = None,
    cache: Answers | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
    warn: Callable[[str], None] = lambda _: None,
) -> Run:
    """Run `task` on `model` with `methods` wrapped around it (the first is innermost).

    out: where run directories go. limit: the first N samples. samples: these ids only. repeats: ask each
    sample K times, with seeds seed, seed+1, ... batch: requests per group (default: the model's pace).
    max_failures: stop once more than so many samples failed. save_traces: keep each sample's maps and
    selections (`trace_arrays`), one .npz each. budget: dollars that this call may spend: no request is sent
    that could pass them. cache: answers already known, kept under the methods.
    Repeating a call resumes its run. KeyboardInterrupt ends it with status `interrupted`.

    Raises DataError for an unusable selection, StoreError for an unusable directory, and whatever
    concerns every request (ModelError, CapabilityError). A metric's exception is a bug and goes through.
    """
    selection = select(task, limit, samples, repeats)
    chain = compose(model, methods, cache)
    if budget is not None:
        _check_budget(budget, [chain, *task.metrics], request_of(task, selection.samples[0], seed))
    specs = [getattr(method, "spec", None) for method in methods]
    header = _header(task, chain, specs, selection, seed)
    with RunDirectory(run_path(out, task, chain, header["id"])) as directory:
        work = _Work(
            task=task,
            chain=chain,
            selection=selection,
            seed=seed,
            batch=batch,
            max_failures=max_failures,
            save_traces=save_traces,
            budget=budget,
            directory=directory,
            header=header,
            progress=progress,
        )
        return work.through(warn)


def compose(model: Model, methods: Sequence[Wrap], cache: Answers | None = None) -> Model:
    """The model with its cache, then the methods around it, left to right."""
    if cache is not None and not model.pace.free:
        model = Cached(model, cache)
    for method in methods:
        model = method(model)
    return model


def _check_budget(budget: float, asked: Sequence[Any], request: Request) -> None:
    """Refuse a budget that cannot hold, before anything is sent."""
    if not budget >= 0:
        raise SpecError(f"--budget is {budget}; it must be 0 or more dollars")
    for estimate in (found for part in asked for found in _estimates(part)):
        with contextlib.suppress(PictureError), events.counting(events.Counter(budget)):
            if estimate(request).dollars is None:
                events.reserve(None)


def _estimates(part: Any) -> Iterator[Callable[[Request], Usage]]:
    """The `estimate` of each model in a chain or a metric: a method's further ones, a judge."""
    estimate = getattr(part, "estimate", None)
    if estimate is not None:
        yield estimate
    elif dataclasses.is_dataclass(part):
        for knob in dataclasses.fields(part):
            if hasattr(value := getattr(part, knob.name), "generate"):
                yield from _estimates(value)


def select(task: Task, limit: int | None, ids: Sequence[str], repeats: int) -> Selection:
    """The samples asked for. Raises DataError for an empty task, unknown ids or numbers below 1."""
    if not len(task.samples):
        raise DataError(f"the task {task.name} has no samples")
    if limit is not None and limit < 1:
        raise SpecError(f"--limit is {limit}; it must be 1 or more")
    if repeats < 1:
        raise SpecError(f"--repeats is {repeats}; it must be 1 or more")
    chosen: Iterable[Sample] = task.samples
    if ids:
        wanted = set(ids)
        chosen = [sample for sample in task.samples if sample.id in wanted]
        missing = sorted(wanted - {sample.id for sample in chosen})
        if missing:
            example = task.samples[0].id
            raise DataError(f"{task.name} has no sample {missing[0]!r}; its ids look like {example!r}")
    return Selection(tuple(chosen)[:limit], len(task.samples), repeats)


def run_path(out: Path, task: Task, chain: Model, identifier: str) -> Path:
    """<out>/<task>/<model>/<method>-<id8>."""
    inner, names = unwrap(chain)
    described = inner.describe()
    model = slug(f"{described.get('adapter', 'model')}-{described.get('model', 'unnamed')}")
    method = slug("+".join(names) or "identity")
    return out / slug(task.name) / model / f"{method}-{identifier[:8]}"


def unwrap(chain: Model) -> tuple[Model, list[str]]:
    """The innermost model, and the names of the methods around it from the inside out."""
    names: list[str] = []
    while True:
        if isinstance(chain, Method):
            names.insert(0, chain.name)
            chain = chain.model
        elif isinstance(chain, Cached):
            chain = chain.model
        else:
            return chain, names


def request_of(task: Task, sample: Sample, seed: int = 0, *, oracle: bool = False) -> Request:
    """A sample's request: the task's words, this seed, and the target's region in oracle runs only."""
    request = task.request(sample)
    if seed != request.decoding.seed:
        decoding = dataclasses.replace(request.decoding, seed=seed)
        request = dataclasses.replace(request, decoding=decoding)
    if request.hints.region is not None and not oracle:
        hints = dataclasses.replace(request.hints, region=None)
        request = dataclasses.replace(request, hints=hints)
    return request


# ---------------------------------------------------------------- the header


def _header(
    task: Task, chain: Model, specs: Sequence[str | None], selection: Selection, seed: int
) -> dict[str, Any]:
    chain_identity = identity(task, chain, seed)
    inner, names = unwrap(chain)
    return {
        "id": run_id(chain_identity),
        "baseline": run_id(identity(task, inner, seed)),
        "identity": chain_identity,
        "task": task.spec or task.name,
        "model": getattr(inner, "spec", None),
        "methods": [spec or name for spec, name in zip(specs, names, strict=True)],
        "selection": selection.json(),
        "metrics": [metric_json(metric) for metric in task.metrics],
        "primary": task.primary,
        "breakdowns": list(task.breakdowns),
        "provenance": provenance(),
    }


def identity(task: Task, chain: Model, seed: int) -> dict[str, Any]:
    """How the answers are made: what the run's id hashes."""
    request = task.request(task.samples[0])
    decoding = dataclasses.asdict(request.decoding) | {"seed": seed}
    return {
        "task": {
            "name": task.name,
            "version": task.version,
            "protocol": task.protocol,
            "fingerprint": task.fingerprint,
        },
        "prompt": {"instruction": request.instruction, "system": request.system},
        "decoding": decoding,
        "oracle": bool(getattr(chain, "oracle", False)),
        "model": chain.describe(),
    }


# ---------------------------------------------------------------- the work


@dataclass(frozen=True)
class _Ended:
    """A sample's record, and what is kept of its trace (nothing unless asked for)."""

    record: Record
    arrays: Arrays


@dataclass
class _Work:
    task: Task
    chain: Model
    selection: Selection
    seed: int
    batch: int | None
    max_failures: int | None
    save_traces: bool
    budget: float | None
    directory: RunDirectory
    header: dict[str, Any]
    progress: Callable[[Progress], None]

    def through(self, warn: Callable[[str], None]) -> Run:
        """Resume, answer what is missing, summarise. One exit, whatever ended it."""
        began = time.monotonic()
        self.spent = events.Counter(self.budget)
        self.stop = threading.Event()
        with events.counting(self.spent):  # a judge that the stored records did not have yet
            known, warnings = self.directory.resume(self._measured)
        for warning in warnings:
            warn(warning)
        wanted = set(self.selection.keys)
        self.ended = {
            record.key: slim(record, self.task.breakdowns) for record in known if record.key in wanted
        }
        self.resumed = len(self.ended)
        if self.save_traces and (late := self._without_trace(known)):
            warn(
                f"{late} samples were answered before without --save-traces and have no trace. For theirs, "
                f"remove {self.directory.path} and repeat the command; cached answers are not made again"
            )
        self.failed = 0
        self.directory.write_run({**self.header, "status": "running"})
        status = "interrupted"
        try:
            with events.counting(self.spent), events.stoppable(self.stop):
                status = self._answer_all()
        except KeyboardInterrupt:
            pass  # the status says so
        except BudgetSpent:
            status = "budget"
        finally:
            result = self._close(status, time.monotonic() - began)
        return result

    def _measured(self, records: list[Record]) -> list[Record]:
        """Stored records that a metric of this task has not measured yet are measured from their text."""
        keys = {metric_key(metric) for metric in self.task.metrics if metric.scope == "sample"}
        if all(keys <= record.measures.keys() for record in records):
            return records
        return measured_again(records, self.task.metrics)

    def _without_trace(self, known: Sequence[Record]) -> int:
        """How many of the resumed records tell of arrays that nobody kept."""
        return sum(
            bool(trace_arrays(record.trace)) and not trace_path(self.directory.path, record.key).exists()
            for record in known
            if record.key in self.ended
        )

    def _answer_all(self) -> str:
        self._tell()
        pool = ThreadPoolExecutor(max(1, self.chain.pace.in_flight))
        try:
            for group in self._groups(pool):
                self._keep(group)
                self._tell()
                if self.max_failures is not None and self.failed > self.max_failures:
                    return "stopped"
            return "complete"
        except (Exception, KeyboardInterrupt):
            self.stop.set()  # the threads do not hear of it otherwise
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _keep(self, group: Sequence[_Ended]) -> None:
        records = [ended.record for ended in group]
        try:
            for ended in group:
                if ended.arrays:
                    self.directory.keep_trace(ended.record.key, ended.arrays)
        finally:  # an answer is worth more than its trace
            self.directory.append(records)
        for record in records:
            self.ended[record.key] = slim(record, self.task.breakdowns)
            self.failed += record.failure is not None

    def _groups(self, pool: ThreadPoolExecutor) -> Iterator[list[_Ended]]:
        """Records group by group: in order, or as they complete where several are in flight.

        Once the budget is spent no group is begun; those that can end do.
        """
        todo = [
            (sample, repeat)
            for repeat in range(self.selection.repeats)
            for sample in self.selection.samples
            if (sample.id, repeat) not in self.ended
        ]
        pace = self.chain.pace
        size = self.batch or pace.group
        groups = [todo[start : start + size] for start in range(0, len(todo), size)]
        if pace.in_flight <= 1 or len(groups) <= 1:
            yield from map(self._answer, groups)
            return
        waiting: set[Future[list[_Ended]]] = set()
        spent: BudgetSpent | None = None
        upcoming = iter(groups)
        while True:
            while spent is None and len(waiting) < pace.in_flight:
                group = next(upcoming, None)
                if group is None:
                    break
                waiting.add(pool.submit(contextvars.copy_context().run, self._answer, group))
            if not waiting:
                break
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                try:
                    yield future.result()
                except BudgetSpent as error:
                    spent = error
        if spent is not None:
            raise spent

    def _answer(self, group: Sequence[tuple[Sample, int]]) -> list[_Ended]:
        oracle = bool(getattr(self.chain, "oracle", False))
        requests = [
            request_of(self.task, sample, self.seed + repeat, oracle=oracle) for sample, repeat in group
        ]
        responses = answer(self.chain, requests)
        samples = [sample for sample, _ in group]
        texts = [self.task.postprocess(response.text) for response in responses]
        measures = measure(self.task.metrics, texts, responses, samples)
        return [
            _Ended(_record(sample, repeat, request, response, text, counts), self._arrays(response))
            for (sample, repeat), request, response, text, counts in zip(
                group, requests, responses, texts, measures, strict=True
            )
        ]

    def _arrays(self, response: Response) -> Arrays:
        if not self.save_traces or response.failure is not None:
            return {}
        return trace_arrays(response.trace, response.maps)

    def _tell(self) -> None:
        self.progress(
            Progress(
                len(self.ended),
                len(self.selection.keys),
                self.failed,
                self.resumed,
                self.spent.total,
                self.budget,
            )
        )

    def _close(self, status: str, seconds: float) -> Run:
        rows = list(self.ended.values())
        records: Sequence[Record] = ()
        if any(metric.scope == "corpus" for metric in self.task.metrics):
            records = [record for record in read_records(self.directory.path) if record.key in self.ended]
        summary = summarise(self.task.metrics, rows, len(self.selection.keys), records)
        spending = {"usage": vars(total_usage(rows)), "spent": vars(self.spent.total)}
        if (prices := getattr(unwrap(self.chain)[0], "prices", None)) is not None:
            spending["prices"] = prices
        times = {"ended": now(), "seconds": round(seconds, 3), "resumed": self.resumed}
        self.directory.write_run(
            {**self.header, "status": status, "summary": summary, "spending": spending, "times": times}
        )
        return Run(self.directory.path, status, self.header, summary, spending, self.spent.charged)


def answer(chain: Model, requests: Sequence[Request]) -> list[Response]:
    """One response per request; a picture that cannot be used fails its own request only."""
    try:
        responses = chain.generate(requests)
    except PictureError as error:
        if len(requests) == 1:
            return [Response.failed(error.kind, str(error))]
        return [response for request in requests for response in answer(chain, [request])]
    if len(responses) != len(requests):
        name = type(unwrap(chain)[0]).__name__
        raise RuntimeError(f"{name} gave {len(responses)} responses to {len(requests)} requests")
    return responses


# ---------------------------------------------------------------- records


def _record(
    sample: Sample,
    repeat: int,
    request: Request,
    response: Response,
    text: str,
    counts: Mapping[str, Any],
) -> Record:
    pictures: list[Mapping[str, Any]] = []
    group = None
    for picture in sample.images:
        try:
            pictures.append(picture.describe())
            group = group or picture.digest
        except PictureError:  # a replayed answer needs no pixels; a model's response says what is wrong
            pictures.append({"source": picture.source.label})
    return Record(
        sample_id=sample.id,
        repeat=repeat,
        category=sample.category,
        group=group,
        question=sample.question,
        prompt=request.text,
        system=request.system,
        pictures=tuple(pictures),
        targets=sample.targets,
        meta=sample.meta,
        text=response.text,
        answer=text,
        finish_reason=response.finish_reason,
        usage=response.usage,
        trace=response.trace,
        option_nll=response.option_nll,
        failure=response.failure,
        measures=counts,
    )


# ---------------------------------------------------------------- scoring again


def score(path: Path, metrics: Sequence[Metric]) -> Mapping[str, Any]:
    """Measure a stored run's answers with `metrics`, without the model: the run's new summary.

    Entries of these metrics are added or replaced, in run.json and in every record. Raises StoreError
    where `path` is no run, is being written, or holds an unreadable record.
    """
    with RunDirectory(path) as directory:
        content = read_run(path)
        selection = content["selection"]
        chosen = set(selection["ids"])
        records = list(read_records(path))
        records = measured_again(records, metrics)
        picked = [
            record
            for record in records
            if record.sample_id in chosen and record.repeat < selection["repeats"]
        ]
        rows = [slim(record, content["breakdowns"]) for record in picked]
        fresh = summarise(metrics, rows, selection["n"], picked)
        before = content.get("summary", {}).get("metrics", {})
        summary = fresh | {"metrics": {**before, **fresh["metrics"]}}
        known = {entry["key"]: entry for entry in content["metrics"]}
        known |= {metric_key(metric): metric_json(metric) for metric in metrics}
        directory.rewrite(records)
        directory.write_run({**content, "metrics": list(known.values()), "summary": summary})
    return summary
