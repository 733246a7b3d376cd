"""The words of a caption in base form, by three front ends, and the words that name an object.

Knows the word tables of CHAIR (`_chair_words.json`), the demo's scenes, and our own front end; the
references' stand in `_chair_nltk.py`. Must not know: scores, ground truth, samples.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from harness.errors import DataError, SpecError
from metrics import _chair_nltk
from metrics._chair_nltk import MEMO, BaseForms

FrontEnd: TypeAlias = Literal["wordnet", "pattern", "rules"]
VocabularyName: TypeAlias = Literal["coco", "scenes"]

_COLORS = ("red", "green", "blue", "yellow", "purple", "orange")
_SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross")
_SINGULAR_SHAPES = {"cros": "cross"}  # what pattern makes of "cross", as "glas" of "glass"

_LOADING = threading.Lock()  # NLTK's lazy corpora do not load well from two threads


# ---------------------------------------------------------------- vocabularies


@dataclass(frozen=True)
class Vocabulary:
    """What the words of a caption may name.

    nodes: base form (of one token, or of a merged pair) to the object it names. pairs: two base forms
    with a space between to the base form of the one token that they become.
    """

    nodes: Mapping[str, str]
    pairs: Mapping[str, str]


@lru_cache
def vocabulary(name: VocabularyName) -> Vocabulary:
    """`coco`: CHAIR's 80 categories and their synonyms; `scenes`: the coloured shapes of the demo.

    Raises ValueError for another name.
    """
    if name == "coco":
        path = Path(__file__).with_name("_chair_words.json")
        tables = json.loads(path.read_text(encoding="utf-8"))
        synonyms = tables["synonyms"].items()
        return Vocabulary({word: node for node, words in synonyms for word in words}, tables["pairs"])
    if name == "scenes":
        singular = {shape: shape for shape in _SHAPES} | _SINGULAR_SHAPES
        pairs = {f"{color} {form}": f"{color} {singular[form]}" for color in _COLORS for form in singular}
        return Vocabulary({node: node for node in pairs.values()}, pairs)
    raise ValueError(f"unknown vocabulary {name!r}: use one of {', '.join(get_args(VocabularyName))}")


def _words_that_matter() -> frozenset[str]:
    """Every base form that names an object or is half of a pair, in any vocabulary."""
    both = [vocabulary(name) for name in get_args(VocabularyName)]
    halves = {half for known in both for pair in known.pairs for half in pair.split(" ")}
    return frozenset(halves.union(*(known.nodes for known in both)))


# ---------------------------------------------------------------- front ends


def base_forms(front_end: FrontEnd) -> BaseForms:
    """The front end of that name, loaded once per process (seconds for `wordnet`).

    - `wordnet` (SPARC, lmms-eval): NLTK's tokens, tags and WordNet's lemmas.
    - `pattern` (the CHAIR paper, Maxlinn/CHAIR-metric-standalone): NLTK's tokens, pattern's singulars.
    - `rules` (ours): needs no data; a regular expression for the tokens, rules for plural nouns.

    Raises SpecError where a package is missing, DataError where its data is, ValueError for an unknown
    name.
    """
    with _LOADING:
        return _loaded(front_end)


@lru_cache
def _loaded(front_end: FrontEnd) -> BaseForms:
    if front_end not in _FRONT_ENDS:
        raise ValueError(f"unknown CHAIR front end {front_end!r}: use one of {', '.join(_FRONT_ENDS)}")
    try:
        return _FRONT_ENDS[front_end](_words_that_matter())
    except ModuleNotFoundError as error:
        package = (error.name or "nltk").partition(".")[0]
        raise SpecError(
            f"front_end={front_end} needs the package {package}: pip install 'fovea-eval[chair]', "
            "or use front_end=rules, which needs none"
        ) from None
    except LookupError:
        raise DataError(_how_to_get_data(front_end)) from None


def _how_to_get_data(front_end: FrontEnd) -> str:
    import nltk

    names = list(_chair_nltk.DATA) if front_end == "wordnet" else ["punkt_tab"]
    folders = ", ".join(_chair_nltk.DATA[name] for name in names)
    return (
        f"front_end={front_end} needs NLTK's data ({folders}), and not all of it is in any of "
        f"{', '.join(nltk.data.path)}. Run `python -m nltk.downloader {' '.join(names)}`, or set "
        "NLTK_DATA to a folder that has it, or use front_end=rules, which needs none"
    )


_TOKEN = re.compile(
    r"""
      n't\b | '(?:s|m|d|ll|re|ve)\b                # clitics, parted from their word
    | \d{1,2}\.(?=\s) | \d+(?:[.,:]\d+)+           # the mark of a list; 3.14, 12:30
    | \w(?:(?!n't\b)\w)*(?:[-/.&](?=\w)\w+)*       # words; traffic-light, dog/cat, a.m
    | \.{2,} | -- | \S
    """,
    re.VERBOSE,
)

_IRREGULAR = {
    "men": "man", "women": "woman", "policemen": "policeman", "gentlemen": "gentleman",
    "servicemen": "serviceman", "grandchildren": "grandchild", "geese": "goose", "mice": "mouse",
    "calves": "calf", "knives": "knife", "thieves": "thief",
}  # fmt: skip

_PLURALS = (("ies", "y"), ("es", ""), ("s", ""))


def _rules(matters: Collection[str]) -> BaseForms:
    @lru_cache(MEMO)
    def form(word: str) -> str:
        if word in matters:
            return word
        shorter = (word.removesuffix(end) + new for end, new in _PLURALS if word.endswith(end))
        candidates = (_IRREGULAR.get(word, ""), *shorter)
        return next((candidate for candidate in candidates if candidate in matters), "")

    return lambda caption: [form(token) for token in _TOKEN.findall(caption.lower())]


_FRONT_ENDS: dict[FrontEnd, Callable[[Collection[str]], BaseForms]] = {
    "wordnet": _chair_nltk.wordnet,
    "pattern": _chair_nltk.pattern,
    "rules": _rules,
}
