"""From records to a summary: counts per sample, scores with intervals, and what failed.

Knows metrics, records and statistics. How the answers came about, it does not know.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness import stats
from harness.store import Key, Record
from harness.types import Json, Metric, Response, Sample, Usage


def metric_key(metric: Metric) -> str:
    """Its name in records and summaries: `chair[wordnet]`."""
    return f"{metric.name}[{metric.variant}]" if metric.variant else metric.name


def metric_json(metric: Any) -> dict[str, Any]:
    """Enough to make the metric again: its name and knobs (the fields of its dataclass; a judge by its
    description), and the specs of the models among them."""
    fields = vars(metric) if dataclasses.is_dataclass(metric) else {}
    knobs = {name: _described(value) for name, value in fields.items()}
    specs = {name: value.spec for name, value in fields.items() if hasattr(value, "spec")}
    stored = {"key": metric_key(metric), "name": metric.name, "variant": metric.variant, "knobs": knobs}
    return stored | ({"specs": specs} if specs else {})


def _described(value: Any) -> Any:
    return value.describe() if hasattr(value, "describe") else value


# ---------------------------------------------------------------- counts per sample


def measure(
    metrics: Sequence[Metric],
    answers: Sequence[str],
    responses: Sequence[Response],
    samples: Sequence[Sample],
) -> list[dict[str, Any]]:
    """Counts per sample and sample-scope metric; failures have none."""
    good = [index for index, response in enumerate(responses) if response.failure is None]
    measures: list[dict[str, Any]] = [{} for _ in responses]
    scored = [dataclasses.replace(responses[index], text=answers[index]) for index in good]
    owners = [samples[index] for index in good]
    for metric in metrics:
        if metric.scope == "sample" and good:
            for index, counts in zip(good, metric.measure(scored, owners), strict=True):
                measures[index][metric_key(metric)] = counts
    return measures


def measured_again(records: Sequence[Record], metrics: Sequence[Metric]) -> list[Record]:
    """The records with the counts of `metrics` added or replaced, measured from their stored answers."""
    responses = [
        Response(
            record.text,
            record.finish_reason,
            record.usage,
            trace=record.trace,
            option_nll=record.option_nll,
            failure=record.failure,
        )
        for record in records
    ]
    counts = measure(
        metrics, [record.answer for record in records], responses, [record.sample() for record in records]
    )
    return [
        dataclasses.replace(record, measures={**record.measures, **found})
        for record, found in zip(records, counts, strict=True)
    ]


# ---------------------------------------------------------------- scores


@dataclass(frozen=True, slots=True)
class Row:
    """What a summary needs of a record."""

    key: Key
    cluster: str
    groups: Mapping[str, Sequence[str]]
    failure: str | None
    usage: Usage
    measures: Mapping[str, Any]


def slim(record: Record, breakdowns: Sequence[str] = ()) -> Row:
    """A record's row; its groups are its category and the values of its meta's `breakdowns`."""
    groups: dict[str, Sequence[str]] = {}
    if record.category is not None:
        groups["category"] = (record.category,)
    for name in breakdowns:
        value = record.meta.get(name)
        if value is not None:
            groups[name] = tuple(map(str, value)) if isinstance(value, list | tuple) else (str(value),)
    return Row(
        record.key,
        record.group or record.sample_id,
        groups,
        record.failure.kind if record.failure else None,
        record.usage,
        record.measures,
    )


def total_usage(rows: Iterable[Row]) -> Usage:
    return sum((row.usage for row in sorted(rows, key=lambda row: row.key)), Usage())


def summarise(
    metrics: Sequence[Metric], rows: Sequence[Row], total: int, records: Sequence[Record] = ()
) -> dict[str, Any]:
    """Scores with intervals, per metric and category; how many were scored, and why others failed.

    rows: in any order; they are sorted by key, so that sums and resamples do not depend on who finished
    first. records: the same samples' records, for corpus metrics.
    """
    rows = sorted(rows, key=lambda row: row.key)
    records = sorted(records, key=lambda record: record.key)
    scored = [row for row in rows if row.failure is None]
    failures: dict[str, int] = {}
    for row in rows:
        if row.failure is not None:
            failures[row.failure] = failures.get(row.failure, 0) + 1
    return {
        "n": total,
        "scored": len(scored),
        "failed": sum(failures.values()),
        "failures": dict(sorted(failures.items())),
        "metrics": {metric_key(metric): _scores(metric, scored, records) for metric in metrics},
    }


def _scores(metric: Metric, rows: Sequence[Row], records: Sequence[Record]) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "metric": metric.name,
        "variant": metric.variant,
        "higher_is_better": dict(metric.higher_is_better),
    }
    if hasattr(metric, "judge"):  # whose opinion the scores are
        entry["judge"] = _described(metric.judge)
    if metric.scope == "corpus":
        good = [record for record in records if record.failure is None]
        responses = [Response(text=record.answer) for record in good]
        counts = metric.measure(responses, [record.sample() for record in good]) if good else []
        values = metric.reduce(counts)
        scores = {name: {"value": value, "low": None, "high": None} for name, value in values.items()}
        return entry | {"n": len(good), "scores": scores}
    key = metric_key(metric)
    entry |= {"n": len(rows), "scores": _estimates(metric, key, rows)}
    groups: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        for name, members in row.groups.items():
            for value in members:
                groups.setdefault(name, {}).setdefault(value, []).append(row)
    breakdowns = {
        name: {
            value: {"n": len(part), "scores": _estimates(metric, key, part)}
            for value, part in sorted(parts.items())
        }
        for name, parts in sorted(groups.items())
        if len(parts) > 1
    }
    return entry | ({"breakdowns": breakdowns} if breakdowns else {})


def _estimates(metric: Metric, key: str, rows: Sequence[Row]) -> dict[str, Json]:
    counts = [row.measures[key] for row in rows]
    clusters = [row.cluster for row in rows]
    estimates = stats.bootstrap(metric, counts, clusters)
    return {name: estimate.json() for name, estimate in estimates.items()}
