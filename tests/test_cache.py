"""The answer cache: nothing that arrived is asked again, and nothing wrong is ever kept."""

import contextvars
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness import events
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


# ---------------------------------------------------------------- answers on a wire


@dataclass
class Wired:
    """A model whose answers arrive one by one, `between` being called after each."""

    between: Callable[[str], None] = lambda _: None
    asked: list[str] = field(default_factory=list)
    offers = frozenset[Capability]()
    pace = Pace(in_flight=2)

    def describe(self) -> dict[str, Any]:
        return {"adapter": "test", "model": "wired"}

    def generate(self, requests: Sequence[Request]) -> list[Response]:
        responses = []
        for request in requests:
            self.asked.append(request.question)
            response = Response(f"about {request.question}")
            if request.question == "fail":
                response = Response.failed("timeout", "too slow", retry=True)
            events.arrived(request, response)
            responses.append(response)
            self.between(request.question)
        return responses


def words(text: str) -> list[Request]:
    return [Request(question=word) for word in text.split()]


def test_an_answer_is_kept_the_moment_it_arrives(answers: Answers) -> None:
    """A connection of its own sees each answer while the rest of the list is still on its way."""
    other = sqlite3.connect(answers.path)
    seen = []

    def look(_: str) -> None:
        seen.append(other.execute("SELECT COUNT(*) FROM responses").fetchone()[0])

    Cached(Wired(look), answers).generate(words("a b fail c"))
    other.close()
    assert seen == [1, 2, 2, 3]


def test_what_arrived_before_a_crash_is_not_asked_again(answers: Answers) -> None:
    def crash(word: str) -> None:
        if word == "b":
            raise RuntimeError("the wire broke")

    with pytest.raises(RuntimeError, match="the wire broke"):
        Cached(Wired(crash), answers).generate(words("a b c"))
    again = Wired()
    texts = [response.text for response in Cached(again, answers).generate(words("a b c"))]
    assert again.asked == ["c"] and texts == ["about a", "about b", "about c"]


def test_a_question_in_flight_is_waited_for_and_not_asked_again(answers: Answers) -> None:
    """The second thread, with another adapter of the same model, has its answer while the first goes on."""
    arrived, go_on = threading.Event(), threading.Event()

    def hold(word: str) -> None:
        if word == "a":
            arrived.set()
        if word == "b":
            assert go_on.wait(10)

    first, second = Wired(hold), Wired()
    with ThreadPoolExecutor(2) as pool:
        ahead = pool.submit(Cached(first, answers).generate, words("a b c"))
        assert arrived.wait(10)
        behind = pool.submit(Cached(second, answers).generate, words("d a"))
        assert [response.text for response in behind.result(10)] == ["about d", "about a"]
        assert not ahead.done(), "its own group was not waited for"
        go_on.set()
        assert len(ahead.result(10)) == 3
    assert second.asked == ["d"]


def test_whoever_waited_for_a_failure_asks_for_himself(answers: Answers) -> None:
    started, go_on = threading.Event(), threading.Event()

    class Broken(Wired):
        def generate(self, requests: Sequence[Request]) -> list[Response]:
            started.set()
            assert go_on.wait(10)
            return [Response.failed("timeout", "too slow", retry=True) for _ in requests]

    second = Wired()
    with ThreadPoolExecutor(2) as pool:
        ahead = pool.submit(Cached(Broken(), answers).generate, words("a"))
        assert started.wait(10)
        behind = pool.submit(Cached(second, answers).generate, words("a"))
        time.sleep(0.05)
        assert second.asked == []
        go_on.set()
        assert ahead.result(10)[0].failure is not None
        assert behind.result(10)[0].text == "about a"
    assert second.asked == ["a"]


def test_who_waits_for_another_hears_that_the_run_ends(answers: Answers) -> None:
    started, go_on, stop = threading.Event(), threading.Event(), threading.Event()

    def hold(_: str) -> None:
        started.set()
        assert go_on.wait(10)

    class Late(Wired):
        def generate(self, requests: Sequence[Request]) -> list[Response]:
            hold("")
            return super().generate(requests)

    with ThreadPoolExecutor(2) as pool, events.stoppable(stop):
        ahead = pool.submit(Cached(Late(), answers).generate, words("a"))
        assert started.wait(10)
        context = contextvars.copy_context()
        behind = pool.submit(context.run, Cached(Wired(), answers).generate, words("a"))
        stop.set()
        assert isinstance(behind.exception(2), KeyboardInterrupt)
        go_on.set()
        assert ahead.result(10)[0].text == "about a"


def test_many_threads_ask_each_question_once(answers: Answers) -> None:
    model = Wired(lambda _: time.sleep(0.0005))
    lists = [words(" ".join(str((k * step) % 40) for k in range(40))) for step in (1, 3, 7, 9, 11, 13)]
    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(Cached(model, answers).generate, lists))
    assert sorted(model.asked, key=int) == [str(k) for k in range(40)]
    for requests, responses in zip(lists, results, strict=True):
        assert [r.text for r in responses] == [f"about {request.question}" for request in requests]


# ---------------------------------------------------------------- journals


def test_a_journal_outlives_the_process_and_the_answers(answers: Answers) -> None:
    journal = answers.journal("openai")
    journal.put("batch/1", {"id": "batch_abc", "keys": ["x", "y"]})
    journal.put("batch/1", {"id": "batch_def"})
    journal.put("batch/2", None)
    answers.clear()
    answers.close()
    journal = Answers(answers.path).journal("openai")
    assert journal.keys() == ["batch/1", "batch/2"]
    assert journal.get("batch/1") == {"id": "batch_def"} and journal.get("batch/3") is None
    journal.delete("batch/1")
    journal.delete("never there")
    assert journal.keys() == ["batch/2"]


def test_journals_do_not_see_each_other(answers: Answers) -> None:
    answers.journal("one").put("k", 1)
    answers.journal("one_more").put("k", 2)
    assert answers.journal("one").get("k") == 1 and answers.journal("one").keys() == ["k"]
    assert answers.journal("two").keys() == []
