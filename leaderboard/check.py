"""Runs against a baseline: which got worse by more than they may, which did not, which cannot be told.

A row's *loss* is the baseline's number less the run's, or the reverse where lower is better, over the
samples that both scored, paired, clustered by image. Its interval holds together with those of all other
rows (1 - 0.05 / rows each). Wholly beyond the tolerance: worse. Wholly within it: good. Otherwise undecided,
and so are rows without a run, with an incomplete one, or with one that does not measure the same thing.

A run belongs to a row by what it was asked to be (task, protocol, model, methods, decoding), not by its id:
new weights, code or libraries change the id, and are what a baseline is there to judge. What differs is said.

It knows runs, baselines and statistics. It makes no answers, and how a verdict is printed, it does not know.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from harness import paired, store
from harness.errors import FoveaError
from harness.noninferiority import Measured, needed_samples, paired_jackknife
from harness.types import Metric, canonical, digest
from leaderboard._baseline import Baseline, Entry, Rerun, Samples, pack, read, write
from leaderboard.board import MetricFrom, _model_name
from leaderboard.compare import _differing, _incomparable, _Run

TOLERANCE = 0.02
FAMILY = 0.05
_ROUNDING = 1e-9
_HOPELESS = 1000  # times the samples there are; a loss is then as good as its tolerance

Verdict = Literal["good", "worse", "undecided", "incomplete", "not comparable", "missing"]
Recipe = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""How a run's answers can be made again, from its run.json: the specs of its task and model, and whether it
is local. Raises FoveaError saying why they cannot."""


@dataclass(frozen=True)
class Checked:
    """A row's verdict. before, now: the number over the samples that both scored, `n` of the `of` asked for.
    loss: None where the two cannot be paired. confidence: of its interval alone. better, worse: ids of the
    samples whose new answer alone would better or worsen the number. needed: about how many samples would
    decide it in 4 of 5 tries; None where it is decided or none would. differs: what differs in how the
    answers were made. reason: why it is neither good nor worse, as a sentence."""

    name: str
    verdict: Verdict
    number: str
    higher_is_better: bool
    tolerance: float
    before: float | None
    now: float | None = None
    loss: Measured | None = None
    confidence: float | None = None
    n: int = 0
    of: int = 0
    better: tuple[str, ...] = ()
    worse: tuple[str, ...] = ()
    needed: int | None = None
    path: Path | None = None
    differs: tuple[str, ...] = ()
    reason: str = ""

    @property
    def improved(self) -> bool:
        """Whether the whole interval is a gain."""
        return self.loss is not None and self.loss.high is not None and self.loss.high < -_ROUNDING


def exit_code(rows: Sequence[Checked]) -> int:
    """1 where a row is worse, 2 where none is but not all are good, else 0."""
    if any(row.verdict == "worse" for row in rows):
        return 1
    return 0 if all(row.verdict == "good" for row in rows) else 2


# ---------------------------------------------------------------- which run is whose


@dataclass(frozen=True)
class Matched:
    """runs: by row's name. reasons: why a row has none. others: runs of no row."""

    runs: Mapping[str, Path]
    reasons: Mapping[str, str]
    others: Sequence[Path]


def match(baseline: Baseline, paths: Sequence[Path]) -> Matched:
    """Which run is which row's.

    A run is a row's if it was asked to be the same: task, protocol, model's name, methods with their knobs,
    decoding. A row that finds none takes the only run left of this task, model and these methods with other
    knobs. Raises FoveaError where two runs are one row's.
    """
    asked = {path: store.read_run(path) for path in paths}
    found: dict[str, Path] = {}
    reasons: dict[str, str] = {}
    for same_samples in (True, False):  # a run over a row's own samples is no other row's
        for row in baseline.rows:
            samples = baseline.samples[row.samples]
            same = [
                path
                for path, content in asked.items()
                if path not in found.values()
                and row.name not in found
                and _is(row, content)
                and (not same_samples or content["selection"]["digest"] == samples.digest)
            ]
            if len(same) > 1:
                raise FoveaError(
                    f"two runs are the baseline's row {row.name}: {same[0]} and {same[1]}. Name one of them, "
                    "or folders that hold one"
                )
            if same:
                found[row.name] = same[0]
    alone = [row for row in baseline.rows if row.name not in found]
    for row in alone:
        wanted = _roughly(row.identity, row.methods)
        alike = [
            path
            for path, content in asked.items()
            if path not in found.values() and _roughly(content["identity"], content["methods"]) == wanted
        ]
        rivals = [other.name for other in alone if _roughly(other.identity, other.methods) == wanted]
        if len(alike) == len(rivals) == 1:
            found[row.name] = alike[0]
        elif alike:
            whose = f" or the run of {len(rivals) - 1} more rows" if len(rivals) > 1 else ""
            reasons[row.name] = (
                f"no run of it was given. With other knobs or decoding, {_some(alike)} could be it{whose}: "
                "give one run for each"
            )
    return Matched(found, reasons, [path for path in paths if path not in found.values()])


def _is(row: Entry, content: Mapping[str, Any]) -> bool:
    identity, methods = content["identity"], content["methods"]
    return bool(row.id == content["id"]) or _asked(row.identity, row.methods) == _asked(identity, methods)


def _some(things: Sequence[Any]) -> str:
    return f"{things[0]}" if len(things) == 1 else f"any of {len(things)} ({things[0]}, ...)"


def _asked(identity: Mapping[str, Any], methods: Sequence[str]) -> str:
    return canonical([_roughly(identity, []), methods, identity.get("decoding")])


def _roughly(identity: Mapping[str, Any], methods: Sequence[str]) -> str:
    task = identity["task"]
    names = [spec.partition(":")[0] for spec in methods]
    return canonical([task["name"], task["protocol"], _model_name(identity["model"]), names])


# ---------------------------------------------------------------- judging


def check(
    baseline: Baseline,
    runs: Mapping[str, Path],
    metric_from: MetricFrom,
    reasons: Mapping[str, str] | None = None,
) -> list[Checked]:
    """A verdict on every row of a baseline. runs: by row's name. reasons: why a row has none."""
    reasons = reasons or {}
    pairs: list[_Paired | Checked] = []
    for row in baseline.rows:
        if row.name in runs:
            pairs.append(_paired(baseline, row, runs[row.name], metric_from))
        else:
            reason = reasons.get(row.name, "no run of it was given")
            pairs.append(replace(_blank(baseline, row), verdict="missing", reason=reason))
    family = sum(isinstance(pair, _Paired) for pair in pairs)
    confidence = 1 - FAMILY / max(1, family)
    return [pair.judged(confidence) if isinstance(pair, _Paired) else pair for pair in pairs]


def _blank(baseline: Baseline, row: Entry) -> Checked:
    return Checked(
        name=row.name,
        verdict="undecided",
        number=row.number,
        higher_is_better=row.higher_is_better,
        tolerance=row.tolerance,
        before=row.value,
        of=len(baseline.keys(row)),
    )


class _Saved(_Run):
    """A baseline's row in the place of its run."""

    def __init__(self, baseline: Baseline, row: Entry) -> None:
        self.path = Path(row.name)
        self.content = {
            "id": row.id,
            "identity": row.identity,
            "methods": row.methods,
            "metrics": [row.metric],
            "selection": baseline.samples[row.samples].json,
            "breakdowns": [],
        }


class _Now(_Run):
    """A run, its paths written as a baseline writes them."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        given = {entry["key"]: entry for entry in self.content["metrics"]}
        self.given: Mapping[str, Mapping[str, Any]] = given
        self.content |= {name: _portable(self.content[name]) for name in ("identity", "metrics")}


def _paired(baseline: Baseline, row: Entry, path: Path, metric_from: MetricFrom) -> _Paired | Checked:
    """The row's counts beside its run's, or the verdict where they cannot be."""
    samples = baseline.samples[row.samples]
    before, now = _Saved(baseline, row), _Now(path)
    changes = tuple(change for part in _differing(before, now).values() for change in part)
    blank = replace(_blank(baseline, row), path=path, differs=(*changes, *_packages(row, now)))
    if why := _incomparable(before, now):
        return replace(blank, verdict="not comparable", reason="; ".join(why))
    status = now.content.get("status", "running")
    try:
        metric = metric_from(now.given[row.metric["key"]])
    except FoveaError as error:
        return replace(blank, reason=f"its metric cannot be made: {error}")
    counts = baseline.counts(row)
    if counts is None:
        return _of_the_corpus(blank, row, now, status)
    again = metric.reduce([count for count in counts if count is not None]).get(row.number)
    if again is None or not math.isclose(again, row.value, rel_tol=1e-6, abs_tol=_ROUNDING):
        reason = (
            f"the baseline's own answers give {_shown(again)} today, not {_shown(row.value)}: the arithmetic "
            f"of {row.metric['key']} has changed. Save the baseline again"
        )
        return replace(blank, verdict="not comparable", reason=reason)
    saved = dict(zip(baseline.keys(row), counts, strict=True))
    images = dict(zip(samples.ids, samples.clusters, strict=True))
    scored = [
        key
        for key, count in saved.items()
        if count is not None and key in now.rows and row.metric["key"] in now.rows[key].measures
    ]
    if not scored:
        return replace(blank, verdict="incomplete", reason=f"no sample has an answer; the run is {status}")
    missing = len(saved) - len(scored)
    unfinished = ""
    if status != "complete" or missing:
        unfinished = (
            f"{missing:,} of {len(saved):,} samples have no answer, and the run is {status}. What is missing "
            "may not be missing by chance: repeat the run's command"
        )
    return _Paired(
        blank,
        metric,
        [saved[key] for key in scored],
        [now.rows[key].measures[row.metric["key"]] for key in scored],
        [now.rows[name, k].cluster if images[name] is None else images[name] for name, k in scored],
        [f"{name}#{repeat}" if samples.repeats > 1 else name for name, repeat in scored],
        unfinished,
        samples.of * samples.repeats,
    )


def _of_the_corpus(blank: Checked, row: Entry, now: _Run, status: str) -> Checked:
    """A number without counts per sample: equal or undecided."""
    entry = now.content.get("summary", {}).get("metrics", {}).get(row.metric["key"], {})
    value = entry.get("scores", {}).get(row.number, {}).get("value")
    found = replace(blank, now=value, n=entry.get("n", 0))
    if status != "complete" or found.n != found.of:
        return replace(
            found, verdict="incomplete", reason=f"{found.n:,} of {found.of:,} scored; the run is {status}"
        )
    if value is not None and math.isclose(value, row.value, rel_tol=1e-6, abs_tol=_ROUNDING):
        return replace(found, verdict="good")
    reason = (
        "a number of the whole corpus has no counts per sample, so its loss has no interval: only an equal "
        "one is good. `fovea check --save --number` can guard another number of the run"
    )
    return replace(found, reason=reason)


def _packages(row: Entry, now: _Run) -> list[str]:
    """`torch: 2.12 → 2.13` of every package of another version."""
    versions = now.content.get("provenance", {}).get("packages", {})
    return [
        f"{name}: {before} → {versions.get(name, 'absent')}"
        for name, before in row.packages.items()
        if versions.get(name) != before
    ]


@dataclass(frozen=True)
class _Paired:
    """A row's counts before and now, of the same samples; to be judged once all are known."""

    blank: Checked
    metric: Metric
    before: Sequence[Any]
    now: Sequence[Any]
    clusters: Sequence[Any]
    ids: Sequence[str]
    unfinished: str
    all: int

    def judged(self, confidence: float) -> Checked:
        row = self.blank
        sides = (self.before, self.now) if row.higher_is_better else (self.now, self.before)
        loss = paired_jackknife(self.metric, *sides, self.clusters, confidence=confidence)[row.number]
        changed = paired.outcomes(self.metric, self.before, self.now)[row.number]
        ups, downs = (
            tuple(self.ids[at] for at in places)
            for places in ((changed.up, changed.down) if changed is not None else ((), ()))
        )
        found = replace(
            row,
            before=self.metric.reduce(self.before)[row.number],
            now=self.metric.reduce(self.now)[row.number],
            loss=loss,
            confidence=confidence,
            n=len(self.ids),
            better=ups if row.higher_is_better else downs,
            worse=downs if row.higher_is_better else ups,
        )
        if self.unfinished:
            return replace(found, verdict="incomplete", reason=self.unfinished)
        if self.before == self.now:  # so is the loss: none, however few they are
            return replace(found, verdict="good")
        if found.now is None:
            return replace(found, reason=f"{row.number} is undefined over the new answers")
        if loss.low is None or loss.high is None or loss.value is None or loss.error is None:
            return replace(found, reason="the loss has no interval: too few samples or images")
        if loss.low > row.tolerance + _ROUNDING:
            return replace(found, verdict="worse")
        if loss.high <= row.tolerance + _ROUNDING:
            return replace(found, verdict="good")
        gap = row.tolerance - loss.value
        needed = needed_samples(found.n, loss.error, gap, confidence)
        if needed is None or needed > _HOPELESS * found.n:
            return replace(found, reason="the loss is about the tolerance: no number of samples would decide")
        number = _rounded(needed)
        reason = f"about {number:,} samples would decide it, if the loss is what it seems over {found.n:,}"
        reason += f"; the task has only {self.all:,}" if self.all < number else ""
        return replace(found, needed=number, reason=reason)


def _rounded(number: float) -> int:
    """Up to two digits.

    >>> _rounded(1333.2), _rounded(87.1)
    (1400, 88)
    """
    unit = 10 ** max(0, math.floor(math.log10(number)) - 1)
    return int(math.ceil(number / unit) * unit)


def _shown(value: float | None) -> str:
    return "nothing" if value is None else f"{value:.6g}"


# ---------------------------------------------------------------- saving


class _Kept:
    """A run that is to become a row."""

    def __init__(self, path: Path, number: str | None) -> None:
        self.run = _Run(path)
        content = self.run.content
        summary = content.get("summary", {})
        if content.get("status") != "complete" or summary.get("scored") != summary.get("n"):
            scored = f"{summary.get('scored', 0):,} of {content['selection']['n']:,} samples are scored"
            raise FoveaError(
                f"{path} is no baseline: {scored}, and the run is {content.get('status', 'running')}. Repeat "
                "its command"
            )
        if not content["metrics"]:
            raise FoveaError(f"{path} is no baseline: a split without answers has no score")
        self.number = number or content["primary"]
        known = {
            name: entry
            for entry in reversed(content["metrics"])
            for name in summary["metrics"].get(entry["key"], {}).get("higher_is_better", {})
        }
        if self.number not in known:
            raise FoveaError(
                f"{path} has no number {self.number!r} that may be better or worse; there are: "
                + ", ".join(known)
            )
        self.metric = known[self.number]
        self.entry = summary["metrics"][self.metric["key"]]
        if self.entry["scores"][self.number]["value"] is None:
            raise FoveaError(f"{path} is no baseline: its {self.number} is undefined")

    @cached_property
    def samples(self) -> Samples:
        selection = self.run.content["selection"]
        places: dict[str, int] = {}
        clusters = []
        for name in selection["ids"]:
            cluster = self.run.rows[name, 0].cluster
            clusters.append(None if cluster == name else places.setdefault(cluster, len(places)))
        kept = {name: selection[name] for name in ("of", "repeats", "digest", "ids")}
        return Samples(**kept, clusters=clusters)

    @property
    def name(self) -> str:
        task = self.run.identity["task"]
        return f"{task['name']} ({task['protocol']}), {self.run.model}, {self.run.method}"


def save(
    path: Path,
    runs: Sequence[Path],
    *,
    tolerance: float | None = None,
    number: str | None = None,
    recipe: Recipe,
    warn: Callable[[str], None] = lambda _: None,
) -> Baseline:
    """Write complete runs as a baseline.

    tolerance: of every row; without it, rows that the file has already keep theirs, and others get 0.02.
    number: what is guarded, in place of each task's primary number. recipe: how a run is made again; where it
    raises, the row is saved without. Raises FoveaError for runs that cannot be a baseline.
    """
    if tolerance is not None and not 0 <= tolerance < math.inf:
        raise FoveaError(f"--tolerance is {tolerance:g}; it must be 0 or more, in the number's unit")
    known = {row.name: row.tolerance for row in read(path).rows} if path.exists() else {}
    kept = [_Kept(each, number) for each in runs]
    seen: dict[str, _Kept] = {}
    for each in kept:
        key = canonical([_asked(each.run.identity, each.run.content["methods"]), each.samples.digest])
        if key in seen:
            raise FoveaError(
                f"{seen[key].run.path} and {each.run.path} are one row, {each.name}: a later run could not "
                "tell whose it is. Name one of them"
            )
        seen[key] = each
    names = [each.name for each in kept]
    rows, samples = [], {}
    without: dict[str, list[str]] = {}
    for each in kept:
        name = each.name
        if names.count(name) > 1:
            name += f", {each.run.content['id'][:8]} over {len(each.samples.keys):,} samples"
        table = digest([each.samples.digest, each.samples.clusters])[:12]
        samples[table] = each.samples
        allowed = known.get(name, TOLERANCE) if tolerance is None else tolerance
        rerun: Rerun | None = None
        try:
            rerun = _rerun(each.run.content, recipe)
        except FoveaError as error:
            without.setdefault(str(error), []).append(name)
        rows.append(_entry(each, name, allowed, table, rerun))
    for why, names in without.items():
        warn(f"`fovea check` will have to be given the run of {_some(names)}: {why}")
    write(path, rows, samples)
    return read(path)


def _rerun(content: Mapping[str, Any], recipe: Recipe) -> Rerun:
    how = recipe(content)
    # a resumed run's own time is that of its last part; its answers' is that of their computation
    seconds = max(content["times"]["seconds"], content["spending"]["usage"]["seconds"])
    return Rerun(**how, seconds=round(seconds, 1))


# ---------------------------------------------------------------- running again


@dataclass(frozen=True)
class Again:
    """A row to be asked anew: the specs, samples and seed of its run."""

    name: str
    task: str
    model: str
    methods: Sequence[str]
    ids: Sequence[str]
    repeats: int
    seed: int


def again(baseline: Baseline, under: float) -> tuple[list[Again], dict[str, str]]:
    """The rows of local models that took under so many seconds; and why the others are none, by name."""
    rows, reasons = [], {}
    for row in baseline.rows:
        how, samples = row.rerun, baseline.samples[row.samples]
        if how is None:
            reasons[row.name] = "the baseline does not say how it is run again; give a run of it"
        elif not how.local:
            reasons[row.name] = f"{how.model} is not local, and asking it again costs money; give a run of it"
        elif how.seconds >= under:
            reasons[row.name] = (
                f"it took {how.seconds:,.0f} s, and --rerun-under is {under:g}; raise it, or give a run of it"
            )
        else:
            seed = row.identity["decoding"]["seed"]
            rows.append(Again(row.name, how.task, how.model, row.methods, samples.ids, samples.repeats, seed))
    return rows, reasons


def _entry(each: _Kept, name: str, tolerance: float, table: str, rerun: Rerun | None) -> Entry:
    key, content = each.metric["key"], each.run.content
    rows = each.run.rows
    measured = [rows[sample].measures.get(key) for sample in each.samples.keys]
    return Entry(
        name=name,
        tolerance=tolerance,
        number=each.number,
        value=each.entry["scores"][each.number]["value"],
        higher_is_better=each.entry["higher_is_better"][each.number],
        id=content["id"],
        methods=content["methods"],
        samples=table,
        metric=_portable(each.metric),
        identity=_portable(content["identity"]),
        packages=content["provenance"]["packages"],
        rerun=rerun,
        **({} if all(count is None for count in measured) else pack(measured)),
    )


def _portable(value: Any) -> Any:
    """Without the folders of this machine: of a path from the root, its last two parts.

    >>> _portable({"file": "/home/me/data/answers.csv", "n": [1, "a/b"]})
    {'file': 'data/answers.csv', 'n': [1, 'a/b']}
    """
    if isinstance(value, Mapping):
        return {name: _portable(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_portable(inner) for inner in value]
    if isinstance(value, str) and Path(value).is_absolute() and "\n" not in value:
        return "/".join(Path(value).parts[-2:])
    return value
