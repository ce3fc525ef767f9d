"""The doors of the data plane: Channels consumers that read a request, call the pipeline and render.

Channels' `AsyncHttpConsumer` handles a request inside its own dispatch loop, so that `http.disconnect` is not read
while it works, and uvicorn drops what is sent after a disconnect in silence: a client that leaves is never noticed.
So `__call__` is ours: the body is capped while it is received, and a watcher reads on while the request is served.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar

import structlog
from channels.generic.http import AsyncHttpConsumer

from ailb_project.logs import request_line
from gateway import metrics, pipeline, statistics
from gateway.doors.base import Door
from gateway.doors.chat import ChatDoor
from gateway.doors.messages import MessagesDoor
from gateway.errors import (
    GatewayError,
    InternalError,
    InvalidRequest,
    MethodNotAllowed,
    NoHealthyDeployment,
    RequestTooLarge,
)  # fmt: skip
from gateway.exchange import Exchange, Headers
from gateway.lifespan import plane
from gateway.plane import Plane
from gateway.problems import error_headers

log = structlog.get_logger()

LONGEST_BODY = 20 * 1024 * 1024  # bytes
_WATCH_AFTER = 0.02  # seconds; the promise to notice a leaving client is one second

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class HttpReply:
    """A reply over HTTP."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._request_id: Headers = []
        self.opened = self.ended = False

    def identify(self, request_id: str) -> None:
        # The second is the Anthropic SDK's name for it.
        self._request_id = [(b"x-request-id", request_id.encode()), (b"request-id", request_id.encode())]

    async def whole(self, status: int, headers: Headers, body: bytes) -> None:
        self.opened = self.ended = True
        headers = [*self._request_id, (b"content-length", b"%d" % len(body)), *headers]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})

    async def open(self, headers: Headers) -> None:
        self.opened = True
        stream = [
            *self._request_id,
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
        ]
        await self._send({"type": "http.response.start", "status": 200, "headers": stream + headers})

    async def send(self, piece: bytes) -> None:
        await self._send({"type": "http.response.body", "body": piece, "more_body": True})

    async def finish(self, piece: bytes) -> None:
        self.ended = True
        await self._send({"type": "http.response.body", "body": piece})


class InferenceConsumer(AsyncHttpConsumer):
    """A door that takes POST, in the dialect of its clients."""

    door: ClassVar[Door]

    async def serve(self, exchange: Exchange, read_body: Callable[[], Awaitable[bytes]], plane: Plane) -> None:
        """Which of the pipeline's functions is asked."""
        await pipeline.answer(exchange, read_body, plane)

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        reply = HttpReply(send)
        exchange = Exchange(dict(scope["headers"]), reply, self.door)
        reply.identify(exchange.id)
        watcher = _Watcher(receive, exchange)

        async def read_body() -> bytes:
            body = await _read_body(receive, exchange.headers)
            watcher.start()
            return body

        metrics.active(1)
        try:
            if scope["method"] != "POST":
                raise MethodNotAllowed("This endpoint takes POST.", headers=(("allow", "POST"),))
            await self.serve(exchange, read_body, await plane())
        except GatewayError as error:
            await _refuse(exchange, error)
        except asyncio.CancelledError:
            if not exchange.client_gone:
                raise
            exchange.status = pipeline.CLIENT_LEFT
        except Exception:  # the outermost renderer: nothing of it may reach a client
            log.exception("request_failed", request_id=exchange.id)
            await _refuse(exchange, InternalError(f"The gateway failed. Quote the request id {exchange.id}."))
        finally:
            watcher.stop()
            metrics.active(-1)
            _tell(exchange)


class ChatConsumer(InferenceConsumer):
    """`POST /v1/chat/completions`."""

    door = ChatDoor()


class MessagesConsumer(InferenceConsumer):
    """`POST /v1/messages`."""

    door = MessagesDoor()


class CountTokensConsumer(InferenceConsumer):
    """`POST /v1/messages/count_tokens`."""

    door = MessagesDoor()

    async def serve(self, exchange: Exchange, read_body: Callable[[], Awaitable[bytes]], plane: Plane) -> None:
        await pipeline.count_tokens(exchange, read_body, plane)


async def _read_body(receive: Receive, headers: Any) -> bytes:
    """The body, refused as soon as it is known to be too long."""
    if headers.get(b"content-encoding", b"identity") != b"identity":
        raise InvalidRequest("Compressed request bodies are not taken.", param="content-encoding")
    declared = headers.get(b"content-length", b"")
    if declared.isdigit() and int(declared) > LONGEST_BODY:
        raise _too_large()
    message = await receive()
    if not message.get("more_body", False) and message["type"] == "http.request":
        body: bytes = message.get("body", b"")
        if len(body) > LONGEST_BODY:
            raise _too_large()
        return body
    return await _read_long_body(message, receive)


async def _read_long_body(message: dict[str, Any], receive: Receive) -> bytes:
    pieces, size = [], 0
    while True:
        if message["type"] == "http.disconnect":
            raise InvalidRequest("The request body ended early.")
        pieces.append(message.get("body", b""))
        size += len(pieces[-1])
        if size > LONGEST_BODY:
            raise _too_large()
        if not message.get("more_body", False):
            return b"".join(pieces)
        message = await receive()


def _too_large() -> RequestTooLarge:
    return RequestTooLarge(f"The request body is longer than {LONGEST_BODY // 2**20} MiB.")


class _Watcher:
    """Notices a client that leaves: its stream is cancelled, its plain call is drained.

    Begins a little after the request: what is answered by then needs no task beside it.
    """

    def __init__(self, receive: Receive, exchange: Exchange) -> None:
        self._receive = receive
        self._exchange = exchange
        self._work = asyncio.current_task()
        self._handle: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._handle = asyncio.get_running_loop().call_later(_WATCH_AFTER, self._begin)

    def stop(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
        if self._task is not None:
            self._task.cancel()

    def _begin(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._watch())

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if self._exchange.reply.ended:
            return
        self._exchange.client_gone = True
        if (self._exchange.stream or self._exchange.waiting) and self._work is not None:
            self._work.cancel()


async def _refuse(exchange: Exchange, error: GatewayError) -> None:
    """An error before the reply began is the reply; after that it is an event, and the stream has no terminator."""
    exchange.status = error.status
    if error.limited_by is not None:
        metrics.RATE_LIMITED.labels(*error.limited_by).inc()
    if isinstance(error, NoHealthyDeployment) and exchange.provider is None:
        statistics.requests.turned_away()
    reply, body = exchange.reply, exchange.door.error(error, exchange.id)
    if reply.ended:
        return
    if reply.opened:
        await reply.finish(exchange.door.error_event(body))
    else:
        headers = [(name.lower().encode(), value.encode()) for name, value in error_headers(error)]
        await reply.whole(error.status, [(b"content-type", b"application/json"), *headers], body)


def _tell(exchange: Exchange) -> None:
    """One log line, the request's series, its statistics."""
    elapsed = exchange.elapsed_ms()
    provider = exchange.provider or "none"
    model = exchange.model if exchange.provider and exchange.model else "none"
    tally = metrics.tally(provider, model, exchange.status)
    tally.requests += 1
    tally.duration.add(elapsed / 1000)
    if exchange.first_content is not None:
        tally.first_token.add(exchange.first_content - exchange.started)
    if exchange.provider is not None:
        statistics.requests.ended(provider, model, exchange.status, elapsed)
    request_line(
        request_id=exchange.id,
        key_id=exchange.key_id,
        model=model,
        provider=provider,
        status=exchange.status,
        stream=exchange.stream,
        tokens=exchange.usage,
        cost_usd=exchange.cost,
        attempts=exchange.attempts,
        latency_ms=elapsed,
    )
