"""Telling webhooks and people of alerts: the job process's work.

A delivery is tried six times over an hour, then given up; each try is claimed first by one update, so that of several
workers one sends. A worker that dies in the middle leaves it claimed until the next try is due: a message may come
twice, with the same `webhook-id`, and is not lost.
"""

import asyncio
import smtplib
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final, NamedTuple

import msgspec
import structlog
from asgiref.sync import async_to_sync
from django.core.mail import EmailMessage
from django.db.models import QuerySet
from django.utils import timezone

from billing.alerts import messages, signing
from billing.models.alerts import Delivery, DeliveryStatus
from gateway import outbound, vault

log = structlog.get_logger()

WAITS: Final = tuple(timedelta(seconds=wait) for wait in (10, 60, 300, 900, 2400))
"""Between a try and the next: six tries over an hour, as long as a deployment or a reboot may take."""
SECONDS: Final = 5.0
"""For one answer; the other jobs of the process wait for all that are sent at once."""
_AT_ONCE = 20
_TRUSTED_NETWORK = False  # whoever sets a webhook is not thereby let into the gateway's own network


class Outcome(NamedTuple):
    """How a try went. `error` is empty where it was delivered, and holds no part of a URL."""

    http_status: int | None = None
    error: str = ""


def deliver_due() -> int:
    """Send what is due, at most `_AT_ONCE`; returns how many were delivered."""
    claimed = [delivery for delivery in _due(timezone.now()) if _claim(delivery)]
    outcomes = async_to_sync(_send_all)([_prepared(delivery) for delivery in claimed])
    for delivery, outcome in zip(claimed, outcomes, strict=True):
        _note(delivery, outcome)
    return sum(not outcome.error for outcome in outcomes)


def _due(now: datetime) -> QuerySet[Delivery]:
    rows = Delivery.objects.filter(status=DeliveryStatus.PENDING, next_at__lte=now).order_by("next_at", "id")
    return rows.select_related("alert", "webhook")[:_AT_ONCE]


def _claim(delivery: Delivery) -> bool:
    """Count the try and set the time of the next, before anything is sent: whose update finds the row sends."""
    now = timezone.now()
    seen = {"pk": delivery.pk, "status": DeliveryStatus.PENDING, "tries": delivery.tries}
    delivery.tries += 1
    delivery.last_at = now
    delivery.next_at = now + (WAITS[delivery.tries - 1] if delivery.tries <= len(WAITS) else WAITS[-1])
    changes = {"tries": delivery.tries, "last_at": now, "next_at": delivery.next_at}
    return Delivery.objects.filter(**seen).update(**changes) == 1


def _note(delivery: Delivery, outcome: Outcome) -> None:
    delivery.http_status, delivery.error = outcome.http_status, outcome.error[:200]
    if not outcome.error:
        delivery.status = DeliveryStatus.DELIVERED
    elif delivery.tries > len(WAITS) or (delivery.webhook is not None and not delivery.webhook.enabled):
        delivery.status = DeliveryStatus.GIVEN_UP
        log.error("alert_not_delivered", delivery=delivery.pk, webhook=delivery.webhook_id, error=outcome.error)
    delivery.save(update_fields=["status", "http_status", "error"])


# ── sending ─────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Post(NamedTuple):
    url: str
    headers: Mapping[str, str]
    body: bytes


_Message = _Post | EmailMessage | Outcome
"""What is to be sent, or why it cannot be."""


def _prepared(delivery: Delivery) -> _Message:
    """All that the database and the vault are needed for."""
    if delivery.webhook is None:
        return messages.email(delivery.alert)
    if not delivery.webhook.enabled:
        return Outcome(error="The webhook is disabled.")
    try:
        secret = vault.open_sealed(delivery.webhook.credentials)["secret"]
    except vault.VaultError:
        return Outcome(error="Its secret cannot be opened: give it again.")
    body = msgspec.json.encode(messages.event(delivery.alert))
    signed = signing.headers(secret, message_id=messages.message_id(delivery.alert), body=body, at=timezone.now())
    return _Post(delivery.webhook.url, {"content-type": "application/json", "user-agent": "AILB", **signed}, body)


async def _send_all(prepared: Sequence[_Message]) -> list[Outcome]:
    return await asyncio.gather(*map(_send, prepared))


async def _send(message: _Message) -> Outcome:
    if isinstance(message, Outcome):
        return message
    if isinstance(message, EmailMessage):
        return await asyncio.to_thread(_mail, message)
    try:
        status = await outbound.post(
            message.url,
            headers=message.headers,
            body=message.body,
            seconds=SECONDS,
            trusted_network=_TRUSTED_NETWORK,
        )
    except outbound.Unreachable as error:
        return Outcome(error=str(error))
    return Outcome(status, "" if 200 <= status < 300 else f"It answered {status}.")


def _mail(message: EmailMessage) -> Outcome:
    try:
        message.send()
    except (OSError, smtplib.SMTPException) as error:
        return Outcome(error=f"The mail server refused it, or is not there: {type(error).__name__}.")
    return Outcome()
