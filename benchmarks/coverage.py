"""Do the intervals and tests of two runs keep their word? Simulated pairs of runs whose truth is known.

    python -m benchmarks.coverage [--pairs 2000] [--draws 2000] [--permutations 999]

Per setting: how often the 95 % interval of the paired difference holds the true one (goal: 93 to 97 %), and
how often the permutation test says p < .05 (where the rates are equal, a false alarm: 5 % at most, but for
chance). Then how often it does so at the difference that comparisons of equal rates say they could show. A
pair's answers are right or wrong at two rates, correlated as two runs over the same questions are; in the
settings with images, questions about one image are correlated too.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Setting:
    """n questions about n / per_image images. alike: the correlation, beneath right and wrong, of two runs'
    answers to one question; of questions about one image it is half of that."""

    n: int
    first: float
    second: float
    per_image: int = 1
    alike: float = 0.6


SETTINGS = (
    Setting(100, 0.5, 0.5),
    Setting(100, 0.2, 0.3),
    Setting(100, 0.7, 0.8),
    Setting(100, 0.2, 0.2, alike=0.9),
    Setting(250, 0.3, 0.3),
    Setting(250, 0.2, 0.8),
    Setting(1000, 0.6, 0.65),
    Setting(2000, 0.5, 0.5),
    Setting(500, 0.5, 0.5, per_image=5),
    Setting(1000, 0.4, 0.5, per_image=5),
    Setting(600, 0.3, 0.3, per_image=6, alike=0.9),
)


def draw(setting: Setting, rng: np.random.Generator) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    """Two runs' right and wrong answers to the same questions."""
    shared = setting.alike / 2 if setting.per_image > 1 else 0.0
    images = np.repeat(rng.standard_normal((2, setting.n // setting.per_image)), setting.per_image, axis=1)
    both = rng.standard_normal(setting.n)
    own = rng.standard_normal((2, setting.n))
    # an image is easy or hard for one run more than for the other: a difference of images, not noise
    latent = (
        np.sqrt(shared) * (images[0] + [[1], [-1]] * images[1]) / np.sqrt(2)
        + np.sqrt(setting.alike - shared) * both
        + np.sqrt(1 - setting.alike) * own
    )
    limits = [NormalDist().inv_cdf(rate) for rate in (setting.first, setting.second)]
    return latent[0] < limits[0], latent[1] < limits[1]


def simulate(setting: Setting, pairs: int, draws: int, permutations: int) -> tuple[float, float]:
    """(share of intervals that hold the truth, share of tests below .05)."""
    from harness import paired
    from metrics.exact import metric

    rng = np.random.default_rng(0)
    truth = setting.second - setting.first
    clusters = [place // setting.per_image for place in range(setting.n)]
    held = alarms = 0
    for seed in range(pairs):
        counts = [[{"score": float(right), "scored": 1} for right in side] for side in draw(setting, rng)]
        found = paired.paired(metric(), *counts, clusters, draws=draws, permutations=permutations, seed=seed)[
            "accuracy"
        ]
        low, high, p = found.difference.low, found.difference.high, found.chance.p
        assert low is not None and high is not None and p is not None
        held += low - 1e-9 <= truth <= high + 1e-9
        alarms += p < 0.05
    return held / pairs, alarms / pairs


def at_detectable(setting: Setting, pairs: int, permutations: int) -> tuple[float, float]:
    """(what comparisons of equal rates say that they could show, on average; how often it is found)."""
    from harness import paired
    from metrics.exact import metric

    rng = np.random.default_rng(1)
    clusters = [place // setting.per_image for place in range(setting.n)]
    shown = []
    for _ in range(20):
        counts = [[{"score": float(right), "scored": 1} for right in side] for side in draw(setting, rng)]
        found = paired.paired(metric(), *counts, clusters, draws=500, permutations=1)["accuracy"]
        shown.append(found.detectable or 0.0)
    mean = float(np.mean(shown))
    there = Setting(setting.n, setting.first, setting.first + mean, setting.per_image, setting.alike)
    return mean, simulate(there, pairs, 100, permutations)[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--draws", type=int, default=2000)
    parser.add_argument("--permutations", type=int, default=999)
    knobs = vars(parser.parse_args())
    error = 1.96 * (0.95 * 0.05 / knobs["pairs"]) ** 0.5
    print(f"{knobs['pairs']:,} pairs each: ± {error:.1%} on the coverage by chance (95 %)")
    print("    n  images  rates      alike  coverage  p < .05")
    for setting in SETTINGS:
        held, alarms = simulate(setting, **knobs)
        images = setting.n // setting.per_image
        print(
            f"{setting.n:>5}  {images:>6}  {setting.first:g}, {setting.second:<5g} {setting.alike:>6}  "
            f"{held:>8.1%}  {alarms:>7.1%}",
            flush=True,
        )
    print("    n  images  rate       alike  could show   found")
    for setting in SETTINGS:
        if setting.first == setting.second:
            shown, found = at_detectable(setting, knobs["pairs"], knobs["permutations"])
            images = setting.n // setting.per_image
            print(
                f"{setting.n:>5}  {images:>6}  {setting.first:<10g} {setting.alike:>6}  {shown:>10.3f}  "
                f"{found:>6.1%}",
                flush=True,
            )


if __name__ == "__main__":
    main()
