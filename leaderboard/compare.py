"""Two runs of one task, sample by sample: what differs, by how much, and how likely by chance alone.

A pair is two runs over the same selection of samples of one task, version, protocol and data, with a metric
in common (name, variant, judge, every knob). Any other pair is refused, saying which of these differ. What
else differs is listed by its path; where it is more than one thing (the method and the decoding, say), the
pair carries a warning. Differences are the second run minus the first, over the samples that both scored.

It knows runs and statistics; how a comparison is printed, it does not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from harness import paired, stats, store
from harness.errors import FoveaError
from harness.paired import Chance, Outcomes, Paired
from harness.stats import Estimate
from harness.summary import Row, slim
from harness.types import Metric, canonical
from leaderboard.board import MetricFrom, _model_name

SURE = 0.05
_SHOWN = 8  # of what a refusal lists


@dataclass(frozen=True)
class Side:
    """One of a pair's runs. scored: samples with an answer, of those asked for."""

    path: Path
    id: str
    model: str
    method: str
    status: str
    scored: int


@dataclass(frozen=True)
class Line:
    """One number of a metric, over all samples or those of one group.

    higher_is_better: None for a number that only describes (lengths, counts of calls); it is not tested.
    by, value: the grouping and the group (category, "adversarial"); None for all samples. n: samples that
    both runs scored. corrected: the permutation test's p after Holm's correction over everything that was
    compared at once. better, worse: ids of the samples whose second answer alone would better or worsen the
    first run's number, and `ties` the rest. mcnemar: where answers are right or wrong. note: why there is no
    test.
    """

    metric: str
    number: str
    higher_is_better: bool | None
    n: int
    found: Paired
    by: str | None = None
    value: str | None = None
    corrected: float | None = None
    better: tuple[str, ...] = ()
    worse: tuple[str, ...] = ()
    ties: int | None = None
    undefined: int = 0
    mcnemar: float | None = None
    note: str = ""

    @property
    def p(self) -> float | None:
        return self.found.chance.p

    @property
    def verdict(self) -> str:
        """What the second run is: better, worse, or nothing that this comparison could tell."""
        change = self.found.difference.value
        if self.corrected is None or self.corrected >= SURE or not change:
            return ""
        return "better" if (change > 0) == self.higher_is_better else "worse"


@dataclass(frozen=True)
class Pair:
    """Two runs beside each other. n: samples that both scored, of `of` asked for; units: what was drawn and
    swapped together (images, or samples that share none). differs: what in the runs' identities does, by its
    path. groupings: by which the numbers can also be shown."""

    task: str
    protocol: str
    first: Side
    second: Side
    n: int
    of: int
    units: int
    lines: tuple[Line, ...]
    differs: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    groupings: tuple[str, ...] = ()


def compare(
    pairs: Sequence[tuple[Path, Path]],
    metric_from: MetricFrom,
    by: Sequence[str] = (),
    numbers: Sequence[str] = (),
) -> list[Pair]:
    """Every pair's numbers, corrected together: the family is everything that is returned.

    by: groupings (category, answer_type, ...) by which the pairs' primary numbers, or `numbers`, are also
    compared. numbers: these only. Raises FoveaError for pairs that are not comparable, all in one message,
    and for groupings or numbers that no pair has.
    """
    runs = {path: _Run(path) for pair in pairs for path in pair}
    faults = [
        f"{first} and {second} are not comparable: {'; '.join(why)}"
        for first, second in pairs
        if (why := _incomparable(runs[first], runs[second]))
    ]
    if faults:
        raise FoveaError("\n".join(faults))
    found = [_pair(runs[first], runs[second], metric_from, by, numbers) for first, second in pairs]
    _require(by, {name for pair in found for name in pair.groupings}, "grouping")
    _require(numbers, {line.number for pair in found for line in pair.lines}, "number")
    return _corrected(found)


def partners(first: Sequence[Path], second: Sequence[Path]) -> tuple[list[tuple[Path, Path]], list[Path]]:
    """Which runs of two folders are pairs, and the runs without a partner.

    One run on each side is a pair. Else runs of the same task (version, protocol, data) are: one on one side
    with each on the other; never a run with itself. Raises FoveaError where both sides hold several runs of
    a task, and where there is no pair at all.
    """
    if len(first) == len(second) == 1:
        if first[0].resolve() == second[0].resolve():
            raise FoveaError(f"{first[0]} is both runs; name two")
        return [(first[0], second[0])], []
    tasks: dict[str, tuple[list[Path], list[Path]]] = {}
    for side, paths in enumerate((first, second)):
        for path in paths:
            task = store.read_run(path)["identity"]["task"]
            tasks.setdefault(canonical(task), ([], []))[side].append(path)
    pairs, alone = [], []
    for ones, others in tasks.values():
        if len(ones) > 1 and len(others) > 1:
            raise FoveaError(
                f"{len(ones)} runs of one task on the left ({ones[0]}, ...) and {len(others)} on the right "
                f"({others[0]}, ...): which belong together? Name fewer, so that one side holds one run of it"
            )
        mine = [(a, b) for a in ones for b in others if a.resolve() != b.resolve()]
        pairs += mine
        alone += [path for path in (*ones, *others) if not any(path in pair for pair in mine)]
    if not pairs:
        raise FoveaError(
            f"no pair of one task, version, protocol and data: on the left {_tasks(first)}, on the right "
            f"{_tasks(second)}"
        )
    return pairs, alone


def _tasks(paths: Sequence[Path]) -> str:
    """`pope (llava)`, `gqa (vicrop)`: what the runs at `paths` are of."""
    tasks = [store.read_run(path)["identity"]["task"] for path in paths]
    names = list(dict.fromkeys(f"{task['name']} ({task['protocol']})" for task in tasks))
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _require(asked: Sequence[str], known: set[str], what: str) -> None:
    for name in asked:
        if name not in known:
            there = ", ".join(sorted(known)) or "none"
            raise FoveaError(f"these runs have no {what} {name!r}; there are: {there}")


# ---------------------------------------------------------------- a run


class _Run:
    """A run's header, and its scored samples once they are asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content = store.read_run(path)

    @property
    def identity(self) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self.content["identity"]
        return found

    @property
    def metrics(self) -> dict[str, Mapping[str, Any]]:
        return {entry["key"]: entry for entry in self.content["metrics"]}

    @cached_property
    def rows(self) -> dict[store.Key, Row]:
        """Of the samples asked for, those that have an answer."""
        chosen, repeats = set(self.content["selection"]["ids"]), self.content["selection"]["repeats"]
        return {
            record.key: slim(record, self.content["breakdowns"])
            for record in store.read_records(self.path)
            if record.failure is None and record.sample_id in chosen and record.repeat < repeats
        }

    @cached_property
    def chain(self) -> tuple[list[tuple[str, Mapping[str, Any]]], Mapping[str, Any]]:
        """The methods from the inside out, each with its knobs; and the model within."""
        methods: list[tuple[str, Mapping[str, Any]]] = []
        described = self.identity["model"]
        while "method" in described and isinstance(described.get("model"), Mapping):
            knobs = {name: value for name, value in described.items() if name not in ("method", "model")}
            methods.insert(0, (described["method"], knobs))
            described = described["model"]
        return methods, described

    @property
    def method(self) -> str:
        return " > ".join(self.content["methods"]) or "none"

    @property
    def model(self) -> str:
        return _model_name(self.identity["model"])

    def side(self) -> Side:
        status = self.content.get("status", "running")
        return Side(self.path, self.content["id"][:8], self.model, self.method, status, len(self.rows))


# ---------------------------------------------------------------- may these be compared, and what differs


def _incomparable(first: _Run, second: _Run) -> list[str]:
    """Which parts of what two runs must share they do not; empty for a pair."""
    one, other = first.identity["task"], second.identity["task"]
    why = [
        f"the task's {part} is {_short(one[part], 20)} and {_short(other[part], 20)}"
        for part in ("name", "version", "protocol", "fingerprint")
        if one[part] != other[part]
    ]
    if why:
        return why
    ours, theirs = (run.content["selection"] for run in (first, second))
    if ours["digest"] != theirs["digest"]:
        if ours["repeats"] != theirs["repeats"]:
            why.append(f"the selection is repeated {ours['repeats']} and {theirs['repeats']} times")
        if ours["ids"] != theirs["ids"]:
            common = len(set(ours["ids"]) & set(theirs["ids"]))
            why.append(
                f"the selection is {len(ours['ids']):,} and {len(theirs['ids']):,} samples, {common:,} of "
                "them in both. Repeat one run's command with the other's --limit: no answer that is there is "
                "asked for again"
            )
    if not _shared_metrics(first, second):
        why.append(_no_metric(first, second))
    return why


def _shared_metrics(first: _Run, second: _Run) -> list[str]:
    """Keys of the metrics that are the same in both, knobs and judge included."""
    return [
        key
        for key, entry in first.metrics.items()
        if key in second.metrics and canonical(entry["knobs"]) == canonical(second.metrics[key]["knobs"])
    ]


def _no_metric(first: _Run, second: _Run) -> str:
    same = [key for key in first.metrics if key in second.metrics]
    if same:
        knobs = _changes(first.metrics[same[0]]["knobs"], second.metrics[same[0]]["knobs"], f"{same[0]} ")
        return f"the metric differs: {'; '.join(knobs)}. fovea score RUN scores again, without the model"
    names = [", ".join(run.metrics) or "no metric (a split without answers)" for run in (first, second)]
    return (
        f"the metric is {names[0]} and {names[1]}. fovea score RUN --metric NAME:variant=... measures "
        "another, without the model"
    )


def _differing(first: _Run, second: _Run) -> dict[str, list[str]]:
    """What differs in how the answers were made, by part: method, model, prompt, decoding."""
    (ours, inner), (theirs, other_inner) = first.chain, second.chain
    if [name for name, _ in ours] == [name for name, _ in theirs]:
        methods = [
            change
            for (name, knobs), (_, others) in zip(ours, theirs, strict=True)
            for change in _changes(knobs, others, f"{name}.")
        ]
    else:
        methods = [f"method: {first.method} → {second.method}"]
    parts = {"method": methods, "model": _changes(inner, other_inner, "model.")}
    for name in ("prompt", "decoding"):
        parts[name] = _changes(first.identity.get(name) or {}, second.identity.get(name) or {}, f"{name}.")
    return {part: changes for part, changes in parts.items() if changes}


def _changes(one: Any, other: Any, path: str) -> list[str]:
    """`decoding.seed: 0 → 1` of every leaf that differs.

    >>> _changes({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}, "d": None}, "model.")
    ['model.a.c: 2 → 3', 'model.d: absent → null']
    """
    flat, flat_other = dict(_leaves(one, path)), dict(_leaves(other, path))
    return [
        f"{leaf.rstrip('. ')}: {flat.get(leaf, 'absent')} → {flat_other.get(leaf, 'absent')}"
        for leaf in dict.fromkeys((*flat, *flat_other))
        if flat.get(leaf) != flat_other.get(leaf)
    ]


def _leaves(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            end = "." if isinstance(inner, Mapping) else ""
            yield from _leaves(inner, f"{path}{name}{end}")
    else:
        yield path, _short(canonical(value).strip('"'))


def _short(text: str, most: int = 60) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


# ---------------------------------------------------------------- a pair


def _pair(
    first: _Run, second: _Run, metric_from: MetricFrom, by: Sequence[str], numbers: Sequence[str]
) -> Pair:
    shared = sorted(first.rows.keys() & second.rows.keys())
    selection = first.content["selection"]
    if not shared:
        raise FoveaError(f"{first.path} and {second.path}: no sample has an answer in both runs")
    parts = _differing(first, second)
    warnings = list(_warnings(first, second, parts, len(shared)))
    lines: list[Line] = []
    for key in _shared_metrics(first, second):
        try:
            metric = metric_from(first.metrics[key])
        except FoveaError as error:
            warnings.append(f"{key} is left out: {error}")
            continue
        if metric.scope == "corpus":
            lines += _corpus_lines(first, second, key, metric, numbers)
        else:
            main = (first.content["primary"],) if key == next(iter(first.metrics)) else ()
            lines += _Samples(first, second, key, metric, shared).lines(by, numbers, main)
    if not lines and not numbers:
        raise FoveaError(f"{first.path} and {second.path}: nothing can be compared: {'; '.join(warnings)}")
    rows = [first.rows[key] for key in shared]
    task = first.identity["task"]
    return Pair(
        task=task["name"],
        protocol=task["protocol"],
        first=first.side(),
        second=second.side(),
        n=len(shared),
        of=selection["n"],
        units=len({_cluster(first.rows[key], second.rows[key]) for key in shared}),
        lines=tuple(lines),
        differs=tuple(change for changes in parts.values() for change in changes),
        warnings=tuple(warnings),
        groupings=tuple(sorted({name for row in rows for name in row.groups})),
    )


def _warnings(first: _Run, second: _Run, parts: Mapping[str, Sequence[str]], n: int) -> Iterator[str]:
    total = first.content["selection"]["n"]
    if len(parts) > 1:
        named, *others = parts
        changes = "; ".join(change for part in others for change in parts[part])
        yield f"not the {named} alone differs, so the difference has more than one cause: {changes}"
    if not parts:
        yield "both runs have one identity: their difference is what repeating a run makes"
    for name, run in (("A", first), ("B", second)):
        if run.identity["oracle"]:
            yield f"{name} was told where the answer is (oracle)"
    if n < total:
        yield (
            f"{n:,} of {total:,} samples are compared, those that both scored (A {len(first.rows):,}, B "
            f"{len(second.rows):,}). What is missing may not be missing by chance: repeat the runs' commands"
        )
    shared = set(_shared_metrics(first, second))
    for name, run in (("A", first), ("B", second)):
        if rest := [key for key in run.metrics if key not in shared]:
            yield f"{', '.join(rest)} of {name} is left out: {'B' if name == 'A' else 'A'} has no such counts"


def _cluster(one: Row, other: Row) -> str:
    """The image's digest, which a run of replayed answers may not know."""
    return other.cluster if one.cluster == one.key[0] else one.cluster


class _Samples:
    """One metric's counts of the samples that both runs scored."""

    def __init__(
        self, first: _Run, second: _Run, key: str, metric: Metric, shared: Sequence[store.Key]
    ) -> None:
        self.key, self.metric = key, metric
        pairs = [(first.rows[each], second.rows[each]) for each in shared]
        pairs = [pair for pair in pairs if all(key in row.measures for row in pair)]
        self.rows = [one for one, _ in pairs]
        self.counts = tuple([row.measures[key] for row in side] for side in zip(*pairs, strict=True)) or (
            [],
            [],
        )
        self.clusters = [_cluster(*pair) for pair in pairs]
        repeats = first.content["selection"]["repeats"]
        self.ids = [f"{row.key[0]}#{row.key[1]}" if repeats > 1 else row.key[0] for row in self.rows]

    def lines(self, by: Sequence[str], numbers: Sequence[str], main: Sequence[str]) -> Iterator[Line]:
        """Of every number (or `numbers`) over all samples; then of `main` (or `numbers`) per group."""
        everything = list(range(len(self.rows)))
        yield from self._of(everything, numbers)
        for name in by:
            groups: dict[str, list[int]] = {}
            for place, row in enumerate(self.rows):
                for value in row.groups.get(name, ()):
                    groups.setdefault(value, []).append(place)
            for value, places in sorted(groups.items()):
                for line in self._of(places, numbers or main, some=True):
                    yield replace(line, by=name, value=value)

    def _of(self, places: Sequence[int], numbers: Sequence[str], some: bool = False) -> Iterator[Line]:
        first, second = ([side[place] for place in places] for side in self.counts)
        if some and not numbers:
            return
        tested = paired.paired(self.metric, first, second, [self.clusters[place] for place in places])
        changed = paired.outcomes(self.metric, first, second)
        right = paired.right_or_wrong(self.metric, first, second)
        ids = [self.ids[place] for place in places]
        for number, found in tested.items():
            if not numbers or number in numbers:
                line = self._line(number, found, ids, changed[number])
                flips = right[number] if line.p is not None else None
                yield replace(line, mcnemar=paired.mcnemar(*flips) if flips else None)

    def _line(self, number: str, found: Paired, ids: Sequence[str], changed: Outcomes | None) -> Line:
        better = self.metric.higher_is_better.get(number)
        line = Line(self.key, number, better, len(ids), found)
        if better is None:
            untested = replace(found, chance=Chance(None, True))
            return replace(line, found=untested, note="describes, so it is not tested")
        if changed is None:
            return line
        up, down = (tuple(ids[place] for place in places) for places in (changed.up, changed.down))
        return replace(
            line,
            better=up if better else down,
            worse=down if better else up,
            ties=changed.ties,
            undefined=changed.undefined,
        )


def _corpus_lines(
    first: _Run, second: _Run, key: str, metric: Metric, numbers: Sequence[str]
) -> Iterator[Line]:
    """The two runs' own scores: a number of the whole corpus has no share of a sample, and no pairing."""
    entries = [run.content.get("summary", {}).get("metrics", {}).get(key) for run in (first, second)]
    if not all(entries):
        return
    (n, scores), (n_other, others) = ((entry["n"], entry["scores"]) for entry in entries)
    note = "of the whole corpus: no counts per sample, so no pairing, interval or test"
    if n != n_other:
        note += f"; A over {n:,}, B over {n_other:,} samples"
    for number in scores:
        if number in others and (not numbers or number in numbers):
            a, b = scores[number]["value"], others[number]["value"]
            difference = None if a is None or b is None else b - a
            found = Paired(a, b, Estimate(difference, None, None), Chance(None, True), None)
            better = metric.higher_is_better.get(number)
            yield Line(key, number, better, min(n, n_other), found, note=note)


def _corrected(pairs: Sequence[Pair]) -> list[Pair]:
    """Holm's correction over all tests of all pairs."""
    tested = [line.p for pair in pairs for line in pair.lines if line.p is not None]
    corrected = iter(stats.holm(tested))
    return [
        replace(
            pair,
            lines=tuple(
                line if line.p is None else replace(line, corrected=next(corrected)) for line in pair.lines
            ),
        )
        for pair in pairs
    ]
