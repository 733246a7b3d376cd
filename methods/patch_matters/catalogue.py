"""Which sentence is meant: the sentences that were asked about, found again by what a reply retypes of them.

Knows sentences, and how far retyping changes, cuts and merges them. Must not know the forms of reply, nor
what a reply says of a sentence.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from rapidfuzz import fuzz, process

from methods.patch_matters.sentences import Sentence, word_set

SAME = 82.0
"""Of 100, rapidfuzz's ratio: from here on a retyped sentence is the sentence itself."""
PART = 0.75
"""The share of a clause's content words that its sentence must hold."""
SUPPORT = 0.5
"""The share of a merged statement's content words that a sentence must hold to be one of its sources."""
CLAUSE = 2
"""Content words that make a clause: if the reply retells none of a clause, its sentence stays whole too."""

_COMMON = word_set(
    "a an the is are was were be been being am in on at of to and or with by for from into onto as it its "
    "this that these those there here which who whom whose has have had also while his her their"
)
_WORD = re.compile(r"\w+(?:'\w+)?")
_BETWEEN_CLAUSES = re.compile(r"[,;:]|\b(?:and|while|but)\b", re.I)


def folded(text: str) -> str:
    """Small letters and digits, one blank between words: what is compared of a retyped sentence."""
    return " ".join(_WORD.findall(text.replace("’", "'").casefold()))


def _content(text: str) -> frozenset[str]:
    return frozenset(word for word in folded(text).split() if word not in _COMMON)


def _kin(word: str, words: frozenset[str]) -> bool:
    """Whether a word or one of its stem is among `words`: play, plays, playing."""
    if word in words:
        return True
    stem = word[: max(4, len(word) - 3)]
    return len(word) >= 4 and any(
        len(other) >= 4 and (other.startswith(stem) or word.startswith(other[: max(4, len(other) - 3)]))
        for other in words
    )


def _share(part: frozenset[str], whole: frozenset[str]) -> float:
    """Of the words of `part`, the share that `whole` has too; 0 of no words."""
    return sum(_kin(word, whole) for word in part) / len(part) if part else 0.0


class Catalogue:
    """The sentences that went in, found again by id or by what the reply retypes."""

    def __init__(self, sentences: Sequence[Sentence]) -> None:
        self.sentences = sentences
        self.by_id = {sentence.id: sentence for sentence in sentences}
        self.sources = {sentence.source for sentence in sentences}
        self.plain = {sentence.id: folded(sentence.text) for sentence in sentences}
        self.content = {sentence.id: _content(sentence.text) for sentence in sentences}
        self.retold: dict[str, set[str]] = {}
        """Of each sentence that the reply retells in part, the words that it retells."""
        self._seen: dict[tuple[str, frozenset[int]], Sentence] = {}
        self._loose = 0

    def loose(self) -> str:
        self._loose += 1
        return f"?{self._loose}"

    def like(self, text: str, sources: Iterable[int] = ()) -> Sentence | None:
        """The sentence that `text` is, but for slips in typing; the tagged sources' first."""
        plain, among = folded(text), frozenset(sources)
        own = {one: words for one, words in self.plain.items() if self.by_id[one].source in among}
        for choices in (own, self.plain):
            best = process.extractOne(plain, choices, scorer=fuzz.ratio, score_cutoff=SAME)
            if best is not None:
                return self.by_id[best[2]]
        return None

    def retyped(self, text: str, sources: frozenset[int]) -> Sentence:
        """The sentence that the reply's words are, or hold a part of; or else a sentence of its own."""
        seen = self._seen.get((text, sources))
        if seen is not None:
            return seen
        sentence = self.like(text, sources)
        if sentence is None:
            words = _content(text)
            shares = [
                (_share(words, self.content[one.id]) + 0.1 * (one.source in sources), -place, one)
                for place, one in enumerate(self.sentences)
            ]
            share, _, nearest = max(shares, key=lambda each: each[:2])
            known = sources & self.sources
            source = nearest.source if not known or nearest.source in known else min(known)
            if share >= PART and words:
                first = nearest.id not in self.retold
                self.retold.setdefault(nearest.id, set()).update(words)
                sentence = Sentence(nearest.id if first else self.loose(), nearest.source, text)
            else:
                sentence = Sentence(self.loose(), source, text)
        self._seen[text, sources] = sentence
        return sentence

    def support(self, text: str, sources: frozenset[int]) -> tuple[str, ...]:
        """Of each source (of those tagged, if any), the sentence that says most of a merged statement."""
        words = _content(text)
        best: dict[int, tuple[float, float, str]] = {}
        for one in self.sentences:
            share = _share(words, self.content[one.id])
            if share >= SUPPORT and (one.source in sources or not sources & self.sources):
                rank = (share, fuzz.ratio(folded(text), self.plain[one.id]), one.id)
                if one.source not in best or rank[:2] > best[one.source][:2]:
                    best[one.source] = rank
        for _, _, found in best.values():
            self.retold.setdefault(found, set()).update(words)
        return tuple(best[source][2] for source in sorted(best))

    def untold(self) -> list[Sentence]:
        """Sentences of which the reply retells some clauses only, whole, under ids of their own."""
        return [
            Sentence(self.loose(), self.by_id[one].source, self.by_id[one].text)
            for one, words in self.retold.items()
            if any(
                len(clause) >= CLAUSE and not _share(clause, frozenset(words))
                for clause in map(_content, _BETWEEN_CLAUSES.split(self.by_id[one].text))
            )
        ]
