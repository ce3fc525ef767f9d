"""What every service here does with a row and its audit entry."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from django.db import IntegrityError, transaction
from django.http import Http404

from gateway.models import Deployment, GroupMember, ModelGroup, Provider, TrafficWeight
from keys.actors import Actor
from keys.policy import Conflict
from security import audit

Row = Provider | Deployment | ModelGroup | TrafficWeight
R = TypeVar("R", Provider, Deployment, ModelGroup, TrafficWeight)

_EMPTY: Mapping[str, Callable[[], Any]] = {"strategy": str, "version": str, "capabilities": dict}
"""What null is in columns that hold none."""


def found_again(model: type[R], row: R) -> R:
    """The row as it is now, kept from others until the transaction ends."""
    found = model._base_manager.select_for_update().filter(pk=row.pk).first()
    if found is None:
        raise Http404("It was deleted meanwhile.")
    return found


def assign(row: Row, values: Mapping[str, Any]) -> None:
    """Set columns by their names in the API."""
    for name, value in values.items():
        setattr(row, name, _EMPTY[name]() if value is None and name in _EMPTY else value)


def check(row: Row, *, besides: Iterable[str] = ()) -> None:
    """What the model says of its columns. Raises `ValidationError`, by field."""
    row.clean_fields(exclude=set(besides))
    row.clean()


def insert(actor: Actor, row: Row, taken: str, **notes: Any) -> None:
    """A unique column decides between two at once: a look beforehand could not."""
    try:
        with transaction.atomic():
            row.save(force_insert=True)
    except IntegrityError:
        raise Conflict(taken) from None
    audit.record(actor=actor, action="create", target=row, after=audit.state(row) | notes)


def save(actor: Actor, row: Row, before: dict[str, Any], after: dict[str, Any], taken: str = "") -> None:
    """Save and record. What is unchanged writes nothing, so that it raises no version and fills no log."""
    was, now = audit.difference(before, after)
    if not now:
        return
    try:
        with transaction.atomic():
            row.save()
    except IntegrityError:
        raise Conflict(taken) from None
    audit.record(actor=actor, action="update", target=row, before=was, after=now)


def record_delete(actor: Actor, row: Row, before: dict[str, Any], along: Mapping[str, int]) -> None:
    """`along`: by model, how many rows that are not recorded themselves go with it."""
    counts = {label: number for label, number in along.items() if number}
    audit.record(actor=actor, action="delete", target=row, before=before | ({"along": counts} if counts else {}))


def places(deployments: Iterable[Deployment]) -> int:
    """How many places in groups they have."""
    return GroupMember.objects.filter(deployment__in=list(deployments)).count()
