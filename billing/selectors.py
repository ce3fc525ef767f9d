"""Reading budgets and the ledger, narrowed to what the actor may see."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

import msgspec
from django.db.models import Exists, OuterRef, Q, QuerySet, Sum
from django.http import Http404
from django.utils import timezone

from billing import periods, spending
from billing.fields import MoneyField
from billing.models import Budget, LedgerEntry
from billing.models.budgets import Period, Scope
from billing.models.ledger import IS_CLOSING, Kind
from gateway.types import BudgetTerms
from keys import policy
from keys.actors import Actor
from keys.models import Team, User, VirtualKey
from keys.policy import Reach

WARNING_FROM = Decimal("0.8")
"""The share of a limit from which a budget's status is `warning`: the contract's 80 %."""

IN_FLIGHT = "in_flight"


# ── budgets ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def budgets(*, actor: Actor, action: str = "read") -> QuerySet[Budget]:
    """The budgets that the action reaches: one's own and one's keys', for a team lead the team's and what is in it."""
    if policy.reach(actor, "budgets", action) is Reach.ALL:
        return Budget.objects.all()
    within = Q(scope=Scope.KEY, owner__in=_keys(actor, action).values("pk"))
    within |= Q(scope=Scope.USER, owner__in=_people(actor, action).values("username"))
    within |= Q(scope=Scope.TEAM, owner__in=_teams(actor, action).values("name"))
    return Budget.objects.filter(within)


def reaches_owner(*, actor: Actor, action: str, scope: str, owner: str) -> bool:
    """Whether the action reaches budgets of this owner."""
    if policy.reach(actor, "budgets", action) is Reach.ALL:
        return True
    found: Mapping[str, QuerySet[Any]] = {
        Scope.KEY: _keys(actor, action).filter(pk=owner),
        Scope.USER: _people(actor, action).filter(username=owner),
        Scope.TEAM: _teams(actor, action).filter(name=owner),
    }
    return scope in found and found[scope].exists()


def reaches_all_budgets(*, actor: Actor) -> bool:
    """Whether the actor may set anybody's budget, so that an owner need not exist yet."""
    return policy.reach(actor, "budgets", "create") is Reach.ALL


def _keys(actor: Actor, action: str) -> QuerySet[VirtualKey]:
    team = ("team__name", "user__team__name")
    rows = VirtualKey.objects.order_by()
    return policy.scope(rows, actor, "budgets", action, user="user__username", team=team, key="pk")


def _people(actor: Actor, action: str) -> QuerySet[User]:
    return policy.scope(User.objects.order_by(), actor, "budgets", action, user="username", team="team__name")


def _teams(actor: Actor, action: str) -> QuerySet[Team]:
    return policy.scope(Team.objects.order_by(), actor, "budgets", action, team="name")


def find_budget(*, actor: Actor, budget_id: int) -> Budget:
    """Raises `Http404`."""
    found = budgets(actor=actor).filter(pk=budget_id).first()
    if found is None:
        raise Http404("No such budget.")
    return found


def key_quotas(key_ids: Iterable[str]) -> dict[str, BudgetTerms]:
    """The monthly budgets of these keys, by key id."""
    rows = Budget.objects.filter(scope=Scope.KEY, owner__in=list(key_ids), period=Period.MONTHLY)
    return {row.owner: row.stated_terms() for row in rows}


class Figures(msgspec.Struct, frozen=True):
    """What an owner has spent and holds in the current period, against their limits. Money in US dollars."""

    id: int | None
    key_id: str | None
    period: str
    limit_usd: Decimal | None
    limit_tokens: int | None
    current_spend: Decimal
    current_tokens: int
    reserved: Decimal
    reserved_tokens: int
    resets_at: datetime | None

    @property
    def remaining(self) -> Decimal | None:
        """Dollars that a further request may still hold; None without a limit."""
        if self.limit_usd is None:
            return None
        return max(self.limit_usd - self.current_spend - self.reserved, Decimal(0))

    @property
    def status(self) -> str:
        used = max(_share(self.current_spend, self.limit_usd), _share(self.current_tokens, self.limit_tokens))
        if used >= 1:
            return "exceeded"
        return "warning" if used >= WARNING_FROM else "healthy"


def _share(spent: Decimal | int, limit: Decimal | int | None) -> Decimal:
    """How much of a limit is used. Of nothing, all is."""
    if limit is None:
        return Decimal(0)
    return Decimal(spent) / Decimal(limit) if limit else Decimal(1)


def figures(terms: BudgetTerms, *, id: int | None) -> Figures:
    """The true figures, from the ledger: what this process still has to write is written first."""
    from billing import ledger

    ledger.flush()
    start, end = periods.bounds(terms.period, terms.tz, timezone.now())
    spent, tokens = spending.spent_since(terms.scope, terms.owner, start, end)
    held, held_tokens = _held_since(terms.scope, terms.owner, start)
    return Figures(
        id=id,
        key_id=terms.owner if terms.scope == Scope.KEY else None,
        period=terms.period,
        limit_usd=terms.limit_usd,
        limit_tokens=terms.limit_tokens,
        current_spend=spent,
        current_tokens=tokens,
        reserved=held,
        reserved_tokens=held_tokens,
        resets_at=None if periods.is_once(terms.period) else end,
    )


def key_figures(key_id: str) -> Figures:
    """A key's month. A key without a quota has spent too: its limits are None, its month is UTC's."""
    quota = key_quotas([key_id]).get(key_id)
    if quota is not None:
        return figures(quota, id=quota.id)
    return figures(BudgetTerms(0, Scope.KEY.value, key_id, Period.MONTHLY.value, "UTC", None, None), id=None)


def budget_figures(budget: Budget) -> Figures:
    """A budget's current period."""
    return figures(budget.stated_terms(), id=budget.pk)


_OWNER_COLUMN = {Scope.KEY: "key_id", Scope.USER: "user_id", Scope.TEAM: "team"}


def _held_since(scope: str, owner: str, start: datetime) -> tuple[Decimal, int]:
    """What open holds of the period reserve. A request counts in the period that it arrived in, held and settled."""
    holds = LedgerEntry.objects.filter(~Exists(_closings()), kind=Kind.HOLD, created_at__gte=start).order_by()
    if scope in _OWNER_COLUMN:
        holds = holds.filter(**{_OWNER_COLUMN[Scope(scope)]: owner})
    sums = holds.aggregate(
        usd=Sum("held_usd", output_field=MoneyField()),
        prompt=Sum("held_prompt_tokens"),
        output=Sum("held_output_tokens"),
    )
    return sums["usd"] or Decimal(0), (sums["prompt"] or 0) + (sums["output"] or 0)


def _closings() -> QuerySet[LedgerEntry]:
    return LedgerEntry.objects.filter(IS_CLOSING, request_id=OuterRef("request_id")).order_by()


# ── usage ───────────────────────────────────────────────────────────────────────────────────────────────────────────


class UsageRow(msgspec.Struct, frozen=True):
    """One request of the ledger: its hold, what closed it, and what corrected that."""

    request_id: str
    client_request_id: str | None
    created_at: datetime
    key_id: str
    user_id: str | None
    team: str | None
    requested_model: str
    routed_model: str
    served_model: str | None
    provider: str
    status: int | str
    """`in_flight`, or the HTTP status"""
    prompt_tokens: int | None
    completion_tokens: int | None
    cached_tokens: int | None
    cache_write_tokens: int | None
    reasoning_tokens: int | None
    cost_usd: Decimal | None
    unpriced: bool
    estimated: bool
    stream: bool
    attempts: list[dict[str, Any]]
    latency_ms: float | None
    ttft_ms: float | None
    overhead_ms: float | None
    session_id: str | None
    tags: list[str]
    security_action: str | None
    routing: dict[str, Any] | None = None
    """How the deployment that served was chosen, where there was a choice."""
    currency: str = "USD"


def usage(
    *, actor: Actor, filters: Mapping[str, Any], limit: int, before: int | None = None
) -> tuple[list[UsageRow], int | None]:
    """A page of requests, newest first, and where the next one begins (None at the end).

    `filters`: key_id, user_id, team, model, provider, start (included) and end (excluded). `before` is what an
    earlier page gave: pages stay right while requests come in, since a hold's id only grows.
    """
    from billing import ledger

    ledger.flush()
    holds = policy.scope(
        LedgerEntry.objects.filter(kind=Kind.HOLD), actor, "spend", user="user_id", team="team", key="key_id"
    ).filter(_matches(filters))
    if before is not None:
        holds = holds.filter(id__lt=before)
    page = list(holds.order_by("-id")[: limit + 1])
    further = page[limit - 1].id if len(page) > limit else None
    return _rows(page[:limit]), further


def _matches(filters: Mapping[str, Any]) -> Q:
    """What a filter names is what the row shows: of a closed request the closing entry's provider and models."""
    closed = Exists(_closings())
    conditions = Q()
    for name in ("key_id", "user_id", "team"):
        if (value := filters.get(name)) is not None:
            conditions &= Q(**{name: value})
    if (start := filters.get("start")) is not None:
        conditions &= Q(created_at__gte=start)
    if (end := filters.get("end")) is not None:
        conditions &= Q(created_at__lt=end)
    if (provider := filters.get("provider")) is not None:
        conditions &= Q(Exists(_closings().filter(provider=provider))) | (Q(provider=provider) & ~Q(closed))
    if (model := filters.get("model")) is not None:
        served = Exists(_closings().filter(Q(routed_model=model) | Q(served_model=model)))
        conditions &= Q(requested_model=model) | Q(served) | (Q(routed_model=model) & ~Q(closed))
    return conditions


def _rows(holds: Sequence[LedgerEntry]) -> list[UsageRow]:
    later: dict[str, list[LedgerEntry]] = defaultdict(list)
    entries = LedgerEntry.objects.filter(request_id__in=[hold.request_id for hold in holds]).order_by("id")
    # What closed a request first, whatever was written when: adjustments correct that. Each has its own index.
    for entry in (*entries.filter(IS_CLOSING), *entries.filter(kind=Kind.ADJUSTMENT)):
        later[entry.request_id].append(entry)
    return [_row(hold, later[hold.request_id]) for hold in holds]


def _row(hold: LedgerEntry, later: Sequence[LedgerEntry]) -> UsageRow:
    last = later[-1] if later else hold
    return UsageRow(
        **{name: getattr(hold, name) for name in _OF_THE_HOLD},
        **{name: _latest(name, [hold, *later]) for name in _OF_THE_LAST},
        **{name: _total(name, later) for name in _SUMMED},
        status=_latest("status", later) if later else IN_FLIGHT,
        unpriced=last.unpriced,
        estimated=last.estimated,
        attempts=_latest("attempts", later) or [],
        routing=next((entry.detail["routing"] for entry in later if "routing" in entry.detail), None),
    )


_OF_THE_HOLD = (
    "request_id", "client_request_id", "created_at", "key_id", "user_id", "team", "requested_model", "stream",
    "session_id", "tags",
)  # fmt: skip
_OF_THE_LAST = ("provider", "routed_model", "served_model", "latency_ms", "ttft_ms", "overhead_ms", "security_action")
_SUMMED = (
    "prompt_tokens", "completion_tokens", "cached_tokens", "cache_write_tokens", "reasoning_tokens", "cost_usd",
)  # fmt: skip


def _latest(name: str, entries: Sequence[LedgerEntry]) -> Any:
    """What the last entry says that says something."""
    return next((value for entry in reversed(entries) if (value := getattr(entry, name)) not in (None, [])), None)


def _total(name: str, entries: Sequence[LedgerEntry]) -> Any:
    """A settlement and its adjustments add up; None where nobody knows, which is not 0."""
    known = [value for entry in entries if (value := getattr(entry, name)) is not None]
    return sum(known[1:], known[0]) if known else None
