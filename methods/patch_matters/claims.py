"""What a reply claims of the sentences, unchecked: what both of its forms are read into.

Knows the three classes, by any of their names, and ids as models write them. Must not know either form, nor
what becomes of a claim: `grouping.py` checks it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from methods.patch_matters.sentences import Sentence

Kind = Literal["consistent", "contradictory", "unique"]

ID = re.compile(r"(?<![\d.])(\d{1,4})\s?[.\-_:]\s?(\d{1,4})(?!\d)")
"""Source and place: `1.3`, or `1-3`, `1_3`, `1:3`."""


@dataclass(frozen=True)
class Claim:
    """A statement that the reply calls consistent: its sentences, and the sources that it names."""

    text: str
    ids: tuple[str, ...]
    sources: frozenset[int]


@dataclass
class Claims:
    """What a reply says, each sentence resolved; `loose` ones are the reply's own. Still unchecked."""

    facts: list[Claim] = field(default_factory=list)
    sets: list[list[Sentence]] = field(default_factory=list)
    unique: list[Sentence] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def class_of(key: str) -> Kind | None:
    """The class that a key or heading means."""
    key = key.casefold()
    if re.search(r"contra|conflict|inconsist|disagree", key):
        return "contradictory"
    if re.search(r"uniq|single|one source|only one", key):
        return "unique"
    if re.search(r"consist|similar|same|shared|agree|common", key):
        return "consistent"
    return None
