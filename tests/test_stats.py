"""Intervals against scipy, and their properties."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pytest
import scipy.stats

from harness import stats
from harness.types import Response, Sample


@dataclass(frozen=True)
class Mean:
    """The mean of one number per sample; `additive` chooses the fast or the general way."""

    additive: bool = True
    name: str = "mean"
    variant: str = ""
    scope: Literal["sample", "corpus"] = "sample"

    @property
    def higher_is_better(self) -> Mapping[str, bool]:
        return {"mean": True}

    def measure(self, responses: Sequence[Response], samples: Sequence[Sample]) -> list[Any]:
        raise AssertionError("not measured here")

    def reduce(self, counts: Sequence[Any]) -> dict[str, float | None]:
        n = sum(count["n"] for count in counts)
        return {"mean": sum(count["x"] for count in counts) / n if n else None}


def counts(values: Sequence[float]) -> list[dict[str, float]]:
    return [{"x": float(value), "n": 1} for value in values]


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_intervals_agree_with_scipys_bootstrap(method: Literal["percentile", "bca"]) -> None:
    values = np.random.default_rng(5).gamma(1.0, size=80)
    ours = stats.bootstrap(Mean(), counts(values), draws=20_000, method=method)["mean"]
    scipys = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method=method, rng=np.random.default_rng(6), batch=1000
    ).confidence_interval
    width = scipys.high - scipys.low
    assert ours.low == pytest.approx(scipys.low, abs=0.03 * width)
    assert ours.high == pytest.approx(scipys.high, abs=0.03 * width)


def test_the_fast_way_equals_the_general_way() -> None:
    values = counts(np.random.default_rng(0).random(60))
    clusters = [index // 3 for index in range(60)]
    fast = stats.bootstrap(Mean(additive=True), values, clusters, draws=200)["mean"]
    slow = stats.bootstrap(Mean(additive=False), values, clusters, draws=200)["mean"]
    assert fast.low == pytest.approx(slow.low, abs=1e-12)
    assert fast.high == pytest.approx(slow.high, abs=1e-12)


def test_the_same_counts_give_the_same_interval() -> None:
    values = counts(np.random.default_rng(0).random(50))
    assert stats.bootstrap(Mean(), values) == stats.bootstrap(Mean(), values)


def test_samples_of_one_image_widen_the_interval() -> None:
    values = counts(np.repeat(np.random.default_rng(1).integers(0, 2, 40), 10))
    alone = stats.bootstrap(Mean(), values)["mean"]
    clustered = stats.bootstrap(Mean(), values, [index // 10 for index in range(400)])["mean"]
    assert clustered.low is not None and alone.low is not None
    assert clustered.high - clustered.low > 2 * (alone.high - alone.low)  # type: ignore[operator]


def test_an_undefined_number_has_no_interval() -> None:
    assert stats.bootstrap(Mean(), [{"x": 0, "n": 0}])["mean"] == stats.Estimate(None, None, None)
    assert stats.bootstrap(Mean(), [])["mean"] == stats.Estimate(None, None, None)


def test_a_number_that_is_often_undefined_has_a_value_but_no_interval() -> None:
    rare = [{"x": 1.0, "n": 1}] + [{"x": 0.0, "n": 0}] * 9
    assert stats.bootstrap(Mean(), rare)["mean"] == stats.Estimate(1.0, None, None)


def test_a_paired_difference_uses_the_pairing() -> None:
    rng = np.random.default_rng(2)
    before = rng.random(200)
    after = before + 0.1
    paired = stats.paired_difference(Mean(), counts(after), counts(before))["mean"]
    assert paired.value == pytest.approx(0.1)
    assert paired.low == pytest.approx(0.1) and paired.high == pytest.approx(0.1)


def test_a_run_does_not_differ_from_itself() -> None:
    values = counts(np.random.default_rng(3).random(30))
    assert stats.paired_difference(Mean(), values, values)["mean"] == stats.Estimate(0.0, 0.0, 0.0)


def test_unequal_samples_are_not_a_pair() -> None:
    with pytest.raises(ValueError, match="got 2 and 1"):
        stats.paired_difference(Mean(), counts([1, 2]), counts([1]))


def test_weights_draw_every_unit_with_replacement() -> None:
    weights = np.concatenate(list(stats.resample_weights(7, 3000, seed=0)))
    assert weights.shape == (3000, 7)
    assert (weights.sum(axis=1) == 7).all()
    assert weights.mean(axis=0) == pytest.approx(np.ones(7), abs=0.1)
