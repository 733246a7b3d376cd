"""A picture per sample of a run: what was asked, where the method looked, what came of it.

From the run's records and its traces; pixels come from where the record says they lie, or from the task,
and only if they are those of the run (equal digests). It knows maps, boxes and selections by the names of
`harness/traces.py`, and parts of a picture by those of `_parts.py`; which method made them, it does not
know.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.errors import DataError, FoveaError, PictureError, StoreError
from harness.pictures import File, Member, Picture
from harness.store import Record, file_name, read_records, read_run, read_trace
from harness.traces import Arrays, trace_arrays
from harness.types import Metric, Retrieval, Task
from leaderboard import _parts, _patches
from leaderboard._page import (
    BOX,
    DIM,
    EDGE,
    PANEL,
    PARTLY,
    RIGHT,
    TARGET,
    WIDTH,
    WRONG,
    Page,
    bare,
    frame,
    quiet,
    small,
    title,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL import Image

FIRST = 8


@dataclass(frozen=True)
class Verdict:
    """How good one answer is by the run's first number: `value`, None where one sample has none."""

    name: str = ""
    value: float | None = None
    higher_is_better: bool = True

    @property
    def right(self) -> bool:
        return self.value is not None and (self.value >= 1 if self.higher_is_better else self.value <= 0)

    @property
    def wrong(self) -> bool:
        return self.value is not None and (self.value <= 0 if self.higher_is_better else self.value > 0)


class Judge:
    """Reads a record's verdict from its counts; says nothing where the metric needs the whole corpus."""

    def __init__(self, stored: Mapping[str, Any], metric_from: Callable[[Mapping[str, Any]], Metric]) -> None:
        self._metric: Metric | None = None
        if stored["metrics"]:
            self._key, self._number = stored["metrics"][0]["key"], stored["primary"]
            try:
                self._metric = metric_from(stored["metrics"][0])
            except FoveaError:
                return  # its file or prompt has moved

    def __call__(self, record: Record) -> Verdict:
        metric = self._metric
        if metric is None or self._key not in record.measures:
            return Verdict()
        values = metric.reduce([record.measures[self._key]])
        # F1 of one sample says little: a right "no" has none.
        name = "accuracy" if "accuracy" in values else self._number
        return Verdict(name, values.get(name), bool(metric.higher_is_better.get(name, True)))


def choose(run: Path, ids: Sequence[str], keep: Callable[[Record], bool]) -> list[Record]:
    """The records of these ids, or of the first eight samples asked for that `keep` holds of.

    Raises DataError for an id that the run has no record of.
    """
    if ids:
        wanted = dict.fromkeys(ids)
        found = [record for record in read_records(run) if record.sample_id in wanted]
        known = {record.sample_id for record in found}
        for one in wanted:
            if one not in known:
                example = next((record.sample_id for record in read_records(run)), None)
                raise DataError(f"{run} has no record of {one!r}; its ids look like {example!r}")
    else:
        found = [record for record in read_records(run) if keep(record)]
    place = {sample: number for number, sample in enumerate(ids or read_run(run)["selection"]["ids"])}
    found = sorted(
        {record.key: record for record in found if record.sample_id in place}.values(),
        key=lambda record: (record.repeat, place[record.sample_id]),
    )
    return found if ids else found[:FIRST]


def show(run: Path, record: Record, folder: Path, judge: Judge, picture: Callable[[Record], Picture]) -> Path:
    """Write one record's PNG (1600 px wide) and say where. Raises FoveaError where its pixels or its trace
    cannot be had, or the folder cannot be written."""
    kept = read_trace(run, record.key)
    arrays = {**trace_arrays(record.trace), **(kept or {})}
    image = picture(record).open()
    figure = draw(record, arrays, image, judge(record), read_run(run))
    path = folder / f"{file_name(record.key)}.png"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with quiet():
            figure.savefig(path, metadata={"Software": None})
    except OSError as error:
        raise StoreError(f"{path} cannot be written: {error.strerror}. Choose a folder with --out") from None
    return path


# ---------------------------------------------------------------- the pixels


class Pictures:
    """Finds a record's pictures again. task: makes the run's task, when it is first needed."""

    def __init__(self, task: Callable[[], Task | Retrieval]) -> None:
        self._task = task

    def __call__(self, record: Record, place: int = 0) -> Picture:
        """The picture at that place. Raises PictureError, saying what is missing."""
        if not record.pictures:
            raise PictureError("it has no picture")
        described = record.pictures[place]
        label = str(described.get("source"))
        if "digest" not in described:
            raise PictureError(f"{label} could not be read during the run either")
        found = _where_it_was(described)
        if found is None:
            if isinstance(self._images, FoveaError):
                raise PictureError(f"{label} is not there any more, nor can its task be made: {self._images}")
            images = self._images.get(record.sample_id, ())
            found = images[place] if place < len(images) else None
        if found is None:
            raise PictureError(
                f"{label} is not there any more, and the task as made now has no such sample; "
                "put the file back, or name the run's task with --task"
            )
        if found.digest != described["digest"]:
            raise PictureError(
                f"{label} is not the picture of the run: its pixels have changed. Put the file back, or name "
                "the run's task with --task"
            )
        return found

    @cached_property
    def _images(self) -> Mapping[str, Sequence[Picture]] | FoveaError:
        """Those of the task's samples, by their ids; or why there is no task, which is tried once."""
        try:
            task = self._task()
        except FoveaError as error:
            return error
        if isinstance(task, Retrieval):  # its queries are called by number
            return {f"image:{number}": (image,) for number, image in enumerate(task.pool.images)}
        return {sample.id: sample.images for sample in task.samples}


def _where_it_was(described: Mapping[str, Any]) -> Picture | None:
    """A file, or a member of an archive, at the place that the record names."""
    path = Path(str(described["source"]))
    crops = tuple((x1, y1, x2, y2) for x1, y1, x2, y2 in described.get("crops", ()))
    try:
        if path.is_file():
            return Picture(File(path), crops)
        for archive in path.parents:
            if archive.is_file():
                return Picture(Member(archive, path.relative_to(archive).as_posix()), crops)
    except OSError:  # a label that is no path
        pass
    return None


# ---------------------------------------------------------------- the drawing


def draw(
    record: Record, arrays: Arrays, image: Image.Image, verdict: Verdict, stored: Mapping[str, Any]
) -> Figure:
    """The picture with its map, crop and region; the crop beside it, or the selections; the words below.
    Of a caption put together from parts: the picture with the parts, the words beside it, the parts below.

    arrays: as `harness.traces.trace_arrays`, of which each may be missing. stored: the run's header.
    """
    page, top = Page(), 50
    words = _words(record, verdict, stored, _notes(record, arrays))
    parts = _parts.read(record.trace)
    if parts is not None:
        y = _in_parts(page, top, record, arrays, image, parts, words)
    else:
        page.panel(EDGE, top, 740, PANEL, lambda axes: _scene(axes, record, arrays, image))
        crop = _crop(arrays, image)
        if crop is not None:
            page.panel(WIDTH - EDGE - 740, top, 740, PANEL, lambda axes: _closer(axes, crop))
        elif "selected_offsets" in arrays:
            page.panel(WIDTH - EDGE - 690, top, 690, PANEL - 60, lambda axes: _steps(axes, arrays))
        y = top + PANEL + 70
        for name, text, colour in words:
            page.text(EDGE, y, name, 12, DIM)
            y = page.paragraph(170, y, WIDTH - EDGE - 170, text, 13, colour) + 8
    return page.figure(y + EDGE // 2)


def _in_parts(
    page: Page,
    top: float,
    record: Record,
    arrays: Arrays,
    image: Image.Image,
    parts: _parts.Parts,
    words: Sequence[tuple[str, str, str]],
) -> float:
    """The picture and what is said of all of it; below, a card per part. Where the page ends."""

    def scene(axes: Axes) -> None:
        _scene(axes, record, arrays, image, parts)

    def told(x: float, y: float, items: Sequence[tuple[str, str, str]], size: float, lines: int) -> float:
        for name, text, colour in items:
            if name:
                page.text(x, y, name, 10, DIM)
            y = page.paragraph(x, y + 19 if name else y - 8, 740, text, size, colour, lines) + 10
        return y

    page.panel(EDGE, top, 740, PANEL, scene)
    high = min(PANEL, 740 * image.height / image.width) + (40 if "map_0" in arrays else 0)
    captions = [(name, text, "#424a53") for name, text in reversed(parts.captions)]
    right = told(WIDTH - EDGE - 740, top - 24, [*words[:-1], *captions], 12.5, 14)
    aside = [(name, text, "black") for name, text in parts.words]
    warned = [("", text, PARTLY) for text in parts.warnings[: _patches.WARNINGS]]
    if more := len(parts.warnings) - len(warned):
        warned.append(("", f"… and {more:,} more", PARTLY))
    warned[:1] = [("warnings", text, colour) for _, text, colour in warned[:1]]
    left = told(EDGE, top + high + 20, [*aside, *warned, *words[-1:]], 11.5, 3)
    return _patches.cards(page, max(left, right) + 20, parts, image)


def _scene(
    axes: Axes, record: Record, arrays: Arrays, image: Image.Image, parts: _parts.Parts | None = None
) -> None:
    """The whole picture; over it what there is of the map or the selections, the parts, the crop and the
    region."""
    width, height = image.size
    axes.imshow(small(image), extent=(0, width, height, 0))
    told = []
    if "map_0" in arrays:
        maps = sum(name.startswith("map_") for name in arrays)
        told.append(", ".join([_source(record), *([f"1 of {maps}"] if maps > 1 else [])]))
        _heat(axes, arrays["map_0"].astype(np.float32), arrays["rectangle"][0], "bilinear")
        _outline(axes, arrays["rectangle"][0], (width, height))
    elif "selected_cells" in arrays:
        told.append("how often each image token was selected")
        cells, rectangle = arrays["selected_cells"], arrays["selected_rectangle"]
        often = np.bincount(arrays["selected"], minlength=int(cells.max()) + 1)
        _heat(axes, often[cells].astype(np.float32), rectangle, "nearest")
        _outline(axes, rectangle, (width, height))
    axes.set(xlim=(0, width), ylim=(height, 0))
    if parts is not None:
        told.append(_patches.outline(axes, parts, image.size))
    if "box" in arrays:
        told.append("blue: the crop")
        frame(axes, arrays["box"], BOX, 2.5)
    region: Any = record.meta.get("region")
    if isinstance(region, Sequence) and len(region) == 4:
        told.append("orange: the detail")
        frame(axes, [region[0] - 4, region[1] - 4, region[2] + 4, region[3] + 4], TARGET, 1.5)
    axes.set_anchor("NW")
    title(axes, "   ·   ".join([f"{width} × {height} px", *told]))
    bare(axes)


def _source(record: Record) -> str:
    """How the map was made, as far as the trace says."""
    locate, layer = record.trace.get("locate"), record.trace.get("layer")
    name = locate if isinstance(locate, str) else "map"
    return f"{name}, layer {layer}" if isinstance(layer, int) else name


def _heat(axes: Axes, values: Any, rectangle: Any, interpolation: str) -> None:
    """Values (rows, cols) over the pixels that they cover, clearer where they are low; their scale below."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    shown = np.ma.masked_invalid(values)
    low, high = (float(shown.min()), float(shown.max())) if shown.count() else (0.0, 1.0)
    scale = Normalize(low, high if high > low else low + 1)
    part = np.asarray(scale(shown).filled(0))
    x1, y1, x2, y2 = rectangle
    axes.imshow(
        shown,
        extent=(x1, x2, y2, y1),
        cmap="inferno",
        norm=scale,
        alpha=0.2 + 0.55 * part,
        interpolation=interpolation,
    )
    below = axes.inset_axes((0, -0.05, 1, 0.02))
    bar = axes.figure.colorbar(ScalarMappable(scale, "inferno"), cax=below, orientation="horizontal")
    bar.set_ticks([low, high] if high > low else [low])
    labels = bar.ax.set_xticklabels([f"{tick:.3g}" for tick in bar.get_ticks()], fontsize=10, color=DIM)
    labels[0].set_horizontalalignment("left")
    labels[-1].set_horizontalalignment("right" if len(labels) > 1 else "left")
    bar.outline.set_visible(False)


def _outline(axes: Axes, rectangle: Any, size: tuple[int, int]) -> None:
    """The edge of what the model saw, where that is not the whole picture."""
    from matplotlib.patches import Rectangle

    x1, y1, x2, y2 = rectangle
    if x1 > 0.5 or y1 > 0.5 or x2 < size[0] - 0.5 or y2 < size[1] - 0.5:
        style: Any = {"fill": False, "edgecolor": "white", "linewidth": 1.5, "linestyle": (0, (4, 4))}
        axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, **style))


def _crop(arrays: Arrays, image: Image.Image) -> Image.Image | None:
    """The pixels of the crop, unless it is the whole picture or nothing."""
    if "box" not in arrays:
        return None
    x1, y1, x2, y2 = (round(float(edge)) for edge in arrays["box"])
    if x2 <= x1 or y2 <= y1 or (x1, y1, x2, y2) == (0, 0, *image.size):
        return None
    return image.crop((x1, y1, x2, y2))


def _closer(axes: Axes, crop: Image.Image) -> None:
    axes.imshow(small(crop), interpolation="nearest" if max(crop.size) < PANEL else "antialiased")
    axes.set_anchor("NW")
    title(axes, f"the crop, {crop.width} × {crop.height} px", BOX)
    bare(axes)


def _steps(axes: Axes, arrays: Arrays) -> None:
    """How many image tokens each decoded token selected."""
    from matplotlib.ticker import MaxNLocator

    counts = np.diff(arrays["selected_offsets"])
    axes.plot(np.arange(2, len(counts) + 2), counts, color=BOX, linewidth=1.8, marker="o", markersize=3)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("decoded token", fontsize=11, color=DIM)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#d1d9e0", linewidth=0.8)
    title(axes, "image tokens selected per decoded token")


# ---------------------------------------------------------------- the words


def _notes(record: Record, arrays: Arrays) -> list[str]:
    """What the drawing cannot say."""
    notes = []
    if "map_0" not in arrays and "grid" in record.trace and "selected" not in record.trace:
        notes.append("the map was not kept; a run with --save-traces keeps it")
    if "map_0" in arrays and (lost := int((~np.isfinite(arrays["map_0"])).sum())):
        notes.append(f"{lost} of {arrays['map_0'].size} cells of the map are no finite number")
    if "selected_offsets" in arrays and "selected_cells" not in arrays:
        notes.append("where the selected tokens lie in the picture is not known")
    if bool(arrays.get("degenerate", False)):
        notes.append("the map was no guide (degenerate)")
    if record.trace.get("whole"):
        notes.append("the crop would be the whole picture")
    if len(record.pictures) > 1:
        notes.append(f"the first of {len(record.pictures)} pictures")
    return notes


def _words(
    record: Record, verdict: Verdict, stored: Mapping[str, Any], notes: Sequence[str]
) -> list[tuple[str, str, str]]:
    """(name, text, colour) of what was asked and came of it; where it is from, last."""
    mark, colour = "", "black"
    if verdict.value is not None:
        mark, colour = ("✓ ", RIGHT) if verdict.right else ("✗ ", WRONG) if verdict.wrong else ("", PARTLY)
    answer = mark + (record.answer or record.text or "(nothing)")
    if record.failure is not None:
        answer, colour = f"failed: {record.failure.kind}: {record.failure.message}", WRONG
    elif verdict.value is not None and not (verdict.right or verdict.value == 0):
        answer += f"   ({verdict.name} {verdict.value:.2f})"
    task = stored["identity"]["task"]
    source = [task["name"], task["protocol"], " > ".join(stored["methods"]) or "no method", record.sample_id]
    if record.repeat:
        source.append(f"repeat {record.repeat}")
    found = [
        ("question", record.question or record.prompt, "black"),
        ("answer", answer, colour),
        ("right", "  |  ".join(dict.fromkeys(record.targets)), "black"),
        ("note", "; ".join(notes), PARTLY),
        ("from", "   ·   ".join(source), DIM),
    ]
    return [(name, text, colour) for name, text, colour in found if text]
