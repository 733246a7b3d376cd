"""What was spent, counted where it is spent: a counter in a context variable.

Adapters report each call as it ends; the progress line and budgets read the sum. It knows neither who
reports nor who reads. A thread started with `contextvars.copy_context()` reports to the same counter.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from contextvars import ContextVar

from harness.types import Usage

_COUNTER: ContextVar[Counter | None] = ContextVar("fovea_counter", default=None)


class Counter:
    """A running sum of usage that several threads may add to."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._total = Usage()

    def add(self, usage: Usage) -> None:
        with self._lock:
            self._total += usage

    @property
    def total(self) -> Usage:
        return self._total


@contextlib.contextmanager
def counting(counter: Counter) -> Iterator[Counter]:
    """Within the block (and threads that copy its context), reported usage goes to `counter`."""
    token = _COUNTER.set(counter)
    try:
        yield counter
    finally:
        _COUNTER.reset(token)


def report(usage: Usage) -> None:
    """Say what a call cost. Without a counter, nobody listens."""
    counter = _COUNTER.get()
    if counter is not None:
        counter.add(usage)
