"""What many requests at once must keep to: order, slots, limits, retries, the budget, and a prompt end."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta

import pytest

from adapters._wire import Again, Limits, Wire, rate_headers, redacted, retry_after
from harness import events
from harness.errors import BudgetSpent, ModelError, PictureError
from harness.types import Request, Response, Usage

ONE = Usage(calls=1, tokens_in=10, dollars=0.25)


def requests(number: int) -> list[Request]:
    return [Request(question=str(index)) for index in range(number)]


def expect(_: Request) -> Usage:
    return ONE


def sending(
    answer: Callable[[int], Awaitable[str]],
) -> tuple[Callable[[Request], Awaitable[Response]], list[int]]:
    """A `send` that answers with `answer(number of the question)`, and the numbers that were sent."""
    sent: list[int] = []

    async def send(request: Request) -> Response:
        sent.append(int(request.question))
        return Response(await answer(int(request.question)), usage=ONE)

    return send, sent


async def at_once(number: int) -> str:
    return str(number)


def test_answers_keep_their_order_and_the_slots_are_filled_but_never_exceeded() -> None:
    running = most = 0

    async def answer(number: int) -> str:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.001 * (number % 7))
        running -= 1
        return str(number)

    send, _ = sending(answer)
    answers = Wire(8).answer(requests(200), send, expect)
    assert [response.text for response in answers] == [str(number) for number in range(200)]
    assert most == 8


def test_a_slow_request_holds_up_no_other_and_each_is_told_of_as_it_arrives() -> None:
    arrived: list[str] = []
    released = asyncio.Event()

    async def answer(number: int) -> str:
        if number == 0:
            await released.wait()
        return str(number)

    def listener(request: Request, _: Response) -> None:
        arrived.append(request.question)
        if len(arrived) == 49:  # all but the slow one
            wire._started().loop.call_soon_threadsafe(released.set)

    wire = Wire(4)
    send, _ = sending(answer)
    with events.listening(listener):
        wire.answer(requests(50), send, expect)
    assert arrived[-1] == "0" and len(arrived) == 50


def test_what_may_work_later_is_tried_again_and_counted_once() -> None:
    tries: dict[str, int] = {}

    async def send(request: Request) -> Response:
        tries[request.question] = tries.get(request.question, 0) + 1
        if tries[request.question] < 3:
            raise Again("busy", after=0.01)
        return Response("yes", usage=ONE)

    with events.counting(events.Counter()) as counter:
        answers = Wire(4).answer(requests(5), send, expect)
    assert [response.text for response in answers] == ["yes"] * 5
    assert set(tries.values()) == {3}
    assert counter.total.calls == 5 and counter.total.dollars == 1.25


def test_used_up_attempts_fail_one_request_with_the_kind_and_the_number() -> None:
    async def answer(number: int) -> str:
        if number == 1:
            raise Again("529: overloaded", after=0.0, kind="overloaded")
        return "yes"

    send, sent = sending(answer)
    good, bad = Wire(4, retries=2).answer(requests(2), send, expect)
    assert good.text == "yes" and bad.failure is not None
    assert (bad.failure.kind, bad.failure.retry) == ("overloaded", True)
    assert bad.failure.message == "529: overloaded (3 attempts)"
    assert sent.count(1) == 3


def test_a_service_that_never_answered_is_an_error_of_the_run() -> None:
    async def answer(_: int) -> str:
        raise Again("Connection error.", after=0.0, kind="connection")

    send, _ = sending(answer)
    with pytest.raises(ModelError, match="nothing ever answered: Connection error. .*base_url"):
        Wire(4, retries=1).answer(requests(3), send, expect)


def test_the_wait_is_as_long_as_the_service_asks() -> None:
    times: list[float] = []

    async def send(_: Request) -> Response:
        times.append(time.monotonic())
        if len(times) == 1:
            raise Again("429", after=0.4, kind="rate_limited")
        return Response("yes")

    Wire(4).answer(requests(1), send, expect)
    assert 0.4 <= times[1] - times[0] < 10


def test_a_rate_limit_holds_back_everybody_else_too() -> None:
    times: list[float] = []

    async def send(_: Request) -> Response:
        times.append(time.monotonic())
        if len(times) == 1:
            raise Again("429", after=0.4, kind="rate_limited")
        return Response("yes")

    Wire(1).answer(requests(3), send, expect)
    assert min(times[1:]) - times[0] >= 0.4


def test_what_concerns_every_request_ends_all_calls_at_once() -> None:
    async def answer(number: int) -> str:
        if number == 3:
            raise ModelError("the key in SOME_KEY was refused")
        await asyncio.sleep(30 if number > 3 else 0)
        return "yes"

    wire = Wire(4)
    send, sent = sending(answer)
    other: list[BaseException] = []

    def elsewhere() -> None:
        async def never(_: Request) -> Response:
            await asyncio.sleep(30)
            return Response()

        try:
            wire.answer(requests(1), never, expect)
        except ModelError as error:
            other.append(error)

    thread = threading.Thread(target=elsewhere)
    started = time.monotonic()
    thread.start()
    with pytest.raises(ModelError, match="SOME_KEY"):
        wire.answer(requests(100), send, expect)
    thread.join(5)
    assert len(other) == 1
    assert time.monotonic() - started < 10
    assert len(sent) < 12


def test_a_spent_budget_lets_fly_what_flies_and_sends_nothing_more() -> None:
    arrived: list[str] = []

    async def answer(number: int) -> str:
        await asyncio.sleep(0.05)
        return str(number)

    send, sent = sending(answer)
    counter = events.Counter(budget=1.0)
    with (
        events.counting(counter),
        events.listening(lambda request, _: arrived.append(request.question)),
        pytest.raises(BudgetSpent),
    ):
        Wire(8).answer(requests(100), send, expect)
    assert sorted(sent) == sorted(map(int, arrived))
    assert len(sent) == 4 and counter.total.dollars == 1.0


def test_reservations_that_come_back_are_spent_by_those_who_wait() -> None:
    async def send(_: Request) -> Response:
        await asyncio.sleep(0.02)
        return Response("yes", usage=Usage(calls=1, dollars=0.01))  # expected at most 0.25

    with events.counting(events.Counter(budget=0.6)) as counter:
        answers = Wire(8).answer(requests(20), send, expect)
    assert len(answers) == 20 and counter.total.dollars == pytest.approx(0.2)


def test_one_broken_picture_fails_alone_wherever_it_is_found() -> None:
    async def answer(number: int) -> str:
        if number == 2:
            raise PictureError("x.png is damaged", "damaged_picture")
        return "yes"

    def expecting(request: Request) -> Usage:
        if request.question == "4":
            raise PictureError("y.png does not exist", "missing_picture")
        return ONE

    send, _ = sending(answer)
    answers = Wire(2).answer(requests(6), send, expecting)
    kinds = [response.failure and response.failure.kind for response in answers]
    assert kinds == [None, None, "damaged_picture", None, "missing_picture", None]


def test_a_bug_goes_through_as_it_is() -> None:
    async def answer(number: int) -> str:
        return str(1 // number)

    send, _ = sending(answer)
    with pytest.raises(ZeroDivisionError):
        Wire(2).answer(requests(6), send, expect)


def test_a_run_that_stops_ends_a_waiting_thread_promptly_and_keeps_what_has_arrived() -> None:
    stop, arrived, ended = threading.Event(), list[str](), list[float]()

    async def answer(number: int) -> str:
        await asyncio.sleep(0 if number < 3 else 60)
        return "yes"

    def call() -> None:
        send, _ = sending(answer)
        with events.stoppable(stop), events.listening(lambda request, _: arrived.append(request.question)):
            try:
                Wire(8).answer(requests(8), send, expect)
            except KeyboardInterrupt:
                ended.append(time.monotonic())

    thread = threading.Thread(target=call)
    thread.start()
    time.sleep(0.3)
    begun = time.monotonic()
    stop.set()
    thread.join(5)
    assert sorted(arrived) == ["0", "1", "2"]
    assert ended[0] - begun < 20


def test_a_wire_takes_one_call_after_another_from_several_threads() -> None:
    wire = Wire(4)
    send, sent = sending(at_once)
    found: list[int] = []
    threads = [
        threading.Thread(target=lambda: found.append(len(wire.answer(requests(30), send, expect))))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert found == [30] * 4 and len(sent) == 120
    assert wire.limits.running == 0


def test_a_forgotten_wire_ends_its_thread_and_says_farewell() -> None:
    said = threading.Event()

    async def farewell() -> None:
        said.set()

    wire = Wire(4)
    wire.answer(requests(3), sending(at_once)[0], expect)
    wire.at_close(farewell)
    thread = wire._started().thread
    del wire
    thread.join(5)
    assert said.is_set() and not thread.is_alive()


# ---------------------------------------------------------------- limits


def test_a_storm_of_429_halves_the_slots_once_and_answers_bring_them_back() -> None:
    limits = Limits(64)
    for _ in range(64):  # one storm: all were sent before it was known
        limits.crowded(started=1.0, now=2.0, after=None)
    assert limits.allowed == 32
    limits.crowded(started=3.0, now=4.0, after=None)
    assert limits.allowed == 16
    for _ in range(16 + 17 + 18):  # three round trips
        limits.answered(Usage(), Usage())
    assert limits.allowed == pytest.approx(19, abs=0.1)
    for _ in range(5000):
        limits.answered(Usage(), Usage())
    assert limits.allowed == 64


def test_the_last_slot_is_never_taken_away() -> None:
    limits = Limits(4)
    for second in range(10):
        limits.crowded(started=float(second), now=float(second), after=None)
    assert limits.allowed == 1


def test_requests_per_minute_are_spread_over_the_minute() -> None:
    send, _ = sending(at_once)
    started = time.monotonic()
    Wire(64, requests_per_minute=600).answer(requests(15), send, expect)
    assert 0.4 < time.monotonic() - started < 1.5  # ten at once, then ten a second


def test_tokens_per_minute_count_what_was_used_not_what_was_feared() -> None:
    def fearing(_: Request) -> Usage:
        return Usage(tokens_in=10, tokens_out=990)

    def seconds(used: int) -> float:
        async def send(_: Request) -> Response:
            return Response("yes", usage=Usage(tokens_in=10, tokens_out=used - 10))

        started = time.monotonic()
        Wire(1, tokens_per_minute=120_000).answer(requests(4), send, fearing)
        return time.monotonic() - started

    assert seconds(used=20) < 0.3
    assert seconds(used=1000) > 0.8  # 4,000 tokens at 2,000 a second, of which 2,000 are there at once


def test_headers_of_an_empty_account_hold_back_until_it_refills() -> None:
    limits = Limits(64)
    headers = {
        "x-ratelimit-limit-requests": "600",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "1m0s",
    }
    now = time.monotonic()
    limits.heard(headers, now)
    assert limits.wait(100, now) == pytest.approx(0.1)
    limits.heard({**headers, "x-ratelimit-remaining-requests": "600"}, now)
    assert limits.wait(100, now) == 0


def test_both_providers_headers_are_read() -> None:
    soon = (datetime.now(UTC) + timedelta(seconds=30)).isoformat().replace("+00:00", "Z")
    headers = {
        "anthropic-ratelimit-input-tokens-limit": "50000",
        "anthropic-ratelimit-input-tokens-remaining": "20000",
        "anthropic-ratelimit-input-tokens-reset": soon,
        "x-ratelimit-limit-tokens": "1000",
        "x-ratelimit-remaining-tokens": "999",
        "x-ratelimit-reset-tokens": "6ms",
        "x-ratelimit-limit-requests": "garbled",
    }
    found = rate_headers(headers)
    assert found["tokens"] == (1000, 999, 0.006)
    assert found["input-tokens"] == (50000, 20000, pytest.approx(30, abs=1))
    assert set(found) == {"tokens", "input-tokens"}


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "2"}, 2),
        ({"retry-after": "7", "retry-after-ms": "1500"}, 1.5),
        ({"retry-after": "Fri, 01 Jan 1999 00:00:00 GMT"}, 0),
        ({}, None),
        ({"retry-after": "soon"}, None),
    ],
)
def test_retry_after_is_seconds_milliseconds_or_a_date(
    headers: dict[str, str], seconds: float | None
) -> None:
    assert retry_after(headers) == seconds


@pytest.mark.parametrize("knob", ["concurrency", "requests_per_minute", "tokens_per_minute", "retries"])
def test_a_number_that_leaves_nothing_to_send_is_refused(knob: str) -> None:
    with pytest.raises(ValueError, match=knob):
        Wire(**{"concurrency": 1, knob: -1})


def test_a_message_keeps_neither_key_nor_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "planted/key+value")
    text = f"bad planted/key+value, sk-proj-abc***xyz0, Bearer abcdefgh, data:image/png;base64,{'A' * 300}"
    assert redacted(text, "SOME_KEY") == "bad <key>, <key>, Bearer <key>, <picture>"
    assert redacted("B" * 500, "SOME_KEY") == "<bytes>"
