"""What applying a file changed: read from the audit log, so that a plan is told in the words of the deed, and as little
of a secret is in it.
"""

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from django.apps import apps
from django.db.models import Max, Model

from keys.actors import FILE
from security.models import AuditEntry

_VERBS = {"create": "create", "delete": "remove"}
"""Of the audit log's actions; every other one changes."""


class Change(NamedTuple):
    """One object, before and after."""

    verb: str
    """create, change, disable or remove"""
    what: str
    fields: Mapping[str, tuple[Any, Any]] = {}
    """By name, as they were and as they are, of what is changed; secrets never."""

    def __str__(self) -> str:
        told = ", ".join(f"{name} {_json(was)} → {_json(now)}" for name, (was, now) in self.fields.items())
        return f"{self.verb} {self.what}" + (f": {told}" if told else "")


class Changes:
    """Gathers them, in the transaction that makes them. An object that is written twice is told once."""

    def __init__(self) -> None:
        self._seen = _newest()
        self._found: dict[tuple[str, str], Change] = {}

    def read(self, *, gone: bool = False) -> None:
        """Take what was recorded since. `gone`: of what is no longer in the file."""
        entries = list(AuditEntry.objects.filter(id__gt=self._seen, via=FILE.via).order_by("id"))
        for entry in entries:
            self._add(entry, "disable" if gone else "change")
        self._seen = entries[-1].pk if entries else self._seen

    def all(self) -> list[Change]:
        return list(self._found.values())

    def _add(self, entry: AuditEntry, otherwise: str) -> None:
        model: type[Model] = apps.get_model(entry.object_type)
        key = entry.object_type, entry.object_id
        earlier = self._found.get(key)
        if earlier is None:
            verb = _VERBS.get(entry.action, otherwise)
            fields = _fields(model, entry) if verb == "change" else {}
            self._found[key] = Change(verb, f"{model._meta.verbose_name} {_row(model, entry)}", fields)
        elif earlier.verb == "change":
            self._found[key] = earlier._replace(fields={**earlier.fields, **_fields(model, entry)})


def _newest() -> int:
    newest: int | None = AuditEntry.objects.aggregate(newest=Max("id"))["newest"]
    return newest or 0


def _row(model: type[Model], entry: AuditEntry) -> Model:
    """What the entry is about, for its name; one that is gone is as the log remembers it."""
    if entry.action != "delete":
        return model._base_manager.get(pk=entry.object_id)
    columns = {field.attname for field in model._meta.concrete_fields}
    return model(**{name: value for name, value in (entry.before or {}).items() if name in columns})


def _fields(model: type[Model], entry: AuditEntry) -> dict[str, tuple[Any, Any]]:
    before, after = entry.before or {}, entry.after or {}
    relations = {field.attname: field for field in model._meta.concrete_fields if field.is_relation}
    told = {}
    for name, now in after.items():
        field = relations.get(name)
        if field is None:
            told[name] = before.get(name), now
        else:
            told[field.name] = _related(field, before.get(name)), _related(field, now)
    return told


def _related(field: Any, pk: Any) -> str | None:
    """The name of the row that a foreign key leads to."""
    row = field.related_model._base_manager.filter(pk=pk).first() if pk is not None else None
    return None if row is None else str(row)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
