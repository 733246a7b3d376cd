"""Both doors to Hugging Face `evaluate`: its modules as our metrics, and our metrics as its modules.

`evaluate` copies what it loads: here into a folder of the test's own.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from adapters.scripted import Scripted
from harness import engine, resolve
from harness.errors import DataError, SpecError
from harness.summary import metric_json
from harness.types import Response, Sample
from metrics import evaluate as door

ROOT = Path(__file__).parent.parent
SHARED = ROOT.parent / "shared" / "data"
MODULE = ROOT / "metrics" / "evaluate_module.py"

OVERLAP = '''
import datasets
import evaluate


class Overlap(evaluate.Metric):
    """Shared words."""

    def _info(self):
        text = datasets.Value("string")
        references = {references}
        return evaluate.MetricInfo(
            description="", citation="", inputs_description="",
            features=datasets.Features({{"predictions": text, "references": references}}),
        )

    def _compute(self, predictions, references, lower=False):
        if any(p == "break" for p in predictions):
            raise ValueError("broken")
        def share(p, r):
            words = set((" ".join(r) if isinstance(r, list) else r).split())
            return len(set((p.lower() if lower else p).split()) & words) / max(1, len(words))
        scores = [share(p, r) for p, r in zip(predictions, references)]
        mean = sum(scores) / len(scores)
        return {{"overlap": mean, "n": len(scores), "each": scores, "none": float("nan")}}
'''


@pytest.fixture(scope="module")
def modules(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Two modules: `many/overlap.py` takes a list of references, `overlap.py` a single one."""
    import evaluate

    folder = tmp_path_factory.mktemp("modules")
    (folder / "many").mkdir()
    (folder / "many" / "many.py").write_text(OVERLAP.format(references="datasets.Sequence(text)"))
    (folder / "overlap.py").write_text(OVERLAP.format(references="text"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate.config, "HF_MODULES_CACHE", str(folder / "cache"))
        patch.setattr(sys, "path", list(sys.path))
        yield folder


def samples(*targets: Sequence[str]) -> list[Sample]:
    return [Sample(str(number), targets=tuple(found)) for number, found in enumerate(targets)]


def scores(metric: Any, answers: Sequence[str], *targets: Sequence[str]) -> dict[str, Any]:
    return dict(metric.reduce(metric.measure([Response(text) for text in answers], samples(*targets))))


# ---------------------------------------------------------------- their modules, our metrics


def test_a_module_of_evaluate_is_a_metric_and_its_numbers_are_scores(modules: Path) -> None:
    metric = door.metric(str(modules / "overlap.py"))
    found = scores(metric, ["a dog", "a cat", "x"], ["a dog"], ["the cat"], [])
    assert found == {"overlap": 0.75, "n": 2.0, "none": None}
    assert (metric.name, metric.variant, metric.scope) == ("evaluate", "overlap", "corpus")
    assert scores(metric, ["x"], []) == {"overlap": None}


def test_a_folder_is_a_module_and_a_list_of_references_is_handed_on_where_it_is_taken(modules: Path) -> None:
    metric = door.metric(str(modules / "many"), number="overlap")
    assert scores(metric, ["a dog"], ["a dog", "one hound"])["overlap"] == 0.5


def test_one_reference_is_never_picked_from_several_unasked(modules: Path) -> None:
    path = str(modules / "overlap.py")
    with pytest.raises(DataError, match="takes one reference per prediction; sample '0' has 2.*first takes"):
        scores(door.metric(path), ["a dog"], ["a dog", "one hound"])
    assert scores(door.metric(path, references="first"), ["a dog"], ["a dog", "b"])["overlap"] == 1.0


def test_its_arguments_are_handed_on_and_part_of_its_name(modules: Path) -> None:
    metric = resolve.make_metric(f'evaluate:{modules}/overlap.py,arguments=({{"lower": true}})')
    assert metric.variant == 'overlap+{"lower": true}'
    assert scores(metric, ["A DOG"], ["a dog"])["overlap"] == 1.0
    assert resolve.metric_from(json.loads(json.dumps(metric_json(metric)))) == metric


def test_it_scores_a_finished_run_and_the_order_of_answers_changes_nothing(
    modules: Path, tmp_path: Path
) -> None:
    path = tmp_path / "mine.jsonl"
    rows = [{"question": f"{k}?", "answer": f"a {k}"} for k in range(5)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = resolve.make_task(f"vqa_file:{path},metric=(evaluate:{modules}/overlap.py)")
    assert task.primary == "overlap"
    run = engine.run(task, Scripted(lambda request: f"a {request.question[:1]}"), out=tmp_path / "runs")
    assert run.summary["metrics"]["evaluate[overlap]"]["scores"]["overlap"]["value"] == 1.0
    assert engine.score(run.path, list(task.metrics)) == run.summary
    metric = task.metrics[0]
    counts = metric.measure([Response(str(k)) for k in range(5)], samples(*([str(k % 3)] for k in range(5))))
    assert metric.reduce(counts) == metric.reduce(counts[::-1])


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ("nowhere.py", "there is no such file or folder here .*trust_remote_code=true: its code is down"),
        ("{m}/overlap.py,arguments=(nonsense)", "arguments is not JSON"),
        ("{m}/overlap.py,arguments=([1])", "arguments is no object"),
    ],
)
def test_what_cannot_work_is_refused_when_it_is_named(modules: Path, knobs: str, said: str) -> None:
    with pytest.raises(SpecError, match=said):
        resolve.make_metric(f"evaluate:{knobs.format(m=modules)}")


def test_what_goes_wrong_in_a_module_is_told_with_its_name(modules: Path, tmp_path: Path) -> None:
    path = str(modules / "overlap.py")
    with pytest.raises(DataError, match=r"overlap\.py failed on 1 answers: broken"):
        scores(door.metric(path), ["break"], ["a"])
    with pytest.raises(DataError, match=r"has no number 'f1'; say number=.* \(there are: overlap, n, none\)"):
        scores(door.metric(path, number="f1"), ["a"], ["a"])
    (tmp_path / "empty.py").write_text("import nowhere_at_all\n")
    with pytest.raises(DataError, match="does not load.*nowhere_at_all"):
        scores(door.metric(str(tmp_path / "empty.py")), ["a"], ["a"])


# ---------------------------------------------------------------- our metrics, their modules


def test_our_metrics_are_modules_of_evaluate(modules: Path) -> None:
    import evaluate

    chair = evaluate.load(str(MODULE), "chair", keep_in_memory=True)
    found = chair.compute(
        predictions=["A cat and a dog.", "A bus."], references=[["cat"], ["bus", "car"]], front_end="rules"
    )
    assert found == {"CHAIRs": 0.5, "CHAIRi": 1 / 3, "Recall": 2 / 3, "Len": 4.5}
    anls = evaluate.load(str(MODULE), "anls", keep_in_memory=True)
    assert anls.compute(predictions=["0.28", "28"], references=["0.28", "0.28"]) == {"anls": 0.75}
    anls.add_batch(predictions=["0.28"], references=["0.28"])
    assert anls.compute() == {"anls": 1.0}
    assert anls.compute(predictions=[], references=[]) == {"anls": None}
    assert "ANLS" in anls.description


def test_a_metric_that_is_none_is_named(modules: Path) -> None:
    import evaluate

    for name in ("chiar", None, "_mean", "os.path"):
        with pytest.raises(SpecError, match="as second argument.*fovea list metrics"):
            evaluate.load(str(MODULE), name)


def test_evaluates_chair_of_real_captions_is_the_references(tmp_path: Path) -> None:
    """In a process of its own, as a user would: from the repository's root, with a path in its tree."""
    pytest.importorskip("nltk", reason="needs the extra [chair]")
    words = Path(os.environ.get("NLTK_DATA", SHARED / "nltk_data"))
    captions = SHARED / "coco" / "annotations.jsonl"
    for path in (words, captions):
        if not path.exists():
            pytest.skip(f"needs {path}")
    script = (
        "import evaluate, json, sys\n"
        "rows = [json.loads(line) for line in open(sys.argv[1], encoding='utf-8')]\n"
        "chair = evaluate.load('metrics/evaluate_module.py', 'chair')\n"
        "texts, objects = [r['caption_by_mllm'] for r in rows], [r['objects'] for r in rows]\n"
        "for front_end in ('wordnet', 'pattern'):\n"
        "    found = chair.compute(predictions=texts, references=objects, front_end=front_end)\n"
        "    print(json.dumps(found))\n"
    )
    env = os.environ | {"HF_HOME": str(tmp_path), "NLTK_DATA": str(words)}
    command = [sys.executable, "-c", script, str(captions)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    wordnet, pattern = (json.loads(line) for line in done.stdout.splitlines())
    expected = {"CHAIRs": 0.306931, "CHAIRi": 0.078056, "Recall": 0.699690, "Len": 155.93}
    assert wordnet == pytest.approx(expected, rel=2e-5)
    expected = {"CHAIRs": 0.267327, "CHAIRi": 0.067381, "Recall": 0.687307, "Len": 155.93}
    assert pattern == pytest.approx(expected, rel=2e-5)
