"""How a method's knob names a checkpoint: `[FAMILY:]CHECKPOINT[,knob=value]*`, as text.

Knows that grammar. Must not know what a checkpoint is of, nor where it is.
"""

from __future__ import annotations

from collections.abc import Collection

from harness.errors import SpecError


def checkpoint_spec(who: str, text: str, allowed: Collection[str]) -> tuple[str, str, dict[str, str]]:
    """(family or "", checkpoint, knobs) of a spec; `who` is the knob that it is the value of.

    Raises `SpecError` for no checkpoint, a knob that is not `allowed`, and one without a value.

    >>> checkpoint_spec("detector", "detr:models/detr, device=cpu", ["device"])
    ('detr', 'models/detr', {'device': 'cpu'})
    >>> checkpoint_spec("detector", "models/detr,colour=red", ["device", "revision"])
    Traceback (most recent call last):
        ...
    harness.errors.SpecError: detector=models/detr,colour=red: no knob 'colour' (knobs: device, revision)
    """
    named, *rest = (part.strip() for part in text.split(","))
    knobs = dict(part.partition("=")[::2] for part in rest)
    if unknown := set(knobs) - set(allowed):
        raise SpecError(f"{who}={text}: no knob {min(unknown)!r} (knobs: {', '.join(allowed)})")
    if empty := [knob for knob, value in knobs.items() if not value]:
        raise SpecError(f"{who}={text}: {empty[0]} has no value; leave it out or write {empty[0]}=VALUE")
    family, _, checkpoint = named.rpartition(":")
    if not checkpoint:
        raise SpecError(f"{who}={text}: no checkpoint is named; write FAMILY:CHECKPOINT")
    return family, checkpoint, knobs
