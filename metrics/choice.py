"""Multiple choice: which option a text chooses, or which one a model finds most likely.

Knows the parsers in circulation, which decide many points of a published number, and how likelihoods of
options or of first letters are read. Must not know: datasets, prompts, models.

Wu & Xie, "V*: Guided Visual Search", CVPR 2024 (option likelihood); the parsers' sources stand beside them.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from string import ascii_uppercase
from typing import Any, ClassVar, Literal, TypeAlias, cast, get_args

from harness.errors import DataError
from harness.types import Metric, Response, Sample

Parser: TypeAlias = Literal["strict", "lmms", "lmms_mcq", "vicrop", "vlmevalkit"]
Likelihood: TypeAlias = Literal["likelihood", "likelihood_sum"]
Letters: TypeAlias = Literal["letter_likelihood"]


def parse(text: str, options: Sequence[str], parser: Parser = "strict") -> int | None:
    """The 0-based index of the option that `text` chooses, or None where the parser finds none.

    options: the texts of A, B, C, ... in order, at most 26.

    - `strict` (default, ours): the first that fires of: a letter by itself; a letter that leads the text
      ("B. a cat"); the last "answer|option|choice is X"; the one letter in brackets; the text of an option;
      the one option named in the text; the one capital by itself in the text. A rule that fires with a
      letter beyond the options, or with two of them, ends in None.
    - `lmms` (lmms-eval `tasks/vstar_bench/utils.py`): five patterns over the text in capitals. Knows A to D,
      however many options there are, and takes the first letter of any word: "Answer: C" is A.
    - `lmms_mcq` (lmms-eval `tasks/_task_utils/mcq_extract.py`, April 2026): the letter of the options in the
      most trusted format, the last of those. "Because" is B.
    - `vicrop` (mllms_know `get_score.py`): the line "(A) text" that `difflib` finds most like the answer, the
      first of equals. There is always one.
    - `vlmevalkit` (VLMEvalKit `utils/matching_util.py` `can_infer`): the only letter among the words, if it
      is one of the last four; else the only option whose text occurs. What it takes for a refusal is its
      letter Z, index 25.

    Raises ValueError for more than 26 options, or for an unknown parser.

    >>> colours = ["red", "navy blue", "blue", "green"]
    >>> parsers = ("strict", "lmms", "lmms_mcq", "vicrop", "vlmevalkit")
    >>> [parse("Answer: C", colours, p) for p in parsers]
    [2, 0, 2, 0, 2]
    >>> parse("It is navy blue.", colours), parse("Blue or green", colours), parse("E", colours)
    (1, None, None)
    """
    if parser not in _PARSERS:
        raise ValueError(f"unknown choice parser {parser!r}: use one of {', '.join(_PARSERS)}")
    if len(options) > len(ascii_uppercase):
        raise ValueError(f"there are {len(options)} options; letters name {len(ascii_uppercase)} at most")
    return _PARSERS[parser](text, options)


# ---------------------------------------------------------------- strict

_INVALID = "?"
_MARKS = "*_\"'`[](){}<>.:,;!?"
_LEADING = re.compile(r"[*_\"'`\[({<]*([A-Z])(?:[.):\]}>*\r\n]|$)")
_DECLARED = re.compile(
    r"\b(?i:answer|option|choice)(?i:\s+is)?[\s:*\"'(\[]+(?:([A-Z])(?!\w)|([a-z])(?=[.,)\]]|\s*$))"
)
_BRACKETED = re.compile(r"[(\[]([A-Z])[)\]]")
_STANDING = re.compile(r"(?<!\w)(?!A\s+(?!(?:and|or)\b)[a-z])([A-HJ-Z])(?!\w)")


def _strict(text: str, options: Sequence[str]) -> int | None:
    for rule in (_lone_letter, _leading_letter, _declared_letter, _bracketed_letter):
        letter = rule(text)
        if letter is not None:
            return _within(letter, options)
    cores = [_core(option).casefold() for option in options]
    named = [_core(text).casefold()]
    if not named[0] or named[0] not in cores:
        named = _contained(text.casefold(), cores)
    if named:
        unique = len(named) == 1 and cores.count(named[0]) == 1
        return cores.index(named[0]) if unique else None
    return _within(_standing_letter(text), options)


def _within(letter: str, options: Sequence[str]) -> int | None:
    index = ascii_uppercase.find(letter)
    return index if 0 <= index < len(options) else None


def _core(text: str) -> str:
    """Without white space and punctuation around it."""
    return text.strip().strip(_MARKS + " \t\r\n\f\v\u00a0\u3000")


def _lone_letter(text: str) -> str | None:
    core = _core(text)
    return core.upper() if len(core) == 1 and core.isascii() and core.isalpha() else None


def _leading_letter(text: str) -> str | None:
    found = _LEADING.match(text.lstrip())
    return found[1] if found else None


def _declared_letter(text: str) -> str | None:
    found = _DECLARED.findall(text)
    return "".join(found[-1]).upper() if found else None


def _bracketed_letter(text: str) -> str | None:
    return _only(set(_BRACKETED.findall(text))) if _BRACKETED.search(text) else None


def _standing_letter(text: str) -> str:
    # "I" is a word, and so is an "A" before one in small letters; but "A and" or "A or" name an option
    return _only(set(_STANDING.findall(text)))


def _only(letters: set[str]) -> str:
    return letters.pop() if len(letters) == 1 else _INVALID


def _contained(text: str, cores: Sequence[str]) -> list[str]:
    """Which of `cores` stand in `text` as whole words, the words of a longer one gone before a shorter.

    >>> _contained("a navy blue scarf", ["red", "navy blue", "blue"])
    ['navy blue']
    """
    found = []
    longest_first = sorted({core for core in cores if core}, key=lambda core: (-len(core), core))
    for _, group in itertools.groupby(longest_first, len):
        words = {core: re.compile(rf"(?<!\w){re.escape(core)}(?!\w)") for core in group}
        here = [core for core, pattern in words.items() if pattern.search(text)]
        for core in here:
            text = words[core].sub("\0", text)
        found += here
    return found


# ---------------------------------------------------------------- the references' parsers

_LMMS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        r"^([A-D])",  # no word boundary: "BECAUSE" is B
        r"(?:ANSWER|CHOICE|OPTION)(?:\s+IS)?[\s:]+([A-D])",
        r"\(([A-D])\)",
        r"([A-D])\s*[.)\]]",
        r"(?:^|\s)([A-D])(?:\s|$)",
    )
)


def _lmms(text: str, options: Sequence[str]) -> int | None:
    text = text.strip().upper()
    for pattern in _LMMS:
        found = pattern.search(text)
        if found:
            return ascii_uppercase.index(found[1].upper())
    letters = re.findall(r"[A-D]", text)
    return ascii_uppercase.index(letters[0]) if len(letters) == 1 else None


_PHRASES = (
    *(
        f"{article}{noun} is"
        for noun in ("answer", "correct answer", "best answer", "correct option", "best option")
        for article in ("", "the ")
    ),
    *("choice is", "the choice is", "correct choice is", "the correct choice is"),
    *("my answer is", "my choice is", "i choose", "i select", "i pick"),
    *("옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは"),
)
_SHAPES = {"(A)": 6, "A.": 5, "A:": 4, "A)": 3, "A ": 2}  # and how far each is trusted


def _lmms_mcq(text: str, options: Sequence[str]) -> int | None:
    letters = ascii_uppercase[: len(options)] or "ABCDEFGH"
    text = text.strip()
    for mark in ",.!?;:'\"":
        text = text.strip(mark)
    found = _lettered(f" {text} ", letters)  # (trust, position, letter)
    return ascii_uppercase.index(max(found)[2]) if found else None


def _lettered(text: str, letters: str) -> list[tuple[int, int, str]]:
    bare, small = text.strip(), text.lower()
    found = [
        (trust, text.rfind(shape.replace("A", letter)), letter)
        for shape, trust in _SHAPES.items()
        for letter in letters
    ]
    for phrase in _PHRASES:
        if phrase in small:
            behind = small.index(phrase) + len(phrase)
            found += [(7, text.find(letter, behind), letter) for letter in letters]
    if bare[:1] in set(letters) and not bare[1:2].isalpha():
        found.append((10, 0, bare[0]))
    if bare[-1:] in set(letters) and not bare[-2:-1].isalpha():
        found.append((9, len(text), bare[-1]))
    there = [candidate for candidate in found if candidate[1] >= 0]
    return there or [(0, text.rfind(letter), letter) for letter in letters if letter in text]


def _vicrop(text: str, options: Sequence[str]) -> int | None:
    lines = [f"({letter}) {option}" for letter, option in zip(ascii_uppercase, options, strict=False)]
    likeness = [SequenceMatcher(None, text, line).ratio() for line in lines]
    return likeness.index(max(likeness)) if likeness else None


_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_NO_MARKS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_VERBOSE = re.compile(r"answer\s+is\s+\**([ABCD])", re.IGNORECASE)  # "answer is because" is B


def _vlmevalkit(text: str, options: Sequence[str]) -> int | None:
    letters = ascii_uppercase[: len(options)]
    letter = _vlmevalkit_letter(text, letters)
    if letter is not None:
        return ascii_uppercase.index(letter)
    lowered = text.lower()
    if len(lowered) > 2 * sum(map(len, options)):
        return None
    named = [index for index, option in enumerate(options) if option.lower() in lowered]
    return named[0] if len(named) == 1 else None


def _vlmevalkit_letter(text: str, letters: str) -> str | None:
    if "Failed to obtain answer via API" in text:
        return None
    if any(refusal in text for refusal in _REFUSALS):
        return "Z"
    words = text.translate(_NO_MARKS).split()
    there = [letter for letter in letters if letter in words]
    if len(there) == 1 and words.index(there[0]) > len(words) - 5:
        return there[0]
    if not there and "Z" in words:
        return "Z"
    verbose = _VERBOSE.search(text)
    return verbose[1].upper() if verbose and verbose[1].upper() in letters else None


_PARSERS = {
    "strict": _strict,
    "lmms": _lmms,
    "lmms_mcq": _lmms_mcq,
    "vicrop": _vicrop,
    "vlmevalkit": _vlmevalkit,
}


# ---------------------------------------------------------------- likelihood


def most_likely(option_nll: Sequence[tuple[float, int]], norm: Likelihood = "likelihood") -> int | None:
    """The index of the option with the least negative log-likelihood, the first of equals.

    option_nll: per option, the NLL summed over its tokens and their number (`Response.option_nll`).
    norm: `likelihood` divides by that number (V*'s rule: `vstar_bench_eval.py` takes the mean loss of an
    option's tokens); `likelihood_sum` does not, and so favours short options. None without options, or where
    one is not a number. Raises ValueError for an option without tokens, or for an unknown norm.

    >>> nll = [(4.0, 4), (3.0, 2)]
    >>> most_likely(nll), most_likely(nll, "likelihood_sum")
    (0, 1)
    """
    if norm not in get_args(Likelihood):
        raise ValueError(f"unknown norm {norm!r}: use one of {', '.join(get_args(Likelihood))}")
    if any(tokens < 1 for _, tokens in option_nll):
        raise ValueError(f"an option has no tokens: {list(option_nll)}")
    costs = [nll / tokens if norm == "likelihood" else nll for nll, tokens in option_nll]
    if not costs or any(math.isnan(cost) for cost in costs):
        return None
    return costs.index(min(costs))


def letter_mass(top_logprobs: Mapping[str, float], options: int) -> list[float]:
    """The probability that the first token names each of `options` options: one number per option, 0 to 1.

    top_logprobs: natural logarithms of the likeliest first tokens' probabilities. A token names an option if
    nothing but its capital is left without the white space (also as SentencePiece's "▁" and GPT-2's "Ġ") and
    the punctuation around it: "A", " A", "(A", "A.", "**A". A small "a" is a word, and a "(" by itself names
    none. An option whose tokens are not among the likeliest has 0. Ours; endpoints show 20 tokens at most,
    so it is a lower bound.

    >>> [round(mass, 2) for mass in letter_mass({"A": -1.2, " A": -2.3, "(B": -0.92, "The": -3}, 3)]
    [0.4, 0.4, 0.0]
    """
    masses = [0.0] * options
    for token, logprob in top_logprobs.items():
        letter = _core(token.replace("▁", " ").replace("Ġ", " "))
        index = ascii_uppercase.find(letter) if len(letter) == 1 else -1
        if 0 <= index < options:
            masses[index] += math.exp(logprob)
    return masses


# ---------------------------------------------------------------- the metric


@dataclass(frozen=True)
class Choice:
    """The share of samples whose answer chooses the right option.

    A sample's options are `meta["options"]` (texts); the right one is `meta["answer_index"]` (0-based), or
    else the first target: an option's text, or its letter. A sample with neither (of a test split) counts
    for nothing.

    parser: how an answer is read (see `parse`); or `likelihood`, `likelihood_sum` (see `most_likely`) for
    tasks that let the model score the options instead of writing; or `letter_likelihood` (see `letter_mass`)
    for endpoints that show the likeliest first tokens (`openai:MODEL,top_logprobs=20`): the option whose
    letter has the most mass, the first of equals. That is another quantity than `likelihood`.

    Numbers, 0 to 1: `accuracy`, where an answer that chooses nothing is wrong; `unparsed`, their share.
    Of `letter_likelihood`: `accuracy` over the samples with a letter among the first tokens; `coverage`,
    the mean mass of all letters, where a sample without any has 0; `uncovered`, the share of such samples.
    """

    parser: Parser | Likelihood | Letters = "strict"

    name: ClassVar[str] = "choice"
    scope: ClassVar[Literal["sample"]] = "sample"
    additive: ClassVar[bool] = True

    @property
    def variant(self) -> str:
        return self.parser

    @property
    def higher_is_better(self) -> Mapping[str, bool]:
        if self.parser == "letter_likelihood":
            return {"accuracy": True, "coverage": True, "uncovered": False}
        return {"accuracy": True, "unparsed": False}

    def measure(self, responses: Sequence[Response], samples: Sequence[Sample]) -> list[dict[str, float]]:
        """Per sample whether it was `scored`, `correct` and `unparsed` (0 or 1), or `scored`, `correct`,
        `uncovered` and the letters' `mass`. Raises DataError for a sample without options, or a response
        without the likelihoods that are asked for."""
        return [self._measure(*pair) for pair in zip(responses, samples, strict=True)]

    def _measure(self, response: Response, sample: Sample) -> dict[str, float]:
        options = _options(sample)
        right = _right(sample, options)
        if self.parser == "letter_likelihood":
            masses = [0.0] if right is None else letter_mass(_first_token(response, sample), len(options))
            mass, covered = math.fsum(masses), any(masses)
            return {
                "scored": int(covered),
                "correct": int(covered and masses.index(max(masses)) == right),
                "uncovered": int(right is not None and not covered),
                "mass": mass,
            }
        if right is None:
            return {"scored": 0, "correct": 0, "unparsed": 0}
        chosen = self._chosen(response, sample, options)
        return {"scored": 1, "correct": int(chosen == right), "unparsed": int(chosen is None)}

    def _chosen(self, response: Response, sample: Sample, options: Sequence[str]) -> int | None:
        if self.parser != "likelihood" and self.parser != "likelihood_sum":
            return parse(response.text, options, cast(Parser, self.parser))
        if len(response.option_nll) != len(options):
            raise DataError(
                f"sample {sample.id}: {len(response.option_nll)} likelihoods for {len(options)} options. "
                f"choice:parser={self.parser} needs a task that asks for them (request.options) and a model "
                "that gives them; for written answers use another parser, such as strict"
            )
        return most_likely(response.option_nll, self.parser)

    def reduce(self, counts: Sequence[Any]) -> dict[str, float | None]:
        scored = sum(count["scored"] for count in counts)
        if self.parser == "letter_likelihood":
            uncovered = sum(count["uncovered"] for count in counts)
            asked = scored + uncovered
            return {
                "accuracy": sum(count["correct"] for count in counts) / scored if scored else None,
                "coverage": math.fsum(count["mass"] for count in counts) / asked if asked else None,
                "uncovered": uncovered / asked if asked else None,
            }
        if not scored:
            return {"accuracy": None, "unparsed": None}
        return {
            "accuracy": sum(count["correct"] for count in counts) / scored,
            "unparsed": sum(count["unparsed"] for count in counts) / scored,
        }


def _first_token(response: Response, sample: Sample) -> Mapping[str, float]:
    """The likeliest first tokens. A refused or empty answer has none; any other without them is an error."""
    top = response.trace.get("top_logprobs")
    if isinstance(top, Mapping):
        return {token: float(value) for token, value in top.items() if isinstance(value, int | float)}
    if not response.text or response.finish_reason in ("refusal", "content_filter"):
        return {}
    raise DataError(
        f"sample {sample.id}: its answer has no top_logprobs, which choice:parser=letter_likelihood reads. "
        "Ask the model itself, without a method around it, as in openai:MODEL,top_logprobs=20; for written "
        "answers use another parser, such as strict"
    )


def _options(sample: Sample) -> list[str]:
    options = sample.meta.get("options")
    if not isinstance(options, (list, tuple)) or not all(isinstance(option, str) for option in options):
        raise DataError(
            f"sample {sample.id}: multiple choice needs the options' texts as a list in meta['options'], "
            f"and finds {options!r}"
        )
    return list(options)


def _right(sample: Sample, options: Sequence[str]) -> int | None:
    index = sample.meta.get("answer_index")
    if index is None and sample.targets:
        target = sample.targets[0].strip()
        named = [i for i, option in enumerate(options) if option.strip() == target]
        lettered = [ascii_uppercase.find(target.upper())] if len(target) == 1 else []
        candidates = {i for i in named + lettered if 0 <= i < len(options)}
        index = candidates.pop() if len(candidates) == 1 else sample.targets[0]
    if index is None:
        return None
    if not isinstance(index, int) or not 0 <= index < len(options):
        raise DataError(
            f"sample {sample.id}: {index!r} names none of its {len(options)} options, or several; give the "
            "right one's 0-based number in meta['answer_index']"
        )
    return index


def metric(parser: Parser | Likelihood | Letters = "strict") -> Metric:
    """The share of samples whose answer chooses the right option (`accuracy`, 0 to 1): see `Choice`.

    >>> mug = Sample("1", targets=("B",), meta={"options": ["ceramic", "glass"]})
    >>> choice = metric()
    >>> choice.reduce(choice.measure([Response("It is made of glass."), Response("C")], [mug, mug]))
    {'accuracy': 0.5, 'unparsed': 0.5}
    """
    return Choice(parser)
