"""Training LAPS and SEPS: `fovea train seps:impl=...,backbone=... --data TASK` (docs/retrieval.md).

Knows the recipe, its schedule, several processes, and how a training that was stopped goes on. Must not know:
which benchmark it trains on, how scores are computed (`similarity.py`), how pictures and texts become tensors
(`data.py`).

    AdamW (.9, .999), weight decay 1e-4 everywhere; towers at a tenth of the learning rate; x .3 at epochs 9,
    15, 20, 25 of 30; gradients clipped to a norm of 2; in epoch 0 the sum over negatives, its weight rising
    from 0 to 1, then the hardest negative. (CrossmodalGroup/LAPS: train.py, lib/vse.py; SEPS, arXiv
    2511.01390, section 4.)

Otherwise than the released code: the epoch is chosen on the validation split, never on the test split; a step
whose loss or gradient is not finite is left out and counted, not taken with a gradient of 0; `batch` counts
the pairs of all processes together, so that their number does not change the training.

All that is random follows from (seed, epoch, index) and (seed, step): nothing of it has to be kept, and a
training that was killed continues to the same weights, bit for bit on a CPU.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from adapters.seps import data, loss
from adapters.seps import model as architecture
from adapters.seps._build import checkpoint_of, model_of, vocabulary_of
from adapters.seps._curve import Report
from adapters.seps._plan import RECIPES, Plan, Recipe, measures, plan_of, typed
from adapters.seps._processes import Processes, processes
from adapters.seps._scorer import Scorer, arithmetic, limit_of, mask_of
from adapters.seps.data import Batch, Vocabulary
from adapters.seps.model import SEPS
from harness.checkpoints import located, pick_device
from harness.errors import DataError, SpecError, StoreError
from harness.provenance import provenance
from harness.types import Response, Retrieval, Sample, digest

TRAININGS = Path("results/runs/training")
STATE = Path("last/state.safetensors")
SAVE_EVERY = 600.0
"""Seconds that a kill may cost; the state is also kept after every epoch."""

DEV_ROWS = 64
DROPOUT, MASKS = 3, 4
"""Streams of random numbers: of the towers, another for each process; of the masks, the same for all."""


def train(
    spec: Mapping[str, str],
    train: Retrieval,
    val: Retrieval,
    *,
    preset: Literal["released", "paper"] | None = None,
    settings: Mapping[str, Any] | None = None,
    out: Path | None = None,
    device: str = "auto",
    workers: int | None = None,
    say: Callable[[str], None] = print,
) -> Path:
    """Train the model of `spec` on `train`, choose its epoch by rSum on `val`; returns the checkpoint's
    folder.

    spec: impl, backbone, text, and fields of `Config`, as text. settings: fields of `Recipe`, over the
    preset's. out: by default a folder named by all that decides the weights. A folder that holds the same
    training is continued, from its last epoch or the last ten minutes. workers: processes that load data [8
    on a GPU, none on a CPU]. Under `accelerate launch` the processes share each batch. SpecError, DataError
    and ModelError for what cannot be trained, StoreError for a folder that holds something else.
    """
    plan = plan_of(spec, preset)
    if preset not in RECIPES:
        raise SpecError(f"preset={preset} does not exist; there are released, paper")
    given = typed(Recipe, settings or {}, "a recipe")
    recipe = Recipe(**{**RECIPES[preset], **given})
    if recipe.ratio_weight is None:
        recipe = dataclasses.replace(
            recipe, ratio_weight=1.0 if plan.impl == "seps_paper" else loss.RELEASED_WEIGHT
        )
    check(plan, train, val, recipe)
    identity = _identity(plan, recipe, train, val)
    folder = out or TRAININGS / train.name / f"{plan.impl}-{digest(identity)[:8]}"
    pick = pick_device(device)
    if pick.startswith("cuda:"):
        torch.cuda.set_device(pick)
    with processes(pick) as ours, _only(folder, ours):
        resumed = _resumed(folder, identity)
        vocabulary = vocabulary_of(plan, folder, train, ours, fresh=resumed is None)
        torch.manual_seed(recipe.seed)
        model = model_of(plan, vocabulary, fill=resumed is None)
        training = Training(model, vocabulary, recipe, plan, ours, folder, identity)
        if resumed is not None:
            training.restore(*resumed)
            if ours.first:
                say(f"{folder}: going on after step {training.state.step:,}")
        elif ours.first:
            training.save()  # so that there is a state wherever there is a checkpoint
        training.run(train, val, preset, workers, say)
        if ours.first:
            say(str(folder))
    return folder


def check(plan: Plan, train: Retrieval, val: Retrieval, recipe: Recipe) -> None:
    """Refuse what cannot be trained, before anything is loaded."""
    if plan.impl != "laps" and train.pool.dense_of == "none":
        raise SpecError(
            f"impl={plan.impl} trains with dense texts, and {train.spec or train.name} brings none: take a "
            "protocol that has them (protocol=candidate), or impl=laps"
        )
    if len(train.pool.texts) < recipe.batch:
        raise DataError(
            f"{train.name} has {len(train.pool.texts):,} texts, fewer than a batch of {recipe.batch}"
        )
    first, other = ({picture.digest for picture in task.pool.images[:50]} for task in (train, val))
    if same := first & other:
        raise DataError(
            f"{len(same)} images are in the training and in the validation split; take another split "
            "for one of them"
        )


# ---------------------------------------------------------------- one step


@dataclass(frozen=True)
class Moment:
    """What of a step changes with time: its number, the weight of the alignment loss, which negatives
    count."""

    step: int
    warm: float
    hardest: bool


class Step(nn.Module):
    """A batch's loss, of all processes together: the whole that DDP wraps.

    Returns the loss and, without gradient, (alignment, ratio term, share of patches kept for texts, for dense
    texts); alignment as it is before `warm`, ratio before its weight.
    """

    def __init__(self, model: SEPS, recipe: Recipe, processes: Processes) -> None:
        super().__init__()
        self.model, self._recipe, self._processes = model, recipe, processes

    def forward(self, batch: Batch, moment: Moment) -> tuple[Tensor, Tensor]:
        recipe, processes, model = self._recipe, self._processes, self.model
        gather, device = processes.gather, batch.pixels.device
        _seed(DROPOUT, recipe.seed, moment.step, processes.rank)
        with arithmetic(device, recipe.precision):
            images = model.encode_images(data.normalised(batch.pixels))
            texts = self._encoded(batch.ids, batch.lengths)
            dense = None
            if batch.dense_ids is not None and batch.dense_lengths is not None:
                dense = self._encoded(batch.dense_ids, batch.dense_lengths)
        lengths = gather(batch.lengths)
        dense_lengths = None if batch.dense_lengths is None else gather(batch.dense_lengths)
        _seed(MASKS, recipe.seed, moment.step, 0)
        scores, shares = model(
            gather(images.float()),
            gather(texts),
            lengths,
            None if dense is None else gather(dense),
            dense_lengths,
        )
        align = loss.hinge(scores, gather(batch.images), margin=recipe.margin, hardest=moment.hardest)
        ratio = self._ratio(shares.sparse, shares.dense)
        total = moment.warm * align + cast(float, recipe.ratio_weight) * ratio
        none = align.new_tensor(math.nan)
        parts = [align, ratio, shares.sparse, none if shares.dense is None else shares.dense]
        return total, torch.stack([part.detach().float() for part in parts])

    def _encoded(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Words of texts, padded to the longest text of all processes."""
        words = self.model.encode_texts(ids, mask_of(ids, lengths)).float()
        more = self._processes.longest(words.shape[1]) - words.shape[1]
        return nn.functional.pad(words, (0, 0, 0, more)) if more else words

    def _ratio(self, sparse: Tensor, dense: Tensor | None) -> Tensor:
        config = self.model.config
        if config.impl == "seps_paper":
            sparse_weight, dense_weight = self._recipe.ratio_lambdas
            weights = (sparse_weight, dense_weight)
            return loss.ratio_paper(config.sparse_ratio, sparse, dense, weights=weights)
        return loss.ratio_released(config.sparse_ratio, sparse, dense)


def _seed(stream: int, seed: int, step: int, process: int) -> None:
    """Let torch's random numbers follow from where the training stands, so that none of their state is
    kept."""
    number = np.random.SeedSequence((stream, seed, step, process)).generate_state(1, np.uint64)[0]
    torch.manual_seed(int(number) >> 1)


def optimizer_of(model: SEPS, recipe: Recipe, scratch: Sequence[str] = ()) -> torch.optim.AdamW:
    """AdamW over all parameters, in groups that carry their share of the rate. scratch: towers (`vision`,
    `text`) that begin with nothing."""
    towers = {"vision": model.towers.vision, "text": model.towers.text}
    shares = {name: 1.0 if name in scratch else recipe.tower_lr for name in towers}
    inside = {id(weight) for tower in towers.values() for weight in tower.parameters()}
    others = [weight for weight in model.parameters() if id(weight) not in inside]
    groups = [
        {"params": others, "share": 1.0},
        *({"params": list(tower.parameters()), "share": shares[name]} for name, tower in towers.items()),
    ]
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=(0.9, 0.999), weight_decay=recipe.weight_decay)


# ---------------------------------------------------------------- the training


@dataclass
class State:
    """Where a training stands. step: steps taken, skipped ones included. sums: of the epoch's numbers so far,
    over `counted` steps. history: a row per epoch. best: the best rSum on dev."""

    step: int = 0
    skipped: int = 0
    sums: list[float] = field(default_factory=lambda: [0.0] * 5)
    counted: int = 0
    best: float | None = None
    best_epoch: int | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    scaler: dict[str, Any] = field(default_factory=dict)


class Training:
    """A model, its optimizer, and where they stand."""

    def __init__(
        self,
        model: SEPS,
        vocabulary: Vocabulary,
        recipe: Recipe,
        plan: Plan,
        processes: Processes,
        folder: Path,
        identity: Mapping[str, Any],
    ) -> None:
        self.model, self.vocabulary, self.recipe, self.plan = model, vocabulary, recipe, plan
        self.processes, self.folder, self.identity = processes, folder, identity
        model.to(processes.device).train()
        scratch = [
            name for name, tower in (("vision", plan.backbone), ("text", plan.text)) if measures(tower)
        ]
        self.optimizer = optimizer_of(model, recipe, scratch)
        self.scaler = torch.amp.GradScaler(processes.device.type, enabled=recipe.precision == "fp16")
        self.step = Step(model, recipe, processes)
        self.wrapped: nn.Module = (
            processes.accelerator.prepare(self.step) if processes.world > 1 else self.step
        )
        self.state = State()
        if recipe.batch % processes.world:
            raise SpecError(
                f"a batch of {recipe.batch} cannot be shared by {processes.world} processes equally"
            )

    # -- steps

    def take(self, batch: Batch, steps: int) -> float:
        """One step with `batch`; `steps` make an epoch. The loss; a step that is not finite changes no
        weight."""
        state, recipe = self.state, self.recipe
        epoch = state.step // steps
        for group in self.optimizer.param_groups:
            group["lr"] = recipe.rate(epoch) * group["share"]
        moment = Moment(state.step, recipe.warm(state.step, steps), epoch >= recipe.sum_epochs)
        value, parts = self.wrapped(batch.to(self.processes.device), moment)
        state.step += 1
        if not self.processes.all_finite(value):
            state.skipped += 1
            return math.nan
        self.scaler.scale(value).backward()
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip or math.inf)
        good = bool(torch.isfinite(norm))
        if good or self.scaler.is_enabled():  # the scaler leaves it out by itself, and takes a smaller scale
            self.scaler.step(self.optimizer)
            self.scaler.update()
        state.skipped += not good
        self.optimizer.zero_grad(set_to_none=True)
        state.counted += 1
        numbers: list[float] = [float(value.detach()), *parts.tolist()]
        state.sums = [total + number for total, number in zip(state.sums, numbers, strict=True)]
        return numbers[0]

    def run(
        self,
        train: Retrieval,
        val: Retrieval,
        preset: str | None,
        workers: int | None,
        say: Callable[[str], None],
    ) -> None:
        """All steps that are left, with a look at the validation split after each epoch."""
        recipe, state, processes = self.recipe, self.state, self.processes
        steps = len(train.pool.texts) // recipe.batch
        total = steps * recipe.epochs
        if state.step >= total:
            if processes.first:
                say(f"{self.folder}: its {recipe.epochs} epochs are over; for more say --epochs")
            return
        on_gpu = processes.device.type == "cuda"
        pairs = self._pairs(train)
        scorer = Scorer(self.model, self.vocabulary, precision=recipe.precision)
        about = self._about(train, val, preset)
        if val.leaks and processes.first:
            say(f"{val.spec or val.name} tells each query something of its answer; this epoch's choice leaks")
        batches = data.loader(
            pairs,
            self.vocabulary,
            batch=recipe.batch,
            seed=recipe.seed,
            epochs=range(state.step // steps, recipe.epochs),
            skip=state.step % steps,
            rank=processes.rank,
            world=processes.world,
            workers=(min(8, os.cpu_count() or 1) if on_gpu else 0) if workers is None else workers,
            pin=on_gpu,
        )
        report = None
        if processes.first:
            report = Report(self.folder, total, say, live=True, done=state.step)
        saved = began = time.monotonic()
        try:
            for batch in batches:
                value = self.take(batch, steps)
                if report is not None:
                    report.step(state.step, {"loss": value, "lr": recipe.rate((state.step - 1) // steps)})
                if state.step % steps == 0:
                    self._end_epoch(val, scorer, steps, time.monotonic() - began, about, report)
                    saved = began = time.monotonic()
                elif processes.first and time.monotonic() - saved > SAVE_EVERY:
                    self.save()
                    saved = time.monotonic()
        finally:
            if report is not None:
                report.close()

    def _pairs(self, train: Retrieval) -> data.Pairs:
        pool, dense, dense_of = train.pool, None, None
        if self.plan.impl != "laps":
            unique = list(dict.fromkeys(pool.dense))
            number = {text: place for place, text in enumerate(unique)}
            of = [number[text] for text in pool.dense]
            dense, dense_of = self.vocabulary.pack(unique), of
            if pool.dense_of == "image":
                dense_of = [of[image] for image in train.owner]
        return data.Pairs(
            pool.images,
            train.owner,
            self.vocabulary,
            self.vocabulary.pack(pool.texts),
            dense,
            dense_of,
            side=self.model.config.image_size,
            limit=limit_of(self.model),
            seed=self.recipe.seed,
            augment=self.recipe.augment,
            keep=self.recipe.keep,
        )

    # -- epochs

    def _end_epoch(
        self,
        val: Retrieval,
        scorer: Scorer,
        steps: int,
        seconds: float,
        about: dict[str, Any],
        report: Report | None,
    ) -> None:
        state = self.state
        matrix = self._matrix(val, scorer)
        if report is None:
            self.processes.accelerator.wait_for_everyone()
            return
        epoch = state.step // steps - 1
        numbers = recalls(val, matrix)
        means = [total / max(1, state.counted) for total in state.sums]
        names = ("loss", "align", "ratio", "kept", "kept_dense")
        row = {
            "epoch": epoch,
            **{name: None if math.isnan(mean) else mean for name, mean in zip(names, means, strict=True)},
            "lr": self.recipe.rate(epoch),
            "skipped": state.skipped,
            "seconds": round(seconds, 1),
            **numbers,
        }
        state.history.append(row)
        state.sums, state.counted = [0.0] * len(names), 0
        found = numbers["rsum"]
        if found is not None and (state.best is None or found > state.best):
            state.best, state.best_epoch = found, epoch
            architecture.save(self.model, self.folder)
        about |= {
            "best": {"epoch": state.best_epoch, "rsum": state.best},
            "epochs": epoch + 1,
            "skipped": state.skipped,
        }
        _write_json(self.folder / "training.json", about)
        self.save()
        report.epoch(state.history, state.step)
        self.processes.accelerator.wait_for_everyone()

    def _matrix(self, val: Retrieval, scorer: Scorer) -> np.ndarray[Any, Any]:
        """Similarities of the validation split, its rows shared by the processes."""
        scorer.forget()
        images, texts = len(val.pool.images), len(val.pool.texts)
        matrix = torch.zeros(images, texts)
        for start in range(self.processes.rank * DEV_ROWS, images, self.processes.world * DEV_ROWS):
            rows = range(start, min(start + DEV_ROWS, images))
            matrix[rows.start : rows.stop] = torch.from_numpy(scorer.similarity(val.pool, rows))
        scorer.forget()
        return self.processes.sum(matrix).numpy()

    # -- what is kept

    def save(self) -> None:
        """The state, as one file: it is the old one or the new one, never half of either."""
        from safetensors.torch import save_file

        tensors = {f"model.{name}": weight for name, weight in self.model.state_dict().items()}
        for name, weight in self.model.named_parameters():
            for key, value in self.optimizer.state.get(weight, {}).items():
                tensors[f"{key}.{name}"] = value
        self.state.scaler = self.scaler.state_dict()
        described = {"state": dataclasses.asdict(self.state), "identity": self.identity}
        path = self.folder / STATE
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(plain, part, metadata={"training": json.dumps(described)})
        part.replace(path)

    def restore(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """As it was when `save` wrote this."""
        self.state = State(**state)
        self.model.load_state_dict(
            {
                name.removeprefix("model."): value
                for name, value in tensors.items()
                if name.startswith("model.")
            }
        )
        for name, weight in self.model.named_parameters():
            keys = [key for key in ("step", "exp_avg", "exp_avg_sq") if f"{key}.{name}" in tensors]
            if keys:
                self.optimizer.state[weight] = {
                    key: tensors[f"{key}.{name}"].to("cpu" if key == "step" else weight.device)
                    for key in keys
                }
        if self.state.scaler:
            self.scaler.load_state_dict(self.state.scaler)

    def _about(self, train: Retrieval, val: Retrieval, preset: str | None) -> dict[str, Any]:
        """training.json: all that decided these weights, and what they came to."""
        return {
            "identity": self.identity,
            "preset": preset,
            "recipe": dataclasses.asdict(self.recipe),
            "data": _named(train),
            "chosen_on": {**_named(val), "leaks": val.leaks, "by": "rSum"},
            "processes": self.processes.world,
            "device": self.processes.device.type,
            "provenance": provenance(),
        }


def recalls(task: Retrieval, matrix: np.ndarray[Any, Any]) -> dict[str, float | None]:
    """rSum and the six recalls of a similarity matrix; None where it is not finite."""
    names = ("rsum", *(f"{way}_r{k}" for way in ("i2t", "t2i") for k in (1, 5, 10)))
    if not np.isfinite(matrix).all():
        return dict.fromkeys(names)
    found = task.rank(matrix, task.owner, task.folds)
    samples = [Sample(str(number), meta=meta) for number, meta in enumerate(found)]
    metric = task.metrics[0]
    numbers = metric.reduce(metric.measure([Response()] * len(samples), samples))
    return {name: numbers.get(name) for name in names}


# ---------------------------------------------------------------- folders


def _identity(plan: Plan, recipe: Recipe, train: Retrieval, val: Retrieval) -> dict[str, Any]:
    """All that decides a training's weights. Its length does not: more epochs go on from fewer."""
    rules = {key: value for key, value in dataclasses.asdict(recipe).items() if key != "epochs"}
    towers = {
        name: None if measures(tower) else located(checkpoint_of(tower), None)[2]
        for name, tower in (("vision", plan.backbone), ("text", plan.text))
    }
    asked = {**dataclasses.asdict(plan), "knobs": dict(plan.knobs)}
    found = {"model": asked, "towers": towers, "recipe": rules, "train": _named(train), "val": _named(val)}
    for task in ("train", "val"):
        found[task].pop("spec")
    return cast(dict[str, Any], json.loads(json.dumps(found)))


def _named(task: Retrieval) -> dict[str, Any]:
    sizes = {"images": len(task.pool.images), "texts": len(task.pool.texts)}
    names = {
        "name": task.name,
        "version": task.version,
        "protocol": task.protocol,
        "fingerprint": task.fingerprint,
    }
    return {**names, **sizes, "spec": task.spec}


@contextlib.contextmanager
def _only(folder: Path, processes: Processes) -> Iterator[None]:
    """Hold the folder against other trainings."""
    from filelock import FileLock, Timeout

    if not processes.first:
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock", timeout=0)
        lock.acquire()
    except Timeout:
        raise StoreError(
            f"{folder} is being trained by another process; wait for it, or choose another --out"
        ) from None
    except OSError as error:
        raise StoreError(f"{folder} cannot be written: {error.strerror or error}") from None
    with lock:
        yield


def _resumed(folder: Path, identity: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
    """The state that a training of this identity left; None where there is none."""
    from safetensors import SafetensorError, safe_open

    path = folder / STATE
    if not path.is_file():
        if (folder / "config.json").exists() or (folder / "model.safetensors").exists():
            raise StoreError(
                f"{folder} holds a checkpoint and no {STATE}: it cannot go on; choose another --out"
            )
        return None
    try:
        with safe_open(path, "pt") as file:
            described = json.loads((file.metadata() or {})["training"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        before, state = described["identity"], described["state"]
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise StoreError(f"{path} cannot be read ({error}); remove {folder} to begin again") from None
    if before != identity:
        raise StoreError(
            f"{folder} holds another training ({'; '.join(_differences(before, identity))}); choose another "
            "--out"
        )
    return state, tensors


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], where: str = "") -> list[str]:
    found = []
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += _differences(old, new, f"{where}{key}.")
        elif old != new:
            found.append(f"{where}{key} was {old}, is {new}")
    return found


def _write_json(path: Path, value: Any) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    part.replace(path)
