"""Grids: how they expand, what is refused before anything runs, and sweeps through the command."""

import json
import shutil
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from adapters.scripted import Scripted
from harness import engine, resolve, screen, store, sweep
from harness.errors import FoveaError, SpecError
from harness.grid import Grid, cells, read
from harness.types import Pace, Request

ROOT = Path(__file__).parent.parent
DEMO = ROOT / "assets" / "demo"
RECIPES = sorted((ROOT / "recipes").glob("*.yaml"))
FOVEA = Path(sys.executable).parent / "fovea"


def chains(methods: object, **more: object) -> list[str]:
    grid = {"name": "g", "tasks": ["t"], "models": ["m"], "methods": methods, **more}
    return [cell.chain for cell in cells(Grid.model_validate(grid))]


def written(folder: Path, text: str) -> Path:
    path = folder / "grid.yaml"
    path.write_text(text)
    return path


def fovea(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [FOVEA, *map(str, words)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120)


# ---------------------------------------------------------------- expanding


def test_lists_of_knobs_are_a_product_and_the_identity_arm_is_always_first() -> None:
    assert chains([{"method": "sparc", "tau": [0.5, 4], "select": ["all", "random"]}]) == [
        "none",
        "sparc:tau=0.5,select=all",
        "sparc:tau=0.5,select=random",
        "sparc:tau=4,select=all",
        "sparc:tau=4,select=random",
    ]


def test_a_range_has_its_stop_and_no_dust_of_floating_point() -> None:
    found = chains([{"method": "sparc", "beta": {"range": [0, 0.3, 0.1]}, "layer": {"range": [20, 0, -10]}}])
    betas = [chain.split("=")[1].split(",")[0] for chain in found[1::3]]
    assert betas == ["0.0", "0.1", "0.2", "0.3"]
    assert [chain.rpartition("=")[2] for chain in found[1:4]] == ["20", "10", "0"]


def test_a_chain_keeps_its_order_and_expands_link_by_link() -> None:
    assert chains([["a", {"method": "b:x=1", "y": [1, 2]}], ["none", "a"]]) == [
        "none",
        "a > b:x=1,y=1",
        "a > b:x=1,y=2",
        "a",
    ]


def test_values_are_written_as_the_grammar_reads_them() -> None:
    knobs = {"flag": True, "nothing": None, "judge": "openai:gpt-4o,temperature=0", "words": ["a, b"]}
    (_, chain) = chains([{"method": "m", **knobs}])
    assert resolve.parse(chain).knobs == {
        "flag": "true",
        "nothing": "none",
        "judge": "openai:gpt-4o,temperature=0",
        "words": "a, b",
    }


def test_duplicate_cells_collapse_however_they_are_written() -> None:
    methods = ["none", "m:a=1,b=2", {"method": "m", "b": 2, "a": [1, 1.0]}, ["m:b=2.00,a=1"], "m:b=2"]
    assert chains(methods, models=["m:x", "m:x"]) == ["none", "m:a=1,b=2", "m:b=2"]


def test_models_stay_together_so_that_each_loads_once() -> None:
    grid = Grid(name="g", tasks=["t1", "t2"], models=["a", "b"], methods=["x"])
    assert [(c.model, c.task, c.chain) for c in cells(grid)] == [
        (model, task, chain) for model in "ab" for task in ("t1", "t2") for chain in ("none", "x")
    ]


def test_exclude_drops_cells_that_say_at_least_this() -> None:
    grid = Grid.model_validate(
        {
            "name": "g",
            "tasks": ["t:root=/d", "u"],
            "models": ["m:x,k=1", "m:y"],
            "methods": ["v:a=1,b=2", "v:a=2"],
            "exclude": [
                {"task": "t", "model": ["m:x", "m:z"], "method": "v:a=1.0"},
                {"task": "u", "method": "none"},
            ],
        }
    )
    kept = {(c.task, c.model, c.chain) for c in cells(grid)}
    dropped = {("t:root=/d", "m:x,k=1", "v:a=1,b=2"), ("u", "m:x,k=1", "none"), ("u", "m:y", "none")}
    every = {(t, m, c) for t in grid.tasks for m in grid.models for c in ("none", "v:a=1,b=2", "v:a=2")}
    assert kept == every - dropped


def test_variables_are_filled_in_and_given_ones_win(tmp_path: Path) -> None:
    text = "name: g\nvars: {d: null, n: 7, m: x}\nlimit: ${n}\n"
    text += "tasks: ['t:root=${d}/t']\nmodels: ['${m}', 'a:${m}']"
    grid = read(written(tmp_path, text), {"d": "/data", "m": "y"})
    assert (grid.limit, grid.tasks, grid.models) == (7, ["t:root=/data/t"], ["y", "a:y"])


@pytest.mark.parametrize(
    ("text", "complaints"),
    [
        ("tasks: ['${x}']\nmodels: [m]\nname: g", ["tasks[0]: ${x} is unknown; variables: none"]),
        (
            "name: g\nvars: {d: null}\ntasks: ['${d}']\nmodels: [m]",
            ["${d} has no value; give one with --set d="],
        ),
        (
            "name: g\ntasks: []\nlimit: 0",
            ["tasks: List should", "models: Field required", "limit: Input should"],
        ),
        (
            "name: g\ntasks: [t]\nmodels: [m]\nmodel: n",
            ["model: Extra inputs are not permitted", "1 fault\n"],
        ),
        ("name: g\ntasks: [t]\nmodels: [m]\nexclude: [{tusk: t}]", ["exclude[0].tusk: Extra inputs"]),
        ("- a", ["holds no grid"]),
        ("a: [", ["is not YAML"]),
        ("vars: [a]", ["vars is ['a']"]),
    ],
)
def test_a_faulty_file_is_refused_with_every_path(tmp_path: Path, text: str, complaints: list[str]) -> None:
    with pytest.raises(SpecError) as error:
        read(written(tmp_path, text))
    for complaint in complaints:
        assert complaint in str(error.value)


def test_a_variable_that_the_grid_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="--set dta: the grid has no such variable"):
        read(written(tmp_path, "name: g\nvars: {data: a}\ntasks: [t]\nmodels: [m]"), {"dta": "b"})


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        (7, r"methods\[0\]\[0\] is 7; write a spec"),
        ({"task": "t"}, r"write a spec, or {method: NAME, knob: \[value, ...\]}"),
        (
            {"method": "m", "a": {"range": [0, 1]}},
            r"methods\[0\]\[0\].a is .*; write range: \[start, stop, step\]",
        ),
        ({"method": "m", "a": {"range": [0, 1, -1]}}, "has no values"),
        ({"method": "m", "a": {"range": [0, 1, 0]}}, "has no values"),
        ({"method": "m", "a": []}, r"methods\[0\]\[0\].a lists no value"),
        ("m:a=1,,b=2", r"methods\[0\]\[0\]: 'm:a=1,,b=2' has an empty part"),
    ],
)
def test_a_faulty_entry_is_refused_with_its_path(entry: object, complaint: str) -> None:
    with pytest.raises(SpecError, match=complaint):
        chains([entry])


def test_an_exclude_that_matches_nothing_is_a_mistake() -> None:
    with pytest.raises(SpecError, match=r"exclude\[1\] matches no cell"):
        chains(["m:a=1"], exclude=[{"method": "m"}, {"method": "m:a=2"}])
    with pytest.raises(SpecError, match="exclude leaves no cell"):
        chains([], exclude=[{"task": "t"}])


# ---------------------------------------------------------------- recipes and examples


@pytest.mark.parametrize("where", ["harness/grid.py", "docs/running.md"])
def test_the_documented_example_is_a_grid(tmp_path: Path, where: str) -> None:
    text = (ROOT / where).read_text()
    lines = text[text.index("name: sparc_tau") :].replace("```", "\n").partition("\n\n")[0].splitlines()
    example = "\n".join(line.removeprefix("    ") if where.endswith(".py") else line for line in lines)
    found = cells(read(written(tmp_path, example), {"data": "/data"}))
    assert {"none", "center_crop > random_crop"} <= {cell.chain for cell in found}
    assert 15 <= len(found) <= 20


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_spec_of_a_recipe_names_what_exists_with_knobs_that_it_has(path: Path) -> None:
    """Neither data nor weights are there; the bundled model stands in for those that offer maps."""
    text = path.read_text()
    absent = {"data": "/data", "detector": "none", "scorer": "none", "checkpoints": "/checkpoints"}
    grid = read(path, {name: value for name, value in absent.items() if f"\n  {name}: " in text})
    model, faults = resolve.make_model(f"hf:{DEMO}"), set()
    for cell in cells(grid):
        try:
            for kind, spec in (("task", cell.task), ("model", cell.model)):
                resolve._bound(kind, spec, None)  # type: ignore[arg-type]
            engine.compose(model, [resolve.make_method(spec) for spec in cell.methods])
        except FoveaError as error:
            faults.add(str(error))
    assert not faults


def test_a_recipe_says_its_data_and_its_cost() -> None:
    assert {path.stem for path in RECIPES} >= {"demo", "vicrop_table2", "sparc_main", "sparc_ablation"}
    for path in RECIPES:
        assert "\n# Data:  " in path.read_text() and "\n# Cost:  " in path.read_text()


def test_table_2_asks_vstar_alone_in_high_resolution() -> None:
    (path,) = [path for path in RECIPES if path.stem == "vicrop_table2"]
    found = [cell for cell in cells(read(path, {"data": "/data"})) if cell.methods]
    assert len(found) == 2 * 7 * 3
    for cell in found:
        assert resolve.parse(cell.methods[0]).knobs["high_res"] == ("on" if "vstar" in cell.task else "off")


# ---------------------------------------------------------------- sweeping


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """Forty questions; every second answer is yes."""
    rows = [{"question": f"Is {k} even?", "answer": "yes" if k % 2 == 0 else "no"} for k in range(40)]
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_the_real_model_is_swept_and_the_board_shows_its_cells_only(tmp_path: Path) -> None:
    grid = written(
        tmp_path,
        f"name: g\nvars: {{arm: full_twice}}\ntasks: [small_detail]\nmodels: ['hf:{DEMO}']\nlimit: 50\n"
        "methods: ['${arm}', {method: vicrop, locate: [rel_att]}]\nmetrics: ['exact:variant=lmms']",
    )
    assert fovea("run", "small_detail", "scripted:3", "--limit", "4", cwd=tmp_path).returncode == 0
    words = ("sweep", grid, "--set", "arm=center_crop", "--limit", "4")
    done = fovea(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3/3 small_detail · vicrop:locate=rel_att: 4/4" in done.stderr
    assert done.stdout.count("4 of 4") == 3 and "scripted" not in done.stdout
    assert "3 of 3 cells complete" in done.stdout
    (run,) = [path for path in store.find_runs(tmp_path / "results" / "runs") if "vicrop" in path.name]
    assert set(store.read_run(run)["summary"]["metrics"]) == {"exact[llava]", "exact[lmms]"}
    again = fovea(*words, cwd=tmp_path)
    assert "3/3 small_detail · vicrop:locate=rel_att: 4/4 (4 resumed)" in again.stderr


def test_a_dry_run_shows_the_cells_and_writes_nothing(questions: Path) -> None:
    text = f"name: g\ntasks: ['vqa_file:{questions}']\nmodels: ['scripted:yes']\n"
    text += "methods: [[center_crop, random_crop]]"
    done = fovea("sweep", written(questions.parent, text), "--dry-run", cwd=questions.parent)
    assert done.returncode == 0, done.stderr
    assert "center_crop > random_crop" in done.stdout and "2 cells, 80 samples" in done.stdout
    assert "requests  80 with 0 pictures, at most" in done.stdout
    assert not (questions.parent / "results").exists()


def test_all_faults_are_told_at_once_and_nothing_runs(questions: Path) -> None:
    grid = written(
        questions.parent,
        f"name: g\ntasks: ['vqa_file:{questions}', 'vqa_file:{questions},metrik=x', 'pop']\n"
        "models: ['scripted:yes', 'hf:no/such/folder']\nmethods: [sparc, {method: vicrop, locat: [a, b]}]",
    )
    done = fovea("sweep", grid, cwd=questions.parent)
    assert done.returncode == 2
    assert "24 cells, 320 samples known\n" in done.stderr and "nothing was run: 6 faults" in done.stderr
    assert "unknown   what " in done.stderr, "of what cannot be made nobody knows the cost"
    for complaint in (
        "no knob 'metrik'. Did you mean metric?",
        "there is no task 'pop'. Did you mean pope?",
        "no knob 'locat'. Did you mean locate?",
        "scripted:yes · sparc: sparc needs steering",
        "no/such/folder",
    ):
        assert complaint in done.stderr.replace("\n", " "), done.stderr
    assert not store.find_runs(questions.parent / "results")
    dry = fovea("sweep", grid, "--dry-run", cwd=questions.parent)
    assert dry.returncode == 2 and "?" in dry.stdout and "24 cells, 320 samples" in dry.stderr
    assert "Traceback" not in done.stderr + dry.stderr


@pytest.mark.parametrize("words", [["--set", "x"], ["--limit", "0"]])
def test_a_wrong_option_is_refused(questions: Path, words: list[str]) -> None:
    grid = written(questions.parent, f"name: g\ntasks: ['vqa_file:{questions}']\nmodels: ['scripted:yes']")
    done = fovea("sweep", grid, *words, cwd=questions.parent)
    assert done.returncode == 2 and words[0] in done.stderr and "Traceback" not in done.stderr


def test_a_failing_cell_does_not_stop_the_others(questions: Path) -> None:
    """A model without weights fails with all of its cells; a picture that is missing, with its sample."""
    here = questions.parent
    shutil.copytree(DEMO, here / "hollow")
    save_file({"nothing": np.zeros(1)}, here / "hollow" / "model.safetensors", {"format": "pt"})
    broken = here / "broken.jsonl"
    broken.write_text('{"image": "gone.png", "question": "What?", "answer": "a"}\n')
    grid = written(
        here,
        f"name: g\ntasks: ['vqa_file:{questions}', 'vqa_file:{broken}']\nlimit: 5\n"
        f"models: ['hf:{here}/hollow', 'hf:{DEMO}']\nmethods: [center_crop]",
    )
    done = fovea("sweep", grid, cwd=here)
    assert done.returncode == 3, done.stdout + done.stderr
    ending = done.stderr[done.stderr.rindex("8/8") :]
    assert "2 of 8 cells complete" in done.stdout
    assert ending.count("hollow · ") == 4 and "1 samples failed" in ending
    assert "5 of 5" in done.stdout and "Traceback" not in done.stderr


@contextmanager
def silent(_: str) -> Iterator[sweep.Show]:
    yield lambda _: None


def planned(questions: Path, *models: Scripted, methods: Sequence[str] = ()) -> sweep.Plan:
    """A plan over the questions whose models are these."""
    specs = [f"scripted:{model.name}" for model in models]
    grid = Grid(name="g", tasks=[f"vqa_file:{questions}"], models=specs, methods=list(methods))
    plan = sweep.prepare(grid)
    plan.models = dict(zip(specs, models, strict=True))
    return plan


def test_a_bug_in_a_cell_is_told_whole_and_the_others_run(questions: Path, tmp_path: Path) -> None:
    plan = planned(questions, Scripted(lambda _: str(1 / 0), "buggy"), Scripted(lambda _: "yes", "fine"))
    said: list[str] = []
    outcomes = list(sweep.run(plan, out=tmp_path / "runs", progress=silent, warn=said.append))
    assert [(o.good, o.reason) for o in outcomes] == [
        (False, "ZeroDivisionError: division by zero"),
        (True, ""),
    ]
    assert len(said) == 1 and "Traceback" in said[0]


def test_a_model_is_let_go_before_the_next_one_loads(questions: Path, tmp_path: Path) -> None:
    first = Scripted(lambda _: "yes", "first")
    there, seen = weakref.ref(first), []
    second = Scripted(lambda _: seen.append(there()) or "no", "second")
    plan = planned(questions, first, second, methods=["center_crop"])
    del first
    assert all(outcome.good for outcome in sweep.run(plan, out=tmp_path / "runs", progress=silent))
    assert len(seen) == 80 and not any(seen)


def test_an_interrupted_cell_is_the_last_and_the_sweep_resumes_there(questions: Path, tmp_path: Path) -> None:
    asked: list[str] = []

    def answer(request: Request) -> str:
        asked.append(request.question)
        if len(asked) == 55:
            raise KeyboardInterrupt
        return "yes"

    def swept() -> list[sweep.Outcome]:
        plan = planned(
            questions, Scripted(answer, "m", pace=Pace(group=10)), methods=["center_crop", "full_twice"]
        )
        return list(sweep.run(plan, out=tmp_path / "runs", progress=silent))

    assert [(outcome.good, outcome.reason) for outcome in swept()] == [(True, ""), (False, "interrupted")]
    outcomes = swept()
    assert [outcome.good for outcome in outcomes] == [True, True, True]
    assert len(asked) == 55 + 30 + 40, "ten of the second cell were kept, all of the first"


def test_ctrl_c_ends_a_sweep_with_the_command_that_resumes_it(questions: Path) -> None:
    here = questions.parent
    questions.write_text("".join(f'{{"question": "{k}?", "answer": "yes"}}\n' for k in range(30_000)))
    grid = written(
        here, f"name: g\ntasks: ['vqa_file:{questions}']\nmodels: ['scripted:yes']\nmethods: [center_crop]"
    )
    process = subprocess.Popen([FOVEA, "sweep", grid], cwd=here, stdout=-1, stderr=-1, text=True)
    runs = here / "results" / "runs"
    while process.poll() is None and not any(f.stat().st_size for f in runs.rglob("records.jsonl")):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    printed, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "0 of 2 cells complete" in printed and f"To resume: fovea sweep {grid}" in said
    assert len(store.find_runs(runs)) == 1


def test_methods_on_retrieval_are_a_fault_before_anything_runs(tmp_path: Path) -> None:
    text = "{name: g, tasks: ['scene_retrieval:test=2'], models: ['scripted:yes'], methods: [center_crop]}"
    faults = sweep.prepare(read(written(tmp_path, text))).faults
    assert any("scene_retrieval" in fault and "no methods" in fault for fault in faults)
    assert any("scripted generates text" in fault for fault in faults)


# ---------------------------------------------------------------- before and after


def test_an_axis_that_is_given_twice_is_refused(tmp_path: Path) -> None:
    """YAML itself would keep the second half of it."""
    text = "{name: g, tasks: [t], models: [m], methods: [{method: sparc, tau: [1, 2], tau: [3]}]}"
    with pytest.raises(SpecError, match=r"'tau' is given twice; put its values into one list"):
        read(written(tmp_path, text))
    merged = "name: g\ntasks: [t]\nmodels: [m]\nvars: {a: &a {method: v, x: 1}}\nmethods: [{<<: *a, x: 2}]"
    assert cells(read(written(tmp_path, merged)))[1].chain == "v:x=2", "a merge key is no second one"
    doubled = "{name: g, tasks: [t], models: [m], methods: [{method: 'sparc:tau=1', tau: [2]}]}"
    with pytest.raises(SpecError, match="gives 'tau' twice"):
        cells(read(written(tmp_path, doubled)))


def test_a_folder_that_cannot_be_written_is_refused_before_anything_runs(questions: Path) -> None:
    here = questions.parent
    (here / "taken").write_text("")
    grid = written(here, f"name: g\ntasks: ['vqa_file:{questions}']\nmodels: ['scripted:yes']")
    done = fovea("sweep", grid, "--out", here / "taken", cwd=here)
    assert done.returncode == 2 and "cannot be written" in done.stderr and "Traceback" not in done.stderr
    assert "--out" in done.stderr and not done.stdout.count("complete")


def test_a_sweep_whose_cells_all_failed_says_so_and_draws_nothing(questions: Path) -> None:
    here = questions.parent
    shutil.copytree(DEMO, here / "hollow")
    save_file({"nothing": np.zeros(1)}, here / "hollow" / "model.safetensors", {"format": "pt"})
    grid = written(here, f"name: g\nlimit: 2\ntasks: ['vqa_file:{questions}']\nmodels: ['hf:{here}/hollow']")
    done = fovea("sweep", grid, cwd=here)
    assert done.returncode == 3, done.stdout + done.stderr
    assert "0 of 1 cells complete" in done.stdout and "hollow · none: " in done.stderr
    assert not list((here / "results").rglob("index.html"))


def test_the_forecast_counts_some_samples_of_each_cell_and_nothing_of_what_is_complete(
    questions: Path, tmp_path: Path
) -> None:
    grid = Grid(name="g", tasks=[f"vqa_file:{questions}"], models=["scripted:yes"], methods=["center_crop"])
    plan, out = sweep.prepare(grid), tmp_path / "runs"
    before = sweep.forecast(plan, out)
    assert (before.complete, before.requests, before.sampled, before.counted) == (0, 80, True, False)
    assert not out.exists(), "an estimate writes nothing"
    assert len(list(sweep.run(sweep.prepare(grid, 40), out=out, progress=silent))) == 2
    after = sweep.forecast(plan, out)
    assert (after.complete, after.requests, sweep.complete(plan, out)) == (2, 0, True)
    more = sweep.prepare(Grid(**{**grid.model_dump(), "metrics": ["length"]}))
    assert sweep.forecast(more, out).complete == 0, "a metric is missing"
    assert sweep.forecast(sweep.prepare(grid, 7), out).complete == 0, "another selection is another table"


def test_the_forecast_adds_dollars_where_they_are_known_and_says_where_not(questions: Path) -> None:
    def told(*models: str) -> str:
        plan = sweep.prepare(Grid(name="g", tasks=[f"vqa_file:{questions}"], models=list(models)), 4)
        return screen.plan_lines(plan, sweep.forecast(plan, questions.parent / "none"))

    priced, unknown = "openai:m,base_url=http://127.0.0.1:9,price=1/1", "openai:m,base_url=http://127.0.0.1:9"
    assert "dollars   $0.00" in told(priced) and "requests  4 with 0 pictures, at most\n" in told(priced)
    assert "unknown: a model has no known price" in told(priced, unknown) and "The others: $" in told(
        priced, unknown
    )
    assert "none counted: the models state no price" in told("scripted:yes")


@pytest.mark.skipif(torch.cuda.is_available(), reason="the committed runs are a CPU's")
def test_what_is_complete_is_only_read_and_shown_again(tmp_path: Path) -> None:
    """The committed runs: nothing is run, written or opened for writing beside the report."""
    out = shutil.copytree(ROOT / "results" / "baselines" / "demo", tmp_path / "demo")

    def seen() -> dict[str, tuple[int, bytes]]:
        files = [path for path in out.rglob("*") if path.is_file() and "sweeps" not in path.parts]
        return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}

    before = seen()
    words = ("sweep", "recipes/demo.yaml", "--limit", "60", "--out", out)
    done = fovea(*words, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (
        "11 cells, 660 samples; 11 cells are complete" in done.stdout
        and "11 of 11 cells complete" in done.stdout
    )
    assert seen() == before
    made = {path.name: path.read_bytes() for path in (out / "sweeps" / "demo").iterdir() if path.is_file()}
    assert {
        "index.html",
        "pivot.csv",
        "pivot.md",
        "pivot.tex",
        "small_detail-digit-hf-demo-cost.svg",
    } <= made.keys()
    assert fovea(*words, "--jobs", "2", cwd=ROOT).returncode == 0
    again = {path.name: path.read_bytes() for path in (out / "sweeps" / "demo").iterdir() if path.is_file()}
    assert again == made
