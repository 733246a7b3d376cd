"""The loopback provider with its two batch APIs: OpenAI's files and batches, Anthropic's Message Batches.

Each item of a batch is answered by the provider's `answer`, when the batch ends: a `Reply` whose status is
not 200 is an item's error, and one whose code is `expired` or `cancelled` never ran.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from aiohttp import web

from tests.provider import (
    Answer,
    Body,
    Provider,
    Reply,
    Seen,
    anthropic_error,
    chat_completion,
    message,
    openai_error,
)


@dataclass
class Batch:
    """A batch as it came in. lines: (custom id, body)."""

    id: str
    lines: list[tuple[str, Body]]
    metadata: dict[str, str] = field(default_factory=dict)
    created: float = field(default_factory=time.time)
    refused: list[dict[str, Any]] = field(default_factory=list)
    looks: int = 0


class BatchProvider(Provider):
    """looks: how often a batch is looked at before it has ended. hold: no batch ends until this is set.

    creation: what becomes of the n-th attempt to create a batch (from 0): `fine`; `lost`: created, and the
    connection cut; `mute`: created, and never answered; `busy`: 429; `refused`: 401. cuts: how
    many transfers of results break in the midst. check: errors of a file's validation.
    """

    def __init__(self, answer: Answer = lambda _: "yes", looks: int = 1) -> None:
        super().__init__(answer)
        self.looks = looks
        self.hold: threading.Event | None = None
        self.creation: Callable[[int], Literal["fine", "lost", "mute", "busy", "refused"]] = lambda _: "fine"
        self.check: Callable[[list[Body]], list[dict[str, Any]]] = lambda _: []
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, Batch] = {}
        self.attempts = 0
        self.cuts = 0
        self.lists = 0

    def routes(self) -> list[web.RouteDef]:
        return [
            *super().routes(),
            web.post("/v1/files", self._upload),
            web.get("/v1/files/{id}/content", self._content),
            web.post("/v1/batches", self._create_openai),
            web.get("/v1/batches", self._list_openai),
            web.get("/v1/batches/{id}", self._look_openai),
            web.post("/v1/messages/batches", self._create_anthropic),
            web.get("/v1/messages/batches", self._list_anthropic),
            web.get("/v1/messages/batches/{id}", self._look_anthropic),
            web.get("/v1/messages/batches/{id}/results", self._results_anthropic),
        ]

    async def _created(self, request: web.Request, batch: Batch, shown: Body) -> web.StreamResponse:
        fate = self.creation(self.attempts)
        self.attempts += 1
        if fate in ("busy", "refused"):
            status = 429 if fate == "busy" else 401
            return web.json_response(openai_error(Reply("no")), status=status)
        self.batches[batch.id] = batch
        if fate == "mute":
            await asyncio.sleep(60)
        if fate == "lost":
            assert request.transport is not None
            request.transport.abort()
            raise ConnectionResetError
        return web.json_response(shown)

    async def _sent(self, request: web.Request, lines: bytes) -> web.StreamResponse:
        if self.cuts == 0:
            return web.Response(body=lines, content_type="application/x-jsonl")
        self.cuts -= 1
        response = web.StreamResponse()
        response.content_length = len(lines)
        await response.prepare(request)
        await response.write(lines[: len(lines) * 2 // 3])
        await asyncio.sleep(0.1)
        assert request.transport is not None
        request.transport.abort()
        return response

    def _has_ended(self, batch: Batch) -> bool:
        return batch.looks >= self.looks and (self.hold is None or self.hold.is_set())

    def _reply(self, body: Body) -> tuple[Seen, Reply]:
        seen = Seen("batch", body, {}, 1, time.monotonic())
        self.seen.append(seen)
        reply = self.answer(seen)
        return seen, Reply(reply) if isinstance(reply, str) else reply

    # -------------------------------------------------------- OpenAI

    async def _upload(self, request: web.Request) -> web.StreamResponse:
        form = await request.post()
        assert form["purpose"] == "batch"
        part = form["file"]
        assert isinstance(part, web.FileField)
        name = f"file-{len(self.files)}"
        self.files[name] = part.file.read()
        shown = {"id": name, "object": "file", "bytes": len(self.files[name]), "created_at": 0}
        return web.json_response(shown | {"filename": "f", "purpose": "batch", "status": "processed"})

    async def _content(self, request: web.Request) -> web.StreamResponse:
        return await self._sent(request, self.files[request.match_info["id"]])

    async def _create_openai(self, request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        assert asked["endpoint"] == "/v1/chat/completions" and asked["completion_window"] == "24h"
        lines = [json.loads(line) for line in self.files[asked["input_file_id"]].splitlines()]
        assert all((line["method"], line["url"]) == ("POST", asked["endpoint"]) for line in lines)
        pairs = [(line["custom_id"], line["body"]) for line in lines]
        batch = Batch(f"batch_{len(self.batches)}", pairs, asked["metadata"])
        batch.refused = self.check(lines)
        return await self._created(request, batch, self._shown_openai(batch))

    async def _list_openai(self, request: web.Request) -> web.StreamResponse:
        self.lists += 1
        batches = [self._shown_openai(batch) for batch in reversed(self.batches.values())]
        return web.json_response({"object": "list", "data": batches, "has_more": False})

    async def _look_openai(self, request: web.Request) -> web.StreamResponse:
        batch = self.batches.get(request.match_info["id"])
        if batch is None:
            return web.json_response(openai_error(Reply("no such batch")), status=404)
        batch.looks += 1
        return web.json_response(self._shown_openai(batch))

    def _shown_openai(self, batch: Batch) -> Body:
        shown: Body = {
            "id": batch.id,
            "object": "batch",
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
            "input_file_id": "file-0",
            "created_at": int(batch.created),
            "metadata": batch.metadata,
            "status": "in_progress",
            "request_counts": {"total": len(batch.lines), "completed": 0, "failed": 0},
        }
        if batch.refused:
            return shown | {"status": "failed", "errors": {"object": "list", "data": batch.refused}}
        if not self._has_ended(batch):
            return shown
        if f"{batch.id}-good" not in self.files:
            self._write_openai(batch)
        good, bad = (self.files[f"{batch.id}-{which}"] for which in ("good", "bad"))
        shown["status"] = "expired" if b"batch_expired" in bad else "completed"
        shown["request_counts"] |= {"completed": good.count(b"\n"), "failed": bad.count(b"\n")}
        shown["output_file_id"] = f"{batch.id}-good" if good else None
        shown["error_file_id"] = f"{batch.id}-bad" if bad else None
        return shown

    def _write_openai(self, batch: Batch) -> None:
        good, bad = bytearray(), bytearray()
        for custom_id, body in reversed(batch.lines):  # in another order than they were asked
            seen, reply = self._reply(body)
            item: Body = {"id": "r", "custom_id": custom_id, "response": None, "error": None}
            if reply.code in ("expired", "cancelled"):
                item["error"] = {"code": f"batch_{reply.code}", "message": "never ran"}
            else:
                content = chat_completion(seen, reply) if reply.status == 200 else openai_error(reply)
                item["response"] = {"status_code": reply.status, "request_id": "q", "body": content}
            line = json.dumps(item).encode() + b"\n"
            (good if reply.status == 200 and not reply.code else bad).extend(line)
        self.files |= {f"{batch.id}-good": bytes(good), f"{batch.id}-bad": bytes(bad)}

    # -------------------------------------------------------- Anthropic

    async def _create_anthropic(self, request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        pairs = [(line["custom_id"], line["params"]) for line in asked["requests"]]
        batch = Batch(f"msgbatch_{len(self.batches)}", pairs)
        return await self._created(request, batch, self._shown_anthropic(batch))

    async def _list_anthropic(self, request: web.Request) -> web.StreamResponse:
        self.lists += 1
        batches = [self._shown_anthropic(batch) for batch in reversed(self.batches.values())]
        return web.json_response({"data": batches, "has_more": False, "first_id": None, "last_id": None})

    async def _look_anthropic(self, request: web.Request) -> web.StreamResponse:
        batch = self.batches.get(request.match_info["id"])
        if batch is None:
            return web.json_response(anthropic_error(Reply("no such batch")), status=404)
        batch.looks += 1
        return web.json_response(self._shown_anthropic(batch))

    def _shown_anthropic(self, batch: Batch) -> Body:
        ended = self._has_ended(batch)
        number = len(batch.lines)
        created = datetime.fromtimestamp(batch.created, UTC).isoformat()
        counts = {"canceled": 0, "errored": 0, "expired": 0, "processing": number, "succeeded": 0}
        return {
            "id": batch.id,
            "type": "message_batch",
            "created_at": created,
            "expires_at": created,
            "processing_status": "ended" if ended else "in_progress",
            "request_counts": counts | ({"processing": 0, "succeeded": number} if ended else {}),
            "results_url": f"{self.host}/v1/messages/batches/{batch.id}/results" if ended else None,
        }

    async def _results_anthropic(self, request: web.Request) -> web.StreamResponse:
        batch = self.batches[request.match_info["id"]]
        lines = bytearray()
        for custom_id, body in reversed(batch.lines):
            seen, reply = self._reply(body)
            result: Body
            if reply.code in ("expired", "cancelled"):
                result = {"type": reply.code.replace("ll", "l")}
            elif reply.status != 200:
                result = {"type": "errored", "error": anthropic_error(reply)}
            else:
                result = {"type": "succeeded", "message": message(seen, reply)}
            lines += json.dumps({"custom_id": custom_id, "result": result}).encode() + b"\n"
        return await self._sent(request, bytes(lines))
