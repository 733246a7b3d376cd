"""What a board says beside the score: each run's cost per sample, and how often that without a method."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest
from rich.console import Console

from adapters.scripted import Scripted
from harness import engine
from harness.types import Method, Request, Response, Usage
from leaderboard.board import Cost, comparisons
from leaderboard.terminal import table
from metrics import exact
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
    assert row.cost == Cost(13, 7800, 2, 7802, 7.0, 0)
    assert row.times == Cost(13, 13, 0.04, pytest.approx(7802 / 650), 14, None)


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
