"""Dense texts end to end: a model describes the images, the run leaves a file, retrieval reads it."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from adapters.scripted import Scripted
from harness import engine, matching, resolve, store
from harness.cli import app
from harness.errors import DataError
from harness.types import Pool, Request, Response
from tasks import coco_dense, coco_retrieval, flickr30k_dense, flickr30k_retrieval
from tasks._dense import PROMPT

THINGS = ("cat", "dog", "bus", "kite", "pizza", "clock")
SHARED = Path(__file__).parent.parent.parent / "shared" / "data" / "retrieval"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Karpathy's JSON of COCO and of Flickr30K, six images for each split, each about a thing of its own."""
    folder = tmp_path / "data"
    (folder / "val2014").mkdir(parents=True)
    images = []
    for number, split in enumerate(["train", "val", "test"] * len(THINGS)):
        thing = THINGS[number // 3]
        name = f"COCO_val2014_{number:012}.jpg"
        Image.new("RGB", (8, 6), (number, 10 * number, 0)).save(folder / "val2014" / name)
        sentences = [{"raw": f"{word} {thing}."} for word in ("A", "The", "One", "Some", "My")]
        images.append(
            {
                "filename": name,
                "imgid": number,
                "cocoid": 100 + number,
                "split": split,
                "sentences": sentences,
            }
        )
    for name in ("dataset_coco.json", "dataset_flickr30k.json"):
        (folder / name).write_text(json.dumps({"images": images}))
    return folder


def fovea(*words: str | Path) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)


def teller(refuse: Callable[[int], bool] = lambda _: False) -> Scripted:
    """Says at length what is on an image, by its name; the image of some numbers it fails on."""

    def tell(request: Request) -> str | Response:
        number = int(Path(request.images[0].source.label).stem.split("_")[-1])
        if refuse(number):
            return Response.failed("refused", "not this one", retry=True)
        return Response(
            f" The image shows a {THINGS[number // 3]}.\nNothing\u2028else. ",
            "length" if number == 2 else "stop",
        )

    return Scripted(tell, name="teller")


def content(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").split("\n")[:-1]]


class Words:
    """How many words an image's dense text and a caption share."""

    def describe(self) -> dict[str, Any]:
        return {"adapter": "words", "model": "shared"}

    def similarity(self, pool: Pool, rows: range) -> np.ndarray:
        texts = [set(text.lower().strip(".").split()) for text in pool.texts]
        dense = [set(text.lower().replace(".", " ").split()) for text in pool.dense]
        return np.array([[len(dense[row] & text) for text in texts] for row in rows], np.float32)


def test_a_captioning_run_is_scored_by_retrieval_from_end_to_end(root: Path, tmp_path: Path) -> None:
    """Through the command line: run with a method, dense.jsonl, then the retrieval task over it."""
    told = [
        {"image": f"COCO_val2014_{k:012}.jpg", "text": f"It shows a {THINGS[k // 3]}."} for k in range(18)
    ]
    answers = tmp_path / "answers.jsonl"
    answers.write_text("".join(json.dumps(row) + "\n" for row in told))
    command = ["run", f"coco_dense:root={root},size=any", f"replay:{answers}", "-m", "center_crop"]
    done = fovea(*command, "--out", tmp_path / "runs")
    assert done.exit_code == 0, done.output
    run = Path(done.stdout.splitlines()[-1])
    assert f"{run / 'dense.jsonl'}: 6 dense texts" in done.stdout
    assert "words" in done.stdout  # the length, while nothing else is measured
    lines = content(run / "dense.jsonl")
    assert [line["image_id"] for line in lines] == [str(100 + k) for k in range(2, 18, 3)]
    assert [line["text"] for line in lines] == [f"It shows a {thing}." for thing in THINGS]

    task = resolve.make_task(
        f"coco_retrieval:root={root},size=any,protocol=candidate,dense={run / 'dense.jsonl'}"
    )
    retrieval = matching.as_retrieval(task)
    assert retrieval is not None and retrieval.pool.dense == tuple(line["text"] for line in lines)
    result = matching.run(retrieval, Words(), out=tmp_path / "runs")
    assert result.summary["metrics"]["retrieval"]["scores"]["i2t_r1"]["value"] == 100.0

    before = (run / "dense.jsonl").read_bytes()
    assert fovea(*command, "--out", tmp_path / "runs").exit_code == 0
    assert (run / "dense.jsonl").read_bytes() == before


def test_a_line_says_whose_text_it_is_and_how_it_was_made(root: Path, tmp_path: Path) -> None:
    result = engine.run(coco_dense.task(root, size="any"), teller(), out=tmp_path)
    file = tmp_path / "made.jsonl"
    assert fovea("score", result.path, "--submission", file).exit_code == 0
    first, second = content(file)[:2]
    text = "The image shows a cat.\nNothing\u2028else."
    assert first == {
        "text": text,
        "model_id": "teller",
        "image_id": "102",
        "metadata": {
            "length": len(text),
            "truncated": True,
            "prompt_sha256": hashlib.sha256(PROMPT.encode()).hexdigest(),
            "adapter": "scripted",
            "method": "none",
            "sampling": {"max_tokens": 500, "temperature": 0.2, "top_p": 0.9, "seed": 0, "stop": []},
            "run": result.header["id"],
        },
    }
    assert (second["metadata"]["truncated"], second["image_id"]) == (False, "105")
    dense = coco_retrieval.task(root, dense=file, size="any").pool.dense
    assert dense[0] == text and len(dense) == 6


def test_no_file_is_written_while_an_image_failed_and_the_retry_completes_it(
    root: Path, tmp_path: Path
) -> None:
    task, file = coco_dense.task(root, size="any"), tmp_path / "made.jsonl"
    partly = engine.run(task, teller(lambda number: number in (5, 8)), out=tmp_path)
    done = fovea("score", partly.path, "--submission", file)
    assert done.exit_code == 2 and not file.exists()
    assert "no dense texts were written: 2 of 6 images have none yet" in done.output.replace("\n", " ")
    whole = engine.run(task, teller(), out=tmp_path)
    assert whole.path == partly.path
    assert fovea("score", whole.path, "--submission", file).exit_code == 0
    assert [line["image_id"] for line in content(file)] == [str(100 + k) for k in range(2, 18, 3)]


def test_a_killed_run_resumes_to_the_same_file(root: Path, tmp_path: Path) -> None:
    task = coco_dense.task(root, size="any")
    asked = []

    def killed(request: Request) -> str | Response:
        asked.append(request)
        if len(asked) == 4:
            raise KeyboardInterrupt
        return teller().answer(request)

    cut = engine.run(task, Scripted(killed, name="teller"), out=tmp_path / "a", batch=1)
    assert cut.status == "interrupted"
    assert "3 of 6 images" in fovea("score", cut.path, "--submission", tmp_path / "cut.jsonl").output
    for name in ("a", "b"):
        run = engine.run(task, teller(), out=tmp_path / name)
        assert fovea("score", run.path, "--submission", tmp_path / f"{name}.jsonl").exit_code == 0
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()


def test_a_part_of_the_images_leaves_no_file(root: Path, tmp_path: Path) -> None:
    done = fovea("run", f"coco_dense:root={root},size=any", "scripted:x", "--limit", "2", "--out", tmp_path)
    assert done.exit_code == 0
    assert "4 of 6 images have none yet" in done.output.replace("\n", " ")
    assert not list(tmp_path.rglob("dense.jsonl"))
    done = fovea("run", f"coco_dense:root={root},size=any", "scripted:x", "--out", tmp_path)
    assert [line["text"] for line in content(next(tmp_path.rglob("dense.jsonl")))] == ["x"] * 6


def test_a_sweep_leaves_the_files_of_its_cells(root: Path, tmp_path: Path) -> None:
    grid = tmp_path / "grid.yaml"
    tasks = f"['coco_dense:root={root},size=any', 'flickr30k_dense:root={root},split=val,size=any']"
    grid.write_text(f"name: dense\ntasks: {tasks}\nmodels: ['scripted:x', 'scripted:y']\n")
    done = fovea("sweep", grid, "--out", tmp_path / "runs")
    assert done.exit_code == 0, done.output
    files = sorted((tmp_path / "runs").rglob("dense.jsonl"))
    assert sorted(content(file)[0]["text"] for file in files) == ["x", "x", "y", "y"]


def test_what_cannot_be_encoded_or_written_is_no_reason_to_crash(root: Path, tmp_path: Path) -> None:
    half = Scripted(lambda _: "half a \ud83d smile", name="half")
    run = engine.run(coco_dense.task(root, size="any"), half, out=tmp_path)
    file = tmp_path / "made.jsonl"
    assert fovea("score", run.path, "--submission", file).exit_code == 0
    assert coco_retrieval.task(root, dense=file, size="any").pool.dense[0] == "half a ? smile"
    done = fovea("score", run.path, "--submission", tmp_path / "nowhere" / "made.jsonl")
    assert done.exit_code == 2 and "cannot be written: No such file" in done.output.replace("\n", " ")


def test_flickr_is_described_by_its_own_ids_and_each_split_apart(root: Path, tmp_path: Path) -> None:
    tasks = [flickr30k_dense.task(root, split=split, size="any") for split in ("test", "val", "train")]
    assert [task.samples[0].id for task in tasks] == ["2", "1", "0"]
    runs = [engine.run(task, teller(), out=tmp_path) for task in tasks]
    assert len({run.path for run in runs}) == 3
    file = tmp_path / "val.jsonl"
    assert fovea("score", runs[1].path, "--submission", file).exit_code == 0
    assert flickr30k_retrieval.task(root, split="val", dense=file, size="any").protocol == "candidate"
    with pytest.raises(DataError, match="line 1 is of image 1, where image 2 stands"):
        flickr30k_retrieval.task(root, split="test", dense=file, size="any")


def test_the_splits_of_one_file_are_different_pools(root: Path) -> None:
    """They lie in one JSON, and a run of one must not be resumed as a run of the other."""
    prints = {coco_retrieval.task(root, split=split, size="any").fingerprint for split in ("test", "val")}
    assert len(prints) == 2


def test_the_model_is_asked_as_seps_asked_and_sees_no_caption(root: Path) -> None:
    task = coco_dense.task(root, size="any")
    request = task.request(task.samples[0])
    assert request.text == "Provide a comprehensive description of this image"
    decoding = request.decoding
    assert (decoding.temperature, decoding.top_p, decoding.max_tokens, decoding.seed) == (0.2, 0.9, 500, 0)
    assert (task.primary, task.samples[0].targets[0]) == ("words", "A cat.")


def test_other_tasks_leave_no_dense_texts() -> None:
    assert resolve.dense_lines_of("pope") is None
    assert resolve.dense_lines_of("no_such_task") is None


def test_the_real_splits_have_their_images_in_the_order_of_the_real_dense_files() -> None:
    if not SHARED.exists():
        pytest.skip(f"needs the text files of {SHARED}")
    coco, flickr = coco_dense.task(SHARED / "coco"), flickr30k_dense.task(SHARED / "f30k")
    assert (len(coco.samples), len(flickr.samples)) == (5000, 1000)
    assert tuple(sample.id for sample in coco.samples) == coco_retrieval.task(SHARED / "coco").ids


def test_a_run_that_is_no_complete_description_names_what_it_lacks(root: Path, tmp_path: Path) -> None:
    run = engine.run(coco_dense.task(root, size="any"), teller(), out=tmp_path, samples=["105"])
    assert store.read_run(run.path)["selection"]["n"] == 1
    assert "5 of 6 images" in fovea("score", run.path, "--submission", tmp_path / "x.jsonl").output
