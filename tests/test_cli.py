"""The commands as a user meets them: what they print, and their exit codes."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness import cli, screen, store

FOVEA = Path(sys.executable).parent / "fovea"


Done = subprocess.CompletedProcess[str]


def fovea(*words: str | Path, cwd: Path, env: dict[str, str] | None = None) -> Done:
    return subprocess.run(
        [FOVEA, *map(str, words)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | (env or {}),
    )


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """A user's own file: forty questions whose answer is yes, half of them."""
    path = tmp_path / "questions.jsonl"
    rows = [{"question": f"Is {k} even?", "answer": "yes" if k % 2 == 0 else "no"} for k in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_run_prints_its_score_and_where_it_lies_and_a_board_shows_it(questions: Path) -> None:
    here = questions.parent
    done = fovea("run", f"vqa_file:{questions}", "scripted:yes", cwd=here)
    assert done.returncode == 0, done.stderr
    assert "accuracy" in done.stdout and "0.5000  [0." in done.stdout
    assert "scored 40 of 40" in done.stdout
    assert (here / done.stdout.splitlines()[-1] / "run.json").exists()
    board = fovea("board", cwd=here)
    assert board.returncode == 0 and "scripted:yes" in board.stdout and "40 of 40" in board.stdout


def test_a_board_shows_scores_by_the_tasks_groupings(questions: Path) -> None:
    rows = [json.loads(line) for line in questions.read_text().splitlines()]
    kinds = [{**row, "category": "even" if row["answer"] == "yes" else "odd"} for row in rows]
    questions.write_text("".join(json.dumps(row) + "\n" for row in kinds))
    assert fovea("run", f"vqa_file:{questions}", "scripted:yes", cwd=questions.parent).returncode == 0
    assert "--by category" in fovea("board", cwd=questions.parent).stdout
    shown = fovea("board", "--by", "category", cwd=questions.parent).stdout
    lines = [line.split() for line in shown.splitlines()]
    assert any("even" in line and "1.000" in line for line in lines)
    assert any("odd" in line and "0.000" in line for line in lines)


def test_a_dry_run_shows_three_prompts_as_sent_and_writes_nothing(questions: Path) -> None:
    done = fovea("run", f"vqa_file:{questions}", "scripted:yes", "--dry-run", cwd=questions.parent)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("text     ") == 3
    assert "'Is 0 even?" in done.stdout
    assert not (questions.parent / "results").exists()


def test_a_dry_run_renders_the_checkpoints_own_template(tmp_path: Path) -> None:
    demo = Path(__file__).parent.parent / "assets" / "demo"
    done = fovea("run", "small_detail:size=3", f"hf:{demo}", "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "as sent  '<image>user : What digit is on the" in done.stdout


def test_scoring_again_changes_nothing_and_adds_what_is_asked(questions: Path) -> None:
    here = questions.parent
    path = here / fovea("run", f"vqa_file:{questions}", "scripted:yes", cwd=here).stdout.splitlines()[-1]
    before = store.read_run(path)["summary"]
    assert fovea("score", path, cwd=here).returncode == 0
    assert json.dumps(store.read_run(path)["summary"]) == json.dumps(before)
    done = fovea("score", path, "--metric", "yesno", cwd=here)
    assert done.returncode == 0, done.stderr
    assert len(store.read_run(path)["summary"]["metrics"]) == 2


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["run", "pop", "scripted:yes"], "there is no task 'pop'. Did you mean pope?"),
        (["run", "vqa_file:none.jsonl", "scripted:yes"], "none.jsonl"),
        (["run", "vqa_file:{q},metrik=exact", "scripted:yes"], "no knob 'metrik'. Did you mean metric?"),
        (["run", "vqa_file:{q},max_tokens=few", "scripted:yes"], "is not a whole number"),
        (["run", "vqa_file:{q}", "scripted"], "scripted needs answer=..."),
        (["run", "vqa_file:{q}", "scripted:yes", "--method", "vicrop"], "offers generate only"),
        (["run", "vqa_file:{q}", "scripted:yes", "--limit", "0"], "--limit is 0; it must be 1 or more"),
        (["run", "vqa_file:{q}", "scripted:yes", "--samples", "zzz"], "has no sample 'zzz'"),
        (["run", "vqa_file:{q}", "hf:no/such/folder"], "no/such/folder"),
        (["board", "nowhere"], "nowhere holds no run"),
        (["score", "nowhere"], "nowhere holds no run"),
        (["list", "things"], "is not one of tasks, models, methods, metrics"),
    ],
)
def test_a_mistake_is_refused_in_a_sentence(questions: Path, words: list[str], complaint: str) -> None:
    filled = [word.format(q=questions) for word in words]
    done = fovea(*filled, cwd=questions.parent, env={"HF_HUB_OFFLINE": "1"})
    assert done.returncode == 2, done.stdout + done.stderr
    assert complaint in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr


def test_a_missing_key_is_refused_and_leaves_no_run(questions: Path) -> None:
    here = questions.parent
    words = ["run", f"vqa_file:{questions}", "openai:gpt-4o", "--no-cache"]
    done = fovea(*words, cwd=here, env={"OPENAI_API_KEY": ""})
    assert done.returncode == 2 and "OPENAI_API_KEY" in done.stderr
    assert [path.name for path in here.iterdir()] == [questions.name]


def test_the_command_names_every_exit_code() -> None:
    codes = {screen.COMPLETE, screen.FAULTY, screen.REFUSED, screen.FAILED, screen.SPENT, screen.INTERRUPTED}
    assert codes == {int(code) for code in re.findall(r"\b\d+\b", cli.main.__doc__ or "")}


def test_listing_is_quick_because_torch_stays_out() -> None:
    code = (
        "import sys; sys.argv = ['fovea', 'list', 'tasks']\n"
        "from harness import cli\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'pandas', 'datasets', 'nltk'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "small_detail" in done.stdout


def test_one_name_is_listed_with_its_knobs(tmp_path: Path) -> None:
    done = fovea("list", "methods", "vicrop", cwd=tmp_path)
    assert "locate: rel_att|grad_att|pure_grad|raw_att|detector|oracle  [rel_att]" in done.stdout


def test_the_doctor_says_what_is_there(tmp_path: Path) -> None:
    done = fovea("doctor", cwd=tmp_path)
    assert done.returncode == 0, done.stdout
    assert "transformers" in done.stdout and "accelerator" in done.stdout


SLOW = """
import sys, time
from pathlib import Path
from adapters.scripted import Scripted
from harness.cache import Answers
from harness.engine import run
from harness.resolve import make_task
from harness.types import Pace

def answer(request):
    time.sleep(0.004)
    with open("asked.log", "a") as log:
        log.write(request.question + "\\n")
    return "yes"

model = Scripted(answer, name="slow", pace=Pace(group=2))
run(make_task(sys.argv[1]), model, out=Path("runs"), cache=Answers(Path("cache.sqlite")))
"""


def test_kill_9_loses_nothing_that_was_kept(questions: Path) -> None:
    """The cache keeps what it received; the records have no sample twice; the summary is the same."""
    here = questions.parent
    command = [sys.executable, "-c", SLOW, f"vqa_file:{questions}"]
    rng = random.Random(0)
    for _ in range(3):
        process = subprocess.Popen(command, cwd=here)
        while process.poll() is None and not (here / "asked.log").exists():
            time.sleep(0.01)
        time.sleep(rng.uniform(0.0, 0.08))
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert subprocess.run(command, cwd=here).returncode == 0
    (path,) = store.find_runs(here / "runs")
    keys = [record.key for record in store.read_records(path)]
    assert len(keys) == len(set(keys)) == 40
    asked = (here / "asked.log").read_text().splitlines()
    assert len(asked) <= 40 + 3 * 2, "at most the group on the wire is asked again"
    summary = json.dumps(store.read_run(path)["summary"])
    undisturbed = fovea("run", f"vqa_file:{questions}", "scripted:yes", "--out", "other", cwd=here)
    (other,) = store.find_runs(here / "other")
    assert undisturbed.returncode == 0 and json.dumps(store.read_run(other)["summary"]) == summary


def test_ctrl_c_ends_cleanly_with_the_command_that_resumes(questions: Path) -> None:
    rows = [{"question": f"{k}?", "answer": "yes"} for k in range(60_000)]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    process = subprocess.Popen(
        [FOVEA, "run", f"vqa_file:{questions}", "scripted:yes", "--batch", "50"],
        cwd=questions.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    runs = questions.parent / "results" / "runs"
    while process.poll() is None and not any(f.stat().st_size for f in runs.rglob("records.jsonl")):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "To resume: fovea run" in said
    (path,) = store.find_runs(runs)
    assert store.read_run(path)["status"] == "interrupted"
