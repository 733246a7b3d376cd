"""An ablation as tables: for the terminal, Markdown, CSV and LaTeX.

A line per cell with the value of every knob that varies; a matrix for two knobs that were crossed; and the
best cell in a sentence.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from harness.stats import Estimate
from leaderboard._ablation import ordered, plain_text, shown
from leaderboard.ablation import COSTS, PLAIN, Ablation, Arm

if TYPE_CHECKING:
    from pathlib import Path

    from rich.table import Table

LONGEST = 80  # letters of a name in a table


@dataclass(frozen=True)
class Sheet:
    """A table of texts. words: columns that are not numbers. bold, dim: places of rows, and of cells."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str
    words: int = 1
    bold: frozenset[int] = frozenset()
    dim: frozenset[int] = frozenset()
    strong: frozenset[tuple[int, int]] = field(default=frozenset())


def sheets(ablation: Ablation) -> Iterator[Sheet]:
    """The cells; then a matrix for each map of two knobs."""
    yield _cells(ablation)
    yield from _matrices(ablation)


def _cells(ablation: Ablation) -> Sheet:
    knobs = _knobs(ablation)
    values = _values(ablation)
    identity = ablation.identity is not None
    name = "method" if ablation.model else "model"
    headings = [name, *knobs, ablation.number]
    if identity:
        headings.append(f"difference to {PLAIN}")
        if ablation.cost is not None:
            headings.append(f"× {COSTS[ablation.cost]}")
    headings.append("scored")
    rows = []
    for arm in ablation.arms:
        row = [plain_text(_name(ablation, arm), LONGEST)]
        row += [plain_text(values.get(arm.row.path, {}).get(knob, ""), LONGEST) for knob in knobs]
        row.append(number(arm.row.score, scale(ablation)))
        if identity:
            row.append(_gain(arm, scale(ablation)))
            if ablation.cost is not None:
                row.append(ratio(getattr(arm.row.times, ablation.cost, None)))
        rows.append((*row, f"{arm.row.scored:,} of {arm.row.n:,}"))
    best = ablation.best.arm.row.path if ablation.best is not None else None
    return Sheet(
        ablation.title,
        tuple(headings),
        tuple(rows),
        caption(ablation),
        words=1 + len(knobs),
        bold=frozenset(n for n, arm in enumerate(ablation.arms) if arm.row.path == best),
        dim=frozenset(n for n, arm in enumerate(ablation.arms) if not arm.row.complete or arm.row.oracle),
    )


def caption(ablation: Ablation) -> str:
    """What the numbers are, and what the marks mean."""
    better = "higher" if ablation.higher_is_better else "lower"
    text = f"{ablation.metric} {ablation.number}, {better} is better; 95 % intervals (bootstrap over images)"
    if ablation.identity is not None:
        text += ". Differences are paired; their intervals hold for all cells at once; * has no 0 in it"
    return text


def _matrices(ablation: Ablation) -> Iterator[Sheet]:
    best = ablation.best.arm.row.path if ablation.best is not None else None
    for one, arms in ablation.families:
        for panel in one.panels:
            if panel.kind != "map":
                continue
            down, across = panel.knobs
            values = [one.values[place] for place in panel.members]
            lines, columns = (ordered([each[knob] for each in values]) for knob in panel.knobs)
            places = {
                (each[down], each[across]): arms[place]
                for each, place in zip(values, panel.members, strict=True)
            }
            table = [[places.get((line, column)) for column in columns] for line in lines]
            what = f"difference to {PLAIN}" if ablation.identity is not None else ablation.number
            held = f" at {panel.held}" if panel.held else ""
            yield Sheet(
                plain_text(f"{ablation.title}: {one.name} {down} × {across}{held}", 3 * LONGEST),
                (f"{down} \\ {across}", *(plain_text(shown(column), LONGEST) for column in columns)),
                tuple(
                    (
                        plain_text(shown(line), LONGEST),
                        *("" if arm is None else cell(arm, scale(ablation)) for arm in row),
                    )
                    for line, row in zip(lines, table, strict=True)
                ),
                f"{what}; * is told apart from 0, all cells considered",
                strong=frozenset(
                    (r, c + 1)
                    for r, row in enumerate(table)
                    for c, arm in enumerate(row)
                    if arm is not None and arm.row.path == best
                ),
            )


def cell(arm: Arm, digits: Sequence[float | None]) -> str:
    """An arm in one short text: its gain and whether that is clear; its score where there is no gain."""
    if arm.gain is not None and arm.gain.value is not None:
        return _value(arm.gain.value, digits, "+") + ("*" if arm.clear else "")
    return "" if arm.row.score.value is None else _value(arm.row.score.value, digits)


def _knobs(ablation: Ablation) -> list[str]:
    """Every knob that varies, once; not the models' own names, which the first column has."""
    found = dict.fromkeys(knob for one, _ in ablation.families for knob in one.knobs)
    return [knob for knob in found if ablation.model or knob != "model"]


def _values(ablation: Ablation) -> dict[Path, dict[str, str]]:
    return {
        arm.row.path: {knob: shown(value) for knob, value in values.items()}
        for one, arms in ablation.families
        for arm, values in zip(arms, one.values, strict=True)
    }


def _name(ablation: Ablation, arm: Arm) -> str:
    """The first column: the family, whose knobs have columns of their own; and why a row is set apart."""
    if not ablation.model:
        name = arm.row.model
    elif arm.part == "identity":
        name = PLAIN
    else:
        name = next(one.name for one, arms in ablation.families if arm in arms)
    return f"{name} ({arm.row.note})" if arm.row.note else name


def _gain(arm: Arm, digits: Sequence[float | None]) -> str:
    if arm.part == "identity":
        return "–"
    if arm.gain is not None:
        return signed(arm.gain, digits) + ("*" if arm.clear else "")
    return "" if arm.row.difference is None else signed(arm.row.difference, digits)


def verdict(ablation: Ablation) -> str:
    """The best cell in words, with what it is and is not told apart from."""
    best = ablation.best
    if best is None:
        return (
            "No best cell is named: that takes two complete cells, scored sample by sample, that were not "
            "told the answer."
        )
    digits = [best.score.value, best.score.low, best.score.high]
    text = f"Best of {best.of}: {best.arm.label}, {ablation.number} {number(best.score, digits)}"
    if best.gain is not None:
        text += f"; against {PLAIN} {signed(best.gain, digits)}"
    who = f"{best.units:,} images" if best.units < best.n else f"{best.n:,} samples"
    text += (
        f". It was chosen after a look at all {best.of}, so these intervals hold for all of them at once "
        f"(95 %, max-statistic bootstrap over {who}). "
    )
    if best.arm.part == "identity":
        text += "No method is better than none here. "
    elif ablation.identity is not None:
        apart = "told apart" if PLAIN in best.beaten else "not told apart"
        text += f"It is {apart} from {PLAIN}. "
    if best.second != PLAIN:
        apart = "told apart" if best.second in best.beaten else "not told apart"
        text += f"It is {apart} from the second best, {best.second}. "
    if best.tied:
        text += f"Cannot be told apart from: {'; '.join(best.tied)}."
    else:
        text += "It is told apart from every other."
    return text.strip()


# ---------------------------------------------------------------- numbers


def scale(ablation: Ablation) -> list[float | None]:
    """All scores: what decides how many decimals are worth reading."""
    return [arm.row.score.value for arm in ablation.arms]


def number(estimate: Estimate, digits: Sequence[float | None]) -> str:
    """`0.750 [0.633, 0.850]`.

    >>> number(Estimate(0.75, 0.6333, 0.85), [0.75]), number(Estimate(289.31, None, None), [289.31])
    ('0.750 [0.633, 0.850]', '289.3')
    """
    return _number(estimate, digits, "")


def signed(estimate: Estimate, digits: Sequence[float | None]) -> str:
    """As `number`, with a sign."""
    return _number(estimate, digits, "+")


def _number(estimate: Estimate, digits: Sequence[float | None], sign: str) -> str:
    if estimate.value is None:
        return "undefined"
    text = _value(estimate.value, digits, sign)
    if estimate.low is not None and estimate.high is not None:
        text += f" [{_value(estimate.low, digits, sign)}, {_value(estimate.high, digits, sign)}]"
    return text


def _value(value: float, digits: Sequence[float | None], sign: str = "") -> str:
    places = 1 if max((abs(each) for each in digits if each is not None), default=0) >= 20 else 3
    return format(round(value, places) + 0.0, f"{sign}.{places}f")


def ratio(value: float | None) -> str:
    """How many times; nothing where unknown.

    >>> ratio(3.917), ratio(13.0), ratio(None)
    ('3.9', '13', '')
    """
    return "" if value is None else f"{value:,.{0 if value >= 9.95 else 1 if value >= 0.995 else 2}f}"


# ---------------------------------------------------------------- formats


def terminal(sheet: Sheet, width: int) -> Table:
    """For rich; the best line is bold, unranked ones are dim. Where there is no room, intervals go
    below, and what is said last is left out."""
    from textwrap import wrap

    from rich import box
    from rich.cells import cell_len
    from rich.markup import escape
    from rich.table import Table

    out = Table(
        title=escape(sheet.title),
        caption=escape(sheet.caption),
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        collapse_padding=True,
        pad_edge=False,
    )
    headings = [
        text if place < sheet.words else "\n".join(wrap(text, 14))
        for place, text in enumerate(sheet.headings)
    ]
    rows = [list(row) for row in sheet.rows]

    def fits() -> bool:
        widths = [
            max(cell_len(line) for text in column for line in text.split("\n"))
            for column in zip(headings, *rows, strict=True)
        ]
        return sum(widths) + 2 * len(widths) <= width

    if not fits():
        rows = [[text.replace(" [", "\n[") for text in row] for row in rows]
    while not fits() and len(headings) > sheet.words + 2:  # scored, and then what it costs, are in the files
        headings.pop()
        rows = [row[:-1] for row in rows]
    for place, heading in enumerate(headings):
        left = place < sheet.words
        out.add_column(
            escape(heading), justify="left" if left else "right", overflow="fold", no_wrap=not left
        )
    for place, row in enumerate(rows):
        style = "bold" if place in sheet.bold else "dim" if place in sheet.dim else None
        out.add_row(*map(escape, row), style=style)
    return out


def markdown(found: Sequence[Ablation], name: str, about: str) -> str:
    """Headings, sentences and tables of GitHub's Markdown."""
    parts = [f"# {_md(name)}", *([_md(about)] if about else [])]
    for ablation in found:
        for number, sheet in enumerate(sheets(ablation)):
            parts.append(f"## {_md(sheet.title)}" if not number else f"### {_md(sheet.title)}")
            lines = [
                "| " + " | ".join(map(_md, sheet.headings)) + " |",
                "|"
                + "|".join(" --- " if n < sheet.words else " ---: " for n in range(len(sheet.headings)))
                + "|",
            ]
            for r, row in enumerate(sheet.rows):
                cells = [
                    f"**{_md(text)}**" if text and (r in sheet.bold or (r, c) in sheet.strong) else _md(text)
                    for c, text in enumerate(row)
                ]
                lines.append("| " + " | ".join(cells) + " |")
            parts += ["\n".join(lines), _md(sheet.caption) + "."]
        parts.append(_md(verdict(ablation)))
    return "\n\n".join(parts) + "\n"


def _md(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(text.split()))


def as_csv(found: Sequence[Ablation]) -> str:
    """A line per cell, all numbers: the plain interval of the difference, and the one that holds with all."""
    knobs = list(dict.fromkeys(knob for ablation in found for knob in _knobs(ablation)))
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        ["task", "protocol", "model", "metric", "number", "cell", "method"]
        + [f"knob:{knob}" for knob in knobs]
        + ["score", "score_low", "score_high", "difference", "difference_low", "difference_high"]
        + ["all_low", "all_high", "clear", "best", "scored", "n"]
        + [f"times_{name}" for name in (*COSTS, "dollars")]
        + ["note", "run"]
    )
    for ablation in found:
        values = _values(ablation)
        best = ablation.best.arm.row.path if ablation.best is not None else None
        for arm in ablation.arms:
            row = arm.row
            plain, all_of = row.difference or arm.gain, arm.gain
            writer.writerow(
                [ablation.task, ablation.protocol, row.model, ablation.metric, ablation.number]
                + [_safe(arm.label), _safe(row.method)]
                + [_safe(values.get(row.path, {}).get(knob, "")) for knob in knobs]
                + _three(row.score)
                + (_three(plain) if plain is not None else ["", "", ""])
                + (_three(all_of)[1:] if all_of is not None else ["", ""])
                + ["yes" if arm.clear else "", "yes" if row.path == best else "", row.scored, row.n]
                + [_csv(getattr(row.times, name, None)) for name in (*COSTS, "dollars")]
                + [row.note, row.id]
            )
    return out.getvalue()


def _three(estimate: Estimate) -> list[str]:
    return [_csv(estimate.value), _csv(estimate.low), _csv(estimate.high)]


def _csv(value: float | None) -> str:
    """Six decimals, which other machines' sums agree on.

    >>> _csv(0.5), _csv(-0.0000001), _csv(None)
    ('0.5', '0', '')
    """
    if value is None:
        return ""
    text = f"{value:.6f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text


def _safe(text: str) -> str:
    """A text that no spreadsheet takes for a formula."""
    return "'" + text if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text


def latex(found: Sequence[Ablation]) -> str:
    """Tables of booktabs, one after the other, to be read with \\input."""
    parts = ["% \\usepackage{booktabs}"]
    for ablation in found:
        for number, sheet in enumerate(sheets(ablation)):
            columns = "l" * sheet.words + "r" * (len(sheet.headings) - sheet.words)
            lines = [
                "\\begin{table}[t]",
                "\\centering\\small",
                f"\\caption{{{_tex(sheet.title)}. {_tex(sheet.caption)}."
                + ("" if number else f" {_tex(verdict(ablation))}")
                + "}",
                f"\\begin{{tabular}}{{@{{}}{columns}@{{}}}}",
                "\\toprule",
                " & ".join(map(_tex, sheet.headings)) + " \\\\",
                "\\midrule",
            ]
            for r, row in enumerate(sheet.rows):
                cells = [
                    f"\\textbf{{{_tex(text)}}}"
                    if text and (r in sheet.bold or (r, c) in sheet.strong)
                    else _tex(text)
                    for c, text in enumerate(row)
                ]
                lines.append(" & ".join(cells) + " \\\\")
            lines += ["\\bottomrule", "\\end{tabular}", "\\end{table}"]
            parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


_TEX = {
    "\\": "\\textbackslash{}",
    "&": "\\&", "%": "\\%", "$": "\\$", "#": "\\#", "_": "\\_", "{": "\\{", "}": "\\}",
    "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "<": "\\textless{}", ">": "\\textgreater{}",
    "|": "\\textbar{}", "×": "$\\times$", "·": "$\\cdot$", "–": "--", "…": "\\dots{}", "→": "$\\to$",
}  # fmt: skip


def _tex(text: str) -> str:
    text = "".join(_TEX.get(letter, letter) for letter in " ".join(text.split()))
    return re.sub(r"(?<![\w-])-(?=\d)", "$-$", text)
