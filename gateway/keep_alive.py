"""Signs of life in a stream's silences, so that no load balancer takes it for dead (lesson 33)."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final

SILENCE: Final = 10.0
"""Seconds without a byte after which the client is sent one; load balancers cut at 60, some at 30."""

COMMENT: Final = b": ping\n\n"
"""Every reader of events skips it, whatever has been said before (wire.md: safe as long as no event has an `id`)."""


class KeepAlive:
    """One timer a stream, that rings too early and is moved on, rather than one moved at each event."""

    def __init__(self, say: Callable[[], Awaitable[None]], spawn: Callable[[Coroutine[Any, Any, None]], None]) -> None:
        """`say` sends the sign of life; `spawn` runs it beside the request."""
        self._say = say
        self._spawn = spawn
        self._loop = asyncio.get_running_loop()
        self._last = self._loop.time()
        self._sending = 0
        self._handle = self._loop.call_later(SILENCE, self._ring)

    def sending(self) -> None:
        """Something is being sent. A client that is slow to take it hears from us as it is."""
        self._sending += 1

    def sent(self) -> None:
        self._sending -= 1
        self._last = self._loop.time()

    def stop(self) -> None:
        self._handle.cancel()

    def _ring(self) -> None:
        wait = self._last + SILENCE - self._loop.time()
        if wait <= 0:
            wait = SILENCE
            if not self._sending:
                self._last = self._loop.time()
                self._spawn(self._said())
        self._handle = self._loop.call_later(wait, self._ring)

    async def _said(self) -> None:
        self.sending()
        try:
            await self._say()
        finally:
            self.sent()
