r"""A board as text for elsewhere: Markdown, CSV, LaTeX, JSON; and as Parquet.

CSV, JSON and Parquet are one table (`records`): a line per run, and per number that a paper reports, in full
precision, with nulls where something is missing or does not apply. Markdown and LaTeX are for readers:
rounded, a table per comparison. Knows how numbers and names are written. What they mean and where they come
from, it does not.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import FoveaError
from leaderboard import _web
from leaderboard._compared import _p
from leaderboard.board import Comparison, Row
from leaderboard.published import Published, beside
from leaderboard.terminal import _amount, _dollars, _estimate, _times, groupings, require_groupings

SURE, VERY_SURE = 0.05, 0.01
"""Corrected p-values below which a difference bears one mark, or two."""

COSTS = ("calls", "tokens_in", "tokens_out", "tokens", "forward_passes", "seconds", "dollars")

COLUMNS: Mapping[str, str] = {
    "kind": "string",
    "comparison": "Int64",
    **dict.fromkeys(("task", "split", "version", "protocol", "metric", "variant", "number"), "string"),
    "higher_is_better": "boolean",
    **dict.fromkeys(("model", "method", "fidelity", "by", "value"), "string"),
    "rank": "Int64",
    "note": "string",
    **dict.fromkeys(("score", "low", "high"), "Float64"),
    **dict.fromkeys(("scored", "n"), "Int64"),
    **dict.fromkeys(("difference", "difference_low", "difference_high", "p", "p_holm"), "Float64"),
    **dict.fromkeys((*COSTS, *(f"times_{name}" for name in COSTS), "dollars_in_all"), "Float64"),
    **dict.fromkeys(("date", "commit", "id", "run"), "string"),
    "reported": "Float64",
    **dict.fromkeys(("unit", "setting", "paper", "venue", "arxiv", "table", "confidence", "via"), "string"),
}
"""The names of `records`, in order, and pandas's types for them.

kind: `run`, or `reported` for a paper's number, which stands in `reported` (in `unit`) and never in `score`.
comparison: rows with the same number may be held against each other, others not. by, value: a grouping and
its value where a line is about a part of the samples. rank: null where the run is not ranked; `note` says
why. Costs are per scored sample; times_...: over the identity arm's. p_holm: p, corrected over the
comparison's runs.
"""


@dataclass(frozen=True)
class Section:
    """A comparison, and what papers report of the same, best first."""

    comparison: Comparison
    reported: Sequence[Published] = ()

    @classmethod
    def of(cls, comparison: Comparison, published: Sequence[Published]) -> Section:
        theirs = beside(published, comparison.task, comparison.protocol, comparison.number)
        return cls(comparison, theirs if comparison.higher_is_better else theirs[::-1])

    @property
    def main(self) -> list[Published]:
        """Without a paper's variations of its own numbers (an ablation's rows), where there are others."""
        return [entry for entry in self.reported if not entry.setting] or list(self.reported)

    @property
    def title(self) -> str:
        """`pope (random)`"""
        about = self.comparison
        return f"{about.task} ({about.protocol})" if about.protocol else about.task

    @property
    def facts(self) -> str:
        """What every row has in common: `version 1, split test; exact[llava] accuracy, higher is better`."""
        about = self.comparison
        words = [f"version {about.version}"] if about.version else []
        words += [f"split {about.split}"] if about.split else []
        better = "higher" if about.higher_is_better else "lower"
        measured = f"{about.metric} {about.number}, {better} is better"
        return "; ".join([", ".join(words), measured] if words else [measured])


def write(
    board: Sequence[Section], by: Sequence[str], format: str, out: Path | None, say: Callable[[str], None]
) -> None:
    """Write the board into the file `out`, or say its text. FoveaError where Parquet has no file, and where
    no comparison has a grouping of `by`."""
    require_groupings([section.comparison for section in board], by)
    if format == "parquet":
        if out is None:
            raise FoveaError("Parquet is not for a terminal; write it into a file: --out board.parquet")
        _web.write(out.parent, {out.name: as_parquet(board, by)})
        return
    text = FORMATS[format](board, by)
    if out is None:
        say(text.removesuffix("\n"))
    else:
        _web.write(out.parent, {out.name: text})


# ---------------------------------------------------------------- for machines


def records(board: Sequence[Section], by: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Every row of the board under the names of COLUMNS; `by` adds a line per run and value of a grouping."""
    found = []
    for place, section in enumerate(board, 1):
        about = section.comparison
        shared = {
            "comparison": place,
            "task": about.task,
            "split": about.split,
            "version": about.version,
            "protocol": about.protocol,
            "metric": about.metric,
            "number": about.number,
            "higher_is_better": about.higher_is_better,
        }
        for row in about.rows:
            found.append(shared | _run(row))
        for name in by:
            for row in about.rows:
                for value, part in row.breakdowns.get(name, {}).items():
                    score = {"score": part.value, "low": part.low, "high": part.high}
                    found.append(shared | _who(row) | {"by": name, "value": value} | score)
        for entry in section.reported:
            found.append(shared | _reported(entry))
    empty = dict.fromkeys(COLUMNS)
    return [{name: _plain(value) for name, value in (empty | row).items()} for row in found]


def _plain(value: Any) -> Any:
    """Nothing is null; half a character, which no file can hold, becomes U+FFFD."""
    if not isinstance(value, str):
        return value
    return re.sub(r"[\ud800-\udfff]", "\ufffd", value) or None


def as_csv(board: Sequence[Section], by: Sequence[str] = ()) -> str:
    """Numbers as Python writes them, so that they read back exactly; nothing where something is missing."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(COLUMNS), lineterminator="\n")
    writer.writeheader()
    for row in records(board, by):
        writer.writerow({name: str(v).lower() if isinstance(v, bool) else v for name, v in row.items()})
    return text.getvalue()


def as_json(board: Sequence[Section], by: Sequence[str] = ()) -> str:
    """A list of objects, each with every name."""
    return json.dumps(records(board, by), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def as_parquet(board: Sequence[Section], by: Sequence[str] = ()) -> bytes:
    """The same table with the types of COLUMNS."""
    import pandas as pd

    frame = pd.DataFrame(records(board, by), columns=list(COLUMNS))
    written: bytes = frame.astype(dict(COLUMNS)).to_parquet(index=False)
    return written


def _who(row: Row) -> dict[str, Any]:
    return {
        "kind": "run",
        "variant": row.variant,
        "model": row.model,
        "method": row.method,
        "fidelity": row.fidelity,
        "date": row.date,
        "commit": row.commit,
        "id": row.id,
        "run": str(row.path),
    }


def _run(row: Row) -> dict[str, Any]:
    difference = row.difference
    return _who(row) | {
        "rank": row.rank,
        "note": row.note,
        "score": row.score.value,
        "low": row.score.low,
        "high": row.score.high,
        "scored": row.scored,
        "n": row.n,
        "difference": difference.value if difference else None,
        "difference_low": difference.low if difference else None,
        "difference_high": difference.high if difference else None,
        "p": row.p,
        "p_holm": row.corrected,
        **{name: getattr(row.cost, name) for name in COSTS},
        **{f"times_{name}": getattr(row.times, name, None) for name in COSTS},
        "dollars_in_all": row.usage.dollars,
    }


def _reported(entry: Published) -> dict[str, Any]:
    return {
        "kind": "reported",
        "model": entry.model,
        "method": entry.method,
        "reported": entry.value,
        "unit": entry.unit,
        "setting": entry.setting,
        "paper": entry.paper,
        "venue": entry.venue,
        "arxiv": entry.arxiv,
        "table": entry.table,
        "confidence": entry.confidence,
        "via": entry.via,
        "note": entry.note,
    }


# ---------------------------------------------------------------- what readers see, in both


Cells = Mapping[str, str]


def _table(
    comparison: Comparison,
    plain: Callable[[str], str],
    bold: Callable[[str], str],
    number: Callable[[str], str] = str,
) -> list[Cells]:
    """What a reader sees of each row, by column: words as `plain` makes them safe, numbers as `number` writes
    them, the best score as `bold` does."""
    best = {row.score.value for row in comparison.rows if row.rank == 1}
    found: list[Cells] = []
    for row in comparison.rows:
        value, _, interval = _estimate(row.score).partition(" ")
        if row.rank and row.score.value in best:
            value = bold(value)
        found.append(
            {
                "#": str(row.rank or "–"),
                "model": plain(row.model),
                "method": plain(row.method),
                "why": plain(unranked(row) or row.note),
                "score": number(f"{value} {interval}".rstrip()),
                "difference": number(_estimate(row.difference, sign="+")) if row.difference else "",
                "p": plain(_p(row.p)),
                "Holm": plain(_p(row.corrected)),
                "scored": f"{row.scored} of {row.n}",
                "calls": _cost(row, "calls", _amount),
                "tokens": _cost(row, "tokens", _amount),
                "passes": _cost(row, "forward_passes", _amount),
                "seconds": _cost(row, "seconds", _amount),
                "dollars": _cost(row, "dollars", _dollars),
                "fidelity": plain(row.fidelity),
                "date": plain(row.date[:10]),
                "commit": plain(commit(row.commit)),
                "id": plain(row.id),
                "path": plain(str(row.path)),
            }
        )
    return found


def unranked(row: Row) -> str:
    """Why a row has no rank; empty where it has one."""
    if row.rank is not None:
        return ""
    return row.note or ("score undefined" if row.score.value is None else "not ranked")


def commit(text: str) -> str:
    """In seven letters, with its mark.

    >>> commit("f83220f384a9e71d8d1cb9730a0538f47976cad0+")
    'f83220f+'
    """
    return text[:7] + "+" * text.endswith("+")


def value_of(entry: Published) -> str:
    """`47.8 %`, `581.9`"""
    return f"{entry.value:g}" + ("" if entry.unit in ("points", "") else f" {entry.unit}")


def paper_of(entry: Published) -> str:
    """`MLLMs Know Where to Look, ICLR 2025, table 2`"""
    table = f"table {entry.table}" if entry.table else ""
    return ", ".join(filter(None, (entry.paper, entry.venue, table)))


def _cost(row: Row, name: str, shown: Callable[[float | None], str]) -> str:
    """`615 (× 3.9)`; empty where it is unknown."""
    value = getattr(row.cost, name)
    if value is None:
        return ""
    times = _times(row, name)
    return f"{shown(value)} ({times})" if times else shown(value)


def _parts(comparison: Comparison, by: str) -> Iterator[tuple[str, Row, str]]:
    """Per value of a grouping and row that has it: the value, the row, its score there."""
    values = {value for row in comparison.rows for value in row.breakdowns.get(by, {})}
    for value in sorted(values):
        for row in comparison.rows:
            if value in row.breakdowns.get(by, {}):
                yield value, row, _estimate(row.breakdowns[by][value])


def _variations(section: Section) -> str:
    rest = len(section.reported) - len(section.main)
    return f"; {rest} variations of these in results/published" if rest else ""


EXPLAINED = (
    "95 % intervals (bootstrap over images). Difference: paired, to the same model without a method; p by a "
    "paired permutation test, and corrected over the runs of one table (Holm). Costs per scored sample (× "
    "that of the same model without a method)."
)


# ---------------------------------------------------------------- Markdown


_HEADS = {
    "#": "#",
    "model": "model",
    "method": "method",
    "score": "",  # the number's own name
    "difference": "difference",
    "p": "p",
    "Holm": "p, Holm",
    "scored": "scored",
    "calls": "calls",
    "tokens": "tokens",
    "passes": "forward passes",
    "seconds": "seconds",
    "dollars": "$",
    "fidelity": "fidelity",
    "date": "date",
    "commit": "commit",
    "path": "run",
}
_LEFT = ("model", "method", "fidelity", "run", "paper", "how it is known")


def as_markdown(board: Sequence[Section], by: Sequence[str] = ()) -> str:
    """As GitHub renders it: a heading and a table per comparison, and what papers report beneath."""
    blocks: list[str] = []
    for section in board:
        about = section.comparison
        title, number = markdown(section.title), markdown(about.number)
        rows = [
            {**row, "method": _joined(row["method"], row["why"], "*({})*")}
            for row in _table(about, markdown, lambda text: f"**{text}**")
        ]
        heads = [head or number for head in _HEADS.values()]
        blocks += [f"## {title}", f"{markdown(section.facts)}. {EXPLAINED}"]
        blocks.append(_grid(heads, [[row[name] for name in _HEADS] for row in rows]))
        for name in by:
            if name in groupings(about):
                parts = [
                    [*map(markdown, (value, row.model, row.method)), score, row.id]
                    for value, row, score in _parts(about, name)
                ]
                blocks.append(f"### {title} by {markdown(name)}")
                blocks.append(_grid([markdown(name), "model", "method", number, "run"], parts, first=True))
        if section.main:
            theirs = [
                list(
                    map(
                        markdown, (entry.model, entry.method, value_of(entry), paper_of(entry), _known(entry))
                    )
                )
                for entry in section.main
            ]
            blocks.append(f"Reported by papers, not measured here{_variations(section)}:")
            blocks.append(_grid(["model", "method", number, "paper", "how it is known"], theirs))
    return "\n\n".join(blocks or ["No runs with scores."]) + "\n"


def markdown(text: str) -> str:
    r"""Safe in a cell of a Markdown table: it shows as written, on one line.

    >>> markdown("a|b_c <i> https://x\n*d*")
    'a&#124;b\\_c &lt;i&gt; https:&#47;/x \\*d\\*'
    """
    text = " ".join(_visible(text).split())
    text = re.sub(r"([\\`*_\[\]~$#!])", r"\\\1", text)
    for letter, entity in (
        ("&", "&amp;"),
        ("<", "&lt;"),
        (">", "&gt;"),
        ("|", "&#124;"),
        ("://", ":&#47;/"),
        ("www.", "www&#46;"),
        ("@", "&#64;"),
    ):
        text = text.replace(letter, entity)
    return text


def _grid(heads: Sequence[str], rows: Sequence[Sequence[str]], first: bool = False) -> str:
    """A table; names to the left, as is the first column if `first`, numbers to the right."""
    rule = [":--" if head in _LEFT or (first and not place) else "--:" for place, head in enumerate(heads)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [heads, rule, *rows])


def _joined(first: str, second: str, how: str) -> str:
    return f"{first} {how.format(second)}" if second else first


def _known(entry: Published) -> str:
    return "; ".join(filter(None, (entry.confidence, entry.note)))


def _visible(text: str) -> str:
    r"""Without control characters, which no table shows; half a character becomes U+FFFD.

    >>> _visible("a\x00b\u202ec\ud800")
    'a b c�'
    """
    text = re.sub(r"[\ud800-\udfff]", "�", text)
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ufdd0-\ufdef\ufffe\uffff]", " ", text)


# ---------------------------------------------------------------- LaTeX

PREAMBLE = r"\usepackage{booktabs,graphicx,xcolor}"
_PAPER = "\\footnotesize\n\\setlength{\\tabcolsep}{4pt}"


LONGEST = 160  # letters of a name in a LaTeX table: TeX knows no width above 5.7 m


def as_latex(board: Sequence[Section], by: Sequence[str] = ()) -> str:
    """To be \\input: per comparison a table of scores, one of costs and provenance, and what papers report.

    The best ranked score is bold, unranked rows are grey and say why. pdfLaTeX can typeset every name:
    letters that it does not know are written as U+...., and a name ends after 160.
    """
    blocks = [f"% Needs {PREAMBLE}"]
    for section in board:
        about = section.comparison
        rows = _table(about, latex, lambda text: rf"\textbf{{{text}}}", _signed)
        blocks += [_latex_scores(section, rows), _latex_costs(section, rows)]
        blocks += [_latex_parts(section, name) for name in by if name in groupings(about)]
        if section.main:
            blocks.append(_latex_reported(section))
    return "\n\n".join(blocks) + "\n"


def _latex_scores(section: Section, rows: Sequence[Cells]) -> str:
    about = section.comparison
    body = [
        [
            row["#"],
            row["model"],
            _joined(row["method"], row["why"], r"\emph{{({})}}"),
            row["score"],
            row["difference"] + _mark(stands),
            *(row[name] for name in ("p", "Holm", "scored")),
        ]
        for row, stands in zip(rows, about.rows, strict=True)
    ]
    heads = ["", "Model", "Method", latex(about.number), "Difference", "$p$", "Holm", "Scored"]
    caption = (
        rf"{latex(section.title)}: {latex(section.facts)}. {latex(EXPLAINED, len(EXPLAINED))} "
        rf"\textdagger{{}}: $p<{SURE:g}$, \textdaggerdbl{{}}: $p<{VERY_SURE:g}$, both after correction. "
        r"Bold: the best ranked score. Grey: not ranked, for the reason in brackets."
    )
    return _latex("lllrrrrr", heads, body, _grey(about), caption)


def _latex_costs(section: Section, rows: Sequence[Cells]) -> str:
    names = ("model", "method", "calls", "tokens", "passes", "seconds", "dollars", "fidelity", "date")
    body = [[row[name].replace("×", r"$\times$") for name in (*names, "commit", "id")] for row in rows]
    heads = [r"\$" if name == "dollars" else name.capitalize() for name in (*names, "commit", "run")]
    caption = (
        rf"{latex(section.title)}: cost per scored sample ($\times$ that of the same model without a "
        r"method), and where each row is from."
    )
    return _latex("llrrrrrllll", heads, body, _grey(section.comparison), caption)


def _latex_parts(section: Section, by: str) -> str:
    body = [
        [*map(latex, (value, row.model, row.method)), _signed(score), row.id]
        for value, row, score in _parts(section.comparison, by)
    ]
    heads = [latex(by), "Model", "Method", latex(section.comparison.number), "Run"]
    return _latex("lllrl", heads, body, [False] * len(body), f"{latex(section.title)} by {latex(by)}.")


def _latex_reported(section: Section) -> str:
    body = [
        list(map(latex, (entry.model, entry.method, value_of(entry), paper_of(entry), entry.confidence)))
        for entry in section.main
    ]
    heads = ["Model", "Method", latex(section.comparison.number), "Paper", "Known how"]
    title = f"{latex(section.title)}: reported by papers, not measured here{latex(_variations(section))}."
    return _latex("llrll", heads, body, [True] * len(body), title)


def _grey(comparison: Comparison) -> list[bool]:
    return [row.rank is None for row in comparison.rows]


def latex(text: str, most: int = LONGEST) -> str:
    r"""Shown as written by pdfLaTeX with its default fonts, in a table and outside. most: letters of it.

    >>> latex("50% of a_b & ~c\\d [×2] 中")
    '50\\% of a\\_b \\& \\textasciitilde{}c\\textbackslash{}d {[}$\\times$2{]} {\\ttfamily U+4E2D}'
    """
    text = " ".join(_visible(text).split())
    if len(text) > most:
        text = text[: most - 1] + "…"
    letters = "".join(map(_letter, text))
    return re.sub(r"([-,])(?=\1)", r"\1{}", letters)  # else a ligature


def _signed(text: str) -> str:
    """
    >>> _signed("-0.017 [-0.083, +0.033]")
    '$-0.017$ [$-0.083$, $+0.033$]'
    """
    return re.sub(r"[+-][0-9.]+", r"$\g<0>$", text)


def _letter(letter: str) -> str:
    if letter in _LATEX:
        return _LATEX[letter]
    # Of Latin-1, LaTeX's default encoding has the letters; of the signs, those in the table above.
    if " " <= letter <= "~" or ("À" <= letter <= "ÿ" and letter not in "×÷ÐðÞþ"):
        return letter
    return rf"{{\ttfamily U+{ord(letter):04X}}}"


_LATEX = {
    **{letter: "\\" + letter for letter in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"{\ttfamily\char34}",
    "'": r"\textquotesingle{}",
    "`": r"\textasciigrave{}",
    **{letter: f"{{{letter}}}" for letter in "[]*"},  # what \\ takes for its arguments
    "…": r"\ldots{}",
    "–": "--",
    "—": "---",
    "×": r"$\times$",
    "±": r"$\pm$",
    "→": r"$\rightarrow$",
    "↑": r"$\uparrow$",
    "↓": r"$\downarrow$",
    "≥": r"$\geq$",
    "≤": r"$\leq$",
    "α": r"$\alpha$",
    "β": r"$\beta$",
    "τ": r"$\tau$",
    "ρ": r"$\rho$",
    "λ": r"$\lambda$",
}


def _mark(row: Row) -> str:
    if row.corrected is None or row.corrected >= SURE:
        return ""
    sign = r"\textdaggerdbl" if row.corrected < VERY_SURE else r"\textdagger"
    return rf"\rlap{{\textsuperscript{{{sign}}}}}"  # beside the column, so that its numbers stay aligned


def _latex(
    columns: str,
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    grey: Sequence[bool],
    caption: str,
) -> str:
    body = [
        " & ".join(rf"\textcolor{{gray}}{{{cell}}}" if dim and cell else cell for cell in cells)
        for cells, dim in zip(rows, grey, strict=True)
    ]
    lines = [
        r"\begin{table*}",
        r"\centering",
        rf"\caption{{{caption}}}\smallskip",
        _PAPER,
        r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",  # only where it is too wide
        rf"\begin{{tabular}}{{@{{}}{columns}@{{}}}}",
        r"\toprule",
        " & ".join(heads) + r" \\",
        r"\midrule",
        *(line.replace("–", "--") + r" \\" for line in body),
        r"\bottomrule",
        r"\end{tabular}}",
        r"\end{table*}",
    ]
    return "\n".join(lines)


FORMATS: Mapping[str, Callable[[Sequence[Section], Sequence[str]], str]] = {
    "md": as_markdown,
    "csv": as_csv,
    "latex": as_latex,
    "json": as_json,
}
