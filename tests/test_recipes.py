"""The recipes of the papers' tables, run to the end: tiny checkpoints, and data in the upstream layouts."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from pathlib import Path

import layouts
import pytest
import tiny
from tiny_instructblip import instructblip

from harness import store, sweep
from harness.grid import read

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
