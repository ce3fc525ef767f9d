"""Writing limits of everybody: the organisation's, a provider's, a model's, and a key's for a model.

A key's, user's, team's and deployment's own limits are fields of theirs, and written with them.
"""

from collections.abc import Mapping

from django.core.exceptions import ValidationError
from django.http import Http404

from gateway.models import Deployment, ModelGroup, Provider
from keys import policy
from keys.actors import Actor
from keys.models import LimitScope, RateLimit, VirtualKey
from keys.services.rows import add, save
from keys.writing import alone
from security import audit


@alone(RateLimit)
def set_limit(
    *,
    actor: Actor,
    scope: str,
    owner: str = "",
    model: str = "",
    rate_limit_rpm: int | None = None,
    rate_limit_tpm: int | None = None,
    max_parallel: int | None = None,
    managed_by: str = "",
) -> tuple[RateLimit, bool]:
    """Limit the requests of this scope to exactly this: what is None is not limited. Whether nothing did before is the
    second value.

    `owner` is a provider's slug or a key's id, `model` a deployment's or group's name, as the scope needs them. They
    have to exist when the limit is made; it outlives them, for they may come back.
    """
    policy.require(actor, "limits", "update")
    limits = {"rate_limit_rpm": rate_limit_rpm, "rate_limit_tpm": rate_limit_tpm, "max_parallel": max_parallel}
    row = RateLimit.objects.select_for_update().filter(scope=scope, owner=owner, model=model).first()
    if row is not None:
        _change(actor, row, limits)
        return row, False
    row = RateLimit(scope=scope, owner=owner, model=model, managed_by=managed_by, **limits)
    row.clean()
    _require_named(row)
    add(actor, row, "This limit was set at the same moment.")
    return row, True


@alone(RateLimit)
def update_limit(*, actor: Actor, limit: RateLimit, changes: Mapping[str, int | None]) -> RateLimit:
    """Change some of `policy.RATE_FIELDS`. What it limits is for good."""
    policy.require(actor, "limits", "update")
    row = _found_again(limit)
    _change(actor, row, changes)
    return row


@alone(RateLimit)
def delete_limit(*, actor: Actor, limit: RateLimit) -> None:
    """Lift a limit."""
    policy.require(actor, "limits", "delete")
    row = _found_again(limit)
    policy.refuse_managed(actor, row.managed_by)
    audit.record(actor=actor, action="delete", target=row, before=audit.state(row))
    row.delete()


def _found_again(limit: RateLimit) -> RateLimit:
    """The row as it is now, kept from others until the transaction ends."""
    found: RateLimit | None = RateLimit.objects.select_for_update().filter(pk=limit.pk).first()
    if found is None:
        raise Http404("It was deleted meanwhile.")
    return found


def _change(actor: Actor, row: RateLimit, values: Mapping[str, int | None]) -> None:
    policy.refuse_managed(actor, row.managed_by)
    save(actor, row, values)
    row.clean()  # what it says of the row as a whole: a refusal undoes the save


def _require_named(row: RateLimit) -> None:
    """A limit of what nobody can ask for would limit nobody, and look as if it did. Raises `ValidationError`."""
    if row.scope == LimitScope.PROVIDER and not Provider.objects.filter(slug=row.owner).exists():
        raise ValidationError({"owner": "There is no provider of this slug."})
    if row.scope == LimitScope.KEY_MODEL and not VirtualKey.objects.filter(pk=row.owner).exists():
        raise ValidationError({"owner": "There is no key of this id."})
    if row.model and not _can_be_asked_for(row.model):
        raise ValidationError({"model": "There is no deployment or model group of this name."})


def _can_be_asked_for(model: str) -> bool:
    """By the name that limits go by (`gateway.registry.Route.limited_as`): other names of a deployment count as its."""
    deployments, groups = Deployment.objects.filter(name=model), ModelGroup.objects.filter(name=model)
    return deployments.exists() or groups.exists()
