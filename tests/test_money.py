"""Money: known before, counted during, never more than was allowed, and never nothing where it is unknown."""

import contextlib
import contextvars
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters import _prices, openai
from harness import engine, events, screen, store, sweep
from harness.cache import Answers, Cached
from harness.engine import Progress
from harness.errors import BudgetSpent, SpecError
from harness.estimate import estimate
from harness.grid import read
from harness.pictures import Memory, Picture
from harness.resolve import Named
from harness.types import Capability, Method, Model, Pace, Request, Response, Usage
from leaderboard.board import comparisons
from leaderboard.terminal import table
from metrics import clair, exact
from tests.provider import Provider, Reply
from tests.test_cli import fovea
from tests.test_engine import make_task
from tests.test_pictures import png


@dataclass
class Shop:
    """A model on a wire. Answers after the first `fast` take `seconds`; each costs `price`, or `most`."""

    price: float | None = 0.01
    most: float | None = 0.02
    seconds: float = 0.0
    fast: int = 0
    group: int = 2
    in_flight: int = 4
    asked: list[str] = field(default_factory=list)
    offers: frozenset[Capability] = frozenset()
    prices: str = "genai-prices 0"

    @property
    def pace(self) -> Pace:
        return Pace(self.group, self.in_flight)

    def describe(self) -> dict[str, Any]:
        return {"adapter": "shop", "model": "m"}

    def estimate(self, request: Request) -> Usage:
        return Usage(1, len(request.text), request.decoding.max_tokens, dollars=self.most)

    def generate(self, requests: Sequence[Request]) -> list[Response]:
        return [self._one(request) for request in requests]

    def _one(self, request: Request) -> Response:
        self._reserve()
        try:
            self.asked.append(request.question)
            slow = len(self.asked) > self.fast
            if slow and events.stopping().wait(self.seconds):
                raise KeyboardInterrupt
            usage = Usage(calls=1, tokens_in=5, tokens_out=1, dollars=self.price)
            events.report(usage)
            response = Response(request.question.rstrip("?"), usage=usage)
            events.arrived(request, response)
            return response
        finally:
            events.release(self.most)

    def _reserve(self) -> None:
        while True:
            try:
                return events.reserve(self.most)
            except BudgetSpent as spent:
                if not spent.later:
                    raise
                time.sleep(0.001)


@dataclass(frozen=True)
class Twice(Method):
    """Asks, then asks about the answer."""

    name: ClassVar[str] = "twice"

    def generate(self, requests: Sequence[Request]) -> list[Response]:
        first = self.model.generate(requests)
        again = [Request(question=f"{response.text} sure?") for response in first]
        second = self.model.generate(again)
        return [Response(a.text, usage=a.usage + b.usage) for a, b in zip(first, second, strict=True)]


@dataclass(frozen=True)
class Judged(Method):
    """Asks, then has somebody else answer the same."""

    name: ClassVar[str] = "judged"
    judge: Model

    def generate(self, requests: Sequence[Request]) -> list[Response]:
        return self.judge.generate(self.model.generate(requests) and requests)


@dataclass
class Other(Shop):
    """Another shop, so that the cache knows its answers apart."""

    def describe(self) -> dict[str, Any]:
        return {"adapter": "shop", "model": "other"}


# ---------------------------------------------------------------- budget


@given(st.lists(st.tuples(st.floats(0, 0.3), st.floats(0, 1)), max_size=60), st.floats(0, 2))
def test_no_order_of_calls_spends_more_than_the_budget(
    calls: list[tuple[float, float]], budget: float
) -> None:
    """Each call reserves the most that it can cost and then costs a part of that; some end late."""
    counter = events.Counter(budget)
    flying: list[tuple[float, float]] = []
    with events.counting(counter):
        for most, part in calls:
            try:
                events.reserve(most)
            except BudgetSpent as spent:
                assert spent.later is (counter.charged + most <= budget + 1e-9)
            else:
                flying.append((most, part * most))
            if len(flying) > 3:
                reserved, cost = flying.pop(0)
                events.report(Usage(dollars=cost))
                events.release(reserved)
        for reserved, cost in flying:
            events.report(Usage(dollars=cost))
            events.release(reserved)
    assert (counter.total.dollars or 0.0) <= budget + 1e-6


def test_a_run_stops_before_the_budget_and_goes_on_from_there(tmp_path: Path) -> None:
    shop, answers = Shop(), Answers(tmp_path / "cache.sqlite")
    first = engine.run(make_task(40), shop, out=tmp_path, budget=0.105, cache=answers)
    assert first.status == "budget" and screen.exit_code(first) == 4
    assert first.spending["spent"]["dollars"] == pytest.approx(0.09)  # a tenth could have cost 0.02
    assert first.summary["failed"] == 0 and first.summary["scored"] <= 9
    assert store.read_run(first.path)["spending"]["prices"] == "genai-prices 0"
    rest = engine.run(make_task(40), shop, out=tmp_path, budget=1.0, cache=answers)
    assert rest.status == "complete" and rest.summary["scored"] == 40
    assert sorted(shop.asked) == sorted(f"{k}?" for k in range(40)), "nothing was bought twice"
    assert rest.spending["usage"]["dollars"] == pytest.approx(0.40)


def test_threads_together_keep_to_the_budget(tmp_path: Path) -> None:
    shop = Shop(price=0.02, seconds=0.002, group=1, in_flight=8)
    result = engine.run(make_task(100), shop, out=tmp_path, budget=0.5)
    assert result.status == "budget" and len(shop.asked) == 25
    assert result.spending["spent"]["dollars"] == pytest.approx(0.5)


@pytest.mark.parametrize(("budget", "complaint"), [(1.0, "price=IN/OUT"), (-1.0, "0 or more")])
def test_a_budget_that_cannot_hold_is_refused_before_anything_is_sent(
    tmp_path: Path, budget: float, complaint: str
) -> None:
    shop = Shop(most=None)
    with pytest.raises(SpecError, match=complaint):
        engine.run(make_task(), shop, out=tmp_path, budget=budget)
    assert shop.asked == [] and not list(tmp_path.iterdir())


def test_a_budget_is_refused_for_the_unknown_price_of_a_further_model_before_the_first_is_paid(
    tmp_path: Path,
) -> None:
    shop, answers = Shop(), Answers(tmp_path / "cache.sqlite")
    unknown = Named(Cached(Other(most=None), answers), "other")
    runs = tmp_path / "runs"
    judged = make_task(metrics=(clair.metric(unknown, variant="fovea"),))
    with pytest.raises(SpecError, match="price=IN/OUT"):
        engine.run(make_task(), shop, [lambda model: Judged(model, unknown)], out=runs, budget=1.0)
    with pytest.raises(SpecError, match="price=IN/OUT"):
        engine.run(judged, shop, out=runs, budget=1.0, cache=answers)
    assert shop.asked == [] and not runs.exists()


def test_a_budget_counts_the_further_models_of_a_method(tmp_path: Path) -> None:
    shop, answers = Shop(), Answers(tmp_path / "cache.sqlite")
    other = Other(price=0.1, most=0.1)
    named = Named(Cached(other, answers), "other")
    result = engine.run(
        make_task(), shop, [lambda model: Judged(model, named)], out=tmp_path, budget=0.55, cache=answers
    )
    assert result.status == "budget" and 3 <= len(other.asked) <= 5
    spent = 0.01 * len(shop.asked) + 0.1 * len(other.asked)
    assert result.spending["spent"]["dollars"] == pytest.approx(spent) and spent <= 0.55


def test_an_answer_that_does_not_say_what_it_cost_is_charged_at_the_most(tmp_path: Path) -> None:
    silent = Shop(price=None, most=0.02)
    result = engine.run(make_task(40), silent, out=tmp_path, budget=0.2)
    assert result.status == "budget" and len(silent.asked) == 10
    assert result.spending["spent"]["dollars"] is None, "unknown is not what was reserved"


def test_a_model_that_costs_nothing_does_not_mind_a_budget(tmp_path: Path) -> None:
    free = Shop(price=0.0, most=0.0)
    assert engine.run(make_task(), free, out=tmp_path, budget=0.0).status == "complete"


def test_an_answer_that_came_back_free_of_charge_makes_room_for_others() -> None:
    with events.counting(events.Counter(1.0)):
        events.reserve(0.9)
        with pytest.raises(BudgetSpent) as refused:
            events.reserve(0.2)
        assert refused.value.later
        events.release(0.9)
        events.reserve(0.2)


def test_an_adapter_on_a_real_wire_keeps_to_the_budget(tmp_path: Path) -> None:
    """Answers of 13 tokens in and 40 out at $1 and $10 per thousand cost 0.413; eight are out at once."""
    usage = {"prompt_tokens": 13, "completion_tokens": 40}
    with Provider(lambda _: Reply("yes", delay=0.02, usage=usage)) as provider:
        model = openai.model("m", base_url=provider.url, price="1000/10000", concurrency=8)
        answers = Answers(tmp_path / "cache.sqlite")
        result = engine.run(make_task(40), model, out=tmp_path, budget=8.0, cache=answers)
        assert result.status == "budget"
        assert result.spending["spent"]["dollars"] == pytest.approx(0.413 * len(provider.seen))
        assert 0.413 * len(provider.seen) <= 8.0
        assert len(provider.seen) == answers.size()[0] >= 10, "it stopped as late as the reserve allows"


GRID = """
name: two
tasks: ["vqa_file:one.jsonl", "vqa_file:two.jsonl"]
models: ["openai:m,base_url={url},price=1000/10000,concurrency=1"]
"""


def test_a_sweep_shares_its_budget_among_its_cells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        lines = [json.dumps({"question": f"{name} {k}?", "answer": "yes"}) for k in range(5)]
        Path(f"{name}.jsonl").write_text("\n".join(lines))
    with Provider(lambda _: Reply("yes", usage={"prompt_tokens": 1, "completion_tokens": 100})) as provider:
        Path("grid.yaml").write_text(GRID.format(url=provider.url))
        plan = sweep.prepare(read(Path("grid.yaml"), {}))
        quiet: Any = lambda _: contextlib.nullcontext(lambda _: None)  # noqa: E731
        ended = list(sweep.run(plan, out=tmp_path / "runs", budget=8.0, progress=quiet))
    assert [outcome.run.status for outcome in ended if outcome.run] == ["complete", "budget"]
    assert ended[1].reason == "the budget is spent" and 5 < len(provider.seen) <= 8


JUDGED = """
name: judged
tasks: ["vqa_file:one.jsonl", "vqa_file:two.jsonl"]
models: ["scripted:yes"]
metrics: ["clair:variant=fovea,judge=(openai:m,base_url={url},price=1000/10000,concurrency=1)"]
"""


def test_a_sweeps_budget_holds_for_the_judges_of_its_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        lines = [json.dumps({"question": "?", "answer": f"{name} {k}"}) for k in range(20)]
        Path(f"{name}.jsonl").write_text("\n".join(lines))
    usage, answers = {"prompt_tokens": 1, "completion_tokens": 100}, Answers(tmp_path / "cache.sqlite")
    quiet: Any = lambda _: contextlib.nullcontext(lambda _: None)  # noqa: E731
    with Provider(lambda _: Reply('{"score": 90, "reason": "alike"}', usage=usage)) as provider:
        Path("grid.yaml").write_text(JUDGED.format(url=provider.url))

        def swept(budget: float) -> list[str]:
            plan = sweep.prepare(read(Path("grid.yaml"), {}), cache=answers)
            ended = sweep.run(plan, out=tmp_path / "runs", budget=budget, cache=answers, progress=quiet)
            return [outcome.run.status for outcome in ended if outcome.run]

        assert swept(35.0) == ["complete", "budget"] and 20 < len(provider.seen) < 35
        assert swept(100.0) == ["complete", "complete"] and len(provider.seen) == 40


def test_the_command_says_what_it_will_cost_stops_there_and_says_how_to_go_on(tmp_path: Path) -> None:
    lines = [json.dumps({"question": f"Is {k} even?", "answer": "yes"}) for k in range(30)]
    (tmp_path / "q.jsonl").write_text("\n".join(lines))
    with Provider() as provider:
        spec = f"openai:m,base_url={provider.url},price=1000/1000"
        words = ["run", "vqa_file:q.jsonl", spec, "--out", tmp_path / "runs"]
        said = fovea(*words, "--estimate", cwd=tmp_path).stdout
        assert "requests  30" in said and "at most (stated: $1000 in, $1000 out)" in said
        assert provider.seen == [] and not list((tmp_path / "runs").glob("*/"))
        unknown = fovea(
            "run", "vqa_file:q.jsonl", f"openai:m,base_url={provider.url}", "--estimate", cwd=tmp_path
        )
        assert "dollars   unknown" in unknown.stdout
        stopped = fovea(*words, "--budget", "0.3", cwd=tmp_path)
    assert stopped.returncode == 4
    assert "spent now" in stopped.stdout and "To go on, with as much again: fovea run" in stopped.stderr


# ---------------------------------------------------------------- Ctrl-C


def test_ctrl_c_reaches_threads_that_wait_and_what_arrived_is_kept(tmp_path: Path) -> None:
    """Sixteen threads wait for a service that takes a minute per answer after the first forty."""
    shop, answers = Shop(seconds=60, fast=40, group=1, in_flight=16), Answers(tmp_path / "cache.sqlite")
    pressed: list[float] = []

    def press() -> None:
        while len(shop.asked) < 56:
            time.sleep(0.01)
        pressed.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press).start()
    result = engine.run(make_task(200), shop, out=tmp_path, cache=answers)
    assert result.status == "interrupted" and time.monotonic() - pressed[0] < 20
    assert answers.size()[0] == 40 and len(shop.asked) == 56
    shop.seconds = 0.0
    assert engine.run(make_task(200), shop, out=tmp_path, cache=answers).status == "complete"
    assert len(shop.asked) == 216, "what was on the wire was asked again, and nothing else"


# ---------------------------------------------------------------- the estimate


def test_an_estimate_bounds_the_run_and_sends_nothing(tmp_path: Path) -> None:
    shop = Shop()
    found = estimate(make_task(20), shop, [Twice], out=tmp_path)
    assert shop.asked == []
    assert (found.samples, found.requests, found.priced) == (20, 40, True)
    assert found.usage.dollars == pytest.approx(0.8) and found.prices == "genai-prices 0"
    result = engine.run(make_task(20), shop, [Twice], out=tmp_path)
    assert result.spending["spent"]["calls"] == found.requests
    assert result.spending["spent"]["dollars"] <= found.usage.dollars
    assert json.loads(json.dumps(found.json()))["usage"]["calls"] == 40


def test_what_is_cached_or_done_costs_nothing_more(tmp_path: Path) -> None:
    answers = Answers(tmp_path / "cache.sqlite")
    engine.run(make_task(20), Shop(), out=tmp_path, limit=5, cache=answers)
    again = estimate(make_task(20), Shop(), out=tmp_path, cache=answers)
    assert (again.ended, again.requests, again.cached) == (5, 15, 0)
    elsewhere = estimate(make_task(20), Shop(), [Twice], out=tmp_path, cache=answers)
    assert (elsewhere.ended, elsewhere.requests, elsewhere.cached) == (0, 35, 5)


def test_repeated_questions_are_estimated_as_often_as_they_are_sent(tmp_path: Path) -> None:
    same = make_task(20, request=lambda _: Request(question="same?"))
    assert estimate(same, Shop(), out=tmp_path).requests == 20
    assert estimate(same, Shop(), out=tmp_path, cache=Answers(tmp_path / "c.sqlite")).requests == 1


def test_an_estimate_asks_no_model_that_a_method_brings_along(tmp_path: Path) -> None:
    judge = Shop(most=0.5)
    found = estimate(make_task(4), Shop(), [lambda model: Judged(model, judge)], out=tmp_path)
    assert judge.asked == [] and found.requests == 8
    assert found.usage.dollars == pytest.approx(4 * 0.02 + 4 * 0.5)


WRAPPED: dict[str, Callable[[Model, Answers], Model]] = {
    "bare": lambda model, _: model,
    "named": lambda model, _: Named(model, "other"),
    "cached": lambda model, answers: Cached(model, answers),
    "named over cached": lambda model, answers: Named(Cached(model, answers), "other"),
    "cached over named": lambda model, answers: Cached(Named(model, "other"), answers),
    "of a method": lambda model, answers: Named(Judged(Shop(most=0.0), Cached(model, answers)), "method"),
    "over a method": lambda model, answers: Cached(Judged(Shop(most=0.0), model), answers),
}


@pytest.mark.parametrize("wrapped", WRAPPED.values(), ids=WRAPPED)
def test_the_price_of_a_further_model_counts_whatever_is_wrapped_around_it(
    tmp_path: Path, wrapped: Callable[[Model, Answers], Model]
) -> None:
    answers, other = Answers(tmp_path / "cache.sqlite"), Other(most=0.5)
    further = wrapped(other, answers)
    wraps = [lambda model: Judged(model, further)]
    found = estimate(make_task(4), Shop(), wraps, out=tmp_path, cache=answers)
    assert found.priced and other.asked == []
    assert found.usage.dollars == pytest.approx(4 * 0.02 + 4 * 0.5)


def test_what_the_cache_knows_of_a_further_model_costs_nothing(tmp_path: Path) -> None:
    answers = Answers(tmp_path / "cache.sqlite")
    named = Named(Cached(Other(), answers), "other")
    engine.run(make_task(20), Other(), out=tmp_path, limit=5, cache=answers)
    wraps = [lambda model: Judged(model, named)]
    found = estimate(make_task(20), Shop(), wraps, out=tmp_path, cache=answers)
    assert (found.requests, found.cached) == (20 + 15, 5)


FURTHER = """
name: further
tasks: ["small_detail:question=caption,size=4"]
models: ["openai:m,base_url=http://127.0.0.1:9/v1,price=1/10"]
methods: ["patch_matters:aggregator=(openai:n,base_url=http://127.0.0.1:9/v1,price=1000/1000)"]
"""


def test_a_sweep_states_the_price_of_a_methods_further_model_with_a_cache_and_without(tmp_path: Path) -> None:
    path = tmp_path / "grid.yaml"
    path.write_text(FURTHER)
    grid, answers = read(path, {}), Answers(tmp_path / "cache.sqlite")
    without = sweep.forecast(sweep.prepare(grid), tmp_path / "runs")
    found = sweep.forecast(sweep.prepare(grid, cache=answers), tmp_path / "runs", answers)
    assert found.counted and not found.unpriced
    assert found.usage.dollars is not None and without.usage.dollars is not None
    assert 100 < found.usage.dollars <= without.usage.dollars, "nearly all of it is the aggregator's"


def test_an_unknown_price_stays_unknown_and_a_local_model_has_none(tmp_path: Path) -> None:
    assert estimate(make_task(), Shop(most=None), out=tmp_path).usage.dollars is None

    class Local(Shop):
        estimate = None  # type: ignore[assignment]

    local = estimate(make_task(), Local(), out=tmp_path)
    assert not local.priced and local.requests == 20


# ---------------------------------------------------------------- what is shown


@pytest.mark.parametrize(
    ("spent", "budget", "shown"),
    [
        (0.12344, None, "$0.1234 spent"),
        (0.12344, 5.0, "$0.1234 spent of $5.00"),
        (None, None, "$? (unknown price) spent"),
        (0.0, None, ""),
    ],
)
def test_the_progress_line_shows_what_was_spent(
    spent: float | None, budget: float | None, shown: str
) -> None:
    assert screen._spent(Progress(1, 2, 0, 0, Usage(dollars=spent), budget)) == shown


def board(paths: Sequence[Path], width: int = 160) -> tuple[list[str], dict[str, list[str]]]:
    """The headings of the first comparison's table, and the cells of each row by its method."""
    (comparison,) = comparisons(paths, lambda _: exact.metric())
    out = table(comparison, width)
    cells = [list(column.cells) for column in out.columns]
    rows = {str(row[2]).split("\n")[0]: [str(cell) for cell in row] for row in zip(*cells, strict=True)}
    return [str(column.header) for column in out.columns], rows


def test_a_board_shows_dollars_per_sample_per_run_and_against_no_method(tmp_path: Path) -> None:
    runs = [engine.run(make_task(20), Shop(), methods, out=tmp_path).path for methods in ([], [Twice])]
    headings, rows = board(runs)
    assert headings[8:] == ["$", "$ in all"]
    assert rows["none"][8:] == ["0.0100", "0.2000"]
    assert rows["twice"][8:] == ["0.0200\n× 2.0", "0.4000"]


def test_a_board_says_unknown_and_is_silent_where_nothing_costs(tmp_path: Path) -> None:
    unknown = engine.run(make_task(20), Shop(price=None), out=tmp_path / "unknown").path
    assert board([unknown])[1]["none"][8:] == ["unknown", "unknown"]
    free = engine.run(make_task(20), Shop(price=0.0, most=0.0), out=tmp_path / "free").path
    assert board([free])[0][-1] == "seconds"


# ---------------------------------------------------------------- prices


def test_prices_are_those_of_the_package_and_of_the_user() -> None:
    assert _prices.dollars("openai", "gpt-4o", 1000, 100) == pytest.approx(0.0035)
    assert _prices.dollars("openai", "gpt-4o", 1000, 100, cached_in=500) == pytest.approx(0.002875)
    assert _prices.dollars("openai", "gpt-4o", 1000, 100, at_batch=True) == pytest.approx(0.00175)
    assert _prices.dollars("anthropic", "claude-3-5-sonnet-20241022", 1000, 100) == pytest.approx(0.0045)
    assert _prices.dollars("localhost", "any", 1000, 100, price=(1.0, 2.0)) == pytest.approx(0.0012)
    for provider, model in [("openai", "gpt-4o-my-finetune"), ("localhost", "gpt-4o"), ("anthropic", "nope")]:
        assert _prices.dollars(provider, model, 1000, 100) is None
    assert _prices.version().startswith("genai-prices 0.")


@pytest.mark.parametrize("text", ["", "5", "a/b", "1/2/3", "-1/2", "nan/1", "inf/1"])
def test_a_price_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="IN/OUT"):
        _prices.stated(text)


@pytest.mark.parametrize(
    ("provider", "model", "size", "detail", "tokens"),
    [  # the examples that the providers' own pages work out, and token counts they returned
        ("openai", "gpt-4o", (1024, 1024), "high", 765),
        ("openai", "gpt-4o", (2048, 4096), "high", 1105),
        ("openai", "gpt-4o", (512, 512), "auto", 255),
        ("openai", "gpt-4o", (4096, 8192), "low", 85),
        ("openai", "gpt-4o-mini", (1024, 1024), "high", 25501),
        ("openai", "gpt-5", (1024, 1024), "high", 630),
        ("openai", "o3", (1024, 1024), "high", 675),
        ("openai", "gpt-4.1-mini", (1024, 1024), "high", 1659),
        ("openai", "gpt-5.5", (512, 512), "auto", 308),
        ("openai", "gpt-5.5", (768, 768), "auto", 692),
        ("anthropic", "claude-haiku-4-5", (256, 256), "auto", 100),
        ("anthropic", "claude-opus-4-7", (1000, 1000), "auto", 1296),
        ("anthropic", "claude-3-7-sonnet-latest", (8000, 8000), "auto", 1600),
        ("google", "gemini-2.5-flash", (960, 540), "auto", 1548),
        ("localhost", "qwen", (280, 560), "auto", 200),
    ],
)
def test_a_picture_counts_as_its_provider_publishes(
    provider: str, model: str, size: tuple[int, int], detail: str, tokens: int
) -> None:
    assert _prices.image_tokens(provider, model, size, detail) == tokens


@given(
    st.sampled_from(["openai", "anthropic", "google", "other"]), st.integers(1, 9000), st.integers(1, 9000)
)
def test_every_size_has_a_bounded_count(provider: str, width: int, height: int) -> None:
    models = {"openai": "gpt-4.1-nano", "anthropic": "claude-opus-4-7"}
    tokens = _prices.image_tokens(provider, models.get(provider, "m"), (width, height))
    assert tokens >= 1 and (provider not in models or tokens <= 4784)


def test_the_most_that_a_request_can_use_counts_words_pictures_and_the_whole_answer() -> None:
    picture = Picture(Memory(png(), "one"))
    bare = Request(question="où?", system="Be brief.")
    usage = _prices.at_most("openai", "gpt-4o", bare, 100)
    assert usage.tokens_in >= len("où?Be brief.".encode()) and usage.tokens_out == 100
    seen = _prices.at_most("openai", "gpt-4o", Request(images=(picture,)), 0)
    assert seen.images == 1 and seen.tokens_in >= 255
    assert seen.dollars == pytest.approx(seen.tokens_in * 2.5e-6)


def test_threads_that_copy_the_context_speak_to_the_same_listeners() -> None:
    heard: list[str] = []
    stop = threading.Event()
    with events.listening(lambda request, _: heard.append(request.question)), events.stoppable(stop):
        context = contextvars.copy_context()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(context.run, events.arrived, Request(question="a"), Response()).result()
        pool.submit(events.arrived, Request(question="b"), Response()).result()
        stop.set()
        assert pool.submit(context.run, events.stopping).result().is_set()
        assert not pool.submit(events.stopping).result().is_set()
    assert heard == ["a"]
