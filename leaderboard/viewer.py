"""A run's samples, or two runs' side by side, as a folder of pages: `index.html` and its data.

    <folder>/index.html      the frame, the filters, and the runs' headers
    <folder>/data/index.js   a line per sample: what the list shows and filters by
    <folder>/data/a-0.js     samples of the first run, in the order they were recorded; b-0.js of the second
    <folder>/data/text-0.js  what a search looks through
    <images>/                pictures by digest, shared by many exports
    <folder>/<assets>/       style and scripts, shared likewise

It works from `file://`: data are scripts that a page loads when it shows them. Records are read one after
the other, so that a run of any length exports in the memory of its list. What a record says reaches the page
as text; equal runs give equal bytes. It knows runs and records; tasks, models and methods by name, it does
not.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.errors import FoveaError, StoreError
from harness.store import Key, Record, read_records, read_run, read_trace
from harness.summary import slim
from harness.traces import trace_arrays
from harness.types import Json, Metric, Retrieval, Task
from leaderboard import _view_objects, _web
from leaderboard._view_pictures import Album, described
from leaderboard._view_sample import number, readable, shown
from leaderboard.board import MetricFrom, _model_name
from leaderboard.samples import Judge, Pictures, Verdict

SHARED = ("base.css", "theme.js", "view.css", "view.js")
CHUNK = (64, 2**18)
"""Samples in a file of data, and characters, at most: what showing one sample loads."""
TEXT = 2**21
"""Characters in a file of texts to search."""
SEARCHED = 10_000
"""Characters of a question, an answer or a target that a search looks through."""
SHORT = 110
"""Characters of a question or an answer in the list."""
_OURS = re.compile(r"((?:[ab]|text)-\d+)\.js")


def export(
    runs: Sequence[Path],
    folder: Path,
    *,
    images: Path,
    assets: str,
    task: Callable[[], Task | Retrieval],
    metric_from: MetricFrom,
    say: Callable[[str], None],
) -> list[str]:
    """Write the pages of one run, or of two of the same task, and say where; what could not be shown.

    images: the folder of the pictures; those that are there are not made again. assets: the folder of styles
    and scripts, as the page calls it. task: makes the runs' task again, for pictures that are not files.
    Raises FoveaError for runs that are not of one task, for another number of them, and where the folder
    cannot be written.
    """
    if not 1 <= len(runs) <= 2:
        raise FoveaError(f"one run can be viewed, or two side by side; {len(runs)} were named")
    headers = [read_run(run) for run in runs]
    _require_one_task(runs, headers)
    album = Album(images, Pictures(task))
    sides = [
        _Side(run, header, letter, folder, album, metric_from)
        for run, header, letter in zip(runs, headers, "ab", strict=False)
    ]
    for side in sides:
        side.read()
    texts = [(f"text-{place}", _web.script(part)) for place, part in enumerate(_texts(sides))]
    for name, part in texts:
        _write_data(folder, name, part)
    # A browser that kept a file of an earlier export must not mix it with these.
    version = _short_digest(*(side.digest.digest() for side in sides))
    listed = _web.script(_index(sides, len(texts)) | {"version": version})
    _web.write(folder / "data", {"index.js": f"fovea.start({listed});\n"})
    _forget(folder / "data", [*(name for side in sides for name in side.files), *(name for name, _ in texts)])
    _web.write(folder / assets, {name: _web.shared(name) for name in SHARED})
    page = _web.render(
        "view.html.j2",
        assets=assets,
        images=os.path.relpath(images, folder).replace(os.sep, "/"),
        task=headers[0]["identity"]["task"],
        sides=[side.told() for side in sides],
        version=_short_digest(listed.encode()),
    )
    _web.write(folder, {"index.html": page})
    say(str(folder / "index.html"))
    return [fault for side in sides for fault in side.faults()]


def own_folder(runs: Sequence[Path]) -> Path:
    """Where the pages of these runs are, unless they are put elsewhere: RUN/view, or of two runs
    results/view/<id8>-<id8>."""
    if len(runs) == 1:
        return runs[0] / "view"
    return Path("results/view") / "-".join(str(read_run(run)["id"])[:8] for run in runs)


def _require_one_task(runs: Sequence[Path], headers: Sequence[Mapping[str, Any]]) -> None:
    tasks = [header["identity"]["task"] for header in headers]
    for part in ("name", "version", "protocol", "fingerprint"):
        values = [task[part] for task in tasks]
        if len(set(values)) > 1:
            what = "data" if part == "fingerprint" else part
            raise FoveaError(
                f"{runs[0]} and {runs[1]} are not of one task: the {what} is {values[0][:20]} and "
                f"{values[1][:20]}. Two runs are viewed side by side where both answer the same samples"
            )
    if len(runs) == 2 and runs[0].resolve() == runs[1].resolve():
        raise FoveaError(f"{runs[0]} is both runs; name two, or one")


# ---------------------------------------------------------------- one run


@dataclass
class _Line:
    """What the list, the filters and the search need of a record. at: its file and its place in it. told: of
    the whole answer, equal where answers are."""

    at: tuple[int, int]
    mark: str
    value: float | None
    answer: str
    told: str
    question: str
    target: str
    groups: Mapping[str, Sequence[str]]
    text: str


@dataclass
class _Side:
    """One run on its way onto the page."""

    run: Path
    header: Mapping[str, Any]
    letter: str
    folder: Path
    album: Album
    metric_from: MetricFrom
    lines: dict[Key, _Line] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    verdict: Verdict = field(default_factory=Verdict)
    unseen: int = 0
    first_unseen: str = ""
    unread: dict[str, int] = field(default_factory=dict)
    unmarked: str = ""
    offers: bool = False
    """Whether its answers are other samples of it: a query's likeliest, of which the first decides."""

    def __post_init__(self) -> None:
        self._judge = Judge(self.header, self.metric_from)
        self._metrics: dict[str, Metric] = {}
        for entry in self.header["metrics"]:
            try:
                self._metrics[entry["key"]] = self.metric_from(entry)
            except FoveaError:
                continue  # its file or prompt has moved
        self._objects = {key: _view_objects.Objects(metric) for key, metric in self._metrics.items()}
        self.digest = hashlib.blake2b(digest_size=8)
        self._chunk: list[str] = []
        self._size = 0

    def asked(self) -> list[Key]:
        selection = self.header["selection"]
        return [(name, repeat) for repeat in range(selection["repeats"]) for name in selection["ids"]]

    def read(self) -> None:
        """Write the data of every record that was asked for. A key's last record counts."""
        wanted = set(self.asked())
        for record in read_records(self.run):
            if record.key in wanted:
                self._add(record)
        self._flush()

    def _add(self, record: Record) -> None:
        arrays = dict(trace_arrays(record.trace))
        try:
            arrays |= read_trace(self.run, record.key) or {}
        except StoreError as error:
            self.unread.setdefault(str(error), 0)
            self.unread[str(error)] += 1
        detail = shown(record, arrays)
        pictures, fault = described(self.album, record)
        if fault:
            self.unseen += 1
            self.first_unseen = self.first_unseen or f"{record.sample_id!r}: {fault}"
        verdict = self._judge(record)
        if verdict.value is None and "offers" in detail:
            self.offers = True
            verdict = Verdict("R@1", float(record.answer in record.targets))
        if verdict.value is not None:
            self.verdict = verdict
        detail |= {
            name: value
            for name, value in (
                ("pictures", pictures),
                ("numbers", self._numbers(record)),
                ("objects", self._marked(record)),
            )
            if value
        }
        self.lines[record.key] = self._line(record, verdict)
        self._chunk.append(_web.script(detail))
        self._size += len(self._chunk[-1])
        if len(self._chunk) >= CHUNK[0] or self._size >= CHUNK[1]:
            self._flush()

    def _flush(self) -> None:
        if self._chunk:
            name, content = f"{self.letter}-{len(self.files)}", f"[{','.join(self._chunk)}]"
            _write_data(self.folder, name, content)
            self.digest.update(content.encode())
            self.files.append(name)
            self._chunk, self._size = [], 0

    def _line(self, record: Record, verdict: Verdict) -> _Line:
        said = record.answer or record.text
        if record.failure is not None:
            said = f"{record.failure.kind}: {record.failure.message}"
        question = record.question or record.prompt
        targets = list(dict.fromkeys(map(str, record.targets)))
        searched = [record.sample_id, question, said, *targets]
        groups = slim(record, self.header["breakdowns"]).groups
        return _Line(
            (len(self.files), len(self._chunk)),
            _mark(record, verdict),
            number(verdict.value),
            _short(said),
            _short_digest(said.encode("utf-8", "surrogatepass")),
            _short(question),
            _short(" | ".join(targets[:8])),
            {name: [str(value) for value in values] for name, values in groups.items()},
            "\n".join(text[:SEARCHED] for text in searched),
        )

    def _numbers(self, record: Record) -> list[Json]:
        """[metric, [[name, value], ...]] of what this one sample gives, where a sample gives something."""
        found: list[Json] = []
        for key, metric in self._metrics.items():
            if key in record.measures and metric.scope == "sample":
                values = metric.reduce([record.measures[key]])
                told: list[Json] = [
                    [name, number(value)] for name, value in values.items() if value is not None
                ]
                if told:
                    found.append([key, told])
        return found

    def _marked(self, record: Record) -> dict[str, Json]:
        """The answer in pieces, where a metric counts its objects; how many it counted in all."""
        for key, objects in self._objects.items():
            counts: Any = record.measures.get(key)
            if record.answer and _view_objects.counts_objects(counts):
                try:
                    pieces = objects(record.answer, record.targets)
                except FoveaError as error:
                    self.unmarked = str(error)
                    return {}
                marks = [mark for _, mark in pieces if mark]
                return {
                    "pieces": [list(piece) for piece in pieces],
                    "counted": [counts["mentions"], counts["hallucinated"]],
                    "marked": [len(marks), marks.count(_view_objects.HALLUCINATED)],
                }
        return {}

    def told(self) -> dict[str, Any]:
        """What the page's head says of the run."""
        header = self.header
        summary = header.get("summary") or {}
        entry = header["metrics"][0]["key"] if header["metrics"] else ""
        scores = summary.get("metrics", {}).get(entry, {}).get("scores", {})
        score = scores.get(header["primary"]) or {}
        return {
            "letter": self.letter.upper(),
            "id": str(header["id"])[:8],
            "model": _model_name(header["identity"]["model"]),
            "method": " > ".join(header["methods"]) or "no method",
            "status": header.get("status", "running"),
            "number": header["primary"],
            "metric": entry,
            "value": number(score.get("value")),
            "low": number(score.get("low")),
            "high": number(score.get("high")),
            "n": len(self.asked()),
            "there": len(self.lines),
            "failed": sum(line.mark == "f" for line in self.lines.values()),
            "identity": readable(
                {name: header["identity"][name] for name in header["identity"] if name != "task"}
            ),
        }

    def faults(self) -> Iterator[str]:
        if self.unseen:
            samples = "1 sample has" if self.unseen == 1 else f"{self.unseen:,} samples have"
            yield f"{samples} a picture that is not shown, such as {self.first_unseen}"
        for message, count in list(self.unread.items())[:5]:
            yield message if count == 1 else f"{message} ({count:,} times)"
        if len(self.unread) > 5:
            yield f"and {len(self.unread) - 5:,} more traces that cannot be read"
        if self.unmarked:
            yield f"objects in captions are not marked: {self.unmarked}"


def _mark(record: Record, verdict: Verdict) -> str:
    """r right, w wrong, p partly, f failed, u without a verdict."""
    if record.failure is not None:
        return "f"
    if verdict.value is None:
        return "u"
    return "r" if verdict.right else "w" if verdict.wrong else "p"


def _short_digest(*parts: bytes) -> str:
    return hashlib.blake2b(b"".join(parts), digest_size=8).hexdigest()


def _short(text: str) -> str:
    """The beginning of a text on one line."""
    line = " ".join(text[: 4 * SHORT].split())
    return line if len(line) <= SHORT else f"{line[: SHORT - 1]}…"


# ---------------------------------------------------------------- the list


def _keys(sides: Sequence[_Side]) -> list[Key]:
    """What was asked for: in the first run's order, then what only the second was asked."""
    return list(dict.fromkeys(key for side in sides for key in side.asked()))


def _index(sides: Sequence[_Side], texts: int) -> dict[str, Json]:
    """The list, column by column: a sample is a place in each of them.

    Of each side, per sample: mark ("n" where the run has no record of it), value, file and place of its
    data, answer. same: of two sides, whether their answers are. groups: name, its values, and which of them
    each sample has.
    """
    keys = _keys(sides)
    found: dict[str, Json] = {
        "ids": [name for name, _ in keys],
        "repeats": [repeat for _, repeat in keys] if any(repeat for _, repeat in keys) else [],
        "texts": texts,
        "offers": any(side.offers for side in sides),
        "groups": _groups(sides, keys),
    }
    either = [next((side.lines[key] for side in sides if key in side.lines), None) for key in keys]
    found["questions"] = [line.question if line else "" for line in either]
    found["targets"] = [line.target if line else "" for line in either]
    if len(sides) == 2:  # whether both answered, and said the same
        both = [[side.lines.get(key) for side in sides] for key in keys]
        found["same"] = "".join("1" if a and b and a.told == b.told else "0" for a, b in both)
    found["sides"] = [_column(side, [side.lines.get(key) for key in keys]) for side in sides]
    return found


def _column(side: _Side, lines: Sequence[_Line | None]) -> dict[str, Json]:
    return {
        "number": side.verdict.name,
        "higher": side.verdict.higher_is_better,
        "marks": "".join(line.mark if line else "n" for line in lines),
        "values": [line.value if line else None for line in lines],
        "files": [line.at[0] if line else -1 for line in lines],
        "places": [line.at[1] if line else -1 for line in lines],
        "answers": [line.answer if line else "" for line in lines],
    }


def _groups(sides: Sequence[_Side], keys: Sequence[Key]) -> list[Json]:
    """[name, values, per sample the places of its values]: of those that tell samples apart."""
    of = [next((side.lines[key].groups for side in sides if key in side.lines), {}) for key in keys]
    found: list[Json] = []
    for name in sorted({name for groups in of for name in groups}):
        values = sorted({value for groups in of for value in groups.get(name, ())})
        place = {value: number for number, value in enumerate(values)}
        if len(values) > 1:
            found.append([name, values, [[place[value] for value in groups.get(name, ())] for groups in of]])
    return found


def _texts(sides: Sequence[_Side]) -> list[list[Json]]:
    """Per sample the text that a search looks through, in files of `TEXT` characters."""
    files: list[list[Json]] = []
    size = TEXT
    for key in _keys(sides):
        text = "\n".join(side.lines[key].text for side in sides if key in side.lines)
        if size >= TEXT:
            files.append([])
            size = 0
        files[-1].append(text or key[0])
        size += len(text)
    return files


def _write_data(folder: Path, name: str, rows: str) -> None:
    _web.write(folder / "data", {f"{name}.js": f'fovea.take("{name}",{rows});\n'})


def _forget(folder: Path, written: Sequence[str]) -> None:
    """Remove the data files of an earlier, longer export."""
    for path in sorted(folder.iterdir()):
        if (ours := _OURS.fullmatch(path.name)) and ours[1] not in written:
            path.unlink(missing_ok=True)
