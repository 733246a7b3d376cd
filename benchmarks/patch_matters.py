"""What waves save: Patch Matters over many pictures at once, and one picture and one call after another.

    python -m benchmarks.patch_matters [--pictures 100] [--concurrency 64] [--latency 0.05]

The server is a process of its own on loopback that answers after a set time, captions and groups of
sentences with what can be read; all processes share this machine's cores. Measured, each client in a fresh
process:

- one by one: the calls of the released schedule in its order, through OpenAI's plain client: a picture's
  global caption, the candidates of each patch, A1, A2, A6, then the next picture. A crop is encoded once.
  It keeps no record, remembers nothing, and no call waits for another's.
- in waves: `engine.run` with the `openai` adapter, a cache and records, as `fovea run` does it.
- own: the same without a wire: a model that answers at once. What Fovea itself costs.

The calls are the same, and so are the captions, or the script stops. No detector and no scorer: a picture
has 13 captions and 9 questions.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks._server import Server, listen

if TYPE_CHECKING:
    from harness.types import Request, Response

CALLS = 13 + 9
IDS = re.compile(r"\b(\d)\.(\d)\b")


# ---------------------------------------------------------------- what is said


def said(system: str, text: str, picture: str) -> str:
    """A caption of five sentences that depends on the picture and its seed; groups; or a paragraph."""
    drawn = hashlib.sha256((system + text + picture).encode()).hexdigest()
    if "JSON" in system and "contradictory" in system:
        ids = sorted(set(IDS.findall(text)))
        first = [".".join(one) for one in ids if one[1] == "1"]
        second = [".".join(one) for one in ids if one[1] == "2"]
        rest = [".".join(one) for one in ids if one[1] > "2"]
        fact = {"text": "A red bus stands at a stop.", "ids": first}
        return json.dumps({"consistent": [fact], "contradictory": [second], "unique": rest})
    things = ("bus", "dog", "cup", "sign", "tree", "boat", "lamp", "kite")
    words = [things[int(digit, 16) % 8] for digit in drawn]
    return " ".join(f"There is a {a} beside a {b}, and it is {c}." for a, b, c in zip(
        words, words[8:], ("red", "old", "tall", "far away", "wet"), strict=False))  # fmt: skip


def reply(body: dict[str, Any]) -> str:
    """What the server says to a request as it comes over the wire."""
    system, text, picture = "", "", ""
    for message in body["messages"]:
        parts = message["content"]
        parts = [{"type": "text", "text": parts}] if isinstance(parts, str) else parts
        words = "".join(part["text"] for part in parts if part["type"] == "text")
        if message["role"] == "system":
            system = words
        else:
            text = words
            pictures = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
            picture = "".join(url[-4000:] for url in pictures)  # its last rows: no two are alike
    return said(system, text, f"{picture}{body.get('seed')}" if picture else "")


# ---------------------------------------------------------------- the server


def serve(latency: float) -> None:
    """Answer after `latency` seconds."""
    from aiohttp import web

    async def answer(request: web.Request) -> web.Response:
        body = await request.json()
        await asyncio.sleep(latency)
        choice = {"index": 0, "finish_reason": "stop"}
        message = {"role": "assistant", "content": reply(body)}
        usage = {"prompt_tokens": 1000, "completion_tokens": 100, "total_tokens": 1100}
        whole = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "usage": usage}
        return web.json_response({**whole, "choices": [{**choice, "message": message}]})

    listen(web.post("/v1/chat/completions", answer))


# ---------------------------------------------------------------- the clients


@dataclass
class OneByOne:
    """OpenAI's plain client: each request when the one before is answered. sent: in all."""

    port: int
    sent: int = 0
    shown: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        from openai import OpenAI

        self.client = OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key="x")

    offers: frozenset[Any] = frozenset()

    @property
    def pace(self) -> Any:
        from harness.types import Pace

        return Pace(group=1)

    def describe(self) -> dict[str, Any]:
        return {"adapter": "plain", "model": "m"}

    def generate(self, requests: Sequence[Request]) -> list[Response]:
        from harness.types import Response

        return [Response(self._one(request)) for request in requests]

    def _one(self, request: Request) -> str:
        content: list[Any] = [{"type": "text", "text": request.text}]
        for picture in request.images:
            content.insert(0, {"type": "image_url", "image_url": {"url": self._url(picture)}})
        messages: list[Any] = [{"role": "user", "content": content if request.images else request.text}]
        if request.system:
            messages.insert(0, {"role": "system", "content": request.system})
        self.sent += 1
        decoding = request.decoding
        answer = self.client.chat.completions.create(
            model="m",
            messages=messages,
            max_tokens=decoding.max_tokens,
            temperature=decoding.temperature,
            seed=decoding.seed,
        )
        return answer.choices[0].message.content or ""

    def _url(self, picture: Any) -> str:
        """A file's own bytes, or a crop's PNG, encoded once while its picture lasts, as ours are."""
        from adapters._images import GENERIC_LIMITS, encoded

        if picture.digest not in self.shown:
            sent = encoded(picture, GENERIC_LIMITS)
            self.shown[picture.digest] = f"data:{sent.media_type};base64,{sent.data}"
        return self.shown[picture.digest]


@dataclass
class Counted:
    """Any model; counts the lists it is handed."""

    model: Any
    waves: int = 0
    sent: int = 0

    @property
    def offers(self) -> Any:
        return self.model.offers

    @property
    def pace(self) -> Any:
        return self.model.pace

    def describe(self) -> dict[str, Any]:
        return dict(self.model.describe())

    def generate(self, requests: Sequence[Request]) -> list[Response]:
        self.waves += 1
        self.sent += len(requests)
        return list(self.model.generate(requests))


def asked(path: Path) -> Request:
    from harness.pictures import File, Picture
    from harness.types import Decoding, Request

    question = "Describe this image in detail."
    return Request((Picture(File(path)),), question, decoding=Decoding(max_tokens=512))


def one_by_one(port: int, files: list[Path], _: int) -> tuple[list[str], int, int]:
    from methods.patch_matters.main import PatchMatters

    texts, sent = [], 0
    plain = OneByOne(port)
    for path in files:
        texts += [response.text for response in PatchMatters(plain).generate([asked(path)])]
        plain.shown.clear()
    sent = plain.sent
    return texts, sent, sent


def in_waves(port: int, files: list[Path], concurrency: int) -> tuple[list[str], int, int]:
    from adapters.openai import model

    endpoint = Counted(model("m", base_url=f"http://127.0.0.1:{port}/v1", concurrency=concurrency))
    return _run(endpoint, files), endpoint.sent, endpoint.waves


def own(_: int, files: list[Path], __: int) -> tuple[list[str], int, int]:
    from adapters.scripted import Scripted

    def answer(request: Request) -> str:
        picture = "".join(picture.digest for picture in request.images)
        return said(
            request.system or "", request.text, f"{picture}{request.decoding.seed}" if picture else ""
        )

    endpoint = Counted(Scripted(answer))
    return _run(endpoint, files), endpoint.sent, endpoint.waves


def _run(endpoint: Counted, files: list[Path]) -> list[str]:
    from harness.cache import Answers
    from harness.engine import run
    from harness.store import read_records
    from harness.types import Sample, Task
    from methods.patch_matters.main import PatchMatters
    from metrics.length import metric

    samples = [Sample(path.name, asked(path).images) for path in files]
    by_id = {path.name: path for path in files}
    task = Task("speed", "1", "plain", "f", samples, lambda s: asked(by_id[s.id]), (metric(),), "words")
    with tempfile.TemporaryDirectory() as out:
        cache = Answers(Path(out) / "cache.sqlite")
        done = run(task, endpoint, [PatchMatters], out=Path(out), cache=cache)
        assert done.status == "complete" and not done.failed, done.summary
        texts = {record.sample_id: record.text for record in read_records(done.path)}
    return [texts[path.name] for path in files]


CLIENTS = {"one by one": one_by_one, "in waves": in_waves, "own": own}


def client(which: str, port: int, concurrency: int, folder: str) -> None:
    """Print what it cost and a digest of the captions. Imports and a first picture are not timed."""
    files = sorted(Path(folder).iterdir())
    CLIENTS[which](port, files[:1], concurrency)
    began, cpu = time.monotonic(), time.process_time()
    texts, sent, waves = CLIENTS[which](port, files[1:], concurrency)
    print(
        json.dumps(
            {
                "seconds": time.monotonic() - began,
                "cpu": time.process_time() - cpu,
                "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
                "calls": sent,
                "waves": waves,
                "texts": hashlib.sha256(json.dumps(texts).encode()).hexdigest(),
            }
        )
    )


# ---------------------------------------------------------------- measuring


def measured(which: str, port: int, concurrency: int, folder: Path) -> dict[str, Any]:
    client = [sys.executable, "-m", "benchmarks.patch_matters", "client"]
    words = [*client, which, str(port), str(concurrency), str(folder)]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def draw(folder: Path, number: int) -> None:
    """`number` pictures of COCO's size, no two parts of which are alike."""
    import numpy as np
    from PIL import Image

    grain = np.random.default_rng(0).normal(0, 6, (480, 640, 3))
    for k in range(number):
        noise = np.random.default_rng([1, k]).integers(0, 256, (60, 80, 3), np.uint8)
        smooth = np.asarray(Image.fromarray(noise).resize((640, 480), Image.Resampling.BICUBIC), np.int16)
        pixels = Image.fromarray(np.clip(smooth + grain, 0, 255).astype(np.uint8))
        pixels.save(folder / f"{k:04}.jpg", quality=80)
    size = sum(path.stat().st_size for path in folder.iterdir()) / number
    print(f"{number} pictures of 640 x 480, {size / 1000:.0f} KB each")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pictures", type=int, default=100)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--latency", type=float, default=0.05)
    given = parser.parse_args()
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as name, Server("benchmarks.patch_matters", given.latency) as port:
        folder = Path(name)
        draw(folder, given.pictures + 1)
        print(f"{'':<11} {'calls':>6} {'waves':>6} {'seconds':>8} {'CPU ms/picture':>15} {'peak MiB':>9}")
        for which in ("own", "in waves", "one by one"):
            one = found[which] = measured(which, port, given.concurrency, folder)
            each = one["cpu"] / given.pictures * 1000
            row = f"{one['seconds']:8.1f} {each:15.1f} {one['peak']:9.0f}"
            print(f"{which:<11} {one['calls']:6} {one['waves']:6} {row}", flush=True)
    assert {one["calls"] for one in found.values()} == {CALLS * given.pictures}, found
    assert found["one by one"]["texts"] == found["in waves"]["texts"], "other captions"
    ratio = found["one by one"]["seconds"] / found["in waves"]["seconds"]
    least = CALLS * given.pictures * given.latency / given.concurrency
    print(f"one by one / in waves: {ratio:.1f} (the slots allow {least:.1f} s in waves)")


if __name__ == "__main__":
    if sys.argv[1:2] == ["serve"]:
        serve(float(sys.argv[2]))
    elif sys.argv[1:2] == ["client"]:
        client(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
    else:
        main()
