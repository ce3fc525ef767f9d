"""What an alert says: to webhooks as JSON, to people as a sentence."""

from collections.abc import Callable, Mapping
from typing import Any

from django.conf import settings
from django.core.mail import EmailMessage

from billing.models.alerts import Alert, AlertKind

Detail = Mapping[str, Any]


def message_id(alert: Alert) -> str:
    """The same at each try, so that a receiver notices what comes twice."""
    return f"alert_{alert.pk}"


def event(alert: Alert) -> dict[str, Any]:
    """The body of a webhook, as Standard Webhooks has it: type, timestamp, data."""
    return {
        "type": alert.kind,
        "timestamp": _utc(alert.at),
        "data": {
            "id": alert.pk,
            "subject": alert.subject,
            "level": alert.level,
            "period_start": _utc(alert.period_start),
            "text": text(alert),
            **alert.detail,
        },
    }


def email(alert: Alert) -> EmailMessage:
    """To `AILB_ALERT_EMAILS`."""
    body = "\n".join([text(alert), "", *(f"{name}: {value}" for name, value in alert.detail.items())])
    return EmailMessage(f"AILB: {_subject(alert)}", body, settings.DEFAULT_FROM_EMAIL, settings.ALERT_EMAILS)


def text(alert: Alert) -> str:
    """One sentence."""
    write = _TEXTS.get(alert.kind)
    return write(alert, alert.detail) if write is not None else str(alert)


def _subject(alert: Alert) -> str:
    """A line: an owner's or deployment's name could hold another."""
    return " ".join(text(alert).split())[:150]


def _threshold(alert: Alert, detail: Detail) -> str:
    owner = f"{detail.get('scope')} {detail.get('owner')}" if detail.get("owner") else "the organisation"
    used = [
        f"{spent} of {limit} {unit}"
        for unit, spent, limit in (
            ("dollars", detail.get("spent_dollars"), detail.get("limit_dollars")),
            ("tokens", detail.get("spent_tokens"), detail.get("limit_tokens")),
        )
        if limit is not None
    ]
    return f"The {detail.get('period')} budget of {owner} has reached {alert.level} %: {', '.join(used)} used."


def _overrun(alert: Alert, detail: Detail) -> str:
    return (
        f"A request to {alert.subject} cost {detail.get('cost_usd')} dollars, more than the {detail.get('held_usd')} "
        "that were held for it."
    )


def _credentials(alert: Alert, detail: Detail) -> str:
    return f"The provider refuses the credentials of {alert.subject}: nothing is sent there for now."


def _drift(alert: Alert, detail: Detail) -> str:
    return f"The counter of {alert.subject} is not what the ledger adds up to."


_TEXTS: Mapping[str, Callable[[Alert, Detail], str]] = {
    AlertKind.BUDGET_THRESHOLD: _threshold,
    AlertKind.OVERRUN: _overrun,
    AlertKind.UPSTREAM_CREDENTIALS: _credentials,
    AlertKind.COUNTER_DRIFT: _drift,
}


def _utc(moment: Any) -> str:
    return str(moment.isoformat().replace("+00:00", "Z"))
