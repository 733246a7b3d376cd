"""An ablation as a page: the same drawings, to be pointed at, and the tables.

One folder that works from `file://`; the drawing library lies beside it once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.stats import Estimate
from leaderboard import _web
from leaderboard._ablation import Value, decades, ordered, plain_text, shown
from leaderboard._ablation_figures import field, figures, stems
from leaderboard._ablation_tables import cell, scale, sheets, verdict
from leaderboard.ablation import COSTS, PLAIN, Ablation, Arm

LETTERS = 60  # of a name
DIGITS = 6


def files(found: Sequence[Ablation], name: str, about: str) -> dict[str, str]:
    """The page and what it needs, by path. Equal ablations give equal bytes."""
    page = _web.render(
        "ablation.html.j2",
        assets="assets",
        grid=name,
        about=about,
        parts=[_part(ablation, stem) for ablation, stem in zip(found, stems(found), strict=True)],
        data=_web.script([_data(ablation) for ablation in found]),
    )
    shared = {each: _web.shared(each) for each in ("base.css", "theme.js", "ablation.css", "ablation.js")}
    scripts = {"plotly.min.js": _web.packaged("plotly", "package_data/plotly.min.js"), **shared}
    return {f"assets/{each}": content for each, content in scripts.items()} | {"index.html": page}


def _part(ablation: Ablation, stem: str) -> dict[str, Any]:
    """What the template shows of an ablation."""
    return {
        "title": ablation.title,
        "verdict": verdict(ablation),
        "sheets": list(sheets(ablation)),
        "pictures": [f"{stem}-{what}" for what, _ in figures(ablation)],
    }


def _data(ablation: Ablation) -> dict[str, Any]:
    """What the script draws of an ablation; every name is text."""
    arms = ablation.arms
    place = {arm.row.path: number for number, arm in enumerate(arms)}
    best = place[ablation.best.arm.row.path] if ablation.best is not None else None
    return {
        "number": ablation.number,
        "better": "higher" if ablation.higher_is_better else "lower",
        "plain": PLAIN,
        "cost": COSTS[ablation.cost] if ablation.cost is not None else None,
        "best": best,
        "models": not ablation.model,
        "arms": [
            {
                "label": plain_text(arm.label, LETTERS),
                "part": arm.part,
                "oracle": arm.row.oracle,
                "centre": arm.centre,
                "score": _three(arm.row.score),
                "difference": _three(arm.row.difference),
                "gain": _three(arm.gain),
                "times": _short(getattr(arm.row.times, ablation.cost or "", None)),
                "scored": f"{arm.row.scored:,} of {arm.row.n:,}",
            }
            for arm in arms
        ],
        "field": _field(ablation, place),
        "panels": [
            {**_panel(ablation, one, members, panel), "family": plain_text(one.name, LETTERS)}
            for one, members in ablation.families
            for panel in one.panels
            if ablation.model or one.knobs != ("model",)
        ],
    }


def _field(ablation: Ablation, place: dict[Path, int]) -> dict[str, Any] | None:
    """Gain against cost, with every point and name where the drawing for print has it."""
    found = field(ablation)
    if found is None:
        return None
    return {
        "log": found.log,
        "x": [_short(found.x[0]), _short(found.x[1])],
        "y": [_short(found.y[0]), _short(found.y[1])],
        "spots": [
            {
                "arm": None if spot.arm is None else place[spot.arm.row.path],
                "x": _short(found.cost(spot.at[0])),
                "at": [_short(spot.at[0]), _short(spot.at[1])],
                "gain": _three(spot.gain),
                "name": spot.name,
                "label": None if spot.label is None else [_short(spot.label[0]), _short(spot.label[1])],
                "left": spot.side == "left",
            }
            for spot in found.spots
        ],
    }


def _panel(ablation: Ablation, one: Any, members: Sequence[Arm], panel: Any) -> dict[str, Any]:
    place = {arm.row.path: number for number, arm in enumerate(ablation.arms)}
    arms = [place[members[number].row.path] for number in panel.members]
    values = [one.values[number] for number in panel.members]
    if panel.kind == "map":
        down, across = panel.knobs
        return {
            "kind": "map",
            "knobs": list(panel.knobs),
            "held": panel.held,
            "rows": [_word(value) for value in ordered([each[down] for each in one.values])],
            "columns": [_word(value) for value in ordered([each[across] for each in one.values])],
            "cells": [
                [_word(each[down]), _word(each[across]), arm, cell(ablation.arms[arm], scale(ablation))]
                for each, arm in zip(values, arms, strict=True)
            ],
        }  # fmt: skip
    knob = panel.knobs[0]
    column = [each[knob] for each in values]
    numeric = all(isinstance(value, int | float) for value in column) and len(set(column)) > 1
    order = {value: number for number, value in enumerate(ordered(column))}
    pairs = sorted(zip(column, arms, strict=True), key=lambda pair: order[pair[0]])
    return {
        "kind": "knob",
        "knobs": [knob],
        "log": numeric and decades(column),
        "numeric": numeric,
        "xs": [value if numeric else _word(value) for value, _ in pairs],
        "arms": [arm for _, arm in pairs],
    }


def _word(value: Value) -> str:
    """A knob's value on an axis."""
    return plain_text(shown(value), 20)


def _three(estimate: Estimate | None) -> list[float | None] | None:
    if estimate is None or estimate.value is None:
        return None
    return [_short(estimate.value), _short(estimate.low), _short(estimate.high)]


def _short(value: float | None) -> float | None:
    return None if value is None else round(value, DIGITS) + 0.0
