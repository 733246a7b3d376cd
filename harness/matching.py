"""A retrieval run: a matcher's similarity matrix, block by block, to one record per query and a summary.

The engine of tasks that are a `Retrieval`. It hands rows of images to the matcher, keeps the matrix in the
run's directory, ranks it when it is whole, and writes what every run leaves behind. It knows which text
describes which image; the matcher does not. It knows no benchmark and no matcher by name.

Several processes may fill one matrix, as `torchrun` and `accelerate launch` start them: each takes the
blocks of its RANK of WORLD_SIZE; the first one also takes what others leave undone, the last of it first, and
writes the records.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import store
from harness.engine import RUNS, Progress, Run, run_path
from harness.errors import DataError, ModelError, PictureError, SpecError, StoreError
from harness.pictures import Picture
from harness.provenance import now, provenance
from harness.store import Record, RunDirectory
from harness.summary import measured_again, metric_json, metric_key, slim, summarise, total_usage
from harness.types import Json, Matcher, Retrieval, Usage, digest

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

MATRIX = "similarity.f32"
SECONDS = "similarity.seconds"
ROWS = 64
"""Images in a block: what an interruption may cost. A matcher may cut a block as it likes."""

SHOWN = 5
"""Of a query's likeliest answers, in its record."""

_TOGETHER = 256  # rows, or columns, whose likeliest answers are looked for at once


def run(
    task: Retrieval,
    matcher: Matcher,
    *,
    out: Path = RUNS,
    limit: int | None = None,
    progress: Callable[[Progress], None] = lambda _: None,
    warn: Callable[[str], None] = lambda _: None,
) -> Run:
    """Match `task`'s images and texts with `matcher`. Repeating a call resumes its run, block by block.

    limit: only the first N images, with their texts: another pool and so another run. Raises what the
    matcher raises, DataError for a pool that cannot be ranked or a picture that cannot be read, ModelError
    where a similarity is not a number, StoreError for an unusable directory.
    """
    check(task, matcher)
    task = first(task, limit) if limit is not None else task
    _require_rankable(task)
    header = _header(task, matcher)
    rank, world = _place()
    path = run_path(out, task, matcher, header["id"])  # type: ignore[arg-type]
    if rank:
        return _help(task, matcher, path, header, range(rank, 10**9, world), progress)
    with RunDirectory(path) as directory:
        known, warnings = directory.resume(lambda records: _measured(task, records))
        for warning in warnings:
            warn(warning)
        directory.write_run({**header, "status": "running"})
        began = time.monotonic()
        status, records = "interrupted", known
        images = len(task.pool.images)
        try:
            if len(known) == len(header["selection"]["ids"]):
                progress(Progress(images, images, 0, images, Usage()))
            else:
                matrix = _Matrix(path, task, matcher)
                progress(matrix.progress)
                _fill(matrix, range(0, matrix.blocks, world), progress)
                # What others leave undone, from the end, where those at work come last.
                _fill(matrix, reversed(range(matrix.blocks)), progress)
                records = _records(task, matrix)
                directory.rewrite(records)
            status = "complete"
        except KeyboardInterrupt:
            pass  # the status says so
        finally:
            times = {"seconds": round(time.monotonic() - began, 3), "resumed": len(known)}
            result = _close(task, directory, header, status, records, times)
        return result


def _help(
    task: Retrieval,
    matcher: Matcher,
    path: Path,
    header: dict[str, Any],
    blocks: range,
    progress: Callable[[Progress], None],
) -> Run:
    """Fill these blocks of a matrix whose records another process writes."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written: {error.strerror}. Choose another folder with --out"
        ) from None
    matrix = _Matrix(path, task, matcher)
    progress(matrix.progress)
    _fill(matrix, blocks, progress)
    free = vars(Usage())
    return Run(path, "complete", header, summarise((), (), 0), {"usage": free, "spent": free})


def check(task: Any, model: Any) -> None:
    """Raise SpecError unless a task and a model are of one kind: a matrix is for matchers."""
    matches, matcher = isinstance(task, Retrieval), hasattr(model, "similarity")
    if matches and not matcher:
        raise SpecError(
            f"{task.name} is retrieval: it needs a matcher, which says how alike images and texts are, such "
            f"as clip or seps; {model.describe().get('adapter')} generates text"
        )
    if matcher and not matches:
        raise SpecError(
            f"{model.describe().get('adapter')} is a matcher: it compares images with texts and answers no "
            f"questions. Run it on flickr30k_retrieval or coco_retrieval, not on {task.name}"
        )


def refuse(name: str, options: Mapping[str, object]) -> None:
    """Raise SpecError for options of a run that mean nothing to retrieval, by name, where they are given."""
    given = [option for option, value in options.items() if value]
    if given:
        raise SpecError(
            f"{name} is retrieval, a matrix and not requests: it takes --limit and --out, and no "
            + ", ".join(given)
        )


def as_retrieval(task: object) -> Retrieval | None:
    """The task, if its answer is a matrix."""
    return task if isinstance(task, Retrieval) else None


def first(task: Retrieval, limit: int) -> Retrieval:
    """The task over its first `limit` images and their texts, as one pool."""
    images = len(task.pool.images)
    if limit < 1:
        raise SpecError(f"--limit is {limit}; it must be 1 or more")
    if limit >= images:
        return task
    texts = [place for place, image in enumerate(task.owner) if image < limit]
    pool, fingerprint = task.pool, digest([task.fingerprint, limit])
    kept = {"none": (), "image": range(limit), "text": texts}[pool.dense_of]
    return replace(
        task,
        fingerprint=fingerprint,
        pool=replace(
            pool,
            images=pool.images[:limit],
            texts=tuple(pool.texts[place] for place in texts),
            dense=tuple(pool.dense[place] for place in kept),
            fingerprint=digest([pool.fingerprint, limit]),
        ),
        owner=tuple(task.owner[place] for place in texts),
        ids=task.ids[:limit],
        folds=1,
    )


def _require_rankable(task: Retrieval) -> None:
    """Raise DataError unless every query has an answer in its own fold."""
    images, texts = len(task.pool.images), len(task.pool.texts)
    if not images:
        raise DataError(f"{task.name} has no images")
    if len(task.owner) != texts or len(task.ids) != images:
        raise DataError(
            f"{task.name} has {texts:,} texts and {len(task.owner):,} owners of texts, {images:,} images and "
            f"{len(task.ids):,} ids of images; there must be one for each"
        )
    outside = [owner for owner in task.owner if not 0 <= owner < images]
    if outside:
        raise DataError(f"{task.name}: a text belongs to image {outside[0]}; there are 0 to {images - 1}")
    lonely = sorted(set(range(images)) - set(task.owner))
    if lonely:
        raise DataError(
            f"{task.name}: image {task.ids[lonely[0]]} has no text ({len(lonely):,} such images), so nothing "
            "that it could find; leave it out"
        )
    if task.folds < 1 or images % task.folds:
        raise DataError(f"{task.name}: {images:,} images cannot be cut into {task.folds} equal folds")


def _place() -> tuple[int, int]:
    """(RANK, WORLD_SIZE), as launchers set them."""
    try:
        rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    except ValueError:
        rank, world = -1, 0
    if not 0 <= rank < world:
        raise SpecError(
            f"RANK={os.environ.get('RANK')} of WORLD_SIZE={os.environ.get('WORLD_SIZE')}: launchers set them "
            "to 0, 1, ... below WORLD_SIZE; unset both for one process"
        )
    return rank, world


def _header(task: Retrieval, matcher: Matcher) -> dict[str, Any]:
    identity = {
        "task": {
            "name": task.name,
            "version": task.version,
            "protocol": task.protocol,
            "fingerprint": task.fingerprint,
        },
        "oracle": task.leaks,
        "model": matcher.describe(),
    }
    ids = _queries(task)
    number = store.run_id(identity)
    return {
        "id": number,
        "baseline": number,
        "identity": identity,
        "task": task.spec or task.name,
        "model": getattr(matcher, "spec", None),
        "methods": [],
        "selection": {
            "n": len(ids),
            "of": len(ids),
            "repeats": 1,
            "digest": digest([ids, 1]),
            "ids": ids,
        },
        "metrics": [metric_json(metric) for metric in task.metrics],
        "primary": task.primary,
        "breakdowns": [],
        "provenance": provenance(),
    }


def _queries(task: Retrieval) -> list[str]:
    images, texts = len(task.pool.images), len(task.pool.texts)
    return [f"image:{number}" for number in range(images)] + [f"text:{number}" for number in range(texts)]


# ---------------------------------------------------------------- the matrix


class _Matrix:
    """The similarities on disk, in blocks of rows, and what each row took to make, in seconds.

    Both files belong to this task and matcher, whose run's directory they lie in. A row whose seconds are 0
    is not there yet: they are written after it, so that a block cut short is made again.
    """

    def __init__(self, path: Path, task: Retrieval, matcher: Matcher) -> None:
        self.task, self.matcher = task, matcher
        self.images, self.texts = len(task.pool.images), len(task.pool.texts)
        self.blocks = -(-self.images // ROWS)
        self._matrix = _Rows(path / MATRIX, (self.images, self.texts), "float32")
        self._seconds = _Rows(path / SECONDS, (self.images,), "float64")
        self.resumed = self.ready

    @property
    def whole(self) -> npt.NDArray[np.float32]:
        """(images, texts), in its file."""
        mapped: npt.NDArray[np.float32] = self._matrix.mapped
        return mapped

    @property
    def ready(self) -> int:
        """Rows that are there."""
        return int((self._seconds.mapped > 0).sum())

    @property
    def progress(self) -> Progress:
        return Progress(self.ready, self.images, 0, self.resumed, Usage())

    @property
    def seconds(self) -> float:
        """What the rows that are there took, whoever made them."""
        return float(self._seconds.mapped.sum())

    def missing(self, block: int) -> bool:
        rows = self.rows(block)
        return not (self._seconds.mapped[rows.start : rows.stop] > 0).all()

    def rows(self, block: int) -> range:
        return range(block * ROWS, min(self.images, (block + 1) * ROWS))

    def fill(self, block: int) -> None:
        """Have a block's similarities made, and keep them, unless somebody else did so meanwhile."""
        import numpy as np

        rows, began = self.rows(block), time.monotonic()
        found = self._checked(np.asarray(self.matcher.similarity(self.task.pool, rows), np.float32), rows)
        share = max(1e-9, (time.monotonic() - began) / len(rows))
        if self.missing(block):
            self._matrix.write(rows.start, found)
            self._seconds.write(rows.start, np.full(len(rows), share))

    def _checked(self, found: npt.NDArray[np.float32], rows: range) -> npt.NDArray[np.float32]:
        """Raises ModelError unless it is a block of numbers."""
        import numpy as np

        if found.shape != (len(rows), self.texts):
            raise ModelError(
                f"the matcher gave a block of shape {found.shape} for {len(rows)} images and {self.texts:,} "
                "texts"
            )
        if not np.isfinite(found).all():
            image, text = (int(place) for place in np.argwhere(~np.isfinite(found))[0])
            raise ModelError(
                f"the similarity of image {self.task.ids[rows[image]]} and text {text} "
                f"({self.task.pool.texts[text][:60]!r}) is {found[image, text]}: a rank among such is "
                "meaningless. Look for an empty text, weights that are not finite, or half precision"
            )
        return found


class _Rows:
    """An array in a file, zeros at first. It is read where it is mapped, and written by calls, which a full
    disk fails; a write to the map would end the process."""

    def __init__(self, path: Path, shape: tuple[int, ...], dtype: str) -> None:
        import shutil

        import numpy as np

        self.path, self._size = path, int(np.prod(shape)) * np.dtype(dtype).itemsize
        self._row = self._size // shape[0]
        self._type = np.dtype(dtype)
        try:
            with path.open("ab") as file:
                room = shutil.disk_usage(path.parent).free
                if file.tell() < self._size and self._size - _allocated(path) > room:
                    raise self._failed(f"there are {room / 1e6:,.0f} MB left on the disk")
                if file.tell() > self._size:
                    raise StoreError(f"{path} is longer than this matrix; remove it and repeat the command")
                file.truncate(self._size)
            self.mapped: Any = np.memmap(path, dtype, "r", shape=shape)
        except OSError as error:
            raise self._failed(error.strerror or str(error)) from None

    def write(self, first: int, rows: npt.NDArray[Any]) -> None:
        """Put rows from `first` on into the file; they are on the disk when this returns."""
        import numpy as np

        rest = memoryview(np.ascontiguousarray(rows, self._type).tobytes())
        try:
            with self.path.open("r+b", buffering=0) as file:
                file.seek(first * self._row)
                while rest:
                    rest = rest[file.write(rest) :]
                os.fsync(file.fileno())
        except OSError as error:
            raise self._failed(error.strerror or str(error)) from None

    def _failed(self, why: str) -> StoreError:
        return StoreError(
            f"{self.path} cannot be written: {why}. It takes {self._size / 1e6:,.1f} MB; what was recorded "
            "stays. Make room and repeat the command to resume, or choose another folder with --out"
        )


def _allocated(path: Path) -> int:
    """Bytes of the disk that a file has."""
    return getattr(path.stat(), "st_blocks", 0) * 512


def _fill(matrix: _Matrix, blocks: Iterable[int], progress: Callable[[Progress], None]) -> None:
    """Have the blocks made that are missing of these."""
    for block in blocks:
        if block >= matrix.blocks:
            return
        if matrix.missing(block):
            try:
                matrix.fill(block)
            except PictureError as error:
                raise DataError(
                    f"{error}. Every image of a pool is ranked against every text: mend the file, and repeat "
                    "the command to resume"
                ) from None
            progress(matrix.progress)


# ---------------------------------------------------------------- records


def _records(task: Retrieval, matrix: _Matrix) -> list[Record]:
    """One record per query: where its answer stood, and what stood first."""
    found = task.rank(matrix.whole, task.owner, task.folds)
    names, share = _queries(task), Usage(seconds=matrix.seconds / max(1, len(found)))
    pictures = [_described(picture) for picture in task.pool.images]
    images = len(pictures)
    own: list[list[str]] = [[] for _ in pictures]
    for text, image in enumerate(task.owner):
        own[image].append(f"text:{text}")
    fold_of_image = [image * task.folds // images for image in range(images)]
    fold_of_text = [fold_of_image[image] for image in task.owner]
    tops = [
        *_tops(matrix.whole, fold_of_image, fold_of_text),
        *_tops(matrix.whole.T, fold_of_text, fold_of_image),
    ]
    records = []
    for place, (name, meta, (likeliest, scores)) in enumerate(zip(names, found, tops, strict=True)):
        text = place - images
        image = place if text < 0 else task.owner[text]
        offers = [f"{'text' if text < 0 else 'image'}:{one}" for one in likeliest]
        records.append(
            Record(
                name,
                category=str(meta["way"]),
                group=str(pictures[image].get("digest", task.ids[image])),
                question="" if text < 0 else task.pool.texts[text],
                prompt="" if text < 0 else task.pool.texts[text],
                pictures=(pictures[image],) if text < 0 else (),
                targets=tuple(own[image]) if text < 0 else (f"image:{image}",),
                meta={**meta, "image": task.ids[image]},
                text=offers[0],
                answer=offers[0],
                usage=replace(share, images=int(text < 0)),
                trace={"top": offers, "scores": [round(score, 6) for score in scores]},
            )
        )
    return measured_again(records, task.metrics)


def _described(picture: Picture) -> Mapping[str, Json]:
    try:
        return picture.describe()
    except PictureError:  # a matcher that knows similarities from elsewhere needs no pixels
        return {"source": picture.source.label}


def _tops(
    matrix: npt.NDArray[np.float32], fold_of_row: Sequence[int], fold_of_column: Sequence[int]
) -> list[tuple[list[int], list[float]]]:
    """Per row, the likeliest columns of its fold and their similarities; of equal ones the first.

    >>> import numpy as np
    >>> _tops(np.array([[0.5, 2.0, 0.5], [9.0, 3.0, 4.0]]), [0, 1], [0, 0, 1])
    [([1, 0], [2.0, 0.5]), ([2], [4.0])]
    """
    import numpy as np

    found: list[tuple[list[int], list[float]]] = [([], [])] * len(matrix)
    folds_of_rows, folds_of_columns = np.asarray(fold_of_row), np.asarray(fold_of_column)
    for fold in np.unique(folds_of_rows):
        rows, columns = (np.flatnonzero(folds == fold) for folds in (folds_of_rows, folds_of_columns))
        for start in range(0, len(rows), _TOGETHER):
            mine = rows[start : start + _TOGETHER]
            block = np.array(matrix[_span(mine)][:, _span(columns)], order="C")
            each, picks = np.arange(len(mine)), []
            for _ in range(min(SHOWN, len(columns))):  # faster than sorting, however partially
                best = block.argmax(axis=1)
                picks.append((columns[best], block[each, best]))
                block[each, best] = -np.inf
            likeliest, scores = (np.stack(side, axis=1).tolist() for side in zip(*picks, strict=True))
            for row, places, values in zip(mine, likeliest, scores, strict=True):
                found[row] = (places, values)
    return found


def _span(places: npt.NDArray[np.int64]) -> slice | npt.NDArray[np.int64]:
    """Places as a slice, which copies nothing, where they are neighbours."""
    together = len(places) and places[-1] - places[0] + 1 == len(places)
    return slice(int(places[0]), int(places[-1]) + 1) if together else places


def _measured(task: Retrieval, records: list[Record]) -> list[Record]:
    """Stored records that a metric of this task has not measured yet are measured."""
    keys = {metric_key(metric) for metric in task.metrics}
    if all(keys <= record.measures.keys() for record in records):
        return records
    return measured_again(records, task.metrics)


def _close(
    task: Retrieval,
    directory: RunDirectory,
    header: dict[str, Any],
    status: str,
    records: Sequence[Record],
    times: Mapping[str, float],
) -> Run:
    rows = [slim(record) for record in records]
    summary = summarise(task.metrics, rows, header["selection"]["n"], records)
    spending = {"usage": vars(total_usage(rows)), "spent": vars(Usage())}
    ended = {"status": status, "summary": summary, "spending": spending, "times": {"ended": now(), **times}}
    directory.write_run({**header, **ended})
    return Run(directory.path, status, header, summary, spending)
