"""How much an owner may spend in a period."""

from typing import ClassVar
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from django.core.exceptions import ValidationError
from django.core.validators import MinValueValidator
from django.db import models
from django.utils import timezone

from billing.fields import MoneyField
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

    def terms(self) -> BudgetTerms:
        """As the data plane reads it."""
        return BudgetTerms(
            id=self.pk,
            scope=self.scope,
            owner=self.owner,
            period=self.period,
            tz=self.tz,
            limit_usd=self.limit_dollars,
            limit_tokens=self.limit_tokens,
        )
