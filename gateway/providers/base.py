"""The flow of an upstream call. A vendor says how a request is written and an answer read; the rest is here.

Timeouts: connect, first byte (to the response's headers, and a plain answer as a whole) and idle (between two
chunks of a stream). Redirects are not followed. What an upstream says in an error reaches a client only cleaned.
"""

import asyncio
import re
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from typing import Any, ClassVar

import aiohttp
import msgspec
from yarl import URL

from gateway import outbound
from gateway.errors import InvalidRequest, StreamCut, UpstreamCredentialsRejected, UpstreamError, UpstreamTimeout
from gateway.types import ChatRequest, Deployment, ProviderConfig, Usage

_LONGEST_ANSWER = 64 * 1024 * 1024  # bytes of a plain answer
_LONGEST_ERROR = 64 * 1024
_SHORTEST_SECRET = 6  # shorter header values are words such as "true"
_MESSAGE = 500  # characters of an upstream's message that a client may see
# The request itself was wrong: another deployment would say the same.
_CLIENTS_FAULT = frozenset({400, 413, 422})
_SECRET = re.compile(r"(?i)\b(sk|pk|rk|key|token|bearer)[-_ =:]+[\w.*-]{6,}|\b[\w-]{32,}\b")


class Completion(msgspec.Struct, frozen=True):
    """A plain answer. `body` is JSON in the client's dialect; `usage` None where the upstream reported none."""

    body: bytes
    usage: Usage | None
    text: str
    """What the model said, for counting and memory."""
    served_model: str | None
    service_tier: str | None
    finish_reason: str | None


class StreamEvent(msgspec.Struct, frozen=True):
    """One event of a stream, in the client's dialect."""

    data: bytes
    """JSON on one line"""
    text: str = ""
    """Content, reasoning, refusal and tool arguments: everything that costs output tokens."""
    content: bool = False
    """Something the client waits for: from here on there is no failover."""
    finish_reason: str | None = None
    usage: Usage | None = None
    usage_only: bool = False
    """The final event that carries usage and no choice."""
    null_usage: bool = False
    """Carries `"usage": null`, as upstreams do that were asked for usage."""
    served_model: str | None = None
    service_tier: str | None = None


class Provider(ABC):
    """One configured upstream. Made once a configuration, shared by all requests."""

    slug: ClassVar[str]
    default_base_url: ClassVar[str] = ""
    env_prefix: ClassVar[str | None] = None
    """Settings `<prefix>_API_KEY`, `_BASE_URL` and `_MODELS` define one of this kind."""
    price_book: ClassVar[str] = ""
    """Whose list prices apply; empty: the provider's own slug."""

    def __init__(self, config: ProviderConfig) -> None:
        self.config = config
        self.in_use = 0
        """Requests that are being served through it."""

    @staticmethod
    def auth_headers(api_key: str | None) -> dict[str, str]:
        """The headers that carry the credential."""
        return {"authorization": f"Bearer {api_key}"} if api_key else {}

    @abstractmethod
    async def complete(self, request: ChatRequest, deployment: Deployment) -> Completion:
        """A plain answer. Raises `UpstreamError` (try another) or `InvalidRequest` (do not)."""

    @abstractmethod
    def stream(self, request: ChatRequest, deployment: Deployment) -> AsyncGenerator[list[StreamEvent], None]:
        """An answer as it comes, events that arrived together in one list.

        Ends only after the upstream said that it was done. Raises as `complete` does, and `StreamCut`. Closing the
        generator drops the upstream's connection.
        """

    async def close(self) -> None:  # noqa: B027  # a vendor without connections has nothing to close
        """Let go of connections."""


class HttpProvider(Provider):
    """A provider over HTTP. A dialect overrides `path`, `encode`, `decode` and `read`."""

    path: ClassVar[str]

    def __init__(self, config: ProviderConfig) -> None:
        super().__init__(config)
        self._session: aiohttp.ClientSession | None = None
        self._url = URL(config.base_url + self.path)
        self._headers = {
            "content-type": "application/json",
            "accept-encoding": "identity",  # a local hop gains nothing, and nothing can be a bomb
            "user-agent": "ailb",
            **config.headers,
        }

    @abstractmethod
    def encode(self, request: ChatRequest, deployment: Deployment) -> bytes:
        """The upstream's request body."""

    @abstractmethod
    def decode(self, body: bytes) -> Completion:
        """A plain answer's body. Raises `msgspec.MsgspecError` where it is not one."""

    @abstractmethod
    def reader(self) -> "StreamReader":
        """What turns one stream's bytes into events."""

    async def complete(self, request: ChatRequest, deployment: Deployment) -> Completion:
        response = await self._post(request, deployment)
        try:
            body = await self._whole(response, _LONGEST_ANSWER)
        finally:
            _let_go(response)
        try:
            return self.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise UpstreamError("The provider's answer was not one.", upstream_status=200) from None

    async def stream(self, request: ChatRequest, deployment: Deployment) -> AsyncGenerator[list[StreamEvent], None]:
        reader = self.reader()
        response = await self._post(request, deployment)
        if response.connection is not None and response.connection.protocol is not None:
            # The headers are here: from now on the idle timeout counts, not aiohttp's for the first byte.
            response.connection.protocol.read_timeout = None
        timer = _IdleTimer(self.config.idle_timeout, response)
        content = response.content
        try:
            while not reader.done:
                timer.reading()
                chunk = await content.readany()
                timer.paused()
                if not chunk:
                    break
                if events := reader.feed(chunk):
                    yield events
            if not reader.done and (events := reader.end()):
                yield events
        except (aiohttp.ClientError, OSError):
            if timer.stalled:
                raise UpstreamTimeout("The provider's stream stalled.", upstream_status=200) from None
            raise StreamCut("The provider's stream broke off.", upstream_status=200) from None
        finally:
            timer.stop()
            _let_go(response)
        if not reader.done:
            raise StreamCut("The provider's stream ended before it was complete.", upstream_status=200)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _post(self, request: ChatRequest, deployment: Deployment) -> aiohttp.ClientResponse:
        """Send, and return the response once its headers say 200; the caller lets go of it."""
        data = self.encode(request, deployment)
        try:
            response = await self.session.post(self._url, data=data, headers=self._headers, allow_redirects=False)
        except TimeoutError:
            raise UpstreamTimeout("The provider did not answer in time.") from None
        except (aiohttp.ClientError, OSError) as error:
            raise UpstreamError(_unreachable(error)) from None
        if response.status == 200:
            return response
        try:
            raise await self._refusal(response)
        finally:
            _let_go(response)

    @property
    def session(self) -> aiohttp.ClientSession:
        """The provider's own pool of connections, made on the running loop."""
        if self._session is None:
            connector = outbound.connector(trusted_network=self.config.trusted_network, limit=0, keepalive_timeout=60.0)
            self._session = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                skip_auto_headers=("accept", "accept-encoding", "user-agent", "content-type"),
                timeout=aiohttp.ClientTimeout(
                    total=None,
                    connect=None,
                    sock_connect=self.config.connect_timeout,
                    sock_read=self.config.first_byte_timeout,
                ),
                read_bufsize=2**17,
            )
        return self._session

    async def _whole(self, response: aiohttp.ClientResponse, longest: int) -> bytes:
        """A body that is not streamed, within the first-byte timeout from here and up to `longest` bytes."""
        chunks, size = [], 0
        timer = _IdleTimer(self.config.first_byte_timeout, response)
        timer.reading()
        try:
            while chunk := await response.content.readany():
                chunks.append(chunk)
                size += len(chunk)
                if size > longest:
                    raise UpstreamError("The provider's answer was too long.", upstream_status=response.status)
        except (aiohttp.ClientError, OSError) as error:
            if timer.stalled or isinstance(error, TimeoutError):
                raise UpstreamTimeout("The provider did not finish in time.", upstream_status=response.status) from None
            raise UpstreamError("The provider's answer broke off.", upstream_status=response.status) from None
        finally:
            timer.stop()
        return b"".join(chunks) if len(chunks) != 1 else chunks[0]

    async def _refusal(self, response: aiohttp.ClientResponse) -> InvalidRequest | UpstreamError:
        """What a status other than 200 means for the client."""
        status = response.status
        if status in (401, 402, 403):
            return UpstreamCredentialsRejected(
                f"The provider rejected the gateway's credentials (status {status}).", upstream_status=status
            )
        try:
            error = self.read_error(await self._whole(response, _LONGEST_ERROR))
        except UpstreamError:
            error = UpstreamMessage("", None, None)
        message = self._cleaned(error.message)
        if status in _CLIENTS_FAULT:
            return InvalidRequest(message or "The provider refused the request.", param=error.param, code=error.code)
        said = f": {message}" if message else "."
        return UpstreamError(
            f"The provider answered with status {status}{said}",
            upstream_status=status,
            retry_after=_seconds(response.headers.get("retry-after")),
        )

    def read_error(self, body: bytes) -> "UpstreamMessage":
        """An error's body, in the shape that most providers share: `{"error": {"message", "param", "code"}}`."""
        try:
            error = msgspec.json.decode(body)["error"]
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, TypeError, KeyError):
            return UpstreamMessage("", None, None)
        return _message_of(error)

    def _cleaned(self, text: str) -> str:
        """An upstream's words without anything that could be a credential, bounded, on one line."""
        for value in self.config.headers.values():
            secret = value.removeprefix("Bearer ")
            if len(secret) >= _SHORTEST_SECRET:
                text = text.replace(secret, "[removed]")
        text = _SECRET.sub("[removed]", text)
        return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:_MESSAGE]


def _let_go(response: aiohttp.ClientResponse) -> None:
    """Back into the pool, or closed where it was not read to its end: closing tells the upstream to stop."""
    if response.content.at_eof():
        response.release()
    else:
        response.close()


class _IdleTimer:
    """Closes a response that says nothing for too long while it is being read; a slow client is not its fault.

    Not `asyncio.timeout`: in a generator it would strike while the reader is elsewhere, and a pair of timers a chunk
    costs more than the chunk. This is one timer a stream, moved on when it rings too early.
    """

    def __init__(self, idle: float, response: aiohttp.ClientResponse) -> None:
        self.stalled = False
        self._idle = idle
        self._response = response
        self._loop = asyncio.get_running_loop()
        self._since: float | None = None
        self._handle = self._loop.call_later(idle, self._ring)

    def reading(self) -> None:
        self._since = self._loop.time()

    def paused(self) -> None:
        self._since = None

    def stop(self) -> None:
        self._handle.cancel()

    def _ring(self) -> None:
        now = self._loop.time()
        waited = now - self._since if self._since is not None else 0.0
        if waited >= self._idle:
            self.stalled = True
            self._response.close()
        else:
            self._handle = self._loop.call_later(self._idle - waited, self._ring)


class StreamReader(ABC):
    """The state of one stream. `done`: the upstream said that it was complete."""

    done: bool = False

    @abstractmethod
    def feed(self, chunk: bytes) -> list[StreamEvent]:
        """Events that these bytes complete. Raises `UpstreamError` on an error event, `StreamCut` on nonsense."""

    @abstractmethod
    def end(self) -> list[StreamEvent]:
        """The connection ended: what is still to come, and whether that was the end (`done`)."""


class UpstreamMessage(msgspec.Struct, frozen=True):
    """What an upstream said of an error, uncleaned."""

    message: str
    param: str | None
    code: str | None


# Codes of an upstream that mean the same at our door; others would be names of nobody's contract.
_SHARED_CODES = frozenset({"context_length_exceeded", "unsupported_parameter"})


def _message_of(error: Any) -> UpstreamMessage:
    if not isinstance(error, dict):
        return UpstreamMessage(error if isinstance(error, str) else "", None, None)
    message, param, code = error.get("message"), error.get("param"), error.get("code")
    return UpstreamMessage(
        message if isinstance(message, str) else "",
        param[:100] if isinstance(param, str) else None,
        code if isinstance(code, str) and code in _SHARED_CODES else None,
    )


def stream_error(error: Any, cleaned: "HttpProvider") -> UpstreamError:
    """An error event inside a stream."""
    message = cleaned._cleaned(_message_of(error).message)
    return UpstreamError(f"The provider broke off the stream{': ' + message if message else '.'}", upstream_status=200)


def _unreachable(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientConnectorError):
        return "The provider could not be reached."
    return "The connection to the provider failed."


def _seconds(retry_after: str | None) -> float | None:
    """A `retry-after` in seconds; dates are left to the issue that honours them."""
    try:
        seconds = float(retry_after) if retry_after is not None else None
    except ValueError:
        return None
    return seconds if seconds is not None and 0 <= seconds <= 86_400 else None
