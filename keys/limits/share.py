"""This process's part of every limit, for while Redis is away.

The processes that live take equal parts, of one at least, so that together they stay near the limit; none knows what
the others took of theirs. A part's buckets are as full as they were left, and full at first: an outage may let a burst
more pass than the limit has. What was taken is handed to Redis when it is back.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import msgspec

from gateway.types import Limit
from keys.limits import refusals
from keys.limits.base import Gauge
from keys.limits.memory import Buckets, Owner, Short, Wanted, token_burst


class Taken(NamedTuple):
    """Units of one limit that were taken here. `kind` is requests or tokens, `per_minute` the whole limit's."""

    kind: str
    owner: Owner
    per_minute: int


class LocalShare:
    """`processes` tells how many live. All methods run on the event loop, so a check and its count are one step."""

    def __init__(self, processes: Callable[[], int], clock: Callable[[], float] = time.monotonic) -> None:
        self._processes = processes
        self._requests = Buckets(clock)
        self._tokens = Buckets(clock)
        self._places: defaultdict[Owner, int] = defaultdict(int)
        self._taken: defaultdict[Taken, int] = defaultdict(int)

    def enter(self, owners: Iterable[Owner]) -> None:
        """A request of these runs here, whoever let it in."""
        for owner in owners:
            self._places[owner] += 1

    def leave(self, owners: Iterable[Owner]) -> None:
        for owner in owners:
            self._places[owner] -= 1
            if not self._places[owner]:
                del self._places[owner]

    def admit(self, limits: Sequence[Limit]) -> Gauge | None:
        """Take from the rate of requests; places are for `enter` to take. Raises `RateLimited`."""
        parts = [self._part(limit) for limit in limits]
        for part in parts:
            running = self._places.get((part.scope, part.owner), 0)
            if part.max_parallel is not None and running >= part.max_parallel:
                raise refusals.parallel(part, running)
        rated = [
            (part, part.rpm, whole.rpm) for part, whole in zip(parts, limits, strict=True) if whole.rpm and part.rpm
        ]
        wanted = [Wanted((part.scope, part.owner), rpm, rpm) for part, rpm, _ in rated]
        gauge = self._requests.take_all(wanted, 1)
        if isinstance(gauge, Short):
            part, rpm, _ = rated[gauge.place]
            raise refusals.rate(part, "requests", rpm, gauge.wait, burst=rpm, units=1)
        for one, (_, _, whole) in zip(wanted, rated, strict=True):
            self._taken[Taken("requests", one.owner, whole)] += 1
        return gauge

    def take_tokens(self, limits: Sequence[Limit], tokens: int) -> Gauge | None:
        """Take from the rate of tokens. A request that the whole limit holds and a part does not passes a full bucket,
        and those after it wait the longer. Raises `RateLimited`.
        """
        rated = [(part, part.tpm, whole.tpm) for whole in limits if whole.tpm and (part := self._part(whole)).tpm]
        wanted = [Wanted((part.scope, part.owner), tpm, max(token_burst(tpm), tokens)) for part, tpm, _ in rated if tpm]
        gauge = self._tokens.take_all(wanted, tokens)
        if isinstance(gauge, Short):
            part, tpm, burst = rated[gauge.place][0], *wanted[gauge.place][1:]
            raise refusals.rate(part, "tokens", tpm, gauge.wait, burst=burst, units=tokens)
        for one, (_, _, whole) in zip(wanted, rated, strict=True):
            self._taken[Taken("tokens", one.owner, whole)] += tokens
        return gauge

    def give_back_tokens(self, limits: Iterable[Limit], tokens: int) -> None:
        """Return what was held above what was used (negative: take the excess)."""
        for limit in limits:
            if limit.tpm is not None:
                owner = (limit.scope, limit.owner)
                self._tokens.take(owner, self._part(limit).tpm or 1, -tokens)
                self._taken[Taken("tokens", owner, limit.tpm)] -= tokens

    def hand_over(self) -> list[tuple[Taken, int]]:
        """What was taken since the last time and has not been filled up again: the others must not find it there."""
        found = []
        for taken, units in self._taken.items():
            buckets = self._requests if taken.kind == "requests" else self._tokens
            part = max(taken.per_minute // self._count(), 1)
            if (units := min(units, buckets.missing(taken.owner, part))) > 0:
                found.append((taken, units))
        self._taken.clear()
        return found

    def _count(self) -> int:
        return max(self._processes(), 1)

    def _part(self, limit: Limit) -> Limit:
        count = self._count()

        def part(whole: int | None) -> int | None:
            return None if whole is None else max(whole // count, 1)

        return msgspec.structs.replace(
            limit, rpm=part(limit.rpm), tpm=part(limit.tpm), max_parallel=part(limit.max_parallel)
        )
