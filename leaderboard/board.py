"""From run directories to comparisons: rows that may stand in one table, ranked where that is honest.

A comparison holds the runs of one task, protocol, metric variant and selection of samples. A row has its
score with its interval, its cost per sample, and both against the *identity arm* (the same task, model,
decoding and samples without a method): the paired difference, and how many times the cost. Incomplete runs
are shown, not ranked; so are oracle runs, which looked at the answer's region. A row without its identity
arm says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from harness import stats, store
from harness.errors import FoveaError
from harness.stats import Estimate
from harness.types import Metric, Usage, canonical

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

    def over(self, other: Cost) -> Cost:
        """Each number over the other's.

        >>> Cost(26, 0, 9, 9, 1.5, 0.02).over(Cost(2, 0, 3, 3, 0.5, None))
        Cost(calls=13.0, tokens_in=None, tokens_out=3.0, tokens=3.0, seconds=3.0, dollars=None)
        """
        ours, theirs = vars(self), vars(other)
        return Cost(**{name: _ratio(ours[name], theirs[name]) for name in ours})


def cost(usage: Usage, scored: int) -> Cost:
    """A run's usage shared out over its scored samples: what failed was paid for too."""
    tokens = usage.tokens_in + usage.tokens_out
    sums = (usage.calls, usage.tokens_in, usage.tokens_out, tokens, usage.seconds, usage.dollars)
    return Cost(*(_ratio(amount, scored) for amount in sums))


def _ratio(amount: float | None, of: float | None) -> float | None:
    return amount / of if amount is not None and of else None


@dataclass(frozen=True)
class Row:
    """One run on a board.

    score, difference: of the comparison's number; difference is None without an identity arm.
    scored, n: samples with a score, and samples asked for. usage: the whole run's, its failures included.
    cost: per scored sample; times: that over the identity arm's, None without one.
    rank: 1 is best; None where the run is not ranked, and `note` says why. breakdowns: the score per value
    of each of the task's groupings (category, answer type, ...).
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


@dataclass(frozen=True)
class Comparison:
    """Rows that measure the same thing: `number` of `metric` over the same samples of a task."""

    task: str
    protocol: str
    metric: str
    number: str
    higher_is_better: bool
    rows: tuple[Row, ...]


def comparisons(paths: Sequence[Path], metric_from: MetricFrom) -> list[Comparison]:
    """Every comparison among the runs at `paths`, the largest first.

    metric_from: makes a metric of a header's entry again, for paired differences.
    """
    stored = [(path, store.read_run(path)) for path in paths]
    # A split without answers has no metrics, and a run that has not ended no summary.
    runs = [_Loaded(path, content) for path, content in stored if content["metrics"] and "summary" in content]
    groups: dict[tuple[str, ...], list[_Loaded]] = {}
    for run in runs:
        groups.setdefault(run.comparable, []).append(run)
    found = [_comparison(group, metric_from) for group in groups.values()]
    return sorted(found, key=lambda comparison: (-len(comparison.rows), comparison.task))


class _Loaded:
    """A run's header and summary; its per-sample counts only when asked for."""

    def __init__(self, path: Path, content: Mapping[str, Any]) -> None:
        self.path = path
        self.content = content
        self.entry: Mapping[str, Any] = content["metrics"][0]

    @property
    def comparable(self) -> tuple[str, ...]:
        task = self.content["identity"]["task"]
        return (
            task["name"],
            task["version"],
            task["protocol"],
            task["fingerprint"],
            self.entry["key"],
            self.content["primary"],
            self.content["selection"]["digest"],
            canonical(self.scores.get("judge")),
        )

    @property
    def measured(self) -> str:
        """The metric, and whose opinion it is if it has a judge."""
        judge = self.scores.get("judge")
        return f"{self.entry['key']} judged by {judge.get('model')}" if judge else str(self.entry["key"])

    @property
    def scores(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.content["summary"]["metrics"][self.entry["key"]]
        return found

    @property
    def complete(self) -> bool:
        return bool(self.content["status"] == "complete")

    @property
    def usage(self) -> Usage:
        return Usage(**self.content["spending"]["usage"])

    @property
    def cost(self) -> Cost:
        return cost(self.usage, self.scores["n"])

    def counts(self) -> dict[store.Key, tuple[str, Any]]:
        """(cluster, counts) of every scored sample that is asked for; a run may hold more."""
        key, selection = self.entry["key"], self.content["selection"]
        asked = set(selection["ids"])
        return {
            record.key: (record.group or record.sample_id, record.measures[key])
            for record in store.read_records(self.path)
            if record.failure is None and record.sample_id in asked and record.repeat < selection["repeats"]
        }


def _comparison(runs: Sequence[_Loaded], metric_from: MetricFrom) -> Comparison:
    first = runs[0]
    number = first.content["primary"]
    better = bool(first.scores["higher_is_better"].get(number, True))
    by_id = {run.content["id"]: run for run in runs if run.complete}
    try:
        metric = metric_from(first.entry)
    except FoveaError:  # its file or prompt has moved: the scores still stand, without differences
        metric = None
    rows = [_row(run, by_id, metric, number) for run in runs]
    task = first.content["identity"]["task"]
    return Comparison(
        task["name"], task["protocol"], first.measured, number, better, tuple(_ranked(rows, better))
    )


def _row(run: _Loaded, by_id: Mapping[str, _Loaded], metric: Metric | None, number: str) -> Row:
    content = run.content
    score = Estimate(**run.scores["scores"][number])
    difference, times, note = None, None, ""
    if content["methods"]:
        identity = by_id.get(content["baseline"])
        if identity is None:
            note = "no identity arm"
        else:
            times = run.cost.over(identity.cost)
            if run.complete and metric is not None and metric.scope == "sample":
                difference = _difference(run, identity, metric, number)
    if content["identity"]["oracle"]:
        note = "oracle"
    if not run.complete:
        note = content["status"]
    return Row(
        path=run.path,
        id=content["id"][:8],
        model=_model_name(content["identity"]["model"]),
        method=" > ".join(content["methods"]) or "none",
        score=score,
        difference=difference,
        scored=run.scores["n"],
        n=content["summary"]["n"],
        usage=run.usage,
        cost=run.cost,
        times=times,
        note=note,
        breakdowns={
            name: {value: Estimate(**part["scores"][number]) for value, part in parts.items()}
            for name, parts in run.scores.get("breakdowns", {}).items()
        },
    )


def _difference(run: _Loaded, identity: _Loaded, metric: Metric, number: str) -> Estimate:
    """Over the samples that both scored."""
    ours, theirs = run.counts(), identity.counts()
    shared = sorted(ours.keys() & theirs.keys())
    differences = stats.paired_difference(
        metric,
        [ours[key][1] for key in shared],
        [theirs[key][1] for key in shared],
        [ours[key][0] for key in shared],
    )
    return differences[number]


def _model_name(described: Mapping[str, Any]) -> str:
    """`adapter:model` of the innermost model."""
    while isinstance(described.get("model"), Mapping):
        described = described["model"]
    name = str(described.get("model", ""))
    if name.startswith("/"):
        name = "/".join(Path(name).parts[-2:])
    return f"{described.get('adapter', 'model')}:{name}"


def _ranked(rows: Sequence[Row], higher_is_better: bool) -> list[Row]:
    """Best first; rows that cannot be ranked keep their place by score, without a number."""

    def order(row: Row) -> float:
        value = row.score.value
        if value is None:
            return float("inf")
        return -value if higher_is_better else value

    ranked, place = [], 0
    for row in sorted(rows, key=order):
        rankable = row.score.value is not None and row.note in ("", "no identity arm")
        place += rankable
        ranked.append(replace(row, rank=place if rankable else None))
    return ranked
