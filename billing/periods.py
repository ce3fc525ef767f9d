"""Where a budget's period begins and ends: local midnights, right across changes of summer time. Pure.

A custom period is an ISO 8601 interval of whole days: `2026-03-03/P45D` once, `R/2026-03-03/P45D` again and again.
"""

import re
from datetime import UTC, date, datetime, time, timedelta
from functools import lru_cache
from typing import NamedTuple
from zoneinfo import ZoneInfo

BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
_INTERVAL = re.compile(r"(R/)?(\d{4}-\d\d-\d\d)/P(\d{1,5})D\Z")


class _Interval(NamedTuple):
    first: date
    days: int
    repeats: bool

    def around(self, day: date) -> tuple[date, date]:
        """First day, and the day after the last. Outside of what it covers: the nearest."""
        count = max((day - self.first).days // self.days, 0) if self.repeats else 0
        first = self.first + timedelta(days=count * self.days)
        return first, first + timedelta(days=self.days)


def custom(first: date, days: int, *, repeats: bool) -> str:
    """The period that begins on `first` and lasts so many days, of which another follows where it `repeats`."""
    return f"{'R/' if repeats else ''}{first.isoformat()}/P{days}D"


def is_custom(period: str) -> bool:
    return "/" in period


def is_once(period: str) -> bool:
    """Whether it ends for good, where others begin anew."""
    return is_custom(period) and not period.startswith("R/")


def covers(period: str, tz: str, at: datetime) -> bool:
    """Whether `at` is in the period, or in one of its repetitions; a custom one has days before it, and may end."""
    if not is_custom(period):
        return True
    start, end = bounds(period, tz, at)
    return start <= at and (end is None or at < end)


def bounds(period: str, tz: str, at: datetime) -> tuple[datetime, datetime | None]:
    """Start (included) and end (excluded) of the period around `at`, in UTC; `total` never ends.

    `period` is daily, weekly (from Monday), monthly, total or what `custom` makes, of which the nearest counts; `tz` an
    IANA name. Raises `ValueError` for another period.
    """
    zone = ZoneInfo(tz)
    today = at.astimezone(zone).date()
    if period == "total":
        return BEGINNING, None
    if period == "daily":
        first, after = today, today + timedelta(days=1)
    elif period == "weekly":
        first = today - timedelta(days=today.weekday())
        after = first + timedelta(days=7)
    elif period == "monthly":
        first = today.replace(day=1)
        after = (first + timedelta(days=32)).replace(day=1)
    else:
        first, after = _interval(period).around(today)
    midnight = time(tzinfo=zone)
    return datetime.combine(first, midnight).astimezone(UTC), datetime.combine(after, midnight).astimezone(UTC)


@lru_cache(maxsize=1000)
def _interval(period: str) -> _Interval:
    found = _INTERVAL.match(period)
    if found is None:
        raise ValueError(f"no period {period!r}")
    return _Interval(date.fromisoformat(found[2]), int(found[3]), found[1] is not None)
