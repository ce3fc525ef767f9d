"""Writing webhooks, and acknowledging alerts.

Raises `django.core.exceptions.PermissionDenied` (403), `ValidationError` (400, by field).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from django.core.exceptions import ValidationError
from django.db import transaction
from django.http import Http404
from django.utils import timezone

from billing.alerts import signing
from billing.models.alerts import Alert, Webhook
from gateway import vault
from keys import policy
from keys.actors import Actor
from security import audit


@transaction.atomic
def create_webhook(
    *, actor: Actor, url: str, events: Sequence[str] = (), secret: str | None = None, enabled: bool = True
) -> tuple[Webhook, str]:
    """A webhook for these kinds of alerts (none: all), and its secret, which is made where none is given."""
    policy.require(actor, "webhooks", "create")
    secret = secret or signing.new_secret()
    webhook = Webhook(url=url, events=list(events), enabled=enabled)
    _seal(webhook, secret)
    webhook.full_clean()
    webhook.save()
    audit.record(actor=actor, action="create", target=webhook, after=audit.state(webhook))
    return webhook, secret


@transaction.atomic
def update_webhook(*, actor: Actor, webhook: Webhook, changes: Mapping[str, Any]) -> Webhook:
    """Change its columns; `secret` replaces the stored one."""
    policy.require(actor, "webhooks", "update")
    webhook = _locked(webhook)
    before = audit.state(webhook)
    for name, value in changes.items():
        if name == "secret":
            _seal(webhook, value)
        else:
            setattr(webhook, name, value)
    webhook.full_clean()
    after = audit.state(webhook)
    if "secret" in changes:
        after["credentials"] = "(replaced)"  # secrets look alike in the log
    was, now = audit.difference(before, after)
    if now:
        webhook.save()
        audit.record(actor=actor, action="update", target=webhook, before=was, after=now)
    return webhook


@transaction.atomic
def delete_webhook(*, actor: Actor, webhook: Webhook) -> None:
    """Delete it with its deliveries; what it was not told yet it is not told."""
    policy.require(actor, "webhooks", "delete")
    webhook = _locked(webhook)
    audit.record(actor=actor, action="delete", target=webhook, before=audit.state(webhook))
    webhook.delete()


@transaction.atomic
def acknowledge(*, actor: Actor, alert: Alert) -> Alert:
    """Say that somebody has seen to it; the first who does is remembered."""
    policy.require(actor, "alerts", "update")
    now = timezone.now()
    rows = Alert.objects.filter(pk=alert.pk, acknowledged_at=None)
    if rows.update(acknowledged_by=actor.label, acknowledged_at=now):
        audit.record(actor=actor, action="acknowledge", target=alert, after={"acknowledged_by": actor.label})
    alert.refresh_from_db()
    return alert


def _locked(webhook: Webhook) -> Webhook:
    found = Webhook.objects.select_for_update().filter(pk=webhook.pk).first()
    if found is None:
        raise Http404("No such webhook.")
    return found


def _seal(webhook: Webhook, secret: str) -> None:
    if not signing.is_secret(secret):
        raise ValidationError({"secret": "whsec_ and 24 to 64 bytes in base64."})
    webhook.credentials = vault.seal({"secret": secret})
