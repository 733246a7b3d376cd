"""Sweeps in several processes: the same runs, one budget, and what becomes of a cell whose process ends."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness import jobs, store, sweep
from harness.grid import read
from tests.provider import Provider, Reply, Seen

FOVEA = Path(sys.executable).parent / "fovea"
needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes in /proc")


@contextmanager
def silent(_: str) -> Iterator[sweep.Show]:
    yield lambda _: None


def asked(folder: Path, number: int, *names: str) -> list[str]:
    """Files of as many questions, as tasks."""
    for name in names:
        rows = [{"question": f"{name} {k}?", "answer": "yes" if k % 3 else "no"} for k in range(number)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [f"vqa_file:{folder / name}.jsonl" for name in names]


def planned(folder: Path, **grid: object) -> sweep.Plan:
    path = folder / "grid.yaml"
    path.write_text(json.dumps({"name": "g", **grid}))
    return sweep.prepare(read(path))


def summaries(out: Path) -> dict[str, str]:
    """Each run's summary as it is written, by its path."""
    return {
        str(run.relative_to(out)): json.dumps(store.read_run(run)["summary"]) for run in store.find_runs(out)
    }


def priced(provider: Provider, price: str = "1000/10000") -> str:
    """A model whose answer of 100 tokens costs a dollar."""
    return f"openai:m,base_url={provider.url},price={price},concurrency=1"


def dollar(_: Seen) -> Reply:
    return Reply("yes", usage={"prompt_tokens": 1, "completion_tokens": 100}, delay=0.02)


def test_two_processes_leave_the_runs_of_one(tmp_path: Path) -> None:
    grid = {
        "tasks": asked(tmp_path, 12, "one", "two"),
        "models": ["scripted:yes", "scripted:no"],
        "methods": ["center_crop"],
    }
    plan = planned(tmp_path, **grid)
    alone = list(sweep.run(planned(tmp_path, **grid), out=tmp_path / "a", progress=silent))
    both = list(jobs.run(plan, 2, out=tmp_path / "b", progress=silent))
    assert {outcome.cell for outcome in both} == {outcome.cell for outcome in alone} == set(plan.cells)
    assert all(outcome.good and not outcome.read for outcome in both)
    assert len(summaries(tmp_path / "a")) == 8 and summaries(tmp_path / "a") == summaries(tmp_path / "b")
    again = list(jobs.run(plan, 2, out=tmp_path / "b", progress=silent))
    assert all(outcome.read for outcome in again), "what is complete is not run again"


def test_what_goes_wrong_in_a_process_is_its_cells_outcome(tmp_path: Path) -> None:
    answers = tmp_path / "gone.jsonl"
    answers.write_text('{"id": "x", "text": "y"}\n')
    plan = planned(
        tmp_path, tasks=asked(tmp_path, 3, "one", "two"), models=[f"replay:{answers}", "scripted:yes"]
    )
    answers.unlink()  # it was there when the sweep was checked
    outcomes = {
        str(outcome.cell): outcome for outcome in jobs.run(plan, 2, out=tmp_path / "r", progress=silent)
    }
    assert len(outcomes) == 4
    for cell, outcome in outcomes.items():
        assert outcome.good == ("scripted" in cell), outcome.reason
        assert outcome.good or "gone.jsonl" in outcome.reason


def test_the_budget_holds_over_all_processes_and_reaches_as_far_as_in_one(tmp_path: Path) -> None:
    """Twelve questions of a dollar each, of which the most that one can cost is 1.28 and a prompt."""
    cache = tmp_path / "cache.sqlite"
    with Provider(dollar) as provider:
        plan = planned(tmp_path, tasks=asked(tmp_path, 4, "one", "two", "six"), models=[priced(provider)])
        outcomes = list(jobs.run(plan, 2, out=tmp_path / "r", budget=8.0, cache=cache, progress=silent))
        spent = len(provider.answered)
        assert 5 <= spent <= 8, "no dollar more, and not half of it lost to shares"
        assert any(outcome.reason == "the budget is spent" for outcome in outcomes)
        rest = list(jobs.run(plan, 2, out=tmp_path / "r", budget=30.0, cache=cache, progress=silent))
        assert all(outcome.good for outcome in rest) and len(provider.answered) == 12


def processes(parent: int) -> list[int]:
    """The spawned processes of a sweep."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            ours = (folder / "stat").read_text().rpartition(")")[2].split()[1] == str(parent)
            if ours and b"spawn_main" in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
    return found


def alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return False


@contextmanager
def running(tmp_path: Path, provider: Provider, *words: str) -> Iterator[subprocess.Popen[str]]:
    """`fovea sweep --jobs 2` over three tasks, once both processes have an answer and asked again."""
    grid = {
        "name": "g",
        "tasks": asked(tmp_path, 6, "one", "two", "six"),
        "models": [priced(provider, "1/1")],
    }
    (tmp_path / "grid.yaml").write_text(json.dumps(grid))
    environment = {**os.environ, "OPENAI_API_KEY": "none"}
    process = subprocess.Popen(
        [FOVEA, "sweep", "grid.yaml", "--jobs", "2", *words],
        cwd=tmp_path, stdout=-1, stderr=-1, text=True, env=environment,
    )  # fmt: skip
    deadline = time.monotonic() + 90
    while process.poll() is None and time.monotonic() < deadline:
        if {seen.text.split()[0] for seen in provider.seen if " 1?" in seen.text} >= {"one", "two"}:
            break
        time.sleep(0.02)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def slow(seen: Seen) -> Reply:
    """The first question of each task at once, the others late."""
    return Reply("yes", delay=0.0 if " 0?" in seen.text else 1.0)


@pytest.mark.slow
@needs_proc
def test_ctrl_c_ends_all_processes_and_the_command_goes_on_where_it_was(tmp_path: Path) -> None:
    with Provider(slow) as provider:
        with running(tmp_path, provider) as process:
            workers = processes(process.pid)
            process.send_signal(signal.SIGINT)
            printed, said = process.communicate(timeout=60)
        assert process.returncode == 130, printed + said
        assert "0 of 3 cells complete" in printed and "To resume: fovea sweep grid.yaml --jobs 2" in said
        assert len(workers) == 2 and not any(map(alive, workers))
        statuses = {store.read_run(run)["status"] for run in store.find_runs(tmp_path / "results")}
        assert statuses == {"interrupted"}, "each process closed its run"
        provider.answer = lambda _: "yes"
        done = subprocess.run(
            [FOVEA, "sweep", "grid.yaml", "--jobs", "2"], cwd=tmp_path, capture_output=True, text=True,
            env={**os.environ, "OPENAI_API_KEY": "none"}, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert "3 of 3 cells complete" in done.stdout
        first = [seen.text.split("?")[0] for seen in provider.seen if " 0?" in seen.text]
        assert sorted(first) == ["one 0", "six 0", "two 0"], "what had been answered was not asked again"


@pytest.mark.slow
@needs_proc
def test_a_killed_process_is_a_failed_cell_and_the_others_run(tmp_path: Path) -> None:
    with Provider(slow) as provider, running(tmp_path, provider) as process:
        workers = processes(process.pid)
        os.kill(workers[0], signal.SIGKILL)
        printed, said = process.communicate(timeout=120)
    assert process.returncode == 3, printed + said
    assert "2 of 3 cells complete" in printed
    assert "its process ended by SIGKILL, as where memory runs out" in said
    assert "Traceback" not in said


@pytest.mark.slow
@needs_proc
def test_nobody_goes_on_when_the_sweep_itself_is_killed(tmp_path: Path) -> None:
    with Provider(slow) as provider, running(tmp_path, provider) as process:
        workers = processes(process.pid)
        assert len(workers) == 2
        process.kill()
        deadline = time.monotonic() + 30
        while any(map(alive, workers)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not any(map(alive, workers))


def test_devices_are_shared_out_unless_a_spec_names_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = planned(tmp_path, tasks=asked(tmp_path, 2, "one"), models=["scripted:yes"])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert jobs._devices(plan) == ["2", "5"]
    plan.cells = [sweep.Cell("t", "hf:x,device=cuda:1", ())]
    assert jobs._devices(plan) == [], "cuda:1 would be another device, or none, where one is visible"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    plan.cells = [sweep.Cell("t", "hf:x", ())]
    assert jobs._devices(plan) == []
