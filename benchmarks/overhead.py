"""What the harness itself costs: trivial samples through the `scripted` model, and how memory grows.

    python -m benchmarks.overhead [--samples 20000]

Prints CPU per sample (the slope between a small and the large run, so that start-up does not count), peak
memory at both sizes, and the figures of other harnesses on a two-core machine for comparison: inspect-ai
11.2 ms, lm-eval 0.71 ms, lmms-eval 0.16 ms of CPU per sample (instant mock, samples logged).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile

PEERS = {"inspect-ai": 11.2, "lm-eval": 0.71, "lmms-eval": 0.16}

CHILD = """
import json, resource, sys, time
from pathlib import Path
from adapters.scripted import Scripted
from harness.engine import run
from harness.types import Request, Sample, Task
from metrics.exact import metric

n, out = int(sys.argv[1]), Path(sys.argv[2])
samples = [Sample(str(k), question=f"What is {k}?", targets=(str(k),)) for k in range(n)]
ask = lambda sample: Request(question=sample.question)
task = Task("trivial", "1", "plain", "f", samples, ask, (metric(),), "accuracy")
before = time.process_time()
run(task, Scripted(lambda request: request.question[8:-1]), out=out)
spent = time.process_time() - before
print(json.dumps([spent, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))
"""


def measure(samples: int) -> tuple[float, float]:
    """(CPU seconds of the run, peak MiB of the process)."""
    with tempfile.TemporaryDirectory() as out:
        done = subprocess.run(
            [sys.executable, "-c", CHILD, str(samples), out], capture_output=True, text=True, check=True
        )
    seconds, peak = json.loads(done.stdout)
    return seconds, peak


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=20_000)
    samples = parser.parse_args().samples
    small = samples // 10
    few = min(measure(small) for _ in range(3))
    many = min(measure(samples) for _ in range(3))
    slope = (many[0] - few[0]) / (samples - small) * 1000
    print(f"{samples:,} samples: {many[0]:.2f} s CPU, {slope:.3f} ms per sample, peak {many[1]:.0f} MiB")
    print(f"{small:,} samples: {few[0]:.2f} s CPU, peak {few[1]:.0f} MiB")
    print(f"memory per further sample: {(many[1] - few[1]) * 1024 / (samples - small):.2f} KiB")
    for name, cost in PEERS.items():
        print(f"{name:<10} {cost:>5} ms per sample: {cost / slope:.1f} times ours")


if __name__ == "__main__":
    main()
