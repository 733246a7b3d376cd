"""What a board says of runs, which of them it ranks together, and that what it kept is never stale."""

import io
import json
import math
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from rich.console import Console
from statsmodels.stats.multitest import multipletests

from adapters.scripted import Scripted
from harness import engine, resolve, store
from harness.errors import StoreError
from harness.types import Method, Request, Response, Sample, Task, Usage
from leaderboard import _kept, _pairs
from leaderboard.board import Comparison, Cost, Row, comparisons
from leaderboard.compare import compare
from leaderboard.terminal import table
from metrics import chair, exact
from tests.test_engine import make_task
from tests.test_money import Shop, Twice, board


def test_a_board_shows_calls_tokens_and_time_per_sample_and_against_no_method(tmp_path: Path) -> None:
    plain = Usage(calls=1, tokens_in=600, tokens_out=50, seconds=0.5)

    @dataclass(frozen=True)
    class Parts(Method):
        name: ClassVar[str] = "parts"

        def generate(self, requests: Sequence[Request]) -> list[Response]:
            return [
                replace(one, usage=Usage(calls=13, tokens_in=7800, tokens_out=2, seconds=7.0))
                for one in self.model.generate(requests)
            ]

    model = Scripted(lambda _: Response("yes", usage=plain))
    runs = [engine.run(make_task(10), model, methods, out=tmp_path).path for methods in ([], [Parts])]
    headings, rows = board(runs)
    assert headings[5:] == ["calls", "tokens\nin + out", "seconds"]
    assert rows["none"][5:] == ["1", "600 + 50", "0.500"]
    assert rows["parts"][5:] == ["13\n× 13", "7.8k + 2\n× 12", "7\n× 14"]
    (comparison,) = comparisons(runs, lambda _: exact.metric())
    row = next(row for row in comparison.rows if row.method == "parts")
    assert row.cost == Cost(13, 7800, 2, 7802, 7.0, 0, None)
    assert row.times == Cost(13, 13, 0.04, pytest.approx(7802 / 650), 14, None, None)


def test_what_failed_was_paid_for_and_costs_those_that_were_scored(tmp_path: Path) -> None:
    usage = Usage(calls=1, tokens_in=100, dollars=0.01)

    def answer(request: Request) -> Response:
        if "7" in request.text:
            return Response.failed("timeout", "slow", usage=usage)
        return Response("yes", usage=usage)

    task = make_task(10, request=lambda sample: Request(question=f"{sample.id}?"))
    run = engine.run(task, Scripted(answer), out=tmp_path)
    (row,) = comparisons([run.path], lambda _: exact.metric())[0].rows
    assert 0 < row.scored < 10 and row.usage.calls == 10
    assert row.cost.calls == 10 / row.scored and row.times is None


def test_a_method_without_its_identity_arm_has_a_cost_and_no_ratio(tmp_path: Path) -> None:
    run = engine.run(make_task(20), Shop(), [Twice], out=tmp_path).path
    _, rows = board([run])
    assert rows["twice"][2] == "twice\n(no identity arm)"
    assert rows["twice"][8] == "0.0200"


def test_a_narrow_terminal_loses_what_says_least_and_never_the_score(tmp_path: Path) -> None:
    runs = [engine.run(make_task(20), Shop(), methods, out=tmp_path).path for methods in ([], [Twice])]
    (comparison,) = comparisons(runs, lambda _: exact.metric())
    lost: list[str] = []
    for width in range(160, 20, -1):
        console = Console(width=width, file=io.StringIO())
        shown = table(comparison, width)
        headings = [str(column.header).split("\n")[0] for column in shown.columns]
        assert console.measure(shown).maximum <= width or len(headings) == 5
        lost += [one for one in ("calls", "tokens", "seconds", "$", "$ in all") if one not in headings + lost]
    assert lost == ["$ in all", "seconds", "tokens", "calls", "$"]
    assert headings == ["#", "model", "method", "accuracy", "scored"]


def test_a_board_of_long_names_fits_into_120_columns(tmp_path: Path) -> None:
    model = Scripted(lambda _: "yes", name="llava-hf/llava-v1.6-mistral-7b-hf")
    knobs = "patch_matters:aggregator=(openai:gpt-4o,temperature=0),detector=detr:facebook/detr-resnet-50"
    runs = [engine.run(make_task(20), model, methods, out=tmp_path).path for methods in ([], [Twice])]
    (comparison,) = comparisons(runs, lambda _: exact.metric())
    rows = tuple(
        replace(row, method=knobs, usage=replace(row.usage, dollars=1.0)) if row.times else row
        for row in comparison.rows
    )
    console = Console(width=120, file=io.StringIO())
    console.print(table(replace(comparison, rows=rows), console.width))
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert max(map(len, shown.splitlines())) <= 120
    assert "…" not in shown and "$" in shown, "no cell is cut"


def test_the_difference_is_over_the_samples_asked_for_like_the_score(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Late(Method):
        """Right where the plain model is wrong, among the last two samples only."""

        name: ClassVar[str] = "late"

        def generate(self, requests: Sequence[Request]) -> list[Response]:
            return [replace(one, text="yes") for one in self.model.generate(requests)]

    task = make_task(10, request=lambda sample: Request(question=sample.id))
    ids = [sample.id for sample in task.samples]
    model = Scripted(lambda request: "no" if request.text in ids[-2:] else "yes")
    for methods in ([], [Late]):
        engine.run(task, model, methods, out=tmp_path)
    runs = [engine.run(task, model, methods, out=tmp_path, limit=5).path for methods in ([], [Late])]
    (comparison,) = comparisons(runs, lambda _: exact.metric())
    (row,) = (row for row in comparison.rows if row.method == "late")
    assert row.difference is not None and row.difference.value == 0


# ---------------------------------------------------------------- what is ranked with what


@dataclass(frozen=True)
class Knows(Method):
    """Answers numbers below `until` rightly, and others as the model within."""

    until: int = 6
    fidelity: str = "fixed"
    name: ClassVar[str] = "knows"

    def generate(self, requests: Sequence[Request]) -> list[Response]:
        numbers = [int(request.question.rstrip("?")) for request in requests]
        inner = self.model.generate(requests)
        return [
            replace(one, text=str(k)) if k < self.until else one
            for k, one in zip(numbers, inner, strict=True)
        ]


def third(request: Request) -> str:
    number = request.question.rstrip("?")
    return number if int(number) % 3 == 0 else "?"


def run(
    out: Path,
    methods: Sequence[Any] = (),
    task: Task | None = None,
    answer: Callable[[Request], Any] = third,
    name: str = "function",
    **knobs: Any,
) -> Path:
    return engine.run(task or make_task(), Scripted(answer, name), methods, out=out, **knobs).path


def until(number: int) -> Callable[[Any], Knows]:
    return lambda model: Knows(model, number)


def boards(*paths: Path) -> list[Comparison]:
    return comparisons(paths, resolve.metric_from)


def row_of(path: Path, *others: Path) -> Row:
    (found,) = (row for one in boards(path, *others) for row in one.rows if row.path == path)
    return found


def rewritten(path: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """The run with another header; its samples as they were."""
    content = json.loads((path / store.RUN).read_text())
    change(content)
    (path / store.RUN).write_text(json.dumps(content))
    return path


def apart(*paths: Path) -> bool:
    """Whether each run is ranked first, in a table of its own."""
    return [[row.rank for row in one.rows] for one in boards(*paths)] == [[1]] * len(paths)


@pytest.mark.parametrize("part", ["version", "protocol", "fingerprint", "name"])
def test_rows_of_another_task_version_protocol_or_data_are_not_ranked_together(
    tmp_path: Path, part: str
) -> None:
    assert apart(run(tmp_path), run(tmp_path, task=make_task(**{part: "other"}), name="b"))


def test_rows_of_another_variant_are_not_ranked_together(tmp_path: Path) -> None:
    task = make_task(metrics=(exact.metric("vicrop"),))
    assert apart(run(tmp_path), run(tmp_path, task=task, name="b"))


def test_a_knob_that_the_metrics_name_does_not_show_separates_rows_too(tmp_path: Path) -> None:
    samples = [Sample(str(k), question=f"{k}?", targets=("dog",)) for k in range(4)]
    metrics = [chair.metric("rules"), chair.metric("rules", "coco")]
    tasks = [make_task(samples=samples, metrics=(one,), primary="CHAIRi") for one in metrics]
    paths = [
        run(tmp_path, task=task, answer=lambda _: "A dog.", name=name)
        for task, name in zip(tasks, "ab", strict=True)
    ]
    assert not apart(*paths), "the same knobs"
    rewritten(paths[1], lambda content: content["metrics"][0]["knobs"].update(vocabulary="other"))
    assert apart(*paths)


def test_rows_over_other_samples_or_as_often_repeated_are_not_ranked_together(tmp_path: Path) -> None:
    paths = [run(tmp_path), run(tmp_path, limit=10, name="b"), run(tmp_path, repeats=2, name="c")]
    assert apart(*paths)


def test_an_oracle_run_is_shown_unranked_and_says_so(tmp_path: Path) -> None:
    best = rewritten(run(tmp_path, [until(20)]), lambda content: content["identity"].update(oracle=True))
    row = row_of(best, run(tmp_path))
    assert (row.rank, row.note, row.score.value) == (None, "oracle", 1.0)
    assert row.difference is not None and row.difference.value == pytest.approx(0.65)


def test_equal_scores_share_a_rank(tmp_path: Path) -> None:
    paths = [run(tmp_path, name=name) for name in "ab"] + [run(tmp_path, [until(0)])]
    (comparison,) = boards(*paths, run(tmp_path, answer=lambda _: "?", name="c"))
    assert [row.rank for row in comparison.rows] == [1, 1, 1, 4]


def test_a_copy_of_a_run_is_the_same_run_and_a_repeat_is_another(tmp_path: Path) -> None:
    first = run(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "copy")
    copy = tmp_path / "copy" / first.relative_to(tmp_path / "a")
    (comparison,) = boards(first, copy)
    assert [(row.path, row.note) for row in comparison.rows] == [(first, "")]
    rewritten(copy, lambda content: content["provenance"].update(started="2020-01-01T00:00:00+00:00"))
    (comparison,) = boards(first, copy)
    assert [(row.rank, row.note) for row in comparison.rows] == [(1, "run 1 of 2"), (1, "run 2 of 2")]


def test_of_two_identity_arms_the_one_in_the_runs_own_folder_is_meant(tmp_path: Path) -> None:
    for name, good in (("a", 20), ("b", 0)):

        def answer(request: Request, good: int = good) -> str:
            number = int(request.question.rstrip("?"))
            return str(number) if number < good else "?"

        run(tmp_path / name, answer=answer)
        run(tmp_path / name, [until(10)], answer=answer)
    paths = store.find_runs(tmp_path)
    for order in (paths, paths[::-1]):
        (comparison,) = boards(*order)
        found = {row.path.relative_to(tmp_path).parts[0]: row for row in comparison.rows if row.difference}
        differences = {name: row.difference.value for name, row in found.items() if row.difference}
        assert differences == {"a": 0.0, "b": 0.5}


def test_a_run_that_still_runs_is_shown_with_how_far_it_is(tmp_path: Path) -> None:
    ended, running = run(tmp_path), run(tmp_path, [until(6)])
    rewritten(
        running,
        lambda content: [content.pop(name) for name in ("status", "summary", "spending", "times")],
    )
    lines = (running / store.RECORDS).read_bytes().splitlines(keepends=True)
    (running / store.RECORDS).write_bytes(b"".join(lines[:7]) + lines[7][:40])
    row = row_of(running, ended)
    assert (row.rank, row.status, row.note) == (None, "running", "running")
    assert (row.scored, row.n, row.score.value, row.difference) == (7, 20, None, None)
    (comparison,) = boards(ended, running)
    assert [row.rank for row in comparison.rows] == [1, None]
    out = table(comparison)
    assert [line.style for line in out.rows] == [None, "dim"]
    cells = [list(column.cells) for column in out.columns]
    assert [str(cell) for cell in list(zip(*cells, strict=True))[1]][2:5] == [
        "knows\n(running)",
        "",
        "7 of 20",
    ]


def test_an_interrupted_run_keeps_its_score_and_no_rank(tmp_path: Path) -> None:
    def answer(request: Request) -> str:
        if request.question == "9?":
            raise KeyboardInterrupt
        return "?"

    path = run(tmp_path, answer=answer, batch=3)
    row = row_of(path)
    assert (row.rank, row.note, row.scored, row.n, row.score.value) == (None, "interrupted", 9, 20, 0.0)
    assert row_of(run(tmp_path, [until(6)], answer=lambda _: "?"), path).note == (
        "identity arm is interrupted"
    )


def test_a_row_says_where_it_comes_from(tmp_path: Path) -> None:
    task = make_task(spec="numbers:split=val", version="7")
    released = run(tmp_path, [lambda model: Knows(model, 3, "released"), until(6)], task=task)
    fixed, plain = run(tmp_path, [until(6)], task=task), run(tmp_path, task=task)
    content = store.read_run(plain)
    rewritten(plain, lambda content: content["provenance"].update(commit={"sha": "abc", "dirty": True}))
    rewritten(fixed, lambda content: content["provenance"].update(commit=None))
    (comparison,) = boards(released, fixed, plain)
    assert (comparison.split, comparison.version) == ("val", "7")
    rows = {row.path: row for row in comparison.rows}
    assert [rows[path].fidelity for path in (released, fixed, plain)] == ["released", "fixed", ""]
    assert (rows[plain].commit, rows[fixed].commit) == ("abc+", "")
    assert rows[plain].date == content["provenance"]["started"] and rows[plain].variant == "llava"


# ---------------------------------------------------------------- the difference


def test_a_rows_difference_and_p_are_those_of_compare(tmp_path: Path) -> None:
    """Few flips are counted, many drawn; failures leave pairs of unequal sizes, which share no batch."""

    def answer(request: Request) -> str | Response:
        number = int(request.question.rstrip("?"))
        if number % 11 == 5:
            return Response.failed("timeout", "slow")
        return str(number) if number % 3 == 0 else "?"

    task = make_task(90)
    paths = [run(tmp_path, task=task), run(tmp_path, task=task, answer=answer, name="b")]
    methods = [run(tmp_path, [until(k)], task=task) for k in (3, 12, 60)]
    methods += [run(tmp_path, [until(k)], task=task, answer=answer, name="b") for k in (9, 70)]
    (comparison,) = boards(*paths, *methods)
    arms = {"scripted:function": paths[0], "scripted:b": paths[1]}
    tested = [row for row in comparison.rows if row.difference]
    assert len(tested) == 5
    for row in tested:
        (pair,) = compare([(arms[row.model], row.path)], resolve.metric_from)
        (line,) = pair.lines
        assert row.difference == line.found.difference and row.p == line.found.chance.p
    p = [row.p for row in tested if row.p is not None]
    assert len(set(p)) > 2 and min(p) < 0.001 < 0.1 < max(p)
    assert [row.corrected for row in tested] == pytest.approx(multipletests(p, method="holm")[1])


def test_the_correction_is_over_the_rows_of_a_table_and_no_others(tmp_path: Path) -> None:
    tasks = [make_task(), make_task(protocol="other")]
    paths = [run(tmp_path, m, task=task) for task in tasks for m in ([], [until(11)])]
    alone = [row.corrected for row in boards(*paths[:2])[0].rows if row.p]
    together = [row.corrected for one in boards(*paths) for row in one.rows if row.p]
    assert alone == [pytest.approx(2 / 2**7)] and together == alone * 2
    more = boards(*paths[:2], run(tmp_path, [until(3)], task=tasks[0]))[0]
    assert {row.path: row.corrected for row in more.rows}[paths[1]] == pytest.approx(2 * alone[0])


def test_a_star_marks_what_is_not_chance_and_the_caption_explains_it(tmp_path: Path) -> None:
    task = make_task(60)
    paths = [run(tmp_path, task=task), *(run(tmp_path, [until(k)], task=task) for k in (3, 40))]
    (comparison,) = boards(*paths)
    out = table(comparison)
    shown = [str(cell) for cell in out.columns[3].cells]
    assert [cell.endswith("*") for cell in shown] == [True, False, False]
    assert "Holm" in str(out.caption) and "p < 0.05" in str(out.caption)
    assert [str(cell).split("\n")[1:] for cell in out.columns[4].cells] == [["<0.001"], ["0.500"], []]
    plain = table(boards(paths[0])[0])
    assert "Holm" not in str(plain.caption) and "*" not in str(list(plain.columns[3].cells))


# ---------------------------------------------------------------- the fast reader


def record(**changes: Any) -> store.Record:
    known = store.Record("1", group="g", text="a", measures={"exact[llava]": {"score": 1.0, "scored": 1}})
    return replace(known, **changes)


def through(path: Path, key: str = "exact[llava]") -> dict[store.Key, tuple[str, Any]]:
    """What `read_counts` reads, by `read_records`."""
    return {
        one.key: (one.group or one.sample_id, one.measures[key])
        for one in store.read_records(path)
        if one.failure is None and key in one.measures
    }


def written(path: Path, lines: Sequence[str | bytes]) -> Path:
    path.mkdir(exist_ok=True)
    data = [line.encode("utf-8", "surrogatepass") if isinstance(line, str) else line for line in lines]
    (path / store.RECORDS).write_bytes(b"\n".join(data))
    return path


@pytest.mark.parametrize(
    "other",
    [
        record(sample_id="é", text="naïve — 例"),
        record(sample_id="half \ud83d", text="\udc80"),
        record(sample_id="2", measures={"exact[llava]": {"score": math.nan, "scored": 1}}),
        record(sample_id="2", repeat=3, group=None),
        record(sample_id="2", measures={"other": [1, "x", None]}),
        record(sample_id="2", failure=Response.failed("timeout", "slow").failure, measures={}),
        record(measures={"exact[llava]": {"score": 0.0, "scored": 1}}),
        record(
            sample_id="2", usage=Usage(dollars=None), trace={"deep": {"er": [1.5]}}, option_nll=((0.5, 2),)
        ),
    ],
)
def test_counts_read_fast_are_those_of_whole_records(tmp_path: Path, other: store.Record) -> None:
    lines = [record().line(), other.line(), record(sample_id="9").line(), ""]
    path = written(tmp_path / "run", lines)
    wanted = through(path)
    assert str(store.read_counts(path, "exact[llava]")) == str(wanted) and len(wanted) >= 2


def test_a_torn_last_line_is_no_record_however_it_reads(tmp_path: Path) -> None:
    whole = record(sample_id="9").line()
    for torn in (whole, whole[:50]):
        path = written(tmp_path / "run", [record().line(), torn])
        assert list(store.read_counts(path, "exact[llava]")) == [("1", 0)]
    assert store.read_counts(tmp_path, "exact[llava]") == {}, "no records yet"


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{}",
        b"not json",
        b"[1]",
        record().line().encode().replace(b'"schema":1', b'"schema":2'),
        record().line().encode().replace(b'"schema":1', b'"schema":1,"nobody":0'),
        record().line().encode().replace(b'"text":"a"', b'"text":"\xff"'),
    ],
)
def test_a_line_that_is_no_record_is_named_by_either_reader(tmp_path: Path, line: bytes) -> None:
    path = written(tmp_path / "run", [record().line(), line, record(sample_id="9").line(), ""])
    messages = []
    for read in (through, lambda path: store.read_counts(path, "exact[llava]")):
        with pytest.raises(StoreError, match="line 2 is not a record") as caught:
            read(path)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_a_file_larger_than_a_block_is_read_in_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_READ", 500)
    path = written(tmp_path / "run", [*(record(sample_id=str(k)).line() for k in range(40)), ""])
    assert list(store.read_counts(path, "exact[llava]")) == [(str(k), 0) for k in range(40)]
    lines = (path / store.RECORDS).read_bytes().splitlines()
    written(path, [*lines[:30], b"{}", b""])
    with pytest.raises(StoreError, match="line 31 is"):
        store.read_counts(path, "exact[llava]")


# ---------------------------------------------------------------- what is kept


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """A board of three, old enough to be trusted, whose every difference is worth keeping."""
    monkeypatch.setattr(_pairs, "WORTH", 1)
    monkeypatch.setattr(_kept, "YOUNG", 0.0)
    monkeypatch.setattr(_pairs, "MOST", 1)
    out = tmp_path / "runs"
    yield [run(out), run(out, [until(6)]), run(out, [until(12)])]


def read_by(paths: Sequence[Path], monkeypatch: pytest.MonkeyPatch) -> tuple[list[Comparison], list[str]]:
    """The board, and of which runs it read the records."""
    seen: list[str] = []
    read = store.read_counts
    with monkeypatch.context() as patched:
        patched.setattr(store, "read_counts", lambda path, key: seen.append(path.name) or read(path, key))
        return comparisons(paths, resolve.metric_from), seen


def fresh(paths: Sequence[Path]) -> list[Comparison]:
    """The board without what is kept."""
    kept = paths[0].parents[2] / _kept.FILE
    kept.unlink(missing_ok=True)
    return comparisons(paths, resolve.metric_from)


def test_an_unchanged_board_reads_no_record_and_says_the_same(
    runs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, seen = read_by(runs, monkeypatch)
    assert sorted(seen) == sorted(path.name for path in runs)
    again, seen = read_by(runs, monkeypatch)
    assert seen == [] and again == first
    (runs[0].parents[2] / _kept.FILE).unlink()
    assert read_by(runs, monkeypatch)[0] == first


def flip(path: Path) -> None:
    """One wrong answer becomes right, in a file of the same size."""
    data = (path / store.RECORDS).read_bytes()
    (path / store.RECORDS).write_bytes(data.replace(b'"score":0.0', b'"score":1.0', 1))


def append(path: Path) -> None:
    with (path / store.RECORDS).open("a") as out:
        out.write(record(sample_id="19").line() + "\n")


def replaced(path: Path) -> None:
    """Another file of the same size and the same times, moved into its place."""
    file = path / store.RECORDS
    times = file.stat()
    draft = path / "draft"
    draft.write_bytes(file.read_bytes().replace(b'"score":0.0', b'"score":1.0', 1))
    os.utime(draft, ns=(times.st_atime_ns, times.st_mtime_ns))
    draft.replace(file)


def in_place(path: Path) -> None:
    """Another answer, in the same file, at the same time of change as far as anybody can set it."""
    file = path / store.RECORDS
    times = file.stat()
    time.sleep(0.02)  # a tick of the file system's clock
    flip(path)
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))


def rescored(path: Path) -> None:
    engine.score(path, [exact.metric("vicrop")])


@pytest.mark.parametrize(
    "change", [flip, append, replaced, in_place, rescored, lambda path: (path / store.RUN).touch()]
)
@pytest.mark.parametrize("which", [0, 1])
def test_what_changed_is_read_again(
    runs: list[Path], monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None], which: int
) -> None:
    before, _ = read_by(runs, monkeypatch)
    change(runs[which])
    after, seen = read_by(runs, monkeypatch)
    assert runs[which].name in seen and (runs[2].name in seen) == (which == 0)
    assert after == fresh(runs)
    if change in (flip, replaced, in_place, append):
        assert [row.difference for row in after[0].rows] != [row.difference for row in before[0].rows]


def test_another_line_of_the_arithmetic_is_another_key(
    runs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    read_by(runs, monkeypatch)
    monkeypatch.setattr(_kept, "code_of", lambda *parts: ["other"])
    assert read_by(runs, monkeypatch)[1]


def test_a_file_that_may_change_unseen_is_not_trusted(
    runs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_kept, "YOUNG", 3600.0)
    read_by(runs, monkeypatch)
    assert len(read_by(runs, monkeypatch)[1]) == 3


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"a": 1}', b'{"a": ["k", ["x", 0, 0, 0]]}', b"\xff"])
def test_a_kept_file_that_cannot_be_read_is_none(
    runs: list[Path], monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    wanted, _ = read_by(runs, monkeypatch)
    kept = runs[0].parents[2] / _kept.FILE
    kept.write_bytes(content)
    assert read_by(runs, monkeypatch)[0] == wanted
    assert read_by(runs, monkeypatch) == (wanted, []), "written anew"


def test_where_nothing_can_be_kept_the_board_is_the_same(
    runs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = runs[0].parents[2]
    (out / _kept.FILE).mkdir()  # in the file's place
    wanted, seen = read_by(runs, monkeypatch)
    assert len(seen) == 3 and read_by(runs, monkeypatch) == (wanted, seen)
    assert [path.name for path in out.iterdir() if path.name.startswith(_kept.FILE)] == [_kept.FILE]
    (out / _kept.FILE).rmdir()
    assert read_by(runs, monkeypatch) == (wanted, seen) and read_by(runs, monkeypatch) == (wanted, [])


def test_runs_that_are_gone_are_forgotten_and_others_are_not(
    runs: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    read_by(runs, monkeypatch)
    shutil.rmtree(runs[1])
    flip(runs[2])
    read_by([runs[0], runs[2]], monkeypatch)
    kept = json.loads((runs[0].parents[2] / _kept.FILE).read_text())
    assert [name.split("/")[-1] for name in kept] == [runs[2].name]


def test_each_folder_of_runs_keeps_its_own(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = [run(tmp_path / "elsewhere", [until(k)], name="b") for k in (3, 9)]
    other.append(run(tmp_path / "elsewhere", name="b"))
    loose = tmp_path / "loose"
    shutil.move(other[1], loose)
    everything = [*runs, other[0], loose, other[2]]
    wanted, _ = read_by(everything, monkeypatch)
    again, seen = read_by(everything, monkeypatch)
    assert again == wanted and sorted(seen) == sorted([loose.name, other[2].name])
    assert {path.parent.name for path in tmp_path.rglob(_kept.FILE)} == {"runs", "elsewhere"}


def _board(paths: Sequence[Path], times: int) -> None:
    for _ in range(times):
        for kept in paths[0].parents[2].glob(_kept.FILE):
            kept.unlink(missing_ok=True)
        comparisons(paths, resolve.metric_from)


def test_boards_at_once_do_not_spoil_what_is_kept(runs: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = fresh(runs)
    context = multiprocessing.get_context("fork")
    others = [context.Process(target=_board, args=(runs, 5)) for _ in range(3)]
    for process in others:
        process.start()
    for _ in range(10):
        assert comparisons(runs, resolve.metric_from) == wanted
    for process in others:
        process.join()
        assert process.exitcode == 0
    assert read_by(runs, monkeypatch)[0] == wanted


def test_several_processes_find_what_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = make_task(30)
    paths = [run(tmp_path, task=task), *(run(tmp_path, [until(k)], task=task) for k in (3, 9, 15, 21))]
    alone = comparisons(paths, resolve.metric_from)
    monkeypatch.setattr(_pairs, "WORTH", 1)
    monkeypatch.setattr(_pairs, "AT_ONCE", 60)
    monkeypatch.setattr(_kept, "YOUNG", 3600.0)
    monkeypatch.setattr(_pairs.os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(_pairs.threading, "active_count", lambda: 1)
    started: list[int] = []

    def pool(cores: int, *knobs: Any) -> Any:
        started.append(cores)
        return ProcessPoolExecutor(cores, *knobs)

    monkeypatch.setattr(_pairs, "ProcessPoolExecutor", pool)
    assert comparisons(paths, resolve.metric_from) == alone and started == [2]
    (paths[2] / store.RECORDS).write_bytes(b"{}\n")
    with pytest.raises(StoreError, match="line 1 is not a record"):
        comparisons(paths, resolve.metric_from)
