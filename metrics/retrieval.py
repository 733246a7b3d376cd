"""Image-text retrieval: ranks by counting, and what is reported of them (R@K, rSum, median and mean).

Knows similarity matrices: images in rows, captions in columns, which caption is whose. Must not know:
models, datasets, how similarities are computed. A matrix that does not fit into memory goes through
`RankCounter`, block by block.

Faghri et al., "VSE++", BMVC 2018; fartashf/vsepp and CrossmodalGroup/LAPS `lib/evaluation.py`. Those
sort, so that the order of equal similarities is their sorting routine's; here it is a policy.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from harness.errors import DataError
from harness.types import Json, Metric, Response, Sample

Ties: TypeAlias = Literal["pessimistic", "optimistic", "mean"]
Ranks: TypeAlias = npt.NDArray[np.int64] | npt.NDArray[np.float64]
Bools: TypeAlias = npt.NDArray[np.bool_]

_AT = (1, 5, 10)
_WAYS = ("i2t", "t2i")
_SLAB = 1 << 23  # similarities that a thread takes at once
_BLOCK = 1 << 18  # similarities compared at once: a core's cache holds them and their comparisons
_THREADS = 2
_BEATS = (np.greater, np.greater_equal)


def ranks(similarity: npt.ArrayLike, owner: npt.ArrayLike, ties: Ties = "pessimistic") -> tuple[Ranks, Ranks]:
    """0-based ranks: per image of the best of its captions, per caption of its image.

    similarity: (images, captions), higher is more similar. owner: (captions,), the row of each caption's
    image; every image needs a caption, of which it may have any number. An image's rank is the number of
    *other images'* captions above its best own one; a caption's is the number of images above its own.

    ties: what a candidate of equal similarity counts: 1 (`pessimistic`), 0 (`optimistic`), both int64, or
    1/2 (`mean`, float64). Raises ValueError for a NaN, an image without caption, or shapes that disagree.

    >>> ranks([[0.9, 0.8, 0.1], [0.9, 0.2, 0.3]], [0, 0, 1])
    (array([0, 1]), array([1, 0, 0]))
    >>> ranks([[0.9, 0.8, 0.1], [0.9, 0.2, 0.3]], [0, 0, 1], ties="mean")
    (array([0., 1.]), array([0.5, 0. , 0. ]))
    """
    return _counted(*_checked(similarity, owner)).ranks(ties)


def summary(
    similarity: npt.ArrayLike, owner: npt.ArrayLike, ties: Ties = "pessimistic", folds: int = 1
) -> dict[str, float | None]:
    """Both directions of retrieval in numbers; arguments as of `ranks`.

    `i2t_r1`, `i2t_r5`, `i2t_r10` (an image finds one of its captions) and `t2i_r1` to `t2i_r10` (a caption
    finds its image): per cent of ranks below K. `rsum`: the sum of the six. `i2t_medr`, `t2i_medr`: the
    median rank, rounded down, and `i2t_meanr`, `t2i_meanr`, both 1-based. `tied`: the share of queries with
    a candidate exactly as similar as their own; where it is not 0, `ties` decides.

    folds: the images, in their order, are cut into so many equal pools, each with its own captions only, and
    every number is the mean over the pools (COCO 1K is folds=5 over 5,000 images). Raises ValueError where
    the images cannot be cut so. Without any images each number is None.

    >>> scores = summary([[0.9, 0.1, 0.2], [0.8, 0.7, 0.6]], [0, 1, 1])
    >>> {name: scores[name] for name in ("i2t_r1", "t2i_r1", "i2t_medr", "tied")}
    {'i2t_r1': 50.0, 't2i_r1': 100.0, 'i2t_medr': 1.0, 'tied': 0.0}
    """
    parts = [
        _numbers(*counter.ranks(ties), counter.tied) for counter, _, _ in _pools(similarity, owner, folds)
    ]
    if not parts:
        return dict.fromkeys(_numbers(np.zeros(1), np.zeros(1), 0.0))
    return {name: math.fsum(part[name] for part in parts) / folds for name in parts[0]}


def queries(similarity: npt.ArrayLike, owner: npt.ArrayLike, folds: int = 1) -> list[dict[str, Json]]:
    """What became of each query, images first, then texts; arguments as of `summary`.

    `way` is i2t or t2i; `rank` the 0-based rank with every rival of equal similarity counted, `best_rank`
    with none. The metric measures these.

    >>> queries([[0.9, 0.1], [0.9, 0.7]], [0, 1])[2]
    {'way': 't2i', 'rank': 1, 'best_rank': 0}
    """
    matrix = np.asarray(similarity)
    found: list[dict[str, Json]] = [{} for _ in range(sum(matrix.shape))]
    for counter, first, texts in _pools(similarity, owner, folds):
        low, high = counter.ranks("optimistic"), counter.ranks("pessimistic")
        images = np.arange(first, first + len(low[0]))
        places = (("i2t", images), ("t2i", len(matrix) + texts))
        for (way, where), best, worst in zip(places, low, high, strict=True):
            for place, above, at_or_above in zip(where.tolist(), best.tolist(), worst.tolist(), strict=True):
                found[place] = {"way": way, "rank": at_or_above, "best_rank": above}
    return found


def _pools(
    similarity: npt.ArrayLike, owner: npt.ArrayLike, folds: int
) -> Iterator[tuple[RankCounter, int, npt.NDArray[np.int64]]]:
    """Per fold: its counts, its first image and its texts."""
    matrix, owners = _checked(similarity, owner)
    images = len(matrix)
    if folds < 1 or images % folds:
        raise ValueError(f"{images} images cannot be cut into {folds} equal folds")
    if not images:
        return
    size = images // folds
    for first in range(0, images, size):
        mine = np.flatnonzero((owners >= first) & (owners < first + size))
        rows = matrix[first : first + size]
        contiguous = len(mine) and mine[-1] - mine[0] + 1 == len(mine)
        columns = rows[:, mine[0] : mine[-1] + 1] if contiguous else rows[:, mine]
        yield _counted(columns, owners[mine] - first), first, mine


@dataclass(frozen=True)
class Recall:
    """R@1, R@5 and R@10 in both directions, their sum, and how many queries a tie decides.

    ties: what a rival of equal similarity counts, as of `ranks`. Numbers are per cent, as of `summary`, but
    for `tied`, a share; medians are in `summary` alone. All folds' queries count alike, which is the mean
    over folds where these have equally many. Without queries of a direction its numbers are None.
    """

    ties: Ties = "pessimistic"
    name: ClassVar[str] = "retrieval"
    scope: ClassVar[Literal["sample"]] = "sample"
    additive: ClassVar[bool] = True

    @property
    def variant(self) -> str:
        return "" if self.ties == "pessimistic" else self.ties

    @property
    def higher_is_better(self) -> Mapping[str, bool]:
        recalls = {f"{way}_r{k}": True for way in _WAYS for k in _AT}
        return {"rsum": True, **recalls, **{f"{way}_meanr": False for way in _WAYS}, "tied": False}

    def measure(self, responses: Sequence[Response], samples: Sequence[Sample]) -> list[dict[str, float]]:
        """Of each query, from what `queries` says of it: its direction, rank and hits. Raises DataError for a
        sample that is no query."""
        for sample in samples:
            if not {"way", "rank", "best_rank"} <= sample.meta.keys():
                raise DataError(
                    f"{sample.id} has no rank: the metric retrieval is for runs of flickr30k_retrieval and "
                    "coco_retrieval, which rank images and texts"
                )
        return [self._counts(sample) for sample in samples]

    def _counts(self, sample: Sample) -> dict[str, float]:
        way, worst, best = (str(sample.meta[name]) for name in ("way", "rank", "best_rank"))
        ranks = {"pessimistic": int(worst), "optimistic": int(best), "mean": (int(worst) + int(best)) / 2}
        rank = ranks[self.ties]
        counts = {f"{way}_n": 1.0, f"{way}_rank": float(rank), "tied": float(worst != best)}
        return counts | {f"{way}_r{k}": float(rank < k) for k in _AT}

    def reduce(self, counts: Sequence[Any]) -> dict[str, float | None]:
        sums: dict[str, float] = {}
        for count in counts:
            for name, value in count.items():
                sums[name] = sums.get(name, 0.0) + value
        numbers: dict[str, float | None] = dict.fromkeys(self.higher_is_better)
        number = {way: sums.get(f"{way}_n", 0.0) for way in _WAYS}
        for way in _WAYS:
            if number[way]:
                numbers |= {f"{way}_r{k}": 100 * sums.get(f"{way}_r{k}", 0.0) / number[way] for k in _AT}
                numbers[f"{way}_meanr"] = sums[f"{way}_rank"] / number[way] + 1
        if all(number.values()):
            numbers["rsum"] = math.fsum(numbers[f"{way}_r{k}"] or 0.0 for way in _WAYS for k in _AT)
        if any(number.values()):
            numbers["tied"] = sums["tied"] / sum(number.values())
        return numbers


def metric(ties: Ties = "pessimistic") -> Metric:
    """R@K and rSum of a retrieval run; `ties` decides what a rival of equal similarity counts."""
    if ties not in get_args(Ties):
        raise ValueError(f"unknown tie policy {ties!r}: use one of {', '.join(get_args(Ties))}")
    return Recall(ties)


def _numbers(image_ranks: Ranks, text_ranks: Ranks, tied: float) -> dict[str, float]:
    numbers = {}
    for way, found in (("i2t", image_ranks), ("t2i", text_ranks)):
        for k in _AT:
            numbers[f"{way}_r{k}"] = 100 * float(np.mean(found < k))
    numbers["rsum"] = math.fsum(numbers.values())
    for way, found in (("i2t", image_ranks), ("t2i", text_ranks)):
        numbers[f"{way}_medr"] = float(np.floor(np.median(found)) + 1)
        numbers[f"{way}_meanr"] = float(np.mean(found) + 1)
    return {**numbers, "tied": tied}


def _checked(
    similarity: npt.ArrayLike, owner: npt.ArrayLike
) -> tuple[npt.NDArray[Any], npt.NDArray[np.int64]]:
    matrix, owners = np.asarray(similarity), np.asarray(owner)
    if matrix.ndim != 2 or matrix.dtype.kind not in "fiu":
        raise ValueError(
            f"similarity is {matrix.dtype} of shape {matrix.shape}; it must be a matrix of real numbers, "
            "images x captions"
        )
    if owners.shape != (matrix.shape[1],):
        raise ValueError(
            f"owner has shape {owners.shape}; it must name the image of each of {matrix.shape[1]} captions"
        )
    return matrix, _owners(owners, len(matrix))


def _owners(owner: npt.NDArray[Any], images: int) -> npt.NDArray[np.int64]:
    if owner.ndim != 1 or (owner.size and owner.dtype.kind not in "iu"):
        raise ValueError(f"owner is {owner.dtype} of shape {owner.shape}; it must be a list of row numbers")
    outside = owner[(owner < 0) | (owner >= images)]
    if outside.size:
        raise ValueError(f"owner names image {outside[0]}; there are images 0 to {images - 1}")
    missing = np.flatnonzero(np.bincount(owner.astype(np.int64), minlength=images) == 0)
    if missing.size:
        raise ValueError(f"image {missing[0]} has no caption ({missing.size} such images): leave it out")
    return owner.astype(np.int64)


def _counted(matrix: npt.NDArray[Any], owners: npt.NDArray[np.int64]) -> RankCounter:
    """A counter that has seen all of `matrix`, in slabs of rows shared by two threads."""
    images, captions = matrix.shape
    counter = RankCounter(owners, matrix[owners, np.arange(captions)], images)
    step = max(1, _SLAB // max(1, captions))
    if images <= step:
        counter.add(0, matrix)
        return counter
    with ThreadPoolExecutor(_THREADS) as pool:  # NumPy lets go of the interpreter while it compares
        starts = range(0, images, step)
        list(pool.map(lambda first: counter.add(first, matrix[first : first + step]), starts))
    return counter


class RankCounter:
    """Ranks from a similarity matrix that arrives in blocks of rows (images), in any order, once each.

    owner: (captions,), the row of each caption's image. own: (captions,), each caption's similarity with
    its own image, needed before any row can be counted; where the rows come from a matrix product, take it
    from the same product, for another way of summing gives other last digits. images: how many rows there
    will be.

    It holds a few numbers per image and caption, however large the matrix. `add` may be called from several
    threads.

    >>> counter = RankCounter([0, 0, 1], [0.9, 0.8, 0.3], images=2)
    >>> counter.add(1, [[0.9, 0.2, 0.3]])
    >>> counter.add(0, [[0.9, 0.8, 0.1]])
    >>> counter.ranks("optimistic")
    (array([0, 1]), array([0, 0, 0]))
    >>> counter.tied
    0.2
    """

    def __init__(self, owner: npt.ArrayLike, own: npt.ArrayLike, images: int) -> None:
        self._owner = _owners(np.asarray(owner), images)
        self._own = np.asarray(own)
        if self._own.shape != self._owner.shape:
            raise ValueError(f"own has shape {self._own.shape}; there are {len(self._owner)} captions")
        unknown = np.flatnonzero(np.isnan(self._own))
        if unknown.size:
            raise _nan(int(self._owner[unknown[0]]), int(unknown[0]))
        # the captions of image i are by_image[starts[i]:starts[i + 1]]
        self._by_image = np.argsort(self._owner, kind="stable")
        self._starts = np.searchsorted(self._owner[self._by_image], np.arange(images + 1))
        self._best = (
            np.maximum.reduceat(self._own[self._by_image], self._starts[:-1]) if images else self._own
        )
        # by _BEATS: candidates above the own similarity, and those at it or above
        self._images = np.zeros((2, images), np.int64)
        self._texts = np.zeros((2, len(self._owner)), np.int64)
        self._seen = np.zeros(images, bool)
        self._lock = threading.Lock()

    def add(self, first: int, rows: npt.ArrayLike) -> None:
        """Count the rows of images `first`, `first` + 1, and so on.

        Raises ValueError for a NaN, a row counted before, or rows of another matrix.
        """
        block = np.asarray(rows)
        images, captions = len(self._seen), len(self._owner)
        last = first + (len(block) if block.ndim == 2 else 1)
        if block.shape != (last - first, captions) or not 0 <= first <= last <= images:
            raise ValueError(
                f"a block of shape {block.shape} from row {first} on is no part of a matrix of "
                f"{images} images x {captions} captions"
            )
        if self._seen[first:last].any():
            raise ValueError(f"rows {first} to {last - 1} were counted before, some of them at least")
        texts = np.zeros((2, captions), np.int32)
        step = min(255, max(1, _BLOCK // max(1, captions)))  # 255: a byte counts them
        scratch = np.empty((min(step, len(block)), captions), bool)
        for start in range(0, len(block), step):
            part = block[start : start + step]
            self._compare(first + start, part, scratch[: len(part)], texts)
        # Neither an image's own captions nor a caption's own image are rivals.
        mine = self._by_image[self._starts[first] : self._starts[last]]
        images_of_mine = self._owner[mine]
        own = block[images_of_mine - first, mine]
        for which, beats in enumerate(_BEATS):
            np.subtract.at(self._images[which], images_of_mine, beats(own, self._best[images_of_mine]))
            texts[which, mine] -= beats(own, self._own[mine])
        with self._lock:
            self._texts += texts
            self._seen[first:last] = True

    def _compare(
        self, first: int, rows: npt.NDArray[Any], scratch: Bools, texts: npt.NDArray[np.int32]
    ) -> None:
        _reject_nan(first, rows)
        last = first + len(rows)
        for which, beats in enumerate(_BEATS):
            beats(rows, self._best[first:last, None], out=scratch)
            self._images[which, first:last] = [np.count_nonzero(row) for row in scratch]
            beats(rows, self._own, out=scratch)
            texts[which] += np.add.reduce(scratch.view(np.uint8), axis=0, dtype=np.uint8)

    def ranks(self, ties: Ties = "pessimistic") -> tuple[Ranks, Ranks]:
        """(image_ranks, text_ranks) as the function `ranks`. Raises ValueError while rows are missing."""
        missing = np.flatnonzero(~self._seen)
        if missing.size:
            raise ValueError(
                f"{missing.size} of {len(self._seen)} rows are missing; the first is {missing[0]}"
            )
        return _rank(self._images, ties), _rank(self._texts, ties)

    @property
    def tied(self) -> float:
        """The share of queries, images and captions alike, with a rival exactly as similar as their own."""
        queries = np.concatenate([self._images, self._texts], axis=1)
        return float(np.mean(queries[0] != queries[1])) if queries.size else 0.0


def _rank(counts: npt.NDArray[np.int64], ties: Ties) -> Ranks:
    above, at_or_above = counts[0], counts[1]
    found: dict[str, Ranks] = {
        "pessimistic": at_or_above,
        "optimistic": above,
        "mean": (above + at_or_above) / 2,
    }
    if ties in found:
        return found[ties].copy()
    raise ValueError(f"unknown tie policy {ties!r}: use one of {', '.join(get_args(Ties))}")


def _reject_nan(first: int, rows: npt.NDArray[Any]) -> None:
    if rows.size == 0:
        return
    with np.errstate(invalid="ignore"):
        clean = not np.isnan(rows.max())  # a maximum hands a NaN on, and is the fastest look at them all
    if not clean:
        row, column = np.argwhere(np.isnan(rows))[0]
        raise _nan(first + int(row), int(column))


def _nan(image: int, caption: int) -> ValueError:
    return ValueError(
        f"the similarity of image {image} and caption {caption} is not a number; a rank among such is "
        "meaningless: look for an empty caption or a zero vector that was normalised"
    )
