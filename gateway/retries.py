"""How much more an outage may make us ask: budgets for further attempts, as shares of recent traffic.

A token bucket (Finagle's `RetryBudget`): each request pays a share of one further attempt in, each further attempt
takes one out. Without it every client's request would become several just when the upstreams can take none.
"""

import random
from collections.abc import Callable
from time import monotonic
from typing import Final

_PER_SECOND = 1.0  # paid in by time, so that a quiet gateway may retry too

FAILOVERS: Final = (1.0, 1000.0)
"""Share and most saved up. Going on to another deployment is what a group is for, and circuits bound it already: a
failing one is asked twice and then left alone. So in a long partial outage upstreams see at most twice the requests."""
AGAIN: Final = (0.2, 10.0)
"""Asking the same deployment once more, and hedging."""

_FIRST_PAUSE = 0.25  # seconds, doubled by each further one
_LONGEST_PAUSE = 4.0


class RetryBudget:
    def __init__(self, share: float, most: float, clock: Callable[[], float] = monotonic) -> None:
        self._share = share
        self._most = most
        self._clock = clock
        self._saved = most
        self._at = clock()

    def earn(self) -> None:
        """A request came."""
        self._saved += self._share
        if self._saved > self._most:
            self._saved = self._most

    def spend(self) -> bool:
        """Whether one further attempt may be made."""
        now = self._clock()
        self._saved = min(self._saved + (now - self._at) * _PER_SECOND, self._most)
        self._at = now
        if self._saved < 1.0:
            return False
        self._saved -= 1.0
        return True


def pause(again: int, rng: random.Random) -> float:
    """Seconds to wait before a deployment is asked the `again`-th time more: full jitter, so that those who failed
    together do not come back together (AWS Architecture Blog, "Exponential Backoff and Jitter").
    """
    return rng.uniform(0.0, min(_FIRST_PAUSE * 2.0 ** (again - 1), _LONGEST_PAUSE))
