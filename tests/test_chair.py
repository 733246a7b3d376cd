"""CHAIR: the references' outputs through both of their front ends, ours beside them, and the metric.

What needs NLTK's data looks for NLTK_DATA, then for ../shared/data/nltk_data, and is skipped without.
"""

import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.types import Response, Sample
from metrics import _chair_nltk
from metrics.chair import FrontEnd, base_forms, counts, mentions, metric, node_word

HERE = Path(__file__).parent
GOLDEN = json.loads((HERE / "goldens" / "chair.json").read_text())
SHARED = HERE.parent.parent / "shared" / "data"
REAL = SHARED / "coco" / "annotations.jsonl"
REFERENCES: tuple[FrontEnd, ...] = ("wordnet", "pattern")


@pytest.fixture(scope="module")
def nltk_data() -> Path:
    pytest.importorskip("nltk", reason="needs the extra [chair]")
    import nltk

    folder = Path(os.environ.get("NLTK_DATA", SHARED / "nltk_data"))
    missing = [part for part in _chair_nltk.DATA.values() if not (folder / part).exists()]
    if missing:
        pytest.skip(f"needs NLTK's data: {folder} has no {', '.join(missing)} (set NLTK_DATA)")
    if str(folder) not in nltk.data.path:
        nltk.data.path.append(str(folder))
    return folder


@pytest.fixture(scope="module")
def real() -> list[dict[str, Any]]:
    if not REAL.exists():
        pytest.skip(f"needs the real captions of {REAL}")
    return [json.loads(line) for line in REAL.read_text().splitlines()]


# ---------------------------------------------------------------- against the references


@pytest.mark.parametrize("front_end", REFERENCES)
def test_every_caption_has_the_references_objects_and_counts(front_end: FrontEnd, nltk_data: Path) -> None:
    assert len(GOLDEN["cases"]) > 270
    for case in GOLDEN["cases"]:
        caption, truth = case["input"]["caption"], case["input"]["gt_objects"]
        expected = case["expected"][front_end]
        assert mentions(caption, front_end) == expected["nodes"], caption
        found = counts(caption, truth, front_end)
        assert found["mentions"] == len(expected["nodes"])
        assert found["hallucinated"] == len(expected["hallucinated"])
        assert found["truth"] == len(set(truth))
        assert found["length"] == expected["Len"]
        assert found["recalled"] / max(1, found["truth"]) == pytest.approx(expected["Recall"])
        assert found["hallucinated"] / max(1, found["mentions"]) == pytest.approx(expected["CHAIRi"])


@pytest.mark.parametrize("front_end", REFERENCES)
def test_corpus_scores_are_ratios_of_the_references_sums(front_end: FrontEnd, nltk_data: Path) -> None:
    """From their per-caption lists: no batch of the golden has all of its captions among these cases."""
    expected = [case["expected"][front_end] for case in GOLDEN["cases"]]
    truths = [set(case["input"]["gt_objects"]) for case in GOLDEN["cases"]]
    seen = [truth & set(case["nodes"]) for truth, case in zip(truths, expected, strict=True)]
    found = metric(front_end).reduce(measured(front_end, [case["input"] for case in GOLDEN["cases"]]))
    hallucinated = sum(len(case["hallucinated"]) for case in expected)
    assert found["CHAIRs"] == pytest.approx(sum(case["CHAIRs"] for case in expected) / len(expected))
    assert found["CHAIRi"] == pytest.approx(hallucinated / sum(len(case["nodes"]) for case in expected))
    assert found["Recall"] == pytest.approx(sum(map(len, seen)) / sum(map(len, truths)))
    assert found["Len"] == pytest.approx(sum(case["Len"] for case in expected) / len(expected))


def measured(front_end: FrontEnd, rows: list[dict[str, Any]]) -> list[Any]:
    samples = [Sample(str(row["image_id"]), targets=tuple(row["gt_objects"])) for row in rows]
    return metric(front_end).measure([Response(row["caption"]) for row in rows], samples)


@pytest.mark.parametrize(
    ("front_end", "expected"),
    [
        ("wordnet", {"CHAIRs": 0.306931, "CHAIRi": 0.078056, "Recall": 0.699690, "Len": 155.930693}),
        ("pattern", {"CHAIRs": 0.267327, "CHAIRi": 0.067381, "Recall": 0.687307, "Len": 155.930693}),
        ("rules", {"CHAIRs": 0.287129, "CHAIRi": 0.072917, "Recall": 0.696594, "Len": 155.930693}),
    ],
)
def test_real_captions_of_real_photographs_score_as_with_the_references_own_code(
    front_end: FrontEnd, expected: dict[str, float], real: list[dict[str, Any]], request: Any
) -> None:
    if front_end != "rules":
        request.getfixturevalue("nltk_data")
    rows = [{**row, "gt_objects": row["objects"], "caption": row["caption_by_mllm"]} for row in real]
    assert metric(front_end).reduce(measured(front_end, rows)) == pytest.approx(expected, abs=5e-7)


def test_our_rules_stay_near_the_references_on_real_captions(
    nltk_data: Path, real: list[dict[str, Any]]
) -> None:
    captions = [row["caption_by_mllm"] for row in real]
    far = {}
    for reference in REFERENCES:
        extra, missing = Counter[str](), Counter[str]()
        for caption in captions:
            ours, theirs = Counter(mentions(caption, "rules")), Counter(mentions(caption, reference))
            extra += ours - theirs
            missing += theirs - ours
        far[reference] = (extra.total(), missing.total())
    assert far == {"wordnet": (2, 9), "pattern": (19, 0)}  # of 679 and 653; pattern's are all "bus"
    lengths = [counts(caption, [], "rules")["length"] for caption in captions]
    assert lengths == [counts(caption, [], "wordnet")["length"] for caption in captions]


def test_tokens_are_those_of_nltk(nltk_data: Path, real: list[dict[str, Any]]) -> None:
    from nltk.tokenize import word_tokenize

    parts = [word for row in real[:20] for word in row["caption_by_mllm"].lower().split()]
    parts += ["cannot", "gonna", "well-lit", "--", "...", "u.s.", "mr.", "1,000", "3.5", "it's", "e.g.", "2."]
    rng = random.Random(1)
    for _ in range(2000):
        words = rng.choices(parts, k=rng.randint(0, 12))
        text = " ".join(word + rng.choice(["", "", "", ",", ".", "!", "?", ":"]) for word in words)
        assert _chair_nltk.word_tokens(text) == word_tokenize(text)


def test_a_tag_asked_for_alone_is_the_one_that_the_tagger_gives_in_its_caption(
    nltk_data: Path, real: list[dict[str, Any]]
) -> None:
    from nltk.tag.perceptron import PerceptronTagger

    tagger = PerceptronTagger()
    parts = [word for row in real for word in _chair_nltk.word_tokens(row["caption_by_mllm"])]
    parts += ["1990", "12", "--", "x-ray"]
    rng = random.Random(2)
    for _ in range(300):
        tokens = rng.choices(parts, k=rng.randint(1, 25))
        tags = _chair_nltk.LazyTags(tagger, tokens)
        alone = {position: tags[position] for position in rng.sample(range(len(tokens)), len(tokens))}
        assert [alone[position] for position in range(len(tokens))] == [tag for _, tag in tagger.tag(tokens)]


# ---------------------------------------------------------------- without data


def test_missing_data_is_named_with_the_ways_to_get_it_and_nothing_is_downloaded(tmp_path: Path) -> None:
    pytest.importorskip("nltk")
    said = error_of(f"import nltk; nltk.data.path[:] = [{str(tmp_path)!r}]", "pattern")
    assert said.startswith("DataError: front_end=pattern needs NLTK's data (tokenizers/punkt_tab/english)")
    assert str(tmp_path) in said
    for remedy in ("python -m nltk.downloader punkt_tab", "NLTK_DATA", "front_end=rules"):
        assert remedy in said
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named_with_the_way_to_get_it() -> None:
    said = error_of("sys.modules['nltk'] = None", "wordnet")
    assert said.startswith("SpecError: front_end=wordnet needs the package nltk: pip install")
    assert "fovea-eval[chair]" in said


def error_of(before: str, front_end: str) -> str:
    """What mentions() raises in a fresh process."""
    code = f"""
import sys
{before}
from metrics.chair import mentions
try:
    mentions("A dog.", {front_end!r})
except Exception as error:
    print(type(error).__name__ + ": " + str(error))
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=HERE.parent)
    return ran.stdout.strip() or ran.stderr


@pytest.mark.parametrize(
    ("caption", "objects"),
    [
        ("A group of men.", ["person"]),
        ("Buses and a bus.", ["bus", "bus"]),
        ("A passenger train, a passenger.", ["train", "person"]),
        ("A baby and a baby elephant.", ["person", "elephant"]),
        ("The seat of a toilet; a toilet seat.", ["toilet", "toilet"]),
        ("Wine glasses on a table, hot dogs.", ["wine glass", "dining table", "hot dog"]),
        ("Knives, geese, puppies, benches.", ["knife", "bird", "dog", "bench"]),
        ("Skis and scissors.", ["skis", "scissors"]),
        ("A traffic-light, a dog.cat", []),
        ("", []),
    ],
)
def test_our_rules_find_plural_nouns_and_merged_names(caption: str, objects: list[str]) -> None:
    assert mentions(caption, "rules") == objects


@pytest.mark.parametrize("front_end", ["wordnet", "pattern", "rules"])
def test_the_scenes_vocabulary_is_pairs_of_colour_and_shape(front_end: FrontEnd, request: Any) -> None:
    if front_end != "rules":
        request.getfixturevalue("nltk_data")
    caption = "A red square, two blue crosses and a green cross. Purple stars, a circle and an orange."
    expected = ["red square", "blue cross", "green cross", "purple star"]
    assert mentions(caption, front_end, "scenes") == expected
    found = counts(caption, ["red square", "blue star"], front_end, "scenes")
    assert (found["mentions"], found["hallucinated"], found["recalled"], found["truth"]) == (4, 3, 1, 2)


def test_an_unknown_front_end_or_vocabulary_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="use one of wordnet, pattern, rules"):
        base_forms("spacy")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="use one of coco, scenes"):
        mentions("A dog.", "rules", "lvis")  # type: ignore[arg-type]


def test_names_are_taken_to_their_node_words() -> None:
    assert node_word("bow tie") == "tie"
    assert node_word("red cross", "scenes") == "red cross"
    assert node_word("sky") is None


# ---------------------------------------------------------------- the metric


def test_repeated_mentions_count_each_time_but_are_recalled_once() -> None:
    found = counts("A dog, a dog, a cat, a cat.", ["dog", "person"], "rules")
    assert found == {"mentions": 4, "hallucinated": 2, "recalled": 1, "truth": 2, "length": 12}


def test_an_image_without_objects_makes_every_mention_a_hallucination() -> None:
    chair = metric("rules")
    found = chair.reduce(chair.measure([Response("A dog.")], [Sample("1")]))
    assert found == {"CHAIRs": 1.0, "CHAIRi": 1.0, "Recall": None, "Len": 3.0}


def test_ratios_over_nothing_are_none() -> None:
    chair = metric("rules")
    silent = chair.measure([Response("Blue sky.")], [Sample("1", targets=("dog",))])
    assert chair.reduce(silent) == {"CHAIRs": 0.0, "CHAIRi": None, "Recall": 0.0, "Len": 3.0}
    assert set(chair.reduce([]).values()) == {None}


def test_the_variant_names_front_end_and_vocabulary() -> None:
    assert metric().variant == "wordnet"
    assert metric("rules", "scenes").variant == "rules+scenes"


things = st.sampled_from(["dog", "cats", "hot dog", "sky", "baby", "toilet", "seat"])


@given(st.lists(st.tuples(st.lists(things), st.lists(things))), st.randoms(use_true_random=False))
def test_scores_depend_neither_on_order_nor_on_summing_first(rows: Any, rng: Any) -> None:
    chair = metric("rules")
    samples = [Sample(str(i), targets=tuple(truth)) for i, (_, truth) in enumerate(rows)]
    counted = chair.measure([Response(" ".join(words)) for words, _ in rows], samples)
    total: Counter[str] = Counter()
    for count in counted:
        total.update(count)
    whole = chair.reduce(counted)
    rng.shuffle(counted)
    assert chair.reduce(counted) == whole == chair.reduce([dict(total)])


def test_many_captions_on_all_cores_are_counted_as_one_by_one() -> None:
    chair = metric("rules")
    captions = [f"{k} dogs, a cat on a sofa and {'a bow tie' if k % 3 else 'two men'}." for k in range(2500)]
    responses = [Response(caption) for caption in captions]
    samples = [Sample(str(k), targets=("dog", "couch")) for k in range(2500)]
    together = chair.measure(responses, samples)
    alone = [chair.measure([r], [s])[0] for r, s in zip(responses, samples, strict=True)]
    assert together == alone
