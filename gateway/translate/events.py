"""What the readers of streams have in common."""

from abc import ABC, abstractmethod
from typing import Any

from gateway.types import StreamEvent


class ErrorEvent(Exception):
    """The upstream told of an error inside its stream. `error` is its JSON, of any shape."""

    def __init__(self, error: Any) -> None:
        super().__init__("an error event")
        self.error = error


class Events(ABC):
    """The state of one upstream's stream, fed whole payloads. `native`: the client speaks the same dialect."""

    def __init__(self, *, native: bool) -> None:
        self.native = native
        self.done = False
        """The upstream said that this was all."""

    @abstractmethod
    def read(self, data: bytes) -> StreamEvent | None:
        """The event in one payload, None where it says nothing.

        Raises `ErrorEvent`, and `msgspec.MsgspecError` or `ValueError` where the payload is none of this dialect's.
        """

    def read_on(self, payloads: list[bytes], at: int) -> tuple[StreamEvent | None, int]:
        """The event at `payloads[at]`, perhaps with those that follow in one, and where to go on. Raises as `read`."""
        return self.read(payloads[at]), at + 1

    def end(self) -> None:  # noqa: B027  # most dialects say when they are done
        """The connection ended in order: the last chance to say `done`."""
