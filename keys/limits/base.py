"""The contract of rate limits.

Requests and tokens a minute are a token bucket in its GCRA form: a limit of L a minute refills one unit every 60/L
seconds up to a burst of L requests, or of L/6 tokens. A request passes every limit that applies or takes from none.
"""

from typing import Protocol

import msgspec

from gateway.types import Limit

TOKEN_BURST = 6  # a bucket holds a sixth of the tokens of a minute: at most L + L/6 in any 60 s


class Gauge(msgspec.Struct, frozen=True):
    """What a response header tells of one bucket. `reset` is seconds until it is full again."""

    limit: int
    remaining: int
    reset: float


class Admission(msgspec.Struct, frozen=True):
    """Proof of having been let in; given back with `leave`."""

    request_id: str
    limits: tuple[Limit, ...]
    requests: Gauge | None = None
    """The tightest requests-a-minute bucket, where one applies."""


class Limits(Protocol):
    async def admit(self, request_id: str, limits: tuple[Limit, ...]) -> Admission:
        """Count the request in rates and concurrency. Raises `RateLimited` with the true time to wait."""

    async def take_tokens(self, request_id: str, limits: tuple[Limit, ...], tokens: int) -> Gauge | None:
        """Take `tokens` from every tokens-a-minute bucket. Raises `RateLimited`, or `RequestTooLargeForLimit` where no
        wait could help.
        """

    def give_back_tokens(self, limits: tuple[Limit, ...], tokens: int) -> None:
        """Return what was held above what was used (negative: take the excess). Never waits."""

    def leave(self, admission: Admission) -> None:
        """End the request's share of concurrency. Never waits."""

    async def close(self) -> None:
        """Let go of connections."""
