"""What a run would send and cost at most, before anything is sent.

The run's own requests go through its own methods to a stand-in, which answers what the cache knows from
there and everything else with as many letters as the request allows, and adds up what the model's
`estimate(request)` says of each. A model without one (local weights) has calls and no dollars. Nothing is
written, no weights load. What a metric's judge will cost is not in it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness import engine, store
from harness.cache import Answers, Cached, InPlace
from harness.errors import PictureError
from harness.resolve import Named
from harness.types import ImportanceMap, Json, Method, Model, ReadMap, Request, Response, Task, Usage, digest


@dataclass(frozen=True)
class Estimate:
    """At most what a run will use.

    samples: asked for; ended: of them, those that the run already has. requests: to be sent; cached:
    answered by the cache, for nothing. usage: of the requests to be sent. dollars are None where a price is
    unknown; `priced` is False where a model does not say what it uses: its tokens in are not counted then.
    judged: whether a metric asks a judge, whose cost comes on top.
    """

    samples: int
    ended: int
    requests: int
    cached: int
    usage: Usage
    priced: bool
    prices: str | None
    judged: bool

    def json(self) -> dict[str, Json]:
        """All of it as JSON."""
        return dataclasses.asdict(self)


def estimate(
    task: Task,
    model: Model,
    methods: Sequence[engine.Wrap] = (),
    *,
    out: Path = engine.RUNS,
    limit: int | None = None,
    samples: Sequence[str] = (),
    repeats: int = 1,
    seed: int = 0,
    cache: Answers | None = None,
    progress: Callable[[int, int], None] = lambda _done, _of: None,
) -> Estimate:
    """What `engine.run` of the same arguments would use at most. progress: of samples done and of how many.

    A method whose later requests depend on what the model says is taken at a full-length answer.
    Raises what `engine.run` raises before it sends anything.
    """
    selection = engine.select(task, limit, samples, repeats)
    chain = engine.compose(model, methods, cache)
    identifier = store.run_id(engine.identity(task, chain, seed))
    ended = _ended(engine.run_path(out, task, chain, identifier)) & set(selection.keys)
    tally = _Tally()
    rehearsal = _stand_in(chain, tally)
    todo = [(s, r) for r in range(repeats) for s in selection.samples if (s.id, r) not in ended]
    oracle = bool(getattr(chain, "oracle", False))
    for start in range(0, len(todo), chain.pace.group):
        progress(start, len(todo))
        group = todo[start : start + chain.pace.group]
        requests = [engine.request_of(task, s, seed + repeat, oracle=oracle) for s, repeat in group]
        engine.answer(rehearsal, requests)
    progress(len(todo), len(todo))
    return Estimate(
        samples=len(selection.keys),
        ended=len(ended),
        requests=tally.usage.calls,
        cached=tally.cached,
        usage=tally.usage,
        priced=tally.priced,
        prices=getattr(engine.unwrap(chain)[0], "prices", None),
        judged=any(hasattr(part, "generate") for metric in task.metrics for part in _parts(metric)),
    )


def _ended(path: Path) -> set[store.Key]:
    """The samples that a run will not ask again."""
    if not (path / "run.json").exists():
        return set()
    return {record.key for record in store.read_records(path) if record.failure is None}


def _parts(thing: Any) -> list[Any]:
    return list(vars(thing).values()) if dataclasses.is_dataclass(thing) else []


@dataclass
class _Tally:
    """What the stand-ins of one chain were asked. seen: cache keys; a repeated question counts once."""

    usage: Usage = Usage()
    cached: int = 0
    priced: bool = True
    seen: set[str] = field(default_factory=set)


def _stand_in(model: Model, tally: _Tally) -> Model:
    """`model` with every model in it that would really answer replaced, a method's further ones too."""
    answers = None
    while isinstance(model, Cached | Named):
        answers = model.answers if isinstance(model, Cached) else answers
        model = model.model
    if isinstance(model, Method):
        model = model.rehearsed()
        inner = {
            knob.name: _stand_in(getattr(model, knob.name), tally)
            for knob in dataclasses.fields(model)
            if hasattr(getattr(model, knob.name), "generate")
        }
        return dataclasses.replace(model, **inner)
    return _Rehearsal(model, answers, tally)


@dataclass(frozen=True)
class _Rehearsal(InPlace):
    """Stands where a model stood; sends nothing."""

    answers: Answers | None
    tally: _Tally

    def generate(self, requests: Sequence[Request]) -> list[Response]:
        owner = digest(self.model.describe())
        return [self._one(owner, request) for request in requests]

    def _one(self, owner: str, request: Request) -> Response:
        try:
            if self.answers is not None:
                key = digest([owner, request.digest()])
                known = self.answers.get([key]).get(key)
                if known is not None:
                    self.tally.cached += key not in self.tally.seen
                    self.tally.seen.add(key)
                    return known
                if key in self.tally.seen:
                    return self._anything(request)
                self.tally.seen.add(key)
            self.tally.usage += self._usage(request)
            return self._anything(request)
        except PictureError as error:
            return Response.failed(error.kind, str(error))

    def _usage(self, request: Request) -> Usage:
        estimate = getattr(self.model, "estimate", None)
        if estimate is not None:
            found: Usage = estimate(request)
            return found
        self.tally.priced = False
        return Usage(calls=1, tokens_out=request.decoding.max_tokens, images=len(request.images))

    def _anything(self, request: Request) -> Response:
        """An answer of the right shape that says nothing: full-length and unlike any other, so that what a
        method asks about it is asked for each; maps are even, options all alike."""
        import numpy as np

        reads = [probe for probe in request.probes if isinstance(probe, ReadMap)]
        width, height = request.images[0].size if reads else (1, 1)
        maps = tuple(ImportanceMap(np.ones((24, 24), dtype=np.float32), (0, 0, width, height)) for _ in reads)
        text = str(self.tally.usage.calls).ljust(request.decoding.max_tokens, "x")
        return Response(text, maps=maps, option_nll=tuple((1.0, 1) for _ in request.options))
