"""Periods of budgets: local midnights, right across changes of summer time."""

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from billing.periods import BEGINNING, bounds, covers, custom, is_custom, is_once

PERIODS = ("daily", "weekly", "monthly")
moments = st.datetimes(datetime(2020, 1, 1), datetime(2035, 1, 1), timezones=st.just(UTC))
zones = st.sampled_from(sorted(available_timezones() - {"localtime"}))


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("period", "tz", "at", "start", "until"),
    [
        ("daily", "UTC", "2026-11-23T12:00", "2026-11-23T00:00", "2026-11-24T00:00"),
        ("daily", "UTC", "2026-11-23T00:00", "2026-11-23T00:00", "2026-11-24T00:00"),
        ("daily", "UTC", "2026-11-22T23:59:59.999999", "2026-11-22T00:00", "2026-11-23T00:00"),
        # A week begins on Monday.
        ("weekly", "UTC", "2026-11-23T12:00", "2026-11-23T00:00", "2026-11-30T00:00"),
        ("weekly", "UTC", "2026-11-22T12:00", "2026-11-16T00:00", "2026-11-23T00:00"),
        ("monthly", "UTC", "2026-12-31T23:59", "2026-12-01T00:00", "2027-01-01T00:00"),
        ("monthly", "UTC", "2028-02-29T12:00", "2028-02-01T00:00", "2028-03-01T00:00"),
        # Tokyo's day begins nine hours before that of UTC (LiteLLM#10288: reset nine hours late).
        ("daily", "Asia/Tokyo", "2026-11-23T14:59", "2026-11-22T15:00", "2026-11-23T15:00"),
        ("daily", "Asia/Tokyo", "2026-11-23T15:00", "2026-11-23T15:00", "2026-11-24T15:00"),
        ("monthly", "Asia/Tokyo", "2026-11-30T15:00", "2026-11-30T15:00", "2026-12-31T15:00"),
        ("monthly", "Asia/Tokyo", "2026-11-30T14:59", "2026-10-31T15:00", "2026-11-30T15:00"),
        # Amsterdam in winter and summer; the days of the change have 23 and 25 hours.
        ("daily", "Europe/Amsterdam", "2026-01-15T12:00", "2026-01-14T23:00", "2026-01-15T23:00"),
        ("daily", "Europe/Amsterdam", "2026-07-15T12:00", "2026-07-14T22:00", "2026-07-15T22:00"),
        ("daily", "Europe/Amsterdam", "2026-03-29T12:00", "2026-03-28T23:00", "2026-03-29T22:00"),
        ("daily", "Europe/Amsterdam", "2026-10-25T12:00", "2026-10-24T22:00", "2026-10-25T23:00"),
        ("weekly", "Europe/Amsterdam", "2026-03-29T12:00", "2026-03-22T23:00", "2026-03-29T22:00"),
        ("monthly", "Europe/Amsterdam", "2026-03-29T12:00", "2026-02-28T23:00", "2026-03-31T22:00"),
        ("monthly", "Europe/Amsterdam", "2026-10-31T23:30", "2026-10-31T23:00", "2026-11-30T23:00"),
        # In Cairo the clock jumps at midnight: the day begins at one.
        ("daily", "Africa/Cairo", "2026-04-24T12:00", "2026-04-23T22:00", "2026-04-24T21:00"),
    ],
)
def test_bounds(period, tz, at, start, until):
    assert bounds(period, tz, utc(at)) == (utc(start), utc(until))


def test_a_total_never_ends():
    assert bounds("total", "Asia/Tokyo", utc("2026-11-23T12:00")) == (BEGINNING, None)


@pytest.mark.parametrize("period", ["hourly", "", "Monthly"])
def test_another_period_is_refused(period):
    with pytest.raises(ValueError, match="no period"):
        bounds(period, "UTC", utc("2026-11-23T12:00"))


@given(period=st.sampled_from(PERIODS), tz=zones, at=moments)
def test_every_moment_is_in_one_period_and_the_next_begins_where_it_ends(period, tz, at):
    start, until = bounds(period, tz, at)
    assert until is not None
    assert start <= at < until
    assert start.tzinfo is UTC
    assert bounds(period, tz, until)[0] == until
    assert bounds(period, tz, start) == (start, until)
    assert bounds(period, tz, until - timedelta(microseconds=1)) == (start, until)


@given(period=st.sampled_from(PERIODS), tz=st.sampled_from(["Asia/Tokyo", "Europe/Amsterdam"]), at=moments)
def test_it_begins_at_a_local_midnight_of_the_right_day(period, tz, at):
    start, until = (moment.astimezone(ZoneInfo(tz)) for moment in bounds(period, tz, at) if moment is not None)
    for moment in (start, until):
        assert (moment.hour, moment.minute, moment.second) == (0, 0, 0)
    if period == "weekly":
        assert start.weekday() == until.weekday() == 0
    if period == "monthly":
        assert start.day == until.day == 1
        assert (until.year * 12 + until.month) - (start.year * 12 + start.month) == 1


# ── custom periods ──────────────────────────────────────────────────────────────────────────────────────────────────

PROJECT = custom(date(2026, 3, 3), 45, repeats=False)
SPRINTS = custom(date(2026, 3, 3), 14, repeats=True)


def test_they_are_written_as_iso_8601_has_them():
    assert (PROJECT, SPRINTS) == ("2026-03-03/P45D", "R/2026-03-03/P14D")
    assert [is_custom(period) for period in (PROJECT, SPRINTS, "monthly", "total")] == [True, True, False, False]
    assert [is_once(period) for period in (PROJECT, SPRINTS, "monthly", "total")] == [True, False, False, False]


@pytest.mark.parametrize(
    ("period", "tz", "at", "start", "until"),
    [
        (PROJECT, "UTC", "2026-03-03T00:00", "2026-03-03T00:00", "2026-04-17T00:00"),
        (PROJECT, "UTC", "2026-04-16T23:59", "2026-03-03T00:00", "2026-04-17T00:00"),
        # Before it and after it: there is no other.
        (PROJECT, "UTC", "2025-01-01T00:00", "2026-03-03T00:00", "2026-04-17T00:00"),
        (PROJECT, "UTC", "2027-01-01T00:00", "2026-03-03T00:00", "2026-04-17T00:00"),
        (PROJECT, "Asia/Tokyo", "2026-04-01T00:00", "2026-03-02T15:00", "2026-04-16T15:00"),
        # It begins in winter and ends in summer: 45 days less an hour.
        (PROJECT, "Europe/Amsterdam", "2026-04-01T00:00", "2026-03-02T23:00", "2026-04-16T22:00"),
        (SPRINTS, "UTC", "2026-03-16T23:59", "2026-03-03T00:00", "2026-03-17T00:00"),
        (SPRINTS, "UTC", "2026-03-17T00:00", "2026-03-17T00:00", "2026-03-31T00:00"),
        (SPRINTS, "UTC", "2026-03-01T00:00", "2026-03-03T00:00", "2026-03-17T00:00"),
        (SPRINTS, "Asia/Tokyo", "2026-03-16T15:00", "2026-03-16T15:00", "2026-03-30T15:00"),
        (SPRINTS, "Europe/Amsterdam", "2026-03-20T00:00", "2026-03-16T23:00", "2026-03-30T22:00"),
    ],
)
def test_bounds_of_custom_periods(period, tz, at, start, until):
    assert bounds(period, tz, utc(at)) == (utc(start), utc(until))


@pytest.mark.parametrize(
    ("period", "at", "inside"),
    [
        (PROJECT, "2026-03-02T22:59", False), (PROJECT, "2026-03-02T23:00", True),
        (PROJECT, "2026-04-16T21:59", True), (PROJECT, "2026-04-16T22:00", False),
        (SPRINTS, "2026-03-02T22:59", False), (SPRINTS, "2036-01-01T00:00", True),
        ("monthly", "1999-01-01T00:00", True), ("total", "1999-01-01T00:00", True),
    ],
)  # fmt: skip
def test_a_custom_period_has_days_before_it_and_may_end(period, at, inside):
    assert covers(period, "Europe/Amsterdam", utc(at)) is inside


@given(days=st.integers(1, 400), tz=zones, at=moments)
def test_repetitions_leave_no_gap(days, tz, at):
    period = custom(date(2019, 6, 1), days, repeats=True)
    start, until = bounds(period, tz, at)
    assert until is not None
    assert start <= at < until
    assert bounds(period, tz, until)[0] == until
    first, after = (moment.astimezone(ZoneInfo(tz)).date() for moment in (start, until))
    assume(tz not in ("Pacific/Apia", "Pacific/Fakaofo", "Pacific/Enderbury", "Pacific/Kanton"))  # days that never were
    assert (after - first).days == days


@pytest.mark.parametrize("period", ["2026-03-03", "2026-03-03/P45", "2026-03-03/P45D ", "R/R/2026-03-03/P1D", "/"])
def test_what_is_no_interval(period):
    with pytest.raises(ValueError, match="no period"):
        bounds(period, "UTC", utc("2026-11-23T12:00"))
