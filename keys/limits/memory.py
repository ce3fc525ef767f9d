"""Rate limits of a single process. All methods run on the event loop, so a check and its count are one step."""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

from gateway.types import Limit
from keys.limits import refusals
from keys.limits.base import TOKEN_BURST, Admission, Gauge

_SWEEP_EVERY = 10_000  # buckets added between two clean-ups: keys come and go, memory must not grow with them


_SLACK = 1e-6  # seconds that rounding may add to a bucket's time: none waits for those

Owner = tuple[str, str]
"""Scope and owner of a limit."""


class Wanted(NamedTuple):
    """A bucket that a request has to pass: so many units a minute, up to `burst` at once."""

    owner: Owner
    per_minute: int
    burst: int


class Short(NamedTuple):
    """A bucket that has too little, by its place among those asked for, and the seconds until it has enough."""

    place: int
    wait: float


class Buckets:
    """GCRA buckets by owner: each is the time at which it would be full again ("theoretical arrival time")."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._full_at: dict[Owner, float] = {}
        self._swept = 0

    def take_all(self, wanted: Sequence[Wanted], units: int) -> Short | Gauge | None:
        """Take `units` of all, or of none where one is short; the gauge is that of the one with the least left."""
        now = self._clock()
        full_at: list[float] = []
        for index, (owner, per_minute, burst) in enumerate(wanted):
            at = self._full_at.get(owner, now)
            at = at if at > now else now
            interval = 60.0 / per_minute
            wait = at + (units - burst) * interval - now
            if wait > _SLACK:
                return Short(index, wait)
            full_at.append(at + units * interval)
        if not wanted:
            return None
        tightest, least = 0, math.inf
        for index, (owner, per_minute, burst) in enumerate(wanted):
            at = self._full_at[owner] = full_at[index]
            if (left := burst - (at - now) * per_minute / 60.0) < least:
                tightest, least = index, left
        self._sweep(now)
        # A nanosecond of slack: 59.999… of 60 units is 60 taken away by rounding, not by anybody.
        return Gauge(wanted[tightest].per_minute, max(int(least + 1e-9), 0), max(full_at[tightest] - now, 0.0))

    def take(self, owner: Owner, per_minute: int, units: int) -> None:
        """Whatever is there; negative: give back."""
        now = self._clock()
        self._full_at[owner] = max(self._full_at.get(owner, now), now) + units * 60.0 / per_minute
        self._sweep(now)

    def missing(self, owner: Owner, per_minute: int) -> int:
        """Units taken that have not come back yet, rounded up."""
        return math.ceil(max(self._full_at.get(owner, 0.0) - self._clock(), 0.0) * per_minute / 60.0)

    def _sweep(self, now: float) -> None:
        if len(self._full_at) > self._swept + _SWEEP_EVERY:
            self._full_at = {key: at for key, at in self._full_at.items() if at > now}
            self._swept = len(self._full_at)


class MemoryLimits:
    """`Limits` in this process."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._requests = Buckets(clock)
        self._tokens = Buckets(clock)
        self._running: defaultdict[Owner, int] = defaultdict(int)

    async def admit(self, request_id: str, limits: tuple[Limit, ...]) -> Admission:
        if not limits:
            return Admission(request_id, limits)
        wanted, rated, parallel = [], [], []
        for limit in limits:
            owner = (limit.scope, limit.owner)
            if limit.max_parallel is not None:
                if (running := self._running.get(owner, 0)) >= limit.max_parallel:
                    raise refusals.parallel(limit, running)
                parallel.append(owner)
            if limit.rpm is not None:
                wanted.append(Wanted(owner, limit.rpm, limit.rpm))
                rated.append(limit)
        gauge = self._requests.take_all(wanted, 1)
        if isinstance(gauge, Short):
            rpm = wanted[gauge.place].per_minute
            raise refusals.rate(rated[gauge.place], "requests", rpm, gauge.wait, burst=rpm, units=1)
        for owner in parallel:
            self._running[owner] += 1
        return Admission(request_id, limits, gauge)

    async def take_tokens(self, request_id: str, limits: tuple[Limit, ...], tokens: int) -> Gauge | None:
        wanted, rated = [], []
        for limit in limits:
            if limit.tpm is not None:
                burst = token_burst(limit.tpm)
                if tokens > burst:
                    raise refusals.too_large(limit, tokens, burst)
                wanted.append(Wanted((limit.scope, limit.owner), limit.tpm, burst))
                rated.append(limit)
        gauge = self._tokens.take_all(wanted, tokens)
        if isinstance(gauge, Short):
            _, tpm, burst = wanted[gauge.place]
            raise refusals.rate(rated[gauge.place], "tokens", tpm, gauge.wait, burst=burst, units=tokens)
        return gauge

    def give_back_tokens(self, limits: tuple[Limit, ...], tokens: int) -> None:
        for limit in limits:
            if limit.tpm is not None:
                self._tokens.take((limit.scope, limit.owner), limit.tpm, -tokens)

    def leave(self, admission: Admission) -> None:
        for limit in admission.limits:
            owner = (limit.scope, limit.owner)
            if limit.max_parallel is not None and owner in self._running:
                self._running[owner] -= 1
                if self._running[owner] <= 0:
                    del self._running[owner]

    async def close(self) -> None:
        """Nothing is open."""


def token_burst(tpm: int) -> int:
    """The most tokens a bucket of `tpm` holds."""
    return max(tpm // TOKEN_BURST, 1)
