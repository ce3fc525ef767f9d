"""The baselines: the least a Python server can do that forwards a chat request to an upstream.

Both read the body, decode and re-encode its JSON, send it on over one shared aiohttp session and hand back the bytes
that come, a stream's as they arrive. Neither checks a key, counts, logs or parses an answer. They are as fast as we
know how to write them, because a slow baseline would flatter the gateway.

    python -m benchmarks.bare {asgi,channels} --port N --upstream http://127.0.0.1:M/v1
"""

from __future__ import annotations

import argparse
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import msgspec
import uvicorn
from django.conf import settings
from django.urls import path

# Configured before channels is imported, which reads Django's settings.
settings.configure(ALLOWED_HOSTS=["127.0.0.1"], USE_TZ=True)

from channels.generic.http import AsyncHttpConsumer  # type: ignore[import-untyped, unused-ignore]  # noqa: E402
from channels.routing import ProtocolTypeRouter, URLRouter  # type: ignore[import-untyped, unused-ignore]  # noqa: E402

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

decode = msgspec.json.Decoder().decode
encode = msgspec.json.Encoder().encode


class Upstream:
    """The one upstream and the connection pool to it. The session is made on first use: it needs the running loop."""

    def __init__(self, base_url: str) -> None:
        self.url = f"{base_url}/chat/completions"
        self.session: aiohttp.ClientSession | None = None

    def post(self, body: bytes, headers: Headers) -> aiohttp.client._RequestContextManager:
        """Sends a chat request on with the caller's credentials; the answer's body is not read yet."""
        if self.session is None:
            # No limit of connections: a queue in the client would be measured as latency of the server.
            self.session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        outgoing = {"Content-Type": "application/json"}
        for name, value in headers:
            if name == b"authorization":
                outgoing["Authorization"] = value.decode("latin-1")
        return self.session.post(self.url, data=encode(decode(body)), headers=outgoing)


def content_type(answer: aiohttp.ClientResponse) -> bytes:
    return answer.headers["Content-Type"].encode("latin-1")


def is_stream(answer: aiohttp.ClientResponse) -> bool:
    return answer.headers["Content-Type"].startswith("text/event-stream")


async def read_body(receive: Receive) -> bytes:
    message = await receive()
    body: bytes = message["body"]
    while message["more_body"]:
        message = await receive()
        body += message["body"]
    return body


def asgi_application(upstream: Upstream) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    """The floor: one ASGI callable, no framework."""

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        body = await read_body(receive)
        async with upstream.post(body, scope["headers"]) as answer:
            headers = [(b"content-type", content_type(answer))]
            if is_stream(answer):
                await send({"type": "http.response.start", "status": answer.status, "headers": headers})
                async for piece in answer.content.iter_any():
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
                await send({"type": "http.response.body", "body": b""})
            else:
                whole = await answer.read()
                headers.append((b"content-length", b"%d" % len(whole)))
                await send({"type": "http.response.start", "status": answer.status, "headers": headers})
                await send({"type": "http.response.body", "body": whole})

    return application


class ForwardingConsumer(AsyncHttpConsumer):  # type: ignore[misc, unused-ignore]
    """The yardstick: the same through Channels' own consumer class, used as its documentation shows."""

    upstream: Upstream

    async def handle(self, body: bytes) -> None:
        async with self.upstream.post(body, self.scope["headers"]) as answer:
            headers = [(b"content-type", content_type(answer))]
            if is_stream(answer):
                await self.send_headers(status=answer.status, headers=headers)
                async for piece in answer.content.iter_any():
                    await self.send_body(piece, more_body=True)
                await self.send_body(b"")
            else:
                whole = await answer.read()
                headers.append((b"content-length", b"%d" % len(whole)))
                await self.send_response(answer.status, whole, headers=headers)


def channels_application(upstream: Upstream) -> ProtocolTypeRouter:
    """The consumer behind Channels' two routers."""
    ForwardingConsumer.upstream = upstream
    return ProtocolTypeRouter({"http": URLRouter([path("v1/chat/completions", ForwardingConsumer.as_asgi())])})


def main() -> None:
    parser = argparse.ArgumentParser(description="Serves one of the baselines on 127.0.0.1.")
    parser.add_argument("kind", choices=["asgi", "channels"])
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--upstream", required=True, help="base URL of the upstream, ending in /v1")
    arguments = parser.parse_args()
    upstream = Upstream(arguments.upstream)
    application = asgi_application(upstream) if arguments.kind == "asgi" else channels_application(upstream)
    # Lifespan is off because Channels' ProtocolTypeRouter does not answer it.
    uvicorn.run(
        application,
        host="127.0.0.1",
        port=arguments.port,
        loop="uvloop",
        http="httptools",
        lifespan="off",
        access_log=False,
        proxy_headers=False,
        log_level="warning",
    )


if __name__ == "__main__":
    main()
