"""The official fake, and answers that were made elsewhere."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from adapters import replay, scripted
from adapters.scripted import Scripted
from harness.errors import ModelError
from harness.events import Counter, counting
from harness.pictures import File, Memory, Picture
from harness.types import Capability, Request, Response, Usage


def _about(name: str, question: str = "What?", instruction: str = "") -> Request:
    return Request((Picture(Memory(b"", name)),), question, instruction)


# ---------------------------------------------------------------- scripted


def test_a_function_answers_with_texts_or_whole_responses() -> None:
    model = Scripted(lambda r: r.question if r.question else Response.failed("odd", "no question"))
    text, failed = model.generate([Request(question="hello"), Request()])
    assert text.text == "hello"
    assert failed.failure is not None


def test_from_the_command_line_it_gives_one_answer_to_everything() -> None:
    model = scripted.model("yes")
    assert [response.text for response in model.generate([Request(), Request()])] == ["yes", "yes"]
    assert model.describe() == {"adapter": "scripted", "model": "yes"}
    assert model.pace.free


def test_a_fake_offers_what_a_test_says() -> None:
    assert Scripted(str, offers=frozenset({Capability.ATTENTION})).offers == {"attention"}


def test_a_scripted_answer_is_counted() -> None:
    requests = [Request(question=str(number)) for number in range(100)]
    with counting(Counter()) as counter:
        scripted.model("yes").generate(requests)
    assert counter.total.calls == 100


# ---------------------------------------------------------------- replay


def _file(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (
            "a.jsonl",
            '{"image_id": 247929, "caption": "a bathroom"}\n\n{"image_id": 1, "caption": "b\u2028c"}\n',
        ),
        ("a.json", '[{"image_id": "000000247929", "caption": "a bathroom"}]'),
        ("a.csv", "file_name,caption\nimages/000000247929.jpg,a bathroom\n"),
        ("a.tsv", "image\tcaption\nCOCO_val2014_000000247929.jpg\ta bathroom\n"),
        ("b.json", '{"247929": "a bathroom", "3": "a kitchen"}'),
    ],
)
def test_a_picture_is_found_by_number_name_or_path(tmp_path: Path, name: str, content: str) -> None:
    model = replay.model(_file(tmp_path, name, content))
    (response,) = model.generate([_about("000000247929.jpg")])
    assert response.text == "a bathroom"
    assert response.usage == Usage(calls=1, images=1, dollars=None)


def test_the_question_tells_the_rows_of_a_picture_apart(tmp_path: Path) -> None:
    rows = "image,question,answer\na.png,Is it red?,yes\na.png,Is it blue?,no\n"
    model = replay.model(_file(tmp_path, "a.csv", rows))
    asked = [
        _about("a.png", "Is it blue?"),
        _about("a.png", "Is it", "  red?"),
        _about("a.png", "Is it green?"),
        _about("b.png", "Is it red?"),
    ]
    blue, red, green, other = model.generate(asked)
    assert (blue.text, red.text) == ("no", "yes")
    assert green.failure is not None
    assert green.failure.kind == "not_in_file"
    assert "'Is it green?'" in green.failure.message
    assert other.failure is not None
    assert "image = b.png" in other.failure.message


def test_a_cropped_picture_is_still_the_same_file(tmp_path: Path) -> None:
    model = replay.model(_file(tmp_path, "a.json", '{"7": "seven"}'))
    crop = Picture(File(tmp_path / "007.jpg")).crop((0, 0, 2, 2))
    assert model.generate([Request((crop,))])[0].text == "seven"


def test_rows_that_disagree_without_a_question_are_a_failure_and_rows_that_agree_are_not(
    tmp_path: Path,
) -> None:
    rows = "image,answer\na.png,yes\na.png,no\nb.png,yes\nb.png,yes\n"
    model = replay.model(_file(tmp_path, "a.csv", rows))
    unclear, clear = model.generate([_about("a.png"), _about("b.png")])
    assert unclear.failure is not None
    assert "nothing tells them apart" in unclear.failure.message
    assert clear.text == "yes"


def test_an_answer_that_is_null_is_a_failure_and_an_empty_one_is_an_answer(tmp_path: Path) -> None:
    rows = '[{"image": "a.png", "answer": null}, {"image": "b.png", "answer": ""}]'
    null, empty = replay.model(_file(tmp_path, "a.json", rows)).generate([_about("a.png"), _about("b.png")])
    assert null.failure is not None
    assert (empty.failure, empty.text) == (None, "")


def test_a_file_without_pictures_goes_by_its_questions(tmp_path: Path) -> None:
    model = replay.model(_file(tmp_path, "a.csv", "prompt,pred\nWhat?,this\n"))
    here, missing = model.generate([Request(question="What?"), Request(question="Who?")])
    assert here.text == "this"
    assert missing.failure is not None


@pytest.mark.parametrize(
    ("name", "content", "knobs", "says"),
    [
        (
            "a.csv",
            "image,label\na,b\n",
            {},
            r"none of the columns prediction, .* the columns are image, label",
        ),
        ("a.csv", "image,label\na,b\n", {"text": "labels"}, "no column 'labels'.*image, label"),
        ("a.csv", "name,answer\na,b\n", {}, "name one with id="),
        ("a.csv", "image,answer,text\na,b,c\n", {}, "answer and text; say which"),
        ("a.jsonl", '{"image": 1}\n{oops\n', {}, "line 2"),
        ("a.json", "[]", {}, "holds no rows"),
        ("a.txt", "hello", {}, "none of .json"),
    ],
)
def test_a_file_that_cannot_be_used_says_what_it_holds(
    tmp_path: Path, name: str, content: str, knobs: dict[str, str], says: str
) -> None:
    with pytest.raises(ModelError, match=says):
        replay.model(_file(tmp_path, name, content), **knobs)


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ModelError, match=r"nowhere\.csv cannot be read: No such file"):
        replay.model("nowhere.csv")


def test_its_identity_is_the_files_content(tmp_path: Path) -> None:
    one = replay.model(_file(tmp_path, "a.json", '{"7": "seven"}')).describe()
    two = replay.model(_file(tmp_path, "a.json", '{"7": "eight"}')).describe()
    assert one["model"] == two["model"] == "a.json"
    assert one["sha256"] != two["sha256"]
    assert json.loads(json.dumps(one)) == one
