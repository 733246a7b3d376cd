"""Batch APIs: a whole list handed in at half price, answered within a day, collected whenever.

Shared by the adapters for OpenAI and Anthropic. `Batches` splits a list by the service's limits, hands it
in, waits, and matches what comes back by custom id; `OpenAIBatches` and `AnthropicBatches` say the same
five things to the two official (synchronous) clients. They know batches; they must not know what a body or
a reply looks like inside (the adapters' `body` and `parsed` do), nor where the journal is kept. A list is
what a model is asked at once: a method of three waves waits for three batches, one after the other.

**Nothing is bought twice.** A custom id is the digest of the model's description and of the request. What is
handed in stands in the journal, first without, then with the batch's id, and leaves it only after its
answers were told to the cache. A later life looks each wanted request up in the journal, whatever else it
asks for, and hands in only the rest. Where a process died, or the connection broke, while a batch was being
created, the service is asked whether it exists:

- OpenAI: exactly, by a mark in the batch's metadata.
- Anthropic keeps no metadata. A batch of as many requests, created since, that no other journal entry
  names, is waited for and taken for ours if its first result has one of our ids. A stranger's batch of the
  same size can thus cost time, never money.

Not guaranteed: two processes that run the same model on the same requests at the same moment, and a service
that does not list a batch it has just created. Without a journal (no cache) nothing is resumed.

Sources: developers.openai.com "Batch API" (50,000 requests and 200 MB a file; output and error file; a day)
and platform.claude.com "Batch processing" (100,000 requests or 256 MB; results in any order, kept 29 days).
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import json
import sys
import tempfile
import time
import uuid
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any, Protocol, TypeVar

from adapters._wire import Again, explain, redacted
from harness import events
from harness.errors import BudgetSpent, FoveaError, ModelError, PictureError
from harness.types import Journal, Request, Response, Usage, digest

if TYPE_CHECKING:
    from anthropic import Anthropic
    from openai import OpenAI

T = TypeVar("T")
Written = tuple[Mapping[str, Any], Sequence[str | None]]
"""The JSON that asks for an answer, and what was done to each of its pictures (None: nothing)."""
Write = Callable[[Request], Written | Response]
"""A request as JSON, or what keeps it from being asked. Raises PictureError."""
Read = Callable[[Request, dict[str, Any], Sequence[str | None]], Response]
"""A reply's JSON as a response, priced as of a batch. Raises ValueError for what is no answer."""
Item = tuple[str, dict[str, Any] | Response]
"""A custom id, and the reply's JSON or the failure in its place."""

Notes = dict[str, Sequence[str | None]]
"""By custom id, what was done to the pictures."""
Entry = dict[str, Any]
"""What the journal says of a batch: mark, since (when it was handed in), ids, notes, batch, missed."""

CLOCKS = 600.0
"""Seconds by which a service's clock may differ from ours."""
KEPT = 30 * 86400.0
"""Seconds for which the services keep results, at most."""
LOOKS = 50
"""Looks that may fail in a row, over an hour and a half: a batch takes longer than a line may be down."""


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@dataclass(frozen=True)
class State:
    """Where a batch stands: whether it has ended, and how many of its requests have."""

    ended: bool
    done: int
    total: int


class Service(Protocol):
    """What the two APIs share. Its methods raise the official client's errors."""

    most_requests: int
    most_bytes: int
    key_name: str

    def line(self, custom_id: str, body: Mapping[str, Any]) -> bytes:
        """One request of a batch, as a JSON line."""

    def upload(self, lines: IO[bytes]) -> Any:
        """What `create` needs of the lines. Buys nothing."""

    def create(self, uploaded: Any, mark: str) -> str:
        """Make ONE attempt to create a batch; its id."""

    def find(self, entry: Mapping[str, Any], taken: Collection[str]) -> Iterator[tuple[str, bool]]:
        """Batches that may be the one that `entry` tells of, each with whether it certainly is."""

    def look(self, batch: str) -> State:
        """Where it stands."""

    def results(self, batch: str, custom_ids: Sequence[str]) -> Iterator[Item]:
        """What became of an ended batch's requests, in any order. custom_ids: in its lines' order."""


@dataclass
class Batches:
    """Requests in, answers out, through one service's batches.

    owner: digest of the model's description. retries: attempts beyond the first for whatever is not a
    question of waiting. first, longest: seconds between two looks at a batch. say: hears how it goes.
    """

    service: Service
    owner: str
    journal: Journal | None = None
    retries: int = 6
    first: float = 1.0
    longest: float = 120.0
    say: Callable[[str], None] = _say
    _shown: dict[str, int] = field(default_factory=dict, repr=False)

    def answer(
        self, requests: Sequence[Request], write: Write, read: Read, expect: Callable[[Request], Usage]
    ) -> list[Response]:
        """One response per request, in order; identical requests are asked once.

        The most that everything new may cost (`expect`) is reserved before it is handed in. Where the budget
        ends in the midst of the list, what fits is asked, collected, and then BudgetSpent raised. An item
        that expired, was cancelled or met an error of the service is a failure that may be retried. Raises
        ModelError for what concerns all, KeyboardInterrupt while waiting; batches handed in live on.
        """
        call = _Call(write, read, expect)
        ids = [call.identified(self.owner, request) for request in requests]
        try:
            tickets = self._known(call)
            under_way = {key for ticket in tickets for key in ticket.ids}
            call.reserve(under_way)  # bought already: collected whatever the budget says
            fresh = call.reserve(call.wanted.keys() - under_way)
            tickets += self._handed_in(call, fresh)
            self._collect(call, tickets)
        finally:
            call.release()
        if call.spent is not None and call.wanted.keys() - call.answers.keys():
            raise call.spent
        return [call.answers[key] for key in ids]

    # -------------------------------------------------------- handing in

    def _known(self, call: _Call) -> list[_Ticket]:
        """Batches of an earlier life that hold something wanted."""
        tickets = []
        for key, entry in self._entries():
            if time.time() - entry["since"] > KEPT:
                self._forget(key)
                continue
            if call.wanted.keys().isdisjoint(entry["ids"]):
                continue
            batch = entry["batch"] or self._found(entry)
            if batch is None:
                self._forget(key)  # its process died before the service heard of it
                continue
            if not entry["batch"]:
                self._keep(key, entry | {"batch": batch})
            self.say(f"collecting batch {batch}, handed in before")
            tickets.append(_Ticket(key, batch, entry["ids"], entry["notes"]))
        return tickets

    def _handed_in(self, call: _Call, fresh: Sequence[str]) -> Iterator[_Ticket]:
        """The requests as batches, none above the service's limits; the lines of one at a time on disk."""
        todo = deque(fresh)
        while todo:
            with tempfile.TemporaryFile() as lines:
                notes = self._filled(call, todo, lines)
                if not notes:
                    return
                ids, mark = list(notes), uuid.uuid4().hex
                key = f"batch:{self.owner}:{mark}"
                entry: Entry = {
                    "mark": mark,
                    "since": time.time(),
                    "ids": ids,
                    "batch": None,
                    "missed": False,
                }
                entry["notes"] = {custom_id: note for custom_id, note in notes.items() if any(note)}
                batch = self._created(key, entry, lines)
            if isinstance(batch, Response):
                for custom_id in ids:
                    call.take(custom_id, batch)
            else:
                self.say(f"batch {batch} handed in: {len(ids)} requests")
                yield _Ticket(key, batch, ids, notes)

    def _filled(self, call: _Call, todo: deque[str], lines: IO[bytes]) -> Notes:
        """Take requests from `todo` into `lines` until a batch is full; those that went in."""
        notes: Notes = {}
        while todo and len(notes) < self.service.most_requests:
            asked = call.written(todo[0])
            if isinstance(asked, Response):
                call.take(todo.popleft(), asked)
                continue
            line = self.service.line(todo[0], asked[0])
            if len(line) > self.service.most_bytes:
                message = f"{len(line)} bytes; a batch takes {self.service.most_bytes} at most"
                call.take(todo.popleft(), Response.failed("too_large", message))
                continue
            if lines.tell() + len(line) > self.service.most_bytes:
                break
            lines.write(line)
            notes[todo.popleft()] = asked[1]
        return notes

    def _created(self, key: str, entry: Entry, lines: IO[bytes]) -> str | Response:
        """A batch's id, or why the service will not have it. In the journal before and after."""
        uploaded = self._asked(lambda: self.service.upload(lines))
        if isinstance(uploaded, Response):
            return uploaded
        create = functools.partial(self.service.create, uploaded, entry["mark"])
        self._keep(key, entry)
        for attempt in itertools.count(1):
            try:
                batch = self._once(create)
                break
            except Again as again:
                # "Too many" is a clear no; of anything else nobody knows whether the batch was created.
                found = None if again.kind == "rate_limited" else self._found(entry)
                if found is not None:
                    batch = found
                    break
                if attempt > self.retries:
                    batch = Response.failed(again.kind, str(again), retry=True)
                    break
                self._wait(again.after or self._delay(attempt))
        if isinstance(batch, Response):
            self._forget(key)
        else:
            self._keep(key, entry | {"batch": batch})
        return batch

    def _found(self, entry: Mapping[str, Any]) -> str | None:
        """The batch that an entry without an id led to, if any."""
        taken = {other["batch"] for _, other in self._entries()}
        candidates = self._asked(lambda: list(self.service.find(entry, taken)))
        if isinstance(candidates, Response):
            raise ModelError(f"cannot tell whether a batch exists: {_words(candidates)}. Repeat the command")
        for batch, certain in candidates:
            if certain:
                return batch
            self.say(f"batch {batch} may be ours; its first result will tell")
            with contextlib.suppress(_Gone):
                if self._begins_with(batch, entry["ids"]):
                    return batch
        return None

    def _begins_with(self, batch: str, ids: Sequence[str]) -> bool:
        for look in itertools.count(1):
            if self._ended(batch):
                break
            self._wait(self._delay(look))
        first = self._asked(lambda: next(self.service.results(batch, ids), None))
        return isinstance(first, tuple) and first[0] in ids

    # -------------------------------------------------------- collecting

    def _collect(self, call: _Call, tickets: Sequence[_Ticket]) -> None:
        """Every batch's answers as soon as it has ended, whichever is first."""
        waiting = list(tickets)
        try:
            for look in itertools.count(1):
                waiting = [ticket for ticket in waiting if not self._collected(call, ticket)]
                if not waiting:
                    return
                self._wait(self._delay(look))
        except KeyboardInterrupt:
            then = "nothing can collect them without a cache"
            if self.journal is not None:
                then = "repeat the command to collect their answers"
            self.say(f"the batches handed in go on without us; {then}")
            raise

    def _collected(self, call: _Call, ticket: _Ticket) -> bool:
        try:
            if not self._ended(ticket.batch):
                return False
            self._fetch(call, ticket)
        except _Gone:
            self._gone(call, ticket)
        return True

    def _ended(self, batch: str) -> bool:
        state = self._asked(lambda: self.service.look(batch), LOOKS)
        if isinstance(state, Response):
            raise _uncollected(batch, state)
        if self._shown.get(batch) != state.done or state.ended:
            self._shown[batch] = state.done
            self.say(f"batch {batch}: {state.done} of {state.total} requests ended")
        return state.ended

    def _fetch(self, call: _Call, ticket: _Ticket) -> None:
        def stream() -> bool:
            for custom_id, reply in self.service.results(ticket.batch, ticket.ids):
                call.take(custom_id, self._read(call, custom_id, reply, ticket.notes))
            return True

        ended = self._asked(stream)
        if isinstance(ended, Response):
            raise _uncollected(ticket.batch, ended)
        for custom_id in ticket.ids:
            call.take(custom_id, Response.failed("no_result", f"batch {ticket.batch} has none", retry=True))
        self._clear(call, ticket)

    def _read(
        self, call: _Call, custom_id: str, reply: dict[str, Any] | Response, notes: Notes
    ) -> Response | None:
        request = call.wanted.get(custom_id)
        if request is None or custom_id in call.answers:
            return None
        if isinstance(reply, dict):
            try:
                return call.read(request, reply, notes.get(custom_id) or [None] * len(request.images))
            except ValueError as error:
                reply = Response.failed("malformed_answer", str(error), retry=True)
        if reply.failure is None:
            return reply
        message = redacted(reply.failure.message, self.service.key_name)
        return dataclasses.replace(reply, failure=dataclasses.replace(reply.failure, message=message))

    def _gone(self, call: _Call, ticket: _Ticket) -> None:
        """The service knows no such batch: the wrong key, or results kept no longer."""
        entry = self.journal.get(ticket.key) if self.journal else None
        message = f"batch {ticket.batch} does not exist, or not for the key in {self.service.key_name}"
        if isinstance(entry, dict) and not entry["missed"]:
            self._keep(ticket.key, entry | {"missed": True})
            raise ModelError(
                f"{message}. Set the key that handed it in. Repeating the command as it is gives the batch "
                f"up, and buys its {len(ticket.ids)} requests again"
            )
        for custom_id in ticket.ids:
            call.take(custom_id, Response.failed("batch_gone", message, retry=True))
        self._clear(call, ticket)

    # -------------------------------------------------------- the journal

    def _entries(self) -> list[tuple[str, dict[str, Any]]]:
        if self.journal is None:
            return []
        keys = [key for key in self.journal.keys() if key.startswith(f"batch:{self.owner}:")]  # noqa: SIM118
        return [(key, entry) for key in keys if isinstance(entry := self.journal.get(key), dict)]

    def _keep(self, key: str, entry: Mapping[str, Any]) -> None:
        if self.journal is not None:
            self.journal.put(key, entry)

    def _forget(self, key: str) -> None:
        if self.journal is not None:
            self.journal.delete(key)

    def _clear(self, call: _Call, ticket: _Ticket) -> None:
        """What was collected leaves the journal; places are kept, for errors that name a line."""
        left = ["" if custom_id in call.answers else custom_id for custom_id in ticket.ids]
        entry = self.journal.get(ticket.key) if self.journal else None
        if isinstance(entry, dict) and any(left):
            self._keep(ticket.key, entry | {"ids": left})
        else:
            self._forget(ticket.key)

    # -------------------------------------------------------- asking and waiting

    def _asked(self, ask: Callable[[], T], retries: int | None = None) -> T | Response:
        """What `ask` returns, tried again while that may help; else a failure."""
        most = self.retries if retries is None else retries
        for attempt in itertools.count(1):
            try:
                return self._once(ask)
            except Again as again:
                if attempt > most:
                    return Response.failed(again.kind, str(again), retry=True)
                self._wait(again.after or self._delay(attempt))
        raise AssertionError

    def _once(self, ask: Callable[[], T]) -> T | Response:
        try:
            return ask()
        except (FoveaError, Again, _Gone):
            raise
        except Exception as error:
            names = {kind.__name__ for kind in type(error).__mro__}
            if "TransportError" in names:  # httpx2's own, from the midst of a stream
                raise Again(str(error), kind="connection") from None
            return explain(error, self.service.key_name)

    def _delay(self, attempt: int) -> float:
        return min(self.longest, self.first * 1.5 ** min(attempt - 1, 40))

    def _wait(self, seconds: float) -> None:
        if events.stopping().wait(seconds):
            raise KeyboardInterrupt


@dataclass(frozen=True)
class _Ticket:
    """A batch under way: its journal key, its id, and the custom ids of its lines ("": collected)."""

    key: str
    batch: str
    ids: Sequence[str]
    notes: Notes


class _Gone(Exception):
    """The service does not know a batch, or keeps its results no longer."""


class _Call:
    """One list of requests, by custom id: what is wanted, what is reserved, what is there."""

    def __init__(self, write: Write, read: Read, expect: Callable[[Request], Usage]) -> None:
        self.write, self.read, self.expect = write, read, expect
        self.wanted: dict[str, Request] = {}
        self.answers: dict[str, Response] = {}
        self.spent: BudgetSpent | None = None
        self._reserved: dict[str, float | None] = {}

    def identified(self, owner: str, request: Request) -> str:
        """The request's custom id: 64 characters of [0-9a-f], which both services take."""
        try:
            custom_id = digest([owner, request.digest()])
        except PictureError as error:
            custom_id = f"unreadable-{len(self.answers)}"
            self.answers[custom_id] = Response.failed(error.kind, str(error))
        else:
            self.wanted[custom_id] = request
        return custom_id

    def reserve(self, ids: Collection[str]) -> list[str]:
        """Which of `ids`, in the list's order, the budget allows; none after the first that it does not."""
        allowed = []
        for custom_id in (custom_id for custom_id in self.wanted if custom_id in ids):
            try:
                if self.spent is not None:
                    break
                expected = self.expect(self.wanted[custom_id]).dollars
                events.reserve(expected)
            except PictureError as error:
                self.answers[custom_id] = Response.failed(error.kind, str(error))
            except BudgetSpent as error:
                self.spent = error
            else:
                self._reserved[custom_id] = expected
                allowed.append(custom_id)
        return allowed

    def written(self, custom_id: str) -> Written | Response:
        try:
            return self.write(self.wanted[custom_id])
        except PictureError as error:
            return Response.failed(error.kind, str(error))

    def take(self, custom_id: str, response: Response | None) -> None:
        """Count an answer and tell who listens, once; others' answers in the same batch are let pass."""
        request = self.wanted.get(custom_id)
        if response is None or request is None or custom_id in self.answers:
            return
        events.report(response.usage)
        if custom_id in self._reserved:
            events.release(self._reserved.pop(custom_id))
        self.answers[custom_id] = response
        if response.failure is None:
            events.arrived(request, response)

    def release(self) -> None:
        for expected in self._reserved.values():
            events.release(expected)
        self._reserved.clear()


def _uncollected(batch: str, why: Response) -> ModelError:
    return ModelError(f"batch {batch}: {_words(why)}. Repeat the command to collect its answers")


def _words(response: Response) -> str:
    return response.failure.message if response.failure else response.text


# ---------------------------------------------------------------- OpenAI


@dataclass
class OpenAIBatches:
    """OpenAI's Batch API: a file of lines in, a file of answers and a file of errors out.

    client: without retries of its own (`max_retries=0`), so that a batch is never created twice.
    """

    client: OpenAI
    key_name: str = "OPENAI_API_KEY"
    most_requests: int = 50_000
    most_bytes: int = 200_000_000

    def line(self, custom_id: str, body: Mapping[str, Any]) -> bytes:
        url = "/v1/chat/completions"
        return _json_line({"custom_id": custom_id, "method": "POST", "url": url, "body": body})

    def upload(self, lines: IO[bytes]) -> str:
        lines.seek(0)
        return self.client.files.create(file=("requests.jsonl", lines), purpose="batch").id

    def create(self, uploaded: str, mark: str) -> str:
        batch = self.client.batches.create(
            input_file_id=uploaded,
            endpoint="/v1/chat/completions",
            completion_window="24h",
            metadata={"fovea": mark},
        )
        return batch.id

    def find(self, entry: Mapping[str, Any], taken: Collection[str]) -> Iterator[tuple[str, bool]]:
        for batch in self.client.batches.list(limit=100):  # newest first
            if batch.created_at < entry["since"] - CLOCKS:
                return
            if (batch.metadata or {}).get("fovea") == entry["mark"]:
                yield batch.id, True
                return

    def look(self, batch: str) -> State:
        with _known_to_the_service():
            found = self.client.batches.retrieve(batch)
        counts = found.request_counts
        return State(
            found.status in ("completed", "failed", "expired", "cancelled"),
            counts.completed + counts.failed if counts else 0,
            counts.total if counts else 0,
        )

    def results(self, batch: str, custom_ids: Sequence[str]) -> Iterator[Item]:
        with _known_to_the_service():
            found = self.client.batches.retrieve(batch)
        if found.status == "failed":
            yield from _refused(found.errors.data or [] if found.errors else [], custom_ids)
        for file in (found.output_file_id, found.error_file_id):
            if file is None:
                continue
            with (
                _known_to_the_service(),
                self.client.files.with_streaming_response.content(file) as reply,
            ):
                for line in reply.iter_lines():
                    if line.strip():
                        item = json.loads(line)
                        yield item["custom_id"], openai_item(item)


def openai_item(item: Mapping[str, Any]) -> dict[str, Any] | Response:
    """The reply in one line of an output or error file, or the failure in its place.

    >>> expired = {"custom_id": "a", "response": None, "error": {"code": "batch_expired", "message": "late"}}
    >>> openai_item(expired).failure
    Failure(kind='expired', message='batch_expired: late', retry=True)
    """
    reply = item.get("response") or {}
    status, content = reply.get("status_code"), reply.get("body") or {}
    if status == 200:
        return dict(content)
    error = item.get("error") or (content.get("error") if isinstance(content, Mapping) else None) or {}
    code, said = error.get("code"), error.get("message") or "no reason given"
    if code in ("content_filter", "content_policy_violation"):
        return Response(finish_reason="content_filter", usage=Usage(calls=1), trace={"filter": said})
    if status is None:
        kind = {"batch_expired": "expired", "batch_cancelled": "cancelled"}.get(str(code), "no_result")
        return Response.failed(kind, f"{code}: {said}", retry=True)
    if status in (408, 409, 429) or status >= 500:
        kind = "rate_limited" if status == 429 else "server_error"
        return Response.failed(kind, f"{status}: {said}", retry=True)
    return Response.failed("bad_request", f"{status}: {said}")


def _refused(errors: Sequence[Any], custom_ids: Sequence[str]) -> Iterator[Item]:
    """A file that failed its validation: the lines that are to blame, and the rest, which may try again.

    Where no line is to blame, a limit of the account (`token_limit_exceeded`) passes; anything else stays.
    """
    blamed = {error.line: error.message or error.code for error in errors if error.line is not None}
    said = "; ".join(f"{error.code}: {error.message}" for error in errors) or "no reason given"
    passing = bool(blamed) or any("limit" in (error.code or "") for error in errors)
    for number, custom_id in enumerate(custom_ids, start=1):
        if number in blamed:
            yield custom_id, Response.failed("bad_request", f"{blamed[number]}")
        else:
            yield custom_id, Response.failed("batch_refused", said, retry=passing)


# ---------------------------------------------------------------- Anthropic


@dataclass
class AnthropicBatches:
    """Anthropic's Message Batches: requests in, a stream of results out.

    client: without retries of its own (`max_retries=0`), so that a batch is never created twice.
    """

    client: Anthropic
    key_name: str = "ANTHROPIC_API_KEY"
    most_requests: int = 100_000
    most_bytes: int = 255_000_000  # 256 MB with what goes around the lines

    def line(self, custom_id: str, body: Mapping[str, Any]) -> bytes:
        return _json_line({"custom_id": custom_id, "params": body})

    def upload(self, lines: IO[bytes]) -> list[Any]:
        lines.seek(0)
        return [json.loads(line) for line in lines]

    def create(self, uploaded: list[Any], mark: str) -> str:
        return self.client.messages.batches.create(requests=uploaded).id

    def find(self, entry: Mapping[str, Any], taken: Collection[str]) -> Iterator[tuple[str, bool]]:
        for batch in self.client.messages.batches.list(limit=100):  # newest first
            if batch.created_at.timestamp() < entry["since"] - CLOCKS:
                return
            if batch.id not in taken and _total(batch.request_counts) == len(entry["ids"]):
                yield batch.id, False

    def look(self, batch: str) -> State:
        with _known_to_the_service():
            found = self.client.messages.batches.retrieve(batch)
        total = _total(found.request_counts)
        if found.archived_at is not None:
            raise _Gone
        return State(found.processing_status == "ended", total - found.request_counts.processing, total)

    def results(self, batch: str, custom_ids: Sequence[str]) -> Iterator[Item]:
        with _known_to_the_service():
            lines = self.client.messages.batches.results(batch)
        with contextlib.closing(lines):
            for item in lines:
                yield item.custom_id, anthropic_item(item.result.to_dict(mode="json"))


def anthropic_item(result: Mapping[str, Any]) -> dict[str, Any] | Response:
    """The reply in one result, or the failure in its place.

    >>> anthropic_item({"type": "canceled"}).failure
    Failure(kind='cancelled', message='canceled in its batch', retry=True)
    """
    if result["type"] == "succeeded":
        return dict(result["message"])
    if result["type"] != "errored":
        kind = {"canceled": "cancelled"}.get(result["type"], result["type"])
        return Response.failed(kind, f"{result['type']} in its batch", retry=True)
    error = result["error"].get("error") or {}
    said = f"{error.get('type')}: {error.get('message')}"
    kinds = {
        "rate_limit_error": "rate_limited",
        "overloaded_error": "overloaded",
        "api_error": "server_error",
        "timeout_error": "timeout",
    }
    kind = kinds.get(error.get("type", ""), "bad_request")
    return Response.failed(kind, said, retry=kind != "bad_request")


def _total(counts: Any) -> int:
    return int(counts.processing + counts.succeeded + counts.errored + counts.canceled + counts.expired)


# ---------------------------------------------------------------- both


@contextlib.contextmanager
def _known_to_the_service() -> Iterator[None]:
    """Turns both clients' 404 into `_Gone`: here it is a batch or its file that is missing, not a model."""
    try:
        yield
    except Exception as error:
        if getattr(error, "status_code", None) == 404:
            raise _Gone from None
        raise


def _json_line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace") + b"\n"
