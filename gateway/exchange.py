"""One request and its reply, as a door hands them to the pipeline."""

from collections.abc import Mapping
from time import perf_counter, time
from typing import Protocol

from gateway.doors.base import Door
from gateway.identifiers import new_request_id

Headers = list[tuple[bytes, bytes]]


class Reply(Protocol):
    """Where an answer goes. A stream is `open`ed once, then sent in pieces; a plain answer goes out whole."""

    opened: bool
    """Status and headers are out: from here on an error is an event of the stream."""
    ended: bool
    """Everything is out: an error has nowhere to go but the log."""

    async def whole(self, status: int, headers: Headers, body: bytes) -> None: ...

    async def open(self, headers: Headers) -> None: ...

    async def send(self, piece: bytes) -> None: ...

    async def finish(self, piece: bytes) -> None:
        """The last piece."""


class Exchange:
    """What the door knows of a request before it is parsed, and what the log wants to know of it in the end."""

    __slots__ = (
        "arrived", "attempts", "client_gone", "cost", "door", "first_content", "headers", "id", "key_id", "model",
        "provider", "queue_position", "reply", "started", "status", "stream", "usage", "waiting",
    )  # fmt: skip

    def __init__(self, headers: Mapping[bytes, bytes], reply: Reply, door: Door) -> None:
        self.id = new_request_id()
        self.started = perf_counter()
        self.arrived = time()
        self.headers = headers
        self.reply = reply
        self.door = door
        self.client_gone = False
        self.stream = False
        self.status = 200
        self.key_id: str | None = None
        self.model: str | None = None
        self.provider: str | None = None
        self.attempts = 0
        self.usage: tuple[int, int] | None = None
        self.cost: str | None = None
        self.waiting = False
        """It waits its turn at a limit: nothing was begun, and a client that leaves ends it."""
        self.queue_position: int | None = None
        self.first_content: float | None = None
        """`perf_counter` of the first content; None for a plain answer."""

    @property
    def secret(self) -> str | None:
        """The key as the client sent it."""
        return self.secret_of(self.headers)

    @staticmethod
    def secret_of(headers: Mapping[bytes, bytes]) -> str | None:
        """A credential among `headers`; the Anthropic and Azure SDKs have headers of their own."""
        authorization = headers.get(b"authorization")
        if authorization is not None:
            scheme, _, value = authorization.partition(b" ")
            if scheme.lower() == b"bearer" and value.strip():
                return value.strip().decode("latin-1")
        value = headers.get(b"x-api-key") or headers.get(b"api-key") or b""
        return value.strip().decode("latin-1") or None

    def queued(self, position: int) -> None:
        """It has to wait; `position` counts from 1. The first one that it had is told."""
        if self.queue_position is None:
            self.queue_position = position

    def elapsed_ms(self) -> float:
        """Milliseconds since arrival."""
        return round((perf_counter() - self.started) * 1000, 3)
