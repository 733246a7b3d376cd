"""The sample pages in a real browser: what a reader sees and does, and that nothing a record says acts."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from harness import matching
from harness.types import ImportanceMap, Response, Sample
from leaderboard.viewer import export
from metrics import chair
from tasks import scene_retrieval, small_detail
from tests.browser import browser, needs_browser, page
from tests.test_samples_patches import trace as parts_trace
from tests.test_view import IDENTITY, VICROP, exported, matched, photograph, ran, sample

pytestmark = needs_browser
__all__ = ["export", "matched"]

WIDE = "document.documentElement.scrollWidth > innerWidth"
CONTRAST = """() => {
  const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const part = (v) => (v / 255 <= 0.03928 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => 0.2126 * part(r) + 0.7152 * part(g) + 0.0722 * part(b);
  const ground = (element) => {
    const over = [];
    for (let each = element; each; each = each.parentElement) {
      const style = getComputedStyle(each).backgroundColor;
      const whole = style.startsWith("color(") ? 255 : 1;
      const [r, g, b, a = 1] = numbers(style).map((v, at) => (at < 3 ? v * whole : v));
      if (a > 0) over.push([r, g, b, a]);
      if (a === 1) break;
    }
    const mix = (under, [r, g, b, a]) => [r, g, b].map((v, at) => v * a + under[at] * (1 - a));
    return over.reduceRight(mix, [255, 255, 255]);
  };
  const poor = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    const box = element.getBoundingClientRect();
    if (!own || !box.width || element.closest(".skip, svg, option") || element.matches(":disabled")) continue;
    const [one, two] = [light(numbers(getComputedStyle(element).color)), light(ground(element))];
    const ratio = (Math.max(one, two) + 0.05) / (Math.min(one, two) + 0.05);
    if (ratio < 4.5) poor.push(`${element.className} ${ratio.toFixed(2)} ${element.textContent.slice(0, 9)}`);
  }
  return poor;
}"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as started:
        yield started


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one")
    exported([VICROP], folder, small_detail.task)
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    exported([IDENTITY, VICROP], folder, small_detail.task)
    return folder


@pytest.fixture(scope="module")
def mapped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One sample of 200 × 100 px, with a map over its middle square and a crop."""
    folder = tmp_path_factory.mktemp("mapped")
    path = photograph(folder / "a.png", (200, 100))
    values = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    answer = Response(
        "grey",
        maps=(ImportanceMap(values, (50, 0, 150, 100)),),
        trace={"method": "vicrop", "box": [20, 10, 60, 50]},
    )
    run = ran(
        folder, [sample("a", path, meta={"region": [150, 50, 170, 60]})], lambda _: answer, save_traces=True
    )
    exported([run], folder / "view")
    return folder / "view"


def start(opened: Any, folder: Path, hash: str = "") -> Any:
    opened.goto((folder / "index.html").as_uri() + hash)
    opened.wait_for_selector("#sample .top, #sample .bad")
    return opened


def at(opened: Any) -> str:
    return str(opened.locator("#sample .id").inner_text())


def shows(opened: Any, text: str) -> None:
    """Wait for the number of samples to be that."""
    opened.locator("#count", has_text=text).wait_for()


# ---------------------------------------------------------------- reading a run


def test_a_sample_shows_its_picture_its_words_and_its_crop(chromium: Any, one: Path) -> None:
    with page(chromium) as opened:
        start(opened, one, "#id=2000%2F1")
        assert at(opened) == "2000/1"
        words = opened.locator("#sample").inner_text()
        for text in (
            "What digit is on the green cross?",
            "wrong, accuracy 0",
            "3 calls",
            "615 tokens in",
            "16-19 px",
        ):
            assert text in words
        image = opened.locator(".stage img")
        image.evaluate("image => image.decode()")
        assert image.evaluate("image => image.naturalWidth") == 576
        assert opened.locator(".looks figure").count() == 2, "the crop, and what is around the target"


def test_buttons_and_keys_go_on_and_back(chromium: Any, one: Path) -> None:
    with page(chromium) as opened:
        start(opened, one)
        seen = [at(opened)]
        for key in ("j", "ArrowRight", "k", "ArrowLeft"):
            opened.keyboard.press(key)
            opened.wait_for_timeout(50)
            seen.append(at(opened))
        assert seen == ["2000/0", "2000/1", "2000/2", "2000/1", "2000/0"]
        opened.get_by_role("button", name="Next sample").click()
        opened.locator("#sample .id", has_text="2000/1").wait_for()
        assert opened.get_by_role("button", name="Previous sample").is_enabled()
        opened.keyboard.press("k")
        opened.locator("#sample .id", has_text="2000/0").wait_for()
        assert opened.get_by_role("button", name="Previous sample").is_disabled()


def test_filters_by_verdict_by_category_and_by_text_narrow_the_list(chromium: Any, one: Path) -> None:
    with page(chromium) as opened:
        start(opened, one)
        shows(opened, "60 samples")
        opened.get_by_role("button", name="Wrong").click()
        shows(opened, "15 of 60")
        assert opened.locator(".row .glyphs").first.get_attribute("aria-label") == "wrong"
        opened.get_by_role("combobox", name="category").select_option(index=1)
        narrowed = opened.locator("#count").inner_text()
        assert int(narrowed.split()[0]) < 15
        opened.get_by_role("button", name="Clear").click()
        shows(opened, "60 samples")
        opened.keyboard.press("/")
        opened.keyboard.type("YELLOW circle")
        opened.locator("#count", has_text="of 60").wait_for()
        assert all(
            "yellow circle" in text for text in opened.locator(".row p:nth-of-type(2)").all_inner_texts()
        )
        opened.keyboard.type(" that is not there")
        shows(opened, "0 of 60")
        assert "Clear the filters" in opened.locator("#list").inner_text()


def test_a_link_brings_back_filters_and_sample(chromium: Any, one: Path) -> None:
    with page(chromium) as opened:
        start(opened, one)
        opened.get_by_role("button", name="Wrong").click()
        opened.get_by_role("combobox", name="category").select_option(index=1)
        opened.locator("#text").fill("digit")
        opened.locator("#order").select_option("worst")
        opened.locator(".row").nth(1).click()
        opened.wait_for_timeout(100)
        address, name, number = opened.url, at(opened), opened.locator("#count").inner_text()
    with page(chromium) as opened:
        opened.goto(address)
        opened.locator("#sample .id", has_text=name).wait_for()
        shows(opened, number)
        assert opened.locator("#text").input_value() == "digit"
        assert opened.get_by_role("button", name="Wrong").get_attribute("aria-pressed") == "true"


def test_a_link_to_a_sample_that_is_not_there_says_so(chromium: Any, one: Path) -> None:
    with page(chromium) as opened:
        start(opened, one, "#id=nowhere&which=nonsense&order=nonsense&in=category%09nonsense")
        assert "The link names nowhere" in opened.locator("#sample").inner_text()
        assert at(opened) == "2000/0"


def test_the_next_sample_is_reached_without_a_pointer(chromium: Any, one: Path) -> None:
    with page(chromium) as opened:
        start(opened, one)
        stops = []
        for _ in range(30):
            opened.keyboard.press("Tab")
            stops.append(opened.evaluate("document.activeElement.id || document.activeElement.textContent"))
        assert {"order", "text", "list"} <= set(stops) and any("Next" in stop for stop in stops)
        opened.locator("#list").focus()
        opened.keyboard.press("ArrowDown")
        opened.locator("#sample .id", has_text="2000/1").wait_for()
        active = opened.locator("#list").get_attribute("aria-activedescendant")
        assert opened.locator(f"#{active}").get_attribute("aria-selected") == "true"


# ---------------------------------------------------------------- over the picture


def test_the_map_covers_its_rectangle_and_the_slider_fades_it(chromium: Any, mapped: Path) -> None:
    with page(chromium) as opened:
        start(opened, mapped)
        stage, canvas = opened.locator(".stage").bounding_box(), opened.locator("canvas.map").bounding_box()
        scale = stage["width"] / 200
        assert canvas["x"] - stage["x"] == pytest.approx(50 * scale, abs=0.6)
        assert canvas["width"] == pytest.approx(100 * scale, abs=0.6)
        assert canvas["height"] == pytest.approx(stage["height"], abs=0.6)
        assert stage["height"] == pytest.approx(100 * scale, abs=0.6)
        pixels = opened.locator("canvas.map").evaluate(
            "c => [c.width, c.height, [...c.getContext('2d').getImageData(0, 0, 8, 8).data]]"
        )
        assert pixels[:2] == [8, 8] and pixels[2][-4:-1] == [252, 255, 164] and pixels[2][3] < pixels[2][-1]
        slider = opened.get_by_role("slider", name="opacity")
        box = slider.bounding_box()
        opened.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] / 2)
        opened.mouse.down()
        opened.mouse.move(box["x"] + box["width"] - 2, box["y"] + box["height"] / 2, steps=5)
        opened.mouse.up()
        assert float(opened.locator("canvas.map").evaluate("c => getComputedStyle(c).opacity")) > 0.95
        opened.locator("#sample .id").click()
        opened.keyboard.press("m")
        assert opened.locator("canvas.map").evaluate("c => getComputedStyle(c).opacity") == "0"
        opened.keyboard.press("m")
        assert float(opened.locator("canvas.map").evaluate("c => getComputedStyle(c).opacity")) > 0.95


def test_a_crop_lies_where_it_was_and_can_be_hidden(chromium: Any, mapped: Path) -> None:
    with page(chromium) as opened:
        start(opened, mapped)
        stage = opened.locator(".stage").bounding_box()
        frame = opened.locator(".stage svg rect").nth(1)
        box = frame.bounding_box()
        scale = stage["width"] / 200
        assert box["x"] - stage["x"] == pytest.approx(20 * scale, abs=2)
        assert box["width"] == pytest.approx(40 * scale, abs=4)
        opened.get_by_label("crop: vicrop").uncheck()
        assert not frame.is_visible()
        assert opened.get_by_label("the target’s region").is_checked()


def test_parts_stand_in_their_colours_with_what_was_kept_and_dropped_and_why(
    chromium: Any, tmp_path: Path
) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (400, 300), "white").save(path)
    exported(
        [ran(tmp_path, [sample("a", path)], lambda _: Response("A boat.", trace=parts_trace()))],
        tmp_path / "v",
    )
    with page(chromium, width=1280) as opened:
        start(opened, tmp_path / "v")
        assert opened.locator(".stage .tag").all_inner_texts() == [
            "boat 0.98",
            "LT",
            "RT",
            "LB",
            "RB",
            "LB+RB",
        ]
        card = opened.locator(".card").first.inner_text()
        for text in (
            "Caption of LT.",
            "The sea is rough.",
            "1.1 fits the picture better",
            "0.57",
            "2 kept, 2 dropped",
        ):
            assert text in card
        dropped = opened.locator(".card").first.locator(".dropped").all_inner_texts()
        assert len(dropped) == 2 and dropped[0].startswith("The sea is rough.")
        assert opened.locator(".card").count() == 5
        colour = opened.locator(".stage .tag", has_text="RT").evaluate(
            "e => getComputedStyle(e).backgroundColor"
        )
        assert colour == "rgb(230, 159, 0)"
        assert opened.evaluate(CONTRAST) == []


def test_objects_that_are_not_there_are_marked_in_the_caption(chromium: Any, tmp_path: Path) -> None:
    run = ran(
        tmp_path,
        [sample("a", targets=("dog",))],
        "A dog <b>beside</b> a cat.",
        metrics=(chair.metric(front_end="rules"),),
        primary="CHAIRs",
    )
    exported([run], tmp_path / "v")
    with page(chromium) as opened:
        start(opened, tmp_path / "v")
        assert opened.locator(".said b.kept").all_inner_texts() == ["dog"]
        assert opened.locator(".said b.hallucinated").all_inner_texts() == ["cat"]
        assert "A dog <b>beside</b> a cat." in opened.locator("#sample").inner_text()
        assert "2 objects mentioned: 1 in the picture, 1 not" in opened.locator("#sample").inner_text()


def test_selected_tokens_can_be_looked_at_one_decoded_token_at_a_time(chromium: Any, tmp_path: Path) -> None:
    trace = {"selected": [[0, 1], [5]], "grid": [2, 3], "rectangle": [0, 0, 60, 40], "first": 0, "stride": 3}
    run = ran(
        tmp_path,
        [sample("a", photograph(tmp_path / "a.png", (60, 40)))],
        lambda _: Response("grey", trace=trace),
    )
    exported([run], tmp_path / "v")
    lit = """c => {
      const pixels = c.getContext("2d").getImageData(0, 0, 3, 2).data;
      return [0, 1, 2, 3, 4, 5].filter((cell) => pixels[4 * cell + 3]);
    }"""
    with page(chromium) as opened:
        start(opened, tmp_path / "v")
        assert opened.locator("canvas.tokens").evaluate(lit) == [0, 1, 5]
        opened.get_by_role("slider", name="Of which decoded token").fill("2")
        assert opened.locator("canvas.tokens").evaluate(lit) == [5]


def test_a_picture_that_is_gone_is_a_frame_that_says_why(chromium: Any, tmp_path: Path) -> None:
    path = photograph(tmp_path / "a.png")
    drawn = tmp_path / "drawn.svg"
    drawn.write_text('<svg xmlns="http://www.w3.org/2000/svg" onload="window.acted=1" width="9" height="9"/>')
    run = ran(tmp_path, [sample("a", path), sample("b", drawn)])
    path.unlink()
    exported([run], tmp_path / "v")
    with page(chromium) as opened:
        start(opened, tmp_path / "v")
        assert "a.png is not there any more" in opened.locator(".gone").inner_text()
        opened.keyboard.press("j")
        opened.locator(".gone", has_text="not a picture").wait_for()
        assert opened.evaluate("window.acted") is None and opened.locator(".stage").count() == 0


def test_a_query_shows_what_it_was_offered_and_leads_there(
    chromium: Any, matched: Path, tmp_path: Path
) -> None:
    exported([matched], tmp_path, lambda: matching.first(scene_retrieval.task(), 6))
    with page(chromium) as opened:
        start(opened, tmp_path, "#id=text%3A3")
        opened.locator(".offers img").nth(4).wait_for()
        first = opened.locator(".offers a").first
        name = first.inner_text()
        first.click()
        opened.locator("#sample .id", has_text=name).wait_for()
        assert opened.locator(".stage img").count() == 1


# ---------------------------------------------------------------- two runs


def test_two_runs_stand_side_by_side_the_most_apart_first(chromium: Any, two: Path) -> None:
    with page(chromium) as opened:
        start(opened, two)
        assert opened.locator(".pair .side").count() == 2
        marks = [one.get_attribute("aria-label") for one in opened.locator(".row .glyphs").all()]
        assert marks[0] in ("wrong, then right", "right, then wrong")
        opened.get_by_role("button", name="B better").click()
        shows(opened, "33 of 60")
        assert "B is better" in opened.locator("#sample .top").inner_text()
        opened.get_by_role("button", name="B worse").click()
        shows(opened, "2 of 60")
        assert {one.get_attribute("aria-label") for one in opened.locator(".row .glyphs").all()} == {
            "right, then wrong"
        }
        sides = opened.locator(".pair .side").all_inner_texts()
        assert "right, accuracy 1" in sides[0] and "wrong, accuracy 0" in sides[1]


def test_a_sample_that_one_run_lacks_is_shown_as_such(chromium: Any, tmp_path: Path) -> None:
    samples = [sample(str(number)) for number in range(4)]
    runs = [ran(tmp_path, samples, limit=3), ran(tmp_path, samples, "blue", model="other")]
    exported(runs, tmp_path / "v")
    with page(chromium) as opened:
        start(opened, tmp_path / "v")
        opened.get_by_role("button", name="In one only").click()
        shows(opened, "1 of 4")
        sides = opened.locator(".pair .side").all_inner_texts()
        assert "no record of the sample" in sides[0] and "blue" in sides[1]


# ---------------------------------------------------------------- many


def test_of_many_samples_only_those_in_sight_are_rows(chromium: Any, tmp_path: Path) -> None:
    exported([ran(tmp_path, [sample(f"s{number}") for number in range(3000)])], tmp_path / "v")
    with page(chromium) as opened:
        start(opened, tmp_path / "v")
        shows(opened, "3,000 samples")
        assert 5 < opened.locator(".row").count() < 60
        opened.locator("#list").evaluate("list => { list.scrollTop = list.scrollHeight; }")
        opened.locator(".row", has_text="s2999").click()
        opened.locator("#sample .id", has_text="s2999").wait_for()
        assert opened.locator(".row").count() < 60
        loaded = opened.evaluate(
            "performance.getEntriesByType('resource').filter((e) => /a-\\d+\\.js/.test(e.name)).length"
        )
        assert loaded <= 2, "of 47 files"
        start(opened, tmp_path / "v", "#id=s1500")
        opened.reload()
        opened.locator("#sample .id", has_text="s1500").wait_for()
        assert opened.locator('.row[aria-selected="true"]').is_visible()


def test_an_export_that_lost_a_file_says_which(chromium: Any, tmp_path: Path) -> None:
    exported([ran(tmp_path, [sample("a")])], tmp_path / "v")
    (tmp_path / "v" / "data" / "a-0.js").unlink()
    with pytest.raises(AssertionError, match="ERR_FILE_NOT_FOUND"), page(chromium) as opened:
        start(opened, tmp_path / "v")
        assert "data/a-0.js cannot be read" in opened.locator("#sample").inner_text()


# ---------------------------------------------------------------- hostile words

EVIL = "<script>window.acted=1</script><img src=x onerror='window.acted=1'>"
RTL = "שלום \u202eevil\u202c عربى"
HOSTILE = {
    "../../etc/passwd": EVIL,
    "a/b?c#d&e=f%20": "</script><script>window.acted=1</script>",
    EVIL: "{{ 7 * 7 }} ${7 * 7} javascript:window.acted=1",
    "right to left": RTL,
    "half": "half \ud800 a letter, none: \x00, bell \x07",
    "long": "W" * 100_000,
    "__proto__": "constructor",
    "toString": "a\u2028b\u2029c",
}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    samples = [
        Sample(
            name,
            (),
            f"{EVIL} {name}",
            (EVIL, name),
            category=name,
            meta={EVIL: EVIL, "__proto__": {"x": EVIL}},
        )
        for name in HOSTILE
    ]
    texts = {f"{EVIL} {name}": text for name, text in HOSTILE.items()}
    run = ran(
        folder,
        samples,
        lambda request: Response(
            texts[request.question],
            trace={
                "method": EVIL,
                "__proto__": {EVIL: [EVIL]},
                "skipped": EVIL,
                "patches": [{"pid": EVIL, "caption": EVIL}],
            },
        ),
        name=EVIL,
        protocol=EVIL,
        model=EVIL,
    )
    exported([run], folder / "view")
    return folder / "view"


def test_whatever_a_record_says_is_text(chromium: Any, hostile: Path) -> None:
    with page(chromium) as opened:
        start(opened, hostile)
        assert EVIL in opened.locator("h1").inner_text()
        names = list(HOSTILE)
        for number, name in enumerate(names):
            opened.locator("#sample .where", has_text=f"{number + 1} of {len(names)}").wait_for()
            assert at(opened) == name
            shown = opened.locator("#sample .answer").evaluate("e => e.textContent")
            wanted = (
                HOSTILE[name].replace("\ud800", "\ufffd").replace("\x00", "\u2400").replace("\x07", "\u2407")
            )
            assert shown == wanted
            opened.evaluate(
                "document.querySelectorAll('#sample details').forEach((each) => { each.open = true; })"
            )
            assert EVIL.replace('"', '\\"') in opened.locator("#sample").inner_text()
            assert opened.locator("#sample script, #sample img, #list img, header script").count() == 0
            assert not opened.evaluate(WIDE)
            opened.keyboard.press("Escape")
            opened.keyboard.press("j")
        assert opened.evaluate("window.acted") is None
        assert opened.evaluate("({}).x === undefined && ({}).polluted === undefined")


def test_links_to_hostile_ids_and_categories_hold(chromium: Any, hostile: Path) -> None:
    with page(chromium) as opened:
        start(opened, hostile)
        for number, name in enumerate(sorted(HOSTILE)):
            opened.get_by_role("combobox", name="category").select_option(index=number + 1)
            shows(opened, "1 of 8")
            assert at(opened) == name
            address = opened.url
            opened.goto("about:blank#")
            opened.goto(address)
            opened.locator("#sample .id").wait_for()
            assert at(opened) == name and opened.locator("#count").inner_text() == "1 of 8"


def test_a_right_to_left_answer_keeps_to_itself(chromium: Any, hostile: Path) -> None:
    with page(chromium) as opened:
        start(opened, hostile, "#id=right+to+left")
        answer = opened.locator("#sample .answer")
        assert answer.evaluate("e => getComputedStyle(e).direction") == "rtl"
        assert opened.locator("#sample .top").evaluate("e => getComputedStyle(e).direction") == "ltr"


# ---------------------------------------------------------------- looks


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1280])
def test_words_can_be_read_on_their_ground_and_nothing_is_wider_than_the_page(
    chromium: Any, one: Path, two: Path, dark: bool, width: int
) -> None:
    for folder in (one, two):
        with page(chromium, width=width, height=844, dark=dark, touch=width < 500) as opened:
            start(opened, folder)
            opened.locator(".stage img").first.evaluate("image => image.decode()")
            assert opened.evaluate(CONTRAST) == []
            assert not opened.evaluate(WIDE)


def test_on_a_phone_the_picture_comes_first_and_the_list_is_a_drawer(chromium: Any, one: Path) -> None:
    with page(chromium, width=390, height=844, touch=True) as opened:
        start(opened, one)
        assert not opened.locator("#list").is_visible()
        picture, words = opened.locator(".stage").bounding_box(), opened.locator(".words").bounding_box()
        assert picture["y"] + picture["height"] <= words["y"] and picture["width"] > 340
        opened.get_by_role("button", name="List").click()
        opened.locator(".row").nth(3).click()
        opened.locator("#sample .id", has_text="2000/3").wait_for()
        assert not opened.locator("#list").is_visible()
