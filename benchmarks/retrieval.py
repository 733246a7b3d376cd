"""Seconds and memory of ranking a retrieval matrix, beside a loop of argsorts, in one run.

    python -m benchmarks.retrieval [--images 5000] [--per-image 5] [--rounds 3]

The loop is what VSE++, LAPS and their descendants do: one argsort per image and per caption. Ours and theirs
take turns over the same float32 matrix; their ranks must lie within the bounds that ours give where
similarities are equal, which is where argsort's order is the machine's. Printed: medians over the rounds, and
the most memory that ours held beyond the matrix (as NumPy reports it to tracemalloc, in a call of its own).
"""

from __future__ import annotations

import argparse
import statistics
import time
import tracemalloc
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from metrics.retrieval import ranks, summary

Floats = npt.NDArray[np.float32]
Owners = npt.NDArray[np.int64]
Ranked = Sequence[npt.NDArray[Any]]


def matrix(images: int, per_image: int, seed: int = 0) -> tuple[Floats, Owners]:
    """Normal noise, a caption three higher with its own image."""
    rng = np.random.default_rng(seed)
    captions = images * per_image
    similarity = np.empty((images, captions), np.float32)
    for row in similarity:
        row[:] = rng.standard_normal(captions, dtype=np.float32)
    owner = np.repeat(np.arange(images), per_image)
    similarity[owner, np.arange(captions)] += 3
    return similarity, owner


def argsorts(similarity: Floats, owner: Owners) -> tuple[Owners, Owners]:
    """The references' loop, step by step, for any number of captions per image."""
    images, captions = similarity.shape
    of_image = np.zeros(images, np.int64)
    for image in range(images):
        order = np.argsort(similarity[image])[::-1]
        of_image[image] = np.flatnonzero(owner[order] == image)[0]
    of_caption = np.zeros(captions, np.int64)
    for caption in range(captions):
        order = np.argsort(similarity[:, caption])[::-1]
        of_caption[caption] = np.flatnonzero(order == owner[caption])[0]
    return of_image, of_caption


def within(found: Ranked, low: Ranked, high: Ranked) -> bool:
    bounds = zip(found, low, high, strict=True)
    return all(bool(np.all((lower <= rank) & (rank <= upper))) for rank, lower, upper in bounds)


def timed(function: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    began = time.perf_counter()
    result = function(*arguments)
    return time.perf_counter() - began, result


def peak(function: Callable[..., Any], *arguments: Any) -> int:
    """Bytes held at most beyond what was held before."""
    tracemalloc.start()
    try:
        function(*arguments)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--per-image", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()

    similarity, owner = matrix(args.images, args.per_image)
    seconds: dict[str, list[float]] = {"ranks": [], "summary": [], "argsort": []}
    for _ in range(args.rounds):
        ours, found = timed(ranks, similarity, owner)
        theirs, expected = timed(argsorts, similarity, owner)
        numbers, _ = timed(summary, similarity, owner)
        if not within(expected, ranks(similarity, owner, "optimistic"), found):
            raise SystemExit("the two found different ranks")
        for name, taken in (("ranks", ours), ("summary", numbers), ("argsort", theirs)):
            seconds[name].append(taken)
    median = {name: statistics.median(taken) for name, taken in seconds.items()}
    ratios = [theirs / ours for theirs, ours in zip(seconds["argsort"], seconds["ranks"], strict=True)]
    shape = " x ".join(f"{size:,}" for size in similarity.shape)
    print(f"{shape} float32, the same ranks in all {args.rounds} rounds")
    print(f"argsort loop {median['argsort']:8.3f} s")
    print(f"ranks        {median['ranks']:8.3f} s, {statistics.median(ratios):.1f} times as fast", end=" ")
    print(f"({min(ratios):.1f} to {max(ratios):.1f})")
    print(f"summary      {median['summary']:8.3f} s")
    beyond = peak(ranks, similarity, owner), peak(summary, similarity, owner)
    print(
        "memory beyond the matrix: ranks {:.1f} MiB, summary {:.1f} MiB".format(*(b / 2**20 for b in beyond))
    )


if __name__ == "__main__":
    main()
