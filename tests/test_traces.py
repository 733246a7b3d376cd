"""What a run keeps of its maps, and the pictures drawn from it: real models, real tasks, hostile words."""

import io
import json
import math
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from adapters import hf
from adapters.scripted import Scripted
from harness import engine, store
from harness.errors import DataError, StoreError
from harness.pictures import File, Member, Picture
from harness.resolve import metric_from
from harness.store import Record, file_name, read_records, read_run, read_trace, trace_path
from harness.traces import trace_arrays
from harness.types import ImportanceMap, Json, Model, Pace, Request, Response, Sample, Task
from leaderboard import cli
from leaderboard._page import wrapped
from leaderboard.samples import Judge, Verdict, draw
from methods.sparc import Sparc
from methods.vicrop import Vicrop
from metrics import exact
from tasks import small_detail
from tests.test_cli import fovea

SCENES = small_detail.task(size=8)
DEMO = str(Path(__file__).parent.parent / "assets" / "demo")


@pytest.fixture(scope="module")
def model() -> Model:
    return hf.model(DEMO, device="cpu", batch=8)


@pytest.fixture(scope="module")
def cropped(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of ViCrop on three scenes, with its traces."""
    out = tmp_path_factory.mktemp("cropped")
    return engine.run(SCENES, model, [Vicrop], out=out, limit=3, save_traces=True).path


def show(run: Path, out: Path, task: Task, ids: Sequence[str] = (), wrong: bool = False) -> list[Path]:
    """Drawn as `fovea show` does."""
    said, faults = shown(run, out, task, ids, wrong)
    assert faults == []
    return said


def shown(
    run: Path, out: Path, task: Task, ids: Sequence[str] = (), wrong: bool = False
) -> tuple[list[Path], list[str]]:
    said: list[str] = []
    faults = cli.samples(
        run, ids, out, wrong=wrong, task=lambda: task, metric_from=metric_from, say=said.append
    )
    return list(map(Path, said)), faults


def pixels(path: Path | io.BytesIO) -> np.ndarray[Any, Any]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


# ---------------------------------------------------------------- what is kept


def test_a_trace_holds_the_methods_maps_boxes_and_rectangles(cropped: Path, model: Model) -> None:
    requests = [engine.request_of(SCENES, sample) for sample in SCENES.samples[:3]]
    assert len(list((cropped / "traces").iterdir())) == 3
    for record, response in zip(read_records(cropped), Vicrop(model).generate(requests), strict=True):
        with np.load(trace_path(cropped, record.key), allow_pickle=False) as arrays:
            assert set(arrays) == {"map_0", "rectangle", "box", "degenerate"}
            (expected,) = response.maps
            assert arrays["map_0"].dtype == np.float16 and arrays["map_0"].shape == expected.values.shape
            greatest = np.abs(expected.values).max()
            np.testing.assert_allclose(arrays["map_0"], expected.values, rtol=0, atol=greatest / 2048)
            assert arrays["rectangle"].tolist() == [[0, 0, 576, 576]] == [list(expected.rectangle)]
            assert arrays["box"].tolist() == response.trace["box"]
            assert not arrays["degenerate"]


def test_traces_change_neither_the_identity_nor_the_summary_of_a_run(
    cropped: Path, model: Model, tmp_path: Path
) -> None:
    plain = engine.run(SCENES, model, [Vicrop], out=tmp_path, limit=3)
    assert plain.path.name == cropped.name
    assert json.dumps(plain.summary) == json.dumps(read_run(cropped)["summary"])
    assert not (plain.path / "traces").exists()


def test_a_steered_run_keeps_which_tokens_each_step_selected(model: Model, tmp_path: Path) -> None:
    task = small_detail.task("caption", size=2)
    path = engine.run(task, model, [partial(Sparc, tau=0.2)], out=tmp_path, save_traces=True).path
    for record in read_records(path):
        arrays = read_trace(path, record.key)
        assert arrays is not None
        steps = np.split(arrays["selected"], arrays["selected_offsets"][1:-1])
        assert [step.tolist() for step in steps] == record.trace["selected"]
    for picture in show(path, tmp_path / "drawn", task):
        plot = pixels(picture)[60:600, 900:1550]
        assert (plot == [0x09, 0x69, 0xDA]).all(axis=2).any(), "a line of the selections' numbers"


@pytest.mark.parametrize(
    ("values", "dtype"),
    [
        ([[0.5, np.nan], [np.inf, 3.0]], np.float16),
        ([[65504.0, -np.inf]], np.float16),
        ([[65600.0, 1.0]], np.float32),
        ([[3e-5, 1e-9]], np.float32),
        ([[0.0, np.nan]], np.float16),
    ],
)
def test_a_map_is_half_precision_only_where_that_shows_it(values: Any, dtype: Any) -> None:
    full = np.array(values, np.float32)
    kept = trace_arrays({}, [ImportanceMap(full, (0, 0, 4, 4))])["map_0"]
    assert kept.dtype == dtype
    np.testing.assert_allclose(kept, full, rtol=0, atol=np.abs(full[np.isfinite(full)]).max() / 2048)


@pytest.mark.parametrize(
    "trace",
    [{"box": "left"}, {"box": [1, 2, 3]}, {"selected": [1, "x"]}, {"inner": 3}, {"box": [0, 0, math.nan, 1]}],
)
def test_a_trace_of_another_shape_is_left_out(trace: Mapping[str, Json]) -> None:
    assert trace_arrays(trace) == {}


def test_the_selection_inside_and_the_crop_outside_are_both_kept() -> None:
    grid = {"grid": [2, 4], "rectangle": [0, 0, 8, 4], "first": 1, "stride": 5}
    trace = {"box": [1, 2, 3, 4], "inner": {"selected": [[5], [], [6, 7]], **grid}}
    arrays = {name: array.tolist() for name, array in trace_arrays(trace).items()}
    assert arrays == {
        "box": [1, 2, 3, 4],
        "selected": [5, 6, 7],
        "selected_offsets": [0, 1, 1, 3],
        "selected_cells": [[1, 2, 3, 4], [6, 7, 8, 9]],
        "selected_rectangle": [0, 0, 8, 4],
    }


# ---------------------------------------------------------------- where it is kept

HOSTILE = [
    "../../x",
    "/etc/passwd",
    "",
    ".",
    "a" * 300,
    "猫" * 300,
    "a/b\0\n",
    "\ud800",
    "A",
    "a",
    "x.npz",
    "CON",
]


def looking(request: Request) -> Response:
    """A response with a map and a crop, as a white-box method's."""
    seen = ImportanceMap(np.eye(3, dtype=np.float32), (0, 0, 60, 40))
    return Response("$\\frac{", trace={"method": "m", "grid": [3, 3], "box": [10, 10, 30, 30]}, maps=(seen,))


@pytest.fixture
def hostile(tmp_path: Path) -> Task:
    """A task whose ids are anything, about one picture."""
    Image.linear_gradient("L").resize((60, 40)).save(tmp_path / "picture.png")
    picture = Picture(File(tmp_path / "picture.png"))
    words = "What is $x^{2$ of \\frac{\x1b[31m 猫\U0001f600\ud800 " + "very " * 400 + "?"
    return Task(
        name="hostile",
        version="1",
        protocol="plain",
        fingerprint="f",
        samples=[Sample(one, (picture,), words, ("$\\alpha$",)) for one in HOSTILE],
        request=lambda sample: Request(sample.images, sample.question),
        metrics=(exact.metric(),),
        primary="accuracy",
    )


def run(task: Task, out: Path, answer: Callable[[Request], Any] = looking, **knobs: Any) -> engine.Run:
    return engine.run(task, Scripted(answer, pace=Pace(group=4)), out=out, **{"save_traces": True, **knobs})


def test_any_id_is_a_file_of_its_own_inside_the_run(hostile: Task, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run(hostile, out)
    files = list((result.path / "traces").iterdir())
    assert len(files) == len(HOSTILE)
    assert {file.name.lower() for file in files} == {f"{file_name((one, 0))}.npz".lower() for one in HOSTILE}
    assert len({file.name.lower() for file in files}) == len(HOSTILE)
    assert max(len(file.name.encode()) for file in files) < 120
    assert not any(file.name.startswith((".", "-")) for file in files)
    everything = {path for path in tmp_path.rglob("*") if path.is_file()}
    assert {path for path in everything if path.suffix == ".npz"} == set(files)
    assert file_name(("a", 0)) != file_name(("a", 1)), "a repeat has its own"


def test_hostile_words_are_drawn_as_they_are(hostile: Task, tmp_path: Path) -> None:
    drawn = show(run(hostile, tmp_path / "out").path, tmp_path / "drawn", hostile, HOSTILE)
    assert len(drawn) == len(HOSTILE)
    assert {path.parent for path in drawn} == {tmp_path / "drawn"}


def test_long_words_are_cut_and_control_characters_are_gone() -> None:
    lines = wrapped("\x1b[31m" + "word " * 500)
    assert len(lines) == 7 and lines[-1].endswith("more characters")
    assert "\x1b" not in "".join(lines)
    assert max(map(len, wrapped("猫" * 100))) <= 62


def test_a_run_that_had_no_traces_says_how_many_and_what_to_do(hostile: Task, tmp_path: Path) -> None:
    warnings: list[str] = []
    run(hostile, tmp_path, limit=4, save_traces=False)
    result = run(hostile, tmp_path, limit=6, warn=warnings.append)
    (warning,) = warnings
    assert warning.startswith("4 samples were answered before without --save-traces")
    assert str(result.path) in warning
    assert len(list((result.path / "traces").iterdir())) == 2
    again: list[str] = []
    run(hostile, tmp_path, limit=6, save_traces=False, warn=again.append)
    assert again == []
    assert len(list((result.path / "traces").iterdir())) == 2, "what was kept stays"


def test_a_model_that_shows_nothing_leaves_no_traces_and_no_warning(hostile: Task, tmp_path: Path) -> None:
    for _ in range(2):
        warnings: list[str] = []
        result = run(hostile, tmp_path, answer=lambda _: "yes", warn=warnings.append)
        assert warnings == [] and not (result.path / "traces").exists()


def test_a_failed_sample_has_no_trace(hostile: Task, tmp_path: Path) -> None:
    failed = replace(Response.failed("timeout", "slow"), trace={"box": [0, 0, 1, 1]})
    result = run(hostile, tmp_path, answer=lambda _: failed)
    assert result.failed == len(HOSTILE) and not (result.path / "traces").exists()


def test_answers_are_recorded_where_their_traces_cannot_be(hostile: Task, tmp_path: Path) -> None:
    path = run(hostile, tmp_path, limit=2).path
    for file in (path / "traces").iterdir():
        file.unlink()
    (path / "traces").rmdir()
    (path / "traces").write_text("in the way")
    with pytest.raises(StoreError, match="traces cannot be written.*without --save-traces"):
        run(hostile, tmp_path)
    assert len(list(read_records(path))) == 6, "the group on the way was recorded"
    (path / "traces").unlink()
    assert run(hostile, tmp_path).status == "complete"
    assert len(list((path / "traces").iterdir())) == 6


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's full device")
def test_a_full_disk_leaves_no_torn_trace(hostile: Task, tmp_path: Path) -> None:
    path = run(hostile, tmp_path, limit=1).path
    (old,) = (path / "traces").iterdir()
    before = old.read_bytes()
    with store.RunDirectory(path) as directory:
        draft = old.with_name(old.name + ".new")
        draft.symlink_to("/dev/full")
        with pytest.raises(StoreError, match="No space left"):
            directory.keep_trace((HOSTILE[0], 0), {"map_0": np.ones((2, 2))})
    assert old.read_bytes() == before and not draft.exists()


def test_a_damaged_trace_is_named_and_a_pickled_one_is_not_loaded(tmp_path: Path) -> None:
    path = trace_path(tmp_path, ("a", 0))
    path.parent.mkdir()
    assert read_trace(tmp_path, ("a", 0)) is None
    path.write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(StoreError, match="cannot be read"):
        read_trace(tmp_path, ("a", 0))
    np.savez(path, map_0=np.array([print], dtype=object))
    with pytest.raises(StoreError, match="cannot be read"):
        read_trace(tmp_path, ("a", 0))


# ---------------------------------------------------------------- what is drawn


def test_a_sample_is_drawn_with_its_map_and_without(cropped: Path, model: Model, tmp_path: Path) -> None:
    with_map = show(cropped, tmp_path / "with", SCENES)
    assert [path.stem for path in with_map] == [file_name(record.key) for record in read_records(cropped)]
    bare = engine.run(SCENES, model, [Vicrop], out=tmp_path, limit=3).path
    for mapped, plain in zip(with_map, show(bare, tmp_path / "without", SCENES), strict=True):
        one, other = pixels(mapped), pixels(plain)
        assert one.shape[1] == other.shape[1] == 1600
        assert other.shape[0] - one.shape[0] == 32, "one more line: how to keep the map"
        scene, same = one[50:690, 40:680], other[50:690, 40:680]
        assert (np.abs(scene - same).max(axis=2) > 8).mean() > 0.5, "a map lies over the scene"
        assert (one[60:680, 830:1450] == other[60:680, 830:1450]).all(), "the crop is the same"
        assert len(np.unique(one[60:680, 830:1450].reshape(-1, 3), axis=0)) > 1, "and shows something"


def test_a_map_lies_over_its_rectangle_and_nowhere_else() -> None:
    header = {"identity": {"task": {"name": "t", "protocol": "p"}}, "methods": ["m"]}
    rising = np.array([[0.2, 0.2], [1, 1]], np.float16)
    arrays = {"map_0": rising, "rectangle": np.array([[20, 0, 60, 80]], np.float32)}
    white = Image.new("RGB", (80, 80), "white")
    figure = draw(Record("a", question="q"), arrays, white, Verdict(), header)
    figure.savefig(file := io.BytesIO())
    drawn = pixels(file)[50:690, 40:680]
    assert (drawn[300, [20, 120, 520, 620]] == 255).all(), "beside it the picture is as it was"
    assert (drawn[[100, 300, 500], 320].sum(axis=1) < 700).all()
    np.testing.assert_allclose(drawn[:, 320].mean(), drawn[:, 240].mean(), atol=1)


def test_selected_tokens_are_shaded_where_they_lie() -> None:
    header = {"identity": {"task": {"name": "t", "protocol": "p"}}, "methods": ["sparc"]}
    grid = {"grid": [2, 4], "rectangle": [0, 0, 80, 80], "stride": 5}
    record = Record("a", question="q", trace={"selected": [[1], [1, 4], []], **grid})
    white = Image.new("RGB", (80, 80), "white")
    draw(record, trace_arrays(record.trace), white, Verdict(), header).savefig(file := io.BytesIO())
    drawn = pixels(file)[50:690, 40:680]
    twice, never = drawn[160, 240], drawn[160, 80]
    assert (twice != never).any()
    assert (drawn[160, [400, 560]] == never).all()
    assert (drawn[480, [80, 240, 400, 560]] == never).all(), "token 4 ends the first line: it is no cell"


def test_wrong_ones_and_ids_can_be_asked_for(cropped: Path, tmp_path: Path) -> None:
    wrong = {record.sample_id for record in read_records(cropped) if record.answer not in record.targets}
    assert 0 < len(wrong) < 3
    assert len(show(cropped, tmp_path / "w", SCENES, wrong=True)) == len(wrong)
    (one,) = show(cropped, tmp_path / "i", SCENES, ids=["2000/2"])
    assert one.name.startswith("2000--2-")
    with pytest.raises(DataError, match="no record of 'zzz'; its ids look like '2000/0'"):
        show(cropped, tmp_path, SCENES, ids=["zzz"])


def test_a_lost_picture_is_named_and_the_others_are_drawn(hostile: Task, tmp_path: Path) -> None:
    other = tmp_path / "other.png"
    Image.new("RGB", (60, 40), "red").save(other)
    samples = [hostile.samples[0], replace(hostile.samples[1], images=(Picture(File(other)),))]
    task = replace(hostile, samples=samples)
    path = run(task, tmp_path / "out").path
    other.unlink()
    drawn, (fault,) = shown(path, tmp_path / "d", replace(task, samples=samples[:1]))
    assert len(drawn) == 1 and "other.png is not there any more" in fault
    Image.new("RGB", (60, 40), "blue").save(other)
    _, (fault,) = shown(path, tmp_path / "d", task)
    assert "its pixels have changed" in fault


def test_a_picture_in_an_archive_is_found_again(hostile: Task, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.write(tmp_path / "picture.png", "in/picture.png")
    picture = Picture(Member(tmp_path / "all.zip", "in/picture.png")).crop((5, 5, 55, 35))
    task = replace(hostile, samples=[replace(hostile.samples[0], images=(picture,))])
    path = run(task, tmp_path / "out").path
    assert len(show(path, tmp_path / "d", replace(task, samples=()))) == 1


def test_a_folder_that_cannot_be_written_is_named(hostile: Task, tmp_path: Path) -> None:
    path = run(hostile, tmp_path / "out", limit=1).path
    drawn, (fault,) = shown(path, tmp_path / "picture.png", hostile)
    assert drawn == [] and "Choose a folder with --out" in fault


def test_the_verdict_is_the_runs_first_number(cropped: Path) -> None:
    judge = Judge(read_run(cropped), metric_from)
    for record in read_records(cropped):
        verdict = judge(record)
        assert verdict.right == (record.answer in record.targets) and verdict.wrong != verdict.right
    assert not (Verdict().right or Verdict().wrong)
    assert Verdict("CHAIRi", 0.0, False).right and Verdict("CHAIRi", 0.2, False).wrong


# ---------------------------------------------------------------- as commands


def test_the_commands_keep_traces_and_draw_them_from_the_same_task(tmp_path: Path) -> None:
    words = ["small_detail:seed=2001,size=3", f"hf:{DEMO}", "--method", "vicrop", "--save-traces"]
    done = fovea("run", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = tmp_path / done.stdout.splitlines()[-1]
    assert len(list((run / "traces").iterdir())) == 3
    shown = fovea("show", run, "2001/1", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert Path(shown.stdout.strip()).is_file()
    moved = fovea("show", run, "--task", "small_detail:size=3", "--out", "d", cwd=tmp_path)
    assert moved.returncode == 1 and moved.stderr.count("no such sample") == 3


@pytest.mark.parametrize(
    "trace",
    [
        {"box": [10**400, 0, 1, 1]},
        {"box": [float("nan"), 0, 1, 1]},
        {"selected": [[10**12]]},
        {"selected": [[1]], "grid": [10**6, 10**6], "rectangle": [0, 0, 1, 1]},
        {"selected": [[1]], "grid": [0, 3], "rectangle": [0, 0, 1, 1]},
        {"selected": [[1]], "grid": [2, 3], "rectangle": [0, 0, 1, 1], "stride": "x"},
    ],
)
def test_numbers_that_no_picture_has_are_left_out(trace: Any) -> None:
    arrays = trace_arrays(trace)
    assert not {"box", "selected_cells"} & arrays.keys()
