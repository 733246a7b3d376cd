"""An ablation drawn for print: PNG and SVG, the same bytes each time.

`knobs`: the score over each swept knob, or a map of two; `cost`: the gain against what it costs; `cells`:
every arm, the best first. Colours are Okabe and Ito's, which colour-blind readers tell apart; names stand
beside what they name. Labels come from specs, so nothing in them is taken for mathematics, and a letter
that the font lacks is written as its number.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

from harness.stats import Estimate
from harness.store import slug
from leaderboard._ablation import Family, Panel, Value, decades, ordered, plain_text, shown
from leaderboard._ablation_tables import cell, number, scale
from leaderboard.ablation import COSTS, PLAIN, Ablation, Arm

BLUE, ORANGE, GREEN, PURPLE, RED, SKY = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9"
INK, DIM, BAND = "#222222", "#666666", "#DDDDDD"
CONTROLS = (ORANGE, GREEN, PURPLE, RED, SKY)
WRITTEN = {
    ORANGE: "#8F6200",
    GREEN: "#00704F",
    PURPLE: "#9C4476",
    RED: "#A84A00",
    SKY: "#1F6E9C",
    BLUE: "#005A8E",
}
"""The same colours, dark enough for small letters on white."""
ACROSS = 3  # panels beside each other
LISTED = 60  # arms of the list at most
LETTERS = 44  # of a name
_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "axes.linewidth": 0.6,
    "axes.edgecolor": DIM,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": DIM,
    "ytick.color": DIM,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "text.parse_math": False,
    "svg.hashsalt": "fovea",
    "svg.fonttype": "path",
    "savefig.facecolor": "white",
}


def files(found: Sequence[Ablation]) -> dict[str, bytes]:
    """Every figure's PNG and SVG by name; `stems` says which belong to which ablation."""
    import matplotlib as mpl

    made: dict[str, bytes] = {}
    with mpl.rc_context(_STYLE):
        for ablation, stem in zip(found, stems(found), strict=True):
            for what, draw in figures(ablation):
                figure = draw()
                for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
                    out = io.BytesIO()
                    figure.savefig(out, format=kind, dpi=200, metadata=metadata)
                    made[f"{stem}-{what}.{kind}"] = out.getvalue()
    return made


def stems(found: Sequence[Ablation]) -> list[str]:
    """The beginning of each ablation's file names, no two alike."""
    names = [slug("-".join(filter(None, (one.task, one.protocol, one.model)))) for one in found]
    return [name if names.count(name) == 1 else f"{name}-{place}" for place, name in enumerate(names, 1)]


def figures(ablation: Ablation) -> Iterator[tuple[str, Callable[[], Any]]]:
    """(name, what draws it), in the order in which they are read."""
    swept = [
        (one, arms) for one, arms in ablation.families if one.panels and any(a.row.complete for a in arms)
    ]
    for one, arms in swept:
        name = "knobs" if len(swept) == 1 else f"knobs-{slug(one.name)}"
        draw = _maps if one.panels[0].kind == "map" else _knobs
        if ablation.model or one.knobs != ("model",):  # models beside each other are the list itself
            yield name, lambda one=one, arms=arms, draw=draw: draw(ablation, one, arms)  # type: ignore[misc]
    if field(ablation) is not None:
        yield "cost", lambda: _scatter(ablation)
    if any(arm.row.score.value is not None for arm in ablation.arms):
        yield "cells", lambda: _list(ablation)


# ---------------------------------------------------------------- a panel per knob


def _knobs(ablation: Ablation, one: Family, arms: Sequence[Arm]) -> Any:
    across = min(ACROSS, len(one.panels))
    down = -(-len(one.panels) // across)
    figure = _figure(2.1 * across + 1.7, 2.15 * down + 0.95)
    axes = figure.subplots(down, across, sharey=True, squeeze=False)
    controls = [arm for arm in ablation.arms if arm.part == "control" and arm.row.score.value is not None]
    controls = controls[: len(CONTROLS)]
    for place, ax in enumerate(axes.flat):
        if place >= len(one.panels):
            ax.set_visible(False)
            continue
        _levels(ax, ablation, controls)
        _swept(ax, one, arms, one.panels[place])
        if place % across == 0:
            ax.set_ylabel(_axis(ablation))
    _room(axes.flat[0], ablation, [*arms, *controls])
    for row in range(down):
        last = min((row + 1) * across, len(one.panels)) - 1
        _name_levels(axes.flat[last], ablation, controls)
    notes = ["bands and whiskers: 95 % intervals (bootstrap over images)"]
    if one.centre is not None:
        notes.append("ringed: the arm around which one knob at a time was varied")
    if any(arm.row.oracle for arm in arms):
        notes.append("hollow: was told where the answer is")
    by_itself = (
        f"{one.name}: each knob by itself" if len(one.panels) > 1 else f"{one.name}: {one.panels[0].knobs[0]}"
    )
    _frame(figure, f"{ablation.task} · {by_itself}", ablation, notes)
    return figure


def _swept(ax: Any, one: Family, arms: Sequence[Arm], panel: Panel) -> None:
    knob = panel.knobs[0]
    places = [p for p in panel.members if arms[p].row.score.value is not None]
    values = [one.values[place][knob] for place in places]
    where = positions(values)
    spots = sorted(zip([where[value] for value in values], places, strict=True))
    xs = [x for x, _ in spots]
    drawn = [arms[place] for _, place in spots]
    scores = [arm.row.score for arm in drawn]
    middle = [_of(score.value) for score in scores]
    numeric = len(values) > 2 and all(isinstance(value, int | float) for value in values)
    if numeric:
        low, high = ([_of(getattr(score, end), score.value) for score in scores] for end in ("low", "high"))
        ax.fill_between(xs, low, high, color=BLUE, alpha=0.18, linewidth=0)
        ax.plot(xs, middle, color=BLUE, linewidth=1.4, zorder=3)
    for x, arm in zip(xs, drawn, strict=True):
        if not numeric:
            _whisker(ax, x, arm.row.score, INK if arm.row.oracle else BLUE)
        _dot(ax, x, _of(arm.row.score.value), arm)
    _ticks(ax, where, values)
    ax.set_xlabel(drawable(knob))


def positions(values: Sequence[Value]) -> dict[Value, float]:
    """Where each value stands on its axis: numbers where they are, words side by side."""
    if all(isinstance(value, int | float) for value in values) and len(set(values)) > 1:
        return {value: float(value) for value in values}  # type: ignore[arg-type]
    return {value: float(place) for place, value in enumerate(ordered(values))}


def _ticks(ax: Any, where: Mapping[Value, float], values: Sequence[Value]) -> None:
    numeric = all(isinstance(value, int | float) for value in values) and len(set(values)) > 1
    points = sorted(where.items(), key=lambda item: item[1])
    if numeric and decades([x for _, x in points]):
        ax.set_xscale("log")
        ax.minorticks_off()
    if not numeric:
        ax.set_xlim(-0.6, len(points) - 0.4)
    else:
        ax.margins(x=0.08)
    if numeric and len(points) > 8 and ax.get_xscale() != "log":
        return
    labels = [drawable(shown(value), 14) for value, _ in points]
    crowded = sum(map(len, labels)) > 26
    ax.set_xticks(
        [x for _, x in points], labels, rotation=35 if crowded else 0, ha="right" if crowded else "center"
    )
    if crowded:
        for label in ax.get_xticklabels():
            label.set_rotation_mode("anchor")


def _levels(ax: Any, ablation: Ablation, controls: Sequence[Arm]) -> None:
    """The identity arm as a band, controls as lines."""
    if ablation.identity is not None and ablation.identity.row.score.value is not None:
        score = ablation.identity.row.score
        if score.low is not None:
            ax.axhspan(score.low, score.high, color=BAND, alpha=0.6, linewidth=0, zorder=0)
        ax.axhline(score.value, color=DIM, linewidth=1.0, zorder=1)
    for arm, colour in zip(controls, CONTROLS, strict=False):
        ax.axhline(arm.row.score.value, color=colour, linewidth=1.0, linestyle=(0, (4, 2)), zorder=2)


def _name_levels(ax: Any, ablation: Ablation, controls: Sequence[Arm]) -> None:
    """Beside the last panel, without overlap; arms with one score share a line."""
    named: dict[float, list[tuple[str, str]]] = {}
    if ablation.identity is not None and ablation.identity.row.score.value is not None:
        named[round(ablation.identity.row.score.value, 6)] = [(PLAIN, DIM)]
    for arm, colour in zip(controls, CONTROLS, strict=False):
        named.setdefault(round(_of(arm.row.score.value), 6), []).append((arm.label, colour))
    labels = [(level, name, colour) for level, names in sorted(named.items()) for name, colour in names]
    low, high = ax.get_ylim()
    heights = spread([level for level, _, _ in labels], 0.062 * (high - low))
    right = ax.get_yaxis_transform()
    for (level, name, colour), height in zip(labels, heights, strict=True):
        ax.plot([1.0, 1.05], [level, height], transform=right, color=colour, linewidth=0.6, clip_on=False)
        ink = WRITTEN.get(colour, colour)
        ax.text(1.065, height, drawable(name, 26), transform=right, color=ink, fontsize=7, va="center")


def _room(ax: Any, ablation: Ablation, arms: Sequence[Arm]) -> None:
    """The y axis spans what is drawn, with a little air; a share's stays within 0 and 1 and that air."""
    identity = [ablation.identity] if ablation.identity is not None else []
    scores = [arm.row.score for arm in (*arms, *identity)]
    ends = [end for score in scores for end in (score.value, score.low, score.high) if end is not None]
    if ends:
        air = 0.06 * (max(ends) - min(ends) or abs(max(ends)) or 1)
        ax.set_ylim(min(ends) - air, max(ends) + air)


# ---------------------------------------------------------------- maps of two knobs


def _maps(ablation: Ablation, one: Family, arms: Sequence[Arm]) -> Any:
    import matplotlib as mpl
    from matplotlib.cm import ScalarMappable

    panels = one.panels
    across = min(ACROSS, len(panels))
    down = -(-len(panels) // across)
    rows, columns = (ordered([each[knob] for each in one.values]) for knob in panels[0].knobs)
    wide, high = max(1.6, 0.52 * len(columns)), max(0.9, 0.34 * len(rows))
    figure = _figure(across * (wide + 0.75) + 1.1, down * (high + 0.75) + 0.9)
    axes = figure.subplots(down, across, squeeze=False)
    gains = ablation.identity is not None and any(arm.gain is not None for arm in arms)
    values = [_of(_mapped(arm, gains)) for arm in arms if _mapped(arm, gains) is not None]
    if gains:
        most = max(map(abs, values), default=1) or 1
        norm, colours = mpl.colors.Normalize(-most, most), mpl.colormaps["PuOr_r"]
    else:
        norm, colours = mpl.colors.Normalize(min(values), max(values)), mpl.colormaps["cividis"]
    for place, ax in enumerate(axes.flat):
        if place >= len(panels):
            ax.set_visible(False)
            continue
        panel = panels[place]
        for member in panel.members:
            value = _mapped(arms[member], gains)
            x = columns.index(one.values[member][panel.knobs[1]])
            y = rows.index(one.values[member][panel.knobs[0]])
            if value is None:
                continue
            shade = colours(norm(value))
            ax.add_patch(
                mpl.patches.Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=shade, edgecolor="white", lw=1)
            )
            best = ablation.best is not None and arms[member].row.path == ablation.best.arm.row.path
            light = 0.299 * shade[0] + 0.587 * shade[1] + 0.114 * shade[2] > 0.55
            ax.text(
                x, y, cell(arms[member], scale(ablation)), ha="center", va="center", fontsize=6.5,
                color=INK if light else "white", weight="bold" if best else "normal",
            )  # fmt: skip
            if best:
                ax.add_patch(
                    mpl.patches.Rectangle((x - 0.46, y - 0.46), 0.92, 0.92, fill=False, edgecolor=INK, lw=1.4)
                )
        ax.set_xlim(-0.5, len(columns) - 0.5)
        ax.set_ylim(-0.5, len(rows) - 0.5)
        ax.set_xticks(range(len(columns)), [drawable(shown(value), 12) for value in columns])
        ax.set_yticks(range(len(rows)), [drawable(shown(value), 12) for value in rows])
        ax.tick_params(length=0)
        for spine in ax.spines.values():
            spine.set_visible(False)
        if place % across == 0:
            ax.set_ylabel(drawable(panel.knobs[0]))
        if place + across >= len(panels):
            ax.set_xlabel(drawable(panel.knobs[1]))
        if panel.held:
            ax.set_title(drawable(panel.held), loc="left")
    what = f"difference to {PLAIN}" if gains else drawable(ablation.number)
    bar = figure.colorbar(ScalarMappable(norm, colours), ax=list(axes.flat), shrink=0.9, aspect=18, pad=0.02)
    bar.set_label(what, fontsize=7)
    bar.outline.set_visible(False)
    notes = ["* told apart from 0, all cells considered (95 %)"] if gains else []
    notes.append("framed: the best cell")
    two = f"{panels[0].knobs[0]} × {panels[0].knobs[1]}"
    _frame(figure, f"{ablation.task} · {one.name}: {two}", ablation, notes)
    return figure


def _mapped(arm: Arm, gains: bool) -> float | None:
    if not gains:
        return arm.row.score.value
    return arm.gain.value if arm.gain is not None else None


# ---------------------------------------------------------------- gain against cost


@dataclass(frozen=True)
class Spot:
    """A point of gain against cost, in shares of the axes' width and height: where it stands, its whisker's
    ends, and where its name begins (`side` "left" of it: ends), if there is room for one. arm: None for the
    identity arm. cost, gain: what it stands for; x: that cost, moved aside where others have it too."""

    arm: Arm | None
    cost: float
    gain: Estimate
    at: tuple[float, float]
    ends: tuple[float, float]
    name: str = ""
    label: tuple[float, float] | None = None
    side: Literal["left", "right"] = "right"


@dataclass(frozen=True)
class Field:
    """The axes of gain against cost. x, y: their ends (x as its logarithm, if log)."""

    spots: tuple[Spot, ...]
    log: bool
    x: tuple[float, float]
    y: tuple[float, float]

    def cost(self, share: float) -> float:
        """What stands at a share of the width."""
        value = self.x[0] + share * (self.x[1] - self.x[0])
        return 10**value if self.log else value

    def gain(self, share: float) -> float:
        return self.y[0] + share * (self.y[1] - self.y[0])


def field(ablation: Ablation) -> Field | None:
    """The points of gain against cost and the places of their names; None where nothing has both."""
    points: list[tuple[float, Estimate, Arm | None]] = [(1.0, Estimate(0.0, None, None), None)]
    for arm in ablation.arms:
        cost = getattr(arm.row.times, ablation.cost or "", None)
        if cost and arm.row.difference is not None and arm.row.difference.value is not None:
            points.append((float(cost), arm.row.difference, arm))
    if len(points) == 1:
        return None
    costs = [cost for cost, _, _ in points]
    log = max(costs) >= 10 * min(costs)
    scaled = {cost: math.log10(cost) if log else cost for cost in costs}
    span = (max(scaled.values()) - min(scaled.values())) or 1.0
    x = (min(scaled.values()) - 0.05 * span, max(scaled.values()) + 0.42 * span)
    ends = [end for _, gain, _ in points for end in (gain.value, gain.low, gain.high) if end is not None]
    air = 0.07 * (max(ends) - min(ends) or 1)
    y = (min(ends) - air, max(ends) + air)

    def high(value: float | None) -> float:
        return (_of(value) - y[0]) / (y[1] - y[0])

    spots = []
    for group in _near(points, lambda cost: (scaled[cost] - x[0]) / (x[1] - x[0])):
        for place, (cost, gain, arm) in enumerate(group):
            shift = (place - (len(group) - 1) / 2) * min(0.011, 0.06 / len(group)) if arm is not None else 0.0
            at = (scaled[cost] - x[0]) / (x[1] - x[0]) + shift
            low, up = (end if end is not None else gain.value for end in (gain.low, gain.high))
            name = PLAIN if arm is None else drawable(arm.label, 34)
            spots.append(Spot(arm, cost, gain, (at, high(gain.value)), (high(low), high(up)), name))
    return Field(tuple(_labelled(ablation, spots, high(0.0))), log, x, y)


def _near(points: Sequence[Any], across: Callable[[float], float]) -> list[list[Any]]:
    """Points in groups of nearly one cost, the higher gain to the right."""
    groups: list[list[Any]] = []
    for point in sorted(points, key=lambda point: point[0]):
        if groups and across(point[0]) - across(groups[-1][0][0]) < 0.035:
            groups[-1].append(point)
        else:
            groups.append([point])
    return [sorted(group, key=lambda point: _of(point[1].value)) for group in groups]


def _labelled(ablation: Ablation, spots: Sequence[Spot], zero: float) -> Iterator[Spot]:
    """Names where they hide nothing: the most telling first, and some not at all where it is crowded."""
    taken = [(x - 0.011, y - 0.018, x + 0.011, y + 0.018) for x, y in (spot.at for spot in spots)]
    taken += [(spot.at[0] - 0.003, spot.ends[0], spot.at[0] + 0.003, spot.ends[1]) for spot in spots]
    taken.append((0.0, zero - 0.004, 1.0, zero + 0.004))
    labels: dict[int, tuple[tuple[float, float], Literal["left", "right"]]] = {}
    for place in sorted(range(len(spots)), key=lambda place: _telling(ablation, spots, spots[place])):
        wide, tall = 0.0106 * len(spots[place].name) + 0.01, 0.034
        for (x, y), side in _places(spots, spots[place]):
            box = (
                x if side == "right" else x - wide,
                y - tall / 2,
                x + wide if side == "right" else x,
                y + tall / 2,
            )
            inside = box[0] >= 0 and box[2] <= 1.0 and box[1] >= 0 and box[3] <= 1
            if inside and not any(_overlap(box, other) for other in taken):
                labels[place] = (x, y), side
                taken.append(box)
                break
    for place, spot in enumerate(spots):
        where, side = labels.get(place, (None, "right"))
        yield replace(spot, label=where, side=side)


def _telling(ablation: Ablation, spots: Sequence[Spot], spot: Spot) -> tuple[int, float]:
    """The best, the identity arm, controls, what no cheaper one betters, and the rest from the top."""
    arm = spot.arm
    if arm is not None and ablation.best is not None and arm.row.path == ablation.best.arm.row.path:
        return 0, 0.0
    if arm is None or arm.part == "control" or arm.row.oracle:
        return 1 if arm is None else 2, -spot.at[1]
    sign = 1 if ablation.higher_is_better else -1
    bettered = any(
        other.cost <= spot.cost and sign * other.at[1] > sign * spot.at[1]
        for other in spots
        if other.arm is not arm
    )
    return 4 if bettered else 3, -sign * spot.at[1]


def _places(
    spots: Sequence[Spot], spot: Spot
) -> Iterator[tuple[tuple[float, float], Literal["left", "right"]]]:
    """Where a name may begin, the best first: beside its point or its neighbours, then higher or lower."""
    x, y = spot.at
    beside = [other.at[0] for other in spots if abs(other.at[0] - x) < 0.05]
    for step in (0.0, 0.036, -0.036, 0.072, -0.072, 0.108, -0.108, 0.144, -0.144):
        yield (x + 0.018, y + step), "right"
        yield (max(beside) + 0.026, y + step), "right"
        yield (min(beside) - 0.026, y + step), "left"


def _overlap(one: Sequence[float], other: Sequence[float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _scatter(ablation: Ablation) -> Any:
    found = field(ablation)
    assert found is not None, "figures() asks first"
    figure = _figure(6.4, 4.2)
    ax = figure.subplots()
    if found.log:
        ax.set_xscale("log")
    ax.set_xlim(found.cost(0), found.cost(1))
    ax.set_ylim(*found.y)
    ax.axhline(0, color=DIM, linewidth=0.8, zorder=0)
    ax.axvline(1, color=BAND, linewidth=0.8, zorder=0)
    for spot in found.spots:
        colour = DIM if spot.arm is None else _colour(spot.arm)
        x, y = found.cost(spot.at[0]), _of(spot.gain.value)
        _whisker(ax, x, spot.gain, colour)
        if spot.arm is None:
            ax.plot([x], [y], marker="D", color=DIM, markersize=5, zorder=5)
        else:
            _dot(ax, x, y, spot.arm, colour)
        if spot.label is not None:
            best = (
                spot.arm is not None
                and ablation.best is not None
                and spot.arm.row.path == ablation.best.arm.row.path
            )
            ends = [spot.at, (spot.label[0] + (-0.003 if spot.side == "right" else 0.003), spot.label[1])]
            ax.plot(
                *zip(*ends, strict=True), transform=ax.transAxes, color=colour, lw=0.5, alpha=0.7, zorder=2
            )
            ax.text(
                *spot.label, spot.name, transform=ax.transAxes, color=WRITTEN.get(colour, colour), fontsize=7,
                va="center", ha="left" if spot.side == "right" else "right",
                weight="bold" if best else "normal",
            )  # fmt: skip
    costs = [spot.cost for spot in found.spots]
    ticks = _times_ticks(min(costs), max(costs), found.log)
    ax.set_xticks(ticks, [f"× {tick:g}" for tick in ticks])
    ax.minorticks_off()
    ax.set_xlabel(f"cost per sample: {COSTS[str(ablation.cost)]}, × those of {PLAIN}")
    ax.set_ylabel(f"{drawable(ablation.number, 24)}, difference to {PLAIN}")
    notes = ["whiskers: 95 % intervals of the paired difference", "bold: the best cell"]
    notes.append("points of nearly one cost stand side by side")
    if any(spot.arm is not None and spot.arm.row.oracle for spot in found.spots):
        notes.append("hollow: was told where the answer is")
    named = sum(spot.label is not None for spot in found.spots)
    if named < len(found.spots):
        notes.append(f"{len(found.spots) - named} points have no name for want of room")
    _frame(figure, f"{ablation.task}: what each method gains, against what it costs", ablation, notes)
    return figure


def _times_ticks(low: float, high: float, log: bool) -> list[float]:
    """Round ratios: 1, 2, 4, ... or 1, 2, 5, 10, ..."""
    if log:
        marks = [mark * 10.0**power for power in range(-3, 6) for mark in (1, 2, 5)]
        found = [mark for mark in marks if low / 1.3 <= mark <= high * 1.3]
        return found if len(found) <= 8 else [mark for mark in found if f"{mark:e}"[0] == "1"]
    step = next(s for s in (0.1, 0.2, 0.5, 1, 2, 5) if (high - low) / s <= 7 or s == 5)
    first = round(low / step)
    return [round(step * (first + n), 6) for n in range(int((high - first * step) / step) + 2)]


# ---------------------------------------------------------------- every arm


def _list(ablation: Ablation) -> Any:
    sign = 1 if ablation.higher_is_better else -1
    arms = [arm for arm in ablation.arms if arm.row.score.value is not None]
    arms.sort(key=lambda arm: sign * _of(arm.row.score.value), reverse=True)
    left_out = arms[LISTED:]
    arms = arms[:LISTED]
    gains = any(arm.gain is not None for arm in arms)
    figure = _figure(6.4 if gains else 4.8, 0.2 * len(arms) + 1.35)
    axes = figure.subplots(1, 2 if gains else 1, sharey=True, squeeze=False)[0]
    best = ablation.best.arm.row.path if ablation.best is not None else None
    identity = ablation.identity
    if identity is not None and identity.row.score.low is not None:
        axes[0].axvspan(identity.row.score.low, identity.row.score.high, color=BAND, alpha=0.6, linewidth=0)
    for y, arm in enumerate(arms):
        colour = _colour(arm)
        _whisker(axes[0], y, arm.row.score, colour, flat=True)
        _dot(axes[0], _of(arm.row.score.value), y, arm, colour)
        if gains and arm.gain is not None:
            _whisker(axes[1], y, arm.gain, colour, flat=True, width=0.7)
            if arm.row.difference is not None:
                _whisker(axes[1], y, arm.row.difference, colour, flat=True, width=2.4)
            _dot(axes[1], _of(arm.gain.value), y, arm, colour)
    names = [drawable(arm.label + _aside(arm), LETTERS) for arm in arms]
    axes[0].set_yticks(range(len(arms)), names)
    for label, arm in zip(axes[0].get_yticklabels(), arms, strict=True):
        label.set_weight("bold" if arm.row.path == best else "normal")
        label.set_color(DIM if arm.part == "identity" or not arm.row.complete else INK)
    axes[0].set_ylim(len(arms) - 0.4, -0.6)
    axes[0].set_xlabel(_axis(ablation).replace("\n", " "))
    for ax in axes:
        ax.tick_params(axis="y", length=0)
        ax.grid(axis="y", color="#EEEEEE", linewidth=0.6, zorder=0)
        ax.set_axisbelow(True)
    notes = ["95 % intervals (bootstrap over images)"]
    if gains:
        axes[1].axvline(0, color=DIM, linewidth=0.8)
        axes[1].set_xlabel(f"difference to {PLAIN}")
        notes.append("right: thick for each difference by itself, thin for all of them at once")
    if best is not None:
        notes.append("bold: the best cell")
    if any(arm.row.oracle for arm in arms):
        notes.append("hollow: was told where the answer is")
    if left_out:
        notes.append(f"{len(left_out)} arms that score less are not shown")
    _frame(figure, f"{ablation.task}: every {'cell' if ablation.model else 'model'}", ablation, notes)
    return figure


def _aside(arm: Arm) -> str:
    """Why an arm is set apart, where its name does not say so."""
    return f" ({arm.row.note})" if arm.row.note and arm.row.note not in arm.label else ""


# ---------------------------------------------------------------- marks


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.04, h_pad=0.05))
    FigureCanvasAgg(figure)
    return figure


def _frame(figure: Any, title: str, ablation: Ablation, notes: Sequence[str]) -> None:
    """The title, and beneath the figure what was measured, on how much, and how to read it."""
    width = figure.get_size_inches()[0]
    best = ""
    if ablation.best is not None:
        score = number(ablation.best.score, [ablation.best.score.value])
        best = f"; best: {ablation.best.arm.label}, {score} with all cells considered"
    said = f"{ablation.title}; {ablation.metric} {ablation.number}; n = {ablation.n}{best}. "
    said += "; ".join(notes).capitalize() if not notes[0].startswith("*") else "; ".join(notes)
    letters = int(width * 19)
    figure.suptitle(drawable(title, 90), x=0.012, ha="left", fontsize=9.5, weight="bold")
    lines = textwrap.wrap(drawable(said + ".", 600), letters)
    figure.supxlabel("\n".join(lines), x=0.012, ha="left", fontsize=6.5, color=DIM, linespacing=1.35)


def _colour(arm: Arm) -> str:
    if arm.part == "identity":
        return DIM
    if arm.row.oracle:
        return INK
    return ORANGE if arm.part == "control" else BLUE


def _whisker(
    ax: Any, at: float, estimate: Estimate, colour: str, *, flat: bool = False, width: float = 1.2
) -> None:
    if estimate.low is None or estimate.high is None:
        return
    ends = [estimate.low, estimate.high]
    here = [at, at]
    ax.plot(
        *((ends, here) if flat else (here, ends)),
        color=colour,
        linewidth=width,
        solid_capstyle="butt",
        zorder=3,
    )


def _dot(ax: Any, x: float, y: float, arm: Arm, colour: str = BLUE) -> None:
    colour = INK if arm.row.oracle else colour
    if arm.centre:
        ax.plot(
            [x],
            [y],
            "o",
            markersize=8.5,
            markerfacecolor="none",
            markeredgecolor=INK,
            markeredgewidth=0.9,
            zorder=4,
        )
    marker = "D" if arm.part == "identity" else "s" if arm.part == "control" else "o"
    ax.plot(
        [x], [y], marker, markersize=4.6, zorder=5, markeredgewidth=1.1,
        markerfacecolor="white" if arm.row.oracle else colour, markeredgecolor=colour,
    )  # fmt: skip


def _axis(ablation: Ablation) -> str:
    return (
        f"{drawable(ablation.number, 24)}\n({'higher' if ablation.higher_is_better else 'lower'} is better)"
    )


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Heights, in rising order, moved apart until they are `gap` apart, as little as possible.

    >>> spread([0.0, 0.1, 5.0], 1.0)
    [-0.45, 0.55, 5.0]
    """
    groups: list[tuple[float, int]] = []  # mean, and how many stand around it
    for height in heights:
        groups.append((height, 1))
        while len(groups) > 1:
            (one, some), (other, more) = groups[-2:]
            if other - (more - 1) / 2 * gap - (one + (some - 1) / 2 * gap) >= gap - 1e-12:
                break
            groups[-2:] = [((one * some + other * more) / (some + more), some + more)]
    return [mean + (place - (number - 1) / 2) * gap for mean, number in groups for place in range(number)]


def drawable(text: str, longest: int = LETTERS) -> str:
    """One line that the font can write; a letter that it lacks becomes its number."""
    known = _letters()
    text = plain_text(text, longest)
    written = "".join(letter if ord(letter) in known else f"\\u{ord(letter):04x}" for letter in text)
    return plain_text(written, longest)


@cache
def _letters() -> frozenset[int]:
    from matplotlib.font_manager import findfont, get_font

    return frozenset(get_font(findfont("DejaVu Sans")).get_charmap())


def _of(value: float | None, other: float | None = None) -> float:
    """A number that is known to be there."""
    known = value if value is not None else other
    return float("nan") if known is None else known
