"""The steps that put captions together: each says what to ask the language model, and takes its reply.

Knows drafts, prompts and groups, and what to do where a step fails. Must not know waves, models or the
order of the steps (`fusion.py` has it).

Paper: section 3, "description aggregation"; released code: `aggregation/semantic_batch.py`. The steps are
called as in specs of it: A1 groups what several captions of one patch say, A2 merges them, A3 works the
semantic patch into the caption of the whole, A4 and A5 do for two overlapping patches what A1 and A2 do for
one, A6 writes the final caption. Each failure costs as little as it can: unreadable groups make every
sentence unique; an unmerged patch is described by its best candidate; two unmerged neighbours stay apart;
without A3 the caption of the whole stays as it was; without A6 that is the final caption.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.types import Fidelity
from methods.patch_matters import prompts
from methods.patch_matters.divide import SEMANTIC, SPATIAL, overlapping
from methods.patch_matters.draft import Draft, Overlap, Patch, Region
from methods.patch_matters.grouping import Groups, all_unique, read
from methods.patch_matters.replies import Form
from methods.patch_matters.semantic_filter import Verdict, judged
from methods.patch_matters.sentences import numbered, scorable


@dataclass(eq=False)
class Ask:
    """One question to the language model.

    role: A1 to A6, E1 or E2. read: what its reply means; raises Unreadable. take: what to do with that.
    lost: what to do where there is no readable reply, and the words for it.
    """

    draft: Draft
    role: str
    about: str
    prompt: prompts.Prompt
    read: Callable[[str], Any]
    take: Callable[[Any], None]
    lost: Callable[[], str]


# ---------------------------------------------------------------- one patch


def group(draft: Draft, patch: Patch, form: Form) -> Ask:
    """A1: what the candidates of a patch agree on, contradict each other in, and say alone."""
    patch.sentences = numbered(patch.candidates)

    def take(groups: Groups) -> None:
        patch.groups = _mended(draft, "A1", patch.pid, groups)

    def lost() -> str:
        patch.groups = all_unique(patch.sentences)
        return "every sentence counts as said once"

    prompt = prompts.group_same(patch.sentences, form)
    return Ask(draft, "A1", patch.pid, prompt, lambda text: read(text, patch.sentences, form), take, lost)


def merge(draft: Draft, patch: Patch) -> Ask:
    """A2: one caption of a patch, from what was kept."""

    def take(text: str) -> None:
        patch.caption = text

    def lost() -> str:
        patch.caption = best(patch)
        return "its best candidate stands for it"

    prompt = prompts.merge_same(patch.candidates, _kept(patch.verdicts))
    return Ask(draft, "A2", patch.pid, prompt, prompts.cleaned, take, lost)


def best(patch: Patch) -> str:
    """The candidate whose sentences score best on average, or else the one most of which was kept."""
    kept = {one for verdict in patch.verdicts if verdict.kept for one in verdict.ids}
    scores = {verdict.ids[0]: verdict.score for verdict in patch.verdicts if len(verdict.ids) == 1}

    def worth(source: int) -> tuple[float, float]:
        ids = [sentence.id for sentence in patch.sentences if sentence.source == source]
        known = [score for one in ids if (score := scores.get(one)) is not None]
        return (
            sum(known) / len(known) if known else 0.0,
            sum(one in kept for one in ids) / len(ids) if ids else 0.0,
        )

    places = range(len(patch.candidates))
    return patch.candidates[max(places, key=lambda place: (worth(place + 1), -place))]


# ---------------------------------------------------------------- the semantic patch


def into_global(draft: Draft) -> Ask:
    """A3: the semantic patch's caption worked into that of the whole picture."""

    def take(text: str) -> None:
        draft.overall2 = text

    prompt = prompts.into_global(draft.overall, draft.patches[SEMANTIC].caption)
    lost = "the caption of the whole stays as it was"
    return Ask(draft, "A3", SEMANTIC, prompt, prompts.cleaned, take, lambda: lost)


# ---------------------------------------------------------------- overlapping patches


def overlaps(draft: Draft, threshold: float, fidelity: Fidelity) -> list[Overlap]:
    """The neighbouring spatial patches that show much the same, where both have captions of their own."""
    described = {pid: p for pid, p in draft.patches.items() if pid in SPATIAL and p.caption}
    found: dict[frozenset[int], Overlap] = {}  # by the two that were described
    for pair in overlapping({pid: patch.box for pid, patch in described.items()}, threshold, fidelity):
        a, b = described[pair.a], described[pair.b]
        if a.root is not b.root:
            overlap = Overlap(a, b, pair.iou, pair.box, draft.picture.crop(pair.box))
            found.setdefault(frozenset((id(a.root), id(b.root))), overlap)
    return list(found.values())


def group_overlap(draft: Draft, overlap: Overlap, form: Form) -> Ask:
    """A4: what the captions of two overlapping patches agree on, contradict each other in, and say alone."""
    overlap.sentences = numbered([overlap.a.caption, overlap.b.caption])

    def take(groups: Groups) -> None:
        overlap.groups = _mended(draft, "A4", overlap.name, groups)

    def lost() -> str:
        overlap.groups = all_unique(overlap.sentences)
        return "every sentence counts as said once"

    prompt = prompts.group_overlap(overlap.sentences, form)
    return Ask(
        draft, "A4", overlap.name, prompt, lambda text: read(text, overlap.sentences, form), take, lost
    )


def merge_overlap(draft: Draft, overlap: Overlap) -> Ask:
    """A5: one caption of two overlapping patches."""

    def take(text: str) -> None:
        overlap.caption = text

    a, b = overlap.a, overlap.b
    prompt = prompts.merge_overlap(
        draft.size, (a.box, b.box), (a.caption, b.caption), _kept(overlap.verdicts)
    )
    lost = "the two patches stay apart"
    return Ask(draft, "A5", overlap.name, prompt, prompts.cleaned, take, lambda: lost)


# ---------------------------------------------------------------- the filter


def to_score(part: Patch | Overlap, floor: float | None) -> dict[str, tuple[int, str]]:
    """By id, the sentences whose fit to the pixels decides, and the source that says which pixels.

    Those of contradictions and those said once; with a floor, consistent ones too.
    """
    groups = part.groups or Groups()
    asked = {one.id: (0, one.text) for members in groups.contradictory for one in members}
    asked |= {one.id: (one.source, one.text) for one in groups.unique}
    if floor is not None:
        asked |= {fact.key: (0, fact.text) for fact in groups.consistent}
    return {one: (source, scorable(text) or text) for one, (source, text) in asked.items()}


def keep(
    part: Patch | Overlap, scores: Mapping[str, float] | None, threshold: float, floor: float | None
) -> None:
    """The filter: which of a part's sentences are reliable."""
    part.verdicts = judged(part.groups or Groups(), scores, threshold, floor)


def _mended(draft: Draft, role: str, about: str, groups: Groups) -> Groups:
    if groups.faults:
        draft.warn(f"{role} of {about}, mended: {'; '.join(groups.faults)}")
    return groups


def _kept(verdicts: Sequence[Verdict]) -> list[str]:
    return [verdict.text for verdict in verdicts if verdict.kept]


# ---------------------------------------------------------------- the end


def regions(draft: Draft, fidelity: Fidelity) -> list[Region]:
    """What A6 is told beside the caption of the whole: two to four parts of the picture.

    Merged overlaps, and each patch that is in none of them. As released: of one overlap, itself and the
    first uncovered patch, that one's candidates as a list; of two, themselves; of three, the first two.
    """
    merged = [overlap for overlap in draft.overlaps if overlap.caption]
    covered = {id(patch.root) for overlap in merged for patch in (overlap.a, overlap.b)}
    joined = [Region(overlap.name, overlap.box, overlap.caption) for overlap in merged]
    alone = [
        patch
        for pid, patch in draft.patches.items()
        if pid in SPATIAL and patch.caption and patch.like is None and id(patch) not in covered
    ]
    if fidelity == "released" and len(merged) == 1:
        return joined + [Region(p.pid, p.box, str(list(p.candidates))) for p in alone[:1]]
    if fidelity == "released" and len(merged) in (2, 3):
        return joined[:2]
    return joined + [Region(patch.pid, patch.box, patch.caption) for patch in alone]


def final(draft: Draft) -> Ask:
    """A6: the final caption, from that of the whole and those of its parts."""

    def take(text: str) -> None:
        draft.text = text

    def lost() -> str:
        draft.text = unfused(draft)
        return "the caption of the whole is the final one"

    told = [(region.box, region.caption) for region in draft.regions]
    prompt = prompts.final(draft.overall2, told, draft.size)
    return Ask(draft, "A6", "final", prompt, prompts.cleaned, take, lost)


def unfused(draft: Draft) -> str:
    """What there is without A6: the caption of the whole, or, without one, those of the parts."""
    return draft.overall2 or " ".join(region.caption for region in draft.regions)
