"""Caption metrics: pycocoevalcap's own outputs, stored with their tokens, and what Java's absence does.

What needs Java is skipped where there is none.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters.scripted import Scripted
from harness import engine
from harness.errors import DataError, SpecError
from harness.types import Request, Response, Sample, Task
from metrics import caption

HERE = Path(__file__).parent
CASES = json.loads((HERE / "goldens" / "caption_metrics.json").read_text())["cases"]
REAL = HERE.parent.parent / "shared" / "data" / "coco" / "annotations.jsonl"

pytest.importorskip("pycocoevalcap", reason="needs the extra [captions]")
java = pytest.mark.skipif(shutil.which("java") is None, reason="needs a Java runtime on PATH")


def pairs(case: dict[str, Any]) -> tuple[list[Response], list[Sample]]:
    candidates, references = case["input"]["candidates"], case["input"]["references"]
    samples = [Sample(key, targets=tuple(texts)) for key, texts in references.items()]
    return [Response(candidates[sample.id][0]) for sample in samples], samples


def scores(metric: Any, responses: Sequence[Response], samples: Sequence[Sample]) -> dict[str, Any]:
    return dict(metric.reduce(metric.measure(responses, samples)))


# ---------------------------------------------------------------- against the reference


@java
@pytest.mark.parametrize("number", range(len(CASES)))
def test_every_corpus_has_the_references_tokens_and_scores(number: int) -> None:
    case = CASES[number]
    responses, samples = pairs(case)
    official = caption.metric(meteor=False)
    seen = official.measure(responses, samples)
    expected = case["expected"]
    assert [count["candidate"] for count in seen] == [expected["tokens_cand"][s.id][0] for s in samples]
    assert [count["references"] for count in seen] == [expected["tokens_ref"][s.id] for s in samples]
    wanted = {f"BLEU-{n}": score for n, score in enumerate(expected["Bleu_1..4"], 1)}
    wanted |= {name: expected[name] for name in ("ROUGE_L", "CIDEr")}
    assert official.reduce(seen) == pytest.approx(wanted, abs=1e-6)


@java
def test_every_corpus_has_the_references_meteor() -> None:
    """All through one process: it takes seconds to start."""
    with caption._meteor_process() as meteor:
        for case in CASES:
            expected = case["expected"]
            score, each = meteor.compute_score(expected["tokens_ref"], expected["tokens_cand"])
            assert score == pytest.approx(expected["METEOR"], abs=1e-6)
            assert each == pytest.approx(expected["METEOR_per_image"], abs=1e-6)


@java
def test_the_metric_as_it_is_by_default_has_all_of_them() -> None:
    case = CASES[1]
    found = scores(caption.metric(), *pairs(case))
    assert found.keys() == caption.metric().higher_is_better.keys()
    assert found["METEOR"] == pytest.approx(case["expected"]["METEOR"], abs=1e-6)
    assert found["CIDEr"] == pytest.approx(case["expected"]["CIDEr"], abs=1e-6)


@java
def test_real_captions_have_upstreams_tokens() -> None:
    """pycocoevalcap's own class in the same run, on texts of several sentences with quotes and hyphens."""
    if not REAL.exists():
        pytest.skip(f"needs the real captions of {REAL}")
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    texts = [json.loads(line)["caption_by_mllm"] for line in REAL.read_text().splitlines()]
    theirs = PTBTokenizer().tokenize({k: [{"caption": text}] for k, text in enumerate(texts)})
    assert caption.tokenize(texts) == [theirs[k][0] for k in range(len(texts))]


@java
def test_a_line_break_of_any_kind_is_a_space_and_shifts_no_other_caption() -> None:
    broken = ["a\rdog", "a\u2028cat", "a\x0bcow", "a\x0chen", "a\r\npig", "a\nfox"]
    assert caption.tokenize([*broken, "", "The END."]) == [
        "a dog", "a cat", "a cow", "a hen", "a pig", "a fox", "", "the end",
    ]  # fmt: skip


@java
def test_tokens_do_not_depend_on_the_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "C")
    assert caption.tokenize(["Crème brûlée ½", "a\ud800b"])[0] == "crème brûlée 1/2"


@java
@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.permutations(range(4)))
def test_the_order_of_captions_changes_no_digit(order: list[int]) -> None:
    responses, samples = pairs(CASES[3])
    responses, samples = responses[:4], samples[:4]
    official = caption.metric(meteor=False)
    mixed = scores(official, [responses[k] for k in order], [samples[k] for k in order])
    assert mixed == scores(official, responses, samples)


# ---------------------------------------------------------------- without Java


def test_the_variant_without_a_tokenizer_needs_no_java(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    samples = [Sample("1", targets=("a dog runs fast",)), Sample("2", targets=("a cat",))]
    plain = caption.metric("vlmevalkit")
    assert plain.variant == "vlmevalkit"
    found = scores(plain, [Response("A dog runs fast"), Response("a cat")], samples)
    assert set(found) == {"CIDEr", "BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE_L"}
    assert found["BLEU-1"] == pytest.approx(5 / 6)  # "A" is not "a" here


def test_java_that_is_missing_is_named_with_what_needs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    samples = [Sample("1", targets=("a dog",))]
    with pytest.raises(DataError, match=r"variant=official needs a Java runtime.*METEOR and SPICE are Java"):
        caption.metric().measure([Response("a dog")], samples)


def test_spices_models_are_never_downloaded_by_themselves() -> None:
    if shutil.which("java") is None:
        pytest.skip("needs a Java runtime on PATH")
    with pytest.raises(DataError, match="SPICE needs stanford-corenlp-3.6.0.jar and .*models.jar in"):
        caption.require("official", spice=True)


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SpecError, match="pip install 'fovea-eval\\[captions\\]'"):
        caption.require("official")


@java
def test_a_java_that_fails_is_an_error_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "java"
    fake.write_text("#!/bin/sh\necho 'Error: out of luck' >&2\nexit 3\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match=r"failed on 1 captions \(exit 3\): Error: out of luck"):
        caption.tokenize(["a dog"])
    counts = [{"candidate": "a dog", "references": ["a dog"]}]
    with pytest.raises(DataError, match=r"METEOR's Java process ended early"):
        caption.metric().reduce(counts)


# ---------------------------------------------------------------- as a metric


@java
def test_an_empty_caption_scores_zero_and_a_sample_without_references_counts_for_nothing() -> None:
    official = caption.metric(meteor=False)
    samples = [Sample("1", targets=("a dog runs fast",)), Sample("2", targets=("a cat",)), Sample("3")]
    seen = official.measure([Response(""), Response("a cat"), Response("x")], samples)
    assert seen[2] == {}
    assert seen[0]["candidate"] == ""
    assert official.reduce(seen) == official.reduce(seen[:2])
    assert official.reduce([]) == official.reduce(seen[2:]) == dict.fromkeys(official.higher_is_better)


def test_one_image_alone_has_a_cider_of_zero() -> None:
    found = scores(caption.metric("vlmevalkit"), [Response("a dog")], [Sample("1", targets=("a dog",))])
    assert found["CIDEr"] == 0


def test_a_run_measures_its_captions_once_at_the_end_and_rescoring_changes_nothing(tmp_path: Path) -> None:
    texts = {"1": "a dog runs fast", "2": "two cats on a mat"}
    task = Task(
        name="captions",
        version="1",
        protocol="plain",
        fingerprint="0",
        samples=[Sample(key, question=key, targets=(text,)) for key, text in texts.items()],
        request=lambda sample: Request(question=sample.question),
        metrics=(caption.metric("vlmevalkit"),),
        primary="CIDEr",
    )
    run = engine.run(task, Scripted(lambda request: texts[request.question]), out=tmp_path)
    entry = run.summary["metrics"]["caption[vlmevalkit]"]
    assert entry["scores"]["CIDEr"] == {"value": pytest.approx(10), "low": None, "high": None}
    assert engine.score(run.path, [caption.metric("vlmevalkit")]) == run.summary


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    variant: caption.Variant = "official" if shutil.which("java") else "vlmevalkit"
    scores(caption.metric(variant, False), [Response("a dog")], [Sample("1", targets=("a dog",))])
    assert capfd.readouterr() == ("", "")


def test_an_unknown_variant_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown caption variant 'coco': use one of official, vlmevalkit"):
        caption.metric("coco").measure([], [])  # type: ignore[arg-type]
