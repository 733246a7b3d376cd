"""The engine: every sample ends once, whatever happens on the way."""

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

from adapters.scripted import Scripted
from harness import engine, store
from harness.cache import Answers
from harness.engine import Progress
from harness.errors import DataError, ModelError, PictureError, SpecError, StoreError
from harness.types import Decoding, Hints, Method, Metric, Pace, Request, Response, Sample, Task, Usage
from metrics import exact


def make_task(n: int = 20, **changes: Any) -> Task:
    """Samples 0..n-1 whose right answer is their own number."""
    samples = [
        Sample(str(k), question=f"{k}?", targets=(str(k),), category="even" if k % 2 == 0 else "odd")
        for k in range(n)
    ]
    task = Task(
        name="numbers",
        version="1",
        protocol="plain",
        fingerprint="f",
        samples=samples,
        request=lambda sample: Request(question=sample.question),
        metrics=(exact.metric(),),
        primary="accuracy",
    )
    return replace(task, **changes)


def right(request: Request) -> str:
    return request.question.rstrip("?")


def mostly(request: Request) -> str | Response:
    number = int(request.question.rstrip("?"))
    if number % 5 == 4:
        return Response.failed("timeout", "too slow", retry=True, usage=Usage(calls=1))
    return str(number) if number % 3 else "?"


def run(task: Task, answer: Callable[[Request], Any], out: Path, **knobs: Any) -> engine.Run:
    model = Scripted(answer, pace=knobs.pop("pace", Pace(group=4, free=True)))
    return engine.run(task, model, out=out, **knobs)


def accuracy(result: engine.Run) -> Mapping[str, Any]:
    found: Mapping[str, Any] = result.summary["metrics"]["exact[llava]"]
    return found


def test_a_run_leaves_a_header_records_and_a_summary(tmp_path: Path) -> None:
    result = run(make_task(), right, tmp_path)
    assert result.status == "complete"
    stored = store.read_run(result.path)
    assert stored["status"] == "complete"
    assert stored["id"].startswith(result.path.name.removeprefix("identity-"))
    assert result.path.parent.relative_to(tmp_path) == Path("numbers/scripted-function")
    assert accuracy(result)["scores"]["accuracy"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert [record.sample_id for record in store.read_records(result.path)] == [str(k) for k in range(20)]
    assert stored["spending"]["usage"]["calls"] == stored["spending"]["spent"]["calls"] == 20


def test_a_failure_is_neither_text_nor_zero(tmp_path: Path) -> None:
    result = run(make_task(), mostly, tmp_path)
    assert result.summary["failures"] == {"timeout": 4}
    assert (result.summary["scored"], result.summary["n"]) == (16, 20)
    assert accuracy(result)["n"] == 16
    records = [record for record in store.read_records(result.path) if record.failure]
    assert all(record.measures == {} and record.failure.message == "too slow" for record in records)  # type: ignore[union-attr]


def test_a_repeated_command_retries_failures_and_asks_nothing_else(tmp_path: Path) -> None:
    run(make_task(), mostly, tmp_path)
    asked: list[str] = []

    def again(request: Request) -> str:
        asked.append(request.question)
        return right(request)

    result = run(make_task(), again, tmp_path)
    assert asked == ["4?", "9?", "14?", "19?"]
    assert result.summary["failed"] == 0
    assert len(list(store.read_records(result.path))) == 20


def test_categories_have_their_own_scores(tmp_path: Path) -> None:
    result = run(make_task(), lambda request: right(request) if int(right(request)) % 2 else "?", tmp_path)
    categories = accuracy(result)["breakdowns"]["category"]
    assert {name: part["scores"]["accuracy"]["value"] for name, part in categories.items()} == {
        "even": 0.0,
        "odd": 1.0,
    }


def test_a_sample_counts_in_each_of_its_groups(tmp_path: Path) -> None:
    samples = [
        Sample("0", question="0?", targets=("0",), meta={"types": ["form", "table"], "length": 3}),
        Sample("1", question="1?", targets=("x",), meta={"types": ["form"], "length": 4}),
    ]
    result = run(make_task(samples=samples, breakdowns=("types", "length")), right, tmp_path)
    shown = {
        (name, value): (part["n"], part["scores"]["accuracy"]["value"])
        for name, parts in accuracy(result)["breakdowns"].items()
        for value, part in parts.items()
    }
    assert shown == {
        ("types", "form"): (2, 0.5),
        ("types", "table"): (1, 1.0),
        ("length", "3"): (1, 1.0),
        ("length", "4"): (1, 0.0),
    }
    again = engine.score(result.path, [exact.metric()])
    assert json.dumps(again) == json.dumps(result.summary)


def test_more_samples_extend_the_run_and_fewer_select_from_it(tmp_path: Path) -> None:
    small = run(make_task(), mostly, tmp_path, limit=5)
    large = run(make_task(), mostly, tmp_path)
    again = run(make_task(), lambda _: pytest.fail("asked again"), tmp_path, limit=4)
    assert small.path == large.path == again.path
    assert again.summary["n"] == 4
    assert again.header["selection"]["ids"] == ["0", "1", "2", "3"]
    assert len(list(store.read_records(again.path))) == 20 - 4  # the failures wait for their retry


def test_an_interrupted_run_resumes_to_the_same_summary(tmp_path: Path) -> None:
    whole = run(make_task(), right, tmp_path / "whole")

    def interrupted(request: Request) -> str:
        if request.question == "13?":
            raise KeyboardInterrupt
        return right(request)

    broken = run(make_task(), interrupted, tmp_path / "broken")
    assert broken.status == "interrupted"
    assert store.read_run(broken.path)["status"] == "interrupted"
    resumed = run(make_task(), right, tmp_path / "broken")
    assert resumed.path == broken.path
    assert json.dumps(resumed.summary) == json.dumps(whole.summary)


def test_the_summary_does_not_depend_on_groups_or_on_who_finished_first(tmp_path: Path) -> None:
    def slow(request: Request) -> str | Response:
        time.sleep(0.002 * (int(right(request)) % 4))
        return mostly(request)

    alone = run(make_task(60), mostly, tmp_path / "a", pace=Pace(group=60))
    flights = run(make_task(60), slow, tmp_path / "b", pace=Pace(group=3, in_flight=5))
    assert json.dumps(alone.summary) == json.dumps(flights.summary)


def test_several_groups_are_in_flight_and_a_slow_one_does_not_hold_up_others(tmp_path: Path) -> None:
    together = threading.Barrier(3, timeout=10)
    result = run(
        make_task(6), lambda r: (together.wait(), right(r))[1], tmp_path, pace=Pace(group=1, in_flight=3)
    )
    assert result.summary["scored"] == 6


def test_what_concerns_every_request_stops_the_run_and_keeps_what_was_done(tmp_path: Path) -> None:
    def refused(request: Request) -> str:
        if request.question == "9?":
            raise ModelError("the key is refused")
        return right(request)

    with pytest.raises(ModelError, match="the key is refused"):
        run(make_task(), refused, tmp_path)
    (path,) = store.find_runs(tmp_path)
    assert len(list(store.read_records(path))) == 8
    assert store.read_run(path)["status"] == "interrupted"


def test_what_is_refused_before_the_first_sample_leaves_nothing(tmp_path: Path) -> None:
    def refused(_: Request) -> str:
        raise ModelError("the key is not set")

    for pace in (Pace(group=4), Pace(group=4, in_flight=3)):
        with pytest.raises(ModelError, match="the key is not set"):
            run(make_task(), refused, tmp_path / "new" / "runs", pace=pace)
        assert not list(tmp_path.iterdir())


def test_what_was_there_before_a_refusal_stays(tmp_path: Path) -> None:
    def refused(_: Request) -> str:
        raise ModelError("the key is not set")

    interrupted = run(make_task(), lambda _: (_ for _ in ()).throw(KeyboardInterrupt), tmp_path)
    assert interrupted.status == "interrupted", "nobody refused it: its path was told"
    before = {path.name for path in interrupted.path.iterdir()}
    with pytest.raises(ModelError):
        run(make_task(), refused, tmp_path)
    assert {path.name for path in interrupted.path.iterdir()} == before
    done = run(make_task(), right, tmp_path, limit=5)
    records = (done.path / "records.jsonl").read_bytes()
    with pytest.raises(ModelError):
        run(make_task(), refused, tmp_path)
    assert (done.path / "records.jsonl").read_bytes() == records
    assert run(make_task(), right, tmp_path).summary["scored"] == 20


def test_too_many_failures_end_the_run_early(tmp_path: Path) -> None:
    result = run(make_task(100), lambda _: Response.failed("x", "y"), tmp_path, max_failures=9)
    assert result.status == "stopped"
    assert result.summary["failed"] == 12


def test_repeats_ask_again_with_other_seeds(tmp_path: Path) -> None:
    seeds = []

    def sampled(request: Request) -> str:
        seeds.append(request.decoding.seed)
        return right(request)

    task = make_task(3, request=lambda s: Request(question=s.question, decoding=Decoding(temperature=1.0)))
    result = run(task, sampled, tmp_path, repeats=2, seed=7)
    assert seeds == [7, 7, 7, 8, 8, 8]
    assert result.summary["n"] == 6
    assert {record.key for record in store.read_records(result.path)} == {
        (str(k), r) for k in range(3) for r in (0, 1)
    }


def test_chosen_samples_run_in_the_tasks_order(tmp_path: Path) -> None:
    result = run(make_task(), right, tmp_path, samples=["7", "2"])
    assert [record.sample_id for record in store.read_records(result.path)] == ["2", "7"]
    with pytest.raises(DataError, match="no sample 'x'; its ids look like '0'"):
        run(make_task(), right, tmp_path, samples=["x"])


@pytest.mark.parametrize("knobs", [{"limit": 0}, {"repeats": 0}])
def test_numbers_below_one_are_refused(tmp_path: Path, knobs: dict[str, int]) -> None:
    with pytest.raises(SpecError, match="must be 1 or more"):
        run(make_task(), right, tmp_path, **knobs)


def test_an_empty_task_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no samples"):
        run(make_task(0), right, tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"version": "2"},
        {"protocol": "other"},
        {"fingerprint": "g"},
        {"request": lambda sample: Request(question=sample.question, instruction="!")},
        {"request": lambda sample: Request(question=sample.question, decoding=Decoding(max_tokens=9))},
    ],
)
def test_whatever_decides_the_answers_makes_another_run(tmp_path: Path, change: dict[str, Any]) -> None:
    assert run(make_task(), right, tmp_path).path != run(make_task(**change), right, tmp_path).path


def test_metrics_are_no_part_of_the_identity(tmp_path: Path) -> None:
    other = make_task(metrics=(exact.metric(variant="lmms"),))
    assert run(make_task(), right, tmp_path).path == run(other, right, tmp_path).path


@dataclass(frozen=True)
class Twice(Method):
    """Asks twice and keeps the second answer."""

    name: ClassVar[str] = "twice"
    extra: int = 0

    def generate(self, requests: Sequence[Request]) -> list[Response]:
        first = self.model.generate(requests)
        second = self.model.generate([replace(request, instruction=" again") for request in requests])
        return [replace(b, usage=a.usage + b.usage) for a, b in zip(first, second, strict=True)]


def test_a_method_is_part_of_the_identity_and_names_its_baseline(tmp_path: Path) -> None:
    model = Scripted(lambda request: right(request).removesuffix("? again"))
    plain = engine.run(make_task(), model, out=tmp_path)
    nested = engine.run(make_task(), model, [Twice, lambda inner: Twice(inner, extra=1)], out=tmp_path)
    assert nested.header["baseline"] == plain.header["id"] != nested.header["id"]
    assert nested.path.name.startswith("twice+twice-")
    assert nested.spending["usage"]["calls"] == 80
    described = nested.header["identity"]["model"]
    assert described["extra"] == 1 and described["model"]["extra"] == 0
    assert described["model"]["model"] == {"adapter": "scripted", "model": "function"}


def test_the_cache_sits_under_the_methods(tmp_path: Path) -> None:
    answers = Answers(tmp_path / "cache.sqlite")
    asked: list[str] = []

    def count(request: Request) -> str:
        asked.append(request.text)
        return right(request)

    model = Scripted(count, pace=Pace(group=4))
    engine.run(make_task(), model, out=tmp_path, cache=answers)
    assert len(asked) == 20
    result = engine.run(make_task(), model, [Twice], out=tmp_path, cache=answers)
    assert len(asked) == 40, "the first asking came from the cache"
    assert result.spending["usage"]["calls"] == 40
    assert result.spending["spent"]["calls"] == 20


def test_the_region_crosses_the_boundary_in_oracle_runs_only(tmp_path: Path) -> None:
    seen = []

    def look(request: Request) -> str:
        seen.append(request.hints.region)
        return ""

    @dataclass(frozen=True)
    class Oracle(Twice):
        name: ClassVar[str] = "oracle"
        oracle = True  # type: ignore[assignment]

    task = make_task(1, request=lambda s: Request(question=s.question, hints=Hints("q", (0, 0, 1, 1))))
    model = Scripted(look)
    plain = engine.run(task, model, [Twice], out=tmp_path)
    oracle = engine.run(task, model, [Oracle, Twice], out=tmp_path)
    assert seen[:2] == [None, None] and set(seen[2:]) == {(0, 0, 1, 1)}
    assert not plain.header["identity"]["oracle"] and oracle.header["identity"]["oracle"]


def test_a_picture_error_inside_a_method_fails_its_own_sample_only(tmp_path: Path) -> None:
    def broken(request: Request) -> str:
        if request.question == "3?":
            raise PictureError("x.png is damaged", "damaged_picture")
        return right(request)

    result = run(make_task(), broken, tmp_path)
    assert result.summary["failures"] == {"damaged_picture": 1}
    assert result.summary["scored"] == 19


def test_progress_counts_samples_failures_and_calls(tmp_path: Path) -> None:
    told: list[Progress] = []
    run(make_task(), mostly, tmp_path, limit=10, progress=told.append)
    run(make_task(), mostly, tmp_path, progress=told.append)
    assert (told[0].done, told[0].total, told[0].resumed) == (0, 10, 0)
    assert (told[-1].done, told[-1].total, told[-1].failed, told[-1].resumed) == (20, 20, 4, 8)


def test_a_model_that_loses_a_response_is_a_bug(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Short(Method):
        name: ClassVar[str] = "short"

        def generate(self, requests: Sequence[Request]) -> list[Response]:
            return self.model.generate(requests)[1:]

    with pytest.raises(RuntimeError, match="19 responses to 20 requests"):
        engine.run(make_task(), Scripted(right), [Short], out=tmp_path)


@dataclass(frozen=True)
class Length:
    """A corpus metric: the longest answer, which no sample knows by itself."""

    name: str = "longest"
    variant: str = ""
    scope: Literal["sample", "corpus"] = "corpus"
    additive: bool = False
    higher_is_better: Mapping[str, bool] = field(default_factory=lambda: {"longest": True})

    def measure(self, responses: Sequence[Response], samples: Sequence[Sample]) -> list[Any]:
        assert [sample.targets for sample in samples] == [(sample.id,) for sample in samples]
        return [len(response.text) for response in responses]

    def reduce(self, counts: Sequence[Any]) -> dict[str, float | None]:
        return {"longest": float(max(counts)) if counts else None}


def test_a_corpus_metric_is_measured_once_at_the_end(tmp_path: Path) -> None:
    metrics: tuple[Metric, ...] = (exact.metric(), Length())
    result = run(make_task(metrics=metrics), mostly, tmp_path)
    assert result.summary["metrics"]["longest"]["scores"]["longest"]["value"] == 2.0
    assert result.summary["metrics"]["longest"]["n"] == 16


def test_scoring_again_reproduces_the_summary_and_adds_metrics(tmp_path: Path) -> None:
    result = run(make_task(), mostly, tmp_path, limit=15)
    before = json.dumps(result.summary)
    assert json.dumps(engine.score(result.path, [exact.metric()])) == before
    summary = engine.score(result.path, [exact.metric(variant="lmms")])
    assert set(summary["metrics"]) == {"exact[llava]", "exact[lmms]"}
    assert all(len(r.measures) == 2 for r in store.read_records(result.path) if not r.failure)
    run(make_task(), mostly, tmp_path)  # still resumes


def test_scoring_again_keeps_to_the_samples_that_were_asked_for(tmp_path: Path) -> None:
    task = make_task(10)
    run(task, right, tmp_path)
    drawn = run(replace(task, samples=[task.samples[k] for k in (7, 1, 4)]), right, tmp_path)
    again = engine.score(drawn.path, [exact.metric()])
    assert (again["n"], again["scored"]) == (3, 3)


def test_two_writers_do_not_meet(tmp_path: Path) -> None:
    entered, leave = threading.Event(), threading.Event()

    def wait(request: Request) -> str:
        entered.set()
        leave.wait(10)
        return right(request)

    thread = threading.Thread(target=run, args=(make_task(), wait, tmp_path))
    thread.start()
    entered.wait(10)
    with pytest.raises(StoreError, match="another process is writing"):
        run(make_task(), right, tmp_path)
    leave.set()
    thread.join()
    (path,) = store.find_runs(tmp_path)
    assert store.read_run(path)["status"] == "complete"
