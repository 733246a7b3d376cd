"""Caption metrics of COCO's server: BLEU-1 to BLEU-4, ROUGE_L, METEOR, CIDEr and, when asked for, SPICE.

Knows pycocoevalcap (PyPI, 1.2), its Java tokenizer, and what goes wrong around them. Must not know:
datasets, models. The numbers are pycocoevalcap's own: papers mean those and no others.

Chen et al., "Microsoft COCO Captions: Data Collection and Evaluation Server", 2015; Vedantam et al.,
"CIDEr", CVPR 2015 (here, as there, CIDEr-D); Anderson et al., "SPICE", ECCV 2016.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeAlias, get_args

from harness.errors import DataError, SpecError
from harness.types import Metric, Response, Sample

Variant: TypeAlias = Literal["official", "vlmevalkit"]
Texts: TypeAlias = Mapping[int, list[str]]
Scorer: TypeAlias = Callable[[Texts, Texts], float]

_BREAKS = re.compile("[\n\r\v\f\u2028\u2029]")  # where the tokenizer ends a line
_LAST = "fovea"  # a last line, to see that as many came back as were sent
_JAVA = "a Java runtime on PATH (Debian: apt-get install default-jre-headless)"


def tokenize(texts: Sequence[str]) -> list[str]:
    """Each text in lower case, its PTB tokens parted by spaces, punctuation left out.

    pycocoevalcap's `PTBTokenizer` (Stanford CoreNLP 3.4.1), with two repairs: it reads UTF-8 whatever the
    locale, and every kind of line break in a caption is a space. (Upstream replaces line feeds only; a
    carriage return in one caption gives all captions after it their neighbour's words.)

    Raises SpecError without pycocoevalcap, DataError without Java or where it fails.
    """
    require("official")
    module = importlib.import_module("pycocoevalcap.tokenizer.ptbtokenizer")
    jar = Path(module.__file__ or "").parent / module.STANFORD_CORENLP_3_4_1_JAR
    command = ["java", "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer"]
    lines = "\n".join([*(_BREAKS.sub(" ", text) for text in texts), _LAST, ""])
    done = subprocess.run(
        [*command, "-preserveLines", "-lowerCase", "-encoding", "UTF-8"],
        input=lines.encode("utf-8", "replace"),
        capture_output=True,
        check=False,
    )
    found = done.stdout.decode("utf-8", "replace").split("\n")
    if done.returncode or found[len(texts) :] != [_LAST, ""]:
        why = done.stderr.decode("utf-8", "replace").strip().rpartition("\n")[2][-300:]
        raise DataError(f"the PTB tokenizer failed on {len(texts)} captions (exit {done.returncode}): {why}")
    marks = set(module.PUNCTUATIONS)
    return [" ".join(w for w in line.rstrip().split(" ") if w not in marks) for line in found[: len(texts)]]


def require(variant: Variant, spice: bool = False) -> None:
    """Raise, saying what is missing and how to get it, unless captions can be scored here so.

    SpecError: no pycocoevalcap. DataError: no Java, or no models for SPICE.
    """
    if variant not in get_args(Variant):
        raise ValueError(f"unknown caption variant {variant!r}: use one of {', '.join(get_args(Variant))}")
    package = importlib.util.find_spec("pycocoevalcap")
    if package is None:
        raise SpecError("caption needs the package pycocoevalcap: pip install 'fovea-eval[captions]'")
    if (variant == "official" or spice) and shutil.which("java") is None:
        raise DataError(
            f"caption:variant={variant} needs {_JAVA}: its tokenizer, METEOR and SPICE are Java programs. "
            "variant=vlmevalkit needs none: no tokenizer, no METEOR, other numbers"
        )
    if spice:
        folder = Path((package.submodule_search_locations or [""])[0]) / "spice" / "lib"
        jars = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
        missing = [jar for jar in jars if not (folder / jar).exists()]
        if missing:
            raise DataError(
                f"SPICE needs {' and '.join(missing)} in {folder}, which are not downloaded by themselves: "
                "run `python -m pycocoevalcap.spice.get_stanford_models`, or leave spice=true out"
            )


@dataclass(frozen=True)
class Caption:
    """Captions (one per sample) against their references (the sample's targets), over the whole corpus.

    variant:

    - `official` (default; COCO's server, lmms-eval): after PTB tokenisation; needs Java.
    - `vlmevalkit` (VLMEvalKit `vlmeval/dataset/image_caption.py`): the texts as they stand, in their case
      and with their punctuation, and no METEOR. It prints a hundred times these numbers.

    Numbers, higher is better: `BLEU-1` to `BLEU-4` (closest reference length, of the corpus), `ROUGE_L`
    (beta 1.2), `METEOR` (1.5, en; 2 GB of memory and seconds to start, hence `meteor=false`), all 0 to 1;
    `CIDEr`, 0 to 10; `SPICE` (0 to 1) where `spice` is true, which takes Java 8 or 11, 8 GB of memory and
    models that have to be downloaded.

    CIDEr depends on what is evaluated: it weighs words by how rare they are among the references of these
    very samples. Over a single sample it is 0. An empty caption scores 0. Without samples each is None.
    """

    variant: Variant = "official"
    meteor: bool = True
    spice: bool = False

    name: ClassVar[str] = "caption"
    scope: ClassVar[Literal["corpus"]] = "corpus"
    additive: ClassVar[bool] = False

    @property
    def higher_is_better(self) -> Mapping[str, bool]:
        return dict.fromkeys(self._numbers, True)

    @property
    def _numbers(self) -> tuple[str, ...]:
        meteor = ("METEOR",) if self.meteor and self.variant == "official" else ()
        spice = ("SPICE",) if self.spice else ()
        return ("CIDEr", "BLEU-1", "BLEU-2", "BLEU-3", "BLEU-4", "ROUGE_L", *meteor, *spice)

    def measure(self, responses: Sequence[Response], samples: Sequence[Sample]) -> list[dict[str, Any]]:
        """Per sample its `candidate` and its `references`, tokenised; {} for a sample without references."""
        require(self.variant, self.spice)
        texts = [
            text
            for response, sample in zip(responses, samples, strict=True)
            if sample.targets
            for text in (response.text, *sample.targets)
        ]
        tokens = iter(tokenize(texts) if self.variant == "official" and texts else texts)
        return [
            {"candidate": next(tokens), "references": [next(tokens) for _ in sample.targets]}
            if sample.targets
            else {}
            for sample in samples
        ]

    def reduce(self, counts: Sequence[Any]) -> dict[str, float | None]:
        scored = [(count["candidate"], count["references"]) for count in counts if count]
        if not scored:
            return dict.fromkeys(self._numbers)
        require(self.variant, self.spice)
        scored.sort()  # sums of floats depend on the order; the numbers must not
        candidates = {number: [candidate] for number, (candidate, _) in enumerate(scored)}
        references = {number: list(found) for number, (_, found) in enumerate(scored)}
        numbers = _bleu(references, candidates)
        numbers |= {"CIDEr": _plain("cider", "Cider")(references, candidates)}
        numbers |= {"ROUGE_L": _plain("rouge", "Rouge")(references, candidates)}
        if "METEOR" in self._numbers:
            numbers |= {"METEOR": _meteor(references, candidates)}
        if self.spice:
            numbers |= {"SPICE": _spice(references, candidates)}
        return {name: numbers[name] if math.isfinite(numbers[name]) else None for name in self._numbers}


# ---------------------------------------------------------------- pycocoevalcap's scorers


def _bleu(references: Texts, candidates: Texts) -> dict[str, float]:
    from pycocoevalcap.bleu.bleu import Bleu

    scores, _ = Bleu(4).compute_score(references, candidates, verbose=0)
    return {f"BLEU-{n}": float(score) for n, score in enumerate(scores, 1)}


def _plain(module: str, name: str) -> Scorer:
    """`pycocoevalcap.MODULE.MODULE.NAME`, which needs no Java."""
    scorer = getattr(importlib.import_module(f"pycocoevalcap.{module}.{module}"), name)()
    return lambda references, candidates: float(scorer.compute_score(references, candidates)[0])


def _meteor(references: Texts, candidates: Texts) -> float:
    with _meteor_process() as meteor:
        try:
            return float(meteor.compute_score(references, candidates)[0])
        except (OSError, ValueError) as error:
            said = meteor.meteor_p.stderr.read1(300).decode("utf-8", "replace").strip()
            raise DataError(f"METEOR's Java process ended early ({said or error}); it wants 2 GB") from None


@contextmanager
def _meteor_process() -> Iterator[Any]:
    """A `Meteor` whose process and pipes are closed, and whose lock is free, however it ends: its own
    `__del__` waits for the lock, for ever if an error left it taken."""
    from pycocoevalcap.meteor.meteor import Meteor

    meteor = Meteor()
    try:
        yield meteor
    finally:
        if meteor.lock.locked():
            meteor.lock.release()
        meteor.meteor_p.kill()
        meteor.meteor_p.wait()
        for pipe in (meteor.meteor_p.stdout, meteor.meteor_p.stderr):
            pipe.close()
        with suppress(BrokenPipeError):
            meteor.meteor_p.stdin.close()


def _spice(references: Texts, candidates: Texts) -> float:
    from pycocoevalcap.spice.spice import Spice

    try:
        return float(Spice().compute_score(references, candidates)[0])
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        raise DataError(f"SPICE failed ({error}). It needs Java 8 or 11 and 8 GB of memory") from None


def metric(variant: Variant = "official", meteor: bool = True, spice: bool = False) -> Metric:
    """BLEU, ROUGE_L, METEOR, CIDEr (and SPICE) of captions against their references: see `Caption`.

    >>> plain = metric("vlmevalkit")
    >>> samples = [Sample("1", targets=("a dog runs fast",)), Sample("2", targets=("two cats on a mat",))]
    >>> seen = plain.measure([Response("a dog runs fast"), Response("a bus")], samples)
    >>> {name: round(value, 3) for name, value in plain.reduce(seen).items() if name in ("CIDEr", "ROUGE_L")}
    {'CIDEr': 5.0, 'ROUGE_L': 0.633}
    """
    return Caption(variant, meteor, spice)
