"""Yes/no questions (POPE): what counts as yes, and the scores of yes as the positive class.

Knows the parsers and score variants in circulation. Must not know: datasets, prompts, models.

Li et al., "Evaluating Object Hallucination in Large Vision-Language Models", EMNLP 2023 (POPE).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any, ClassVar, Literal, TypeAlias, get_args

from harness.errors import DataError
from harness.types import Metric, Response, Sample
from metrics._vqa_text import without_punctuation

Answer: TypeAlias = Literal["yes", "no"]
Parser: TypeAlias = Literal["official", "lmms", "vlmevalkit", "vicrop", "robust"]
Variant: TypeAlias = Literal["official", "lmms", "vlmevalkit"]

_OWN_SCORING: dict[Parser, Variant] = {
    "official": "official",
    "lmms": "lmms",
    "vlmevalkit": "vlmevalkit",
    "vicrop": "official",  # it reports accuracy only, which is the same in all
    "robust": "official",
}

_FIRST_WORD = re.compile(r"[\W\d_]*([^\W\d_]+)")

_OUTCOMES: dict[tuple[Answer | None, str], str] = {
    ("yes", "yes"): "tp",
    ("yes", "no"): "fp",
    ("no", "no"): "tn",
    ("no", "yes"): "fn",
    (None, "yes"): "unparsed_yes",
    (None, "no"): "unparsed_no",
}


def parse(text: str, parser: Parser = "official") -> Answer | None:
    r"""The answer that a text gives, or None where the parser finds none.

    - `official` (default; POPE `evaluate.py`, LLaVA `llava/eval/eval_pope.py`): "no" if a word up to
      the first dot is exactly No, no or not, else "yes", whatever it says: "NO", "No!" and "" are yes.
    - `lmms` (lmms-eval `tasks/pope/utils.py`): the whole text, trimmed and without capitals, is yes
      or no: "Yes." is neither.
    - `vlmevalkit` (`YOrN_Extraction`): the one of the words yes and no that occurs, without the other.
    - `vicrop` (mllms_know `match_mcq`): the one that `difflib` finds more like the text, yes on ties.
    - `robust` (ours): the first word, if it is yes or no in any capitals; else as `official`.

    Raises ValueError for an unknown parser.

    >>> [parse("No!", p) for p in ("official", "lmms", "vlmevalkit", "vicrop", "robust")]
    ['yes', None, 'no', 'no', 'no']
    """
    if parser == "official":
        words = text.split(".")[0].replace(",", "").split(" ")
        return "no" if {"No", "not", "no"} & set(words) else "yes"
    if parser == "lmms":
        return _as_answer(text.lower().strip())
    if parser == "vlmevalkit":
        found = {"yes", "no"} & set(without_punctuation(text.lower(), "vlmevalkit").split())
        return _as_answer(found.pop()) if len(found) == 1 else None
    if parser == "vicrop":
        like_yes, like_no = (SequenceMatcher(None, text, a).ratio() for a in get_args(Answer))
        return "yes" if like_yes >= like_no else "no"
    if parser == "robust":
        first = _FIRST_WORD.match(text)
        return (_as_answer(first[1].lower()) if first else None) or parse(text, "official")
    raise ValueError(f"unknown yes/no parser {parser!r}: use one of {', '.join(get_args(Parser))}")


def _as_answer(word: str) -> Answer | None:
    return "yes" if word == "yes" else "no" if word == "no" else None


def scores(
    parsed: Sequence[Answer | None], truth: Sequence[Answer], variant: Variant = "official"
) -> dict[str, float | None]:
    """Accuracy, precision, recall, F1 (positive: yes) and the share of yes among the predictions.

    An answer that could not be parsed is wrong, and neither a yes nor a no.

    - `official` (default): recall is over all positives; what would be 0/0 is None.
    - `lmms`: unparsed positives vanish from recall's denominator; 0/0 is 0. (Its own `yes_ratio` is
      that of the truth; here it is that of the predictions.)
    - `vlmevalkit`: recall is over all positives; 0/0 is 0.

    Over no answers everything is None. Raises ValueError for lists of unequal length, a truth that is
    neither yes nor no, or an unknown variant.

    >>> scores(["no", "no"], ["yes", "no"])["precision"] is None
    True
    >>> scores(["yes", None, "no"], ["yes", "yes", "no"], "lmms")["recall"]
    1.0
    """
    counts = Counter(_outcome(p, t) for p, t in zip(parsed, truth, strict=True))
    return _scores_of(counts, variant)


def _outcome(parsed: Answer | None, truth: str) -> str:
    if (parsed, truth) not in _OUTCOMES:
        raise ValueError(f"the truth of a yes/no question is yes or no, not {truth!r}")
    return _OUTCOMES[parsed, truth]


def _scores_of(counts: Mapping[str, float], variant: Variant) -> dict[str, float | None]:
    tp, fp, tn, fn, lost, _ = total = [counts.get(key, 0) for key in _OUTCOMES.values()]
    if not sum(total):
        return dict.fromkeys(("accuracy", "precision", "recall", "f1", "yes_ratio"))
    undefined = None if variant == "official" else 0.0
    positives = tp + fn + (0 if variant == "lmms" else lost)
    precision = tp / (tp + fp) if tp + fp else undefined
    recall = tp / positives if positives else undefined
    f1 = undefined
    if precision is not None and recall is not None and precision + recall:
        f1 = 2 * precision * recall / (precision + recall)
    return {
        "accuracy": (tp + tn) / sum(total),
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "yes_ratio": (tp + fp) / sum(total),
    }


@dataclass(frozen=True)
class YesNo:
    """POPE's scores over all samples, and the mean F1 over their categories.

    parser: of the answers. scoring: the variant of the scores. A sample's first target is its truth;
    its count names its outcome within its category, as in `{"random/tp": 1}`: sums of such counts are
    all that `reduce` needs.

    Numbers, 0 to 1: `accuracy`, `precision`, `recall`, `f1` and `yes_ratio` pooled; `mean_f1`, the
    mean of the categories' F1 (as LLaVA's paper reports POPE), None where one of them is; `unparsed`,
    the share of answers in which the parser found neither yes nor no.
    """

    parser: Parser = "official"
    scoring: Variant = "official"

    name: ClassVar[str] = "yesno"
    scope: ClassVar[Literal["sample"]] = "sample"
    additive: ClassVar[bool] = True

    @property
    def variant(self) -> str:
        """The parser, and the scores' variant where it is not the parser's own."""
        own = self.scoring == _OWN_SCORING[self.parser]
        return self.parser if own else f"{self.parser}+{self.scoring}"

    @property
    def higher_is_better(self) -> Mapping[str, bool]:
        better = dict.fromkeys(("accuracy", "precision", "recall", "f1", "mean_f1"), True)
        return {**better, "unparsed": False}

    def measure(self, responses: Sequence[Response], samples: Sequence[Sample]) -> list[dict[str, int]]:
        return [
            {self._outcome_of(response.text, sample): 1} if sample.targets else {}
            for response, sample in zip(responses, samples, strict=True)
        ]

    def _outcome_of(self, text: str, sample: Sample) -> str:
        try:
            outcome = _outcome(parse(text, self.parser), sample.targets[0].strip().lower())
        except ValueError as error:
            raise DataError(f"sample {sample.id}: {error}; measure it with another metric") from None
        return outcome if sample.category is None else f"{sample.category}/{outcome}"

    def reduce(self, counts: Sequence[Any]) -> dict[str, float | None]:
        categories: dict[str, Counter[str]] = {}
        for count in counts:
            for key, value in count.items():
                if value:  # a resample may give a whole category no weight
                    category, _, outcome = key.rpartition("/")
                    categories.setdefault(category, Counter())[outcome] += value
        pooled = sum(categories.values(), Counter[str]())
        total = pooled.total()
        parts = [_scores_of(part, self.scoring)["f1"] for part in categories.values()]
        known = sorted(part for part in parts if part is not None)
        unparsed = pooled["unparsed_yes"] + pooled["unparsed_no"]
        return {
            **_scores_of(pooled, self.scoring),
            "mean_f1": sum(known) / len(known) if known and len(known) == len(parts) else None,
            "unparsed": unparsed / total if total else None,
        }


def metric(parser: Parser = "official", scoring: Variant | None = None) -> Metric:
    """POPE's scores with a parser (see `parse`) and a variant of the scores (see `scores`, `YesNo`).

    scoring: by default that of the code base the parser is from.

    >>> yesno = metric()
    >>> truth = [Sample("1", targets=("yes",)), Sample("2", targets=("no",))]
    >>> yesno.reduce(yesno.measure([Response("Yes"), Response("Yes")], truth))["accuracy"]
    0.5
    """
    parse("", parser)  # refuses one that it does not know
    return YesNo(parser, scoring or _OWN_SCORING[parser])
