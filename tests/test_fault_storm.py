"""Two thousand requests to a service that fails one in seven in every way it can, and three kills -9.

Every sample ends as an answer or as an honest failure, and nothing that arrived is bought again. A plain
request through the real client and a real independent server is at the end.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from provider import Provider, Reply, Seen

ROOT = Path(__file__).parents[1]
NUMBER, SLOTS = 2000, 64
SOON = {"Retry-After": "0"}
FAULTS = (
    Reply("slow down", status=429, headers=SOON),
    Reply("broken", status=500, headers=SOON),
    Reply("unavailable", status=503, headers=SOON),
    Reply(drop=True),
    Reply(raw=b'{"choices": [{"mess'),
    Reply(raw=b'{"answer": "yes"}'),
    Reply(raw=b'{"choices": [], "usage": {}}'),
    Reply(raw=b'{"error": {"message": "upstream fell over", "code": 500}}'),
)
REFUSED = Reply("cannot read this", status=400)


def storm(seen: Seen) -> Reply:
    """15 % of attempts fail, by text and attempt; of the questions 1 % always, and 0.2 % hang once."""
    number = int(seen.text.split()[1])
    if number % 100 == 7:
        return REFUSED
    if number % 500 == 3 and seen.attempt == 1:
        return Reply(delay=30)
    drawn = hashlib.sha256(f"{seen.text}{seen.attempt}".encode()).digest()
    if drawn[0] < 0.15 * 256:
        return FAULTS[drawn[1] % len(FAULTS)]
    if number % 50 == 9:
        return Reply("", extra={"message": {"role": "assistant", "content": None, "refusal": "I won't."}})
    return Reply("yes" if number % 2 == 0 else "no", delay=0.02)


def started(questions: Path, url: str, out: Path) -> subprocess.Popen[str]:
    model = f"openai:gpt-4o,base_url={url},concurrency={SLOTS},timeout=1.5,retries=8"
    return subprocess.Popen(
        [Path(sys.executable).parent / "fovea", "run", f"vqa_file:{questions}", model, "--out", out],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OPENAI_API_KEY": "k", "OMP_NUM_THREADS": "1"},
    )


def finished(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 3, said  # complete, with failed samples
    return said


def test_a_storm_of_faults_and_three_kills_lose_nothing_and_buy_nothing_twice(tmp_path: Path) -> None:
    file, out = tmp_path / "questions.jsonl", tmp_path / "runs"
    rows = [
        {"id": f"q{k}", "question": f"Is {k} even?", "answer": "yes" if k % 2 == 0 else "no"}
        for k in range(NUMBER)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    moments = random.Random(0)
    with Provider(storm) as provider:
        for kill in range(3):
            process = started(file, provider.url, out)
            goal = len(provider.answered) + moments.randint(100, 500)
            while len(provider.answered) < goal:
                assert process.poll() is None, f"ended before kill {kill}: {process.communicate()[0]}"
                time.sleep(0.005)
            process.send_signal(signal.SIGKILL)
            process.communicate()
        finished(started(file, provider.url, out))
        bought = Counter(seen.text for seen in provider.answered)
        again = sum(count - 1 for count in bought.values())
        refused = [k for k in range(NUMBER) if k % 100 == 7]
        assert len(bought) == NUMBER - len(refused)
        assert again <= 3 * SLOTS  # what was on the wire when it was killed

        (path,) = out.glob("*/*/*/records.jsonl")
        records = [json.loads(line) for line in path.read_text().splitlines()]
        ended: dict[str, Any] = {record["sample_id"]: record for record in records}  # the last of each counts
        assert len(ended) == NUMBER
        assert sorted(k for k, r in ended.items() if r.get("failure")) == sorted(f"q{k}" for k in refused)
        refusals = [r for r in ended.values() if r.get("finish_reason") == "refusal"]
        assert len(refusals) == sum(k % 50 == 9 and k % 100 != 7 for k in range(NUMBER))
        summary = json.loads((path.parent / "run.json").read_text())["summary"]
        assert summary["failed"] == len(refused)

        before = len(provider.answered), len(provider.seen)
        shutil.rmtree(path.parent)  # a second run, of the same questions
        finished(started(file, provider.url, out))
        assert len(provider.answered) == before[0]
        assert len(provider.seen) - before[1] == len(refused)  # and these alone are asked again
    print(f"{again} answers bought twice in three kills; {before[1]} requests for {NUMBER} answers")


@pytest.fixture
def served(tmp_path: Path) -> Any:
    """`transformers serve` with the demo model: a server that somebody else wrote."""
    pytest.importorskip("fastapi", reason="transformers[serving] is not installed")
    pytest.importorskip("uvicorn", reason="transformers[serving] is not installed")
    port = random.randint(20000, 40000)
    words = ["serve", str(ROOT / "assets" / "demo"), "--device", "cpu", "--port", str(port)]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            [Path(sys.executable).parent / "transformers", *words],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        )
    try:
        yield process, port, tmp_path / "log"
    finally:
        process.terminate()
        process.wait(20)


def test_an_independent_server_answers_as_the_model_does_here(served: Any, tmp_path: Path) -> None:
    from adapters import hf, openai
    from harness.types import Decoding, Request
    from tasks import small_detail

    process, port, log = served
    url = f"http://127.0.0.1:{port}/v1"
    for _ in range(600):
        assert process.poll() is None, log.read_text()[-2000:]
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            break
        time.sleep(0.1)
    task = small_detail.task(question="attribute", size=4)
    asked = [
        Request(sample.images, sample.question, decoding=Decoding(max_tokens=6)) for sample in task.samples
    ]
    there = openai.model(str(ROOT / "assets" / "demo"), base_url=url, concurrency=2).generate(asked)
    here = hf.model(str(ROOT / "assets" / "demo"), device="cpu").generate(asked)
    assert [response.failure for response in there] == [None] * 4
    assert [response.text.strip() for response in there] == [response.text.strip() for response in here]
