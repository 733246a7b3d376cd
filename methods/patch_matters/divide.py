"""Where Patch Matters cuts a picture: four spatial patches, a semantic one, and which of them overlap.

"Patch Matters: Training-free Fine-grained Image Caption Enhancement via Local Perception" (Peng et al.,
CVPR 2025, arXiv 2504.06666). Reference: GeWu-Lab/Patch-Matters, commit bf3dfbc (`divide/sample_tools.py`;
`divide/true_box_sample.py`, proposal_to_n_part; `divide/get_main_box.py`, merge_box;
`description_generate/patch_caption.py` and `aggregation/semantic_batch.py`, the two IoU thresholds).

Knows rectangles. Must not know pictures, models or detectors, nor what a patch is described as.

The picture is split at its midlines. What a detector found is merged into proposals, and each quadrant
grows to hold the proposals of which more than a share lies in it, so that an object on a midline is not cut
in two. The semantic patch is the union of the objects that a caption names, unless that is most of the
picture. Neighbouring spatial patches that overlap much are later described as one.

A `Box` is (x1, y1, x2, y2) in pixels, x2 and y2 outside; a size is (width, height). A box with a corner that
is not a number, is infinite or beyond `FAR`, or comes before the other, is refused with ValueError. One that
has no area is allowed: it overlaps nothing.

Repairs of the released code under `fidelity=fixed`, each absent under `released`:

- Proposals are merged, the pair of the greatest IoU first, until no pair reaches the threshold. Released: a
  queue, passed again while its *first* box has a partner, so that other pairs may stay and the result
  depends on the order of the detections. And boxes without area are dropped.
- An IoU equal to the threshold is over it, as in the method's figure, for merging, the semantic patch and
  pairs. Released: strictly over, but for the semantic patch: at the threshold `patch_caption.py` describes
  it and `semantic_batch.py` ignores it, so that it counts for nothing either way.
- The semantic patch is clipped to the picture, and is all of it where nothing was named. Released: not
  clipped, and without the last row and column.

In both: spatial patches are clipped to the picture, a box without area attaches to no quadrant (released: a
division by zero), and a side of one pixel is not split (released: crops without pixels).
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from harness.types import Box, Fidelity

Size = tuple[int, int]

SPATIAL = ("LT", "RT", "LB", "RB")
SEMANTIC = "SEM"
ADJACENT = (("LT", "RT"), ("RT", "RB"), ("LB", "RB"), ("LT", "LB"))
"""The pairs that may be described as one, in the released order; diagonal ones never are."""
FAR = 1e9
"""Pixels from the picture's corner, beyond which no box can be meant."""
LEAST_UNION = 1e-6
"""Square pixels that the released merging takes a union to have at least."""


class Scored(Protocol):
    """Something found with a score."""

    @property
    def score(self) -> float: ...


D = TypeVar("D", bound=Scored)


@dataclass(frozen=True)
class Semantic:
    """The semantic patch. share: its IoU with the picture. used: whether it is described at all."""

    box: Box
    share: float
    used: bool


@dataclass(frozen=True)
class Pair:
    """Two spatial patches that overlap, their IoU, and the box around both."""

    a: str
    b: str
    iou: float
    box: Box


# ---------------------------------------------------------------- boxes


def iou(a: Box, b: Box) -> float:
    """Intersection over union, 0 to 1; 0 where neither has an area.

    >>> iou((0, 0, 2, 1), (1, 0, 3, 1))
    0.3333333333333333
    """
    return _iou(_checked(a), _checked(b))


def union(boxes: Sequence[Box]) -> Box:
    """The smallest box around all of at least one; divide/get_main_box.py: merge_box.

    >>> union([(0, 2, 1, 3), (4, 0, 5, 1)])
    (0.0, 0.0, 5.0, 3.0)
    """
    if not boxes:
        raise ValueError("the union of no boxes; give one at least")
    x1, y1, x2, y2 = zip(*map(_checked, boxes), strict=True)
    return (min(x1), min(y1), max(x2), max(y2))


def quadrants(size: Size) -> dict[str, Box]:
    """The four parts of a picture, by the names of `SPATIAL`. A side of one pixel is in both its halves.

    >>> quadrants((5, 4))["RB"]
    (2.0, 2.0, 5.0, 4.0)
    """
    width, height = _checked_size(size)
    left, right = _halves(width)
    upper, lower = _halves(height)
    corners = ((left, upper), (right, upper), (left, lower), (right, lower))
    return {pid: (x[0], y[0], x[1], y[1]) for pid, (x, y) in zip(SPATIAL, corners, strict=True)}


def _halves(length: int) -> tuple[tuple[float, float], tuple[float, float]]:
    end, middle = float(length), float(length // 2)
    return ((0.0, middle), (middle, end)) if length > 1 else ((0.0, end), (0.0, end))


def _clipped(box: Box, size: Size) -> Box:
    width, height = size
    x1, x2 = (min(max(x, 0.0), float(width)) for x in (box[0], box[2]))
    y1, y2 = (min(max(y, 0.0), float(height)) for y in (box[1], box[3]))
    return (x1, y1, x2, y2)


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _intersection(a: Box, b: Box) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(0.0, width) * max(0.0, height)


def _iou(a: Box, b: Box, least: float = 0.0) -> float:
    common = _intersection(a, b)
    together = max(_area(a) + _area(b) - common, least)
    return common / together if together > 0 else 0.0


def _checked(box: Box) -> Box:
    if len(box) != 4:
        raise ValueError(f"the box {tuple(box)} has {len(box)} numbers; a box is (x1, y1, x2, y2)")
    x1, y1, x2, y2 = map(float, box)
    if not all(abs(edge) <= FAR for edge in (x1, y1, x2, y2)):  # NaN is not
        raise ValueError(f"the box {tuple(box)} has a corner that is no number up to {FAR:g}; drop it")
    if x1 > x2 or y1 > y2:
        raise ValueError(f"the box {tuple(box)} has its corners the wrong way round; it is (x1, y1, x2, y2)")
    return (x1, y1, x2, y2)


def _checked_size(size: Size) -> Size:
    if len(size) != 2 or not all(1 <= side <= FAR for side in size):
        raise ValueError(f"a picture's size is {tuple(size)}; it is (width, height), both 1 or more")
    return (int(size[0]), int(size[1]))


def _checked_threshold(name: str, value: float) -> None:
    if not 0 < value <= 1:
        raise ValueError(f"{name} is {value}; it lies above 0 and is 1 at most")


# ---------------------------------------------------------------- proposals


def confident(detections: Sequence[D], threshold: float) -> list[D]:
    """Those that score over `threshold`, in their order; if none does, the two likeliest of two or more.

    A single detection that does not pass counts as none, as released (true_box_sample.py:
    sample_rpn_output). Raises ValueError for a score that is not a number.
    """
    for found in detections:
        if found.score != found.score:
            raise ValueError(f"a detection scores {found.score}, which is no number; drop it")
    passed = [found for found in detections if found.score > threshold]
    if passed or len(detections) < 2:
        return passed
    return sorted(detections, key=lambda found: -found.score)[:2]


def merged(boxes: Sequence[Box], threshold: float, fidelity: Fidelity) -> list[Box]:
    """What a detector found, without labels, as proposals: boxes that overlap become the box around them.

    fixed: while a pair has an IoU of `threshold` or more, the pair with the greatest is replaced by its
    union (of equals, the pair that comes first when sorted). Sorted, whatever the order of `boxes`.
    released: sample_tools.py, neighbor_rpn_merge, in its order.

    >>> merged([(0, 0, 10, 10), (5, 0, 15, 10), (90, 90, 99, 99), (7, 7, 7, 9)], 0.3, "fixed")
    [(0.0, 0.0, 15.0, 10.0), (90.0, 90.0, 99.0, 99.0)]
    """
    _checked_threshold("the IoU to merge at", threshold)
    given = [_checked(box) for box in boxes]
    if fidelity == "released":
        return _merged_in_passes(given, threshold)
    return _merged_by_likeness([box for box in given if _area(box) > 0], threshold)


def _merged_by_likeness(boxes: Sequence[Box], threshold: float) -> list[Box]:
    """Until no pair reaches the threshold. Pairs of boxes that are gone are skipped as they come up."""
    alive: set[Box] = set()
    pairs: list[tuple[float, Box, Box]] = []

    def add(box: Box) -> None:
        for other in alive - {box}:
            if (overlap := _iou(box, other)) >= threshold:
                heapq.heappush(pairs, (-overlap, min(box, other), max(box, other)))
        alive.add(box)

    for box in boxes:
        add(box)
    while pairs:
        _, a, b = heapq.heappop(pairs)
        if a in alive and b in alive:
            alive.difference_update((a, b))
            add(union((a, b)))
    return sorted(alive)


def _merged_in_passes(boxes: list[Box], threshold: float) -> list[Box]:
    """The released merging. It ends: a pass in which the first box has a partner returns fewer boxes."""
    while boxes:
        boxes = _one_pass(boxes, threshold)
        if not _partners(boxes, threshold):
            break
    return boxes


def _one_pass(boxes: list[Box], threshold: float) -> list[Box]:
    """Each box with its partners; a union goes to the result at once and to the end of the queue too."""
    queue, done = list(boxes), list[Box]()
    while queue:
        partners = _partners(queue, threshold)
        if partners:
            around = union([queue[0], *(queue[k] for k in partners)])
            done.append(around)
            queue = [box for k, box in enumerate(queue) if k and k not in partners] + [around]
        else:
            first = queue.pop(0)
            if first not in done:
                done.append(first)
    return done


def _partners(boxes: Sequence[Box], threshold: float) -> set[int]:
    """The places of the boxes whose IoU with the first is over the threshold."""
    return {k for k in range(1, len(boxes)) if _iou(boxes[0], boxes[k], LEAST_UNION) > threshold}


# ---------------------------------------------------------------- patches


def spatial(proposals: Sequence[Box], size: Size, attach: float) -> dict[str, Box]:
    """The four spatial patches, by the names of `SPATIAL`, inside the picture.

    A quadrant grows to the box around itself and the proposals of whose area more than `attach` (0.3 as
    released) lies in it; with 0.25 or more, a proposal attaches to two quadrants at most. No proposals,
    or one that is the whole picture, leave the quadrants. true_box_sample.py: proposal_to_n_part.

    >>> spatial([(40, 10, 60, 20)], (100, 80), 0.3)["LT"]
    (0.0, 0.0, 60.0, 40.0)
    """
    _checked_threshold("the share to attach at", attach)
    size = _checked_size(size)
    given = [box for box in map(_checked, proposals) if _area(box) > 0]
    patches = {}
    for pid, quadrant in quadrants(size).items():
        attached = [box for box in given if _intersection(box, quadrant) / _area(box) > attach]
        patches[pid] = _clipped(union([quadrant, *attached]), size)
    return patches


def semantic(boxes: Sequence[Box], size: Size, gate: float, fidelity: Fidelity) -> Semantic:
    """The patch around the objects that a caption names, used where its IoU with the picture is below `gate`.

    No boxes: the whole picture, not used. Nor is a box used that holds no pixel.

    >>> semantic([(10, 10, 20, 20), (30, 10, 40, 30)], (100, 100), 0.4, "fixed")
    Semantic(box=(10.0, 10.0, 40.0, 30.0), share=0.06, used=True)
    >>> semantic([], (100, 100), 0.4, "fixed")
    Semantic(box=(0.0, 0.0, 100.0, 100.0), share=1.0, used=False)
    """
    _checked_threshold("the semantic gate", gate)
    width, height = _checked_size(size)
    whole: Box = (0.0, 0.0, float(width), float(height))
    given = list(map(_checked, boxes))
    if fidelity == "fixed":
        given = [box for box in (_clipped(box, size) for box in given) if _area(box) > 0]
        nothing = whole
    else:
        nothing = (0.0, 0.0, width - 1.0, height - 1.0)
    box = union(given) if given else nothing
    share = _iou(box, whole)
    holds_pixels = round(box[0]) < round(box[2]) and round(box[1]) < round(box[3])
    return Semantic(box, share, bool(given) and holds_pixels and share < gate)


def overlapping(patches: Mapping[str, Box], threshold: float, fidelity: Fidelity) -> list[Pair]:
    """The adjacent spatial patches whose IoU is over `threshold`, in the order of `ADJACENT`.

    patches: by name; others than `SPATIAL` are ignored, and a pair of which one is missing is none.
    fixed: an IoU equal to the threshold is over it. released: it is not (semantic_batch.py: merge).

    >>> halves = {"LT": (0, 0, 7, 5), "RT": (3, 0, 10, 5), "LB": (0, 5, 5, 10), "RB": (5, 5, 10, 10)}
    >>> overlapping(halves, 0.4, "fixed")
    [Pair(a='LT', b='RT', iou=0.4, box=(0.0, 0.0, 10.0, 5.0))]
    >>> overlapping(halves, 0.4, "released")
    []
    """
    _checked_threshold("the IoU of a pair", threshold)
    pairs = []
    for a, b in ADJACENT:
        if a in patches and b in patches:
            overlap = iou(patches[a], patches[b])
            if overlap > threshold or (overlap == threshold and fidelity == "fixed"):
                pairs.append(Pair(a, b, overlap, union((patches[a], patches[b]))))
    return pairs
