"""The page of a caption that was put together from parts: what it shows, and that no trace breaks it."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from matplotlib.colors import to_rgb
from PIL import Image

from adapters.scripted import Scripted
from harness import engine
from harness.pictures import File, Picture
from harness.store import Record
from harness.traces import trace_arrays
from harness.types import Failure, Json, Request, Response, Sample, Task
from leaderboard import _parts, _patches
from leaderboard._page import LINES, WIDTH, quiet, ruler, wrapped
from leaderboard.samples import Verdict, draw
from metrics import exact
from tests.test_traces import pixels, show

HEADER = {"identity": {"task": {"name": "t", "protocol": "p"}}, "methods": ["m"]}
SIZE = (400, 300)
QUARTERS = {
    "LT": [0, 0, 200, 150],
    "RT": [200, 0, 400, 150],
    "LB": [0, 100, 300, 300],
    "RB": [100, 100, 400, 300],
}


def said(kind: str, text: str, kept: bool, reason: str = "", score: float | None = None) -> dict[str, Json]:
    return {"ids": ["1.1"], "text": text, "kind": kind, "kept": kept, "reason": reason, "score": score}


def trace() -> dict[str, Any]:
    """Of a caption in the making, as a method writes it."""
    sentences = [
        said("unique", "A gull sits there.", False, "scores no more than 0.3", 0.1234),
        said("consistent", "The boat is red.", True),
        said("contradictory", "The sea is calm.", True, score=0.5678),
        said("contradictory", "The sea is rough.", False, "1.1 fits the picture better", 0.4),
    ]
    return {
        "method": "m",
        "size": list(SIZE),
        "proposals": [{"box": [60, 60, 340, 240], "score": 0.98, "label": "boat"}],
        "semantic": {"names": ["boat"], "box": [60, 60, 340, 240], "share": 0.42, "used": False},
        "patches": [
            {"pid": name, "box": box, "like": None, "candidates": ["One.", "Two.", "Three."]}
            | {"sentences": sentences, "caption": f"Caption of {name}."}
            for name, box in QUARTERS.items()
        ],
        "pairs": [
            {"a": "LB", "b": "RB", "iou": 0.5, "box": [0, 100, 400, 300]}
            | {"sentences": sentences[:2], "caption": "Caption of both."}
        ],
        "overall": "A boat.",
        "overall2": "A red boat.",
        "regions": ["LB+RB", "LT", "RT"],
        "calls": {"captioner": 13, "aggregator": 11},
        "warnings": ["the scorer failed once"],
    }


def drawn(found: Mapping[str, Any], image: Image.Image | None = None, **fields: Any) -> Any:
    """The figure of a record with this trace."""
    record = Record("a", prompt="Describe.", **{"answer": "A red boat at sea.", **fields}, trace=found)
    white = image or Image.new("RGB", SIZE, "white")
    return draw(record, trace_arrays(found), white, Verdict(), HEADER)


def words(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.texts]


def saved(figure: Any) -> np.ndarray[Any, Any]:
    with quiet():
        figure.savefig(file := io.BytesIO())
    return pixels(file)


# ---------------------------------------------------------------- what is shown


def test_every_caption_candidate_sentence_reason_and_score_is_on_the_page() -> None:
    shown = words(drawn(trace()))
    for name in QUARTERS:
        assert name in shown and f"Caption of {name}." in shown
    for expected in (
        "LB+RB",
        "Caption of both.",
        "One.",
        "Two.",
        "Three.",
        "The boat is red.",
        "The sea is rough.",
        "1.1 fits the picture better",
        "scores no more than 0.3",
        "0.57",
        "2 kept, 2 dropped",
        "A red boat at sea.",
        "A boat.",
        "A red boat.",
        "boat, 42% of the picture, not used",
        "LB+RB · LT · RT",
        "captioner 13 · aggregator 11",
        "the scorer failed once",
        "200 × 150 px at (0, 0)",
        "400 × 200 px at (0, 100)   ·   IoU 0.50",
    ):
        assert expected in shown, expected


def test_what_was_dropped_is_marked_and_grey_and_what_was_kept_is_not() -> None:
    figure = drawn(trace())
    of = {text.get_text(): text for text in figure.texts}
    height = {text: of[text].get_position()[1] for text in ("The sea is calm.", "The sea is rough.")}
    marks = {text.get_position()[1]: text.get_text() for text in figure.texts if text.get_text() in "✓–"}
    assert marks[height["The sea is calm."]] == "✓" and of["The sea is calm."].get_color() == _patches.DARK
    assert marks[height["The sea is rough."]] == "–" and of["The sea is rough."].get_color() == _patches.GREY


def test_sentences_stand_by_kind_consistent_first() -> None:
    shown = [text for text in words(drawn(trace())) if text in _patches.KINDS][:3]
    assert shown == ["consistent", "contradictory", "unique"]


def test_a_reason_that_all_of_a_kind_share_is_said_once() -> None:
    found = trace()
    found["patches"] = found["patches"][:1]
    found["pairs"] = []
    found["patches"][0]["sentences"] = [said("unique", f"{n}.", True, "not scored") for n in range(4)]
    shown = words(drawn(found))
    assert "unique   ·   not scored" in shown and "not scored" not in shown


def test_each_patch_has_a_frame_of_its_colour_and_a_pair_has_both_of_its_patches() -> None:
    scene = saved(drawn(trace()))[50:605, 40:780]
    for place, colour in enumerate(_patches.COLOURS[:4]):
        wanted = np.round(np.array(to_rgb(colour)) * 255)
        rows, columns = np.nonzero(np.abs(scene - wanted).max(axis=2) < 3)
        box = np.array(list(QUARTERS.values())[place]) * 740 / 400
        assert len(rows) > 300, "a frame"
        near = (columns > box[0] - 2) & (columns < box[2] + 2) & (rows > box[1] - 2) & (rows < box[3] + 2)
        assert near.mean() > 0.6, "most of it is its own, the rest a pair's"
    figure = drawn(trace())
    labels = {text.get_text() for text in figure.axes[0].texts}
    assert labels == {*QUARTERS, "LB+RB", "boat 0.98"}


def test_the_pixels_of_a_part_stand_on_its_card() -> None:
    image = Image.new("RGB", SIZE, "white")
    image.paste((200, 30, 60), (0, 0, 200, 150))
    figure = drawn(trace(), image)
    cards = [axes.images[0].get_array() for axes in figure.axes[1:]]
    assert len(cards) == 5
    assert (np.asarray(cards[0])[..., :3] == [200, 30, 60]).all(), "LT's"
    assert (np.asarray(cards[1])[..., :3] == 255).all(), "RT's"


def test_a_global_caption_that_did_not_change_is_shown_once() -> None:
    shown = words(drawn({**trace(), "overall2": "A boat."}))
    assert shown.count("A boat.") == 1 and "global caption" in shown


def test_a_failed_caption_shows_its_parts_and_why_it_failed() -> None:
    shown = words(drawn(trace(), answer="", failure=Failure("no_caption", "nothing was said")))
    assert "failed: no_caption: nothing was said" in shown and "Caption of LT." in shown


def test_parts_inside_another_methods_trace_are_found() -> None:
    assert "Caption of RB." in words(drawn({"method": "outer", "inner": trace()}))


def test_boxes_of_a_picture_of_another_size_are_not_drawn_on_this_one() -> None:
    figure = drawn({**trace(), "size": [100, 100]})
    assert "another size: 100 × 100 px" in figure.axes[0].get_title("left")
    assert len(figure.axes) == 1 and not figure.axes[0].texts
    assert "Caption of LT." in words(figure)


def test_a_record_without_parts_is_drawn_as_it_was() -> None:
    assert len(drawn({"method": "m"}).axes) == 1
    assert _parts.read({"method": "m", "patches": []}) is None


def test_a_run_is_shown_from_its_records_without_kept_traces(tmp_path: Path) -> None:
    Image.linear_gradient("L").resize(SIZE).save(tmp_path / "picture.png")
    task = Task(
        name="captions",
        version="1",
        protocol="plain",
        fingerprint="f",
        samples=[Sample("a", (Picture(File(tmp_path / "picture.png")),), "Describe.", ("a boat",))],
        request=lambda sample: Request(sample.images, sample.question),
        metrics=(exact.metric(),),
        primary="accuracy",
    )
    model = Scripted(lambda _: Response("A red boat.", trace=trace()))
    run = engine.run(task, model, out=tmp_path / "out").path
    assert not (run / "traces").exists()
    (picture,) = show(run, tmp_path / "drawn", task)
    high, wide, _ = pixels(picture).shape
    assert wide == WIDTH and high > 1200


# ---------------------------------------------------------------- hostile traces

HOSTILE = "$x^{2$ \\frac{ \x1b[31m \u202eover \ud800 猫 שלום العربية \U0001f600 " + "W" * 3000


def test_hostile_words_are_drawn_as_they_are_and_cut_where_they_are_long() -> None:
    found = json.loads(json.dumps(trace()).replace("Caption of", "$\\\\frac{ Caption of"))
    for patch in found["patches"]:
        patch["candidates"] = [HOSTILE] * 3
        patch["sentences"] = [said(HOSTILE, HOSTILE, False, HOSTILE, 0.1)]
        patch["pid"] = patch["like"] = HOSTILE
    found |= {"overall": HOSTILE, "warnings": [HOSTILE], "regions": [HOSTILE], "calls": {HOSTILE: 1}}
    with quiet():
        figure = drawn(found)
    shown = words(figure)
    assert saved(figure).shape[1] == WIDTH
    assert not any(letter in "".join(shown) for letter in "\x1b\u202e\ud800")
    assert sum(text.endswith("more characters") for text in shown) > 10
    assert any("$\\frac{ Caption of LT." in text for text in shown)


def test_no_line_is_wider_than_its_column() -> None:
    """A column's letters end before the next one begins, however wide they are."""
    found = trace()
    for patch in found["patches"]:
        patch["caption"] = "WWWWWWWWWW MMMMM " * 40
        patch["sentences"] = [said("unique", "W@" * 300, True, "W" * 200, 0.5)]
    image = saved(drawn(found))
    between = image[700:, 782:818]
    assert (between == 255).all()


@pytest.mark.parametrize(
    "found",
    [
        {"patches": [{}]},
        {"patches": [{"pid": 3, "box": [1, 2, "x", 4], "candidates": "no", "sentences": [5, None, {}]}] * 40},
        {"patches": [{"box": [5000, 5000, 6000, 6000]}, {"box": [-9, -9, 9, 9]}], "pairs": [{}, 3]},
        {
            "patches": [{"box": [0, 0, 1, 1], "pid": "a" * 900}],
            "proposals": [{"box": [0, 0, 1e300, 10**400]}],
        },
        {"patches": [{"box": [0, 0, True, 10]}], "semantic": 3, "calls": [1], "regions": {}, "size": "big"},
        {"patches": [{"box": [3, 3, 3, 9]}], "semantic": {"share": "x"}, "calls": {"a": float("nan")}},
        {"patches": [{"sentences": [{"kind": 1, "score": float("inf"), "ids": "x"}]}], "warnings": "x"},
        {"patches": [{"candidates": ["a"] * 100, "sentences": [{"kind": "unique", "text": "b"}] * 500}] * 50},
    ],
)
def test_a_trace_of_another_shape_is_drawn_as_far_as_it_can_be(found: Mapping[str, Any]) -> None:
    high, wide, _ = saved(drawn(found)).shape
    assert wide == WIDTH and high < 30_000


def anything() -> st.SearchStrategy[Any]:
    names = ["pid", "box", "like", "candidates", "sentences", "caption", "a", "b", "iou", "ids", "text"]
    names += ["kind", "kept", "reason", "score", "label", "names", "share", "used", "x"]
    leaf = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    return st.recursive(
        leaf,
        lambda inner: (
            st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(names), inner, max_size=5)
        ),
        max_leaves=12,
    )


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(st.sampled_from(list(trace())[1:]), anything()), st.lists(anything(), max_size=3))
def test_no_trace_breaks_the_page(found: dict[str, Any], patches: list[Any]) -> None:
    with quiet():
        drawn({**found, "patches": [{}, *patches]})


def test_what_is_left_out_is_counted() -> None:
    found = trace()
    patch = found["patches"][0]
    patch |= {"candidates": ["One."] * 11, "sentences": [said("unique", "x", True)] * 34}
    found |= {"patches": [patch] * 15, "pairs": [], "warnings": ["w"] * 15}
    shown = words(drawn(found))
    for expected in ("… and 3 more", "… and 4 more sentences", "… and 3 more parts", "34 kept, 0 dropped"):
        assert expected in shown


# ---------------------------------------------------------------- lines


@given(st.text(), st.integers(20, 300))
@settings(deadline=None)
def test_lines_are_no_wider_than_their_room_and_lose_nothing_uncounted(text: str, room: int) -> None:
    width = ruler(11)
    lines = wrapped(text, room, LINES, width)
    left = 0
    if len(lines) > LINES:
        left = int(lines.pop().split()[2].replace(",", ""))
    spaces = sum(map(width, lines)) * 0.02 + 4  # kerning; letters of scripts that join
    assert all(width(line) <= room + spaces or len(line) == 1 for line in lines)
    plain = "".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    kept = sum(len(line.replace(" ", "")) for line in lines)
    assert kept <= len(plain) <= kept + left
