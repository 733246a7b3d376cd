"""The question-answering benchmarks: every layout gives the same sample, every prompt its exact bytes."""

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from adapters.scripted import Scripted
from harness import engine
from harness.errors import DataError
from harness.types import Response, Task
from tasks import _hub, aokvqa, docvqa, gqa, pope, textvqa, vqav2, vstar
from tasks._source import subset_indices
from tests import layouts

SHORT = "Answer the question using a single word or phrase."
LETTER = "Answer with the option's letter from the given choices directly."
GOLDENS = Path(__file__).parent / "goldens"

Make = Callable[..., Task]
TASKS: dict[str, tuple[Make, Callable[..., Path]]] = {
    "textvqa": (textvqa.task, layouts.textvqa),
    "docvqa": (docvqa.task, layouts.docvqa),
    "gqa": (gqa.task, layouts.gqa),
    "aokvqa": (aokvqa.task, layouts.aokvqa),
    "vqav2": (vqav2.task, layouts.vqav2),
    "vstar": (vstar.task, layouts.vstar),
    "pope": (partial(pope.task, categories=("random",)), layouts.pope),
}


def made(name: str, root: Path, changes: dict[str, Any] | None = None, **knobs: Any) -> Task:
    make, layout = TASKS[name]
    return make(layout(root, **(changes or {})), size="any", **knobs)


def prompt(task: Task) -> str:
    return task.request(task.samples[0]).text


@pytest.mark.parametrize("name", TASKS)
def test_the_official_files_give_a_sample_with_a_picture_that_opens(name: str, tmp_path: Path) -> None:
    (sample,) = made(name, tmp_path).samples
    assert sample.images[0].open().size == (32, 24)
    assert sample.question and sample.targets


@pytest.mark.parametrize("name", TASKS)
def test_a_wrong_number_of_samples_is_refused_with_both_numbers(name: str, tmp_path: Path) -> None:
    make, layout = TASKS[name]
    with pytest.raises(DataError, match=r"has 1 samples; [\d,]+( or 2,910)? are expected. Say size=any"):
        make(layout(tmp_path))


@pytest.mark.parametrize("name", TASKS)
def test_missing_files_are_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds n|does not exist"):
        TASKS[name][0](tmp_path, size="any")
    with pytest.raises(DataError, match="does not exist; it should hold"):
        TASKS[name][0](tmp_path / "none")


@pytest.mark.parametrize("name", TASKS)
def test_a_run_over_the_files_is_scored(name: str, tmp_path: Path) -> None:
    task = made(name, tmp_path / "data")
    model = Scripted(lambda _: task.samples[0].targets[0])
    result = engine.run(task, model, out=tmp_path / "runs")
    (scores,) = result.summary["metrics"].values()
    assert scores["scores"][task.primary]["value"] > 0.85


PROMPTS = [
    ("textvqa", {}, "What does the nypd sign say?\n" + SHORT),
    (
        "textvqa",
        {"ocr": "rosetta"},
        f"What does the nypd sign say?\nReference OCR token: ACME, CO, LTD\n{SHORT}",
    ),
    (
        "textvqa",
        {"protocol": "llava"},
        f"what does the NYPD sign say?\nReference OCR token: ACME, CO, LTD\n{SHORT}",
    ),
    ("textvqa", {"protocol": "vicrop"}, f"what does the NYPD sign say? {SHORT}"),
    ("textvqa", {"protocol": "vlmevalkit"}, f"what does the NYPD sign say?\n{SHORT}"),
    ("docvqa", {}, f"What is the invoice total?\n{SHORT}"),
    ("docvqa", {"protocol": "vicrop"}, f"What is the invoice total? {SHORT}"),
    ("gqa", {}, f"Is the cup red?\n{SHORT}"),
    ("gqa", {"protocol": "vicrop"}, f"Is the cup red? {SHORT}"),
    ("vqav2", {"protocol": "lmms"}, f"How many cups?\n{SHORT}"),
    ("aokvqa", {}, f"What could be carried in the basket?\n{SHORT}"),
    ("aokvqa", {"protocol": "vicrop"}, f"What could be carried in the basket? {SHORT}"),
    (
        "aokvqa",
        {"answers": "choice"},
        f"What could be carried in the basket?\nA. rope\nB. fruit\nC. sand\nD. tires\n{LETTER}",
    ),
    (
        "aokvqa",
        {"answers": "choice", "protocol": "vlmevalkit"},
        "Question: What could be carried in the basket?\nOptions:\nA. rope\nB. fruit\nC. sand\nD. tires\n"
        "Please select the correct answer from the options above. \n",
    ),
    ("vstar", {}, f"What is the color of the mug?\nA. red\nB. teal\nC. gray\nD. pink\n{LETTER}"),
    ("vstar", {"protocol": "vicrop"}, f"{layouts.VSTAR['text']} {SHORT}"),
    ("vstar", {"protocol": "official"}, "What is the color of the mug?"),
    (
        "vstar",
        {"protocol": "vlmevalkit"},
        "Question: What is the color of the mug?\nOptions:\nA. red\nB. teal\nC. gray\nD. pink\n"
        "Please select the correct answer from the options above. \n",
    ),
]


@pytest.mark.parametrize(("name", "knobs", "text"), PROMPTS)
def test_each_protocols_prompt_is_exact(name: str, knobs: dict[str, Any], text: str, tmp_path: Path) -> None:
    assert prompt(made(name, tmp_path, **knobs)) == text


TOKENS = [
    ("textvqa", "lmms", 1024), ("textvqa", "llava", 128), ("textvqa", "vicrop", 20),
    ("docvqa", "lmms", 32), ("docvqa", "vicrop", 20),
    ("gqa", "llava", 128), ("gqa", "lmms", 16), ("gqa", "vicrop", 20),
    ("vqav2", "llava", 128), ("vqav2", "lmms", 16), ("vqav2", "vicrop", 20),
    ("vstar", "lmms", 16), ("vstar", "vicrop", 20), ("vstar", "official", 0),
]  # fmt: skip


@pytest.mark.parametrize(("name", "protocol", "tokens"), TOKENS)
def test_each_protocols_length_is_the_published_one(
    name: str, protocol: str, tokens: int, tmp_path: Path
) -> None:
    task = made(name, tmp_path, protocol=protocol)
    decoding = task.request(task.samples[0]).decoding
    assert decoding.max_tokens == tokens
    assert decoding.stop == (("ASSISTANT:",) if (name, protocol) == ("textvqa", "lmms") else ())


VARIANTS = [
    ("textvqa", "lmms", "m4c"), ("textvqa", "vicrop", "vicrop"), ("textvqa", "vlmevalkit", "vlmevalkit"),
    ("docvqa", "lmms", "lmms"), ("docvqa", "vicrop", "vicrop_docvqa"),
    ("gqa", "llava", "llava"), ("gqa", "lmms", "lmms"), ("gqa", "vicrop", "vicrop"),
    ("vqav2", "llava", "official"), ("aokvqa", "llava", "official"), ("aokvqa", "vicrop", "vicrop"),
    ("vstar", "lmms", "lmms"), ("vstar", "official", "likelihood"), ("vstar", "vicrop", "vicrop"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "protocol", "variant"), VARIANTS)
def test_each_protocol_has_its_own_metric(name: str, protocol: str, variant: str, tmp_path: Path) -> None:
    assert made(name, tmp_path, protocol=protocol).metrics[0].variant == variant


def test_vstars_prompt_repeats_its_instruction_only_where_lmms_is_followed_to_the_byte(
    tmp_path: Path,
) -> None:
    cases = json.loads((GOLDENS / "vstar.json").read_text())["prompt_cases"]
    assert cases
    for place, case in enumerate(cases):
        text = case["input"]["text"]
        options = vstar.split_text(text)[1]
        task = made("vstar", tmp_path / str(place), {"text": text, "label": "A"}, exact_prompt=True)
        assert options and prompt(task) == case["expected"]["lmms_prompt"]


def test_vstars_options_are_scored_by_likelihood_in_the_official_protocol(tmp_path: Path) -> None:
    task = made("vstar", tmp_path / "data", protocol="official")
    assert task.request(task.samples[0]).options == ("red", "teal", "gray", "pink")
    likely = Response(option_nll=((4.0, 2), (1.0, 1), (9.0, 3), (8.0, 2)))
    result = engine.run(task, Scripted(lambda _: likely), out=tmp_path / "runs")
    assert result.summary["metrics"]["choice[likelihood]"]["scores"]["accuracy"]["value"] == 1.0


def test_vstars_own_json_is_shuffled_by_a_recorded_seed_and_gives_the_region(tmp_path: Path) -> None:
    for place in range(30):
        stem = tmp_path / "relative_position" / f"sa_{place}"
        content = {
            "bbox": [[4, 5, 6, 7], [1, 9, 2, 2]],
            "question": "Left or right?",
            "options": ["left", "right"],
        }
        layouts.write(stem.with_suffix(".json"), content)
        layouts.picture(stem.with_suffix(".jpg"))
    samples = vstar.task(tmp_path, size="any").samples
    assert {sample.targets for sample in samples} == {("A",), ("B",)}
    assert all(list(s.meta["options"])[s.meta["answer_index"]] == "left" for s in samples)  # type: ignore[arg-type,call-overload,index]
    assert samples[0].meta["region"] == [1, 5, 10, 12]
    assert samples[0].images[0].open().size == (32, 24)
    again, other = vstar.task(tmp_path, size="any"), vstar.task(tmp_path, size="any", shuffle=1)
    assert [s.targets for s in again.samples] == [s.targets for s in samples]
    assert [s.targets for s in other.samples] != [s.targets for s in samples]


def test_a_label_beyond_the_options_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'E' names none of the 4 options"):
        made("vstar", tmp_path, {"label": "E"})


def test_gqas_ids_keep_their_zeros_and_its_types_break_the_score_down(tmp_path: Path) -> None:
    task = made("gqa", tmp_path)
    assert task.samples[0].id == "00126851"
    assert [task.samples[0].meta[name] for name in task.breakdowns] == ["verify", "attr", "verifyAttr"]


def test_docvqas_image_is_found_by_its_own_name(tmp_path: Path) -> None:
    task = made("docvqa", tmp_path, {"image": "elsewhere/deep/abcd0001_3.png"})
    assert task.samples[0].images[0].open().size == (32, 24)


def test_vqav2_keeps_the_questions_order_and_refuses_one_without_annotation(tmp_path: Path) -> None:
    assert made("vqav2", tmp_path).samples[0].meta["answer_type"] == "number"
    with pytest.raises(DataError, match="question 5 has no annotation"):
        made("vqav2", tmp_path, {"question_id": 5})


def test_aokvqas_answers_are_read_as_a_list_and_as_the_text_of_one(tmp_path: Path) -> None:
    listed = made("aokvqa", tmp_path / "a")
    text = made("aokvqa", tmp_path / "b", {"direct_answers": repr(layouts.AOKVQA["direct_answers"])})
    assert listed.samples[0].targets == text.samples[0].targets
    with pytest.raises(DataError, match="which is no list"):
        made("aokvqa", tmp_path / "c", {"direct_answers": "__import__('os')"})


def test_difficult_questions_are_left_out_of_the_official_score_only(tmp_path: Path) -> None:
    for protocol, excluded in (("llava", 1), ("vicrop", 0)):
        task = made("aokvqa", tmp_path / protocol, {"difficult_direct_answer": True}, protocol=protocol)
        result = engine.run(task, Scripted(lambda _: "fruit"), out=tmp_path / "runs")
        (scores,) = result.summary["metrics"].values()
        assert scores["scores"]["excluded"]["value"] == excluded


@pytest.mark.parametrize("name", TASKS)
def test_vicrops_unified_file_loads_for_every_task(name: str, tmp_path: Path) -> None:
    row = dict(layouts.VICROP)
    if name == "vstar":
        row |= {"question": layouts.VSTAR["text"], "labels": ["B"] * 4}
    if name == "pope":
        row |= {"labels": ["yes"]}
    layouts.write(tmp_path / "data.json", [row])
    layouts.picture(tmp_path / "a.jpg")
    task = TASKS[name][0](tmp_path, format="vicrop", protocol="vicrop")
    request = task.request(task.samples[0])
    assert request.hints.short_question == "the sign?"
    assert request.text.startswith(str(row["question"]))
    assert request.images[0].open().size == (32, 24)
    with pytest.raises(DataError, match="needs root=FILE"):
        TASKS[name][0](format="vicrop")


# ---------------------------------------------------------------- the hub's columns

HUB: dict[str, tuple[Any, dict[str, tuple[str, list[dict[str, Any]]]]]] = {
    "textvqa": (
        textvqa,
        {"default": ("validation", [{**layouts.TEXTVQA, "ocr_tokens": ["ACME"], "image": layouts.jpeg()}])},
    ),
    "docvqa": (docvqa, {"DocVQA": ("validation", [{**layouts.DOCVQA, "image": layouts.jpeg()}])}),
    "gqa": (
        gqa,
        {
            "testdev_balanced_instructions": ("testdev", [{**layouts.GQA, "id": "00126851"}]),
            "testdev_balanced_images": ("testdev", [{"id": "n1001", "image": layouts.jpeg()}]),
        },
    ),
    "aokvqa": (
        aokvqa,
        {
            "default": (
                "validation",
                [
                    {
                        **layouts.AOKVQA,
                        "direct_answers": repr(layouts.AOKVQA["direct_answers"]),
                        "image": layouts.jpeg(),
                    }
                ],
            )
        },
    ),
    "vqav2": (
        vqav2,
        {
            "default": (
                "validation",
                [{**layouts.VQAV2_QUESTION, **layouts.VQAV2_ANNOTATION, "image": layouts.jpeg()}],
            )
        },
    ),
    "vstar": (vstar, {"default": ("test", [{**layouts.VSTAR, "image": layouts.jpeg()}])}),
    "pope": (pope, {"default": ("test", [{**layouts.POPE_HUB, "image": layouts.jpeg()}])}),
}


@pytest.mark.parametrize("name", HUB)
def test_the_hubs_columns_give_the_same_sample_as_the_files(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    module, tables = HUB[name]
    folder = layouts.hub(tmp_path / "hub", tables)
    monkeypatch.setattr(module, "SOURCE", replace(module.SOURCE, hub=("nobody/nothing", folder)))
    (ours,) = made(name, tmp_path / "files").samples
    (theirs,) = (module.task if name != "pope" else TASKS[name][0])(size="any").samples
    assert (theirs.id, theirs.question, theirs.targets) == (ours.id, ours.question, ours.targets)
    assert theirs.images[0].open().size == (32, 24)
    assert theirs.images[0].digest == ours.images[0].digest


def test_a_hub_that_cannot_be_reached_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="Give root=DIR with the official files"):
        _hub.load(("lmms-lab/textvqa",), None, "validation")


# ---------------------------------------------------------------- what can be wrong


def test_each_bad_picture_fails_alone(tmp_path: Path) -> None:
    names = ["good", "none", "short", "../../secret"]
    rows = [{**layouts.TEXTVQA, "question_id": k, "image_id": name} for k, name in enumerate(names)]
    layouts.textvqa(tmp_path)
    layouts.write(tmp_path / "TextVQA_0.5.1_val.json", {"data": rows})
    (tmp_path / "train_images" / "good.jpg").write_bytes(layouts.jpeg())
    (tmp_path / "train_images" / "short.jpg").write_bytes(layouts.jpeg(size=(640, 480))[:-2000])
    layouts.picture(tmp_path.parent / "secret.jpg")
    task = textvqa.task(tmp_path, size="any")
    model = Scripted(lambda request: (request.images[0].open(), "acme")[1])
    result = engine.run(task, model, out=tmp_path / "runs")
    assert result.summary["failures"] == {"damaged_picture": 1, "missing_picture": 1, "refused_picture": 1}
    assert result.summary["scored"] == 1


def test_an_id_that_comes_twice_is_refused_with_both_places(tmp_path: Path) -> None:
    layouts.textvqa(tmp_path)
    layouts.write(tmp_path / "TextVQA_0.5.1_val.json", {"data": [layouts.TEXTVQA] * 2})
    with pytest.raises(DataError, match="data 2 has the id '90001', which .*data 1 has already"):
        textvqa.task(tmp_path, size="any")


def test_an_annotation_that_is_no_json_is_named(tmp_path: Path) -> None:
    layouts.textvqa(tmp_path)
    (tmp_path / "TextVQA_0.5.1_val.json").write_text("{'data': ")
    with pytest.raises(DataError, match=r"TextVQA_0\.5\.1_val\.json is not JSON"):
        textvqa.task(tmp_path)


# ---------------------------------------------------------------- submissions


def test_a_split_without_answers_runs_and_gives_the_servers_file(tmp_path: Path) -> None:
    row = {key: value for key, value in layouts.DOCVQA.items() if key not in ("answers", "question_types")}
    layouts.write(tmp_path / "data" / "test_v1.0.json", {"data": [row]})
    layouts.picture(tmp_path / "data" / "documents" / "abcd0001_3.png")
    task = docvqa.task(tmp_path / "data", split="test", size="any")
    result = engine.run(task, Scripted(lambda _: " 41.20 "), out=tmp_path / "runs")
    assert result.summary["metrics"] == {} and result.summary["scored"] == 1
    assert docvqa.submission([(task.samples[0], "41.20")]) == [{"questionId": 70001, "answer": "41.20"}]


def test_the_servers_files_have_their_own_forms(tmp_path: Path) -> None:
    (sample,) = made("vqav2", tmp_path / "v").samples
    assert vqav2.submission([(sample, "Two.")]) == [{"question_id": 900001000, "answer": "2"}]
    (sample,) = made("textvqa", tmp_path / "t").samples
    assert textvqa.submission([(sample, "Two.")]) == [{"question_id": 90001, "answer": "Two."}]


# ---------------------------------------------------------------- subsets


def test_drawn_subsets_are_the_papers() -> None:
    import hashlib

    for case in json.loads((GOLDENS / "sampling.json").read_text())["cases"]:
        given, expected = case["input"], case["expected"]
        drawn = list(subset_indices(f"random:{given['k']}@seed={given['seed']}", given["population"]))
        assert drawn[:10] == expected["first10"]
        assert (
            hashlib.sha256(",".join(map(str, drawn)).encode()).hexdigest()
            == expected["sha256_of_comma_joined"]
        )


def test_sparc500_is_the_draw_of_seed_42() -> None:
    assert list(subset_indices("sparc500", 14847))[:3] == [10476, 1824, 409]


@pytest.mark.parametrize("subset", ["first:5", "random:5", "random:9@seed=1", "random:0@seed=1"])
def test_a_subset_that_cannot_be_drawn_is_refused(subset: str) -> None:
    with pytest.raises(DataError, match="subset="):
        subset_indices(subset, 8)
