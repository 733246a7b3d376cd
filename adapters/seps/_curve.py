"""What a training shows of itself: a line on the terminal, training.jsonl, a learning curve, TensorBoard.

Knows numbers and where they are written. Must not know: models, data, how the numbers came about.
"""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any


class Report:
    """Of one training, in its folder.

    steps: of the whole training. say: takes the line of an epoch. A terminal also gets a live line with the
    loss, the best rSum and the time left. live: False writes nothing but what is in the folder.
    """

    def __init__(
        self, folder: Path, steps: int, say: Callable[[str], None], *, live: bool, done: int = 0
    ) -> None:
        self.folder, self._say = folder, say
        self._bar: Any = None
        self._board: Any = None
        self._began, self._done, self._steps = time.monotonic(), done, steps
        if importlib.util.find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(folder / "tensorboard", purge_step=done + 1)
        if live:
            self._bar = _bar(done, steps)

    def step(self, number: int, numbers: Mapping[str, float]) -> None:
        """After step `number` (from 1) of the training."""
        if self._board is not None:
            for name, value in numbers.items():
                self._board.add_scalar(f"step/{name}", value, number)
        if self._bar is not None:
            bar, line = self._bar
            bar.update(line, completed=number, loss=f"loss {numbers['loss']:.3f}")

    def epoch(self, history: Sequence[Mapping[str, Any]], step: int) -> None:
        """After an epoch: its line, the log of all of them, their curve."""
        last = history[-1]
        best = max((row["rsum"] for row in history if row["rsum"] is not None), default=None)
        text = "".join(json.dumps(row) + "\n" for row in history)
        _write(self.folder / "training.jsonl", text.encode())
        draw(history, self.folder / "curve.png")
        if self._board is not None:
            for name in ("rsum", "loss", "lr"):
                if last.get(name) is not None:
                    self._board.add_scalar(f"epoch/{name}", last[name], last["epoch"])
            self._board.flush()
        if self._bar is not None:
            bar, line = self._bar
            bar.update(line, rsum="" if best is None else f"best rSum on dev {best:.1f}")
        per_step = (time.monotonic() - self._began) / max(1, step - self._done)
        found = "not finite" if last["rsum"] is None else f"{last['rsum']:.1f}"
        skipped = f", {last['skipped']} steps skipped" if last["skipped"] else ""
        if last["rsum"] is not None and last["rsum"] == best:
            found += ", the best"
        self._say(
            f"epoch {last['epoch'] + 1}: loss {last['loss']:.3f}, rSum on dev {found}, "
            f"{last['seconds']:.0f} s{skipped}, about {_clock(per_step * (self._steps - step))} left"
        )

    def close(self) -> None:
        if self._bar is not None:
            self._bar[0].stop()
        if self._board is not None:
            self._board.close()


def draw(history: Sequence[Mapping[str, Any]], path: Path) -> None:
    """The learning curve, PNG: mean loss of each epoch, and rSum on the validation split after it."""
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    left = figure.add_subplot()
    right = left.twinx()
    epochs = [row["epoch"] + 1 for row in history]
    left.plot(epochs, [row["loss"] for row in history], color="#888888", marker=".", label="loss")
    found = [(row["epoch"] + 1, row["rsum"]) for row in history if row["rsum"] is not None]
    if found:
        right.plot(*zip(*found, strict=True), color="#1f6fb4", marker="o", label="rSum on dev")
        best = max(found, key=lambda point: point[1])
        right.annotate(f"{best[1]:.1f}", best, textcoords="offset points", xytext=(0, 6), ha="center")
    left.margins(y=0.12)
    right.margins(y=0.12)
    left.set_xlabel("epoch")
    left.set_ylabel("mean loss")
    right.set_ylabel("rSum on dev (of 600)", color="#1f6fb4")
    left.locator_params(axis="x", integer=True)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120)
    _write(path, image.getvalue())


def _write(path: Path, content: bytes) -> None:
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    part.replace(path)


def _clock(seconds: float) -> str:
    """
    >>> _clock(59), _clock(3700)
    ('59 s', '1 h 2 min')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _bar(done: int, steps: int) -> Any:
    """A live line on a terminal; None elsewhere."""
    from rich.console import Console

    console = Console(stderr=True, highlight=False)
    if not console.is_terminal:
        return None
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    fields = [TextColumn("{task.fields[loss]}"), TextColumn("{task.fields[rsum]}")]
    bar = Progress(
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        *fields,
        TimeRemainingColumn(),
        console=console,
    )
    bar.start()
    return bar, bar.add_task("training", total=steps, completed=done, loss="", rsum="")
