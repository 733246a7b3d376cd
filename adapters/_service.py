"""A model that somebody else serves: the way of a request there and of its answer back.

Shared by the adapters for OpenAI and Anthropic. `ServiceModel` knows what is the same with both: pictures,
the official client, the key, the price, one by one or in batches. A provider's file adds the steps that are
its own: how a request is written, how an answer is read, which parameters its models take. How many are in
flight and retried is `_wire.py`'s, and what an error means; batches are `_batches.py`'s. Must not know what a
request or an answer of any provider looks like.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import math
import os
import re
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol
from urllib.parse import urlsplit

from adapters import _prices
from adapters._batches import AnthropicBatches, Batches, OpenAIBatches, Written
from adapters._images import Encoded, Images
from adapters._wire import Again, Wire, explain, redacted
from harness.errors import CapabilityError, ModelError
from harness.types import Capability, Journal, Pace, Request, Response, Usage, digest

THINKING = 8192
"""New tokens that a reasoning model may spend unseen, on top of a request's own `max_tokens`."""
CONNECT = 30.0  # seconds to open a connection


class Parameters(Protocol):
    """What decides answers beside the request: a frozen dataclass, all of whose fields are described."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def model(self) -> str: ...

    @property
    def reasoning_tokens(self) -> int:
        """New tokens granted on top of a request's own."""

    @property
    def samples(self) -> bool:
        """Whether the model takes temperature and top_p."""


@dataclass(frozen=True, eq=False)
class ServiceModel(ABC):
    """One model of one server. The adapters' `model()` makes it; ValueError for what cannot be.

    Of its provider, adapter: the name in specs. official: the address that is not asked without a key. path:
    where a request is posted. instead: what to use where more than text is asked for. group: requests that
    are handed over at once; spare: groups in flight for each slots' worth. batches: the batch API.
    """

    adapter: ClassVar[str]
    official: ClassVar[str]
    path: ClassVar[str]
    instead: ClassVar[str] = "Use an hf: model"
    group: ClassVar[int]
    spare: ClassVar[int]
    batches: ClassVar[type[OpenAIBatches | AnthropicBatches]]

    base_url: str
    key_env: str
    timeout: float
    parameters: Parameters
    price: _prices.Price | None
    batch: bool
    journal: Journal | None
    wire: Wire
    images: Images
    clients: list[Any] = field(default_factory=list)  # the one, made in the loop when first needed

    def __post_init__(self) -> None:
        if self.timeout <= 0:
            raise ValueError(f"timeout is {self.timeout}; it must be more than 0 seconds")
        if self.parameters.reasoning_tokens < 0:
            raise ValueError(f"reasoning_tokens is {self.parameters.reasoning_tokens}; it must be 0 or more")
        if not re.match(r"https?://", self.base_url) or "@" in urlsplit(self.base_url).netloc:
            raise ValueError("base_url is not http(s)://HOST/... without a user or password in it")

    # -------------------------------------------------------- a provider's own steps

    @property
    @abstractmethod
    def package(self) -> Any:
        """The official client's package. Both providers' have one shape, and one generator."""

    @abstractmethod
    def _body(self, request: Request, pictures: Sequence[Encoded]) -> dict[str, Any]:
        """The JSON that asks for an answer. Raises ModelError for what cannot be asked."""

    @abstractmethod
    def _parsed(self, reply: Any) -> Response:
        """What an answer says; its price is not in it. Raises ValueError for what is no answer."""

    @abstractmethod
    def _stopped(self, request: Request, response: Response) -> Response:
        """An answer cut at those stop texts that the service did not take."""

    @property
    def headers(self) -> dict[str, str]:
        """What the client sends with every request, beside its own."""
        return {}

    @property
    def detail(self) -> str:
        """In which detail the service looks at pictures, for their price."""
        return "auto"

    # -------------------------------------------------------- what it is

    @property
    def offers(self) -> frozenset[Capability]:
        return frozenset()

    @property
    def pace(self) -> Pace:
        if self.batch:
            return Pace(group=self.batches.most_requests)  # everything at once
        return Pace(group=self.group, in_flight=self.spare * math.ceil(self.wire.limits.most / self.group))

    def describe(self) -> dict[str, Any]:
        """The host without its port: where a server of one's own listens says nothing about its answers."""
        return {
            "adapter": self.adapter,
            "host": urlsplit(self.base_url).hostname,
            **dataclasses.asdict(self.parameters),
            "sampling": "as asked" if self.parameters.samples else "the model's own",
            "images": dataclasses.asdict(self.images.limits),
        }

    def estimate(self, request: Request) -> Usage:
        """The most that a request can use."""
        most = request.decoding.max_tokens + self.parameters.reasoning_tokens
        name = self.parameters.model
        return _prices.at_most(self.provider, name, request, most, self.detail, self.batch, self.price)

    @property
    def provider(self) -> str:
        return _prices.provider_of(self.base_url)

    @property
    def prices(self) -> str:
        """Where its prices come from."""
        return _prices.version() if self.price is None else "stated: ${:g} in, ${:g} out".format(*self.price)

    # -------------------------------------------------------- there and back

    def generate(self, requests: Sequence[Request]) -> list[Response]:
        scores = Capability.LIKELIHOOD in self.offers
        if any(request.probes or (request.options and not scores) for request in requests):
            raise CapabilityError(
                f"{self.adapter}:{self.parameters.model} generates text only: it scores no options and reads "
                f"no probes. {self.instead}"
            )
        self._key()
        _ = self.package  # imported in a second or two, which the loop must not wait for
        if not self.batch:
            return self.wire.answer(requests, self._send, self.estimate)
        with self._made(self.package.Client) as client:
            service = self.batches(client, self.key_env)
            batches = Batches(service, digest(self.describe()), self.journal, self.wire.retries)
            return batches.answer(requests, self._written, self._read, self.estimate)

    async def _send(self, request: Request) -> Response:
        if request.decoding.max_tokens == 0:
            return Response(finish_reason="length")
        pictures = await self._pictures(request)
        notes = [picture.note for picture in pictures]
        content = written(functools.partial(self._body, request), pictures)
        del pictures  # a thousand waiting requests hold their bytes once
        reply = await self._post(content)
        if isinstance(reply, Response):
            return reply
        with self._understood():
            response = self._parsed(reply)
        return self.completed(request, response, notes)

    async def _pictures(self, request: Request) -> list[Encoded]:
        return [await self.images.get(picture, len(request.images)) for picture in request.images]

    async def _post(self, content: bytes) -> Any:
        """The answer's JSON, or the response that says why there is none."""
        import httpx2

        try:
            raw = await self._client().post(
                self.path,
                content=content,
                cast_to=httpx2.Response,
                options={"headers": {"Content-Type": "application/json"}},
            )
        except self.package.APIStatusError as error:
            self.wire.heard(error.response.headers)
            return explain(error, self.key_env)
        except self.package.APIError as error:
            return explain(error, self.key_env)
        self.wire.heard(raw.headers)
        with self._understood():
            return json.loads(raw.content)

    @contextlib.contextmanager
    def _understood(self) -> Iterator[None]:
        """Another attempt may bring what is no answer now, such as a body that was cut."""
        try:
            yield
        except ValueError as error:
            raise Again(redacted(str(error), self.key_env), kind="malformed_answer") from None

    def completed(self, request: Request, response: Response, notes: Sequence[str | None]) -> Response:
        """An answer with its price, its stop texts applied, and what was done to its pictures."""
        usage, cached = response.usage, response.trace.get("cached_tokens", 0)
        dollars = None
        if usage.tokens_in:  # else a server that does not count
            dollars = _prices.dollars(
                self.provider,
                self.parameters.model,
                usage.tokens_in,
                usage.tokens_out,
                cached if isinstance(cached, int) else 0,
                self.batch,
                self.price,
            )
        return dataclasses.replace(
            self._stopped(request, response),
            usage=dataclasses.replace(usage, images=len(request.images), dollars=dollars),
            trace={**response.trace, **({"images": list(notes)} if any(notes) else {})},
        )

    def _written(self, request: Request) -> Written | Response:
        """One line of a batch."""
        if request.decoding.max_tokens == 0:
            return Response(finish_reason="length")
        limits = self.images.limits.among(len(request.images))
        pictures = [self.images.encoded(picture, limits) for picture in request.images]
        return self._body(request, pictures), [picture.note for picture in pictures]

    def _read(self, request: Request, reply: dict[str, Any], notes: Sequence[str | None]) -> Response:
        return self.completed(request, self._parsed(reply), notes)

    # -------------------------------------------------------- the client

    def _key(self) -> str:
        """From the environment. ModelError where the provider's own API would be asked without one."""
        key = os.environ.get(self.key_env, "")
        if not key and self.base_url == self.official:
            raise ModelError(f"{self.key_env} is not set. Export your key as {self.key_env}")
        return key or "none"

    def _made(self, kind: Any, **more: Any) -> Any:
        """A client that tries once: the wire tries again, and a batch asked for twice is bought twice."""
        return kind(
            api_key=self._key(),
            base_url=self.base_url,
            max_retries=0,
            timeout=self.package.Timeout(self.timeout, connect=min(CONNECT, self.timeout)),
            default_headers=self.headers,
            **more,
        )

    def _client(self) -> Any:
        if not self.clients:
            transport = self.package.DefaultAioHttpClient()
            client = self._made(self.package.AsyncClient, http_client=transport)
            self.wire.at_close(client.close)
            self.clients.append(client)
        return self.clients[0]


def written(write: Callable[[Sequence[Encoded]], Mapping[str, Any]], pictures: Sequence[Encoded]) -> bytes:
    """What `write` makes of pictures, as JSON. They go in afterwards: base64 has nothing to escape, and is
    nearly all of it."""
    token = secrets.token_hex(16)  # no prompt contains it
    marks = [f"{token}{place:04}" for place in range(len(pictures))]
    marked = [dataclasses.replace(picture, data=mark) for picture, mark in zip(pictures, marks, strict=True)]
    text = json.dumps(write(marked), ensure_ascii=False)
    for picture, mark in zip(pictures, marks, strict=True):
        text = text.replace(mark, picture.data)
    return text.encode("utf-8", "replace")


def cut(text: str, stop: Sequence[str]) -> str:
    """`text` up to its first stop text, for models that take none.

    >>> cut("yes. no. maybe", (" maybe", ". "))
    'yes'
    """
    return text[: min((place for each in stop if (place := text.find(each)) >= 0), default=len(text))]
