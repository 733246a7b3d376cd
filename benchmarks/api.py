"""How fast the harness drives an endpoint: `engine.run` with the `openai` adapter and a plain asyncio loop.

    python -m benchmarks.api [--requests 2000] [--concurrency 64] [--only throughput|tail|memory]

The server is a process of its own on loopback that answers after a set time; all processes share this
machine's cores. Measured, each client in a fresh process, best of `--repeats`:

- throughput: one distinct picture of 200 KB per request, read from its file, 50 ms of latency. The plain loop
  is what people write first: `asyncio.gather` over `AsyncOpenAI` with a semaphore; read, base64, `create`.
  It keeps no record, checks no picture and remembers nothing. Ours keeps records, a cache and counts.
- tail: lognormal latencies (median 1 s, 99th percentile 20 s, time divided by 20), text only. Slots in use,
  as the server sees them, as a share of the concurrency, until the last request has come in.
- memory: 1,000 in flight with pictures, 1 s of latency; the client's peak.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import itertools
import json
import math
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks._server import Server, listen

QUESTION = "What colour is the smallest thing in this picture?"
SIGMA = math.log(20) / 2.3263  # of a lognormal whose 99th percentile is 20 medians


# ---------------------------------------------------------------- the server


def serve(latency: float, sigma: float = 0.0) -> None:
    """Answer after `latency` seconds (the median, where `sigma` is not 0); GET /slots gives and forgets the
    times."""
    from aiohttp import web

    draws = random.Random(0)
    marks: list[tuple[float, int]] = []  # (seconds, +1 for a request that came and -1 for one that went)
    reply = {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [
            {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "red"}}
        ],
        "usage": {"prompt_tokens": 1000, "completion_tokens": 1, "total_tokens": 1001},
    }
    body = json.dumps(reply).encode()

    async def answer(request: web.Request) -> web.Response:
        marks.append((time.monotonic(), 1))
        await request.read()
        await asyncio.sleep(latency * math.exp(sigma * draws.gauss(0, 1)))
        marks.append((time.monotonic(), -1))
        return web.Response(body=body, content_type="application/json")

    async def slots(_: web.Request) -> web.Response:
        found = marks.copy()
        marks.clear()
        return web.json_response(found)

    listen(web.post("/v1/chat/completions", answer), web.get("/slots", slots))


# ---------------------------------------------------------------- the clients


def plain(port: int, pictures: list[Path | None], concurrency: int) -> None:
    from openai import AsyncOpenAI

    client = AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="x")
    slots = asyncio.Semaphore(concurrency)

    async def ask(picture: Path | None) -> str:
        async with slots:
            content: list[Any] = [{"type": "text", "text": QUESTION}]
            if picture is not None:
                data = base64.b64encode(picture.read_bytes()).decode()
                content.insert(
                    0, {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{data}"}}
                )
            reply = await client.chat.completions.create(
                model="m", messages=[{"role": "user", "content": content}], max_tokens=128, temperature=0
            )
            return reply.choices[0].message.content or ""

    async def everything() -> list[str]:
        async with client:
            return await asyncio.gather(*map(ask, pictures))

    assert set(asyncio.run(everything())) == {"red"}


def ours(port: int, pictures: list[Path | None], concurrency: int) -> None:
    from adapters.openai import model
    from harness.cache import Answers
    from harness.engine import run
    from harness.pictures import File, Picture
    from harness.types import Request, Sample, Task
    from metrics.exact import metric

    samples = [
        Sample(str(k), () if path is None else (Picture(File(path)),), f"{QUESTION} ({k})", ("red",))
        for k, path in enumerate(pictures)
    ]

    def ask(sample: Sample) -> Request:
        return Request(sample.images, sample.question)

    endpoint = model("m", base_url=f"http://127.0.0.1:{port}/v1", concurrency=concurrency)
    task = Task("speed", "1", "plain", "f", samples, ask, (metric(),), "accuracy")
    with tempfile.TemporaryDirectory() as out:
        done = run(task, endpoint, out=Path(out), cache=Answers(Path(out) / "cache.sqlite"))
    assert done.status == "complete" and not done.failed, done.summary


def client(which: str, port: int, requests: int, concurrency: int, folder: str) -> None:
    """Print (seconds, CPU seconds, peak MiB). Imports and a first request are not timed."""
    files: list[Path | None] = sorted(Path(folder).iterdir()) if folder else [None] * (requests + 1)
    ask = {"plain": plain, "ours": ours}[which]
    ask(port, files[:1], 1)
    began, cpu = time.monotonic(), time.process_time()
    ask(port, files[1 : requests + 1], concurrency)
    seconds, cpu = time.monotonic() - began, time.process_time() - cpu
    print(json.dumps([seconds, cpu, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))


# ---------------------------------------------------------------- measuring


def measured(which: str, port: int, requests: int, concurrency: int, folder: str = "") -> list[float]:
    client = [sys.executable, "-m", "benchmarks.api", "client"]
    words = [*client, which, str(port), str(requests), str(concurrency), folder]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    found: list[float] = json.loads(done.stdout.splitlines()[-1])
    return found


def in_use(port: int, requests: int, concurrency: int) -> float:
    """The mean number of slots in use until the last request came in, over the concurrency."""
    import urllib.request

    with urllib.request.urlopen(f"http://127.0.0.1:{port}/slots") as reply:
        marks = json.load(reply)[2:]  # without the first request
    arrivals = [at for at, change in marks if change > 0]
    assert len(arrivals) == requests
    taken, area = 0, 0.0
    for (at, change), (after, _) in itertools.pairwise(marks):
        taken += change
        area += taken * max(0.0, min(after, arrivals[-1]) - at)
    return area / concurrency / (arrivals[-1] - arrivals[0])


def draw(folder: Path, number: int) -> None:
    """`number` distinct photographs, as JPEG: one of about 200 KB, a comment of its own in each."""
    import io

    import numpy as np
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 256, (96, 128, 3), np.uint8)
    smooth = np.asarray(Image.fromarray(noise).resize((1024, 768), Image.Resampling.BICUBIC), np.int16)
    grain = np.random.default_rng(1).normal(0, 6, smooth.shape)
    pixels = Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8))
    buffer = io.BytesIO()
    pixels.save(buffer, "JPEG", quality=80)
    start, rest = buffer.getvalue()[:2], buffer.getvalue()[2:]
    for k in range(number):
        comment = f"{k:08}".encode()
        marker = b"\xff\xfe" + (2 + len(comment)).to_bytes(2)
        (folder / f"{k:08}.jpg").write_bytes(start + marker + comment + rest)
    print(f"{number:,} pictures of 1024 x 768, {len(buffer.getvalue()) / 1000:.0f} KB each")


def throughput(folder: str, requests: int, concurrency: int, repeats: int) -> None:
    with Server("benchmarks.api", 0.05) as port:
        rates = {}
        for which in ("plain", "ours"):
            seconds, cpu, peak = min(
                measured(which, port, requests, concurrency, folder) for _ in range(repeats)
            )
            rates[which] = requests / seconds
            cost = cpu / requests * 1000
            print(f"{which:<6} {rates[which]:7.0f} requests/s  {cost:5.2f} ms CPU each  peak {peak:.0f} MiB")
    print(f"ours / plain: {rates['ours'] / rates['plain']:.2f} (ceiling {concurrency / 0.05:.0f} requests/s)")


def tail(requests: int, concurrency: int) -> None:
    with Server("benchmarks.api", 0.05, SIGMA) as port:
        for which in ("plain", "ours"):
            seconds, _, _ = measured(which, port, requests, concurrency)
            share = in_use(port, requests, concurrency)
            print(f"heavy tail, {which:<6} {share:.3f} of {concurrency} slots in use, {seconds:.1f} s")


def memory(folder: str, requests: int) -> None:
    with Server("benchmarks.api", 1.0) as port:
        seconds, _, peak = measured("ours", port, requests, 1000, folder)
    print(f"1,000 in flight: {requests / seconds:.0f} requests/s, peak {peak:.0f} MiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--only", choices=("throughput", "tail", "memory"))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if given.only != "tail":
            draw(Path(folder), given.requests + 1)
        if given.only in (None, "throughput"):
            throughput(folder, given.requests, given.concurrency, given.repeats)
        if given.only in (None, "tail"):
            tail(given.requests, given.concurrency)
        if given.only in (None, "memory"):
            memory(folder, given.requests)


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve(*map(float, sys.argv[2:]))
    elif sys.argv[1:2] == ["client"]:
        client(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), int(sys.argv[5]), sys.argv[6])
    else:
        main()
