"""The captions that everything starts from: one of the whole picture, some of each patch.

Knows the captioner's requests. Must not know what becomes of the captions.

Paper: section 3, "description generation"; released code: `description_generate/patch_caption.py`. All are
asked for with the run's own prompt. The released code reads the candidates of patch i at places i, i+1,
i+2 of a list that holds those of all patches in turn, so that most patches get their neighbours'; here
(`fixed`) each patch has its own, and `released` repeats the mistake.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from harness.types import Decoding, Fidelity, Model, Request
from methods.patch_matters.draft import DECLINED, Draft, Patch


@dataclass(frozen=True)
class Captions:
    """How captions are sampled. number: of candidates for each patch."""

    number: int
    overall: Decoding
    patch: Decoding


def overall(captioner: Model, drafts: Sequence[Draft], how: Captions) -> None:
    """One wave: a caption of each whole picture."""
    wave = [replace(draft.request, decoding=_seeded(how.overall, draft.request, 1, 0)) for draft in drafts]
    for draft, (text,) in zip(drafts, _captions(captioner, [[one] for one in wave], drafts), strict=True):
        draft.overall = draft.overall2 = text
        if not text:
            draft.warn("the whole picture has no caption")


def patches(captioner: Model, drafts: Sequence[Draft], how: Captions, fidelity: Fidelity) -> None:
    """One wave: the candidates of every patch of every picture."""
    own = [[p for p in draft.patches.values() if p.like is None] for draft in drafts]
    wave = [
        [_about(patch, draft.request, how, turn) for patch in parts for turn in range(how.number)]
        for draft, parts in zip(drafts, own, strict=True)
    ]
    for draft, parts, texts in zip(drafts, own, _captions(captioner, wave, drafts), strict=True):
        for place, patch in enumerate(parts):
            start = place if fidelity == "released" else place * how.number
            patch.candidates = [text for text in texts[start : start + how.number] if text]
            if not patch.candidates:
                draft.warn(f"{patch.pid} has no caption")
        for patch in draft.patches.values():
            if patch.like is not None:
                patch.candidates = patch.like.candidates


def _about(patch: Patch, request: Request, how: Captions, turn: int) -> Request:
    decoding = _seeded(how.patch, request, how.number, turn)
    return replace(request, images=(patch.picture,), decoding=decoding)


def _seeded(decoding: Decoding, request: Request, number: int, turn: int) -> Decoding:
    """A seed of its own for each candidate of each repeat."""
    return replace(decoding, seed=request.decoding.seed * number + turn, stop=request.decoding.stop)


def _captions(
    captioner: Model, wave: Sequence[Sequence[Request]], drafts: Sequence[Draft]
) -> list[list[str]]:
    """What the captioner says to each request, in a text of one line; "" where it failed or declined."""
    flat = [request for requests in wave for request in requests]
    answers = iter(captioner.generate(flat) if flat else [])
    said: list[list[str]] = []
    for draft, requests in zip(drafts, wave, strict=True):
        texts = []
        for answer in (next(answers) for _ in requests):
            draft.usage += answer.usage
            draft.calls["captioner"] += 1
            if answer.failure is not None:
                draft.failure = draft.failure or answer.failure  # stands if nothing is said at all
                draft.warn(f"the captioner failed: {answer.failure.message}")
            declined = answer.finish_reason in DECLINED
            if declined:
                draft.warn(f"the captioner declined ({answer.finish_reason})")
            texts.append("" if declined else " ".join(answer.text.replace("</s>", " ").split()))
        said.append(texts)
    return said
