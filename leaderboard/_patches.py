"""The parts that a caption was put together from, drawn: frames over the picture, and a card for each.

Knows the values of `_parts.py` and where they go on a page. What is more than a page would hold is cut,
and says so.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from harness.types import Box
from leaderboard._page import DIM, EDGE, RIGHT, Page, bare, frame, leading, ruler, small
from leaderboard._parts import Part, Parts, Sentence

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL import Image

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#8C6BB1", "#F0E442")
"""Okabe and Ito's, which colour-blind readers can tell apart too, without black, and one more."""
DARK, RULE, GREY = "#1f2328", "#d1d9e0", "#8c959f"
KINDS = ("consistent", "contradictory", "unique")
PARTS, CANDIDATES, SENTENCES, PROPOSALS, WARNINGS = 12, 8, 30, 60, 12  # shown, at most
COLUMN, GAP = 740, 40  # pixels
THUMB = (200, 150)


# ---------------------------------------------------------------- over the picture


def outline(axes: Axes, parts: Parts, size: tuple[int, int]) -> str:
    """The proposals, thin and grey; each patch in its colour; each pair in its patches' two, dashed. What
    is drawn, in words.

    Frames lie a little inside each other, so that none hides another.
    """
    from matplotlib.patheffects import withStroke

    if parts.size is not None and parts.size != size:
        return "the parts are of a picture of another size: {:.0f} × {:.0f} px".format(*parts.size)

    step = 5 * max(size[0] / COLUMN, size[1] / 640)  # pixels of the picture
    for box, label in parts.proposals[:PROPOSALS]:
        x1, y1, x2, y2 = _within(box, size)
        frame(axes, (x1, y1, x2, y2), "#c8ced4", 0.8, halo="#57606a")
        text = axes.text(x1 + step, y2 - step, _short(label, 30), fontsize=8, color="#e6eaef", clip_on=True)
        text.set_path_effects([withStroke(linewidth=2.5, foreground="#424a53")])
    taken: list[tuple[float, float]] = []
    for number, part in enumerate(shown(parts)):
        if part.box is None:
            continue
        x1, y1, x2, y2 = _within(part.box, size)
        inset = min((number + 0.6) * step, (x2 - x1) / 3, (y2 - y1) / 3)
        inner = (x1 + inset, y1 + inset, x2 - inset, y2 - inset)
        colours = colours_of(part, parts)
        width = 2.2 if part.of is None else 1.6
        frame(axes, inner, colours[0], width)
        if part.of is not None:
            frame(axes, inner, colours[-1], width, halo="none", linestyle=(0, (5, 5)))
        spot = _free(inner, taken, size, corners=part.of is None)
        taken.append(spot)
        _label(axes, spot, inner, part, colours)
    told = [f"{len(parts.patches)} patches"]
    told += [f"grey: {len(parts.proposals)} proposals"] if parts.proposals else []
    told += [f"dashed: {len(parts.pairs)} overlapping"] if parts.pairs else []
    return "   ·   ".join(told)


def _label(axes: Axes, spot: tuple[float, float], box: Box, part: Part, colours: Sequence[str]) -> None:
    """The part's name at a spot on the edge of its box, inside it."""
    x1, y1, x2, y2 = box
    across = "left" if spot[0] == x1 else "right" if spot[0] == x2 else "center"
    upright = "top" if spot[1] == y1 else "bottom" if spot[1] == y2 else "center"
    fill = colours[0] if part.of is None else DARK
    axes.text(
        *spot,
        _short(part.name, 20),
        fontsize=12,
        weight="bold",
        color=_ink(fill),
        ha=across,
        va=upright,
        clip_on=True,
        bbox={"boxstyle": "square,pad=0.28", "facecolor": fill, "edgecolor": "white", "linewidth": 1},
    )


def _free(
    box: Box, taken: Sequence[tuple[float, float]], size: tuple[int, int], *, corners: bool
) -> tuple[float, float]:
    """Where a label may stand: the corner (or the middle of an edge) farthest out that has room."""
    x1, y1, x2, y2 = box
    x, y = (x1 + x2) / 2, (y1 + y2) / 2
    spots = [(x1, y1), (x2, y1), (x1, y2), (x2, y2)] if corners else [(x, y2), (x, y1), (x1, y), (x2, y)]
    room = 0.12 * max(size)

    def order(spot: tuple[float, float]) -> tuple[bool, float]:
        near = min((math.dist(spot, other) for other in taken), default=math.inf)
        out = math.dist(spot, (size[0] / 2, size[1] / 2))
        return (near < room, -out if near >= room else -near)

    return min(spots, key=order)


def _within(box: Box, size: tuple[int, int]) -> Box:
    """What of a box lies in the picture; it may be empty."""
    (x1, y1, x2, y2), (width, height) = box, size
    return min(max(x1, 0), width), min(max(y1, 0), height), min(max(x2, 0), width), min(max(y2, 0), height)


def shown(parts: Parts) -> tuple[Part, ...]:
    """As many as are drawn."""
    return (parts.patches + parts.pairs)[:PARTS]


def colours_of(part: Part, parts: Parts) -> list[str]:
    """A patch's colour, or those of a pair's two."""
    own = {patch.name: COLOURS[place % len(COLOURS)] for place, patch in enumerate(parts.patches)}
    return [own.get(name, GREY) for name in part.of or (part.name,)]


def _ink(fill: str) -> str:
    """Black or white, whichever can be read on it."""
    red, green, blue = (int(fill[at : at + 2], 16) for at in (1, 3, 5))
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 150 else "white"


def _short(text: str, letters: int) -> str:
    return text if len(text) <= letters else text[: letters - 1] + "…"


# ---------------------------------------------------------------- below it


def cards(page: Page, y: float, parts: Parts, image: Image.Image) -> float:
    """A card per patch and pair, two beside each other; where the page may go on."""
    drawn = shown(parts)
    pixels = image if parts.size in (None, image.size) else None
    for first in range(0, len(drawn), 2):
        ends = [
            _card(page, EDGE + column * (COLUMN + GAP), y, part, colours_of(part, parts), pixels)
            for column, part in enumerate(drawn[first : first + 2])
        ]
        y = max(ends) + GAP
    more = len(parts.patches) + len(parts.pairs) - len(drawn)
    if more:
        y = page.paragraph(EDGE, y, COLUMN, f"… and {more:,} more parts", 12, DIM)
    return y


def _card(
    page: Page, x: float, y: float, part: Part, colours: Sequence[str], image: Image.Image | None
) -> float:
    """A part: what was made of it, its pixels, what was said of them, and what became of each sentence."""
    half = COLUMN / len(colours)
    for place, colour in enumerate(colours):
        page.block(x + place * half, y, half, 5, colour)
    y += 14
    page.text(x, y, _short(part.name, 20), 15, DARK, weight="bold")
    name = ruler(15, "bold")(_short(part.name, 20))
    page.text(x + name + 16, y + 5, _geometry(part), 11, DIM)
    page.text(x + COLUMN, y + 5, _tally(part), 11, DIM, ha="right")
    y += leading(15) + 6
    left, below = x, y
    thumb = _thumb(page, x, y, part, image)
    if thumb:
        left, below = x + thumb[0] + 16, y + thumb[1] + 8
    caption = part.caption or "(no caption)"
    end = page.paragraph(left, y - 3, x + COLUMN - left, caption, 12, DARK if part.caption else DIM, lines=12)
    y = max(below, end + 6)
    y = _candidates(page, x, y, part)
    return _sentences(page, x, y, part)


def _geometry(part: Part) -> str:
    told = []
    if part.box is not None:
        x1, y1, x2, y2 = part.box
        told.append(f"{x2 - x1:.0f} × {y2 - y1:.0f} px at ({x1:.0f}, {y1:.0f})")
    if part.iou is not None:
        told.append(f"IoU {part.iou:.2f}")
    if part.like:
        told.append(f"the same pixels as {_short(part.like, 20)}")
    return "   ·   ".join(told)


def _tally(part: Part) -> str:
    kept = sum(sentence.kept for sentence in part.sentences)
    return f"{kept} kept, {len(part.sentences) - kept} dropped" if part.sentences else ""


def _thumb(
    page: Page, x: float, y: float, part: Part, image: Image.Image | None
) -> tuple[float, float] | None:
    """The part's pixels; how much room they took."""
    if image is None or part.box is None:
        return None
    x1, y1, x2, y2 = (round(edge) for edge in _within(part.box, image.size))
    if x2 <= x1 or y2 <= y1:
        return None
    crop = small(image.crop((x1, y1, x2, y2)))
    scale = min(THUMB[0] / (x2 - x1), THUMB[1] / (y2 - y1))
    size = max(1.0, scale * (x2 - x1)), max(1.0, scale * (y2 - y1))

    def draw(axes: Axes) -> None:
        axes.imshow(crop, aspect="auto")
        axes.spines[:].set_visible(False)
        bare(axes)

    page.panel(x, y, *size, draw)
    return size


def _candidates(page: Page, x: float, y: float, part: Part) -> float:
    if not part.candidates:
        return y
    page.text(x, y, "candidates", 10, DIM)
    y += leading(10) + 2
    for number, candidate in enumerate(part.candidates[:CANDIDATES], 1):
        page.text(x, y, str(number), 11, DIM, weight="bold")
        y = page.paragraph(x + 26, y, COLUMN - 26, candidate, 11, "#424a53", lines=4) + 3
    if len(part.candidates) > CANDIDATES:
        page.text(x + 26, y, f"… and {len(part.candidates) - CANDIDATES:,} more", 11, DIM)
        y += leading(11)
    return y + 6


def _sentences(page: Page, x: float, y: float, part: Part) -> float:
    """By kind: ✓ kept or – dropped (grey), which sentences of which candidate, the text, why, the score."""
    kinds = [*KINDS, *dict.fromkeys(one.kind for one in part.sentences if one.kind not in KINDS)]
    room = SENTENCES
    for kind in kinds:
        found = [one for one in part.sentences if one.kind == kind][:room]
        if not found:
            continue
        room -= len(found)
        reasons = {one.reason for one in found}
        shared = len(found) > 1 and len(reasons) == 1  # then once is enough
        page.text(
            x, y, _short("   ·   ".join([kind, *reasons] if shared and any(reasons) else [kind]), 80), 10, DIM
        )
        y += leading(10) + 2
        for sentence in found:
            y = _line(page, x, y, sentence, "" if shared else sentence.reason)
        y += 6
    if more := len(part.sentences) - (SENTENCES - room):
        page.text(x + 112, y, f"… and {more:,} more sentences", 11, DIM)
        y += leading(11)
    return y


def _line(page: Page, x: float, y: float, sentence: Sentence, reason: str) -> float:
    left, right = x + 112, x + COLUMN
    colour, mark = (DARK, RIGHT) if sentence.kept else (GREY, GREY)
    page.text(x, y, "✓" if sentence.kept else "–", 11, mark, weight="bold")
    page.text(x + 26, y + 2, _short(sentence.ids, 12), 9, GREY)
    if sentence.score is not None:
        page.text(right, y, f"{sentence.score:.2f}", 11, colour, ha="right")
    y = page.paragraph(left, y, right - 56 - left, sentence.text or "(nothing)", 11, colour, lines=3)
    if reason:
        y = page.paragraph(left, y - 2, right - 56 - left, reason, 9, GREY, 2, style="italic")
    return y + 3
