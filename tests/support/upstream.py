"""A scripted OpenAI-compatible upstream: a real HTTP server whose every byte a test chooses.

    upstream.will(refuse(429), says("Hello"))      # the next two requests
    upstream.will(hang(), model="gpt-slow")        # the next request for that model
    ... ask the gateway ...
    assert upstream.last.body["model"] == "gpt-test"

Where nothing was scripted it answers `Hello there.`, streamed where the request asks for a stream, with usage where the
request asks for that.
"""

import asyncio
import json
import threading
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

Json = dict[str, Any]

USAGE: Json = {"prompt_tokens": 11, "completion_tokens": 4, "total_tokens": 15}
CREATED = 1_760_000_000
DONE = b"data: [DONE]\n\n"
PATIENCE = 10.0  # seconds that a test waits for something that happens at once on a quiet machine


class Left(Exception):
    """The gateway closed the connection while a script was still talking."""


@dataclass
class Received:
    """One request as it came, and what became of its connection."""

    method: str
    path: str
    headers: dict[str, str]
    raw: bytes
    arrived: float
    _gone: threading.Event = field(default_factory=threading.Event)
    dropped_at: float | None = None
    """`time.monotonic()` at which the gateway closed the connection in the middle of the answer."""

    @property
    def body(self) -> Json:
        body: Json = json.loads(self.raw)
        return body

    @property
    def texts(self) -> list[Any]:
        """The contents of the messages."""
        return [message.get("content") for message in self.body["messages"]]

    def was_dropped(self, within: float = PATIENCE) -> bool:
        """Whether the gateway gave this call up before it was answered; waits up to `within` seconds."""
        self._gone.wait(within)
        return self.dropped_at is not None

    def was_ended(self, within: float = PATIENCE) -> bool:
        """Whether the script came to its end, or to that of its connection."""
        return self._gone.wait(within)


class Call:
    """One request, from the side of a script."""

    def __init__(self, connection: "_Connection", received: Received) -> None:
        self._connection = connection
        self.received = received
        self._chunked = False

    @property
    def wants_stream(self) -> bool:
        return bool(self.received.body.get("stream"))

    async def send(self, data: bytes) -> None:
        """Bytes as they are."""
        await self._connection.send(data)

    async def head(self, status: int = 200, **headers: str) -> None:
        """The status and headers; the body follows by `send` or, without a content-length, by `chunk`."""
        self._chunked = "content_length" not in headers
        lines = [f"HTTP/1.1 {status} Scripted"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        if self._chunked:
            lines.append("transfer-encoding: chunked")
        await self.send("\r\n".join([*lines, "", ""]).encode())

    async def chunk(self, data: bytes) -> None:
        if data:
            await self.send(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    async def end(self) -> None:
        """The orderly end of a chunked body."""
        if self._chunked:
            await self.send(b"0\r\n\r\n")

    async def whole(self, status: int, body: bytes, **headers: str) -> None:
        headers = {"content_type": "application/json", "content_length": str(len(body)), **headers}
        await self.head(status, **headers)
        await self.send(body)

    async def json(self, status: int, body: Any, **headers: str) -> None:
        await self.whole(status, json.dumps(body).encode(), **headers)

    async def left(self) -> None:
        """Wait until the gateway closes the connection."""
        await self._connection.lost.wait()
        raise Left

    def close(self) -> None:
        """Close the connection in the middle of it all; what was sent arrives."""
        self._connection.close()

    def reset(self) -> None:
        """Break the connection off; what was sent may be lost."""
        self._connection.reset()


Script = Callable[[Call], Awaitable[None]]


# ── scripts ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def says(
    *words: str,
    usage: Json | None = USAGE,
    model: str | None = None,
    finish: str = "stop",
    message: Json | None = None,
    delay: float = 0.0,
    **fields: Any,
) -> Script:
    """A well-behaved answer, streamed a word a chunk where asked. `usage` None: it reports none. `delay` is waited
    before the answer, and between the words of a stream.
    """
    words = words or ("Hello", " there.")

    async def script(call: Call) -> None:
        asked = call.received.body
        head = {"created": CREATED, "model": model or asked["model"], **fields}
        if not asked.get("stream"):
            await asyncio.sleep(delay)
            told = {"role": "assistant", "content": "".join(words), "refusal": None, **(message or {})}
            choices = [{"index": 0, "message": told, "logprobs": None, "finish_reason": finish}]
            body = {"id": "chatcmpl-1", "object": "chat.completion", **head, "choices": choices}
            await call.json(200, body if usage is None else {**body, "usage": usage})
            return
        chunks = [delta(role="assistant", content=""), *(delta(word) for word in words), delta(finish=finish)]
        asked_usage = bool((asked.get("stream_options") or {}).get("include_usage"))
        if asked_usage and usage is not None:
            # As OpenAI does: null on every chunk but the one of usage.
            chunks = [{**chunk, "usage": None} for chunk in chunks] + [{"choices": [], "usage": usage}]
        await call.head(200, content_type="text/event-stream; charset=utf-8")
        for chunk in chunks:
            await call.chunk(data({**frame(), **head, **chunk}))
            await asyncio.sleep(delay)
        await call.chunk(DONE)
        await call.end()

    return script


def answers(body: Any, status: int = 200, **headers: str) -> Script:
    """This JSON, or these bytes, whatever was asked."""

    async def script(call: Call) -> None:
        if isinstance(body, bytes):
            await call.whole(status, body, **headers)
        else:
            await call.json(status, body, **headers)

    return script


def refuses(
    status: int, message: str = "No.", *, param: str | None = None, code: str | None = None, **headers: str
) -> Script:
    """An error in OpenAI's envelope."""
    error = {"message": message, "type": "scripted", "param": param, "code": code}
    return answers({"error": error}, status, **headers)


def sends(*pieces: bytes | float | Json, end: str = "orderly", **headers: str) -> Script:
    """A stream in exactly these pieces: bytes as they are, JSON as an event in the usual frame, numbers as pauses.

    `end`: orderly, `cut` (the connection closes inside the body), `reset`, or `stall` (nothing more comes).
    """

    async def script(call: Call) -> None:
        await call.head(200, content_type="text/event-stream", **headers)
        for piece in pieces:
            if isinstance(piece, bytes):
                await call.chunk(piece)
            elif isinstance(piece, dict):
                await call.chunk(data({**frame(call.received.body["model"]), **piece}))
            else:
                await asyncio.sleep(piece)
        if end == "orderly":
            await call.end()
        elif end == "stall":
            await call.left()
        else:
            await asyncio.sleep(0.02)  # so that what was sent is read before the end is noticed
            call.reset() if end == "reset" else call.close()

    return script


def bytes_of(*pieces: bytes, after: float = 0.0) -> Script:
    """A whole HTTP response written by hand, then the connection's end."""

    async def script(call: Call) -> None:
        for piece in pieces:
            await call.send(piece)
            await asyncio.sleep(after)
        call.close()

    return script


def hangs() -> Script:
    """Reads the request and says nothing."""

    async def script(call: Call) -> None:
        await call.left()

    return script


def drops() -> Script:
    """Closes the connection without a byte."""

    async def script(call: Call) -> None:
        call.close()

    return script


def waits_for(event: threading.Event, script: Script) -> Script:
    """`script`, once the test has set `event`."""

    async def waiting(call: Call) -> None:
        await asyncio.to_thread(event.wait, PATIENCE)
        await script(call)

    return waiting


# ── pieces of a stream ──────────────────────────────────────────────────────────────────────────────────────────────


def frame(model: str = "gpt-test") -> Json:
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": CREATED, "model": model}


def delta(content: str | None = None, *, index: int = 0, finish: str | None = None, **fields: Any) -> Json:
    """The choices of one chunk."""
    told = {**({"content": content} if content is not None else {}), **fields}
    return {"choices": [{"index": index, "delta": told, "logprobs": None, "finish_reason": finish}]}


def data(chunk: Any) -> bytes:
    """One event."""
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


# ── the server ──────────────────────────────────────────────────────────────────────────────────────────────────────


class Upstream:
    """The server. Runs on a thread and loop of its own, so that a test may block."""

    def __init__(self) -> None:
        self.requests: list[Received] = []
        self._scripts: dict[str | None, deque[Script]] = defaultdict(deque)
        self._always: dict[str | None, Script] = {}
        self._lock = threading.Lock()
        self._loop = asyncio.new_event_loop()
        self._connections: set[_Connection] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, name="upstream", daemon=True)
        self._thread.start()
        self._server = self._on_loop(self._listen())
        self.port: int = self._server.sockets[0].getsockname()[1]

    @property
    def url(self) -> str:
        """The base URL, as a provider is configured with it."""
        return f"http://127.0.0.1:{self.port}/v1"

    def will(self, *scripts: Script, model: str | None = None) -> None:
        """What the next requests (for `model`, where one is named) are answered with, one script each."""
        with self._lock:
            self._scripts[model].extend(scripts)

    def always(self, script: Script, model: str | None = None) -> None:
        """What requests are answered with that `will` says nothing of."""
        with self._lock:
            self._always[model] = script

    @property
    def last(self) -> Received:
        return self.requests[-1]

    @property
    def only(self) -> Received:
        """The one request there was."""
        (received,) = self.requests
        return received

    def wait_for_requests(self, number: int, within: float = PATIENCE) -> list[Received]:
        """The requests, once there are `number` of them."""
        deadline = monotonic() + within
        while len(self.requests) < number:
            assert monotonic() < deadline, f"{len(self.requests)} of {number} requests came within {within} s"
            threading.Event().wait(0.005)
        return list(self.requests)

    def forget(self) -> None:
        """Back to the beginning: nothing scripted, nothing received, no connection."""
        with self._lock:
            self._scripts.clear()
            self._always.clear()
            self.requests = []
        self._on_loop(self._hang_up())

    def close(self) -> None:
        self._on_loop(self._hang_up())
        self._server.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def script_of(self, received: Received) -> Script:
        model = received.body.get("model") if received.raw[:1] == b"{" else None
        with self._lock:
            self.requests.append(received)
            for name in (model, None):
                if self._scripts.get(name):
                    return self._scripts[name].popleft()
            return self._always.get(model) or self._always.get(None) or says()

    async def _listen(self) -> asyncio.Server:
        return await self._loop.create_server(lambda: _Connection(self, self._connections), "127.0.0.1", 0, backlog=512)

    async def _hang_up(self) -> None:
        running = [connection.hang_up() for connection in tuple(self._connections)]
        await asyncio.gather(*(task for task in running if task is not None), return_exceptions=True)
        await asyncio.sleep(0)

    def _on_loop(self, work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE)


class _Connection(asyncio.Protocol):
    """One connection: HTTP/1.1 with keep-alive, a request at a time."""

    def __init__(self, upstream: Upstream, connections: "set[_Connection]") -> None:
        self._upstream = upstream
        self._connections = connections
        self._buffer = b""
        self._ours = False
        self._received: Received | None = None
        self._task: asyncio.Task[None] | None = None
        self.lost = asyncio.Event()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._connections.add(self)

    def data_received(self, chunk: bytes) -> None:
        self._buffer += chunk
        self._next()

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        received = self._received
        if received is not None:
            if not self._ours:
                received.dropped_at = monotonic()
            received._gone.set()
        self.lost.set()

    def hang_up(self) -> "asyncio.Task[None] | None":
        self.reset()
        if self._task is not None:
            self._task.cancel()
        return self._task

    def close(self) -> None:
        self._ours = True
        self._transport.close()

    def reset(self) -> None:
        self._ours = True
        self._transport.abort()

    async def send(self, data: bytes) -> None:
        if self._transport.is_closing():
            await self.lost.wait()
            raise Left
        self._transport.write(data)
        await asyncio.sleep(0)

    def _next(self) -> None:
        if self._task is not None or (received := self._read()) is None:
            return
        self._received = received
        self._task = asyncio.get_running_loop().create_task(self._serve(received))

    def _read(self) -> Received | None:
        head, found, rest = self._buffer.partition(b"\r\n\r\n")
        if not found:
            return None
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = dict(_header(line) for line in lines)
        length = int(headers.get("content-length", "0"))
        if len(rest) < length:
            return None
        self._buffer = rest[length:]
        method, path, _ = first.split(" ")
        return Received(method, path, headers, rest[:length], monotonic())

    async def _serve(self, received: Received) -> None:
        try:
            await self._upstream.script_of(received)(Call(self, received))
        except Left:
            pass
        finally:
            self._received, self._task = None, None
            if not self.lost.is_set():
                received._gone.set()
        self._next()


def _header(line: str) -> tuple[str, str]:
    name, _, value = line.partition(":")
    return name.strip().lower(), value.strip()


def contents(chunks: Iterable[Json]) -> str:
    """The text of a stream's chunks."""
    return "".join(
        choice.get("delta", {}).get("content") or "" for chunk in chunks for choice in chunk.get("choices", ())
    )
