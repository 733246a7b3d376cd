"""Many requests to one service at once: slots, limits, retries, budget. Shared by the adapters for APIs.

A `Wire` owns one event-loop thread. Callers hand it a list and wait; every answer is counted, and told to
who listens, the moment it arrives. It knows rate limits, the shape of the official clients' errors, and how
to keep a key out of a message. It must not know what a request or an answer of any provider looks like.

    slots     `concurrency` at most; halved when the service says "too many", one more per round trip after
    limits    what the user allows per minute, and what the service's headers say is left
    retries   408, 409, 429, 5xx, timeouts, lost connections: backoff, or as long as Retry-After asks
    the end   a refused key or an unknown model ends every call at once; a spent budget lets fly what flies
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import dataclasses
import os
import queue
import random
import re
import threading
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

from harness import events
from harness.errors import BudgetSpent, ModelError, PictureError
from harness.types import Request, Response, Usage

Send = Callable[[Request], Awaitable[Response]]
Expect = Callable[[Request], Usage]

LOOK = 0.2  # seconds between looks at whether the run was interrupted
LONGEST = 60.0  # seconds of backoff at most; a Retry-After is honoured whatever it says


class Again(Exception):
    """This attempt failed and another may not. after: seconds that the service asks for.

    kind: the failure's stable word if no attempt is left. `rate_limited` and `overloaded` slow everybody.
    """

    def __init__(self, reason: str, after: float | None = None, kind: str = "unavailable") -> None:
        super().__init__(reason)
        self.after = after
        self.kind = kind

    @property
    def crowded(self) -> bool:
        return self.kind in ("rate_limited", "overloaded")


class Wire:
    """One service, many requests in flight. Starts its thread with the first call."""

    def __init__(
        self,
        concurrency: int,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        retries: int = 6,
    ) -> None:
        """Raises ValueError for a number that leaves nothing to send."""
        for name, number in (
            ("concurrency", concurrency),
            ("requests_per_minute", requests_per_minute),
            ("tokens_per_minute", tokens_per_minute),
        ):
            if number is not None and number < 1:
                raise ValueError(f"{name} is {number}; it must be 1 or more")
        if retries < 0:
            raise ValueError(f"retries is {retries}; it must be 0 or more")
        self.retries = retries
        self.limits = Limits(concurrency, requests_per_minute, tokens_per_minute)
        self._starting = threading.Lock()
        self._thread: _LoopThread | None = None
        self._calls: set[_Call] = set()
        self._heard_from = False  # whether the service ever answered

    def answer(self, requests: Sequence[Request], send: Send, expect: Expect) -> list[Response]:
        """One response per request, in order. `send` makes one attempt, in the loop's thread.

        It returns a response, raises `Again`, or raises what concerns every request. `expect` says the most
        a request may cost. A request whose picture cannot be used, or whose attempts are used up, fails
        alone. Raises BudgetSpent once what was in flight has arrived; ModelError and KeyboardInterrupt at
        once, dropping what is in flight.
        """
        loop = self._started().loop
        call = _Call(send, contextvars.copy_context(), events.stopping())
        self._calls.add(call)
        try:
            for index, request in enumerate(requests):
                try:
                    expected = expect(request)
                except PictureError as error:
                    call.box.put((index, Response.failed(error.kind, str(error))))
                else:
                    loop.call_soon_threadsafe(self._begin, call, index, request, expected)
            return call.collected(len(requests))
        finally:
            self._calls.discard(call)
            loop.call_soon_threadsafe(call.drop)

    def heard(self, headers: Mapping[str, str]) -> None:
        """Take the rate-limit headers of an answer into account."""
        self.limits.heard(headers, time.monotonic())

    def at_close(self, close: Callable[[], Awaitable[Any]]) -> None:
        """Run `close()` in the loop when the wire is forgotten or the process ends: a client's farewell."""
        self._started().farewells.append(close)

    def _started(self) -> _LoopThread:
        with self._starting:
            if self._thread is None:
                self._thread = _LoopThread()
                weakref.finalize(self, self._thread.close)
            return self._thread

    # -------------------------------------------------------- in the loop's thread

    def _begin(self, call: _Call, index: int, request: Request, expected: Usage) -> None:
        if call.dropped:
            return
        work = self._deliver(call, index, request, expected)
        task = asyncio.get_running_loop().create_task(work, context=call.context.copy())
        call.tasks.add(task)
        task.add_done_callback(call.tasks.discard)

    async def _deliver(self, call: _Call, index: int, request: Request, expected: Usage) -> None:
        outcome: Response | BaseException
        try:
            outcome = await self._bought(call, request, expected)
        except PictureError as error:
            outcome = Response.failed(error.kind, str(error))
        except BudgetSpent as error:
            call.spent = outcome = error
        except ModelError as error:
            for other in tuple(self._calls):
                other.box.put((index, error))
            return
        except Exception as error:
            outcome = error
        call.box.put((index, outcome))

    async def _bought(self, call: _Call, request: Request, expected: Usage) -> Response:
        """One request's answer, its price reserved before it is first sent and counted when it is there."""
        reserved = False
        attempts = 0

        def admit() -> None:
            nonlocal reserved
            if call.stop.is_set():  # the slots of those who left are not for others
                raise asyncio.CancelledError
            if not reserved:
                if call.spent is not None:
                    raise call.spent
                events.reserve(expected.dollars)
                reserved = True

        try:
            while True:
                try:
                    async with self.limits.turn(expected.tokens_in + expected.tokens_out, admit):
                        started = time.monotonic()
                        try:
                            response = await call.send(request)
                        except Again as problem:
                            again = problem
                            if again.crowded:
                                self.limits.crowded(started, time.monotonic(), again.after)
                        else:
                            return self._counted(request, response, expected, time.monotonic() - started)
                except BudgetSpent as spent:
                    if not spent.later:
                        raise
                    await asyncio.sleep(random.uniform(0.1, 0.5))  # what is in flight holds the rest
                    continue
                attempts += 1
                if attempts > self.retries:
                    return self._given_up(again, attempts)
                await asyncio.sleep(_pause(attempts, again.after))
        finally:
            if reserved:
                events.release(expected.dollars)

    def _counted(self, request: Request, response: Response, expected: Usage, seconds: float) -> Response:
        """An answer, paid for and kept before its slot is free: a crash loses no more than the slots hold."""
        self._heard_from = True
        self.limits.answered(expected, response.usage)
        usage = dataclasses.replace(response.usage, seconds=seconds)
        response = dataclasses.replace(response, usage=usage)
        events.report(usage)
        if response.failure is None:
            events.arrived(request, response)
        return response

    def _given_up(self, again: Again, attempts: int) -> Response:
        message = f"{again} ({attempts} {'attempt' if attempts == 1 else 'attempts'})"
        if again.kind == "connection" and not self._heard_from:
            raise ModelError(f"nothing ever answered: {message}. Is base_url right, and the service up?")
        return Response.failed(again.kind, message, retry=True)


@dataclass(eq=False)
class _Call:
    """One caller's list: what came of each goes into `box`, by its place; the caller takes it out."""

    send: Send
    context: contextvars.Context
    stop: threading.Event
    box: queue.SimpleQueue[tuple[int, Response | BaseException]] = field(default_factory=queue.SimpleQueue)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    spent: BudgetSpent | None = None
    dropped: bool = False

    def collected(self, number: int) -> list[Response]:
        """Wait for `number` outcomes, in the caller's thread."""
        answers: dict[int, Response] = {}
        ended = 0
        while ended < number:
            try:
                index, outcome = self.box.get(timeout=LOOK)
            except queue.Empty:
                if self.stop.is_set():
                    raise KeyboardInterrupt from None
                continue
            ended += 1
            if isinstance(outcome, Response):
                answers[index] = outcome
            elif not isinstance(outcome, BudgetSpent):
                raise outcome
        if self.spent is not None:
            raise self.spent
        return [answers[index] for index in range(number)]

    def drop(self) -> None:
        self.dropped = True
        for task in self.tasks:
            task.cancel()


class _LoopThread:
    """A daemon thread that runs an event loop until it is closed, then says farewell."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.farewells: list[Callable[[], Awaitable[Any]]] = []
        self.thread = threading.Thread(target=self._run, name="fovea-wire", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        self.loop.run_forever()
        with contextlib.suppress(Exception):
            self.loop.run_until_complete(self._farewell())
        self.loop.close()

    async def _farewell(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        async with asyncio.timeout(1):
            await asyncio.gather(*tasks, return_exceptions=True)
            for farewell in self.farewells:
                await farewell()

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        if threading.current_thread() is not self.thread:  # it may be the one that lets go of the wire
            self.thread.join(timeout=2)


# ---------------------------------------------------------------- limits


@dataclass
class Bucket:
    """`level` units are there; `rate` come back per second, up to `capacity`. Times are seconds.

    A need above the capacity waits for a full bucket and leaves it in debt.

    >>> bucket = Bucket(capacity=10, rate=2, level=1, at=0)
    >>> bucket.wait(5, now=0), bucket.wait(5, now=1)
    (2.0, 1.0)
    """

    capacity: float
    rate: float
    level: float
    at: float

    def level_at(self, now: float) -> float:
        return min(self.capacity, self.level + self.rate * (now - self.at))

    def wait(self, need: float, now: float) -> float:
        missing = min(need, self.capacity) - self.level_at(now)
        return max(0.0, missing / self.rate)

    def take(self, need: float, now: float) -> None:
        self.level, self.at = self.level_at(now) - need, now


class Limits:
    """Who may send now: so many at once, so many requests and tokens per minute, nobody while it is full.

    Used in the loop's thread only.
    """

    def __init__(
        self, concurrency: int, requests_per_minute: int | None = None, tokens_per_minute: int | None = None
    ) -> None:
        self.most = concurrency
        self.allowed = float(concurrency)
        self.running = 0
        self._queue = asyncio.Lock()  # first come, first served
        self._freed = asyncio.Event()
        self._shut_until = 0.0
        self._cut_at = 0.0
        self._own = {
            unit: Bucket(max(1.0, number / 60), number / 60, max(1.0, number / 60), time.monotonic())
            for unit, number in (("requests", requests_per_minute), ("tokens", tokens_per_minute))
            if number is not None
        }
        self._service: dict[str, Bucket] = {}

    @contextlib.asynccontextmanager
    async def turn(self, tokens: int, admit: Callable[[], None]) -> AsyncIterator[None]:
        """A slot, held while one attempt is made. `admit` may still refuse it, by raising."""
        async with self._queue:
            while True:
                if self.running >= int(self.allowed):
                    self._freed.clear()
                    await self._freed.wait()
                elif (pause := self.wait(tokens, time.monotonic())) > 0:
                    await asyncio.sleep(min(pause, 1.0))  # a header may tell better in the meantime
                else:
                    break
            admit()
            now = time.monotonic()
            for unit, bucket in self._buckets():
                bucket.take(1 if unit == "requests" else tokens, now)
            self.running += 1
        try:
            yield
        finally:
            self.running -= 1
            self._freed.set()

    def wait(self, tokens: int, now: float) -> float:
        """Seconds until a request of so many tokens may be sent."""
        waits = [bucket.wait(1 if unit == "requests" else tokens, now) for unit, bucket in self._buckets()]
        return max(self._shut_until - now, *waits, 0.0)

    def crowded(self, started: float, now: float, after: float | None) -> None:
        """The service said "too many" to an attempt begun at `started`: half as many, and not before `after`.

        What was sent before the last cut says nothing about it.
        """
        if started >= self._cut_at:
            self.allowed = max(1.0, self.allowed / 2)
            self._cut_at = now
        self._shut_until = max(self._shut_until, now + (after or 0.0))

    def answered(self, expected: Usage, real: Usage) -> None:
        """One more slot per round trip, and back what was expected but not used."""
        self.allowed = min(float(self.most), self.allowed + 1 / self.allowed)
        unused = expected.tokens_in + expected.tokens_out - real.tokens_in - real.tokens_out
        for unit, bucket in self._buckets():
            if unit != "requests":
                bucket.level = min(bucket.capacity, bucket.level + unused)

    def heard(self, headers: Mapping[str, str], now: float) -> None:
        """What the service says is left, and when it will be full again: it refills evenly until then."""
        for unit, (limit, left, reset) in rate_headers(headers).items():
            if reset <= 0 or left >= limit:
                self._service.pop(unit, None)
                continue
            known = self._service.get(unit)
            level = min(left, known.level_at(now)) if known else left
            self._service[unit] = Bucket(limit, (limit - left) / reset, level, now)

    def _buckets(self) -> list[tuple[str, Bucket]]:
        return [*self._own.items(), *self._service.items()]


def rate_headers(headers: Mapping[str, str]) -> dict[str, tuple[float, float, float]]:
    """Per unit, (limit, left, seconds until it is full again), from either provider's headers.

    Sources: OpenAI's guide to rate limits (`x-ratelimit-limit-requests`, durations such as 6m0s);
    Anthropic's page on rate limits (`anthropic-ratelimit-requests-limit`, RFC 3339 times).

    >>> rate_headers({"x-ratelimit-limit-requests": "60", "x-ratelimit-remaining-requests": "59",
    ...               "x-ratelimit-reset-requests": "1s"})
    {'requests': (60.0, 59.0, 1.0)}
    """
    found = {}
    for unit in ("requests", "tokens", "input-tokens", "output-tokens"):
        for pattern in (f"x-ratelimit-{{}}-{unit}", f"anthropic-ratelimit-{unit}-{{}}"):
            limit, left = (_number(headers.get(pattern.format(word), "")) for word in ("limit", "remaining"))
            reset = _seconds(headers.get(pattern.format("reset"), ""))
            if limit is not None and left is not None and reset is not None:
                found[unit] = (limit, left, reset)
    return found


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _seconds(text: str) -> float | None:
    """A duration ("1.5", "6m0s", "20ms") or a moment ("2026-01-31T12:00:00Z") as seconds from now."""
    if (plain := _number(text)) is not None:
        return plain
    if re.fullmatch(r"(?:[\d.]+(?:ms|d|h|m|s))+", text):
        unit = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
        return sum(float(number) * unit[name] for number, name in re.findall(r"([\d.]+)(ms|d|h|m|s)", text))
    for parse in (datetime.fromisoformat, parsedate_to_datetime):
        with contextlib.suppress(ValueError, TypeError):
            moment = parse(text)
            return (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds()
    return None


def _pause(attempt: int, after: float | None) -> float:
    """Seconds after attempt `attempt`: what the service asked for, else doubling from a half, jittered."""
    if after is not None:
        return after + random.uniform(0, min(1.0, 0.1 * after))
    return min(LONGEST, 0.5 * 2.0 ** (attempt - 1)) * random.uniform(0.75, 1.25)


# ---------------------------------------------------------------- the clients' errors


def explain(error: Exception, key_name: str) -> Response:
    """What an official client's exception means: this request's failure, or `Again`, or `ModelError` raised.

    Both clients' exceptions have one shape: a status error has `status_code`, `response` and `body`; a
    connection error has neither. Anything else is a bug and raised as it is. An account without quota answers
    429 (OpenAI) or 400 (Anthropic); no retry helps it. A prompt that a filter stops (400) is an answer of
    the service: empty, with the finish reason `content_filter`.
    """
    names = {kind.__name__ for kind in type(error).__mro__}
    message = redacted(_message(error), key_name)
    status, response = getattr(error, "status_code", None), getattr(error, "response", None)
    cause = error.__cause__
    if "APITimeoutError" in names and type(cause).__name__ != "ConnectTimeout":
        raise Again(message, kind="timeout") from None
    if "APIConnectionError" in names:  # the aiohttp transport calls a refused connection a timeout
        raise Again(redacted(str(cause or error), key_name), kind="connection") from None
    if not isinstance(status, int) or response is None:
        raise error
    shown = f"{status}: {message}"
    code = _code(error)
    if code == "insufficient_quota" or "credit balance is too low" in message:
        raise ModelError(f"the account behind {key_name} has no quota left ({shown})") from None
    if status in (401, 403):
        raise ModelError(
            f"the key in {key_name} was refused ({shown}). Set {key_name} to a valid one"
        ) from None
    if status == 404:
        raise ModelError(f"no such model or address ({shown}). Check the model's name and base_url") from None
    if status in (408, 409, 429) or status >= 500:
        kind = {429: "rate_limited", 503: "overloaded", 529: "overloaded"}.get(status, "server_error")
        raise Again(shown, retry_after(response.headers), kind) from None
    if code in ("content_filter", "content_policy_violation"):
        return Response(finish_reason="content_filter", usage=Usage(calls=1), trace={"filter": shown})
    return Response.failed("too_large" if status == 413 else "bad_request", shown, usage=Usage(calls=1))


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that `retry-after-ms` or `retry-after` (seconds or a date) asks for."""
    if (exact := _number(headers.get("retry-after-ms", ""))) is not None:
        return max(0.0, exact / 1000)
    seconds = _seconds(headers.get("retry-after", ""))
    return None if seconds is None else max(0.0, seconds)


def _message(error: Exception) -> str:
    """The service's own words where they can be found in the body, else the client's."""
    found = _detail(error).get("message")
    return found if isinstance(found, str) else str(error)


def _code(error: Exception) -> object:
    return _detail(error).get("code")


def _detail(error: Exception) -> Mapping[str, Any]:
    """OpenAI's client unwraps `{"error": {...}}`, Anthropic's does not; other servers send anything."""
    body = getattr(error, "body", None)
    if isinstance(body, Mapping):
        inner = body.get("error", body)
        return inner if isinstance(inner, Mapping) else {"message": str(inner)}
    return {}


def redacted(text: str, key_name: str) -> str:
    """`text` without the key, anything that looks like one, and the bytes of pictures.

    >>> redacted("bad key sk-abc123def456 for data:image/png;base64,iVBORw0KGgo=", "NO_SUCH_KEY")
    'bad key <key> for <picture>'
    """
    key = os.environ.get(key_name, "")
    if len(key) >= 4:
        text = text.replace(key, "<key>")
    text = re.sub(r"\b(?:sk|pk|rk)-[\w*.-]{6,}", "<key>", text)
    text = re.sub(r"(?i)\b(bearer|x-api-key:?) +[\w*.~+/=-]{6,}", r"\1 <key>", text)
    text = re.sub(r"data:[\w/+.-]*;base64,[\w+/=]*", "<picture>", text)
    text = re.sub(r"[A-Za-z0-9+/]{200,}={0,2}", "<bytes>", text)
    return text if len(text) <= 2000 else text[:2000] + "..."
