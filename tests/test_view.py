"""The exported sample pages' files: what they say of a record, their pictures, and what they refuse."""

import base64
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from adapters.scripted import Scripted
from harness import engine, matching, resolve, store
from harness.errors import FoveaError
from harness.pictures import File, Picture
from harness.store import Record
from harness.traces import trace_arrays
from harness.types import ImportanceMap, Request, Response, Sample, Task, Usage
from leaderboard import _view_objects, viewer
from leaderboard._view_objects import HALLUCINATED, KEPT, Objects
from leaderboard._view_sample import LETTERS, readable, shown
from leaderboard.viewer import export
from metrics import chair, exact
from tasks import scene_retrieval, small_detail
from tests.test_cli import fovea
from tests.test_samples_patches import trace as parts_trace

DEMO = Path(__file__).parent.parent / "results" / "baselines" / "demo" / "small_detail" / "hf-demo"
IDENTITY, VICROP = DEMO / "identity-99d05d42", DEMO / "vicrop-8b6edc8b"


def photograph(path: Path, size: tuple[int, int] = (64, 48), **how: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.linear_gradient("L").resize(size).convert("RGB")
    image.putpixel((0, 0), tuple(os.urandom(3)))  # no two alike
    image.save(path, **how)
    return path


def task(samples: Sequence[Sample], **fields: Any) -> Task:
    named = {"name": "t", "version": "1", "protocol": "p", "fingerprint": "f", "primary": "accuracy"}
    return Task(
        **{
            **named,
            "samples": samples,
            "request": lambda sample: Request(sample.images, sample.question),
            "metrics": (exact.metric(),),
            **fields,
        }
    )


def sample(name: str, path: Path | None = None, **fields: Any) -> Sample:
    images = (Picture(File(path)),) if path else ()
    return Sample(name, images, **{"question": "What is it?", "targets": ("grey",), **fields})


def ran(
    tmp_path: Path,
    samples: Sequence[Sample],
    answer: Callable[[Request], str | Response] | str = "grey",
    **fields: Any,
) -> Path:
    """A run's directory. answer: of every sample, or the model."""
    says = answer if callable(answer) else lambda _: answer
    how = {name: fields.pop(name) for name in ("save_traces", "limit", "repeats") if name in fields}
    model = Scripted(says, fields.pop("model", "function"))
    return engine.run(task(samples, **fields), model, out=tmp_path / "runs", **how).path


def exported(
    runs: Sequence[Path], folder: Path, made: Callable[[], Any] | None = None, images: Path | None = None
) -> list[str]:
    def none() -> Any:
        raise FoveaError("the task is somewhere else")

    said: list[str] = []
    faults = export(
        runs,
        folder,
        images=images or folder / "images",
        assets="assets",
        task=made or none,
        metric_from=resolve.metric_from,
        say=said.append,
    )
    assert said == [str(folder / "index.html")]
    return faults


def read(path: Path) -> Any:
    """The data of a script."""
    text = path.read_text(encoding="utf-8")
    return json.loads(
        text[text.index("(") + 1 if "start" in text[:12] else text.index(",") + 1 : text.rindex(")")]
    )


def index(folder: Path) -> Any:
    return read(folder / "data" / "index.js")


def detail(folder: Path, name: str, side: int = 0) -> Any:
    found = index(folder)
    at = found["ids"].index(name)
    column = found["sides"][side]
    return read(folder / "data" / f"{'ab'[side]}-{column['files'][at]}.js")[column["places"][at]]


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# ---------------------------------------------------------------- the whole


def test_a_run_becomes_a_page_its_data_and_its_pictures(tmp_path: Path) -> None:
    assert exported([VICROP], tmp_path / "view", small_detail.task) == []
    found = index(tmp_path / "view")
    assert found["ids"][:3] == ["2000/0", "2000/1", "2000/2"] and len(found["ids"]) == 60
    (side,) = found["sides"]
    summary = store.read_run(VICROP)["summary"]["metrics"]["exact[llava]"]["scores"]["accuracy"]["value"]
    assert side["marks"].count("r") / 60 == pytest.approx(summary)
    assert len(list((tmp_path / "view" / "images").iterdir())) == 60
    page = (tmp_path / "view" / "index.html").read_text()
    assert "vicrop:locate=rel_att" in page and "Content-Security-Policy" in page and "60 of 60" in page
    assert {"base.css", "theme.js", "view.css", "view.js"} <= {
        path.name for path in (tmp_path / "view/assets").iterdir()
    }


def test_equal_runs_give_equal_bytes(tmp_path: Path) -> None:
    for name in ("one", "other"):
        exported([IDENTITY, VICROP], tmp_path / name, small_detail.task)
    assert files(tmp_path / "one") == files(tmp_path / "other")


def test_the_page_asks_for_the_files_of_this_export(tmp_path: Path) -> None:
    def asked() -> tuple[str, str]:
        page = (tmp_path / "view" / "index.html").read_text()
        return re.findall(r"index\.js\?(\w+)", page)[0], index(tmp_path / "view")["version"]

    run = ran(tmp_path, [sample("a", meta={"x": 1})])
    exported([run], tmp_path / "view")
    before = asked()
    records = (run / "records.jsonl").read_text()
    (run / "records.jsonl").write_text(records.replace('"x":1', '"x":2'))
    exported([run], tmp_path / "view")
    assert all(one != other for one, other in zip(before, asked(), strict=True))


def test_what_is_said_of_a_sample_is_what_the_record_says(tmp_path: Path) -> None:
    path = photograph(tmp_path / "a.jpg")
    usage = Usage(3, 615, 2, 4, 5, 1.5, 0.25)
    run = ran(
        tmp_path,
        [sample("a", path, meta={"source": "here"}, category="small")],
        lambda request: Response(" Grey. ", "length", usage, trace={"method": "m", "note": 1}),
        request=lambda each: Request(each.images, each.question, "\nOne word.", system="Be brief."),
    )
    exported([run], tmp_path / "view")
    found = detail(tmp_path / "view", "a")
    assert found["prompt"] == "What is it?\nOne word." and "question" not in found, "once is enough"
    assert found["system"] == "Be brief." and found["targets"] == ["grey"] and found["finish"] == "length"
    assert found["usage"] == [3, 615, 2, 4, 5, 1.5, 0.25]
    assert json.loads(found["trace"]) == {"method": "m", "note": 1}
    assert json.loads(found["meta"]) == {"source": "here"}
    assert found["numbers"] == [["exact[llava]", [["accuracy", 1.0]]]]


def test_a_failed_sample_one_without_a_record_and_one_without_a_verdict_are_told_apart(
    tmp_path: Path,
) -> None:
    samples = [sample(name, photograph(tmp_path / f"{name}.png"), targets=(name,)) for name in "abcd"]
    answers = {samples[0].images[0].digest: "a", samples[1].images[0].digest: "c"}

    def answer(request: Request) -> Response:
        text = answers.get(request.images[0].digest)
        return Response(text) if text else Response.failed("rate_limit", "too many")

    run = ran(tmp_path, samples, answer)
    lines = (run / "records.jsonl").read_text().splitlines(keepends=True)
    (run / "records.jsonl").write_text("".join(lines[:3]))
    exported([run], tmp_path / "view")
    assert index(tmp_path / "view")["sides"][0]["marks"] == "rwfn"
    assert detail(tmp_path / "view", "c")["failure"] == ["rate_limit", "too many"]


def test_the_last_record_of_a_sample_counts_and_what_was_not_asked_for_is_left_out(tmp_path: Path) -> None:
    run = ran(tmp_path, [sample("a"), sample("b")], "grey", limit=None)
    record = next(store.read_records(run))
    with (run / "records.jsonl").open("a") as out:
        out.write(replace(record, answer="blue", text="blue").line() + "\n")
        out.write(replace(record, sample_id="elsewhere").line() + "\n")
    exported([run], tmp_path / "view")
    assert index(tmp_path / "view")["ids"] == ["a", "b"]
    assert detail(tmp_path / "view", "a")["answer"] == "blue"


def test_many_samples_lie_in_files_of_at_most_64_and_a_shorter_export_leaves_none_behind(
    tmp_path: Path,
) -> None:
    run = ran(tmp_path, [sample(str(number)) for number in range(200)])
    exported([run], tmp_path / "view")
    assert sorted(path.name for path in (tmp_path / "view/data").glob("a-*")) == [
        f"a-{n}.js" for n in range(4)
    ]
    assert all(detail(tmp_path / "view", str(n))["answer"] == "grey" for n in (0, 63, 64, 199))
    ran(tmp_path, [sample(str(number)) for number in range(200)], limit=10)
    exported([run], tmp_path / "view")
    assert len(index(tmp_path / "view")["ids"]) == 10
    assert sorted(path.name for path in (tmp_path / "view/data").glob("a-*")) == ["a-0.js"]


def test_long_answers_make_small_files(tmp_path: Path) -> None:
    run = ran(tmp_path, [sample(str(number)) for number in range(6)], "x" * 100_000)
    exported([run], tmp_path / "view")
    assert len(list((tmp_path / "view/data").glob("a-*"))) == 2
    assert len(detail(tmp_path / "view", "5")["answer"]) == 100_000
    assert len(index(tmp_path / "view")["sides"][0]["answers"][0]) == viewer.SHORT
    assert sum(map(len, read(tmp_path / "view/data/text-0.js"))) < 6 * (viewer.SEARCHED + 100)


def test_a_search_looks_through_questions_answers_targets_and_ids(tmp_path: Path) -> None:
    run = ran(tmp_path, [sample("the-id", question="The question?", targets=("one", "two"))], "The Answer")
    exported([run], tmp_path / "view")
    assert read(tmp_path / "view/data/text-0.js") == ["the-id\nThe question?\nThe Answer\none\ntwo"]


def test_groups_are_the_categories_and_the_tasks_breakdowns(tmp_path: Path) -> None:
    samples = [
        sample(str(n), category="ab"[n % 2], meta={"kind": [["x", "y"], "x"][n % 2]}) for n in range(3)
    ]
    exported([ran(tmp_path, samples, breakdowns=("kind",))], tmp_path / "view")
    assert index(tmp_path / "view")["groups"] == [
        ["category", ["a", "b"], [[0], [1], [0]]],
        ["kind", ["x", "y"], [[0, 1], [0], [0, 1]]],
    ]


# ---------------------------------------------------------------- two runs


def test_two_runs_share_a_list_and_what_one_lacks_is_shown(tmp_path: Path) -> None:
    samples = [sample(str(number)) for number in range(4)]
    first = ran(tmp_path, samples, "grey", limit=3)
    second = ran(tmp_path, samples, "blue", model="other")
    exported([first, second], tmp_path / "view")
    found = index(tmp_path / "view")
    assert found["ids"] == ["0", "1", "2", "3"]
    assert [side["marks"] for side in found["sides"]] == ["rrrn", "wwww"]
    assert detail(tmp_path / "view", "1", 1)["answer"] == "blue"


def test_answers_that_differ_at_their_end_differ(tmp_path: Path) -> None:
    samples = [sample("a"), sample("b", question="Other?")]
    texts = {"What is it?": "x" * 500 + "y", "Other?": "z" * 500}
    first = ran(tmp_path, samples, lambda request: texts[request.question])
    second = ran(tmp_path, samples, lambda request: texts[request.question].rstrip("y"), model="other")
    exported([first, second], tmp_path / "view")
    assert index(tmp_path / "view")["same"] == "01"


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"name": "u"}, "the name is t and u"),
        ({"protocol": "q"}, "the protocol is p and q"),
        ({"fingerprint": "g"}, "the data is f and g"),
        ({"version": "2"}, "the version is 1 and 2"),
    ],
)
def test_runs_of_different_tasks_are_refused_by_what_differs(
    tmp_path: Path, fields: Mapping[str, Any], says: str
) -> None:
    runs = [ran(tmp_path, [sample("a")]), ran(tmp_path, [sample("a")], **fields)]
    with pytest.raises(FoveaError, match=says):
        exported(runs, tmp_path / "view")
    assert not (tmp_path / "view").exists()


def test_three_runs_and_a_run_beside_itself_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FoveaError, match="3 were named"):
        exported([VICROP, VICROP, IDENTITY], tmp_path / "view")
    with pytest.raises(FoveaError, match="both runs"):
        exported([VICROP, VICROP], tmp_path / "view")


# ---------------------------------------------------------------- pictures


def picture_of(folder: Path, name: str, images: Path | None = None) -> tuple[Path, Any]:
    (entry,) = detail(folder, name)["pictures"]
    return (images or folder / "images") / entry["file"], entry


def test_a_plain_photograph_is_copied_byte_for_byte_under_its_digest(tmp_path: Path) -> None:
    path = photograph(tmp_path / "a.jpg")
    exported([ran(tmp_path, [sample("../../etc/passwd", path)])], tmp_path / "view")
    there, entry = picture_of(tmp_path / "view", "../../etc/passwd")
    assert there.read_bytes() == path.read_bytes()
    assert there.name == f"{Picture(File(path)).digest}-64x48.jpg" and entry["size"] == [64, 48]
    assert {name.split("/")[0] for name in files(tmp_path / "view")} == {
        "assets",
        "data",
        "images",
        "index.html",
    }


def test_a_picture_that_a_browser_would_show_otherwise_is_made_again(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    clear = Image.new("RGBA", (30, 20), (200, 10, 20, 0))
    clear.save(tmp_path / "clear.png")
    paths = [photograph(tmp_path / "turned.jpg", exif=turned), tmp_path / "clear.png"]
    frames = [Image.new("RGB", (20, 20), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "moving.webp", save_all=True, append_images=frames[1:], lossless=True)
    paths.append(tmp_path / "moving.webp")
    exported([ran(tmp_path, [sample(path.stem, path) for path in paths])], tmp_path / "view")
    for path in paths:
        there, entry = picture_of(tmp_path / "view", path.stem)
        assert there.read_bytes() != path.read_bytes()
        with Image.open(there) as found:
            assert (
                found.mode == "RGB" and 0x0112 not in found.getexif() and getattr(found, "n_frames", 1) == 1
            )
            assert list(found.size) == entry["size"]
    with Image.open(picture_of(tmp_path / "view", "clear")[0]) as found:
        assert found.getpixel((3, 3)) == (200, 10, 20), "as the model saw it"
    with Image.open(picture_of(tmp_path / "view", "moving")[0]) as found:
        assert found.getpixel((3, 3))[0] > 250, "red, its first frame"  # type: ignore[index]


def test_a_very_large_picture_is_scaled_and_its_own_size_is_told(tmp_path: Path) -> None:
    exported([ran(tmp_path, [sample("a", photograph(tmp_path / "a.png", (4000, 1000)))])], tmp_path / "view")
    there, entry = picture_of(tmp_path / "view", "a")
    assert entry["size"] == [4000, 1000]
    with Image.open(there) as found:
        assert found.size == (1600, 400)


def test_a_picture_made_once_is_not_made_or_looked_for_again(tmp_path: Path) -> None:
    path = photograph(tmp_path / "a.png", (2000, 100))
    runs = [ran(tmp_path, [sample("a", path), sample("b", path)], model=name) for name in ("m", "n")]
    exported([runs[0]], tmp_path / "one", images=tmp_path / "pictures")
    (made,) = (tmp_path / "pictures").iterdir()
    before = made.stat()
    path.unlink()
    assert exported([runs[1]], tmp_path / "two", images=tmp_path / "pictures") == []
    assert [file.name for file in (tmp_path / "pictures").iterdir()] == [made.name]
    assert made.stat().st_mtime_ns == before.st_mtime_ns and made.stat().st_ino == before.st_ino
    assert 'data-images="../pictures"' in (tmp_path / "two" / "index.html").read_text()


def test_a_picture_that_is_gone_or_changed_or_none_is_a_frame_that_says_why(tmp_path: Path) -> None:
    paths = {name: photograph(tmp_path / f"{name}.png") for name in ("gone", "changed")}
    drawn = tmp_path / "drawn.svg"
    drawn.write_text('<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)" width="9" height="9"/>')
    run = ran(tmp_path, [sample(name, path) for name, path in {**paths, "drawn": drawn}.items()])
    paths["gone"].unlink()
    photograph(paths["changed"])
    (fault,) = exported([run], tmp_path / "view")
    assert fault.startswith("3 samples have a picture that is not shown, such as 'gone'")
    why = {
        name: detail(tmp_path / "view", name)["pictures"][0]["why"] for name in ("gone", "changed", "drawn")
    }
    assert (
        "gone.png is not there any more, nor can its task be made: the task is somewhere else" in why["gone"]
    )
    assert "its pixels have changed" in why["changed"]
    assert "drawn.svg is not a picture" in why["drawn"]
    assert not (tmp_path / "view" / "images").exists()


@pytest.mark.parametrize("digest", ["../../../tmp/evil", "<b>", 7, None, "ab"])
def test_a_digest_that_is_none_names_no_file(tmp_path: Path, digest: Any) -> None:
    run = ran(tmp_path, [sample("a", photograph(tmp_path / "a.png"))])
    record = next(store.read_records(run))
    changed = replace(record, pictures=({**record.pictures[0], "digest": digest}, 3))  # type: ignore[arg-type]
    (run / "records.jsonl").write_text(changed.line() + "\n")
    before = set(tmp_path.rglob("*"))
    (fault,) = exported([run], tmp_path / "view")
    assert {
        path for path in set(tmp_path.rglob("*")) - before if path.suffix in (".png", ".jpg", ".webp")
    } == set()
    assert "1 sample has a picture that is not shown" in fault


def test_every_picture_of_a_sample_is_shown(tmp_path: Path) -> None:
    images = tuple(Picture(File(photograph(tmp_path / f"{name}.png"))) for name in "ab")
    run = ran(tmp_path, [Sample("s", images, "Which?", ("grey",))])
    exported([run], tmp_path / "view")
    assert len({one["file"] for one in detail(tmp_path / "view", "s")["pictures"]}) == 2


# ---------------------------------------------------------------- what was done to the picture


def test_a_map_arrives_over_its_rectangle_and_what_is_no_number_is_marked(tmp_path: Path) -> None:
    values = np.array([[0, 1, 2], [np.nan, 3, 4]], np.float32)

    def answer(_: Request) -> Response:
        return Response(
            "grey", maps=(ImportanceMap(values, (8, 0, 56, 48)),), trace={"locate": "rel_att", "layer": 14}
        )

    run = ran(tmp_path, [sample("a", photograph(tmp_path / "a.png"))], answer, save_traces=True)
    exported([run], tmp_path / "view")
    found = detail(tmp_path / "view", "a")
    assert found["map"]["rectangle"] == [8, 0, 56, 48] and found["map"]["range"] == [0, 4]
    assert found["map"]["name"] == "rel_att, layer 14" and found["map"]["shape"] == [2, 3]
    assert list(base64.b64decode(found["map"]["levels"])) == [0, 64, 127, 255, 190, 254]
    assert "1 of 6 cells of the map are no finite number" in found["notes"]


def test_a_fine_map_is_averaged_in_blocks() -> None:
    values = np.arange(192 * 288, dtype=np.float32).reshape(192, 288) / 1e4
    found: Any = shown(Record("a"), {"map_0": values, "rectangle": np.array([[0, 0, 9, 9]])})["map"]
    blocks = values.astype(float).reshape(96, 2, 96, 3).mean(axis=(1, 3))
    levels = np.frombuffer(base64.b64decode(found["levels"]), np.uint8).reshape(96, 96)
    assert found["grid"] == [192, 288] and found["shape"] == [96, 96]
    wanted = 254 * (blocks - blocks.min()) / (blocks.max() - blocks.min())
    assert np.abs(levels - wanted).max() <= 0.51


@pytest.mark.parametrize("shape", [(97, 500), (1, 1000), (300, 96), (2, 2)])
def test_a_map_of_any_shape_keeps_its_mean(shape: tuple[int, int]) -> None:
    values = np.random.default_rng(0).random(shape).astype(np.float32)
    found: Any = shown(Record("a"), {"map_0": values, "rectangle": np.array([[0, 0, 9, 9]])})["map"]
    levels = np.frombuffer(base64.b64decode(found["levels"]), np.uint8)
    low, high = found["range"]
    assert low + levels.mean() / 254 * (high - low) == pytest.approx(float(values.mean()), abs=0.01)


def test_boxes_of_every_stage_and_the_targets_region_are_named() -> None:
    trace = {
        "method": "random_crop",
        "box": [1, 2, 3, 4],
        "inner": {
            "method": "vicrop",
            "locate": "detector",
            "box": [0, 0, 10, 10],
            "detected": {"label": "cup", "score": 0.5, "box": [2, 2, 8, 8]},
        },
    }
    found: Any = shown(Record("a", trace=trace, meta={"region": [5, 6, 7, 8]}), {})
    assert [(one["name"], one["kind"], one["box"]) for one in found["boxes"]] == [
        ("random_crop", "crop", [1, 2, 3, 4]),
        ("vicrop detector", "crop", [0, 0, 10, 10]),
        ("cup 0.50", "detected", [2, 2, 8, 8]),
    ]
    assert found["region"] == [5, 6, 7, 8]


def test_selected_tokens_lie_on_their_cells_step_by_step() -> None:
    trace = {"selected": [[0, 5], [5]], "grid": [2, 3], "rectangle": [0, 0, 30, 20], "first": 0, "stride": 3}
    found: Any = shown(Record("a", trace=trace), trace_arrays(trace))
    assert found["tokens"]["often"] == [1, 0, 0, 0, 0, 2] and found["tokens"]["steps"] == [[0, 5], [5]]
    assert found["tokens"]["counts"] == [2, 1] and "selected" not in found["trace"]


def test_parts_come_with_their_colours_captions_and_reasons() -> None:
    found: Any = shown(Record("a", trace=parts_trace()), {})["parts"]
    assert [card["name"] for card in found["cards"]] == ["LT", "RT", "LB", "RB", "LB+RB"]
    first, pair = found["cards"][0], found["cards"][-1]
    assert first["colours"] == ["#0072B2"] and pair["colours"] == ["#009E73", "#CC79A7"] and pair["pair"]
    assert ["contradictory", "1.1", "The sea is rough.", False, "1.1 fits the picture better", 0.4] in first[
        "sentences"
    ]
    assert [one[0] for one in first["sentences"]] == [
        "consistent",
        "contradictory",
        "contradictory",
        "unique",
    ]


@pytest.mark.parametrize(
    "trace",
    [
        {"box": "no", "detected": 3, "selected": 4, "grid": [1], "rectangle": None, "inner": [1]},
        {"box": [0, 0, 1e300, 10**400], "detected": {"label": [1], "score": "x", "box": [0, 0, 5, 5]}},
        {"box": [float("nan"), 0, 1, 1], "top": ["a"], "scores": [float("inf")], "locate": 3, "layer": "x"},
        {"selected": [[10**6]], "grid": [2, 2], "rectangle": [0, 0, 0, 0]},
        {"selected": [[1]], "grid": [3000, 3000], "rectangle": [0, 0, 9, 9]},
        {"top": [["a"]], "scores": [{}], "skipped": "x" * 9999, "method": "m" * 9999, "box": [0, 0, 2, 2]},
        {"__proto__": {"polluted": 1}, "constructor": "x", "a" * 5000: [[[[]]]] * 50},
    ],
)
def test_no_trace_breaks_the_export(tmp_path: Path, trace: Any) -> None:
    record = Record("a", trace=trace, meta={"region": "x", "__proto__": 1}, measures={"m": float("nan")})
    found = shown(record, trace_arrays(trace))
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    "arrays",
    [
        {"map_0": np.array(["a"]), "rectangle": np.array([[0, 0, 9, 9]])},
        {"map_0": np.zeros((2, 2, 2)), "rectangle": np.array([0])},
        {"map_0": np.zeros((2, 2)), "rectangle": np.zeros((0, 4))},
        {"map_0": np.zeros((0, 2)), "rectangle": np.array([[0, 0, 9]])},
        {"map_0": np.full((2, 2), np.nan), "rectangle": np.array([[0, 0, 9, np.inf]])},
        {
            "map_0": np.array([[1e308, -1e308]]),
            "rectangle": np.array([[0, 0, 9, 9]]),
            "degenerate": np.array("x"),
        },
        {"map_0": np.array([[np.inf, -np.inf]] * 200), "rectangle": np.array([[0, 0, 9, 9]])},
        {"selected_offsets": np.array([0, 5, 2]), "selected": np.array([7])},
        {
            "selected_offsets": np.array([0, 9]),
            "selected_cells": np.zeros((2, 2)),
            "selected": np.array([-1, 4]),
        },
        {"selected_offsets": np.array(["x"]), "selected": np.array([[1]])},
        {"selected_cells": np.zeros((2, 2)), "selected_rectangle": np.array([1])},
    ],
)
def test_no_file_of_arrays_breaks_the_export(arrays: Any) -> None:
    json.dumps(shown(Record("a"), arrays), allow_nan=False)


def test_json_is_readable_and_cut_where_it_is_long() -> None:
    assert readable({}) == ""
    value = {"a": [1, 2], "b": {"c": [{"d": None}]}, "e": {}}
    assert json.loads(readable(value)) == value
    long = readable({str(number): "x" * 100 for number in range(10_000)})
    assert len(long) < LETTERS + 100 and long.endswith("it goes on")


# ---------------------------------------------------------------- objects


def test_objects_are_marked_as_the_metric_counts_them() -> None:
    objects = Objects(chair.metric(front_end="rules"))
    assert objects("A dog and a hot dog.", ["dog"]) == [
        ("A ", ""),
        ("dog", KEPT),
        (" and a ", ""),
        ("hot dog", HALLUCINATED),
        (".", ""),
    ]
    assert objects("", []) == [] and objects("Nothing here.", []) == [("Nothing here.", "")]


@pytest.mark.parametrize(
    "caption",
    [
        "Two men and a baby elephant near a bow tie, a traffic light and three hot dogs.",
        "A woman's dogs, her cell-phone; a dining table with wine glasses. People! A teddy bear",
        "猫 dog שלום\tcar\n\nbus 🚌 bicycle",
    ],
)
def test_marked_objects_are_as_many_as_the_metric_counts(caption: str) -> None:
    metric, truth = chair.metric(front_end="rules"), ("person", "dog", "tie")
    pieces = Objects(metric)(caption, truth)
    (counts,) = metric.measure([Response(caption)], [Sample("", targets=truth)])
    marks = [mark for _, mark in pieces if mark]
    assert "".join(text for text, _ in pieces) == caption
    assert (len(marks), marks.count(HALLUCINATED)) == (counts["mentions"], counts["hallucinated"])


def test_a_captioning_run_says_what_was_counted_and_what_is_marked(tmp_path: Path) -> None:
    run = ran(
        tmp_path,
        [sample("a", targets=("toilet",))],
        "The seat of the toilet.",  # a seat is a chair, but not a toilet's: that takes the whole sentence
        metrics=(chair.metric(front_end="rules"),),
        primary="CHAIRs",
    )
    exported([run], tmp_path / "view")
    found = detail(tmp_path / "view", "a")["objects"]
    assert found["counted"] == [1, 0] and found["marked"] == [2, 1]
    assert _view_objects.counts_objects({"mentions": 1, "hallucinated": 0, "length": 2})
    assert not _view_objects.counts_objects({"mentions": "1", "hallucinated": 0, "length": 2})


# ---------------------------------------------------------------- retrieval


@pytest.fixture(scope="module")
def matched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pool = matching.first(scene_retrieval.task(), 6)

    class Noisy:
        def describe(self) -> dict[str, Any]:
            return {"adapter": "noise", "model": "noise"}

        def similarity(self, pool: Any, rows: range) -> Any:
            return np.random.default_rng(rows[0]).random((len(rows), len(pool.texts))).astype(np.float32)

    return matching.run(pool, Noisy(), out=tmp_path_factory.mktemp("matched")).path


def test_a_query_is_right_where_what_stands_first_is_its_own(matched: Path, tmp_path: Path) -> None:
    assert exported([matched], tmp_path, lambda: matching.first(scene_retrieval.task(), 6)) == []
    found = index(tmp_path)
    marks = dict(zip(found["ids"], found["sides"][0]["marks"], strict=True))
    for record in store.read_records(matched):
        assert marks[record.sample_id] == ("r" if record.meta["rank"] == 0 else "w")
    assert found["sides"][0]["number"] == "R@1" and found["offers"]
    query = detail(tmp_path, "text:3")
    assert len(query["offers"]) == 5 and query["targets"] == ["image:0"] and "pictures" not in query
    assert len(list((tmp_path / "images").iterdir())) == 6


# ---------------------------------------------------------------- the command


def test_the_command_writes_the_pages_and_says_where(tmp_path: Path) -> None:
    result = fovea("view", str(IDENTITY), str(VICROP), "--out", str(tmp_path / "pages"), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == str(tmp_path / "pages" / "index.html")
    assert len(index(tmp_path / "pages")["sides"]) == 2


def test_the_command_puts_a_runs_pages_into_its_folder_and_warns_of_what_is_missing(tmp_path: Path) -> None:
    path = photograph(tmp_path / "a.png")
    run = ran(tmp_path, [sample("a", path)])
    path.unlink()
    result = fovea("view", str(run), cwd=tmp_path)
    assert result.returncode == 0 and (run / "view" / "index.html").is_file()
    assert "a.png is not there any more" in result.stderr
    assert store.find_runs(run) == [run]


def test_the_command_refuses_what_is_no_run_in_one_sentence(tmp_path: Path) -> None:
    result = fovea("view", str(tmp_path), cwd=tmp_path)
    assert result.returncode == 2 and re.search("holds no run.json", result.stderr)
