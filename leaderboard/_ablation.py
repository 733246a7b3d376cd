"""Which knobs a grid's runs vary, and how: the parts of an ablation, before anything is drawn.

Runs of one chain of methods are a *family*; the knobs are read from the runs' descriptions, so that a
default which the grid does not name still has its value. A family whose runs differ from one of them in one
knob each is swept one at a time: a panel per knob. One whose runs are combinations of two knobs or more is
crossed: a heat map, or several. What fits neither is left to the plot that shows every arm.
It knows descriptions; it does not know scores.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Value = str | float | None
"""A knob's value; None is the method's default."""

CROSSED = 0.6  # of all combinations, so many are enough for a heat map
LETTERS = 80  # of a name
MAPS = 12  # heat maps of a family at most
_ABSENT = "none"


@dataclass(frozen=True)
class Panel:
    """One drawing of a family: `knob` over its values, or a map of `rows` by `columns`; `members` are
    places in the family's runs. held: what the other knobs are."""

    kind: Literal["knob", "map"]
    knobs: tuple[str, ...]
    members: tuple[int, ...]
    held: str = ""


@dataclass(frozen=True)
class Family:
    """Runs of one chain. values: per run, the value of each knob that varies. centre: the run around which
    the knobs were varied one at a time, if they were."""

    name: str
    knobs: tuple[str, ...]
    values: tuple[Mapping[str, Value], ...]
    panels: tuple[Panel, ...]
    centre: int | None = None

    def label(self, place: int) -> str:
        """What tells a run from the others of its family: what differs from the centre, or all that varies.

        In a family of one, the name alone.
        """
        if place == self.centre:
            return plain_text(f"{self.name} (usual knobs)", LETTERS)
        mine = self.values[place]
        usual = self.values[self.centre] if self.centre is not None else {}
        said = [f"{knob}={shown(mine[knob])}" for knob in self.knobs if mine[knob] != usual.get(knob, ...)]
        return plain_text(f"{self.name} {', '.join(said)}", LETTERS)


def family(name: str, described: Sequence[Mapping[str, Value]]) -> Family:
    """The family of runs with these flat descriptions (`flat`), in the grid's order."""
    knobs = _varying(described)
    values = tuple({knob: each.get(knob, _ABSENT) for knob in knobs} for each in described)
    if not knobs:
        return Family(name, (), values, ())
    if len(knobs) == 1:
        return Family(name, knobs, values, (Panel("knob", knobs, tuple(range(len(values)))),))
    centre, near = _centre(knobs, values)
    if len(near) == len(values):
        return Family(name, knobs, values, tuple(_spokes(knobs, values, centre)), centre)
    if _crossed(knobs, values) >= CROSSED:
        return Family(name, knobs, values, tuple(_maps(knobs, values)))
    if len(near) >= max(3, len(values) / 2):
        return Family(name, knobs, values, tuple(_spokes(knobs, values, centre)), centre)
    return Family(name, knobs, values, ())


def flat(described: Mapping[str, Any], path: str = "") -> dict[str, Value]:
    """Every leaf of a description by its path; numbers stay numbers.

    >>> flat({"tau": 1.5, "layer": None, "judge": {"model": "m", "seed": 0}, "words": ["a"]})
    {'tau': 1.5, 'layer': None, 'judge.model': 'm', 'judge.seed': 0, 'words': '["a"]'}
    """
    found: dict[str, Value] = {}
    for name, value in described.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{path}{name}.")
        elif value is None or (isinstance(value, int | float) and not isinstance(value, bool)):
            found[path + name] = value
        else:
            found[path + name] = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return found


def shown(value: Value) -> str:
    """A value as a reader would write it.

    >>> [shown(value) for value in (None, 1.5, 2.0, "rel_att", 0.1)]
    ['default', '1.5', '2', 'rel_att', '0.1']
    """
    if value is None:
        return "default"
    return value if isinstance(value, str) else f"{value:g}"


def plain_text(text: str, longest: int) -> str:
    """One line of at most so many letters, none of which turns others round: what a spec holds is not ours
    to choose.

    >>> plain_text("a\\n  b" + "c" * 20, 12)
    'a bccc…ccccc'
    """
    text = " ".join(re.sub("[\u202a-\u202e\u2066-\u2069]", "�", text).split())
    keep = longest - 1
    return text if len(text) <= longest else f"{text[: keep - keep // 2]}…{text[-(keep // 2) :]}"


def ordered(values: Sequence[Value]) -> list[Value]:
    """Each value once: the default first, then numbers by size, then words as they came."""
    once = list(dict.fromkeys(values))
    numbers = sorted(value for value in once if isinstance(value, int | float))
    return [
        *(value for value in once if value is None),
        *numbers,
        *(value for value in once if isinstance(value, str)),
    ]


def decades(values: Sequence[float]) -> bool:
    """Whether numbers are read better on a logarithmic axis: all above 0, two decades or more.

    >>> decades([0.1, 1, 10]), decades([0, 1, 100]), decades([1, 2, 3])
    (True, False, False)
    """
    return bool(values) and min(values) > 0 and max(values) >= 100 * min(values)


# ---------------------------------------------------------------- what varies


def _varying(described: Sequence[Mapping[str, Value]]) -> tuple[str, ...]:
    """The leaves that differ; of those that always change together, one (a model's name, if it is there)."""
    leaves = list(dict.fromkeys(leaf for each in described for leaf in each))
    patterns: dict[tuple[int, ...], str] = {}
    for leaf in leaves:
        column = [each.get(leaf, _ABSENT) for each in described]
        first = {value: place for place, value in reversed(list(enumerate(column)))}
        pattern = tuple(first[value] for value in column)
        if len(first) > 1 and (pattern not in patterns or _names_model(leaf, patterns[pattern])):
            patterns[pattern] = leaf
    return tuple(patterns.values())


def _names_model(leaf: str, other: str) -> bool:
    return leaf.endswith(".model") and not other.endswith(".model")


def _centre(knobs: Sequence[str], values: Sequence[Mapping[str, Value]]) -> tuple[int, list[int]]:
    """The run from which most others differ in one knob at most; and those."""

    def near(place: int) -> list[int]:
        return [
            other
            for other, each in enumerate(values)
            if sum(each[knob] != values[place][knob] for knob in knobs) <= 1
        ]

    return max(((place, near(place)) for place in range(len(values))), key=lambda found: len(found[1]))


def _spokes(knobs: Sequence[str], values: Sequence[Mapping[str, Value]], centre: int) -> Iterator[Panel]:
    usual = values[centre]
    for knob in knobs:
        members = [
            place
            for place, each in enumerate(values)
            if all(each[other] == usual[other] for other in knobs if other != knob)
        ]
        if len(members) > 1:
            yield Panel("knob", (knob,), tuple(members))


def _crossed(knobs: Sequence[str], values: Sequence[Mapping[str, Value]]) -> float:
    """The share of all combinations that was run; 0 where too many maps would be needed to show them."""
    sizes = [len({each[knob] for each in values}) for knob in knobs]
    combinations = 1
    for size in sizes:
        combinations *= size
    across = sorted(sizes)[-2:]
    return len(values) / combinations if combinations <= MAPS * across[0] * across[1] else 0.0


def _maps(knobs: Sequence[str], values: Sequence[Mapping[str, Value]]) -> Iterator[Panel]:
    """Maps over the two knobs with most values, one for each combination of the others."""
    sizes = {knob: len({each[knob] for each in values}) for knob in knobs}
    two = sorted(sorted(knobs, key=lambda knob: -sizes[knob])[:2], key=lambda knob: sizes[knob])
    others = [knob for knob in knobs if knob not in two]
    for held in itertools.product(*(ordered([each[knob] for each in values]) for knob in others)):
        members = tuple(
            place
            for place, each in enumerate(values)
            if all(each[knob] == value for knob, value in zip(others, held, strict=True))
        )
        if members:
            said = ", ".join(f"{knob}={shown(value)}" for knob, value in zip(others, held, strict=True))
            yield Panel("map", tuple(two), members, said)
