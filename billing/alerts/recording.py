"""Writing an alert down, and who is to be told."""

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

import structlog
from django.conf import settings
from django.db import transaction
from django.utils import timezone

from billing.models.alerts import Alert, Delivery, Webhook

log = structlog.get_logger()

_LONGEST_SUBJECT = 250


def record(
    *,
    kind: str,
    subject: str,
    period_start: datetime,
    level: int = 0,
    detail: Mapping[str, Any],
    at: datetime | None = None,
) -> Alert | None:
    """The alert with its deliveries; None where it was there, made by whichever process. Raises `django.db.Error`."""
    at = at or timezone.now()
    with transaction.atomic():
        alert, made = Alert.objects.get_or_create(
            kind=kind,
            subject=subject[:_LONGEST_SUBJECT],
            period_start=period_start,
            level=level,
            defaults={"at": at, "detail": dict(detail)},
        )
        if not made:
            return None
        Delivery.objects.bulk_create(_deliveries(alert))
    log.warning("alert", kind=kind, subject=alert.subject, threshold=level or None)
    return alert


def _deliveries(alert: Alert) -> Iterator[Delivery]:
    for webhook in Webhook.objects.filter(enabled=True):
        if webhook.wants(alert.kind):
            yield Delivery(alert=alert, webhook=webhook, next_at=alert.at)
    if settings.ALERT_EMAILS:
        yield Delivery(alert=alert, next_at=alert.at)
