"""Where a budget's period begins and ends: local midnights, right across changes of summer time. Pure."""

from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)


def bounds(period: str, tz: str, at: datetime) -> tuple[datetime, datetime | None]:
    """Start (included) and end (excluded) of the period around `at`, in UTC; `total` never ends.

    `period` is daily, weekly (from Monday), monthly or total; `tz` an IANA name. Raises `ValueError` for another
    period.
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
        raise ValueError(f"no period {period!r}")
    midnight = time(tzinfo=zone)
    return datetime.combine(first, midnight).astimezone(UTC), datetime.combine(after, midnight).astimezone(UTC)
