"""OpenAI's door: `POST /v1/chat/completions`."""

from collections.abc import Callable
from typing import Annotated

import msgspec
from msgspec import Meta

from gateway.doors import base
from gateway.doors.base import DoorStream, Headers, OwnFields, Tokens, encode
from gateway.errors import GatewayError, InvalidRequest
from gateway.problems import openai_error
from gateway.translate import openai
from gateway.types import ChatRequest, Citation, Completion, Dialect, Frame, Json, StreamEvent, Usage

DONE = b"data: [DONE]\n\n"
_ROLES = frozenset({"developer", "system", "user", "assistant", "tool", "function"})


class _StreamOptions(msgspec.Struct):
    include_usage: bool | None = None


class _ImageUrl(msgspec.Struct):
    url: str
    detail: str | None = None


class _Part(msgspec.Struct):
    type: str
    text: str | None = None
    image_url: _ImageUrl | None = None


class _Function(msgspec.Struct):
    name: str
    arguments: str = ""


class _ToolCall(msgspec.Struct):
    function: _Function | None = None


class _Message(msgspec.Struct):
    role: str
    content: str | list[_Part] | None = None
    tool_calls: list[_ToolCall] | None = None


class _Tool(msgspec.Struct):
    type: str


class _Body(OwnFields, kw_only=True):
    messages: Annotated[list[_Message], Meta(min_length=1)]
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    n: Annotated[int, Meta(ge=1, le=128)] | None = None
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    user: Annotated[str, Meta(max_length=512)] | None = None
    tools: list[_Tool] | None = None
    service_tier: Annotated[str, Meta(max_length=40)] | None = None


class ChatDoor(base.Door):
    dialect = Dialect.OPENAI

    def parse(self, raw: bytes, headers: Headers) -> ChatRequest:
        body = base.decoded(raw)
        read = base.checked(body, _Body)
        base.check_roles([message.role for message in read.messages], _ROLES)
        stream = bool(read.stream)
        if read.stream_options is not None and not stream:
            raise InvalidRequest("'stream_options' is for requests with 'stream': true.", param="stream_options")
        return ChatRequest(
            body=base.without_own(body),
            model=base.model(read, headers),
            stream=stream,
            include_usage=stream and read.stream_options is not None and bool(read.stream_options.include_usage),
            n=read.n or 1,
            # Either name works everywhere; of both, the newer wins (lesson 40).
            max_output=read.max_completion_tokens or read.max_tokens,
            session_id=base.session_id(read, headers),
            rag_collection=read.rag_collection,
            rag_top_k=read.rag_top_k or 3,
            routing_strategy=base.routing_strategy(read, headers),
            tags=base.tags(read, headers),
            end_user=read.user,
        )

    def whole(
        self, completion: Completion, usage: Usage, frame: Callable[[], Frame], citations: tuple[Citation, ...]
    ) -> bytes:
        if completion.answer is None:
            return _with_citations(completion.body, citations)
        body = openai.write_answer(msgspec.structs.replace(completion, usage=usage), frame())
        if citations:
            body["ailb"] = {**body.get("ailb", {}), "citations": citations}
        return encode(body)

    def stream(self, request: ChatRequest, frame: Callable[[], Frame], citations: tuple[Citation, ...]) -> "ChatStream":
        return ChatStream(frame, include_usage=request.include_usage, citations=citations)

    def error(self, error: GatewayError, request_id: str) -> bytes:
        return encode(openai_error(error, request_id))

    def error_event(self, error: bytes) -> bytes:
        return b"data: " + error + b"\n\n"


class ChatStream(DoorStream):
    """A client that did not ask for usage sees none; one that did sees it once, in the last event."""

    def __init__(
        self, frame: Callable[[], Frame], *, include_usage: bool, citations: tuple[Citation, ...] = ()
    ) -> None:
        super().__init__(frame)
        self._include_usage = include_usage
        self._citations = citations
        self._head: bytes | None = None
        self._usage_event: bytes | None = None
        self._writer: openai.StreamWriter | None = None

    def _native(self, event: StreamEvent) -> bytes:
        data = event.data
        if event.usage_only:
            self._usage_event = data
            return b""
        self._head = self._head or data
        if event.finish_reason is not None and self._citations:
            data, self._citations = _with_citations(data, self._citations), ()
        if event.usage is not None:
            # With a choice, or on every chunk: a client sees usage once, in an event of its own, or not at all.
            data = _with_null_usage(data) if self._include_usage else _without_usage(data)
        elif event.null_usage and not self._include_usage:
            data = _without_usage(data)
        return b"data: " + data + b"\n\n"

    def _translated(self, event: StreamEvent) -> bytes:
        ailb: Json | None = {"citations": self._citations} if self._citations else None
        return self._translator.write(event, ailb)

    @property
    def _translator(self) -> openai.StreamWriter:
        if self._writer is None:
            self._writer = openai.StreamWriter(self._framed(), usage_fields=self._include_usage)
        return self._writer

    def end(self, usage: Usage) -> bytes:
        if not self._include_usage:
            return DONE
        return (self._native_usage(usage) if self._writer is None else self._writer.usage(usage)) + DONE

    def _native_usage(self, usage: Usage) -> bytes:
        """As the upstream said it; where it sent none, the local count in the stream's own frame."""
        if self._usage_event is not None:
            return b"data: " + self._usage_event + b"\n\n"
        head = _decoded(self._head) if self._head else {}
        frame = {name: head[name] for name in ("id", "object", "created", "model") if name in head}
        return b"data: " + encode({**frame, "choices": [], "usage": openai.usage_body(usage)}) + b"\n\n"


_NULL_USAGE = b',"usage":null'


def _without_usage(data: bytes) -> bytes:
    # Inside a JSON string the quotes would be escaped, so the bytes can only be the field; twice could be a nested one.
    between = data.count(openai.BETWEEN)
    if data.count(_NULL_USAGE) == between + 1 == data.count(_NULL_USAGE[1:]):
        return data.replace(_NULL_USAGE, b"")
    if between:
        return openai.BETWEEN.join(map(_without_usage, data.split(openai.BETWEEN)))
    chunk = _decoded(data)
    chunk.pop("usage", None)
    return encode(chunk)


def _with_null_usage(data: bytes) -> bytes:
    return encode({**_decoded(data), "usage": None})


def _decoded(data: bytes) -> Json:
    """A chunk that was read before, if not every field of it: one that nobody reads may hold what is no UTF-8."""
    chunk: Json = msgspec.json.decode(data.decode(errors="replace"))
    return chunk


def _with_citations(body: bytes, citations: tuple[Citation, ...]) -> bytes:
    """A native answer or chunk with its citations."""
    return encode({**_decoded(body), "ailb": {"citations": citations}}) if citations else body
