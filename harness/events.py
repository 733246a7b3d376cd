"""What crosses the layers sideways: what was spent, what may be spent, what arrived, when to stop.

Adapters say what each call cost, ask before they spend, and hand on every answer the moment it is there;
the progress line, the budget and the answer cache listen. This file knows neither who speaks nor who
listens. All of it hangs on context variables: a thread or a task of another event loop speaks to the same
listeners only if it runs inside the caller's `contextvars.copy_context()`.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar

from harness.errors import BudgetSpent, SpecError
from harness.types import Request, Response, Usage

Listener = Callable[[Request, Response], None]

_COUNTER: ContextVar[Counter | None] = ContextVar("fovea_counter", default=None)
_LISTENER: ContextVar[Listener | None] = ContextVar("fovea_listener", default=None)
_RESERVED: ContextVar[float | None] = ContextVar("fovea_reserved", default=None)
_STOP: ContextVar[threading.Event | None] = ContextVar("fovea_stop", default=None)


class Counter:
    """A running sum of usage that several threads may add to, and the dollars that it may reach.

    budget: None is no limit. What is on its way is counted at the most that it can cost, so that the sum
    cannot pass the budget; so is what came back without saying what it cost.
    """

    def __init__(self, budget: float | None = None) -> None:
        self.budget = budget
        self._lock = threading.Lock()
        self._total = Usage()
        self.charged = 0.0  # dollars against the budget
        self._reserved = 0.0

    def add(self, usage: Usage, reserved: float | None = None) -> None:
        with self._lock:
            self._total += usage
            self.charged += (reserved or 0.0) if usage.dollars is None else usage.dollars

    @property
    def total(self) -> Usage:
        return self._total

    def reserve(self, dollars: float | None) -> None:
        if self.budget is None:
            return
        if dollars is None:
            raise SpecError(
                "the price of this model is unknown, so no budget can hold. State it as price=IN/OUT "
                "(dollars per million tokens) in the model's spec, or run without --budget"
            )
        with self._lock:
            # A billionth of a dollar for sums of binary fractions: ten calls of 0.1 do fit into 1.0.
            room = self.budget - self.charged + 1e-9
            if dollars > room - self._reserved:
                raise BudgetSpent(self.budget, self.charged, later=dollars <= room)
            self._reserved += dollars

    def release(self, dollars: float | None) -> None:
        if self.budget is not None and dollars is not None:
            with self._lock:
                self._reserved -= dollars


# ---------------------------------------------------------------- for those who listen


@contextlib.contextmanager
def counting(counter: Counter) -> Iterator[Counter]:
    """Within the block, reported usage goes to `counter`, and its budget holds."""
    token = _COUNTER.set(counter)
    try:
        yield counter
    finally:
        _COUNTER.reset(token)


@contextlib.contextmanager
def listening(callback: Listener) -> Iterator[None]:
    """Within the block, `callback` hears of every answer as it arrives, on the thread that has it."""
    token = _LISTENER.set(callback)
    try:
        yield
    finally:
        _LISTENER.reset(token)


@contextlib.contextmanager
def stoppable(stop: threading.Event) -> Iterator[None]:
    """Within the block, whoever waits gives up once `stop` is set."""
    token = _STOP.set(stop)
    try:
        yield
    finally:
        _STOP.reset(token)


# ---------------------------------------------------------------- for adapters


def report(usage: Usage) -> None:
    """Say what a call cost. Without a counter, nobody listens."""
    counter = _COUNTER.get()
    if counter is not None:
        counter.add(usage, _RESERVED.get())


def arrived(request: Request, response: Response) -> None:
    """Hand on an answer before the rest of its list is there. Raises what the listener raises."""
    listener = _LISTENER.get()
    if listener is not None:
        listener(request, response)


def reserve(dollars: float | None) -> None:
    """Ask to spend at most `dollars` (None: unknown) on a call, before it is sent.

    Raises BudgetSpent where that could pass the run's budget; its `later` says whether there may be room
    once calls on their way have ended. Raises SpecError for an unknown price under a budget. Without a
    budget, nothing happens. Each `reserve` that returned is followed by one `release`, whatever came of it;
    the call's `report` comes between them, in the same context.
    """
    counter = _COUNTER.get()
    if counter is not None:
        counter.reserve(dollars)
        _RESERVED.set(dollars)


def release(dollars: float | None) -> None:
    """Give back what was reserved; what the call really cost was reported before."""
    counter = _COUNTER.get()
    if counter is not None:
        counter.release(dollars)
        _RESERVED.set(None)


def stopping() -> threading.Event:
    """Set when the run is ending early: whoever waits cancels what it waits for, and raises
    KeyboardInterrupt (only the main thread hears of Ctrl-C by itself). Get it in the caller's thread."""
    return _STOP.get() or threading.Event()
