"""CHAIR's captions per second beside a reference implementation, in one run, on distinct captions.

    NLTK_DATA=../shared/data/nltk_data python -m benchmarks.chair \\
        --captions ../shared/data/coco/annotations.jsonl --text caption_by_mllm \\
        --reference SPARC/chair.py [--front-end wordnet]

The reference is a copy of SPARC's or lmms-eval's file (`wordnet`) or of Maxlinn's (`pattern`); without
one, a plain transcription of what they do stands in for it: the same calls of NLTK in the same order,
nothing remembered. Captions are shuffled sentences of the given ones, so that no two are equal. Ours and
theirs take turns, one process each; both must find the same objects. Printed: medians over the rounds.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import re
import statistics
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

from metrics._chair_words import FrontEnd, base_forms, vocabulary
from metrics.chair import mentions

Words = Callable[[str], list[str]]


def reference_from(path: Path, front_end: FrontEnd) -> Words:
    """`CHAIR.caption_to_words` of a copied chair.py; its COCO annotations are not loaded."""
    if front_end == "pattern":
        from metrics._chair_nltk import pattern_inflect

        english = types.ModuleType("pattern.en")
        english.singularize = pattern_inflect().singularize  # type: ignore[attr-defined]
        sys.modules["pattern.en"] = english
    spec = importlib.util.spec_from_file_location("reference_chair", path)
    if spec is None or spec.loader is None:
        raise SystemExit(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.CHAIR.get_annotations = lambda self: None
    chair = module.CHAIR("")
    return lambda caption: list(chair.caption_to_words(caption)[1])


def transcription(front_end: FrontEnd) -> Words:
    """What the reference does, step by step, for when there is no copy of it."""
    import nltk
    from nltk.stem import WordNetLemmatizer

    from metrics._chair_nltk import pattern_inflect

    known = vocabulary("coco")
    objects = list(known.nodes)
    singularize = pattern_inflect().singularize if front_end == "pattern" else None

    def base(words: list[str]) -> list[str]:
        if singularize is not None:
            return [singularize(word) for word in words]
        lemmatizer = WordNetLemmatizer()
        parts = {"J": "a", "V": "v", "N": "n", "R": "r"}
        return [lemmatizer.lemmatize(word, parts.get(tag[0], "n")) for word, tag in nltk.pos_tag(words)]

    def words_of(caption: str) -> list[str]:
        words = base(nltk.word_tokenize(caption.lower()))
        merged, position = [], 0
        while position < len(words):
            pair = " ".join(words[position : position + 2])
            merged.append(known.pairs.get(pair, words[position]))
            position += 2 if pair in known.pairs else 1
        if "toilet" in merged and "seat" in merged:
            merged = [word for word in merged if word != "seat"]
        return [known.nodes[word] for word in merged if word in set(objects)]

    return words_of


def distinct(captions: list[str], number: int, seed: int = 0) -> list[str]:
    """`number` captions, all different, each made of sentences of several of the given ones."""
    rng = random.Random(seed)
    sentences = sorted({s for caption in captions for s in re.split(r"(?<=[.!?])\s+", caption) if s})
    size = min(len(sentences), max(3, round(len(sentences) / len(captions))))
    if len(sentences) < 10:
        raise SystemExit(f"{len(sentences)} sentences are too few to make distinct captions of")
    made: dict[str, None] = {}
    while len(made) < number:
        made[" ".join(rng.sample(sentences, size))] = None
    return list(made)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--captions", type=Path, required=True, help="JSON lines")
    parser.add_argument("--text", default="caption", help="the key of the caption in a line")
    parser.add_argument("--reference", type=Path, help="a copy of the reference's chair.py")
    parser.add_argument("--front-end", choices=("wordnet", "pattern"), default="wordnet")
    parser.add_argument("--number", type=int, default=300, help="captions per round")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()

    lines = args.captions.read_text(encoding="utf-8").splitlines()
    captions = distinct([json.loads(line)[args.text] for line in lines], args.number * args.rounds)
    theirs = reference_from(args.reference, args.front_end) if args.reference else None
    theirs = theirs or transcription(args.front_end)
    base_forms(args.front_end), theirs("A dog.")  # both loaded; nothing of the captions remembered

    rates: dict[str, list[float]] = {"ours": [], "reference": []}
    for turn in range(args.rounds):
        part = captions[turn * args.number : (turn + 1) * args.number]
        found = {}
        for name, words in (("reference", theirs), ("ours", lambda c: mentions(c, args.front_end))):
            began = time.perf_counter()
            found[name] = [words(caption) for caption in part]
            rates[name].append(len(part) / (time.perf_counter() - began))
        if found["ours"] != found["reference"]:
            raise SystemExit("the two found different objects")
    ours, reference = (statistics.median(rates[name]) for name in ("ours", "reference"))
    ratios = [o / r for o, r in zip(rates["ours"], rates["reference"], strict=True)]
    print(f"{args.front_end}, {len(captions)} distinct captions, the same objects in all")
    print(f"reference {reference:8.1f} captions/s")
    print(f"ours      {ours:8.1f} captions/s, {statistics.median(ratios):.2f} times as many", end=" ")
    print(f"({min(ratios):.2f} to {max(ratios):.2f} over {args.rounds} rounds)")


if __name__ == "__main__":
    main()
