"""A page of words and pictures, set in pixels from its top left corner and as long as what is on it.

Knows lines, widths and matplotlib. What the words mean, it does not; they are data: never mathtext, cut
where they are long, without control characters.
"""

from __future__ import annotations

import unicodedata
import warnings
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL import Image

RIGHT, WRONG, PARTLY, BOX, TARGET, DIM = "#1a7f37", "#cf222e", "#9a6700", "#0969da", "#e16f24", "#59636e"
WIDTH, PANEL, EDGE = 1600, 640, 40  # pixels: the page, a panel's side, the rim
LINES, LETTERS = 6, 125  # of one text, at most
LONGEST = 500  # letters of a line, whatever their width: marks that combine have none
DPI = 100


class Page:
    """What is set on a page, and `figure`, which draws it. Lengths and places in pixels, y downwards."""

    def __init__(self) -> None:
        self._set: list[Callable[[Figure, float], Any]] = []

    def text(
        self, x: float, y: float, words: str, size: float = 13, colour: str = "black", **font: Any
    ) -> None:
        """A line whose top is at y. font: `weight`, `style`, `ha`, as matplotlib takes them."""
        self._set.append(
            lambda figure, height: figure.text(
                x / WIDTH, 1 - y / height, words, color=colour, fontsize=size, va="top", **font
            )
        )

    def paragraph(
        self,
        x: float,
        y: float,
        width: float,
        words: str,
        size: float = 13,
        colour: str = "black",
        lines: int = LINES,
        **font: Any,
    ) -> float:
        """Lines no wider than `width`; where the next may begin."""
        set_ = wrapped(words, width, lines, ruler(size, font.get("weight", "normal")))
        for number, line in enumerate(set_):
            cut = number == lines
            self.text(x, y, line, size, DIM if cut else colour, **font)
            y += leading(size)
        return y

    def block(self, x: float, y: float, width: float, high: float, colour: str) -> None:
        """A filled rectangle, under what is set later."""
        from matplotlib.patches import Rectangle

        def draw(figure: Figure, height: float) -> None:
            corner = (x / WIDTH, 1 - (y + high) / height)
            style: Any = {"facecolor": colour, "edgecolor": "none", "transform": figure.transFigure}
            figure.add_artist(Rectangle(corner, width / WIDTH, high / height, **style))

        self._set.append(draw)

    def panel(self, x: float, y: float, width: float, high: float, draw: Callable[[Axes], None]) -> None:
        """A place for a drawing."""

        def add(figure: Figure, height: float) -> None:
            draw(figure.add_axes((x / WIDTH, 1 - (y + high) / height, width / WIDTH, high / height)))

        self._set.append(add)

    def figure(self, height: float) -> Figure:
        import matplotlib
        from matplotlib.figure import Figure

        with matplotlib.rc_context(
            {"text.usetex": False, "text.parse_math": False, "font.family": "DejaVu Sans"}
        ):
            figure = Figure(figsize=(WIDTH / DPI, height / DPI), dpi=DPI)
            for draw in self._set:
                draw(figure, height)
        return figure


# ---------------------------------------------------------------- words


def wrapped(
    text: str, room: float = LETTERS, lines: int = LINES, width: Callable[[str], float] | None = None
) -> list[str]:
    """A text as lines that fit into `room`, without control characters, one more saying what was left out.

    width: of a text; how many letters it has, unless given.

    >>> wrapped("a\\x07b\\n$x^2$")
    ['a b $x^2$']
    >>> wrapped("one two three four", room=9, lines=1)
    ['one two', '… and 10 more characters']
    """
    width = width or _letters
    words = deque(plain(text).split())
    out: list[str] = []
    while words and len(out) < lines:
        line, used = [], -width(" ")
        while words and len(words[0]) <= LONGEST and used + width(" ") + width(words[0]) <= room:
            used += width(" ") + width(words[0])
            line.append(words.popleft())
        if not line:  # a word that is wider than a line
            word = words.popleft()
            kept = bisect_right(range(1, min(LONGEST, len(word)) + 1), room, key=lambda n: width(word[:n]))
            line = [word[: max(1, kept)]]
            if rest := word[max(1, kept) :]:
                words.appendleft(rest)
        out.append(" ".join(line))
    if words:
        out.append(f"… and {len(' '.join(words)):,} more characters")
    return out or [""]


def plain(text: str) -> str:
    """On one line, without control characters."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def _letters(text: str) -> int:
    """How many letters' room it takes; the wide ones of East Asia take two."""
    return len(text) + sum(unicodedata.east_asian_width(letter) in "WF" for letter in text)


def leading(size: float) -> float:
    """Pixels from one line to the next, of letters of `size` points."""
    return round(size * DPI / 72 * 1.33)


@cache
def ruler(size: float, weight: str = "normal") -> Callable[[str], float]:
    """Measures a text in pixels, set in letters of `size` points."""
    from matplotlib.backends.backend_agg import RendererAgg
    from matplotlib.font_manager import FontProperties

    renderer, font = RendererAgg(1, 1, DPI), FontProperties("DejaVu Sans", size=size, weight=weight)

    @lru_cache(10_000)
    def width(text: str) -> float:
        with quiet():
            return float(renderer.get_text_width_height_descent(text, font, ismath=False)[0])

    return width


@contextmanager
def quiet() -> Iterator[None]:
    """No warning about a script that the font lacks: its letters are drawn as boxes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        yield


# ---------------------------------------------------------------- drawings


def small(image: Image.Image) -> Image.Image:
    """No larger than is worth drawing."""
    image = image.copy()
    image.thumbnail((2 * PANEL, 2 * PANEL))
    return image


def title(axes: Axes, text: str, colour: str = DIM) -> None:
    axes.set_title(text, fontsize=11, color=colour, loc="left")


def bare(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])


def frame(axes: Axes, box: Any, colour: str, width: float, halo: str = "white", **style: Any) -> None:
    """Its halo makes it readable on any ground. style: of the coloured line, as matplotlib takes it."""
    from matplotlib.patches import Rectangle

    x1, y1, x2, y2 = (float(edge) for edge in box)
    for edge, line, how in ((halo, width + min(2, width), {}), (colour, width, style)):
        axes.add_patch(
            Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=edge, linewidth=line, **how)
        )
