"""Yes/no parsing and POPE's scores: the references' outputs, and categories that stay additive."""

import json
from collections import Counter
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import DataError
from harness.types import Response, Sample
from metrics.yesno import Parser, Variant, metric, parse, scores

GOLDEN = json.loads((Path(__file__).parent / "goldens" / "pope.json").read_text())
PARSER_COLUMNS: dict[str, Parser] = {
    "official_llava": "official",
    "lmms_normalised": "lmms",
    "vlmevalkit": "vlmevalkit",
    "mllms_know": "vicrop",
}


@pytest.mark.parametrize(("column", "parser"), PARSER_COLUMNS.items())
def test_parsed_answers_equal_the_references(column: str, parser: Parser) -> None:
    checked = GOLDEN["parse_cases"]
    assert len(checked) > 90
    for case in checked:
        expected = case["expected"][column].lower()  # lmms's text is compared as it is; "unknown" is none
        expected = expected if expected in ("yes", "no") else None
        assert parse(case["input"], parser) == expected, case


@pytest.mark.parametrize("number", ["accuracy", "precision", "recall", "f1", "yes_ratio"])
def test_official_scores_equal_the_reference_and_are_none_where_it_divides_by_zero(number: str) -> None:
    degenerate = 0
    for case in GOLDEN["aggregate_cases"]:
        expected = case["expected"]["official_llava"]
        parsed = [parse(text) for text in case["input"]["responses"]]
        found = scores(parsed, case["input"]["labels"])
        if expected == "ZeroDivisionError":
            degenerate += 1
            assert None in found.values()
            assert found["accuracy"] is not None
        else:
            assert found[number] == expected[number]
    assert degenerate > 10


def test_lmms_scores_equal_the_reference() -> None:
    """All but its `yes_ratio`, which is the truth's: ours is the predictions'."""
    for case in GOLDEN["aggregate_cases"]:
        parsed = [parse(text, "lmms") for text in case["input"]["responses"]]
        found = scores(parsed, case["input"]["labels"], "lmms")
        for number in ("accuracy", "precision", "recall", "f1"):
            assert found[number] == pytest.approx(case["expected"]["lmms"][number], abs=1e-12)


def test_vicrops_accuracy_equals_the_reference() -> None:
    for case in GOLDEN["aggregate_cases"]:
        parsed = [parse(text, "vicrop") for text in case["input"]["responses"]]
        expected = case["expected"]["mllms_know_accuracy_0to100"] / 100
        assert scores(parsed, case["input"]["labels"])["accuracy"] == pytest.approx(expected)


@pytest.mark.parametrize(("variant", "recall"), [("official", 1 / 3), ("lmms", 1 / 2), ("vlmevalkit", 1 / 3)])
def test_recall_differs_in_what_becomes_of_an_unparsed_positive(variant: Variant, recall: float) -> None:
    assert scores(["yes", "no", None], ["yes", "yes", "yes"], variant)["recall"] == pytest.approx(recall)


@pytest.mark.parametrize("variant", ["lmms", "vlmevalkit"])
def test_zero_by_zero_is_zero_for_lmms_and_vlmevalkit(variant: Variant) -> None:
    found = scores(["no", "no"], ["yes", "no"], variant)
    assert found == {"accuracy": 0.5, "precision": 0, "recall": 0, "f1": 0, "yes_ratio": 0}


def test_no_answers_have_no_scores_in_any_variant() -> None:
    for variant in ("official", "lmms", "vlmevalkit"):
        assert set(scores([], [], variant).values()) == {None}


@pytest.mark.parametrize(
    ("text", "answer"),
    [("NO", "no"), ("No!", "no"), ("**No**", "no"), (" yes, it is", "yes"), ("1. No", "no"), ("nope", "yes")],
)
def test_the_robust_parser_reads_the_first_word_and_falls_back_to_official(text: str, answer: str) -> None:
    assert parse(text, "robust") == answer


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="use one of official, lmms"):
        parse("yes", "pope")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="use one of official, lmms"):
        metric("pope")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="yes or no, not 'maybe'"):
        scores(["yes"], ["maybe"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="is shorter"):
        scores(["yes"], [])


def test_the_mean_f1_is_over_categories_and_the_rest_is_pooled() -> None:
    samples = [
        Sample("r/1", targets=("yes",), category="random"),
        Sample("r/2", targets=("no",), category="random"),
        Sample("p/1", targets=("yes",), category="popular"),
        Sample("p/2", targets=("yes",), category="popular"),
    ]
    yesno = metric()
    counts = yesno.measure([Response(text) for text in ("Yes", "Yes", "Yes", "No")], samples)
    assert counts == [{"random/tp": 1}, {"random/fp": 1}, {"popular/tp": 1}, {"popular/fn": 1}]
    found = yesno.reduce(counts)
    assert found["f1"] == pytest.approx(2 / 3)
    assert found["mean_f1"] == pytest.approx((2 / 3 + 2 / 3) / 2)
    assert found["accuracy"] == 0.5
    without_positives = yesno.reduce([*counts, {"adversarial/tn": 1}])
    assert without_positives["mean_f1"] is None
    assert without_positives["f1"] == pytest.approx(2 / 3)


def test_what_the_parser_cannot_read_is_counted() -> None:
    yesno = metric("lmms")
    samples = [Sample("1", targets=("yes",)), Sample("2", targets=("no",))]
    found = yesno.reduce(yesno.measure([Response("Yes."), Response("no")], samples))
    assert found["unparsed"] == 0.5
    assert found["accuracy"] == 0.5
    assert yesno.reduce([])["unparsed"] is None


def test_the_variant_names_the_parser_and_foreign_scores() -> None:
    assert metric().variant == "official"
    assert metric("lmms").variant == "lmms"
    assert metric("robust", "lmms").variant == "robust+lmms"


def test_a_question_that_is_not_yes_or_no_is_refused_by_its_name() -> None:
    with pytest.raises(DataError, match="sample 7: the truth of a yes/no question is yes or no, not 'red'"):
        metric().measure([Response("yes")], [Sample("7", targets=("red",))])


answers = st.sampled_from(["yes", "Yes.", "no", "maybe"])
rows_of_pope = st.lists(
    st.tuples(answers, st.sampled_from(["yes", "no"]), st.sampled_from([None, "random", "a/b"])), max_size=25
)


@given(rows_of_pope, st.sampled_from(["official", "lmms"]), st.randoms(use_true_random=False))
def test_scores_depend_neither_on_order_nor_on_summing_first(rows: Any, parser: Parser, rng: Any) -> None:
    yesno = metric(parser)
    samples = [Sample(str(i), targets=(truth,), category=name) for i, (_, truth, name) in enumerate(rows)]
    counts = cast(list[dict[str, int]], yesno.measure([Response(text) for text, _, _ in rows], samples))
    total: Counter[str] = Counter({"elsewhere/fp": 0})  # a resample may leave a category without samples
    for count in counts:
        total.update(count)
    whole = yesno.reduce(counts)
    rng.shuffle(counts)
    assert yesno.reduce(counts) == whole == yesno.reduce([dict(total)])
