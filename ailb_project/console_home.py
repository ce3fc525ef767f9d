"""The console's home page: what a newcomer looks for first. The dashboard comes later."""

from decimal import Decimal
from hashlib import sha256
from typing import Any, Final

from django.core.cache import cache
from django.http import HttpRequest
from django.urls import reverse
from django.utils import timezone

from ailb_project.console import actor_of, sees
from billing import periods, spending
from billing.models import Alert
from gateway.models import Provider
from keys import policy, selectors
from keys.actors import Actor
from keys.models import KeyStatus
from keys.policy import Reach

_SPEND_SECONDS: Final = 60
"""How old the sum may be: a month of a busy ledger is a long one for a home page."""


def home(request: HttpRequest, context: dict[str, Any]) -> dict[str, Any]:
    """unfold's DASHBOARD_CALLBACK."""
    actor = actor_of(request)
    cards = []
    if sees(request, "keys.virtualkey"):
        active = selectors.keys(actor=actor, status=KeyStatus.ACTIVE).count()
        cards.append(_card("Active keys", active, "keys_virtualkey"))
    if sees(request, "gateway.provider"):
        cards.append(_card("Enabled providers", Provider.objects.filter(enabled=True).count(), "gateway_provider"))
    if (spent := _spent(actor)) is not None:
        cards.append(_card("Spent this month", f"${spent:,.2f}", "billing_ledgerentry"))
    if sees(request, "billing.alert") and (unseen := Alert.objects.filter(acknowledged_at=None).count()):
        cards.append(_card("Alerts to see to", unseen, "billing_alert", "?acknowledged=no"))
    return {**context, "cards": cards}


def _card(title: str, value: Any, model: str, query: str = "") -> dict[str, Any]:
    return {"title": title, "value": value, "link": reverse(f"admin:{model}_changelist") + query}


def _spent(actor: Actor) -> Decimal | None:
    """Dollars since the first of the month (UTC), as far as they see; a minute old at most."""
    whose = {
        Reach.ALL: ("organisation", ""),
        Reach.TEAM: ("team", actor.team),
        Reach.OWN: ("user", actor.user_id),
    }.get(policy.reach(actor, "spend", "read"))
    if whose is None or whose[1] is None:
        return None
    scope, owner = whose
    start, end = periods.bounds("monthly", "UTC", timezone.now())

    def total() -> Decimal:
        return spending.spent_since(scope, str(owner), start, end)[0]

    name = sha256(f"{scope} {owner} {start}".encode()).hexdigest()
    return cache.get_or_set(f"console-spent-{name}", total, _SPEND_SECONDS)
