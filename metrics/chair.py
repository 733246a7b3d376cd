"""CHAIR: which objects a caption mentions, and how many of them are not in the image.

Knows the counting, the same in every implementation. Must not know: datasets, models, prompts. How
words are found, on which implementations differ, stands in `metrics/_chair_words.py`.

Rohrbach et al., "Object Hallucination in Image Captioning", EMNLP 2018 (LisaAnne/Hallucination
`utils/chair.py`); Recall and Len as Maxlinn/CHAIR-metric-standalone and SPARC (`chair.py`) add them.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from harness.types import Metric, Response, Sample
from metrics._chair_words import FrontEnd, Vocabulary, VocabularyName, base_forms, vocabulary

__all__ = ["Chair", "FrontEnd", "VocabularyName", "base_forms", "counts", "mentions", "metric", "node_word"]

_vocabulary = vocabulary  # the functions below have a parameter of that name
_MANY = 2000  # captions; fewer are done before other processes have started


def mentions(caption: str, front_end: FrontEnd = "wordnet", vocabulary: VocabularyName = "coco") -> list[str]:
    """The objects that a caption mentions, as node words (COCO's category names), in order.

    An object mentioned twice is there twice. front_end: how words are found (`wordnet`, `pattern`,
    `rules`: see `metrics._chair_words.base_forms`). vocabulary: `coco`, or `scenes` for the coloured
    shapes of the demo ("red square").

    Raises DataError where the front end's data is missing, saying how to get it.

    >>> mentions("Two men and a baby elephant near a bow tie.", "rules")
    ['person', 'elephant', 'tie']
    >>> mentions("Red squares, a blue star and a circle.", "rules", "scenes")
    ['red square', 'blue star']
    """
    known = _vocabulary(vocabulary)
    return _mentioned(_merged(base_forms(front_end)(caption), known), known)


def _merged(words: Sequence[str], known: Vocabulary) -> list[str]:
    """`words` with every pair that is one name ("hot dog") as one word, greedily from the left."""
    merged = []
    position = 0
    while position < len(words):
        pair = known.pairs.get(" ".join(words[position : position + 2]))
        merged.append(words[position] if pair is None else pair)
        position += 1 if pair is None else 2
    return merged


def _mentioned(words: Sequence[str], known: Vocabulary) -> list[str]:
    # "the seat of the toilet" is no chair
    skipped = "seat" if "toilet" in words else None
    return [known.nodes[word] for word in words if word in known.nodes and word != skipped]


def counts(
    caption: str,
    truth: Collection[str],
    front_end: FrontEnd = "wordnet",
    vocabulary: VocabularyName = "coco",
) -> dict[str, int]:
    """What CHAIR counts in one caption of an image that shows the objects `truth` (node words).

    mentions: objects mentioned, repetitions too. hallucinated: those of them that are not in the image.
    recalled: different objects mentioned that are. truth: different objects in the image. length:
    tokens, punctuation too, a merged name ("hot dog") as one.

    >>> counts("A dog, a dog and a frisbee.", ["dog", "person"], "rules")
    {'mentions': 3, 'hallucinated': 1, 'recalled': 1, 'truth': 2, 'length': 9}
    """
    known = _vocabulary(vocabulary)
    words = _merged(base_forms(front_end)(caption), known)
    found, present = _mentioned(words, known), set(truth)
    return {
        "mentions": len(found),
        "hallucinated": sum(node not in present for node in found),
        "recalled": len(present.intersection(found)),
        "truth": len(present),
        "length": len(words),
    }


def node_word(name: str, vocabulary: VocabularyName = "coco") -> str | None:
    """The node word of an object's name or synonym ("sofa" is a "couch"); None if it has none.

    >>> node_word("dining table"), node_word("sofa"), node_word("lamp")
    ('dining table', 'couch', None)
    """
    return _vocabulary(vocabulary).nodes.get(name)


@dataclass(frozen=True)
class Chair:
    """CHAIR over many captions; a sample's targets are the node words of what its image shows.

    Numbers, None where they are undefined:

    - `CHAIRs`: captions with a hallucinated object / captions. Lower is better.
    - `CHAIRi`: hallucinated mentions / mentions. Lower is better.
    - `Recall`: different objects mentioned that are there / objects that are there.
    - `Len`: tokens per caption. (SPARC stores a hundredth of it, and prints a hundred times that.)

    An image without targets shows none of the objects: every mention is hallucinated, as upstream.
    """

    front_end: FrontEnd = "wordnet"
    vocabulary: VocabularyName = "coco"

    name: ClassVar[str] = "chair"
    scope: ClassVar[Literal["sample"]] = "sample"
    additive: ClassVar[bool] = True

    @property
    def variant(self) -> str:
        """The front end, and the vocabulary where it is not COCO's: `wordnet`, `rules+scenes`."""
        return self.front_end if self.vocabulary == "coco" else f"{self.front_end}+{self.vocabulary}"

    @property
    def higher_is_better(self) -> Mapping[str, bool]:
        return {"CHAIRs": False, "CHAIRi": False, "Recall": True}

    def measure(self, responses: Sequence[Response], samples: Sequence[Sample]) -> list[dict[str, int]]:
        """Per caption what `counts` counts, and whether it hallucinates. Many go to all cores."""
        base_forms(self.front_end)  # loaded once, before any process is made of this one
        pairs = [(r.text, s.targets) for r, s in zip(responses, samples, strict=True)]
        cores = os.cpu_count() or 1
        if len(pairs) < _MANY or cores == 1 or sys.platform != "linux" or threading.active_count() > 1:
            return [self._measure(pair) for pair in pairs]
        with multiprocessing.get_context("fork").Pool(cores) as pool:
            return pool.map(self._measure, pairs, chunksize=_MANY // 8)

    def _measure(self, pair: tuple[str, Sequence[str]]) -> dict[str, int]:
        counted = counts(*pair, self.front_end, self.vocabulary)
        return {"captions": 1, "hallucinating": int(counted["hallucinated"] > 0), **counted}

    def reduce(self, counts: Sequence[Any]) -> dict[str, float | None]:
        total: Counter[str] = Counter()
        for count in counts:
            total.update(count)

        def ratio(part: str, whole: str) -> float | None:
            return total[part] / total[whole] if total[whole] else None

        return {
            "CHAIRs": ratio("hallucinating", "captions"),
            "CHAIRi": ratio("hallucinated", "mentions"),
            "Recall": ratio("recalled", "truth"),
            "Len": ratio("length", "captions"),
        }


def metric(front_end: FrontEnd = "wordnet", vocabulary: VocabularyName = "coco") -> Metric:
    """CHAIRs, CHAIRi, Recall and Len: see `Chair`, and `mentions` for the knobs.

    >>> chair = metric("rules")
    >>> seen = chair.measure([Response("A cat and a dog.")], [Sample("1", targets=("cat",))])
    >>> chair.reduce(seen)
    {'CHAIRs': 1.0, 'CHAIRi': 0.5, 'Recall': 1.0, 'Len': 6.0}
    """
    return Chair(front_end, vocabulary)
