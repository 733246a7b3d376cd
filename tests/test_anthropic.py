"""The adapter for Claude: the official client talks to a server on loopback that speaks Messages."""

import base64
import io
import json
from collections.abc import Iterator
from typing import Any

import anthropic
import pytest
from anthropic.types.message_create_params import MessageCreateParamsNonStreaming
from PIL import Image
from provider import Provider, Reply, Seen, in_turn, message
from pydantic import TypeAdapter

from adapters import anthropic as adapter
from adapters._images import Encoded
from adapters.anthropic import Parameters, body, parsed
from harness import events
from harness.errors import CapabilityError, ModelError
from harness.pictures import Memory, Picture
from harness.types import Decoding, Model, ReadMap, Request, Response, Usage

KEY = "sk-ant-api03-notakey-0123456789"
SOON = {"retry-after-ms": "1"}


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)


@pytest.fixture
def provider() -> Iterator[Provider]:
    with Provider() as running:
        yield running


def claude(provider: Provider, name: str = "claude-sonnet-4-6", **knobs: Any) -> Model:
    return adapter.model(name, base_url=provider.url, **knobs)


def ask(text: str = "Is it red?", **decoding: Any) -> Request:
    return Request(question=text, decoding=Decoding(**decoding))


def picture(color: str = "red", kind: str = "JPEG", size: tuple[int, int] = (40, 30)) -> Picture:
    buffer = io.BytesIO()
    Image.new("RGB", size, color).save(buffer, kind)
    return Picture(Memory(buffer.getvalue(), f"{color}.{kind.lower()}"))


def data(shown: Picture) -> bytes:
    assert isinstance(shown.source, Memory)
    return shown.source.data


# ---------------------------------------------------------------- what is sent


def test_pictures_go_before_the_text_in_prompt_order_and_as_their_own_bytes(provider: Provider) -> None:
    shown = (picture("red"), picture("blue", "PNG"))
    request = Request(shown, "Which is red?", "\nAnswer A or B.", system="Be brief.")
    (response,) = claude(provider).generate([request])
    (seen,) = provider.seen
    assert response.text == "yes"
    assert seen.path == "/v1/messages"
    assert seen.headers["Authorization"] == f"Bearer {KEY}"
    sent = seen.body
    assert sent["system"] == "Be brief."
    (turn,) = sent["messages"]
    first, second, text = turn["content"]
    assert text == {"type": "text", "text": "Which is red?\nAnswer A or B."}
    for block, original, media in ((first, shown[0], "image/jpeg"), (second, shown[1], "image/png")):
        assert block["type"] == "image"
        assert block["source"]["media_type"] == media
        assert base64.b64decode(block["source"]["data"]) == data(original)


def test_what_is_sent_is_what_the_clients_own_types_describe(provider: Provider) -> None:
    known = TypeAdapter(MessageCreateParamsNonStreaming)
    one = Encoded("image/png", "aGk=", (1, 1))
    request = Request(question="q", system="s", decoding=Decoding(stop=("\n", "END")))
    for thinking in ("auto", "off", "between_tools", "adaptive", "2048"):
        sent = body(request, [one], Parameters("claude-opus-5", "low", thinking, 99))
        assert json.loads(json.dumps(known.validate_python(sent), default=list)) == sent  # nothing unknown


@pytest.mark.parametrize(
    ("name", "thinking", "decoding", "sent"),
    [
        ("claude-sonnet-4-6", "auto", {}, {"temperature": 0}),
        ("claude-3-5-haiku-20241022", "auto", {"temperature": 0.7}, {"temperature": 0.7}),
        ("claude-opus-4-1-20250805", "auto", {"temperature": 1, "top_p": 0.9}, {"top_p": 0.9}),
        ("claude-opus-4-20250514", "auto", {"temperature": 0.5, "top_p": 0.9}, "both"),
        ("claude-opus-4-6", "auto", {"top_p": 0.9}, {"temperature": 0}),  # greedy: the nucleus says nothing
        ("claude-opus-4-6", "2048", {}, {}),
        ("claude-opus-4-7", "auto", {}, {}),
        ("claude-opus-4-8", "auto", {"temperature": 1, "top_p": 1}, {}),
        ("claude-haiku-5-5", "auto", {"temperature": 1}, {}),
        ("claude-fable-5", "off", {}, {}),
        ("my-own-model", "auto", {"temperature": 0.3}, {"temperature": 0.3}),
    ],
)
def test_sampling_is_sent_only_where_it_is_taken_and_says_something(
    provider: Provider, name: str, thinking: str, decoding: dict[str, Any], sent: Any
) -> None:
    (response,) = claude(provider, name, thinking=thinking).generate([ask(**decoding)])
    assert response.failure is None
    (seen,) = provider.seen
    found = {
        key: value for key, value in seen.body.items() if key in ("temperature", "top_p", "top_k", "seed")
    }
    assert found == ({"temperature": 0.5, "top_p": 0.9} if sent == "both" else sent)
    # The client's own version of the API refuses a temperature whatever the model.
    version = seen.headers["anthropic-version"]
    assert version == ("2023-06-01" if found else anthropic._constants.ANTHROPIC_API_VERSION)


@pytest.mark.parametrize("decoding", [{"temperature": 0.7}, {"temperature": 1, "top_p": 0.9}])
def test_sampling_that_cannot_be_had_is_refused_before_anything_is_sent(
    provider: Provider, decoding: dict[str, Any]
) -> None:
    with pytest.raises(
        ModelError, match=r"claude-opus-5 samples in its own way, so temperature .* temperature 1"
    ):
        claude(provider, "claude-opus-5").generate([ask(**decoding)])
    with pytest.raises(ModelError, match="when it thinks"):
        claude(provider, thinking="2048").generate([ask(**decoding)])
    assert not provider.seen


@pytest.mark.parametrize(
    ("name", "knobs", "most", "thinking"),
    [
        ("claude-sonnet-4-6", {}, 10, None),
        ("claude-opus-5-5", {}, 10 + 8192, None),
        ("claude-opus-5", {"thinking": "off"}, 10, {"type": "disabled"}),
        ("claude-sonnet-5-5", {"thinking": "between_tools"}, 10, {"type": "between_tools"}),
        ("claude-opus-4-8", {"thinking": "adaptive"}, 10 + 8192, {"type": "adaptive"}),
        ("claude-opus-4-8", {"thinking": "adaptive", "reasoning_tokens": 500}, 510, {"type": "adaptive"}),
        ("claude-sonnet-4-5", {"thinking": "1024"}, 10 + 1024, {"type": "enabled", "budget_tokens": 1024}),
    ],
)
def test_thinking_is_granted_on_top_of_the_answers_own_tokens(
    provider: Provider, name: str, knobs: dict[str, Any], most: int, thinking: Any
) -> None:
    model = claude(provider, name, **knobs)
    model.generate([ask(max_tokens=10)])
    (sent,) = provider.bodies
    assert (sent["max_tokens"], sent.get("thinking")) == (most, thinking)
    assert model.estimate(ask(max_tokens=10)).tokens_out == most


def test_effort_is_sent_when_it_is_given(provider: Provider) -> None:
    claude(provider, effort="low").generate([ask()])
    claude(provider).generate([ask()])
    assert [sent.get("output_config") for sent in provider.bodies] == [{"effort": "low"}, None]


def test_a_long_answer_may_be_asked_for_in_one_piece(provider: Provider) -> None:
    (response,) = claude(provider).generate([ask(max_tokens=64_000)])
    assert response.text == "yes"


def test_samples_of_one_request_are_sent_each_by_itself_without_a_seed(provider: Provider) -> None:
    provider.answer = lambda seen: f"sample {seen.attempt}"
    requests = [ask(temperature=1, seed=seed) for seed in (0, 1, 2)]
    responses = claude(provider).generate(requests)
    assert {response.text for response in responses} == {"sample 1", "sample 2", "sample 3"}
    assert len({request.digest() for request in requests}) == 3  # the cache keeps them apart
    assert all("seed" not in sent for sent in provider.bodies)


def test_stop_texts_without_a_visible_character_are_applied_here(provider: Provider) -> None:
    provider.answer = lambda _: Reply("red\n\nbecause it is", "max_tokens")
    (response,) = claude(provider).generate([ask(stop=("END", "\n\n", " \n"))])
    assert provider.bodies[0]["stop_sequences"] == ["END"]
    assert (response.text, response.finish_reason) == ("red", "stop")


def test_blank_texts_which_the_api_refuses_are_left_out(provider: Provider) -> None:
    claude(provider).generate([Request((picture(),), question="", system=" ")])
    (sent,) = provider.bodies
    assert [block["type"] for block in sent["messages"][0]["content"]] == ["image"]
    assert "system" not in sent


def test_a_picture_that_is_changed_is_noted_in_the_trace(provider: Provider) -> None:
    shown = (picture(), picture("blue").crop((0, 0, 10, 10)), picture("green", size=(90, 60)))
    plain, noted = claude(provider, max_image_side=45).generate(
        [Request(shown[:1], "What?"), Request(shown, "What?")]
    )
    assert "images" not in plain.trace
    assert noted.trace["images"] == [
        None,
        "cropped: sent as PNG, 10 x 10",
        "over 45 pixels a side: sent as PNG, 45 x 30, scaled from 90 x 60",
    ]
    assert noted.usage.images == 3


# ---------------------------------------------------------------- what comes back


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("refusal", "refusal"),
        ("pause_turn", "pause_turn"),
    ],
)
def test_why_an_answer_ended_is_kept(provider: Provider, reason: str, finish: str) -> None:
    provider.answer = lambda _: Reply("It is", reason)
    (response,) = claude(provider).generate([ask()])
    assert (response.text, response.finish_reason, response.failure) == ("It is", finish, None)


def test_a_refusal_says_why(provider: Provider) -> None:
    why = {"type": "refusal", "category": "bio", "explanation": None}
    provider.answer = lambda _: Reply("", "refusal", extra={"stop_details": why, "content": []})
    (response,) = claude(provider).generate([ask()])
    assert (response.text, response.finish_reason) == ("", "refusal")
    assert response.trace["refusal"] == why


def test_usage_counts_cached_and_thinking_tokens_and_what_they_cost(provider: Provider) -> None:
    usage = {
        "input_tokens": 1000,
        "cache_read_input_tokens": 500,
        "cache_creation_input_tokens": 250,
        "output_tokens": 100,
        "output_tokens_details": {"thinking_tokens": 90},
    }
    content = [
        {"type": "thinking", "thinking": "Look closely.", "signature": "x"},
        {"type": "redacted_thinking", "data": "x"},
        {"type": "text", "text": "It is "},
        {"type": "text", "text": "red."},
    ]
    provider.answer = lambda _: Reply(usage=usage, extra={"content": content, "model": "claude-x-20260101"})
    (response,) = claude(provider, price="4/20").generate([ask()])
    assert response.text == "It is red."
    assert response.trace == {
        "model": "claude-x-20260101",
        "cached_tokens": 500,
        "reasoning_tokens": 90,
        "reasoning": "Look closely.",
    }
    assert (response.usage.calls, response.usage.tokens_in, response.usage.tokens_out) == (1, 1750, 100)
    assert response.usage.dollars == pytest.approx((1750 * 4 + 100 * 20) / 1e6)


def test_the_price_of_a_server_of_ones_own_is_unknown_and_anthropics_is_known() -> None:
    own = adapter.model("claude-sonnet-4-6", base_url="http://localhost:1")
    theirs = adapter.model("claude-sonnet-4-6")
    assert own.estimate(ask()).dollars is None
    million = Response(usage=Usage(calls=1, tokens_in=10**6, tokens_out=10**6, dollars=None))
    assert theirs.completed(ask(), million, []).usage.dollars == pytest.approx(18.0)  # $3 in, $15 out
    half = adapter.model("claude-sonnet-4-6", batch=True)
    assert half.completed(ask(), million, []).usage.dollars == pytest.approx(9.0)
    assert adapter.model("claude-none-such").completed(ask(), million, []).usage.dollars is None
    uncounted = Response(usage=Usage(calls=1, dollars=None))
    assert theirs.completed(ask(), uncounted, []).usage.dollars is None


def test_the_estimate_is_an_upper_bound(provider: Provider) -> None:
    model = claude(provider, price="3/15")
    request = Request((picture(size=(1000, 800)),), "What is this?" * 20, decoding=Decoding(max_tokens=50))
    (response,) = model.generate([request])
    expected = model.estimate(request)
    assert expected.tokens_in >= response.usage.tokens_in + 1000 * 800 / 750  # the API's documented estimate
    assert expected.dollars >= response.usage.dollars


def test_a_reply_of_the_clients_own_types_is_understood(provider: Provider) -> None:
    seen = Seen("/v1/messages", {"model": "m", "messages": []}, {}, 1, 0.0)
    reply = anthropic.types.Message.model_validate(message(seen, Reply("yes", "max_tokens")))
    response = parsed(reply.model_dump(mode="json"))
    assert (response.text, response.finish_reason, response.usage.tokens_out) == ("yes", "length", 1)


@pytest.mark.parametrize(
    "reply", [None, [], "<html>", {}, {"content": None}, {"content": [{"type": "text"}]}]
)
def test_what_is_no_message_is_refused(reply: Any) -> None:
    with pytest.raises(ValueError, match="no Messages answer"):
        parsed(reply)


# ---------------------------------------------------------------- what goes wrong


@pytest.mark.parametrize(
    "fault",
    [
        Reply("Overloaded", status=529, code="overloaded_error", headers=SOON),
        Reply("Too many", status=429, code="rate_limit_error", headers=SOON),
        Reply("Oops", status=500, headers=SOON),
        Reply(drop=True),
        Reply(raw=b'{"type": "mess'),
        Reply(raw=b"<html>Bad gateway</html>", status=502, headers=SOON),
    ],
    ids=["529", "429", "500", "dropped", "malformed", "502"],
)
def test_what_may_pass_is_tried_again(provider: Provider, fault: Reply) -> None:
    provider.answer = in_turn(fault, Reply("yes"))
    (response,) = claude(provider).generate([ask()])
    assert (response.text, response.failure, len(provider.seen)) == ("yes", None, 2)


def test_a_service_that_stays_overloaded_is_a_failure_that_may_be_retried(provider: Provider) -> None:
    provider.answer = lambda _: Reply("Overloaded", status=529, code="overloaded_error", headers=SOON)
    (response,) = claude(provider, retries=2).generate([ask()])
    assert response.failure is not None
    assert (response.failure.kind, response.failure.retry, len(provider.seen)) == ("overloaded", True, 3)


def test_a_bad_request_fails_alone_and_is_not_tried_again(provider: Provider) -> None:
    provider.answer = lambda seen: (
        Reply("prompt is too long", status=400, code="invalid_request_error") if "bad" in seen.text else "yes"
    )
    good, bad = claude(provider).generate([ask("good"), ask("bad")])
    assert good.text == "yes"
    assert bad.failure is not None
    assert (bad.failure.kind, bad.failure.retry) == ("bad_request", False)
    assert "prompt is too long" in bad.failure.message
    assert len(provider.seen) == 2


def test_a_broken_picture_fails_alone_and_is_never_sent(provider: Provider) -> None:
    broken = Picture(Memory(data(picture())[:-20], "broken.jpg"))
    bad, many, good = claude(provider).generate(
        [Request((broken,), "What?"), Request((picture(),) * 101, "What?"), Request((picture(),), "What?")]
    )
    assert bad.failure is not None and bad.failure.kind == "damaged_picture"
    assert many.failure is not None and many.failure.kind == "too_many_pictures"
    assert good.text == "yes"
    assert len(provider.seen) == 1


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_stops_everything_and_is_named_but_not_shown(provider: Provider, status: int) -> None:
    provider.answer = lambda _: Reply(f"bad {KEY}", status=status, code="authentication_error", delay=0.1)
    with pytest.raises(ModelError, match="ANTHROPIC_API_KEY was refused") as raised:
        claude(provider, concurrency=1).generate([ask(str(number)) for number in range(20)])
    assert KEY not in str(raised.value)
    assert len(provider.seen) <= 2  # one may be on its way already


def test_an_unknown_model_stops_everything(provider: Provider) -> None:
    provider.answer = lambda _: Reply("model: claude-9", status=404, code="not_found_error")
    with pytest.raises(ModelError, match="no such model"):
        claude(provider, "claude-9").generate([ask()])


def test_without_a_key_anthropic_is_not_asked(monkeypatch: pytest.MonkeyPatch, provider: Provider) -> None:
    monkeypatch.delenv("ANTHROPIC_API_KEY")
    with pytest.raises(ModelError, match="ANTHROPIC_API_KEY is not set"):
        adapter.model("claude-opus-5").generate([ask()])
    assert claude(provider).generate([ask()])[0].text == "yes"  # a server of one's own needs none


def test_it_scores_no_options_and_reads_no_probes(provider: Provider) -> None:
    for request in (Request(options=("a", "b")), Request(probes=(ReadMap(),))):
        with pytest.raises(CapabilityError, match="generates text only"):
            claude(provider).generate([request])


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"thinking": "much"}, "thinking is much"),
        ({"thinking": "100"}, "1024 tokens or more"),
        ({"reasoning_tokens": -1}, "reasoning_tokens is -1"),
        ({"max_image_side": 0}, "max_image_side is 0"),
        ({"timeout": 0}, "timeout is 0"),
        ({"concurrency": 0}, "concurrency is 0"),
        ({"price": "cheap"}, "price='cheap'"),
        ({"base_url": "http://me:secret@host"}, "without a user or password"),
    ],
)
def test_knobs_that_cannot_be_are_refused(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        adapter.model("claude-opus-5", **knobs)


# ---------------------------------------------------------------- many at once


def test_a_slow_request_holds_up_no_other_and_answers_keep_their_order(provider: Provider) -> None:
    arrived: list[str] = []
    provider.answer = lambda seen: Reply(f"re {seen.text}", delay=0.6 if seen.text == "0" else 0.01)
    requests = [ask(str(number)) for number in range(40)]
    claude(provider).generate(requests[:1])  # the client is there
    provider.most = 0
    with events.listening(lambda request, response: arrived.append(response.text)):
        responses = claude(provider, concurrency=4).generate(requests)
    assert [response.text for response in responses] == [f"re {number}" for number in range(40)]
    assert arrived[-1] == "re 0"
    assert provider.most == 4


def test_what_is_described_decides_answers_and_nothing_else(provider: Provider) -> None:
    described = claude(provider).describe()
    same = claude(provider, concurrency=3, price="1/2", timeout=5, retries=0, requests_per_minute=9)
    assert same.describe() == described
    for knobs in ({"effort": "low"}, {"thinking": "adaptive"}, {"max_image_side": 700}):
        assert claude(provider, **knobs).describe() != described
    assert described["sampling"] == "as asked"
    assert claude(provider, "claude-opus-5").describe()["sampling"] == "the model's own"
    assert KEY not in json.dumps(described) + repr(claude(provider))


def test_enough_groups_are_in_flight_to_fill_the_slots() -> None:
    for concurrency in (1, 16, 100):
        pace = adapter.model("claude-opus-5", concurrency=concurrency).pace
        assert pace.group * pace.in_flight >= 2 * concurrency
        assert not pace.free
