"""Anthropic's Messages, on the wire: what clients get of an answer that an upstream gave in another dialect.

Types: anthropic 2.12, `types/message`, `types/raw_message_stream_event`; its accumulator is `lib/streaming/_messages`.
"""

from collections import deque
from typing import Any, Final

import msgspec

from gateway.types import (
    Block,
    BlockEnd,
    Completion,
    Delta,
    Finish,
    Frame,
    Json,
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

_encode = msgspec.json.Encoder().encode

_STOP_REASONS: Final = {
    Stop.END: "end_turn",
    Stop.SEQUENCE: "stop_sequence",
    Stop.LENGTH: "max_tokens",
    Stop.CONTEXT_WINDOW: "model_context_window_exceeded",
    Stop.TOOL_CALLS: "tool_use",
    Stop.REFUSAL: "refusal",
    Stop.PAUSE: "pause_turn",
    Stop.UNKNOWN: "end_turn",
}
RAW_ARGUMENTS: Final = "_raw"
"""The field that holds arguments that are no JSON object, as the model wrote them: an `input` must be one."""


def write_answer(completion: Completion, frame: Frame) -> Json:
    """A plain answer as a message."""
    answer = completion.answer
    assert answer is not None
    content = [written for block in answer.content if (written := _block(block)) is not None]
    calls = any(isinstance(block, ToolCall) for block in answer.content)
    refused = any(isinstance(block, Refusal) for block in answer.content)
    finish = Finish(answer.stop, answer.stop_sequence, answer.stop_category)
    return {
        "id": f"msg_{frame.id}",
        "type": "message",
        "role": "assistant",
        "model": completion.served_model or frame.model,
        "content": content,
        **_stopped(finish, calls=calls, refused=refused),
        "usage": _usage(completion.usage or Usage(frame.input_tokens, 0)),
    }


def _block(block: Block) -> Json | None:
    match block:
        case Text() | Refusal():
            return {"type": "text", "text": block.text} if block.text else None
        case Thinking():
            return {"type": "thinking", "thinking": block.text, "signature": block.signature or ""}
        case RedactedThinking():
            return {"type": "redacted_thinking", "data": block.data}
        case ToolCall():
            return {"type": "tool_use", "id": block.id, "name": block.name, "input": _input(block.arguments)}
    return None


def _input(arguments: str) -> Json:
    read = _object(arguments or "{}")
    return read if read is not None else {RAW_ARGUMENTS: arguments}


def _object(text: str) -> Json | None:
    """The JSON object that the text is, if it is one."""
    try:
        value: Any = msgspec.json.decode(text)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _stopped(finish: Finish | None, *, calls: bool, refused: bool) -> Json:
    """Why it stopped. Tools that were called say more than the upstream's word for it."""
    finish = finish or Finish(Stop.END)
    stop = finish.stop
    if refused:
        stop = Stop.REFUSAL
    elif calls and stop in (Stop.END, Stop.UNKNOWN):
        stop = Stop.TOOL_CALLS
    elif stop is Stop.TOOL_CALLS and not calls:
        stop = Stop.END
    told: Json = {"stop_reason": _STOP_REASONS[stop], "stop_sequence": finish.stop_sequence}
    if stop is Stop.REFUSAL:
        told["stop_details"] = {"type": "refusal", "category": finish.stop_category, "explanation": None}
    return told


def _usage(usage: Usage) -> Json:
    """Anthropic's input is without what was read from a cache or written to it."""
    written = usage.cache_write_tokens + usage.cache_write_1h_tokens
    told: Json = {
        "input_tokens": max(0, usage.prompt_tokens - usage.cached_tokens - written),
        "cache_creation_input_tokens": written,
        "cache_read_input_tokens": usage.cached_tokens,
        "cache_creation": {
            "ephemeral_5m_input_tokens": usage.cache_write_tokens,
            "ephemeral_1h_input_tokens": usage.cache_write_1h_tokens,
        },
        "output_tokens": usage.completion_tokens,
    }
    if usage.reasoning_tokens:
        told["output_tokens_details"] = {"thinking_tokens": usage.reasoning_tokens}
    return told


# ── a stream ────────────────────────────────────────────────────────────────────────────────────────────────────────

_TEXT: Final = "text"
_THINKING: Final = "thinking"
_KINDS: Final[dict[type[Delta], str]] = {
    TextDelta: _TEXT, RefusalDelta: _TEXT, ThinkingDelta: _THINKING, SignatureDelta: _THINKING,
}  # fmt: skip
_STARTS: Final[dict[str, Json]] = {
    _TEXT: {"type": "text", "text": ""},
    _THINKING: {"type": "thinking", "thinking": "", "signature": ""},
}


class StreamWriter:
    """A stream as a message's events: one block is open at a time, and their indices have no gaps.

    An upstream may go on to a next call while the arguments of one are not complete, and come back. What is not of the
    open call waits then, a list of deltas a block, until that call is complete: it is closed for good.
    """

    def __init__(self, frame: Frame) -> None:
        self._frame = frame
        self._model = frame.model
        self._started = False
        self._index = -1
        """The open block's, or the last one's."""
        self._open: str | int | None = None
        """What is open: text, thinking, or a call's index."""
        self._head = b""
        """Of the open block's deltas, up to their value."""
        self._arguments: list[str] = []
        """Of the open call."""
        self._waiting: deque[tuple[str | int | None, list[Delta]]] = deque()
        self._called = False
        self._refused = False
        self._finish: Finish | None = None

    def write(self, event: StreamEvent) -> bytes:
        """The events that this one's deltas are, empty where they are none yet."""
        deltas = event.deltas
        if len(deltas) == 1 and type(deltas[0]) is TextDelta and self._open == _TEXT and deltas[0].text:
            return b"%b%b}}\n\n" % (self._head, _encode(deltas[0].text))
        if event.served_model is not None and not self._started:
            self._model = event.served_model
        if not deltas:
            return b""
        told: list[bytes] = []
        for delta in deltas:
            self._add(delta, told)
        if told and not self._started:
            told.insert(0, self._start())
        return b"".join(told)

    def end(self, usage: Usage, ailb: Json | None = None) -> bytes:
        """The last events, with the usage of the whole answer; `ailb` are fields of ours, in `message_delta`."""
        told = [] if self._started else [self._start()]
        self._finish_blocks(told)
        stopped = _stopped(self._finish, calls=self._called, refused=self._refused)
        ours = {"ailb": ailb} if ailb is not None else {}
        told.append(_event("message_delta", {"delta": stopped, "usage": _usage(usage), **ours}))
        told.append(_event("message_stop", {}))
        return b"".join(told)

    def _start(self) -> bytes:
        self._started = True
        message: Json = {
            "id": f"msg_{self._frame.id}",
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            # Clients show these at once; `message_delta` corrects them.
            "usage": {
                "input_tokens": max(1, self._frame.input_tokens),
                "cache_creation_input_tokens": 0,
                "cache_read_input_tokens": 0,
                "output_tokens": 1,
            },
        }
        return _event("message_start", {"message": message})

    def _add(self, delta: Delta, told: list[bytes]) -> None:
        if isinstance(delta, Finish):
            self._finish = delta
            self._finish_blocks(told)
        elif isinstance(delta, BlockEnd):
            if not self._waiting:
                self._close(told)
        elif self._waits(delta):
            self._hold(delta)
        else:
            self._emit(delta, told)
            if self._waiting and self._is_complete():
                self._go_on(told)

    # ── what waits ──────────────────────────────────────────────────────────────────────────────────────────────────

    def _waits(self, delta: Delta) -> bool:
        """Whether it is of another block than the open call, and that is not complete."""
        if not isinstance(self._open, int) or _block_of(delta) == self._open:
            return False
        return bool(self._waiting) or not self._is_complete()

    def _is_complete(self) -> bool:
        """Whether the open call, if it is one, has all its arguments: nothing can follow a whole object."""
        if not isinstance(self._open, int):
            return True
        last = next((part for part in reversed(self._arguments) if part.strip()), "")
        return last.rstrip().endswith("}") and _object("".join(self._arguments)) is not None

    def _hold(self, delta: Delta) -> None:
        of = _block_of(delta)
        if isinstance(delta, ToolCallDelta):
            for held, deltas in self._waiting:
                if held == of:
                    deltas.append(delta)
        elif self._waiting and self._waiting[-1][0] == of and of is not None:
            self._waiting[-1][1].append(delta)
        else:
            self._waiting.append((of, [delta]))

    def _go_on(self, told: list[bytes]) -> None:
        """What waited, up to a call that is not complete and has others behind it."""
        while self._waiting:
            for delta in self._waiting.popleft()[1]:
                self._emit(delta, told)
            if not self._is_complete():
                return

    def _finish_blocks(self, told: list[bytes]) -> None:
        while self._waiting:
            for delta in self._waiting.popleft()[1]:
                self._emit(delta, told)
        self._close(told)

    # ── what is sent ────────────────────────────────────────────────────────────────────────────────────────────────

    def _emit(self, delta: Delta, told: list[bytes]) -> None:
        match delta:
            case TextDelta() | RefusalDelta():
                self._refused = self._refused or isinstance(delta, RefusalDelta)
                self._say(_TEXT, delta.text, told)
            case ThinkingDelta():
                self._say(_THINKING, delta.text, told)
            case SignatureDelta():
                self._sign(delta.signature, told)
            case RedactedThinkingDelta():
                self._open_block(None, {"type": "redacted_thinking", "data": delta.data}, "", told)
                told.append(_event("content_block_stop", {"index": self._index}))
            case ToolCallStart():
                self._called = True
                start = {"type": "tool_use", "id": delta.id, "name": delta.name, "input": {}}
                self._arguments = []
                self._open_block(delta.index, start, '{"type":"input_json_delta","partial_json":', told)
            case ToolCallDelta() if self._open == delta.index and delta.arguments:
                self._argue(delta.arguments, told)

    def _argue(self, arguments: str, told: list[bytes]) -> None:
        """What does not begin as an object would break clients that parse as they read: it waits for its end."""
        begun = self._is_object
        self._arguments.append(arguments)
        if self._is_object:
            sent = arguments if begun else "".join(self._arguments)
            told.append(b"%b%b}}\n\n" % (self._head, _encode(sent)))

    @property
    def _is_object(self) -> bool:
        first = next((part.lstrip() for part in self._arguments if part.strip()), "")
        return first.startswith("{")

    def _say(self, kind: str, text: str, told: list[bytes]) -> None:
        if not text:
            return
        if self._open != kind:
            self._open_block(kind, _STARTS[kind], f'{{"type":"{kind}_delta","{kind}":', told)
        told.append(b"%b%b}}\n\n" % (self._head, _encode(text)))

    def _sign(self, signature: str, told: list[bytes]) -> None:
        """Thinking that is signed is complete; it may be without a word."""
        if self._open != _THINKING:
            self._open_block(_THINKING, _STARTS[_THINKING], "", told)
        delta = {"type": "signature_delta", "signature": signature}
        told.append(_event("content_block_delta", {"index": self._index, "delta": delta}))
        self._close(told)

    def _open_block(self, kind: str | int | None, start: Json, head: str, told: list[bytes]) -> None:
        self._close(told)
        self._index += 1
        self._open = kind
        self._head = (
            f'event: content_block_delta\ndata: {{"type":"content_block_delta","index":{self._index},"delta":{head}'
        ).encode()
        told.append(_event("content_block_start", {"index": self._index, "content_block": start}))

    def _close(self, told: list[bytes]) -> None:
        if self._open is not None:
            if isinstance(self._open, int) and "".join(self._arguments).strip() and not self._is_object:
                whole = _encode({RAW_ARGUMENTS: "".join(self._arguments)}).decode()
                told.append(b"%b%b}}\n\n" % (self._head, _encode(whole)))
            told.append(_event("content_block_stop", {"index": self._index}))
            self._open = None


def _block_of(delta: Delta) -> str | int | None:
    """The block that it is of: text, thinking, a call's index, or one of its own."""
    if isinstance(delta, ToolCallStart | ToolCallDelta):
        return delta.index
    return _KINDS.get(type(delta))


def _event(name: str, fields: Json) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), _encode({"type": name, **fields}))
