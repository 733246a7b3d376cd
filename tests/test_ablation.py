"""A sweep's pivot, plots and best cell: which knobs are drawn how, what is told apart, which files stay."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from browser import browser, needs_browser, page
from rich.console import Console

from harness import paired, resolve, stats, store
from harness.errors import StoreError
from harness.grid import cells, read
from harness.store import Record
from harness.summary import metric_json, metric_key, slim, summarise
from harness.types import Failure, Usage, digest
from leaderboard import _ablation_figures as figures
from leaderboard import _ablation_tables as tables
from leaderboard._ablation import family, flat
from leaderboard.ablation import PLAIN, Ablation, ablations
from leaderboard.cli import ablation as report

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "results" / "baselines" / "demo"
GOLDENS = Path(__file__).parent / "goldens" / "sweep"
MODEL = {"adapter": "hf", "model": "org/tiny"}
METRIC = resolve.make_metric("exact")


def stored(
    folder: Path,
    knobs: Mapping[str, Any] | None,
    right: Sequence[bool],
    *,
    model: Mapping[str, Any] = MODEL,
    tokens: int = 100,
    task: str = "toy",
    status: str = "complete",
    failed: bool = False,
) -> Path:
    """A run of `right` answers, as a run leaves it. knobs: of its method; None is the identity arm."""
    described = dict(model) if knobs is None else {"model": dict(model), **knobs}
    about = {"name": task, "version": "1", "protocol": "p", "fingerprint": "f"}
    ids = [f"s{place}" for place in range(len(right))]

    def identifier(chain: Mapping[str, Any]) -> str:
        return digest({"task": about, "model": chain})

    records = [
        Record(
            sample_id=name,
            group=name,
            text="",
            usage=Usage(1, tokens, 1, 1, 1, 0.1),
            failure=Failure("refused", "no") if failed else None,
            measures={} if failed else {metric_key(METRIC): {"score": float(good), "scored": 1}},
        )
        for name, good in zip(ids, right, strict=True)
    ]

    rows = [slim(record) for record in records]
    content = {
        "schema": 1,
        "id": identifier(described),
        "baseline": identifier(dict(model)),
        "identity": {"task": about, "oracle": (knobs or {}).get("locate") == "oracle", "model": described},
        "task": task,
        "methods": [] if knobs is None else [str(knobs["method"])],
        "selection": {"n": len(ids), "of": len(ids), "repeats": 1, "digest": digest([ids, 1]), "ids": ids},
        "metrics": [metric_json(METRIC)],
        "primary": "accuracy",
        "breakdowns": [],
        "provenance": {"started": identifier(described)[:8], "commit": None},
        "status": status,
        "summary": summarise([METRIC], rows, len(rows)),
        "spending": {"usage": asdict(sum((row.usage for row in rows), Usage()))},
    }
    path = folder / f"{digest(described)[:12]}"
    path.mkdir(parents=True)
    (path / store.RUN).write_text(json.dumps(content))
    (path / store.RECORDS).write_text("".join(record.line() + "\n" for record in records))
    return path


def answers(rate: float, n: int = 200, seed: int = 0) -> list[bool]:
    """Right answers at a rate, the same samples being easy for everyone."""
    return list(np.random.default_rng(seed).random(n) < rate)


def swept(folder: Path, arms: Sequence[tuple[Mapping[str, Any], float]], n: int = 200) -> list[Ablation]:
    """The ablations of an identity arm at .4 and of these arms."""
    paths = [stored(folder, None, answers(0.4, n))]
    paths += [
        stored(folder, knobs, answers(rate, n), tokens=100 + 40 * k) for k, (knobs, rate) in enumerate(arms)
    ]
    return ablations(paths, resolve.metric_from)


def demo() -> list[Path]:
    """The committed runs, in the grid's order."""
    runs = {tuple(store.read_run(path)["methods"]): path for path in store.find_runs(DEMO)}
    return [runs[cell.methods] for cell in cells(read(ROOT / "recipes" / "demo.yaml"))]


def drawn(found: Sequence[Ablation]) -> dict[str, bytes]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return figures.files(found)


# ---------------------------------------------------------------- which knobs are drawn how


def kinds(*described: Mapping[str, Any]) -> list[tuple[str, tuple[str, ...], int]]:
    found = family("m", [flat(each) for each in described])
    return [(panel.kind, panel.knobs, len(panel.members)) for panel in found.panels]


def test_one_knob_is_a_panel_whose_default_has_its_value() -> None:
    runs = [{"tau": tau, "beta": 0.1} for tau in (1.5, 0.5, 4)]
    assert kinds(*runs) == [("knob", ("tau",), 3)]


def test_knobs_varied_one_at_a_time_are_a_panel_each_with_the_run_around_which_they_were() -> None:
    runs = [{"a": 1, "b": 1, "c": "x"}, {"a": 2, "b": 1, "c": "x"}, {"a": 1, "b": 5, "c": "x"}]
    runs.append({"a": 1, "b": 1, "c": "y"})
    assert kinds(*runs) == [("knob", ("a",), 2), ("knob", ("b",), 2), ("knob", ("c",), 2)]
    found = family("m", [flat(run) for run in runs])
    assert [found.label(place) for place in range(4)] == ["m (usual knobs)", "m a=2", "m b=5", "m c=y"]


def test_combinations_of_two_knobs_are_a_map_and_of_three_a_map_for_each_value_of_the_third() -> None:
    two = [{"a": a, "b": b} for a in (1, 2, 3) for b in (1, 2)]
    assert kinds(*two) == [("map", ("b", "a"), 6)]
    assert kinds(*two[:-1]) == [("map", ("b", "a"), 5)], "one was excluded"
    three = [{**each, "c": c} for each in two for c in "xyz"]
    found = family("m", three)
    assert [(panel.knobs, panel.held) for panel in found.panels] == [
        (("a", "c"), "b=1"),
        (("a", "c"), "b=2"),
    ]
    assert all(len(panel.members) == 9 for panel in found.panels)


def test_what_is_neither_is_left_to_the_list_of_cells() -> None:
    scattered = [{"a": k, "b": k * k % 7, "c": k % 3} for k in range(7)]
    assert kinds(*scattered) == []


def test_knobs_that_change_together_are_one_and_a_model_goes_by_its_name() -> None:
    judges = [{"judge": {"adapter": "x", "model": name, "revision": name[::-1]}} for name in ("ab", "cd")]
    assert kinds(*judges) == [("knob", ("judge.model",), 2)]
    assert kinds({"a": 1, "b": "x"}, {"a": 2, "b": "y"}) == [("knob", ("a",), 2)]


def test_a_whole_grid_of_a_paper_is_drawn_knob_by_knob(tmp_path: Path) -> None:
    """SPARC's ablations as they describe themselves: four knobs around the released setting, and a pair."""
    usual = {
        "method": "sparc",
        "layer": 20,
        "tau": 1.5,
        "alpha": 1.1,
        "select": "rising",
        "fidelity": "fixed",
    }
    arms = [
        usual,
        *({**usual, "layer": layer} for layer in (0, 8, 16)),
        *({**usual, "tau": t} for t in (1, 4)),
    ]
    arms += [{**usual, "select": s, "alpha": a} for s in ("all", "random") for a in (1.05, 1.1)]
    (found,) = swept(tmp_path, [(arm, 0.5) for arm in arms], n=30)
    ((one, members),) = found.families
    assert [panel.knobs for panel in one.panels] == [("layer",), ("tau",), ("select",)]
    assert sum(arm.centre for arm in members) == 1
    listed = tables.markdown([found], "g", "")
    assert listed.replace("**", "").count("| sparc |") == 10, (
        "those between the panels are in the table like all others"
    )


# ---------------------------------------------------------------- the best cell


class Mean:
    """The share of the right."""

    name, variant, scope, additive = "mean", "", "sample", True
    higher_is_better: Mapping[str, bool] = {"mean": True}

    def reduce(self, counts: Sequence[Mapping[str, float]]) -> dict[str, float | None]:
        number = sum(count["n"] for count in counts)
        return {"mean": sum(count["k"] for count in counts) / number if number else None}


def counts(right: Iterator[bool] | Sequence[bool]) -> list[dict[str, float]]:
    return [{"k": float(good), "n": 1.0} for good in right]


def test_the_intervals_of_ten_equal_cells_hold_all_at_once_where_plain_ones_do_not() -> None:
    """Nine cells that are as good as the identity arm, 150 samples, 150 draws of all that: the best of them
    is told apart from it in one in twenty, where its plain interval says so two and a half times as often."""
    rng = np.random.default_rng(3)
    draws, held, plain = 150, 0, 0
    for _ in range(draws):
        some = [counts(row) for row in rng.random((10, 150)) < 0.5]
        found = stats.simultaneous(Mean(), some, [(k, 0) for k in range(1, 10)], draws=500)["mean"]  # type: ignore[arg-type]
        held += all(one.low <= 0 <= one.high for one in found)  # type: ignore[operator]
        best = max(range(9), key=lambda k: found[k].value or 0)
        alone = paired.paired_difference(Mean(), some[best + 1], some[0], draws=500)["mean"]  # type: ignore[arg-type]
        plain += alone.low <= 0 <= alone.high  # type: ignore[operator]
    assert 0.90 <= held / draws <= 0.99
    assert plain / draws <= 0.92


def test_one_contrast_alone_is_about_the_plain_interval_and_clusters_widen_it() -> None:
    rng = np.random.default_rng(0)
    first, second = (counts(rng.random(300) < rate) for rate in (0.5, 0.6))
    (one,) = stats.simultaneous(Mean(), [first, second], [(1, 0)])["mean"]  # type: ignore[arg-type]
    plain = paired.paired_difference(Mean(), second, first)["mean"]  # type: ignore[arg-type]
    assert one.value == plain.value
    assert (one.low, one.high) == pytest.approx((plain.low, plain.high), abs=0.01)
    doubled = [side + side for side in (first, second)]
    owners = [*range(300), *range(300)]
    (same,) = stats.simultaneous(Mean(), doubled, [(1, 0)], owners)["mean"]  # type: ignore[arg-type]
    assert same.high - same.low == pytest.approx(one.high - one.low, rel=1e-9)  # type: ignore[operator]


def test_contrasts_that_do_not_vary_or_are_undefined_leave_the_others_alone() -> None:
    rng = np.random.default_rng(0)
    cell, other = (counts(rng.random(100) < 0.5) for _ in range(2))
    empty = [{"k": 0.0, "n": 0.0}] * 100
    some = [cell, other, cell, empty]
    alone = stats.simultaneous(Mean(), some, [(1, 0)])["mean"]  # type: ignore[arg-type]
    found = stats.simultaneous(Mean(), some, [(1, 0), (2, 0), (3, 0), (3, None)])["mean"]  # type: ignore[arg-type]
    assert found[0] == alone[0]
    assert found[1] == stats.Estimate(0.0, 0.0, 0.0)
    assert found[2] == found[3] == stats.Estimate(None, None, None)
    with pytest.raises(ValueError, match="cells need equal samples"):
        stats.simultaneous(Mean(), [cell, other[:-1]], [(1, 0)])  # type: ignore[arg-type]


def test_the_best_cell_says_what_it_is_not_told_apart_from(tmp_path: Path) -> None:
    arms = [({"method": "m", "tau": tau}, rate) for tau, rate in ((1, 0.62), (2, 0.6), (4, 0.41))]
    (found,) = swept(tmp_path, arms)
    best = found.best
    assert best is not None and (best.arm.label, best.of, best.n, best.second) == (
        "m tau=1",
        4,
        200,
        "m tau=2",
    )
    assert best.tied == ("m tau=2",) and best.beaten == ("m tau=4", PLAIN)
    plain = best.arm.row.difference
    assert plain is not None and best.gain is not None and best.gain.low is not None and plain.low is not None
    assert 0 < best.gain.low < plain.low, "wider than it would be alone, and still above nothing"
    said = tables.verdict(found)
    assert "Best of 4: m tau=1, accuracy 0.565 [" in said and "Cannot be told apart from: m tau=2." in said
    assert "It is told apart from no method. It is not told apart from the second best, m tau=2." in said


def test_intervals_of_a_share_do_not_leave_what_a_share_can_be(tmp_path: Path) -> None:
    (found,) = swept(tmp_path, [({"method": "m", "tau": tau}, 0.97) for tau in (1, 2)], n=40)
    assert found.best is not None and found.best.score.high == 1.0 and found.best.score.low is not None
    assert 0 < found.best.score.low < (found.best.score.value or 0) < 1
    assert all(arm.gain is None or (arm.gain.high or 0) <= 1 for arm in found.arms)


def test_of_equal_cells_the_one_without_a_method_is_best(tmp_path: Path) -> None:
    (found,) = swept(tmp_path, [({"method": "m", "tau": tau}, 0.4) for tau in (1, 2)])
    assert found.best is not None and found.best.arm.part == "identity"
    assert "No method is better than none here" in tables.verdict(found)


def test_an_oracle_and_a_run_that_has_not_ended_are_shown_and_never_the_best(tmp_path: Path) -> None:
    paths = [stored(tmp_path, None, answers(0.4)), stored(tmp_path, {"method": "m", "tau": 1}, answers(0.5))]
    paths.append(stored(tmp_path, {"method": "m", "tau": 1, "locate": "oracle"}, answers(0.99)))
    paths.append(stored(tmp_path, {"method": "m", "tau": 2}, answers(0.9), status="interrupted"))
    (found,) = ablations(paths, resolve.metric_from)
    assert found.best is not None and found.best.arm.row.path == paths[1] and found.best.of == 2
    assert found.arms[2].gain is not None and found.arms[3].gain is None
    listed = tables.markdown([found], "g", "")
    assert "m (oracle)" in listed and "m (interrupted)" in listed
    drawn([found])


def test_a_grid_without_its_identity_arm_has_scores_and_no_differences(tmp_path: Path) -> None:
    paths = [stored(tmp_path, {"method": "m", "tau": tau}, answers(0.5)) for tau in (1, 2)]
    (found,) = ablations(paths, resolve.metric_from)
    assert (
        found.identity is None and found.cost is None and found.best is not None and found.best.gain is None
    )
    assert {name.rpartition("-")[2] for name in drawn([found])} == {
        f"{w}.{k}" for w in ("knobs", "cells") for k in ("png", "svg")
    }
    assert "difference" not in tables.markdown([found], "g", "").split("exact")[0]


def test_models_beside_each_other_are_a_grid_too(tmp_path: Path) -> None:
    models = [{"adapter": "clip", "model": name} for name in ("a/one", "a/two")]
    models.append({**models[1], "max_word": 90})
    paths = [
        stored(tmp_path, None, answers(rate), model=model)
        for model, rate in zip(models, (0.2, 0.6, 0.6), strict=True)
    ]
    (found,) = ablations(paths, resolve.metric_from)
    assert found.model == "" and len({arm.label for arm in found.arms}) == 3
    assert found.best is not None and found.best.beaten and found.best.tied
    assert set(drawn([found])) >= {"toy-p-cells.png", "toy-p-cells.svg"}
    assert "clip:a/two" in tables.markdown([found], "g", "")


def test_cells_whose_samples_all_failed_are_listed_and_harmless(tmp_path: Path) -> None:
    paths = [
        stored(tmp_path, knobs, answers(0.5), failed=True) for knobs in (None, {"method": "m", "tau": 1})
    ]
    (found,) = ablations(paths, resolve.metric_from)
    assert found.best is None and drawn([found]) == {}
    assert "undefined" in tables.markdown([found], "g", "") and "No best cell" in tables.verdict(found)


# ---------------------------------------------------------------- the files


def golden(found: Sequence[Ablation]) -> dict[str, str]:
    """Every format of the table, as text."""
    console = Console(width=160, record=True, file=io.StringIO(), color_system=None)
    for one in found:
        for sheet in tables.sheets(one):
            console.print(tables.terminal(sheet, 160))
        console.print(tables.verdict(one), markup=False, highlight=False)
    return {
        "demo.txt": "\n".join(line.rstrip() for line in console.export_text().splitlines()) + "\n",
        "demo.md": tables.markdown(found, "demo", "What ViCrop's map, layer and crop size are worth."),
        "demo.csv": tables.as_csv(found),
        "demo.tex": tables.latex(found),
    }


@pytest.mark.parametrize("name", ["demo.txt", "demo.md", "demo.csv", "demo.tex"])
def test_the_demos_table_is_the_golden_byte_for_byte(name: str) -> None:
    """To write the goldens again: python -m tests.test_ablation, and look at what git says of them."""
    made = golden(ablations(demo(), resolve.metric_from))[name]
    assert made == (GOLDENS / name).read_text(encoding="utf-8")


def test_equal_runs_give_equal_drawings(tmp_path: Path) -> None:
    found = ablations(demo(), resolve.metric_from)
    one, other = drawn(found), drawn(found)
    assert one == other and len(one) == 6
    assert b"<dc:date>" not in one["small_detail-digit-hf-demo-cost.svg"]


def test_the_report_only_reads_its_runs_and_says_where_it_wrote(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {
        path: hashlib.sha256(path.read_bytes()).hexdigest() for path in DEMO.rglob("*") if path.is_file()
    }
    out = tmp_path / "sweeps" / "demo"
    report(demo(), resolve.metric_from, Console(width=160), out, name="demo", about="")
    after = {
        path: hashlib.sha256(path.read_bytes()).hexdigest() for path in DEMO.rglob("*") if path.is_file()
    }
    assert before == after
    printed = capsys.readouterr().out
    assert "Best of 10: vicrop base=144" in printed.replace("\n", " ") and str(out / "index.html") in printed
    assert {path.name for path in out.iterdir()} >= {
        "pivot.md",
        "pivot.csv",
        "pivot.tex",
        "index.html",
        "assets",
    }


def test_a_folder_that_cannot_be_written_is_told_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written.*Choose"):
        report(demo(), resolve.metric_from, Console(quiet=True), tmp_path / "file", name="g", about="")


HOSTILE = [
    "$x_1$",
    "a\nb",
    "x" * 200,
    "漢字の名前",
    "</script><script>alert(1)</script>",
    "=cmd()",
    "}\\end{table}%",
    "\u202e",
]


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a sweep whose knob has values that no plot, page or table may trip over."""
    folder = tmp_path_factory.mktemp("hostile")
    found = swept(folder / "runs", [({"method": "m$_{x}$", "word": word}, 0.5) for word in HOSTILE], n=40)
    paths = [arm.row.path for one in found for arm in one.arms]
    report(paths, resolve.metric_from, Console(quiet=True), folder / "out", name="$g$ & <b>", about="<i>")
    return folder / "out"


def test_hostile_names_are_written_and_never_obeyed(hostile: Path) -> None:
    written = (hostile / "index.html").read_text()
    assert "<script>alert" not in written and "<i>" not in written and "<b>" not in written
    assert "'=cmd()" in (hostile / "pivot.csv").read_text(), "no spreadsheet takes it for a formula"
    assert "\\}\\textbackslash{}end" in (hostile / "pivot.tex").read_text()
    for name in ("pivot.md", "pivot.tex", "index.html"):
        text = (hostile / name).read_text()
        assert "x" * 100 not in text and "\u202e" not in text


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no TeX on this machine")
def test_the_latex_compiles(tmp_path: Path) -> None:
    two = [({"method": "m_x", "a": a, "b": b}, 0.4 + 0.1 * a) for a in (0.5, 1) for b in (1, 2)]
    found = [*ablations(demo(), resolve.metric_from), *swept(tmp_path / "runs", two, n=40)]
    (tmp_path / "t.tex").write_text(
        "\\documentclass{article}\\usepackage[utf8]{inputenc}\\usepackage[T1]{fontenc}\\usepackage{booktabs}"
        "\\usepackage[landscape]{geometry}\\begin{document}\\input{pivot}\\end{document}"
    )
    (tmp_path / "pivot.tex").write_text(tables.latex(found))
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout[-2000:]


# ---------------------------------------------------------------- the page


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as started:
        yield started


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page with every kind of drawing: the demo's panels, a map, and models beside each other."""
    folder = tmp_path_factory.mktemp("page")
    two = [({"method": "m", "a": a, "b": b}, 0.4 + 0.05 * a) for a in (1, 2, 3) for b in (1, 2)]
    found = swept(folder / "map", two, n=40)
    models = [
        stored(folder / "models", None, answers(r), model={"adapter": "c", "model": f"m{r}"}, task="pair")
        for r in (0.3, 0.6)
    ]
    paths = [*demo(), *(arm.row.path for one in found for arm in one.arms), *models]
    report(paths, resolve.metric_from, Console(quiet=True), folder / "out", name="all", about="Everything.")
    return folder / "out" / "index.html"


@needs_browser
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False)])
def test_the_page_draws_every_plot_in_both_themes_and_on_a_phone(
    chromium: Browser, shown: Path, width: int, dark: bool
) -> None:
    with page(chromium, width=width, dark=dark) as opened:
        opened.goto(shown.as_uri())
        for place in range(opened.locator(".plots > div").count()):
            box = opened.locator(".plots > div").nth(place)
            box.scroll_into_view_if_needed()
            box.locator(".main-svg").first.wait_for()
        assert opened.locator(".plots > div").count() == 7  # 3 of the demo, 3 of the map, 1 of the models
        assert opened.evaluate("document.documentElement.scrollWidth") <= width
        ink = "getComputedStyle(document.querySelector('.xtick text')).fill"
        before = opened.evaluate(ink)
        opened.click("#theme")
        opened.wait_for_function(f"{ink} !== '{before}'")


@needs_browser
def test_a_hostile_name_is_text_on_the_page_and_in_its_plots(chromium: Browser, hostile: Path) -> None:
    with page(chromium) as opened:
        opened.goto((hostile / "index.html").as_uri())
        opened.locator(".main-svg").first.wait_for()
        assert opened.title() == "$g$ & <b>"
        assert opened.get_by_role("cell", name="</script><script>alert(1)</script>").count() == 1
        assert opened.locator("text=<script").count() > 0 and opened.locator("main i, main b").count() == 0


if __name__ == "__main__":
    GOLDENS.mkdir(parents=True, exist_ok=True)
    for name, text in golden(ablations(demo(), resolve.metric_from)).items():
        (GOLDENS / name).write_text(text, encoding="utf-8")
