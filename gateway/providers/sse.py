"""Server-sent events, read as they come: any chunking, any line ending. Pure."""

_LONGEST_EVENT = 16 * 1024 * 1024  # bytes; an upstream that never ends an event must not fill the memory


class EventTooLong(Exception):
    """An event without an end."""


class EventDecoder:
    """Feed it bytes, get the events' `data`. Event names, ids, retry hints and comments are dropped."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        """Of the event that has not ended yet; joined once, so that a long one costs linear time."""
        self._size = 0
        self._ended_in_cr = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """The data of the events that `chunk` completes. Raises `EventTooLong`."""
        if b"\r" in chunk or self._ended_in_cr:
            chunk = self._with_newlines(chunk)
        if not chunk:
            return []
        if b"\n\n" not in chunk and not (chunk[:1] == b"\n" and self._pieces and self._pieces[-1][-1:] == b"\n"):
            self._keep(chunk)
            return []
        *events, rest = b"".join((*self._pieces, chunk)).split(b"\n\n")
        self._pieces, self._size = [], 0
        if rest:
            self._keep(rest)
        return [data for event in events if (data := _data(event)) is not None]

    def _keep(self, piece: bytes) -> None:
        self._pieces.append(piece)
        self._size += len(piece)
        if self._size > _LONGEST_EVENT:
            raise EventTooLong

    def end(self) -> list[bytes]:
        """What was left without its blank line when the stream ended: some servers close right after `[DONE]`."""
        event, self._pieces, self._size = b"".join(self._pieces), [], 0
        data = _data(event)
        return [data] if data is not None else []

    def _with_newlines(self, chunk: bytes) -> bytes:
        """CR LF and CR become LF; a CR at the end of one chunk and a LF at the start of the next are one ending."""
        if not chunk:
            return chunk
        ended_in_cr, self._ended_in_cr = self._ended_in_cr, chunk.endswith(b"\r")
        if ended_in_cr and chunk.startswith(b"\n"):
            chunk = chunk[1:]
        return chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def _data(event: bytes) -> bytes | None:
    """The `data` of one event, its lines joined; None where it has none."""
    event = event.lstrip(b"\n")
    if event.startswith(b"data: ") and b"\n" not in event:
        return event[6:]
    lines = [line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None
