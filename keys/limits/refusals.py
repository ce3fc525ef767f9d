"""What a throttled caller is told: scope, limit, used, and the true time to wait."""

import math

from gateway.errors import RateLimited, RequestTooLargeForLimit
from gateway.types import Limit
from keys.limits import headers
from keys.limits.base import Gauge


def _owner(limit: Limit) -> str:
    return f"this {limit.scope}"


def rate(limit: Limit, unit: str, per_minute: int, wait: float, *, burst: int, units: int) -> RateLimited:
    """`unit` is requests or tokens; `wait` seconds after which the same `units` pass a bucket that holds `burst`."""
    interval = 60.0 / per_minute
    behind = wait + (burst - units) * interval
    gauge = Gauge(per_minute, max(int(burst - behind / interval + 1e-9), 0), behind)
    # Rounded up to a whole millisecond: waiting exactly this long succeeds.
    wait = math.ceil(wait * 1000) / 1000
    return RateLimited(
        f"Rate limit of {_owner(limit)} reached: {per_minute} {unit} a minute. Try again in {wait:g} s.",
        retry_after=wait,
        headers=tuple(headers.of(unit, gauge)),
        limited_by=(limit.scope, unit),
    )


def parallel(limit: Limit, running: int) -> RateLimited:
    """Concurrency frees when a request ends; nobody can know when, so a second is asked for."""
    return RateLimited(
        f"Concurrency limit of {_owner(limit)} reached: {running} of {limit.max_parallel} requests are running.",
        retry_after=1.0,
        limited_by=(limit.scope, "parallel"),
    )


def too_large(limit: Limit, tokens: int, burst: int) -> RequestTooLargeForLimit:
    return RequestTooLargeForLimit(
        f"This request may take {tokens} tokens; the limit of {_owner(limit)}, {limit.tpm} tokens a minute, "
        f"never holds more than {burst} at once. Ask for fewer output tokens.",
        limited_by=(limit.scope, "tokens"),
    )
