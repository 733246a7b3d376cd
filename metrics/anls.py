"""ANLS, average normalised Levenshtein similarity: short answers read from documents (DocVQA).

Knows the variants in circulation, which disagree at the threshold, on white space and on empty answers.
Must not know: datasets, prompts, models.

Biten et al., "Scene Text Visual Question Answering", ICCV 2019, equation 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

from rapidfuzz.distance import Levenshtein

from harness.types import Metric, Response, Sample
from metrics._mean import Mean

Variant: TypeAlias = Literal["lmms", "pypi_anls", "llava_stvqa", "anls_star", "vicrop_docvqa"]


def anls(
    answer: str, references: Sequence[str], variant: Variant = "lmms", threshold: float = 0.5
) -> float | None:
    """How close `answer` comes to the nearest reference, 0 to 1; 0 if that is below `threshold`.

    The similarity is 1 - edits / length, without regard to capitals; the variants differ in the rest:

    - `lmms` (default; lmms-eval `api/metrics.py`, VLMEvalKit, the RRC's own script): white space is one
      space wide for the edits, but the length is that of the longer *raw* text in capitals, spaces
      around it too, so that a padded answer gains. It is not trimmed here: the task does that.
    - `pypi_anls` (PyPI anls 0.0.2): the length without spare white space; a distance of exactly
      `threshold` is 0, as the paper's formula has it.
    - `llava_stvqa` (LLaVA `llava/eval/m4c_evaluator.py`): trimmed only. None where a reference and the
      answer are both empty, for upstream divides by zero there.
    - `anls_star` (PyPI anls_star 1.0.1, of one text against its options): as pypi_anls, without the
      capitals, and keeps a similarity of exactly `threshold`.
    - `vicrop_docvqa` (mllms_know `get_score.py`; no ANLS): 1 if the answer is part of a reference or a
      reference part of it, as they stand, so that an empty answer is right. Knows no threshold.

    Raises ValueError without references, or for an unknown variant.

    >>> round(anls("CocaCola", ["Coca Cola", "Coca Cola Company"]), 4), anls("The Coca", ["Coca Cola"])
    (0.8889, 0.0)
    >>> [anls("28", ["0.28"], v) for v in ("lmms", "pypi_anls", "llava_stvqa", "vicrop_docvqa")]
    [0.5, 0.0, 0.5, 1.0]
    """
    if variant not in _SCORERS:
        raise ValueError(f"unknown ANLS variant {variant!r}: use one of {', '.join(_SCORERS)}")
    if not references:
        raise ValueError("ANLS needs at least one reference answer, and there is none")
    scores = [_SCORERS[variant](answer, reference, threshold) for reference in references]
    known = [score for score in scores if score is not None]
    return max(known) if len(known) == len(scores) else None


def _collapsed(text: str) -> str:
    return " ".join(text.lower().split())


def _distance(one: str, other: str, length: int) -> float:
    return Levenshtein.distance(one, other) / length if length else 0.0


def _lmms(answer: str, reference: str, threshold: float) -> float:
    length = max(len(reference.upper()), len(answer.upper()))  # "ß" counts two
    score = 1 - _distance(_collapsed(reference), _collapsed(answer), length)
    return 0.0 if score < threshold else score


def _pypi_anls(answer: str, reference: str, threshold: float) -> float:
    answer, reference = _collapsed(answer), _collapsed(reference)
    distance = _distance(answer, reference, max(len(answer.upper()), len(reference.upper())))
    return 1 - distance if distance < threshold else 0.0


def _llava_stvqa(answer: str, reference: str, threshold: float) -> float | None:
    answer, reference = answer.lower().strip(), reference.lower().strip()
    if not answer and not reference:
        return None
    score = 1 - _distance(answer, reference, max(len(answer), len(reference)))
    return score if score >= threshold else 0.0


def _anls_star(answer: str, reference: str, threshold: float) -> float:
    answer, reference = _collapsed(answer), _collapsed(reference)
    score = 1 - _distance(reference, answer, max(len(reference), len(answer)))
    return 0.0 if score < threshold else score


def _vicrop_docvqa(answer: str, reference: str, threshold: float) -> float:
    return float(answer in reference or reference in answer)


_SCORERS: dict[Variant, Callable[[str, str, float], float | None]] = {
    "lmms": _lmms,
    "pypi_anls": _pypi_anls,
    "llava_stvqa": _llava_stvqa,
    "anls_star": _anls_star,
    "vicrop_docvqa": _vicrop_docvqa,
}


@dataclass(frozen=True)
class Anls(Mean):
    """The mean over samples; a sample's targets are its reference answers. A None counts for nothing."""

    variant: Variant = "lmms"
    threshold: float = 0.5
    name: ClassVar[str] = "anls"
    number: ClassVar[str] = "anls"

    def measure(self, responses: Sequence[Response], samples: Sequence[Sample]) -> list[dict[str, float]]:
        return [
            self._measure(response.text, sample.targets)
            for response, sample in zip(responses, samples, strict=True)
        ]

    def _measure(self, answer: str, targets: Sequence[str]) -> dict[str, float]:
        score = anls(answer, targets, self.variant, self.threshold) if targets else None
        return {"score": 0.0, "scored": 0} if score is None else {"score": score, "scored": 1}


def metric(variant: Variant = "lmms", threshold: float = 0.5) -> Metric:
    """The mean ANLS over samples (`anls`, 0 to 1): see the function `anls`.

    >>> docvqa, sample = metric(), Sample("1", targets=("0.28",))
    >>> docvqa.reduce(docvqa.measure([Response("0.28"), Response("28")], [sample, sample]))
    {'anls': 0.75}
    """
    return Anls(variant, threshold)
