"""The gate: which run is whose, what is worse, what cannot be told; and this repository's own."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar
from xml.etree import ElementTree

import numpy as np
import pytest
import scipy.stats
from rich.console import Console
from statsmodels.stats.power import NormalIndPower
from typer.testing import CliRunner, Result

from adapters.scripted import Scripted
from harness import engine, matching, rerun, resolve, store
from harness.cli import app
from harness.errors import FoveaError
from harness.noninferiority import needed_samples, paired_jackknife
from harness.types import Method, Request, Response, Sample, Task
from leaderboard import _baseline, _checked
from leaderboard.check import Checked, check, exit_code, match, save
from metrics import chair, exact
from tests import test_matching
from tests.test_engine import make_task

ROOT = Path(__file__).parent.parent
DEMO = ROOT / "results" / "baselines" / "demo.json"
ARMS = ROOT / "results" / "baselines" / "demo" / "small_detail" / "hf-demo"
PLAIN, VICROP, OTHER_LAYER = (
    ARMS / name for name in ("identity-99d05d42", "vicrop-8b6edc8b", "vicrop-48c474a6")
)


@dataclass(frozen=True)
class Wrong(Method):
    """Answers numbers in `places` wrongly and others as the model within."""

    places: tuple[int, ...] = ()
    name: ClassVar[str] = "wrong"

    def generate(self, requests: Sequence[Request]) -> list[Response]:
        numbers = [int(request.question.rstrip("?")) for request in requests]
        inner = self.model.generate(requests)
        return [Response("no") if k in self.places else one for k, one in zip(numbers, inner, strict=True)]


@dataclass(frozen=True)
class Revised(Scripted):
    """A scripted model of a named revision."""

    revision: str = "1"

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"revision": self.revision}


def most(request: Request) -> str:
    """Right of four numbers in five."""
    number = request.question.rstrip("?")
    return number if int(number) % 5 else "?"


def run(
    out: Path,
    wrong: Sequence[int] = (),
    answer: Callable[[Request], Any] = most,
    task: Task | None = None,
    revision: str = "1",
    **knobs: Any,
) -> Path:
    """A run of one method, with or without places that it gets wrong."""
    method = resolve_as("wrong", lambda model: Wrong(model, tuple(wrong)))
    model = Revised(answer, "function", revision=revision)
    return engine.run(task or make_task(200), model, [method], out=out, **knobs).path


def resolve_as(spec: str, make: Any) -> Any:
    """A method as the command line makes it: it knows its spec."""
    make.spec = spec
    return make


def unmakeable(_: Any) -> dict[str, Any]:
    raise FoveaError("made by a function")


def saved(path: Path, *runs: Path, **knobs: Any) -> _baseline.Baseline:
    return save(path, runs, recipe=unmakeable, **knobs)


def judged(baseline: _baseline.Baseline, *runs: Path) -> list[Checked]:
    matched = match(baseline, runs)
    return check(baseline, matched.runs, resolve.metric_from, matched.reasons)


def fovea(*words: Any) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)


def printed(rows: Sequence[Checked]) -> str:
    console = Console(width=200, no_color=True)
    with console.capture() as caught:
        _checked.show(rows, [], console)
    return caught.get()


# ---------------------------------------------------------------- this repository's own gate


def test_the_bundled_model_and_vicrop_are_as_good_as_when_the_baseline_was_saved(tmp_path: Path) -> None:
    """The gate itself: 200 scenes, without and with ViCrop by attention and by gradient, asked anew."""
    done = subprocess.run(
        [
            Path(sys.executable).parent / "fovea",
            "check",
            DEMO.relative_to(ROOT),
            "--junit",
            tmp_path / "gate.xml",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 rows: 3 good" in done.stdout
    assert len(junit(tmp_path / "gate.xml")) == 3


def test_the_gate_fails_where_vicrop_reads_another_layer(tmp_path: Path) -> None:
    file = tmp_path / "baseline.json"
    assert fovea("check", "--save", file, PLAIN, VICROP, "--tolerance", 0.05).exit_code == 0
    assert fovea("check", file, PLAIN, VICROP).exit_code == 0
    done = fovea("check", file, PLAIN, OTHER_LAYER, "--junit", tmp_path / "j.xml", "--annotations")
    assert done.exit_code == 1
    assert "vicrop.layer: null → 0" in done.stdout and "1 good, 1 worse" in done.stdout
    good, worse = junit(tmp_path / "j.xml")
    assert good.find("failure") is None and worse.find("failure") is not None
    assert done.stderr.startswith("::error title=small_detail (digit)%2C hf%3Ademo%2C vicrop")
    assert done.stderr.count("\n") == 1


def test_a_regression_in_the_code_is_found_by_asking_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ViCrop is made to read layer 0 behind the baseline's back; its specs stay what they are."""
    monkeypatch.chdir(ROOT)
    file, spec = tmp_path / "baseline.json", "hf:assets/demo"
    done = fovea("check", "--save", file, VICROP, "--tolerance", 0.05, "--model", spec)
    assert done.exit_code == 0 and not done.stderr
    make = resolve.make_method
    monkeypatch.setattr(
        resolve, "make_method", lambda spec, *cache: make(f"{spec.partition(':')[0]}:layer=0", *cache)
    )
    done = fovea("check", file)
    assert done.exit_code == 1 and "vicrop.layer: null → 0" in done.stdout, done.stdout + done.stderr


def test_rounding_as_on_another_processor_does_not_flip_the_repositorys_gate() -> None:
    """bfloat16, 65,000 times coarser, changed two answers of 200; four may change for the worse."""
    baseline = _baseline.read(DEMO)
    (row, *_) = baseline.rows
    counts = baseline.counts(row)
    assert counts is not None and len(counts) == 200
    right = [at for at, count in enumerate(counts) if count["score"] == 1]

    def high(flips: int) -> float:
        now = [{**count, "score": 0} if at in right[:flips] else count for at, count in enumerate(counts)]
        found = paired_jackknife(exact.metric(), counts, now, confidence=1 - 0.05 / 3)["accuracy"]
        assert found.high is not None and found.low is not None
        assert found.low < row.tolerance or flips > 20, "rounding is never called worse"
        return found.high

    assert row.tolerance == 0.05
    assert high(4) < 0.05 < high(5)
    high(20)


# ---------------------------------------------------------------- verdicts


def test_an_equal_run_is_good_and_a_much_worse_one_is_not(tmp_path: Path) -> None:
    baseline = saved(tmp_path / "b.json", run(tmp_path / "a"))
    (same,) = judged(baseline, run(tmp_path / "b"))
    assert (same.verdict, same.better, same.worse, same.n) == ("good", (), (), 200)
    assert same.loss is not None and (same.loss.low, same.loss.high) == (0, 0)
    wrong = [k for k in range(60) if k % 5]
    (row,) = judged(baseline, run(tmp_path / "c", wrong))
    assert row.verdict == "worse" and row.before == 0.8
    assert row.loss is not None and row.loss.value == pytest.approx(len(wrong) / 200)
    assert sorted(map(int, row.worse)) == wrong and row.better == ()
    assert (exit_code([same]), exit_code([row]), exit_code([same, row])) == (0, 1, 1)


def test_a_small_loss_is_undecided_and_says_how_many_samples_would_tell(tmp_path: Path) -> None:
    baseline = saved(tmp_path / "b.json", run(tmp_path / "a"))
    (row,) = judged(baseline, run(tmp_path / "b", [1, 2, 3, 6, 7, 8]))
    assert row.verdict == "undecided" and exit_code([row]) == 2
    assert row.loss is not None and row.loss.error is not None and row.confidence == 0.95
    apart = abs(0.02 - 0.03)
    exactly = (1.959964 + 0.841621) ** 2 * row.loss.error**2 / apart**2 * 200
    assert row.needed is not None and exactly <= row.needed < exactly * 1.1
    assert f"about {row.needed:,} samples would decide it" in row.reason
    assert "the task has only 200" in row.reason


def test_a_loss_that_is_the_tolerance_cannot_be_told_by_any_number(tmp_path: Path) -> None:
    baseline = saved(tmp_path / "b.json", run(tmp_path / "a"))
    (row,) = judged(baseline, run(tmp_path / "b", [1, 2, 3, 6]))
    assert row.loss is not None and row.loss.value == pytest.approx(0.02)
    assert (row.verdict, row.needed) == ("undecided", None) and "no number of samples" in row.reason


def test_what_became_better_is_good_and_said(tmp_path: Path) -> None:
    baseline = saved(tmp_path / "b.json", run(tmp_path / "a"))
    (row,) = judged(baseline, run(tmp_path / "b", answer=lambda request: request.question[:-1], revision="2"))
    assert row.verdict == "good" and row.improved and len(row.better) == 40
    assert "good, better" in printed([row])
    assert row.differs == ("model.revision: 1 → 2",), (
        "a new revision has a new id and is the row's all the same"
    )


def test_where_lower_is_better_a_higher_number_is_the_loss(tmp_path: Path) -> None:
    samples = [Sample(str(k), question=f"{k}?", targets=("dog",)) for k in range(120)]
    task = make_task(samples=samples, metrics=(chair.metric("rules"),), primary="CHAIRi")
    texts = ("A dog.", "A dog and a cat.")

    def half(of: int) -> Callable[[Request], str]:
        return lambda request: texts[int(request.question[:-1]) % of == 0]

    good = run(tmp_path / "a", task=task, answer=half(4))
    bad = run(tmp_path / "b", task=task, answer=half(2))
    baseline = saved(tmp_path / "b.json", good)
    (row,) = judged(baseline, bad)
    assert row.verdict == "worse" and not row.higher_is_better
    assert row.loss is not None and row.loss.value == pytest.approx(60 / 180 - 30 / 150)
    (back,) = judged(saved(tmp_path / "c.json", bad), good)
    assert back.verdict == "good" and back.improved
    with pytest.raises(FoveaError, match="no number 'Len' that may be better or worse; there are: .*CHAIRs"):
        saved(tmp_path / "d.json", good, number="Len")
    assert saved(tmp_path / "d.json", good, number="CHAIRs").rows[0].value == 0.25


def test_many_rows_at_once_are_judged_by_wider_intervals(tmp_path: Path) -> None:
    others = [make_task(200, name=f"numbers {k}") for k in range(9)]
    rows = [make_task(200), *others]
    before = [run(tmp_path / "a", task=task) for task in rows]
    now = [run(tmp_path / "b", [1, 2, 3, 4, 6, 7, 8, 9, 11, 12, 13], task=task) for task in rows]
    (alone,) = judged(saved(tmp_path / "b.json", before[0]), now[0])
    together = judged(saved(tmp_path / "c.json", *before), *now)
    assert alone.verdict == "worse" and {row.verdict for row in together} == {"undecided"}
    assert (alone.confidence, together[0].confidence) == (0.95, pytest.approx(0.995))


def test_samples_of_one_image_count_together(tmp_path: Path) -> None:
    runs = [run(tmp_path / "a"), run(tmp_path / "b", range(1, 20))]
    for path in runs:
        lines = [json.loads(line) for line in (path / store.RECORDS).read_text().splitlines()]
        grouped = [line | {"group": f"picture {int(line['sample_id']) // 20}"} for line in lines]
        (path / store.RECORDS).write_text("".join(json.dumps(line) + "\n" for line in grouped))
    baseline = saved(tmp_path / "b.json", runs[0])
    assert baseline.samples[baseline.rows[0].samples].clusters[19:21] == [0, 1]
    (row,) = judged(baseline, runs[1])
    assert row.verdict == "undecided", "all that was lost is one picture of ten"
    for path in runs:
        lines = [json.loads(line) for line in (path / store.RECORDS).read_text().splitlines()]
        alone = [line | {"group": line["sample_id"]} for line in lines]
        (path / store.RECORDS).write_text("".join(json.dumps(line) + "\n" for line in alone))
    (row,) = judged(saved(tmp_path / "c.json", runs[0]), runs[1])
    assert row.verdict == "worse"


def test_a_run_that_is_not_complete_is_told_apart_from_one_that_is_worse(tmp_path: Path) -> None:
    baseline = saved(tmp_path / "b.json", run(tmp_path / "a"))

    def failing(request: Request) -> Any:
        return Response.failed("timeout", "slow") if int(request.question[:-1]) < 3 else most(request)

    (row,) = judged(baseline, run(tmp_path / "b", answer=failing))
    assert row.verdict == "incomplete" and exit_code([row]) == 2 and row.n == 197
    assert "3 of 200 samples have no answer, and the run is complete" in row.reason
    (row,) = judged(baseline, run(tmp_path / "c", answer=failing, max_failures=0, batch=100))
    assert row.verdict == "incomplete" and "the run is stopped" in row.reason
    (row,) = judged(baseline, run(tmp_path / "d", answer=lambda _: Response.failed("timeout", "slow")))
    assert row.verdict == "incomplete" and row.now is None and "no sample has an answer" in row.reason


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"version": "2"}, "the task's version is 1 and 2"),
        ({"fingerprint": "g"}, "the task's fingerprint is f and g"),
        ({"samples": make_task(150).samples}, "the selection is 200 and 150 samples, 150 of them in both"),
        ({"metrics": (exact.metric("lmms"),)}, "the metric is exact[llava] and exact[lmms]"),
    ],
)
def test_what_measures_something_else_is_not_comparable(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    baseline = saved(tmp_path / "b.json", run(tmp_path / "a"))
    (row,) = judged(baseline, run(tmp_path / "b", task=make_task(200, **changes)))
    assert (row.verdict, exit_code([row])) == ("not comparable", 2) and said in row.reason
    assert said in printed([row])


def test_arithmetic_that_has_changed_since_is_noticed(tmp_path: Path) -> None:
    path = run(tmp_path / "a")
    saved(tmp_path / "b.json", path)
    text = (tmp_path / "b.json").read_text()
    (tmp_path / "b.json").write_text(text.replace('"value": 0.8', '"value": 0.9'))
    (row,) = judged(_baseline.read(tmp_path / "b.json"), path)
    assert row.verdict == "not comparable" and "give 0.8 today, not 0.9" in row.reason


def test_a_number_of_the_whole_corpus_is_good_where_it_is_equal_and_else_undecided(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Distinct:
        name: ClassVar[str] = "distinct"
        variant: ClassVar[str] = ""
        scope: ClassVar[str] = "corpus"
        additive: ClassVar[bool] = False
        higher_is_better: ClassVar[dict[str, bool]] = {"distinct": True}

        def measure(self, responses: Sequence[Response], samples: Sequence[Sample]) -> list[Any]:
            return [response.text for response in responses]

        def reduce(self, counts: Sequence[Any]) -> dict[str, float | None]:
            return {"distinct": float(len(set(counts)))}

    task = make_task(30, metrics=(Distinct(),), primary="distinct")
    baseline = saved(tmp_path / "b.json", run(tmp_path / "a", task=task))
    assert baseline.counts(baseline.rows[0]) is None

    def verdict(path: Path) -> Checked:
        (row,) = check(baseline, match(baseline, [path]).runs, lambda _: Distinct())  # type: ignore[arg-type, return-value]
        return row

    assert verdict(run(tmp_path / "b", task=task)).verdict == "good"
    row = verdict(run(tmp_path / "c", [1, 2], task=task))
    assert (row.verdict, row.before, row.now, row.loss) == ("undecided", 25, 24, None)
    assert "no counts per sample" in row.reason


# ---------------------------------------------------------------- which run is whose


def test_a_row_without_a_run_is_missing(tmp_path: Path) -> None:
    baseline = saved(
        tmp_path / "b.json", run(tmp_path / "a"), run(tmp_path / "a", task=make_task(name="other"))
    )
    good, missing = judged(baseline, run(tmp_path / "c"))
    assert (good.verdict, missing.verdict) == ("good", "missing") and exit_code([good, missing]) == 2
    assert missing.before == 0.8 and missing.now is None


def test_two_runs_of_one_row_are_refused_whatever_their_ids(tmp_path: Path) -> None:
    old = run(tmp_path / "a")
    baseline = saved(tmp_path / "b.json", old)
    with pytest.raises(
        FoveaError, match="two runs are the baseline's row numbers .plain., scripted:function"
    ):
        match(baseline, [old, run(tmp_path / "a", revision="2")])
    with pytest.raises(FoveaError, match="are one row"):
        saved(tmp_path / "c.json", old, run(tmp_path / "a", revision="2"))


def test_runs_with_other_knobs_are_taken_only_where_there_is_no_doubt() -> None:
    baseline = _baseline.read(DEMO)
    runs = [*sorted(ARMS.glob("vicrop-*"))]
    matched = match(baseline, runs)
    assert matched.runs == {"small_detail (digit), hf:demo, vicrop": VICROP}
    gradient = "small_detail (digit), hf:demo, vicrop:locate=grad_att"
    assert "With other knobs or decoding, any of 6 (" in matched.reasons[gradient]
    taken = match(baseline, [VICROP, OTHER_LAYER])
    assert taken.runs[gradient] == OTHER_LAYER, "one row and one run are left, of one method"


def test_another_seed_is_another_row_unless_nothing_else_is_there(tmp_path: Path) -> None:
    runs = [run(tmp_path / "a", seed=seed) for seed in (0, 1)]
    baseline = saved(tmp_path / "b.json", *runs)
    assert len({row.name for row in baseline.rows}) == 2
    assert list(match(baseline, runs).runs.values()) == runs
    (row,) = judged(saved(tmp_path / "c.json", runs[0]), runs[1])
    assert row.verdict == "good" and row.differs == ("decoding.seed: 0 → 1",)


def test_rows_over_different_samples_take_the_runs_of_theirs(tmp_path: Path) -> None:
    few, many = run(tmp_path / "a", limit=100), run(tmp_path / "b")
    baseline = saved(tmp_path / "b.json", few, many)
    first, second = judged(baseline, run(tmp_path / "c"))
    assert (first.verdict, second.verdict, second.n) == ("missing", "good", 200)
    first, second = judged(baseline, many, few)
    assert (first.n, second.n) == (100, 200)


# ---------------------------------------------------------------- the file


def test_a_changed_outcome_changes_its_line_and_the_value(tmp_path: Path) -> None:
    for name, wrong in (("a", [1]), ("b", [1, 151])):
        saved(tmp_path / f"{name}.json", run(tmp_path / name, wrong))
    one, other = ((tmp_path / name).read_text().splitlines() for name in ("a.json", "b.json"))
    changed = [line.split()[0] for line, new in zip(one, other, strict=True) if line != new]
    assert sorted(changed) == ['"id":', '"places":', '"value":', "0,"]


def test_ten_rows_of_twelve_thousand_samples_stay_small_and_come_back_whole(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (row, *_) = _baseline.read(DEMO).rows
    ids = [f"COCO_val2014_{k:012}.jpg/{k % 6}" for k in range(12_000)]
    table = _baseline.Samples(12_000, 1, "digest", ids, [k // 6 for k in range(12_000)])
    counts = [[{"score": float(right), "scored": 1} for right in rng.random(12_000) < 0.8] for _ in range(10)]
    import msgspec

    rows = [
        msgspec.structs.replace(row, name=f"row {k}", samples="s", **_baseline.pack(each))
        for k, each in enumerate(counts)
    ]
    _baseline.write(tmp_path / "big.json", rows, {"s": table})
    assert (tmp_path / "big.json").stat().st_size < 2**20
    again = _baseline.read(tmp_path / "big.json")
    assert [again.counts(row) for row in again.rows] == counts and again.samples["s"] == table


def test_counts_that_are_no_flat_numbers_come_back_too(tmp_path: Path) -> None:
    (row, *_) = _baseline.read(DEMO).rows
    import msgspec

    for counts in ([[1, [2]], None], [{"a": 1.5}, {"b": 2}], [{"hit": True}, {"hit": False}], [{}, {}]):
        table = _baseline.Samples(2, 1, "d", ["x", "ü\n"], [None, 0])
        packed = msgspec.structs.replace(
            row, samples="s", **{"columns": None, "counts": None} | _baseline.pack(counts)
        )
        _baseline.write(tmp_path / "b.json", [packed], {"s": table})
        again = _baseline.read(tmp_path / "b.json")
        assert again.counts(again.rows[0]) == counts and again.samples["s"] == table


def edited(change: Callable[[Any], None]) -> str:
    content = json.loads(DEMO.read_text())
    change(content)
    return json.dumps(content)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is no baseline: it is not JSON"),
        ("[]", 'does not begin with "kind": "fovea baseline"'),
        ('{"schema": 1, "id": "x"}', 'does not begin with "kind": "fovea baseline"'),
        (edited(lambda c: c.update(schema=2)), "is of schema 2, newer than this Fovea reads (1)"),
        (edited(lambda c: c["rows"][1].update(tolerance=-0.1)), "vicrop': tolerance is -0.1: Expected"),
        (edited(lambda c: c["rows"][1].update(tolerance="2 %")), "tolerance is '2 %': Expected `float`"),
        (edited(lambda c: c["rows"][0].pop("value")), "missing required field `value`"),
        (edited(lambda c: c.update(rows=[])), "`array` of length >= 1 - at `$.rows`"),
        (edited(lambda c: c["rows"][0]["columns"]["score"].pop()), "one outcome for each of its 200 samples"),
        (edited(lambda c: c["rows"][0].update(samples="x")), "of the samples 'x', which are not there"),
        (edited(lambda c: c["rows"].append(c["rows"][0])), "two rows are called"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_baseline_is_refused_in_a_sentence(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "b.json").write_text(text)
    done = fovea("check", tmp_path / "b.json", PLAIN)
    assert done.exit_code == 2 and said in done.stderr and "Traceback" not in done.stderr


def test_what_cannot_be_a_baseline_is_refused(tmp_path: Path) -> None:
    done = fovea("check", tmp_path / "none.json", PLAIN)
    assert done.exit_code == 2 and "does not exist; fovea check --save" in done.stderr
    failing = run(tmp_path / "a", answer=lambda _: Response.failed("timeout", "slow"))
    with pytest.raises(FoveaError, match="0 of 200 samples are scored, and the run is complete"):
        saved(tmp_path / "b.json", failing)
    blind = run(tmp_path / "b", task=make_task(metrics=()))
    with pytest.raises(FoveaError, match="a split without answers has no score"):
        saved(tmp_path / "b.json", blind)
    with pytest.raises(FoveaError, match="--tolerance is -1; it must be 0 or more"):
        saved(tmp_path / "b.json", PLAIN, tolerance=-1)
    done = fovea("check", DEMO, PLAIN, "--tolerance", 0.1)
    assert done.exit_code == 2 and "--tolerance belongs to a baseline that is written" in done.stderr


def test_saving_again_keeps_the_tolerances_that_were_set_by_hand(tmp_path: Path) -> None:
    file = tmp_path / "b.json"
    saved(file, PLAIN, VICROP)
    file.write_text(file.read_text().replace('"tolerance": 0.02', '"tolerance": 0.04', 1))
    assert [row.tolerance for row in saved(file, PLAIN, VICROP).rows] == [0.04, 0.02]
    assert [row.tolerance for row in saved(file, PLAIN, VICROP, tolerance=0.1).rows] == [0.1, 0.1]


# ---------------------------------------------------------------- running again


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with 120 questions, and a file of answers that are right in nine of ten."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    rows = [{"question": f"Is {k} even?", "answer": "yes" if k % 2 == 0 else "no"} for k in range(120)]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    answers(tmp_path, 10)
    return tmp_path


def answers(folder: Path, wrong: int) -> None:
    """One of `wrong` answers is."""
    rows = [
        {"question": f"Is {k} even?", "prediction": "yes" if (k % 2 == 0) == bool(k % wrong) else "no"}
        for k in range(120)
    ]
    (folder / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def made(here: Path, *words: str) -> Result:
    """A run, as its command, and a baseline of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["fovea", "run", *words])
        assert fovea("run", *words).exit_code == 0
    return fovea("check", "--save", "baseline.json", here / "results" / "runs")


def test_without_runs_local_models_are_asked_again(here: Path) -> None:
    done = made(here, "vqa_file:questions.jsonl", "replay:answers.jsonl")
    assert done.exit_code == 0 and "accuracy 0.9000 over 120 samples, may lose 0.02" in done.stdout
    done = fovea("check", "baseline.json")
    assert done.exit_code == 0 and "1 row: 1 good" in done.stdout
    answers(here, 2)
    done = fovea("check", "baseline.json", "--format", "json", "--out", "kept")
    found = json.loads(done.stdout)
    assert (done.exit_code, found["exit"]) == (1, 1), "the answers have changed since"
    (row,) = found["rows"]
    assert row["verdict"] == "worse" and row["now"] == 0.5 and len(row["worse"]) == 48
    assert any(change.startswith("model.sha256: ") for change in row["differs"])
    assert store.find_runs(here / "kept") == [here / row["path"]]
    done = fovea("check", "baseline.json", "--out", "kept")
    assert done.exit_code == 2 and "kept holds runs" in done.stderr


def test_a_baseline_holds_no_path_of_the_machine(here: Path) -> None:
    done = made(here, f"vqa_file:{here}/questions.jsonl", f"replay:{here}/answers.jsonl")
    assert done.exit_code == 0 and not done.stderr
    assert str(here) not in (here / "baseline.json").read_text()
    (row,) = _baseline.read(here / "baseline.json").rows
    assert row.rerun is not None
    assert (row.rerun.task, row.rerun.model) == ("vqa_file:questions.jsonl", "replay:answers.jsonl")
    assert fovea("check", "baseline.json").exit_code == 0


def test_a_model_that_lies_elsewhere_is_saved_without_a_way_to_ask_it(
    here: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (here / "answers.jsonl").rename(elsewhere / "answers.jsonl")
    done = made(here, "vqa_file:questions.jsonl", f"replay:{elsewhere}/answers.jsonl")
    assert done.exit_code == 0 and "lies outside" in done.stderr
    assert str(elsewhere) not in (here / "baseline.json").read_text()
    done = fovea("check", "baseline.json")
    assert done.exit_code == 2 and "no row of baseline.json can be run again here" in done.stderr
    assert "give a run of it" in done.stderr


def test_rows_that_took_long_are_left_to_those_who_give_their_runs(here: Path) -> None:
    made(here, "vqa_file:questions.jsonl", "scripted:yes")
    done = fovea("check", "baseline.json", "--rerun-under", 0)
    assert done.exit_code == 2 and "and --rerun-under is 0; raise it, or give a run of it" in done.stderr
    assert fovea("check", "baseline.json", "results/runs/*/*").exit_code == 0


def test_a_row_whose_data_are_gone_is_missing_and_says_why(here: Path) -> None:
    made(here, "vqa_file:questions.jsonl", "scripted:yes")
    (here / "questions.jsonl").unlink()
    done = fovea("check", "baseline.json")
    assert done.exit_code == 2 and "1 row: 1 missing" in done.stdout
    assert "it could not be run again: questions.jsonl" in done.stdout


def test_a_model_that_no_spec_made_has_to_be_named(here: Path) -> None:
    task = resolve.make_task("vqa_file:questions.jsonl")
    header = store.read_run(engine.run(task, resolve.make_model("scripted:yes"), out=here / "runs").path)
    found = {"task": "vqa_file:questions.jsonl", "model": "scripted:yes", "local": True}
    assert rerun.recipes([])(header) == found
    nameless = {**header, "model": None}
    with pytest.raises(FoveaError, match="name the model as --model SPEC"):
        rerun.recipes([])(nameless)
    with pytest.raises(FoveaError, match="scripted:no makes another run"):
        rerun.recipes(["scripted:no"])(nameless)
    assert rerun.recipes(["scripted:no", "scripted:yes"])(nameless) == found


def test_a_model_behind_a_wire_is_never_asked_again_by_itself(here: Path) -> None:
    made(here, "vqa_file:questions.jsonl", "scripted:yes")
    text = (here / "baseline.json").read_text()
    (here / "baseline.json").write_text(text.replace('"local": true', '"local": false'))
    done = fovea("check", "baseline.json")
    assert done.exit_code == 2 and "scripted:yes is not local" in done.stderr


def test_retrieval_runs_are_judged_where_they_are_given(tmp_path: Path) -> None:
    toy = test_matching.task((2,) * 40)
    paths = [
        matching.run(
            toy, test_matching.Known(test_matching.noise(toy, seed), name="m"), out=tmp_path / str(seed)
        ).path
        for seed in (0, 1)
    ]
    baseline = saved(tmp_path / "b.json", paths[0])
    assert judged(baseline, paths[0])[0].verdict == "good"
    (row,) = judged(baseline, paths[1])
    assert row.loss is not None and row.loss.low is not None and row.verdict == "undecided"


# ---------------------------------------------------------------- for machines

_SCHEMA = {
    "testsuites": ({"name", "time", "tests", "failures", "errors"}, set(), {"testsuite"}),
    "testsuite": (
        {"name", "tests", "failures", "errors", "time", "skipped", "timestamp", "hostname", "id", "package"},
        {"name", "tests", "failures", "errors"},
        {"testsuite", "properties", "testcase", "system-out", "system-err"},
    ),
    "testcase": (
        {"name", "time", "classname", "group"},
        {"name"},
        {"skipped", "error", "failure", "system-out", "system-err"},
    ),
    "failure": ({"type", "message"}, set(), set()),
    "error": ({"type", "message"}, set(), set()),
    "system-out": (set(), set(), set()),
}
"""Of Jenkins' junit-10.xsd: an element's attributes, those that it must have, and what may stand in it."""


def junit(path: Path) -> list[ElementTree.Element]:
    """The test cases of a JUnit file that keeps to the schema."""
    root = ElementTree.parse(path).getroot()
    assert root.tag == "testsuites"
    for element in root.iter():
        allowed, required, inside = _SCHEMA[element.tag]
        assert required <= set(element.keys()) <= allowed, element.attrib
        assert {child.tag for child in element} <= inside
    cases = list(root.iter("testcase"))
    for holder in (root, root[0]):
        counted = {"tests": len(cases)}
        counted |= {f"{kind}s": len(list(root.iter(kind))) for kind in ("failure", "error")}
        assert {name: int(holder.attrib[name]) for name in counted} == counted
    return cases


def rows() -> Iterator[Checked]:
    blank = Checked("a, row: 1", "good", "accuracy", True, 0.02, 0.5)
    yield blank
    yield replace(blank, name="<b>\x00 &\n", verdict="worse", reason="50 %\nof it\r\n::error::x")
    yield replace(blank, verdict="undecided", reason="[red]no[/red]")
    yield replace(blank, verdict="missing")


def test_junit_keeps_to_the_schema_whatever_a_row_is_called(tmp_path: Path) -> None:
    _checked.write_junit(list(rows()), Path("baselines/my.json"), tmp_path / "j.xml")
    good, worse, undecided, missing = junit(tmp_path / "j.xml")
    assert [child.tag for child in good] == ["system-out"]
    assert worse.attrib["name"] == "<b>\ufffd &\n" and worse.attrib["classname"] == "fovea.check.my"
    assert [case[0].attrib["type"] for case in (worse, undecided, missing)] == [
        "worse",
        "undecided",
        "missing",
    ]
    assert [case[0].tag for case in (worse, undecided, missing)] == ["failure", "error", "error"]
    with pytest.raises(FoveaError, match="cannot be written"):
        _checked.write_junit(list(rows()), Path("b.json"), tmp_path / "no" / "j.xml")


def test_annotations_cannot_be_broken_out_of() -> None:
    lines = list(_checked.for_github(list(rows()), Path("results/my,baseline.json")))
    assert [line.partition(" ")[0] for line in lines] == ["::error", "::warning", "::warning"]
    assert all("\n" not in line and "\r" not in line for line in lines)
    assert lines[0].startswith("::error file=results/my%2Cbaseline.json,title=<b>\x00 &%0A::worse: accuracy")
    assert lines[0].endswith("50 %25%0Aof it%0D%0A::error::x")
    assert lines[1].startswith("::warning file=results/my%2Cbaseline.json,title=a%2C row%3A 1::undecided")
    assert "file=" not in next(_checked.for_github(list(rows()), Path("/somewhere/b.json")))


def test_annotations_are_printed_where_github_says_that_it_listens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "b.json"
    saved(file, PLAIN, VICROP)
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    assert "::warning title=" in fovea("check", file, PLAIN).stderr
    monkeypatch.setenv("GITHUB_ACTIONS", "")
    assert "::warning" not in fovea("check", file, PLAIN).stderr


def test_what_a_row_is_called_is_no_markup() -> None:
    shown = printed(list(rows()))
    assert "[red]no[/red]" in shown and "1 good, 1 missing, 1 undecided, 1 worse" in shown


# ---------------------------------------------------------------- statistics


def counts_of(right: Sequence[Any]) -> list[dict[str, float]]:
    return [{"score": float(each), "scored": 1} for each in right]


def test_the_interval_is_students_of_the_pairs_with_two_more_of_the_furthest() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.random(80) < 0.7, rng.random(80) < 0.5
    found = paired_jackknife(exact.metric(), counts_of(first), counts_of(second), confidence=0.995)[
        "accuracy"
    ]
    difference = first * 1.0 - second
    off = difference - difference.mean()
    error = np.sqrt((np.sum(off**2) + 2 * np.max(off**2)) / 80 / 79)
    low, high = scipy.stats.t.interval(0.995, 79, difference.mean(), error)
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    plain = scipy.stats.ttest_rel(first * 1.0, second * 1.0).confidence_interval(0.995)
    assert low < plain.low and plain.high < high


def test_a_ratio_of_sums_and_lists_of_counts_have_the_same_jackknife() -> None:
    rng = np.random.default_rng(1)
    metric = chair.metric("rules")
    texts = ["A dog.", "A dog and a cat.", "A cat, a car and a dog.", "A bed."]
    sides = [[chair.counts(texts[k], ["dog"], "rules") for k in rng.integers(4, size=40)] for _ in range(2)]
    images = [k // 4 for k in range(40)]

    class Listed(type(metric)):  # type: ignore[misc]
        additive = False

    one = paired_jackknife(metric, *sides, images, confidence=0.99)
    other = paired_jackknife(Listed("rules"), *sides, images, confidence=0.99)
    for name, found in one.items():
        assert vars(found) == pytest.approx(vars(other[name])), name
    assert one["CHAIRi"].error and one["CHAIRi"].error > 0


def test_without_spread_or_without_a_second_image_there_is_no_width_or_no_interval() -> None:
    same = counts_of([1, 0, 1])
    found = paired_jackknife(exact.metric(), same, same)["accuracy"]
    assert (found.value, found.low, found.high) == (0, 0, 0)
    found = paired_jackknife(exact.metric(), same, counts_of([0, 0, 0]), ["a"] * 3)["accuracy"]
    assert found.value == pytest.approx(2 / 3) and (found.low, found.high, found.error) == (None, None, None)
    with pytest.raises(ValueError, match="equal samples"):
        paired_jackknife(exact.metric(), same, same[:2])


def test_the_samples_that_would_be_needed_are_those_of_a_power_calculation() -> None:
    needed = needed_samples(400, 0.02, 0.03, confidence=0.995, power=0.8)
    spread = 0.02 * np.sqrt(400)
    theirs = NormalIndPower(ddof=0).solve_power(0.03 / spread, alpha=0.005, power=0.8, ratio=0)
    assert needed == pytest.approx(theirs, rel=1e-3)
    assert needed_samples(400, 0.0, 0.03) is None and needed_samples(400, 0.02, 0.0) is None
