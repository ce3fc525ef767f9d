"""A chat stream as OpenAI's clients expect it: what is shown of the upstream's events, and how it ends. Pure."""

import msgspec

from gateway.providers.base import StreamEvent
from gateway.types import Citation, Usage

_encode = msgspec.json.Encoder().encode
DONE = b"data: [DONE]\n\n"


class ChatStream:
    """Turns upstream events into bytes for one client, and remembers what was delivered.

    The usage event is held back until the request is settled; a client that did not ask for usage sees none.
    """

    def __init__(self, *, include_usage: bool, citations: tuple[Citation, ...] = ()) -> None:
        self._include_usage = include_usage
        self._citations = citations
        self._texts: list[str] = []
        self._head: bytes | None = None
        self._usage_event: bytes | None = None
        self.usage: Usage | None = None
        self.served_model: str | None = None
        self.service_tier: str | None = None
        self.finish_reason: str | None = None

    @property
    def text(self) -> str:
        """Everything delivered so far that costs output tokens."""
        return "".join(self._texts)

    def render(self, events: list[StreamEvent]) -> bytes:
        """What the client is sent for `events`; empty where they hold nothing for it."""
        shown = []
        for event in events:
            if event.usage is not None:
                self.usage = event.usage  # cumulative where it comes more than once
            self.served_model = event.served_model or self.served_model
            self.service_tier = event.service_tier or self.service_tier
            if event.usage_only:
                self._usage_event = event.data
                continue
            self._head = self._head or event.data
            if event.text:
                self._texts.append(event.text)
            shown.append(self._shown(event))
        return b"".join(shown)

    def _shown(self, event: StreamEvent) -> bytes:
        data = event.data
        if event.finish_reason is not None:
            self.finish_reason = event.finish_reason
            if self._citations:
                data, self._citations = _with_citations(data, self._citations), ()
        if event.usage is not None:
            # With a choice, or on every chunk: a client sees usage once, in an event of its own, or not at all.
            data = _with_usage(data, None) if self._include_usage else _without_usage(data)
        elif event.null_usage and not self._include_usage:
            data = _without_usage(data)
        return b"data: " + data + b"\n\n"

    def end(self, usage: Usage) -> bytes:
        """The usage event where it was asked for, and the terminator."""
        if not self._include_usage:
            return DONE
        return b"data: " + (self._usage_event or self._made_usage_event(usage)) + b"\n\n" + DONE

    def _made_usage_event(self, usage: Usage) -> bytes:
        """The client asked and the upstream sent none: the local count, in the stream's own frame."""
        head = msgspec.json.decode(self._head) if self._head else {}
        frame = {name: head[name] for name in ("id", "object", "created", "model") if name in head}
        return _encode({**frame, "choices": [], "usage": usage_body(usage)})


def usage_body(usage: Usage) -> dict[str, object]:
    """Usage as OpenAI writes it."""
    return {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
    }


_NULL_USAGE = b',"usage":null'


def _without_usage(data: bytes) -> bytes:
    # Inside a JSON string the quotes would be escaped, so the bytes can only be the field; twice could be a nested one.
    if data.count(_NULL_USAGE) == 1 == data.count(_NULL_USAGE[1:]):
        return data.replace(_NULL_USAGE, b"")
    chunk = msgspec.json.decode(data)
    chunk.pop("usage", None)
    return _encode(chunk)


def _with_usage(data: bytes, usage: None) -> bytes:
    return _encode({**msgspec.json.decode(data), "usage": usage})


def _with_citations(data: bytes, citations: tuple[Citation, ...]) -> bytes:
    return _encode({**msgspec.json.decode(data), "ailb": {"citations": citations}})


def with_citations(body: bytes, citations: tuple[Citation, ...]) -> bytes:
    """A plain answer with its citations."""
    return _with_citations(body, citations) if citations else body
