"""Replies of Redis, however the bytes are cut."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, ResponseError

from ailb_project.redis_wire import Wire

REPLIES = [
    (b":12\r\n", 12),
    (b":-1\r\n", -1),
    (b"$5\r\nhe\r\no\r\n", b"he\r\no"),
    (b"$0\r\n\r\n", b""),
    (b"$-1\r\n", None),
    (b"_\r\n", None),
    (b"*-1\r\n", None),
    (b"+OK\r\n", b"OK"),
    (b"=8\r\ntxt:info\r\n", b"txt:info"),
    (b"*3\r\n:1\r\n$2\r\nab\r\n*1\r\n:2\r\n", [1, b"ab", [2]]),
    (b"*0\r\n", []),
]


class Transport:
    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.closing = False

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def is_closing(self) -> bool:
        return self.closing


def made() -> tuple[Wire, Transport]:
    transport = Transport()
    return Wire(SimpleNamespace(_writer=SimpleNamespace(transport=transport))), transport  # type: ignore[arg-type]


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
async def test_all_replies_in_pieces_of_any_size(size):
    wire, transport = made()
    asking = wire.ask(b"commands", len(REPLIES))
    assert transport.written == [b"commands"]
    data = b"".join(raw for raw, _ in REPLIES)
    for start in range(0, len(data), size):
        assert not asking.done()
        wire.data_received(data[start : start + size])
    assert await asking == [reply for _, reply in REPLIES]


async def test_errors_stand_among_the_replies():
    wire, _ = made()
    asking = wire.ask(b"", 3)
    wire.data_received(b"-NOSCRIPT No matching script.\r\n:1\r\n-OOM command not allowed\r\n")
    no_script, one, full = await asking
    assert isinstance(no_script, NoScriptError)
    assert one == 1
    assert type(full) is ResponseError
    assert str(full) == "OOM"


async def test_what_redis_pushes_is_no_reply():
    wire, _ = made()
    asking = wire.ask(b"", 1)
    wire.data_received(b">2\r\n+invalidate\r\n*1\r\n+key\r\n:7\r\n")
    assert await asking == [7]


async def test_a_lost_connection():
    wire, transport = made()
    asking = wire.ask(b"", 1)
    wire.connection_lost(None)
    with pytest.raises(RedisConnectionError):
        await asking
    assert wire.is_lost
    with pytest.raises(RedisConnectionError):
        await wire.ask(b"more", 1)
    assert transport.written == [b""]


async def test_given_up_and_answered_later():
    wire, _ = made()
    asking = wire.ask(b"", 1)
    asking.cancel()
    wire.data_received(b":1\r\n")
    await asyncio.sleep(0)
    assert asking.cancelled()
