"""Writing the audit log."""

from typing import Any

from django.db.models import Model

from keys.actors import Actor
from security.models import AuditEntry

_HIDDEN = frozenset({"password", "digest", "previous_digest", "credentials"})


def record(
    *,
    actor: Actor,
    action: str,
    target: Model,
    before: dict[str, Any] | None = None,
    after: dict[str, Any] | None = None,
) -> None:
    """Add an entry, in the caller's transaction: a change that is rolled back was never made."""
    AuditEntry.objects.create(
        actor=actor.label,
        role=actor.role.value,
        via=actor.via,
        ip=actor.ip or "",
        action=action,
        object_type=target._meta.label_lower,
        object_id=str(target.pk),
        before=before,
        after=after,
    )


def state(target: Model) -> dict[str, Any]:
    """A row as the log keeps it: every column, with hashes and credentials reduced to whether they are there."""
    return {
        field.attname: _shown(field.attname, field.value_to_string(target), target)
        for field in target._meta.concrete_fields
    }


def _shown(name: str, text: str, target: Model) -> Any:
    value = getattr(target, name)
    if name in _HIDDEN:
        return "(set)" if value else None
    return value if value is None or isinstance(value, bool | int | str | list | dict) else text


def difference(before: dict[str, Any], after: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The columns that changed, as they were and as they are."""
    changed = [name for name in after if before.get(name) != after[name]]
    return {name: before.get(name) for name in changed}, {name: after[name] for name in changed}
