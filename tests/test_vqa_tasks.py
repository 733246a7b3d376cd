"""The question-answering benchmarks: every layout gives the same sample, every prompt its exact bytes."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from adapters.scripted import Scripted
from harness import engine, resolve
from harness.errors import DataError, PictureError, SpecError
from harness.store import read_records
from harness.types import Response, Task, digest
from tasks import _hub, aokvqa, docvqa, gqa, pope, textvqa, vqav2, vstar
from tasks._source import Source, subset_indices
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
    assert next(iter(result.summary["metrics"].values()))["scores"][task.primary]["value"] > 0.85


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


def vstar_folders(root: Path, number: int = 30, **changes: Any) -> Path:
    for place in range(number):
        stem = root / "relative_position" / f"sa_{place}"
        content = {
            "bbox": [[4, 5, 6, 7], [1, 9, 2, 2]],
            "question": "Left or right?",
            "options": ["left", "right"],
            **changes,
        }
        layouts.write(stem.with_suffix(".json"), content)
        layouts.picture(stem.with_suffix(".jpg"))
    return root


def test_vstars_own_json_is_shuffled_by_a_recorded_seed_and_gives_the_region(tmp_path: Path) -> None:
    samples = vstar.task(vstar_folders(tmp_path), size="any").samples
    assert {sample.targets for sample in samples} == {("A",), ("B",)}
    assert all(list(s.meta["options"])[s.meta["answer_index"]] == "left" for s in samples)  # type: ignore[arg-type,call-overload,index]
    assert samples[0].meta["region"] == [1, 5, 10, 12]
    assert samples[0].images[0].open().size == (32, 24)
    again, other = vstar.task(tmp_path, size="any"), vstar.task(tmp_path, size="any", shuffle=1)
    assert [s.targets for s in again.samples] == [s.targets for s in samples]
    assert [s.targets for s in other.samples] != [s.targets for s in samples]
    assert (again.version, other.version) == ("1, shuffle=0", "1, shuffle=1")


def test_vstars_official_protocol_keeps_the_folders_own_order_of_options(tmp_path: Path) -> None:
    task = vstar.task(vstar_folders(tmp_path), protocol="official", size="any")
    assert {task.request(sample).options for sample in task.samples} == {("left", "right")}
    assert {sample.meta["answer_index"] for sample in task.samples} == {0}
    assert task.version == "1"


def test_vstars_questions_get_their_boxes_from_the_folders(tmp_path: Path) -> None:
    bare = made("vstar", tmp_path)
    boxed = {"bbox": [[4, 5, 6, 7]], "question": "?", "options": ["teal", "red", "gray", "pink"]}
    layouts.write(tmp_path / "direct_attributes" / "sa_1.json", boxed)
    task = vstar.task(tmp_path, size="any")
    assert bare.request(bare.samples[0]).hints.region is None
    assert task.request(task.samples[0]).hints.region == (4, 5, 10, 12)
    assert task.samples[0].targets == ("B",) and task.fingerprint != bare.fingerprint


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"bbox": [[1, 2, 3]]}, "bbox is .* it must be a list of"),
        ({"bbox": [["1", 2, 3, 4]]}, "bbox is .* it must be a list of"),
        ({"bbox": 4}, "bbox is 4; it must be a list of"),
        ({"options": []}, "sa_0.json has no options"),
        ({"question": None}, "sa_0.json has no question"),
    ],
)
def test_a_fault_in_vstars_json_is_named(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=said):
        vstar.task(vstar_folders(tmp_path, 1, **changes), size="any")


def test_vstar_counts_each_category(tmp_path: Path) -> None:
    rows = [
        {
            **layouts.VSTAR,
            "question_id": k,
            "category": "direct_attributes" if k < 114 else "relative_position",
        }
        for k in range(191)
    ]
    layouts.lines(tmp_path / "test_questions.jsonl", rows)
    with pytest.raises(DataError, match="vstar direct_attributes has 114 samples; 115 are expected"):
        vstar.task(tmp_path)
    layouts.lines(tmp_path / "test_questions.jsonl", [*rows[1:], {**rows[0], "question_id": "x"}])
    with pytest.raises(DataError, match="114 samples"):
        vstar.task(tmp_path)
    rows[114]["category"] = "direct_attributes"
    layouts.lines(tmp_path / "test_questions.jsonl", rows)
    assert len(vstar.task(tmp_path).samples) == 191


@pytest.mark.parametrize("knobs", [{"exact_prompt": True}, {"parser": "strict", "protocol": "official"}])
def test_vstar_refuses_knobs_that_its_protocol_has_no_use_for(knobs: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="protocol"):
        made("vstar", tmp_path, **{"protocol": "vicrop", **knobs})


def test_ocr_tokens_can_be_left_out_of_a_protocol_that_has_them(tmp_path: Path) -> None:
    root = layouts.textvqa(tmp_path)
    task = resolve.make_task(f"textvqa:root={root},protocol=llava,ocr=none,size=any")
    assert prompt(task) == f"what does the NYPD sign say?\n{SHORT}"
    assert task.protocol == "llava, ocr=none"
    assert made("textvqa", tmp_path, protocol="llava").protocol == "llava"


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        (
            "what does the NYPD sign say?\nReference OCR token: N, Y PD, \n",
            "\nReference OCR token: N, Y PD, ",
        ),
        ("what does the NYPD sign say?\nReference OCR token: \n", "\nReference OCR token: "),
        ("What does the NYPD sign say?\n", ""),
    ],
)
def test_llavas_own_file_of_prompts_gives_its_tokens(text: str, tokens: str, tmp_path: Path) -> None:
    row = {"question_id": "00aa11", "image": "00aa11.jpg", "text": text + SHORT}
    layouts.lines(tmp_path / "llava_textvqa_val_v051_ocr.jsonl", [row])
    task = made("textvqa", tmp_path, protocol="llava")
    assert prompt(task) == f"what does the NYPD sign say?{tokens}\n{SHORT}"
    assert "ACME" in prompt(made("textvqa", tmp_path, ocr="rosetta"))


def test_an_image_without_ocr_tokens_is_named(tmp_path: Path) -> None:
    layouts.textvqa(tmp_path)
    layouts.write(tmp_path / "TextVQA_Rosetta_OCR_v0.2_val.json", {"data": []})
    with pytest.raises(DataError, match="data 1: .* has no OCR tokens for the image 00aa11"):
        textvqa.task(tmp_path, ocr="rosetta", size="any")
    layouts.write(tmp_path / "data.json", [layouts.VICROP])
    with pytest.raises(DataError, match="say ocr=none"):
        textvqa.task(tmp_path, format="vicrop", protocol="llava")


def test_pope_reads_the_folder_that_llava_has(tmp_path: Path) -> None:
    layouts.pope(tmp_path)
    (tmp_path / "coco").mkdir()
    (tmp_path / "coco_pope_random.json").rename(tmp_path / "coco" / "coco_pope_random.json")
    layouts.lines(tmp_path / "llava_pope_test.jsonl", [{"question_id": 0}])
    (sample,) = pope.task(tmp_path, categories=("random",), size="any").samples
    assert sample.id == "random/1" and sample.images[0].open().size == (32, 24)
    with pytest.raises(DataError, match="coco_pope_popular.json does not exist.*categories=random"):
        pope.task(tmp_path, size="any")


def test_a_label_beyond_the_options_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="'E' names none of the 4 options"):
        made("vstar", tmp_path, {"label": "E"})


def test_gqas_ids_keep_their_zeros_and_its_types_break_the_score_down(tmp_path: Path) -> None:
    task = made("gqa", tmp_path)
    assert task.samples[0].id == "00126851"
    groups = {name: task.samples[0].meta[name] for name in task.breakdowns}
    assert groups == {
        "structural": "verify",
        "semantic": "attr",
        "detailed": "verifyAttr",
        "words": "04",
        "steps": "01",
    }


@pytest.mark.parametrize("folder", ["documents", "elsewhere/deep", "../.."])
def test_docvqas_image_is_found_by_its_own_name(tmp_path: Path, folder: str) -> None:
    task = made("docvqa", tmp_path, {"image": f"{folder}/abcd0001_3.png"})
    assert task.samples[0].images[0].open().size == (32, 24)


def test_docvqas_scores_are_shown_for_each_of_a_questions_types(tmp_path: Path) -> None:
    root = layouts.docvqa(tmp_path / "data")
    rows = [
        layouts.DOCVQA,
        {**layouts.DOCVQA, "questionId": 2, "question_types": ["layout"], "answers": ["other"]},
    ]
    layouts.write(root / "spdocvqa_qas" / "val_v1.0_withQT.json", {"data": rows})
    result = engine.run(docvqa.task(root, size="any"), Scripted(lambda _: "41.20"), out=tmp_path / "runs")
    (entry,) = result.summary["metrics"].values()
    types = entry["breakdowns"]["question_types"]
    assert {name: (part["n"], part["scores"]["anls"]["value"]) for name, part in types.items()} == {
        "form": (1, 1.0),
        "layout": (2, 0.5),
    }


def test_vqav2_keeps_the_questions_order_and_refuses_one_without_annotation(tmp_path: Path) -> None:
    assert made("vqav2", tmp_path).samples[0].meta["answer_type"] == "number"
    with pytest.raises(DataError, match="question 5 has no annotation"):
        made("vqav2", tmp_path, {"question_id": 5})


def test_vqav2s_join_drops_nothing_silently(tmp_path: Path) -> None:
    root = layouts.vqav2(tmp_path)
    other = {**layouts.VQAV2_QUESTION, "question_id": 7}
    questions = {"questions": [other, layouts.VQAV2_QUESTION]}
    layouts.write(root / "v2_OpenEnded_mscoco_val2014_questions.json", questions)
    both = [layouts.VQAV2_ANNOTATION, {**layouts.VQAV2_ANNOTATION, "question_id": 7}]
    layouts.write(root / "v2_mscoco_val2014_annotations.json", {"annotations": both})
    assert [sample.id for sample in vqav2.task(root, size="any").samples] == ["7", "900001000"]
    layouts.write(root / "v2_mscoco_val2014_annotations.json", {"annotations": [*both, both[0]]})
    with pytest.raises(DataError, match="annotations 3 has the id '900001000', which .*annotations 1 has"):
        vqav2.task(root, size="any")
    third = {**layouts.VQAV2_ANNOTATION, "question_id": 8}
    layouts.write(root / "v2_mscoco_val2014_annotations.json", {"annotations": [*both, third]})
    with pytest.raises(DataError, match=r"annotations 3: there is no question 8 \(1 such\)"):
        vqav2.task(root, size="any")


def test_aokvqas_answers_are_read_as_a_list_and_as_the_text_of_one(tmp_path: Path) -> None:
    listed = made("aokvqa", tmp_path / "a")
    text = made("aokvqa", tmp_path / "b", {"direct_answers": repr(layouts.AOKVQA["direct_answers"])})
    assert listed.samples[0].targets == text.samples[0].targets
    with pytest.raises(DataError, match="which is no list"):
        made("aokvqa", tmp_path / "c", {"direct_answers": "__import__('os')"})
    with pytest.raises(DataError, match="'12', which is no list"):
        made("aokvqa", tmp_path / "d", {"direct_answers": "12"})


def test_aokvqas_direct_answers_have_the_official_score_first_and_the_normalised_beside_it(
    tmp_path: Path,
) -> None:
    task = made("aokvqa", tmp_path / "data")
    result = engine.run(task, Scripted(lambda _: "Fruit."), out=tmp_path / "runs")
    scores = {key: entry["scores"]["accuracy"]["value"] for key, entry in result.summary["metrics"].items()}
    assert scores == {"aokvqa[official]": 0.0, "aokvqa[normalised]": 1.0}


def test_aokvqas_choice_is_matched_on_its_index(tmp_path: Path) -> None:
    options = {"choices": ["Fruit", "fruit", "sand", "tires"]}
    task = made("aokvqa", tmp_path / "data", options, answers="choice")
    for answer, right in (("B", 1.0), ("A", 0.0)):
        result = engine.run(task, Scripted(lambda _, a=answer: a, answer), out=tmp_path / "runs")
        assert result.summary["metrics"]["choice[strict]"]["scores"]["accuracy"]["value"] == right
    assert (task.protocol, made("aokvqa", tmp_path / "data").protocol) == ("llava, choice", "llava")


@pytest.mark.parametrize(
    ("knobs", "said"),
    [
        ({"protocol": "vlmevalkit"}, "say answers=choice"),
        ({"protocol": "vicrop", "answers": "choice"}, "say answers=direct"),
        ({"format": "vicrop", "answers": "choice"}, "say answers=direct"),
    ],
)
def test_aokvqa_asks_only_what_a_protocol_has(knobs: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=said):
        made("aokvqa", tmp_path, **knobs)


@pytest.mark.parametrize(
    ("name", "knobs", "key"),
    [
        ("aokvqa", {"answers": "choice"}, "What could be carried in the basket?"),
        ("aokvqa", {"answers": "choice", "protocol": "vlmevalkit"}, "What could be carried in the basket?"),
        ("vstar", {}, "What is the color of the mug?"),
        ("vstar", {"protocol": "vicrop"}, "What is the color of the mug?"),
        ("vstar", {"protocol": "vlmevalkit"}, "What is the color of the mug?"),
    ],
)
def test_options_are_part_of_the_question_and_methods_are_told_the_question_without_them(
    name: str, knobs: dict[str, Any], key: str, tmp_path: Path
) -> None:
    task = made(name, tmp_path, **knobs)
    request = task.request(task.samples[0])
    assert request.hints.short_question == key
    options = task.samples[0].meta["options"]
    assert isinstance(options, list)
    assert all(option in request.question and option not in request.instruction for option in options)


def test_difficult_questions_are_left_out_of_the_official_score_only(tmp_path: Path) -> None:
    for protocol, excluded in (("llava", 1), ("vicrop", 0)):
        task = made("aokvqa", tmp_path / protocol, {"difficult_direct_answer": True}, protocol=protocol)
        result = engine.run(task, Scripted(lambda _: "fruit"), out=tmp_path / "runs")
        for scores in result.summary["metrics"].values():
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


def hub_folder(root: Path, split: str, *rows: dict[str, Any]) -> str:
    return layouts.hub(root / "hub", {"default": (split, rows)})


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.mark.usefixtures("offline")
def test_other_copies_on_the_hub_load_by_their_own_columns(tmp_path: Path) -> None:
    image = layouts.jpeg()
    same = hub_folder(tmp_path / "a", "validation", {**layouts.DOCVQA, "image": image})
    assert docvqa.task(hf_id=same, size="any").samples[0].id == "70001"  # HuggingFaceM4/DocumentVQA

    row = {"question": "Where?", "choices": ["left", "right"], "answer": 1, "category": "relative_position"}
    counted = hub_folder(tmp_path / "b", "test", {**row, "image": image})
    (sample,) = vstar.task(hf_id=counted, size="any").samples  # ohjoonhee/vstar_bench
    assert (sample.id, sample.targets, sample.meta["options"]) == ("0", ("B",), ["left", "right"])
    assert sample.meta["text"] == f"Where?\n(A) left\n(B) right\n{LETTER}"

    named = hub_folder(
        tmp_path / "c", "test", layouts.VSTAR, {**layouts.VSTAR, "question_id": 1, "image": "../s"}
    )
    layouts.picture(Path(named) / "direct_attributes" / "sa_1.jpg")
    inside, outside = vstar.task(hf_id=named, size="any").samples  # craigwu/vstar_bench
    assert inside.images[0].open().size == (32, 24)
    with pytest.raises(PictureError, match="lies outside its folder"):
        outside.images[0].open()

    plain = hub_folder(tmp_path / "d", "validation", {**layouts.TEXTVQA, "image": image})
    assert textvqa.task(hf_id=plain, size="any").samples[0].targets  # facebook/textvqa
    with pytest.raises(DataError, match="row 0 has no ocr_tokens"):
        textvqa.task(hf_id=plain, ocr="rosetta", size="any")


@pytest.mark.usefixtures("offline")
def test_a_tables_bad_pictures_fail_alone_and_none_names_a_file(tmp_path: Path) -> None:
    layouts.picture(tmp_path / "secret.jpg")
    cells = [
        {"bytes": layouts.jpeg(), "path": None},
        None,
        {"bytes": layouts.jpeg(size=(640, 480))[:-2000], "path": None},
        {"bytes": None, "path": str(tmp_path / "secret.jpg")},
        {"bytes": layouts.gigapixel(), "path": None},
    ]
    rows = [{**layouts.TEXTVQA, "question_id": k, "image": cell} for k, cell in enumerate(cells)]
    task = textvqa.task(hf_id=hub_folder(tmp_path, "validation", *rows), size="any")
    model = Scripted(lambda request: (request.images[0].open(), "acme")[1])
    result = engine.run(task, model, out=tmp_path / "runs")
    failed = {r.sample_id: r.failure.kind for r in read_records(result.path) if r.failure is not None}
    assert failed == {
        "1": "missing_picture",
        "2": "damaged_picture",
        "3": "missing_picture",
        "4": "oversized_picture",
    }
    assert result.summary["scored"] == 1


@pytest.mark.usefixtures("offline")
def test_folders_of_one_name_and_a_changed_folder_are_not_taken_for_another(tmp_path: Path) -> None:
    for place in ("a", "b"):
        row = {**layouts.POPE_HUB, "question_id": place, "image": layouts.jpeg()}
        folder = hub_folder(tmp_path / place, "test", row)
        assert pope.task(hf_id=folder, categories=("random",), size="any").samples[0].id == f"random/{place}"
    changed = {**layouts.POPE_HUB, "question_id": "c", "image": layouts.jpeg()}
    folder = hub_folder(tmp_path / "a", "test", changed)
    assert pope.task(hf_id=folder, categories=("random",), size="any").samples[0].id == "random/c"


@pytest.mark.usefixtures("offline")
def test_a_damaged_table_is_named(tmp_path: Path) -> None:
    folder = hub_folder(tmp_path, "test", {**layouts.POPE_HUB, "image": layouts.jpeg()})
    (table,) = Path(folder).rglob("*.parquet")
    table.write_bytes(table.read_bytes()[:-40])
    with pytest.raises(DataError, match=f"the hub cannot be read .{folder}: "):
        pope.task(hf_id=folder, categories=("random",), size="any")


READ = """
import importlib, json, sys
from harness.errors import DataError, PictureError
try:
    task = importlib.import_module(f"tasks.{sys.argv[1]}").task(**json.loads(sys.argv[2]), size="any")
    samples = [sample for sample in task.samples if sample.images[0].open().size == (32, 24)]
    print(json.dumps([[sample.id for sample in samples], task.fingerprint]))
except (DataError, PictureError) as error:
    print(json.dumps(str(error)))
"""


def read(home: Path, url: str | None, task: str, **knobs: Any) -> Any:
    """What a process of its own reads from the hub at `url`, or offline; the sentence that refuses it."""
    environment = {"HF_HOME": str(home), "HF_ENDPOINT": url or "", "HF_HUB_OFFLINE": "0" if url else "1"}
    command = [sys.executable, "-c", READ, task, json.dumps(knobs)]
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, check=True, text=True
    )
    return json.loads(done.stdout)


def test_the_hubs_commit_is_the_fingerprint_and_its_cache_serves_offline(tmp_path: Path) -> None:
    folder = Path(hub_folder(tmp_path, "test", {**layouts.POPE_HUB, "image": layouts.jpeg()}))
    home, knobs = tmp_path / "home", {"categories": ["random"]}
    with layouts.serving(folder, "lmms-lab-encoder/POPE") as url:  # lmms-lab/POPE is not there: the next is
        found = read(home, url, "pope", **knobs)
    known = digest(["lmms-lab-encoder/POPE", None, "test", layouts.COMMIT])
    assert found == [["random/1"], known]
    assert read(home, None, "pope", **knobs, revision=layouts.COMMIT) == found
    refused = read(home, None, "pope", **knobs, revision="1" * 40)
    assert f"commit {'1' * 40} is not in the hub's cache" in refused


def test_pictures_that_are_files_of_a_repository_are_fetched_when_they_are_opened(tmp_path: Path) -> None:
    folder = Path(hub_folder(tmp_path, "test", layouts.VSTAR))
    with layouts.serving(folder, "craigwu/vstar_bench") as url:
        said = read(tmp_path / "home", url, "vstar", hf_id="craigwu/vstar_bench")
        assert said.startswith("craigwu/vstar_bench/direct_attributes/sa_1.jpg cannot be fetched: ")
    layouts.picture(folder / "direct_attributes" / "sa_1.jpg")
    with layouts.serving(folder, "craigwu/vstar_bench") as url:
        assert read(tmp_path / "home", url, "vstar", hf_id="craigwu/vstar_bench")[0] == ["0"]


def test_a_hub_that_cannot_be_reached_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="Give root=DIR with the official files"):
        _hub.load(("lmms-lab/textvqa",), None, "validation")


# ---------------------------------------------------------------- what can be wrong


def test_each_bad_picture_fails_alone(tmp_path: Path) -> None:
    names = ["good", "none", "short", "../../secret", "huge"]
    rows = [{**layouts.TEXTVQA, "question_id": k, "image_id": name} for k, name in enumerate(names)]
    layouts.textvqa(tmp_path)
    layouts.write(tmp_path / "TextVQA_0.5.1_val.json", {"data": rows})
    (tmp_path / "train_images" / "good.jpg").write_bytes(layouts.jpeg())
    (tmp_path / "train_images" / "short.jpg").write_bytes(layouts.jpeg(size=(640, 480))[:-2000])
    (tmp_path / "train_images" / "huge.jpg").write_bytes(layouts.gigapixel())
    layouts.picture(tmp_path.parent / "secret.jpg")
    task = textvqa.task(tmp_path, size="any")
    model = Scripted(lambda request: (request.images[0].open(), "acme")[1])
    result = engine.run(task, model, out=tmp_path / "runs")
    kinds = ("damaged_picture", "missing_picture", "oversized_picture", "refused_picture")
    assert result.summary["failures"] == dict.fromkeys(kinds, 1)
    assert result.summary["scored"] == 1


def test_an_id_that_comes_twice_is_refused_with_both_places(tmp_path: Path) -> None:
    layouts.textvqa(tmp_path)
    layouts.write(tmp_path / "TextVQA_0.5.1_val.json", {"data": [layouts.TEXTVQA] * 2})
    with pytest.raises(DataError, match="data 2 has the id '90001', which .*data 1 has already"):
        textvqa.task(tmp_path, size="any")


def test_a_key_of_gqas_object_that_comes_twice_is_refused(tmp_path: Path) -> None:
    layouts.gqa(tmp_path)
    path = tmp_path / "testdev_balanced_questions.json"
    path.write_text(f'{{"0017": {json.dumps(layouts.GQA)}, "0017": {json.dumps(layouts.GQA)}}}')
    with pytest.raises(DataError, match="the key '0017' comes twice"):
        gqa.task(tmp_path, size="any")


MISSING = [
    ("textvqa", {"answers": None}, "data 1 has no answers"),
    ("textvqa", {"answers": []}, "data 1 has no answers"),
    ("docvqa", {"answers": []}, "data 1 has no answers"),
    ("gqa", {"answer": None}, "00126851 has no answer"),
    ("aokvqa", {"direct_answers": []}, "entry 1 has no direct_answers"),
    ("aokvqa", {"direct_answers": "[]"}, "entry 1 has no direct_answers"),
    ("aokvqa", {"correct_choice_idx": None}, "entry 1 has no correct_choice_idx"),
    ("aokvqa", {"correct_choice_idx": 4}, "correct_choice_idx is 4; there are 4 choices"),
    ("aokvqa", {"image_id": "x"}, "image_id is 'x'; it must be a whole number"),
    ("vqav2", {"answers": []}, "questions 1 has no answers"),
    ("pope", {"label": None}, "line 1 has no label"),
]


@pytest.mark.parametrize(("name", "changes", "said"), MISSING)
def test_what_a_row_lacks_is_named_with_its_place(
    name: str, changes: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=said):
        made(name, tmp_path, changes)


def test_an_annotation_that_is_no_json_is_named(tmp_path: Path) -> None:
    layouts.textvqa(tmp_path)
    (tmp_path / "TextVQA_0.5.1_val.json").write_text("{'data': ")
    with pytest.raises(DataError, match=r"TextVQA_0\.5\.1_val\.json is not JSON"):
        textvqa.task(tmp_path)


@pytest.mark.parametrize("module", [textvqa, docvqa, gqa, aokvqa, vqav2, vstar, pope])
def test_every_task_says_where_its_files_come_from(module: Any) -> None:
    source: Source = module.SOURCE
    assert source.title and source.licence and source.layout and source.hub
    assert source.files or source.form
    assert all(file.url.startswith("http") and not Path(file.name).is_absolute() for file in source.files)


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


def test_a_random_subset_is_drawn_from_whatever_is_there(tmp_path: Path) -> None:
    layouts.textvqa(tmp_path)
    rows = [{**layouts.TEXTVQA, "question_id": k} for k in range(20)]
    layouts.write(tmp_path / "TextVQA_0.5.1_val.json", {"data": rows})
    task = resolve.make_task(f"textvqa:root={tmp_path},subset=random:5@seed=42")
    assert [int(sample.id) for sample in task.samples] == list(subset_indices("random:5@seed=42", 20))
    with pytest.raises(DataError, match="20 samples; 5,000 are expected"):
        textvqa.task(tmp_path)
    with pytest.raises(SpecError, match="no knob 'subsets'"):
        resolve.make_task(f"textvqa:root={tmp_path},subsets=5")


def test_sparc500_is_the_draw_of_seed_42() -> None:
    assert list(subset_indices("sparc500", 14847))[:3] == [10476, 1824, 409]


@pytest.mark.parametrize("subset", ["first:5", "random:5", "random:9@seed=1", "random:0@seed=1"])
def test_a_subset_that_cannot_be_drawn_is_refused(subset: str) -> None:
    with pytest.raises(DataError, match="subset="):
        subset_indices(subset, 8)
