"""A comparison as a table for the terminal."""

from __future__ import annotations

from rich.markup import escape
from rich.table import Table

from harness.stats import Estimate
from leaderboard.board import Comparison, Row


def table(comparison: Comparison) -> Table:
    """One line per run, best first; unranked runs are dim and say why. Dollars where any run has a price."""
    paid = any(row.usage.dollars != 0 for row in comparison.rows)
    arrow = "higher" if comparison.higher_is_better else "lower"
    out = Table(
        title=escape(f"{comparison.task} ({comparison.protocol})"),
        caption=escape(
            f"{comparison.metric} {comparison.number}, {arrow} is better; 95 % intervals (bootstrap over "
            "images); difference paired with the same model without a method; cost per sample"
            + ("; × plain: over the same model without a method" if paid else "")
        ),
        title_justify="left",
        caption_justify="left",
    )
    for heading in (
        "#",
        "model",
        "method",
        comparison.number,
        "difference",
        "scored",
        "calls",
        "tokens",
        "s",
        *(_MONEY if paid else ()),
    ):
        right = heading not in ("model", "method")
        out.add_column(heading, justify="right" if right else "left", no_wrap=right)
    for row in comparison.rows:
        money = _money(row) if paid else []
        out.add_row(*_cells(row), *money, style="dim" if row.rank is None else None)
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
                out.add_row(shown, escape(row.model), escape(row.method), _estimate(part))
                shown = ""
        out.add_section()
    return out


def groupings(comparison: Comparison) -> list[str]:
    """The names by which the comparison can be broken down."""
    return sorted({name for row in comparison.rows for name in row.breakdowns})


def _cells(row: Row) -> list[str]:
    usage = row.usage
    tokens = row.per_sample(usage.tokens_in + usage.tokens_out)
    note = f" ({row.note})" if row.note else ""
    return [
        str(row.rank) if row.rank else "–",
        escape(row.model),
        escape(row.method + note),
        _estimate(row.score),
        _estimate(row.difference, sign="+") if row.difference else "",
        f"{row.scored} of {row.n}",
        _number(row.per_sample(usage.calls), ".1f"),
        _number(tokens, ",.0f"),
        _number(row.per_sample(usage.seconds), ".3f"),
    ]


_MONEY = ("$", "× plain", "$ in all")


def _money(row: Row) -> list[str]:
    """Dollars per sample, that over the identity arm's, dollars of the run. Unknown is not nothing."""
    total = row.usage.dollars
    if total is None:
        return ["unknown", "", "unknown"]
    return [_number(row.per_sample(total), ".5f"), _number(row.cost_ratio, ".2f"), f"{total:.4f}"]


def _estimate(estimate: Estimate, sign: str = "") -> str:
    if estimate.value is None:
        return "undefined"
    text = format(estimate.value, f"{sign}.3f")
    if estimate.low is not None:
        text += f" [{estimate.low:{sign}.3f}, {estimate.high:{sign}.3f}]"
    return escape(text)


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
