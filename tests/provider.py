"""A provider on loopback: a real HTTP server that speaks Chat Completions and Messages to the real clients.

What it answers is a function of the request, with its faults; what it saw is kept. Knows the wire formats;
must not know the adapters.

    with Provider(lambda seen: Reply("yes") if seen.attempt > 1 else Reply(status=429)) as provider:
        model(base_url=provider.url)
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Self

from aiohttp import web

Body = dict[str, Any]


@dataclass(frozen=True)
class Seen:
    """One request as it came in. attempt: 1 for the first of this body. at: seconds, monotonic."""

    path: str
    body: Body
    headers: dict[str, str]
    attempt: int
    at: float

    @property
    def text(self) -> str:
        """The text of the last message, its parts joined."""
        content = self.body["messages"][-1]["content"]
        if isinstance(content, str):
            return content
        return "".join(part.get("text", "") for part in content if part["type"] == "text")


@dataclass(frozen=True)
class Reply:
    """What to answer. status other than 200: `text` is the error's message and `code` its code.

    delay: seconds before it. drop: cut the connection instead. raw: this body, whatever it is.
    extra: merged into the choice (Chat Completions) or the message (Messages).
    """

    text: str = "yes"
    finish_reason: str | None = None
    status: int = 200
    code: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    drop: bool = False
    raw: bytes | None = None
    usage: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)


Answer = Callable[[Seen], Reply | str]


def in_turn(*replies: Reply) -> Answer:
    """The first reply to a body's first attempt, and so on; the last one from then on."""
    return lambda seen: replies[min(seen.attempt, len(replies)) - 1]


class Provider:
    """The server, in a thread of its own. `seen`: every request in order; `answered`: those that got an
    answer, and so are paid for; `most`: the most at once."""

    def __init__(self, answer: Answer = lambda _: "yes", port: int = 0) -> None:
        self.answer = answer
        self.port = port
        self.seen: list[Seen] = []
        self.answered: list[Seen] = []
        self.most = 0
        self.open = 0
        self._attempts: Counter[str] = Counter()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="provider", daemon=True)

    @property
    def url(self) -> str:
        """The base URL of OpenAI's client; `host` is that of Anthropic's."""
        return f"{self.host}/v1"

    @property
    def host(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def bodies(self) -> list[Body]:
        return [seen.body for seen in self.seen]

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._serve(), self._loop).result(10)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _serve(self) -> None:
        app = web.Application(client_max_size=2**30)
        app.add_routes(self.routes())
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def _close(self) -> None:
        await self._runner.cleanup()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def routes(self) -> list[web.RouteDef]:
        return [
            web.post("/v1/chat/completions", self._chat_completions),
            web.post("/v1/messages", self._messages),
        ]

    async def _chat_completions(self, request: web.Request) -> web.StreamResponse:
        return await self._handle(request, chat_completion, openai_error)

    async def _messages(self, request: web.Request) -> web.StreamResponse:
        return await self._handle(request, message, anthropic_error)

    async def _handle(
        self,
        request: web.Request,
        good: Callable[[Seen, Reply], Body],
        bad: Callable[[Reply], Body],
    ) -> web.StreamResponse:
        self.open += 1
        self.most = max(self.most, self.open)
        try:
            raw = await request.text()
            self._attempts[raw] += 1
            seen = Seen(
                request.path, json.loads(raw), dict(request.headers), self._attempts[raw], time.monotonic()
            )
            self.seen.append(seen)
            reply = self.answer(seen)
            if isinstance(reply, str):
                reply = Reply(reply)
            await asyncio.sleep(reply.delay)
            if reply.drop:
                assert request.transport is not None
                request.transport.abort()
                return web.Response()
            if reply.raw is not None:
                return web.Response(
                    body=reply.raw,
                    status=reply.status,
                    headers=reply.headers,
                    content_type="application/json",
                )
            body = good(seen, reply) if reply.status == 200 else bad(reply)
            response = web.json_response(body, status=reply.status, headers=reply.headers)
            if reply.status == 200:
                self.answered.append(seen)
            return response
        finally:
            self.open -= 1


def chat_completion(seen: Seen, reply: Reply) -> Body:
    """A Chat Completions object; a token is a word."""
    prompt, completion = _words(seen.body), len(reply.text.split())
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 0,
        "model": seen.body["model"],
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": reply.text, "refusal": None},
                "logprobs": None,
                "finish_reason": reply.finish_reason or "stop",
                **reply.extra,
            }
        ],
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            **reply.usage,
        },
    }


def openai_error(reply: Reply) -> Body:
    return {"error": {"message": reply.text, "type": "error", "param": None, "code": reply.code}}


def message(seen: Seen, reply: Reply) -> Body:
    """A Messages object; a token is a word."""
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": seen.body["model"],
        "content": [{"type": "text", "text": reply.text}],
        "stop_reason": reply.finish_reason or "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": _words(seen.body),
            "output_tokens": len(reply.text.split()),
            **reply.usage,
        },
        **reply.extra,
    }


def anthropic_error(reply: Reply) -> Body:
    return {"type": "error", "error": {"type": reply.code or "api_error", "message": reply.text}}


def _words(body: Body) -> int:
    """Words of all texts of a body's messages."""
    return sum(len(text.split()) for item in body["messages"] for text in _texts(item["content"]))


def _texts(content: str | list[Body]) -> Iterator[str]:
    if isinstance(content, str):
        yield content
    else:
        yield from (part["text"] for part in content if part["type"] == "text")
