"""Runs and their identity arms: what a board reads of them, and the paired difference between them.

What was worked out before is taken from beside the runs (`leaderboard._kept`); the rest is read and tested,
pair by pair, on every core where there is much of it. Only the counts that one batch of pairs needs are held.
It knows runs, counts and statistics; what a row looks like, it does not.
"""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from harness import _columns, _resampling, paired, stats, store, summary
from harness.stats import Estimate
from harness.types import Metric, Usage, canonical
from leaderboard import _kept

Counts = Mapping[store.Key, tuple[str, Any]]
Pair = tuple["Stored", "Stored"]
"""A run and its identity arm."""

AT_ONCE = 64_000
"""Samples of pairs whose sums are held together."""
WORTH = 20_000
"""Samples whose differences are worth keeping; twice as many are worth a second process."""
MOST = 8
"""Processes: each takes about 100 MB."""


class Stored:
    """A run's header and summary; its per-sample counts only when asked for. Raises StoreError for no run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stamp = _kept.stamp(path)  # before anything is read
        self.content: Mapping[str, Any] = store.read_run(path)

    @property
    def place(self) -> _kept.Place | None:
        return _kept.place(self.path, self.content["identity"]["task"]["name"])

    @property
    def entry(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.content["metrics"][0]
        return found

    @property
    def comparable(self) -> tuple[str, ...]:
        """What runs share whose scores may be ranked: the task and its data, the metric with every knob
        and judge, and the samples."""
        task = self.content["identity"]["task"]
        return (
            task["name"],
            task["version"],
            task["protocol"],
            task["fingerprint"],
            self.entry["key"],
            canonical(self.entry["knobs"]),
            self.content["primary"],
            self.content["selection"]["digest"],
        )

    @property
    def measured(self) -> str:
        """The metric, and whose opinion it is if it has a judge."""
        judge = self.entry["knobs"].get("judge")
        return f"{self.entry['key']} judged by {judge.get('model')}" if judge else str(self.entry["key"])

    @property
    def scores(self) -> Mapping[str, Any] | None:
        """None until the run has ended, however it ended."""
        found: Mapping[str, Any] | None = (
            self.content.get("summary", {}).get("metrics", {}).get(self.entry["key"])
        )
        return found

    @property
    def status(self) -> str:
        return str(self.content.get("status", "running")) if self.scores is not None else "running"

    @property
    def complete(self) -> bool:
        return self.status == "complete"

    @property
    def usage(self) -> Usage:
        if "spending" not in self.content:
            return summary.total_usage(self.so_far)
        return Usage(**self.content["spending"]["usage"])

    @property
    def asked_for(self) -> int:
        return int(self.content["selection"]["n"])

    @property
    def scored(self) -> int:
        if self.scores is None:
            return sum(row.failure is None for row in self.so_far)
        return int(self.scores["n"])

    @cached_property
    def so_far(self) -> list[summary.Row]:
        """Of a run that has no summary yet: what it asked for and has ended. A run may hold more."""
        chosen, repeats = self._asked()
        return [
            summary.slim(record)
            for record in store.read_records(self.path)
            if record.sample_id in chosen and record.repeat < repeats
        ]

    def counts(self) -> Counts:
        """(cluster, counts) of every scored sample; a run may hold more than it asked for."""
        return store.read_counts(self.path, self.entry["key"])

    def asked(self, counts: Counts) -> Counts:
        """Those that are asked for, in the order of their keys."""
        chosen, repeats = self._asked()
        return {key: counts[key] for key in sorted(counts) if key[0] in chosen and key[1] < repeats}

    def _asked(self) -> tuple[set[str], int]:
        selection = self.content["selection"]
        return set(selection["ids"]), selection["repeats"]


def read(paths: Iterable[Path]) -> Iterator[Stored]:
    """The runs, without copies: a run found in two folders is one run. Repeated, it would have another
    start."""
    seen = set()
    ids: dict[str, Sequence[str]] = {}
    for path in paths:
        run = Stored(path)
        selection = run.content["selection"]
        selection["ids"] = ids.setdefault(selection["digest"], selection["ids"])  # held once
        started = run.content.get("provenance", {}).get("started")
        key = (run.content["id"], selection["digest"], started, canonical(run.scores))
        if started is None or key not in seen:
            yield run
        seen.add(key)


def identity_arm(run: Stored, alike: Mapping[str, Sequence[Stored]]) -> Stored | None:
    """The complete run of the same without a method; of several, the one whose folder shares most with the
    run's."""

    def shared(arm: Stored) -> int:
        return len(os.path.commonpath([arm.path.absolute(), run.path.absolute()]))

    arms = alike.get(run.content["baseline"], ()) if run.content["methods"] else ()
    return max((arm for arm in arms if arm.complete), key=shared, default=None)


@dataclass(frozen=True)
class Difference:
    """Of a run to its identity arm, and the p of the permutation test between them."""

    estimate: Estimate
    p: float | None


@dataclass(frozen=True)
class Batch:
    """Pairs whose difference in one number of a metric is asked for. Those of one identity arm had better be
    neighbours: its counts are read once."""

    metric: Metric
    number: str
    pairs: Sequence[Pair]

    def differences(self) -> list[Difference]:
        """In the pairs' order, over the samples that both runs have scored."""
        tested = paired.paired_each(list(_gathered(self.pairs, self.metric)))
        return [Difference(one[self.number].difference, one[self.number].chance.p) for one in tested]


def differences(batches: Sequence[Batch]) -> dict[Path, Difference]:
    """By the path of each batch's runs: taken from beside them, or worked out and left there."""
    kept = _kept.Kept()
    found: dict[Path, Difference] = {}
    missing: list[tuple[Batch, list[str | None]]] = []
    for batch in batches:
        decides = [batch.number, summary.metric_json(batch.metric), np.__version__]
        statistics = (_columns, _resampling, stats, paired)
        code = _kept.code_of(*statistics, store, sys.modules[__name__], type(batch.metric))
        absent, keys = [], []
        for run, arm in batch.pairs:
            key = _kept.key((run.stamp, arm.stamp), decides, code)
            numbers = kept.get(run.place, key)
            if numbers is None:
                absent.append((run, arm))
                keys.append(key)
            else:
                found[run.path] = Difference(Estimate(*numbers[:3]), numbers[3])
        most = max(1, AT_ONCE // max((run.asked_for for run, _ in absent), default=1))
        for at in range(0, len(absent), most):
            part = Batch(batch.metric, batch.number, absent[at : at + most])
            missing.append((part, keys[at : at + most]))
    parts = [part for part, _ in missing]
    for (part, keys), answers in zip(missing, _worked_out(parts), strict=True):
        for (run, _), key, one in zip(part.pairs, keys, answers, strict=True):
            found[run.path] = one
            kept.put(run.place, key, (one.estimate.value, one.estimate.low, one.estimate.high, one.p))
    if _samples(parts) >= WORTH:
        kept.write()
    return found


def _samples(parts: Sequence[Batch]) -> int:
    return sum(run.asked_for for part in parts for run, _ in part.pairs)


_inherited: Sequence[Batch] = ()


def _worked_out(parts: Sequence[Batch]) -> list[list[Difference]]:
    """The differences of each part; on every core where that is worth it. A process with threads is not
    forked: what they hold would stay held."""
    global _inherited
    cores = min(len(parts), len(os.sched_getaffinity(0)), MOST) if sys.platform == "linux" else 1
    if cores < 2 or _samples(parts) < 2 * WORTH or threading.active_count() > 1:
        return [part.differences() for part in parts]
    _inherited = parts
    try:
        with ProcessPoolExecutor(cores, multiprocessing.get_context("fork"), _one_thread) as pool:
            return list(pool.map(_inherited_part, range(len(parts))))
    finally:
        _inherited = ()


def _one_thread() -> None:
    """Keep numpy's OpenBLAS to one thread here, as there is a process per core: its waiting threads take as
    long again as the work. Where it is another library, or named otherwise, that is all that happens."""
    names = ("scipy_openblas_set_num_threads64_", "openblas_set_num_threads64_", "openblas_set_num_threads")
    with contextlib.suppress(OSError):
        mapped = Path("/proc/self/maps").read_text().splitlines()
        for file in {line.split()[-1] for line in mapped if "openblas" in line}:
            library = ctypes.CDLL(file)
            for name in names:
                if hasattr(library, name):
                    getattr(library, name)(1)


def _inherited_part(number: int) -> list[Difference]:
    return _inherited[number].differences()


def _gathered(pairs: Sequence[Pair], metric: Metric) -> Iterator[paired.Pair]:
    last: Stored | None = None
    theirs: Counts = {}
    for run, arm in pairs:
        if arm is not last:
            last, theirs = arm, arm.asked(arm.counts())
        yield _pair(theirs, run.counts(), metric)


def _pair(theirs: Counts, ours: Counts, metric: Metric) -> paired.Pair:
    shared = [key for key in theirs if key in ours]
    return paired.Pair(
        metric,
        [theirs[key][1] for key in shared],
        [ours[key][1] for key in shared],
        [cluster(key, theirs[key][0], ours[key][0]) for key in shared],
    )


def cluster(key: store.Key, one: str, other: str) -> str:
    """A sample's cluster in two runs: the image's digest, which a run of replayed answers may not know."""
    return other if one == key[0] else one
