"""Rate limits as response headers: OpenAI's names, Go's durations."""

from keys.limits.base import Gauge


def of(kind: str, gauge: Gauge) -> list[tuple[str, str]]:
    """`x-ratelimit-*` of one bucket; `kind` is requests or tokens."""
    return [
        (f"x-ratelimit-limit-{kind}", str(gauge.limit)),
        (f"x-ratelimit-remaining-{kind}", str(gauge.remaining)),
        (f"x-ratelimit-reset-{kind}", go_duration(gauge.reset)),
    ]


def go_duration(seconds: float) -> str:
    """A duration as Go prints it and OpenAI's clients parse it: 12ms, 1s, 6m0s."""
    milliseconds = max(round(seconds * 1000), 0)
    if milliseconds < 1000:
        return f"{milliseconds}ms"
    minutes, rest = divmod(milliseconds, 60_000)
    tail = f"{rest / 1000:g}s"
    return f"{minutes}m{tail}" if minutes else tail
