"""The words of a caption in base form, by three front ends, and the words that name an object.

Knows the word tables of CHAIR (`_chair_words.json`), the demo's scenes, and how each front end cuts a
caption into tokens and finds base forms. Must not know: scores, ground truth, samples.

A front end only has to get the words right that can name an object or be part of such a name: all other
base forms are "". That makes exactness cheap. A word's base form under each part of speech is looked up
once; where all four agree, its tag is never computed.
"""

from __future__ import annotations

import importlib.util
import json
import re
import threading
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from harness.errors import DataError, SpecError

FrontEnd: TypeAlias = Literal["wordnet", "pattern", "rules"]
VocabularyName: TypeAlias = Literal["coco", "scenes"]
BaseForms: TypeAlias = Callable[[str], list[str]]
"""A caption to the base forms of its tokens, in order; "" for one that cannot matter."""

NLTK_DATA = {
    "punkt_tab": "tokenizers/punkt_tab/english",
    "averaged_perceptron_tagger_eng": "taggers/averaged_perceptron_tagger_eng",
    "wordnet": "corpora/wordnet",
}
"""What NLTK's downloader calls the data that the front ends read, and where it lies."""

_COLORS = ("red", "green", "blue", "yellow", "purple", "orange")
_SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross")
_SINGULAR_SHAPES = {"cros": "cross"}  # what pattern makes of "cross", as "glas" of "glass"

_MEMO = 1 << 17  # words remembered per front end; English has fewer
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
        singular = {**{shape: shape for shape in _SHAPES}, **_SINGULAR_SHAPES}
        pairs = {f"{color} {form}": f"{color} {singular[form]}" for color in _COLORS for form in singular}
        return Vocabulary({node: node for node in pairs.values()}, pairs)
    raise ValueError(f"unknown vocabulary {name!r}: use one of {', '.join(get_args(VocabularyName))}")


@lru_cache
def _words_that_matter() -> frozenset[str]:
    """Every base form that names an object or is half of a pair, in any vocabulary."""
    both = [vocabulary(name) for name in get_args(VocabularyName)]
    halves = {half for known in both for pair in known.pairs for half in pair.split(" ")}
    return frozenset(halves.union(*(known.nodes for known in both)))


# ---------------------------------------------------------------- front ends


def base_forms(front_end: FrontEnd) -> BaseForms:
    """The front end of that name, loaded (once per process; seconds for `wordnet`).

    - `wordnet` (SPARC `chair.py`, lmms-eval `coco_cap_chair`): `nltk.word_tokenize`, `nltk.pos_tag`
      over the whole caption, `WordNetLemmatizer` with the tag's part of speech.
    - `pattern` (Rohrbach et al. 2018, Maxlinn/CHAIR-metric-standalone): the same tokens,
      `pattern.en.singularize` on each.
    - `rules` (ours): needs no data; a regular expression for the tokens and rules for plural nouns.

    Raises SpecError where a package is missing, DataError where its data is, ValueError for an unknown
    name.
    """
    if front_end not in _LOADERS:
        known = ", ".join(get_args(FrontEnd))
        raise ValueError(f"unknown CHAIR front end {front_end!r}: use one of {known}")
    with _LOADING:
        try:
            return _LOADERS[front_end]()
        except ModuleNotFoundError as error:
            raise SpecError(
                f"front_end={front_end} needs the package {error.name}: pip install 'fovea-eval[chair]', "
                "or use front_end=rules, which needs none"
            ) from None
        except LookupError:
            raise DataError(_how_to_get_the_data(front_end)) from None


def _how_to_get_the_data(front_end: FrontEnd) -> str:
    import nltk

    names = list(NLTK_DATA) if front_end == "wordnet" else ["punkt_tab"]
    return (
        f"front_end={front_end} needs NLTK's data {', '.join(names)} "
        f"({', '.join(NLTK_DATA[name] for name in names)}), and not all of it was found in "
        f"{', '.join(nltk.data.path)}. Run `python -m nltk.downloader {' '.join(names)}`, or set "
        "NLTK_DATA to a folder that has it, or use front_end=rules, which needs none"
    )


_WORD = r"[a-z0-9]++(?:-[a-z0-9]++)*+"
_PLAIN_SENTENCE = re.compile(rf"(?:{_WORD},? )*+{_WORD}\.?")
_PLAIN_TOKEN = re.compile(
    r"""
      n't\b | '(?:s|m|d|ll|re|ve)\b                # clitics, parted from their word
    | \d{1,2}\.(?=\s) | \d+(?:[.,:]\d+)+         # the mark of a list; 3.14, 12:30
    | \w(?:(?!n't\b)\w)*(?:[-/.&](?=\w)\w+)*     # words; traffic-light, dog/cat, a.m
    | \.{2,} | -- | \S
    """,
    re.VERBOSE,
)

_IRREGULAR = {
    "men": "man", "women": "woman", "policemen": "policeman", "gentlemen": "gentleman",
    "firemen": "fireman", "servicemen": "serviceman", "grandchildren": "grandchild",
    "geese": "goose", "mice": "mouse", "calves": "calf", "knives": "knife", "thieves": "thief",
}  # fmt: skip

_PLURALS = (("ies", "y"), ("es", ""), ("s", ""))


@lru_cache
def _rules() -> BaseForms:
    matters = _words_that_matter()

    @lru_cache(_MEMO)
    def form(word: str) -> str:
        if word in matters:
            return word
        shorter = (word[: -len(end)] + new for end, new in _PLURALS if word.endswith(end))
        candidates = (_IRREGULAR.get(word, ""), *shorter)
        return next((candidate for candidate in candidates if candidate in matters), "")

    return lambda caption: [form(token) for token in _TOKEN.findall(caption.lower())]


_LOADERS: dict[FrontEnd, Callable[[], BaseForms]] = {
    "wordnet": _wordnet,
    "pattern": _pattern,
    "rules": _rules,
}
