"""Retrieval runs: from a matcher's blocks to records, a summary and a board; interrupted, shared, refused."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from harness import engine, matching, store
from harness.errors import DataError, ModelError, PictureError, SpecError, StoreError
from harness.pictures import Drawing, File, Picture
from harness.types import Pool, Retrieval, Sample
from metrics import retrieval

FOVEA = Path(sys.executable).parent / "fovea"
Scores = npt.NDArray[np.float32]
Done = subprocess.CompletedProcess[str]


def drawn(number: int) -> Picture:
    """A picture that nobody looks at."""
    return Picture(Drawing(f"drawing {number}", (8, 8), lambda: Image.new("RGB", (8, 8))))


def task(counts: Sequence[int] = (5,) * 10, **fields: Any) -> Retrieval:
    """So many captions for each of so many images, in order."""
    owner = tuple(image for image, number in enumerate(counts) for _ in range(number))
    pictures = tuple(drawn(number) for number in range(len(counts)))
    made = Retrieval(
        name="toy_retrieval",
        version="1",
        protocol="sparse",
        fingerprint="of the toy",
        pool=Pool(pictures, tuple(f"text {k} of {image}" for k, image in enumerate(owner)), fingerprint="p"),
        owner=owner,
        ids=tuple(f"id{number}" for number in range(len(counts))),
        rank=retrieval.queries,
        metrics=(retrieval.metric(),),
        primary="rsum",
    )
    return replace(made, **fields)


def noise(of: Retrieval, seed: int = 0, decimals: int = 6) -> Scores:
    """Similarities that know a little; rounded, so that some tie."""
    draw = np.random.default_rng(seed)
    found = draw.standard_normal((len(of.pool.images), len(of.pool.texts)))
    found[list(of.owner), np.arange(len(of.owner))] += 1.5
    return found.round(decimals).astype(np.float32)


@dataclass
class Known:
    """A matcher that has its matrix already, and notes what it was asked for."""

    matrix: npt.NDArray[Any]
    name: str = "known"
    asked: list[range] = field(default_factory=list)

    def describe(self) -> dict[str, Any]:
        return {"adapter": "known", "model": self.name}

    def similarity(self, pool: Pool, rows: range) -> Any:
        self.asked.append(rows)
        return self.matrix[rows.start : rows.stop]


def scores(run: engine.Run, key: str = "retrieval") -> dict[str, float]:
    found = run.summary["metrics"][key]["scores"]
    return {name: estimate["value"] for name, estimate in found.items()}


def records(run: engine.Run | Path) -> list[store.Record]:
    return list(store.read_records(run if isinstance(run, Path) else run.path))


def lines(path: Path) -> list[str]:
    """A run's records without what they took."""
    found = [json.loads(line) for line in (path / store.RECORDS).read_text().splitlines()]
    return [json.dumps({**record, "usage": {**record["usage"], "seconds": 0}}) for record in found]


# ---------------------------------------------------------------- records and the summary


def test_each_image_and_each_text_is_a_query_with_a_record(tmp_path: Path) -> None:
    made = task((2, 1))
    matrix = np.array([[0.9, 0.1, 0.2], [0.8, 0.7, 0.6]])
    found = records(matching.run(made, Known(matrix), out=tmp_path))
    assert [record.sample_id for record in found] == ["image:0", "image:1", "text:0", "text:1", "text:2"]
    image, text = found[1], found[3]
    assert (image.category, image.targets, image.answer) == ("i2t", ("text:2",), "text:0")
    assert image.meta == {"way": "i2t", "rank": 2, "best_rank": 2, "image": "id1"}
    assert image.trace["top"] == ["text:0", "text:1", "text:2"]
    assert image.trace["scores"] == [0.8, 0.7, 0.6]
    assert image.pictures[0]["digest"] == drawn(1).digest == image.group
    assert (text.category, text.targets, text.answer) == ("t2i", ("image:0",), "image:1")
    assert text.meta == {"way": "t2i", "rank": 1, "best_rank": 1, "image": "id0"}
    assert (text.question, text.prompt) == ("text 1 of 0", "text 1 of 0")
    assert text.group == drawn(0).digest and not text.pictures


@pytest.mark.parametrize("folds", [1, 5])
@pytest.mark.parametrize("decimals", [6, 0])
def test_the_summary_is_that_of_the_metric_whole_and_in_folds(
    tmp_path: Path, folds: int, decimals: int
) -> None:
    made = task(folds=folds)
    matrix = noise(made, decimals=decimals)
    run = matching.run(made, Known(matrix), out=tmp_path)
    expected = retrieval.summary(matrix, made.owner, folds=folds)
    found = scores(run)
    assert set(found) == set(expected) - {"i2t_medr", "t2i_medr"}
    assert found == pytest.approx({name: expected[name] for name in found}, abs=1e-9)
    assert (found["tied"] > 0) == (decimals == 0)


def test_unequal_captions_are_counted_each(tmp_path: Path) -> None:
    made = task((5, 1, 7, 2, 3, 1, 4))
    matrix = noise(made)
    expected = retrieval.summary(matrix, made.owner)
    found = scores(matching.run(made, Known(matrix), out=tmp_path))
    assert found == pytest.approx({name: expected[name] for name in found}, abs=1e-9)


def test_scores_have_intervals_and_the_two_ways_apart(tmp_path: Path) -> None:
    made = task()
    entry = matching.run(made, Known(noise(made)), out=tmp_path).summary["metrics"]["retrieval"]
    for estimate in entry["scores"].values():
        assert estimate["low"] <= estimate["value"] <= estimate["high"]
    ways = entry["breakdowns"]["category"]
    assert (ways["i2t"]["n"], ways["t2i"]["n"]) == (10, 50)
    assert ways["i2t"]["scores"]["i2t_r1"] == entry["scores"]["i2t_r1"] | {
        name: ways["i2t"]["scores"]["i2t_r1"][name] for name in ("low", "high")
    }
    assert ways["i2t"]["scores"]["t2i_r1"]["value"] is None


def test_the_likeliest_are_of_the_same_fold_and_of_equal_ones_the_first(tmp_path: Path) -> None:
    made = task((3, 3, 3, 3), folds=2)
    found = records(matching.run(made, Known(np.zeros((4, 12))), out=tmp_path))
    assert found[1].trace["top"] == [f"text:{k}" for k in range(5)]
    assert found[2].trace["top"] == [f"text:{k}" for k in range(6, 11)]
    assert found[4].trace["top"] == ["image:0", "image:1"]
    assert found[-1].trace["top"] == ["image:2", "image:3"]


def test_folds_need_not_stand_together(tmp_path: Path) -> None:
    made = replace(task((2, 2, 2, 2), folds=2), owner=(3, 0, 2, 1, 0, 3, 1, 2))
    matrix = noise(made)
    expected = retrieval.summary(matrix, made.owner, folds=2)
    run = matching.run(made, Known(matrix), out=tmp_path)
    assert scores(run)["rsum"] == pytest.approx(expected["rsum"])
    for record in records(run):
        own = {"image": (0, 1), "text": (1, 3, 4, 6)}
        other = {"image": (2, 3), "text": (0, 2, 5, 7)}
        first = record.meta["image"] in ("id0", "id1")
        for kind, number in (top.split(":") for top in record.trace["top"]):
            assert int(number) in (own if first else other)[kind]


def test_a_picture_that_nobody_reads_need_not_be_there(tmp_path: Path) -> None:
    made = task((1, 1))
    gone = Picture(File(tmp_path / "gone.png"))
    made = replace(made, pool=replace(made.pool, images=(gone, drawn(1))))
    record = records(matching.run(made, Known(np.eye(2)), out=tmp_path))[0]
    assert record.pictures == ({"source": str(tmp_path / "gone.png")},)
    assert record.group == "id0"


# ---------------------------------------------------------------- the metric


@pytest.mark.parametrize("folds", [1, 2, 5])
def test_queries_have_the_ranks_of_their_fold_images_first(folds: int) -> None:
    made = task((3, 1, 2, 5, 2, 2, 1, 4, 3, 1))
    matrix = noise(made, decimals=0)
    found = retrieval.queries(matrix, made.owner, folds)
    assert [query["way"] for query in found] == ["i2t"] * 10 + ["t2i"] * 24
    size, owner = 10 // folds, np.array(made.owner)
    for fold in range(folds):
        images = np.arange(fold * size, (fold + 1) * size)
        texts = np.flatnonzero(np.isin(owner, images))
        part = matrix[np.ix_(images, texts)]
        for name, ties in (("rank", "pessimistic"), ("best_rank", "optimistic")):
            low = retrieval.ranks(part, owner[texts] - images[0], ties)  # type: ignore[arg-type]
            assert [found[place][name] for place in (*images, *(10 + texts))] == [*low[0], *low[1]]


@pytest.mark.parametrize("ties", ["pessimistic", "optimistic", "mean"])
@pytest.mark.parametrize("decimals", [6, 0])
def test_the_metric_of_queries_is_the_summary_of_the_matrix(ties: Any, decimals: int) -> None:
    made = task((3, 1, 2, 5, 2))
    matrix = noise(made, decimals=decimals)
    samples = [Sample(str(k), meta=meta) for k, meta in enumerate(retrieval.queries(matrix, made.owner))]
    metric = retrieval.metric(ties)
    counts = metric.measure([], samples)
    expected = retrieval.summary(matrix, made.owner, ties)
    found = metric.reduce(counts)
    assert found == pytest.approx({name: expected[name] for name in found}, abs=1e-9)
    assert set(metric.higher_is_better) == set(found)
    sums = {name: sum(count.get(name, 0) for count in counts) for count in counts for name in count}
    assert metric.reduce([sums]) == pytest.approx(found)  # additive
    assert metric.variant == ("" if ties == "pessimistic" else ties)
    assert metric.reduce([]) == dict.fromkeys(found)
    images = metric.reduce(counts[:5])
    assert images["i2t_r1"] == found["i2t_r1"] and images["t2i_r1"] is images["rsum"] is None
    with pytest.raises(ValueError, match="unknown tie policy 'random'"):
        retrieval.metric("random")  # type: ignore[arg-type]


# ---------------------------------------------------------------- identity


def test_a_limit_is_a_run_of_its_own_over_the_first_images(tmp_path: Path) -> None:
    made = task((5, 1, 7, 2), folds=2)
    dense = tuple(f"dense {k}" for k in range(4))
    per_image = replace(made, pool=replace(made.pool, dense=dense, dense_of="image"))
    per_text = replace(
        made, pool=replace(made.pool, dense=tuple(dense[k] for k in made.owner), dense_of="text")
    )
    for whole, kept in (
        (made, ()),
        (per_image, dense[:3]),
        (per_text, tuple(dense[k] for k in made.owner[:13])),
    ):
        part = matching.first(whole, 3)
        assert (len(part.pool.images), len(part.pool.texts), part.folds) == (3, 13, 1)
        assert part.pool.dense == kept
        assert part.pool.fingerprint != whole.pool.fingerprint
    matrix = noise(made)
    all_, some = (
        matching.run(made, Known(matrix[:limit, : 13 if limit else None]), out=tmp_path, limit=limit)
        for limit in (None, 3)
    )
    assert all_.path != some.path
    assert some.summary["n"] == 16
    assert scores(some)["rsum"] == retrieval.summary(matrix[:3, :13], made.owner[:13])["rsum"]
    assert matching.run(made, Known(matrix), out=tmp_path, limit=9).path == all_.path
    with pytest.raises(SpecError, match="--limit is 0; it must be 1 or more"):
        matching.run(made, Known(matrix), out=tmp_path, limit=0)


def test_the_header_says_how_and_whether_the_pool_tells_the_answer(tmp_path: Path) -> None:
    made = task((1, 1))
    run = matching.run(made, Known(np.eye(2)), out=tmp_path)
    told = matching.run(replace(made, leaks=True, protocol="oracle_query"), Known(np.eye(2)), out=tmp_path)
    header = store.read_run(run.path)
    assert header["identity"]["model"] == {"adapter": "known", "model": "known"}
    assert header["identity"]["oracle"] is False
    assert store.read_run(told.path)["identity"]["oracle"] is True
    assert header["primary"] == "rsum" and header["status"] == "complete"
    assert header["id"] == header["baseline"] == run.header["id"]
    assert told.path != run.path
    assert matching.run(made, Known(np.eye(2), "other"), out=tmp_path).path != run.path


# ---------------------------------------------------------------- interrupted and resumed

SCRIPT = '''
import json, os, signal, sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_matching import Known, noise, task
from harness import matching

class Logged(Known):
    """Writes down each block it is asked for; dies at one, of its own hand, before or after it is made."""

    def similarity(self, pool, rows):
        with Path("log").open("a") as log:
            log.write(f"{{os.environ.get('RANK', '0')}} {{rows.start}}\\n")
        if os.environ.get("DIE_AT") == str(rows.start):
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(float(os.environ.get("SLOW", 0)))
        return super().similarity(pool, rows)

made = task((2,) * 300)
run = matching.run(made, Logged(noise(made)), out=Path(os.environ.get("OUT", "runs")))
print(run.path)
'''


def begun(cwd: Path, **env: str) -> subprocess.Popen[str]:
    code = SCRIPT.format(tests=str(Path(__file__).parent))
    return subprocess.Popen(
        [sys.executable, "-c", code], cwd=cwd, env=os.environ | env, text=True, stdout=subprocess.PIPE
    )


def script(cwd: Path, **env: str) -> tuple[int, Path]:
    """Its exit code, and the run that it says it made."""
    with begun(cwd, **env) as process:
        said, _ = process.communicate(timeout=300)
    return process.returncode, cwd / said.strip()


def log(cwd: Path) -> list[str]:
    return (cwd / "log").read_text().splitlines()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> engine.Run:
    made = task((2,) * 300)
    return matching.run(made, Known(noise(made)), out=tmp_path_factory.mktemp("undisturbed"))


def same(one: Path, other: Path) -> bool:
    """Whether two runs have the same records, matrix and summary, byte for byte."""
    matrices = [(path / matching.MATRIX).read_bytes() for path in (one, other)]
    summaries = [json.dumps(store.read_run(path)["summary"]) for path in (one, other)]
    return matrices[0] == matrices[1] and summaries[0] == summaries[1] and lines(one) == lines(other)


def test_a_killed_run_goes_on_at_the_block_that_was_not_made(tmp_path: Path, undisturbed: engine.Run) -> None:
    assert script(tmp_path, DIE_AT="128")[0] == -9
    assert log(tmp_path) == ["0 0", "0 64", "0 128"]
    (path,) = (tmp_path / "runs").glob("*/*/*")
    assert store.read_run(path)["status"] == "running"
    with (path / matching.MATRIX).open("r+b") as file:  # as if it had been killed while writing
        file.seek(128 * 600 * 4)
        file.write(b"\\x7f" * 5000)
    assert script(tmp_path) == (0, path)
    assert log(tmp_path)[3:] == ["0 128", "0 192", "0 256"]
    assert same(path, undisturbed.path)


def test_a_repeated_command_does_nothing(tmp_path: Path) -> None:
    made = task()
    first = matching.run(made, Known(noise(made)), out=tmp_path)
    before = (first.path / store.RECORDS).read_bytes()
    again = Known(noise(made))
    told: list[engine.Progress] = []
    second = matching.run(made, again, out=tmp_path, progress=told.append)
    assert again.asked == []
    assert (told[-1].done, told[-1].resumed) == (10, 10)
    assert (first.path / store.RECORDS).read_bytes() == before
    assert json.dumps(second.summary) == json.dumps(first.summary)
    assert second.spending["usage"] == first.spending["usage"]


def test_records_that_were_lost_are_made_from_the_matrix_again(tmp_path: Path) -> None:
    made = task()
    first = matching.run(made, Known(noise(made)), out=tmp_path)
    before = (first.path / store.RECORDS).read_bytes()
    (first.path / store.RECORDS).write_bytes(before[: len(before) // 2])
    again = Known(noise(made))
    matching.run(made, again, out=tmp_path)
    assert again.asked == []
    assert (first.path / store.RECORDS).read_bytes() == before


def test_an_interrupted_run_says_so_and_resumes(tmp_path: Path) -> None:
    made = task((1,) * 200)

    class Impatient(Known):
        def similarity(self, pool: Pool, rows: range) -> Any:
            if rows.start == 128 and len(self.asked) == 2:
                raise KeyboardInterrupt
            return super().similarity(pool, rows)

    run = matching.run(made, Impatient(noise(made)), out=tmp_path)
    assert (run.status, run.summary["scored"]) == ("interrupted", 0)
    assert scores(run)["rsum"] is None
    told: list[engine.Progress] = []
    again = Known(noise(made))
    assert matching.run(made, again, out=tmp_path, progress=told.append).status == "complete"
    assert [rows.start for rows in again.asked] == [128, 192]
    assert [(now.done, now.resumed) for now in told] == [(128, 128), (192, 128), (200, 128)]


def test_a_metric_that_is_new_to_stored_records_is_measured(tmp_path: Path) -> None:
    made = task()
    matrix = noise(made, decimals=0)
    matching.run(made, Known(matrix), out=tmp_path)
    other = replace(made, metrics=(retrieval.metric("optimistic"), *made.metrics))
    again = Known(matrix)
    run = matching.run(other, again, out=tmp_path)
    assert again.asked == []
    expected = retrieval.summary(matrix, made.owner, "optimistic")
    assert scores(run, "retrieval[optimistic]")["rsum"] == pytest.approx(expected["rsum"])


# ---------------------------------------------------------------- several processes


def test_two_processes_fill_one_matrix_and_leave_what_one_would(
    tmp_path: Path, undisturbed: engine.Run
) -> None:
    second = begun(tmp_path, RANK="1", WORLD_SIZE="2", SLOW="0.05")
    code, path = script(tmp_path, RANK="0", WORLD_SIZE="2", SLOW="0.05")
    with second:
        paths = [path, tmp_path / second.communicate(timeout=300)[0].strip()]
    assert (code, second.returncode) == (0, 0)
    assert paths[0] == paths[1]
    assert {"0 0", "0 128", "0 256"} <= set(log(tmp_path))
    assert same(paths[0], undisturbed.path)


def test_what_others_made_is_taken_and_what_they_left_is_made(
    tmp_path: Path, undisturbed: engine.Run
) -> None:
    assert script(tmp_path, RANK="1", WORLD_SIZE="2")[0] == 0
    assert log(tmp_path) == ["1 64", "1 192"]
    _, path = script(tmp_path, RANK="0", WORLD_SIZE="3")
    assert log(tmp_path)[2:] == ["0 0", "0 256", "0 128"]  # its own is 0; the rest from the end
    assert same(path, undisturbed.path)
    seconds = store.read_run(path)["spending"]["usage"]["seconds"]
    made = np.fromfile(path / matching.SECONDS)
    assert len(made) == 300 and seconds == pytest.approx(made.sum())


@pytest.mark.parametrize(("rank", "world"), [("2", "2"), ("-1", "2"), ("x", "2"), ("0", "")])
def test_a_place_among_processes_that_cannot_be_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: str, world: str
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", world)
    with pytest.raises(SpecError, match=f"RANK={rank} of WORLD_SIZE={world}: launchers set them"):
        matching.run(task((1, 1)), Known(np.eye(2)), out=tmp_path)


# ---------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_similarity_that_is_no_number_is_refused_with_its_image_and_text(
    tmp_path: Path, value: float
) -> None:
    made = task((1,) * 100)
    matrix = noise(made)
    matrix[70, 31] = value
    said = f"image id70 and text 31 \\('text 31 of 31'\\) is {value}: a rank among such is meaningless"
    with pytest.raises(ModelError, match=said):
        matching.run(made, Known(matrix), out=tmp_path)
    (path,) = tmp_path.glob("*/*/*")
    assert store.read_run(path)["status"] == "interrupted"
    mended = Known(noise(made))
    assert matching.run(made, mended, out=tmp_path).status == "complete"
    assert [rows.start for rows in mended.asked] == [64]


@pytest.mark.parametrize("shape", [(10,), (10, 10), (9, 50), (10, 50, 1)])
def test_a_block_of_another_shape_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    said = rf"a block of shape \({', '.join(map(str, shape))},?\) for 10 images and 50 texts"
    with pytest.raises(ModelError, match=said):
        matching.run(task(), Known(np.zeros(shape)), out=tmp_path)


def test_a_picture_that_cannot_be_read_stops_the_run_and_is_named(tmp_path: Path) -> None:
    class Reader(Known):
        def similarity(self, pool: Pool, rows: range) -> Any:
            raise PictureError("p.jpg is damaged")

    with pytest.raises(DataError, match="p.jpg is damaged. Every image of a pool .* to resume"):
        matching.run(task(), Reader(np.eye(2)), out=tmp_path)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (task(()), "toy_retrieval has no images"),
        (task((2, 0, 1)), r"image id1 has no text \(1 such images\)"),
        (task((2, 1), owner=(0, 0, 2)), "a text belongs to image 2; there are 0 to 1"),
        (task((2, 1), owner=(0, 1)), "3 texts and 2 owners of texts"),
        (task((2, 1), ids=("a",)), "2 images and 1 ids of images"),
        (task((2, 1), folds=0), "2 images cannot be cut into 0 equal folds"),
        (task((2, 1, 1), folds=2), "3 images cannot be cut into 2 equal folds"),
    ],
)
def test_a_pool_that_cannot_be_ranked_is_refused_before_it_is_matched(
    tmp_path: Path, made: Retrieval, said: str
) -> None:
    with pytest.raises(DataError, match=said):
        matching.run(made, Known(np.eye(2)), out=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_is_full_is_said_and_what_was_made_stays(tmp_path: Path) -> None:
    made = task((1,) * 200)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    class Filling(Known):
        """At its third block no file may grow beyond two of them."""

        def similarity(self, pool: Pool, rows: range) -> Any:
            if len(self.asked) == 2:
                resource.setrlimit(resource.RLIMIT_FSIZE, (128 * 200 * 4, limits[1]))
            return super().similarity(pool, rows)

    try:
        said = "similarity.f32 cannot be written: File too large. It takes 0.2 MB; what .* stays. Make room"
        with pytest.raises(StoreError, match=said):
            matching.run(made, Filling(noise(made)), out=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    again = Known(noise(made))
    assert matching.run(made, again, out=tmp_path).status == "complete"
    assert [rows.start for rows in again.asked] == [128, 192]


def test_a_matrix_that_no_disk_holds_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"MB left on the disk. It takes 4,000,000,000.0 MB"):
        matching._Rows(tmp_path / "huge", (10**6, 10**9), "float32")
    assert (tmp_path / "huge").stat().st_size == 0


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", "2")
        with pytest.raises(StoreError, match="cannot be written: .* --out"):
            matching.run(task(), Known(noise(task())), out=tmp_path / "file")


def test_a_matrix_of_another_size_is_not_taken_for_this_one(tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_bytes(b"0" * 100)
    with pytest.raises(StoreError, match="is longer than this matrix; remove it"):
        matching._Rows(path, (4, 6), "float32")


def test_a_metric_of_retrieval_measures_no_other_run(tmp_path: Path) -> None:
    record = store.Record("7", answer="yes")
    with pytest.raises(DataError, match="7 has no rank: the metric retrieval is for runs of"):
        retrieval.metric().measure([], [record.sample()])


# ---------------------------------------------------------------- the command line


def fovea(*words: str | Path, cwd: Path, **env: str) -> Done:
    return subprocess.run(
        [FOVEA, *map(str, words)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", **env},
    )


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny CLIP, and a pool of Flickr30K's form: twelve pictures, one to five captions."""
    import tiny_match  # not above: the processes below import this file, and that takes them seconds
    from tiny import photo

    root = tmp_path_factory.mktemp("here")
    tiny_match.clip(root / "encoder")
    data = root / "data"
    (data / "images").mkdir(parents=True)
    ids = [str(20 + 3 * k) for k in range(12)]
    for k, image in enumerate(ids):
        (data / "images" / f"{image}.png").write_bytes(photo(k, 30 + k, 40).source.read())  # type: ignore[union-attr]
    (data / "id_mapping.json").write_text(json.dumps({image: f"{image}.png" for image in ids}))
    rows = [
        (image, f"view {c} of picture {image} .") for k, image in enumerate(ids) for c in range(1 + k % 5)
    ]
    (data / "test_caps.txt").write_text("".join(f"{text}\n" for _, text in rows))
    (data / "test_ids.txt").write_text("".join(f"{image}\n" for image, _ in rows))
    described = [{"text": f"a long text about {image}", "image_id": image} for image in ids]
    (data / "dense.jsonl").write_text("".join(json.dumps(row) + "\n" for row in described))
    (root / "questions.jsonl").write_text('{"question": "Is it?", "answer": "yes"}\n')
    return root


POOL = "flickr30k_retrieval:root=data,size=any"
ENCODER = "clip:encoder,device=cpu"


@pytest.fixture(scope="module")
def finished(here: Path) -> Path:
    done = fovea("run", POOL, ENCODER, cwd=here)
    assert done.returncode == 0, done.stderr
    assert "rsum" in done.stdout and "scored 45 of 45" in done.stdout
    return here / done.stdout.splitlines()[-1]


def test_a_command_runs_a_dual_encoder_on_files_and_prints_its_scores(here: Path, finished: Path) -> None:
    made = store.read_run(finished)
    assert made["status"] == "complete" and made["identity"]["model"]["adapter"] == "clip"
    matrix = np.fromfile(finished / matching.MATRIX, np.float32).reshape(12, 33)
    owner = [k for k in range(12) for _ in range(1 + k % 5)]
    expected = retrieval.summary(matrix, owner)
    found = made["summary"]["metrics"]["retrieval"]["scores"]
    assert {name: estimate["value"] for name, estimate in found.items()} == pytest.approx(
        {name: expected[name] for name in found}
    )
    names = [record.sample_id for record in records(finished)]
    assert names == [f"image:{k}" for k in range(12)] + [f"text:{k}" for k in range(33)]


def test_a_repeated_command_changes_nothing(here: Path, finished: Path) -> None:
    before = (finished / store.RECORDS).read_bytes()
    matrix = (finished / matching.MATRIX).stat().st_mtime_ns
    done = fovea("run", POOL, ENCODER, cwd=here)
    assert done.returncode == 0 and "12/12 (12 resumed)" in done.stderr
    assert (finished / store.RECORDS).read_bytes() == before
    assert (finished / matching.MATRIX).stat().st_mtime_ns == matrix


def test_a_board_shows_the_run_and_never_ranks_one_that_saw_the_answer(here: Path, finished: Path) -> None:
    told = fovea("run", f"{POOL},dense=data/dense.jsonl,protocol=oracle_query", ENCODER, cwd=here)
    assert told.returncode == 0, told.stderr
    path = here / told.stdout.splitlines()[-1]
    assert store.read_run(path)["identity"]["oracle"] is True
    board = fovea("board", finished, path, cwd=here)
    assert board.returncode == 0, board.stderr
    assert "clip:encoder" in board.stdout and "45 of 45" in board.stdout
    assert "sparse" in board.stdout and "oracle" in board.stdout


def test_a_run_is_scored_again_with_another_rule_for_ties(here: Path, finished: Path) -> None:
    done = fovea("score", finished, "--metric", "retrieval:ties=optimistic", cwd=here)
    assert done.returncode == 0, done.stderr
    metrics = store.read_run(finished)["summary"]["metrics"]
    assert set(metrics) == {"retrieval", "retrieval[optimistic]"}
    one, other = (metrics[key]["scores"]["rsum"]["value"] for key in ("retrieval", "retrieval[optimistic]"))
    assert other >= one


def test_another_process_of_a_launcher_helps_and_prints_no_scores(here: Path, tmp_path: Path) -> None:
    done = fovea("run", POOL, ENCODER, "--out", tmp_path, cwd=here, RANK="1", WORLD_SIZE="2")
    assert done.returncode == 0, done.stderr
    assert "rsum" not in done.stdout
    (path,) = tmp_path.glob("*/*/*")
    assert {one.name for one in path.iterdir()} == {matching.MATRIX, matching.SECONDS}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", POOL, ENCODER, "--method", "center_crop"], "is retrieval, a matrix and not requests"),
        (["run", POOL, "scripted:yes"], "it needs a matcher, which says how alike images and texts are"),
        (["run", "vqa_file:questions.jsonl", ENCODER], "clip is a matcher: it compares images with texts"),
        (["run", POOL, ENCODER, "--out", "questions.jsonl"], "cannot be"),
        (["run", f"{POOL},protocol=candidate", ENCODER], "needs dense texts, one per image"),
    ],
)
def test_what_does_not_go_together_is_refused_in_a_sentence(here: Path, words: list[str], said: str) -> None:
    done = fovea(*words, cwd=here)
    assert done.returncode == 2, done.stdout + done.stderr
    assert said in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr


def test_a_damaged_picture_stops_the_command_and_is_named(here: Path, tmp_path: Path) -> None:
    data = shutil.copytree(here / "data", tmp_path / "data")
    victim = data / "images" / "26.png"
    victim.write_bytes(victim.read_bytes()[:300])
    done = fovea("run", POOL.replace("data", str(data)), ENCODER, "--out", tmp_path / "runs", cwd=here)
    assert done.returncode == 2
    assert "26.png is damaged" in done.stderr.replace("\n", "") and "Traceback" not in done.stderr


def test_a_grid_runs_matchers_too(here: Path, tmp_path: Path) -> None:
    grid = tmp_path / "grid.yaml"
    grid.write_text(
        f'name: tiny\nlimit: 5\ntasks: ["{POOL}"]\nmodels: ["{ENCODER}", "{ENCODER},dtype=bfloat16"]\n'
    )
    done = fovea("sweep", grid, "--out", tmp_path / "runs", cwd=here)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 cells complete" in done.stdout and "20 of 20" in done.stdout
