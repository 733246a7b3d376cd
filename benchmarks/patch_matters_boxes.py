"""What Patch Matters' repairs change, counted on the boxes that its authors ship, and on random ones.

    python -m benchmarks.patch_matters_boxes PATCH_MATTERS/description_generate/test_data/did_bench.json \\
        [--only coco/annotations.jsonl] [--sets 5000]

The first file is in a clone of GeWu-Lab/Patch-Matters (commit bf3dfbc): 202 pictures, the four patches and
the semantic box of each, as the authors' detector and language model gave them; the detections are not
there. `--only` adds a column of the pictures that a JSON-lines file names (`file_name`). Random sets of
boxes, in pictures of the same sizes, stand in for detections: 1 to 12 boxes, scattered, or half of them near
copies of others. Printed: Markdown tables. No model runs; the released geometry is that of
`methods.patch_matters.divide`, which the tests compare with the reference's.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.types import Box, Fidelity
from methods.patch_matters.divide import (
    ADJACENT,
    SPATIAL,
    Size,
    iou,
    merged,
    overlapping,
    quadrants,
    semantic,
    spatial,
)

MERGE, ATTACH, GATE, PAIR = 0.3, 0.3, 0.4, 0.4


@dataclass(frozen=True)
class Shipped:
    """A picture of the authors' file. patches: by the names of SPATIAL. named: the semantic box."""

    name: str
    size: Size
    patches: dict[str, Box]
    named: Box


def read(path: Path) -> list[Shipped]:
    """The records of did_bench.json."""
    records = json.loads(path.read_text(encoding="utf-8"))
    return [
        Shipped(
            Path(one["image"]).name,
            (one["size"][1], one["size"][0]),
            dict(zip(SPATIAL, map(_box, one["four_box"]), strict=True)),
            _box(one["main_box"]),
        )
        for one in records
    ]


def named_in(path: Path) -> set[str]:
    """The file names of a JSON-lines file."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return {json.loads(line)["file_name"] for line in lines if line.strip()}


def _box(numbers: Sequence[float]) -> Box:
    x1, y1, x2, y2 = numbers
    return (x1, y1, x2, y2)


# ---------------------------------------------------------------- shipped boxes


def bits(one: Shipped, fidelity: Fidelity) -> str:
    """Which of the four adjacent pairs overlap, in their order: `0101`."""
    found = {(pair.a, pair.b) for pair in overlapping(one.patches, PAIR, fidelity)}
    return "".join(str(int(pair in found)) for pair in ADJACENT)


def regions(pairs: str, fidelity: Fidelity) -> list[tuple[str, ...]]:
    """What the last prompt describes: pairs, and patches.

    fixed: every pair and every patch in none. released (aggregation/semantic_batch.py: merge): the prompts
    for three regions print the first two; for two pairs no patch is handed on.

    >>> regions("1000", "fixed")
    [('LT', 'RT'), ('LB',), ('RB',)]
    >>> regions("1000", "released")
    [('LT', 'RT'), ('LB',)]
    """
    together = [pair for pair, bit in zip(ADJACENT, pairs, strict=True) if bit == "1"]
    covered = set(itertools.chain.from_iterable(together))
    every: list[tuple[str, ...]] = [*together, *((pid,) for pid in SPATIAL if pid not in covered)]
    return every if fidelity == "fixed" or len(together) in (0, 4) else every[:2]


def figures(shipped: Sequence[Shipped]) -> dict[str, str]:
    """The rows of the table of shipped boxes."""
    pairs = [bits(one, "released") for one in shipped]
    counts = [text.count("1") for text in pairs]
    gates = {
        fidelity: [semantic([one.named], one.size, GATE, fidelity) for one in shipped]
        for fidelity in ("released", "fixed")
    }
    used = sum(gate.used for gate in gates["released"])
    changed = sum(bits(one, "fixed") != text for one, text in zip(shipped, pairs, strict=True))
    regated = sum(a.used != b.used for a, b in zip(gates["released"], gates["fixed"], strict=True))
    lost = Counter(text.count("1") for text in pairs if regions(text, "released") != regions(text, "fixed"))

    def missed(fidelity: Fidelity) -> int:
        return sum(set(SPATIAL) > set(itertools.chain(*regions(text, fidelity))) for text in pairs)

    boxes = [(one, pid, box) for one in shipped for pid, box in one.patches.items()]
    grown = [box != quadrants(one.size)[pid] for one, pid, box in boxes]
    outside = [_outside(box, one.size) for one, _, box in boxes]
    outside += [_outside(one.named, one.size) for one in shipped]
    n = len(shipped)
    return {
        "pictures": str(n),
        "patches larger than their quarter": f"{sum(grown)} of {len(grown)}",
        "patches smaller than their quarter": str(
            sum(not _holds(box, quadrants(o.size)[p]) for o, p, box in boxes)
        ),
        "boxes that leave the picture; pixels at most": f"{sum(x > 0 for x in outside)}; {max(outside):.1g}",
        "semantic box: IoU over .4, so not used": f"{n - used}",
        "0, 1, 2, 3 overlapping pairs": ", ".join(str(counts.count(k)) for k in range(4)),
        "by pair": ", ".join(f"{text} {count}" for text, count in Counter(pairs).most_common()),
        "diagonal pairs over .4": str(sum(_diagonal(one) for one in shipped)),
        "an IoU of exactly .4: pairs, semantic boxes": f"{changed}, {regated}",
        "released: a region is missing from the last prompt": f"{sum(lost.values())} ("
        + ", ".join(f"{count} with {k} pair{'s' * (k > 1)}" for k, count in sorted(lost.items()))
        + ")",
        "a patch is in no region of it: released, fixed": f"{missed('released')}, {missed('fixed')}",
        "released: four patches where five are read (IndexError)": f"{n - used}",
        **_calls(used, sum(counts), n),
    }


def _calls(used: int, pairs: int, n: int) -> dict[str, str]:
    """Calls by the formulas, in all and per picture, with a semantic patch in `used` of n pictures."""

    def row(total: int) -> str:
        return f"{total} ({total / n:.1f})"

    return {
        "captioner calls, 1 + 3(4 + s)": row(n + 3 * (4 * n + used)),
        "aggregator calls, 8 + 3s + 2p + 1": row(9 * n + 3 * used + 2 * pairs),
        "aggregator calls to divide: released; fixed with a detector; without": f"{row(2 * n)}; {row(n)}; 0",
        "fixed without a detector (quarters): captioner, aggregator": f"{row(13 * n)}, {row(9 * n)}",
    }


def _outside(box: Box, size: Size) -> float:
    return max(0.0, -box[0], -box[1], box[2] - size[0], box[3] - size[1])


def _holds(box: Box, inner: Box) -> bool:
    return box[0] <= inner[0] and box[1] <= inner[1] and box[2] >= inner[2] and box[3] >= inner[3]


def _diagonal(one: Shipped) -> bool:
    places = one.patches
    return max(iou(places["LT"], places["RB"]), iou(places["RT"], places["LB"])) > PAIR


# ---------------------------------------------------------------- random boxes


def boxes_in(size: Size, crowded: bool, rng: random.Random) -> list[Box]:
    """1 to 12 boxes of whole pixels; crowded: each with even odds near one that is already there."""

    def span(low: float, high: float, length: int) -> tuple[float, float]:
        a, b = sorted(float(min(max(round(edge), 0), length)) for edge in (low, high))
        return a, b

    found: list[Box] = []
    count = rng.randint(1, 12)
    while len(found) < count:
        ends = []
        near = rng.choice(found) if crowded and found and rng.random() < 0.5 else None
        for axis, length in enumerate(size):
            if near is None:
                ends.append(span(rng.uniform(0, length), rng.uniform(0, length), length))
            else:
                low, high = near[axis], near[axis + 2]
                shifts = (rng.gauss(0, 0.15) * (high - low) for _ in range(2))
                ends.append(span(low + next(shifts), high + next(shifts), length))
        (x1, x2), (y1, y2) = ends
        if x1 < x2 and y1 < y2:
            found.append((x1, y1, x2, y2))
    return found


def differences(sizes: Sequence[Size], crowded: bool, sets: int, seed: int = 0) -> dict[str, str]:
    """How often the two geometries differ on random boxes."""
    rng = random.Random(seed)
    counts: Counter[str] = Counter()
    for _ in range(sets):
        size = rng.choice(sizes)
        boxes = boxes_in(size, crowded, rng)
        old, new = merged(boxes, MERGE, "released"), merged(boxes, MERGE, "fixed")
        orders = {frozenset(merged(rng.sample(boxes, len(boxes)), MERGE, "released")) for _ in range(20)}
        before, after = spatial(old, size, ATTACH), spatial(new, size, ATTACH)
        dependent = len(orders | {frozenset(old)}) > 1
        left = any(iou(a, b) > MERGE for a, b in itertools.combinations(old, 2))
        differ = set(old) != set(new)
        counts["released depends on the boxes' order"] += dependent
        counts["released leaves a pair over .3"] += left
        counts["fixed leaves a pair at or over .3"] += any(
            iou(a, b) >= MERGE for a, b in itertools.combinations(new, 2)
        )
        counts["proposals differ"] += differ
        counts["where released does neither"] += differ and not dependent and not left
        counts["a patch differs"] += before != after
        counts["the overlapping pairs differ"] += _names(before, "released") != _names(after, "fixed")
    return {row: f"{count} ({count / sets:.1%})" for row, count in counts.items()}


def _names(patches: dict[str, Box], fidelity: Fidelity) -> list[tuple[str, str]]:
    return [(pair.a, pair.b) for pair in overlapping(patches, PAIR, fidelity)]


# ---------------------------------------------------------------- tables


def table(title: str, columns: dict[str, dict[str, str]]) -> str:
    """A Markdown table of columns that share their rows."""
    rows = next(iter(columns.values()))
    lines = [f"| {title} | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
    lines += [f"| {row} | {' | '.join(column[row] for column in columns.values())} |" for row in rows]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("shipped", type=Path, help="did_bench.json of the authors' repository")
    parser.add_argument("--only", type=Path, help="JSON lines whose file_name selects pictures")
    parser.add_argument("--sets", type=int, default=5000, help="random sets of boxes (default 5000)")
    options: Any = parser.parse_args(arguments)
    shipped = read(options.shipped)
    columns = {"all": figures(shipped)}
    if options.only:
        names = named_in(options.only)
        columns[options.only.name] = figures([one for one in shipped if one.name in names])
    print(table("shipped boxes", columns), end="\n\n")
    sizes = [one.size for one in shipped]
    random_columns = {
        kind: differences(sizes, kind == "crowded", options.sets) for kind in ("scattered", "crowded")
    }
    print(table(f"{options.sets} random sets", random_columns))


if __name__ == "__main__":
    main()
