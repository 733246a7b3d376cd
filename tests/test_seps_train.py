"""Trainings of LAPS and SEPS: their schedule, what stops and continues them, and what they leave behind."""

import dataclasses
import io
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from adapters.seps import main as matchers
from adapters.seps import train as training
from adapters.seps._build import fill_tower, model_of
from adapters.seps._plan import RECIPES, Recipe, measures, plan_of
from adapters.seps._processes import Processes, processes
from adapters.seps.data import Batch, Vocabulary, loader
from adapters.seps.model import IMPLS, configure
from adapters.seps.train import Moment, Training, optimizer_of
from harness.errors import DataError, ModelError, SpecError, StoreError
from harness.pictures import Memory, Picture
from harness.types import Pool, Retrieval, digest
from metrics.retrieval import Recall, queries

ROOT = Path(__file__).parent.parent
FOVEA = Path(sys.executable).parent / "fovea"
SPEC = {
    "impl": "laps",
    "backbone": "scratch-16x1x2",
    "text": "scratch-16x1x2",
    "patch": "8",
    "image_size": "32",
}
COLOURS = {"red": (220, 30, 30), "green": (30, 180, 60), "blue": (40, 60, 220), "yellow": (230, 210, 40)}
PLACES = {"left": 0, "right": 32}


def scenes(first: int, count: int, dense: str = "image", texts: int = 3) -> Retrieval:
    """Two squares side by side: their colours, five captions' worth of words about them, a dense text."""
    names, pictures, captions, long = list(COLOURS), [], [], []
    for number in range(first, first + count):
        rng = np.random.default_rng(number)
        left, right = (names[n] for n in rng.integers(len(names), size=2))
        image = Image.fromarray(rng.integers(0, 60, (48, 64, 3), np.uint8))
        for name, x in ((left, 0), (right, 32)):
            image.paste(COLOURS[name], (x + 4, 8, x + 28, 40))
        file = io.BytesIO()
        image.save(file, "PNG")
        pictures.append(Picture(Memory(file.getvalue(), f"{number}.png")))
        said = [f"a {left} square beside a {right} one", f"{right} stands right of {left}", f"left: {left}!"]
        captions.append(said[:texts])
        long.append(
            f"The picture has two squares. The left one is {left}. The right one is {right}, number {number}."
        )
    owner = tuple(image for image, said in enumerate(captions) for _ in said)
    pool = Pool(
        images=tuple(pictures),
        texts=tuple(text for said in captions for text in said),
        dense={"none": (), "image": tuple(long), "text": tuple(long[image] for image in owner)}[dense],
        dense_of=dense,  # type: ignore[arg-type]
        fingerprint=digest([first, count, dense]),
    )
    return Retrieval(
        name="scenes",
        version="1",
        protocol=dense,
        fingerprint=pool.fingerprint,
        pool=pool,
        owner=owner,
        ids=tuple(str(n) for n in range(count)),
        rank=lambda matrix, whose, folds: queries(matrix, whose, folds),
        metrics=(Recall(),),
        primary="rsum",
        leaks=dense == "text",
        spec="scenes",
    )


def train(out: Path, spec: dict[str, str] | None = None, say: Any = lambda _: None, **settings: Any) -> Path:
    rules = {"epochs": 2, "batch": 8, "lr": 1e-3} | settings
    options = {name: rules.pop(name) for name in ("preset", "workers") if name in rules}
    return training.train(
        SPEC | (spec or {}),
        scenes(0, 16),
        scenes(100, 20),
        out=out,
        settings=rules,
        say=say,
        device="cpu",
        **options,
    )


def built(
    impl: str = "laps", ours: Processes | None = None, **recipe: Any
) -> tuple[Training, Sequence[Batch]]:
    """A training, and the batches of its first epoch as one of `ours` sees them."""
    spec = SPEC | {"impl": impl}
    plan, task = plan_of(spec, None), scenes(0, 16)
    rules = Recipe(**{"batch": 8, "lr": 1e-3, "ratio_weight": 2.0} | recipe)
    vocabulary = Vocabulary.trained([*task.pool.texts, *task.pool.dense])
    torch.manual_seed(0)
    model = model_of(plan, vocabulary, fill=True)
    if ours is None:
        with processes("cpu") as ours:
            found = Training(model, vocabulary, rules, plan, ours, Path(), {})
    else:
        found = Training(model, vocabulary, rules, plan, ours, Path(), {})
    place = {"rank": ours.rank, "world": ours.world}
    batches = loader(found._pairs(task), vocabulary, batch=rules.batch, seed=0, epochs=range(1), **place)
    return found, list(batches)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_file(folder / "model.safetensors")
    return found


def same(one: Path, two: Path) -> bool:
    return (one / "model.safetensors").read_bytes() == (two / "model.safetensors").read_bytes()


# ---------------------------------------------------------------- the schedule


def test_rates_fall_at_epochs_9_15_20_and_25_to_three_tenths_of_what_they_were() -> None:
    rates = [Recipe().rate(epoch) for epoch in range(30)]
    expected = [2e-4 * 0.3 ** sum(epoch >= m for m in (9, 15, 20, 25)) for epoch in range(30)]
    assert np.allclose(rates, expected, rtol=1e-12)
    assert math.isclose(rates[0], 2e-4) and math.isclose(rates[29], 2e-4 * 0.3**4)


def test_alignment_rises_over_the_first_epoch_and_then_counts_whole() -> None:
    assert [Recipe().warm(step, 4) for step in range(6)] == [0, 0.25, 0.5, 0.75, 1, 1]


def test_towers_train_at_a_tenth_of_the_rate_and_projections_and_head_at_all_of_it() -> None:
    training_, _ = built()
    model = training_.model
    optimizer = optimizer_of(model, Recipe())
    shares = {id(weight): group["share"] for group in optimizer.param_groups for weight in group["params"]}
    for name, weight in model.named_parameters():
        inside = name.startswith(("towers.vision.", "towers.text."))
        assert shares[id(weight)] == (0.1 if inside else 1.0), name
    assert len(shares) == len(list(model.parameters()))
    assert all(
        group["betas"] == (0.9, 0.999) and group["weight_decay"] == 1e-4 for group in optimizer.param_groups
    )
    scratch = optimizer_of(model, Recipe(), ["vision"])
    assert [group["share"] for group in scratch.param_groups] == [1.0, 1.0, 0.1]


def test_the_first_epoch_sums_over_negatives_and_the_next_takes_the_hardest() -> None:
    subject, batches = built()
    seen: list[Moment] = []
    subject.step.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[1]))
    for batch in batches[:3]:
        subject.take(batch, steps=2)
    assert [(moment.warm, moment.hardest) for moment in seen] == [(0.0, False), (0.5, False), (1.0, True)]


def test_a_step_at_the_released_settings_follows_adamw_on_clipped_gradients() -> None:
    """Against torch's own AdamW, told by hand what the recipe says."""
    subject, batches = built()
    other, _ = built()
    subject.state.step = 2
    subject.take(batches[0], steps=2)
    groups = [
        {
            "params": [w for n, w in other.model.named_parameters() if n.startswith("towers.vision.")],
            "lr": 1e-3,
        },
        {
            "params": [w for n, w in other.model.named_parameters() if not n.startswith("towers.vision.")],
            "lr": 1e-3,
        },
    ]
    reference = torch.optim.AdamW(groups, weight_decay=1e-4)
    value, _ = other.step(batches[0], Moment(2, 1.0, True))
    value.backward()
    torch.nn.utils.clip_grad_norm_(other.model.parameters(), 2.0)
    reference.step()
    for one, two in zip(subject.model.parameters(), other.model.parameters(), strict=True):
        assert torch.allclose(one, two, atol=1e-7)


def test_presets_say_what_the_paper_and_the_released_commands_say() -> None:
    released, paper = (Recipe(**RECIPES[name]) for name in ("released", "paper"))
    assert (released.batch, released.lr, released.ratio_weight) == (64, 2e-4, 2.0)
    assert (paper.batch, paper.lr, paper.ratio_weight, paper.ratio_lambdas) == (32, 1e-4, 1.0, (1.0, 1.0))
    assert plan_of(SPEC | {"impl": "seps_released"}, "released").knobs["detach_selection"] is True
    assert "detach_selection" not in plan_of(SPEC | {"impl": "seps_released"}, None).knobs
    asked = SPEC | {"impl": "seps_released", "detach_selection": "false"}
    assert plan_of(asked, "released").knobs["detach_selection"] is False


# ---------------------------------------------------------------- steps that must not be taken


def test_a_loss_that_is_not_finite_changes_no_weight_and_is_counted() -> None:
    subject, batches = built(margin=3e38)
    before = [weight.detach().clone() for weight in subject.model.parameters()]
    subject.state.step = 2  # past the first, whose alignment counts nothing
    assert math.isnan(subject.take(batches[0], steps=2))
    assert (subject.state.skipped, subject.state.step) == (1, 3)
    assert all(torch.equal(a, b) for a, b in zip(before, subject.model.parameters(), strict=True))


def test_a_gradient_that_is_not_finite_changes_no_weight_and_is_counted() -> None:
    subject, batches = built()
    subject.model.towers.text_projection.register_parameter("odd", torch.nn.Parameter(torch.zeros(1)))
    odd = subject.model.towers.text_projection.odd
    subject.step.register_forward_hook(
        lambda _, __, found: (found[0] + odd.clamp(min=0).sqrt().sum(), found[1])
    )
    before = [weight.detach().clone() for weight in subject.model.parameters()]
    subject.take(batches[0], steps=2)
    assert subject.state.skipped == 1
    assert all(torch.equal(a, b) for a, b in zip(before, subject.model.parameters(), strict=True))


# ---------------------------------------------------------------- a training


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """seps_released on drawn squares, ten epochs of all negatives (the hardest defeat a new-born tower)."""
    return train(
        tmp_path_factory.mktemp("seps") / "released",
        {"impl": "seps_released"},
        epochs=10,
        batch=16,
        lr=3e-3,
        milestones=(9,),
        sum_epochs=20,
    )


def test_a_training_learns_and_leaves_what_explains_it(trained: Path) -> None:
    history = [json.loads(line) for line in (trained / "training.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in history] == list(range(10))
    assert history[-1]["rsum"] > history[0]["rsum"] + 80
    about = json.loads((trained / "training.json").read_text())
    best = max(history, key=lambda row: row["rsum"])
    assert about["best"] == {"epoch": best["epoch"], "rsum": best["rsum"]}
    assert about["epochs"] == 10 and about["skipped"] == 0
    assert about["chosen_on"]["fingerprint"] == scenes(100, 20).fingerprint
    assert about["recipe"]["milestones"] == [9] and about["identity"]["model"]["impl"] == "seps_released"
    with Image.open(trained / "curve.png") as curve:
        assert curve.size[0] > 400
    assert math.isclose(history[9]["lr"], 3e-3 * 0.3)
    assert math.isclose(history[3]["ratio"], 0.25, abs_tol=1e-3)  # hard masks: a constant


def test_the_checkpoint_gives_the_number_that_chose_it(trained: Path) -> None:
    task = scenes(100, 20)
    matcher = matchers.model(trained, device="cpu")
    parts = [matcher.similarity(task.pool, range(start, min(start + 7, 20))) for start in (0, 7, 14)]
    best = json.loads((trained / "training.json").read_text())["best"]["rsum"]
    assert training.recalls(task, np.concatenate(parts))["rsum"] == pytest.approx(best)


def test_the_same_command_again_does_nothing_and_more_epochs_go_on(tmp_path: Path) -> None:
    said: list[str] = []
    whole = train(tmp_path / "whole", epochs=3)
    train(tmp_path / "parts", epochs=1)
    parts = train(tmp_path / "parts", epochs=3, say=said.append)
    assert "going on after step 6" in said[0] and len(said) == 4 and said[-1] == str(parts)
    assert same(whole, parts)
    state = "last/state.safetensors"
    one, two = load_file(whole / state), load_file(parts / state)
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    train(tmp_path / "parts", epochs=3, say=said.append)
    assert "its 3 epochs are over" in said[-2]


def test_seeds_give_other_weights_and_the_same_seed_the_same(tmp_path: Path) -> None:
    folders = [train(tmp_path / name, epochs=1, seed=seed) for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    assert same(folders[0], folders[1]) and not same(folders[0], folders[2])


def test_workers_and_pictures_kept_in_memory_change_nothing_but_the_latter_its_pixels(tmp_path: Path) -> None:
    alone, workers = train(tmp_path / "alone", epochs=1), train(tmp_path / "workers", epochs=1, workers=2)
    assert same(alone, workers)
    assert (train(tmp_path / "kept", epochs=1, keep=True) / "curve.png").exists()


def test_half_precision_trains_and_scores_stay_close(tmp_path: Path) -> None:
    whole, half = train(tmp_path / "whole", epochs=1), train(tmp_path / "half", epochs=1, precision="bf16")
    one, two = weights(whole), weights(half)
    assert not same(whole, half)
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 0.05
    pool = scenes(100, 20).pool
    found = [
        matchers.model(whole, device="cpu", precision=p).similarity(pool, range(20)) for p in ("fp32", "bf16")
    ]  # type: ignore[arg-type]
    assert 0 < np.abs(found[0] - found[1]).max() < 0.1


@pytest.mark.parametrize("impl", ["seps_released", "seps_paper"])
def test_an_impl_with_dense_texts_trains_the_same_whether_they_come_per_image_or_per_text(
    impl: str, tmp_path: Path
) -> None:
    folders = []
    for dense in ("image", "text"):
        rules = {"epochs": 1, "batch": 8}
        spec = SPEC | {"impl": impl}
        task, out = scenes(0, 8, dense), tmp_path / dense
        folders.append(
            training.train(
                spec, task, scenes(100, 4), out=out, settings=rules, device="cpu", say=lambda _: None
            )
        )
    assert same(*folders)


# ---------------------------------------------------------------- killed, and continued

SCRIPT = """
import sys
sys.path[:0] = [{tests!r}, {root!r}]
import test_seps_train as here
from adapters.seps import train as training
training.SAVE_EVERY = 0.0
here.train(here.Path(sys.argv[1]), {spec!r}, epochs=4, say=lambda line: print(line, flush=True))
"""


def script(spec: dict[str, str]) -> str:
    return SCRIPT.format(tests=str(ROOT / "tests"), root=str(ROOT), spec=spec)


def alone() -> dict[str, str]:
    """The environment, without what launchers put there; as many threads as here, for the last bits."""
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    return kept | {"OMP_NUM_THREADS": "1"}


@pytest.mark.slow
def test_a_training_that_is_killed_again_and_again_ends_with_the_same_weights(tmp_path: Path) -> None:
    spec = {"impl": "seps_paper"}  # whose masks are drawn
    whole = tmp_path / "whole"
    command = [sys.executable, "-c", script(spec)]
    subprocess.run([*command, str(whole)], stdout=subprocess.PIPE, text=True, env=alone(), check=True)
    killed, out = 0, tmp_path / "killed"
    state = out / "last" / "state.safetensors"
    for attempt in range(3):
        process = subprocess.Popen([*command, str(out)], stdout=subprocess.PIPE, text=True, env=alone())
        if attempt < 2:
            before = state.stat().st_mtime_ns if state.exists() else 0
            deadline = time.monotonic() + 60
            changes = 0
            while changes < 2 + attempt and process.poll() is None and time.monotonic() < deadline:
                now = state.stat().st_mtime_ns if state.exists() else 0
                changes += now != before
                before = now
                time.sleep(0.002)
            process.kill()
        said, _ = process.communicate(timeout=120)
        killed += process.returncode == -signal.SIGKILL
        if attempt and killed:
            assert "going on after step" in said
    assert killed == 2 and process.returncode == 0
    assert same(whole, out)
    one, two = load_file(whole / "last/state.safetensors"), load_file(state)
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    histories = [(folder / "training.jsonl").read_text().splitlines() for folder in (whole, out)]
    numbers = [[{**json.loads(line), "seconds": 0} for line in lines] for lines in histories]
    assert numbers[0] == numbers[1]


# ---------------------------------------------------------------- several processes

GRADIENTS = """
import sys
sys.path[:0] = [{tests!r}, {root!r}]
import test_seps_train as here
here.gradients(here.Path(sys.argv[1]))
"""


def gradients(folder: Path) -> None:
    """Write the gradients and the loss of one step of each impl, as one of however many processes."""
    from safetensors.torch import save_file

    with processes("cpu") as ours:
        for impl in IMPLS:
            subject, batches = built(impl, ours)
            subject.model.towers.eval()  # dropout differs between processes, as it should
            value, _ = subject.wrapped(batches[0], Moment(7, 1.0, True))
            value.backward()
            found = {name: w.grad for name, w in subject.model.named_parameters() if w.grad is not None}
            save_file({**found, "loss": value.detach()}, folder / f"{impl}.{ours.rank}of{ours.world}")


def launch(world: int, words: Sequence[str]) -> None:
    """Run a Python command as so many processes that know of each other, as launchers start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = []
    for rank in range(world):
        place = {
            "RANK": rank,
            "LOCAL_RANK": rank,
            "WORLD_SIZE": world,
            "LOCAL_WORLD_SIZE": world,
            "MASTER_PORT": port,
        }
        own = {name: str(value) for name, value in place.items()} if world > 1 else {}
        settings = {"MASTER_ADDR": "127.0.0.1", "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
        running.append(
            subprocess.Popen(
                [sys.executable, *words], env=alone() | settings | own, stderr=subprocess.PIPE, text=True
            )
        )
    for process in running:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors


@pytest.mark.slow
def test_two_processes_with_half_the_batch_give_the_gradient_of_one(tmp_path: Path) -> None:
    code = GRADIENTS.format(tests=str(ROOT / "tests"), root=str(ROOT))
    for world in (1, 2):
        launch(world, ["-c", code, str(tmp_path)])
    for impl in IMPLS:
        whole = load_file(tmp_path / f"{impl}.0of1")
        assert float(whole["loss"]) > 0.1
        largest = max(float(gradient.abs().max()) for gradient in whole.values())
        for rank in (0, 1):
            half = load_file(tmp_path / f"{impl}.{rank}of2")
            for name, gradient in whole.items():
                assert float((gradient - half[name]).abs().max()) <= 1e-6 * largest, (impl, name)
            # DDP gives zeros to a parameter that nobody used.
            assert all(not half[name].any() for name in half.keys() - whole.keys())


@pytest.mark.slow
def test_a_launcher_trains_with_two_processes(tmp_path: Path) -> None:
    code = tmp_path / "both.py"
    code.write_text(script({"impl": "seps_released"}))
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(code)]
    done = subprocess.run(
        [sys.executable, *words, str(tmp_path / "out")],
        env=alone() | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("epoch 4:") == 1, done.stdout
    about = json.loads((tmp_path / "out" / "training.json").read_text())
    assert about["processes"] == 2 and about["epochs"] == 4
    matcher = matchers.model(tmp_path / "out", device="cpu")
    task = scenes(100, 20)
    found = training.recalls(task, matcher.similarity(task.pool, range(20)))["rsum"]
    assert found == pytest.approx(about["best"]["rsum"])


# ---------------------------------------------------------------- refusals


def test_a_model_that_wants_dense_texts_is_not_trained_without(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"impl=seps_paper trains with dense texts, and scenes brings none"):
        training.train(SPEC | {"impl": "seps_paper"}, scenes(0, 9, "none"), scenes(50, 4), out=tmp_path)


def test_a_split_smaller_than_a_batch_or_seen_in_both_parts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"scenes has 48 texts, fewer than a batch of 64"):
        training.train(SPEC, scenes(0, 16), scenes(100, 4), out=tmp_path)
    with pytest.raises(DataError, match=r"4 images are in the training and in the validation split"):
        training.train(SPEC, scenes(0, 16), scenes(4, 4), out=tmp_path, settings={"batch": 8})


@pytest.mark.parametrize(
    "spec, message",
    [
        ({"impl": "seps"}, "impl=seps does not exist; there are laps, seps_released, seps_paper"),
        ({"emded_size": "8"}, "a SEPS model has no emded_size; it has impl"),
        ({"embed_size": "many"}, "embed_size=many is not a whole number"),
        ({"detach_selection": "maybe"}, "detach_selection=maybe is neither true nor false"),
        ({"mask": "soft"}, "mask=soft does not exist; there are gumbel, topk"),
        ({"backbone": "scratch-16x1"}, "scratch-16x1: write scratch-WIDTHxLAYERSxHEADS"),
        ({"backbone": "scratch-16x1x3"}, "heads dividing the width"),
        ({"patch": "5"}, "image_size=32 is not a multiple of patch=5"),
        ({"patch": "0"}, "patch=0 is not a number of pixels"),
        ({"vision_config": "x"}, "vision_config follows from the backbone"),
        ({"backbone": "vit-224"}, "patch is for backbone=scratch-...; vit-224 has its own"),
    ],
)
def test_a_spec_that_cannot_be_says_why(spec: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError) as refused:
        train(tmp_path / "x", spec)
    assert message in str(refused.value)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"speed": "1"}, "a recipe has no speed; it has epochs, batch"),
        ({"lr": "fast"}, "lr=fast is not a number"),
        ({"lr": "nan"}, "lr=nan; it must be a finite number"),
        ({"epochs": "0"}, "epochs=0; it must be 1 or more"),
        ({"milestones": "3+x"}, "milestones=x is not a whole number"),
        ({"ratio_lambdas": "1"}, "ratio_lambdas=1.0; give two"),
        ({"precision": "fp8"}, "precision=fp8 does not exist"),
        ({"preset": "best"}, "preset=best does not exist; there are released, paper"),
    ],
)
def test_a_recipe_that_cannot_be_says_why(settings: dict[str, str], message: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError) as refused:
        train(tmp_path / "x", **settings)
    assert message in str(refused.value)


def test_a_folder_of_another_training_is_left_alone_and_the_difference_named(tmp_path: Path) -> None:
    folder = train(tmp_path / "x", epochs=1)
    with pytest.raises(StoreError, match=r"holds another training \(recipe.lr was 0.001, is 0.002\)"):
        train(folder, epochs=1, lr=2e-3)
    (folder / "last" / "state.safetensors").unlink()
    with pytest.raises(StoreError, match=r"holds a checkpoint and no last/state.safetensors"):
        train(folder, epochs=1)
    assert (
        sorted(path.name for path in train(tmp_path / "y", epochs=1).iterdir() if path.suffix == ".part")
        == []
    )


def test_a_state_that_is_cut_short_is_not_trained_from(tmp_path: Path) -> None:
    state = train(tmp_path / "x", epochs=1) / "last" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-5])
    with pytest.raises(StoreError, match=r"state.safetensors cannot be read"):
        train(tmp_path / "x", epochs=2)


def test_two_trainings_never_share_a_folder(tmp_path: Path) -> None:
    from filelock import FileLock

    with (
        FileLock(tmp_path / ".lock"),
        pytest.raises(StoreError, match=r"is being trained by another process"),
    ):
        train(tmp_path)


# ---------------------------------------------------------------- towers


def test_a_vision_tower_is_taken_out_of_the_model_that_it_is_a_part_of() -> None:
    demo = ROOT / "assets" / "demo"
    task = scenes(0, 4)
    plan = plan_of({"backbone": str(demo), "text": "scratch-16x1x2"}, None)
    model = model_of(plan, Vocabulary.trained(task.pool.texts), fill=True)
    stored = load_file(demo / "model.safetensors")
    own = {
        name: weight
        for name, weight in model.towers.vision.state_dict().items()
        if "position_ids" not in name
    }
    for name, weight in own.items():
        assert torch.equal(weight, stored[f"vision_tower.{name}"]), name
    assert len(own) > 60
    assert (model.config.patches, model.config.has_cls, model.config.image_size) == (144, True, 96)


def test_a_checkpoint_without_the_towers_weights_is_not_replaced_by_random_numbers(tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTModel

    small = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=32
    )
    ViTModel(small, add_pooling_layer=False).save_pretrained(tmp_path / "vit")
    larger = ViTModel(ViTConfig(**{**small.to_dict(), "num_hidden_layers": 3}), add_pooling_layer=False)
    with pytest.raises(ModelError, match=r"lacks \d+ of its weights"):
        fill_tower(larger, str(tmp_path / "vit"))
    same_size = ViTModel(small, add_pooling_layer=False)
    fill_tower(same_size, str(tmp_path / "vit"))
    stored = load_file(tmp_path / "vit" / "model.safetensors")
    assert any(torch.equal(weight, same_size.embeddings.cls_token) for weight in stored.values())


def test_a_local_vit_and_bert_train_with_the_tokeniser_beside_them(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel, SwinConfig, SwinModel

    task = scenes(0, 16)
    vocabulary = Vocabulary.trained(task.pool.texts)
    sizes = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=vocabulary.size, **sizes)).save_pretrained(tmp_path / "bert")
    vocabulary.save(tmp_path / "bert")
    swin = SwinConfig(
        image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4
    )
    SwinModel(swin).save_pretrained(tmp_path / "swin")
    spec = {
        "impl": "laps",
        "backbone": str(tmp_path / "swin"),
        "text": str(tmp_path / "bert"),
        "embed_size": "24",
    }
    rules = {"epochs": 1, "batch": 8}
    folder = training.train(
        spec, task, scenes(100, 4), out=tmp_path / "out", settings=rules, device="cpu", say=lambda _: None
    )
    config = json.loads((folder / "config.json").read_text())
    assert (config["patches"], config["has_cls"], config["sparse_ratio"]) == (16, False, 0.8)
    about = json.loads((folder / "training.json").read_text())
    assert all(about["identity"]["towers"][name].startswith("sha256:") for name in ("vision", "text"))
    assert matchers.model(folder, device="cpu").similarity(scenes(100, 4).pool, range(4)).shape == (4, 12)


def test_measures_of_a_tower_are_width_layers_and_heads() -> None:
    assert measures("scratch-64x4x4") == (64, 4, 4) and measures("vit-384") is None


# ---------------------------------------------------------------- the matcher


def test_a_matcher_says_all_that_decides_its_numbers(trained: Path) -> None:
    found = matchers.model(trained, device="cpu", dense_max_word=20).describe()
    assert found["adapter"] == "seps" and found["model"] == "released" and found["impl"] == "seps_released"
    assert (found["max_word"], found["dense_max_word"], found["dense"]) == (90, 20, "used")
    assert (found["dtype"], found["device"]) == ("fp32", "cpu")
    assert found["revision"].startswith("sha256:") and len(found["revision"]) == 71
    json.dumps(found)


def test_other_weights_are_another_matcher(trained: Path, tmp_path: Path) -> None:
    import shutil

    copy = tmp_path / "released"
    shutil.copytree(trained, copy)
    assert matchers.model(copy).describe() == matchers.model(trained).describe()
    content = bytearray((copy / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (copy / "model.safetensors").write_bytes(content)
    assert matchers.model(copy).describe()["revision"] != matchers.model(trained).describe()["revision"]


def test_numbers_of_a_row_do_not_depend_on_the_rows_and_batches_beside_it(trained: Path) -> None:
    pool = scenes(100, 20).pool
    whole = matchers.model(trained, device="cpu").similarity(pool, range(20))
    for batch in (1, 3):
        matcher = matchers.model(trained, device="cpu", batch=batch)
        parts = np.concatenate([matcher.similarity(pool, range(n, n + 2)) for n in range(0, 20, 2)])
        assert np.abs(parts - whole).max() < 1e-5
    assert whole.dtype == np.float32 and whole.shape == (20, 60)


def test_texts_keep_their_columns_whatever_their_lengths_and_order(trained: Path) -> None:
    pool = scenes(100, 20, "none").pool
    matcher = matchers.model(trained, device="cpu")
    order = np.random.default_rng(0).permutation(60)
    shuffled = dataclasses.replace(pool, texts=tuple(pool.texts[n] for n in order))
    assert (
        np.abs(matcher.similarity(shuffled, range(20)) - matcher.similarity(pool, range(20))[:, order]).max()
        < 1e-5
    )


def test_an_images_dense_text_moves_its_own_row_alone_and_a_texts_its_own_column(trained: Path) -> None:
    matcher = matchers.model(trained, device="cpu")
    for dense, axis, place in (("image", 0, 3), ("text", 1, 10)):
        pool = scenes(100, 20, dense).pool
        before = matcher.similarity(pool, range(20))
        other = [*pool.dense]
        other[place] = "Nothing of this is there, it says."
        after = matcher.similarity(dataclasses.replace(pool, dense=tuple(other)), range(20))
        moved = np.flatnonzero(np.abs(before - after).max(1 - axis) > 1e-5)
        assert moved.tolist() == [place]


def test_laps_has_no_use_for_dense_texts_and_says_so(tmp_path: Path) -> None:
    matcher = matchers.model(train(tmp_path / "laps", epochs=1), device="cpu")
    assert matcher.describe()["dense"] == "ignored"
    found = [
        matcher.similarity(scenes(100, 20, dense).pool, range(20)) for dense in ("none", "image", "text")
    ]
    assert np.array_equal(found[0], found[1]) and np.array_equal(found[0], found[2])


def test_a_folder_that_is_no_checkpoint_says_what_it_lacks(trained: Path, tmp_path: Path) -> None:
    import shutil

    with pytest.raises(ModelError, match=r"there is no folder .*nowhere"):
        matchers.model(tmp_path / "nowhere")
    copy = tmp_path / "copy"
    shutil.copytree(trained, copy)
    (copy / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"is not a SEPS checkpoint: it has no tokenizer.json"):
        matchers.model(copy)
    shutil.copy(trained / "tokenizer.json", copy)
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "embed_size": 24}))
    with pytest.raises(ModelError, match=r"the weights in .* are not those of its config.json"):
        matchers.model(copy, device="cpu").similarity(scenes(0, 2).pool, range(2))
    (copy / "config.json").write_text("[]")
    with pytest.raises(ModelError, match=r"is not a SEPS config"):
        matchers.model(copy)
    with pytest.raises(ValueError, match=r"dense_max_word=0; it must be 1 or more"):
        matchers.model(trained, dense_max_word=0)
    Vocabulary.trained(f"word{n} or{n}" for n in range(500)).save(copy)
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"it is another checkpoint's"):
        matchers.model(copy, device="cpu").similarity(scenes(0, 2).pool, range(2))


def test_making_a_matcher_imports_no_torch() -> None:
    code = "import sys, adapters.seps.main; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_a_backbone_for_other_pictures_than_asked_for_is_refused() -> None:
    demo = str(ROOT / "assets" / "demo")
    with pytest.raises(SpecError, match=r"made for pictures of 96 pixels, image_size is 224"):
        configure("laps", demo, demo, image_size=224)


# ---------------------------------------------------------------- the command

COMMAND = ["train", "seps:impl=laps,backbone=scratch-16x1x2,text=scratch-16x1x2,patch=12,image_size=48"]
COMMAND += ["--data", "scene_retrieval:train=24,val=6,test=6", "--batch", "8", "--set", "lr=1e-3"]


def fovea(*words: str | Path, cwd: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [FOVEA, *map(str, words)], cwd=cwd, capture_output=True, text=True, timeout=300, env=alone()
    )


@pytest.mark.slow
def test_the_command_trains_prints_a_line_per_epoch_and_resumes(tmp_path: Path) -> None:
    done = fovea(*COMMAND, "--epochs", "2", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("epoch 1: loss ") and "rSum on dev" in lines[1] and "left" in lines[1]
    folder = tmp_path / lines[-1]
    assert folder.parent == tmp_path / "results/runs/training/scene_retrieval"
    files = {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "training.json",
        "training.jsonl",
        "curve.png",
    }
    assert files <= {path.name for path in folder.iterdir()}
    again = fovea(*COMMAND, "--epochs", "3", cwd=tmp_path)
    assert again.stdout.splitlines()[-1] == lines[-1] and "going on after step 30" in again.stdout
    evaluated = fovea("run", "scene_retrieval:test=6", f"seps:{folder}", cwd=tmp_path)
    assert evaluated.returncode == 0 and "rsum" in evaluated.stdout, evaluated.stderr


@pytest.mark.slow
def test_ctrl_c_says_how_to_resume(tmp_path: Path) -> None:
    words = [str(FOVEA), *COMMAND, "--epochs", "500"]
    process = subprocess.Popen(
        words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=alone()
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("epoch 1")
    process.send_signal(signal.SIGINT)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted. To resume: fovea train" in errors and "Traceback" not in said + errors


@pytest.mark.parametrize(
    "words, message",
    [
        (["hf:gpt2", "--data", "scene_retrieval"], "hf cannot be trained here; seps can"),
        (["nothing", "--data", "scene_retrieval"], "nothing cannot be trained here; seps can"),
        (["seps:runs/x", "--data", "scene_retrieval"], "what is 'runs/x'? Write key=value"),
        (["seps", "--data", "small_detail"], "small_detail has no knob 'split'"),
        (["seps", "--data", "scene_retrieval:split=test"], "leave split out"),
        (["seps", "--data", "scene_retrieval", "--set", "lr"], "write --set NAME=VALUE"),
    ],
)
def test_a_command_that_cannot_train_says_why(words: list[str], message: str, tmp_path: Path) -> None:
    done = fovea("train", *words, cwd=tmp_path)
    assert done.returncode == 2 and message in done.stderr, done.stderr
