"""The data plane's beginning and end: with the server's lifespan, or at the first request where it has none."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from billing import alerts
from gateway.plane import Plane, open_plane

_plane: Plane | None = None
_opening: asyncio.Lock | None = None


async def plane() -> Plane:
    """This process's data plane."""
    global _plane, _opening
    if _plane is not None:
        return _plane
    _opening = _opening or asyncio.Lock()
    async with _opening:
        if _plane is None:
            _plane = await open_plane()
            alerts.queue.start()
    return _plane


def open_now() -> Plane | None:
    """The data plane where it is open."""
    return _plane


async def close() -> None:
    """Close the data plane; the next request would open another."""
    global _plane, _opening
    if _plane is not None:
        closing, _plane, _opening = _plane, None, None
        await closing.close()
        await asyncio.to_thread(alerts.queue.stop)


async def lifespan(
    scope: dict[str, Any],
    receive: Callable[[], Awaitable[dict[str, Any]]],
    send: Callable[[dict[str, Any]], Awaitable[None]],
) -> None:
    """The ASGI lifespan protocol."""
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            await plane()
            await send({"type": "lifespan.startup.complete"})
        elif message["type"] == "lifespan.shutdown":
            await close()
            await send({"type": "lifespan.shutdown.complete"})
            return
