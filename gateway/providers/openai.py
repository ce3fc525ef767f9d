"""The OpenAI dialect, and OpenAI itself. An OpenAI-compatible server is this with another base URL."""

from typing import Any

import msgspec

from gateway.errors import StreamCut
from gateway.providers.base import Completion, HttpProvider, StreamEvent, StreamReader, stream_error
from gateway.providers.sse import EventDecoder, EventTooLong
from gateway.types import ChatRequest, Deployment, Json, Usage

# Types of openai-python 3.54 (types/chat, types/completion_usage), read leniently: compatible servers leave fields
# out or send null. Only what the gateway reads is named; the rest passes by.


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
    function: _Function | None = None


class _Message(msgspec.Struct):
    content: str | list[Any] | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[_ToolCall] | None = None


class _StreamChoice(msgspec.Struct):
    delta: _Message | None = None
    finish_reason: str | None = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    choices: list[_StreamChoice] | None = None
    model: str | None = None
    usage: _Usage | msgspec.UnsetType | None = msgspec.UNSET
    service_tier: str | None = None
    error: Any = None


class _Answer(msgspec.Struct):
    choices: list[_Choice]
    model: str | None = None
    usage: _Usage | None = None
    service_tier: str | None = None


_chunks = msgspec.json.Decoder(_Chunk)
_answers = msgspec.json.Decoder(_Answer)
_encode = msgspec.json.Encoder().encode


class Vendor(HttpProvider):
    """OpenAI's chat completions."""

    slug = "openai"
    env_prefix = "OPENAI"
    default_base_url = "https://api.openai.com/v1"
    price_book = ""
    path = "/chat/completions"
    output_cap = "max_completion_tokens"
    """The field that carries the gateway's own output cap; older compatible servers know `max_tokens` only."""

    def encode(self, request: ChatRequest, deployment: Deployment) -> bytes:
        body = {**request.body, "model": deployment.upstream_model}
        if request.stream:
            # Usage is always asked for: without it a stream could not be billed by what it was.
            options = body.get("stream_options")
            body["stream_options"] = {**(options if isinstance(options, dict) else {}), "include_usage": True}
        self._cap(body, request.max_output)
        return _encode(body)

    def _cap(self, body: Json, most: int | None) -> None:
        """One output cap, under the client's name for it: of two the newer one, where it set none the gateway's."""
        if body.get("max_completion_tokens") is not None:
            body.pop("max_tokens", None)
        elif body.get("max_tokens") is None and most is not None:
            body.pop("max_tokens", None)
            body.pop("max_completion_tokens", None)
            body[self.output_cap] = most

    def decode(self, body: bytes) -> Completion:
        answer = _answers.decode(body)
        return Completion(
            body=body,
            usage=_usage(answer.usage),
            text="".join(_text(choice.message) for choice in answer.choices),
            served_model=answer.model,
            service_tier=answer.service_tier,
            finish_reason=answer.choices[0].finish_reason if answer.choices else None,
        )

    def reader(self) -> "Reader":
        return Reader(self)


class _Like(msgspec.Struct, frozen=True):
    """A chunk of which the next ones differ in nothing but their content, as nearly all of a stream do."""

    before: bytes
    """Up to the content's opening quote."""
    after: bytes
    """From its closing quote on."""
    event: StreamEvent


class Reader(StreamReader):
    """Chat completion chunks as they come."""

    def __init__(self, provider: Vendor) -> None:
        self._provider = provider
        self._events = EventDecoder()
        self._finished = False
        self._like: _Like | None = None

    def feed(self, chunk: bytes) -> list[StreamEvent]:
        try:
            payloads = self._events.feed(chunk)
        except EventTooLong:
            raise StreamCut("The provider sent an event without an end.", upstream_status=200) from None
        return self._read(payloads)

    def end(self) -> list[StreamEvent]:
        events = self._read(self._events.end())
        # Some compatible servers send no [DONE]; a finish reason says as much.
        self.done = self.done or self._finished
        return events

    def _read(self, payloads: list[bytes]) -> list[StreamEvent]:
        events = []
        for data in payloads:
            if data.startswith(b"[DONE]"):
                self.done = True
                break
            events.append(self._repeated(data) or self._event(data))
        return events

    def _repeated(self, data: bytes) -> StreamEvent | None:
        """The event of a chunk like the one before, read without parsing: half of what a chunk costs.

        What stands before and after the content is the same to the byte, and the content has no quote, backslash or
        control character: so it parses as the one before did.
        """
        like = self._like
        if like is None or not (data.startswith(like.before) and data.endswith(like.after)):
            return None
        content = data[len(like.before) : -len(like.after)]
        if not content or b'"' in content or b"\\" in content or len(data) < len(like.before) + len(like.after):
            return None
        try:
            text = content.decode()
        except UnicodeDecodeError:
            return None
        if not text.isprintable():
            return None
        event = like.event
        return StreamEvent(
            data, text, True, None, None, False, event.null_usage, event.served_model, event.service_tier
        )

    def _remember(self, chunk: _Chunk, event: StreamEvent) -> None:
        """Keep a chunk of one choice whose only news is its content as what the next ones are compared with."""
        delta = chunk.choices[0].delta if chunk.choices and len(chunk.choices) == 1 else None
        if delta is None or event.finish_reason is not None or event.usage is not None:
            return
        if not isinstance(delta.content, str) or delta.content != event.text or delta.tool_calls is not None:
            return
        quoted = b'"%b"' % event.text.encode()
        if event.text and event.data.count(quoted) == 1:
            at = event.data.index(quoted)
            self._like = _Like(event.data[: at + 1], event.data[at + len(quoted) - 1 :], event)

    def _event(self, data: bytes) -> StreamEvent:
        try:
            chunk = _chunks.decode(data)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise StreamCut("The provider sent an event that is no chat chunk.", upstream_status=200) from None
        if chunk.error is not None:
            raise stream_error(chunk.error, self._provider)
        text = finish = None
        for choice in chunk.choices or ():
            if choice.delta is not None:
                said = _text(choice.delta)
                text = said if text is None else text + said
                if choice.delta.tool_calls:
                    text = text or " "  # a call without arguments yet is content all the same
            finish = choice.finish_reason or finish
        self._finished = self._finished or finish is not None
        usage = chunk.usage if chunk.usage is not msgspec.UNSET else None
        event = StreamEvent(
            data=data if b"\n" not in data else data.replace(b"\n", b" "),
            text=text or "",
            content=bool(text),
            finish_reason=finish,
            usage=_usage(usage),
            usage_only=usage is not None and not chunk.choices,
            null_usage=chunk.usage is None,
            served_model=chunk.model,
            service_tier=chunk.service_tier,
        )
        self._remember(chunk, event)
        return event


def _text(message: _Message) -> str:
    """Everything in a message or delta that costs output tokens."""
    content = message.content
    if type(content) is str and message.tool_calls is None and message.reasoning_content is None:
        return content if message.refusal is None else content + message.refusal
    parts = [content if isinstance(content, str) else "".join(_part(part) for part in content or ())]
    parts += [message.refusal or "", message.reasoning_content or ""]
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
    return Usage(
        prompt_tokens=usage.prompt_tokens,
        completion_tokens=usage.completion_tokens or 0,
        cached_tokens=(prompt.cached_tokens or 0) if prompt else 0,
        cache_write_tokens=(prompt.cache_write_tokens or 0) if prompt else 0,
        audio_prompt_tokens=(prompt.audio_tokens or 0) if prompt else 0,
        reasoning_tokens=(completion.reasoning_tokens or 0) if completion else 0,
        audio_completion_tokens=(completion.audio_tokens or 0) if completion else 0,
    )
