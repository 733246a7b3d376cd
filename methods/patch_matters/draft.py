"""One caption in the making: its picture's patches and their captions, what was asked, kept and dropped.

Knows the values that pass between the steps of Patch Matters, and the trace that is left of them. Must not
know how a step is taken.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from harness.pictures import Picture
from harness.types import Box, Failure, Json, Request, Usage
from methods._detect import Detection
from methods.patch_matters.divide import Semantic
from methods.patch_matters.grouping import Groups
from methods.patch_matters.semantic_filter import Verdict
from methods.patch_matters.sentences import Sentence

COUNTED = ("captioner", "aggregator", "retries", "detector", "scored")
"""What a trace counts: captions, questions (and of these, those asked again), looks, sentences."""

DECLINED = ("refusal", "content_filter")
"""How a reply ends that is none: its text is an excuse, or stops where the service stopped it."""


@dataclass(eq=False)
class Patch:
    """A part of the picture. like: the patch with the same pixels whose captions this one shares.

    candidates: what the captioner said of it. caption: what they were merged to; "" is none.
    """

    pid: str
    box: Box
    picture: Picture
    like: Patch | None = None
    candidates: list[str] = field(default_factory=list)
    sentences: Sequence[Sentence] = ()
    groups: Groups | None = None
    verdicts: Sequence[Verdict] = ()
    caption: str = ""

    @property
    def root(self) -> Patch:
        """The patch that was described: itself, or the one like it."""
        return self.like or self

    def pixels(self, source: int) -> Picture:
        """What a sentence of the source is judged by: the patch, whichever candidate it comes from."""
        return self.picture

    def trace(self) -> dict[str, Json]:
        return {
            "pid": self.pid,
            "box": list(self.box),
            "like": self.like.pid if self.like is not None else None,
            "candidates": list(self.candidates),
            "sentences": [_shown(verdict) for verdict in self.verdicts],
            "caption": self.caption,
        }


@dataclass(eq=False)
class Overlap:
    """Two neighbouring patches that show much the same. picture: the union of both. caption: "" is none,
    and then the two stay apart."""

    a: Patch
    b: Patch
    iou: float
    box: Box
    picture: Picture
    sentences: Sequence[Sentence] = ()
    groups: Groups | None = None
    verdicts: Sequence[Verdict] = ()
    caption: str = ""

    @property
    def name(self) -> str:
        return f"{self.a.pid}+{self.b.pid}"

    def pixels(self, source: int) -> Picture:
        """What a sentence of the source is judged by: its own patch; what is about both (0), by the union."""
        return (self.picture, self.a.picture, self.b.picture)[source]

    def trace(self) -> dict[str, Json]:
        return {
            "a": self.a.pid,
            "b": self.b.pid,
            "iou": round(self.iou, 4),
            "box": list(self.box),
            "sentences": [_shown(verdict) for verdict in self.verdicts],
            "caption": self.caption or None,
        }


@dataclass(frozen=True)
class Region:
    """What the last step is told of one part of the picture."""

    name: str
    box: Box
    caption: str


@dataclass(eq=False)
class Draft:
    """Everything about one request's caption, from the empty page to `text`.

    overall: the caption of the whole picture; overall2: the same with the semantic patch worked in.
    failure: why there is no caption at all. warnings: what went wrong and was survived.
    """

    request: Request
    picture: Picture
    size: tuple[int, int]
    detections: Sequence[Detection] = ()
    names: Sequence[str] = ()
    semantic: Semantic | None = None
    overall: str = ""
    overall2: str = ""
    patches: dict[str, Patch] = field(default_factory=dict)
    overlaps: list[Overlap] = field(default_factory=list)
    regions: Sequence[Region] = ()
    text: str = ""
    usage: Usage = Usage()
    calls: Counter[str] = field(default_factory=Counter)
    warnings: list[str] = field(default_factory=list)
    failure: Failure | None = None

    def warn(self, warning: str) -> None:
        self.warnings.append(warning)

    def trace(self) -> dict[str, Json]:
        """As JSON: boxes in the picture's pixels; every sentence with what became of it, and why."""
        semantic = self.semantic
        return {
            "size": list(self.size),
            "proposals": [
                {"box": list(one.box), "score": round(one.score, 4), "label": one.label}
                for one in self.detections
            ],
            "semantic": None
            if semantic is None
            else {
                "names": list(self.names),
                "box": list(semantic.box),
                "share": round(semantic.share, 4),
                "used": semantic.used,
            },
            "patches": [patch.trace() for patch in self.patches.values()],
            "pairs": [overlap.trace() for overlap in self.overlaps],
            "overall": self.overall,
            "overall2": self.overall2,
            "regions": [region.name for region in self.regions],
            "calls": {what: self.calls[what] for what in COUNTED},
            "warnings": list(self.warnings),
        }


def _shown(verdict: Verdict) -> dict[str, Json]:
    return {
        "ids": list(verdict.ids),
        "text": verdict.text,
        "kind": verdict.kind,
        "kept": verdict.kept,
        "reason": verdict.reason,
        "score": None if verdict.score is None else round(verdict.score, 4),
    }
