"""How often does the gate cry wolf, and how small a loss does it see? Simulated gates whose truth is known.

    python -m benchmarks.gate [--gates 2000] [--rows 10]

A gate judges ten rows at once, against a tolerance of .03. First per setting, where every row's true loss is
zero or exactly the tolerance: how often at least one row is called worse (a false alarm; goal: the 95 %
bound of its share at most 6.5 %), and how often at least one is called good though its loss is no smaller
than the tolerance, with the gate's interval and with two that were tried before it. Then how often one row
that lost the tolerance and d more is called worse.

Answers are right or wrong; those of two runs to one question, of the rows to one question, and in the
settings with images those to questions about one image, are correlated.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

TOLERANCE = 0.03
FAMILY = 0.05
Ints = npt.NDArray[np.int8]


@dataclass(frozen=True)
class Setting:
    """n questions about n / per_image images; the baseline's rate. alike: the correlation, beneath right and
    wrong, of two runs' answers to one question; half of what they share, all rows do."""

    n: int
    rate: float
    loss: float
    per_image: int = 1
    alike: float = 0.6


SETTINGS = [
    replace(setting, loss=loss)
    for setting in (
        Setting(100, 0.5, 0),
        Setting(100, 0.2, 0),
        Setting(100, 0.8, 0, alike=0.95),
        Setting(100, 0.5, 0, alike=0.98),
        Setting(250, 0.3, 0, alike=0.9),
        Setting(500, 0.7, 0, alike=0.99),
        Setting(1000, 0.6, 0),
        Setting(200, 0.3, 0, per_image=4, alike=0.95),
        Setting(500, 0.5, 0, per_image=5),
        Setting(1000, 0.2, 0, per_image=10, alike=0.8),
    )
    for loss in (0.0, TOLERANCE)
]
POWER = [
    Setting(n, 0.6, TOLERANCE + more, alike=0.9)
    for n in (100, 200, 500, 1000, 2000, 5000)
    for more in (0.02, 0.05, 0.1, 0.2)
]


def lost(setting: Setting, gates: int, rows: int, rng: np.random.Generator) -> Ints:
    """(gates, rows, n): the baseline's score of each question less the run's: -1, 0 or 1."""

    def normal(*shape: int) -> npt.NDArray[np.float32]:
        return rng.standard_normal(shape, dtype=np.float32)

    shared = setting.alike / 2 if setting.per_image > 1 else 0.0
    both = np.sqrt(0.5) * normal(gates, 1, setting.n) + np.sqrt(0.5) * normal(gates, rows, setting.n)
    images = normal(2, gates, rows, setting.n // setting.per_image) if shared else None
    sides = []
    for sign, rate in ((1, setting.rate), (-1, setting.rate - setting.loss)):
        latent = np.sqrt(setting.alike - shared) * both
        latent += np.sqrt(1 - setting.alike) * normal(gates, rows, setting.n)
        if images is not None:  # an image is easy or hard for one run more than for the other
            image = np.sqrt(shared / 2) * (images[0] + sign * images[1])
            latent += np.repeat(image, setting.per_image, axis=2)
        sides.append(latent < NormalDist().inv_cdf(rate))
    return sides[0].astype(np.int8) - sides[1].astype(np.int8)


def intervals(
    differences: Ints, per_image: int, extra: int, rows: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The ends of `harness.noninferiority.paired_jackknife` for all of them at once; extra: clusters on top
    as far out as the furthest (2 is what it does)."""
    from scipy.stats import t

    *shape, n = differences.shape
    images = differences.reshape(*shape, n // per_image, per_image).mean(axis=-1, dtype=np.float64)
    units = images.shape[-1]
    means = images.mean(axis=-1)
    off = images - means[..., None]
    squares = (off**2).sum(axis=-1) + extra * (off**2).max(axis=-1)
    reach = t.ppf(1 - FAMILY / rows / 2, units - 1) * np.sqrt(squares / units / (units - 1))
    return means - reach, means + reach


def percentiles(
    differences: Ints, per_image: int, draws: int, rows: int, rng: np.random.Generator
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """The percentile bootstrap's ends: clusters of one total are drawn as one kind."""
    *shape, n = differences.shape
    sums = differences.reshape(-1, n // per_image, per_image).sum(axis=-1, dtype=np.int64)
    kinds = np.arange(-per_image, per_image + 1)
    counts = (sums[..., None] == kinds).sum(axis=1)
    ends = np.empty((len(counts), 2))
    tail = FAMILY / rows / 2
    for place, count in enumerate(counts):
        drawn = rng.multinomial(count.sum(), count / count.sum(), size=draws) @ kinds / n
        ends[place] = np.quantile(drawn, (tail, 1 - tail))
    return ends[:, 0].reshape(shape), ends[:, 1].reshape(shape)


def false_alarms(
    setting: Setting, gates: int, rows: int, percentile_gates: int
) -> list[tuple[int, int, int]]:
    """Per interval (the gate's, without the extra clusters, percentile): gates with a row falsely worse, with
    one falsely good, of how many."""
    rng = np.random.default_rng(0)
    found = np.zeros((3, 3), dtype=np.int64)
    block = max(1, 20_000_000 // (rows * setting.n * 4))
    for start in range(0, gates, block):
        size = min(block, gates - start)
        differences = lost(setting, size, rows, rng)
        few = differences[: max(0, percentile_gates - start)]
        for place, (low, high) in enumerate(
            (
                intervals(differences, setting.per_image, 2, rows),
                intervals(differences, setting.per_image, 0, rows),
                percentiles(few, setting.per_image, 10_000, rows, rng),
            )
        ):
            worse = (low > TOLERANCE + 1e-9).any(axis=1).sum()
            good = (high <= TOLERANCE + 1e-9).any(axis=1).sum() if setting.loss >= TOLERANCE else 0
            found[place] += (worse, good, len(low))
    return [(int(worse), int(good), int(of)) for worse, good, of in found]


def bound(alarms: int, of: int) -> float:
    """The upper end of the share's one-sided 95 % interval (Clopper & Pearson 1934)."""
    from scipy.stats import beta

    return float(beta.ppf(0.95, alarms + 1, of - alarms))


def seen(setting: Setting, gates: int, rows: int) -> tuple[float, float]:
    """How often a row with this loss is called worse, and good."""
    rng = np.random.default_rng(1)
    differences = lost(setting, gates, 1, rng)
    low, high = intervals(differences, setting.per_image, 2, rows)
    return float((low > TOLERANCE + 1e-9).mean()), float((high <= TOLERANCE + 1e-9).mean())


def agrees() -> None:
    """That `intervals` is what the gate computes."""
    from harness.noninferiority import paired_jackknife
    from metrics.exact import metric

    setting = Setting(60, 0.6, 0.1, per_image=3)
    differences = lost(setting, 1, 1, np.random.default_rng(2))
    low, high = intervals(differences, 3, 2, 10)
    before = [{"score": float(lost_one > 0), "scored": 1} for lost_one in differences[0, 0]]
    now = [{"score": float(lost_one < 0), "scored": 1} for lost_one in differences[0, 0]]
    images = [place // 3 for place in range(60)]
    found = paired_jackknife(metric(), before, now, images, confidence=1 - FAMILY / 10)["accuracy"]
    assert np.allclose((found.low, found.high), (low[0, 0], high[0, 0])), (found, low, high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gates", type=int, default=2000)
    parser.add_argument("--rows", type=int, default=10)
    parser.add_argument("--percentile", type=int, default=200, help="gates judged by the bootstrap too")
    knobs = parser.parse_args()
    agrees()
    print(f"{knobs.gates:,} gates of {knobs.rows} rows each, tolerance {TOLERANCE:g}; shares of gates")
    print("                                     the gate's interval          plain t   percentile bootstrap")
    print("    n  images  rate  alike  loss   worse   bound    good       worse    good       worse    good")
    largest = 0.0
    for setting in SETTINGS:
        found = false_alarms(setting, knobs.gates, knobs.rows, knobs.percentile)
        (worse, good, of), *others = found
        largest = max(largest, bound(worse, of))
        print(
            f"{setting.n:>5}  {setting.n // setting.per_image:>6}  {setting.rate:>4g}  {setting.alike:>5g}  "
            f"{setting.loss:>4g}  {worse / of:>6.2%}  {bound(worse, of):>6.2%}  {_share(good, of, setting)}  "
            + "  ".join(
                f"  {one / total:>7.2%} {_share(other, total, setting)}" for one, other, total in others
            ),
            flush=True,
        )
    print(f"largest bound on false alarms: {largest:.2%}")
    print(f"\nHow often a row is called worse, of {knobs.rows} judged at once (rate .6, alike .9)")
    losses = sorted({setting.loss for setting in POWER})
    print("    n  " + "  ".join(f"loss {loss:g}".rjust(9) for loss in losses) + "   good at loss 0")
    for n in dict.fromkeys(setting.n for setting in POWER):
        same = Setting(n, 0.6, 0.0, alike=0.9)
        found = [seen(replace(same, loss=loss), knobs.gates, knobs.rows)[0] for loss in losses]
        kept = seen(same, knobs.gates, knobs.rows)[1]
        print(f"{n:>5}  " + "  ".join(f"{share:>9.1%}" for share in found) + f"   {kept:>14.1%}", flush=True)


def _share(good: int, of: int, setting: Setting) -> str:
    return f"{good / of:>6.2%}" if setting.loss >= TOLERANCE else "     -"


if __name__ == "__main__":
    main()
