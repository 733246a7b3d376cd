"""Batch APIs, through the real clients against a loopback server: bought once, whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
from PIL import Image

from adapters._batches import AnthropicBatches, Batches, OpenAIBatches, Written
from harness import events
from harness.cache import Answers
from harness.engine import run
from harness.errors import BudgetSpent, ModelError
from harness.pictures import Drawing, Memory, Picture
from harness.resolve import make_model, make_task
from harness.types import Decoding, Journal, Request, Response, Usage, digest
from tests.batch_provider import BatchProvider
from tests.provider import Provider, Reply, Seen

Kind = Literal["openai", "anthropic"]
CLIENTS: list[Any] = []
both = pytest.mark.parametrize("kind", ["openai", "anthropic"])


def write(request: Request) -> Written:
    for picture in request.images:
        picture.open()
    content = [{"type": "text", "text": request.text}]
    return {"model": "m", "max_tokens": 8, "messages": [{"role": "user", "content": content}]}, []


def read(_: Request, reply: dict[str, Any], notes: Sequence[str | None]) -> Response:
    said = reply["choices"][0]["message"]["content"] if "choices" in reply else reply["content"][0]["text"]
    return Response(said, usage=Usage(calls=1, dollars=0.5))


def expect(_: Request) -> Usage:
    return Usage(calls=1, dollars=1.0)


def batches(kind: Kind, provider: Provider, journal: Journal | None = None, **knobs: Any) -> Batches:
    client: Any
    service: Any
    limits = {name: knobs.pop(name) for name in ("most_requests", "most_bytes") if name in knobs}
    if kind == "openai":
        import openai

        client = openai.OpenAI(api_key="k", base_url=provider.url, max_retries=0)
        service = OpenAIBatches(client, **limits)
    else:
        import anthropic

        client = anthropic.Anthropic(api_key="k", base_url=provider.host, max_retries=0)
        service = AnthropicBatches(client, **limits)
    CLIENTS.append(client)
    knobs = {"first": 0.01, "say": lambda _: None} | knobs
    return Batches(service, "owner", journal, **knobs)


def ask(batch: Batches, *questions: str) -> list[Response]:
    return batch.answer([Request(question=question) for question in questions], write, read, expect)


def echo(seen: Seen) -> Reply:
    return Reply(f"about {seen.text}")


@pytest.fixture
def provider() -> Iterator[BatchProvider]:
    with BatchProvider(echo) as provider:
        yield provider
    while CLIENTS:
        CLIENTS.pop().close()


@pytest.fixture
def answers(tmp_path: Path) -> Iterator[Answers]:
    answers = Answers(tmp_path / "cache.sqlite")
    yield answers
    answers.close()


def numbers(provider: BatchProvider) -> list[int]:
    return [len(batch.lines) for batch in provider.batches.values()]


@both
def test_answers_come_back_in_order_though_the_service_shuffles_them(
    kind: Kind, provider: BatchProvider, answers: Answers
) -> None:
    journal = answers.journal(kind)
    found = ask(batches(kind, provider, journal), "a", "b", "a", "c")
    assert [response.text for response in found] == ["about a", "about b", "about a", "about c"]
    assert numbers(provider) == [3]  # the same question once
    assert journal.keys() == []


@both
def test_a_list_is_split_by_the_number_of_requests_and_by_their_bytes(
    kind: Kind, provider: BatchProvider
) -> None:
    names = [f"q{number}" for number in range(7)]
    found = ask(batches(kind, provider, most_requests=3), *names)
    assert [response.text for response in found] == [f"about {name}" for name in names]
    assert numbers(provider) == [3, 3, 1]
    provider.batches.clear()
    service = batches(kind, provider).service
    line = len(service.line("0" * 64, write(Request(question="q0"))[0]))
    found = ask(batches(kind, provider, most_bytes=2 * line), *names, "long" * 200)
    assert [response.text for response in found[:-1]] == [f"about {name}" for name in names]
    assert numbers(provider) == [2, 2, 2, 1]
    assert found[-1].failure is not None and found[-1].failure.kind == "too_large"


@both
def test_what_expired_or_met_an_error_fails_alone_and_is_bought_again_by_the_next_run(
    kind: Kind, provider: BatchProvider, answers: Answers
) -> None:
    faults = {
        "late": Reply(code="expired"),
        "gone": Reply(code="cancelled"),
        "bad": Reply("no such thing", status=400, code="invalid_request_error"),
        "ill": Reply("sorry", status=500, code="api_error"),
    }
    provider.answer = lambda seen: faults.get(seen.text, echo(seen))
    batch = batches(kind, provider, answers.journal(kind))
    found = ask(batch, "late", "gone", "fine", "bad", "ill")
    failures = [(each.failure.kind, each.failure.retry) for each in found if each.failure is not None]
    assert failures == [
        ("expired", True),
        ("cancelled", True),
        ("bad_request", False),
        ("server_error", True),
    ]
    assert found[2].text == "about fine"
    faults.clear()
    assert [each.text for each in ask(batch, "late", "ill")] == ["about late", "about ill"]
    assert numbers(provider) == [5, 2]


def test_a_file_that_fails_its_validation_blames_the_lines_to_blame(provider: BatchProvider) -> None:
    provider.check = lambda lines: [{"line": 2, "code": "invalid", "message": "what is this?"}]
    found = [each.failure for each in ask(batches("openai", provider), "a", "b", "c")]
    assert [(each.kind, each.retry) for each in found if each] == [
        ("batch_refused", True),
        ("bad_request", False),
        ("batch_refused", True),
    ]
    provider.check = lambda lines: [{"code": "token_limit_exceeded", "message": "too much enqueued"}]
    (limited,) = ask(batches("openai", provider), "d")
    assert limited.failure is not None and limited.failure.retry


@both
def test_each_answer_is_counted_and_told_of_as_it_is_fetched_and_half_a_list_stays_cached(
    kind: Kind, provider: BatchProvider, answers: Answers
) -> None:
    heard: list[str] = []

    def listen(request: Request, response: Response) -> None:
        heard.append(response.text)
        if len(heard) == 2:
            raise KeyboardInterrupt

    counter = events.Counter()
    batch = batches(kind, provider, answers.journal(kind))
    with pytest.raises(KeyboardInterrupt), events.counting(counter), events.listening(listen):
        ask(batch, "a", "b", "c")
    assert heard == ["about c", "about b"]
    assert counter.total.dollars == 1.0
    # The next life knows these two, and finds the third in the old batch.
    assert [each.text for each in ask(batches(kind, provider, answers.journal(kind)), "a", "new")] == [
        "about a",
        "about new",
    ]
    assert numbers(provider) == [3, 1]


@both
def test_others_of_an_old_batch_stay_in_the_journal_until_they_are_wanted(
    kind: Kind, provider: BatchProvider, answers: Answers
) -> None:
    journal = answers.journal(kind)
    interrupted(batches(kind, provider, journal), provider, "a", "b", "c")
    assert [each.text for each in ask(batches(kind, provider, journal), "b")] == ["about b"]
    assert len(journal.keys()) == 1
    assert [each.text for each in ask(batches(kind, provider, journal), "c", "a")] == ["about c", "about a"]
    assert journal.keys() == []
    assert numbers(provider) == [3]


def interrupted(batch: Batches, provider: BatchProvider, *questions: str) -> list[str]:
    """Hand in, and stop the run while it waits; what was said."""
    said: list[str] = []
    batch.say = said.append
    provider.hold = threading.Event()
    stop = threading.Event()
    threading.Timer(0.3, stop.set).start()
    with pytest.raises(KeyboardInterrupt), events.stoppable(stop):
        ask(batch, *questions)
    provider.hold.set()
    return said


@both
def test_an_interrupted_run_leaves_its_batches_and_says_so(
    kind: Kind, provider: BatchProvider, answers: Answers
) -> None:
    said = interrupted(batches(kind, provider, answers.journal(kind)), provider, "a")
    assert "repeat the command" in said[-1]
    assert any("0 of 1" in line for line in said)


@both
def test_a_lost_reply_to_a_creation_does_not_buy_twice(
    kind: Kind, provider: BatchProvider, answers: Answers
) -> None:
    provider.creation = lambda attempt: "lost" if attempt == 0 else "fine"
    found = ask(batches(kind, provider, answers.journal(kind)), "a", "b")
    assert [each.text for each in found] == ["about a", "about b"]
    assert numbers(provider) == [2]


@both
def test_too_many_batches_at_once_are_waited_for(kind: Kind, provider: BatchProvider) -> None:
    provider.creation = lambda attempt: "busy" if attempt < 2 else "fine"
    assert ask(batches(kind, provider), "a")[0].text == "about a"
    assert provider.attempts == 3
    assert provider.lists == 0  # a refusal leaves nothing to search for


@both
def test_a_refused_key_stops_the_run_by_its_name_and_leaves_nothing_in_the_way(
    kind: Kind, provider: BatchProvider, answers: Answers
) -> None:
    provider.creation = lambda attempt: "refused" if attempt == 0 else "fine"
    batch = batches(kind, provider, answers.journal(kind))
    with pytest.raises(ModelError, match=f"{kind.upper()}_API_KEY"):
        ask(batch, "a")
    assert ask(batch, "a")[0].text == "about a"
    assert numbers(provider) == [1]


@both
def test_results_that_break_off_are_fetched_again_and_counted_once(
    kind: Kind, provider: BatchProvider
) -> None:
    provider.cuts = 2
    names = [f"q{number}" for number in range(9)]
    with events.counting(events.Counter()) as counter:
        found = ask(batches(kind, provider), *names)
    assert [each.text for each in found] == [f"about {name}" for name in names]
    assert counter.total.calls == 9
    assert provider.cuts == 0


def test_a_strangers_batch_of_the_same_size_is_not_taken_for_ours(
    provider: BatchProvider, answers: Answers
) -> None:
    ask(batches("anthropic", provider), "theirs")
    journal = answers.journal("anthropic")
    mine = digest(["owner", Request(question="a").digest()])
    journal.put(
        "batch:owner:m",
        {"mark": "m", "since": time.time(), "ids": [mine], "batch": None, "missed": False, "notes": {}},
    )
    assert ask(batches("anthropic", provider, journal), "a")[0].text == "about a"
    assert numbers(provider) == [1, 1]


@both
def test_the_most_that_a_list_may_cost_is_reserved_before_it_is_handed_in(
    kind: Kind, provider: BatchProvider, answers: Answers
) -> None:
    heard: list[str] = []
    counter = events.Counter(budget=2.5)
    with (
        events.counting(counter),
        events.listening(lambda _, response: heard.append(response.text)),
        pytest.raises(BudgetSpent),
    ):
        ask(batches(kind, provider, answers.journal(kind)), "a", "b", "c")
    assert sorted(heard) == ["about a", "about b"]  # two dollars at most; they cost one
    assert numbers(provider) == [2]
    assert counter.total.dollars == 1.0
    with events.counting(counter):
        assert ask(batches(kind, provider), "c")[0].text == "about c"  # what was reserved was given back


@both
def test_what_was_bought_before_is_collected_under_any_budget(
    kind: Kind, provider: BatchProvider, answers: Answers
) -> None:
    journal = answers.journal(kind)
    interrupted(batches(kind, provider, journal), provider, "a", "b")
    with events.counting(events.Counter(budget=0.01)):
        assert [each.text for each in ask(batches(kind, provider, journal), "a", "b")] == [
            "about a",
            "about b",
        ]


@both
def test_a_batch_that_this_key_cannot_see_stops_the_run_before_it_is_given_up(
    kind: Kind, provider: BatchProvider, answers: Answers
) -> None:
    journal = answers.journal(kind)
    interrupted(batches(kind, provider, journal), provider, "a")
    provider.batches.clear()
    with pytest.raises(ModelError, match="Set the key that handed it in"):
        ask(batches(kind, provider, journal), "a")
    (response,) = ask(batches(kind, provider, journal), "a")
    assert response.failure is not None and response.failure.retry
    assert ask(batches(kind, provider, journal), "a")[0].text == "about a"


@both
def test_an_unreadable_picture_fails_alone(kind: Kind, provider: BatchProvider) -> None:
    broken = Request(images=(Picture(Memory(b"no picture", "x.png")),), question="a")
    found = batches(kind, provider).answer([broken, Request(question="b")], write, read, expect)
    assert found[0].failure is not None and found[1].text == "about b"


LIFE = """
    import sys
    from pathlib import Path
    from types import SimpleNamespace
    from harness.cache import Answers
    from tests.test_batches import ask, batches
    kind, port, cache = sys.argv[1:]
    host = f"http://127.0.0.1:{port}"
    journal = Answers(Path(cache)).journal(kind)
    ask(batches(kind, SimpleNamespace(host=host, url=host + "/v1"), journal), "a", "b")
"""


@both
@pytest.mark.parametrize("moment", ["waiting", "creating"])
def test_a_killed_process_leaves_a_batch_that_the_next_one_collects(
    kind: Kind, moment: str, provider: BatchProvider, tmp_path: Path
) -> None:
    provider.hold = threading.Event()
    if moment == "creating":
        provider.creation = lambda attempt: "mute" if attempt == 0 else "fine"
    cache = tmp_path / "cache.sqlite"
    command = [sys.executable, "-c", textwrap.dedent(LIFE), kind, str(provider.port), str(cache)]
    life = subprocess.Popen(command, cwd=Path(__file__).parents[1])
    try:
        deadline = time.monotonic() + 60
        while not any(batch.looks or moment == "creating" for batch in provider.batches.values()):
            assert time.monotonic() < deadline and life.poll() is None
            time.sleep(0.02)
    finally:
        os.kill(life.pid, signal.SIGKILL)
        life.wait()
    provider.hold.set()
    answers = Answers(cache)
    found = ask(batches(kind, provider, answers.journal(kind)), "b", "a")
    answers.close()
    assert [each.text for each in found] == ["about b", "about a"]
    assert numbers(provider) == [2]


# ---------------------------------------------------------------- through the adapters


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    monkeypatch.setenv("ANTHROPIC_API_KEY", SECRET)


SECRET = "sk-planted-0123456789"
NAMES = {"openai": "gpt-4o", "anthropic": "claude-sonnet-4-5"}


def spec(kind: Kind, provider: Provider, *knobs: str) -> str:
    """A model's spec, with a stated price of $1 and $1 per token."""
    stated = ("price=1000000/1000000", f"base_url={provider.url}", *knobs)
    return f"{kind}:{','.join((NAMES[kind], *stated))}"


@both
def test_a_batch_gives_the_same_answers_as_the_wire_for_half_the_price(
    kind: Kind, provider: BatchProvider, answers: Answers, keys: None
) -> None:
    drawn = Drawing("dot", (8, 6), lambda: Image.new("RGB", (8, 6)))
    asked = [
        Request((Picture(drawn),), "what is it?", system="Be brief."),
        Request(question="in two words", decoding=Decoding(max_tokens=0)),
        Request(question="hello", decoding=Decoding(temperature=1.0, seed=3)),
    ]
    wire = make_model(spec(kind, provider)).generate(asked)
    sent, provider.seen = provider.bodies, []
    batch = make_model(spec(kind, provider, "batch=true"), answers)
    counter = events.Counter()
    with events.counting(counter):
        found = batch.generate(asked)
    assert sorted(map(str, provider.bodies)) == sorted(map(str, sent))  # word for word
    for one, other in zip(wire, found, strict=True):
        assert (one.text, one.finish_reason, one.trace) == (other.text, other.finish_reason, other.trace)
        assert one.usage.dollars is not None and other.usage.dollars == one.usage.dollars / 2
        assert one.usage.tokens_in == other.usage.tokens_in
    assert counter.total.dollars == sum(each.usage.dollars or 0.0 for each in found) > 0
    assert batch.describe() == make_model(spec(kind, provider)).describe()


@both
def test_a_run_is_one_batch_and_a_failed_sample_is_bought_again_alone(
    kind: Kind, provider: BatchProvider, tmp_path: Path, answers: Answers, keys: None
) -> None:
    fault = Reply(f"the key {SECRET} came late", code="rate_limit_error", status=429)
    provider.answer = lambda seen: fault if len(provider.seen) % 4 == 0 else echo(seen)
    task = make_task("small_detail")
    model = make_model(spec(kind, provider, "batch=true"), answers)
    assert run(task, model, out=tmp_path, limit=12, cache=answers).failed == 3
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"came late" in written and SECRET.encode() not in written
    provider.answer = echo
    assert run(task, model, out=tmp_path, limit=12, cache=answers).failed == 0
    assert numbers(provider) == [12, 3]
