"""Redis's protocol (RESP 2 and 3) on a connection of redis-py's, as far as scripts need it.

redis-py connects: the address, TLS, the password and the protocol's version are its work. Then the transport is given
to a `Wire`: one write for many commands, and their replies parsed from the bytes as they come, without a coroutine a
line. Measured by `benchmarks.admission`, the CPU of a request's three exchanges and all around them: by redis-py's
parser on asyncio's streams 145 µs where eight requests come at once and 390 where one comes alone, by this 115 and 350.
"""

import asyncio
from typing import Any

from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, ResponseError

_INTEGER, _BULK, _VERBATIM, _ARRAY, _PUSH, _SIMPLE, _ERROR, _NULL = b":$=*>+-_"


class _Incomplete(Exception):
    """The rest of a reply has not come yet."""


class Wire(asyncio.Protocol):
    """One connection; one `ask` at a time."""

    def __init__(self, connection: AbstractConnection) -> None:
        """Takes over `connection`, which has no reply under way."""
        self._transport: asyncio.Transport = connection._writer.transport  # type: ignore[union-attr,assignment]
        self._transport.set_protocol(self)
        self._data = b""
        self._replies: list[Any] = []
        self._wanted = 0
        self._done: asyncio.Future[list[Any]] | None = None
        self.is_lost = self._transport.is_closing()

    def ask(self, commands: bytes, replies: int) -> "asyncio.Future[list[Any]]":
        """Send commands that have so many replies together; errors of Redis are among these, as exceptions.

        Raises `redis.exceptions.ConnectionError` where the connection is lost.
        """
        self._done = asyncio.get_running_loop().create_future()
        self._replies, self._wanted = [], replies
        if self.is_lost:
            self._fail()
        else:
            self._transport.write(commands)
        return self._done

    def data_received(self, data: bytes) -> None:
        data = self._data + data if self._data else data
        at = 0
        try:
            while at < len(data):
                pushed = data[at] == _PUSH
                reply, at = _parsed(data, at)
                if not pushed:  # what nobody asked for is not what is waited for
                    self._replies.append(reply)
        except _Incomplete:
            pass
        self._data = data[at:]
        if len(self._replies) >= self._wanted and self._done is not None and not self._done.done():
            self._done.set_result(self._replies)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        self._fail()

    def _fail(self) -> None:
        if self._done is not None and not self._done.done():
            self._done.set_exception(RedisConnectionError("connection lost"))


def _parsed(data: bytes, at: int) -> tuple[Any, int]:
    """The reply that begins at `at`, and where the next one does."""
    end = data.find(b"\r\n", at)
    if end < 0:
        raise _Incomplete
    kind, line, after = data[at], data[at + 1 : end], end + 2
    if kind in (_BULK, _VERBATIM):  # of which the second begins with four bytes of its own: what INFO says
        return _bulk(data, after, int(line))
    if kind == _INTEGER:
        return int(line), after
    if kind in (_ARRAY, _PUSH):
        return _array(data, after, int(line))
    if kind == _ERROR:
        return _error(line), after
    if kind == _SIMPLE:
        return line, after
    if kind == _NULL:
        return None, after
    raise RedisConnectionError(f"a reply that no script gives: {chr(kind)!r}")


def _bulk(data: bytes, at: int, size: int) -> tuple[bytes | None, int]:
    if size < 0:
        return None, at
    if len(data) < at + size + 2:
        raise _Incomplete
    return data[at : at + size], at + size + 2


def _array(data: bytes, at: int, size: int) -> tuple[list[Any] | None, int]:
    if size < 0:
        return None, at
    items = []
    for _ in range(size):
        item, at = _parsed(data, at)
        items.append(item)
    return items, at


def _error(line: bytes) -> ResponseError:
    code, _, text = line.decode(errors="replace").partition(" ")
    return NoScriptError(text) if code == "NOSCRIPT" else ResponseError(code)
