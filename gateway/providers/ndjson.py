"""Lines of JSON, read as they come: any chunking, LF or CR LF. Pure."""

from gateway.providers.sse import EventTooLong

_LONGEST_LINE = 16 * 1024 * 1024  # bytes; an upstream that never ends a line must not fill the memory


class LineDecoder:
    """Feed it bytes, get the lines. Blank ones are dropped."""

    def __init__(self) -> None:
        self._pieces: list[bytes] = []
        """Of the line that has not ended yet; joined once, so that a long one costs linear time."""
        self._size = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """The lines that `chunk` completes. Raises `EventTooLong`."""
        if b"\n" not in chunk:
            self._keep(chunk)
            return []
        *lines, rest = b"".join((*self._pieces, chunk)).split(b"\n")
        self._pieces, self._size = [], 0
        self._keep(rest)
        return [stripped for line in lines if (stripped := line.strip())]

    def end(self) -> list[bytes]:
        """What was left without its line end when the stream ended."""
        line, self._pieces, self._size = b"".join(self._pieces).strip(), [], 0
        return [line] if line else []

    def _keep(self, piece: bytes) -> None:
        if not piece:
            return
        self._pieces.append(piece)
        self._size += len(piece)
        if self._size > _LONGEST_LINE:
            raise EventTooLong
