"""Answers that were already paid for: a SQLite file wrapped around the innermost model.

Keyed by the model's description and the request's digest (pixels, words, decoding, probes), committed
per answer, never holding a failure. An ablation that changes a method's last stage pays for that stage
only; after a crash, nothing that arrived is computed again. A cached response keeps its original usage
(what it costs); what was *spent* is counted by the adapters and so counts new calls only.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import sqlite3
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import PictureError, StoreError
from harness.types import (
    Capability,
    ImportanceMap,
    Model,
    Pace,
    Request,
    Response,
    Usage,
    digest,
)

_SCHEMA = "CREATE TABLE IF NOT EXISTS responses (key TEXT PRIMARY KEY, response TEXT NOT NULL) WITHOUT ROWID"
_BATCH = 500  # SQLite's default limit of variables is 32,766; this keeps statements short


class Answers:
    """The SQLite file. Safe to share between threads and processes (WAL)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(
                path, timeout=60, isolation_level=None, check_same_thread=False
            )
            self._connection.execute("PRAGMA journal_mode=WAL")
            self._connection.execute("PRAGMA synchronous=NORMAL")
            self._connection.execute(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise self._error("opened", error) from None

    def get(self, keys: Sequence[str]) -> dict[str, Response]:
        """The answers that are there, by key."""
        found: dict[str, Response] = {}
        try:
            for start in range(0, len(keys), _BATCH):
                part = keys[start : start + _BATCH]
                marks = ",".join("?" * len(part))
                query = f"SELECT key, response FROM responses WHERE key IN ({marks})"
                with self._lock:
                    rows = self._connection.execute(query, part).fetchall()
                found.update((key, response_from_json(json.loads(text))) for key, text in rows)
        except sqlite3.Error as error:
            raise self._error("read", error) from None
        return found

    def put(self, key: str, response: Response) -> None:
        """Keep one answer; it is on disk when this returns."""
        try:
            with self._lock:
                self._connection.execute(
                    "INSERT OR REPLACE INTO responses VALUES (?, ?)",
                    (key, json.dumps(response_to_json(response))),
                )
        except sqlite3.Error as error:
            raise self._error("written", error) from None

    def size(self) -> tuple[int, int]:
        """(answers, bytes on disk)."""
        with self._lock:
            (number,) = self._connection.execute("SELECT COUNT(*) FROM responses").fetchone()
        parts = self.path.parent.glob(self.path.name + "*")
        return number, sum(part.stat().st_size for part in parts)

    def clear(self) -> None:
        """Forget every answer and give the space back."""
        with self._lock:
            self._connection.execute("DELETE FROM responses")
            self._connection.execute("VACUUM")

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def _error(self, what: str, error: Exception) -> StoreError:
        return StoreError(
            f"the answer cache {self.path} cannot be {what}: {error}. Free or unlock the disk, remove "
            "the file if it is damaged, or run with --no-cache"
        )


@dataclass(frozen=True)
class Cached:
    """A model that remembers. Identical requests of one list are sent once."""

    model: Model
    answers: Answers

    @property
    def offers(self) -> frozenset[Capability]:
        return self.model.offers

    @property
    def pace(self) -> Pace:
        return self.model.pace

    def describe(self) -> dict[str, Any]:
        return self.model.describe()

    def generate(self, requests: Sequence[Request]) -> list[Response]:
        owner = digest(self.model.describe())
        keys = [_key(owner, request) for request in requests]
        known = self.answers.get([key for key in keys if key is not None])
        asked: dict[str, int] = {}
        missing = []
        for index, key in enumerate(keys):
            if key is None:
                missing.append(index)
            elif key not in known and key not in asked:
                asked[key] = index
                missing.append(index)
        fresh = self.model.generate([requests[index] for index in missing]) if missing else []
        answers: dict[int, Response] = dict(zip(missing, fresh, strict=True))
        for index, response in answers.items():
            key = keys[index]
            if key is not None:
                known[key] = response
                if response.failure is None:
                    self.answers.put(key, response)
        return [answers[i] if key is None else known[key] for i, key in enumerate(keys)]


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
