"""How long an upstream wants to be left alone, as its headers say."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

# What is left of a limit, and when it is full again: OpenAI's names (and those who speak as it does), Anthropic's.
_LIMITS = tuple(
    names
    for what in ("requests", "tokens")
    for names in (
        (f"x-ratelimit-remaining-{what}", f"x-ratelimit-reset-{what}"),
        (f"anthropic-ratelimit-{what}-remaining", f"anthropic-ratelimit-{what}-reset"),
    )
)
_LONGEST_WAIT = 3600.0  # seconds; beyond an hour it is a mistake more often than a plan
_SPAN = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?")
_SPAN_SECONDS = (86_400.0, 3600.0, 60.0, 1.0, 0.001)


def asked_wait(headers: Mapping[str, str]) -> float | None:
    """Seconds that an upstream wants to be left alone, at most an hour: the longest of its `retry-after` and of the
    limits of which it says that nothing is left; None where it says neither.
    """
    waits = [seconds(headers.get("retry-after")), used_up(headers)]
    return max((wait for wait in waits if wait is not None), default=None)


def used_up(headers: Mapping[str, str]) -> float | None:
    """Seconds until a limit refills of which an answer says that nothing is left; None where there is none."""
    waits = [seconds(headers.get(reset)) for left, reset in _LIMITS if headers.get(left, "").strip() == "0"]
    return max((wait for wait in waits if wait is not None), default=None)


def seconds(value: str | None) -> float | None:
    """A time to wait, in seconds, at most an hour: a number, a span (`6m0s`), an HTTP date or an RFC 3339 time."""
    value = (value or "").strip()
    if not value or len(value) > 64:
        return None
    found = _number(value)
    if found is None and (moment := _moment(value)) is not None:
        found = max((moment - datetime.now(UTC)).total_seconds(), 0.0)
    return min(found, _LONGEST_WAIT) if found is not None and found >= 0 else None


def _number(value: str) -> float | None:
    if span := _SPAN.fullmatch(value):
        return sum(float(part) * unit for part, unit in zip(span.groups(), _SPAN_SECONDS, strict=True) if part)
    try:
        return float(value)
    except ValueError:
        return None


def _moment(value: str) -> datetime | None:
    """A date of one of the two kinds; one without a zone is UTC's, as HTTP has it."""
    for read in (parsedate_to_datetime, datetime.fromisoformat):
        try:
            moment = read(value)
        except (ValueError, OverflowError):
            continue
        return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
    return None
