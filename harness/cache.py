"""Answers that were already paid for: a SQLite file wrapped around the innermost model.

Keyed by the model's description and the request's digest (pixels, words, decoding, probes), committed
the moment an answer arrives, never holding a failure. An ablation that changes a method's last stage pays
for that stage only; after a crash, nothing that arrived is computed again. A question that another thread
of this process has already asked is not asked again, but waited for. A cached response keeps its original
usage (what it costs); what was *spent* is counted by the adapters and so counts new calls only.

The same file holds a `Journal` per adapter that needs to remember something across runs.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import sqlite3
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness import events
from harness.errors import PictureError, StoreError
from harness.types import (
    Capability,
    ImportanceMap,
    Json,
    Model,
    Pace,
    Request,
    Response,
    Usage,
    digest,
)

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS responses (key TEXT PRIMARY KEY, response TEXT NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS journal (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID",
)
_BATCH = 500  # SQLite's default limit of variables is 32,766; this keeps statements short
_LOOK = 0.2  # seconds between looks at whether the run is ending


class Answers:
    """The SQLite file. Safe to share between threads and processes (WAL)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._asked: dict[str, Future[Response | None]] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(
                path, timeout=60, isolation_level=None, check_same_thread=False
            )
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=NORMAL")
            for table in _SCHEMA:
                self._connection.execute(table)
        except (OSError, sqlite3.Error) as error:
            raise self._error("opened", error) from None

    def get(self, keys: Sequence[str]) -> dict[str, Response]:
        """The answers that are there, by key."""
        found: dict[str, Response] = {}
        for start in range(0, len(keys), _BATCH):
            part = keys[start : start + _BATCH]
            marks = ",".join("?" * len(part))
            rows = self._rows(f"SELECT key, response FROM responses WHERE key IN ({marks})", *part)
            found.update((key, response_from_json(json.loads(text))) for key, text in rows)
        return found

    def put(self, key: str, response: Response) -> None:
        """Keep one answer; it is on disk when this returns."""
        self._write(
            "INSERT OR REPLACE INTO responses VALUES (?, ?)", key, json.dumps(response_to_json(response))
        )

    def claim(self, keys: Iterable[str]) -> tuple[list[str], dict[str, Future[Response | None]]]:
        """Which of `keys` the caller is to ask, and those that another thread is asking.

        Whoever claimed a key settles it. A future of None is a failure: whoever waited claims it again.
        """
        mine, theirs = [], {}
        with self._lock:
            for key in keys:
                if key in self._asked:
                    theirs[key] = self._asked[key]
                else:
                    self._asked[key] = Future()
                    mine.append(key)
        return mine, theirs

    def settle(self, key: str, response: Response | None) -> None:
        """Hand a claimed key's answer to those who wait for it."""
        with self._lock:
            future = self._asked.pop(key)
        future.set_result(response)

    def size(self) -> tuple[int, int]:
        """(answers, bytes on disk)."""
        with self._lock:
            (number,) = self._connection.execute("SELECT COUNT(*) FROM responses").fetchone()
        parts = self.path.parent.glob(self.path.name + "*")
        return number, sum(part.stat().st_size for part in parts)

    def clear(self) -> None:
        """Forget every answer and give the space back. Journals stay: what they track is still under way."""
        with self._lock:
            self._connection.execute("DELETE FROM responses")
            self._connection.execute("VACUUM")

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def journal(self, name: str) -> Journal:
        """The notes of the adapter called `name`."""
        return Journal(self, name)

    def _rows(self, query: str, *values: str) -> list[tuple[Any, ...]]:
        try:
            with self._lock:
                return self._connection.execute(query, values).fetchall()
        except sqlite3.Error as error:
            raise self._error("read", error) from None

    def _write(self, statement: str, *values: str) -> None:
        try:
            with self._lock:
                self._connection.execute(statement, values)
        except sqlite3.Error as error:
            raise self._error("written", error) from None

    def _error(self, what: str, error: Exception) -> StoreError:
        return StoreError(
            f"the answer cache {self.path} cannot be {what}: {error}. Free or unlock the disk, remove "
            "the file if it is damaged, or run with --no-cache"
        )


@dataclass(frozen=True)
class Journal:
    """A small store of JSON values by key that outlives a run: what an adapter has under way elsewhere."""

    answers: Answers
    name: str

    def get(self, key: str) -> Json:
        """The value of `key`, or None."""
        rows = self.answers._rows("SELECT value FROM journal WHERE key = ?", self._full(key))
        return None if not rows else json.loads(rows[0][0])

    def put(self, key: str, value: Json) -> None:
        """Keep a value; it is on disk when this returns."""
        self.answers._write(
            "INSERT OR REPLACE INTO journal VALUES (?, ?)", self._full(key), json.dumps(value)
        )

    def delete(self, key: str) -> None:
        """Forget a key, known or not."""
        self.answers._write("DELETE FROM journal WHERE key = ?", self._full(key))

    def keys(self) -> list[str]:
        """All keys, sorted."""
        start = self._full("")
        rows = self.answers._rows("SELECT key FROM journal ORDER BY key")
        return [key.removeprefix(start) for (key,) in rows if key.startswith(start)]

    def _full(self, key: str) -> str:
        return f"{self.name}/{key}"


@dataclass(frozen=True)
class InPlace:
    """Stands in a model's place and looks like it; only how it answers is its own."""

    model: Model

    @property
    def offers(self) -> frozenset[Capability]:
        return self.model.offers

    @property
    def pace(self) -> Pace:
        return self.model.pace

    @property
    def why_not(self) -> str:
        return str(getattr(self.model, "why_not", ""))

    def describe(self) -> dict[str, Any]:
        return self.model.describe()


@dataclass(frozen=True)
class Cached(InPlace):
    """A model that remembers. Identical requests are sent once, also those of several threads."""

    answers: Answers

    def generate(self, requests: Sequence[Request]) -> list[Response]:
        owner = digest(self.model.describe())
        keys = [_key(owner, request) for request in requests]
        by_key = {key: request for key, request in zip(keys, requests, strict=True) if key is not None}
        unkeyed = [index for index, key in enumerate(keys) if key is None]
        known: dict[str, Response] = {}
        nameless: list[Response] = []
        while True:
            mine, theirs = self.answers.claim(key for key in by_key if key not in known)
            strays = [] if nameless else [requests[index] for index in unkeyed]
            nameless += self._ask(owner, mine, by_key, strays, known)
            for key, future in theirs.items():
                if (response := _waited(future)) is not None:
                    known[key] = response
            if len(known) == len(by_key):
                break
        loose = dict(zip(unkeyed, nameless, strict=True))
        return [loose[index] if key is None else known[key] for index, key in enumerate(keys)]

    def _ask(
        self,
        owner: str,
        mine: Sequence[str],
        by_key: Mapping[str, Request],
        strays: Sequence[Request],
        known: dict[str, Response],
    ) -> list[Response]:
        """Put the answers of the claimed keys into `known`, from the file or the model; those of `strays`
        come back. Every claim is settled, whatever happens."""
        open_claims = set(mine)

        def keep(request: Request, response: Response) -> None:
            key = _key(owner, request)
            if key in open_claims and response.failure is None:
                self.answers.put(key, response)
                settle(key, response)

        def settle(key: str, response: Response | None) -> None:
            open_claims.remove(key)
            self.answers.settle(key, response)

        try:
            for key, response in self.answers.get(mine).items():
                known[key] = response
                settle(key, response)
            missing = [key for key in mine if key in open_claims]
            asked = [by_key[key] for key in missing] + list(strays)
            if not asked:
                return []
            with events.listening(keep):
                fresh = self.model.generate(asked)
            for request, response in zip(asked, fresh, strict=True):
                keep(request, response)
            known.update(zip(missing, fresh, strict=False))
            return fresh[len(missing) :]
        finally:
            for key in tuple(open_claims):
                settle(key, None)


def _waited(future: Future[Response | None]) -> Response | None:
    """The answer that another thread is asking for; None where it got none."""
    stop = events.stopping()
    while not stop.is_set():
        with contextlib.suppress(TimeoutError):
            return future.result(timeout=_LOOK)
    raise KeyboardInterrupt


def _key(owner: str, request: Request) -> str | None:
    try:
        return digest([owner, request.digest()])
    except PictureError:
        return None  # unreadable pixels: the model says so in its own response


def response_to_json(response: Response) -> dict[str, Any]:
    """A response as JSON; maps as base64 float32."""
    return {
        "text": response.text,
        "finish_reason": response.finish_reason,
        "usage": dataclasses.asdict(response.usage),
        "trace": response.trace,
        "maps": [
            {
                "shape": list(item.values.shape),
                "rectangle": list(item.rectangle),
                "values": base64.b64encode(item.values.astype("<f4").tobytes()).decode(),
            }
            for item in response.maps
        ],
        "option_nll": response.option_nll,
    }


def response_from_json(stored: dict[str, Any]) -> Response:
    """The response that `response_to_json` wrote."""
    return Response(
        text=stored["text"],
        finish_reason=stored["finish_reason"],
        usage=Usage(**stored["usage"]),
        trace=stored["trace"],
        maps=tuple(_map_from_json(item) for item in stored["maps"]),
        option_nll=tuple((nll, tokens) for nll, tokens in stored["option_nll"]),
    )


def _map_from_json(item: dict[str, Any]) -> ImportanceMap:
    import numpy as np

    values = np.frombuffer(base64.b64decode(item["values"]), dtype="<f4").reshape(item["shape"])
    x1, y1, x2, y2 = item["rectangle"]
    return ImportanceMap(values.astype(np.float32), (x1, y1, x2, y2))
