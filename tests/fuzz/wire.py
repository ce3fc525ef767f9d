"""HTTP/1.1 by hand: every byte of a request is the test's, and every byte of an answer is looked at."""

import contextlib
import json
import socket
import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

PATIENCE = 20.0  # seconds for an answer that is owed: two cores, shared with everything else

Headers = Iterable[tuple[bytes, bytes]]


class Broken(AssertionError):
    """What came is no HTTP answer, or came too late."""


@dataclass
class Answer:
    """A response, whole; of a header that comes twice the last."""

    status: int
    headers: dict[str, str]
    raw: bytes
    names: list[str] = field(default_factory=list)
    """The headers' names as they came, each as often as it came."""

    @property
    def content_type(self) -> str:
        return self.headers.get("content-type", "")

    @cached_property
    def body(self) -> Any:
        """The JSON."""
        return json.loads(self.raw)


def request(
    path: str | bytes, *, method: str | bytes = "POST", headers: Headers = (), body: bytes | None = None
) -> bytes:
    """A request as it should be, `content-length` and all; a header of that name in `headers` comes beside ours."""
    target = path.encode() if isinstance(path, str) else path
    verb = method.encode() if isinstance(method, str) else method
    lines = [b"%b %b HTTP/1.1" % (verb, target), b"host: localhost"]
    lines += [b"%b: %b" % header for header in headers]
    if body is not None:
        lines.append(b"content-length: %d" % len(body))
    return b"\r\n".join([*lines, b"", body or b""])


class Wire:
    """One connection."""

    def __init__(self, port: int, *, patience: float = PATIENCE) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=patience)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._patience = patience
        self._buffer = b""
        self._deadline = 0.0

    def __enter__(self) -> "Wire":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def reset(self) -> None:
        """Leave with a RST: what was not read yet is lost."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()

    def send(self, data: bytes, within: float | None = None) -> bool:
        """Whether the other side took all of it; it may hang up on what it does not like."""
        self._socket.settimeout(within or self._patience)
        try:
            self._socket.sendall(data)
        except OSError:
            return False
        return True

    def stop_sending(self) -> None:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_WR)

    def ask(self, data: bytes, *, head: bool = False) -> Answer:
        """Send a whole request and read its answer; reads after `Broken` make no sense."""
        self.send(data)
        answer = self.read(head=head)
        if answer is None:
            raise Broken("the connection was closed without an answer")
        return answer

    def read(self, *, head: bool = False, within: float | None = None) -> Answer | None:
        """The next answer; None where the connection ends before one begins. `head`: it has no body.

        Raises `Broken`, and `TimeoutError` where nothing comes.
        """
        self._deadline = time.monotonic() + (within or self._patience)
        while True:
            if not self._buffer and not self._more():
                return None
            lines = self._until(b"\r\n\r\n").split(b"\r\n")
            version, status, *_ = lines[0].split(b" ", 2)
            if version not in (b"HTTP/1.1", b"HTTP/1.0") or not (len(status) == 3 and status.isdigit()):
                raise Broken(f"no status line: {lines[0]!r}")
            if status != b"100":
                break
        pairs = [_pair(line) for line in lines[1:]]
        headers = dict(pairs)
        # What is no HTTP is refused before it is known what was asked for.
        unread = status in (b"400", b"431") and headers.get("connection") == "close"
        bodiless = (head and not unread) or status in (b"204", b"304")
        raw = b"" if bodiless else self._body(headers)
        return Answer(int(status), headers, raw, [name for name, _ in pairs])

    def rest(self, within: float) -> bytes:
        """What else comes in this time, or until the end."""
        self._deadline = time.monotonic() + within
        with contextlib.suppress(TimeoutError):
            while self._more():
                pass
        return self._buffer

    def _body(self, headers: dict[str, str]) -> bytes:
        if headers.get("transfer-encoding") == "chunked":
            return b"".join(iter(self._chunk, b""))
        if "content-length" in headers:
            length = int(headers["content-length"])
            while len(self._buffer) < length:
                self._need()
            body, self._buffer = self._buffer[:length], self._buffer[length:]
            return body
        while self._more():
            pass
        body, self._buffer = self._buffer, b""
        return body

    def _chunk(self) -> bytes:
        length = int(self._until(b"\r\n"), 16)
        while len(self._buffer) < length + 2:
            self._need()
        chunk, self._buffer = self._buffer[:length], self._buffer[length + 2 :]
        return chunk

    def _until(self, end: bytes) -> bytes:
        while (found := self._buffer.find(end)) < 0:
            self._need()
        before, self._buffer = self._buffer[:found], self._buffer[found + len(end) :]
        return before

    def _need(self) -> None:
        if not self._more():
            raise Broken(f"the answer ends in the middle: {self._buffer[-200:]!r}")

    def _more(self) -> bool:
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._socket.settimeout(left)
        try:
            data = self._socket.recv(1 << 18)
        except ConnectionResetError:
            return False
        self._buffer += data
        return bool(data)


def _pair(line: bytes) -> tuple[str, str]:
    name, colon, value = line.partition(b":")
    if not colon or not name.strip() or b"\n" in line or b"\r" in line:
        raise Broken(f"no header: {line!r}")
    return name.decode("latin-1").lower(), value.strip().decode("latin-1")
