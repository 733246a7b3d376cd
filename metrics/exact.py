"""Exact match and relaxed match of a short answer: GQA, ChartQA, and any question with one answer.

Knows the matchers in circulation, which decide several points of a published number. Must not know:
datasets, prompts, models.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, TypeAlias

from harness.types import Metric
from metrics._mean import Mean
from metrics._vqa_text import normalize

Variant: TypeAlias = Literal["official", "llava", "lmms", "vlmevalkit", "vicrop"]

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def exact_match(answer: str, reference: str, variant: Variant = "llava") -> float:
    """1.0 if `answer` counts as `reference`, else 0.0.

    - `official` (GQA `eval.py`): equal as they stand.
    - `llava` (default; LLaVA `scripts/convert_gqa_for_eval.py`): equal once the answer has lost its
      trailing dots and its capitals. It is not trimmed; the protocol's postprocessing does that.
    - `lmms` (lmms-eval `exact_match`): the answer trimmed, then both without capitals and without
      ASCII punctuation.
    - `vlmevalkit` (`accuracy`): both trimmed and without capitals.
    - `vicrop` (mllms_know `get_acc_gqa`): the reference is *part of* the answer, both normalised as
      `metrics.vqa.normalize` does: "woman" counts as "man".

    Raises ValueError for an unknown variant.

    >>> [exact_match("Yes.", "yes", v) for v in ("official", "llava", "lmms", "vlmevalkit", "vicrop")]
    [0.0, 1.0, 1.0, 0.0, 1.0]
    """
    if variant not in _MATCHERS:
        raise ValueError(f"unknown matcher {variant!r}: use one of {', '.join(_MATCHERS)}")
    return float(_MATCHERS[variant](answer, reference))


def _bare(text: str) -> str:
    """As `numpy.char` leaves it in lmms-eval: arrays hold no trailing NULs, and `lower` may not grow.

    >>> _bare("A T-Shirt!")
    'a tshirt'
    """
    lowered = text.rstrip("\0").lower()[: len(text)]
    return lowered.translate(_NO_PUNCTUATION).rstrip("\0")


_MATCHERS: dict[Variant, Callable[[str, str], bool]] = {
    "official": lambda answer, reference: answer == reference,
    "llava": lambda answer, reference: answer.rstrip(".").lower() == reference,
    "lmms": lambda answer, reference: _bare(answer.strip()) == _bare(reference),
    "vlmevalkit": lambda answer, reference: answer.strip().lower() == reference.strip().lower(),
    "vicrop": lambda answer, reference: normalize(reference, "vicrop") in normalize(answer, "vicrop"),
}


def relaxed(answer: str, target: str, tolerance: float = 0.05) -> bool:
    """ChartQA's relaxed match: a number may be off by `tolerance` of the target, else equal texts.

    A trailing `%` divides by 100. A target of zero, and anything that is not a number, must be equal
    but for capitals ("0.0" is not "0"). Years are numbers too: 1920 counts as 2014.

    Source: google-research/pix2struct `pix2struct/metrics.py`, through VLMEvalKit
    `vlmeval/dataset/utils/vqa_eval.py`; Masry et al., "ChartQA", 2022, section 5.1.

    >>> relaxed("10.5", "10"), relaxed("10.51", "10"), relaxed("0.1", "10%"), relaxed("0.0", "0")
    (True, False, True, False)
    """
    found, wanted = _number(answer), _number(target)
    if found is None or not wanted:
        return answer.lower() == target.lower()
    return abs(found - wanted) / abs(wanted) <= tolerance


def _number(text: str) -> float | None:
    try:
        return float(text.rstrip("%")) / 100 if text.endswith("%") else float(text)
    except ValueError:
        return None


@dataclass(frozen=True)
class Exact(Mean):
    """The share of samples whose answer matches *any* of their targets.

    `relaxed` trims the answer first, as VLMEvalKit does.
    """

    variant: Variant | Literal["relaxed"] = "llava"
    name: ClassVar[str] = "exact"

    def score(self, answer: str, targets: Sequence[str]) -> float:
        if self.variant == "relaxed":
            return float(any(relaxed(answer.strip(), target) for target in targets))
        return max(exact_match(answer, target, self.variant) for target in targets)


def metric(variant: Variant | Literal["relaxed"] = "llava") -> Metric:
    """The share of samples whose answer matches any of their targets (`accuracy`, 0 to 1).

    >>> from harness.types import Response, Sample
    >>> exact = metric("lmms")
    >>> samples = [Sample("1", targets=("grey", "gray")), Sample("2", targets=("no",))]
    >>> exact.reduce(exact.measure([Response("Gray!"), Response("nope")], samples))
    {'accuracy': 0.5}
    """
    return Exact(variant)
