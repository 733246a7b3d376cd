"""Patch Matters: describe a picture part by part, and put the parts together.

Peng et al., "Patch Matters: Training-free Fine-grained Image Caption Enhancement via Local Perception",
CVPR 2025, arXiv 2504.06666; code GeWu-Lab/Patch-Matters, commit bf3dfbc.

A captioner that sees all of a picture at once overlooks details and makes up others. So:

    divide      four quarters, grown around the objects that cross their edges, and the part that the
                caption's own objects lie in (`divide.py`)
    describe    one caption of the whole, three of each part (`describe.py`)
    aggregate   what a part's captions agree on is kept, of what they contradict each other in the sentence
                that fits the pixels best, of what one says alone what fits well enough; the parts' captions,
                and those of overlapping parts, are merged; the last step tells the whole from the parts
                (`aggregate.py`, `grouping.py`, `semantic_filter.py`, `prompts.py`)
    fuse        all of it in waves over many pictures (`fusion.py`)

Knows captioning requests, its four helpers and the order of the stages. Must not know adapters, nor how a
stage works.

The released code does not run to its end; what is repaired, with `fidelity=fixed`: each patch gets its own
candidates (released: mostly its neighbours'); no region is lost before the last step (71 of 202 shipped
pictures lose one with one overlapping pair, 1 with three); a picture whose semantic patch is not used is
described (released: IndexError on 127 of 202); replies are read as JSON by sentence ids, or tolerantly,
retried, and failing that count as sentences said once (released: nine common formats give silently empty
groups); proposals are merged whatever their order; an IoU at its threshold is over it, as in the paper's
figure; patches of the same pixels share their captions. `fidelity=released` has the release's boxes, strict
thresholds, candidates, regions and number of calls (two for the semantic patch's names), and goes on where
the release crashes. In both, the caption of the whole stands for BLIP-2's short one, and the prompts are
ours: `prompts.py` has their version.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, ClassVar, Literal

from harness.errors import PictureError, SpecError
from harness.types import Box, Decoding, Failure, Fidelity, Json, Method, Model, Request, Response
from methods._detect import Detection, Detector, Found
from methods._match import Scorer
from methods.patch_matters import describe, prompts
from methods.patch_matters.aggregate import Ask
from methods.patch_matters.describe import Captions
from methods.patch_matters.divide import SEMANTIC, SPATIAL, confident, merged, semantic, spatial
from methods.patch_matters.draft import Draft, Patch
from methods.patch_matters.fusion import Filter, Speaker, fuse

LOWEST_SCORE = 0.01
"""Of the detections that the two likeliest are taken from where none is confident; the release's config."""

RELEASED_TOKENS = 4096


@dataclass(frozen=True)
class PatchMatters(Method):
    """Captions a picture by its parts. The wrapped model is the captioner.

    aggregator: the language model, any model's spec; None is the captioner itself, asked without a picture.
    detector: of objects, for the boxes: `[FAMILY:]CHECKPOINT[,threshold=...]` of a DETR, RT-DETR, YOLOS
    (closed sets of labels), OWLv2 or Grounding DINO (asked for the caption's nouns); None divides into plain
    quarters. scorer: of how well a sentence fits pixels: `blip-itm:CHECKPOINT` (BLIP's matching, the paper's)
    or `clip:CHECKPOINT`, whose cosines want another `score`; None keeps what nobody contradicts.
    fidelity: which version, as above. form: of the groups in A1 and A4's replies: `json` by sentence ids, or
    `text`, as released. candidates: captions of each patch.

    merge_iou, attach, detection: over which proposals are merged, attached to a quarter (share of their
    area) and believed. gate: IoU with the picture at which the semantic patch says nothing new. pair_iou:
    at which neighbours are merged. score: which sentences must exceed; floor: which consistent ones must,
    None for none.

    Temperatures, nucleus and tokens are the paper's: global_temperature and patch_temperature with
    caption_tokens for captions; sorting_temperature for what groups and names (E1, E2, A1, A4) and for the
    final caption, merging_temperature for what merges, with top_p; sorting_tokens and merging_tokens are
    ours (released: 4096).

    Survives every failure of a helper with a caption and a warning in the trace; fails only where the
    captioner says nothing about the picture nor any of its parts, or the picture cannot be read. A request
    without a picture goes on as it came; one with options, probes or several pictures is no request for a
    caption, and fails. Trace: see `draft.py`. Cost: 13 to 16 captions and 9 to 20 questions a picture.
    """

    name: ClassVar[str] = "patch_matters"
    aggregator: Model | None = None
    detector: str | None = None
    scorer: str | None = None
    fidelity: Fidelity = "fixed"
    form: Literal["json", "text"] = "json"
    candidates: int = 3
    detection: float = 0.3
    merge_iou: float = 0.3
    attach: float = 0.3
    gate: float = 0.4
    pair_iou: float = 0.4
    score: float = 0.3
    floor: float | None = None
    global_temperature: float = 0.2
    patch_temperature: float = 0.7
    caption_tokens: int = 512
    sorting_temperature: float = 0.2
    merging_temperature: float = 0.6
    top_p: float = 0.9
    sorting_tokens: int = 1536
    merging_tokens: int = 1024

    def __post_init__(self) -> None:
        for name in ("merge_iou", "attach", "gate", "pair_iou"):
            if not 0 < getattr(self, name) <= 1:
                raise SpecError(f"patch_matters:{name}={getattr(self, name)}; it is above 0 and 1 at most")
        for name in ("detection", "score"):
            if not 0 <= getattr(self, name) <= 1:
                raise SpecError(f"patch_matters:{name}={getattr(self, name)}; it is a score, from 0 to 1")
        if self.floor is not None and not 0 <= self.floor <= 1:
            raise SpecError(f"patch_matters:floor={self.floor}; it is a score, from 0 to 1, or none")
        for name in ("candidates", "caption_tokens", "sorting_tokens", "merging_tokens"):
            if getattr(self, name) < 1:
                raise SpecError(f"patch_matters:{name}={getattr(self, name)}; it is 1 or more")
        _ = self._captions, self._speaker, self._finder, self._filter  # what is wrong should be known now

    def describe(self) -> dict[str, Any]:
        """The knobs and the four helpers; an aggregator or a detector is `none` where there is no other."""
        return {
            **super().describe(),
            "detector": self._finder and self._finder.describe(),
            "scorer": self._filter.scorer and self._filter.scorer.describe(),
            "prompts": prompts.VERSION,
        }

    def rehearsed(self) -> PatchMatters:
        """All patches and overlaps that a detector could lead to; neither it nor the scorer loads.

        What A2, A3, A5 and A6 would ask again after an unreadable reply is not in it.
        """
        kind = PatchMatters if self.detector is None else _Rehearsed
        own = {knob.name: getattr(self, knob.name) for knob in fields(self)}
        return kind(**{**own, "scorer": None})

    def generate(self, requests: Sequence[Request]) -> list[Response]:
        begun = [_begin(request) for request in requests]
        passed = [request for request, draft in zip(requests, begun, strict=True) if draft is None]
        others = iter(self.model.generate(passed) if passed else [])
        self._caption([draft for draft in begun if draft is not None and draft.failure is None])
        return [_passed_on(next(others)) if draft is None else _response(draft, self.name) for draft in begun]

    def _caption(self, drafts: Sequence[Draft]) -> None:
        describe.overall(self.model, drafts, self._captions)
        self._divide(drafts)
        describe.patches(self.model, drafts, self._captions, self.fidelity)
        fuse(
            drafts,
            self._speaker,
            self._filter,
            form=self.form,
            pair_iou=self.pair_iou,
            fidelity=self.fidelity,
        )

    # ------------------------------------------------------------ divide

    def _divide(self, drafts: Sequence[Draft]) -> None:
        """Every picture's patches: the grown quarters and, past the gate, the semantic one."""
        if self._finder is not None:
            self._detect(self._finder, drafts)
        for draft in drafts:
            proposals = [one.box for one in draft.detections]
            boxes = spatial(merged(proposals, self.merge_iou, self.fidelity), draft.size, self.attach)
            if self._finder is not None:
                meant = [one.box for one in draft.detections if one.label in draft.names]
                draft.semantic = semantic(meant, draft.size, self.gate, self.fidelity)
                if draft.semantic.used:
                    boxes[SEMANTIC] = draft.semantic.box
            _cut(draft, boxes, share=self.fidelity == "fixed")

    def _detect(self, finder: Detector, drafts: Sequence[Draft]) -> None:
        """Objects, and which of them the caption of the whole is about.

        A detector of any words is asked for the caption's nouns, and all that it finds is meant. One of a
        closed set is asked first, and then the language model which of its labels the caption means:
        directly, or as released by way of the caption's nouns.
        """
        nouns: dict[int, list[str]] = {id(draft): [] for draft in drafts}
        if finder.zero_shot or self.fidelity == "released":
            self._speaker.ask([_nouns(draft, nouns) for draft in drafts if draft.overall])
        if finder.zero_shot:
            asked = [draft for draft in drafts if nouns[id(draft)]]
            found = finder.detect([d.picture for d in asked], [tuple(nouns[id(d)]) for d in asked])
        else:
            asked = list(drafts)
            found = finder.detect([draft.picture for draft in asked])
        for draft, one in zip(asked, found, strict=True):
            self._believe(draft, one)
        if finder.zero_shot:
            for draft in drafts:
                draft.names = sorted({one.label for one in draft.detections})
        else:
            self._speaker.ask(
                [
                    _named(draft, nouns[id(draft)] or draft.overall)
                    for draft in drafts
                    if draft.overall and (draft.detections or self.fidelity == "released")
                ]
            )

    def _believe(self, draft: Draft, found: Found) -> None:
        draft.usage += found.usage
        draft.calls["detector"] += 1
        if found.failure is not None:
            draft.warn(f"the detector failed ({found.failure.message}); plain quarters")
        named = [Detection(one.box, one.score, one.label.replace("_", " ")) for one in found.detections]
        draft.detections = confident(named, self.detection)

    # ------------------------------------------------------------ helpers

    @cached_property
    def _finder(self) -> Detector | None:
        return None if self.detector is None else Detector.from_spec(self.detector, threshold=LOWEST_SCORE)

    @cached_property
    def _filter(self) -> Filter:
        scorer = None if self.scorer is None else Scorer.from_spec(self.scorer)
        return Filter(scorer, self.score, self.floor)

    @cached_property
    def _captions(self) -> Captions:
        return Captions(
            self.candidates,
            Decoding(self.caption_tokens, self.global_temperature),
            Decoding(self.caption_tokens, self.patch_temperature),
        )

    @cached_property
    def _speaker(self) -> Speaker:
        sorting, merging = self.sorting_tokens, self.merging_tokens
        if self.fidelity == "released":
            sorting = merging = RELEASED_TOKENS
        return Speaker(
            self.aggregator or self.model,
            Decoding(sorting, self.sorting_temperature, self.top_p),
            Decoding(merging, self.merging_temperature, self.top_p),
        )


class _Rehearsed(PatchMatters):
    """The most that a detector could lead to: both questions about names, and five patches, nearly the whole
    picture each."""

    def _divide(self, drafts: Sequence[Draft]) -> None:
        nouns: dict[int, list[str]] = {}
        self._speaker.ask([_nouns(draft, nouns) for draft in drafts])
        self._speaker.ask([_named(draft, draft.overall) for draft in drafts])
        for draft in drafts:
            width, height = draft.size
            boxes: dict[str, Box] = {
                pid: (0, 0, width - place, height) for place, pid in enumerate((*SPATIAL, SEMANTIC))
            }
            _cut(draft, boxes, share=False)


method = PatchMatters


# ---------------------------------------------------------------- one picture


def _begin(request: Request) -> Draft | None:
    """An empty draft, or one that failed already; None for a request that is not ours to answer."""
    if not request.images:
        return None
    picture = request.images[0]
    try:
        draft = Draft(request, picture, picture.size)
        picture.digest  # noqa: B018  # that it can be read at all
    except PictureError as error:
        draft = Draft(request, picture, (0, 0), failure=Failure(error.kind, str(error)))
    if request.options or request.probes or request.decoding.max_tokens == 0 or len(request.images) > 1:
        draft.failure = Failure(
            "no_caption_asked",
            f"patch_matters captions one picture; this request has {len(request.images)} pictures, "
            f"{len(request.options)} options, {len(request.probes)} probes and asks for "
            f"{request.decoding.max_tokens} tokens. Use it on a captioning task",
        )
    return draft


def _cut(draft: Draft, boxes: dict[str, Box], *, share: bool) -> None:
    """The patches of these boxes. An empty one (a picture one pixel wide has two) is left out."""
    first: dict[tuple[int, ...], Patch] = {}
    for pid, box in boxes.items():
        pixels = tuple(round(edge) for edge in box)
        if pixels[2] <= pixels[0] or pixels[3] <= pixels[1]:
            draft.warn(f"{pid} is empty: the picture has {draft.size[0]} x {draft.size[1]} pixels")
            continue
        patch = Patch(pid, box, draft.picture.crop(box), first.get(pixels) if share else None)
        first.setdefault(pixels, patch)
        draft.patches[pid] = patch


def _nouns(draft: Draft, nouns: dict[int, list[str]]) -> Ask:
    """E1: the objects that the caption of the whole names."""

    def take(found: list[str]) -> None:
        nouns[id(draft)] = found

    prompt = prompts.nouns(draft.overall)
    lost = "no object is looked for"
    return Ask(draft, "E1", "the picture", prompt, prompts.read_names, take, lambda: lost)


def _named(draft: Draft, words: Sequence[str] | str) -> Ask:
    """E2: which of the detected labels the caption means."""
    labels = sorted({one.label for one in draft.detections})

    def take(found: list[str]) -> None:
        meant = {name.casefold() for name in found}
        draft.names = [label for label in labels if label.casefold() in meant]

    lost = "no semantic patch"
    return Ask(
        draft, "E2", "the picture", prompts.named(words, labels), prompts.read_names, take, lambda: lost
    )


def _response(draft: Draft, method: str) -> Response:
    trace: dict[str, Json] = {"method": method, **draft.trace()}
    if draft.text:
        return Response(draft.text, usage=draft.usage, trace=trace)
    failure = draft.failure or Failure("no_caption", "the captioner said nothing about the picture")
    return Response(finish_reason="failure", usage=draft.usage, trace=trace, failure=failure)


def _passed_on(response: Response) -> Response:
    return replace(
        response, trace={"method": "patch_matters", "skipped": "no image", "inner": response.trace}
    )
