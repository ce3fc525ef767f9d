"""HTTP/1.1 to upstreams: aiohttp's connections, TLS, resolver and parser, without its session.

Of the 75 µs that `ClientSession.post` takes here, 55 go into what an upstream call has no use for: joining URLs,
merging headers, cookies, a writer's task, redirects, traces (docs/decisions/0007). So a call takes a connection of the
pool, writes a request whose head was made before, and reads what aiohttp's parser makes of the answer. `ClientRequest`
stands for the address only; aiohttp's version is pinned, and the provider tests go through all of this.
"""

import asyncio
import re
from collections.abc import Mapping

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.client_reqrep import ClientRequest
from aiohttp.connector import Connection
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import RawResponseMessage
from aiohttp.streams import StreamReader
from multidict import CIMultiDictProxy
from yarl import URL

from gateway import outbound

_READ_BUFFER = 2**17  # bytes
_KEEP_ALIVE = 60.0  # seconds that a connection waits for its next request
_NOT_IN_A_HEADER = re.compile(r"[\r\n\0]")


class Response:
    """An answer whose head has come. Its reader lets go of it by `release`, at its end or before."""

    __slots__ = ("_connection", "content", "headers", "status")

    def __init__(self, connection: Connection, message: RawResponseMessage, content: StreamReader) -> None:
        self._connection = connection
        self.status: int = message.code
        self.headers: CIMultiDictProxy[str] = message.headers
        self.content = content

    def reading_at_leisure(self) -> None:
        """The head is here: from now on the reader watches the clock, not the connection."""
        if self._connection.protocol is not None:
            self._connection.protocol.read_timeout = None

    def release(self) -> None:
        """Back into the pool; closed where it was not read to its end, which tells the upstream to stop."""
        self._connection.release()

    def close(self) -> None:
        """Break it off, under a reader's hands too."""
        self._connection.close()
        if self.content.exception() is None:
            self.content.set_exception(aiohttp.ClientConnectionError("the connection was closed"))


class Client:
    """The connections to one upstream, made on the running loop. Timeouts are in seconds."""

    def __init__(self, *, trusted_network: bool, connect_timeout: float, first_byte_timeout: float) -> None:
        self._trusted_network = trusted_network
        self._timeout = aiohttp.ClientTimeout(total=None, connect=None, sock_connect=connect_timeout)
        self._first_byte_timeout = first_byte_timeout
        self._connector: aiohttp.TCPConnector | None = None
        self._addresses: dict[URL, ClientRequest] = {}

    async def send(self, url: URL, head: bytes, body: bytes = b"") -> Response:
        """Send a request (`head` as `request_head` makes it) and return the answer once its head is here.

        Redirects are answers like others. Raises `TimeoutError`, `aiohttp.ClientError`, `OSError`.
        """
        connection = await self._connected(url)
        protocol = connection.protocol
        assert protocol is not None
        try:
            protocol.set_response_params(
                read_until_eof=True,
                read_timeout=self._first_byte_timeout,
                auto_decompress=False,
                read_bufsize=_READ_BUFFER,
            )
            protocol.start_timeout()
            assert protocol.transport is not None
            protocol.transport.write(b"%bcontent-length: %d\r\n\r\n%b" % (head, len(body), body))
            message, content = await _answer(protocol)
        except BaseException:
            connection.close()
            raise
        return Response(connection, message, content)

    async def close(self) -> None:
        if self._connector is not None:
            await self._connector.close()
            self._connector = None
            self._addresses.clear()

    async def _connected(self, url: URL) -> Connection:
        if self._connector is None:
            self._connector = outbound.connector(
                trusted_network=self._trusted_network, limit=0, keepalive_timeout=_KEEP_ALIVE
            )
        address = self._addresses.get(url)
        if address is None:
            address = self._addresses[url] = ClientRequest("POST", url, loop=asyncio.get_running_loop())
        return await self._connector.connect(address, [], self._timeout)


def request_head(method: str, url: URL, headers: Mapping[str, str]) -> bytes:
    """A request's head but for its content-length and the empty line. Raises `ValueError` for a header that is none."""
    lines = [f"{method} {url.raw_path_qs} HTTP/1.1", f"host: {url.host_port_subcomponent}"]
    for name, value in headers.items():
        if _NOT_IN_A_HEADER.search(name + value) or not name or not name.isascii():
            raise ValueError(f"not a header: {name!r}")
        lines.append(f"{name}: {value}")
    return "\r\n".join([*lines, ""]).encode()


async def _answer(protocol: ResponseHandler) -> tuple[RawResponseMessage, StreamReader]:
    """The final answer's head, and what its body will be read from."""
    while True:
        try:
            message, content = await protocol.read()
        except HttpProcessingError:
            raise aiohttp.ClientConnectionError("the answer was no HTTP") from None
        if not 100 <= message.code <= 199:
            return message, content
