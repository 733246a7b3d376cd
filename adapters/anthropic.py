"""Claude, or any server that speaks Anthropic's Messages API, through the official client.

Knows how a request becomes a message, what comes back, and which of Claude's generations take which
parameters. How many are in flight, retried and paid for is `_wire.py`'s; how a picture becomes bytes
`_images.py`'s. Must not know tasks or methods.

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
import json
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from adapters import _prices
from adapters._batches import AnthropicBatches, Batches, Written
from adapters._images import ANTHROPIC_LIMITS, Encoded, Images
from adapters._wire import Again, Wire, explain, redacted
from harness.errors import CapabilityError, ModelError
from harness.types import Capability, Journal, Json, Model, Pace, Request, Response, Usage, digest

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic

OFFICIAL = "https://api.anthropic.com"
SAMPLING = "2023-06-01"
"""The API's last version that takes `temperature` and `top_p`, which the client's own (2026-10-21) refuses
even for models that know them (platform.claude.com, "Versions")."""

Effort = Literal["low", "medium", "high", "xhigh", "max"]

THINKING = 8192
"""New tokens that a model may spend on thinking, on top of a request's own `max_tokens`."""
CONNECT = 30.0  # seconds to open a connection
GROUP = 8  # requests per group: small, so that records land often
BATCH = 100_000  # requests per group with batch=true: everything at once


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
    if timeout <= 0:
        raise ValueError(f"timeout is {timeout}; it must be more than 0 seconds")
    if thinking not in ("auto", "off", "between_tools", "adaptive") and not thinking.isdecimal():
        raise ValueError(f"thinking is {thinking}; it must be auto, off, between_tools, adaptive or a number")
    if thinking.isdecimal() and int(thinking) < 1024:
        raise ValueError(f"thinking is {thinking}; the API takes 1024 tokens or more, or off")
    if reasoning_tokens is not None and reasoning_tokens < 0:
        raise ValueError(f"reasoning_tokens is {reasoning_tokens}; it must be 0 or more")
    if max_image_side is not None and max_image_side < 1:
        raise ValueError(f"max_image_side is {max_image_side}; it must be 1 or more")
    if not re.match(r"https?://", base_url) or "@" in urlsplit(base_url).netloc:
        raise ValueError("base_url is not http(s)://HOST/... without a user or password in it")
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

    @property
    def headers(self) -> dict[str, str]:
        """What a client sends with every request."""
        return {"anthropic-version": SAMPLING} if self.samples else {}


# ---------------------------------------------------------------- a request, and an answer, as JSON


def body(request: Request, pictures: Sequence[Encoded], parameters: Parameters) -> dict[str, Any]:
    """The JSON to send: pictures in prompt order, then the text.

    The API refuses texts and stop texts without a visible character. Such a text says nothing and is left
    out; such a stop text is applied by `completed`. Raises `ModelError` for sampling that cannot be had.
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
class Anthropic:
    """One model of one server. `model()` makes it."""

    base_url: str
    key_env: str
    timeout: float
    parameters: Parameters
    price: _prices.Price | None
    batch: bool
    journal: Journal | None
    wire: Wire
    images: Images
    clients: list[AsyncAnthropic] = field(default_factory=list)  # the one, made in the loop when first needed

    @property
    def offers(self) -> frozenset[Capability]:
        return frozenset()

    @property
    def pace(self) -> Pace:
        if self.batch:
            return Pace(group=BATCH)
        # As openai.py: six slots' worth of requests keep every slot busy while groups wait for their slowest.
        return Pace(group=GROUP, in_flight=6 * math.ceil(self.wire.limits.most / GROUP))

    def describe(self) -> dict[str, Any]:
        """The host without its port: where a server of one's own listens says nothing about its answers."""
        return {
            "adapter": "anthropic",
            "host": urlsplit(self.base_url).hostname,
            **dataclasses.asdict(self.parameters),
            "sampling": "as asked" if self.parameters.samples else "the model's own",
            "images": dataclasses.asdict(self.images.limits),
        }

    def estimate(self, request: Request) -> Usage:
        """The most that a request can use."""
        most = request.decoding.max_tokens + self.parameters.reasoning_tokens
        return _prices.at_most(
            self.provider, self.parameters.model, request, most, at_batch=self.batch, price=self.price
        )

    @property
    def provider(self) -> str:
        return _prices.provider_of(self.base_url)

    @property
    def prices(self) -> str:
        """Where its prices come from."""
        return _prices.version() if self.price is None else "stated: ${:g} in, ${:g} out".format(*self.price)

    def generate(self, requests: Sequence[Request]) -> list[Response]:
        if any(request.options or request.probes for request in requests):
            raise CapabilityError(
                f"anthropic:{self.parameters.model} generates text only: it scores no options and reads no "
                "probes. Use an hf: model"
            )
        import anthropic  # noqa: F401 (a second or two, which the loop must not wait for)

        self._key()
        if self.batch:
            return self._batched(requests)
        return self.wire.answer(requests, self._send, self.estimate)

    async def _send(self, request: Request) -> Response:
        import anthropic
        import httpx2

        if request.decoding.max_tokens == 0:
            return Response(finish_reason="length")
        among = len(request.images)
        pictures = [await self.images.get(picture, among) for picture in request.images]
        content = json.dumps(body(request, pictures, self.parameters), ensure_ascii=False)
        try:
            raw = await self._client().post(
                "/v1/messages",
                content=content.encode("utf-8", "replace"),
                cast_to=httpx2.Response,
                options={"headers": {"Content-Type": "application/json"}},
            )
        except anthropic.APIStatusError as error:
            self.wire.heard(error.response.headers)
            return explain(error, self.key_env)
        except anthropic.APIError as error:
            return explain(error, self.key_env)
        self.wire.heard(raw.headers)
        try:
            response = parsed(json.loads(raw.content))
        except ValueError as error:  # JSON's errors too: a body that was cut
            raise Again(redacted(str(error), self.key_env), kind="malformed_answer") from None
        return self.completed(request, response, [picture.note for picture in pictures])

    def completed(self, request: Request, response: Response, notes: Sequence[str | None]) -> Response:
        """An answer with its price, cut at blank stop texts, and what was done to its pictures."""
        blank = [place for stop in request.decoding.stop if (place := response.text.find(stop)) >= 0]
        return dataclasses.replace(
            response,
            text=response.text[: min(blank, default=None)],
            finish_reason="stop" if blank else response.finish_reason,
            usage=dataclasses.replace(
                response.usage, images=len(request.images), dollars=self._dollars(response)
            ),
            trace={**response.trace, **({"images": list(notes)} if any(notes) else {})},
        )

    def _dollars(self, response: Response) -> float | None:
        usage, cached = response.usage, response.trace.get("cached_tokens", 0)
        if not usage.tokens_in:  # a server that does not count
            return None
        return _prices.dollars(
            self.provider,
            self.parameters.model,
            usage.tokens_in,
            usage.tokens_out,
            cached if isinstance(cached, int) else 0,
            self.batch,
            self.price,
        )

    def _batched(self, requests: Sequence[Request]) -> list[Response]:
        import anthropic

        with anthropic.Anthropic(
            api_key=self._key(),
            base_url=self.base_url,
            max_retries=0,  # a batch asked for twice is bought twice; `_batches.py` knows when to try again
            timeout=anthropic.Timeout(self.timeout, connect=min(CONNECT, self.timeout)),
            default_headers=self.parameters.headers,
        ) as client:
            service = AnthropicBatches(client, self.key_env)
            batches = Batches(service, digest(self.describe()), self.journal, self.wire.retries)
            return batches.answer(requests, self._written, self._read, self.estimate)

    def _written(self, request: Request) -> Written | Response:
        if request.decoding.max_tokens == 0:
            return Response(finish_reason="length")
        limits = self.images.limits.among(len(request.images))
        pictures = [self.images.encoded(picture, limits) for picture in request.images]
        return body(request, pictures, self.parameters), [picture.note for picture in pictures]

    def _read(self, request: Request, reply: dict[str, Any], notes: Sequence[str | None]) -> Response:
        return self.completed(request, parsed(reply), notes)

    def _key(self) -> str:
        """From the environment. ModelError where Anthropic's own API would be asked without one."""
        key = os.environ.get(self.key_env, "")
        if not key and self.base_url == OFFICIAL:
            raise ModelError(f"{self.key_env} is not set. Export your key as {self.key_env}")
        return key or "none"

    def _client(self) -> AsyncAnthropic:
        if not self.clients:
            import anthropic

            client = anthropic.AsyncAnthropic(
                api_key=self._key(),
                base_url=self.base_url,
                max_retries=0,  # the wire retries
                timeout=anthropic.Timeout(self.timeout, connect=min(CONNECT, self.timeout)),
                default_headers=self.parameters.headers,
                http_client=anthropic.DefaultAioHttpClient(),
            )
            self.wire.at_close(client.close)
            self.clients.append(client)
        return self.clients[0]
