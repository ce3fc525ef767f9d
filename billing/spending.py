"""What the ledger says was spent: for counters, at start and when a budget is first asked for."""

from datetime import datetime
from decimal import Decimal

from django.db.models import Sum

from billing.fields import MoneyField
from billing.models import LedgerEntry
from billing.models.ledger import Kind

COUNTED = (Kind.SETTLEMENT, Kind.RELEASE, Kind.ADJUSTMENT)
_OWNER_COLUMN = {"key": "key_id", "user": "user_id", "team": "team"}


def spent_since(scope: str, owner: str, start: datetime, until: datetime | None) -> tuple[Decimal, int]:
    """US dollars and tokens of an owner's requests that arrived from `start` and before `until`.

    `scope` is key, user, team or organisation (whose owner is ignored). Raises `DatabaseError`.
    """
    entries = LedgerEntry.objects.filter(kind__in=COUNTED, created_at__gte=start).order_by()
    if until is not None:
        entries = entries.filter(created_at__lt=until)
    if scope in _OWNER_COLUMN:
        entries = entries.filter(**{_OWNER_COLUMN[scope]: owner})
    sums = entries.aggregate(
        usd=Sum("cost_usd", output_field=MoneyField()), prompt=Sum("prompt_tokens"), output=Sum("completion_tokens")
    )
    return sums["usd"] or Decimal(0), (sums["prompt"] or 0) + (sums["output"] or 0)
