"""Writing budgets. What an owner may spend is one row a period; a key's monthly quota is its monthly row.

Raises `django.core.exceptions.PermissionDenied` (403), `ValidationError` (400, by field) and `policy.Conflict` (409).
"""

from collections.abc import Mapping, Sequence
from datetime import date
from decimal import Decimal
from typing import Any

from django.core.exceptions import PermissionDenied, ValidationError
from django.http import Http404

from billing import selectors
from billing.models import Budget
from billing.models.budgets import ALERT_THRESHOLDS, Mode, Period, Scope
from keys import policy
from keys.actors import Actor
from keys.policy import Reach
from keys.writing import alone
from security import audit

LIMITS = tuple(sorted(policy.BUDGET_LIMITS))


@alone(Budget)
def set_budget(
    *,
    actor: Actor,
    scope: str,
    owner: str,
    period: str = Period.MONTHLY,
    tz: str = "UTC",
    limit_dollars: Decimal | None,
    limit_tokens: int | None,
    starts_on: date | None = None,
    days: int | None = None,
    repeats: bool = False,
    mode: str = Mode.HARD,
    grace_percent: int = 10,
    alert_thresholds: Sequence[int] = ALERT_THRESHOLDS,
    managed_by: str = "",
) -> Budget:
    """Give an owner this budget, in place of the one they have for the period.

    `starts_on`, `days` and `repeats` are a custom period's; thresholds are per cents of the limit.
    """
    _require_over(actor, "create", scope, owner)
    values = {
        "tz": tz,
        "limit_dollars": limit_dollars,
        "limit_tokens": limit_tokens,
        "starts_on": starts_on,
        "days": days,
        "repeats": repeats,
        "mode": mode,
        "grace_percent": grace_percent,
        "alert_thresholds": sorted(alert_thresholds),
    }
    return _put(actor, scope, owner, period, values, managed_by)


@alone(Budget)
def update_budget(*, actor: Actor, budget: Budget, changes: Mapping[str, Any]) -> Budget:
    """Change a budget's columns; its owner and period are for good."""
    _require_over(actor, "update", budget.scope, budget.owner)
    policy.require_fields(actor, "budgets", "update", changes.keys())
    _require_within_team(actor, budget.scope, budget.period, changes)
    locked = _lock(budget.scope, budget.owner, budget.period)
    if locked is None:
        raise Http404("No such budget.")
    _change(actor, locked, changes)
    return locked


@alone(Budget)
def delete_budget(*, actor: Actor, budget: Budget) -> None:
    """Take a limit away."""
    _require_over(actor, "delete", budget.scope, budget.owner)
    _require_within_team(actor, budget.scope, budget.period, dict.fromkeys(LIMITS))
    _delete(actor, budget)


@alone(Budget)
def set_key_quota(*, actor: Actor, key_id: str, limits: Mapping[str, Any], managed_by: str = "") -> Budget | None:
    """Change a key's monthly budget; with no limit left there is none. Whether the actor may is `key_limits` in the
    policy, which `keys.services` has asked. `managed_by` is the key's.
    """
    budget = _lock(Scope.KEY, key_id, Period.MONTHLY)
    merged = {name: limits.get(name, getattr(budget, name, None)) for name in LIMITS}
    if any(value is not None for value in merged.values()):
        return _put(actor, Scope.KEY, key_id, Period.MONTHLY, merged, managed_by)
    if budget is not None:
        _delete(actor, budget)
    return None


def _lock(scope: str, owner: str, period: str) -> Budget | None:
    return Budget.objects.select_for_update().filter(scope=scope, owner=owner, period=period).first()


def _require_over(actor: Actor, action: str, scope: str, owner: str) -> None:
    policy.require(actor, "budgets", action)
    if not selectors.reaches_owner(actor=actor, action=action, scope=scope, owner=owner):
        raise PermissionDenied(f"That budget is not yours to {action}.")


def _put(actor: Actor, scope: str, owner: str, period: str, values: Mapping[str, Any], managed_by: str) -> Budget:
    _require_within_team(actor, scope, period, values)
    _validate(Budget(scope=scope, owner=owner, period=period, **values))
    # Two at once for one owner: the constraint lets one row in, and the other changes that row.
    budget, created = Budget.objects.select_for_update().get_or_create(
        scope=scope, owner=owner, period=period, defaults={**values, "managed_by": managed_by}
    )
    if created:
        audit.record(actor=actor, action="create", target=budget, after=audit.state(budget))
    else:
        _change(actor, budget, values)
    return budget


def _change(actor: Actor, budget: Budget, values: Mapping[str, Any]) -> None:
    policy.refuse_managed(actor, budget.managed_by)
    before = audit.state(budget)
    for name, value in values.items():
        setattr(budget, name, value)
    _validate(budget)
    was, now = audit.difference(before, audit.state(budget))
    if now:
        budget.save(update_fields=list(values))
        audit.record(actor=actor, action="update", target=budget, before=was, after=now)


def _validate(budget: Budget) -> None:
    budget.clean_fields()
    budget.clean()
    if all(getattr(budget, name) is None for name in LIMITS):
        raise ValidationError({"limit_dollars": "A budget limits dollars, tokens or both; to lift it, delete it."})


def _delete(actor: Actor, budget: Budget) -> None:
    policy.refuse_managed(actor, budget.managed_by)
    audit.record(actor=actor, action="delete", target=budget, before=audit.state(budget))
    budget.delete()


def _require_within_team(actor: Actor, scope: str, period: str, values: Mapping[str, Any]) -> None:
    """What a team lead sets stays within the team's own budget of the period, and that one only goes down.

    A member or key without a limit of its own is within it too: the team's still applies.
    """
    if policy.reach(actor, "budgets", "update") is not Reach.TEAM or actor.team is None:
        return
    most = _lock(Scope.TEAM, actor.team, period)
    if most is None:
        return
    beyond = [name for name in LIMITS if name in values and _exceeds(values[name], getattr(most, name), scope)]
    if scope == Scope.TEAM:
        beyond += [name for name in values if name not in LIMITS and values[name] != getattr(most, name)]
    if beyond:
        raise PermissionDenied(f"{', '.join(beyond)}: beyond the team's budget, which only goes down.")


def _exceeds(value: Decimal | int | None, most: Decimal | int | None, scope: str) -> bool:
    if most is None:
        return False
    return scope == Scope.TEAM if value is None else value > most
