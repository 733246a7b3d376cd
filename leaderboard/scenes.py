"""A picture of four samples: the whole image with the crop drawn in, the crop, and both answers.

Which four is a rule fixed before any run: the task's first three samples, and the first one that the
cropping method got wrong. Success and failure are both shown.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.store import Record, read_records
from harness.types import Sample, Task

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RIGHT, WRONG, BOX, TARGET = "#1a7f37", "#cf222e", "#0969da", "#e16f24"


def draw(task: Task, plain: Path, cropped: Path, picture: Path) -> None:
    """Write a PNG (1600 px wide) of the four samples. plain, cropped: run directories of both arms."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    before = {record.sample_id: record for record in read_records(plain)}
    after = {record.sample_id: record for record in read_records(cropped)}
    chosen = _chosen([sample for sample in task.samples if sample.id in before and sample.id in after], after)
    figure, axes = plt.subplots(2, len(chosen), figsize=(4 * len(chosen), 8.2), dpi=100, squeeze=False)
    for sample, (top, bottom) in zip(chosen, axes.T, strict=True):
        _scene(top, sample, before[sample.id], after[sample.id])
        _crop(bottom, sample, after[sample.id])
    figure.suptitle(
        "The first three samples, and the first that the method got wrong.  "
        "Blue: the crop. Orange: the detail asked about.",
        fontsize=12,
    )
    figure.tight_layout(h_pad=2.5)
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, metadata={"Software": None})
    plt.close(figure)


def _chosen(samples: list[Sample], after: dict[str, Record]) -> list[Sample]:
    first = samples[:3]
    wrong = [sample for sample in samples if sample not in first and not _right(sample, after[sample.id])]
    return (first + wrong[:1]) if wrong else samples[:4]


def _right(sample: Sample, record: Record) -> bool:
    return record.answer in sample.targets


def _scene(axes: Axes, sample: Sample, before: Record, after: Record) -> None:
    axes.imshow(sample.images[0].open())
    box = after.trace.get("box")
    if box:
        _rectangle(axes, box, BOX, 2.5)
    region: Any = sample.meta.get("region")
    if region:
        _rectangle(axes, [region[0] - 10, region[1] - 10, region[2] + 10, region[3] + 10], TARGET, 1.5)
    axes.set_title(sample.question, fontsize=11)
    _bare(axes)
    _answer(axes, f"whole image: {before.answer or '(nothing)'}", _right(sample, before))


def _crop(axes: Axes, sample: Sample, after: Record) -> None:
    box: Any = after.trace.get("box")
    picture = sample.images[0].crop(tuple(box)) if box else sample.images[0]
    axes.imshow(picture.open(), interpolation="nearest")
    _bare(axes)
    _answer(
        axes,
        f"with the crop: {after.answer or '(nothing)'}   (right: {', '.join(sample.targets)})",
        _right(sample, after),
    )


def _answer(axes: Axes, text: str, right: bool) -> None:
    axes.set_xlabel(f"{'✓' if right else '✗'} {text}", fontsize=12, color=RIGHT if right else WRONG)


def _rectangle(axes: Axes, box: Any, color: str, width: float) -> None:
    from matplotlib.patches import Rectangle

    x1, y1, x2, y2 = box
    for edge, line in (("white", width + 2), (color, width)):  # readable on any ground
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=edge, linewidth=line))


def _bare(axes: Axes) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
