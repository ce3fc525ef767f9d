"""The queries of lists: pages, ranges of time, cursors."""

import base64
import binascii
from datetime import UTC, date, datetime, time
from typing import Any
from zoneinfo import ZoneInfo

from django.core.exceptions import ValidationError as ModelValidationError
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from billing.models.budgets import check_time_zone
from keys.api.fields import MAX_BIGINT, MAX_INTEGER, Name, StrictSerializer


class PageQuery(StrictSerializer):
    """`limit` and `offset` of a list."""

    limit = serializers.IntegerField(min_value=1, max_value=1000, default=50)
    offset = serializers.IntegerField(min_value=0, max_value=MAX_INTEGER, default=0)


class TimeZoneName(Name):
    """An IANA time zone."""

    def to_internal_value(self, data: Any) -> str:
        name = super().to_internal_value(data)
        try:
            check_time_zone(name)
        except ModelValidationError as error:
            raise serializers.ValidationError(error.messages) from None
        return name


@extend_schema_field({"type": "string", "format": "date-time"})
class Moment(serializers.Field[Any, Any, Any, Any]):
    """An ISO 8601 date, which is that day's midnight in the query's `tz`, or a time, UTC unless it says otherwise."""

    default_error_messages = {"invalid": "An ISO 8601 date or time."}

    def to_internal_value(self, data: Any) -> date | datetime:
        try:
            return date.fromisoformat(data) if len(data) == len("2026-01-31") else _aware(datetime.fromisoformat(data))
        except (ValueError, OverflowError):
            self.fail("invalid")


def _aware(moment: datetime) -> datetime:
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


def in_zone(moment: date | datetime, tz: str) -> datetime:
    """The instant that a range's border is. Raises `ValidationError` beyond the calendar."""
    if isinstance(moment, datetime):
        return moment
    try:
        return datetime.combine(moment, time(tzinfo=ZoneInfo(tz))).astimezone(UTC)
    except OverflowError:
        raise serializers.ValidationError("A date within the calendar.") from None


@extend_schema_field({"type": "string"})
class Cursor(serializers.Field[int, Any, Any, Any]):
    """An opaque place in a list: a row's id."""

    default_error_messages = {"cursor": "Not a cursor of ours."}

    def to_internal_value(self, data: Any) -> int:
        try:
            number = base64.b64decode(str(data).encode("ascii"), altchars=b"-_", validate=True)
            place = int.from_bytes(number, "big")
        except (ValueError, binascii.Error):
            self.fail("cursor")
        if not 0 < place <= MAX_BIGINT:
            self.fail("cursor")
        return place


def cursor(place: int) -> str:
    """The inverse of `Cursor`."""
    # Nine bytes are twelve characters without padding, which would have to be escaped in a path.
    return base64.urlsafe_b64encode(place.to_bytes(9, "big")).decode()


class RangeQuery(StrictSerializer):
    """`start_date` is included, `end_date` excluded."""

    start_date = Moment(required=False)
    end_date = Moment(required=False)
    tz = TimeZoneName(max_length=60, default="UTC")
    limit = serializers.IntegerField(min_value=1, max_value=1000, default=50)
    cursor = Cursor(required=False)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        tz = attrs.pop("tz")
        for field, name in (("start_date", "start"), ("end_date", "end")):
            if field in attrs:
                attrs[name] = in_zone(attrs.pop(field), tz)
        if "start" in attrs and "end" in attrs and attrs["start"] > attrs["end"]:
            raise serializers.ValidationError({"end_date": ["Before the start."]})
        return attrs
