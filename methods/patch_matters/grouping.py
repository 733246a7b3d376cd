"""Groups of several captions' sentences, as a language model's reply gives them.

Knows the three classes and their precedence. Must not know the prompts, how either form of reply is read
(`json_form.py`, `text_form.py`), nor what is kept of a group (`semantic_filter.py`). "Patch Matters" (CVPR
2025, arXiv 2504.06666), stages A1 and A4; reference: GeWu-Lab/Patch-Matters, commit bf3dfbc
(`aggregation/semantic_batch.py`).

Consistent: said in two sources or more. Contradictory: values that cannot both be true. Unique: said in
one. A sentence is in one class, the first of these that the reply gives it; one that the reply leaves out
is unique. So nothing is lost: every sentence is in exactly one place of `Groups`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from methods.patch_matters.catalogue import Catalogue, folded
from methods.patch_matters.claims import Claims
from methods.patch_matters.json_form import from_json
from methods.patch_matters.replies import THOUGHT, Form, Unreadable
from methods.patch_matters.sentences import Sentence
from methods.patch_matters.text_form import from_text, heading_of

LIMIT = 100_000
"""Characters of a reply: far more than any prompt here asks for."""


@dataclass(frozen=True)
class Fact:
    """A consistent statement and the ids of its sentences, of two sources or more.

    A text-form reply may merge sentences beyond recognition: then one of the ids is a `?`.
    """

    text: str
    ids: tuple[str, ...]

    @property
    def key(self) -> str:
        """What its score goes by."""
        return "+".join(self.ids)


@dataclass(frozen=True)
class Groups:
    """Every sentence in exactly one place. faults: what had to be mended in the reply to get there."""

    consistent: tuple[Fact, ...] = ()
    contradictory: tuple[tuple[Sentence, ...], ...] = ()
    unique: tuple[Sentence, ...] = ()
    faults: tuple[str, ...] = ()


def all_unique(sentences: Sequence[Sentence]) -> Groups:
    """The groups where no reply could be read: every sentence stands alone."""
    return Groups(unique=tuple(sentences))


def read(reply: str, sentences: Sequence[Sentence], form: Form) -> Groups:
    """The groups that a reply gives to `sentences`; raises `Unreadable` and nothing else.

    Every id of `sentences` is in exactly one place. A statement of fewer than two sources is not
    consistent, and a contradiction needs two sentences; statements that share a sentence are one, and so
    are contradictions. Where json is asked for, headed lists are read too.
    """
    if not sentences:
        return Groups()
    reply = THOUGHT.sub("", reply)
    if not reply.strip():
        raise Unreadable("the reply was empty")
    if len(reply) > LIMIT:
        raise Unreadable(f"the reply had {len(reply)} characters; the answer is far shorter")
    if form == "text":
        return _assembled(from_text(reply, Catalogue(sentences)), sentences)
    try:
        claims = from_json(reply, Catalogue(sentences))
    except Unreadable:
        if not any(heading_of(line) for line in reply.splitlines()):
            raise
        claims = from_text(reply, Catalogue(sentences))
        claims.faults.insert(0, "no JSON; headed lists were read")
    return _assembled(claims, sentences)


def _assembled(claims: Claims, sentences: Sequence[Sentence]) -> Groups:
    """Claims as groups: checked, in order of precedence, and with what no claim mentions."""
    faults = list(claims.faults)
    source_of = {sentence.id: sentence.source for sentence in sentences}
    alone: list[Sentence] = list(claims.unique)

    facts: list[Fact] = []
    for claim in claims.facts:
        ids = tuple(dict.fromkeys(claim.ids))
        if len({source_of[one] for one in ids if one in source_of} | claim.sources) < 2:
            faults.append(f"said in fewer than two sources, so not consistent: {claim.text[:80]}")
            if not any(one in source_of for one in ids):
                alone.append(Sentence(ids[0], min(claim.sources, default=1), claim.text))
            continue
        near = [fact for fact in facts if set(fact.ids) & set(ids)]
        if near:
            faults.append(f"statements that share a sentence were joined: {claim.text[:80]}")
        texts = dict.fromkeys([*(fact.text for fact in near), claim.text])
        joined = dict.fromkeys([*(one for fact in near for one in fact.ids), *ids])
        facts = [fact for fact in facts if fact not in near]
        facts.append(Fact(" ".join(texts), tuple(joined)))
    taken = {one for fact in facts for one in fact.ids}

    sets: list[list[Sentence]] = []
    for claimed in claims.sets:
        free = {sentence.id: sentence for sentence in claimed if sentence.id not in taken}
        if len(free) < len({sentence.id for sentence in claimed}):
            faults.append("a sentence that is consistent was also contradictory")
        if len(free) < 2:
            faults.append("a contradiction of fewer than two sentences")
            alone += free.values()
            continue
        touching = [one for one in sets if any(sentence.id in free for sentence in one)]
        if touching:
            faults.append("contradictions that share a sentence were joined")
        together = {sentence.id: sentence for one in touching for sentence in one} | free
        sets = [one for one in sets if one not in touching]
        sets.append(list(together.values()))
    taken |= {sentence.id for one in sets for sentence in one}

    named = {sentence.id: sentence for sentence in alone if sentence.id not in taken}
    silent = [one.id for one in sentences if one.id not in taken and one.id not in named]
    if silent:
        faults.append(f"not mentioned, so unique: {', '.join(silent[:20])}{' ...' * (len(silent) > 20)}")
    unique = [named.get(one.id, one) for one in sentences if one.id not in taken]
    said = {folded(one.text) for one in unique} | {folded(one.text) for group in sets for one in group}
    for one in named.values():
        if one.id not in source_of and folded(one.text) not in said:
            unique.append(one)
            said.add(folded(one.text))
    return Groups(tuple(facts), tuple(map(tuple, sets)), tuple(unique), tuple(dict.fromkeys(faults)))
