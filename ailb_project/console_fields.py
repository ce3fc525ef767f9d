# mypy: disallow-untyped-decorators=False, warn-return-any=False, disallow-any-generics=False
"""Form fields, columns and filters of the console."""

from collections.abc import Callable
from datetime import UTC, datetime, time, timedelta
from decimal import Decimal
from typing import Any

from django import forms
from django.db import models
from django.http import HttpRequest
from django.utils import timezone
from django.utils.html import format_html
from unfold.contrib.filters.admin import FieldTextFilter, RangeDateFilter
from unfold.decorators import display
from unfold.utils import parse_date_str
from unfold.widgets import UnfoldAdminTextareaWidget, UnfoldAdminTextInputWidget


class LinesField(forms.CharField):
    """A list of strings, one a line."""

    widget = UnfoldAdminTextareaWidget

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"required": False, "widget": self.widget(attrs={"rows": 3}), **options})

    def prepare_value(self, value: Any) -> Any:
        return "\n".join(map(str, value)) if isinstance(value, list) else value

    def to_python(self, value: Any) -> Any:
        if isinstance(value, list):
            return value
        return [line.strip() for line in (value or "").splitlines() if line.strip()]

    def has_changed(self, initial: Any, data: Any) -> bool:
        return (initial or []) != self.to_python(data)

    def run_validators(self, value: Any) -> None:
        super().run_validators("\n".join(value))


class DollarsField(forms.DecimalField):
    """An exact amount, without the zeros that its column would show."""

    widget = UnfoldAdminTextInputWidget

    def __init__(self, **options: Any) -> None:
        widget = self.widget(attrs={"inputmode": "decimal", "placeholder": "0.00"})
        super().__init__(**{"max_digits": 24, "decimal_places": 12, **options, "widget": widget})

    def prepare_value(self, value: Any) -> Any:
        return plain(value) if isinstance(value, Decimal) else value


def json_object(value: Any) -> dict[str, Any]:
    """What a JSON field that is an object in the API may hold. Raises `ValidationError`."""
    if value in (None, ""):
        return {}
    if not isinstance(value, dict):
        raise forms.ValidationError('A JSON object, such as {"app": "chat"}.')
    return value


def plain(amount: Decimal) -> str:
    """12 decimal places, less the zeros at the end beyond cents."""
    whole, _, rest = f"{amount:.12f}".rstrip("0").partition(".")
    return f"{whole}.{rest:0<2}"


def dollars(amount: Decimal | None) -> str:
    if amount is None:
        return "-"
    return f"-${plain(-amount)}" if amount < 0 else f"${plain(amount)}"


def trimmed(contents: Any) -> str:
    try:
        return plain(Decimal(str(contents)))
    except ArithmeticError:
        return str(contents)


def money(name: str, description: str) -> Callable[..., str]:
    """A column of a list."""

    @display(description=description, ordering=name)
    def shown(self: Any, obj: models.Model) -> str:
        return dollars(getattr(obj, name))

    return shown


def moment(name: str, description: str) -> Callable[..., str]:
    """A column of a list: a time in UTC, to the second."""

    @display(description=description, ordering=name)
    def shown(self: Any, obj: models.Model) -> str:
        at = getattr(obj, name)
        told = "-" if at is None else f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S}"
        return format_html('<span class="whitespace-nowrap">{}</span>', told)

    return shown


class Exactly(FieldTextFilter):
    """The whole value, which an index finds; unfold's own looks inside every one."""

    def __init__(self, field: Any, request: Any, params: Any, model: Any, model_admin: Any, field_path: str) -> None:
        self.lookup_kwarg = field_path
        self.lookup_val = params.get(field_path)
        # Past unfold's constructor, which would set another lookup.
        super(FieldTextFilter, self).__init__(field, request, params, model, model_admin, field_path)

    def queryset(self, request: HttpRequest, queryset: models.QuerySet) -> models.QuerySet:
        return queryset.filter(**{self.field_path: self.value()}) if self.value() else queryset


class Days(RangeDateFilter):
    """From one day to another, both included, in UTC. Unfold's own ends at the last day's first moment."""

    def queryset(self, request: HttpRequest, queryset: models.QuerySet) -> models.QuerySet:
        if (start := self._day("from")) is not None:
            queryset = queryset.filter(**{f"{self.parameter_name}__gte": start})
        if (last := self._day("to")) is not None:
            queryset = queryset.filter(**{f"{self.parameter_name}__lt": last + timedelta(days=1)})
        return queryset

    def _day(self, side: str) -> datetime | None:
        """Its first moment; None where it is no date."""
        day = parse_date_str(self.used_parameters.get(f"{self.parameter_name}_{side}"))
        return None if day is None else datetime.combine(day, time.min, tzinfo=timezone.get_default_timezone())
