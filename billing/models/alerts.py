"""What somebody should look at, and who is told of it, and how that went."""

from typing import Any, ClassVar, Final
from urllib.parse import urlsplit

from django.core.exceptions import ValidationError
from django.db import models
from django.db.models import Q
from django.utils import timezone

from gateway import outbound

LONGEST_URL: Final = 2000


class AlertKind(models.TextChoices):
    BUDGET_THRESHOLD = "budget_threshold"
    OVERRUN = "overrun"
    UPSTREAM_CREDENTIALS = "upstream_credentials"
    COUNTER_DRIFT = "counter_drift"


class Alert(models.Model):
    """Raised once for each kind, subject, period and level: the constraint decides between processes."""

    kind = models.CharField(max_length=30, choices=AlertKind.choices)
    subject = models.CharField(max_length=250, help_text="A budget's id, a deployment's name.")
    period_start = models.DateTimeField(help_text="Of the budget's period; of the day (UTC) for other kinds.")
    level = models.PositiveIntegerField(default=0, help_text="The threshold in per cent; 0 for other kinds.")
    at = models.DateTimeField(default=timezone.now)
    detail = models.JSONField(default=dict)
    acknowledged_by = models.CharField(max_length=250, blank=True, default="")
    acknowledged_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        ordering: ClassVar = ["-id"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["kind", "subject", "period_start", "level"], name="one_alert_each"),
        ]
        indexes: ClassVar = [
            models.Index(fields=["id"], name="alert_open", condition=Q(acknowledged_at__isnull=True)),
        ]

    def __str__(self) -> str:
        level = f" {self.level} %" if self.level else ""
        return f"{self.kind} {self.subject}{level}"


def check_webhook_url(url: str) -> None:
    """Refuse what may not be called: anybody's server is public. A query is fine, it may say whose message this is."""
    try:
        without_query = urlsplit(url)._replace(query="").geturl()
    except ValueError:
        raise ValidationError("This is not a URL.") from None
    outbound.check_url(without_query, trusted_network=False)


def check_events(value: Any) -> None:
    """Refuse what is no list of different kinds."""
    if not isinstance(value, list) or not set(value) <= set(AlertKind.values) or len(set(value)) != len(value):
        raise ValidationError(f"A list of {', '.join(AlertKind.values)}.")


class Webhook(models.Model):
    """A server that is told of alerts, by Standard Webhooks."""

    url = models.CharField("URL", max_length=LONGEST_URL, validators=[check_webhook_url])
    events = models.JSONField(
        default=list, blank=True, validators=[check_events], help_text="Kinds of alerts that it is told of. None: all."
    )
    credentials = models.TextField(editable=False, help_text="The sealed secret that messages are signed with.")
    enabled = models.BooleanField(default=True)
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    class Meta:
        ordering: ClassVar = ["id"]

    def __str__(self) -> str:
        return str(urlsplit(self.url).hostname)

    def clean(self) -> None:
        # Validators are not asked about what is empty, whatever its type.
        if not isinstance(self.events, list):
            raise ValidationError({"events": "A list of kinds."})

    def wants(self, kind: str) -> bool:
        return self.enabled and (not self.events or kind in self.events)


class DeliveryStatus(models.TextChoices):
    PENDING = "pending"
    DELIVERED = "delivered"
    GIVEN_UP = "given_up"


class Delivery(models.Model):
    """One alert on its way to one webhook, or to AILB_ALERT_EMAILS where there is no webhook."""

    alert = models.ForeignKey(Alert, models.CASCADE, related_name="deliveries")
    webhook = models.ForeignKey(Webhook, models.CASCADE, null=True, blank=True, related_name="deliveries")
    status = models.CharField(max_length=10, choices=DeliveryStatus.choices, default=DeliveryStatus.PENDING)
    tries = models.PositiveSmallIntegerField(default=0)
    next_at = models.DateTimeField(default=timezone.now, help_text="When it is tried (again), while it is pending.")
    last_at = models.DateTimeField(null=True, blank=True, help_text="When it was tried last.")
    http_status = models.PositiveSmallIntegerField(null=True, blank=True, help_text="The last answer's.")
    error = models.CharField(max_length=200, blank=True, default="", help_text="Why the last try failed.")

    class Meta:
        verbose_name_plural = "deliveries"
        ordering: ClassVar = ["-id"]
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["alert", "webhook"], name="one_delivery_a_webhook"),
            models.UniqueConstraint(fields=["alert"], condition=Q(webhook__isnull=True), name="one_delivery_by_mail"),
        ]
        indexes: ClassVar = [
            models.Index(fields=["next_at"], name="delivery_due", condition=Q(status="pending")),
        ]

    def __str__(self) -> str:
        return f"{self.alert} to {self.webhook or 'e-mail'}"
