"""The board as Markdown, CSV, LaTeX, JSON and Parquet, and the terminal's: against goldens, and names that
want to be markup.

The goldens are the board of results/baselines/demo. To write them anew, after looking at what changed:
python -m tests.test_board_formats
"""

import csv
import io
import json
import math
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.console import Console

from harness import resolve, store
from leaderboard import cli
from leaderboard._tables import COLUMNS, latex, markdown
from tests.test_cli import fovea

ROOT = Path(__file__).parent.parent
DEMO = Path("results/baselines/demo")
GOLDENS = Path(__file__).parent / "goldens" / "board"
FILES = {"md": "board.md", "latex": "board.tex", "csv": "board.csv", "json": "board.json"}
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    r"\end{tabular} 100% & a_b^c ~d {e} #1 $x$ \input{/etc/passwd}",
    "| a | *b* | `c` [d](javascript:e) &lt; http://f.example",
    "[0.1] -- ,, ``quoted'' ?` !` <<>>",
    "\u202eright to left\u202c \u0639\u0631\u0628\u064a",
    "中文 émigré ß ÿ × ± → ≥ τ 🙂",
    "\x00\x1b[31m\u2028\ud800 half",
    "=HYPERLINK(1)",
    "very long " * 500,
]


def shown(format: str, runs: list[Path], by: tuple[str, ...] = ()) -> str:
    """What the command says."""
    said: list[str] = []
    console = Console(width=160, file=io.StringIO())
    cli.board(runs, resolve.metric_from, console, by, format=format, say=said.append)
    assert isinstance(console.file, io.StringIO)
    return "\n".join(said) + "\n" if format else console.file.getvalue()


def demo(format: str) -> str:
    """As in the goldens."""
    return shown(format, store.find_runs(DEMO), ("category",))


def altered(folder: Path, change: Callable[[dict[str, Any]], None], names: str = "*") -> list[Path]:
    """Copies of the demo's runs whose headers were changed."""
    for path in store.find_runs(ROOT / DEMO):
        if path.match(names):
            copy = folder / path.name
            shutil.copytree(path, copy)
            content = json.loads((copy / "run.json").read_text())
            change(content)
            (copy / "run.json").write_text(json.dumps(content))
    return store.find_runs(folder)


def innermost(content: dict[str, Any]) -> dict[str, Any]:
    described: dict[str, Any] = content["identity"]["model"]
    while isinstance(described["model"], dict):
        described = described["model"]
    return described


@pytest.fixture
def at_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


# ---------------------------------------------------------------- goldens


@pytest.mark.usefixtures("at_root")
@pytest.mark.parametrize("format", ["", "md", "latex"])
def test_the_demos_board_reads_as_it_always_did(format: str) -> None:
    golden = GOLDENS / FILES.get(format, "board.txt")
    assert demo(format) == golden.read_text(encoding="utf-8")


@pytest.mark.usefixtures("at_root")
@pytest.mark.parametrize("format", ["csv", "json"])
def test_the_demos_board_holds_the_numbers_that_it_always_held(format: str) -> None:
    golden = (GOLDENS / FILES[format]).read_text(encoding="utf-8")
    ours, theirs = rows_of(format, demo(format)), rows_of(format, golden)
    assert len(ours) == len(theirs) == 11 + 3 * 11
    for mine, known in zip(ours, theirs, strict=True):
        assert list(mine) == list(known) == list(COLUMNS)
        assert all(equal(mine[name], known[name]) for name in COLUMNS), (mine, known)


def rows_of(format: str, text: str) -> list[dict[str, Any]]:
    if format == "json":
        rows: list[dict[str, Any]] = json.loads(text)
        return rows
    return list(csv.DictReader(io.StringIO(text, newline="")))


def equal(ours: Any, theirs: Any) -> bool:
    """To nine digits: another processor may add in another order."""
    try:
        return math.isclose(float(ours), float(theirs), rel_tol=1e-9, abs_tol=1e-9)
    except (TypeError, ValueError):
        return bool(ours == theirs)


# ---------------------------------------------------------------- one table for machines


@pytest.mark.usefixtures("at_root")
def test_csv_json_and_parquet_are_one_table_and_missing_is_never_zero(tmp_path: Path) -> None:
    import pandas as pd

    runs = store.find_runs(DEMO)
    rows = json.loads(shown("json", runs, ("category",)))
    texts = rows_of("csv", shown("csv", runs, ("category",)))
    cli.board(
        runs, resolve.metric_from, Console(), ("category",), format="parquet", out=tmp_path / "b.parquet"
    )
    frame = pd.read_parquet(tmp_path / "b.parquet")
    assert list(frame.columns) == list(COLUMNS) and len(frame) == len(rows) == len(texts)
    assert {name: str(kind) for name, kind in frame.dtypes.items()} == dict(COLUMNS)
    for row, text, (_, line) in zip(rows, texts, frame.iterrows(), strict=True):
        for name, value in row.items():
            assert pd.isna(line[name]) if value is None else line[name] == value
            assert text[name] == (
                "" if value is None else str(value).lower() if value is True else str(value)
            )
    (identity,) = (row for row in rows if row["method"] == "none" and row["by"] is None)
    assert identity["difference"] is identity["p"] is identity["times_calls"] is None
    assert identity["dollars"] == 0 and identity["rank"] == 7
    (oracle,) = (row for row in rows if row["note"] == "oracle" and row["by"] is None)
    assert oracle["rank"] is None and oracle["score"] == pytest.approx(0.98333, abs=1e-5)
    parts = [row for row in rows if row["by"] == "category"]
    assert len(parts) == 33 and all(row["rank"] is row["calls"] is row["scored"] is None for row in parts)


def test_a_papers_numbers_are_marked_in_every_format_and_are_nobodys_rank(tmp_path: Path) -> None:
    def as_textvqa(content: dict[str, Any]) -> None:
        content["identity"]["task"] |= {"name": "textvqa", "protocol": "vicrop"}

    runs = altered(tmp_path, as_textvqa)
    rows = json.loads(shown("json", runs))
    theirs = [row for row in rows if row["kind"] == "reported"]
    assert 47.80 in [row["reported"] for row in theirs] and {row["unit"] for row in theirs} == {"%"}
    for row in theirs:
        assert row["score"] is row["rank"] is row["calls"] is row["id"] is None
        assert row["paper"] and row["confidence"] == "transcribed"
    ranks = [row["rank"] for row in rows if row["kind"] == "run" and row["rank"]]
    assert sorted(ranks) == sorted(
        row["rank"]
        for row in json.loads(shown("json", [ROOT / r for r in runs]))
        if row["kind"] == "run" and row["rank"]
    )
    for format in ("md", "latex"):
        ours, _, papers = shown(format, runs).partition("eported by papers, not measured here")
        assert "47.8" not in ours and "47.8" in papers and "variations" in papers


def test_a_row_that_is_not_ranked_says_why_in_every_format(tmp_path: Path) -> None:
    def interrupted(content: dict[str, Any]) -> None:
        if content["methods"] == ["center_crop"]:
            content["status"] = "interrupted"

    runs = altered(tmp_path, interrupted)
    for format in ("md", "latex", "csv", "json"):
        text = shown(format, runs)
        assert "oracle" in text and "interrupted" in text
    (line,) = (line for line in shown("md", runs).splitlines() if "interrupted" in line)
    assert line.startswith("| – |")
    (line,) = (line for line in shown("latex", runs).splitlines() if "interrupted" in line)
    assert line.startswith(r"\textcolor{gray}{--} & \textcolor{gray}{hf:demo}")


# ---------------------------------------------------------------- names that want to be markup


@given(st.text())
def test_markdown_shows_any_name_as_written(text: str) -> None:
    page = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    cells = [
        token.children
        for token in page.parse(f"| {markdown(text)} | x |\n| --- | --- |\n")
        if token.type == "inline"
    ]
    assert len(cells) == 2, "the name stays in its cell"
    assert cells[0] is not None and {token.type for token in cells[0]} <= {"text", "text_special"}
    assert "".join(token.content for token in cells[0]) == " ".join(visible(text).split())


@given(st.text())
def test_latex_shows_any_name_as_written(text: str) -> None:
    written = latex(text)
    shown = " ".join(visible(text).split())
    assert unwritten(written) == (shown if len(shown) <= 160 else shown[:159] + "…")
    balanced(written)
    assert "--" not in written and ",," not in written


def visible(text: str) -> str:
    """Without what no table can show."""
    text = re.sub(r"[\ud800-\udfff]", "\ufffd", text)
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ufdd0-\ufdef\ufffe\uffff]", " ", text)


SIGNS = {
    r"\textbackslash{}": "\\",
    r"\textasciitilde{}": "~",
    r"\textasciicircum{}": "^",
    r"\textless{}": "<",
    r"\textgreater{}": ">",
    r"\textbar{}": "|",
    r"\textquotesingle{}": "'",
    r"\textasciigrave{}": "`",
    r"{\ttfamily\char34}": '"',
    r"$\times$": "×",
    r"$\pm$": "±",
    r"$\rightarrow$": "→",
    r"$\uparrow$": "↑",
    r"$\downarrow$": "↓",
    r"$\geq$": "≥",
    r"$\leq$": "≤",
    **{
        rf"$\{name}$": letter
        for name, letter in zip(("alpha", "beta", "tau", "rho", "lambda"), "αβτρλ", strict=True)
    },
    **{"\\" + letter: letter for letter in "&%$#_{}"},
    **{f"{{{letter}}}": letter for letter in "[]*"},
    "---": "—",
    r"\ldots{}": "…",
    "{}": "",
}


def unwritten(written: str) -> str:
    """What TeX would print of it, by a table of its own."""
    signs = "|".join(map(re.escape, sorted(SIGNS, key=len, reverse=True)))
    pattern = rf"\{{\\ttfamily U\+([0-9A-F]+)\}}|({signs})|(–|--)|(.)"

    def letter(match: re.Match[str]) -> str:
        if match[1]:
            return chr(int(match[1], 16))
        return SIGNS[match[2]] if match[2] else "–" if match[3] else match[4]

    return re.sub(pattern, letter, written)


def balanced(text: str) -> None:
    """Every brace, environment and dollar sign that is opened is closed."""
    bare = re.sub(r"\\[\\{}$%&#_]", "", text)
    depth = 0
    for sign in re.findall(r"[{}]", bare):
        depth += 1 if sign == "{" else -1
        assert depth >= 0
    assert depth == 0 and bare.count("$") % 2 == 0
    open_environments: list[str] = []
    for verb, name in re.findall(r"\\(begin|end)\{([a-z*]+)\}", text):
        if verb == "begin":
            open_environments.append(name)
        else:
            assert open_environments.pop() == name
    assert not open_environments


def hostile(folder: Path) -> list[Path]:
    """Runs of which every name is someone's attack."""
    names = iter(HOSTILE)

    def renamed(content: dict[str, Any]) -> None:
        innermost(content)["model"] = HOSTILE[1]
        content["identity"]["task"] |= {"name": HOSTILE[0], "protocol": HOSTILE[2], "version": HOSTILE[3]}
        if content["methods"]:
            content["methods"] = [next(names), *content["methods"]]
        for entry in content["summary"]["metrics"].values():
            (parts,) = entry["breakdowns"].values()
            entry["breakdowns"] = {"category": dict(zip(HOSTILE[4:], parts.values(), strict=False))}

    return altered(folder, renamed)


def test_a_latex_board_of_hostile_names_is_balanced_and_has_its_columns(tmp_path: Path) -> None:
    text = shown("latex", hostile(tmp_path), ("category",))
    balanced(text)
    assert "/etc/passwd" in text and r"\input" not in text
    for columns, body in re.findall(
        r"\\begin\{tabular\}\{@\{\}(\w+)@\{\}\}\n(.*?)\\end\{tabular\}", text, re.DOTALL
    ):
        lines = [line for line in body.splitlines() if line.endswith(r" \\")]
        assert len(lines) > 10
        assert {len(re.findall(r"(?<!\\)&", line)) + 1 for line in lines} == {len(columns)}


@pytest.mark.skipif(
    shutil.which("pdflatex") is None, reason="no TeX here (apt install texlive-latex-recommended)"
)
def test_pdflatex_typesets_the_demos_board_and_hostile_names(tmp_path: Path) -> None:
    golden = (GOLDENS / "board.tex").read_text(encoding="utf-8")
    text = shown("latex", hostile(tmp_path / "runs"), ("category",))
    names = "\n\n".join(map(latex, HOSTILE[:-1]))
    letters = latex("".join(map(chr, range(0x20, 0x180))) + "–—×±→↑↓≥≤αβτρλ…", 1000)
    head = "\\documentclass{article}\n\\usepackage{booktabs,graphicx,xcolor}\n\\begin{document}\n"
    body = "\n\\clearpage\n".join((golden, names, letters, text))
    (tmp_path / "page.tex").write_text(f"{head}{body}\n\\end{{document}}\n")
    made = subprocess.run(
        ["pdflatex", "-halt-on-error", "-no-shell-escape", "page.tex"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        errors="replace",
    )
    assert made.returncode == 0, made.stdout[-3000:]
    assert (tmp_path / "page.pdf").stat().st_size > 10_000


@pytest.mark.parametrize("format", ["md", "csv", "json"])
def test_hostile_names_break_no_table(tmp_path: Path, format: str) -> None:
    text = shown(format, hostile(tmp_path), ("category",))
    text.encode()
    if format == "md":
        assert "<script" not in text and "<img" not in text
        tokens = MarkdownIt("commonmark").enable("table").parse(text)
        assert sum(token.type == "table_open" for token in tokens) == 2
        assert not [token for token in tokens if token.type in ("html_block", "fence", "code_block")]
    else:
        rows = rows_of(format, text)
        assert {row["task"] for row in rows} == {HOSTILE[0]} and len(rows) == 44


# ---------------------------------------------------------------- the command


def test_the_command_without_a_format_prints_the_terminals_table() -> None:
    made = fovea("board", DEMO, "--by", "category", cwd=ROOT, env={"COLUMNS": "160"})
    assert made.returncode == 0, made.stderr
    ours = [line.rstrip() for line in made.stdout.splitlines()]
    assert ours == [line.rstrip() for line in (GOLDENS / "board.txt").read_text("utf-8").splitlines()]


def test_the_command_says_a_text_or_writes_it(tmp_path: Path) -> None:
    said = fovea("board", DEMO, "--format", "md", "--by", "category", cwd=ROOT)
    assert said.stdout == (GOLDENS / "board.md").read_text("utf-8")
    words = ["--format", "md", "--by", "category", "--out", str(tmp_path / "new" / "b.md")]
    written = fovea("board", DEMO, *words, cwd=ROOT)
    assert written.returncode == 0 and written.stdout == ""
    assert (tmp_path / "new" / "b.md").read_text("utf-8") == said.stdout


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["--format", "parquet"], "Parquet is not for a terminal; write it into a file: --out board.parquet"),
        (["--out", "x.md"], "--out x.md: say in which format"),
        (["--samples", "--format", "md"], "--samples are pages of the html board: --format html --samples"),
        (
            ["--format", "csv", "--by", "age"],
            "--by age: these runs have no such grouping; they have category",
        ),
        (["--format", "md", "--out", "README.md/x.md"], "README.md/x.md cannot be written"),
    ],
)
def test_what_cannot_be_written_is_refused_with_the_remedy(words: list[str], complaint: str) -> None:
    made = fovea("board", DEMO, *words, cwd=ROOT)
    assert made.returncode == 2 and complaint in made.stderr and made.stdout == ""


if __name__ == "__main__":
    os.chdir(ROOT)
    GOLDENS.mkdir(exist_ok=True)
    for name, file in {"": "board.txt", **FILES}.items():
        (GOLDENS / file).write_text(demo(name), encoding="utf-8")
        print(GOLDENS / file)
