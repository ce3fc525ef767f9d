"""Writing policies of the screen.

Raises `django.core.exceptions.PermissionDenied` (403), `ValidationError` (400, by field) and `policy.Conflict` (409).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from django.db import IntegrityError, transaction

from keys import policy
from keys.actors import Actor
from keys.policy import Conflict
from keys.writing import alone
from security import audit
from security.models import Policy
from security.policies import Scope

_TAKEN = "There is a policy of this name already, or one in force for this owner."


@alone(Policy)
def create_policy(
    *,
    actor: Actor,
    name: str,
    scope: str = Scope.ORGANISATION.value,
    owner: str = "",
    actions: Mapping[str, str] | None = None,
    blocked_terms: Sequence[str] | None = None,
    enabled: bool = True,
    managed_by: str = "",
) -> Policy:
    """Make a policy: what to do with each category, and the terms that count as `custom`."""
    policy.require(actor, "policies", "create")
    told = {"actions": dict(actions or {}), "blocked_terms": list(blocked_terms or [])}
    row = Policy(name=name, scope=scope, owner=owner, enabled=enabled, managed_by=managed_by, **told)
    _save(row)
    audit.record(actor=actor, action="create", target=row, after=audit.state(row))
    return row


@alone(Policy)
def update_policy(*, actor: Actor, row: Policy, changes: Mapping[str, Any]) -> Policy:
    """Change a policy's columns; None of `actions` or `blocked_terms` is none of them."""
    policy.require(actor, "policies", "update")
    row = Policy.objects.select_for_update().get(pk=row.pk)
    policy.refuse_managed(actor, row.managed_by)
    before = audit.state(row)
    for name, value in changes.items():
        setattr(row, name, getattr(Policy(), name) if value is None else value)
    was, now = audit.difference(before, audit.state(row))
    if now:
        _save(row)
        audit.record(actor=actor, action="update", target=row, before=was, after=now)
    return row


def _save(row: Policy) -> None:
    try:
        with transaction.atomic():
            row.save()
    except IntegrityError:
        raise Conflict(_TAKEN) from None
