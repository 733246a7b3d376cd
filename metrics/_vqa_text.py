"""How VQA scorers clean an answer before they compare it: four normalisers in circulation.

Knows the word tables of the VQA evaluation and their order. Must not know: scores, samples, models.
`metrics/vqa.py` and `metrics/exact.py` compare what comes out of here.

Source of the tables: GT-Vision-Lab/VQA `PythonEvaluationTools/vqaEvaluation/vqaEval.py`, identical in
LLaVA (`llava/eval/m4c_evaluator.py`), lmms-eval, VLMEvalKit and mllms_know (`get_score.py`).
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Literal, TypeAlias, get_args

Normalizer: TypeAlias = Literal["m4c", "official", "vlmevalkit", "vicrop"]

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
"""The marks that are deleted or become spaces, in the references' order."""

NUMBERS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5",
    "six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip

ARTICLES = frozenset(("a", "an", "the"))

# Keys with a capital cannot be reached, for words are lower-cased first; they stand as in the source.
CONTRACTIONS = {
    "aint": "ain't", "arent": "aren't", "cant": "can't", "couldve": "could've",
    "couldnt": "couldn't", "couldn'tve": "couldn't've", "couldnt've": "couldn't've",
    "didnt": "didn't", "doesnt": "doesn't", "dont": "don't", "hadnt": "hadn't",
    "hadnt've": "hadn't've", "hadn'tve": "hadn't've", "hasnt": "hasn't", "havent": "haven't",
    "hed": "he'd", "hed've": "he'd've", "he'dve": "he'd've", "hes": "he's", "howd": "how'd",
    "howll": "how'll", "hows": "how's", "Id've": "I'd've", "I'dve": "I'd've", "Im": "I'm",
    "Ive": "I've", "isnt": "isn't", "itd": "it'd", "itd've": "it'd've", "it'dve": "it'd've",
    "itll": "it'll", "let's": "let's", "maam": "ma'am", "mightnt": "mightn't",
    "mightnt've": "mightn't've", "mightn'tve": "mightn't've", "mightve": "might've",
    "mustnt": "mustn't", "mustve": "must've", "neednt": "needn't", "notve": "not've",
    "oclock": "o'clock", "oughtnt": "oughtn't", "ow's'at": "'ow's'at", "'ows'at": "'ow's'at",
    "'ow'sat": "'ow's'at", "shant": "shan't", "shed've": "she'd've", "she'dve": "she'd've",
    "she's": "she's", "shouldve": "should've", "shouldnt": "shouldn't",
    "shouldnt've": "shouldn't've", "shouldn'tve": "shouldn't've", "somebody'd": "somebodyd",
    "somebodyd've": "somebody'd've", "somebody'dve": "somebody'd've", "somebodyll": "somebody'll",
    "somebodys": "somebody's", "someoned": "someone'd", "someoned've": "someone'd've",
    "someone'dve": "someone'd've", "someonell": "someone'll", "someones": "someone's",
    "somethingd": "something'd", "somethingd've": "something'd've",
    "something'dve": "something'd've", "somethingll": "something'll", "thats": "that's",
    "thered": "there'd", "thered've": "there'd've", "there'dve": "there'd've",
    "therere": "there're", "theres": "there's", "theyd": "they'd", "theyd've": "they'd've",
    "they'dve": "they'd've", "theyll": "they'll", "theyre": "they're", "theyve": "they've",
    "twas": "'twas", "wasnt": "wasn't", "wed've": "we'd've", "we'dve": "we'd've", "weve": "we've",
    "werent": "weren't", "whatll": "what'll", "whatre": "what're", "whats": "what's",
    "whatve": "what've", "whens": "when's", "whered": "where'd", "wheres": "where's",
    "whereve": "where've", "whod": "who'd", "whod've": "who'd've", "who'dve": "who'd've",
    "wholl": "who'll", "whos": "who's", "whove": "who've", "whyll": "why'll", "whyre": "why're",
    "whys": "why's", "wont": "won't", "wouldve": "would've", "wouldnt": "wouldn't",
    "wouldnt've": "wouldn't've", "wouldn'tve": "wouldn't've", "yall": "y'all",
    "yall'll": "y'all'll", "y'allll": "y'all'll", "yall'd've": "y'all'd've",
    "y'alld've": "y'all'd've", "y'all'dve": "y'all'd've", "youd": "you'd", "youd've": "you'd've",
    "you'dve": "you'd've", "youll": "you'll", "youre": "you're", "youve": "you've",
}  # fmt: skip

_COMMA = {"m4c": re.compile(r"(?<=\d)(,)+(?=\d)")}
_OFFICIAL_COMMA = re.compile(r"(\d)(,)(\d)")

# The official pattern is malformed: its look-behind is a look-ahead that always holds, so a dot after
# a digit goes too ("5." becomes "5"). VLMEvalKit mended it.
_PERIOD = {"vlmevalkit": re.compile(r"(?<!\d)\.(?!\d)")}
_OFFICIAL_PERIOD = re.compile(r"(?!<=\d)(\.)(?!\d)")

_PERIODS = int(re.UNICODE)
"""Dots deleted at most: every reference passes the flag `re.UNICODE` (32) where `sub` takes a count."""


def normalize(text: str, variant: Normalizer = "m4c") -> str:
    r"""An answer as a VQA scorer compares it.

    `m4c` (TextVQA; LLaVA, lmms-eval) lower-cases, deletes every comma and question mark and splits
    off `'s` first. `official` (VQAv2) and `vlmevalkit`, which keeps a dot after a digit, start with
    the punctuation. `vicrop` is `official` without the trimming before it.

    Then, for all: each mark of `PUNCTUATION` is deleted if it touches a space anywhere in the text, or
    if a comma stands between digits, and becomes a space otherwise; dots not followed by a digit are
    deleted, the first 32 of them; number words become digits, articles go, contractions are mended.

    Raises ValueError for an unknown variant. Source: the file's head.

    >>> normalize("The red/blue one.")
    'red blue 1'
    >>> [normalize("it's 5. N/A", variant) for variant in ("m4c", "official", "vlmevalkit")]
    ["it 's 5 n", "it's 5 n", "it's 5. n"]
    """
    if variant not in get_args(Normalizer):
        known = ", ".join(get_args(Normalizer))
        raise ValueError(f"unknown VQA normaliser {variant!r}: use one of {known}")
    return _normalized(text, variant)


@lru_cache(maxsize=100_000)  # the same few answers come again and again
def _normalized(text: str, variant: Normalizer) -> str:
    if variant == "m4c":
        text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    if variant != "vicrop":
        text = text.replace("\n", " ").replace("\t", " ").strip()
    return _without_articles(without_punctuation(text, variant))


def without_punctuation(text: str, variant: Normalizer = "official") -> str:
    """The references' `processPunctuation`: marks, then dots. Every test is made on the text as given.

    >>> without_punctuation("hello-world 1,000"), without_punctuation("hello-world")
    ('helloworld 1000', 'hello world')
    """
    glued = _COMMA.get(variant, _OFFICIAL_COMMA).search(text) is not None
    cleaned = text
    for mark in PUNCTUATION:
        touches_space = f"{mark} " in text or f" {mark}" in text
        cleaned = cleaned.replace(mark, "" if glued or touches_space else " ")
    return _PERIOD.get(variant, _OFFICIAL_PERIOD).sub("", cleaned, count=_PERIODS)


def _without_articles(text: str) -> str:
    """The references' `processDigitArticle`: number words, articles, contractions."""
    words = [NUMBERS.get(word, word) for word in text.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)
