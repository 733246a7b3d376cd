"""Does dense text help retrieval? LAPS and both SEPS, trained from the bundled demo model's vision tower.

    python -m benchmarks.dense_text [--seeds 3] [--epochs 3] [--jobs 2] [--out DIR]

Generated scenes (`scene_retrieval`: 2,000 images to train on, 200 to choose the epoch, 200 to test, five
captions each and a dense text with a tenth of its attributes wrong). Each of three models is trained once per
seed, through `fovea train`, and each checkpoint is evaluated under `sparse`, `candidate` and `oracle_query`,
through `fovea run`; what is there already is not made again. Printed: rSum (of 600, chance about 16), the
mean over seeds with a 95 % interval over images, and the least and greatest seed; beside it the paired
difference to LAPS, which knows no dense text, in the same sense.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

from harness import paired, stats, store
from metrics.retrieval import metric

IMPLS = ("laps", "seps_released", "seps_paper")
PROTOCOLS = ("sparse", "candidate", "oracle_query")
MODEL = "backbone=assets/demo,text=scratch-128x2x4,embed_size=128,aggr_ratio=.15"
RECIPE = ("lr=1e-3", "milestones=2", "sum_epochs=10")
"""A new text tower learns nothing from the hardest negative alone, so the loss sums over all throughout."""

Counts = list[tuple[str, dict[str, float]]]
"""(cluster, counts) of each query, in the queries' order."""

Found = dict[tuple[str, int, str], Counts]
"""By model, seed and protocol."""


def fovea(*words: str) -> None:
    """A command of its own, in one thread."""
    command = [str(Path(sys.executable).parent / "fovea"), *words]
    done = subprocess.run(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")


def made(impl: str, seed: int, epochs: int, out: Path) -> None:
    """A checkpoint and its three runs."""
    folder = out / f"{impl}-{seed}"
    options = [word for setting in RECIPE for word in ("--set", setting)]
    words = [f"seps:impl={impl},{MODEL}", "--data", "scene_retrieval", "--epochs", str(epochs)]
    fovea("train", *words, "--seed", str(seed), *options, "--out", str(folder))
    for protocol in PROTOCOLS:
        fovea("run", f"scene_retrieval:protocol={protocol}", f"seps:{folder}", "--out", str(out / "runs"))
    print(f"{impl}, seed {seed}: done", flush=True)


def counts_of(out: Path) -> Found:
    """By model, seed and protocol, what became of each query."""
    found: Found = {}
    for path in store.find_runs(out / "runs"):
        run = store.read_run(path)
        impl, _, seed = Path(run["identity"]["model"]["model"]).name.rpartition("-")
        records = sorted(store.read_records(path), key=lambda record: record.sample_id)
        key = (impl, int(seed), run["identity"]["task"]["protocol"])
        found[key] = [(record.group or "", record.measures["retrieval"]) for record in records]
    return found


def together(found: Found, impl: str, seeds: Sequence[int], protocol: str) -> Counts:
    """The queries of all seeds, one after the other: rSum of these is the mean over seeds."""
    return [count for seed in seeds for count in found[impl, seed, protocol]]


def table(out: Path, seeds: Sequence[int]) -> None:
    found, recall = counts_of(out), metric()
    print(f"{'model':<14} {'protocol':<13} {'rSum':>6}  {'95 %':<16} {'seeds':<9} against LAPS, sparse")
    for impl, protocol in product(IMPLS, PROTOCOLS):
        ours = together(found, impl, seeds, protocol)
        base = together(found, "laps", seeds, "sparse")
        clusters = [cluster for cluster, _ in ours]
        counts, others = ([count for _, count in some] for some in (ours, base))
        rsum = stats.bootstrap(recall, counts, clusters)["rsum"]
        gain = paired.paired_difference(recall, counts, others, clusters)["rsum"]
        each = [recall.reduce([count for _, count in found[impl, seed, protocol]])["rsum"] for seed in seeds]
        known = [value for value in each if value is not None]
        print(
            f"{impl:<14} {protocol:<13} {rsum.value:>6.1f}  [{rsum.low:.1f}, {rsum.high:.1f}]   "
            f"{min(known):.0f}-{max(known):<5.0f} {gain.value:+.1f} [{gain.low:+.1f}, {gain.high:+.1f}]"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=2, help="trainings at once")
    parser.add_argument("--out", type=Path, default=Path("results/dense_text"))
    asked = parser.parse_args()
    seeds = range(asked.seeds)
    with ThreadPoolExecutor(asked.jobs) as pool:
        each = product(seeds, IMPLS)
        list(pool.map(lambda one: made(one[1], one[0], asked.epochs, asked.out), each))
    table(asked.out, seeds)


if __name__ == "__main__":
    main()
