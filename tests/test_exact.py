"""Exact and relaxed match: the references' outputs, and the metric over samples."""

import json
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.types import Response, Sample
from metrics.exact import Variant, exact_match, metric, relaxed

GOLDENS = Path(__file__).parent / "goldens"

GQA_COLUMNS: dict[str, Variant] = {
    "official_exact": "official",
    "llava_converted_exact": "llava",
    "lmms_exact_match": "lmms",
    "vlmevalkit_accuracy": "vlmevalkit",
    "mllms_know_0to100": "vicrop",
}


def cases(name: str) -> list[dict[str, Any]]:
    return cast(list[dict[str, Any]], json.loads((GOLDENS / name).read_text())["cases"])


@pytest.mark.parametrize(("column", "variant"), GQA_COLUMNS.items())
def test_gqa_matches_equal_the_references(column: str, variant: Variant) -> None:
    scale = 100 if column.endswith("0to100") else 1
    checked = cases("gqa.json")
    assert len(checked) > 100
    wrong = [
        case
        for case in checked
        if exact_match(case["input"]["pred"], case["input"]["answer"], variant)
        != case["expected"][column] / scale
    ]
    assert wrong == []


def test_relaxed_matches_equal_the_reference() -> None:
    checked = cases("exact_relaxed.json")
    assert len(checked) >= 50
    wrong = [
        case
        for case in checked
        if relaxed(case["input"]["prediction"], case["input"]["target"]) != case["expected"]["relaxed"]
    ]
    assert wrong == []


def test_exact_matches_equal_lmms_evals_where_a_variant_has_its_flags() -> None:
    """`em_plain` has none; `em_ignore_case_punct` is `lmms` on a trimmed answer. (Its other two columns,
    case alone and numbers, are flags that no task uses.)"""
    for case in cases("exact_relaxed.json"):
        answer, target = case["input"]["prediction"], case["input"]["target"]
        assert exact_match(answer, target, "official") == case["expected"]["em_plain"]
        if answer == answer.strip():
            assert exact_match(answer, target, "lmms") == case["expected"]["em_ignore_case_punct"]


@pytest.mark.parametrize(
    ("answer", "reference", "right"),
    [
        ("woman", "man", {"vicrop"}),
        ("light blue", "blue", {"vicrop"}),
        ("tshirt", "t-shirt", {"lmms"}),
        ("t shirt", "t-shirt", {"vicrop"}),
        ("two", "2", {"vicrop"}),
        ("yes.", "yes", {"llava", "lmms", "vicrop"}),
        ("yes .", "yes", {"vicrop"}),
        ("yes\n", "yes", {"lmms", "vlmevalkit", "vicrop"}),
        ("Yes", "yes", {"llava", "lmms", "vlmevalkit", "vicrop"}),
    ],
)
def test_the_matchers_differ_where_they_are_known_to(answer: str, reference: str, right: set[str]) -> None:
    assert {v for v in GQA_COLUMNS.values() if exact_match(answer, reference, v)} == right


@pytest.mark.parametrize(
    ("answer", "target", "right"),
    [
        ("10.5", "10", True),
        ("10.51", "10", False),
        ("95", "100", True),
        ("0.0", "0", False),
        ("0.1", "10%", True),
        ("5%", "5", False),
        ("1000", "1,000", False),
        ("1920", "2014", True),
        ("abc", "ABC", True),
        ("nan", "nan", False),
    ],
)
def test_relaxed_match_follows_its_reference_into_its_corners(answer: str, target: str, right: bool) -> None:
    assert relaxed(answer, target) is right


def test_the_tolerance_can_be_set() -> None:
    assert relaxed("11", "10", tolerance=0.1)
    assert not relaxed("11", "10", tolerance=0.05)


def test_an_unknown_matcher_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="use one of official, llava, lmms"):
        exact_match("a", "a", "gqa")  # type: ignore[arg-type]


def test_an_answer_is_right_if_it_matches_any_target() -> None:
    samples = [Sample("1", targets=("grey", "gray")), Sample("2", targets=("no",)), Sample("3")]
    exact = metric("llava")
    counts = exact.measure([Response("Gray."), Response("yes"), Response("?")], samples)
    assert exact.reduce(counts) == {"accuracy": 0.5}
    assert exact.reduce([]) == {"accuracy": None}


def test_the_relaxed_variant_trims_and_takes_the_best_target() -> None:
    chart = metric("relaxed")
    counts = chart.measure([Response(" 104 ")], [Sample("1", targets=("7", "100"))])
    assert chart.reduce(counts) == {"accuracy": 1.0}
    assert chart.variant == "relaxed"


words = st.sampled_from(["yes", "Yes.", "no", "two", "2", ""])


@given(st.lists(st.tuples(words, words), max_size=20), st.randoms(use_true_random=False))
def test_accuracy_depends_neither_on_order_nor_on_summing_first(rows: list[Any], rng: Any) -> None:
    exact = metric()
    samples = [Sample(str(i), targets=(target,)) for i, (_, target) in enumerate(rows)]
    counts = exact.measure([Response(text) for text, _ in rows], samples)
    total = {key: sum(count[key] for count in counts) for key in ("score", "scored")}
    whole = exact.reduce(counts)
    rng.shuffle(counts)
    assert exact.reduce(counts) == whole == exact.reduce([total])
