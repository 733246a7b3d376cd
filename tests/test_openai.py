"""The openai adapter, through the official client, against a server on loopback that has every fault."""

import base64
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from adapters import openai
from adapters._images import Encoded
from harness import engine, events, resolve
from harness.cache import Answers
from harness.errors import BudgetSpent, CapabilityError, ModelError, SpecError
from harness.pictures import File, Memory, Picture
from harness.types import Capability, Decoding, Model, ReadMap, Request, Response
from tests.provider import Provider, Reply, in_turn

KEY = "sk-planted-5e1fd00d"


@pytest.fixture(autouse=True)
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider() as provider:
        yield provider


def made(provider: Provider, name: str = "gpt-4o", **knobs: Any) -> Model:
    return openai.model(name, base_url=provider.url, **knobs)


def picture(colour: str, kind: str = "PNG") -> Picture:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 24), colour).save(buffer, kind)
    return Picture(Memory(buffer.getvalue(), f"{colour}.{kind.lower()}"))


def uri(one: Picture, kind: str = "image/png") -> str:
    assert isinstance(one.source, Memory)
    return f"data:{kind};base64,{base64.b64encode(one.source.data).decode()}"


def ask(model: Model, *questions: str) -> list[Response]:
    return model.generate([Request(question=question) for question in questions])


# ---------------------------------------------------------------- what is sent


def test_a_plain_request_is_sent_word_for_word(provider: Provider) -> None:
    request = Request(
        question="Is there a cat?",
        instruction="\nAnswer yes or no.",
        system="Be brief.",
        decoding=Decoding(max_tokens=16, temperature=0.7, top_p=0.9, seed=3, stop=("\n", "###")),
    )
    made(provider).generate([request])
    assert provider.bodies == [
        {
            "model": "gpt-4o",
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Is there a cat?\nAnswer yes or no."},
            ],
            "max_tokens": 16,
            "temperature": 0.7,
            "top_p": 0.9,
            "seed": 3,
            "stop": ["\n", "###"],
        }
    ]
    assert provider.seen[0].headers["Authorization"] == f"Bearer {KEY}"


def test_pictures_go_before_the_text_in_order_with_their_own_bytes(provider: Provider) -> None:
    red, blue, green = picture("red"), picture("blue", "JPEG"), picture("green")
    requests = [
        Request(question="none?"),
        Request(images=(red,), question="one?"),
        Request(images=(red, blue, green), question="three?"),
    ]
    made(provider, detail="high").generate(requests)
    by_text = {seen.text: seen.body["messages"][0]["content"] for seen in provider.seen}

    def part(url: str) -> dict[str, Any]:
        return {"type": "image_url", "image_url": {"url": url, "detail": "high"}}

    assert by_text["none?"] == "none?"
    assert by_text["one?"] == [part(uri(red)), {"type": "text", "text": "one?"}]
    assert by_text["three?"] == [
        part(uri(red)),
        part(uri(blue, "image/jpeg")),
        part(uri(green)),
        {"type": "text", "text": "three?"},
    ]


def test_a_cropped_picture_is_encoded_anew_and_the_trace_says_so(provider: Provider) -> None:
    (response,) = made(provider).generate(
        [Request(images=(picture("red").crop((0, 0, 8, 6)),), question="?")]
    )
    sent = provider.bodies[0]["messages"][0]["content"][0]["image_url"]
    assert set(sent) == {"url"}  # no detail unless asked for
    data = base64.b64decode(sent["url"].removeprefix("data:image/png;base64,"))
    assert Image.open(io.BytesIO(data)).size == (8, 6)
    assert response.trace["images"] == ["cropped: sent as PNG, 8 x 6"]
    assert response.usage.images == 1


@pytest.mark.parametrize("name", ["o3", "gpt-5-mini", "gpt-5.2", "ft:o4-mini-2025-04-16:us"])
def test_a_reasoning_model_gets_its_own_parameters(provider: Provider, name: str) -> None:
    decoding = Decoding(max_tokens=16, temperature=0.7, top_p=0.9, seed=3, stop=(".",))
    provider.answer = lambda _: "yes. no."
    (response,) = made(provider, name, effort="low", reasoning_tokens=1000).generate(
        [Request(question="?", decoding=decoding)]
    )
    assert provider.bodies[0] == {
        "model": name,
        "messages": [{"role": "user", "content": "?"}],
        "max_completion_tokens": 1016,
        "reasoning_effort": "low",
    }
    assert response.text == "yes"  # it takes no stop texts, so the answer is cut here


def test_reasoning_gets_room_by_itself_and_none_gives_sampling_back() -> None:
    def body(name: str, **knobs: Any) -> dict[str, Any]:
        model = openai.model(name, **knobs)
        assert isinstance(model, openai.OpenAI)
        return openai.body(Request(question="?", decoding=Decoding(max_tokens=16)), (), model.parameters)

    assert body("gpt-5-mini")["max_completion_tokens"] == 16 + openai.THINKING
    without = body("gpt-5.2", effort="none")
    assert (without["max_completion_tokens"], without["temperature"]) == (16, 0.0)
    assert body("Qwen/Qwen3-VL-8B-Thinking", reasoning_tokens=500)["max_tokens"] == 516


def test_seeds_make_distinct_requests_only_where_something_is_drawn(provider: Provider) -> None:
    model = made(provider, concurrency=1)
    for temperature in (0.0, 1.0):
        decodings = [Decoding(seed=seed, temperature=temperature) for seed in range(3)]
        model.generate([Request(question="?", decoding=decoding) for decoding in decodings])
    assert [body.get("seed") for body in provider.bodies] == [None] * 3 + [0, 1, 2]


# ---------------------------------------------------------------- what comes back


def test_an_answer_keeps_its_words_tokens_and_price(provider: Provider) -> None:
    usage = {
        "prompt_tokens": 1000,
        "completion_tokens": 500,
        "prompt_tokens_details": {"cached_tokens": 200},
        "completion_tokens_details": {"reasoning_tokens": 300},
    }
    provider.answer = lambda _: Reply("a red car", finish_reason="length", usage=usage)
    with events.counting(events.Counter()) as counter:
        (response,) = ask(made(provider, price="2/10"), "?")
    assert (response.text, response.finish_reason) == ("a red car", "length")
    assert (response.usage.tokens_in, response.usage.tokens_out) == (1000, 500)
    assert response.usage.dollars == pytest.approx(0.007)
    assert response.usage.seconds > 0
    assert counter.total == response.usage
    assert response.trace == {"model": "gpt-4o", "cached_tokens": 200, "reasoning_tokens": 300}


def test_a_price_that_nobody_knows_is_unknown_not_zero(provider: Provider) -> None:
    (response,) = ask(made(provider, "some/model"), "?")
    assert response.usage.dollars is None


@pytest.mark.parametrize(
    ("reply", "text", "reason"),
    [
        (Reply(extra={"message": {"content": None, "refusal": "I can't."}}), "I can't.", "refusal"),
        (Reply("half", finish_reason="content_filter"), "half", "content_filter"),
        (Reply("stopped by a filter", status=400, code="content_filter"), "", "content_filter"),
        (Reply(extra={"message": {"content": None}}), "", "stop"),
    ],
)
def test_refusals_and_filters_are_answers_by_their_name(
    provider: Provider, reply: Reply, text: str, reason: str
) -> None:
    provider.answer = lambda _: reply
    (response,) = ask(made(provider), "?")
    assert (response.text, response.finish_reason, response.failure) == (text, reason, None)
    assert len(provider.seen) == 1


def test_reasoning_that_a_server_shows_is_kept_apart_from_the_answer(provider: Provider) -> None:
    message = {"content": "yes", "reasoning_content": "Let me look."}
    provider.answer = lambda _: Reply(extra={"message": message})
    (response,) = ask(made(provider), "?")
    assert (response.text, response.trace["reasoning"]) == ("yes", "Let me look.")


def test_the_first_tokens_probabilities_are_kept_when_asked_for(provider: Provider) -> None:
    top = [{"token": "B", "logprob": -0.5, "bytes": [66]}, {"token": "A", "logprob": -1.5, "bytes": [65]}]
    content = [{**top[0], "top_logprobs": top}, {"token": ".", "logprob": 0, "top_logprobs": []}]
    provider.answer = lambda _: Reply("B.", extra={"logprobs": {"content": content}})
    (response,) = ask(made(provider, top_logprobs=20), "?")
    assert provider.bodies[0]["logprobs"] is True and provider.bodies[0]["top_logprobs"] == 20
    found = response.trace["top_logprobs"]
    assert found == {"B": pytest.approx(-0.5), "A": pytest.approx(-1.5)}


# ---------------------------------------------------------------- faults


@pytest.mark.parametrize(
    "fault",
    [
        Reply("rate", status=429, headers={"Retry-After": "0"}),
        Reply("conflict", status=409, headers={"Retry-After": "0"}),
        Reply("slow client", status=408, headers={"Retry-After": "0"}),
        Reply("broken", status=500, headers={"Retry-After": "0"}),
        Reply("gateway", status=502, headers={"retry-after-ms": "1"}),
        Reply("overloaded", status=529, headers={"Retry-After": "0"}),
        Reply(drop=True),
        Reply(raw=b'{"choices": [{"mess'),
        Reply(raw=b'{"error": {"message": "upstream"}}'),
        Reply(delay=5),
    ],
    ids=lambda reply: f"{reply.status}{'drop' if reply.drop else ''}{(reply.raw or b'')[:9].decode()}",
)
def test_a_passing_fault_is_tried_again_once_per_fault(provider: Provider, fault: Reply) -> None:
    provider.answer = in_turn(fault, Reply("yes"))
    (response,) = ask(made(provider, timeout=0.5 if fault.delay else 30), "?")
    assert response.text == "yes" and response.failure is None
    assert len(provider.seen) == 2


def test_retry_after_is_honoured(provider: Provider) -> None:
    provider.answer = in_turn(Reply("busy", status=429, headers={"Retry-After": "1"}), Reply("yes"))
    ask(made(provider), "?")
    assert 1.0 <= provider.seen[1].at - provider.seen[0].at < 1.5


@pytest.mark.parametrize(("status", "kind"), [(400, "bad_request"), (413, "too_large"), (422, "bad_request")])
def test_a_requests_own_fault_is_never_tried_again_and_fails_alone(
    provider: Provider, status: int, kind: str
) -> None:
    provider.answer = lambda seen: Reply("too odd", status=status) if seen.text == "bad" else "yes"
    good, bad = ask(made(provider), "good", "bad")
    assert good.text == "yes" and bad.failure is not None
    assert (bad.failure.kind, bad.failure.retry) == (kind, False)
    assert bad.failure.message == f"{status}: too odd"
    assert len(provider.seen) == 2


@pytest.mark.parametrize(
    ("reply", "message"),
    [
        (Reply(f"Incorrect API key provided: {KEY}", status=401), "OPENAI_API_KEY was refused.*<key>"),
        (Reply("no access", status=403), "OPENAI_API_KEY was refused"),
        (Reply("no model nope", status=404), "no such model.*no model nope"),
        (Reply("pay first", status=429, code="insufficient_quota"), "behind OPENAI_API_KEY has no quota"),
    ],
)
def test_what_no_request_survives_ends_all_at_once(provider: Provider, reply: Reply, message: str) -> None:
    provider.answer = lambda _: reply
    with pytest.raises(ModelError, match=message) as raised:
        ask(made(provider, concurrency=4), *map(str, range(100)))
    assert len(provider.seen) <= 25, (
        "of 100: what was on the wire, and what began before the refusal was read"
    )
    assert KEY not in str(raised.value)


def test_one_broken_picture_fails_alone_and_the_order_is_kept(provider: Provider, tmp_path: Path) -> None:
    whole = picture("red", "JPEG").source
    assert isinstance(whole, Memory)
    (tmp_path / "cut.jpg").write_bytes(whole.data[:-10])
    pictures = [picture("red"), Picture(File(tmp_path / "cut.jpg")), Picture(File(tmp_path / "no.png"))]
    provider.answer = lambda seen: f"answer {seen.text}"
    requests = [
        Request(images=(pictures[index % 3],), question=str(index))
        if index in (4, 5)
        else Request(question=str(index))
        for index in range(8)
    ]
    answers = made(provider).generate(requests)
    assert [response.text for response in answers if response.failure is None] == [
        f"answer {index}" for index in (0, 1, 2, 3, 6, 7)
    ]
    kinds = [answers[index].failure.kind for index in (4, 5)]  # type: ignore[union-attr]
    assert kinds == ["damaged_picture", "missing_picture"]
    assert len(provider.seen) == 6


# ---------------------------------------------------------------- many at once


def test_the_slots_are_filled_and_never_exceeded(provider: Provider) -> None:
    provider.answer = lambda _: Reply(delay=0.03)
    answers = ask(made(provider, concurrency=16), *map(str, range(160)))
    assert len(answers) == 160 and provider.most == 16


def test_a_service_that_takes_four_a_time_is_met_with_fewer_slots(provider: Provider) -> None:
    def answer(seen: Any) -> Reply:
        if provider.open > 4:
            return Reply("slow down", status=429, headers={"Retry-After": "0"})
        return Reply(delay=0.02)

    provider.answer = answer
    model = made(provider, concurrency=32, retries=20)
    assert isinstance(model, openai.OpenAI)
    answers = ask(model, *map(str, range(200)))
    assert all(response.failure is None for response in answers)
    assert model.wire.limits.allowed < 16
    refused = len(provider.seen) - 200
    assert refused < 200
    provider.answer = lambda _: Reply("yes")
    ask(model, *map(str, range(1000, 1600)))
    assert model.wire.limits.allowed == 32


def test_headers_that_say_nothing_is_left_slow_the_next_requests(provider: Provider) -> None:
    headers = {
        "x-ratelimit-limit-requests": "10",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "2s",
    }
    provider.answer = lambda _: Reply(headers=headers)
    model = made(provider)
    ask(model, "first")
    ask(model, *map(str, range(3)))
    gaps = [after.at - before.at for before, after in zip(provider.seen, provider.seen[1:], strict=False)]
    assert min(gaps) > 0.15  # ten in two seconds


def test_a_spent_budget_sends_nothing_more_and_keeps_what_it_bought(provider: Provider) -> None:
    provider.answer = lambda _: Reply(delay=0.02, usage={"prompt_tokens": 40, "completion_tokens": 10})
    model = made(provider, price="1000/1000", concurrency=4)
    estimate = model.estimate(Request(question="0", decoding=Decoding(max_tokens=10)))  # type: ignore[attr-defined]
    requests = [Request(question=str(index), decoding=Decoding(max_tokens=10)) for index in range(50)]
    arrived: list[Request] = []
    with (
        events.counting(events.Counter(budget=0.5)) as counter,
        events.listening(lambda request, _: arrived.append(request)),
        pytest.raises(BudgetSpent),
    ):
        model.generate(requests)
    spent = counter.total.dollars
    assert spent is not None and 0.5 - estimate.dollars < spent <= 0.5
    assert len(provider.seen) == len(arrived) == round(spent / 0.05)


def test_a_budget_with_an_unknown_price_is_refused_with_the_remedy(provider: Provider) -> None:
    with events.counting(events.Counter(budget=1)), pytest.raises(SpecError, match="price=IN/OUT"):
        ask(made(provider, "some/model"), "?")
    assert not provider.seen


# ---------------------------------------------------------------- the model as a part


def test_without_a_key_the_official_service_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(ModelError, match="OPENAI_API_KEY is not set"):
        ask(openai.model("gpt-4o"), "?")


def test_a_server_of_ones_own_needs_no_key(provider: Provider, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    assert ask(made(provider), "?")[0].text == "yes"


def test_a_server_that_is_not_there_is_an_error_that_names_the_remedy() -> None:
    with Provider() as provider:
        gone = provider.url
    with pytest.raises(ModelError, match="nothing ever answered.*base_url"):
        ask(openai.model("gpt-4o", base_url=gone, retries=1), "?")


def test_what_it_cannot_do_is_refused_before_anything_is_sent(provider: Provider) -> None:
    for request in (Request(question="?", options=("A", "B")), Request(question="?", probes=(ReadMap(),))):
        with pytest.raises(CapabilityError, match="generates text only"):
            made(provider).generate([request])
    assert not provider.seen


def test_the_description_holds_what_decides_answers_and_nothing_else(provider: Provider) -> None:
    one = made(provider, "o3", effort="low", detail="high")
    other = made(
        provider, "o3", effort="low", detail="high", concurrency=3, timeout=9, retries=1, price="1/2"
    )
    assert one.describe() == other.describe()
    assert one.describe() != made(provider, "o3", effort="high", detail="high").describe()
    assert KEY not in json.dumps(one.describe()) + repr(one)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("openai:gpt-4o,timeout=0", "timeout is 0"),
        ("openai:gpt-4o,top_logprobs=21", "top_logprobs is 21"),
        ("openai:o3,top_logprobs=5", "o3 reasons"),
        ("openai:gpt-4o,base_url=http://me:secret@host/v1", "without a user or password"),
        ("openai:gpt-4o,price=free", "price='free' is not IN/OUT"),
        ("openai:gpt-4o,effort=huge", "effort='huge' is not one of none, minimal"),
        ("openai:gpt-4o,concurrency=0", "concurrency is 0"),
    ],
)
def test_a_knob_out_of_range_is_refused_with_its_limits(spec: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        resolve.make_model(spec)


def test_pictures_are_optional_in_the_body_of_a_batch() -> None:
    encoded = Encoded("image/png", "AAAA", (1, 1))
    sent = openai.body(Request(), (encoded,), openai.Parameters("gpt-4o"))
    assert sent["messages"][0]["content"] == [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    ]


# ---------------------------------------------------------------- from the command line


def questions(path: Path, number: int) -> Path:
    Image.new("RGB", (16, 16), "red").save(path / "red.png")
    rows = [
        {
            "id": f"q{index}",
            "image": "red.png",
            "question": f"Is {index} even?",
            "answer": ["yes", "no"][index % 2],
        }
        for index in range(number)
    ]
    file = path / "questions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def fovea(file: Path, provider: Provider, out: Path, *more: str, retries: int = 6) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            sys.executable, "-c", "from harness.cli import main; main()", "run", f"vqa_file:{file}",
            f"openai:gpt-4o,base_url={provider.url},concurrency=8,retries={retries}",
            "--out", str(out), *more,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "OPENAI_API_KEY": KEY, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def faulty(seen: Any) -> Reply:
    """Every fault once for some question; the answer is wrong for every fifth."""
    index = int(seen.text.split()[1])
    faults = {
        3: Reply(f"rate limit for {KEY}", status=429, headers={"Retry-After": "0"}),
        5: Reply(f"broken with {KEY}", status=500, headers={"Retry-After": "0"}),
        7: Reply(drop=True),
        11: Reply(raw=b"{"),
        13: Reply("busy", status=529, headers={"Retry-After": "0"}),
    }
    if index in faults and seen.attempt == 1:
        return faults[index]
    return Reply(["yes", "no"][(index + (index % 5 == 0)) % 2], delay=0.05)


def summary(out: Path) -> Any:
    (file,) = out.glob("*/*/*/run.json")
    stored = json.loads(file.read_text())
    assert stored["status"] == "complete"
    return stored["summary"]


def test_a_killed_run_resumes_buys_no_answer_twice_and_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    number = 120
    file = questions(tmp_path, number)
    with Provider(faulty) as provider:
        first = fovea(file, provider, tmp_path / "killed")
        while len(provider.answered) < 50:
            time.sleep(0.01)
            assert first.poll() is None, first.communicate()[0]
        first.send_signal(signal.SIGKILL)
        first.communicate()
        before = len(provider.seen)
        second = fovea(file, provider, tmp_path / "killed")
        said, _ = second.communicate(timeout=60)
        assert second.returncode == 0, said
        bought = Counter(seen.text for seen in provider.answered)
    assert before < number and len(bought) == number
    # What was on the wire when it was killed may have been answered to nobody.
    assert sum(count - 1 for count in bought.values()) <= 8
    with Provider(faulty) as provider:
        undisturbed = fovea(file, provider, tmp_path / "undisturbed")
        said, _ = undisturbed.communicate(timeout=60)
        assert undisturbed.returncode == 0, said
    assert summary(tmp_path / "killed") == summary(tmp_path / "undisturbed")


def test_the_key_is_in_nothing_that_is_written_or_said(tmp_path: Path) -> None:
    def answer(seen: Any) -> Reply:
        if "Is 2 " in seen.text:
            return Reply(f"bad request by {KEY}", status=400)
        if "Is 3 " in seen.text:
            return Reply(raw=f'{{"error": "upstream says Bearer {KEY}"}}'.encode())
        if "Is 4 " in seen.text:  # wherever a message is cut, it is redacted before
            return Reply(raw=json.dumps(["." * length + KEY for length in range(0, 2000, 7)]).encode())
        return faulty(seen)

    with Provider(answer) as provider:
        process = fovea(questions(tmp_path, 16), provider, tmp_path / "runs", "--verbose", retries=1)
        said, _ = process.communicate(timeout=90)
        assert process.returncode == 3, said
    written = b"".join(path.read_bytes() for path in (tmp_path / "runs").rglob("*") if path.is_file())
    assert b"bad request by <key>" in written
    assert KEY[:12].encode() not in written and KEY[:12] not in said


def test_a_refused_key_stops_the_command_with_the_keys_name(tmp_path: Path) -> None:
    with Provider(lambda _: Reply(f"bad key {KEY}", status=401)) as provider:
        process = fovea(questions(tmp_path, 64), provider, tmp_path / "runs")
        said, _ = process.communicate(timeout=60)
        assert len(provider.seen) <= 16
    assert process.returncode == 2
    assert "OPENAI_API_KEY" in said and KEY not in said and "Traceback" not in said


def test_an_interrupt_ends_the_command_promptly(tmp_path: Path) -> None:
    with Provider(lambda seen: Reply(delay=0 if seen is provider.seen[0] else 60)) as provider:
        process = fovea(questions(tmp_path, 64), provider, tmp_path / "runs")
        while len(provider.seen) < 9:
            time.sleep(0.01)
            assert process.poll() is None, process.communicate()[0]
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        said, _ = process.communicate(timeout=30)
        assert process.returncode == 130, said
        assert time.monotonic() - began < 20
        assert len(provider.seen) == 9  # nothing was sent after it
        answers = Answers(tmp_path / "runs" / "cache.sqlite")
        assert answers.size()[0] == 1  # the one that had arrived
        answers.close()


def test_concurrent_identical_requests_are_sent_once(provider: Provider, tmp_path: Path) -> None:
    provider.answer = lambda _: Reply(delay=0.2)
    answers = Answers(tmp_path / "cache.sqlite")
    model = engine.compose(made(provider), (), answers)
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda: found.extend(response.text for response in ask(model, "?", "?")))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    answers.close()
    assert found == ["yes"] * 8 and len(provider.seen) == 1


# ---------------------------------------------------------------- likelihoods, as vLLM gives them


def as_vllm(seen: Any) -> Reply:
    """A token is a character; its log probability in a prompt is its code point's hundredth, negative."""
    assert seen.body["prompt_logprobs"] == 0
    text = "".join(str(message["content"]) for message in seen.body["messages"][:1]) + ":"
    if seen.body.get("continue_final_message"):
        assert seen.body["add_generation_prompt"] is False
        text += seen.body["messages"][-1]["content"]
    places: list[Any] = [
        {str(ord(c)): {"logprob": -ord(c) / 100, "rank": 1, "decoded_token": c}} for c in text
    ]
    reply = {
        "model": "m",
        "choices": [{"message": {"content": "x"}, "finish_reason": "length"}],
        "usage": {"prompt_tokens": len(text), "completion_tokens": 1},
        "prompt_logprobs": [None, *places[1:]],
    }
    return Reply(raw=json.dumps(reply).encode())


def test_a_vllm_server_scores_options(provider: Provider) -> None:
    provider.answer = as_vllm
    asked = Request(question="Which?", options=("A", "BC"))
    with pytest.raises(CapabilityError, match="likelihood=vllm"):
        made(provider).generate([asked])
    model = made(provider, likelihood="vllm")
    assert model.offers == {Capability.LIKELIHOOD}
    (response,) = model.generate([asked])
    assert response.failure is None
    assert response.option_nll == (
        pytest.approx((ord("A") / 100, 1)),
        pytest.approx((ord("B") / 100 + ord("C") / 100, 2)),
    )
    assert response.usage.calls == 3
    assert response.usage.tokens_in == 7 + 8 + 9


def test_a_server_without_prompt_log_probabilities_fails_the_request_and_says_why(provider: Provider) -> None:
    model = made(provider, likelihood="vllm", retries=0)
    (response,) = model.generate([Request(question="Which?", options=("A",))])
    assert response.failure is not None
    assert "likelihood=vllm is for vLLM alone" in response.failure.message
    with pytest.raises(ValueError, match="is for a vLLM server's base_url"):
        openai.model("gpt-4o", likelihood="vllm")
