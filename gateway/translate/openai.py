"""OpenAI's chat completions, on the wire: answers and streams of upstreams; and all else of the dialect, by name.

Read leniently: compatible servers leave fields out or send null. Only what the gateway reads is named; in the native
direction the rest passes by as it is. Types: openai-python 3.54, `types/chat` and `types/completion_usage`.
"""

import hashlib
from typing import Any, Final

import msgspec

from gateway.translate import events
from gateway.translate.openai_answer import StreamWriter, usage_body, write_answer
from gateway.translate.openai_prompt import reasons, write_request
from gateway.translate.openai_request import read_request
from gateway.translate.usage import consistent
from gateway.types import (
    Answer,
    Block,
    Completion,
    Delta,
    Finish,
    Refusal,
    RefusalDelta,
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

__all__ = [
    "Events", "StreamWriter", "read_answer", "read_request", "reasons", "usage_body", "write_answer", "write_request",
]  # fmt: skip

_encode = msgspec.json.Encoder().encode

BETWEEN: Final = b"\n\ndata: "
"""Between two chunks of one event: what ends the one on the wire and begins the other."""

_STOPS: Final = {
    "stop": Stop.END,
    "length": Stop.LENGTH,
    "tool_calls": Stop.TOOL_CALLS,
    "function_call": Stop.TOOL_CALLS,
    "content_filter": Stop.REFUSAL,
}


class _PromptDetails(msgspec.Struct):
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    audio_tokens: int | None = None


class _CompletionDetails(msgspec.Struct):
    reasoning_tokens: int | None = None
    audio_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _ToolCall(msgspec.Struct):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Message(msgspec.Struct):
    content: str | list[Any] | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    """vLLM's and OpenRouter's name for it"""
    tool_calls: list[_ToolCall] | None = None

    @property
    def thinking(self) -> str:
        return self.reasoning_content or self.reasoning or ""

    @property
    def is_partly_hidden(self) -> bool:
        """Whether it holds something that is not said to the user."""
        return bool(self.tool_calls or self.thinking)

    @property
    def spoken(self) -> str:
        return self.said + (self.refusal or "")

    @property
    def said(self) -> str:
        content = self.content
        return content if isinstance(content, str) else "".join(_part(part) for part in content or ())


class _StreamChoice(msgspec.Struct):
    delta: _Message | None = None
    finish_reason: str | None = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    choices: list[_StreamChoice] | None = None
    id: str | None = None
    model: str | None = None
    usage: _Usage | msgspec.UnsetType | None = msgspec.UNSET
    service_tier: str | None = None
    error: Any = None


class _Answer(msgspec.Struct):
    choices: list[_Choice]
    id: str | None = None
    model: str | None = None
    usage: _Usage | None = None
    service_tier: str | None = None


_chunks = msgspec.json.Decoder(_Chunk)
_answers = msgspec.json.Decoder(_Answer)


# ── an upstream's answer ────────────────────────────────────────────────────────────────────────────────────────────


def read_answer(body: bytes, *, native: bool) -> Completion:
    """An upstream's plain answer. Raises `msgspec.MsgspecError` where it is none."""
    answer = _answers.decode(body)
    finish = answer.choices[0].finish_reason if answer.choices else None
    hidden = any(choice.message.is_partly_hidden for choice in answer.choices)
    return Completion(
        body=_known_reasons(body, answer.choices) if native else b"",
        answer=None if native else _neutral(answer),
        usage=_usage(answer.usage),
        text="".join(_text(choice.message) for choice in answer.choices),
        spoken="".join(choice.message.spoken for choice in answer.choices) if hidden else None,
        served_model=answer.model,
        service_tier=answer.service_tier,
        finish_reason=finish,
    )


def _known_reasons(body: bytes, choices: list[_Choice]) -> bytes:
    """The body without finish reasons that OpenAI's clients do not know."""
    if all(choice.finish_reason in _STOPS or choice.finish_reason is None for choice in choices):
        return body
    return _with_known_reasons(body)


def _with_known_reasons(data: bytes) -> bytes:
    answer = msgspec.json.decode(data)
    for choice in answer["choices"]:
        if choice.get("finish_reason") not in _STOPS and choice.get("finish_reason") is not None:
            choice["finish_reason"] = "stop"
    return _encode(answer)


def _neutral(answer: _Answer) -> Answer:
    if not answer.choices:
        return Answer(content=(), stop=Stop.END)
    choice = answer.choices[0]
    message = choice.message
    content: list[Block] = []
    if message.thinking:
        content.append(Thinking(message.thinking))
    if message.said:
        content.append(Text(message.said))
    if message.refusal:
        content.append(Refusal(message.refusal))
    for index, call in enumerate(message.tool_calls or ()):
        function = call.function or _Function()
        content.append(ToolCall(call.id or _call_id(answer.id, index), function.name or "", function.arguments or ""))
    return Answer(content=tuple(content), stop=_stop(choice.finish_reason))


def _stop(finish_reason: str | None) -> Stop:
    return Stop.END if finish_reason is None else _STOPS.get(finish_reason, Stop.UNKNOWN)


def _call_id(answer_id: str | None, index: int) -> str:
    """For servers that give calls none: unique in a conversation, since answers' ids differ."""
    return f"call_{hashlib.sha256(f'{answer_id}/{index}'.encode()).hexdigest()[:24]}"


class _Like(msgspec.Struct, frozen=True):
    """A chunk of which the next ones differ in nothing but their content, as nearly all of a stream do."""

    before: bytes
    """Up to the content's opening quote."""
    after: bytes
    """From its closing quote on."""
    event: StreamEvent


class Events(events.Events):
    """Chat completion chunks."""

    def __init__(self, *, native: bool) -> None:
        super().__init__(native=native)
        self._finished = False
        self._like: _Like | None = None
        self._calls = _Calls()

    def end(self) -> None:
        # Some compatible servers send no [DONE]; a finish reason says as much.
        self.done = self.done or self._finished

    def read(self, data: bytes) -> StreamEvent | None:
        return self.read_on([data], 0)[0]

    def read_on(self, payloads: list[bytes], at: int) -> tuple[StreamEvent | None, int]:
        """Chunks that arrived together and differ in their content only go on together, as the bytes they are.

        They are read without parsing, which is half of what a chunk costs.
        """
        data, like = payloads[at], self._like
        text = self._said_like(like, data) if like is not None else None
        if like is None or text is None:
            if not data.startswith(b"[DONE]"):
                return self._event(data), at + 1
            self.done = True
            return None, at + 1
        null_usage, model, tier = like.event.null_usage, like.event.served_model, like.event.service_tier
        if not self.native:
            deltas = (TextDelta(text),)
            return StreamEvent(b"", text, True, None, None, False, False, model, tier, deltas), at + 1
        end = at + 1
        while end < len(payloads) and (more := self._said_like(like, payloads[end])) is not None:
            text += more
            end += 1
        data = data if end == at + 1 else BETWEEN.join(payloads[at:end])
        return StreamEvent(data, text, True, None, None, False, null_usage, model, tier), end

    @staticmethod
    def _said_like(like: _Like, data: bytes) -> str | None:
        """The content of a chunk like the one before.

        What stands before and after the content is the same to the byte, and the content has no quote, backslash or
        control character: so it parses as the one before did.
        """
        if not (data.startswith(like.before) and data.endswith(like.after)):
            return None
        content = data[len(like.before) : -len(like.after)]
        if not content or b'"' in content or b"\\" in content or len(data) < len(like.before) + len(like.after):
            return None
        try:
            text = content.decode()
        except UnicodeDecodeError:
            return None
        return text if text.isprintable() else None

    def _remember(self, data: bytes, chunk: _Chunk, event: StreamEvent) -> None:
        """Keep a chunk of one choice whose only news is its content as what the next ones are compared with."""
        delta = chunk.choices[0].delta if chunk.choices and len(chunk.choices) == 1 else None
        if delta is None or event.finish_reason is not None or event.usage is not None:
            return
        if not isinstance(delta.content, str) or delta.content != event.text or delta.tool_calls is not None:
            return
        quoted = b'"%b"' % event.text.encode()
        if event.text and data.count(quoted) == 1:
            at = data.index(quoted)
            self._like = _Like(data[: at + 1], data[at + len(quoted) - 1 :], event)

    def _event(self, data: bytes) -> StreamEvent:
        chunk = _chunks.decode(data)
        if chunk.error is not None:
            raise events.ErrorEvent(chunk.error)
        text = finish = spoken = None
        for choice in chunk.choices or ():
            if choice.delta is not None:
                said = _text(choice.delta)
                text = said if text is None else text + said
                if choice.delta.is_partly_hidden:
                    text = text or " "  # a call without arguments yet is content all the same
                    spoken = "".join(each.delta.spoken for each in chunk.choices or () if each.delta is not None)
            finish = choice.finish_reason or finish
        self._finished = self._finished or finish is not None
        usage = chunk.usage if chunk.usage is not msgspec.UNSET else None
        event = StreamEvent(
            data=self._shown(data, finish),
            text=text or "",
            content=bool(text),
            finish_reason=finish,
            usage=_usage(usage),
            usage_only=usage is not None and not chunk.choices,
            null_usage=chunk.usage is None,
            served_model=chunk.model,
            service_tier=chunk.service_tier,
            deltas=() if self.native else self._deltas(chunk),
            spoken=spoken,
        )
        self._remember(data, chunk, event)
        return event

    def _shown(self, data: bytes, finish: str | None) -> bytes:
        if not self.native:
            return b""
        if finish is not None and finish not in _STOPS:
            data = _with_known_reasons(data)
        return data if b"\n" not in data else data.replace(b"\n", b" ")

    def _deltas(self, chunk: _Chunk) -> tuple[Delta, ...]:
        """The first choice's news: a translated request has no other."""
        if not chunk.choices:
            return ()
        choice = chunk.choices[0]
        found: list[Delta] = []
        if (delta := choice.delta) is not None:
            if delta.thinking:
                found.append(ThinkingDelta(delta.thinking))
            if delta.said:
                found.append(TextDelta(delta.said))
            if delta.refusal:
                found.append(RefusalDelta(delta.refusal))
            for call in delta.tool_calls or ():
                found += self._calls.read(call, chunk.id)
        if choice.finish_reason is not None:
            found.append(Finish(_stop(choice.finish_reason)))
        return tuple(found)


class _Calls:
    """A stream's tool calls. Servers leave out the index or the id, name a call after its arguments began, or give two
    whole calls the same index.
    """

    def __init__(self) -> None:
        self._started: dict[int | str, ToolCallStart] = {}
        """By the upstream's index, or its id where there is none."""
        self._number = 0
        self._early: dict[int | str, str] = {}
        """Arguments of calls that have no name yet."""
        self._newest: int | str = 0

    def read(self, call: _ToolCall, answer_id: str | None) -> list[Delta]:
        function = call.function or _Function()
        key = self._key(call)
        arguments = function.arguments or ""
        started = self._started.get(key)
        if started is not None and not (function.name and call.id and call.id != started.id):
            return [ToolCallDelta(started.index, arguments)] if arguments else []
        if not function.name:
            self._early[key] = self._early.get(key, "") + arguments
            return []
        start = ToolCallStart(self._number, call.id or _call_id(answer_id, self._number), function.name)
        self._started[key] = start
        self._number += 1
        arguments = self._early.pop(key, "") + arguments
        return [start, ToolCallDelta(start.index, arguments)] if arguments else [start]

    def _key(self, call: _ToolCall) -> int | str:
        if call.index is not None and call.index >= 0:
            self._newest = call.index
        elif call.id:
            self._newest = call.id
        return self._newest


def _text(message: _Message) -> str:
    """Everything in a message or delta that costs output tokens."""
    content = message.content
    if type(content) is str and message.tool_calls is None and not message.thinking:
        return content if message.refusal is None else content + message.refusal
    parts = [message.said, message.refusal or "", message.thinking]
    for call in message.tool_calls or ():
        if call.function is not None:
            parts += [call.function.name or "", call.function.arguments or ""]
    return "".join(parts)


def _part(part: Any) -> str:
    text = part.get("text") if isinstance(part, dict) else None
    return text if isinstance(text, str) else ""


def _usage(usage: _Usage | None) -> Usage | None:
    """None where the upstream reported nothing that could be billed."""
    if usage is None or usage.prompt_tokens is None:
        return None
    prompt, completion = usage.prompt_tokens_details, usage.completion_tokens_details
    return consistent(
        Usage(
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens or 0,
            cached_tokens=(prompt.cached_tokens or 0) if prompt else 0,
            cache_write_tokens=(prompt.cache_write_tokens or 0) if prompt else 0,
            audio_prompt_tokens=(prompt.audio_tokens or 0) if prompt else 0,
            reasoning_tokens=(completion.reasoning_tokens or 0) if completion else 0,
            audio_completion_tokens=(completion.audio_tokens or 0) if completion else 0,
        )
    )
