"""OpenAI's chat completions, on the wire: what a client of it is told.

Types: openai-python 3.54, `types/chat/chat_completion` and `chat_completion_chunk`.
"""

from typing import Final

import msgspec

from gateway.types import (
    Answer,
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

_FINISH_REASONS: Final = {
    Stop.LENGTH: "length",
    Stop.CONTEXT_WINDOW: "length",
    Stop.TOOL_CALLS: "tool_calls",
    Stop.REFUSAL: "content_filter",
}
"""Any other is "stop"."""
_TIERS: Final = {"standard": "default", "default": "default", "flex": "flex", "priority": "priority"}
"""Anthropic's names and OpenAI's own; its clients know no others."""


def write_answer(completion: Completion, frame: Frame) -> Json:
    """A translated answer as a chat completion. `completion.usage` is what it cost, counted by us where need be."""
    answer = completion.answer
    assert answer is not None
    message = _written_message(answer)
    stop = answer.stop
    if message.get("tool_calls") and stop in (Stop.END, Stop.UNKNOWN):
        stop = Stop.TOOL_CALLS
    choice = {
        "index": 0,
        "message": message,
        "logprobs": None,
        "finish_reason": _FINISH_REASONS.get(stop, "stop"),
    }
    body: Json = {
        "id": f"chatcmpl-{frame.id}",
        "object": "chat.completion",
        "created": frame.created,
        "model": completion.served_model or frame.model,
        "choices": [choice],
    }
    if completion.usage is not None:
        body["usage"] = usage_body(completion.usage)
    if (tier := _TIERS.get(completion.service_tier or "")) is not None:
        body["service_tier"] = tier
    if extension := _extension(answer.stop, answer.stop_category):
        body["ailb"] = extension
    return body


def _written_message(answer: Answer) -> Json:
    texts, refusals, thoughts, signed, calls = [], [], [], [], []
    for block in answer.content:
        match block:
            case Text(text):
                texts.append(text)
            case Refusal(text):
                refusals.append(text)
            case Thinking(text, signature):
                thoughts.append(text)
                signed.append(_thinking_block(text, signature))
            case RedactedThinking(data):
                signed.append({"type": "redacted_thinking", "data": data})
            case ToolCall(id_, name, arguments):
                function = {"name": name, "arguments": arguments or "{}"}
                calls.append({"id": id_, "type": "function", "function": function})
    if answer.stop == Stop.REFUSAL and not refusals:
        texts, refusals = [], texts  # what a model says when it refuses is its refusal
    message: Json = {
        "role": "assistant",
        "content": "".join(texts) if texts else None,
        "refusal": "".join(refusals) if refusals else None,
    }
    if thoughts:
        message["reasoning_content"] = "".join(thoughts)
    if any("signature" in block or "data" in block for block in signed):
        message["thinking_blocks"] = signed
    if calls:
        message["tool_calls"] = calls
    return message


def _thinking_block(text: str, signature: str | None) -> Json:
    """What the next turn gives back so that the model may go on with its thoughts."""
    block: Json = {"type": "thinking", "thinking": text}
    return block if signature is None else {**block, "signature": signature}


def _extension(stop: Stop, category: str | None) -> Json:
    """What no field of OpenAI's says."""
    told: Json = {"stop_reason": "pause_turn"} if stop == Stop.PAUSE else {}
    return told if category is None else {**told, "stop_category": category}


def usage_body(usage: Usage) -> Json:
    """Usage as OpenAI writes it: details are parts of the totals."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {
            "cached_tokens": usage.cached_tokens,
            "cache_write_tokens": usage.cache_write_tokens + usage.cache_write_1h_tokens,
        },
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


class StreamWriter:
    """A translated answer as chat completion chunks. `usage_fields`: the client asked for usage, so each has one."""

    def __init__(self, frame: Frame, *, usage_fields: bool = False) -> None:
        self._frame = frame
        self._usage_fields = usage_fields
        self._before = b""
        self._after = b',"logprobs":null,"finish_reason":null}]%b}\n\n' % (b',"usage":null' if usage_fields else b"")
        self._arguments: dict[int, bool] = {}
        """Of each tool call, whether its arguments have begun."""
        self._open_call: int | None = None
        self._thought: list[str] = []
        self._signature: str | None = None
        self._thinking_blocks = 0
        self._refused = False

    def write(self, event: StreamEvent, ailb: Json | None = None) -> bytes:
        """What an event's deltas are to the client; `ailb` goes with the finish reason."""
        deltas = event.deltas
        if not self._before:
            return self._begin(event) + self.write(event, ailb)
        if len(deltas) == 1 and type(deltas[0]) is TextDelta:  # nearly all of a stream
            return self._before + b'{"content":' + _encode(deltas[0].text) + b"}" + self._after
        return b"".join([self._delta(delta, ailb) for delta in deltas])

    def usage(self, usage: Usage) -> bytes:
        """The event that carries usage and no choice."""
        return b"data: " + _encode({**self._head(), "choices": [], "usage": usage_body(usage)}) + b"\n\n"

    def _begin(self, event: StreamEvent) -> bytes:
        self._frame = msgspec.structs.replace(self._frame, model=event.served_model or self._frame.model)
        head = _encode(self._head())
        self._before = b"data: " + head[:-1] + b',"choices":[{"index":0,"delta":'
        return self._chunk({"role": "assistant", "content": ""})

    def _head(self) -> Json:
        frame = self._frame
        return {
            "id": f"chatcmpl-{frame.id}", "object": "chat.completion.chunk", "created": frame.created,
            "model": frame.model,
        }  # fmt: skip

    def _chunk(self, delta: Json) -> bytes:
        return self._before + _encode(delta) + self._after

    def _delta(self, delta: Delta, ailb: Json | None) -> bytes:
        match delta:
            case TextDelta(text):
                return self._chunk({"content": text}) if text else b""
            case ThinkingDelta(text):
                self._thought.append(text)
                return self._chunk({"reasoning_content": text})
            case SignatureDelta(signature):
                self._signature = (self._signature or "") + signature
                return b""
            case RedactedThinkingDelta(data):
                return self._thinking_block({"type": "redacted_thinking", "data": data})
            case RefusalDelta(text):
                return self._chunk({"refusal": text})
            case ToolCallStart():
                return self._tool_call(delta)
            case ToolCallDelta(index, arguments):
                self._arguments[index] = True
                return self._chunk({"tool_calls": [{"index": index, "function": {"arguments": arguments}}]})
            case BlockEnd():
                return self._end_block()
            case Finish():
                return self._finish(delta, ailb)

    def _tool_call(self, start: ToolCallStart) -> bytes:
        self._arguments[start.index] = False
        self._open_call = start.index
        function = {"name": start.name, "arguments": ""}
        call = {"index": start.index, "id": start.id, "type": "function", "function": function}
        return self._chunk({"tool_calls": [call]})

    def _end_block(self) -> bytes:
        """A thought that is signed is told whole, for the next turn; a call without arguments has none to parse."""
        thought, signature = "".join(self._thought), self._signature
        self._thought, self._signature = [], None
        if signature is not None:
            return self._thinking_block(_thinking_block(thought, signature))
        index, self._open_call = self._open_call, None
        return self._no_arguments(index) if index is not None else b""

    def _thinking_block(self, block: Json) -> bytes:
        # The SDK's helpers join lists of a stream by their entries' `index`.
        index, self._thinking_blocks = self._thinking_blocks, self._thinking_blocks + 1
        return self._chunk({"thinking_blocks": [{"index": index, **block}]})

    def _no_arguments(self, index: int) -> bytes:
        if self._arguments[index]:
            return b""
        self._arguments[index] = True
        return self._chunk({"tool_calls": [{"index": index, "function": {"arguments": "{}"}}]})

    def _finish(self, finish: Finish, ailb: Json | None) -> bytes:
        pieces = [self._end_block() if self._signature is not None else b""]
        pieces += [self._no_arguments(index) for index in self._arguments]
        stop = finish.stop
        if self._arguments and stop in (Stop.END, Stop.UNKNOWN):
            stop = Stop.TOOL_CALLS
        choice = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": _FINISH_REASONS.get(stop, "stop")}
        body: Json = {**self._head(), "choices": [choice]}
        if self._usage_fields:
            body["usage"] = None
        if extension := {**(ailb or {}), **_extension(finish.stop, finish.stop_category)}:
            body["ailb"] = extension
        return b"".join([*pieces, b"data: ", _encode(body), b"\n\n"])
