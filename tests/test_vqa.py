"""VQA accuracy: what the references compute, to the last decimal, in every variant."""

import json
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.types import Response, Sample
from metrics._vqa_text import Normalizer
from metrics.vqa import Variant, metric, normalize, soft_accuracy

GOLDENS = Path(__file__).parent / "goldens"

NORMALIZER_COLUMNS: dict[str, Normalizer] = {
    "m4c": "m4c",
    "vqa_official": "official",
    "vlmevalkit": "vlmevalkit",
    "mllms_know": "vicrop",
}
ACCURACY_COLUMNS: dict[str, Variant] = {
    "textvqa_m4c": "m4c",
    "textvqa_lmms": "m4c",
    "vqav2_official": "official_v2",
    "vqav2_lmms": "official",
    "vlmevalkit_vqa_score": "vlmevalkit",
    "mllms_know_0to100": "vicrop",
    "short_min1_n_over_3": "short",
}


def cases(name: str) -> list[dict[str, Any]]:
    return cast(list[dict[str, Any]], json.loads((GOLDENS / name).read_text())["cases"])


@pytest.mark.parametrize(("column", "variant"), NORMALIZER_COLUMNS.items())
def test_normalised_answers_equal_the_references(column: str, variant: Normalizer) -> None:
    checked = [case for case in cases("vqa_normalize.json") if column in case["expected"]]
    assert len(checked) > 100
    wrong = [c for c in checked if normalize(c["input"], variant) != c["expected"][column]]
    assert wrong == []


@pytest.mark.parametrize(("column", "variant"), ACCURACY_COLUMNS.items())
def test_soft_accuracy_equals_the_references(column: str, variant: Variant) -> None:
    scale = 100 if column.endswith("0to100") else 1
    tolerance = 1e-7 if variant == "official_v2" else 1e-9  # that golden was stored with 8 decimals
    checked = [case for case in cases("vqa_accuracy.json") if column in case["expected"]]
    assert len(checked) > 100
    for case in checked:
        found = soft_accuracy(case["input"]["pred"], case["input"]["answers"], variant)
        assert found == pytest.approx(case["expected"][column] / scale, abs=tolerance), case


@pytest.mark.parametrize(
    ("text", "m4c", "official", "vlmevalkit"),
    [
        ("N/A", "n", "n", "n"),
        ("none of the above", "0 of above", "0 of above", "0 of above"),
        ("5.", "5", "5", "5."),
        ("it's", "it 's", "it's", "it's"),
        ("x,y", "xy", "x y", "x y"),
        ("a?b", "ab", "b", "b"),
        ("1,,2", "12", "1 2", "1 2"),
        ("hello-world 1,000", "hello world 1000", "helloworld 1000", "helloworld 1000"),
        ("red/ blue", "red blue", "red blue", "red blue"),
        ("Im", "im", "im", "im"),
        ("somebody'd", "somebodyd", "somebodyd", "somebodyd"),
    ],
)
def test_the_quirks_of_each_normaliser_are_kept(text: str, m4c: str, official: str, vlmevalkit: str) -> None:
    assert normalize(text, "m4c") == m4c
    assert normalize(text, "official") == official
    assert normalize(text, "vlmevalkit") == vlmevalkit


def test_only_the_first_32_dots_are_deleted() -> None:
    assert normalize(". " * 40 + "end").count(".") == 8


@given(st.lists(st.sampled_from(["cat", "dog", "a Cat", "two", "2"]), min_size=10, max_size=10))
def test_with_ten_references_leave_one_out_is_three_tenths_of_the_matches(references: list[str]) -> None:
    matches = sum(normalize(reference) == "cat" for reference in references)
    expected = float(min(Fraction(1), Fraction(3, 10) * matches))
    assert soft_accuracy("cat", references) == pytest.approx(expected, abs=1e-12)


def test_unanimous_references_are_not_normalised_by_official_v2() -> None:
    assert soft_accuracy("Yes", ["yes"] * 10, "official_v2") == 0
    assert soft_accuracy("two", ["2"] * 10, "official_v2") == 0
    assert soft_accuracy("Dog.", ["dog"] * 9 + ["cat"], "official_v2") == 1
    assert soft_accuracy("Yes", ["yes"] * 10, "official") == 1


def test_an_empty_answer_matches_answers_that_normalise_to_nothing() -> None:
    assert soft_accuracy("", [""] * 3 + ["cat"] * 7) == pytest.approx(0.9)
    assert soft_accuracy("a", ["the"] * 10) == 1


def test_no_reference_and_an_unknown_variant_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one reference"):
        soft_accuracy("cat", [])
    with pytest.raises(ValueError, match="use one of m4c, official"):
        soft_accuracy("cat", ["cat"], "officious")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="use one of m4c, official"):
        normalize("cat", "officious")  # type: ignore[arg-type]


def test_vicrops_score_warns_where_it_is_not_defined() -> None:
    vicrop = metric("vicrop")
    assert vicrop.measure([Response("cat")], [Sample("1", targets=("cat",) * 10)])[0]["score"] == 1
    with pytest.warns(UserWarning, match="assumes 10 reference answers; sample 2 has 1"):
        vicrop.measure([Response("cat")], [Sample("2", targets=("cat",))])


def test_samples_without_answers_count_for_nothing() -> None:
    vqa = metric()
    counts = vqa.measure(
        [Response("cat"), Response("cat")], [Sample("1", targets=("cat",) * 10), Sample("2")]
    )
    assert vqa.reduce(counts) == {"accuracy": 1.0}
    assert vqa.reduce(counts[1:]) == {"accuracy": None}
    assert vqa.reduce([]) == {"accuracy": None}


@given(
    st.lists(
        st.tuples(st.sampled_from(["cat", "two", ""]), st.lists(st.sampled_from(["cat", "2"]), max_size=10)),
        max_size=12,
    ),
    st.randoms(use_true_random=False),
)
def test_the_mean_depends_neither_on_order_nor_on_summing_first(rows: list[Any], rng: Any) -> None:
    vqa = metric()
    samples = [Sample(str(i), targets=tuple(targets)) for i, (_, targets) in enumerate(rows)]
    counts = vqa.measure([Response(text) for text, _ in rows], samples)
    total = {key: sum(count[key] for count in counts) for key in ("score", "scored")}
    whole = vqa.reduce(counts)
    rng.shuffle(counts)
    assert vqa.reduce(counts) == whole
    assert vqa.reduce([total]) == pytest.approx(whole)
