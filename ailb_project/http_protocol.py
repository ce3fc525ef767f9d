"""uvicorn's HTTP/1.1 protocol, with what it leaves to a proxy in front: bounds on what a client may send before it is
known, and a memory of whom it serves.
"""

import asyncio
from typing import Any, Final

import msgspec
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from gateway.errors import GatewayError, InvalidRequest, RequestTooLarge
from gateway.identifiers import new_request_id
from gateway.problems import openai_error

LONGEST_HEAD: Final = 64 * 1024
"""Bytes of a request's line and headers. Without it one header without end is a process's memory."""
HEAD_SECONDS: Final = 30.0
"""For a request's head, from the connection's or the request's first byte."""
BODY_SILENCE: Final = 60.0
"""Seconds without a byte of a body that is not complete."""


class Protocol(HttpToolsProtocol):
    """One connection."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        super().connection_made(transport)
        self._serving: RequestResponseCycle | None = None
        self._head = 0
        """Bytes of a head that is not complete."""
        self._begun: object = None
        """What uvicorn keeps of the request whose head is being counted."""
        self._last = self.loop.time()
        self._deadline: asyncio.TimerHandle | None = self.loop.call_later(HEAD_SECONDS, self._ring)

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_deadline()
        # uvicorn tells the newest request alone; of two in a row that is not the one being served.
        if self._serving is not None and not self._serving.response_complete:
            self._serving.disconnected = True
            self._serving.message_event.set()
        self.pipeline.clear()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        cycle: RequestResponseCycle | None = self.cycle  # none before the first request
        if cycle is not None and cycle.scope is self.scope and not cycle.more_body:
            # Nearly always: a request comes in one piece.
            if self._deadline is not None:
                self._forget_deadline()
            return
        if self._in_head:
            if self._begun is not self.scope:
                self._begun, self._head = self.scope, 0
            self._head += len(data)
            if self._head > LONGEST_HEAD:
                self._refuse(
                    RequestTooLarge(f"The request's head is longer than {LONGEST_HEAD // 1024} KiB."), b"431 Too Large"
                )
                return
        else:
            self._last = self.loop.time()
        if self._deadline is None:
            self._last = self.loop.time()
            self._deadline = self.loop.call_later(HEAD_SECONDS, self._ring)

    @property
    def _in_head(self) -> bool:
        """Whether the newest request, if there is one, has not become one to uvicorn yet."""
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is None or cycle.scope is not self.scope

    def send_400_response(self, msg: str) -> None:
        self._refuse(InvalidRequest("The request is not HTTP."), b"400 Bad Request")

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._serving = cycle
        super()._start_asgi_task(cycle, app)

    def _forget_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _ring(self) -> None:
        allowed = HEAD_SECONDS if self._in_head else BODY_SILENCE
        left = self._last + allowed - self.loop.time()
        if left > 0:
            self._deadline = self.loop.call_later(left, self._ring)
            return
        self._deadline = None
        self.transport.close()

    def _refuse(self, error: GatewayError, status: bytes) -> None:
        """Answer what never became a request, and hang up."""
        self._forget_deadline()
        if self.transport.is_closing():
            return
        id_ = new_request_id()
        body = msgspec.json.encode(openai_error(error, id_))
        self.transport.write(
            b"HTTP/1.1 %b\r\nx-request-id: %b\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
            b"connection: close\r\n\r\n%b" % (status, id_.encode(), len(body), body)
        )
        self.transport.close()
