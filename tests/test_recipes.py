"""The recipes of the papers' tables, run to the end: tiny checkpoints, and data in the upstream layouts."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from pathlib import Path

import layouts
import pytest
import tiny
import tiny_seps
from PIL import Image
from tiny_instructblip import instructblip

from adapters.seps.data import Vocabulary
from adapters.seps.model import save
from harness import resolve, store, sweep
from harness.grid import read
from leaderboard.ablation import ablations

ROOT = Path(__file__).parents[1]


def run_all(recipe: str, variables: dict[str, str], out: Path) -> list[sweep.Outcome]:
    """Every cell, one sample each; the tasks take data of any size."""
    grid = read(ROOT / "recipes" / f"{recipe}.yaml", variables)
    grid.tasks = [f"{task},size=any" for task in grid.tasks]
    plan = sweep.prepare(grid, limit=1)
    return list(sweep.run(plan, out=out, progress=lambda _: nullcontext(lambda _: None)))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for name in ("textvqa", "vstar", "pope", "docvqa", "aokvqa", "gqa", "vqav2"):
        (root / name).mkdir()
        getattr(layouts, name)(root / name)
    for category in ("popular", "adversarial"):
        shutil.copy(root / "pope/coco_pope_random.json", root / f"pope/coco_pope_{category}.json")
    return root


def test_vicrops_table_2_runs_on_both_models(data: Path, tmp_path: Path) -> None:
    variables = {
        "data": str(data),
        "llava": str(tiny.llava(tmp_path / "llava")),
        "instructblip": str(instructblip(tmp_path / "instructblip")),
        "vqav2": "random:1@seed=0",
    }
    outcomes = run_all("vicrop_table2", variables, tmp_path / "runs")
    assert len(outcomes) == 2 * 7 * 4
    assert [(str(each.cell), each.reason) for each in outcomes if not each.good] == []
    tiled = [
        record.trace["tiles"]
        for each in outcomes
        if each.run is not None and "high_res=on" in each.cell.chain
        for record in store.read_records(each.run.path)
    ]
    assert len(tiled) == 2 * 3


@pytest.mark.parametrize("path", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda path: path.stem)
def test_without_data_and_weights_a_recipe_lacks_nothing_else(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its methods are all made; what it lacks are a task's files, a model's weights and NLTK's data."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(ROOT)
    text = path.read_text(encoding="utf-8")
    absent = [name for name in ("data", "checkpoints") if f"\n  {name}: null" in text]
    plan = sweep.prepare(read(path, dict.fromkeys(absent, "/nowhere")))
    assert plan.methods.keys() == {spec for cell in plan.cells for spec in cell.methods}
    assert bool(plan.faults) == bool(absent)
    for fault in plan.faults:
        assert any(why in fault for why in ("/nowhere", "is neither in the hub's cache", "NLTK's data")), (
            fault
        )


@pytest.fixture
def retrieval(tmp_path: Path) -> Path:
    """Four images of Flickr30K's test split with five captions each, their dense texts, and checkpoints."""
    root = tmp_path / "flickr"
    (root / "flickr30k-images").mkdir(parents=True)
    images, dense = [], []
    for number in range(4):
        name = f"{number}.jpg"
        Image.new("RGB", (32, 32), (60 * number, 0, 200)).save(root / "flickr30k-images" / name)
        sentences = [{"raw": f"a {word} on the grass"} for word in ("dog", "cat", "car", "bus", "man")]
        images.append({"filename": name, "imgid": number, "split": "test", "sentences": sentences})
        dense.append(json.dumps({"image_id": str(number), "text": "the image shows a small red car"}))
    (root / "dataset_flickr30k.json").write_text(json.dumps({"images": images}))
    (root / "f30k_test.jsonl").write_text("\n".join(dense) + "\n")
    words = Vocabulary.read(tiny_seps.vocabulary(tmp_path / "words"))
    for name in ("laps", "seps_released", "seps_paper", *(f"rho{ratio}" for ratio in range(1, 10))):
        ratio = {"sparse_ratio": int(name[3]) / 10} if name.startswith("rho") else {}
        impl = "seps_released" if ratio else name
        save(
            tiny_seps.model(impl, **({"aggr_ratio": 0.9} | ratio if ratio else {})), tmp_path / "made" / name
        )
        words.save(tmp_path / "made" / name)
    return tmp_path


@pytest.mark.parametrize(("recipe", "number"), [("seps_protocol", 9), ("seps_rho", 29)])
def test_seps_checkpoints_run_under_every_protocol(retrieval: Path, recipe: str, number: int) -> None:
    variables = {"data": str(retrieval / "flickr"), "checkpoints": str(retrieval / "made")}
    grid = read(ROOT / "recipes" / f"{recipe}.yaml", variables)
    tasks = [str(task["task"]) for task in grid.tasks]
    grid.tasks = [
        {**entry, "task": f"{task},size=any"} for entry, task in zip(grid.tasks, tasks, strict=True)
    ]
    plan = sweep.prepare(grid)
    outcomes = list(sweep.run(plan, out=retrieval / "runs", progress=lambda _: nullcontext(lambda _: None)))
    assert [(str(each.cell), each.reason) for each in outcomes if not each.good] == []
    assert len(outcomes) == number
    runs = [each.run.path for each in outcomes if each.run is not None]
    found = ablations(runs, resolve.metric_from)
    assert {one.protocol for one in found} == {"sparse", "candidate", "oracle_query"}
    for one in found:
        assert len({arm.label for arm in one.arms}) == len(one.arms), "each by what tells it from the others"
        assert (one.best is None) == (one.protocol == "oracle_query"), "told the answer, never the best"
