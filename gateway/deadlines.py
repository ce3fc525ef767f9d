"""The time that a request has until its first content, for all requests with one timer.

All have the same time, so the first that began is the first that is late: where `asyncio.timeout` costs each request a
place in the loop's heap and a timer to cancel (4 µs), this is an entry in a dict.
"""

import asyncio
from typing import Protocol


class Timed(Protocol):
    def expire(self) -> None:
        """Its time is over."""


class Deadlines:
    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._open: dict[Timed, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, request: Timed) -> None:
        at = self._open[request] = self._loop.time() + self._seconds
        if self._timer is None:
            self._timer = self._loop.call_at(at, self._ring)

    def end(self, request: Timed) -> None:
        self._open.pop(request, None)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _ring(self) -> None:
        self._timer = None
        now = self._loop.time()
        while self._open:
            request, at = next(iter(self._open.items()))
            if at > now:
                self._timer = self._loop.call_at(at, self._ring)
                return
            del self._open[request]
            request.expire()
