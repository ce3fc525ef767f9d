"""One stream's bytes into events: what finds payloads, what reads them, and what happens where they are none."""

import json
from abc import ABC, abstractmethod
from typing import Any, Protocol

import msgspec

from gateway.errors import StreamCut, UpstreamError
from gateway.providers.sse import EventTooLong
from gateway.translate.events import ErrorEvent, Events
from gateway.types import StreamEvent


class Decoder(Protocol):
    """Finds payloads in bytes, however they are cut: `gateway.providers.sse`, `.ndjson`."""

    def feed(self, chunk: bytes) -> list[bytes]: ...

    def end(self) -> list[bytes]: ...


class Breakable(Protocol):
    """A provider, as far as a reader knows it."""

    def broke_off(self, error: Any) -> UpstreamError: ...


class StreamReader(ABC):
    """The state of one stream. `done`: the upstream said that it was complete."""

    done: bool = False
    failure: UpstreamError | None = None
    """An error event, or `StreamCut` for nonsense: to be raised once what came before it was passed on."""

    @abstractmethod
    def feed(self, chunk: bytes) -> list[StreamEvent]:
        """Events that these bytes complete."""

    @abstractmethod
    def end(self) -> list[StreamEvent]:
        """The connection ended: what is still to come, and whether that was the end (`done`)."""


class EventReader(StreamReader):
    """A stream that is a row of payloads: `decoder` finds them in the bytes, `events` reads them."""

    def __init__(self, provider: Breakable, decoder: Decoder, events: Events) -> None:
        self._provider = provider
        self._decoder = decoder
        self._events = events

    def feed(self, chunk: bytes) -> list[StreamEvent]:
        try:
            payloads = self._decoder.feed(chunk)
        except EventTooLong:
            self.failure = StreamCut("The provider sent an event without an end.", upstream_status=200)
            return []
        return self._read(payloads)

    def end(self) -> list[StreamEvent]:
        found = self._read(self._decoder.end())
        self._events.end()
        self.done = self._events.done
        return found

    def _read(self, payloads: list[bytes]) -> list[StreamEvent]:
        found: list[StreamEvent] = []
        events = self._events
        try:
            at = 0
            while at < len(payloads) and not events.done:
                event, at = self._event(payloads, at)
                if event is not None:
                    found.append(event)
        except ErrorEvent as told:
            self.failure = self._provider.broke_off(told.error)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            self.failure = StreamCut("The provider sent an event that is none of its dialect.", upstream_status=200)
        self.done = events.done
        return found

    def _event(self, payloads: list[bytes], at: int) -> tuple[StreamEvent | None, int]:
        try:
            return self._events.read_on(payloads, at)
        except msgspec.DecodeError:
            data = payloads[at]
            if b"\\ud" not in data and b"\\uD" not in data:
                raise
            # Half of a character that the upstream cut between two tokens; as JSON it is none to us.
            return self._events.read(msgspec.json.encode(_whole_characters(json.loads(data)))), at + 1


def _whole_characters(value: Any) -> Any:
    """JSON with a replacement character for each lone surrogate."""
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_whole_characters(each) for each in value]
    if isinstance(value, dict):
        return {_whole_characters(name): _whole_characters(each) for name, each in value.items()}
    return value
