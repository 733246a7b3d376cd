"""CHAIR's two reference front ends, exact and several times as fast: `wordnet` and `pattern`.

Knows NLTK's tokenizer, tagger and lemmatizer, and pattern's singulariser. Must not know: objects,
scores. It is told which base forms matter, and gives "" for all others; that is what makes it fast:

- A word's base form under each part of speech is looked up once. Where all agree, as they mostly do,
  the word's tag is never computed.
- A tag that is wanted is computed alone, not with its whole caption (`LazyTags`).
- A sentence of plain words is cut by one regular expression instead of NLTK's thirty (`word_tokens`).
"""

from __future__ import annotations

import importlib.util
import re
import warnings
from collections.abc import Callable, Collection
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

BaseForms: TypeAlias = Callable[[str], list[str]]
"""A caption to the base forms of its tokens, in order; "" for one that does not matter."""

DATA = {
    "punkt_tab": "tokenizers/punkt_tab/english",
    "averaged_perceptron_tagger_eng": "taggers/averaged_perceptron_tagger_eng",
    "wordnet": "corpora/wordnet",
}
"""What NLTK's downloader calls the data that `wordnet` needs, and where it lies; `pattern` needs the
first."""

MEMO = 1 << 17
"""Words remembered per front end; English has fewer."""

_PART_OF_SPEECH = {"J": "a", "V": "v", "N": "n", "R": "r"}
"""By the first letter of a Penn tag; what is none of these is taken as a noun, as by the references."""

_WORD = r"[a-z0-9]++(?:-[a-z0-9]++)*+"
_PLAIN_SENTENCE = re.compile(rf"(?:{_WORD},? )*+{_WORD}\.?")
_PLAIN_TOKEN = re.compile(r"[a-z0-9-]+|[.,]")
_SPLIT_WORDS = ("cannot", "gimme", "gonna", "gotta", "lemme", "wanna")  # "can" and "not", and so on


def wordnet(matters: Collection[str]) -> BaseForms:
    """SPARC's `chair.py` and lmms-eval's `coco_cap_chair`: tokens, `nltk.pos_tag` over the whole
    caption, `WordNetLemmatizer` with the tag's part of speech.

    Raises LookupError where NLTK's data is missing.
    """
    from nltk.corpus import wordnet as corpus
    from nltk.stem import WordNetLemmatizer
    from nltk.tag.perceptron import PerceptronTagger

    tagger = PerceptronTagger()
    word_tokens("")  # loads
    corpus.ensure_loaded()
    lemmatize = WordNetLemmatizer().lemmatize

    @lru_cache(MEMO)
    def forms(word: str) -> str | dict[str, str]:
        """The base form, or, where they differ, one for each part of speech."""
        by_part = {part: lemmatize(word, part) for part in "nvar"}
        kept = {part: form if form in matters else "" for part, form in by_part.items()}
        return kept if len(set(kept.values())) > 1 else kept["n"]

    def of(caption: str) -> list[str]:
        tokens = word_tokens(caption.lower())
        tags = LazyTags(tagger, tokens)
        found = (forms(token) for token in tokens)
        return [
            form if isinstance(form, str) else form[_PART_OF_SPEECH.get(tags[position][0], "n")]
            for position, form in enumerate(found)
        ]

    return of


def pattern(matters: Collection[str]) -> BaseForms:
    """Rohrbach et al.'s and Maxlinn's `chair.py`: the same tokens, `pattern.en.singularize` on each.

    Raises LookupError where NLTK's data is missing.
    """
    word_tokens("")  # loads
    singularize = pattern_inflect().singularize

    @lru_cache(MEMO)
    def form(word: str) -> str:
        singular = str(singularize(word))
        return singular if singular in matters else ""

    return lambda caption: [form(token) for token in word_tokens(caption.lower())]


def word_tokens(text: str) -> list[str]:
    """`nltk.word_tokenize(text)`. Its thirty substitutions are spared for sentences of plain words."""
    from nltk.tokenize import sent_tokenize, word_tokenize

    tokens: list[str] = []
    for sentence in sent_tokenize(text):
        plain = _PLAIN_SENTENCE.fullmatch(sentence) and not any(w in sentence for w in _SPLIT_WORDS)
        tokens += _PLAIN_TOKEN.findall(sentence) if plain else word_tokenize(sentence, preserve_line=True)
    return tokens


class LazyTags:
    """The tags that `nltk.pos_tag` gives to `tokens`, of which only those asked for are computed.

    NLTK's tagger goes from left to right, and a tag depends on the words around it and on the two tags
    before it. Most words have one known tag whatever stands around them; behind two such words nothing
    further left matters, so that a tag costs a few predictions and not a caption of them.

    tagger: an `nltk.tag.perceptron.PerceptronTagger`, whose tables are read here.
    """

    def __init__(self, tagger: Any, tokens: list[str]) -> None:
        self.tagger = tagger
        self.tokens = tokens
        self.tags: list[str] = []
        self.context: list[str] = []

    def __getitem__(self, position: int) -> str:
        tagger, tags = self.tagger, self.tags
        if not tags:
            tags += (tagger.tagdict.get(token, "") for token in self.tokens)
            self.context = [*tagger.START, *map(tagger.normalize, self.tokens), *tagger.END]
        start = position
        while start > 0 and "" in tags[max(0, start - 2) : start]:
            start -= 1
        for k in range(start, position + 1):
            tags[k] = tags[k] or self._predict(k)
        return tags[position]

    def _predict(self, k: int) -> str:
        """As `PerceptronTagger._get_features` and `AveragedPerceptron.predict`: the same features in the
        same order, for floating-point sums depend on it, and of equal scores the last label."""
        token = self.tokens[k]
        before2, before = (*reversed(self.tagger.START), *self.tags[max(0, k - 2) : k])[-2:]
        left2, left, word, right, right2 = self.context[k : k + 5]
        features = (
            "bias",
            f"i suffix {token[-3:]}",
            f"i pref1 {token[:1]}",
            f"i-1 tag {before}",
            f"i-2 tag {before2}",
            f"i tag+i-2 tag {before} {before2}",
            f"i word {word}",
            f"i-1 tag+i word {before} {word}",
            f"i-1 word {left}",
            f"i-1 suffix {left[-3:]}",
            f"i-2 word {left2}",
            f"i+1 word {right}",
            f"i+1 suffix {right[-3:]}",
            f"i+2 word {right2}",
        )
        model = self.tagger.model
        scores = dict.fromkeys(model.classes, 0.0)
        for feature in features:
            for label, weight in model.weights.get(feature, {}).items():
                scores[label] += weight
        best = max(scores.values())
        return str(max(label for label, score in scores.items() if score == best))


def pattern_inflect() -> Any:
    """`pattern/text/en/inflect.py` alone: importing `pattern.en` would try to download corpora.

    Raises ModuleNotFoundError where PatternLite is not installed.
    """
    package = importlib.util.find_spec("pattern")
    path = Path(package.origin or "").parent / "text" / "en" / "inflect.py" if package else Path()
    spec = importlib.util.spec_from_file_location("pattern.text.en.inflect", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise ModuleNotFoundError("PatternLite is not installed", name="PatternLite")
    inflect = importlib.util.module_from_spec(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its escapes are from before Python 3.12
        spec.loader.exec_module(inflect)
    return inflect
