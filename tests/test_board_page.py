"""The HTML board in a real browser: it sorts, filters, plots and links, light and dark, wide and narrow."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from playwright.sync_api import expect

from harness import resolve, store
from harness.stats import Estimate
from harness.types import Usage
from leaderboard import _board_page, _web
from leaderboard._tables import Section
from leaderboard.board import Comparison, Cost, Row, comparisons
from leaderboard.published import SHIPPED, read
from tests.browser import browser, needs_browser, page
from tests.test_board_formats import DEMO, HOSTILE, ROOT, altered, hostile
from tests.test_cli import fovea

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

THEMES = ("light", "dark")


@pytest.fixture(scope="module")
def chromium() -> "Iterator[Browser]":
    with browser() as started:
        yield started


def write(runs: list[Path], folder: Path, **more: Any) -> Path:
    """The board of runs, with what papers report."""
    published = read(SHIPPED)
    found = [Section.of(one, published) for one in comparisons(runs, resolve.metric_from)]
    return _board_page.write(found, folder, **more)


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(store.find_runs(ROOT / DEMO), tmp_path_factory.mktemp("demo"), by=["category"])


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks; of one there are papers' numbers, and a run that was interrupted and one that still runs."""

    def as_textvqa(content: dict[str, Any]) -> None:
        content["identity"]["task"] |= {"name": "textvqa", "protocol": "vicrop"}
        for name in ("id", "baseline"):
            content[name] = content[name][::-1]
        if content["methods"] == ["random_crop"]:
            content["status"] = "interrupted"
        if content["methods"] == ["full_twice"]:
            del content["status"], content["summary"], content["spending"], content["times"]

    folder = tmp_path_factory.mktemp("tasks")
    runs = altered(folder / "runs", as_textvqa)
    return write([*runs, *store.find_runs(ROOT / DEMO)], folder / "board", without=2)


def methods(opened: "Page") -> list[str]:
    """The methods of the rows that are shown, in order."""
    cells = opened.locator("#board tbody td.method .name:not(.under)").all()
    return [cell.inner_text() for cell in cells]


def plots(opened: "Page") -> None:
    """Scroll to every plot, so that it is drawn."""
    for plot in opened.locator(".plot").all():
        plot.scroll_into_view_if_needed()
        opened.locator(f"#{plot.get_attribute('id')}[data-drawn] .main-svg").first.wait_for()


# ---------------------------------------------------------------- the folder


def test_equal_boards_are_equal_bytes_and_need_nothing_from_outside(tmp_path: Path, demo: Path) -> None:
    again = write(store.find_runs(ROOT / DEMO), tmp_path, by=["category"])
    files = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file())
    assert len(files) == 9
    for file in files:
        assert (tmp_path / file).read_bytes() == (demo.parent / file).read_bytes()
    text = again.read_text("utf-8")
    assert len(text) < 100_000, "no library is inlined"
    assert set(re.findall(r'(?:src|href)="([^"#]+)"', text)) - {"data:,"} == {
        "assets/base.css", "assets/theme.js", "assets/board.css", "assets/board.js",
        "assets/datatables.js", "board.csv", "board.json",
    }  # fmt: skip


def test_the_summary_says_how_much_there_is_and_what_has_no_rank(tasks: Path) -> None:
    text = tasks.read_text("utf-8")
    assert "22 runs · 2 tasks · 1 model · 10 methods." in text
    assert "18 ranked, 4 not: interrupted 1, oracle 2, running 1." in text
    assert "Beside them 16 numbers that papers report, not measured here." in text
    assert "Not shown: 2 runs without a metric, or found twice." in text


def test_a_method_without_its_identity_arm_is_counted(tmp_path: Path) -> None:
    runs = [path for path in store.find_runs(ROOT / DEMO) if "identity" not in path.name]
    text = write(runs, tmp_path).read_text("utf-8")
    assert "9 ranked runs without a difference to the same model without a method." in text


def test_another_bundle_than_the_known_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_web, "packaged", lambda package, name: "var a = 1;")
    with pytest.raises(_board_page.FoveaError, match="another bundle"):
        _board_page._datatables()


def test_a_missing_package_is_named() -> None:
    with pytest.raises(_board_page.FoveaError, match=r"x\.js of nonesuch: pip install nonesuch"):
        _web.packaged("nonesuch", "x.js")


def test_samples_that_cannot_be_written_are_faults_and_the_board_stands(tmp_path: Path) -> None:
    runs = store.find_runs(ROOT / DEMO)[:2]
    (tmp_path / "runs").write_text("in the way")
    board = [Section(one) for one in comparisons(runs, resolve.metric_from)]

    def task(run: Path) -> Any:
        return resolve.make_task(store.read_run(run)["task"])

    faults = _board_page.board(board, runs, resolve.metric_from, tmp_path, (), task, lambda _: None)
    assert len(faults) == 2 and all("has no sample page" in fault for fault in faults)
    assert '"page"' in (tmp_path / "index.html").read_text("utf-8")


def test_two_runs_of_one_id_have_a_sample_page_each(tmp_path: Path) -> None:
    def again(content: dict[str, Any]) -> None:
        content["provenance"]["started"] = "2026-12-01T00:00:00+00:00"

    runs = [*store.find_runs(ROOT / DEMO), *altered(tmp_path, again, "center_crop-*")]
    board = [Section(one) for one in comparisons(runs, resolve.metric_from)]
    places = _board_page._places(board)
    assert len(places) == len(set(places.values())) == 12
    assert "runs/aeb5fe6e-2/index.html" in places.values()


# ---------------------------------------------------------------- in the browser


@needs_browser
def test_the_table_shows_every_run_best_first_with_its_interval_and_cost(
    chromium: "Browser", demo: Path
) -> None:
    with page(chromium, width=1700) as opened:
        opened.goto(demo.as_uri())
        shown = methods(opened)
        assert shown[:3] == ["vicrop:locate=oracle", "vicrop:base=144", "vicrop:locate=rel_att"]
        assert len(shown) == 11
        oracle, best = opened.locator("#board tbody tr:not(.dtrg-group)").all()[:2]
        assert oracle.inner_text().startswith("–") and "oracle" in oracle.locator(".tag").inner_text()
        assert re.sub(r"\s+", " ", best.inner_text()).strip() == (
            "1 vicrop:base=144 0.817 [0.717, 0.900] +0.583 [+0.450, +0.717] .0010 60 of 60 3 × 3.0 616 × 3.9 "
            "4 × 2.0 0.020 × 1.5 2026-11-21 more"
        )
        assert best.locator(".value.best").inner_text() == "0.817"
        assert "exact[llava] accuracy, higher is better" in opened.locator(".dtrg-group").inner_text()


@needs_browser
def test_a_click_and_a_key_sort_and_what_is_missing_comes_last(chromium: "Browser", demo: Path) -> None:
    with page(chromium) as opened:
        opened.goto(demo.as_uri())
        heading = opened.locator("#board thead th", has_text="accuracy")
        heading.click()
        expect(heading).to_have_attribute("aria-sort", "descending")
        assert methods(opened)[0] == "vicrop:locate=oracle"
        heading.locator(".dt-column-order").press("Enter")
        expect(heading).to_have_attribute("aria-sort", "ascending")
        assert methods(opened)[0] in ("center_crop", "random_crop")
        assert methods(opened)[-1] == "vicrop:locate=oracle"
        difference = opened.locator("#board thead th", has_text="difference")
        for _ in range(2):
            difference.click()
            assert methods(opened)[-1] == "none", "it has no difference, whichever way they are sorted"


@needs_browser
def test_filters_and_the_search_narrow_the_table_and_the_plot(chromium: "Browser", tasks: Path) -> None:
    with page(chromium) as opened:
        opened.goto(tasks.as_uri())
        assert len(methods(opened)) == 22 + 16
        opened.select_option("#method", "center_crop")
        assert methods(opened) == ["center_crop", "center_crop"]
        opened.locator("#clear").click()
        opened.locator("#clear").wait_for(state="hidden")
        opened.select_option("#task", label="small_detail (digit)")
        assert len(methods(opened)) == 11
        assert opened.locator("#gain-task option:checked").inner_text() == "small_detail (digit)"
        opened.fill("#words", "rel_att")
        opened.locator(".dt-info", has_text="of 1 rows").wait_for()
        assert methods(opened) == ["vicrop:locate=rel_att"]
        plots(opened)
        assert opened.locator("#scatter .points path.point").count() == 1
        opened.locator("#clear").click()
        opened.select_option("#kind", "not ranked")
        assert sorted(methods(opened)) == ["full_twice", "random_crop", *["vicrop:locate=oracle"] * 2]
        running = opened.locator("#board tr", has_text="full_twice")
        assert "running" in running.inner_text() and "undefined" in running.inner_text()
        opened.fill("#words", "nothing is called so")
        opened.get_by_text("No run fits these filters.").wait_for()


@needs_browser
def test_papers_numbers_are_marked_and_come_after_ours_however_they_are_sorted(
    chromium: "Browser", tasks: Path
) -> None:
    with page(chromium) as opened:
        opened.goto(tasks.as_uri())
        opened.select_option("#task", label="textvqa (vicrop)")
        for _ in range(2):
            opened.locator("#board thead th", has_text="score").first.click()
            marks = [
                "reported" in (row.get_attribute("class") or "")
                for row in opened.locator("#board tbody tr:not(.dtrg-group)").all()
            ]
            assert marks == [False] * 11 + [True] * 16
        theirs = opened.locator("#board tr.reported").first
        assert theirs.locator(".tag").inner_text() == "reported" and " %" in theirs.inner_text()
        theirs.get_by_role("button", name="more").click()
        details = opened.locator("dl.details")
        assert "transcribed" in details.inner_text() and "2502.17422" in details.inner_text()


@needs_browser
def test_one_look_shows_a_score_per_task_and_each_tasks_best(chromium: "Browser", tasks: Path) -> None:
    with page(chromium) as opened:
        opened.goto(tasks.as_uri())
        line = opened.locator("#matrix tbody tr", has_text="vicrop:base=144")
        assert line.locator(".value.best").all_inner_texts() == ["0.817", "0.817"]
        assert opened.locator("#matrix thead th").all_inner_texts()[1:] == [
            "small_detail (digit)\naccuracy ↑",
            "textvqa (vicrop)\naccuracy ↑",
        ]


@needs_browser
def test_more_opens_everything_about_a_run_with_the_keyboard(chromium: "Browser", demo: Path) -> None:
    with page(chromium) as opened:
        opened.goto(demo.as_uri())
        button = opened.locator("td.more button").nth(1)
        button.focus()
        opened.keyboard.press("Enter")
        assert button.get_attribute("aria-expanded") == "true"
        told = opened.locator("dl.details").inner_text()
        for words in ("f83220f384a9e71d8d1cb9730a0538f47976cad0", "f0d38810", "fixed", "615 + 1", "60 of 60"):
            assert words in told
        opened.keyboard.press("Enter")
        assert opened.locator("dl.details").count() == 0


@needs_browser
def test_everything_can_be_reached_by_tab_and_the_first_stop_skips_to_the_content(
    chromium: "Browser", demo: Path
) -> None:
    with page(chromium) as opened:
        opened.goto(demo.as_uri())
        opened.keyboard.press("Tab")
        assert opened.evaluate("document.activeElement.className") == "skip"
        reached = set()
        for _ in range(60):
            opened.keyboard.press("Tab")
            reached.add(
                opened.evaluate("(e => e.id || e.className || e.tagName)(document.activeElement)").split()[0]
            )
        assert {"theme", "method", "kind", "words", "dt-column-order", "gain-cost"} <= reached


@needs_browser
def test_the_plots_follow_the_theme_button_and_the_chosen_cost(chromium: "Browser", demo: Path) -> None:
    with page(chromium) as opened:
        opened.goto(demo.as_uri())
        plots(opened)
        assert opened.locator("#scatter .points path.point").count() == 10
        assert opened.locator("#interval-1 .points path.point").count() == 11
        label = opened.locator("#interval-1 .ytick text").first
        colour = "e => getComputedStyle(e).fill"
        assert label.evaluate(colour) == "rgb(31, 35, 40)"
        opened.locator("#theme").click()
        assert label.evaluate(colour) == "rgb(230, 237, 243)"
        assert "tokens, times" in opened.locator("#scatter .xtitle").text_content()
        opened.select_option("#gain-cost", "forward_passes")
        assert "forward passes, times" in opened.locator("#scatter .xtitle").text_content()


@needs_browser
def test_hovering_a_point_says_all_about_its_run(chromium: "Browser", demo: Path) -> None:
    with page(chromium) as opened:
        opened.goto(demo.as_uri())
        plots(opened)
        box = opened.locator("#interval-1 .points path.point").first.bounding_box()
        assert box is not None
        opened.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        said = opened.locator("#interval-1 .hovertext").text_content()
        for words in (
            "vicrop:locate=oracle",
            "hf:demo",
            "0.983 [0.950, 1.000]",
            "Holm .0010",
            "seconds 0.015 × 1.1",
        ):
            assert said is not None and words in said


OVERLAPPING = """
() => [...document.querySelectorAll("#matrix td, #board td")].flatMap((cell) => {
  const box = cell.getBoundingClientRect();
  return [...cell.querySelectorAll(".tag, .value, small")].filter((part) => {
    const own = part.getBoundingClientRect();
    return own.width && (own.left < box.left - 1 || own.right > box.right + 1);
  }).map((part) => part.textContent);
})
"""
"""What is drawn beyond its cell."""


@needs_browser
@pytest.mark.parametrize("width", [320, 390, 768, 1024, 1161, 1280, 1500, 1700])
@pytest.mark.parametrize("board", ["demo", "tasks"])
def test_the_page_never_scrolls_sideways(
    chromium: "Browser", request: pytest.FixtureRequest, board: str, width: int
) -> None:
    with page(chromium, width=width, touch=width < 500) as opened:
        opened.goto(request.getfixturevalue(board).as_uri())
        opened.locator("td.more button").first.click()
        if width == 390:
            plots(opened)
        assert opened.evaluate("document.documentElement.scrollWidth") <= width
        assert opened.evaluate(OVERLAPPING) == []
        for name in ("method", "measured", "more"):
            assert opened.locator(f"#board td.{name}").first.is_visible()


LOWEST = """
() => {
  const parse = (text) => (text.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = parse(getComputedStyle(e).backgroundColor);
      if (colour.length < 4 || colour[3] === 1) return colour;
      if (colour[3] > 0) throw new Error(`half-transparent: ${e.outerHTML.slice(0, 80)}`);
    }
    return [255, 255, 255];
  };
  const found = [];
  const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const element = walk.currentNode.parentElement;
    if (!walk.currentNode.data.trim() || !element.checkVisibility()) continue;
    if (element.closest("script,noscript,option")) continue;
    const style = getComputedStyle(element);
    const ink = parse(element.namespaceURI.endsWith("svg") ? style.fill : style.color);
    const [a, b] = [light(ink), light(behind(element))].sort((x, y) => y - x);
    found.push([(a + 0.05) / (b + 0.05), walk.currentNode.data.trim().slice(0, 30), element.className]);
  }
  return [found.length, found.sort((x, y) => x[0] - y[0])[0]];
}
"""
"""How many texts are visible, and the one with the lowest contrast (WCAG 2.2, 1.4.3): its ratio and words."""


@needs_browser
@pytest.mark.parametrize("dark", [False, True], ids=THEMES)
@pytest.mark.parametrize("board", ["demo", "tasks"])
def test_every_text_has_the_contrast_that_wcag_aa_asks(
    chromium: "Browser", request: pytest.FixtureRequest, board: str, dark: bool
) -> None:
    with page(chromium, dark=dark) as opened:
        opened.goto(request.getfixturevalue(board).as_uri())
        plots(opened)
        opened.locator("td.more button").first.click()
        texts, (lowest, *where) = opened.evaluate(LOWEST)
        assert texts > 150
        assert lowest >= 4.5, where


@needs_browser
def test_controls_and_tables_have_names(chromium: "Browser", tasks: Path) -> None:
    with page(chromium) as opened:
        opened.goto(tasks.as_uri())
        for name in ("Task", "Model", "Method", "Show", "Search"):
            found = opened.locator("#filters").get_by_label(name, exact=True)
            assert found.count() == 1
        assert opened.get_by_role("table", name="Runs").count() == 1
        assert opened.get_by_role("region", name="Scores by task").count() == 1
        assert opened.locator("img, a:not([href]), button:empty").count() == 0


@needs_browser
def test_nothing_moves(chromium: "Browser", demo: Path) -> None:
    with page(chromium) as opened:
        opened.emulate_media(reduced_motion="reduce")
        opened.goto(demo.as_uri())
        plots(opened)
        assert opened.evaluate("document.getAnimations().length") == 0


@needs_browser
@pytest.mark.parametrize("width", [390, 1280])
def test_hostile_names_are_shown_as_text_everywhere(chromium: "Browser", tmp_path: Path, width: int) -> None:
    runs = hostile(tmp_path / "runs")
    index = write(runs, tmp_path / "board", by=["category"])
    with page(chromium, width=width) as opened:
        opened.goto(index.as_uri())
        assert opened.locator("script:not([src]):not([id=data])").count() == 0
        assert opened.locator("img, iframe, object").count() == 0
        assert HOSTILE[0] in opened.locator(".dtrg-group").first.inner_text()
        for button in opened.locator("td.more button").all()[:3]:
            button.click()
        assert HOSTILE[1] in opened.locator("dl.details").first.inner_text()
        plots(opened)
        box = opened.locator("#interval-1 .points path.point").first.bounding_box()
        assert box is not None
        opened.mouse.move(box["x"] + 4, box["y"] + 4)
        said = opened.locator("#interval-1 .hovertext").text_content()
        assert said is not None and "onerror" in said
        assert opened.locator("svg a, svg image").count() == 0
        assert opened.evaluate("document.documentElement.scrollWidth") <= width
        shown = opened.locator("#board tbody td.method .name").all_inner_texts()
        assert any("very long" in name for name in shown) and any("\u0639" in name for name in shown)


@needs_browser
def test_a_link_leads_to_the_samples_and_back(chromium: "Browser", tmp_path: Path) -> None:
    runs = store.find_runs(ROOT / DEMO)
    stub = _web.render("page.html.j2", assets="../../assets")
    _web.write(tmp_path / "runs" / "f0d38810", {"index.html": stub.replace("<main", "<main data-stub")})
    said: list[str] = []
    board = [Section(one) for one in comparisons(runs, resolve.metric_from)]
    _board_page.board(board, runs, resolve.metric_from, tmp_path, (), None, said.append)
    assert said == [str(tmp_path / "index.html")]
    with page(chromium) as opened:
        opened.goto((tmp_path / "index.html").as_uri())
        links = opened.get_by_role("link", name="samples")
        assert links.count() == 1, "only where there is such a page"
        links.click()
        opened.locator("main[data-stub]").wait_for(state="attached")
        assert opened.url.endswith("runs/f0d38810/index.html")
        opened.go_back()
        assert len(methods(opened)) == 11


@needs_browser
def test_the_command_writes_a_board_whose_links_open_the_samples(chromium: "Browser", tmp_path: Path) -> None:
    words = ["--format", "html", "--samples", "--out", str(tmp_path)]
    runs = [path for path in store.find_runs(DEMO) if path.name.split("-")[0] in ("identity", "center_crop")]
    made = fovea("board", *runs, *words, cwd=ROOT)
    assert made.returncode == 0 and made.stdout == f"{tmp_path / 'index.html'}\n", made.stderr
    with page(chromium) as opened:
        opened.goto((tmp_path / "index.html").as_uri())
        assert opened.get_by_role("link", name="samples").count() == 2
        row = opened.locator("tr", has_text="center_crop")
        leads = row.get_by_role("link", name="samples").get_attribute("href")
        assert leads == "runs/aeb5fe6e/index.html"
        opened.goto((tmp_path / leads).as_uri())  # a click may come while the table is being drawn
        opened.get_by_text("2000/0 ·").first.wait_for()


# ---------------------------------------------------------------- many runs


def many(models: int, methods_each: int) -> list[Section]:
    """One comparison of made-up rows."""
    rows = []
    for place in range(models * methods_each):
        model, method = divmod(place, methods_each)
        value = 0.9 - place / 5000
        times = Cost(1.0 + method, 1.0, 1.0, 1.0 + method, 1.0 + method, None, 1.0) if method else None
        rows.append(
            Row(
                path=Path(f"runs/{place}"),
                id=f"{place:08x}",
                model=f"hf:org/model-{model}",
                method=f"vicrop:layer={method}" if method else "none",
                score=Estimate(value, value - 0.02, value + 0.02),
                difference=Estimate(0.1, 0.05, 0.15) if method else None,
                scored=1000,
                n=1000,
                usage=Usage(calls=1000),
                cost=Cost(1, 600, 3, 603, 0.5, 0, 2),
                times=times,
                rank=place + 1,
            )
        )
    return [Section(Comparison("task", "std", "exact", "accuracy", True, tuple(rows)))]


@needs_browser
def test_a_big_board_is_paged_searched_and_plotted(chromium: "Browser", tmp_path: Path) -> None:
    index = _board_page.write(many(20, 100), tmp_path)
    with page(chromium) as opened:
        opened.goto(index.as_uri())
        assert len(methods(opened)) == 50
        opened.locator(".dt-info", has_text="1 to 50 of 2,000 rows").wait_for()
        opened.get_by_role("link", name="Next").or_(opened.get_by_role("button", name="Next")).click()
        opened.locator(".dt-info", has_text="51 to 100").wait_for()
        opened.fill("#words", "model-19")
        opened.locator(".dt-info", has_text="of 100 rows").wait_for()
        opened.fill("#words", "")
        plots(opened)
        assert opened.locator("#scatter .points path.point").count() == 1980
        assert "shown on hover only" in opened.locator("#gain-note").inner_text()
        assert opened.locator("#interval-1 .points path.point").count() <= 45
        assert opened.evaluate("document.querySelectorAll('*').length") < 20_000


@needs_browser
def test_a_page_of_no_runs_says_so(chromium: "Browser", tmp_path: Path) -> None:
    index = _board_page.write([], tmp_path, without=1)
    text = index.read_text("utf-8")
    assert "No runs with scores." in text and "Not shown: 1 run without a metric" in text
    data = re.search(r'<script id="data" type="application/json">(.*?)</script>', text)
    assert data and json.loads(data[1]) == {"comparisons": [], "columns": ["page"], "rows": []}
    with page(chromium) as opened:
        opened.goto(index.as_uri())
        assert opened.locator("#board tbody").inner_text().strip() == "No runs with scores."
        assert not opened.locator("#gain, #look, #scores").filter(visible=True).count()
