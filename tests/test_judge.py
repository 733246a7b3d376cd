"""`--judge`: any model scores captions, at the speed of its wire, and nothing is asked or paid for twice.

The judge is a real client against a real server on loopback (`provider.py`).
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from provider import Provider, Reply, Seen
from typer.testing import CliRunner

from adapters.scripted import Scripted
from harness import engine
from harness.cli import app
from harness.resolve import judged
from harness.store import read_run
from harness.types import Request, Sample, Task
from leaderboard.board import comparisons
from metrics import clair, length

CAPTIONS = 24


def captioned(folder: Path) -> Path:
    """A finished run of captions "a dog number K", without a judge."""
    samples = [Sample(str(k), question=str(k), targets=("a puppy",)) for k in range(CAPTIONS)]
    task = Task(
        "captions",
        "1",
        "p",
        "f",
        samples,
        lambda s: Request(question=s.question),
        (length.metric(),),
        "words",
    )
    model = Scripted(lambda request: f"a dog number {request.text}")
    return engine.run(task, model, out=folder / "runs").path


def judge(provider: Provider, adapter: str, **knobs: Any) -> str:
    url = provider.url if adapter == "openai" else provider.host
    words = {"base_url": f'"{url}"', "concurrency": 8, "retries": 0, "key_env": "A_JUDGES_KEY", **knobs}
    return f"{adapter}:judge-1," + ",".join(f"{name}={value}" for name, value in words.items())


def fovea(*words: str | Path, code: int = 0) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == code, (done.output, done.exception)
    return done.output


def number(seen: Seen) -> int:
    found = re.search(r"a dog number (\d+)", seen.text)
    assert found is not None
    return int(found[1])


def clair_of(run: Path) -> dict[str, Any]:
    entry: dict[str, Any] = read_run(run)["summary"]["metrics"]["clair[fovea]"]
    return entry


@pytest.mark.parametrize("adapter", ["openai", "anthropic"])
def test_a_judge_is_asked_concurrently_once_and_again_only_for_what_is_missing(
    tmp_path: Path, adapter: str
) -> None:
    down = {3}

    def answer(seen: Seen) -> Reply:
        if number(seen) in down:
            return Reply("slow down", status=429)
        return Reply("I cannot say." if number(seen) == 5 else '{"score": 80, "reason": "x"}', delay=0.05)

    run = captioned(tmp_path)
    with Provider(answer) as provider:
        words = ("score", run, "--metric", "clair:variant=fovea", "--judge", judge(provider, adapter))
        fovea(*words)
        first = {name: score["value"] for name, score in clair_of(run)["scores"].items()}
        assert (first["clair"], first["n_scored"]) == (pytest.approx(0.8), CAPTIONS - 2)
        assert (first["n_failed"], first["n_unparsed"]) == (1, 1)
        assert first["upstream_mean"] == pytest.approx(0.8 * (CAPTIONS - 2) / (CAPTIONS - 1))
        assert len(provider.seen) == CAPTIONS + 2  # the unreadable one three times
        assert provider.most >= 4
        down.clear()
        fovea(*words)
        assert [number(seen) for seen in provider.seen[CAPTIONS + 2 :]] == [3]
        fovea("score", run)  # the judge made again from what run.json says; every reply is in the cache
        assert len(provider.seen) == CAPTIONS + 3
    last = clair_of(run)
    assert last["scores"]["n_scored"]["value"] == CAPTIONS - 1
    assert (last["judge"]["adapter"], last["judge"]["model"]) == (adapter, "judge-1")
    stored = {entry["name"]: entry for entry in read_run(run)["metrics"]}["clair"]
    assert stored["specs"]["judge"].startswith(f"{adapter}:judge-1,")
    assert stored["knobs"]["judge"] == last["judge"]


def test_a_refused_key_ends_the_scoring_and_leaves_the_run_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("A_JUDGES_KEY", "sk-planted-secret")
    run = captioned(tmp_path)
    before = (run / "run.json").read_bytes()
    with Provider(lambda _: Reply("sk-planted-secret is no key", status=401)) as provider:
        said = fovea(
            *("score", run, "--metric", "clair:variant=fovea", "--judge", judge(provider, "anthropic")),
            code=2,
        )
    assert "A_JUDGES_KEY" in said
    assert "sk-planted-secret" not in said
    assert (run / "run.json").read_bytes() == before


@pytest.fixture
def captions(tmp_path: Path) -> Callable[..., list[str | Path]]:
    """The words that run a tiny captioning benchmark."""
    from test_caption_tasks import iiw

    root = iiw(tmp_path / "iiw")
    return lambda: ["run", f"iiw400:root={root},size=any", "scripted:a kettle", "--out", tmp_path / "out"]


@pytest.mark.filterwarnings("ignore:.*Ours is used")
def test_a_captioning_run_is_scored_by_the_judge_it_is_given(
    tmp_path: Path, captions: Callable[..., list[str | Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("metrics.clair.upstream_template", lambda _: None)
    clair._template.cache_clear()
    fovea(*captions(), "--judge", "scripted:score 90")
    (written,) = (tmp_path / "out").rglob("run.json")
    header = json.loads(written.read_text())
    assert header["summary"]["metrics"]["clair[fovea]"]["scores"]["clair"]["value"] == pytest.approx(0.9)
    assert header["task"].endswith(",judge=(scripted:score 90)")
    fovea("score", written.parent, "--judge", "scripted:score 40")  # another judge of the same metric
    entry = clair_of(written.parent)
    assert (entry["scores"]["clair"]["value"], entry["judge"]["model"]) == (pytest.approx(0.4), "score 40")


def test_a_judge_that_nobody_asks_is_refused(tmp_path: Path) -> None:
    said = fovea("run", "small_detail", "scripted:A", "--out", tmp_path, "--judge", "scripted:90", code=2)
    assert "has no judge to choose" in said.replace("\n", " ")
    said = fovea("score", captioned(tmp_path), "--judge", "scripted:90", code=2)
    assert "--metric clair" in said


def test_a_spec_keeps_the_judge_that_it_names() -> None:
    assert judged("metric", "clair:variant=fovea", "scripted:1") == "clair:variant=fovea,judge=(scripted:1)"
    assert judged("metric", "clair:judge=(scripted:2)", "scripted:1") == "clair:judge=(scripted:2)"
    assert judged("metric", "length", "scripted:1") == "length"
    assert judged("metric", "clair", None) == "clair"


def test_rows_of_different_judges_are_never_ranked_together(tmp_path: Path) -> None:
    samples = [Sample(str(k), question=str(k), targets=("a puppy",)) for k in range(4)]
    paths = []
    for name, opinion in (("strict", 20), ("kind", 90)):
        reply = f'{{"score": {opinion}, "reason": "so"}}'
        metric = clair.metric(Scripted(lambda _, reply=reply: reply, name=name), "fovea")
        task = Task(
            "captions", "1", "p", "f", samples, lambda s: Request(question=s.question), (metric,), "clair"
        )
        run = engine.run(task, Scripted(lambda request: request.text), out=tmp_path / name)
        paths.append(run.path)
    found = comparisons(paths, lambda _: metric)
    assert [comparison.metric for comparison in found] == [
        "clair[fovea] judged by strict",
        "clair[fovea] judged by kind",
    ]
