"""Tasks that read local files: what they load, how they ask, and what a fault in a file says."""

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
from PIL import Image

from adapters.scripted import Scripted
from harness import engine, resolve
from harness.errors import DataError, PictureError, SpecError
from harness.store import read_records
from harness.summary import metric_json
from harness.types import Request, Response, Task
from tasks import _source, coco_chair, pope, vqa_file
from tasks._source import DETAIL, LETTER, SHORT


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), (200, 10, 10)).save(buffer, "PNG")
    return buffer.getvalue()


def cut_jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 80).save(buffer, "JPEG")
    return buffer.getvalue()[:-900]


def lines(path: Path, rows: Sequence[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def asked(task: Task, position: int = 0) -> Request:
    return task.request(task.samples[position])


# ---------------------------------------------------------------- reading


def test_the_shared_words_are_byte_exact() -> None:
    assert SHORT == "Answer the question using a single word or phrase."
    assert LETTER == "Answer with the option's letter from the given choices directly."
    assert DETAIL == "Please describe this image in detail."


def test_json_lines_and_a_json_list_read_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('\ufeff{"a": "x\u2028y"}\n\n{"a": 2}\n')
    (tmp_path / "a.json").write_text('[{"a": "x\u2028y"},\n {"a": 2}]')
    one, other = _source.rows(tmp_path / "a.jsonl"), _source.rows(tmp_path / "a.json")
    assert [row.values for row in one] == [row.values for row in other] == [{"a": "x\u2028y"}, {"a": 2}]
    assert one[1].where.endswith("a.jsonl, line 3")
    assert other[1].where.endswith("a.json, entry 2")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "a.jsonl is empty"),
        (b"\n \n", "a.jsonl is empty"),
        (b"[]", "a.jsonl is empty"),
        (b'{"a": 1}\n{"a": \n', "a.jsonl, line 2 is not JSON: Expecting value"),
        (b'[{"a": 1},\n{"a" 2}]', "a.jsonl is not JSON: Expecting ':' delimiter (line 2, column 6)"),
        (b'{"a": 1}\n[1, 2]\n', "a.jsonl, line 2 is not an object in braces but [1, 2]"),
        (b'{"a": "\xff"}', "a.jsonl is not UTF-8: invalid start byte at byte 7"),
        (b'{"a": ' + b"[" * 100_000, "a.jsonl, line 1 is not JSON that can be read"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_line_and_fault(
    tmp_path: Path, content: bytes, said: str
) -> None:
    (tmp_path / "a.jsonl").write_bytes(content)
    with pytest.raises(DataError) as caught:
        _source.rows(tmp_path / "a.jsonl")
    assert said in str(caught.value)


def test_missing_and_unreadable_files_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.json does not exist"):
        _source.rows(tmp_path / "none.json")
    with pytest.raises(DataError, match="cannot be read: Is a directory"):
        _source.rows(tmp_path)
    with pytest.raises(DataError, match="none does not exist; it should hold images"):
        _source.check_folder(tmp_path / "none", "images")


def test_a_value_of_the_wrong_kind_is_named() -> None:
    row = _source.Row({"a": True, "b": {"c": 1}, "d": None, "e": 1.5}, "x.jsonl, line 4")
    with pytest.raises(DataError, match=r"x\.jsonl, line 4: a is true; it must be a text"):
        row.text("a")
    with pytest.raises(DataError, match=r"line 4: b is \{"):
        row.texts("b")
    with pytest.raises(DataError, match="line 4 has no d"):
        row.text("d")
    assert row.text("d", "e") == "1.5"


def test_the_fingerprint_of_one_file_is_its_sha256_and_of_several_depends_on_each(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    (tmp_path / "b").write_bytes(b"2")
    assert _source.fingerprint([tmp_path / "a"]) == hashlib.sha256(b"1").hexdigest()
    both = _source.fingerprint([tmp_path / "a", tmp_path / "b"])
    (tmp_path / "b").write_bytes(b"3")
    assert _source.fingerprint([tmp_path / "a", tmp_path / "b"]) != both


# ---------------------------------------------------------------- POPE


def pope_files(root: Path, number: int = 6, categories: Sequence[str] = get_args(pope.Category)) -> Path:
    for category in categories:
        lines(
            root / f"coco_pope_{category}.json",
            [
                {
                    "question_id": k + 1,
                    "image": f"COCO_val2014_{k // 6:012}.png",
                    "text": f" Is there a {category} thing in the image?",
                    "label": "yes" if k % 2 == 0 else "no",
                }
                for k in range(number)
            ],
        )
    (root / "val2014").mkdir(exist_ok=True)
    (root / "val2014" / f"COCO_val2014_{0:012}.png").write_bytes(png())
    return root


def test_pope_reads_the_official_files_in_their_order_with_unique_ids(tmp_path: Path) -> None:
    task = pope.task(pope_files(tmp_path), size="any")
    assert [sample.id for sample in task.samples[:2]] == ["random/1", "random/2"]
    assert [sample.id for sample in task.samples[6::6]] == ["popular/1", "adversarial/1"]
    first = task.samples[0]
    assert (first.targets, first.category) == (("yes",), "random")
    assert first.images[0].size == (8, 6)
    assert (task.name, task.version, task.primary) == ("pope", "unknown", "mean_f1")


@pytest.mark.parametrize(
    ("protocol", "text", "tokens", "variant", "primary", "kept"),
    [
        ("llava", " Is there a random thing in the image?\n" + SHORT, 128, "official", "mean_f1", "Yes"),
        ("lmms", "Is there a random thing in the image?\n" + SHORT, 128, "lmms", "f1", "Yes"),
        ("vicrop", " Is there a random thing in the image? " + SHORT, 20, "vicrop", "accuracy", " Yes\n"),
        ("vlmevalkit", " Is there a random thing in the image?", 2048, "vlmevalkit", "f1", "Yes"),
    ],
)
def test_popes_protocols_ask_and_score_as_their_code_bases_do(
    tmp_path: Path, protocol: Any, text: str, tokens: int, variant: str, primary: str, kept: str
) -> None:
    task = pope.task(pope_files(tmp_path), protocol=protocol, size="any")
    request = asked(task)
    assert request.text == text
    assert (request.decoding.max_tokens, request.decoding.temperature) == (tokens, 0)
    assert (task.metrics[0].variant, task.primary, task.protocol) == (variant, primary, protocol)
    assert task.postprocess(" Yes\n") == kept
    assert task.primary in task.metrics[0].higher_is_better


def test_popes_parser_can_be_another_than_the_protocols(tmp_path: Path) -> None:
    task = pope.task(pope_files(tmp_path), parser="robust", size="any")
    assert task.metrics[0].variant == "robust"


@pytest.mark.parametrize(("number", "right"), [(3000, True), (2910, True), (2909, False)])
def test_pope_knows_the_lengths_of_both_revisions(tmp_path: Path, number: int, right: bool) -> None:
    root = pope_files(tmp_path, number, ["random"])
    if right:
        assert len(pope.task(root, categories=("random",)).samples) == number
    else:
        with pytest.raises(DataError, match=r"has 2,909 samples; 3,000 or 2,910 are expected\. Say size=any"):
            pope.task(root, categories=("random",))


def test_pope_misses_a_category_unless_others_are_asked_for(tmp_path: Path) -> None:
    root = pope_files(tmp_path, categories=["random", "popular"])
    with pytest.raises(DataError, match=r"adversarial\.json does not exist.*categories=random\+popular"):
        pope.task(root, size="any")
    assert len(pope.task(root, categories=("popular",), size="any").samples) == 6


def test_pope_finds_its_images_in_the_usual_places_or_where_it_is_told(tmp_path: Path) -> None:
    root = pope_files(tmp_path / "pope")
    elsewhere = tmp_path / "coco"
    (root / "val2014").rename(elsewhere)
    with pytest.raises(PictureError, match="does not exist"):
        _ = pope.task(root, size="any").samples[0].images[0].size
    for place in ("images", "images/val2014", "val2014"):
        (root / place).parent.mkdir(exist_ok=True)
        elsewhere.rename(root / place)
        assert pope.task(root, size="any").samples[0].images[0].size == (8, 6)
        (root / place).rename(elsewhere)
    assert pope.task(root, images=elsewhere, size="any").samples[0].images[0].size == (8, 6)
    with pytest.raises(DataError, match="nowhere does not exist"):
        pope.task(root, images=tmp_path / "nowhere", size="any")


def test_pope_refuses_a_duplicate_id_and_a_strange_label(tmp_path: Path) -> None:
    row = {"question_id": 1, "image": "a.jpg", "text": "?", "label": "yes"}
    path = lines(tmp_path / "coco_pope_random.json", [row, row])
    with pytest.raises(DataError, match=r"line 2 has the id 'random/1', which .*line 1 has already"):
        pope.task(tmp_path, categories=("random",), size="any")
    lines(path, [{**row, "label": "Yes"}])
    with pytest.raises(DataError, match="line 1: the label is 'Yes'; it must be yes or no"):
        pope.task(tmp_path, categories=("random",), size="any")
    lines(path, [{"question_id": 1, "image": "a.jpg", "text": "?"}])
    with pytest.raises(DataError, match="line 1 has no label"):
        pope.task(tmp_path, categories=("random",), size="any")


# ---------------------------------------------------------------- CHAIR over a folder


def chair_folder(root: Path, **changes: Any) -> Path:
    row = {"image_id": 42, "file_name": "000042.png", "objects": ["dog", "sofa", "dog"], **changes}
    lines(root / "annotations.jsonl", [{k: v for k, v in row.items() if v is not None}])
    (root / "images").mkdir(exist_ok=True)
    (root / "images" / "000042.png").write_bytes(png())
    return root


def test_coco_chair_reads_a_folder_of_images_and_their_objects(tmp_path: Path) -> None:
    task = coco_chair.task(chair_folder(tmp_path), front_end="rules")
    sample = task.samples[0]
    assert (sample.id, sample.targets) == ("42", ("dog", "couch"))
    assert sample.images[0].size == (8, 6)
    assert asked(task).text == DETAIL
    assert asked(task).decoding.max_tokens == 512
    assert (task.protocol, task.primary, task.metrics[0].variant) == ("sparc", "CHAIRs", "rules")


@pytest.mark.parametrize("layout", ["annotations.json", "objects.jsonl"])
def test_coco_chair_detects_the_annotation_file_and_images_beside_it(tmp_path: Path, layout: str) -> None:
    chair_folder(tmp_path, image_id=None)
    (tmp_path / "images" / "000042.png").rename(tmp_path / "000042.png")
    (tmp_path / "images").rmdir()
    (tmp_path / "annotations.jsonl").rename(tmp_path / layout)
    sample = coco_chair.task(tmp_path, front_end="rules").samples[0]
    assert sample.id == "000042"
    assert sample.images[0].size == (8, 6)


def test_coco_chairs_lmms_protocol_allows_more_tokens(tmp_path: Path) -> None:
    request = asked(coco_chair.task(chair_folder(tmp_path), protocol="lmms", front_end="rules"))
    assert request.decoding.max_tokens == 2048
    assert request.decoding.stop == ()


def test_coco_chair_passes_front_end_and_vocabulary_to_its_metric(tmp_path: Path) -> None:
    root = chair_folder(tmp_path, objects=["red square"])
    task = coco_chair.task(root, front_end="rules", vocabulary="scenes")
    assert task.metrics[0].variant == "rules+scenes"
    assert task.samples[0].targets == ("red square",)


def test_an_image_may_show_none_of_the_objects(tmp_path: Path) -> None:
    assert coco_chair.task(chair_folder(tmp_path, objects=[]), front_end="rules").samples[0].targets == ()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"objects": None}, "line 1 has no list of objects"),
        ({"objects": "dog"}, "line 1 has no list of objects"),
        ({"objects": ["dog", "lamp"]}, "line 1: 'lamp' is no object that CHAIR counts"),
        ({"file_name": None}, "line 1 has no file_name or image"),
    ],
)
def test_coco_chair_names_the_line_and_the_fault(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        coco_chair.task(chair_folder(tmp_path, **changes), front_end="rules")


def test_coco_chair_says_what_a_folder_should_hold(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no annotations; it should hold images, and annotations\.jsonl"):
        coco_chair.task(tmp_path, front_end="rules")
    for name in ("a.jsonl", "b.jsonl"):
        lines(tmp_path / name, [{}])
    with pytest.raises(DataError, match=r"holds a\.jsonl, b\.jsonl: call the one with the objects"):
        coco_chair.task(tmp_path, front_end="rules")


# ---------------------------------------------------------------- a file of your own


def own_file(root: Path, *rows: dict[str, Any]) -> Path:
    (root / "pictures").mkdir(exist_ok=True)
    (root / "pictures" / "a.png").write_bytes(png())
    return lines(root / "mine.jsonl", rows)


STOP = {"image": "pictures/a.png", "question": "What is on the sign?", "answer": "Stop"}


def test_vqa_file_needs_only_an_image_a_question_and_an_answer(tmp_path: Path) -> None:
    task = vqa_file.task(own_file(tmp_path, STOP))
    sample = task.samples[0]
    assert (sample.id, sample.targets, sample.category) == ("1", ("Stop",), None)
    assert sample.images[0].size == (8, 6)
    assert asked(task).text == "What is on the sign?\n" + SHORT
    assert (task.name, task.primary, task.metrics[0].variant) == ("vqa_file-mine", "accuracy", "lmms")
    counts = task.metrics[0].measure([Response("stop.")], [sample])
    assert task.metrics[0].reduce(counts) == {"accuracy": 1.0}


def test_vqa_file_takes_several_images_answers_and_the_optional_fields(tmp_path: Path) -> None:
    row = {
        "id": "q7",
        "images": ["pictures/a.png", "pictures/a.png"],
        "question": "How many?",
        "answers": ["2", 3],
        "category": "count",
        "short_question": "number",
    }
    task = vqa_file.task(own_file(tmp_path, row), instruction=" Briefly.", max_tokens=7)
    sample, request = task.samples[0], asked(task)
    assert (sample.id, len(sample.images), sample.targets, sample.category) == ("q7", 2, ("2", "3"), "count")
    assert (request.text, request.decoding.max_tokens) == ("How many? Briefly.", 7)
    assert request.hints.short_question == "number"


def test_vqa_file_can_ask_without_an_image_and_about_images_elsewhere(tmp_path: Path) -> None:
    path = own_file(tmp_path, {"question": "2 + 2?", "answer": 4}, {**STOP, "image": "a.png"})
    task = vqa_file.task(path, images=tmp_path / "pictures")
    assert task.samples[0].images == ()
    assert task.samples[1].images[0].size == (8, 6)


def test_vqa_files_metric_is_a_spec_of_its_own(tmp_path: Path) -> None:
    path = own_file(tmp_path, {**STOP, "answers": ["stop"] * 10})
    task = resolve.make_task(f"vqa_file:{path},metric=(vqa:variant=official)")
    assert (task.metrics[0].name, task.metrics[0].variant) == ("vqa", "official")
    assert resolve.make_task(f"vqa_file:{path},metric=yesno").primary == "accuracy"
    with pytest.raises(SpecError, match="yesno"):
        resolve.make_task(f"vqa_file:{path},metric=yseno")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"question": "?"}, "line 2 has no answers or answer"),
        ({"answer": "x"}, "line 2 has no question"),
        ({"question": "?", "answer": "x", "id": "1"}, "line 2 has the id '1', which .*line 1 has already"),
        ({"question": "?", "answer": ["x", None]}, "line 2: answers is null; it must be a text"),
    ],
)
def test_vqa_file_names_the_line_and_the_fault(tmp_path: Path, row: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError, match=said):
        vqa_file.task(own_file(tmp_path, STOP, row))


# ---------------------------------------------------------------- pictures, through a run


def test_a_picture_that_is_missing_broken_or_out_of_bounds_fails_alone(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(png())
    root = tmp_path / "set"
    root.mkdir()
    names = ["pictures/a.png", "pictures/none.png", "../secret.png", "cut.jpg", "/etc/passwd", "a\0b", ""]
    path = own_file(root, *({**STOP, "image": name} for name in names))
    (root / "cut.jpg").write_bytes(cut_jpeg())

    def look(request: Request) -> str:
        request.images[0].open()
        return "stop"

    run = engine.run(vqa_file.task(path), Scripted(look), out=tmp_path / "runs")
    assert run.summary["metrics"]["exact[lmms]"]["scores"]["accuracy"]["value"] == 1.0
    assert run.summary["metrics"]["exact[lmms]"]["n"] == 1
    failed = {record.sample_id: record.failure for record in read_records(run.path) if record.failure}
    assert {name: failure.kind for name, failure in failed.items()} == {
        "2": "missing_picture",
        "3": "refused_picture",
        "4": "damaged_picture",
        "5": "refused_picture",
        "6": "refused_picture",
        "7": "refused_picture",
    }


def test_metrics_come_back_from_a_runs_header_with_their_knobs(tmp_path: Path) -> None:
    made: list[Callable[[], Task]] = [
        lambda: pope.task(pope_files(tmp_path), parser="robust", size="any"),
        lambda: coco_chair.task(chair_folder(tmp_path / "chair"), front_end="rules", vocabulary="coco"),
        lambda: vqa_file.task(own_file(tmp_path / "chair", STOP)),
    ]
    for make in made:
        metric = make().metrics[0]
        stored = json.loads(json.dumps(metric_json(metric)))
        assert resolve.metric_from(stored) == metric
