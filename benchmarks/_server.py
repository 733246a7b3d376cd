"""A server of the benchmarks: a process of its own on loopback, from its port to its end.

Knows how a script starts its server, and how the server says where it listens. Must not know what is asked
or answered.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aiohttp import web


def listen(*routes: web.RouteDef) -> None:
    """Print the port, then answer until standard input closes."""
    from aiohttp import web

    async def run() -> None:
        app = web.Application(client_max_size=2**28)
        app.add_routes(routes)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=4096).start()
        print(runner.addresses[0][1], flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)

    asyncio.run(run())


class Server:
    """The process of `python -m MODULE serve NUMBER...`, which listens; entered, it gives the port."""

    def __init__(self, module: str, *numbers: float) -> None:
        words = [sys.executable, "-m", module, "serve", *map(str, numbers)]
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> int:
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())

    def __exit__(self, *_: object) -> None:
        self.process.communicate()
