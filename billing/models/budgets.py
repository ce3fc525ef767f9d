"""How much an owner may spend in a period."""

from datetime import date
from decimal import ROUND_DOWN, Decimal
from typing import Any, ClassVar, Final
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec
from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.utils import timezone

from billing import periods
from billing.fields import QUANTUM, MoneyField
from gateway.types import BudgetTerms
from gateway.versioning import Versioned


def check_time_zone(name: str) -> None:
    """Refuse what is no IANA time zone."""
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValidationError("An IANA time zone, such as Europe/Amsterdam.") from None


class Scope(models.TextChoices):
    KEY = "key"
    USER = "user"
    TEAM = "team"
    ORGANISATION = "organisation"


class Period(models.TextChoices):
    DAILY = "daily"
    WEEKLY = "weekly"
    MONTHLY = "monthly"
    TOTAL = "total"
    CUSTOM = "custom"


class Mode(models.TextChoices):
    HARD = "hard"
    GRACE = "grace"


ALERT_THRESHOLDS: Final = (50, 80, 100)
MOST_THRESHOLDS: Final = 20
HIGHEST_THRESHOLD: Final = 1000
"""Per cent: ten times the limit. Above 100 there is what a grace allows, what was spent before the limit was set, and
what upstreams charged above a hold."""
LONGEST_PERIOD: Final = 3660
"""Days: ten years."""
_FIRST_DAY, _LAST_DAY = date(2000, 1, 1), date(2999, 12, 31)
_MOST_TOKENS = 2**63 - 1


def default_thresholds() -> list[int]:
    return list(ALERT_THRESHOLDS)


def check_thresholds(value: Any) -> None:
    """Refuse what is no list of different whole per cents."""
    if not isinstance(value, list) or len(value) > MOST_THRESHOLDS:
        raise ValidationError(f"A list of at most {MOST_THRESHOLDS} thresholds.")
    if not all(type(percent) is int and 1 <= percent <= HIGHEST_THRESHOLD for percent in value):
        raise ValidationError(f"Thresholds are whole per cents of the limit, from 1 to {HIGHEST_THRESHOLD}.")
    if len(set(value)) != len(value):
        raise ValidationError("Each threshold once.")


def check_start(day: date) -> None:
    """Refuse a day whose period would leave the calendar."""
    if not _FIRST_DAY <= day <= _LAST_DAY:
        raise ValidationError(f"From {_FIRST_DAY} to {_LAST_DAY}.")


class Budget(Versioned):
    """A limit on dollars, tokens or both. A key's monthly quota is its monthly budget: there is one row for both."""

    snapshot_section = "keys"

    scope = models.CharField(max_length=20, choices=Scope.choices)
    owner = models.CharField(
        max_length=200, blank=True, help_text="Key id, user id or team name; empty for the organisation."
    )
    period = models.CharField(max_length=20, choices=Period.choices, default=Period.MONTHLY)
    tz = models.CharField("time zone", max_length=60, default="UTC", validators=[check_time_zone])
    limit_dollars = MoneyField(null=True, blank=True, validators=[MinValueValidator(0)], help_text="Empty: no limit.")
    limit_tokens = models.PositiveBigIntegerField(null=True, blank=True, help_text="Empty: no limit.")
    starts_on = models.DateField(
        null=True, blank=True, validators=[check_start], help_text="First day of a custom period."
    )
    days = models.PositiveIntegerField(
        null=True,
        blank=True,
        validators=[MinValueValidator(1), MaxValueValidator(LONGEST_PERIOD)],
        help_text="Length of a custom period. Before and after it the budget does not apply.",
    )
    repeats = models.BooleanField(default=False, help_text="A custom period is followed by another of the same length.")
    mode = models.CharField(
        max_length=10,
        choices=Mode.choices,
        default=Mode.HARD,
        help_text="hard: nothing beyond the limit. grace: requests pass until the grace above it is used up too.",
    )
    grace_percent = models.PositiveSmallIntegerField(
        default=10,
        validators=[MinValueValidator(1), MaxValueValidator(100)],
        help_text="How far above the limit mode grace goes, in per cent of it.",
    )
    alert_thresholds = models.JSONField(
        default=default_thresholds,
        blank=True,
        validators=[check_thresholds],
        help_text="Per cents of the limit at which to raise an alert, each once a period. None: no alerts.",
    )
    managed_by = models.CharField(max_length=20, blank=True, default="", editable=False)
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        ordering: ClassVar = ["scope", "owner", "period"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["scope", "owner", "period"], name="one_budget_a_period"),
        ]

    def __str__(self) -> str:
        return f"{self.scope} {self.owner} {self.period}".replace("  ", " ")

    def clean(self) -> None:
        if (self.scope == Scope.ORGANISATION) != (not self.owner):
            raise ValidationError({"owner": "A key id, user id or team name; none for the organisation."})
        self._check_dates()
        # Validators are not asked about what is empty, whatever its type.
        if not isinstance(self.alert_thresholds, list):
            raise ValidationError({"alert_thresholds": "A list of per cents."})
        self.alert_thresholds = sorted(self.alert_thresholds)

    def _check_dates(self) -> None:
        if self.period != Period.CUSTOM:
            if self.starts_on is not None or self.days is not None or self.repeats:
                raise ValidationError({"starts_on": "Only a custom period has a start, a length and repetitions."})
            return
        for name in ("starts_on", "days"):
            if getattr(self, name) is None:
                raise ValidationError({name: "A custom period has a first day and a length in days."})

    def terms(self) -> BudgetTerms:
        """As admission reads it: with the grace that requests may use above the limits."""
        stated = self.stated_terms()
        if self.mode != Mode.GRACE:
            return stated
        return msgspec.structs.replace(
            stated,
            limit_usd=_with_grace_usd(stated.limit_usd, self.grace_percent),
            limit_tokens=_with_grace_tokens(stated.limit_tokens, self.grace_percent),
            stated_usd=stated.limit_usd,
            stated_tokens=stated.limit_tokens,
        )

    def stated_terms(self) -> BudgetTerms:
        """The limits as they were given."""
        return BudgetTerms(
            id=self.pk,
            scope=self.scope,
            owner=self.owner,
            period=self._period(),
            tz=self.tz,
            limit_usd=self.limit_dollars,
            limit_tokens=self.limit_tokens,
        )

    def _period(self) -> str:
        if self.period != Period.CUSTOM:
            return self.period
        assert self.starts_on is not None, "clean() saw to it"
        assert self.days is not None
        return periods.custom(self.starts_on, self.days, repeats=self.repeats)


def _with_grace_usd(limit: Decimal | None, percent: int) -> Decimal | None:
    if limit is None:
        return None
    return (limit * (100 + percent) / 100).quantize(QUANTUM, rounding=ROUND_DOWN)


def _with_grace_tokens(limit: int | None, percent: int) -> int | None:
    return None if limit is None else min(limit * (100 + percent) // 100, _MOST_TOKENS)
