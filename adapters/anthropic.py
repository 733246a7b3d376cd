"""Claude, or any server that speaks Anthropic's Messages API, through the official client.

Knows how a request becomes a message, what comes back, and which of Claude's generations take which
parameters. The way there and back is `_service.py`'s; how a picture becomes bytes `_images.py`'s. Must not
know tasks or methods.

    anthropic:claude-sonnet-4-6      anthropic:claude-opus-5,effort=low      anthropic:m,base_url=http://gpu:8000

Seeds and greedy decoding. The API has no seed: samples of one request are distinct because the cache keeps
those of different seeds apart. Claude since Opus 4.7 has no temperature: temperature 0 is then the model's
own sampling (`describe()` says so, and answers to one request may differ), temperature 1 is what it does,
and anything else is refused before it is sent.

Thinking. Claude 5 thinks before it answers unless told otherwise, and the API's `max_tokens` counts both;
`reasoning_tokens` are granted on top of the request's own.

Source: platform.claude.com, "Messages" (reference), "Versions", "Thinking", "Effort", "Migration guide".
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from adapters import _prices
from adapters._batches import AnthropicBatches
from adapters._images import ANTHROPIC_LIMITS, Encoded, Images
from adapters._service import THINKING, ServiceModel, cut
from adapters._wire import Wire
from harness.errors import ModelError
from harness.types import Journal, Json, Model, Request, Response, Usage

OFFICIAL = "https://api.anthropic.com"
SAMPLING = "2023-06-01"
"""The API's last version that takes `temperature` and `top_p`, which the client's own (2026-10-21) refuses
even for models that know them (platform.claude.com, "Versions")."""

Effort = Literal["low", "medium", "high", "xhigh", "max"]


def model(
    model: str,
    *,
    base_url: str = OFFICIAL,
    key_env: str = "ANTHROPIC_API_KEY",
    concurrency: int = 16,
    requests_per_minute: int | None = None,
    tokens_per_minute: int | None = None,
    timeout: float = 600.0,
    retries: int = 6,
    effort: Effort | None = None,
    thinking: str = "auto",
    reasoning_tokens: int | None = None,
    max_image_side: int | None = None,
    price: str | None = None,
    batch: bool = False,
    journal: Journal | None = None,
) -> Model:
    """A model by its name at `base_url` (with or without `/v1`).

    key_env: the environment variable that holds the key; a server of one's own needs none. concurrency:
    requests in flight; requests_per_minute, tokens_per_minute: the account's limits, where its answers do
    not say them. timeout: seconds per attempt. effort: None is the model's default. thinking: auto (as the
    model does by itself), off, between_tools (Sonnet 5.5's name for off), adaptive, or a number of tokens
    (up to Claude 4.6). reasoning_tokens: new tokens granted for thinking beside the answer's own (8192 where
    the model may think, that number where there is one, else 0). max_image_side: longer pictures are scaled
    down to so many pixels. price: IN/OUT, dollars per million tokens, for what no price list knows. batch:
    hand everything in as Message Batches: half the price, answered within a day; repeating an interrupted
    command collects it.
    """
    if thinking not in ("auto", "off", "between_tools", "adaptive") and not thinking.isdecimal():
        raise ValueError(f"thinking is {thinking}; it must be auto, off, between_tools, adaptive or a number")
    if thinking.isdecimal() and int(thinking) < 1024:
        raise ValueError(f"thinking is {thinking}; the API takes 1024 tokens or more, or off")
    if max_image_side is not None and max_image_side < 1:
        raise ValueError(f"max_image_side is {max_image_side}; it must be 1 or more")
    side = min(max_image_side or math.inf, ANTHROPIC_LIMITS.side or math.inf)
    granted = _granted(model, thinking) if reasoning_tokens is None else reasoning_tokens
    return Anthropic(
        base_url=base_url.rstrip("/").removesuffix("/v1"),
        key_env=key_env,
        timeout=timeout,
        parameters=Parameters(model, effort, thinking, granted),
        price=None if price is None else _prices.stated(price),
        batch=batch,
        journal=journal,
        wire=Wire(concurrency, requests_per_minute, tokens_per_minute, retries),
        images=Images(dataclasses.replace(ANTHROPIC_LIMITS, side=int(side))),
    )


# ---------------------------------------------------------------- what Claude's generations take


def generation(model: str) -> tuple[float, float] | None:
    """The generation in a Claude model's name; None for another model. A name without numbers is the newest.

    >>> [generation(name) for name in ("claude-3-5-haiku-20241022", "claude-opus-4-20250514")]
    [(3.0, 5.0), (4.0, 0.0)]
    >>> [generation(name) for name in ("claude-opus-4-7", "claude-mythos-preview", "gpt-oss")]
    [(4.0, 7.0), (inf, 0.0), None]
    """
    if not re.search(r"\bclaude\b", model):
        return None
    found = re.search(r"claude-(?:[a-z]+-)?(\d)(?:[-.](\d{1,2})(?!\d))?", model)
    return (float(found[1]), float(found[2] or 0)) if found else (math.inf, 0.0)


def samples(model: str) -> bool:
    """Whether a model takes `temperature` and `top_p`: Claude does up to 4.6, before Opus 4.7."""
    known = generation(model)
    return known is None or known < (4, 7)


def thinks(model: str) -> bool:
    """Whether a model thinks when a request does not speak of it: Claude does since 5."""
    known = generation(model)
    return known is not None and known >= (5, 0)


def _granted(model: str, thinking: str) -> int:
    if thinking.isdecimal():
        return int(thinking)
    return THINKING if thinking == "adaptive" or (thinking == "auto" and thinks(model)) else 0


@dataclass(frozen=True)
class Parameters:
    """What decides answers beside the request."""

    model: str
    effort: Effort | None = None
    thinking: str = "auto"
    reasoning_tokens: int = 0

    @property
    def samples(self) -> bool:
        """Whether temperature and top_p are sent; beside thinking that is asked for they must not be."""
        return samples(self.model) and self.thinking in ("auto", "off")


# ---------------------------------------------------------------- a request, and an answer, as JSON


def body(request: Request, pictures: Sequence[Encoded], parameters: Parameters) -> dict[str, Any]:
    """The JSON to send: pictures in prompt order, then the text.

    The API refuses texts and stop texts without a visible character. Such a text says nothing and is left
    out; such a stop text is applied to the answer. Raises `ModelError` for sampling that cannot be had.
    """
    decoding = request.decoding
    content: list[dict[str, Any]] = [_picture(picture) for picture in pictures]
    if request.text.strip():
        content.append({"type": "text", "text": request.text})
    sent: dict[str, Any] = {
        "model": parameters.model,
        "max_tokens": decoding.max_tokens + parameters.reasoning_tokens,
        "messages": [{"role": "user", "content": content}],
    }
    if request.system and request.system.strip():
        sent["system"] = request.system
    if stops := [stop for stop in decoding.stop if stop.strip()]:
        sent["stop_sequences"] = stops
    if parameters.effort is not None:
        sent["output_config"] = {"effort": parameters.effort}
    if parameters.thinking.isdecimal():
        sent["thinking"] = {"type": "enabled", "budget_tokens": int(parameters.thinking)}
    elif parameters.thinking != "auto":
        sent["thinking"] = {"type": "disabled" if parameters.thinking == "off" else parameters.thinking}
    return sent | _sampling(request, parameters)


def _picture(picture: Encoded) -> dict[str, Any]:
    source = {"type": "base64", "media_type": picture.media_type, "data": picture.data}
    return {"type": "image", "source": source}


def _sampling(request: Request, parameters: Parameters) -> dict[str, float]:
    """temperature and top_p, each only where it says something: Claude since 4.1 refuses both at once."""
    temperature, top_p = request.decoding.temperature, request.decoding.top_p
    if temperature == 0 or top_p == 1:
        top_p = None
    if parameters.samples:
        if top_p is None:
            return {"temperature": temperature}
        return {"top_p": top_p} if temperature == 1 else {"temperature": temperature, "top_p": top_p}
    if temperature not in (0, 1) or top_p is not None:
        asked = f"temperature {temperature:g}" + ("" if top_p is None else f" with top_p {top_p:g}")
        when = " when it thinks" if samples(parameters.model) else ""
        raise ModelError(
            f"{parameters.model} samples in its own way{when}, so {asked} cannot be had. "
            "Ask for temperature 1, or for 0 where an answer may vary"
        )
    return {}


_FINISH = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
}


def parsed(reply: Any) -> Response:
    """What an answer says; its price is not in it. Raises ValueError for what is no answer.

    finish_reason: stop, length, refusal (the text is what was said until then), or the API's own word.
    usage: cached tokens are among `tokens_in`, thinking among `tokens_out`. trace: the model's dated name,
    tokens cached and reasoned, the thinking that is shown, and why it refused.
    """
    try:
        content, used = reply["content"], reply.get("usage") or {}
        text = "".join(block["text"] for block in content if block["type"] == "text")
        thoughts = "\n".join(block["thinking"] for block in content if block["type"] == "thinking")
        cached = int(used.get("cache_read_input_tokens") or 0)
        written = int(used.get("cache_creation_input_tokens") or 0)
        reasoned = int((used.get("output_tokens_details") or {}).get("thinking_tokens") or 0)
        usage = Usage(
            calls=1,
            tokens_in=int(used.get("input_tokens") or 0) + cached + written,
            tokens_out=int(used.get("output_tokens") or 0),
            dollars=None,
        )
        shown: dict[str, Json] = {
            "cached_tokens": cached,
            "reasoning_tokens": reasoned,
            "reasoning": thoughts,
            "refusal": reply.get("stop_details"),
        }
        reason = str(reply.get("stop_reason") or "unknown")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"no Messages answer ({type(error).__name__}): {reply}") from None
    trace = {"model": reply.get("model"), **{name: value for name, value in shown.items() if value}}
    return Response(text, _FINISH.get(reason, reason), usage, trace)


# ---------------------------------------------------------------- the model


@dataclass(frozen=True, eq=False)
class Anthropic(ServiceModel):
    """One model of one server. `model()` makes it."""

    adapter = "anthropic"
    official = OFFICIAL
    path = "/v1/messages"
    group = 8  # small, so that records land often
    spare = 6  # as openai.py: every slot is kept busy while groups wait for their slowest
    batches = AnthropicBatches
    _parsed = staticmethod(parsed)

    parameters: Parameters

    @property
    def package(self) -> Any:
        import anthropic

        return anthropic

    @property
    def headers(self) -> dict[str, str]:
        return {"anthropic-version": SAMPLING} if self.parameters.samples else {}

    def _body(self, request: Request, pictures: Sequence[Encoded]) -> dict[str, Any]:
        return body(request, pictures, self.parameters)

    def _stopped(self, request: Request, response: Response) -> Response:
        stop = request.decoding.stop
        if not any(each in response.text for each in stop):
            return response
        return dataclasses.replace(response, text=cut(response.text, stop), finish_reason="stop")
