"""Anthropic's Messages, on the wire: what upstreams answer. Requests and what clients get are in the modules beside it.

Types: anthropic 2.12, `types/message`, `types/raw_message_stream_event`. Read leniently: compatible servers leave
fields out or send null, and Anthropic adds kinds of blocks and events, which are skipped where they are translated.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgspec

from gateway.translate.anthropic_answer import StreamWriter, write_answer
from gateway.translate.anthropic_prompt import ANSWER_TOOL, write_request
from gateway.translate.anthropic_request import read_request
from gateway.translate.events import ErrorEvent
from gateway.translate.events import Events as _Base
from gateway.translate.usage import consistent
from gateway.types import (
    Answer,
    Block,
    BlockEnd,
    Completion,
    Delta,
    Finish,
    RedactedThinking,
    RedactedThinkingDelta,
    Refusal,
    RefusalDelta,
    SignatureDelta,
    Stop,
    StreamEvent,
    Text,
    TextDelta,
    Thinking,
    ThinkingDelta,
    ToolCall,
    ToolCallDelta,
    ToolCallStart,
    Usage,
)  # fmt: skip

__all__ = ["ANSWER_TOOL", "Events", "StreamWriter", "read_answer", "read_request", "write_answer", "write_request"]

_STOPS: Final = {
    None: Stop.END,
    "end_turn": Stop.END,
    "stop_sequence": Stop.SEQUENCE,
    "max_tokens": Stop.LENGTH,
    "model_context_window_exceeded": Stop.CONTEXT_WINDOW,
    "tool_use": Stop.TOOL_CALLS,
    "refusal": Stop.REFUSAL,
    "pause_turn": Stop.PAUSE,
}
_NO_INPUT: Final = msgspec.Raw(b"{}")


class _CacheCreation(msgspec.Struct):
    ephemeral_1h_input_tokens: int | None = None


class _OutputDetails(msgspec.Struct):
    thinking_tokens: int | None = None


class _Usage(msgspec.Struct):
    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_input_tokens: int | None = None
    cache_creation_input_tokens: int | None = None
    cache_creation: _CacheCreation | None = None
    output_tokens_details: _OutputDetails | None = None
    service_tier: str | None = None


class _Block(msgspec.Struct):
    type: str | None = None
    text: str | None = None
    thinking: str | None = None
    signature: str | None = None
    data: str | None = None
    id: str | None = None
    name: str | None = None
    input: msgspec.Raw = _NO_INPUT


class _StopDetails(msgspec.Struct):
    category: str | None = None
    explanation: str | None = None


class _Message(msgspec.Struct):
    content: list[_Block] | msgspec.UnsetType | None = msgspec.UNSET
    model: str | None = None
    stop_reason: str | None = None
    stop_sequence: str | None = None
    stop_details: _StopDetails | None = None
    usage: _Usage | None = None


class _Delta(msgspec.Struct):
    text: str | None = None
    partial_json: str | None = None
    thinking: str | None = None
    signature: str | None = None
    stop_reason: str | None = None
    stop_sequence: str | None = None
    stop_details: _StopDetails | None = None


class _Event(msgspec.Struct):
    type: str
    delta: _Delta | None = None
    content_block: _Block | None = None
    message: _Message | None = None
    usage: _Usage | None = None
    error: Any = None


_answers = msgspec.json.Decoder(_Message)
_events = msgspec.json.Decoder(_Event)


# ── a plain answer ──────────────────────────────────────────────────────────────────────────────────────────────────


def read_answer(body: bytes, *, native: bool) -> Completion:
    """A plain answer, as it is or in the neutral form. Raises `msgspec.MsgspecError` where it is none."""
    message = _answers.decode(body)
    if message.content is msgspec.UNSET:
        raise msgspec.ValidationError("an answer without content")
    blocks = message.content or []
    return Completion(
        body=_with_known_reason(body, message.stop_reason, "stop_reason") if native else b"",
        answer=None if native else _answer(message, blocks),
        usage=_usage(message.usage),
        text="".join(_texts(blocks)),
        spoken="".join(_spoken(blocks)) if any(block.type != "text" for block in blocks) else None,
        served_model=message.model,
        service_tier=message.usage.service_tier if message.usage is not None else None,
        finish_reason=message.stop_reason,
    )


def _with_known_reason(data: bytes, reason: str | None, *way: str) -> bytes:
    """An answer or event without a stop reason that Anthropic's clients do not know; `way` leads to it."""
    if reason in _STOPS:
        return data
    told = inner = msgspec.json.decode(data)
    for step in way[:-1]:
        inner = inner[step]
    inner[way[-1]] = "end_turn"
    return msgspec.json.encode(told)


def _texts(blocks: Iterable[_Block]) -> Iterator[str]:
    """Everything in the blocks that costs output tokens."""
    for block in blocks:
        yield block.text or block.thinking or ""
        if block.name is not None:
            yield block.name
            yield _input(block)


def _spoken(blocks: Iterable[_Block]) -> Iterator[str]:
    """What of them is said to the user."""
    for block in blocks:
        yield _input(block) if block.name == ANSWER_TOOL else block.text or ""


def _input(block: _Block) -> str:
    """A call's input, as the upstream wrote it."""
    text = bytes(block.input).decode()
    return text if text != "null" else "{}"


def _answer(message: _Message, blocks: list[_Block]) -> Answer:
    content = tuple(_neutral(blocks))
    stop = _STOPS.get(message.stop_reason, Stop.UNKNOWN)
    if stop is Stop.TOOL_CALLS and not any(isinstance(block, ToolCall) for block in content):
        stop = Stop.END  # the only call was the answer
    details = message.stop_details or _StopDetails()
    if stop is Stop.REFUSAL:
        content = tuple(Refusal(block.text) if isinstance(block, Text) else block for block in content)
        if not content and details.explanation:
            content = (Refusal(details.explanation),)
    return Answer(
        content=content,
        stop=stop,
        stop_sequence=message.stop_sequence,
        stop_category=details.category,
    )


def _neutral(blocks: Iterable[_Block]) -> Iterator[Block]:
    for block in blocks:
        match block.type:
            case "text":
                yield Text(block.text or "")
            case "thinking":
                yield Thinking(block.thinking or "", block.signature or None)
            case "redacted_thinking":
                yield RedactedThinking(block.data or "")
            case "tool_use" if block.name == ANSWER_TOOL:
                yield Text(_input(block))
            case "tool_use":
                yield ToolCall(block.id or "", block.name or "", _input(block))


def _usage(usage: _Usage | None) -> Usage | None:
    """None where nothing was reported that could be billed. Anthropic's input is without what a cache read or wrote."""
    if usage is None or usage.input_tokens is None:
        return None
    read, written = usage.cache_read_input_tokens or 0, usage.cache_creation_input_tokens or 0
    long = usage.cache_creation.ephemeral_1h_input_tokens or 0 if usage.cache_creation is not None else 0
    long = min(long, written)
    details = usage.output_tokens_details
    return consistent(
        Usage(
            prompt_tokens=usage.input_tokens + read + written,
            completion_tokens=usage.output_tokens or 0,
            cached_tokens=read,
            cache_write_tokens=written - long,
            cache_write_1h_tokens=long,
            reasoning_tokens=(details.thinking_tokens or 0) if details is not None else 0,
        )
    )


# ── a stream ────────────────────────────────────────────────────────────────────────────────────────────────────────


class Events(_Base):
    """A stream's events. What `message_delta` says of usage is of the whole answer so far, and replaces
    `message_start`'s, of which the input is final and the output is not.
    """

    def __init__(self, *, native: bool) -> None:
        super().__init__(native=native)
        self._usage = _Usage()
        self._finished = False
        self._calls = 0
        self._said = False
        self._block: _Block | None = None
        """The block that is open, where it is one that the neutral form has."""
        self._has_input = False

    def read(self, data: bytes) -> StreamEvent | None:
        event = _events.decode(data)
        if event.type == "content_block_delta" and event.delta is not None:
            delta = event.delta
            said = delta.text or delta.partial_json or delta.thinking or ""
            spoken = None if delta.text or not said else ""
            if self.native:
                return StreamEvent(_on_one_line(data), said, bool(said), event="content_block_delta", spoken=spoken)
            if not (deltas := self._deltas(delta)):
                return None
            if type(deltas[0]) is TextDelta:  # the answer tool's arguments are the answer
                spoken = None
            return StreamEvent(b"", said, bool(said), deltas=deltas, spoken=spoken)
        return self._other(event, data)

    def end(self) -> None:
        # Some compatible servers send no message_stop; a stop reason says as much.
        self.done = self.done or self._finished

    def _deltas(self, delta: _Delta) -> tuple[Delta, ...]:
        if delta.text:
            self._said = True
            return (TextDelta(delta.text),)
        if delta.partial_json:
            return self._arguments(delta.partial_json)
        if delta.thinking:
            return (ThinkingDelta(delta.thinking),)
        return (SignatureDelta(delta.signature),) if delta.signature else ()

    def _other(self, event: _Event, data: bytes) -> StreamEvent | None:
        """All but the contents: there are few of these."""
        usage, model, reason, tier = None, None, None, None
        said, spoken, content = "", None, False
        deltas: tuple[Delta, ...] = ()
        match event.type:
            case "error":
                raise ErrorEvent(event.error)
            case "message_stop":
                self.done = True
            case "message_start" if event.message is not None:
                usage, model = self._told(event.message.usage), event.message.model
                tier = self._usage.service_tier
            case "message_delta":
                usage = self._told(event.usage)
                reason = event.delta.stop_reason if event.delta is not None else None
                deltas = self._finish(event.delta) if event.delta is not None and reason is not None else ()
            case "content_block_start" if event.content_block is not None:
                block = event.content_block
                said = block.text or block.thinking or block.name or ""
                spoken = None if block.text or not said else ""
                content = bool(said) or block.type not in ("text", "thinking")
                deltas = tuple(self._start(block))
            case "content_block_stop":
                deltas = self._stop()
        if self.native:
            return StreamEvent(
                _on_one_line(_with_known_reason(data, reason, "delta", "stop_reason")), said, content, reason, usage,
                served_model=model, service_tier=tier, event=event.type, spoken=spoken,
            )  # fmt: skip
        if not deltas and usage is None and model is None:
            return None
        return StreamEvent(
            b"", said, content, reason, usage, served_model=model, service_tier=tier, deltas=deltas, spoken=spoken
        )

    def _told(self, new: _Usage | None) -> Usage | None:
        """The usage so far. Fields that an event leaves out, or has null, are as they were."""
        if new is None:
            return None
        for name in new.__struct_fields__:
            if (value := getattr(new, name)) is not None:
                setattr(self._usage, name, value)
        return _usage(self._usage)

    def _start(self, block: _Block) -> Iterator[Delta]:
        self._block = block if block.type in ("text", "thinking", "redacted_thinking", "tool_use") else None
        self._has_input = False
        match block.type:
            case "text" if block.text:
                yield TextDelta(block.text)
            case "thinking" if block.thinking:
                yield ThinkingDelta(block.thinking)
            case "redacted_thinking":
                yield RedactedThinkingDelta(block.data or "")
            case "tool_use":
                if block.name != ANSWER_TOOL:
                    yield ToolCallStart(self._calls, block.id or "", block.name or "")
                    self._calls += 1
                if (given := _input(block)) != "{}":  # from compatible servers that do not stream it
                    yield from self._arguments(given)

    def _arguments(self, text: str) -> tuple[Delta, ...]:
        if self._block is None or self._block.type != "tool_use":
            return ()
        self._has_input = True
        return (TextDelta(text) if self._block.name == ANSWER_TOOL else ToolCallDelta(self._calls - 1, text),)

    def _stop(self) -> tuple[Delta, ...]:
        block = self._block
        if block is None:
            return ()
        # Arguments that are no JSON at all would break clients that parse them.
        empty = self._arguments("{}") if block.type == "tool_use" and not self._has_input else ()
        self._block = None
        return (*empty, BlockEnd())

    def _finish(self, delta: _Delta) -> tuple[Delta, ...]:
        self._finished = True
        stop = _STOPS.get(delta.stop_reason, Stop.UNKNOWN)
        if stop is Stop.TOOL_CALLS and not self._calls:
            stop = Stop.END  # the only call was the answer
        details = delta.stop_details or _StopDetails()
        finish = Finish(stop, delta.stop_sequence, details.category)
        if stop is Stop.REFUSAL and details.explanation and not self._said:
            return RefusalDelta(details.explanation), finish
        return (finish,)


def _on_one_line(data: bytes) -> bytes:
    return data if b"\n" not in data else data.replace(b"\n", b" ")
