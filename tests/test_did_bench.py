"""DID-Bench: its files from invented fixtures, its scores against the repository's own metric code.

What needs Java is skipped where there is none, and what needs real photographs where they are absent.
"""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from harness import engine, resolve
from harness.errors import DataError, PictureError, SpecError
from harness.types import Response, Sample, Task
from leaderboard.published import read
from metrics import caption
from tasks import _data, did_bench
from tests import layouts

HERE = Path(__file__).parent
CASES = json.loads((HERE / "goldens" / "did_bench.json").read_text(encoding="utf-8"))["cases"]
REAL = HERE.parent.parent / "shared" / "data" / "coco"

pytest.importorskip("pycocoevalcap", reason="needs the extra [captions]")
java = pytest.mark.skipif(shutil.which("java") is None, reason="needs a Java runtime on PATH")

KEYS = ("000000000042", "000000000007", "000000000300")


def files(
    root: Path, keys: Sequence[str] = KEYS, asked: Sequence[str] | None = None, which: str = "gpt4v"
) -> Path:
    """A root with descriptions of `keys`, questions about `asked` (the same) and the first's photograph."""
    layouts.write(root / f"gt/gt-{which}-prefer.json", {key: [f"A long text of {key}."] for key in keys})
    rows = [
        {"image": f"{key}.jpg", "question": f"What is {place}?"} for place, key in enumerate(asked or keys)
    ]
    layouts.lines(root / f"ques/ques-{which}-prefer.jsonl", rows)
    layouts.picture(root / "images" / f"{keys[0]}.jpg")
    return root


def made(root: Path, **knobs: Any) -> Task:
    return did_bench.task(root, **{"size": "any", "metric": caption.metric("vlmevalkit"), **knobs})


# ---------------------------------------------------------------- the files


def test_each_image_is_asked_for_in_its_own_words(tmp_path: Path) -> None:
    task = made(files(tmp_path))
    assert [sample.id for sample in task.samples] == list(KEYS)
    assert task.samples[0].targets == ("A long text of 000000000042.",)
    assert task.samples[0].images[0].size == (32, 24)
    assert [task.request(sample).text for sample in task.samples] == [f"What is {k}?" for k in range(3)]
    decoding = task.request(task.samples[0]).decoding
    assert (decoding.max_tokens, decoding.temperature) == (512, 0)
    assert task.samples[0].meta == {"image": "000000000042.jpg"}


def test_the_two_reference_sets_are_two_tasks(tmp_path: Path) -> None:
    first = made(files(tmp_path))
    second = made(files(tmp_path, KEYS[:1], which="llava"), references="llava")
    assert (first.name, second.name) == ("did_bench-gpt4v", "did_bench-llava")
    assert first.fingerprint != second.fingerprint
    assert len(second.samples) == 1
    with pytest.raises(SpecError, match="references='human' is not one of gpt4v, llava"):
        resolve.make_task(f"did_bench:root={tmp_path},references=human,size=any")


def test_a_set_has_a_hundred_and_one_images(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="did_bench gpt4v has 3 samples; 101 are expected. Say size=any"):
        made(files(tmp_path), size="official")
    keys = [f"{k:012}" for k in range(101)]
    assert len(made(files(tmp_path, keys), size="official").samples) == 101
    assert len(made(tmp_path, size="official", subset="random:5@seed=42").samples) == 5
    with pytest.raises(DataError, match="asks for 500 of 101 samples"):
        made(tmp_path, subset="sparc500")


def test_another_question_is_another_task(tmp_path: Path) -> None:
    before = made(files(tmp_path)).fingerprint
    path = tmp_path / "ques/ques-gpt4v-prefer.jsonl"
    path.write_text(path.read_text().replace("What is 2?", "Describe it."))
    assert made(tmp_path).fingerprint != before


def test_questions_may_stand_in_another_order_than_descriptions(tmp_path: Path) -> None:
    samples = made(files(tmp_path, KEYS, KEYS[::-1])).samples
    assert [(s.id, s.targets) for s in samples] == [(k, (f"A long text of {k}.",)) for k in KEYS[::-1]]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (
            (*KEYS, "000000000999"),
            "line 4 asks about '000000000999', of which .*gt-gpt4v.* has no description",
        ),
        (KEYS[:2], "ques-gpt4v.*jsonl asks nothing about '000000000300', of which .* has a description"),
        ((*KEYS, KEYS[0]), "line 4 has the id '000000000042', which .*line 1 has already"),
        (("42", *KEYS[1:]), "asks nothing about '000000000042'"),
    ],
)
def test_questions_and_descriptions_must_be_of_the_same_images(
    tmp_path: Path, asked: Sequence[str], said: str
) -> None:
    with pytest.raises(DataError, match=said):
        made(files(tmp_path, KEYS, asked))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('{"000000000042": ["a"], "000000000042": ["b"]}', "the key '000000000042' comes twice"),
        ('{"000000000042": []}', "line 1 has no references"),
        ('{"000000000042": null}', "line 1 has no references"),
        ('{"000000000042": [["a"]]}', r'references is \["a"\]; it must be a text'),
        ("[]", "is not an object in braces"),
        ("{", "is not JSON"),
    ],
)
def test_a_broken_file_of_descriptions_is_named(tmp_path: Path, content: str, said: str) -> None:
    files(tmp_path, KEYS[:1])
    (tmp_path / "gt/gt-gpt4v-prefer.json").write_text(content)
    with pytest.raises(DataError, match=said):
        made(tmp_path)


def test_files_that_are_missing_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds none of gt, benchmark/DenseCap_Metrics/gt"):
        made(tmp_path)
    with pytest.raises(DataError, match="does not exist; it should hold gt/gt-"):
        made(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"gt-llava-prefer\.json does not exist"):
        made(files(tmp_path), references="llava")


def test_a_clone_of_the_repository_is_a_root_too(tmp_path: Path) -> None:
    files(tmp_path / "benchmark" / "DenseCap_Metrics")
    shutil.move(tmp_path / "benchmark" / "DenseCap_Metrics" / "images", tmp_path / "train2017")
    assert made(tmp_path).samples[0].images[0].size == (32, 24)


def test_an_image_that_is_missing_or_outside_fails_when_it_is_opened_and_not_before(tmp_path: Path) -> None:
    root = files(tmp_path / "set")
    with pytest.raises(PictureError, match=r"000000000007\.jpg does not exist"):
        made(root).samples[1].images[0].open()
    path = root / "ques/ques-gpt4v-prefer.jsonl"
    path.write_text(path.read_text().replace("000000000007.jpg", "../../000000000007.jpg"))
    layouts.picture(tmp_path / "000000000007.jpg")
    with pytest.raises(PictureError, match="lies outside its folder"):
        made(root).samples[1].images[0].open()


def test_the_downloads_are_pinned_and_land_where_the_task_looks() -> None:
    names = {f"gt/gt-{which}-prefer.json" for which in ("gpt4v", "llava")}
    names |= {f"ques/ques-{which}-prefer.jsonl" for which in ("gpt4v", "llava")}
    assert {file.name for file in did_bench.SOURCE.files} == names
    assert all(file.url.endswith(f"/{file.name}") and file.sha256 for file in did_bench.SOURCE.files)
    assert "train2017" in _data.describe(did_bench.SOURCE)


# ---------------------------------------------------------------- the scores


@pytest.mark.parametrize("number", range(len(CASES)))
def test_the_first_metric_has_the_numbers_of_the_repositorys_script(number: int) -> None:
    """Golden: its Bleu, Cider and Rouge, run on these texts."""
    case = CASES[number]
    candidates, references = case["input"]["candidates"], case["input"]["references"]
    samples = [Sample(key, targets=(text,)) for key, text in references.items()]
    metric = caption.metric("vlmevalkit")
    found = metric.reduce(metric.measure([Response(candidates[s.id]) for s in samples], samples))
    expected = case["expected"]
    wanted = {f"BLEU-{n}": score for n, score in enumerate(expected["bleu"], 1)}
    assert found == pytest.approx(
        wanted | {"CIDEr": expected["cider"], "ROUGE_L": expected["rouge"]}, abs=1e-9
    )


@java
def test_a_run_has_the_scripts_numbers_first_and_those_of_the_server_beside_them(tmp_path: Path) -> None:
    case = CASES[0]["input"]
    root = files(tmp_path, list(case["references"]))
    layouts.write(root / "gt/gt-gpt4v-prefer.json", {k: [text] for k, text in case["references"].items()})
    for key in case["references"]:
        layouts.picture(root / "images" / f"{key}.jpg")
    task = resolve.make_task(f"did_bench:root={root},size=any")
    assert task.primary == "CIDEr"
    predictions = layouts.write(tmp_path / "captions.json", case["candidates"])
    run = engine.run(task, resolve.make_model(f"replay:{predictions}"), out=tmp_path / "runs")
    assert list(run.summary["metrics"]) == ["caption[vlmevalkit]", "caption[official]"]
    scripts, servers = (entry["scores"] for entry in run.summary["metrics"].values())
    assert scripts["CIDEr"]["value"] == pytest.approx(CASES[0]["expected"]["cider"])
    assert "METEOR" not in scripts
    assert servers["METEOR"]["value"] > 0


def test_without_java_nothing_is_asked_and_the_scripts_own_numbers_still_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(DataError, match="needs a Java runtime"):
        did_bench.task(files(tmp_path), size="any")
    task = resolve.make_task(f"did_bench:root={tmp_path},size=any,metric=(caption:variant=vlmevalkit)")
    assert task.metrics == (caption.metric("vlmevalkit"),)


def test_real_photographs_and_captions_go_through_a_run(tmp_path: Path) -> None:
    if not (REAL / "images").is_dir():
        pytest.skip(f"needs the photographs of {REAL / 'images'}")
    rows = [json.loads(line) for line in (REAL / "annotations.jsonl").read_text().splitlines()]
    said = {Path(row["file_name"]).stem: row["caption_by_mllm"] for row in rows}
    assert len(said) == 101
    root = files(tmp_path, list(said))
    layouts.write(root / "gt/gt-gpt4v-prefer.json", {key: [text] for key, text in said.items()})
    spec = f"did_bench:root={root},images={REAL / 'images'},metric=(caption:variant=vlmevalkit)"
    found = resolve.make_task(spec)
    assert _data.verify(found, lambda _: None, lambda *_: None) == []
    answers = layouts.write(tmp_path / "captions.json", said)
    run = engine.run(found, resolve.make_model(f"replay:{answers}"), out=tmp_path / "runs")
    assert run.summary["scored"] == 101
    scores = run.summary["metrics"]["caption[vlmevalkit]"]["scores"]
    assert scores["CIDEr"]["value"] == pytest.approx(10)


def test_what_is_published_of_patch_matters_is_one_gain_of_an_unknown_model() -> None:
    shipped = read(HERE.parent / "results" / "published")
    (entry,) = [entry for entry in shipped if entry.arxiv == "2504.06666"]
    assert (entry.metric, entry.value, entry.model, entry.confidence) == ("CIDEr gain", 4.7, "", "digest")
