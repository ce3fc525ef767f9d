"""Budgets that reached a threshold: a job's work, never a request's.

What budgets have spent is read from the ledger, in one grouped query for each kind of period. Most of a long period is
read once in ten minutes; in between only what was written since, which the ledger's primary key finds.
"""

import threading
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

from django.db.models import F, Max, Q, QuerySet, Sum, Value
from django.db.models.functions import Coalesce
from django.utils import timezone

from billing import periods
from billing.alerts import recording
from billing.counters.base import Amount
from billing.fields import MoneyField
from billing.models import Budget, LedgerEntry
from billing.models.alerts import Alert, AlertKind
from billing.models.budgets import Scope
from billing.spending import COUNTED
from gateway.models import ConfigVersion

_READ_AGAIN = timedelta(minutes=10)
# Ids are given before rows are committed: of those that were just given some may not be seen yet.
_UNSETTLED = 1000
_QUIET = timedelta(minutes=1)
_OWNER_COLUMN: Mapping[str, str] = {Scope.KEY: "key_id", Scope.USER: "user_id", Scope.TEAM: "team"}

Spending = Mapping[str, Amount]
"""By owner; "" is the organisation."""


class Span(NamedTuple):
    """Budgets whose spending one query reads."""

    scope: str
    start: datetime
    end: datetime | None

    def covered(self) -> Q:
        """The entries of requests that arrived in it."""
        begun = Q(created_at__gte=self.start)
        return begun if self.end is None else begun & Q(created_at__lt=self.end)


class _Read(NamedTuple):
    """What a span's requests had spent in entries up to id `upto`."""

    upto: int
    at: datetime
    spent: Spending


class Watch:
    """What this process knows of budgets' spending."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._read: dict[Span, _Read] = {}
        self._seen: tuple[int, int] | None = None
        self._moved_at: datetime | None = None

    def is_quiet(self, now: datetime) -> bool:
        """Whether neither ledger nor budgets changed for a minute: longer than a row takes that has its id already."""
        budgets = ConfigVersion.objects.filter(section=Budget.snapshot_section).aggregate(number=Max("number"))
        seen = _newest(), budgets["number"] or 0
        if self._moved_at is None or seen != self._seen:
            self._seen, self._moved_at = seen, now
        return now - self._moved_at > _QUIET

    def spending(self, spans: Collection[Span], now: datetime) -> dict[Span, Spending]:
        """What was spent in each, all entries included that are committed."""
        with self._lock:
            self._read = {span: read for span, read in self._read.items() if span in spans}
            newest = _newest()
            return {span: self._of(span, newest, now) for span in spans}

    def _of(self, span: Span, newest: int, now: datetime) -> Spending:
        read = self._read.get(span)
        if read is None or now - read.at > _READ_AGAIN:
            upto = max(newest - _UNSETTLED, 0)
            read = self._read[span] = _Read(upto, now, _spent_until(span, upto))
        return _added(read.spent, _spent_since(span, read.upto))


def _newest() -> int:
    return LedgerEntry.objects.aggregate(newest=Max("id"))["newest"] or 0


def _spent_until(span: Span, upto: int) -> Spending:
    """In entries up to this id: all that the period's index finds."""
    return _grouped(span, LedgerEntry.objects.filter(span.covered(), id__lte=upto), within=None)


def _spent_since(span: Span, after: int) -> Spending:
    """In entries after this id. Only the id chooses the rows, and the period what of them is summed: given both, SQLite
    would walk through the whole period once more.
    """
    return _grouped(span, LedgerEntry.objects.filter(id__gt=after), within=span.covered())


def _grouped(span: Span, entries: QuerySet[LedgerEntry], within: Q | None) -> Spending:
    entries = entries.filter(kind__in=COUNTED).order_by()
    sums = {
        "usd": Sum("cost_usd", filter=within, output_field=MoneyField()),
        "prompt": Sum("prompt_tokens", filter=within),
        "output": Sum("completion_tokens", filter=within),
    }
    column = _OWNER_COLUMN.get(span.scope)
    if column is None:
        return {"": _amount(entries.aggregate(**sums))}
    # No bare column, whose index SQLite would walk through from end to end to group by it.
    rows = entries.values(payer=Coalesce(F(column), Value(""))).annotate(**sums)
    return {row["payer"]: _amount(row) for row in rows}


def _amount(row: Mapping[str, Any]) -> Amount:
    return Amount(row["usd"] or Decimal(0), (row["prompt"] or 0) + (row["output"] or 0))


def _added(one: Spending, other: Spending) -> Spending:
    total = dict(one)
    for owner, amount in other.items():
        before = total.get(owner, _NOTHING)
        total[owner] = Amount((before.usd or 0) + (amount.usd or Decimal(0)), before.tokens + amount.tokens)
    return total


_NOTHING = Amount(Decimal(0), 0)


class Crossing(NamedTuple):
    """A budget, and a threshold in per cent that its spending has reached."""

    budget: Budget
    span: Span
    level: int
    spent: Amount


def crossings(watch: Watch, now: datetime) -> list[Crossing]:
    """All that budgets have reached in the periods around `now`."""
    by_span: dict[Span, list[Budget]] = defaultdict(list)
    for budget in Budget.objects.order_by("id"):
        terms = budget.stated_terms()
        if budget.alert_thresholds and periods.covers(terms.period, terms.tz, now):
            by_span[Span(terms.scope, *periods.bounds(terms.period, terms.tz, now))].append(budget)
    spending = watch.spending(by_span.keys(), now)
    return [
        crossing
        for span, budgets in by_span.items()
        for budget in budgets
        for crossing in _reached(budget, span, spending[span].get(budget.owner, _NOTHING))
    ]


def _reached(budget: Budget, span: Span, spent: Amount) -> Iterator[Crossing]:
    """Exactly: no percentage is rounded up to a threshold."""
    dollars, tokens = budget.limit_dollars, budget.limit_tokens  # of nothing there is no part to be reached
    for level in budget.alert_thresholds:
        over_dollars = dollars and (spent.usd or 0) * 100 >= dollars * level
        if over_dollars or (tokens and spent.tokens * 100 >= tokens * level):
            yield Crossing(budget, span, level, spent)


def notice(watch: Watch) -> int:
    """Raise an alert for every threshold that was reached and not told yet; returns how many were raised."""
    now = timezone.now()
    if watch.is_quiet(now):
        return 0
    found = _untold(crossings(watch, now))
    return sum(_record(crossing) is not None for crossing in found)


def _untold(found: list[Crossing]) -> list[Crossing]:
    starts = {crossing.span.start for crossing in found}
    alerts = Alert.objects.filter(kind=AlertKind.BUDGET_THRESHOLD, period_start__in=starts)
    told = set(alerts.values_list("subject", "period_start", "level"))
    return [one for one in found if (str(one.budget.pk), one.span.start, one.level) not in told]


def _record(crossing: Crossing) -> Alert | None:
    budget, span = crossing.budget, crossing.span
    return recording.record(
        kind=AlertKind.BUDGET_THRESHOLD,
        subject=str(budget.pk),
        period_start=span.start,
        level=crossing.level,
        detail=_detail(budget, span, crossing.spent),
    )


def _detail(budget: Budget, span: Span, spent: Amount) -> dict[str, Any]:
    """Money in US dollars, as `/api` has it."""
    return {
        "scope": budget.scope,
        "owner": budget.owner,
        "period": budget.period,
        "tz": budget.tz,
        "mode": budget.mode,
        "limit_dollars": None if budget.limit_dollars is None else float(budget.limit_dollars),
        "limit_tokens": budget.limit_tokens,
        "spent_dollars": float(spent.usd or 0),
        "spent_tokens": spent.tokens,
        "period_end": None if span.end is None else span.end.isoformat().replace("+00:00", "Z"),
    }
