"""VQA soft accuracy: how many of a question's human answers agree with the answer given.

Knows the score's variants in circulation. Must not know: datasets, prompts, models. The normalisers
stand in `metrics/_vqa_text.py`.

Antol et al., "VQA: Visual Question Answering", ICCV 2015, https://visualqa.org/evaluation.html.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

from harness.types import Metric, Response, Sample
from metrics._mean import Mean
from metrics._vqa_text import Normalizer, normalize

__all__ = ["metric", "normalize", "soft_accuracy"]

Variant: TypeAlias = Literal["m4c", "official", "official_v2", "vlmevalkit", "short", "vicrop"]

_NORMALIZER: dict[Variant, Normalizer] = {
    "m4c": "m4c",
    "official": "official",
    "official_v2": "official",
    "vlmevalkit": "vlmevalkit",
    "short": "m4c",
    "vicrop": "vicrop",
}


def soft_accuracy(answer: str, references: Sequence[str], variant: Variant = "m4c") -> float:
    """Agreement of `answer` with the human answers `references` (usually ten), from 0 to 1.

    With n references equal to the answer after normalisation:

    - `m4c` (default; TextVQA in LLaVA and lmms-eval), `official` (VQAv2; lmms-eval) and `vlmevalkit`:
      the mean over the references of min(1, k/3), k counting the matches among the *others*. For ten
      references this is min(1, 0.3 n).
    - `official_v2` (GT-Vision-Lab `vqaEval.py`): as `official`, but nothing at all is normalised when
      the references are one and the same text, so "Yes" against ten "yes" scores 0.
    - `short` (A-OKVQA, many papers): min(1, n/3), normalised as m4c.
    - `vicrop` (mllms_know `get_score.py`, which reports 100 times it): min(1, 0.3 n), whatever the
      number of references.

    Raises ValueError without references, or for an unknown variant.

    >>> humans = ["coke"] * 3 + ["coca cola"] * 7
    >>> [round(soft_accuracy("Coke.", humans, v), 3) for v in ("m4c", "short", "vicrop")]
    [0.9, 1.0, 0.9]
    >>> soft_accuracy("Yes", ["yes"] * 10), soft_accuracy("Yes", ["yes"] * 10, "official_v2")
    (1.0, 0.0)
    """
    if variant not in _NORMALIZER:
        raise ValueError(f"unknown VQA variant {variant!r}: use one of {', '.join(_NORMALIZER)}")
    if not references:
        raise ValueError("VQA accuracy needs at least one reference answer, and there is none")
    if variant == "official_v2" and len({_trimmed(reference) for reference in references}) == 1:
        answer, references = _trimmed(answer), [_trimmed(reference) for reference in references]
    else:
        rule = _NORMALIZER[variant]
        answer, references = normalize(answer, rule), [normalize(r, rule) for r in references]
    matches = [reference == answer for reference in references]
    n = sum(matches)
    if variant == "short":
        return min(1.0, n / 3)
    if variant == "vicrop":
        return min(0.3 * n, 1.0)
    return sum(min(1.0, (n - match) / 3) for match in matches) / len(matches)


def _trimmed(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


@dataclass(frozen=True)
class Vqa(Mean):
    """The mean soft accuracy; a sample's targets are its reference answers."""

    variant: Variant = "m4c"
    name: ClassVar[str] = "vqa"

    def score(self, answer: str, targets: Sequence[str]) -> float:
        return soft_accuracy(answer, targets, self.variant)

    def measure(self, responses: Sequence[Response], samples: Sequence[Sample]) -> list[dict[str, float]]:
        odd = [sample for sample in samples if len(sample.targets) not in (0, 10)]
        if odd and self.variant == "vicrop":
            warnings.warn(
                f"vqa:variant=vicrop assumes 10 reference answers; sample {odd[0].id} has "
                f"{len(odd[0].targets)} ({len(odd)} such samples here): use another variant",
                stacklevel=2,
            )
        return super().measure(responses, samples)


def metric(variant: Variant = "m4c") -> Metric:
    """The mean soft accuracy over samples (`accuracy`, 0 to 1): see `soft_accuracy`.

    >>> vqa = metric("official")
    >>> vqa.reduce(vqa.measure([Response("2")], [Sample("1", targets=("two",) * 10)]))
    {'accuracy': 1.0}
    """
    return Vqa(variant)
