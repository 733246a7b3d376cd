"""The answer cache: nothing that arrived is asked again, and nothing wrong is ever kept."""

import sqlite3
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness.cache import Answers, Cached
from harness.errors import StoreError
from harness.pictures import File, Memory, Picture
from harness.types import (
    Capability,
    Decoding,
    Hints,
    ImportanceMap,
    Pace,
    ReadMap,
    Request,
    Response,
    Usage,
)
from tests.test_pictures import png


@dataclass
class Counting:
    """A model that counts what it is asked; a request that says "fail" fails."""

    name: str = "counting"
    asked: list[Request] = field(default_factory=list)
    offers = frozenset({Capability.ATTENTION})
    pace = Pace()

    def describe(self) -> dict[str, Any]:
        return {"adapter": "test", "model": self.name}

    def generate(self, requests: Sequence[Request]) -> list[Response]:
        self.asked += requests
        return [self._one(request) for request in requests]

    def _one(self, request: Request) -> Response:
        if request.question == "fail":
            return Response.failed("timeout", "too slow", retry=True)
        values = np.arange(6, dtype=np.float32).reshape(2, 3) / 7
        maps = tuple(ImportanceMap(values, (0, 0, 8, 6)) for _ in request.probes)
        usage = Usage(calls=1, tokens_in=3, seconds=0.25, dollars=0.5)
        return Response(f"about {request.question}", usage=usage, maps=maps, option_nll=((1.5, 2),))


@pytest.fixture
def answers(tmp_path: Path) -> Answers:
    return Answers(tmp_path / "cache.sqlite")


def test_an_answer_is_asked_for_once_and_comes_back_whole(answers: Answers) -> None:
    model = Counting()
    request = Request(question="a", probes=(ReadMap(1),))
    (first,) = Cached(model, answers).generate([request])
    (second,) = Cached(model, answers).generate([request])
    assert len(model.asked) == 1
    assert np.array_equal(first.maps[0].values, second.maps[0].values)
    assert second.maps[0].values.dtype == np.float32
    assert replace(first, maps=()) == replace(second, maps=())


def test_identical_requests_of_one_list_are_sent_once_and_order_is_kept(answers: Answers) -> None:
    model = Counting()
    requests = [Request(question=word) for word in "abacab"]
    texts = [response.text for response in Cached(model, answers).generate(requests)]
    assert texts == [f"about {word}" for word in "abacab"]
    assert [request.question for request in model.asked] == ["a", "b", "c"]


def test_a_failure_is_never_kept(answers: Answers) -> None:
    model = Counting()
    for _ in range(2):
        (response,) = Cached(model, answers).generate([Request(question="fail")])
        assert response.failure is not None
    assert len(model.asked) == 2
    assert answers.size()[0] == 0


ONE = Picture(Memory(png(), "one"))
OTHER = Picture(Memory(png(color=(0, 0, 0)), "other"))
BASE = Request(images=(ONE,), question="q")


@pytest.mark.parametrize(
    "other",
    [
        replace(BASE, images=(OTHER,)),
        replace(BASE, images=(ONE.crop((0, 0, 4, 4)),)),
        replace(BASE, images=()),
        replace(BASE, question="Q"),
        replace(BASE, instruction="!"),
        replace(BASE, system="s"),
        replace(BASE, decoding=Decoding(max_tokens=1)),
        replace(BASE, decoding=Decoding(temperature=0.5)),
        replace(BASE, decoding=Decoding(stop=("x",))),
        replace(BASE, options=("yes", "no")),
        replace(BASE, probes=(ReadMap(1),)),
        replace(BASE, probes=(ReadMap(2),)),
        replace(BASE, probes=(ReadMap(1, kind="gradient"),)),
    ],
)
def test_whatever_a_model_can_see_is_part_of_the_key(other: Request) -> None:
    assert other.digest() != BASE.digest()


def test_the_seed_counts_only_where_something_is_sampled() -> None:
    assert replace(BASE, decoding=Decoding(seed=1)).digest() == BASE.digest()
    warm = Decoding(temperature=1.0)
    assert replace(BASE, decoding=replace(warm, seed=1)).digest() != replace(BASE, decoding=warm).digest()


def test_hints_are_for_methods_and_no_part_of_the_key() -> None:
    assert replace(BASE, hints=Hints("short", (0, 0, 1, 1))).digest() == BASE.digest()


def test_equal_pixels_from_elsewhere_are_the_same_request(tmp_path: Path) -> None:
    (tmp_path / "copy.png").write_bytes(png())
    assert replace(BASE, images=(Picture(File(tmp_path / "copy.png")),)).digest() == BASE.digest()


def test_another_model_never_gets_its_answers(answers: Answers) -> None:
    one, other = Counting("one"), Counting("other")
    Cached(one, answers).generate([BASE])
    Cached(other, answers).generate([BASE])
    assert len(other.asked) == 1


def test_a_request_with_an_unreadable_picture_goes_to_the_model(answers: Answers, tmp_path: Path) -> None:
    model = Counting()
    broken = replace(BASE, images=(Picture(File(tmp_path / "none.png")),))
    Cached(model, answers).generate([broken, BASE])
    assert len(model.asked) == 2
    assert answers.size()[0] == 1


def test_threads_share_the_file(answers: Answers) -> None:
    cached = Cached(Counting(), answers)
    requests = [Request(question=str(n)) for n in range(50)]
    threads = [threading.Thread(target=cached.generate, args=(requests,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers.size()[0] == 50


def test_a_damaged_file_is_named_with_the_remedy(tmp_path: Path) -> None:
    path = tmp_path / "cache.sqlite"
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(StoreError, match=r"cache\.sqlite cannot be opened.*--no-cache"):
        Answers(path)


def test_clearing_forgets_everything(answers: Answers) -> None:
    Cached(Counting(), answers).generate([BASE])
    answers.clear()
    assert answers.size()[0] == 0


def test_answers_are_committed_one_by_one(answers: Answers) -> None:
    Cached(Counting(), answers).generate([BASE])
    other = sqlite3.connect(answers.path)
    assert other.execute("SELECT COUNT(*) FROM responses").fetchone() == (1,)
    other.close()
