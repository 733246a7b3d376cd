"""A-OKVQA: the official scores and ViCrop's, per question and over data sets with difficult ones.

Left out of `goldens/aokvqa.json`: `official_mc_0to100` where it is an AssertionError, for a prediction that
is no choice; its non-strict column, which counts it as wrong, is compared instead. `normalised` has no
column of its own: it is held against `vqav2_official` on answers that are not unanimous, in test_vqa.py.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.resolve import make_metric, metric_from
from harness.types import Response, Sample
from metrics import exact
from metrics.aokvqa import Variant, direct_answer, metric
from metrics.vqa import soft_accuracy

ALL = json.loads((Path(__file__).parent / "goldens" / "aokvqa.json").read_text())["cases"]
SINGLE = [case for case in ALL if "question" in case["input"]]
SETS = [case for case in ALL if "dataset" in case["input"]]
VARIANTS: tuple[Variant, ...] = ("official", "normalised", "vicrop")

answers = st.sampled_from(["cab", "Cab", "taxi", "two", "2", ""])


def sample_of(identifier: str, question: dict[str, Any]) -> Sample:
    meta = {"difficult_direct_answer": question["difficult_direct_answer"]}
    return Sample(identifier, targets=tuple(question["direct_answers"]), meta=meta)


def test_direct_answers_score_as_the_official_code_scores_them() -> None:
    assert len(SINGLE) >= 50
    for case in SINGLE:
        question, expected = case["input"]["question"], case["expected"]["official_da_0to100"]
        answer = case["input"]["direct_answer"]
        found = metric().measure([Response(answer)], [sample_of("1", question)])[0]
        if expected == "excluded":
            assert found == {"score": 0.0, "scored": 0, "excluded": 1}
        else:
            assert direct_answer(answer, question["direct_answers"]) * 100 == pytest.approx(
                expected, abs=1e-9
            )
            assert found["score"] * 100 == pytest.approx(expected, abs=1e-9)


def test_direct_answers_score_as_vicrop_scores_them() -> None:
    for case in SINGLE:
        references = case["input"]["question"]["direct_answers"]
        found = direct_answer(case["input"]["direct_answer"], references, "vicrop")
        assert found * 100 == pytest.approx(case["expected"]["mllms_know_da_0to100"], abs=1e-9), case


def test_a_whole_set_has_the_official_mean_difficult_questions_left_out() -> None:
    assert len(SETS) >= 5
    for case in SETS:
        questions, given = case["input"]["dataset"], case["input"]["direct_answer"]
        samples = [sample_of(key, question) for key, question in questions.items()]
        # upstream counts a missing prediction as 0; an empty one scores the same
        responses = [Response(given.get(sample.id, "")) for sample in samples]
        official = metric()
        found = official.reduce(official.measure(responses, samples))
        difficult = sum(question["difficult_direct_answer"] for question in questions.values())
        assert found["accuracy"] == pytest.approx(case["expected"]["official_da_0to100"] / 100, abs=1e-9)
        assert found["excluded"] == difficult


def test_the_official_multiple_choice_is_exact_match_with_the_right_choice() -> None:
    for case in SINGLE:
        question = case["input"]["question"]
        right = question["choices"][question["correct_choice_idx"]]
        found = 100 * exact.exact_match(case["input"]["multiple_choice"], right, "official")
        assert found == case["expected"]["official_mc_nonstrict_0to100"]
    for case in SETS:
        questions, given = case["input"]["dataset"], case["input"]["multiple_choice"]
        right = [q["choices"][q["correct_choice_idx"]] for q in questions.values()]
        hits = [given.get(key) == choice for key, choice in zip(questions, right, strict=True)]
        assert 100 * sum(hits) / len(hits) == pytest.approx(case["expected"]["official_mc_0to100"], abs=1e-9)


def test_only_the_official_score_heeds_capitals() -> None:
    humans = ["cab"] * 10
    assert [direct_answer("Cab", humans, variant) for variant in VARIANTS] == [0, 1, 1]


def test_vicrop_leaves_out_no_question() -> None:
    difficult = Sample("1", targets=("cab",) * 10, meta={"difficult_direct_answer": True})
    found = {v: metric(v).reduce(metric(v).measure([Response("cab")], [difficult])) for v in VARIANTS}
    assert found["official"] == found["normalised"] == {"accuracy": None, "excluded": 1}
    assert found["vicrop"] == {"accuracy": 1.0, "excluded": 0}


@given(answers, st.lists(answers, min_size=1, max_size=12), st.randoms())
def test_scores_are_shares_and_heed_no_order_of_references(
    answer: str, references: list[str], rng: Any
) -> None:
    found = [direct_answer(answer, references, variant) for variant in VARIANTS]
    assert all(0 <= score <= 1 for score in found)
    assert found[1] == soft_accuracy(answer, references, "official")
    rng.shuffle(references)
    assert [direct_answer(answer, references, variant) for variant in VARIANTS] == pytest.approx(found)


def test_no_reference_and_an_unknown_variant_are_refused() -> None:
    for variant in VARIANTS:
        with pytest.raises(ValueError, match="at least one reference"):
            direct_answer("cab", [], variant)
    with pytest.raises(ValueError, match="use one of official, normalised, vicrop"):
        direct_answer("cab", ["cab"], "vqa")  # type: ignore[arg-type]


def test_it_is_made_from_a_spec_and_again_from_its_knobs() -> None:
    made = make_metric("aokvqa:variant=normalised")
    assert made == metric("normalised")
    assert metric_from({"name": "aokvqa", "knobs": vars(made)}) == made


@given(st.lists(st.tuples(answers, st.lists(answers, max_size=10), st.booleans()), max_size=10), st.randoms())
def test_the_mean_depends_neither_on_order_nor_on_summing_first(rows: list[Any], rng: Any) -> None:
    aokvqa = metric()
    samples = [
        Sample(str(i), targets=tuple(targets), meta={"difficult_direct_answer": difficult})
        for i, (_, targets, difficult) in enumerate(rows)
    ]
    counts = aokvqa.measure([Response(text) for text, _, _ in rows], samples)
    total = {key: sum(count[key] for count in counts) for key in ("score", "scored", "excluded")}
    whole = aokvqa.reduce(counts)
    rng.shuffle(counts)
    assert aokvqa.reduce(counts) == whole
    assert aokvqa.reduce([total]) == pytest.approx(whole)
