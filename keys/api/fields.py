"""Fields that take what JSON says and nothing else, for every body of `/api`.

DRF's own are made for forms: they take "5" for 5, true for 1 and 7 for "7", and what they do not know they drop.
Bounds are the databases': a number that PostgreSQL or SQLite could not keep is refused here, never a 500.
"""

from collections.abc import Mapping
from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any

import msgspec
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers

from billing.fields import QUANTUM
from keys.models import LONGEST_WAIT_MS, MOST_QUEUE_WEIGHT

MAX_BIGINT = 2**63 - 1
MAX_INTEGER = 2**31 - 1
MAX_DOLLARS = Decimal(9_000_000)
"""SQLite keeps money in 64 bits of pico-dollars: 9.2 million; the same on PostgreSQL, so that data can move."""
MAX_METADATA = 16 * 1024
"""Bytes of JSON: notes about a key, not a document."""
MAX_DEPTH = 10
UNKNOWN = "Unknown field."
_UNKNOWN_TOLD = 20  # field names echoed of a body that is all wrong


class StrictSerializer(serializers.Serializer[Any]):
    """A body whose unknown fields are refused: one that is accepted and not saved has misled its sender."""

    def to_internal_value(self, data: Any) -> Any:
        unknown = sorted(set(data) - set(self.fields), key=str) if isinstance(data, Mapping) else []
        told = {str(name)[:100]: [UNKNOWN] for name in unknown[:_UNKNOWN_TOLD]}
        try:
            value = super().to_internal_value(data)
        except serializers.ValidationError as error:
            if isinstance(error.detail, Mapping):
                raise serializers.ValidationError({**error.detail, **told}) from None
            raise
        if told:
            raise serializers.ValidationError(told)
        return value


class Text(serializers.CharField):
    """A string of at most `max_length` characters; DRF's own validators refuse NUL and lone surrogates."""

    def to_internal_value(self, data: Any) -> str:
        if not isinstance(data, str):
            self.fail("invalid")
        return super().to_internal_value(data)


class Name(Text):
    """Text that stands on one line: an id, a name, a tag."""

    default_error_messages = {"control": "No control characters."}

    def to_internal_value(self, data: Any) -> str:
        text = super().to_internal_value(data)
        if not text.isprintable():
            self.fail("control")
        return text


class Integer(serializers.IntegerField):
    """A JSON integer. 5.0 is one, "5" and true are not."""

    def to_internal_value(self, data: Any) -> int:
        if isinstance(data, float) and data.is_integer():
            data = int(data)
        if type(data) is not int:
            self.fail("invalid")
        return data


class Boolean(serializers.BooleanField):
    """true or false."""

    def to_internal_value(self, data: Any) -> bool:
        if not isinstance(data, bool):
            self.fail("invalid", input=data)
        return data


@extend_schema_field({"type": "number", "minimum": 0, "maximum": float(MAX_DOLLARS)})
class Dollars(serializers.Field[Decimal, Any, float | None, Any]):
    """A JSON number of US dollars, zero or more; kept to twelve places."""

    default_error_messages = {
        "invalid": "A number of US dollars.",
        "range": f"From 0 to {MAX_DOLLARS}.",
    }

    def to_internal_value(self, data: Any) -> Decimal:
        if isinstance(data, bool) or not isinstance(data, int | float):
            self.fail("invalid")
        # By way of its text: 0.1 is one tenth, not the nearest double. A comparison with NaN is false.
        if not 0 <= data <= MAX_DOLLARS:
            self.fail("range")
        return Decimal(str(data)).quantize(QUANTUM, rounding=ROUND_HALF_EVEN)

    def to_representation(self, value: Decimal | None) -> float | None:
        return None if value is None else float(value)


@extend_schema_field(OpenApiTypes.OBJECT)
class Metadata(serializers.JSONField):
    """A JSON object, small and flat enough that every database takes it."""

    default_error_messages = {
        "invalid": "A JSON object.",
        "size": f"At most {MAX_METADATA} bytes of JSON, {MAX_DEPTH} levels deep.",
        "text": "No NUL characters.",
    }

    def to_internal_value(self, data: Any) -> dict[str, Any]:
        if not isinstance(data, dict):
            self.fail("invalid")
        if depth(data) > MAX_DEPTH or len(encoded := msgspec.json.encode(data)) > MAX_METADATA:
            self.fail("size")
        if b"\\u0000" in encoded and any("\0" in text for text in strings(data)):
            self.fail("text")  # PostgreSQL's jsonb cannot hold them
        return data


def depth(value: Any) -> int:
    """How many levels of lists and objects; counting stops just beyond what is allowed."""
    level, deepest = [value], 0
    while (inner := [item for item in level if isinstance(item, list | dict)]) and deepest <= MAX_DEPTH:
        deepest += 1
        level = [item for node in inner for item in (node.values() if isinstance(node, dict) else node)]
    return deepest


def strings(value: Any) -> list[str]:
    """Every string in a JSON value, keys included."""
    if isinstance(value, dict):
        return [text for key, item in value.items() for text in (key, *strings(item))]
    if isinstance(value, list):
        return [text for item in value for text in strings(item)]
    return [value] if isinstance(value, str) else []


def limit(maximum: int = MAX_BIGINT, **options: Any) -> Integer:
    """A rate or number of requests: one or more, null for no limit."""
    return Integer(min_value=1, max_value=maximum, allow_null=True, required=False, **options)


def longest_wait() -> Integer:
    """How long a request waits its turn at a limit; null: not at all, or as its team's do."""
    told = "Milliseconds that a request waits its turn where a limit would refuse it; null: none, or its team's."
    return Integer(min_value=1, max_value=LONGEST_WAIT_MS, allow_null=True, required=False, help_text=told)


def queue_weight() -> Integer:
    """Among those that wait at one limit."""
    told = "Of those that wait at one limit, 3 is served three times as often as 1; a key's and its team's multiply."
    return Integer(min_value=1, max_value=MOST_QUEUE_WEIGHT, required=False, help_text=told)


def names(*, most: int, length: int, **options: Any) -> serializers.ListField:
    """A list of short strings."""
    return serializers.ListField(child=Name(max_length=length), max_length=most, required=False, **options)
