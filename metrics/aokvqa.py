"""A-OKVQA's direct answers: agreement with ten free answers. (Its multiple choice is `metrics/choice.py`.)

Knows the variants in circulation, and that some questions have no direct answer worth comparing with.
Must not know: prompts, models.

Schwenk et al., "A-OKVQA", ECCV 2022; allenai/aokvqa `evaluation/eval_predictions.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias, get_args

from harness.types import Metric, Response, Sample
from metrics._mean import Mean
from metrics.vqa import soft_accuracy

Variant: TypeAlias = Literal["official", "normalised", "vicrop"]


def direct_answer(answer: str, references: Sequence[str], variant: Variant = "official") -> float:
    """How far the references agree with `answer`, 0 to 1; n of them equal it.

    - `official` (default): min(1, n/3), of texts as they stand: "Cab" is not "cab".
    - `normalised`: as VQAv2's accuracy, both sides normalised (`metrics.vqa.soft_accuracy`, `official`).
    - `vicrop` (mllms_know `get_score.py`, which reports 100 times it): min(1, 0.3 n), both normalised.

    Which questions count is the metric's business, not this function's. Raises ValueError without
    references, or for an unknown variant.

    >>> humans = ["cab", "cab", "Cab"] + ["taxi"] * 7
    >>> [round(direct_answer("Cab", humans, v), 3) for v in ("official", "normalised", "vicrop")]
    [0.333, 0.9, 0.9]
    """
    if variant not in get_args(Variant):
        known = ", ".join(get_args(Variant))
        raise ValueError(f"unknown A-OKVQA variant {variant!r}: use one of {known}")
    if variant != "official":
        return soft_accuracy(answer, references, "vicrop" if variant == "vicrop" else "official")
    if not references:
        raise ValueError("A-OKVQA's direct answer needs at least one reference answer, and there is none")
    return min(1.0, sum(answer == reference for reference in references) / 3.0)


@dataclass(frozen=True)
class DirectAnswer(Mean):
    """The mean over samples; a sample's targets are its direct answers.

    A question whose `sample.meta["difficult_direct_answer"]` is true has too varied answers and is left out
    (`official`, `normalised`); `excluded` says how many were. ViCrop leaves out none. Upstream counts a
    missing prediction as 0; here it is a failure of the run, and counted as one.
    """

    variant: Variant = "official"
    name: ClassVar[str] = "aokvqa"

    def score(self, answer: str, targets: Sequence[str]) -> float:
        return direct_answer(answer, targets, self.variant)

    def measure(self, responses: Sequence[Response], samples: Sequence[Sample]) -> list[dict[str, float]]:
        """As `Mean`, with `excluded` (0 or 1); what is excluded has no score."""
        counts = super().measure(responses, samples)
        return [
            {"score": 0.0, "scored": 0, "excluded": 1} if self._excludes(sample) else {**count, "excluded": 0}
            for count, sample in zip(counts, samples, strict=True)
        ]

    def _excludes(self, sample: Sample) -> bool:
        return self.variant != "vicrop" and sample.meta.get("difficult_direct_answer") is True

    def reduce(self, counts: Sequence[Any]) -> dict[str, float | None]:
        return {**super().reduce(counts), "excluded": sum(count["excluded"] for count in counts)}


def metric(variant: Variant = "official") -> Metric:
    """The mean direct-answer score (`accuracy`, 0 to 1) and how many were `excluded`: see `DirectAnswer`.

    >>> humans = {"targets": ("cab",) * 10}
    >>> samples = [Sample("1", **humans), Sample("2", **humans, meta={"difficult_direct_answer": True})]
    >>> aokvqa = metric()
    >>> aokvqa.reduce(aokvqa.measure([Response("cab"), Response("bus")], samples))
    {'accuracy': 1.0, 'excluded': 1}
    """
    return DirectAnswer(variant)
