"""The wavefront: every picture's captions put together in five waves of questions and two of scores.

Knows the order of the steps, and how a wave is asked, asked again and survived. Must not know what a step
says (`aggregate.py`), nor any model beyond its `generate`.

However many pictures there are, each wave is one list: a local model batches it, a service gets it at once.
Released code: one picture at a time, the model idle while sentences are scored and the reverse.

    A1 of every patch -> scores -> A2 -> A3 with A4 -> scores -> A5 -> A6
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from harness.pictures import Picture
from harness.types import Decoding, Fidelity, Model, Request, Response
from methods._match import Scorer
from methods.patch_matters import aggregate, prompts
from methods.patch_matters.aggregate import Ask
from methods.patch_matters.divide import SEMANTIC
from methods.patch_matters.draft import DECLINED, Draft, Overlap, Patch
from methods.patch_matters.replies import Form, Unreadable

RETRIES = 2
"""Of a question whose reply could not be read, each telling what was wrong with the last."""

MERGING = ("A2", "A3", "A5")
"""The questions that are answered with a text of some freedom; the others are sampled almost greedily."""


@dataclass(frozen=True)
class Speaker:
    """The language model and how it is sampled. sorting: for E1, E2, A1, A4, A6; merging: for A2, A3, A5."""

    model: Model
    sorting: Decoding
    merging: Decoding

    def ask(self, asks: Sequence[Ask]) -> None:
        """One wave of questions; those whose replies cannot be read are asked again, at most twice.

        A reply that was cut off counts as unreadable, and gets twice the tokens. A failure of the model is
        not asked again, for its adapter has tried, nor is what it declined. Every ask ends taken or lost.
        """
        waiting = [(ask, ask.prompt, self._decoding(ask)) for ask in asks]
        for again in range(RETRIES + 1):
            wave = [Request(question=p.user, system=p.system, decoding=d) for _, p, d in waiting]
            replies = self.model.generate(wave) if wave else []
            unread = []
            for (ask, _, decoding), reply in zip(waiting, replies, strict=True):
                ask.draft.usage += reply.usage
                ask.draft.calls["aggregator"] += 1
                fault = _taken(ask, reply)
                if fault is None:
                    continue
                if reply.failure is not None or reply.finish_reason in DECLINED or again == RETRIES:
                    ask.draft.warn(f"{ask.role} of {ask.about}: {fault}; {ask.lost()}")
                else:
                    ask.draft.calls["retries"] += 1
                    wider = 2 if reply.finish_reason == "length" else 1
                    unread.append(
                        (
                            ask,
                            prompts.again(ask.prompt, fault),
                            replace(decoding, max_tokens=decoding.max_tokens * wider),
                        )
                    )
            waiting = unread

    def _decoding(self, ask: Ask) -> Decoding:
        decoding = self.merging if ask.role in MERGING else self.sorting
        return replace(decoding, seed=ask.draft.request.decoding.seed)


def _taken(ask: Ask, reply: Response) -> str | None:
    """None where the reply could be read and was taken; otherwise what is wrong with it."""
    if reply.failure is not None:
        return f"the language model failed ({reply.failure.message})"
    if reply.finish_reason in DECLINED:
        return f"the language model declined ({reply.finish_reason})"
    if reply.finish_reason == "length":
        return "the reply was cut off before its end; answer more briefly"
    try:
        read = ask.read(reply.text)
    except Unreadable as unreadable:
        return str(unreadable)
    ask.take(read)
    return None


@dataclass(frozen=True)
class Filter:
    """Which sentences are reliable. scorer: None keeps what nobody contradicts. floor: also for what the
    candidates agree on; None trusts it."""

    scorer: Scorer | None
    threshold: float
    floor: float | None

    def keep(self, drafts: Sequence[Draft], parts: Sequence[Sequence[Patch | Overlap]]) -> None:
        """One wave of scores over the parts of every draft, and the verdicts."""
        crops: dict[tuple[int, int], tuple[Draft, Picture, list[tuple[int, str, str]]]] = {}
        for draft, some in zip(drafts, parts, strict=True):
            for part in some:
                for one, (source, text) in aggregate.to_score(part, self.floor).items():
                    pixels = part.pixels(source)
                    asked = crops.setdefault((id(draft), id(pixels)), (draft, pixels, []))[2]
                    asked.append((id(part), one, text))
        scores: dict[int, dict[str, float]] = {id(part): {} for some in parts for part in some}
        if self.scorer is not None and crops:
            wave = [(pixels, [text for *_, text in asked]) for _, pixels, asked in crops.values()]
            for (draft, _, asked), found in zip(crops.values(), self.scorer.score(wave), strict=True):
                draft.usage += found.usage
                draft.calls["scored"] += len(asked)
                if found.failure is not None:
                    draft.warn(f"{len(asked)} sentences could not be scored: {found.failure.message}")
                    continue
                for (part_id, one, _), value in zip(asked, found.values, strict=True):
                    scores[part_id][one] = value
        for some in parts:
            for part in some:
                known = None if self.scorer is None else scores[id(part)]
                aggregate.keep(part, known, self.threshold, self.floor)


def fuse(
    drafts: Sequence[Draft],
    speaker: Speaker,
    reliable: Filter,
    *,
    form: Form,
    pair_iou: float,
    fidelity: Fidelity,
) -> None:
    """The final caption of every draft, from the captions of the whole and of its patches."""
    own = [[p for p in draft.patches.values() if p.like is None and p.candidates] for draft in drafts]
    several = [[patch for patch in some if _differ(patch, fidelity)] for some in own]

    speaker.ask([aggregate.group(d, p, form) for d, some in zip(drafts, several, strict=True) for p in some])
    reliable.keep(drafts, several)
    speaker.ask([aggregate.merge(d, p) for d, some in zip(drafts, several, strict=True) for p in some])
    for draft, some, merged in zip(drafts, own, several, strict=True):
        _say_alike(draft, [patch for patch in some if patch not in merged])
        draft.overlaps = aggregate.overlaps(draft, pair_iou, fidelity)

    speaker.ask(
        [aggregate.into_global(draft) for draft in drafts if _has_semantic(draft)]
        + [aggregate.group_overlap(draft, one, form) for draft in drafts for one in draft.overlaps]
    )
    reliable.keep(drafts, [draft.overlaps for draft in drafts])
    speaker.ask([aggregate.merge_overlap(draft, one) for draft in drafts for one in draft.overlaps])

    for draft in drafts:
        draft.regions = aggregate.regions(draft, fidelity)
        draft.text = aggregate.unfused(draft)
    speaker.ask([aggregate.final(draft) for draft in drafts if draft.regions])


def _differ(patch: Patch, fidelity: Fidelity) -> bool:
    """Whether there is anything to merge; the released code asks in any case."""
    return fidelity == "released" or len(set(patch.candidates)) > 1


def _say_alike(draft: Draft, patches: Sequence[Patch]) -> None:
    """A patch whose candidates are one and the same says just that; one like another, what that one says."""
    for patch in patches:
        patch.caption = patch.candidates[0]
    for patch in draft.patches.values():
        if patch.like is not None:
            patch.groups, patch.verdicts = patch.like.groups, patch.like.verdicts
            patch.caption = patch.like.caption


def _has_semantic(draft: Draft) -> bool:
    patch = draft.patches.get(SEMANTIC)
    return bool(patch is not None and patch.caption and draft.overall)
