"""A grid's runs as an ablation: what each knob does to the score, what it costs, and which cell is best.

Per task and model: the arms beside the identity arm, in the grid's order, and the families whose knobs were
swept. The best cell is chosen after a look at all of them, so its interval must hold for whichever is
chosen: intervals of the gains, and of the differences between cells, hold all at once
(`harness.stats.simultaneous`). Runs in, tables and drawings out; nothing runs, and nothing of a run changes.

Where a grid has no methods (matchers, models beside each other), the models are its arms.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from harness import stats, store
from harness.errors import FoveaError
from harness.stats import Estimate
from harness.summary import Row as Sample
from harness.summary import slim
from harness.types import Metric, canonical
from leaderboard._ablation import LETTERS, Family, family, flat, plain_text
from leaderboard.board import Comparison, MetricFrom, Row, comparisons

PLAIN = "no method"
_KINDS = 64  # of counts: more of them are no rights and wrongs
COSTS = {
    "tokens": "tokens, in and out",
    "forward_passes": "forward passes",
    "calls": "calls",
    "seconds": "seconds",
}
"""What a cost axis may show, the best first; seconds are of one machine on one day."""


@dataclass(frozen=True)
class Arm:
    """One cell: its row on the board, and its part in the ablation.

    gain: the difference to the identity arm with an interval that holds with those of all other cells; the
    row's own difference has a plain one. None for the identity arm and for what cannot be paired.
    swept: its family's knobs vary. centre: the family was swept around it.
    """

    row: Row
    label: str
    part: Literal["identity", "control", "swept"]
    gain: Estimate | None = None
    centre: bool = False

    @property
    def clear(self) -> bool:
        """Whether the gain is told apart from none, all cells considered."""
        gain = self.gain
        return gain is not None and gain.low is not None and gain.high is not None and not spans(gain)


@dataclass(frozen=True)
class Best:
    """The arm with the best score, of `of` that may be chosen (complete, and not told the answer's region).

    score, gain: intervals that hold for all of them at once; gain is None for the identity arm itself or
    without one. second: the next best. beaten, tied: labels of the others that it is, and is not, told apart
    from: of the identity arm by the gain, of the others by intervals of the differences between any two,
    which hold at once too. n: samples that all of them scored; units: images.
    """

    arm: Arm
    of: int
    n: int
    units: int
    score: Estimate
    gain: Estimate | None
    second: str
    beaten: tuple[str, ...]
    tied: tuple[str, ...]


@dataclass(frozen=True)
class Ablation:
    """The arms of one task and model. families: with the arms of each, in its own order."""

    task: str
    protocol: str
    model: str
    metric: str
    number: str
    higher_is_better: bool
    arms: tuple[Arm, ...]
    families: tuple[tuple[Family, tuple[Arm, ...]], ...]
    best: Best | None
    cost: str | None

    @property
    def identity(self) -> Arm | None:
        return next((arm for arm in self.arms if arm.part == "identity"), None)

    @property
    def title(self) -> str:
        return (
            f"{self.task} ({self.protocol}) · {self.model}"
            if self.model
            else f"{self.task} ({self.protocol})"
        )

    @property
    def n(self) -> str:
        """`60`, or `57 to 60` where samples failed."""
        scored = sorted({arm.row.scored for arm in self.arms})
        return f"{scored[0]:,}" if len(scored) == 1 else f"{scored[0]:,} to {scored[-1]:,}"


def ablations(paths: Sequence[Path], metric_from: MetricFrom) -> list[Ablation]:
    """The ablations among the runs at `paths`, which are in the grid's order."""
    place = {path: number for number, path in enumerate(paths)}
    found = []
    for comparison in comparisons(paths, metric_from):
        rows = sorted(comparison.rows, key=lambda row: place[row.path])
        headers = {row.path: store.read_run(row.path) for row in rows}
        if any(header["methods"] for header in headers.values()):
            for model in dict.fromkeys(_inner(headers[row.path]) for row in rows):
                mine = [row for row in rows if _inner(headers[row.path]) == model]
                found.append(_ablation(comparison, mine, headers, metric_from))
        else:
            found.append(_models(comparison, rows, headers, metric_from))
    return sorted(found, key=lambda one: min(place[arm.row.path] for arm in one.arms))


def _inner(header: Mapping[str, Any]) -> str:
    """The id of the same run without a method: of one task, it is one model."""
    return str(header["baseline"])


# ---------------------------------------------------------------- arms


def _ablation(
    comparison: Comparison,
    rows: Sequence[Row],
    headers: Mapping[Path, Mapping[str, Any]],
    metric_from: MetricFrom,
) -> Ablation:
    chains = {row.path: _chain(headers[row.path]["identity"]["model"]) for row in rows}
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(name for name, _ in chains[row.path]), []).append(row)
    arms: dict[Path, Arm] = {}
    families = []
    for names, members in groups.items():
        if not names:
            arms |= {row.path: Arm(row, PLAIN, "identity") for row in members}
            continue
        one = family(" > ".join(names), [_knobs(chains[row.path]) for row in members])
        arms |= {
            row.path: Arm(
                row, one.label(number), "swept" if one.knobs else "control", centre=number == one.centre
            )
            for number, row in enumerate(members)
        }
        families.append((one, [row.path for row in members]))
    return _finished(comparison, rows[0].model, arms, families, rows, headers, metric_from)


def _models(
    comparison: Comparison,
    rows: Sequence[Row],
    headers: Mapping[Path, Mapping[str, Any]],
    metric_from: MetricFrom,
) -> Ablation:
    """Models beside each other, each by what tells it from the others."""
    described = [flat(headers[row.path]["identity"]["model"]) for row in rows]
    one = family("", [{"model": row.model} for row in rows])
    labels = [row.model for row in rows]
    if len(set(labels)) < len(labels):  # one checkpoint, differently used
        one = family(
            "", [{key: value for key, value in each.items() if key != "revision"} for each in described]
        )
        labels = [f"{row.model} {one.label(place)}".strip() for place, row in enumerate(rows)]
    labels = [plain_text(label, LETTERS) for label in labels]
    arms = {row.path: Arm(row, label, "swept") for row, label in zip(rows, labels, strict=True)}
    families = [(one, [row.path for row in rows])] if one.knobs else []
    return _finished(comparison, "", arms, families, rows, headers, metric_from)


def _chain(described: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The methods from the inside out, each with its knobs."""
    links: list[tuple[str, Mapping[str, Any]]] = []
    while "method" in described and isinstance(described.get("model"), Mapping):
        knobs = {name: value for name, value in described.items() if name not in ("method", "model")}
        links.insert(0, (str(described["method"]), knobs))
        described = described["model"]
    return links


def _knobs(chain: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """A chain's knobs by name; with the method's before it where there are several links."""
    found: dict[str, Any] = {}
    for number, (name, knobs) in enumerate(chain):
        prefix = (
            ""
            if len(chain) == 1
            else f"{name}."
            if [n for n, _ in chain].count(name) == 1
            else f"{name}#{number}."
        )
        found |= flat(knobs, prefix)
    return found


# ---------------------------------------------------------------- which is best


def _finished(
    comparison: Comparison,
    model: str,
    arms: Mapping[Path, Arm],
    families: Sequence[tuple[Family, Sequence[Path]]],
    rows: Sequence[Row],
    headers: Mapping[Path, Mapping[str, Any]],
    metric_from: MetricFrom,
) -> Ablation:
    fair = [arms[row.path] for row in rows if row.complete and not row.oracle and row.score.value is not None]
    told = [arms[row.path] for row in rows if row.complete and row.oracle and row.score.value is not None]
    gains, best = _compared(comparison, fair, told, headers, metric_from)
    final = {
        path: Arm(arm.row, arm.label, arm.part, gains.get(path), arm.centre) for path, arm in arms.items()
    }
    return Ablation(
        comparison.task,
        comparison.protocol,
        model,
        comparison.metric,
        comparison.number,
        comparison.higher_is_better,
        tuple(final[row.path] for row in rows),
        tuple((one, tuple(final[path] for path in paths)) for one, paths in families),
        best,
        _cost(
            [row for row in rows if row.complete],
            [arm.row for arm in arms.values() if arm.part == "identity"],
        ),
    )


def _compared(
    comparison: Comparison,
    fair: Sequence[Arm],
    told: Sequence[Arm],
    headers: Mapping[Path, Mapping[str, Any]],
    metric_from: MetricFrom,
) -> tuple[dict[Path, Estimate], Best | None]:
    """The gains of all arms, and the best of the fair ones. Arms that were told the answer's region have
    gains with intervals, and are never the best."""
    sign = 1 if comparison.higher_is_better else -1
    # Of equal scores, the arm that costs less: the identity arm, then the grid's order.
    order = sorted(fair, key=lambda arm: (-sign * (arm.row.score.value or 0), arm.part != "identity"))
    everyone = [*order, *told]
    paired = _counts(everyone, headers, metric_from)
    if paired is None:
        return {}, None
    metric, counts, clusters = paired
    plain = next((n for n, arm in enumerate(everyone) if arm.part == "identity"), None)
    against = [n for n in range(len(everyone)) if n != plain] if plain is not None else []

    most = _most(metric, counts, comparison.number)

    def at_once(contrasts: Sequence[tuple[int, int | None]]) -> list[Estimate]:
        found = stats.simultaneous(metric, counts, contrasts, clusters)[comparison.number]
        if most is None:
            return found
        pairs = zip(found, contrasts, strict=True)
        return [_within(one, 0.0 if b is None else -most, most) for one, (_, b) in pairs]

    gains = dict(zip(against, at_once([(n, plain) for n in against]), strict=True)) if against else {}
    by_path = {everyone[n].row.path: gain for n, gain in gains.items()}
    if len(order) < 2:
        return by_path, None
    pairs: list[tuple[int, int | None]] = list(itertools.combinations(range(len(order)), 2))
    differences = dict(zip(pairs, at_once(pairs), strict=True))
    if plain:  # the gain is the same difference, among fewer
        differences[0, plain] = gains[0]
    rest = [(order[n].label, differences[0, n]) for n in range(1, len(order))]
    best = Best(
        arm=order[0],
        of=len(order),
        n=len(clusters),
        units=len(set(clusters)),
        score=at_once([(n, None) for n in range(len(order))])[0],
        gain=gains.get(0),
        second=order[1].label,
        beaten=tuple(label for label, one in rest if one.low is not None and not spans(one)),
        tied=tuple(label for label, one in rest if one.low is None or spans(one)),
    )
    return by_path, best


def _counts(
    arms: Sequence[Arm], headers: Mapping[Path, Mapping[str, Any]], metric_from: MetricFrom
) -> tuple[Metric, list[list[Any]], list[str]] | None:
    """The metric, and each arm's counts of the samples that all of them scored, with their images."""
    if not arms:
        return None
    entry = headers[arms[0].row.path]["metrics"][0]
    try:
        metric = metric_from(entry)
    except FoveaError:  # its file or prompt has moved: the scores still stand
        return None
    if metric.scope != "sample":
        return None
    found: list[dict[store.Key, Sample]] = [
        _scored(arm.row.path, headers[arm.row.path], entry["key"]) for arm in arms
    ]
    shared = sorted(set.intersection(*(set(rows) for rows in found)))
    if not shared:
        return None
    counts = [[rows[key].measures[entry["key"]] for key in shared] for rows in found]
    return metric, counts, [found[0][key].cluster for key in shared]


def _most(metric: Metric, counts: Sequence[Sequence[Any]], number: str) -> float | None:
    """1 for a share of right answers, 100 where it is counted in percent: intervals around it that are made
    of standard errors may not leave what it can be. None for any other number."""
    kinds = {canonical(count): count for cell in counts for count in cell}
    if len(kinds) > _KINDS:
        return None
    values = {metric.reduce([count]).get(number) for count in kinds.values()} - {None, 0.0}
    return values.pop() if len(values) == 1 else None


def _within(estimate: Estimate, least: float, most: float) -> Estimate:
    if estimate.low is None or estimate.high is None:
        return estimate
    return Estimate(estimate.value, max(least, estimate.low), min(most, estimate.high))


def _scored(path: Path, header: Mapping[str, Any], metric: str) -> dict[store.Key, Sample]:
    chosen, repeats = set(header["selection"]["ids"]), header["selection"]["repeats"]
    return {
        record.key: slim(record)
        for record in store.read_records(path)
        if record.failure is None
        and metric in record.measures
        and record.sample_id in chosen
        and record.repeat < repeats
    }


def spans(estimate: Estimate) -> bool:
    """Whether 0 lies in the interval, or at its end but for rounding."""
    low, high = estimate.low, estimate.high
    return low is None or high is None or (low <= 1e-9 and high >= -1e-9)


def _cost(rows: Sequence[Row], identity: Sequence[Row]) -> str | None:
    """The cost that all arms have as a ratio to the identity arm's, by the order of `COSTS`."""
    others = [row for row in rows if row not in identity]
    if not identity or not others:
        return None
    for name in COSTS:
        if all(row.times is not None and getattr(row.times, name, None) is not None for row in others):
            return name
    return None
