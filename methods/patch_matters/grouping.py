r"""Sentences of several captions, their groups as a language model's reply gives them, and which are kept.

Knows sentences, both forms of reply and the rules of the semantic filter. Must not know the prompts, the
pictures or who scores: scores come in by sentence id. "Patch Matters" (CVPR 2025, arXiv 2504.06666), stages
A1 and A4; reference: GeWu-Lab/Patch-Matters, commit bf3dfbc (`aggregation/semantic_batch.py`).

**Classes.** Consistent: said in two sources or more. Contradictory: values that cannot both be true.
Unique: said in one. A sentence is in one class, the first of these that the reply gives it; one that the
reply leaves out is unique. So nothing is lost: every sentence is in exactly one place of `Groups`.

**Forms of reply.** `json`: sentences are named by id and so never retyped. `text`: the reference's three
headed lists, in which the model retypes them; each is matched with the sentences that went in. The
reference's three regular expressions miss bold text, `*` and numbered bullets, quotes that are curly or
absent, several sources in one tag, a full stop outside the quotes; they cut a sentence at an inner quote
and halve a pair without brackets; and what they miss is gone. All of these are read here.

**The filter.** Consistent statements stand. Of a contradiction the best-fitting sentence stays, if over the
threshold; a unique sentence stays if over it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from rapidfuzz import fuzz, process

from methods.patch_matters import loose_json

Form = Literal["json", "text"]
Kind = Literal["consistent", "contradictory", "unique"]

SAME = 82.0
"""Of 100, rapidfuzz's ratio: from here on a retyped sentence is the sentence itself."""
PART = 0.75
"""The share of a clause's content words that its sentence must hold."""
SUPPORT = 0.5
"""The share of a merged statement's content words that a sentence must hold to be one of its sources."""
CLAUSE = 2
"""Content words that make a clause: if the reply retells none of a clause, its sentence stays whole too."""
LIMIT = 100_000
"""Characters of a reply: far more than any prompt here asks for."""


class Unreadable(ValueError):
    """A reply that cannot be used. The text says what was wrong, in words for the model that wrote it."""


@dataclass(frozen=True)
class Sentence:
    """id: `2.3` is the third sentence of source 2; `?1` is one that only the reply has. source: from 1."""

    id: str
    source: int
    text: str


@dataclass(frozen=True)
class Fact:
    """A consistent statement and the ids of its sentences, of two sources or more.

    A text-form reply may merge sentences beyond recognition: then one of the ids is a `?`.
    """

    text: str
    ids: tuple[str, ...]

    @property
    def key(self) -> str:
        """What its score goes by."""
        return "+".join(self.ids)


@dataclass(frozen=True)
class Groups:
    """Every sentence in exactly one place. faults: what had to be mended in the reply to get there."""

    consistent: tuple[Fact, ...] = ()
    contradictory: tuple[tuple[Sentence, ...], ...] = ()
    unique: tuple[Sentence, ...] = ()
    faults: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """Whether a statement or sentence is kept, and why not. score: None where there is none."""

    kind: Kind
    text: str
    ids: tuple[str, ...]
    kept: bool
    reason: str = ""
    score: float | None = None


# ---------------------------------------------------------------- sentences


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


_NEVER = _set(
    "mr mrs ms mx dr prof rev fr hon gen col maj capt cmdr lt sgt cpl mt messrs mme mlle vs e.g i.e cf viz "
    "approx ca"
)
"""No sentence ends with these."""
_BEFORE_NUMBER = _set("no nos fig figs nr vol pp ch sec")
_DOUBTFUL = _set(
    "st ave blvd rd hwy sq ln etc inc ltd co corp jr sr u.s u.k u.n a.m p.m am pm ft in oz lb lbs cm mm km "
    "kg hr hrs min mins dept est jan feb mar apr jun jul aug sep sept oct nov dec"
)
"""A sentence may end with these: it does if the next word is one that opens sentences."""
_OPENERS = _set(
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
TOKENS = re.compile(r"</?s>|<\|[^|<>\s]{1,40}\|>|<(?:end_of_turn|eos|pad|unk)>")
"""A chat template's own tokens, which some servers leave in a reply."""
THOUGHT = re.compile(r"<think>.*?(?:</think>|\Z)|\A(?:(?!<think>).)*?</think>", re.S)
"""What a reasoning model thinks before its reply; a thought that does not end is all there is."""
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


def all_unique(sentences: Sequence[Sentence]) -> Groups:
    """The groups where no reply could be read: every sentence stands alone."""
    return Groups(unique=tuple(sentences))


# ---------------------------------------------------------------- groups


@dataclass(frozen=True)
class _Claim:
    """A statement that the reply calls consistent: its sentences, and the sources that it names."""

    text: str
    ids: tuple[str, ...]
    sources: frozenset[int]


@dataclass
class _Claims:
    """What a reply says, each sentence resolved; `loose` ones are the reply's own. Still unchecked."""

    facts: list[_Claim] = field(default_factory=list)
    sets: list[list[Sentence]] = field(default_factory=list)
    unique: list[Sentence] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def read(reply: str, sentences: Sequence[Sentence], form: Form) -> Groups:
    """The groups that a reply gives to `sentences`; raises `Unreadable` and nothing else.

    Every id of `sentences` is in exactly one place. A statement of fewer than two sources is not
    consistent, and a contradiction needs two sentences; statements that share a sentence are one, and so
    are contradictions. Where json is asked for, headed lists are read too.
    """
    if not sentences:
        return Groups()
    reply = THOUGHT.sub("", reply)
    if not reply.strip():
        raise Unreadable("the reply was empty")
    if len(reply) > LIMIT:
        raise Unreadable(f"the reply had {len(reply)} characters; the answer is far shorter")
    if form == "text":
        return _assembled(_from_text(reply, _Catalogue(sentences)), sentences)
    try:
        claims = _from_json(reply, _Catalogue(sentences))
    except Unreadable:
        if not any(_heading(line) for line in reply.splitlines()):
            raise
        claims = _from_text(reply, _Catalogue(sentences))
        claims.faults.insert(0, "no JSON; headed lists were read")
    return _assembled(claims, sentences)


def _assembled(claims: _Claims, sentences: Sequence[Sentence]) -> Groups:
    """Claims as groups: checked, in order of precedence, and with what no claim mentions."""
    faults = list(claims.faults)
    source_of = {sentence.id: sentence.source for sentence in sentences}
    alone: list[Sentence] = list(claims.unique)

    facts: list[Fact] = []
    for claim in claims.facts:
        ids = tuple(dict.fromkeys(claim.ids))
        if len({source_of[one] for one in ids if one in source_of} | claim.sources) < 2:
            faults.append(f"said in fewer than two sources, so not consistent: {claim.text[:80]}")
            if not any(one in source_of for one in ids):
                alone.append(Sentence(ids[0], min(claim.sources, default=1), claim.text))
            continue
        near = [fact for fact in facts if set(fact.ids) & set(ids)]
        if near:
            faults.append(f"statements that share a sentence were joined: {claim.text[:80]}")
        texts = dict.fromkeys([*(fact.text for fact in near), claim.text])
        joined = dict.fromkeys([*(one for fact in near for one in fact.ids), *ids])
        facts = [fact for fact in facts if fact not in near]
        facts.append(Fact(" ".join(texts), tuple(joined)))
    taken = {one for fact in facts for one in fact.ids}

    sets: list[list[Sentence]] = []
    for claimed in claims.sets:
        free = {sentence.id: sentence for sentence in claimed if sentence.id not in taken}
        if len(free) < len({sentence.id for sentence in claimed}):
            faults.append("a sentence that is consistent was also contradictory")
        if len(free) < 2:
            faults.append("a contradiction of fewer than two sentences")
            alone += free.values()
            continue
        touching = [one for one in sets if any(sentence.id in free for sentence in one)]
        if touching:
            faults.append("contradictions that share a sentence were joined")
        together = {sentence.id: sentence for one in touching for sentence in one} | free
        sets = [one for one in sets if one not in touching]
        sets.append(list(together.values()))
    taken |= {sentence.id for one in sets for sentence in one}

    named = {sentence.id: sentence for sentence in alone if sentence.id not in taken}
    silent = [one.id for one in sentences if one.id not in taken and one.id not in named]
    if silent:
        faults.append(f"not mentioned, so unique: {', '.join(silent[:20])}{' ...' * (len(silent) > 20)}")
    unique = [named.get(one.id, one) for one in sentences if one.id not in taken]
    said = {_plain(one.text) for one in unique} | {_plain(one.text) for group in sets for one in group}
    for one in named.values():
        if one.id not in source_of and _plain(one.text) not in said:
            unique.append(one)
            said.add(_plain(one.text))
    return Groups(tuple(facts), tuple(map(tuple, sets)), tuple(unique), tuple(dict.fromkeys(faults)))


# ---------------------------------------------------------------- which sentence is meant

_COMMON = _set(
    "a an the is are was were be been being am in on at of to and or with by for from into onto as it its "
    "this that these those there here which who whom whose has have had also while his her their"
)
_WORD = re.compile(r"\w+(?:'\w+)?")
_BETWEEN_CLAUSES = re.compile(r"[,;:]|\b(?:and|while|but)\b", re.I)


def _plain(text: str) -> str:
    """Small letters and digits, one blank between words: what is compared of a retyped sentence."""
    return " ".join(_WORD.findall(text.replace("’", "'").casefold()))


def _content(text: str) -> frozenset[str]:
    return frozenset(word for word in _plain(text).split() if word not in _COMMON)


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


class _Catalogue:
    """The sentences that went in, found again by id or by what the reply retypes."""

    def __init__(self, sentences: Sequence[Sentence]) -> None:
        self.sentences = sentences
        self.by_id = {sentence.id: sentence for sentence in sentences}
        self.sources = {sentence.source for sentence in sentences}
        self.plain = {sentence.id: _plain(sentence.text) for sentence in sentences}
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
        plain, among = _plain(text), frozenset(sources)
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
                rank = (share, fuzz.ratio(_plain(text), self.plain[one.id]), one.id)
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


# ---------------------------------------------------------------- the json form

_ID = re.compile(r"(?<![\d.])(\d{1,4})\s?[.\-_:]\s?(\d{1,4})(?!\d)")
_ID_WORDS = _set("d s r id ids and vs or sentence sentences description descriptions region source")
_AT_END = re.compile(r"[(\[]([^()\[\]]*)[)\]]\W*\Z")
_SCHEMA = _set(
    "text ids id source sources sentence sentences statement statements description descriptions group "
    "groups fact facts combined merged summary pair pairs items values members reason region regions content"
)
_TEXT_KEYS = ("text", "statement", "fact", "combined", "merged", "summary", "content", "sentence")


def _class_of(key: str) -> Kind | None:
    """The class that a key or heading means."""
    key = key.casefold()
    if re.search(r"contra|conflict|inconsist|disagree", key):
        return "contradictory"
    if re.search(r"uniq|single|one source|only one", key):
        return "unique"
    if re.search(r"consist|similar|same|shared|agree|common", key):
        return "consistent"
    return None


def _ids_in(text: str) -> list[str]:
    """The ids that a string is made of, or the one that it begins with: `D1.3`, `[1.3]`, `1.3: A dog.`"""
    ids = [f"{int(a)}.{int(b)}" for a, b in _ID.findall(text)]
    if not ids:
        return []
    rest = re.findall(r"\w+", _ID.sub(" ", text).casefold())
    if all(word in _ID_WORDS or (word[0] in "dsr" and word[1:].isdigit()) for word in rest):
        return ids
    begins = re.match(r"[\W_]*[A-Za-z]?[\W_]*(?=\d)", text)
    return ids[:1] if begins and _ID.match(text, begins.end()) else []


def _scalars(value: Any) -> Iterator[str]:
    """Every string in a value, keys of objects included; numbers are strings here."""
    stack = [value]
    while stack:
        one = stack.pop()
        if isinstance(one, dict):
            numbers = [str(part) for part in one.values() if str(part).isdigit()]
            if len(one) == 2 == len(numbers):  # {"source": 1, "sentence": 3}
                stack.append(".".join(numbers))
                continue
            for key, part in reversed(one.items()):
                stack += [part, *([key] if key.casefold() not in _SCHEMA else [])]
        elif isinstance(one, list):
            stack += reversed(one)
        elif isinstance(one, str):
            yield one


def _entries(value: Any) -> list[Any]:
    """The members of a class, however they are kept."""
    if isinstance(value, dict):
        if any(key.casefold() in _SCHEMA or _ids_in(key) for key in value):
            return [value]
        return [{key: part} if len(key.split()) > 2 else part for key, part in value.items()]
    return value if isinstance(value, list) else [] if value is None else [value]


def _found_classes(reply: str) -> tuple[list[tuple[Kind, Any]], bool]:
    """The members of the reply's last object that has any of the three classes."""
    found, mended = loose_json.values(reply)
    best: list[tuple[Kind, Any]] = []
    stack = list(reversed(found))
    while stack:
        one = stack.pop()
        if isinstance(one, dict):
            classes = [(kind, part) for key, part in one.items() if (kind := _class_of(key))]
            if classes:
                best = classes if len(classes) > 1 else best + classes
                continue
            stack += reversed(list(one.values()))
        elif isinstance(one, list):
            stack += reversed(one)
    return best, mended


def _from_json(reply: str, catalogue: _Catalogue) -> _Claims:
    classes, mended = _found_classes(reply)
    if not classes:
        raise Unreadable(
            'there was no JSON object with the keys "consistent", "contradictory" and "unique" in the reply'
        )
    claims = _Claims(faults=["the JSON had to be mended"] if mended else [])
    unknown: list[str] = []
    mentioned = False

    def refs(value: Any, *, retyped: bool = True) -> tuple[list[Sentence], list[str]]:
        """The sentences that are named, or also retyped, in a value, and the strings that name none."""
        nonlocal mentioned
        sentences, others = [], []
        for text in _scalars(value):
            ids = _ids_in(text)
            if not ids and (end := _AT_END.search(text, max(0, len(text) - 200))):
                ids = _ids_in(end.group(1))
                others += [text[: end.start()].strip()] if ids else []
            known = [catalogue.by_id[one] for one in ids if one in catalogue.by_id]
            unknown.extend(one for one in ids if one not in catalogue.by_id)
            like = catalogue.like(text) if retyped and not ids and len(text.split()) > 1 else None
            if like:
                claims.faults.append("sentences were retyped where ids were asked for")
            elif not ids:
                others.append(text)
            sentences += [*known, *([like] if like else [])]
        mentioned = mentioned or bool(sentences)
        return sentences, others

    for kind, members in classes:
        if not isinstance(members, list):
            claims.faults.append(f"{kind} was no list")
        entries = _entries(members)
        if kind == "unique":
            claims.unique += refs(members)[0]
        elif kind == "contradictory":
            flat = [one for one in entries if isinstance(one, str) and len(_ids_in(one)) < 2]
            nested = [one for one in entries if not isinstance(one, str) or len(_ids_in(one)) > 1]
            for one in [*([flat] if flat else []), *nested]:
                claims.sets.append(refs(one)[0])
        else:
            flat = [one for one in entries if isinstance(one, str) and len(_ids_in(one)) == 1]
            whole = len(flat) == len(entries) > 0  # ["1.1", "2.1"]: one statement's ids
            for one in [entries] if whole else entries:
                text, rest = _text_of(one)
                sentences, others = refs(rest, retyped=False)
                claim = _json_fact(text, sentences, others, catalogue)
                if claim is None:
                    claims.faults.append("a consistent statement named no sentence")
                else:
                    claims.facts.append(claim)
    if unknown:
        few = ", ".join(dict.fromkeys(unknown[:10]))
        if not mentioned and not claims.facts:
            raise Unreadable(f"none of the ids exists: {few}")
        claims.faults.append(f"no sentence has the id {few}")
    claims.sets = [one for one in claims.sets if one]
    return claims


def _text_of(entry: Any) -> tuple[str, Any]:
    """The words of a consistent statement where they have a key of their own, and the rest of its entry."""
    if isinstance(entry, dict):
        for key, part in entry.items():
            if (
                key.casefold() in _TEXT_KEYS
                and isinstance(part, str)
                and len(re.findall(r"[^\W\d]{2,}", part)) > 1
            ):
                return part, {other: kept for other, kept in entry.items() if other != key}
    return "", entry


def _json_fact(
    text: str, sentences: list[Sentence], others: list[str], catalogue: _Catalogue
) -> _Claim | None:
    """A consistent statement; without words of its own it has those of its first sentence."""
    text = " ".join((text or max(others, key=len, default="")).split())
    if not any(char.isalpha() for char in text):
        text = sentences[0].text if sentences else ""
    ids = tuple(sentence.id for sentence in sentences) or (
        catalogue.support(text, frozenset()) if len(text.split()) > 1 else ()
    )
    return _Claim(text, ids, frozenset()) if ids else None


# ---------------------------------------------------------------- the text form

_NAME = r"(?:descriptions?|regions?|passages?|captions?|sources?|areas?|desc\.?|[dr])"
_TAG = re.compile(
    rf"[(\[]\s*{_NAME}\s*\#?\d{{1,3}}(?:(?:\s*(?:,|&|/|;|\band\b|\bor\b|\+))+\s*(?:{_NAME})?\s*\#?\d{{1,3}})*\s*[)\]]"
    r"|\(\s*\d{1,3}\.\d{1,3}(?:\s*,\s*\d{1,3}\.\d{1,3})*\s*\)",
    re.I,
)
_PREFIX = re.compile(rf"\b{_NAME}\s*#?(\d{{1,3}})\s*(?::|[-–—]\s)\s*", re.I)
_BULLET = re.compile(r"\s*(?:[-*•‣◦▪–—+]+|\(?\d{1,3}[.)](?!\d))\s+|\s*[-•‣◦▪](?=[\"\[(])")
_GROUP = re.compile(
    r"(?:group|set)\s*#?\d*[^\"\n:]{0,60}:\s*|(?:combined|merged)\s+(?:description|sentence|statement)s?\s*:\s*",
    re.I,
)
_LABEL = re.compile(
    r"(?:contradict\w*|conflict\w*|pair|unique|item|set|sentence|similar|consistent|group)"
    r"(?:\s+(?:pair|set|group|description|sentence|detail)s?)?\s*#?\d*\s*:\s*",
    re.I,
)
_HEADING = re.compile(
    r"(?:step\s*\d+\s*[:.-]\s*)?(?:for\s+|the\s+)*"
    r"(similar|consistent|same|shared|common|contradict\w*|conflict\w*|inconsistent|unique)\b"
    r"(?P<rest>[^\":]{0,60})(?P<colon>:?)\s*(?P<after>.*)\Z",
    re.I | re.S,
)
_HEADED = re.compile(
    r"\A(?:/[\s\w]+)?\W*(?:\w+\s+)?(?:descriptions?|sentences?|triples?|statements?|details?|facts?|information|"
    r"points?|items?|ones|content|groups?|pairs?|parts?)?\W*(?:\([^)]*\)\W*)?\Z",
    re.I,
)
_NOTHING = re.compile(
    r"\W*(?:none|n/?a|nothing|empty|not applicable|"
    r"(?:there (?:are|is|were) )?no(?:ne)? (?:contradict|conflict|unique|similar|consistent|such|other)\w*)"
    r"\b.{0,80}\Z",
    re.I,
)
_QUOTED = re.compile(r"\"((?:[^\"]|\"(?!\s*(?:,|;|\]|\Z|vs\b|and\b)))+)\"")
_EDGE = " \t,;:&-–—*_`[]/"


@dataclass
class _Line:
    """One entry: its class; whether a label or blank line came before it; whether it is surely of a list."""

    kind: Kind | None
    fresh: bool
    listed: bool
    text: str


def _straight(text: str) -> str:
    """Straight quotes, and none of Markdown's emphasis."""
    text = re.sub(r"[“”„‟«»]|''|``|\\\"", '"', text)
    text = re.sub("[‘’‛]", "'", text)
    return re.sub(r"\*\*+|__+|(?<!\w)`|`(?!\w)|(?<=[\s\"(])\*(?=\w)|(?<=[\w.\"])\*(?=[\s\"):,]|\Z)", "", text)


def _heading(line: str) -> tuple[Kind, str] | None:
    """The class that a heading opens, and what follows it on its line; None for any other line."""
    line = _straight(line).strip().lstrip("#").strip()
    bullet = _BULLET.match(line)
    line = line[bullet.end() :] if bullet else line
    found = _HEADING.match(line)
    if not found or not _HEADED.match(found["rest"]):
        return None
    if found["after"] and not found["colon"]:
        return None
    kind = _class_of(found.group(1))
    if kind is None or (found["colon"] and re.search(r"\d\s*\Z", found["rest"])):
        return None  # "Contradictory pair 1:" is the label of an entry
    return kind, found["after"]


def _lines(reply: str) -> Iterator[_Line]:
    """The entries of the reply, each on one line: continued ones are joined."""
    kind: Kind | None = None
    open_line: _Line | None = None
    fresh = True
    for raw in reply.splitlines():
        heading = _heading(raw)
        line = "" if raw.lstrip().startswith("```") else " ".join(_straight(raw).split())
        bullet = _BULLET.match(line)
        body = (line[bullet.end() :] if bullet else line).strip().lstrip("#").strip()
        labelled = bool(_GROUP.match(body) or _LABEL.match(body))
        opened = bool(heading or not body or labelled or (bullet and not body.startswith(("]", ","))))
        if (
            open_line
            and _unfinished(open_line.text)
            and not (opened and not _in_bracket(open_line.text, body))
        ):
            open_line.text += " " + body
            continue
        if open_line:
            yield open_line
            open_line = None
        if heading:
            kind, body = heading
            fresh, labelled = True, False
        if not body:
            fresh = True
            continue
        label = None if kind == "consistent" or _GROUP.match(body) else _LABEL.match(body)
        if label and not body[label.end() :].strip():
            fresh = True
            continue
        body = body[label.end() :] if label else body
        listed = bool(bullet or heading or label or '"' in body)
        open_line = _Line(kind, fresh or bool(label), listed, body)
        fresh = False
    if open_line:
        yield open_line


def _in_bracket(text: str, body: str) -> bool:
    """Whether an entry that opened a bracket goes on with `body`, bulleted or not."""
    return text.startswith("[") and not body.startswith("[") and not _GROUP.match(body) and bool(body)


def _unfinished(text: str) -> bool:
    """Whether an entry goes on: a bracket or a quote is open, or it ends before its source."""
    if text.startswith("["):
        return text.count("[") > text.count("]")
    return text.count('"') % 2 == 1 or text.endswith((",", "("))


def _stripped(text: str) -> str:
    """The words of an entry, without separators and the quotes around them; inner quotes stay."""
    text = re.sub(
        r"\A[\s,;:\[\]&/–—*-]*(?:(?:vs\.?|versus|while|and|but|whereas)\s+)?(?=[\"'\[])",
        "",
        text.strip(_EDGE),
    )
    text = text.strip(_EDGE)
    for quote in "\"'":
        match = re.fullmatch(rf"{quote}(.*?){quote}\s*([.!?]?)", text, re.S)
        if match:
            inner, stop = match.groups()
            return (inner if inner.rstrip().endswith((".", "!", "?")) else inner + stop).strip()
    if text.count('"') == 1:  # the other was lost
        text = text.strip('"')
    return text.strip()


_Parts: TypeAlias = list[tuple[str, frozenset[int], list[str]]]
"""The sentences of an entry, each with its sources and, where its tag has any, ids."""


def _tagged(text: str) -> _Parts:
    tags = list(_TAG.finditer(text))
    if tags:
        starts = [0, *(tag.end() for tag in tags)]
        found = []
        for start, tag in zip(starts, tags, strict=False):
            ids = [f"{int(a)}.{int(b)}" for a, b in _ID.findall(tag.group())]
            numbers = [int(one) for one in re.findall(r"\d+", tag.group())] if not ids else []
            found.append((_stripped(text[start : tag.start()]), frozenset(numbers), ids))
        return [one for one in found if any(char.isalnum() for char in one[0])]
    prefixes = list(_PREFIX.finditer(text))
    if prefixes:
        ends = [*(prefix.start() for prefix in prefixes[1:]), len(text)]
        found = [
            (_stripped(text[prefix.end() : end]), frozenset({int(prefix.group(1))}), [])
            for prefix, end in zip(prefixes, ends, strict=True)
        ]
        return [one for one in found if any(char.isalnum() for char in one[0])]
    quoted = [one.strip() for one in _QUOTED.findall(text)]
    texts = quoted if len(quoted) > 1 else [_stripped(text)]
    return [(one, frozenset(), []) for one in texts if any(char.isalnum() for char in one)]


def _from_text(reply: str, catalogue: _Catalogue) -> _Claims:
    claims = _Claims()
    entries: list[tuple[_Line, _Parts]] = []
    told = False
    for line in _lines(reply):
        if _NOTHING.match(line.text):
            told = told or line.kind is not None
            continue
        group = _GROUP.match(line.text)
        parts = _tagged(line.text[group.end() :] if group else line.text)
        if group:
            line.kind, line.listed = "consistent", True
        elif line.kind is None and _TAG.search(line.text):
            line.kind = "contradictory" if len(parts) > 1 else "unique"
        if line.kind and parts:
            entries.append((line, parts))
    _text_facts(entries, catalogue, claims)  # first: what they leave of a sentence is for the others
    _text_others(entries, catalogue, claims)
    if not (told or claims.facts or claims.sets or claims.unique):
        raise Unreadable(
            "there was none of the three headed lists (similar, contradictory and unique descriptions)"
        )
    claims.unique += catalogue.untold()
    return claims


def _text_facts(entries: Sequence[tuple[_Line, _Parts]], catalogue: _Catalogue, claims: _Claims) -> None:
    for line, parts in entries:
        for text, sources, ids in parts if line.kind == "consistent" else ():
            known = tuple(one for one in ids if one in catalogue.by_id)
            found = known or catalogue.support(text, sources)
            if not (found or sources or line.listed):
                claims.faults.append(f"not an entry of a list: {text[:60]}")
                continue
            lacking = len({catalogue.by_id[one].source for one in found}) < 2
            ids_or_own = (*found, catalogue.loose()) if lacking else found
            claims.facts.append(_Claim(text, ids_or_own, sources & catalogue.sources))


def _text_others(entries: Sequence[tuple[_Line, _Parts]], catalogue: _Catalogue, claims: _Claims) -> None:
    run: list[Sentence] = []  # contradictory sentences, one to a line

    def close() -> None:
        if run:
            claims.sets.append(run.copy())
            run.clear()

    for line, parts in entries:
        if line.kind == "consistent":
            close()
            continue
        sentences: list[Sentence] = []
        for text, sources, ids in parts:
            named = [catalogue.by_id[one] for one in ids if one in catalogue.by_id]
            meant = named[0] if named else catalogue.retyped(text, sources)
            if sources or line.listed or meant.id in catalogue.by_id:
                sentences.append(meant)
            else:
                claims.faults.append(f"not an entry of a list: {text[:60]}")
        if line.kind == "unique":
            claims.unique += sentences
        elif len(sentences) > 1:
            close()
            claims.sets.append(sentences)
        else:
            if line.fresh or {one.source for one in run} & {one.source for one in sentences}:
                close()
            run += sentences
    close()


# ---------------------------------------------------------------- the semantic filter


def judged(
    groups: Groups, scores: Mapping[str, float] | None, threshold: float, floor: float | None = None
) -> list[Verdict]:
    """What is kept, in the order of the reliable list: consistent, contradictions, unique.

    scores: by sentence id, and with `floor` by `Fact.key`; None where nobody scores. A contradiction keeps
    its best sentence (of equals the first) if over `threshold`, and none without scores; a unique sentence
    is kept if over it, and without a score too, with the reason. A consistent statement is kept, but that
    one scored under `floor` is not.
    """
    known = {
        key: score for key, score in (scores or {}).items() if score is not None and not math.isnan(score)
    }
    verdicts = []
    for fact in groups.consistent:
        score = known.get(fact.key) if floor is not None else None
        under = score is not None and floor is not None and score < floor
        reason = f"under the floor of {floor:g}" if under else ""
        verdicts.append(Verdict("consistent", fact.text, fact.ids, not under, reason, score))
    for group in groups.contradictory:
        scored = [one for one in group if one.id in known]
        best = max(scored, key=lambda one: known[one.id], default=None)
        for one in group:
            score = known.get(one.id)
            kept = one is best and score is not None and score > threshold
            if kept:
                reason = ""
            elif score is None:
                reason = "contradicted, and not scored"
            elif one is best:
                reason = f"contradicted, and not over {threshold:g}"
            else:
                reason = "contradicted by one that fits better"
            verdicts.append(Verdict("contradictory", one.text, (one.id,), kept, reason, score))
    for one in groups.unique:
        score = known.get(one.id)
        kept = score is None or score > threshold
        reason = "not scored" if score is None else "" if kept else f"not over {threshold:g}"
        verdicts.append(Verdict("unique", one.text, (one.id,), kept, reason, score))
    return verdicts
