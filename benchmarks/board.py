"""What a board of many runs costs: seconds, CPU seconds and memory, cold, unchanged, and at half the size.

    python -m benchmarks.board [--runs 2000] [--samples 1000] [--below /tmp]

Makes synthetic runs below a folder (8 tasks, 10 models, 24 methods and the identity arm; records of about
800 bytes with the counts of exact, vqa, yesno, anls and chair; one run in four lacks 1 % of its samples; half
the tasks ask several questions of an image), runs `fovea board` over them in processes of its own, and
removes them. `unchanged` is the same command again; `one touched` after one run was written anew.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent

from harness import store, summary  # noqa: E402
from harness.types import Metric, digest  # noqa: E402

MODELS, METHODS = 10, 24
SENTENCE = "the small sign beside a parked blue van says open until nine and two people wait under it"


@dataclass(frozen=True)
class Kind:
    """A synthetic task: its metric, how many questions an image has, and its categories."""

    name: str
    metric: Metric
    primary: str
    per_image: int = 1
    categories: tuple[str, ...] = ()


def kinds() -> list[Kind]:
    from metrics import anls, chair, exact, vqa, yesno

    return [
        Kind("small_detail", exact.metric(), "accuracy", 1, ("16-19 px", "20-23 px", "24-31 px")),
        Kind("vstar", exact.metric(), "accuracy", 1, ("direct_attributes", "relative_position")),
        Kind("pope", yesno.metric(), "accuracy", 6, ("random", "popular", "adversarial")),
        Kind("pope_gqa", yesno.metric(), "f1", 6),
        Kind("textvqa", vqa.metric(), "accuracy", 2),
        Kind("gqa", exact.metric(), "accuracy", 3),
        Kind("docvqa", anls.metric(), "anls", 1),
        Kind("coco_chair", chair.metric("rules"), "CHAIRi", 1),
    ]


def counts(kind: Kind, random: Any, skill: float, samples: int) -> Iterator[dict[str, float]]:
    """Counts as the kind's metric makes them, of an answerer right with probability `skill`."""
    right = random.random(samples) < skill
    level = random.random(samples)
    name = kind.metric.name
    for place in range(samples):
        if name == "yesno":
            truth = place % 2 == 0
            outcome = ("tp" if truth else "tn") if right[place] else ("fn" if truth else "fp")
            part = f"{kind.categories[place % 3]}/" if kind.categories else ""
            yield {f"{part}{outcome}": 1}
        elif name == "chair":
            mentions = 3 + int(6 * level[place])
            wrong = 0 if right[place] else 1 + int(2 * level[place])
            yield {
                "captions": 1,
                "hallucinating": int(wrong > 0),
                "mentions": mentions,
                "hallucinated": wrong,
                "recalled": mentions - wrong,
                "truth": 10,
                "length": 40 + int(60 * level[place]),
            }
        elif name == "vqa":
            yield {"score": 1.0 if right[place] else round(3 * level[place]) * 0.3, "scored": 1}
        elif name == "anls":
            yield {"score": 1.0 if right[place] else round(1 - int(20 * level[place]) / 19, 6), "scored": 1}
        else:
            yield {"score": float(right[place]), "scored": 1}


def make(below: Path, runs: int, samples: int) -> int:
    """Write the runs, and return their records' bytes."""
    import numpy as np

    found, size = kinds(), 0
    for number in range(runs):
        group, method = divmod(number, METHODS + 1)
        model, task = divmod(group, len(found))
        random = np.random.default_rng([task, model % MODELS, model // MODELS, method])
        skill = 0.45 + 0.02 * (model % MODELS) + 0.006 * method
        size += _write(below, found[task], f"model-{model}", method, random, skill, samples)
    return size


def _write(below: Path, kind: Kind, model: str, method: int, random: Any, skill: float, samples: int) -> int:
    inner = {"adapter": "hf", "model": f"lab/{model}", "revision": "sha256:0", "dtype": "bfloat16"}
    chain: dict[str, Any] = inner
    if method:
        chain = {"method": "vicrop", "model": inner, "layer": method, "base": 336, "fidelity": "fixed"}

    def identity(described: dict[str, Any]) -> dict[str, Any]:
        task = {"name": kind.name, "version": "1", "protocol": "plain", "fingerprint": digest(kind.name)}
        decoding = {"max_tokens": 32, "temperature": 0.0, "top_p": None, "seed": 0, "stop": []}
        prompt = {"instruction": "\nAnswer with one word.", "system": None}
        return {"task": task, "prompt": prompt, "decoding": decoding, "oracle": False, "model": described}

    ids = [f"{kind.name}/{place:06}" for place in range(samples)]
    images = [digest([kind.name, place // kind.per_image]) for place in range(samples)]
    number, key = store.run_id(identity(chain)), summary.metric_key(kind.metric)
    failed = random.random(samples) < (0.01 if method % 4 == 3 else 0.0)
    scored: list[dict[str, float]] = []
    lines = []
    boxes = random.integers(0, 640, (samples, 2)).tolist()
    words = [SENTENCE[start:] for start in random.integers(0, 60, 64)]
    for place, count in enumerate(counts(kind, random, skill, samples)):
        end = '"failure":{"kind":"timeout","message":"no answer in 60 s","retry":true},"schema":1}\n'
        if not failed[place]:
            scored.append(count)
            end = f'"measures":{{"{key}":{json.dumps(count)}}},"schema":1}}\n'
        category = f'"category":"{kind.categories[place % len(kind.categories)]}",' if kind.categories else ""
        x, y = boxes[place]
        lines.append(
            f'{{"sample_id":"{ids[place]}",{category}"group":"{images[place]}","question":"What does '
            f'{words[place % 64]} say?","prompt":"What does {words[place % 64]} say?\\nAnswer with one word."'
            f',"pictures":[{{"source":"images/{place:012}.jpg","digest":"{images[place]}"}}],"targets":["nine"'
            f',"nine pm"],"meta":{{"region":[{x},{y},{x + 40},{y + 30}]}},"text":"nine","answer":"nine",'
            f'"finish_reason":"stop","usage":{{"calls":3,"tokens_in":615,"tokens_out":{place % 9 + 1},'
            f'"images":4,"forward_passes":4,"seconds":0.0168{place:04},"dollars":0.0}},"trace":{{"method":'
            f'"vicrop","box":[{x}.0,{y}.0,{x + 336}.0,{y + 336}.0],"degenerate":false,"layer":{method}}},'
            f"{end}"
        )
    text = "".join(lines)
    values = kind.metric.reduce(scored)
    scores = {
        name: {"value": value, "low": None if value is None else value - 0.03,
               "high": None if value is None else value + 0.03}
        for name, value in values.items()
    }  # fmt: skip
    entry = {"metric": kind.metric.name, "variant": kind.metric.variant, "n": len(scored), "scores": scores}
    entry["higher_is_better"] = dict(kind.metric.higher_is_better)
    usage = dict.fromkeys(("calls", "images", "forward_passes"), 4 * samples)
    usage |= {"tokens_in": 615 * samples, "tokens_out": 5 * samples, "seconds": 16.8, "dollars": 0.0}
    content = {
        "id": number,
        "baseline": store.run_id(identity(inner)),
        "identity": identity(chain),
        "task": kind.name,
        "methods": [f"vicrop:layer={method}"] if method else [],
        "selection": {"n": samples, "of": samples, "repeats": 1, "digest": digest([ids, 1]), "ids": ids},
        "metrics": [summary.metric_json(kind.metric)],
        "primary": kind.primary,
        "breakdowns": [],
        "provenance": {"started": "2026-01-01T00:00:00+00:00", "commit": {"sha": "0" * 40, "dirty": False}},
        "status": "complete",
        "summary": {"n": samples, "scored": len(scored), "failed": samples - len(scored), "failures": {},
                    "metrics": {key: entry}},
        "spending": {"usage": usage, "spent": usage},
        "times": {"ended": "2026-01-01T00:10:00+00:00", "seconds": 600.0, "resumed": 0},
    }  # fmt: skip
    folder = below / kind.name / model / f"{'vicrop' if method else 'identity'}-{number[:8]}"
    folder.mkdir(parents=True)
    (folder / store.RECORDS).write_text(text, encoding="utf-8")
    (folder / store.RUN).write_text(json.dumps({"schema": store.SCHEMA, **content}, indent=1) + "\n")
    return len(text)


def board(below: Path) -> tuple[float, float, float, int]:
    """(seconds, CPU seconds, peak MiB of all its processes together, lines printed) of `fovea board`."""
    command = [sys.executable, "-c", "from harness.cli import main; main()", "board", str(below)]
    before, began, peak = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic(), 0.0
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        running = subprocess.Popen(
            command,
            stdout=out,
            stderr=errors,
            cwd=ROOT,
            env={**os.environ, "COLUMNS": "160"},
            start_new_session=True,
        )
        while running.poll() is None:
            peak = max(peak, _resident(running.pid))
            time.sleep(0.1)
        seconds = time.monotonic() - began
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        for file in (out, errors):
            file.seek(0)
        if running.returncode:
            raise SystemExit(f"fovea board ended with {running.returncode}\n{errors.read()[-2000:].decode()}")
        lines = out.read().count(b"\n")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, cpu, peak, lines


def _resident(session: int) -> float:
    """MiB that a session's processes hold in memory, what they share counted once (PSS)."""
    total = 0
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError, IndexError):
            if process.name.isdigit() and os.getsid(int(process.name)) == session:
                total += int((process / "smaps_rollup").read_text().split("\nPss:")[1].split()[0])
    return total / 1024


def report(below: Path, runs: int, samples: int) -> float:
    """Print a line per way of running it; CPU seconds of the cold one."""
    began = time.monotonic()
    size = make(below, runs, samples)
    print(
        f"{runs:,} runs × {samples:,} samples: {size / 1e6:,.0f} MB of records, {size / runs / samples:.0f} "
        f"bytes each, written in {time.monotonic() - began:.0f} s; load {os.getloadavg()[0]:.1f}",
        flush=True,
    )
    time.sleep(2.5)  # files younger than two seconds are not trusted to stay as they are
    cold = 0.0
    for name in ("cold", "unchanged", "unchanged", "one touched"):
        if name == "one touched":
            os.utime(next(iter(sorted(below.rglob(store.RUN)))))
        seconds, cpu, peak, lines = board(below)
        cold = cold or cpu
        print(
            f"  {name:<12} {seconds:6.2f} s  {cpu:6.2f} s CPU  {peak:5.0f} MiB  "
            f"{runs * samples / cpu:>9,.0f} records per CPU second  {lines:,} lines; load "
            f"{os.getloadavg()[0]:.1f}",
            flush=True,
        )
    return cold


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--below", type=Path, help="where the runs are made [default: the temporary folder]")
    parser.add_argument("--keep", action="store_true", help="do not remove them")
    given = parser.parse_args()
    sizes = ((given.runs // 2, given.samples), (given.runs, given.samples))
    cpu = []
    for runs, samples in sizes:
        folder = Path(tempfile.mkdtemp(prefix="fovea-board-", dir=given.below))
        try:
            cpu.append(report(folder, runs, samples))
        finally:
            if given.keep:
                print(f"kept {folder}")
            else:
                shutil.rmtree(folder)
    print(f"CPU at twice the runs: {cpu[1] / cpu[0]:.2f} times")


if __name__ == "__main__":
    main()
