"""Models behind Chat Completions: OpenAI's, and every server that speaks it (vLLM, SGLang, Gemini...).

Knows one provider's words: what a request looks like as JSON, what an answer means, which models reason. The
way there and back is `_service.py`'s; how a picture becomes bytes `_images.py`'s. Must not know tasks or
methods.

    openai:gpt-4o      openai:gpt-5-mini,effort=low      openai:Qwen/Qwen3-VL-8B,base_url=http://gpu:8000/v1

Source: platform.openai.com, "Chat Completions" (reference), "Images and vision", "Reasoning models".
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from adapters import _prices
from adapters._batches import OpenAIBatches
from adapters._images import GENERIC_LIMITS, OPENAI_LIMITS, Encoded, Images
from adapters._service import THINKING, ServiceModel, cut, written
from adapters._wire import Wire
from harness.types import Capability, Decoding, Journal, Json, Model, Request, Response, Usage

OFFICIAL = "https://api.openai.com/v1"
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Detail = Literal["auto", "low", "high", "original"]
Likelihood = Literal["none", "vllm"]


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
    if not 0 <= top_logprobs <= 20:
        raise ValueError(f"top_logprobs is {top_logprobs}; the API gives 0 to 20")
    if top_logprobs and reasons(model, effort):
        raise ValueError(f"{model} reasons, and gives no log probabilities; some models do with effort=none")
    if likelihood == "vllm" and (base_url == OFFICIAL or batch):
        raise ValueError("likelihood=vllm is for a vLLM server's base_url, and not for batch=true")
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
    def samples(self) -> bool:
        """Whether temperature, top_p, seed and stop texts are sent."""
        return not reasons(self.model, self.effort)


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
    if parameters.samples:
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


def asking(
    request: Request, parameters: Parameters, beginning: str, pictures: Sequence[Encoded]
) -> dict[str, Any]:
    """`body`, asking vLLM for the log probabilities of the prompt and of the answer's `beginning` too."""
    sent = body(request, pictures, parameters) | {"prompt_logprobs": 0}
    if beginning:
        sent["messages"].append({"role": "assistant", "content": beginning})
        sent |= {"continue_final_message": True, "add_generation_prompt": False}
    return sent


# ---------------------------------------------------------------- the model


@dataclass(frozen=True, eq=False)
class OpenAI(ServiceModel):
    """One model of one server. `model()` makes it."""

    adapter = "openai"
    official = OFFICIAL
    path = "/chat/completions"
    instead = "Use an hf: model (a vLLM server scores options with likelihood=vllm)"
    group = 64  # few threads wait for groups, and records still land often
    # A group waits for its slowest answer: sixteen groups for each slots' worth keep every slot busy
    # meanwhile (benchmarks/api.py, heavy tail: 0.97 of the slots in use; with six, 0.59).
    spare = 16
    batches = OpenAIBatches
    _parsed = staticmethod(parsed)

    parameters: Parameters

    @property
    def package(self) -> Any:
        import openai

        return openai

    @property
    def offers(self) -> frozenset[Capability]:
        return frozenset({Capability.LIKELIHOOD} if self.parameters.likelihood == "vllm" else ())

    @property
    def detail(self) -> str:
        return self.parameters.detail or "auto"

    def estimate(self, request: Request) -> Usage:
        once = super().estimate(request)
        return sum((once for _ in request.options), once)  # the prompt, and then each option behind it

    def _body(self, request: Request, pictures: Sequence[Encoded]) -> dict[str, Any]:
        return body(request, pictures, self.parameters)

    def _stopped(self, request: Request, response: Response) -> Response:
        if self.parameters.samples:
            return response
        return dataclasses.replace(response, text=cut(response.text, request.decoding.stop))

    async def _send(self, request: Request) -> Response:
        return await (self._scored(request) if request.options else super()._send(request))

    async def _scored(self, request: Request) -> Response:
        """The options' likelihoods: the prompt once, then each option as the beginning of the answer."""
        asked = dataclasses.replace(request, decoding=Decoding(max_tokens=1), options=())
        pictures = await self._pictures(request)
        notes = [picture.note for picture in pictures]
        total, tokens = Usage(), []
        for text in ("", *request.options):
            write = functools.partial(asking, asked, self.parameters, text)
            reply = await self._post(written(write, pictures))
            if isinstance(reply, Response):
                return reply
            with self._understood():
                total += self.completed(asked, parsed(reply), notes).usage
                tokens.append(prompt_tokens(reply))
        try:
            scores = tuple(departed(tokens[0], whole) for whole in tokens[1:])
        except ValueError as error:
            return Response.failed("prompt", str(error), usage=total)
        return Response(usage=total, option_nll=scores)
