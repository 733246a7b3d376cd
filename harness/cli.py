"""The command line. It reads words and prints answers; what they mean is decided below it.

Nothing heavy is imported before a command needs it, so that `fovea --help` answers at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from harness import reading, screen
from harness.reading import RUNS, Verbose, run_directories
from harness.screen import COMPLETE, FAULTY, REFUSED

if TYPE_CHECKING:
    from harness.cache import Answers
    from harness.sweep import Outcome, Plan
    from harness.types import Retrieval

CACHE = "cache.sqlite"
"""In the folder of runs: the answers that they share."""

KINDS = ("tasks", "models", "methods", "metrics")

FAULTS = 20  # shown at most

app = typer.Typer(
    name="fovea",
    help="Run any method on any model on any task, and get a number that can be trusted.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Out = Annotated[Path, typer.Option("--out", help="Folder of run directories.")]
JudgeSpec = Annotated[
    str | None, typer.Option("--judge", help="The model that scores for clair: openai:gpt-4o, ...")
]
Budget = Annotated[
    float | None, typer.Option("--budget", help="Stop before more dollars than this are spent.")
]


def main() -> None:
    """The `fovea` command: exit codes 0 complete, 1 faults found, 2 refused, 3 failed samples,
    4 budget spent, 130 interrupted.

    Faults are what `check` (a row got worse) and `data` (a task's files) look for, and what `board` and
    `show` could not draw.
    """
    app()


@app.command()
def run(
    task: Annotated[str, typer.Argument(help="What to ask: pope:root=DIR, small_detail, ...")],
    model: Annotated[str, typer.Argument(help="Whom to ask: hf:CHECKPOINT, replay:FILE, ...")],
    method: Annotated[
        list[str] | None,
        typer.Option("--method", "-m", help="Wrapped around the model; the first innermost."),
    ] = None,
    judge: JudgeSpec = None,
    limit: Annotated[int | None, typer.Option(help="The first N samples.")] = None,
    samples: Annotated[
        list[str] | None, typer.Option(help="Only the sample with this id; repeatable.")
    ] = None,
    repeats: Annotated[int, typer.Option(help="Ask each sample K times, with seeds S, S+1, ...")] = 1,
    seed: Annotated[int, typer.Option(help="S: the sampler's seed.")] = 0,
    batch: Annotated[int | None, typer.Option(help="Samples per group [default: the model's pace].")] = None,
    max_failures: Annotated[int | None, typer.Option(help="Stop once more samples than this failed.")] = None,
    save_traces: Annotated[
        bool, typer.Option("--save-traces", help="Keep maps and selections in RUN/traces, for `fovea show`.")
    ] = False,
    out: Out = RUNS,
    cache: Annotated[bool, typer.Option(help="Keep answers in OUT/cache.sqlite and use those there.")] = True,
    budget: Budget = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the first three prompts and stop.")
    ] = False,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Show requests, tokens and dollars at most, and stop.")
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Run a task on a model, with methods around it. Repeating the command resumes the run."""
    from harness import engine, handed, matching, resolve

    with screen.errors(verbose):
        answers = _answers(out) if cache and not dry_run else None
        the_task = resolve.make_task(_judged(task, judge), answers)
        methods = [resolve.make_method(spec, answers) for spec in method or ()]
        the_model = resolve.make_model(model, answers)
        matching.check(the_task, the_model)
        if (retrieval := matching.as_retrieval(the_task)) is not None:
            matching.refuse(
                the_task.name,
                {
                    "--method": method,
                    "--samples": samples,
                    "--repeats": repeats != 1,
                    "--seed": seed,
                    "--batch": batch,
                    "--max-failures": max_failures is not None,
                    "--save-traces": save_traces,
                    "--budget": budget is not None,
                    "--dry-run": dry_run,
                    "--estimate": estimate,
                },
            )
            with screen.progress(the_task.name) as progress:
                result = matching.run(
                    retrieval, cast(Any, the_model), out=out, limit=limit, progress=progress, warn=screen.warn
                )
            screen.show_result(result)
            raise typer.Exit(screen.exit_code(result))
        if dry_run:
            screen.show_prompts(the_task, engine.compose(the_model, methods), limit, samples or (), seed)
            return
        if estimate:
            screen.show_estimate(
                the_task,
                the_model,
                methods,
                out=out,
                limit=limit,
                samples=samples or (),
                repeats=repeats,
                seed=seed,
                cache=answers,
            )
            return
        with screen.progress(the_task.name) as progress:
            result = engine.run(
                the_task,
                the_model,
                methods,
                out=out,
                limit=limit,
                samples=samples or (),
                repeats=repeats,
                seed=seed,
                batch=batch,
                max_failures=max_failures,
                save_traces=save_traces,
                budget=budget,
                cache=answers,
                progress=progress,
                warn=screen.warn,
            )
        handed.leave_dense(result)
        screen.show_result(result)
        raise typer.Exit(screen.exit_code(result))


@app.command()
def train(
    model: Annotated[str, typer.Argument(help="What to train: seps:impl=laps,backbone=vit-224, ...")],
    data: Annotated[
        str, typer.Option("--data", help="A retrieval task, of which the training split is taken.")
    ],
    val: Annotated[
        str | None,
        typer.Option(help="The task that chooses the epoch [default: --data's validation split]."),
    ] = None,
    preset: Annotated[str | None, typer.Option(help="released or paper: their hyperparameters.")] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder of the checkpoint [default: below results/runs/training]."),
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="How often the data are seen.")] = None,
    batch: Annotated[
        int | None, typer.Option(min=2, help="Pairs of a step, over all processes together.")
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of weights, order and augmentation.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="NAME=VALUE of the recipe: lr=1e-3, milestones=9+15; repeatable."),
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:1.")] = "auto",
    precision: Annotated[
        str | None, typer.Option(help="Of the encoders: fp32, bf16 or fp16 [default: fp32].")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=0, help="Processes that load data [default: 8 on a GPU, else 0].")
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Train a matcher on a task's training split. Repeating the command resumes where it stopped.

    With more than one GPU: accelerate launch --num_processes N .venv/bin/fovea train ...
    """
    from harness import resolve
    from harness.errors import SpecError

    with screen.errors(verbose):
        spec = resolve.parse(model)
        try:
            trainer = resolve.verb("train", f"adapters.{spec.name}.train")
        except ModuleNotFoundError as error:
            if not (error.name or "").startswith("adapters"):
                raise
            raise SpecError(f"{spec.name} cannot be trained here; seps can") from None
        if spec.positional:
            raise SpecError(f"{model}: what is {spec.positional[0]!r}? Write key=value, such as impl=laps")
        given = {"epochs": epochs, "batch": batch, "seed": seed, "precision": precision}
        settings = {name: str(value) for name, value in given.items() if value is not None}
        trainer(
            spec.knobs,
            _retrieval(_of_split(data, "train")),
            _retrieval(val or _of_split(data, "val")),
            preset=preset,
            settings={**_settings(set_ or ()), **settings},
            out=out,
            device=device,
            workers=workers,
            say=typer.echo,
        )


@app.command()
def sweep(
    grid: Annotated[Path, typer.Argument(help="A YAML file of tasks, models and methods: recipes/*.yaml.")],
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="data=DIR: a variable of the grid; repeatable.")
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="The first N samples of every cell.")] = None,
    out: Out = RUNS,
    budget: Budget = None,
    jobs: Annotated[
        int, typer.Option(min=1, help="Cells at once, each in a process of its own, and on a GPU of its own.")
    ] = 1,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the cells and what they would use, and stop.")
    ] = False,
    verbose: Verbose = False,
) -> None:
    """Run every cell of a grid; then its pivot table, plots and best cell, in OUT/sweeps/NAME.

    Repeating the command resumes it, cell by cell; once all are complete it only shows them again.
    """
    from harness import sweep
    from harness.grid import read

    with screen.errors(verbose):
        given = read(grid, _settings(set_ or ()))
        # Where nothing is left to run nothing is opened for writing.
        answers = _answers(out) if (out / CACHE).exists() and not dry_run else None
        plan = sweep.prepare(given, limit, answers)
        with screen.bar() as told:
            left = sweep.forecast(
                plan, out, answers, lambda done, of: told(f"{given.name}, estimating", done, of)
            )
        lines = screen.plan_lines(plan, left)
        if dry_run:
            screen.show_cells(plan)
        plan.check(lines)
        typer.echo(lines)
        if dry_run:
            return
        folder = _sweep_folder(out, given.name)
        sweep.require_writable(folder)
        if answers is None and left.complete < len(plan.cells):
            answers = _answers(out)
            plan = sweep.prepare(given, limit, answers)
        ended = _swept(plan, out, budget, jobs, answers)
        runs = {outcome.cell: outcome.run.path for outcome in ended if outcome.run is not None}
        paths = list(dict.fromkeys(runs[cell] for cell in plan.cells if cell in runs))
        if paths:
            from harness import resolve

            resolve.verb("ablation")(
                paths, resolve.metric_from, screen.console(), folder, name=given.name, about=given.about
            )
        raise typer.Exit(screen.close_sweep(plan, ended))


def _swept(plan: Plan, out: Path, budget: float | None, jobs: int, answers: Answers | None) -> list[Outcome]:
    """Run the cells, saying what goes wrong as it does."""
    from harness import handed, sweep
    from harness import jobs as processes

    with screen.progresses() as progress:
        if jobs == 1:
            outcomes = sweep.run(
                plan, out=out, budget=budget, cache=answers, progress=progress, warn=screen.warn
            )
        else:
            cache = answers.path if answers is not None else None
            outcomes = processes.run(
                plan, jobs, out=out, budget=budget, cache=cache, progress=progress, warn=screen.warn
            )
        ended = []
        for outcome in outcomes:
            ended.append(outcome)
            if not outcome.good:
                screen.warn(f"{outcome.cell}: {outcome.reason}")
            if outcome.run is not None and not outcome.read:
                handed.leave_dense(outcome.run)
    return ended


def _sweep_folder(out: Path, name: str) -> Path:
    """Where a grid's table and plots go."""
    from harness.store import slug

    return out / "sweeps" / slug(name)


@app.command()
def score(
    runs: Annotated[list[Path], typer.Argument(help="Run directories, or folders of them.")],
    metric: Annotated[
        list[str] | None, typer.Option("--metric", help="chair:front_end=rules, ...; default: the run's own.")
    ] = None,
    judge: JudgeSpec = None,
    submission: Annotated[
        Path | None,
        typer.Option(help="Write the evaluation server's file of a split without answers, or dense texts."),
    ] = None,
    verbose: Verbose = False,
) -> None:
    """Score finished runs again, without the model. Other metrics are added to the run."""
    from harness import engine, handed, resolve, store
    from harness.errors import SpecError

    with screen.errors(verbose):
        if submission is not None:
            handed.submit(run_directories(runs), submission)
            return
        for path in run_directories(runs):
            stored = store.read_run(path)["metrics"]
            asks = judge or "judge=" in str(metric) or any("specs" in entry for entry in stored)
            answers = _answers(path.resolve().parents[2]) if asks else None  # where the run's own are
            specs = [resolve.judged("metric", spec, judge) for spec in metric or ()]
            metrics = [resolve.make_metric(spec, answers) for spec in specs]
            metrics = metrics or [resolve.metric_again(entry, answers, judge) for entry in stored]
            if judge and not any(hasattr(each, "judge") for each in metrics):
                raise SpecError("none of these metrics asks a judge: --metric clair --judge SPEC does")
            summary = engine.score(path, metrics)
            screen.console().print(f"[bold]{path}[/]")
            screen.show_scores(summary)


@app.command()
def data(
    task: Annotated[str, typer.Argument(help="Whose files: pope, pope:root=DIR, ...")],
    fetch: Annotated[Path | None, typer.Option(help="Download what is open into this folder.")] = None,
    verbose: Verbose = False,
) -> None:
    """Say where a task's files come from; check those that are there; fetch what is openly downloadable."""
    from harness import resolve

    with screen.errors(verbose), screen.bar() as progress:
        faults = resolve.verb("data", "tasks._data")(
            task,
            fetch,
            parse=resolve.parse,
            make=resolve.make_task,
            say=typer.echo,
            progress=progress,
        )
    for fault in faults[:FAULTS]:
        typer.secho(fault, err=True, fg="red")
    if len(faults) > FAULTS:
        screen.warn(f"and {len(faults) - FAULTS:,} more")
    raise typer.Exit(FAULTY if faults else COMPLETE)


@app.command(name="list")
def list_(
    kind: Annotated[str, typer.Argument(help="tasks, models, methods or metrics.")],
    name: Annotated[str | None, typer.Argument(help="One of them, with its knobs.")] = None,
) -> None:
    """List what exists, or show one thing with its knobs."""
    from harness import resolve

    with screen.errors(False):
        kinds = dict(zip(KINDS, resolve.ROOMS, strict=True))
        if kind not in kinds:
            raise typer.BadParameter(f"{kind!r} is not one of {', '.join(KINDS)}", param_hint="KIND")
        if name is None:
            found = resolve.names(kinds[kind])
            width = max(map(len, found), default=0)
            for each, where in found.items():
                typer.echo(f"{each:<{width}}  {resolve.summary(where)}")
            return
        typer.echo(resolve.documentation(kinds[kind], name))
        for knob, type_name, default in resolve.knobs(kinds[kind], name):
            typer.echo(f"  {knob}: {type_name}  [{default}]")


for command in reading.COMMANDS:
    app.command()(command)


@app.command()
def demo(
    scenes: Annotated[int, typer.Option(help="Scenes to ask about.")] = 250,
    out: Out = Path("results/demo"),
    model: Annotated[str, typer.Option(help="The model to show.")] = "hf:assets/demo",
    verbose: Verbose = False,
) -> None:
    """The bundled model on small details: plainly, with controls, with ViCrop; then the board."""
    from harness import engine, resolve

    arms = ["", "full_twice", "random_crop", "center_crop"]
    arms += [f"vicrop:locate={locate}" for locate in ("raw_att", "rel_att", "oracle")]
    with screen.errors(verbose):
        if model == "hf:assets/demo":
            model = f"hf:{Path(__file__).parent.parent / 'assets' / 'demo'}"
        task = resolve.make_task("small_detail")
        answers = _answers(out)
        results = {}
        for arm in arms:
            methods = [resolve.make_method(arm)] if arm else []
            with screen.progress(arm or "full image") as progress:
                results[arm] = engine.run(
                    task,
                    resolve.make_model(model),
                    methods,
                    out=out,
                    limit=scenes,
                    cache=answers,
                    progress=progress,
                    warn=screen.warn,
                )
            if screen.exit_code(results[arm]):
                raise typer.Exit(screen.exit_code(results[arm]))
        runs = [result.path for result in results.values()]
        resolve.verb("board")(runs, resolve.metric_from, screen.console())
        picture = out / "scenes.png"
        resolve.verb("scenes")(task, results[""].path, results["vicrop:locate=rel_att"].path, picture)
        screen.console().print(f"\nFour scenes with the crop and both answers: {picture}")


@app.command()
def cache(
    out: Out = RUNS,
    clear: Annotated[bool, typer.Option("--clear", help="Forget every answer.")] = False,
    verbose: Verbose = False,
) -> None:
    """Show the answers kept beside the runs, or forget them."""
    with screen.errors(verbose):
        path = out / CACHE
        if not path.exists():
            typer.echo(f"{path}: no answers yet")
            return
        answers = _answers(out)
        if clear:
            answers.clear()
        number, size = answers.size()
        typer.echo(f"{path}: {number:,} answers, {size / 2**20:.1f} MiB")


@app.command()
def doctor(out: Out = RUNS) -> None:
    """Check what Fovea needs here: packages, accelerator, word data, Java, room to write."""
    from harness.doctor import findings

    worst = 0
    for name, good, message in findings(out):
        mark = {True: "ok  ", None: "note", False: "BAD "}[good]
        typer.echo(f"{mark} {name:<12} {message}")
        worst = worst or (REFUSED if good is False else 0)
    raise typer.Exit(worst)


# ---------------------------------------------------------------- what the words mean


def _judged(task: str, judge: str | None) -> str:
    """The task's spec with its judge."""
    from harness import resolve
    from harness.errors import SpecError

    spec = resolve.judged("task", task, judge)
    if judge is not None and spec == task:
        raise SpecError(
            f"{task} has no judge to choose, or names one already. Captioning tasks take one; any run is "
            f"judged afterwards with: fovea score RUN --metric clair --judge {judge}"
        )
    return spec


def _of_split(task: str, split: str) -> str:
    """A task's spec for one of its splits."""
    from harness import resolve
    from harness.errors import SpecError

    parsed = resolve.parse(task)
    if "split" in parsed.knobs:
        raise SpecError(f"{task}: leave split out; training takes the splits train and val by itself")
    return f"{task}{',' if parsed.positional or parsed.knobs else ':'}split={split}"


def _retrieval(spec: str) -> Retrieval:
    from harness import matching, resolve
    from harness.errors import SpecError

    task = matching.as_retrieval(resolve.make_task(spec))
    if task is None:
        raise SpecError(f"{spec} is no retrieval task; matchers train on flickr30k_retrieval, coco_retrieval")
    return task


def _answers(out: Path) -> Answers:
    from harness.cache import Answers

    return Answers(out / CACHE)


def _settings(words: Sequence[str]) -> dict[str, str]:
    """NAME=VALUE of every --set."""
    from harness.errors import SpecError

    for word in words:
        if "=" not in word:
            raise SpecError(f"--set {word}: write --set NAME=VALUE")
    return {name: value for name, _, value in (word.partition("=") for word in words)}
