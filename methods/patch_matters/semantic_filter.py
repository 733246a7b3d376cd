"""The semantic filter: which statements and sentences are kept, by how well they fit the pixels.

Knows groups, scores by sentence id, and the rules. Must not know who scores, nor what is written of what is
kept. "Patch Matters" (CVPR 2025, arXiv 2504.06666), stages A1 and A4; reference: GeWu-Lab/Patch-Matters,
commit bf3dfbc (`aggregation/semantic_batch.py`).

Consistent statements stand. Of a contradiction the best-fitting sentence stays, if over the threshold; a
unique sentence stays if over it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from methods.patch_matters.claims import Kind
from methods.patch_matters.grouping import Groups


@dataclass(frozen=True)
class Verdict:
    """Whether a statement or sentence is kept, and why not. score: None where there is none."""

    kind: Kind
    text: str
    ids: tuple[str, ...]
    kept: bool
    reason: str = ""
    score: float | None = None


def judged(
    groups: Groups, scores: Mapping[str, float] | None, threshold: float, floor: float | None = None
) -> list[Verdict]:
    """What is kept, in the order of the reliable list: consistent, contradictions, unique.

    scores: by sentence id, and with `floor` by `Fact.key`; None where nobody scores. A contradiction keeps
    its best sentence (of equals the first) if over `threshold`, and none without scores; a unique sentence
    is kept if over it, and without a score too, with the reason. A consistent statement is kept, but that
    one scored under `floor` is not.
    """
    known = {
        key: score for key, score in (scores or {}).items() if score is not None and not math.isnan(score)
    }
    verdicts = []
    for fact in groups.consistent:
        score = known.get(fact.key) if floor is not None else None
        under = score is not None and floor is not None and score < floor
        reason = f"under the floor of {floor:g}" if under else ""
        verdicts.append(Verdict("consistent", fact.text, fact.ids, not under, reason, score))
    for group in groups.contradictory:
        scored = [one for one in group if one.id in known]
        best = max(scored, key=lambda one: known[one.id], default=None)
        for one in group:
            score = known.get(one.id)
            kept = one is best and score is not None and score > threshold
            if kept:
                reason = ""
            elif score is None:
                reason = "contradicted, and not scored"
            elif one is best:
                reason = f"contradicted, and not over {threshold:g}"
            else:
                reason = "contradicted by one that fits better"
            verdicts.append(Verdict("contradictory", one.text, (one.id,), kept, reason, score))
    for one in groups.unique:
        score = known.get(one.id)
        kept = score is None or score > threshold
        reason = "not scored" if score is None else "" if kept else f"not over {threshold:g}"
        verdicts.append(Verdict("unique", one.text, (one.id,), kept, reason, score))
    return verdicts
