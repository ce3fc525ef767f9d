"""Where a budget stands by the ledger, told so that what the counters were told besides can be told apart from it."""

from datetime import datetime, timedelta
from decimal import Decimal

import msgspec
from django.db.models import Case, Exists, F, OuterRef, QuerySet, Sum, Value, When
from django.utils import timezone

from billing.counters.base import Amount
from billing.fields import MoneyField
from billing.models import LedgerEntry
from billing.models.ledger import IS_CLOSING, Kind
from billing.spending import COUNTED

_CLOSING = (Kind.SETTLEMENT, Kind.RELEASE)
_OWNER_COLUMN = {"key": "key_id", "user": "user_id", "team": "team"}
# No request lives longer; bounds how much of a long period is searched for open holds.
_LONGEST_REQUEST = timedelta(hours=6)


class OpenHold(msgspec.Struct, frozen=True):
    """A hold without a closing entry."""

    process_id: str
    request_id: str
    amount: Amount


class Standing(msgspec.Struct, frozen=True):
    """What an owner spent in a period, which of the requests in that sum were closed lately, and what is held."""

    spent: Amount
    closed: tuple[str, ...]
    open: tuple[OpenHold, ...]


def read_standing(
    scope: str, owner: str, start: datetime, until: datetime | None, closed_since: datetime, *, with_open: bool
) -> Standing:
    """`closed` are the requests whose closing entry was made after `closed_since`. Raises `DatabaseError`."""
    entries = LedgerEntry.objects.filter(created_at__gte=start).order_by()
    if until is not None:
        entries = entries.filter(created_at__lt=until)
    if scope in _OWNER_COLUMN:
        entries = entries.filter(**{_OWNER_COLUMN[scope]: owner})
    # In this order: a hold that is closed in between is held and spent for a moment, never neither.
    held = _open(entries) if with_open else ()
    spent, closed = _spent(entries, closed_since)
    return Standing(spent, closed, held)


def _open(entries: "QuerySet[LedgerEntry]") -> tuple[OpenHold, ...]:
    closing = LedgerEntry.objects.filter(IS_CLOSING, request_id=OuterRef("request_id"))
    rows = entries.filter(
        ~Exists(closing), kind=Kind.HOLD, created_at__gte=timezone.now() - _LONGEST_REQUEST
    ).values_list("process_id", "request_id", "held_usd", "held_prompt_tokens", "held_output_tokens")
    return tuple(
        OpenHold(process, request, Amount(usd, (prompt or 0) + (output or 0)))
        for process, request, usd, prompt, output in rows
    )


def _spent(entries: "QuerySet[LedgerEntry]", closed_since: datetime) -> tuple[Amount, tuple[str, ...]]:
    """The sum and the names of late closings, in one statement: both see the same moment of the ledger."""
    groups = (
        entries.filter(kind__in=COUNTED)
        .annotate(
            late=Case(When(kind__in=_CLOSING, written_at__gte=closed_since, then=F("request_id")), default=Value(""))
        )
        .values("late")
        .annotate(
            usd=Sum("cost_usd", output_field=MoneyField()), prompt=Sum("prompt_tokens"), output=Sum("completion_tokens")
        )
        .values_list("late", "usd", "prompt", "output")
    )
    usd, tokens, closed = Decimal(0), 0, []
    for late, group_usd, prompt, output in groups:
        usd += group_usd or 0
        tokens += (prompt or 0) + (output or 0)
        if late:
            closed.append(late)
    return Amount(usd, tokens), tuple(closed)
