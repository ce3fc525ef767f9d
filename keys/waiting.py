"""Waiting one's turn where a limit would refuse: a weighted fair queue for each limit that is reached.

Self-clocked fair queueing (Golestani 1994): who joins a line is served at the virtual time at which their key's last
one is, or the line's own if that is later, and a share more for each that they have waiting; a key of weight 3 has
three served for one of weight 1, and a key that asks a thousand at once makes others wait for one of them.

Each process has its own lines. Only the first of a line asks the limit again; those behind it are not heard before it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from heapq import heappop, heappush
from itertools import count
from typing import TypeVar

from gateway.errors import RateLimited
from gateway.types import Limit

T = TypeVar("T")

_GLANCE = 0.1  # seconds after which a place in concurrency is asked for again: it may become free in another process
_PARALLEL = "parallel"  # as refusals name the limit: nobody knows when a request that runs will end
_LONGEST_LINE = 1_000  # requests: who comes then is refused as if nobody waited

Where = tuple[str, str, str]
"""Scope, owner and kind of the limit that is waited at."""

ADMISSION = ("requests", _PARALLEL)
TOKENS = ("tokens",)
"""Kinds of limits that are asked together. Who waits for tokens has a place in concurrency already: in one line with
those who wait for that it would keep them waiting, and they it.
"""


class _Ticket:
    """A place in a line."""

    __slots__ = ("at", "first", "number")

    def __init__(self, at: float, number: int) -> None:
        self.at = at
        self.number = number
        self.first: asyncio.Event = asyncio.Event()

    def __lt__(self, other: "_Ticket") -> bool:
        return (self.at, self.number) < (other.at, other.number)


class _Line:
    def __init__(self) -> None:
        self._waiting: list[_Ticket] = []
        self._gone: set[_Ticket] = set()
        self._virtual = 0.0
        self._last: dict[str, float] = {}
        """By key, the virtual time of its last place."""
        self._numbers = count()
        self._head: _Ticket | None = None
        """Whose turn it is: nobody comes before it any more, whatever their weight."""
        self.freed = asyncio.Event()
        """Somebody gave back what this line waits for."""

    def __len__(self) -> int:
        return len(self._waiting) - len(self._gone)

    def join(self, key: str, weight: int) -> tuple[_Ticket, int]:
        """A place, and how many are before it."""
        at = max(self._virtual, self._last.get(key, 0.0)) + 1.0 / weight
        ticket = _Ticket(at, next(self._numbers))
        self._last[key] = at
        before = sum(1 for other in self._waiting if other < ticket and other not in self._gone)
        heappush(self._waiting, ticket)
        self._call()
        return ticket, before

    def leave(self, ticket: _Ticket) -> None:
        self._gone.add(ticket)
        self._virtual = max(self._virtual, ticket.at if ticket.first.is_set() else 0.0)
        self._call()

    def _call(self) -> None:
        if self._head is not None and self._head not in self._gone:
            return
        while self._waiting and self._waiting[0] in self._gone:
            self._gone.discard(heappop(self._waiting))
        self._head = self._waiting[0] if self._waiting else None
        if self._head is not None:
            self._head.first.set()
        else:
            self._last.clear()


class Queues:
    """The lines of one process."""

    def __init__(self) -> None:
        self._lines: dict[Where, _Line] = {}

    async def admitted(
        self,
        ask: Callable[[], Awaitable[T]],
        limits: tuple[Limit, ...],
        kinds: tuple[str, ...],
        *,
        key: str,
        weight: int,
        seconds: float,
        told: Callable[[int], None],
    ) -> T:
        """What `ask` says once no limit refuses it, at most `seconds` from now. It asks limits of `kinds` alone:
        ADMISSION or TOKENS. `told` hears the position, from 1.

        Raises the `RateLimited` that it met last.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        where = next((place for place in _places(limits, kinds) if place in self._lines), None) if self._lines else None
        if where is None:
            try:
                return await ask()
            except RateLimited as refusal:
                where = _worth_waiting(refusal, limits, seconds)
                if where is None:
                    raise
        while True:
            try:
                return await self._waited(ask, where, until, key, weight, told)
            except RateLimited as refusal:
                other = _worth_waiting(refusal, limits, until - loop.time())
                if other is None or other == where:
                    raise
                where = other  # another limit: it would keep those behind it from one that has room

    async def _waited(
        self,
        ask: Callable[[], Awaitable[T]],
        where: Where,
        until: float,
        key: str,
        weight: int,
        told: Callable[[int], None],
    ) -> T:
        line = self._lines.setdefault(where, _Line())
        if len(line) >= _LONGEST_LINE:
            return await ask()  # which says what it is
        ticket, before = line.join(key, weight)
        told(before + 1)
        try:
            return await _at_the_head(ask, (where[0], where[2]), line, ticket, until)
        finally:
            line.leave(ticket)
            if not len(line):
                self._lines.pop(where, None)

    def freed(self, limits: Iterable[Limit]) -> None:
        """A request of these ended: whoever waits for a place in concurrency may ask now."""
        if not self._lines:
            return
        for place in _places(limits, ADMISSION + TOKENS):
            if (line := self._lines.get(place)) is not None:
                line.freed.set()


def _places(limits: Iterable[Limit], kinds: tuple[str, ...]) -> Iterable[Where]:
    return ((limit.scope, limit.owner, kind) for limit in limits for kind in kinds)


async def _at_the_head(
    ask: Callable[[], Awaitable[T]], limit: tuple[str, str], line: _Line, ticket: _Ticket, until: float
) -> T:
    """Ask as soon as it is this one's turn, and again when `limit`, scope and kind, says that it may pass."""
    clock = asyncio.get_running_loop().time
    if not await _happens(ticket.first, until - clock()):
        return await ask()  # too late: what refuses it now says when to come back
    while True:
        line.freed.clear()
        try:
            return await ask()
        except RateLimited as refusal:
            pause = refusal.retry_after
            if pause is None or refusal.limited_by != limit:
                raise
            if limit[1] == _PARALLEL:
                pause = _GLANCE
            if clock() + pause > until:
                raise
        await _happens(line.freed, pause)


def _worth_waiting(refusal: RateLimited, limits: tuple[Limit, ...], seconds: float) -> Where | None:
    """The limit that refused; None where waiting for so long does not help."""
    if not refusal.retryable or refusal.limited_by is None or refusal.retry_after is None:
        return None
    scope, kind = refusal.limited_by
    if refusal.retry_after > seconds and kind != _PARALLEL:
        return None
    return next(((scope, limit.owner, kind) for limit in limits if limit.scope == scope), None)


async def _happens(event: asyncio.Event, seconds: float) -> bool:
    if event.is_set():
        return True
    if seconds <= 0:
        return False
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True
