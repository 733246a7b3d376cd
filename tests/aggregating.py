"""A language model that puts captions together, as a function: deterministic, and true to every sentence.

Knows the prompts by their system texts and reads the material back out of them; it answers in the form that
each asks for. For tests and servers on loopback. Must not know where its answers go.

    answer(prompt.system, prompt.user)

Groups: sentences of equal text in two sources are consistent; "The X is A." against "The X is B."
contradictory; the rest unique. Merges: the statements, or without any the captions, with no sentence twice.
So a sentence such as "Tag LT-0." can be followed from a candidate to the final caption, or to its filter.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

from methods.patch_matters import prompts
from methods.patch_matters.sentences import split

_NOUNS = """man woman person child dog cat car bus bird horse table chair tree boat bottle cup bench ball
square circle triangle star"""
NOUNS = frozenset(_NOUNS.split())
_STRING = r'"(?:[^"\\]|\\.)*"'
_ROLE = {system: name for name, system in prompts.ROLES.items()}


def role(system: str) -> str:
    """A1 to A6, E1 or E2; raises KeyError for any other system text."""
    return _ROLE[system].partition("/")[0]


def answer(system: str, user: str) -> str:
    """What the model replies; raises KeyError for a system text that is none of `prompts.ROLES`."""
    name = _ROLE[system]
    if name == "E1":
        return ", ".join(word for word in _words(_strings(user, "Description: ")) if word in NOUNS)
    if name == "E2":
        said = set(_words(_strings(user, "Words: ") or _strings(user, "Description: ")))
        names = _strings(user, "Names: ")
        return json.dumps(
            [one for one in names if {one.casefold(), *one.casefold().split()} & said] or ["None"]
        )
    if name in ("A1", "A4"):
        return _json(_by_id(user))
    if name in ("A1/text", "A4/text"):
        return _lists(_by_source(user), "Description" if name == "A1/text" else "Region")
    if name == "A3":
        return _once([*_strings(user, "Whole: "), *_strings(user, "Part: ")])
    if name == "A6":
        return _once([*_strings(user, "Whole: "), *_strings(user, "Caption: ")])
    captions = _strings(user, "Caption: ") if name == "A5" else _strings(user, r"\d+\. ")
    return _once(_strings(user, "- ") or captions)


def _strings(user: str, label: str) -> list[str]:
    """The JSON strings on the lines that begin with `label`, a regular expression."""
    lines = re.findall(rf"^{label}(.*)$", user, re.M)
    return [json.loads(string) for line in lines for string in re.findall(_STRING, line)]


def _words(texts: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(re.findall(r"[a-z]+", " ".join(texts).casefold())))


def _once(texts: Iterable[str]) -> str:
    """All sentences of the texts, in order, none twice."""
    return " ".join(dict.fromkeys(piece for text in texts for piece in split(text)))


def _by_id(user: str) -> dict[str, str]:
    lines = re.findall(rf"^(\d+\.\d+): ({_STRING})$", user, re.M)
    return {one: json.loads(string) for one, string in lines}


def _by_source(user: str) -> dict[str, str]:
    """The sentences of a prompt of the text form, under the ids that they would have."""
    texts = re.findall(rf"^(?:Description|Region) (\d+): ({_STRING})$", user, re.M)
    return {
        f"{source}.{place}": piece
        for source, string in texts
        for place, piece in enumerate(split(json.loads(string)), 1)
    }


def _groups(sentences: dict[str, str]) -> tuple[list[list[str]], list[list[str]], list[str]]:
    """The ids of each consistent statement and each contradiction, and those of unique sentences."""
    alike: dict[str, list[str]] = {}
    about: dict[str, list[str]] = {}
    for one, text in sentences.items():
        alike.setdefault(text, []).append(one)
    consistent = [ids for ids in alike.values() if _sources(ids) > 1]
    taken = {one for ids in consistent for one in ids}
    for one, text in sentences.items():
        claim = re.fullmatch(r"The (.+?) is (.+)\.", text)
        if claim and one not in taken:
            about.setdefault(claim.group(1), []).append(one)
    contradictory = [
        ids for ids in about.values() if _sources(ids) > 1 and len({sentences[one] for one in ids}) > 1
    ]
    taken |= {one for ids in contradictory for one in ids}
    return consistent, contradictory, [one for one in sentences if one not in taken]


def _sources(ids: Iterable[str]) -> int:
    return len({one.partition(".")[0] for one in ids})


def _json(sentences: dict[str, str]) -> str:
    consistent, contradictory, unique = _groups(sentences)
    facts = [{"text": sentences[ids[0]], "ids": ids} for ids in consistent]
    groups = {"consistent": facts, "contradictory": contradictory, "unique": unique}
    return json.dumps(groups, ensure_ascii=False)


def _lists(sentences: dict[str, str], noun: str) -> str:
    consistent, contradictory, unique = _groups(sentences)

    def tagged(one: str) -> str:
        return f'"{sentences[one]}" ({noun} {one.partition(".")[0]})'

    lists = {
        "Similar": [
            f'Group {place} Combined Description: "{sentences[ids[0]]}"'
            for place, ids in enumerate(consistent, 1)
        ],
        "Contradictory": [f"[{', '.join(map(tagged, ids))}]" for ids in contradictory],
        "Unique": [tagged(one) for one in unique],
    }
    return "\n\n".join(
        "\n".join([f"For {name} Descriptions:", *(f"- {line}" for line in lines or ["None"])])
        for name, lines in lists.items()
    )
