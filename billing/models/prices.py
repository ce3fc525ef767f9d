"""What models cost, and since when. A row is never rewritten: a new price is a new row that closes the old one's."""

from datetime import datetime, time, timedelta
from decimal import Decimal
from typing import Any, ClassVar

from django.core.exceptions import ValidationError
from django.core.validators import MinValueValidator
from django.db import models
from django.db.models import F, Q
from django.utils import timezone

from billing import pricing
from billing.fields import MoneyField
from gateway.versioning import Versioned

UNUSUAL_ABOVE = Decimal(1000)
"""Dollars per million tokens. The dearest published rate is 600 (o1-pro's output): more is mostly a price per token,
or per thousand, typed a thousand or a million times too high (LiteLLM#20615 locked a user out that way)."""

UNUSUAL_BELOW = Decimal("0.0001")
"""Dollars per million tokens. The cheapest published rate is 0.0011 (a cached read): less is mostly a price per token
typed where the price per million belongs, and bills a millionth."""

CLOSING_GRACE = timedelta(minutes=5)
"""How far back a price may be closed: the time between deciding `now` and committing, never a rewritten past."""


class Source(models.TextChoices):
    SEED = "seed", "price list"
    CONFIG = "config", "configuration"
    FINANCE = "finance", "finance"


def check_match(value: Any) -> None:
    """Refuse a clause that says nothing."""
    try:
        pricing.check_clause(value)
    except pricing.MalformedPrice as error:
        raise ValidationError(str(error)) from error


def _rate(name: str, help_text: str, **options: Any) -> MoneyField:
    return MoneyField(name, validators=[MinValueValidator(0)], help_text=help_text, **options)


def _optional_rate(name: str, help_text: str) -> MoneyField:
    return _rate(name, help_text, null=True, blank=True)


class Price(Versioned):
    """What one model costs over one span of time, in US dollars per million tokens."""

    snapshot_section = "prices"

    provider = models.CharField(
        "price book",
        max_length=60,
        help_text="Whose list this price is on: openai, anthropic, google, groq, … or a provider's own slug.",
    )
    model = models.CharField(
        max_length=200,
        help_text="The model's name at the provider, such as gpt-5.1. Upper and lower case are the same.",
    )
    deployment = models.CharField(
        max_length=200,
        blank=True,
        help_text="A deployment's public name, to price the model there differently. Empty: wherever it is served.",
    )
    match = models.JSONField(
        null=True,
        blank=True,
        validators=[check_match],
        help_text='Other names that the model goes by, such as {"starts_with": "gpt-5.1-2025"}: equals, starts_with, '
        "ends_with, contains, regex, or, and. Empty: the model's own name, and those the price list knows for it.",
    )
    effective_from = models.DateTimeField(default=timezone.now, help_text="First moment (UTC) at which it applies.")
    effective_until = models.DateTimeField(
        null=True, blank=True, help_text="First moment at which it no longer applies. Empty: until further notice."
    )
    daily_from = models.TimeField(
        null=True,
        blank=True,
        help_text="For a price that applies only at some hours (DeepSeek's peak): the start, in UTC, each day.",
    )
    daily_until = models.TimeField(
        null=True, blank=True, help_text="The end of those hours, in UTC; before the start means past midnight."
    )

    input = _rate("input", "Dollars per million prompt tokens. 0 says free; a model without a price has no row.")
    output = _rate("output", "Dollars per million completion tokens.")
    cached_input = _optional_rate(
        "cached input", "Dollars per million prompt tokens read from the cache. Empty: as input."
    )
    cache_write_5m = _optional_rate(
        "cache write", "Dollars per million tokens written to the cache for five minutes. Empty: as input."
    )
    cache_write_1h = _optional_rate(
        "cache write, 1 hour", "Dollars per million tokens written to the cache for one hour. Empty: as cache write."
    )
    reasoning = _optional_rate("reasoning", "Dollars per million reasoning tokens of the output. Empty: as output.")
    audio_input = _optional_rate("audio input", "Dollars per million audio tokens of the prompt. Empty: as input.")
    audio_output = _optional_rate("audio output", "Dollars per million audio tokens of the answer. Empty: as output.")
    request = _rate("per request", "Dollars per request, on top of its tokens.", default=Decimal(0))
    tiers = models.JSONField(
        default=list,
        blank=True,
        help_text='Dearer long prompts: [{"above": 200000, "input": "6", "output": "22.5"}]. Above so many prompt '
        "tokens the whole request is priced at these rates; those not named stay as above.",
    )
    service_tiers = models.JSONField(
        default=dict,
        blank=True,
        help_text='By the service tier that the answer reports: {"batch": "0.5"} multiplies every token rate; '
        '{"priority": {"input": "2.5", "output": "20", "tiers": [...]}} names rates. Others are priced as above.',
    )
    currency = models.CharField(max_length=3, default="USD", choices=[("USD", "US dollar")])
    source = models.CharField(
        max_length=10,
        choices=Source,
        default=Source.FINANCE,
        help_text="Finance's price wins over the configuration's, and that over the price list's.",
    )
    confirmed = models.BooleanField(
        "unusual rate confirmed",
        default=False,
        help_text=f"I have checked that a rate above ${UNUSUAL_ABOVE:,} or below ${UNUSUAL_BELOW} is dollars per "
        "million tokens, not per token or per thousand.",
    )
    note = models.TextField(blank=True, help_text="Why, by which contract, what the price does not cover.")
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        ordering: ClassVar = ["provider", "model", "-effective_from", "-id"]
        indexes: ClassVar = [models.Index(fields=["provider", "model"], name="price_provider_model")]
        constraints: ClassVar = [
            # Equal: withdrawn before it ever applied.
            models.CheckConstraint(
                condition=Q(effective_until__isnull=True) | Q(effective_until__gte=F("effective_from")),
                name="price_ends_after_start",
            ),
        ]

    def __str__(self) -> str:
        at = f" at {self.deployment}" if self.deployment else ""
        return f"{self.provider}/{self.model}{at} from {self.effective_from:%Y-%m-%d}"

    def to_pricing(self) -> pricing.Price:
        """The price that `billing.pricing` computes with. Raises `MalformedPrice`."""
        columns = {name: getattr(self, name) for name in pricing.RATE_NAMES}
        return pricing.from_columns(id=self.pk, columns=columns, tiers=self.tiers, service_tiers=self.service_tiers)

    def clean(self) -> None:
        super().clean()
        self._check_span()
        self._check_rates()
        self._check_overlap()
        self.check_unchanged()

    def save(self, *args: Any, **kwargs: Any) -> None:
        self.check_unchanged()
        super().save(*args, **kwargs)

    def check_unchanged(self) -> None:
        """Refuse to rewrite a stored row: it may be closed, annotated, and nothing else."""
        stored = type(self).objects.filter(pk=self.pk).first()
        if stored is None:
            return
        changed = [name for name in _FROZEN if getattr(stored, name) != getattr(self, name)]
        if changed:
            raise ValidationError(
                f"A price is never rewritten ({', '.join(changed)}): set a new one, which closes this one's span."
            )
        self._check_closing(stored.effective_until)

    def _check_closing(self, before: datetime | None) -> None:
        until = self.effective_until
        if until == before:
            return
        if until is None or (before is not None and until > before):
            raise ValidationError({"effective_until": "A closed price is not opened again: set a new one."})
        if until < max(timezone.now() - CLOSING_GRACE, self.effective_from):
            raise ValidationError({"effective_until": "What has been in force stays so: close it from now on."})

    def _check_span(self) -> None:
        if self.effective_until is not None and self.effective_until < self.effective_from:
            raise ValidationError({"effective_until": "The end is before the start."})
        if (self.daily_from is None) != (self.daily_until is None):
            raise ValidationError({"daily_until": "Hours of the day have a start and an end, or neither."})
        if self.daily_from is not None and self.daily_from == self.daily_until:
            raise ValidationError({"daily_until": "These hours are empty: leave both out for the whole day."})

    def _check_rates(self) -> None:
        columns = {name: getattr(self, name) for name in pricing.RATE_NAMES}
        if columns["input"] is None or columns["output"] is None:
            return  # the fields' own validation says so
        try:
            without_services = pricing.from_columns(id=None, columns=columns, tiers=self.tiers)
        except pricing.MalformedPrice as error:
            raise ValidationError({"tiers": str(error)}) from error
        try:
            price = self.to_pricing()
        except pricing.MalformedPrice as error:
            raise ValidationError({"service_tiers": str(error)}) from error
        if self.confirmed:
            return
        for name, rate in (*without_services.every_rate(), *price.every_rate()):
            if rate > UNUSUAL_ABOVE or (name in pricing.PER_TOKEN and 0 < rate < UNUSUAL_BELOW):
                per = "a request" if name == "request" else "per million tokens"
                raise ValidationError({"confirmed": f"{name} would be ${rate:f} {per}: confirm it, or correct it."})

    def _check_overlap(self) -> None:
        rivals = type(self).objects.filter(
            provider=self.provider, model__iexact=self.model, deployment=self.deployment, source=self.source
        )
        if self.effective_until is not None:
            rivals = rivals.filter(effective_from__lt=self.effective_until)
        live = Q(effective_until__isnull=True) | Q(effective_until__gt=self.effective_from)
        # A withdrawn row (its end is its start) spans nothing and overlaps with nothing.
        spanning = ~Q(effective_until=F("effective_from"))
        for rival in rivals.filter(live, spanning | Q(effective_until__isnull=True)).exclude(pk=self.pk):
            if self.effective_until != self.effective_from and _same_hours(self, rival):
                raise ValidationError(f"Another price of this model is in force then: {rival} (id {rival.pk}).")


_CHANGEABLE = {"effective_until", "note"}
_FROZEN = tuple(field.name for field in Price._meta.fields if field.name not in _CHANGEABLE)


class PriceImport(models.Model):
    """A version of the price list that has been imported: the next start skips it."""

    version = models.CharField(max_length=100, unique=True)
    imported_at = models.DateTimeField(default=timezone.now)

    class Meta:
        ordering: ClassVar = ["-id"]

    def __str__(self) -> str:
        return self.version


def _same_hours(one: Price, other: Price) -> bool:
    """Whether some time of day belongs to both. Hours of the day beside a whole-day price are meant: they win."""
    hours, others = _hours(one), _hours(other)
    if hours is None or others is None:
        return hours is others
    return in_hours(hours[0], *others) or in_hours(others[0], *hours)


def _hours(price: Price) -> tuple[time, time] | None:
    if price.daily_from is None or price.daily_until is None:
        return None
    return price.daily_from, price.daily_until


def in_hours(at: time, start: time, end: time) -> bool:
    """Whether `at` is in the hours from `start` until `end`; an end before its start is past midnight."""
    return start <= at < end if start < end else at >= start or at < end
