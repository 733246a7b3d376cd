"""ANLS: the references' outputs in every variant, and the metric over samples.

Every column of `goldens/anls.json` has its variant; `vlmevalkit` and `lmms` are one function.
"""

import json
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.resolve import make_metric, metric_from
from harness.types import Response, Sample
from metrics.anls import Variant, anls, metric

CASES = cast(
    list[dict[str, Any]],
    json.loads((Path(__file__).parent / "goldens" / "anls.json").read_text())["cases"],
)
COLUMNS: dict[str, Variant] = {
    "lmms": "lmms",
    "vlmevalkit": "lmms",
    "lmms_after_strip": "lmms",
    "pypi_anls_0.0.2": "pypi_anls",
    "llava_stvqa": "llava_stvqa",
    "pypi_anls_star_1.0.1": "anls_star",
    "mllms_know_substring_0to100": "vicrop_docvqa",
}
VARIANTS: tuple[Variant, ...] = ("lmms", "pypi_anls", "llava_stvqa", "anls_star", "vicrop_docvqa")

texts = st.text(alphabet="aAbß İ\t.", max_size=6)


@pytest.mark.parametrize(("column", "variant"), COLUMNS.items())
def test_anls_equals_the_references(column: str, variant: Variant) -> None:
    scale = 100 if column.endswith("0to100") else 1
    assert len(CASES) > 100
    for case in CASES:
        answer, expected = case["input"]["pred"], case["expected"][column]
        found = anls(answer.strip() if "strip" in column else answer, case["input"]["answers"], variant)
        if expected == "ZeroDivisionError":
            assert found is None, case
        else:
            assert found == pytest.approx(expected / scale, abs=1e-12), case


@pytest.mark.parametrize(
    ("answer", "reference", "lmms", "pypi", "stvqa", "star"),
    [
        ("abcd", "abxy", 0.5, 0.0, 0.5, 0.5),
        ("a\tb\nc", "a b c", 1.0, 1.0, 0.6, 1.0),
        ("0,28", "0.28", 0.75, 0.75, 0.75, 0.75),
        ("The answer is 0.28", "0.28", 0.0, 0.0, 0.0, 0.0),
        ("İ", "i", 0.0, 0.0, 0.5, 0.5),
        ("", "a", 0.0, 0.0, 0.0, 0.0),
        ("", "", 1.0, 1.0, None, 1.0),
    ],
)
def test_the_variants_differ_at_the_threshold_on_white_space_and_on_nothing(
    answer: str, reference: str, lmms: float, pypi: float, stvqa: float | None, star: float
) -> None:
    found = [anls(answer, [reference], variant) for variant in VARIANTS[:4]]
    assert found == [pytest.approx(lmms), pytest.approx(pypi), stvqa, pytest.approx(star)]


def test_vicrops_docvqa_score_takes_a_part_for_the_whole() -> None:
    assert anls("", ["abc"], "vicrop_docvqa") == 1
    assert anls("Cola", ["Coca Cola"], "vicrop_docvqa") == 1
    assert anls("ABC", ["abc"], "vicrop_docvqa") == 0


@given(texts, st.lists(texts, min_size=1, max_size=4), st.sampled_from(VARIANTS), st.randoms())
def test_the_order_of_references_means_nothing(
    answer: str, references: list[str], variant: Variant, rng: Any
) -> None:
    found = anls(answer, references, variant)
    assert found is None or 0 <= found <= 1
    rng.shuffle(references)
    assert anls(answer, references, variant) == found


@given(texts, texts, st.sampled_from(VARIANTS))
def test_a_text_equals_itself_and_a_higher_threshold_never_helps(
    one: str, other: str, variant: Variant
) -> None:
    assert anls(one, [one], variant) in (1.0, None) or one.upper() != one or one.lower() != one
    strict, lax = anls(one, [other], variant, 0.2), anls(one, [other], variant, 0.8)
    if variant == "pypi_anls":  # there it is the largest distance, not the least similarity
        strict, lax = lax, strict
    assert strict is None or (lax is not None and strict >= lax)


def test_no_reference_and_an_unknown_variant_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one reference"):
        anls("a", [])
    with pytest.raises(ValueError, match="use one of lmms, pypi_anls"):
        anls("a", ["a"], "anls")  # type: ignore[arg-type]


def test_what_has_no_answer_or_no_score_counts_for_nothing() -> None:
    samples = [Sample("1", targets=("abcd",)), Sample("2"), Sample("3", targets=("",))]
    stvqa = metric("llava_stvqa")
    counts = stvqa.measure([Response("abcx"), Response("abcd"), Response("")], samples)
    assert counts == [{"score": 0.75, "scored": 1}, {"score": 0.0, "scored": 0}, {"score": 0.0, "scored": 0}]
    assert stvqa.reduce(counts) == {"anls": 0.75}
    assert stvqa.reduce(counts[1:]) == stvqa.reduce([]) == {"anls": None}


def test_it_is_made_from_a_spec_and_again_from_its_knobs() -> None:
    made = make_metric("anls:variant=pypi_anls,threshold=0.7")
    assert made == metric("pypi_anls", 0.7)
    assert metric_from({"name": "anls", "knobs": vars(made)}) == made


@given(st.lists(st.tuples(texts, st.lists(texts, max_size=3)), max_size=10), st.randoms())
def test_the_mean_depends_neither_on_order_nor_on_summing_first(rows: list[Any], rng: Any) -> None:
    docvqa = metric()
    samples = [Sample(str(i), targets=tuple(targets)) for i, (_, targets) in enumerate(rows)]
    counts = docvqa.measure([Response(text) for text, _ in rows], samples)
    total = {key: sum(count[key] for count in counts) for key in ("score", "scored")}
    whole = docvqa.reduce(counts)
    rng.shuffle(counts)
    assert docvqa.reduce(counts) == whole
    assert docvqa.reduce([total]) == pytest.approx(whole)
