"""Redis for tests: prefixes of their own on a shared server, and servers of their own to stop, stall and kill."""

import asyncio
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from ailb_project.shared_redis import SharedRedis


@contextmanager
def own_prefix(url: str) -> Iterator[str]:
    """A prefix that no other test uses; its keys are removed afterwards, and no others."""
    prefix = f"ailb-test-{secrets.token_hex(6)}"
    yield prefix
    with redis.Redis.from_url(url) as client:
        for key in client.scan_iter(match=f"{prefix}:*", count=1000):
            client.delete(key)


class OwnRedis:
    """A server on a free port, with its files in `folder`."""

    def __init__(self, folder: Path) -> None:
        if shutil.which("redis-server") is None:
            pytest.skip("no redis-server on the PATH: faults of Redis are not tested")
        self._folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", str(self._folder)],
            stdout=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            try:
                self.client().ping()
                return
            except redis.RedisError:
                time.sleep(0.02)
        pytest.fail("redis-server did not start")

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url, socket_timeout=5)

    def kill(self) -> None:
        if self._process is not None:
            os.kill(self._process.pid, signal.SIGCONT)
            self._process.kill()
            self._process.wait()
            self._process = None

    def stall(self) -> None:
        """It keeps its connections and takes new ones, and answers none."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def go_on(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)


class DeafProxy:
    """Between a client and Redis: what the client says arrives; while `deaf`, what Redis answers does not."""

    def __init__(self, port: int) -> None:
        self._upstream = port
        self.deaf = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"redis://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/0"

    async def close(self) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", self._upstream)
        for one, other, answers in ((reader, back, False), (there, writer, True)):
            task = asyncio.create_task(self._pump(one, other, answers=answers))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool) -> None:
        try:
            while data := await reader.read(65536):
                if not (answers and self.deaf):
                    writer.write(data)
        except OSError:
            pass
        finally:
            writer.close()


async def until_reachable(client: SharedRedis) -> None:
    """Ask until Redis answers again; the client gives it one try in a quarter of a second."""
    script = client.script("return 1")
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            await client.call(script, [])
            return
        except Exception:  # noqa: BLE001  # whatever it is, it is tried again
            await asyncio.sleep(0.05)
    pytest.fail("Redis did not come back")
