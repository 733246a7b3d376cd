"""Multiple choice: the references' parsers and ours, option likelihood, and the metric over samples.

All of `goldens/vstar.json` is compared but its `prompt_cases`, which are the task's. VLMEvalKit's goldens do
not tell its releases apart; ours is that of August 2026 (e8e78f05), which differs from releases before June
2026 on "answer is X" in running text. lmms-eval's `lmms_mcq` is that of April 2026 (75571cfe), which made the
goldens; later ones abstain more.
"""

import dataclasses
import json
import math
from pathlib import Path
from string import ascii_uppercase
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.scripted import Scripted
from harness import engine
from harness.errors import DataError
from harness.resolve import make_metric, metric_from
from harness.summary import metric_key
from harness.types import Request, Response, Sample, Task
from metrics.choice import Parser, letter_mass, metric, most_likely, parse
from metrics.vqa import soft_accuracy

GOLDEN = json.loads((Path(__file__).parent / "goldens" / "vstar.json").read_text())
COLUMNS: dict[str, Parser] = {
    "lmms_letter": "lmms",
    "lmms_mcq_extract": "lmms_mcq",
    "mllms_know_letter": "vicrop",
    "vlmevalkit_can_infer": "vlmevalkit",
}
PARSERS: tuple[Parser, ...] = get_args(Parser)
COLOURS = ["red", "navy blue", "blue", "green"]
ABCD = ["ceramic", "glass", "steel", "plastic"]

WORDS = (
    "A B C D E Z a b I answer Answer: is option (B) [C] D. or and the red navy blue green blue, ** cat İ ß"
)
words = st.sampled_from([*WORDS.split(), "\n", '"', "", "  ", "1"])
answers = st.lists(words, max_size=8).map(" ".join) | st.text(max_size=12)
options = st.lists(st.sampled_from([*COLOURS, "A", "b", "", "a cat", "1", "?"]), max_size=6)


@pytest.mark.parametrize(("column", "parser"), COLUMNS.items())
def test_parsers_choose_what_the_references_choose(column: str, parser: Parser) -> None:
    checked = [case for case in GOLDEN["parse_cases"] if column in case["expected"]]
    assert len(checked) > 80
    for case in checked:
        expected = case["expected"][column] or None  # None, "" and False all say: no answer
        index = ascii_uppercase.index(expected) if expected else None
        assert parse(case["input"]["response"], case["input"]["options"], parser) == index, case


def test_strict_chooses_as_its_rules_say() -> None:
    assert len(GOLDEN["strict_cases"]) > 80
    for case in GOLDEN["strict_cases"]:
        index = ascii_uppercase.index(case["expected"]) if case["expected"] else None
        assert parse(case["input"]["response"], case["input"]["options"]) == index, case


def test_vicrops_vstar_score_is_its_letter_in_its_vqa_score() -> None:
    checked = [case for case in GOLDEN["parse_cases"] if "mllms_know_labels" in case["input"]]
    assert checked
    for case in checked:
        lines = case["input"]["question_text"].split("\n")[1:-1]
        texts = [line.partition(") ")[2] for line in lines]
        for which in ("original", "crop"):
            index = parse(case["input"][f"{which}_answer"], texts, "vicrop")
            assert index is not None
            score = soft_accuracy(ascii_uppercase[index], list(case["input"]["mllms_know_labels"]), "vicrop")
            assert 100 * score == pytest.approx(case["expected"][f"mllms_know_{which}_0to100"])


def test_whole_runs_have_lmms_evals_scores_in_all_and_per_category() -> None:
    lmms = metric("lmms")
    for case in GOLDEN["aggregate_cases"]:
        samples = [
            Sample(
                row["question_id"],
                targets=(row["label"],),
                category=row["category"],
                meta={"options": ["w", "x", "y", "z"]},
            )
            for row in case["input"]
        ]
        counts = lmms.measure([Response(row["response"]) for row in case["input"]], samples)
        for name, expected in case["expected"].items():
            category = name.removesuffix("_0to100")
            part = [
                count
                for count, sample in zip(counts, samples, strict=True)
                if category in ("overall", sample.category)
            ]
            accuracy = lmms.reduce(part)["accuracy"]
            assert accuracy is not None
            assert 100 * accuracy == pytest.approx(expected, abs=1e-9)


def test_the_most_likely_option_is_the_references() -> None:
    for case in GOLDEN["option_likelihood_cases"]:
        nll = [(mean * (k + 3), k + 3) for k, mean in enumerate(case["input"]["mean_token_nll_per_option"])]
        if len(set(case["input"]["mean_token_nll_per_option"])) < len(nll):
            nll = [(mean, 1) for mean in case["input"]["mean_token_nll_per_option"]]  # ties stay exact
        chosen = most_likely(nll)
        assert chosen == case["expected"]["chosen"], case
        assert int(chosen == case["input"]["correct_index"]) == case["expected"]["correct"]


@pytest.mark.parametrize(
    ("text", "texts", "index"),
    [
        ("Answer: C", ABCD, 2),
        ("Based on the image, the answer is A", ABCD, 0),
        ("Because", ABCD, None),
        ("ABCD", ABCD, None),
        ("A or B", ABCD, None),
        ("B and C", ABCD, None),
        ("C", ["left", "right"], None),
        ("It is navy blue.", COLOURS, 1),
        ("blue", COLOURS, 2),
        ("navy blue or green", COLOURS, None),
        ("the answer is c.", ABCD, 2),
        ("the answer is a glass mug", ABCD, 1),
        ("Either (A) or (B)", ABCD, None),
        ("First I thought of option A, but the answer is B", ABCD, 1),
        ("The answer is E, made of glass", ABCD, None),
        ("I see a mug", ABCD, None),
        ("A mug, so B", ABCD, 1),
        ("same", ["same", "same"], None),
        ("It is the same.", ["same", "Same."], None),
        ("a b c", ["a b", "b c"], None),
        ("b c", ["a b", "b c"], 1),
    ],
)
def test_strict_takes_what_is_said_and_guesses_nothing(
    text: str, texts: list[str], index: int | None
) -> None:
    assert parse(text, texts) == index


@pytest.mark.parametrize(
    ("parser", "text", "index"),
    [
        ("lmms", "Answer: C", 0),
        ("lmms", "choice (B)", 2),
        ("lmms", "Cannot determine", 2),
        ("lmms", "red", 3),
        ("lmms", "The mug is made of glass.", None),
        ("lmms_mcq", "a", None),
        ("lmms_mcq", "Because", 1),
        ("lmms_mcq", "E", None),
        ("vlmevalkit", "A or B", None),
        ("vlmevalkit", "Cannot determine the answer", 25),
        ("vlmevalkit", "A or B, but the answer is **B**", 1),
    ],
)
def test_the_quirks_of_the_references_are_kept(parser: Parser, text: str, index: int | None) -> None:
    assert parse(text, ABCD, parser) == index


def test_a_letter_beyond_the_options_stays_what_the_reference_says() -> None:
    assert parse("D", ["left", "right"], "lmms") == 3
    assert parse("Z", ["left", "right"], "vlmevalkit") == 25
    assert parse("None of the above", ["above", "below"], "vlmevalkit") == 0


@given(answers, options)
def test_strict_never_returns_an_option_that_does_not_exist(text: str, texts: list[str]) -> None:
    index = parse(text, texts)
    assert index is None or 0 <= index < len(texts)


@given(answers, options, st.sampled_from(PARSERS))
def test_no_parser_raises_for_any_text(text: str, texts: list[str], parser: Parser) -> None:
    index = parse(text, texts, parser)
    assert index is None or 0 <= index < 26


@given(
    st.sampled_from(["It is blue.", "navy blue", "green, I think", "a red thing", "blue or red"]),
    st.randoms(),
)
def test_an_option_named_by_its_text_is_found_wherever_it_stands(text: str, rng: Any) -> None:
    shuffled = list(COLOURS)
    rng.shuffle(shuffled)
    found, before = parse(text, shuffled), parse(text, COLOURS)
    assert (found is None and before is None) or (
        found is not None and before is not None and shuffled[found] == COLOURS[before]
    )


def test_the_sum_of_nll_favours_short_options_and_the_mean_does_not() -> None:
    nll = [(4.0, 4), (3.0, 2)]
    assert (most_likely(nll), most_likely(nll, "likelihood_sum")) == (0, 1)
    assert most_likely([(2.0, 2), (1.0, 1)]) == 0  # the first of equals
    assert most_likely([]) is None
    assert most_likely([(math.nan, 2), (1.0, 1)]) is None
    with pytest.raises(ValueError, match="an option has no tokens"):
        most_likely([(0.0, 0)])
    with pytest.raises(ValueError, match="use one of likelihood, likelihood_sum"):
        most_likely(nll, "mean")  # type: ignore[arg-type]


def test_the_metric_reads_likelihoods_where_it_is_asked_to() -> None:
    sample = Sample("q7", meta={"options": ["left", "right"], "answer_index": 1})
    response = Response("left", option_nll=((4.0, 4), (3.0, 2)))
    assert metric("likelihood").measure([response], [sample])[0]["correct"] == 0
    assert metric("likelihood_sum").measure([response], [sample])[0]["correct"] == 1
    broken = Response(option_nll=((math.nan, 1), (1.0, 1)))
    assert metric("likelihood").measure([broken], [sample]) == [{"scored": 1, "correct": 0, "unparsed": 1}]
    with pytest.raises(DataError, match=r"sample q7: 0 likelihoods for 2 options.*request\.options"):
        metric("likelihood").measure([Response("left")], [sample])


def top(**tokens: float) -> Response:
    """An answer whose first token had these probabilities."""
    logs = {token.replace("_", " "): math.log(p) for token, p in tokens.items()}
    return Response("A", trace={"top_logprobs": logs})


FOUR = Sample("q8", meta={"options": ["red", "blue", "green", "none"], "answer_index": 1})


@pytest.mark.parametrize(
    ("tokens", "masses"),
    [
        ({"A": 0.5, "B": 0.25}, [0.5, 0.25, 0, 0]),
        ({"B": 0.3, " B": 0.2, "(B": 0.1, "B.": 0.05, "▁B": 0.05, "ĠB": 0.1}, [0, 0.8, 0, 0]),
        ({"a": 0.4, " an": 0.2, "The": 0.1, "(": 0.1, "BC": 0.1}, [0, 0, 0, 0]),
        ({"E": 0.6, "C": 0.1}, [0, 0, 0.1, 0]),  # no fifth option
        ({"**D": 0.2, "Ｄ": 0.3}, [0, 0, 0, 0.2]),
        ({}, [0, 0, 0, 0]),
    ],
)
def test_a_letters_mass_is_that_of_the_tokens_that_are_nothing_but_it(
    tokens: dict[str, float], masses: list[float]
) -> None:
    logs = {token: math.log(p) for token, p in tokens.items()}
    assert letter_mass(logs, 4) == pytest.approx(masses)


def test_the_letter_with_the_most_mass_is_chosen_and_coverage_is_stated() -> None:
    choice = metric("letter_likelihood")
    right = top(A=0.4, B=0.3, _B=0.2)  # no single token of B's is the likeliest
    wrong = top(C=0.6, D=0.1)
    silent = top(The=0.9)
    counts = choice.measure([right, wrong, silent], [FOUR] * 3)
    assert [(count["scored"], count["correct"], count["uncovered"]) for count in counts] == [
        (1, 1, 0),
        (1, 0, 0),
        (0, 0, 1),
    ]
    assert choice.reduce(counts) == {
        "accuracy": 0.5,  # of the two that name a letter
        "coverage": pytest.approx((0.9 + 0.7 + 0) / 3),
        "uncovered": pytest.approx(1 / 3),
    }
    assert choice.reduce(counts[2:])["accuracy"] is None
    assert choice.reduce([]) == {"accuracy": None, "coverage": None, "uncovered": None}
    assert metric_key(choice) == "choice[letter_likelihood]" != metric_key(metric("likelihood"))


def test_a_refusal_names_no_letter_and_any_other_answer_must_have_its_first_tokens() -> None:
    choice = metric("letter_likelihood")
    refused = [Response("I cannot.", "refusal"), Response("", "content_filter")]
    assert [count["uncovered"] for count in choice.measure(refused, [FOUR] * 2)] == [1, 1]
    with pytest.raises(DataError, match=r"sample q8: its answer has no top_logprobs.*top_logprobs=20"):
        choice.measure([Response("B")], [FOUR])


def test_first_letters_are_read_again_from_a_stored_run(tmp_path: Path) -> None:
    sample = dataclasses.replace(FOUR, question="Which?")
    task = Task("t", "1", "p", "f", [sample], lambda s: Request(question=s.question), (metric(),), "accuracy")
    ran = engine.run(task, Scripted(lambda _: top(B=0.9)), out=tmp_path)
    entry = engine.score(ran.path, [metric("letter_likelihood")])["metrics"]["choice[letter_likelihood]"]
    assert entry["scores"]["accuracy"]["value"] == 1
    assert entry["scores"]["coverage"]["value"] == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("targets", "meta", "right"),
    [
        (("B",), {}, 1),
        (("b",), {}, 1),
        (("right",), {}, 1),
        ((" right ",), {}, 1),
        (("left",), {"answer_index": 1}, 1),
        ((), {"answer_index": 0}, 0),
    ],
)
def test_the_right_option_is_an_index_a_letter_or_a_text(
    targets: tuple[str, ...], meta: dict[str, Any], right: int
) -> None:
    sample = Sample("1", targets=targets, meta={"options": ["left", "right"], **meta})
    counts = metric().measure([Response("left"), Response("right")], [sample, sample])
    assert [count["correct"] for count in counts] == [int(right == 0), int(right == 1)]


@pytest.mark.parametrize(
    ("targets", "meta", "message"),
    [
        (("C",), {"options": ["left", "right"]}, "'C' names none of its 2 options, or several"),
        (("A",), {"options": ["B", "A"]}, "'A' names none of its 2 options, or several"),
        (("x",), {"options": ["x", "x"]}, "'x' names none of its 2 options, or several"),
        ((), {"options": ["x", "y"], "answer_index": 2}, "2 names none of its 2 options"),
        (("A",), {}, "needs the options' texts as a list"),
        (("A",), {"options": "AB"}, "needs the options' texts as a list"),
        (("A",), {"options": [1, 2]}, "needs the options' texts as a list"),
    ],
)
def test_a_sample_whose_right_option_cannot_be_told_is_an_error_of_the_data(
    targets: tuple[str, ...], meta: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=f"sample 9: .*{message}"):
        metric().measure([Response("A")], [Sample("9", targets=targets, meta=meta)])


def test_too_many_options_and_an_unknown_parser_are_refused() -> None:
    with pytest.raises(ValueError, match="there are 27 options; letters name 26 at most"):
        parse("A", ["x"] * 27)
    with pytest.raises(ValueError, match="use one of strict, lmms"):
        parse("A", ["x"], "loose")  # type: ignore[arg-type]


def test_a_sample_without_a_right_option_counts_for_nothing() -> None:
    samples = [Sample("1", targets=("A",), meta={"options": ABCD}), Sample("2", meta={"options": ABCD})]
    choice = metric()
    counts = choice.measure([Response("no idea"), Response("A")], samples)
    assert choice.reduce(counts) == {"accuracy": 0.0, "unparsed": 1.0}
    assert choice.reduce(counts[1:]) == choice.reduce([]) == {"accuracy": None, "unparsed": None}


def test_it_is_made_from_a_spec_and_again_from_its_knobs() -> None:
    made = make_metric("choice:parser=likelihood_sum")
    assert (made, made.variant) == (metric("likelihood_sum"), "likelihood_sum")
    assert metric_from({"name": "choice", "knobs": vars(made)}) == made


@given(st.lists(st.tuples(answers, st.sampled_from(["A", "B", None])), max_size=10), st.randoms())
def test_the_share_depends_neither_on_order_nor_on_summing_first(rows: list[Any], rng: Any) -> None:
    choice = metric()
    samples = [
        Sample(str(i), targets=(label,) if label else (), meta={"options": COLOURS})
        for i, (_, label) in enumerate(rows)
    ]
    counts = choice.measure([Response(text) for text, _ in rows], samples)
    total = {key: sum(count[key] for count in counts) for key in ("scored", "correct", "unparsed")}
    whole = choice.reduce(counts)
    rng.shuffle(counts)
    assert choice.reduce(counts) == choice.reduce([total]) == whole
