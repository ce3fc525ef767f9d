"""Rate limits of a single process. All methods run on the event loop, so a check and its count are one step."""

import math
import time
from collections import defaultdict
from collections.abc import Callable

from gateway.types import Limit
from keys.limits import refusals
from keys.limits.base import TOKEN_BURST, Admission, Gauge

_SWEEP_EVERY = 10_000  # buckets added between two clean-ups: keys come and go, memory must not grow with them


_SLACK = 1e-6  # seconds that rounding may add to a bucket's time: none waits for those

Owner = tuple[str, str]
"""Scope and owner of a limit."""


class Buckets:
    """GCRA buckets by owner: each is the time at which it would be full again ("theoretical arrival time")."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._full_at: dict[Owner, float] = {}
        self._swept = 0

    def wait(self, owner: Owner, per_minute: int, burst: int, units: int) -> float:
        """Seconds until `units` fit; 0 where they do now."""
        now = self._clock()
        interval = 60.0 / per_minute
        full_at = max(self._full_at.get(owner, now), now)
        wait = full_at + (units - burst) * interval - now
        return wait if wait > _SLACK else 0.0

    def take(self, owner: Owner, per_minute: int, units: int) -> None:
        now = self._clock()
        self._full_at[owner] = max(self._full_at.get(owner, now), now) + units * 60.0 / per_minute
        if len(self._full_at) > self._swept + _SWEEP_EVERY:
            self._full_at = {key: at for key, at in self._full_at.items() if at > now}
            self._swept = len(self._full_at)

    def missing(self, owner: Owner, per_minute: int) -> int:
        """Units taken that have not come back yet, rounded up."""
        return math.ceil(max(self._full_at.get(owner, 0.0) - self._clock(), 0.0) * per_minute / 60.0)

    def gauge(self, owner: Owner, per_minute: int, burst: int) -> Gauge:
        behind = max(self._full_at.get(owner, 0.0) - self._clock(), 0.0)
        # A nanosecond of slack: 59.999… of 60 units is 60 taken away by rounding, not by anybody.
        return Gauge(per_minute, max(int(burst - behind * per_minute / 60.0 + 1e-9), 0), behind)


class MemoryLimits:
    """`Limits` in this process."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._requests = Buckets(clock)
        self._tokens = Buckets(clock)
        self._running: defaultdict[Owner, int] = defaultdict(int)

    async def admit(self, request_id: str, limits: tuple[Limit, ...]) -> Admission:
        if not limits:
            return Admission(request_id, limits)
        for limit in limits:
            self._check(limit)
        tightest: Gauge | None = None
        for limit in limits:
            owner = (limit.scope, limit.owner)
            if limit.max_parallel is not None:
                self._running[owner] += 1
            if limit.rpm is not None:
                self._requests.take(owner, limit.rpm, 1)
                tightest = tighter(tightest, self._requests.gauge(owner, limit.rpm, limit.rpm))
        return Admission(request_id, limits, tightest)

    def _check(self, limit: Limit) -> None:
        owner = (limit.scope, limit.owner)
        running = self._running.get(owner, 0)
        if limit.max_parallel is not None and running >= limit.max_parallel:
            raise refusals.parallel(limit, running)
        if limit.rpm is not None and (wait := self._requests.wait(owner, limit.rpm, limit.rpm, 1)) > 0:
            raise refusals.rate(limit, "requests", limit.rpm, wait, burst=limit.rpm, units=1)

    async def take_tokens(self, request_id: str, limits: tuple[Limit, ...], tokens: int) -> Gauge | None:
        limited = [(limit, (limit.scope, limit.owner), limit.tpm) for limit in limits if limit.tpm is not None]
        for limit, owner, tpm in limited:
            burst = token_burst(tpm)
            if tokens > burst:
                raise refusals.too_large(limit, tokens, burst)
            if (wait := self._tokens.wait(owner, tpm, burst, tokens)) > 0:
                raise refusals.rate(limit, "tokens", tpm, wait, burst=burst, units=tokens)
        tightest: Gauge | None = None
        for _, owner, tpm in limited:
            self._tokens.take(owner, tpm, tokens)
            tightest = tighter(tightest, self._tokens.gauge(owner, tpm, token_burst(tpm)))
        return tightest

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


def tighter(one: Gauge | None, other: Gauge) -> Gauge:
    """The one with less left."""
    return other if one is None or other.remaining < one.remaining else one
