"""The json form of a reply: the three classes as keys of an object, their sentences named by id.

Knows how far such an object may be from what was asked for. Must not know broken JSON (`loose_json.py`),
nor whether a claim holds (`grouping.py`). Sentences are named by id and so never retyped; where a reply
retypes them all the same, they are found.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from methods.patch_matters import loose_json
from methods.patch_matters.catalogue import Catalogue
from methods.patch_matters.claims import ID, Claim, Claims, Kind, class_of
from methods.patch_matters.replies import Unreadable
from methods.patch_matters.sentences import Sentence, word_set

_ID_WORDS = word_set("d s r id ids and vs or sentence sentences description descriptions region source")
_AT_END = re.compile(r"[(\[]([^()\[\]]*)[)\]]\W*\Z")
_SCHEMA = word_set(
    "text ids id source sources sentence sentences statement statements description descriptions group "
    "groups fact facts combined merged summary pair pairs items values members reason region regions content"
)
_TEXT_KEYS = ("text", "statement", "fact", "combined", "merged", "summary", "content", "sentence")


def _ids_in(text: str) -> list[str]:
    """The ids that a string is made of, or the one that it begins with: `D1.3`, `[1.3]`, `1.3: A dog.`"""
    ids = [f"{int(a)}.{int(b)}" for a, b in ID.findall(text)]
    if not ids:
        return []
    rest = re.findall(r"\w+", ID.sub(" ", text).casefold())
    if all(word in _ID_WORDS or (word[0] in "dsr" and word[1:].isdigit()) for word in rest):
        return ids
    begins = re.match(r"[\W_]*[A-Za-z]?[\W_]*(?=\d)", text)
    return ids[:1] if begins and ID.match(text, begins.end()) else []


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
            classes = [(kind, part) for key, part in one.items() if (kind := class_of(key))]
            if classes:
                best = classes if len(classes) > 1 else best + classes
                continue
            stack += reversed(list(one.values()))
        elif isinstance(one, list):
            stack += reversed(one)
    return best, mended


def from_json(reply: str, catalogue: Catalogue) -> Claims:
    classes, mended = _found_classes(reply)
    if not classes:
        raise Unreadable(
            'there was no JSON object with the keys "consistent", "contradictory" and "unique" in the reply'
        )
    claims = Claims(faults=["the JSON had to be mended"] if mended else [])
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
                claim = _fact(text, sentences, others, catalogue)
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


def _fact(text: str, sentences: list[Sentence], others: list[str], catalogue: Catalogue) -> Claim | None:
    """A consistent statement; without words of its own it has those of its first sentence."""
    text = " ".join((text or max(others, key=len, default="")).split())
    if not any(char.isalpha() for char in text):
        text = sentences[0].text if sentences else ""
    ids = tuple(sentence.id for sentence in sentences) or (
        catalogue.support(text, frozenset()) if len(text.split()) > 1 else ()
    )
    return Claim(text, ids, frozenset()) if ids else None
