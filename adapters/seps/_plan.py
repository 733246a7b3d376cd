"""What a training was asked to be: its model in words, and its recipe.

Knows names, measures and numbers, and how the words of the command line become them. Must not know: weights,
data. The numbers: LAPS (CrossmodalGroup/LAPS: arguments.py, train.py), SEPS (arXiv 2511.01390, section 4).
"""

from __future__ import annotations

import math
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

from adapters.seps import loss
from adapters.seps import model as architecture
from adapters.seps._scorer import Precision
from adapters.seps.model import Config
from harness.errors import SpecError


@dataclass(frozen=True)
class Recipe:
    """How a model is trained.

    batch: pairs of a step, over all processes. lr: of projections and head; tower_lr: the share of it that
    pretrained towers get (those that begin with nothing get all). milestones: epochs from which on the rates
    are `decay` times as large. sum_epochs: epochs of the sum over negatives; later the hardest one counts.
    ratio_weight, ratio_lambdas: of the terms in `loss.py`; the released term has no gradient. augment: of
    texts. precision: of the towers; scores and loss are float32. keep: hold the pictures in memory at twice
    the model's side, and crop those.
    """

    epochs: int = 30
    batch: int = 64
    lr: float = 2e-4
    tower_lr: float = 0.1
    weight_decay: float = 1e-4
    clip: float = 2.0
    margin: float = 0.2
    milestones: tuple[int, ...] = (9, 15, 20, 25)
    decay: float = 0.3
    sum_epochs: int = 1
    ratio_weight: float | None = None
    ratio_lambdas: tuple[float, ...] = (0.5, 0.5)
    augment: bool = True
    seed: int = 0
    precision: Precision = "fp32"
    keep: bool = False

    def __post_init__(self) -> None:
        for name in ("epochs", "batch"):
            if getattr(self, name) < 1:
                raise SpecError(f"{name}={getattr(self, name)}; it must be 1 or more")
        for name in ("lr", "tower_lr", "weight_decay", "clip", "margin", "decay", "seed", "sum_epochs"):
            if not 0 <= getattr(self, name) < math.inf:
                raise SpecError(f"{name}={getattr(self, name)}; it must be a finite number, 0 or more")
        if len(self.ratio_lambdas) != 2:
            raise SpecError(
                f"ratio_lambdas={'+'.join(map(str, self.ratio_lambdas))}; give two, such as 0.5+0.5"
            )

    def rate(self, epoch: int) -> float:
        """The learning rate of an epoch, from 0.

        >>> [round(Recipe().rate(epoch) / 2e-4, 4) for epoch in (0, 8, 9, 15, 20, 25)]
        [1.0, 1.0, 0.3, 0.09, 0.027, 0.0081]
        """
        return self.lr * self.decay ** sum(epoch >= milestone for milestone in self.milestones)

    def warm(self, step: int, steps: int) -> float:
        """The weight of the alignment loss at `step` of a training with `steps` per epoch: rising in the
        first."""
        return step / steps if step < steps else 1.0


RECIPES: Mapping[str | None, Mapping[str, Any]] = {
    None: {},
    "released": {"ratio_weight": loss.RELEASED_WEIGHT},
    "paper": {"batch": 32, "lr": 1e-4, "ratio_lambdas": (1.0, 1.0), "ratio_weight": 1.0},
}
"""`released`: batch 64, 2e-4, as the released READMEs' commands; with it goes what the released code does to
gradients (`detach_selection`, for seps_released). `paper`: what SEPS's text says. Neither: the released
numbers, and the gradients of LAPS."""


@dataclass(frozen=True)
class Plan:
    """A model to be trained, before anything is loaded. vision, text: a checkpoint's name, or a tower's
    measures where it begins with nothing (`scratch-128x4x4`: width, layers, heads). knobs: other fields of
    Config."""

    impl: architecture.Impl
    backbone: str
    text: str
    patch: int
    knobs: Mapping[str, Any]


def measures(tower: str) -> tuple[int, int, int] | None:
    """Width, layers and heads of a tower that begins with nothing; None of one that has a checkpoint.

    >>> measures("scratch-128x4x2"), measures("vit-224")
    ((128, 4, 2), None)
    """
    if not tower.startswith("scratch"):
        return None
    found = re.fullmatch(r"scratch-(\d+)x(\d+)x(\d+)", tower)
    if (
        found is None
        or 0 in (numbers := tuple(int(text) for text in found.groups()))
        or numbers[0] % numbers[2]
    ):
        raise SpecError(
            f"{tower}: write scratch-WIDTHxLAYERSxHEADS, such as scratch-128x4x4, heads dividing the width"
        )
    return cast(tuple[int, int, int], numbers)


def plan_of(spec: Mapping[str, str], preset: str | None) -> Plan:
    """What the words of a model's spec ask for."""
    own = {"impl": "laps", "backbone": "vit-224", "text": "bert-base-uncased", "patch": "16"}
    words = {name: spec.get(name, default) for name, default in own.items()}
    rest = {name: value for name, value in spec.items() if name not in own}
    if wrong := rest.keys() & {"vision_config", "text_config"}:
        raise SpecError(f"{min(wrong)} follows from the backbone")
    if words["impl"] not in architecture.IMPLS:
        raise SpecError(f"impl={words['impl']} does not exist; there are {', '.join(architecture.IMPLS)}")
    knobs = typed(Config, rest, "a SEPS model")
    if not words["patch"].isdigit() or int(words["patch"]) < 1:
        raise SpecError(f"patch={words['patch']} is not a number of pixels")
    if "patch" in spec and measures(words["backbone"]) is None:
        raise SpecError(f"patch is for backbone=scratch-...; {words['backbone']} has its own")
    if preset == "released" and words["impl"] == "seps_released":
        knobs.setdefault("detach_selection", True)
    return Plan(
        cast(architecture.Impl, words["impl"]), words["backbone"], words["text"], int(words["patch"]), knobs
    )


def typed(kind: Any, values: Mapping[str, Any], what: str) -> dict[str, Any]:
    """`values` as the fields of a dataclass want them; what is no text stays as it is."""
    hints = typing.get_type_hints(kind)
    if wrong := sorted(set(values) - set(hints)):
        raise SpecError(f"{what} has no {', '.join(wrong)}; it has {', '.join(hints)}")
    return {name: _value(value, hints[name], name) for name, value in values.items()}


def _value(value: Any, hint: Any, name: str) -> Any:
    if not isinstance(value, str):
        return value
    options = typing.get_args(hint)
    if typing.get_origin(hint) is Literal:
        if value not in options:
            raise SpecError(f"{name}={value} does not exist; there are {', '.join(map(str, options))}")
        return value
    if typing.get_origin(hint) is tuple:
        return tuple(_value(part, options[0], name) for part in value.split("+") if part)
    if type(None) in options:
        hint = next(option for option in options if option is not type(None))
    if hint is bool:
        if value.lower() not in ("true", "false"):
            raise SpecError(f"{name}={value} is neither true nor false")
        return value.lower() == "true"
    if hint in (int, float):
        try:
            return hint(value)
        except ValueError:
            raise SpecError(
                f"{name}={value} is not {'a whole number' if hint is int else 'a number'}"
            ) from None
    return value
