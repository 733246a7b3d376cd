"""Models behind Chat Completions: OpenAI's, and every server that speaks it (vLLM, SGLang, Gemini...).

Knows one provider's words: what a request looks like as JSON, what an answer means, which models reason. How
many are in flight, retried and paid for is `_wire.py`'s; how a picture becomes bytes `_images.py`'s. Must not
know tasks or methods.

    openai:gpt-4o      openai:gpt-5-mini,effort=low      openai:Qwen/Qwen3-VL-8B,base_url=http://gpu:8000/v1

Source: platform.openai.com, "Chat Completions" (reference), "Images and vision", "Reasoning models".
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from adapters import _prices
from adapters._batches import Batches, OpenAIBatches, Written
from adapters._images import GENERIC_LIMITS, OPENAI_LIMITS, Encoded, Images
from adapters._wire import Again, Wire, explain, redacted
from harness.errors import CapabilityError, ModelError
from harness.types import Capability, Decoding, Journal, Json, Model, Pace, Request, Response, Usage, digest

if TYPE_CHECKING:
    from openai import AsyncOpenAI

OFFICIAL = "https://api.openai.com/v1"
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Detail = Literal["auto", "low", "high", "original"]
Likelihood = Literal["none", "vllm"]

THINKING = 8192
"""New tokens that a reasoning model may spend unseen, on top of a request's own `max_tokens`."""
CONNECT = 30.0  # seconds to open a connection
GROUP = 64  # requests per group: few threads wait for groups, and records still land often
BATCH = 50_000  # requests per group with batch=true: everything at once


def model(
    model: str,
    *,
    base_url: str = OFFICIAL,
    key_env: str = "OPENAI_API_KEY",
    concurrency: int = 64,
    requests_per_minute: int | None = None,
    tokens_per_minute: int | None = None,
    timeout: float = 600.0,
    retries: int = 6,
    effort: Effort | None = None,
    reasoning_tokens: int | None = None,
    detail: Detail | None = None,
    top_logprobs: int = 0,
    likelihood: Likelihood = "none",
    price: str | None = None,
    batch: bool = False,
    journal: Journal | None = None,
) -> Model:
    """A model by its name at `base_url`.

    key_env: the environment variable that holds the key; a server of one's own needs none. concurrency:
    requests in flight; requests_per_minute, tokens_per_minute: the account's limits, where its answers do
    not say them. timeout: seconds per attempt. effort: of reasoning. reasoning_tokens: new tokens granted
    for reasoning beside the answer's own (8192 where OpenAI's model reasons, else 0). detail: of pictures.
    top_logprobs: keep that many log probabilities of the answer's first token in the trace (20 at most).
    likelihood: `vllm` scores given texts by vLLM's `prompt_logprobs`, which no other server has, with a call
    for the prompt and one for each text; unlike an hf: model's, a text's score has no end token.
    price: IN/OUT, dollars per million tokens, for a server that no price list knows. batch: hand
    everything in through the Batch API: half the price, answered within a day; repeating an interrupted
    command collects it.
    """
    if timeout <= 0:
        raise ValueError(f"timeout is {timeout}; it must be more than 0 seconds")
    if not 0 <= top_logprobs <= 20:
        raise ValueError(f"top_logprobs is {top_logprobs}; the API gives 0 to 20")
    if top_logprobs and reasons(model, effort):
        raise ValueError(f"{model} reasons, and gives no log probabilities; some models do with effort=none")
    if likelihood == "vllm" and (base_url == OFFICIAL or batch):
        raise ValueError("likelihood=vllm is for a vLLM server's base_url, and not for batch=true")
    if reasoning_tokens is not None and reasoning_tokens < 0:
        raise ValueError(f"reasoning_tokens is {reasoning_tokens}; it must be 0 or more")
    if not re.match(r"https?://", base_url) or "@" in urlsplit(base_url).netloc:
        raise ValueError("base_url is not http(s)://HOST/... without a user or password in it")
    return OpenAI(
        base_url=base_url,
        key_env=key_env,
        timeout=timeout,
        parameters=Parameters(
            model,
            effort,
            (THINKING if reasons(model, effort) else 0) if reasoning_tokens is None else reasoning_tokens,
            detail,
            top_logprobs,
            likelihood,
        ),
        price=None if price is None else _prices.stated(price),
        batch=batch,
        journal=journal,
        wire=Wire(concurrency, requests_per_minute, tokens_per_minute, retries),
        images=Images(OPENAI_LIMITS if base_url == OFFICIAL else GENERIC_LIMITS),
    )


def newer(model: str) -> bool:
    """Whether a name is of OpenAI's o series or GPT-5 and later, which want `max_completion_tokens`.

    >>> [newer(name) for name in ("o4-mini-2025-04-16", "gpt-5.2", "gpt-4o", "gpt-oss-20b", "openchat")]
    [True, True, False, False, False]
    """
    return re.match(r"(?:ft:)?(?:o[1-9]|gpt-[5-9])(?![a-z])", model) is not None


def reasons(model: str, effort: Effort | None = None) -> bool:
    """Whether a model of OpenAI's reasons; it then takes no temperature, top_p, seed, stop texts or logprobs.

    >>> reasons("gpt-5-mini"), reasons("gpt-5.2", "none"), reasons("gpt-5.3-chat-latest"), reasons("gpt-4o")
    (True, False, False, False)
    """
    return newer(model) and "-chat" not in model and effort != "none"


@dataclass(frozen=True)
class Parameters:
    """What decides answers beside the request."""

    model: str
    effort: Effort | None = None
    reasoning_tokens: int = 0
    detail: Detail | None = None
    top_logprobs: int = 0
    likelihood: Likelihood = "none"

    @property
    def reasons(self) -> bool:
        return reasons(self.model, self.effort)


# ---------------------------------------------------------------- a request, and an answer, as JSON


def body(request: Request, pictures: Sequence[Encoded], parameters: Parameters) -> dict[str, Any]:
    """The JSON to send: pictures in prompt order, then the text.

    A reasoning model gets no temperature, top_p, seed or stop texts (the API refuses them), and its limit of
    new tokens holds its reasoning too. The seed is sent where something is drawn.
    """
    decoding = request.decoding
    content: str | list[dict[str, Any]] = request.text
    if pictures:
        content = [_picture(picture, parameters.detail) for picture in pictures]
        content += [{"type": "text", "text": request.text}] if request.text else []
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
    if request.system is not None:
        messages.insert(0, {"role": "system", "content": request.system})
    sent: dict[str, Any] = {"model": parameters.model, "messages": messages}
    most = decoding.max_tokens + parameters.reasoning_tokens
    sent["max_completion_tokens" if newer(parameters.model) else "max_tokens"] = most
    if not parameters.reasons:
        sent["temperature"] = decoding.temperature
        if decoding.top_p is not None:
            sent["top_p"] = decoding.top_p
        if decoding.temperature:
            sent["seed"] = decoding.seed
        if decoding.stop:
            sent["stop"] = list(decoding.stop)
    if parameters.effort is not None:
        sent["reasoning_effort"] = parameters.effort
    if parameters.top_logprobs:
        sent |= {"logprobs": True, "top_logprobs": parameters.top_logprobs}
    return sent


def _picture(picture: Encoded, detail: Detail | None) -> dict[str, Any]:
    url: dict[str, str] = {"url": f"data:{picture.media_type};base64,{picture.data}"}
    if detail is not None:
        url["detail"] = detail
    return {"type": "image_url", "image_url": url}


def parsed(reply: Any) -> Response:
    """What an answer says; its price is not in it. Raises ValueError for what is no answer.

    finish_reason: stop, length, content_filter, refusal (the text is then the refusal's), or the server's
    own word. trace: the model's dated name, tokens cached and reasoned, reasoning that a server shows.
    """
    try:
        (choice, *_) = reply["choices"]
        message = choice["message"]
        text, refusal = message.get("content") or "", message.get("refusal")
        used = reply.get("usage") or {}
        details = (used.get("prompt_tokens_details") or {}) | (used.get("completion_tokens_details") or {})
        usage = Usage(
            calls=1,
            tokens_in=int(used.get("prompt_tokens") or 0),
            tokens_out=int(used.get("completion_tokens") or 0),
            dollars=None,
        )
        trace: dict[str, Json] = {"model": reply.get("model")}
        for name in ("cached_tokens", "reasoning_tokens"):
            if details.get(name):
                trace[name] = int(details[name])
        reasoning = message.get("reasoning_content") or message.get("reasoning")
        if reasoning:
            trace["reasoning"] = reasoning
        if choice.get("logprobs"):
            trace["top_logprobs"] = _first_token(choice["logprobs"])
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ValueError(f"no Chat Completions answer ({type(error).__name__}): {reply}") from None
    if refusal:
        return Response(str(refusal), "refusal", usage, trace)
    return Response(str(text), choice.get("finish_reason") or "unknown", usage, trace)


def _first_token(logprobs: Mapping[str, Any]) -> dict[str, Json]:
    """{token: log probability in nats} of the answer's first token, as many as were asked for."""
    (first, *_) = logprobs["content"] or [{"top_logprobs": []}]
    found: dict[str, float] = {}
    for each in first["top_logprobs"]:
        # Different bytes may show as the same text; their probabilities are of one text.
        before = found.get(each["token"], -math.inf)
        high, low = max(before, each["logprob"]), min(before, each["logprob"])
        found[each["token"]] = high + math.log1p(math.exp(low - high))
    return dict(found)


def prompt_tokens(reply: Any) -> list[tuple[str, float]]:
    """vLLM's `prompt_logprobs`: per token of the prompt its id and log probability (0 for the first).

    Raises ValueError where there are none. Asked for with 0, each position names its own token alone.
    """
    try:
        found = [
            next(iter(each.items())) if each else ("", {"logprob": 0.0}) for each in reply["prompt_logprobs"]
        ]
        return [(token, float(what["logprob"])) for token, what in found]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(
            f"no prompt_logprobs ({type(error).__name__}): likelihood=vllm is for vLLM alone: {reply}"
        ) from None


def departed(prompt: Sequence[tuple[str, float]], whole: Sequence[tuple[str, float]]) -> tuple[float, int]:
    """Of the tokens of `whole` from where it departs from `prompt`: summed NLL (nats), and their number.

    >>> departed([("1", 0), ("2", -1)], [("1", 0), ("2", -1), ("7", -0.5), ("8", -2)])
    (2.5, 2)
    """
    same = next(
        (n for n, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a[0] != b[0]),
        min(len(prompt), len(whole)),
    )
    tail = whole[same:]
    if not tail:
        raise ValueError("the text adds no token to the prompt")
    return -sum(chance for _, chance in tail), len(tail)


def cut(text: str, stop: Sequence[str]) -> str:
    """`text` up to its first stop text, for models that take none.

    >>> cut("yes. no. maybe", (" maybe", ". "))
    'yes'
    """
    return text[: min((place for each in stop if (place := text.find(each)) >= 0), default=len(text))]


def written(
    request: Request, pictures: Sequence[Encoded], parameters: Parameters, scoring: str | None = None
) -> bytes:
    """`body` as JSON. Pictures go in afterwards: base64 has nothing to escape, and is nearly all of it.

    scoring: the beginning of an answer, or "" for none, whose log probabilities vLLM is to give.
    """
    token = secrets.token_hex(16)  # no prompt contains it
    marks = [f"{token}{place:04}" for place in range(len(pictures))]
    marked = [dataclasses.replace(picture, data=mark) for picture, mark in zip(pictures, marks, strict=True)]
    sent = body(request, marked, parameters)
    if scoring is not None:
        sent["prompt_logprobs"] = 0
    if scoring:
        sent["messages"].append({"role": "assistant", "content": scoring})
        sent |= {"continue_final_message": True, "add_generation_prompt": False}
    text = json.dumps(sent, ensure_ascii=False)
    for picture, mark in zip(pictures, marks, strict=True):
        text = text.replace(mark, picture.data)
    return text.encode("utf-8", "replace")


# ---------------------------------------------------------------- the model


@dataclass(frozen=True, eq=False)
class OpenAI:
    """One model of one server. `model()` makes it."""

    base_url: str
    key_env: str
    timeout: float
    parameters: Parameters
    price: tuple[float, float] | None
    batch: bool
    journal: Journal | None
    wire: Wire
    images: Images
    clients: list[AsyncOpenAI] = field(default_factory=list)  # the one, made in the loop when first needed

    @property
    def offers(self) -> frozenset[Capability]:
        return frozenset({Capability.LIKELIHOOD} if self.parameters.likelihood == "vllm" else ())

    @property
    def pace(self) -> Pace:
        if self.batch:
            return Pace(group=BATCH)
        # A group waits for its slowest answer: sixteen groups for each slots' worth keep every slot busy
        # meanwhile (benchmarks/api.py, heavy tail: 0.97 of the slots in use; with six, 0.59).
        return Pace(group=GROUP, in_flight=16 * math.ceil(self.wire.limits.most / GROUP))

    def describe(self) -> dict[str, Any]:
        """The host without its port: where a server of one's own listens says nothing about its answers."""
        return {
            "adapter": "openai",
            "host": urlsplit(self.base_url).hostname,
            **dataclasses.asdict(self.parameters),
            "sampling": "the model's own" if self.parameters.reasons else "as asked",
            "images": dataclasses.asdict(self.images.limits),
        }

    def estimate(self, request: Request) -> Usage:
        """The most that a request can use."""
        most = request.decoding.max_tokens + self.parameters.reasoning_tokens
        detail = self.parameters.detail or "auto"
        once = _prices.at_most(
            self.provider, self.parameters.model, request, most, detail, self.batch, self.price
        )
        return sum((once for _ in request.options), once)  # the prompt, and then each option behind it

    @property
    def provider(self) -> str:
        return _prices.provider_of(self.base_url)

    @property
    def prices(self) -> str:
        """Where its prices come from."""
        return _prices.version() if self.price is None else "stated: ${:g} in, ${:g} out".format(*self.price)

    def generate(self, requests: Sequence[Request]) -> list[Response]:
        scores = Capability.LIKELIHOOD in self.offers
        if any(request.probes or (request.options and not scores) for request in requests):
            raise CapabilityError(
                f"openai:{self.parameters.model} generates text only: it scores no options and reads no "
                "probes. Use an hf: model (a vLLM server scores options with likelihood=vllm)"
            )
        self._key()
        if self.batch:
            return self._batched(requests)
        return self.wire.answer(requests, self._send, self.estimate)

    async def _send(self, request: Request) -> Response:
        if request.decoding.max_tokens == 0 and not request.options:
            return Response(finish_reason="length")
        among = len(request.images)
        pictures = [await self.images.get(picture, among) for picture in request.images]
        notes = [picture.note for picture in pictures]
        if request.options:
            return await self._scored(request, pictures, notes)
        content = written(request, pictures, self.parameters)
        del pictures  # a thousand waiting requests hold their bytes once
        reply = await self._post(content)
        if isinstance(reply, Response):
            return reply
        try:
            response = parsed(reply)
        except ValueError as error:
            raise Again(redacted(str(error), self.key_env), kind="malformed_answer") from None
        return self.completed(request, response, notes)

    async def _scored(
        self, request: Request, pictures: Sequence[Encoded], notes: Sequence[str | None]
    ) -> Response:
        """The options' likelihoods: the prompt once, then each option as the beginning of the answer."""
        asked = dataclasses.replace(request, decoding=Decoding(max_tokens=1), options=())
        total, tokens = Usage(), []
        for text in ("", *request.options):
            reply = await self._post(written(asked, pictures, self.parameters, text))
            if isinstance(reply, Response):
                return reply
            try:
                total += self.completed(asked, parsed(reply), notes).usage
                tokens.append(prompt_tokens(reply))
            except ValueError as error:
                raise Again(redacted(str(error), self.key_env), kind="malformed_answer") from None
        try:
            scores = tuple(departed(tokens[0], whole) for whole in tokens[1:])
        except ValueError as error:
            return Response.failed("prompt", str(error), usage=total)
        return Response(usage=total, option_nll=scores)

    async def _post(self, content: bytes) -> Any:
        """The answer's JSON, or the response that says why there is none."""
        import httpx2
        import openai

        try:
            raw = await self._client().post(
                "/chat/completions",
                content=content,
                cast_to=httpx2.Response,
                options={"headers": {"Content-Type": "application/json"}},
            )
        except openai.APIStatusError as error:
            self.wire.heard(error.response.headers)
            return explain(error, self.key_env)
        except openai.APIError as error:
            return explain(error, self.key_env)
        self.wire.heard(raw.headers)
        try:
            return json.loads(raw.content)
        except ValueError as error:  # a body that was cut
            raise Again(redacted(str(error), self.key_env), kind="malformed_answer") from None

    def completed(self, request: Request, response: Response, notes: Sequence[str | None]) -> Response:
        """An answer with its price, its stop texts applied, and what was done to its pictures."""
        usage, trace = response.usage, dict(response.trace)
        cached = trace.get("cached_tokens", 0)
        dollars = None
        if usage.tokens_in:
            dollars = _prices.dollars(
                self.provider,
                self.parameters.model,
                usage.tokens_in,
                usage.tokens_out,
                cached if isinstance(cached, int) else 0,
                self.batch,
                self.price,
            )
        if any(notes):
            trace["images"] = list(notes)
        text = cut(response.text, request.decoding.stop) if self.parameters.reasons else response.text
        usage = dataclasses.replace(usage, images=len(notes), dollars=dollars)
        return dataclasses.replace(response, text=text, usage=usage, trace=trace)

    def _batched(self, requests: Sequence[Request]) -> list[Response]:
        import openai

        with openai.OpenAI(
            api_key=self._key(),
            base_url=self.base_url,
            max_retries=0,  # a batch asked for twice is bought twice; `_batches.py` knows when to try again
            timeout=openai.Timeout(self.timeout, connect=min(CONNECT, self.timeout)),
        ) as client:
            service = OpenAIBatches(client, self.key_env)
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
        """From the environment. ModelError where OpenAI's own API would be asked without one."""
        key = os.environ.get(self.key_env, "")
        if not key and self.base_url == OFFICIAL:
            raise ModelError(f"{self.key_env} is not set. Export your key as {self.key_env}")
        return key or "none"

    def _client(self) -> AsyncOpenAI:
        if not self.clients:
            import openai

            client = openai.AsyncOpenAI(
                api_key=self._key(),
                base_url=self.base_url,
                max_retries=0,  # the wire retries
                timeout=openai.Timeout(self.timeout, connect=min(CONNECT, self.timeout)),
                http_client=openai.DefaultAioHttpClient(),
            )
            self.wire.at_close(client.close)
            self.clients.append(client)
        return self.clients[0]
