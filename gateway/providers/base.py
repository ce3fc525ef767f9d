"""The flow of an upstream call. A vendor says how a request is written and an answer read; the rest is here.

Timeouts: connect, first byte (to the response's headers, and a plain answer as a whole) and idle (between two
chunks of a stream). Redirects are not followed. What an upstream says in an error reaches a client only cleaned.
"""

import asyncio
import re
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Callable
from typing import Any, ClassVar

import aiohttp
import msgspec
from yarl import URL

from gateway import translate
from gateway.errors import (
    ContextLengthExceeded,
    InvalidRequest,
    StreamCut,
    UpstreamCredentialsRejected,
    UpstreamError,
    UpstreamTimeout,
)  # fmt: skip
from gateway.providers.reading import StreamReader
from gateway.providers.waits import asked_wait, used_up
from gateway.types import (
    ChatRequest,
    Completion,
    Deployment,
    Dialect,
    Json,
    Prompt,
    ProviderConfig,
    StreamEvent,
    Written,
)  # fmt: skip
from gateway.upstream_http import Client, Response, request_head

_LONGEST_ANSWER = 64 * 1024 * 1024  # bytes of a plain answer
_LONGEST_ERROR = 64 * 1024
_LONGEST_LIST = 8 * 1024 * 1024  # of models: thousands of them
_SHORTEST_SECRET = 6  # shorter header values are words such as "true"
_MESSAGE = 500  # characters of an upstream's message that a client may see
# The request itself was wrong: another deployment would say the same.
_CLIENTS_FAULT = frozenset({400, 413, 422})
_encode = msgspec.json.Encoder().encode
_SECRET = re.compile(r"(?i)\b(sk|pk|rk|key|token|bearer)[-_ =:]+[\w.*-]{6,}|\b[\w-]{32,}\b")


class Prepared(msgspec.Struct, frozen=True):
    """A request as it goes to one deployment."""

    request: ChatRequest
    deployment: Deployment
    data: bytes = b""
    """The upstream's request body."""
    native: bool = True
    """The upstream speaks the client's dialect: its answer is passed on as it is."""
    dropped: tuple[str, ...] = ()
    """The client's parameters that the upstream's dialect cannot express and that were left out."""


class Provider(ABC):
    """One configured upstream. Made once a configuration, shared by all requests."""

    slug: ClassVar[str]
    dialect: ClassVar[Dialect] = Dialect.OPENAI
    """What the upstream speaks."""
    default_base_url: ClassVar[str] = ""
    wrong_endings: ClassVar[tuple[str, ...]] = ()
    """What a base URL must not end in, since the vendor's paths begin with it."""
    env_prefix: ClassVar[str | None] = None
    """Settings `<prefix>_API_KEY`, `_BASE_URL` and `_MODELS` define one of this kind."""
    price_book: ClassVar[str] = ""
    """Whose list prices apply; empty: the provider's own slug."""

    def __init__(self, config: ProviderConfig) -> None:
        self.config = config
        self.in_use = 0
        """Requests that are being served through it."""
        self.on_used_up: Callable[[str, float], None] = _ignored
        """Is told of a deployment of whose limits an answer says that nothing is left, and for how many seconds."""

    @staticmethod
    def auth_headers(api_key: str | None) -> dict[str, str]:
        """The headers that carry the credential."""
        return {"authorization": f"Bearer {api_key}"} if api_key else {}

    @abstractmethod
    def prepare(self, request: ChatRequest, deployment: Deployment) -> Prepared:
        """The request as this upstream takes it. Raises `UnsupportedParameter` where it cannot: another may."""

    @abstractmethod
    async def complete(self, call: Prepared) -> Completion:
        """A plain answer. Raises `UpstreamError` (try another) or `InvalidRequest` (do not)."""

    @abstractmethod
    def stream(self, call: Prepared) -> AsyncGenerator[list[StreamEvent], None]:
        """An answer as it comes, events that arrived together in one list.

        Ends only after the upstream said that it was done. Raises as `complete` does, and `StreamCut`. Closing the
        generator drops the upstream's connection.
        """

    async def count_tokens(self, request: ChatRequest, deployment: Deployment) -> int | None:
        """The prompt's tokens by the provider's own count; None where it offers none. Raises `UpstreamError`."""
        return None

    async def close(self) -> None:  # noqa: B027  # a vendor without connections has nothing to close
        """Let go of connections."""


class HttpProvider(Provider):
    """A provider over HTTP. A dialect says `dialect`, `path`, `own`, `write`, `decode` and `reader`."""

    path: ClassVar[str]

    def __init__(self, config: ProviderConfig) -> None:
        super().__init__(config)
        self._client = Client(
            trusted_network=config.trusted_network,
            connect_timeout=config.connect_timeout,
            first_byte_timeout=config.first_byte_timeout,
        )
        self._url = URL(config.base_url + self.path)
        self._headers = {
            "content-type": "application/json",
            "accept-encoding": "identity",  # a local hop gains nothing, and nothing can be a bomb
            "user-agent": "ailb",
            **config.headers,
        }
        self._heads: dict[URL, bytes] = {}

    @abstractmethod
    def own(self, request: ChatRequest, deployment: Deployment) -> Json:
        """The upstream's request body for a client of its own dialect."""

    @abstractmethod
    def write(self, prompt: Prompt, deployment: Deployment) -> Written:
        """The upstream's request body for any other client. Raises `UnsupportedParameter`."""

    @abstractmethod
    def decode(self, body: bytes, *, native: bool) -> Completion:
        """A plain answer's body, as it is or in the neutral form. Raises `msgspec.MsgspecError` where it is none."""

    @abstractmethod
    def reader(self, *, native: bool) -> StreamReader:
        """What turns one stream's bytes into events, as they are or in the neutral form."""

    def headers_for(self, request: ChatRequest) -> dict[str, str]:
        """The headers of one call."""
        return self._headers

    def prepare(self, request: ChatRequest, deployment: Deployment) -> Prepared:
        if request.dialect == self.dialect:
            return Prepared(request, deployment, _encode(self.own(request, deployment)))
        try:
            written = self.write(translate.read_request(request), deployment)
        except RecursionError:
            raise InvalidRequest("The request is nested too deeply for this model's provider.") from None
        return Prepared(request, deployment, _encode(written.body), native=False, dropped=written.dropped)

    async def complete(self, call: Prepared) -> Completion:
        body = await self._plain(call, self._url)
        try:
            return self.decode(body, native=call.native)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise UpstreamError("The provider's answer was not one.", upstream_status=200) from None

    async def stream(self, call: Prepared) -> AsyncGenerator[list[StreamEvent], None]:
        reader = self.reader(native=call.native)
        response = await self._post(call, self._url)
        response.reading_at_leisure()
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
                if reader.failure is not None:
                    raise reader.failure
            if not reader.done and (events := reader.end()):
                yield events
            if reader.failure is not None:
                raise reader.failure
        except (aiohttp.ClientError, OSError):
            if timer.stalled:
                raise UpstreamTimeout("The provider's stream stalled.", upstream_status=200) from None
            raise StreamCut("The provider's stream broke off.", upstream_status=200) from None
        finally:
            timer.stop()
            response.release()
        if not reader.done:
            raise StreamCut("The provider's stream ended before it was complete.", upstream_status=200)

    async def close(self) -> None:
        await self._client.close()

    async def _plain(self, call: Prepared, url: URL) -> bytes:
        """The body of a plain answer. Raises as `complete` does."""
        response = await self._post(call, url)
        try:
            return await self._whole(response, _LONGEST_ANSWER)
        finally:
            response.release()

    async def _post(self, call: Prepared, url: URL) -> Response:
        """Send, and return the response once its headers say 200; the caller lets go of it."""
        response = await self._sent(url, self._head(call.request, url), call.data)
        if response.status == 200:
            if (wait := used_up(response.headers)) is not None:
                self.on_used_up(call.deployment.name, wait)
            return response
        try:
            raise await self._refusal(response)
        finally:
            response.release()

    def _head(self, request: ChatRequest, url: URL) -> bytes:
        headers = self.headers_for(request)
        if headers is not self._headers:
            return request_head("POST", url, headers)
        head = self._heads.get(url)
        if head is None:
            self._heads = {url: request_head("POST", url, headers)}  # one address at a time
            head = self._heads[url]
        return head

    async def _sent(self, url: URL, head: bytes, body: bytes = b"") -> Response:
        try:
            return await self._client.send(url, head, body)
        except TimeoutError:
            raise UpstreamTimeout("The provider did not answer in time.") from None
        except (aiohttp.ClientError, OSError) as error:
            raise UpstreamError(_unreachable(error)) from None

    async def _get(self, path: str) -> bytes:
        """A small document beside the calls. Raises `UpstreamError`."""
        url = URL(self.config.base_url + path)
        response = await self._sent(url, request_head("GET", url, self._headers))
        try:
            if response.status != 200:
                status = response.status
                raise UpstreamError(f"The provider answered with status {status}.", upstream_status=status)
            return await self._whole(response, _LONGEST_LIST)
        finally:
            response.release()

    async def _whole(self, response: Response, longest: int) -> bytes:
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

    async def _refusal(self, response: Response) -> InvalidRequest | UpstreamError:
        """What a status other than 200 means for the client."""
        status, wait = response.status, asked_wait(response.headers)
        if status in (401, 402, 403):
            return _rejected(status, wait)
        try:
            error = self.read_error(await self._whole(response, _LONGEST_ERROR))
        except UpstreamError:
            error = UpstreamMessage("", None, None)
        if error.no_credit:
            return _rejected(status, wait)
        message = self._cleaned(error.message)
        if status in _CLIENTS_FAULT or error.code == ContextLengthExceeded.code:
            return InvalidRequest(message or "The provider refused the request.", param=error.param, code=error.code)
        said = f": {message}" if message else "."
        return UpstreamError(
            f"The provider answered with status {status}{said}",
            upstream_status=status,
            retry_after=wait,
        )

    def read_error(self, body: bytes) -> "UpstreamMessage":
        """An error's body, in the shape that most providers share: `{"error": {"message", "param", "code"}}`."""
        try:
            error = msgspec.json.decode(body)["error"]
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, TypeError, KeyError):
            return UpstreamMessage("", None, None)
        return _message_of(error)

    def broke_off(self, error: Any) -> UpstreamError:
        """An error event inside a stream; `error` is its JSON, of any shape."""
        message = self._cleaned(_message_of(error).message)
        return UpstreamError(
            f"The provider broke off the stream{': ' + message if message else '.'}", upstream_status=200
        )

    def _cleaned(self, text: str) -> str:
        """An upstream's words without anything that could be a credential, bounded, on one line."""
        for value in self.config.headers.values():
            secret = value.removeprefix("Bearer ")
            if len(secret) >= _SHORTEST_SECRET:
                text = text.replace(secret, "[removed]")
        text = _SECRET.sub("[removed]", text)
        return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:_MESSAGE]


class _IdleTimer:
    """Closes a response that says nothing for too long while it is being read; a slow client is not its fault.

    Not `asyncio.timeout`: in a generator it would strike while the reader is elsewhere, and a pair of timers a chunk
    costs more than the chunk. This is one timer a stream, moved on when it rings too early.
    """

    def __init__(self, idle: float, response: Response) -> None:
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


class UpstreamMessage(msgspec.Struct, frozen=True):
    """What an upstream said of an error, uncleaned."""

    message: str
    param: str | None
    code: str | None
    no_credit: bool = False
    """The account has run dry: no request of anybody's will be served until it is filled."""


# What providers say with other statuses than 402: OpenAI with 429, Anthropic with 400 (lesson 34).
_NO_CREDIT_CODES = frozenset(
    {"insufficient_quota", "billing_hard_limit_reached", "billing_not_active", "billing_error"}
)
_NO_CREDIT = ("credit balance is too low", "insufficient balance")
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
        no_credit=any(isinstance(name, str) and name in _NO_CREDIT_CODES for name in (code, error.get("type")))
        or (isinstance(message, str) and any(words in message.lower() for words in _NO_CREDIT)),
    )


def _rejected(status: int, wait: float | None) -> UpstreamCredentialsRejected:
    return UpstreamCredentialsRejected(
        f"The provider rejected the gateway's credentials or account (status {status}).",
        upstream_status=status,
        retry_after=wait,
    )


def _ignored(deployment: str, seconds: float) -> None:
    """Nobody asked."""


def _unreachable(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientConnectorError):
        return "The provider could not be reached."
    return "The connection to the provider failed."
