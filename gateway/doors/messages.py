"""Anthropic's door: `POST /v1/messages` and `/v1/messages/count_tokens`."""

from collections.abc import Callable
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from gateway.doors import base
from gateway.doors.base import DoorStream, Headers, OwnFields, Tokens, encode
from gateway.errors import GatewayError, InvalidRequest
from gateway.problems import anthropic_error
from gateway.translate import anthropic
from gateway.types import ChatRequest, Citation, Completion, Dialect, Frame, Json, StreamEvent, Usage

_ROLES = frozenset({"user", "assistant", "system"})
"""Newer clients put a system message among the turns."""
_MESSAGE_STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'
_LONGEST_BETAS = 2_000
"""Characters; Claude Code names a dozen"""

# The client's names of what the neutral form calls by OpenAI's.
_PARAMETERS = {
    "stop": "stop_sequences",
    "reasoning_effort": "thinking",
    "parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
    "response_format": "output_config.format",
    "user": "metadata.user_id",
    "messages.reasoning_content": "messages.thinking",
}


class _Block(msgspec.Struct):
    type: str
    text: str | None = None


class _Message(msgspec.Struct):
    role: str
    content: str | list[_Block]


class _Metadata(msgspec.Struct):
    user_id: Annotated[str, Meta(max_length=512)] | None = None


class _Count(OwnFields, kw_only=True):
    messages: Annotated[list[_Message], Meta(min_length=1)]
    system: str | list[_Block] | None = None
    tools: list[dict[str, Any]] | None = None


class _Body(_Count, kw_only=True):
    max_tokens: Tokens
    stream: bool | None = None
    stop_sequences: list[str] | None = None
    temperature: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    top_k: Annotated[int, Meta(ge=0)] | None = None
    metadata: _Metadata | None = None
    service_tier: Annotated[str, Meta(max_length=40)] | None = None


class MessagesDoor(base.Door):
    dialect = Dialect.ANTHROPIC

    def parse(self, raw: bytes, headers: Headers) -> ChatRequest:
        body = base.decoded(raw)
        read = base.checked(body, _Body)
        end_user = read.metadata.user_id if read.metadata is not None else None
        return self._request(body, read, headers, bool(read.stream), read.max_tokens, end_user)

    def parse_count(self, raw: bytes, headers: Headers) -> ChatRequest:
        """A request to count tokens: the same, without an answer to it."""
        body = base.decoded(raw)
        return self._request(body, base.checked(body, _Count), headers, False, None, None)

    def _request(
        self, body: Json, read: _Count, headers: Headers, stream: bool, max_output: int | None, end_user: str | None
    ) -> ChatRequest:
        base.check_roles([message.role for message in read.messages], _ROLES)
        return ChatRequest(
            body=base.without_own(body),
            model=base.model(read, headers),
            stream=stream,
            include_usage=False,
            n=1,
            max_output=max_output,
            session_id=base.session_id(read, headers),
            rag_collection=read.rag_collection,
            rag_top_k=read.rag_top_k or 3,
            routing_strategy=base.routing_strategy(read, headers),
            tags=base.tags(read, headers),
            end_user=end_user,
            dialect=self.dialect,
            betas=_betas(headers),
        )

    def whole(
        self, completion: Completion, usage: Usage, frame: Callable[[], Frame], citations: tuple[Citation, ...]
    ) -> bytes:
        if completion.answer is None:
            return _with_citations(completion.body, citations) if citations else completion.body
        body = anthropic.write_answer(msgspec.structs.replace(completion, usage=usage), frame())
        return encode({**body, "ailb": {"citations": citations}} if citations else body)

    def stream(
        self, request: ChatRequest, frame: Callable[[], Frame], citations: tuple[Citation, ...]
    ) -> "MessagesStream":
        return MessagesStream(frame, citations=citations)

    def error(self, error: GatewayError, request_id: str) -> bytes:
        return encode(anthropic_error(error, request_id))

    def error_event(self, error: bytes) -> bytes:
        return b"event: error\ndata: " + error + b"\n\n"

    def parameter(self, name: str) -> str:
        return _PARAMETERS.get(name, name)


class MessagesStream(DoorStream):
    """Anthropic's events; `message_stop` is held back until the request is settled."""

    def __init__(self, frame: Callable[[], Frame], *, citations: tuple[Citation, ...] = ()) -> None:
        super().__init__(frame)
        self._citations = citations
        self._last = b""
        self._passed_on = False
        self._writer: anthropic.StreamWriter | None = None

    def _native(self, event: StreamEvent) -> bytes:
        data = event.data
        if event.event == "message_delta" and self._citations:
            data = _with_citations(data, self._citations)
        self._passed_on = True
        # The name is the upstream's word: of two lines it would be two events.
        name = event.event if event.event is not None and event.event.isidentifier() else "unknown"
        framed = b"event: %b\ndata: %b\n\n" % (name.encode(), data)
        if event.event == "message_stop":
            self._last = framed
            return b""
        return framed

    def _translated(self, event: StreamEvent) -> bytes:
        return self._translator.write(event)

    @property
    def _translator(self) -> anthropic.StreamWriter:
        if self._writer is None:
            self._writer = anthropic.StreamWriter(self._framed())
        return self._writer

    def end(self, usage: Usage) -> bytes:
        if self._passed_on:
            return self._last or _MESSAGE_STOP  # some compatible servers leave it out
        return self._translator.end(usage, {"citations": self._citations} if self._citations else None)


def _betas(headers: Headers) -> str | None:
    betas = base.header(headers, b"anthropic-beta", longest=_LONGEST_BETAS)
    if betas is not None and not (betas.isascii() and betas.isprintable()):
        raise InvalidRequest("The header 'anthropic-beta' is not printable ASCII.", param="anthropic-beta")
    return betas


def _with_citations(body: bytes, citations: tuple[Citation, ...]) -> bytes:
    """A native answer or event with its citations."""
    return encode({**msgspec.json.decode(body), "ailb": {"citations": citations}})
