"""Sentences of several captions: where they end, what they are called, how the scorer sees them.

Knows captions as text. Must not know what a language model or a scorer says of them.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from methods.patch_matters.replies import TOKENS


@dataclass(frozen=True)
class Sentence:
    """id: `2.3` is the third sentence of source 2; `?1` is one that only the reply has. source: from 1."""

    id: str
    source: int
    text: str


def word_set(words: str) -> frozenset[str]:
    """The words of a list that is written with blanks between them."""
    return frozenset(words.split())


_NEVER = word_set(
    "mr mrs ms mx dr prof rev fr hon gen col maj capt cmdr lt sgt cpl mt messrs mme mlle vs e.g i.e cf viz "
    "approx ca"
)
"""No sentence ends with these."""
_BEFORE_NUMBER = word_set("no nos fig figs nr vol pp ch sec")
_DOUBTFUL = word_set(
    "st ave blvd rd hwy sq ln etc inc ltd co corp jr sr u.s u.k u.n a.m p.m am pm ft in oz lb lbs cm mm km "
    "kg hr hrs min mins dept est jan feb mar apr jun jul aug sep sept oct nov dec"
)
"""A sentence may end with these: it does if the next word is one that opens sentences."""
_OPENERS = word_set(
    "the a an it its he she they there this that these those in on at to behind above below beside near next "
    "under over across along around between both each some several many two three four one another other "
    "his her their you we while as with within further additionally also overall finally however no"
)
_STOP = re.compile(
    r"""(?<![.!?…])[.!?…]++["'”’»)\]*_`]*+(?=\s)|(?<![。！？])[。！？]++["'”’»）」』]*+(?=\S)"""
)
_NEAR = 40
"""Characters on either side of a stop that decide: the longest abbreviation and opening word."""
_WORD_BEFORE = re.compile(r"([\w&]+(?:\.\w+)*)$")
_MARKER = re.compile(r"(?:[-*•‣◦▪–—+>]|#{1,6}|\(?(?:\d{1,2}[.)]|[A-Za-z]\)))(?=\s)\s*")
_TAGGED = re.compile(r"\(?\b(?:Description|Region) \d+\b\)?", re.I)


def split(text: str) -> list[str]:
    """The sentences of `text`, in order; deterministic, without data files.

    A line end is the end of a sentence; and so is a full stop, question mark or ellipsis, with the quotes
    and brackets that close after it, if a blank and no small letter follow. Titles (Mr.), e.g. and initials
    do not end one; U.S., St. and etc. do if a word follows that opens sentences. In text without capitals
    small letters may follow. Nothing is dropped: joined by blanks, the pieces are the text, each run of
    white space a blank (but that no blank stands after a CJK full stop).

    >>> split("Mr. Lee is 1.8 m tall... and waves. \\"Go!\\" says a sign.  It is in Main St. A car\\nis red")
    ['Mr. Lee is 1.8 m tall... and waves.', '"Go!" says a sign.', 'It is in Main St.', 'A car', 'is red']
    """
    small = not any(char.isupper() for char in text)
    pieces: list[str] = []
    for line in text.splitlines():
        line = " ".join(line.split())
        marker = _MARKER.match(line)
        start = 0
        for stop in _STOP.finditer(line, marker.end() if marker else 0):
            number = stop.start() - start <= 3 and line[start : stop.start()].strip().isdigit()
            if not number and _ends(line, stop, small):
                pieces.append(line[start : stop.end()].strip())
                start = stop.end()
        pieces.append(line[start:].strip())
    return [piece for piece in pieces if piece]


def _ends(line: str, stop: re.Match[str], small: bool) -> bool:
    """Whether the punctuation ends a sentence: by what is before it and the word after it."""
    rest = line[stop.end() : stop.end() + _NEAR].lstrip()
    bare = rest.lstrip("\"'“”‘’«»([{*_`¿¡")
    if stop.group()[0] in "。！？":
        return bool(bare)
    if not bare or (bare[0].islower() and not small):
        return False
    if not stop.group().startswith(".") or stop.group().startswith(".."):
        return True
    found = _WORD_BEFORE.search(line, max(0, stop.start() - _NEAR), stop.start())
    word = found.group(1).casefold() if found else ""
    if word in _NEVER:
        return False
    if word in _BEFORE_NUMBER:
        return not bare[0].isdigit()
    letters = word.split(".")
    initials = all(len(letter) == 1 and letter.isalpha() for letter in letters)
    if initials or (word in _DOUBTFUL and (word != "in" or line[stop.start() - 3 : stop.start() - 2] == " ")):
        opener = re.match(r"[^\W\d]+", bare)
        return bool(opener) and opener.group().casefold() in _OPENERS  # type: ignore[union-attr]
    return True


def numbered(texts: Sequence[str]) -> list[Sentence]:
    """The sentences of all texts with their ids; list markers and end-of-text tokens are no part of them.

    >>> [(one.id, one.text) for one in numbered(["A dog. A cat.", "- A dog</s>"])]
    [('1.1', 'A dog.'), ('1.2', 'A cat.'), ('2.1', 'A dog')]
    """
    sentences = []
    for source, text in enumerate(texts, 1):
        pieces = (_MARKER.sub("", piece, count=1) if _MARKER.match(piece) else piece
                  for piece in split(TOKENS.sub(" ", text)))  # fmt: skip
        said = [piece for piece in pieces if any(char.isalnum() for char in piece)]
        sentences += [Sentence(f"{source}.{place}", source, piece) for place, piece in enumerate(said, 1)]
    return sentences


def scorable(text: str) -> str:
    """A sentence as the scorer sees it: without source tag, parentheses, angle brackets and commas.

    As the reference has it (`cal_similarity_same`, `cal_similarity_iou`).

    >>> scorable("A man, old (and tall), waves. (Description 2)")
    'A man old and tall waves.'
    """
    return " ".join(re.sub(r"[()<>,]", "", _TAGGED.sub(" ", text)).split())
