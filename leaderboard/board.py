"""From run directories to comparisons: rows that may stand in one table, ranked where that is honest.

A comparison holds the runs of one task, protocol, metric variant and selection of samples. A row has its
score with its interval, its cost per sample, and both against the *identity arm* (the same task, model,
decoding and samples without a method): the paired difference, and how many times the cost. Incomplete runs
are shown, not ranked; so are oracle runs, which looked at the answer's region. A row without its identity
arm says so.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from harness import stats
from harness.errors import FoveaError
from harness.stats import Estimate
from harness.types import Metric, Usage
from leaderboard._pairs import Batch, Difference, Stored, differences, identity_arm, read

MetricFrom = Callable[[Mapping[str, Any]], Metric]


@dataclass(frozen=True)
class Cost:
    """What one sample costs, or how many times what it costs elsewhere. None: unknown, or times nothing."""

    calls: float | None
    tokens_in: float | None
    tokens_out: float | None
    tokens: float | None
    """In and out."""
    seconds: float | None
    dollars: float | None
    forward_passes: float | None
    """A model behind a wire does not tell of any."""

    def over(self, other: Cost) -> Cost:
        """Each number over the other's.

        >>> Cost(26, 0, 9, 9, 1.5, 0.02, 6).over(Cost(2, 0, 3, 3, 0.5, None, 2)).calls
        13.0
        """
        ours, theirs = vars(self), vars(other)
        return Cost(**{name: _ratio(ours[name], theirs[name]) for name in ours})


def cost(usage: Usage, scored: int) -> Cost:
    """A run's usage shared out over its scored samples: what failed was paid for too."""
    tokens = usage.tokens_in + usage.tokens_out
    passes = usage.forward_passes or None  # nobody answers without one
    sums = (usage.calls, usage.tokens_in, usage.tokens_out, tokens, usage.seconds, usage.dollars, passes)
    return Cost(*(_ratio(amount, scored) for amount in sums))


def _ratio(amount: float | None, of: float | None) -> float | None:
    return amount / of if amount is not None and of else None


@dataclass(frozen=True)
class Row:
    """One run on a board.

    score, difference: of the comparison's number; difference is None without an identity arm. p: of the
    paired permutation test against the identity arm; corrected: after Holm's correction over the
    comparison's rows. scored, n: samples with a score, and samples asked for. usage: the
    whole run's, its failures included. cost: per scored sample; times: that over the identity arm's, None
    without one. rank: 1 is best, equal scores share one; None where the run is not ranked, and `note` says
    why. breakdowns: the score per value of each of the task's groupings (category, answer type, ...).
    fidelity: released where any link of the method chain is, fixed where the links have one, else "".
    variant: the metric's. date: when the run started (ISO 8601). commit: the code's, + where it was changed.
    status: the run's (running, complete, interrupted, ...). oracle: it looked at the answer's region.
    """

    path: Path
    id: str
    model: str
    method: str
    score: Estimate
    difference: Estimate | None
    scored: int
    n: int
    usage: Usage
    cost: Cost
    times: Cost | None = None
    rank: int | None = None
    note: str = ""
    breakdowns: Mapping[str, Mapping[str, Estimate]] = field(default_factory=dict)
    status: str = "complete"
    oracle: bool = False
    p: float | None = None
    corrected: float | None = None
    fidelity: str = ""
    variant: str = ""
    date: str = ""
    commit: str = ""

    @property
    def complete(self) -> bool:
        return self.status == "complete"


@dataclass(frozen=True)
class Comparison:
    """Rows that measure the same thing: `number` of `metric` over the same samples of a task.

    split: of the task, where its spec names one. version: the task's.
    """

    task: str
    protocol: str
    metric: str
    number: str
    higher_is_better: bool
    rows: tuple[Row, ...]
    split: str = ""
    version: str = ""


def comparisons(paths: Sequence[Path], metric_from: MetricFrom) -> list[Comparison]:
    """Every comparison among the runs at `paths`, the largest first.

    metric_from: makes a metric of a header's entry again, for paired differences.
    """
    groups: dict[tuple[str, ...], list[Stored]] = {}
    for run in read(paths):
        if run.content["metrics"]:  # a split without answers has none: nothing to rank
            groups.setdefault(run.comparable, []).append(run)
    found = [_Group(runs, metric_from) for runs in groups.values()]
    measured = differences([batch for group in found if (batch := group.batch) is not None])
    made = [group.comparison(measured) for group in found]
    return sorted(made, key=lambda one: (-len(one.rows), one.task))


class _Group:
    """Runs that may stand in one table."""

    def __init__(self, runs: Sequence[Stored], metric_from: MetricFrom) -> None:
        self.runs = runs
        self.number = str(runs[0].content["primary"])
        self.metric: Metric | None = None
        with contextlib.suppress(FoveaError):  # its file or prompt has moved: the scores still stand
            self.metric = metric_from(runs[0].entry)
        self.alike: dict[str, list[Stored]] = {}
        for run in runs:
            self.alike.setdefault(run.content["id"], []).append(run)
        self.arms = {run.path: identity_arm(run, self.alike) for run in runs}

    @property
    def batch(self) -> Batch | None:
        """The complete runs that have an identity arm, those of one arm together; None without counts."""
        if self.metric is None or self.metric.scope != "sample":
            return None
        pairs = [(run, arm) for run in self.runs if run.complete and (arm := self.arms[run.path]) is not None]
        return Batch(self.metric, self.number, sorted(pairs, key=lambda pair: str(pair[1].path)))

    @property
    def higher_is_better(self) -> bool:
        stated = [run.scores["higher_is_better"] for run in self.runs if run.scores is not None]
        if self.metric is not None:
            stated = [self.metric.higher_is_better]
        return bool(stated[0].get(self.number, True)) if stated else True

    def comparison(self, measured: Mapping[Path, Difference]) -> Comparison:
        first, better = self.runs[0], self.higher_is_better
        task = first.content["identity"]["task"]
        rows = [self._row(run, measured.get(run.path)) for run in self.runs]
        return Comparison(
            task["name"],
            task["protocol"],
            first.measured,
            self.number,
            better,
            tuple(_ranked(_corrected(rows), better)),
            split=_split(first.content["task"]),
            version=str(task["version"]),
        )

    def _row(self, run: Stored, difference: Difference | None) -> Row:
        content, identity = run.content, self.arms[run.path]
        cost_of = cost(run.usage, run.scored)
        scores = run.scores or {}
        return Row(
            path=run.path,
            id=content["id"][:8],
            model=_model_name(content["identity"]["model"]),
            method=" > ".join(content["methods"]) or "none",
            score=Estimate(**scores["scores"][self.number]) if scores else Estimate(None, None, None),
            difference=None if difference is None else difference.estimate,
            scored=run.scored,
            n=run.asked_for,
            usage=run.usage,
            cost=cost_of,
            times=None if identity is None else cost_of.over(cost(identity.usage, identity.scored)),
            note=self._note(run),
            breakdowns={
                name: {value: Estimate(**part["scores"][self.number]) for value, part in parts.items()}
                for name, parts in scores.get("breakdowns", {}).items()
            },
            status=run.status,
            oracle=bool(content["identity"]["oracle"]),
            p=None if difference is None else difference.p,
            fidelity=_fidelity(content["identity"]["model"]),
            variant=str(run.entry["variant"]),
            date=str(content.get("provenance", {}).get("started", "")),
            commit=_commit(content.get("provenance", {}).get("commit")),
        )

    def _note(self, run: Stored) -> str:
        """Why a row is not ranked; else why it has no difference; else that there are several of its kind."""
        content = run.content
        if not run.complete:
            return run.status
        if content["identity"]["oracle"]:
            return "oracle"
        if content["methods"] and self.arms[run.path] is None:
            arms = self.alike.get(content["baseline"])
            return f"identity arm is {arms[0].status}" if arms else "no identity arm"
        again = self.alike[content["id"]]
        return f"run {again.index(run) + 1} of {len(again)}" if len(again) > 1 else ""


def _corrected(rows: Sequence[Row]) -> list[Row]:
    """Holm's correction over the tests of one comparison.

    Of a whole board no family could be: with 9,999 permutations the smallest p is .0001, and from 500 tests
    on nothing would be told apart.
    """
    corrected = iter(stats.holm([row.p for row in rows if row.p is not None]))
    return [row if row.p is None else replace(row, corrected=next(corrected)) for row in rows]


# ---------------------------------------------------------------- what a header says


def _split(spec: str) -> str:
    """The split that a task's spec names.

    >>> _split("coco_retrieval:root=/data,split=val"), _split("pope")
    ('val', '')
    """
    found = re.search(r"[:,]split=([^,()]+)", spec)
    return found[1] if found else ""


def _fidelity(described: Mapping[str, Any]) -> str:
    """Of a method chain: released where any link is, fixed where the links have one."""
    links = set()
    while isinstance(described.get("model"), Mapping):
        links.add(described.get("fidelity"))
        described = described["model"]
    return "released" if "released" in links else "fixed" if "fixed" in links else ""


def _commit(stored: Mapping[str, Any] | None) -> str:
    """The sha, + where files differed from it."""
    return f"{stored['sha']}{'+' if stored['dirty'] else ''}" if stored else ""


def _model_name(described: Mapping[str, Any]) -> str:
    """`adapter:model` of the innermost model."""
    while isinstance(described.get("model"), Mapping):
        described = described["model"]
    name = str(described.get("model", ""))
    if name.startswith("/"):
        name = "/".join(Path(name).parts[-2:])
    return f"{described.get('adapter', 'model')}:{name}"


def _ranked(rows: Sequence[Row], higher_is_better: bool) -> list[Row]:
    """Best first, equal scores at one rank; rows that cannot be ranked keep their place by score, without a
    number."""

    def order(row: Row) -> tuple[float, str, str, str]:
        value = row.score.value
        place = float("inf") if value is None else -value if higher_is_better else value
        return place, row.model, row.method, str(row.path)

    ranked: list[Row] = []
    places: list[float] = []
    for row in sorted(rows, key=order):
        if row.complete and not row.oracle and row.score.value is not None:
            places.append(row.score.value)
            row = replace(row, rank=places.index(row.score.value) + 1)
        ranked.append(row)
    return ranked
