"""CPU seconds and memory of LAPS's scores in blocks, beside a walk over captions one by one, in one run.

    python -m benchmarks.similarity [time] [memory] [--threads 1] [--pairs 16384] [--rounds 3]

The walk is the schedule of LAPS and SEPS as released: 256 images at a time, for each caption its words are
tiled over the images, patches scored, sorted and gathered, their aggregation logits computed, one column of
scores written. Both have the same random weights and features of ViT-224's sizes (196 patches and [CLS], 512
wide, 39 aggregated tokens).

`time`: captions of 14 words and dense texts of 90, in turns. Printed: medians over the rounds, the ratio of
each round, ours against itself (A/A), and what COCO-5K would take (1.25e8 pairs of captions; of dense texts
2.5e7 where each is met once, as ours does, 1.25e8 where each caption brings its own). The scores must agree
to 1e-6, or the script stops, but for pairs whose K-th and next patch float32 cannot tell apart; those are
counted. `memory`: the peak beyond features and scores, in a process of its own for each number of captions.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from adapters.seps.model import Config, Head
from adapters.seps.similarity import Texts, matrix

PATCHES, WIDTH = 196, 512
CAPTION, DENSE = 14, 90
IMAGES = 256
"""Images that the walk takes at a time: `shard_size` of the references."""


def walk(head: Head, V: Tensor, T: Tensor, lengths: Tensor) -> Tensor:
    """LAPS's block for each caption in turn; (images, captions)."""
    return torch.cat([_walk(head, V[at : at + IMAGES], T, lengths) for at in range(0, len(V), IMAGES)])


def _walk(head: Head, V: Tensor, T: Tensor, lengths: Tensor) -> Tensor:
    unit_image, unit_words = F.normalize(V, dim=-1), F.normalize(T, dim=-1)
    first = V[:, :1] if head.config.has_cls else V[:, :0]
    patches, unit = V[:, first.shape[1] :], unit_image[:, first.shape[1] :]
    centrality = (F.normalize(patches.mean(1, keepdim=True), dim=-1) * unit).sum(-1)
    columns = []
    for caption in range(len(T)):
        count = int(lengths[caption])
        tiled = unit_words[caption, :count].repeat(len(V), 1, 1)
        centre = F.normalize(T[caption, :count].mean(0), dim=-1)
        ordered, order = (centrality + (centre * unit).sum(-1)).sort(dim=1, descending=True)
        sorted_patches = patches.gather(1, order[:, :, None].expand(-1, -1, V.shape[2]))
        kept, dropped = sorted_patches.tensor_split([head.config.kept], dim=1)
        weights = head.aggregate(kept).transpose(1, 2).softmax(-1)
        rest = (dropped * ordered[:, head.config.kept :].softmax(-1)[..., None]).sum(1, keepdim=True)
        rows = F.normalize(torch.cat([first, weights @ kept, rest], 1), dim=-1)
        cosine = F.leaky_relu(tiled @ rows.transpose(1, 2), 0.1)
        columns.append(cosine.amax(2).mean(1) + cosine.amax(1).mean(1))
    return torch.stack(columns, 1)


def undecided(head: Head, V: Tensor, T: Tensor, lengths: Tensor) -> Tensor:
    """Pairs whose K-th and next score, in float64, are closer than float32 tells apart: either patch is
    right."""
    patches, kept = V[:, 1:].double(), head.config.kept
    unit = F.normalize(patches, dim=-1)
    centrality = (F.normalize(patches.mean(1, keepdim=True), dim=-1) * unit).sum(-1)
    columns = []
    for caption in range(len(T)):
        centre = F.normalize(T[caption, : int(lengths[caption])].double().mean(0), dim=-1)
        ordered = (centrality + unit @ centre).sort(dim=1, descending=True).values
        columns.append(ordered[:, kept - 1] - ordered[:, kept] < 3e-7)
    return torch.stack(columns, 1)


def head(seed: int = 0) -> Head:
    torch.manual_seed(seed)
    config = Config("laps", "vit-224", "bert", 224, PATCHES, True, 0.5, 0.4, WIDTH)
    return Head(config).eval()


def features(images: int, captions: int, length: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Normal noise; captions all of one length, which is the walk's best case as well as ours."""
    source = torch.Generator().manual_seed(seed)
    V = torch.randn(images, PATCHES + 1, WIDTH, generator=source)
    return V, torch.randn(captions, length, WIDTH, generator=source), torch.full((captions,), length)


def timed(function: Callable[[], Tensor]) -> tuple[float, Tensor]:
    began = time.process_time()
    found = function()
    return time.process_time() - began, found


@torch.no_grad()
def compare(length: int, pairs: int, rounds: int) -> tuple[float, float]:
    """Print and return seconds per pair, of ours and of the walk."""
    net = head()
    captions = max(1, pairs // IMAGES)
    V, T, lengths = features(IMAGES, captions, length)

    def ours() -> Tensor:
        return matrix(net, V, Texts.of(T, lengths))

    taken: dict[str, list[float]] = {"ours": [], "walk": [], "again": []}
    apart, flips = 0.0, 0
    close = undecided(net, V, T, lengths)
    for _ in range(rounds):
        seconds, found = timed(ours)
        theirs, expected = timed(lambda: walk(net, V, T, lengths))
        again, _ = timed(ours)
        different = (found - expected).abs()
        flips = int((different[close] > 1e-6).sum())
        apart = max(apart, float(different[~close].max()))
        for name, value in (("ours", seconds), ("walk", theirs), ("again", again)):
            taken[name].append(value)
    if apart > 1e-6:
        raise SystemExit(f"the scores differ by {apart:.1e}; 1e-6 is the limit")
    ratios = sorted(theirs / seconds for theirs, seconds in zip(taken["walk"], taken["ours"], strict=True))
    noise = sorted(again / seconds for again, seconds in zip(taken["again"], taken["ours"], strict=True))
    ours_median, walk_median = statistics.median(taken["ours"]), statistics.median(taken["walk"])
    count = IMAGES * captions
    print(
        f"{length} words, {count:,} pairs: ours {ours_median:.2f} s, walk {walk_median:.2f} s, "
        f"{statistics.median(ratios):.1f} times as fast ({ratios[0]:.1f} to {ratios[-1]:.1f}), "
        f"A/A {noise[0]:.2f} to {noise[-1]:.2f}, apart by {apart:.1e}; {int(close.sum())} pairs are "
        f"undecided, and {flips} of them kept another patch"
    )
    return ours_median / count, walk_median / count


def seconds(pairs: int, rounds: int) -> None:
    sparse, dense = compare(CAPTION, pairs, rounds), compare(DENSE, pairs, rounds)
    both = [caption + text for caption, text in zip(sparse, dense, strict=True)]
    print(f"both branches: {both[1] / both[0]:.1f} times as fast")
    ours = (1.25e8 * sparse[0] / 3600, 2.5e7 * dense[0] / 3600)
    theirs = (1.25e8 * sparse[1] / 3600, 1.25e8 * dense[1] / 3600)
    print(
        f"COCO-5K, extrapolated: ours {ours[0]:.1f} h of captions + {ours[1]:.1f} h of dense texts, "
        f"walk {theirs[0]:.0f} h + {theirs[1]:.0f} h"
    )


def resident(what: str) -> int:
    """Bytes of memory that this process holds (VmRSS) or held at most (VmHWM), the system's count."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(what))


def _grown(captions: int, threads: int, answer: multiprocessing.Queue[int]) -> None:
    torch.set_num_threads(threads)
    net = head()
    V, T, lengths = features(16, 2, CAPTION)
    matrix(net, V[:1], Texts.of(T, lengths))  # what libraries set up at first use
    source = torch.Generator().manual_seed(1)
    count = torch.randint(8, 50, (captions,), generator=source)
    unit = torch.empty(int(count.sum()), WIDTH).normal_(generator=source)
    starts = torch.cat([count.new_zeros(1), count.cumsum(0)])
    texts = Texts(unit.div_(WIDTH**0.5), starts, torch.empty(captions, WIDTH).normal_(generator=source))
    before = resident("VmRSS")
    found = matrix(net, V, texts)
    answer.put(resident("VmHWM") - before - found.nbytes)


def memory(threads: int) -> None:
    spawn = multiprocessing.get_context("spawn")
    for captions in (1000, 5000, 25_000):
        answer: multiprocessing.Queue[int] = spawn.Queue()
        worker = spawn.Process(target=_grown, args=(captions, threads, answer))
        worker.start()
        beyond = answer.get()
        worker.join()
        print(f"{captions:,} captions of 8 to 49 words: {beyond / 2**20:.0f} MiB beyond features and scores")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", nargs="*", choices=["time", "memory"], default=["time", "memory"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--pairs", type=int, default=16_384)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if "time" in args.what:
        seconds(args.pairs, args.rounds)
    if "memory" in args.what:
        memory(args.threads)


if __name__ == "__main__":
    main()
