"""What every service here does with fields, a row and its audit entry."""

from collections.abc import Mapping
from typing import Any

from django.db import IntegrityError, transaction
from django.db.models import Model

from keys.actors import Actor
from keys.policy import Conflict
from security import audit


def given(fields: Mapping[str, Any], *, besides: Mapping[str, Any]) -> set[str]:
    """The names of the fields that say something."""
    return {name for name, value in fields.items() if value not in (None, [], {}) and value != besides.get(name)}


def add(actor: Actor, row: Model, taken: str) -> None:
    row.clean_fields(exclude={"team"})
    insert(row, taken)
    audit.record(actor=actor, action="create", target=row, after=audit.state(row))


def insert(row: Model, taken: str) -> None:
    """A unique column decides between two at once: a look beforehand could not."""
    try:
        with transaction.atomic():
            row.save(force_insert=True)
    except IntegrityError:
        raise Conflict(taken) from None


def save(actor: Actor, row: Model, values: Mapping[str, Any], action: str = "update") -> None:
    before = audit.state(row)
    for name, value in values.items():
        setattr(row, name, value)
    row.clean_fields(
        exclude={field.name for field in row._meta.fields if field.name not in values or field.is_relation}
    )
    was, now = audit.difference(before, audit.state(row))
    if now or action != "update":
        row.save(update_fields=list(values))
        audit.record(actor=actor, action=action, target=row, before=was, after=now)
