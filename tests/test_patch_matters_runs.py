"""Patch Matters as users run it: real processes, a server on loopback, a detector and a scorer from disk."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import aggregating
import pytest
import test_detect
import tiny
import tiny_match
import torch
import transformers
from provider import Provider, Reply, Seen

from harness.cache import Answers
from harness.engine import run
from harness.estimate import estimate
from harness.resolve import make_method, make_model, make_task
from methods.patch_matters import prompts

ROOT = Path(__file__).parents[1]
COCO = ROOT.parent / "shared" / "data" / "coco"
SIDES = (96, 72)
PICTURES = 4
WORDS = json.loads((ROOT / "metrics" / "_chair_words.json").read_text())
LABELS = {number: name.replace(" ", "_") for number, name in enumerate(WORDS["synonyms"])}
"""COCO's eighty names, as the paper's detector spells them."""


# ---------------------------------------------------------------- the server


def role(seen: Seen) -> str:
    """A1 to A6, E1 or E2; `whole` or `patch` for captions."""
    first = seen.body["messages"][0]
    if first["role"] == "system" and first["content"] in prompts.ROLES.values():
        return aggregating.role(first["content"])
    return "whole" if _size(_picture(seen)) == SIDES else "patch"


def _picture(seen: Seen) -> bytes:
    (url,) = [
        piece["image_url"]["url"] for piece in seen.body["messages"][-1]["content"] if "image_url" in piece
    ]
    return base64.b64decode(url.partition(",")[2])


def _size(png: bytes) -> tuple[int, ...]:
    return struct.unpack(">II", png[16:24])


def said(seen: Seen) -> str:
    """A caption that says which pixels it is of, or what the deterministic language model says."""
    first = seen.body["messages"][0]
    if first["role"] == "system" and first["content"] in prompts.ROLES.values():
        return aggregating.answer(first["content"], seen.text)
    pixels = hashlib.sha256(_picture(seen)).hexdigest()[:8]
    turn = seen.body["seed"] % 3
    return f"A sheep and a bus are here. The wall is {turn}. Tag {pixels}-{turn}."


# ---------------------------------------------------------------- what lies on disk


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A DETR of COCO's names whose boxes lie across the upper half's middle, and a BLIP-ITM."""
    root = tmp_path_factory.mktemp("checkpoints")
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        patch.setattr(test_detect, "LABELS", LABELS)
        folder = test_detect.detr(root / "detr")
        model = transformers.DetrForObjectDetection.from_pretrained(folder)
        last = model.bbox_predictor.layers[-1]
        with torch.no_grad():
            last.weight.mul_(0.1)
            last.bias.copy_(torch.logit(torch.tensor([0.5, 0.25, 0.7, 0.4])))  # centre, width and height
        model.save_pretrained(folder)
        return {"detr": folder, "blip": tiny_match.blip_itm(root / "blip")}


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """A few pictures of one size, to be described."""
    rows = []
    for number in range(PICTURES):
        (tmp_path / f"{number}.png").write_bytes(tiny.photo(number, *SIDES).source.read())  # type: ignore[union-attr]
        rows.append({"id": str(number), "image": f"{number}.png", "question": "Describe it.", "answer": "x"})
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def method(url: str, checkpoints: dict[str, Path], **knobs: Any) -> str:
    helpers = {
        "aggregator": f"(openai:talker,base_url={url},concurrency=8,retries=1)",
        "detector": f"(detr:{checkpoints['detr']},device=cpu)",
        **knobs,
    }
    return "patch_matters:" + ",".join(f"{name}={value}" for name, value in helpers.items())


def started(*words: str | Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [Path(sys.executable).parent / "fovea", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OPENAI_API_KEY": "k", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )


def finished(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


def here(task: str, model: str, method: str, out: Path) -> None:
    """The same run in this process."""
    cache = Answers(out / "cache.sqlite")
    done = run(make_task(task), make_model(model, cache), [make_method(method, cache)], out=out, cache=cache)
    assert (done.status, done.failed) == ("complete", 0)
    cache.close()


def records(out: Path) -> dict[str, dict[str, Any]]:
    (path,) = out.glob("*/*/*/records.jsonl")
    return {row["sample_id"]: row for row in map(json.loads, path.read_text().splitlines())}


# ---------------------------------------------------------------- kills


class Holding:
    """Answers as `said` does; of the requests of role `hold`, the first two only, and `held` is set."""

    def __init__(self) -> None:
        self.hold, self.asked, self.waiting = "", 0, 0
        self.held = threading.Event()

    def until(self, role: str) -> None:
        self.hold, self.asked = role, 0
        self.held.clear()

    def __call__(self, seen: Seen) -> Reply:
        if role(seen) == self.hold:
            self.asked += 1
            if self.asked > 2:
                self.waiting += 1
                self.held.set()
                return Reply(delay=3600)
        return Reply(said(seen))


def _settle(provider: Provider, holding: Holding, out: Path) -> None:
    """Wait until all that is not held is answered and kept, and stays so for a moment."""
    calm = 0
    while calm < 5:
        seen, answered = len(provider.seen) - holding.waiting, len(provider.answered)
        connection = sqlite3.connect(out / "cache.sqlite")
        (kept,) = connection.execute("SELECT COUNT(*) FROM responses").fetchone()
        connection.close()
        calm = calm + 1 if seen == answered == kept else 0
        time.sleep(0.02)


@pytest.mark.slow
def test_a_kill_in_any_wave_loses_nothing_that_was_answered(
    checkpoints: dict[str, Path], questions: Path, tmp_path: Path
) -> None:
    holding, out = Holding(), tmp_path / "runs"
    with Provider(holding) as provider:
        task, seer = f"vqa_file:{questions},metric=(length)", f"openai:seer,base_url={provider.url},retries=1"
        spec = method(provider.url, checkpoints)
        words = ("run", task, seer, "--method", spec, "--out", out)
        for wave in ("whole", "patch", "A1", "A2", "A3", "A5", "A6"):  # A4 is asked with A3
            holding.until(wave)
            process = started(*words)
            while not holding.held.wait(0.05):
                assert process.poll() is None, f"ended before {wave}: {process.communicate()[0]}"
            _settle(provider, holding, out)
            process.send_signal(signal.SIGKILL)
            process.communicate()
        holding.until("")
        finished(started(*words))
        bought = Counter(seen.text + json.dumps(seen.body) for seen in provider.answered)
        assert set(bought.values()) == {1}
        roles = Counter(role(seen) for seen in provider.answered)
        assert roles == {
            "whole": 4, "patch": 4 * 15, "E2": 4, "A1": 4 * 5, "A2": 4 * 5, "A3": 4, "A4": 4, "A5": 4, "A6": 4
        }  # fmt: skip
        before = len(provider.answered)
        here(task, seer, spec, tmp_path / "undisturbed")
        assert len(provider.answered) == 2 * before
        resumed, whole = records(out), records(tmp_path / "undisturbed")
        assert {k: row["text"] for k, row in resumed.items()} == {k: row["text"] for k, row in whole.items()}
        for row in resumed.values():
            assert len(set(re.findall(r"Tag \w+-\d", row["text"]))) == 1 + 5 * 3
            assert row["trace"]["regions"] == ["LT+RT", "LB", "RB"]
            assert row["trace"]["warnings"] == []

        shutil.rmtree(next(out.glob("*/*/*")))  # the run; the answers stay
        changed = method(provider.url, checkpoints, merging_temperature=0.5)
        seen = len(provider.answered)
        here(task, seer, changed, out)
        anew = Counter(role(one) for one in provider.answered[seen:])
        assert anew == {"A2": 20, "A3": 4, "A5": 4}  # they say the same, and so nothing else is asked


# ---------------------------------------------------------------- photographs


@pytest.mark.skipif(not COCO.is_dir(), reason="the photographs are not beside this checkout")
def test_twenty_photographs_with_every_helper(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    names = sorted(path.name for path in (COCO / "images").glob("*.jpg"))[:20]
    rows = [{"id": name, "image": name, "question": "Describe it.", "answer": "x"} for name in names]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with Provider(lambda seen: Reply(said(seen))) as provider:
        task = f"vqa_file:{tmp_path}/q.jsonl,images={COCO}/images,metric=(length)"
        spec = method(
            provider.url, checkpoints, scorer=f"(blip-itm:{checkpoints['blip']},device=cpu)", score=0.2
        )
        seer = f"openai:seer,base_url={provider.url}"
        at_most = estimate(
            make_task(task), make_model(seer), [make_method(spec)], out=tmp_path / "none"
        ).requests
        assert provider.seen == []
        shown = finished(started("run", task, seer, "--method", spec, "--out", tmp_path / "r"))
    assert at_most >= len(provider.answered)
    assert "scored 20 of 20" in shown
    found = records(tmp_path / "r")
    assert sorted(found) == names
    calls: Counter[str] = Counter()
    for row in found.values():
        trace = row["trace"]
        calls.update(trace["calls"])
        assert row["text"] and trace["warnings"] == []
        assert {one["label"] for one in trace["proposals"]} <= {
            name.replace("_", " ") for name in LABELS.values()
        }
        assert all(one["score"] is not None for patch in trace["patches"] for one in patch["sentences"]
                   if one["kind"] != "consistent")  # fmt: skip
    captions = sum(seen.body["model"] == "seer" for seen in provider.answered)
    assert calls["captioner"] == captions == 20 * 16
    assert calls["aggregator"] >= len(provider.answered) - captions > 0  # equal questions are asked once
    assert calls["scored"] > 0 and calls["detector"] == 20


# ---------------------------------------------------------------- a model that runs here


@pytest.mark.parametrize("aggregator", ["itself", "a server"])
def test_the_demo_model_has_a_caption_for_every_picture(aggregator: str, tmp_path: Path) -> None:
    with Provider(lambda seen: Reply(said(seen))) as provider:
        spec = "patch_matters:candidates=2,sorting_tokens=16,merging_tokens=16,caption_tokens=48"
        if aggregator == "a server":
            spec += f",aggregator=(openai:talker,base_url={provider.url})"
        words = ("run", "small_detail:question=caption,size=3", "hf:assets/demo,device=cpu", "--method", spec)
        finished(started(*words, "--out", tmp_path / "r"))
    found = records(tmp_path / "r")
    assert len(found) == 3
    for row in found.values():
        assert row["text"] and not row.get("failure")
        assert bool(row["trace"]["warnings"]) == (aggregator == "itself")
