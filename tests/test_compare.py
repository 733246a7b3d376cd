"""Two runs compared: what is said of each number, which pairs are refused, what else differs."""

import csv
import io
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import scipy.stats
from rich.console import Console
from statsmodels.stats.multitest import multipletests
from typer.testing import CliRunner, Result

from adapters.scripted import Scripted
from harness import engine, matching, paired, resolve, store
from harness.cli import app
from harness.errors import FoveaError
from harness.types import Decoding, Method, Request, Response, Sample, Task
from leaderboard import _compared
from leaderboard.compare import Line, Pair, compare, partners
from metrics import chair, exact, length, retrieval, yesno
from tests import test_matching
from tests.test_engine import make_task


@dataclass(frozen=True)
class Hint(Method):
    """Answers numbers below `until` rightly, and others as the model within."""

    until: int = 6
    name: ClassVar[str] = "hint"

    def generate(self, requests: Sequence[Request]) -> list[Response]:
        numbers = [int(request.question.rstrip("?")) for request in requests]
        inner = self.model.generate(requests)
        return [Response(str(k)) if k < self.until else one for k, one in zip(numbers, inner, strict=True)]


def thirds(request: Request) -> str:
    """Right of every third number."""
    number = request.question.rstrip("?")
    return number if int(number) % 3 == 0 else "?"


def run(
    out: Path,
    methods: Sequence[Any] = (),
    task: Task | None = None,
    answer: Callable[[Request], Any] = thirds,
    name: str = "function",
    **knobs: Any,
) -> Path:
    return engine.run(task or make_task(), Scripted(answer, name), methods, out=out, **knobs).path


def one(first: Path, second: Path, **knobs: Any) -> Pair:
    (pair,) = compare([(first, second)], resolve.metric_from, **knobs)
    return pair


def refusal(first: Path, second: Path) -> str:
    with pytest.raises(FoveaError) as caught:
        one(first, second)
    return str(caught.value)


def fovea(*words: Any) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)


# ---------------------------------------------------------------- numbers


def test_a_method_against_no_method_number_by_number(tmp_path: Path) -> None:
    pair = one(run(tmp_path), run(tmp_path, [Hint]))
    (line,) = pair.lines
    assert (pair.n, pair.of, pair.units, pair.warnings) == (20, 20, 20, ())
    assert (line.found.first, line.found.second) == (0.35, 0.55)
    assert line.found.difference.value == pytest.approx(0.2)
    # four samples changed, all to the better: 2 of the 16 ways to swap them are as extreme
    assert line.found.chance.exact and line.p == line.corrected == line.mcnemar == 2 / 16
    assert (line.better, line.ties, line.worse) == (("1", "2", "4", "5"), 16, ())
    assert line.verdict == "", "an interval above zero is no verdict against a p of .125"
    assert pair.differs == ("method: none → hint",)


def test_the_other_way_round_everything_is_worse(tmp_path: Path) -> None:
    (line,) = one(run(tmp_path, [lambda model: Hint(model, 18)]), run(tmp_path)).lines
    assert line.verdict == "worse" and line.better == () and len(line.worse) == 12
    assert line.found.difference.value == pytest.approx(-0.6)


def test_a_lower_number_is_better_where_the_metric_says_so(tmp_path: Path) -> None:
    samples = [Sample(str(k), question=f"{k}?", targets=("dog",)) for k in range(12)]
    task = make_task(samples=samples, metrics=(chair.metric("rules"),), primary="CHAIRi")
    worse = run(tmp_path, task=task, answer=lambda _: "A dog and a cat and a car.")
    better = run(tmp_path, task=task, answer=lambda _: "A dog and a cat.", name="other")
    found = {line.number: line for line in one(worse, better).lines}
    assert found["CHAIRi"].found.difference.value == pytest.approx(1 / 2 - 2 / 3)
    assert found["CHAIRi"].verdict == "better" and len(found["CHAIRi"].better) == 12
    assert found["CHAIRi"].mcnemar is None and found["CHAIRs"].mcnemar == 1.0
    assert found["Len"].p is None and found["Len"].note and found["Len"].verdict == ""


def test_chairi_is_permuted_as_the_ratio_of_sums_that_it_is(tmp_path: Path) -> None:
    samples = [Sample(str(k), question=f"{k}?", targets=("dog",)) for k in range(8)]
    task = make_task(samples=samples, metrics=(chair.metric("rules"),), primary="CHAIRi")
    dogs = "A dog."
    texts = [
        [
            dogs,
            "A dog and a cat.",
            "A dog, a cat and a car.",
            "A car.",
            dogs,
            "A cat.",
            dogs,
            "A cup, a bed.",
        ],
        [dogs, dogs, "A dog and a car.", "A dog and a car.", "A cat.", dogs, dogs, "A cup."],
    ]
    runs = [
        run(
            tmp_path,
            task=task,
            answer=lambda request, said=said: said[int(request.question[:-1])],
            name=said[1],
        )
        for said in texts
    ]
    found = {line.number: line for line in one(*runs).lines}["CHAIRi"]
    seen = [[chair.counts(text, ["dog"], "rules") for text in said] for said in texts]
    table = np.array([[one["hallucinated"], one["mentions"]] for side in seen for one in side])

    def difference(first: Any, second: Any) -> float:
        sums = [table[side.astype(int)].sum(axis=0) for side in (first, second)]
        return float(sums[1][0] / sums[1][1] - sums[0][0] / sums[0][1])

    scipys = scipy.stats.permutation_test(
        (np.arange(8), np.arange(8, 16)), difference, permutation_type="samples", n_resamples=np.inf,
        vectorized=False,
    )  # fmt: skip
    assert found.found.chance.exact and found.p == pytest.approx(scipys.pvalue)
    assert found.found.difference.value == pytest.approx(scipys.statistic)


def test_f1_is_counted_by_what_a_sample_does_to_it(tmp_path: Path) -> None:
    samples = [Sample(str(k), question=f"{k}?", targets=("yes" if k % 2 else "no",)) for k in range(20)]
    task = make_task(samples=samples, metrics=(yesno.metric(),), primary="f1")
    right = run(tmp_path, task=task, answer=lambda request: "yes" if int(request.text[:-1]) % 2 else "no")
    blind = run(tmp_path, task=task, answer=lambda _: "yes", name="blind")
    found = {line.number: line for line in one(blind, right).lines}
    noes = tuple(sorted(str(k) for k in range(0, 20, 2)))
    assert found["f1"].better == found["precision"].better == found["accuracy"].better == noes
    assert (found["f1"].p, found["f1"].mcnemar) == (2 / 2**10, None), "a right no has no F1 of its own"
    assert found["precision"].mcnemar is None and found["accuracy"].mcnemar == 2 / 2**10
    assert (found["recall"].ties, found["recall"].mcnemar) == (20, 1.0)
    assert found["yes_ratio"].p is None


def test_samples_of_one_image_count_as_one_observation(tmp_path: Path) -> None:
    runs = [run(tmp_path), run(tmp_path, [lambda model: Hint(model, 20)])]
    for path in runs:
        content = [json.loads(line) for line in (path / store.RECORDS).read_text().splitlines()]
        grouped = [each | {"group": f"picture {int(each['sample_id']) // 10}"} for each in content]
        (path / store.RECORDS).write_text("".join(json.dumps(each) + "\n" for each in grouped))
    pair = one(*runs)
    assert pair.units == 2 and pair.lines[0].p == 0.5
    assert pair.lines[0].mcnemar is not None and pair.lines[0].mcnemar < 0.001
    assert "McNemar takes them for independent" in printed([pair])


def test_a_retrieval_pair_swaps_images_with_their_texts_and_adds_up_again(tmp_path: Path) -> None:
    toy = test_matching.task((2,) * 8)
    paths, matrices = [], []
    for seed in (0, 1):
        matrices.append(test_matching.noise(toy, seed))
        matcher = test_matching.Known(matrices[-1], name=f"seed {seed}")
        paths.append(matching.run(toy, matcher, out=tmp_path).path)
    pair = one(*paths)
    found = {line.number: line for line in pair.lines}
    assert (pair.n, pair.units) == (24, 8)
    assert found["rsum"].mcnemar is None, "no query has an rsum"
    assert found["i2t_r1"].mcnemar == paired.mcnemar(len(found["i2t_r1"].better), len(found["i2t_r1"].worse))
    # every swap of images by hand: rsum of queries, half of them of one matrix
    queries = [retrieval.queries(matrix, toy.owner) for matrix in matrices]
    metric = retrieval.Recall()
    asked = [[Sample(str(k), meta=query) for k, query in enumerate(side)] for side in queries]
    counts = [metric.measure([Response()] * 24, side) for side in asked]
    image = [*range(8), *toy.owner]

    def rsum(side: int, swaps: int) -> float:
        chosen = [counts[side ^ (swaps >> image[k] & 1)][k] for k in range(24)]
        return float(metric.reduce(chosen)["rsum"] or 0)

    differences = [rsum(1, swaps) - rsum(0, swaps) for swaps in range(2**8)]
    extreme = [abs(each) >= abs(differences[0]) - 1e-9 for each in differences]
    assert found["rsum"].found.chance.exact and found["rsum"].p == pytest.approx(np.mean(extreme))
    assert found["rsum"].found.difference.value == pytest.approx(differences[0])


def test_a_corpus_metric_is_shown_and_said_to_have_no_pairing(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Corpus(type(exact.metric())):  # type: ignore[misc]
        name: ClassVar[str] = "corpus"
        scope: ClassVar[str] = "corpus"

    task = make_task(metrics=(Corpus(),))
    runs = [run(tmp_path, task=task), run(tmp_path, [Hint], task=task)]
    ((pair),) = compare([(runs[0], runs[1])], lambda _: Corpus())
    (line,) = pair.lines
    assert (line.found.first, line.found.second) == (0.35, 0.55)
    assert line.p is None and line.corrected is None and line.found.difference.low is None
    assert "no pairing" in printed([pair])


def test_rescored_runs_are_compared_by_every_metric_that_both_have(tmp_path: Path) -> None:
    runs = [run(tmp_path), run(tmp_path, [Hint])]
    engine.score(runs[0], [length.metric()])
    pair = one(*runs)
    assert {line.metric for line in pair.lines} == {"exact[llava]"}
    assert any("length of A is left out" in warning for warning in pair.warnings)
    engine.score(runs[1], [length.metric()])
    pair = one(*runs)
    assert {line.metric for line in pair.lines} == {"exact[llava]", "length"} and pair.warnings == ()


# ---------------------------------------------------------------- groups, families


def test_categories_are_compared_and_corrected_with_the_rest(tmp_path: Path) -> None:
    pair = one(run(tmp_path), run(tmp_path, [lambda model: Hint(model, 16)]), by=["category"])
    found = {line.value: line for line in pair.lines}
    assert pair.groupings == ("category",) and list(found) == [None, "even", "odd"]
    assert found["even"].n == found["odd"].n == 10
    corrected = multipletests([line.p for line in pair.lines], method="holm")[1]
    assert [line.corrected for line in pair.lines] == pytest.approx(corrected)
    assert found[None].corrected is not None and found[None].p is not None
    assert found[None].corrected == pytest.approx(3 * found[None].p)


def test_a_tasks_own_breakdowns_are_groups_too(tmp_path: Path) -> None:
    samples = [
        Sample(
            str(k), question=f"{k}?", targets=(str(k),), meta={"size": "small" if k < 8 else ["big", "any"]}
        )
        for k in range(20)
    ]
    task = make_task(samples=samples, breakdowns=("size",))
    pair = one(run(tmp_path, task=task), run(tmp_path, [Hint], task=task), by=["size"])
    assert {line.value: line.n for line in pair.lines} == {None: 20, "any": 12, "big": 12, "small": 8}


def test_the_family_is_what_was_asked_for(tmp_path: Path) -> None:
    samples = [Sample(str(k), question=f"{k}?", targets=("yes" if k % 2 else "no",)) for k in range(20)]
    task = make_task(samples=samples, metrics=(yesno.metric(),), primary="f1")
    runs = [run(tmp_path, task=task, answer=lambda _, text=text: text, name=text) for text in ("yes", "no")]
    everything, chosen = one(*runs), one(*runs, numbers=["accuracy"])
    assert len(everything.lines) > 5 and [line.number for line in chosen.lines] == ["accuracy"]
    assert chosen.lines[0].p == chosen.lines[0].corrected
    with pytest.raises(FoveaError, match="no number 'acuracy'; there are: "):
        one(*runs, numbers=["acuracy"])
    with pytest.raises(FoveaError, match="no grouping 'size'; there are: none"):
        one(*runs, by=["size"])


# ---------------------------------------------------------------- incomplete runs


def test_an_incomplete_run_is_compared_over_what_both_scored(tmp_path: Path) -> None:
    def often(request: Request) -> str | Response:
        number = int(request.question.rstrip("?"))
        return Response.failed("timeout", "slow") if number % 5 == 4 else thirds(request)

    first, second = run(tmp_path, answer=often), run(tmp_path, [Hint])
    pair = one(first, second)
    assert (pair.n, pair.of, pair.first.scored, pair.second.scored) == (16, 20, 16, 20)
    assert any("16 of 20 samples are compared" in warning for warning in pair.warnings)
    assert pair.lines[0].found.second == pytest.approx(9 / 16), "over the same samples"
    assert "16 of 20 samples" in printed([pair])


def test_a_run_that_was_killed_has_no_summary_and_is_compared_all_the_same(tmp_path: Path) -> None:
    first, second = run(tmp_path), run(tmp_path, [Hint])
    content = store.read_run(second)
    for name in ("summary", "spending", "times"):
        del content[name]
    (second / store.RUN).write_text(json.dumps({**content, "status": "running"}))
    lines = (second / store.RECORDS).read_text().splitlines(keepends=True)
    (second / store.RECORDS).write_text("".join(lines[:9]) + lines[9][:40])
    pair = one(first, second)
    assert (pair.n, pair.second.status) == (9, "running")


def test_records_beyond_the_selection_stay_out(tmp_path: Path) -> None:
    methods: list[list[Any]] = [[], [Hint]]
    for each in methods:
        run(tmp_path, each)
    first, second = (run(tmp_path, each, limit=8) for each in methods)
    assert len(list(store.read_records(first))) == 20
    pair = one(first, second)
    assert (pair.n, pair.of, pair.lines[0].n) == (8, 8, 8)


def test_repeats_of_a_sample_are_one_observation(tmp_path: Path) -> None:
    pair = one(run(tmp_path, repeats=3), run(tmp_path, [Hint], repeats=3))
    assert (pair.n, pair.units, pair.lines[0].p) == (60, 20, 2 / 16)
    assert pair.lines[0].better[:4] == ("1#0", "1#1", "1#2", "2#0")


def test_runs_without_a_common_answer_are_refused(tmp_path: Path) -> None:
    first = run(tmp_path, answer=lambda _: Response.failed("timeout", "slow"))
    assert "no sample has an answer in both" in refusal(first, run(tmp_path, [Hint]))


# ---------------------------------------------------------------- what may be compared


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "letters"}, "the task's name is numbers and letters"),
        ({"version": "2"}, "the task's version is 1 and 2"),
        ({"protocol": "other"}, "the task's protocol is plain and other"),
        ({"fingerprint": "g"}, "the task's fingerprint is f and g"),
        ({"metrics": (exact.metric("lmms"),)}, "the metric is exact[llava] and exact[lmms]. fovea score"),
        ({"metrics": ()}, "no metric (a split without answers)"),
    ],
)
def test_a_refusal_names_what_differs(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    first = run(tmp_path / "a")
    second = run(tmp_path / "b", [Hint], task=make_task(**change))
    assert said in refusal(first, second)


def test_other_samples_are_refused_with_the_remedy(tmp_path: Path) -> None:
    said = refusal(run(tmp_path / "a"), run(tmp_path / "b", limit=8))
    assert "the selection is 20 and 8 samples, 8 of them in both" in said and "--limit" in said
    assert "repeated 1 and 2 times" in refusal(run(tmp_path / "a"), run(tmp_path / "c", repeats=2))


def test_another_judge_is_another_metric(tmp_path: Path) -> None:
    runs = [run(tmp_path), run(tmp_path, [Hint])]
    for path, judge in zip(runs, ("gpt-4o", "claude"), strict=True):
        content = store.read_run(path)
        content["metrics"][0]["knobs"]["judge"] = {"adapter": "openai", "model": judge}
        (path / store.RUN).write_text(json.dumps(content))
    assert "the metric differs: exact[llava] judge.model: gpt-4o → claude" in refusal(*runs)


def test_all_faulty_pairs_are_named_at_once(tmp_path: Path) -> None:
    plain, few = run(tmp_path / "a"), run(tmp_path / "b", limit=8)
    other = run(tmp_path / "c", task=make_task(version="2"))
    with pytest.raises(FoveaError) as caught:
        compare([(plain, few), (plain, other)], resolve.metric_from)
    assert "the selection is" in str(caught.value) and "the task's version" in str(caught.value)


def test_one_difference_is_the_comparison_and_two_are_a_warning(tmp_path: Path) -> None:
    plain = run(tmp_path)
    pair = one(plain, run(tmp_path, name="other"))
    assert pair.differs == ("model.model: function → other",) and pair.warnings == ()
    pair = one(run(tmp_path), run(tmp_path, [Hint], name="other", seed=3))
    assert pair.differs == ("method: none → hint", "model.model: function → other", "decoding.seed: 0 → 3")
    (warning,) = pair.warnings
    assert "not the method alone" in warning
    assert "model.model: function → other; decoding.seed: 0 → 3" in warning


def test_knobs_of_one_method_are_listed_by_path(tmp_path: Path) -> None:
    runs = [run(tmp_path, [lambda model, until=until: Hint(model, until)]) for until in (6, 9)]
    assert one(*runs).differs == ("hint.until: 6 → 9",)


def test_chains_of_different_methods_and_another_prompt_are_said(tmp_path: Path) -> None:
    hot = make_task(
        request=lambda sample: Request(
            question=sample.question, instruction=" Think.", decoding=Decoding(temperature=0.5)
        )
    )
    pair = one(run(tmp_path, [Hint]), run(tmp_path, [Hint, Hint], task=hot))
    assert pair.differs[0] == "method: hint → hint > hint"
    assert pair.differs[1] == "prompt.instruction:  →  Think."
    assert "decoding.temperature: 0.0 → 0.5" in pair.warnings[0]


def test_oracle_and_equal_runs_carry_a_warning(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Peeks(Hint):
        name: ClassVar[str] = "peeks"
        oracle: ClassVar[bool] = True  # type: ignore[assignment]

    assert "B was told where the answer is (oracle)" in one(run(tmp_path), run(tmp_path, [Peeks])).warnings
    pair = one(run(tmp_path / "a"), run(tmp_path / "b"))
    assert "one identity" in pair.warnings[0] and pair.lines[0].p == 1.0


def test_a_metric_that_cannot_be_made_again_is_named(tmp_path: Path) -> None:
    def gone(stored: Any) -> Any:
        raise FoveaError("its prompt file has moved")

    with pytest.raises(FoveaError, match="nothing can be compared: .*its prompt file has moved"):
        compare([(run(tmp_path), run(tmp_path, [Hint]))], gone)


# ---------------------------------------------------------------- pairing


def test_folders_pair_runs_of_one_task_one_against_each(tmp_path: Path) -> None:
    letters = make_task(name="letters")
    plain, plain_letters = run(tmp_path / "a"), run(tmp_path / "a", task=letters)
    ours = [run(tmp_path / "b", [Hint]), run(tmp_path / "b", [lambda model: Hint(model, 9)])]
    lonely = run(tmp_path / "b", task=make_task(name="alone"))
    theirs = run(tmp_path / "b", [Hint], task=letters)
    pairs, alone = partners([plain, plain_letters], [*ours, lonely, theirs])
    assert sorted(pairs) == sorted([(plain, ours[0]), (plain, ours[1]), (plain_letters, theirs)])
    assert alone == [lonely]


def test_a_folder_that_holds_the_other_side_does_not_pair_a_run_with_itself(tmp_path: Path) -> None:
    plain, hinted = run(tmp_path), run(tmp_path, [Hint])
    assert partners([plain], [plain, hinted]) == ([(plain, hinted)], [])
    with pytest.raises(FoveaError, match="is both runs; name two"):
        partners([plain], [plain])


def test_several_runs_of_a_task_on_both_sides_are_refused(tmp_path: Path) -> None:
    runs = [run(tmp_path), run(tmp_path, [Hint])]
    with pytest.raises(FoveaError, match="2 runs of one task on the left .* which belong together"):
        partners(runs, runs)


def test_no_pair_at_all_is_refused_by_naming_both_sides(tmp_path: Path) -> None:
    other = [run(tmp_path, task=make_task(protocol="other")), run(tmp_path, task=make_task(name="letters"))]
    with pytest.raises(FoveaError, match=r"left numbers \(plain\), on the right numbers \(other\), letters"):
        partners([run(tmp_path)], other)


# ---------------------------------------------------------------- what is printed


def printed(pairs: Sequence[Pair], width: int = 160, **knobs: Any) -> str:
    console = Console(width=width, file=io.StringIO(), highlight=False)
    _compared.show(pairs, console, **knobs)
    assert isinstance(console.file, io.StringIO)
    return " ".join(console.file.getvalue().split())


def test_a_table_says_what_it_compares_and_how_sure_it_is(tmp_path: Path) -> None:
    pair = one(run(tmp_path), run(tmp_path, [lambda model: Hint(model, 18)]), by=["category"])
    said = printed([pair], flips=True)
    assert "numbers (plain): 20 of 20 samples" in said and "method: none → hint" in said
    assert "accuracy ↑ 20 0.350 0.950 +0.600 [+0." in said and "better 12/8/0" in said
    assert "corrected over the 3 tests shown" in said
    assert "B is better in 12: 1 10 11 13 14 16 17 2 4 5 7 8" in said


def test_a_narrow_terminal_keeps_the_difference_and_its_corrected_p(tmp_path: Path) -> None:
    pair = one(run(tmp_path), run(tmp_path, [Hint]))
    console = Console(width=80, file=io.StringIO())
    _compared.show([pair], console)
    assert isinstance(console.file, io.StringIO)
    said = console.file.getvalue()
    assert max(map(len, said.splitlines())) <= 80
    assert "+0.200 [+0.050, +0.400]" in said and "p, Holm" in said and "McNemar" not in said


def test_names_are_data(tmp_path: Path) -> None:
    samples = [
        Sample(f"[red]{k}", question=f"{k}?", targets=(str(k),), category="a|b <i>") for k in range(20)
    ]
    task = make_task(samples=samples)
    runs = [run(tmp_path, task=task, name="[bold]x"), run(tmp_path, [Hint], task=task, name="[bold]x")]
    pair = one(*runs, by=["category"])
    assert "[red]1" in printed([pair], flips=True) and "a|b <i>" in printed([pair])
    assert r"| a\|b &lt;i> | accuracy" in _compared.markdown([pair])


def test_json_and_csv_hold_every_digit_and_json_the_ids(tmp_path: Path) -> None:
    pair = one(run(tmp_path), run(tmp_path, [Hint]), by=["category"])
    found = json.loads(_compared.as_json([pair]))
    (said,) = found["pairs"]
    assert found["family"] == 3 and said["n"] == said["of"] == 20 and said["first"]["method"] == "none"
    assert said["lines"][0]["better_ids"] == ["1", "2", "4", "5"] and said["lines"][0]["p"] == 0.125
    rows = list(csv.DictReader(io.StringIO(_compared.as_csv([pair]))))
    assert [row["value"] for row in rows] == ["", "even", "odd"] and rows[0]["metric"] == "exact[llava]"
    assert float(rows[0]["difference"]) == pair.lines[0].found.difference.value


def test_the_same_runs_give_the_same_bytes(tmp_path: Path) -> None:
    runs = run(tmp_path), run(tmp_path, [lambda model: Hint(model, 18)])
    assert _compared.as_json([one(*runs)]) == _compared.as_json([one(*runs)])


def test_a_number_without_direction_is_never_a_verdict() -> None:
    found = line_of(0.0001)
    assert replace(found, higher_is_better=True).verdict == "better"
    assert replace(found, higher_is_better=False).verdict == "worse"
    assert replace(found, corrected=None).verdict == "" and replace(found, corrected=0.05).verdict == ""


def line_of(corrected: float) -> Line:
    from harness.paired import Chance, Paired
    from harness.stats import Estimate

    found = Paired(0.1, 0.3, Estimate(0.2, 0.1, 0.3), Chance(corrected, False), 0.1)
    return Line("exact", "accuracy", True, 20, found, corrected=corrected)


# ---------------------------------------------------------------- the command


def test_the_command_compares_globs_and_exits_2_where_it_cannot(tmp_path: Path) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps({"question": f"{k}?", "answer": "yes"}) + "\n" for k in range(12)))
    for model in ("scripted:yes", "scripted:no"):
        assert fovea("run", f"vqa_file:{path}", model, "--out", tmp_path / "runs").exit_code == 0
    no, yes = f"{tmp_path}/runs/*/scripted-no/*", f"{tmp_path}/runs/*/scripted-yes/*"
    done = fovea("compare", no, yes)
    assert done.exit_code == 0 and "model.model: no → yes" in done.stdout
    assert "12/0/0" in done.stdout and "better" in done.stdout
    found = json.loads(fovea("compare", no, yes, "--format", "json").stdout)
    assert found["pairs"][0]["lines"][0]["p"] == 2 / 2**12
    assert fovea("compare", no, yes, "--format", "md").stdout.startswith("### vqa_file")
    assert fovea("compare", no, yes, "--format", "csv").stdout.startswith("task,protocol,")
    assert fovea("compare", no, yes, "--format", "pdf").exit_code == 2


def test_the_command_refuses_in_a_sentence(tmp_path: Path) -> None:
    first, second = run(tmp_path / "a"), run(tmp_path / "b", limit=8)
    refused = fovea("compare", first, second)
    assert refused.exit_code == 2 and "the selection is 20 and 8 samples" in refused.stderr
    assert fovea("compare", first, tmp_path / "nothing*").exit_code == 2
    assert fovea("compare", first, first).exit_code == 2


# ---------------------------------------------------------------- the committed runs, in every format


ROOT = Path(__file__).parent.parent
GOLDENS = Path(__file__).parent / "goldens" / "compare"
FORMATS = {"": "compare.txt", "md": "compare.md", "csv": "compare.csv", "json": "compare.json"}


def committed(format: str) -> str:
    """What the command says of the committed runs, two arms of ViCrop and a crop of the middle."""
    runs = "results/baselines/demo/small_detail/hf-demo/"
    words = ["compare", f"{runs}identity-*", f"{runs}*crop-[8a]*", "--by", "category", "--flips"]
    done = CliRunner().invoke(app, [*words, *(["--format", format] if format else [])])
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize("format", FORMATS)
def test_the_committed_runs_compare_as_they_always_did(format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To write the goldens again: python -m tests.test_compare, and look at what git says of them."""
    monkeypatch.chdir(ROOT)
    made, golden = committed(format), (GOLDENS / FORMATS[format]).read_text(encoding="utf-8")
    if format == "csv":
        ours, theirs = (list(csv.reader(io.StringIO(text))) for text in (made, golden))
        assert [list(map(near, row)) for row in ours] == [list(map(near, row)) for row in theirs]
    elif format == "json":
        assert near(json.loads(made)) == near(json.loads(golden))
    else:
        assert [line.rstrip() for line in made.splitlines()] == golden.splitlines()


def near(value: Any) -> Any:
    """Numbers to nine digits, which every machine agrees on."""
    if isinstance(value, dict):
        return {name: near(each) for name, each in value.items()}
    if isinstance(value, list):
        return [near(each) for each in value]
    try:
        return f"{float(value):.9g}"
    except (TypeError, ValueError):
        return value


if __name__ == "__main__":
    os.chdir(ROOT)
    GOLDENS.mkdir(exist_ok=True)
    for format, name in FORMATS.items():
        lines = [line.rstrip() if format in ("", "md") else line for line in committed(format).splitlines()]
        (GOLDENS / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(GOLDENS / name)
