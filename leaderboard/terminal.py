"""A comparison as a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from harness.errors import FoveaError
from harness.stats import Estimate
from leaderboard.board import Comparison, Cost, Row
from leaderboard.published import Published

FOLDED = 18  # characters that a name keeps at least; the rest goes on the next line
GAP = 2  # between columns
STAR, SURE = "*", 0.05


@dataclass(frozen=True)
class _Column:
    """A heading and a cell per row. needed: how soon it is left out where there is no room; None is never."""

    heading: str
    cells: Sequence[str]
    needed: int | None = None
    folds: bool = False

    @property
    def width(self) -> int:
        lines = [line for cell in (self.heading, *self.cells) for line in cell.splitlines()]
        widest = max(map(cell_len, lines), default=0)
        return min(widest, FOLDED) if self.folds else widest


def table(comparison: Comparison, width: int = 160) -> Table:
    """One entry per run, best first; unranked runs are dim and say why. Dollars where any run has a price.

    An entry's second line is against the same model without a method: the paired difference, its p after
    correction, and how many times the cost. width: characters there are; the columns that say least are
    left out for it.
    """
    paid = any(row.usage.dollars != 0 for row in comparison.rows)
    columns = _fitting(_columns(comparison, paid), width)
    arrow = "higher" if comparison.higher_is_better else "lower"
    out = Table(
        title=escape(f"{comparison.task} ({comparison.protocol})"),
        caption=escape(
            f"{comparison.metric} {comparison.number}, {arrow} is better; 95 % intervals (bootstrap over "
            "images); cost per sample. Second lines: against the same model without a method, the paired "
            f"difference and × its cost{_tested(comparison)}"
        ),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )
    for column in columns:
        out.add_column(
            escape(column.heading),
            justify="left" if column.folds else "right",
            no_wrap=not column.folds,
            overflow="fold",
        )
    for place, row in enumerate(comparison.rows):
        out.add_row(
            *(_entry(column.cells[place]) for column in columns), style="dim" if row.rank is None else None
        )
    return out


def breakdown(comparison: Comparison, by: str) -> Table:
    """The comparison's number per value of a grouping: a section per value, a line per run."""
    out = Table(title=escape(f"{comparison.task} by {by}"), title_justify="left")
    for heading in (by, "model", "method"):
        out.add_column(heading)
    out.add_column(comparison.number, justify="right", no_wrap=True)
    rows = [row for row in comparison.rows if by in row.breakdowns]
    for value in sorted({value for row in rows for value in row.breakdowns[by]}):
        shown = escape(value)
        for row in rows:
            part = row.breakdowns[by].get(value)
            if part is not None:
                out.add_row(shown, escape(row.model), escape(row.method), escape(_estimate(part)))
                shown = ""
        out.add_section()
    return out


def reported(entries: Sequence[Published], number: str, higher_is_better: bool) -> Table:
    """What papers report of the same task, protocol and number: theirs, unranked, with how it is known.

    Of a paper's variations (an ablation's rows) only their number is told.
    """
    main = [entry for entry in entries if not entry.setting] or list(entries)
    rest = len(entries) - len(main)
    out = Table(
        title="reported by papers, not measured here",
        caption=escape(
            "read: in the paper itself; transcribed: in a copy of its table; digest: in a summary's prose"
            + (f". And {rest} variations of these in results/published" if rest else "")
        ),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        style="dim",
        row_styles=["dim"],
    )
    for heading in ("model", "method", number, "paper", "how it is known"):
        out.add_column(escape(heading), justify="right" if heading == number else "left", overflow="fold")
    for entry in main if higher_is_better else main[::-1]:
        unit = "" if entry.unit == "points" else f" {entry.unit}"
        table_of = f", table {entry.table}" if entry.table else ""
        known = "; ".join(filter(None, (entry.confidence, entry.note)))
        cells = (
            entry.model,
            entry.method,
            f"{entry.value:g}{unit}",
            f"{entry.paper}, {entry.venue}{table_of}",
        )
        out.add_row(*map(escape, (*cells, known)))
    return out


def groupings(comparison: Comparison) -> list[str]:
    """The names by which the comparison can be broken down."""
    return sorted({name for row in comparison.rows for name in row.breakdowns})


def require_groupings(comparisons: Sequence[Comparison], by: Sequence[str]) -> None:
    """FoveaError for a grouping that no comparison has."""
    present = {name for comparison in comparisons for name in groupings(comparison)}
    for name in by:
        if name not in present:
            known = ", ".join(sorted(present)) or "none"
            raise FoveaError(f"--by {name}: these runs have no such grouping; they have {known}")


# ---------------------------------------------------------------- the columns


def _columns(comparison: Comparison, paid: bool) -> list[_Column]:
    rows = comparison.rows
    found = [
        _Column("#", [str(row.rank) if row.rank else "–" for row in rows]),
        _Column("model", [row.model for row in rows], folds=True),
        _Column("method", [_lines(row.method, row.note and f"({row.note})") for row in rows], folds=True),
        _Column(f"{comparison.number}\ndifference", [_score(row) for row in rows]),
        _Column(*_scored(rows)),
        *_asked(rows),
        _Column(
            "seconds", [_lines(_amount(row.cost.seconds), _times(row, "seconds")) for row in rows], needed=1
        ),
    ]
    if paid:
        found += [
            _Column(
                "$", [_lines(_dollars(row.cost.dollars), _times(row, "dollars")) for row in rows], needed=4
            ),
            _Column("$ in all", [_dollars(row.usage.dollars) for row in rows], needed=0),
        ]
    return found


def _asked(rows: Sequence[Row]) -> list[_Column]:
    """Calls and tokens, where any run has some: a matcher has none."""
    if not any(row.usage.calls or row.usage.tokens_in or row.usage.tokens_out for row in rows):
        return []
    calls = [_lines(_amount(row.cost.calls), _times(row, "calls")) for row in rows]
    tokens = [_lines(_tokens(row.cost), _times(row, "tokens")) for row in rows]
    return [_Column("calls", calls, needed=3), _Column("tokens\nin + out", tokens, needed=2)]


def _fitting(columns: list[_Column], width: int) -> list[_Column]:
    """Without those that are needed least, until the rest fits."""
    while sum(column.width + GAP for column in columns) > width:
        spare = [column for column in columns if column.needed is not None]
        if not spare:
            break
        columns.remove(min(spare, key=lambda column: column.needed or 0))
    return columns


# ---------------------------------------------------------------- the cells


def _entry(cell: str) -> Text:
    """Its second line is dim."""
    first, *second = cell.split("\n")
    return Text.assemble(first, *(("\n" + line, "dim") for line in second))


def _lines(first: str, second: str) -> str:
    return f"{first}\n{second}" if second else first


def _score(row: Row) -> str:
    """A run that has not ended has no score yet. A star marks a difference that is not chance."""
    if not row.difference:
        return "" if row.status == "running" else _estimate(row.score)
    star = STAR if row.corrected is not None and row.corrected < SURE else " "
    return _lines(_estimate(row.score) + " ", _estimate(row.difference, sign="+") + star)


def _scored(rows: Sequence[Row]) -> tuple[str, list[str]]:
    """n of N, and p, where any row has one."""
    tested = any(row.corrected is not None for row in rows)
    return "scored\np" if tested else "scored", [
        _lines(f"{row.scored} of {row.n}", _chance(row.corrected)) for row in rows
    ]


def _chance(p: float | None) -> str:
    """
    >>> [_chance(p) for p in (0.00004, 0.0123, 0.9996, None)]
    ['<0.001', '0.012', '1.000', '']
    """
    return "" if p is None else "<0.001" if p < 0.001 else f"{p:.3f}"


def _tested(comparison: Comparison) -> str:
    """What the p and the star are, where there are any."""
    if all(row.corrected is None for row in comparison.rows):
        return ""
    return f"; p of a paired permutation test, Holm's correction over this table's; {STAR} p < {SURE}"


def _times(row: Row, name: str) -> str:
    """How many times the identity arm's cost, where that is known.

    `× 13`, `× 1.9`, `× 0.85`
    """
    value: float | None = getattr(row.times, name, None)
    return "" if value is None else f"× {value:,.{0 if value >= 9.95 else 1 if value >= 0.995 else 2}f}"


def _tokens(cost: Cost) -> str:
    if cost.tokens_in is None or cost.tokens_out is None:
        return ""
    return f"{_amount(cost.tokens_in)} + {_amount(cost.tokens_out)}"


def _amount(value: float | None) -> str:
    """In as few digits as say enough.

    >>> [_amount(value) for value in (0, 1, 13.44, 0.02512, 158.4, 4210, 31_000, 1_250_000, None)]
    ['0', '1', '13.4', '0.025', '158', '4.2k', '31k', '1.2M', '']
    """
    if value is None:
        return ""
    for size, name in ((1e6, "M"), (1e3, "k")):
        if value >= 0.9995 * size:
            return f"{value / size:.{1 if value < 9.95 * size else 0}f}{name}"
    if value == int(value):
        return f"{value:.0f}"
    return f"{value:.{0 if value >= 99.95 else 1 if value >= 9.95 else 2 if value >= 0.995 else 3}f}"


def _dollars(value: float | None) -> str:
    """Unknown is not nothing.

    >>> [_dollars(value) for value in (12.5, 0.2, 0.01234, 0.000042, 0.0, None)]
    ['12.50', '0.2000', '0.0123', '0.000042', '0', 'unknown']
    """
    if value is None:
        return "unknown"
    return "0" if value == 0 else f"{value:.{2 if value >= 1 else 4 if value >= 0.001 else 6}f}"


def _estimate(estimate: Estimate, sign: str = "") -> str:
    if estimate.value is None:
        return "undefined"
    text = format(estimate.value, f"{sign}.3f")
    if estimate.low is not None:
        text += f" [{estimate.low:{sign}.3f}, {estimate.high:{sign}.3f}]"
    return text
