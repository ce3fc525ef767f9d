"""The configuration file: providers, deployments, groups, weights, teams, keys, limits, budgets and policies, as YAML.

Applied at each start (`AILB_CONFIG`) and by `manage.py apply_config`, whole or not at all. What it defines is read-only
elsewhere; what has gone from it is switched off. Its entries are the API's bodies, and go to the API's services
(`sections`): file and API cannot differ. docs/config-file.md is for those who write one.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from django.core.exceptions import PermissionDenied, ValidationError
from django.db import transaction
from django.http import Http404
from rest_framework import serializers

from gateway import discovery
from gateway.config_file.changes import Change, Changes
from gateway.config_file.document import ConfigError, Document, Place, read
from gateway.config_file.sections import SECTIONS, Entry, Section
from keys.actors import FILE
from keys.api.fields import UNKNOWN, StrictSerializer
from keys.policy import Conflict
from security import audit

__all__ = ["Change", "ConfigError", "apply"]


def apply(path: Path) -> list[Change]:
    """Bring what the file says into the database; what is so already is not touched. Raises `ConfigError`."""
    document = read(path)
    entries = _checked(document)
    with transaction.atomic():
        changes = Changes()
        for section in SECTIONS:
            _apply(section, entries[section.name], document, changes)
    return changes.all()


def _apply(section: Section, entries: Mapping[Place, Entry], document: Document, changes: Changes) -> None:
    resolved: dict[Place, Entry] = {}
    for place, entry in entries.items():
        with _told_at(document, place):
            resolved[place] = section.resolve(entry)
    _refuse_twice(section, resolved, document)
    rows = {place: _found(section, entry, document, place) for place, entry in resolved.items()}
    changes.read()
    # First what has gone: a policy in force makes room for another.
    kept = [row.pk for row in rows.values() if row is not None]
    for row in section.managed().exclude(pk__in=kept):
        with _told_at(document, (section.name,)):
            section.end(row)
    changes.read(gone=True)
    for place, entry in resolved.items():
        with _told_at(document, place):
            rows[place] = rows[place] or section.create(entry)
    for place, entry in resolved.items():
        with _told_at(document, place):
            section.update(rows[place], entry)
    changes.read()


def _found(section: Section, entry: Entry, document: Document, place: Place) -> Any:
    row = section.find(entry)
    if row is None or row.managed_by == FILE.via:
        return row
    if not section.is_free(row):
        told = f"the {row.managed_by} defines" if row.managed_by else "the console has"
        raise document.error(place, f"{told} one of this name already: rename one of the two, or take it out there")
    before = audit.state(row)
    row.managed_by = FILE.via
    discovery.save_if_changed(row, before, FILE)
    return row


def _refuse_twice(section: Section, entries: Mapping[Place, Entry], document: Document) -> None:
    first: dict[Any, Place] = {}
    for place, entry in entries.items():
        if (identity := section.identity(entry)) in first:
            line = document.line(first[identity])
            raise document.error(place, f"got the same as on line {line} again; takes each once")
        first[identity] = place


# ── what the file says ──────────────────────────────────────────────────────────────────────────────────────────────


def _checked(document: Document) -> dict[str, dict[Place, Entry]]:
    """By section, the entries as the API's bodies take them, by their places. Raises `ConfigError`."""
    names = [section.name for section in SECTIONS]
    if not isinstance(document.data, dict):
        raise document.error((), f"takes an object of {', '.join(names)}")
    for name in document.data.keys() - set(names):
        raise document.error((name,), f"unknown section; takes {', '.join(names)}")
    return {section.name: _entries(section, document) for section in SECTIONS}


def _entries(section: Section, document: Document) -> dict[Place, Entry]:
    said = document.data.get(section.name)
    if said is None:
        return {}
    if not isinstance(said, list):
        raise document.error((section.name,), "takes a list")
    return {(section.name, i): _entry(section.body, said[i], (section.name, i), document) for i in range(len(said))}


def _entry(body: type[StrictSerializer], said: Any, place: Place, document: Document) -> Entry:
    taken = body(data=said)
    try:
        taken.is_valid(raise_exception=True)
    except serializers.ValidationError as error:
        within, detail = _first(error.detail)
        raise document.error((*place, *within), _message(taken, within, detail)) from None
    return dict(taken.validated_data)


def _first(detail: Any) -> tuple[Place, Any]:
    """The first thing that is wrong, and where; an unknown field before a missing one, which it may be, misspelt."""
    if isinstance(detail, Mapping):
        name = next((name for name, inner in detail.items() if inner == [UNKNOWN]), next(iter(detail)))
        within, told = _first(detail[name])
        return (within if name == "non_field_errors" else (name, *within)), told
    return (), detail[0]


def _message(body: Any, within: Place, detail: Any) -> str:
    """A field's own words, but for those that do not say what it takes, or repeat what it got."""
    if detail == UNKNOWN:
        return f"unknown; takes {', '.join(_field(body, within[:-1]).fields)}"
    if detail.code == "invalid_choice":
        return f"takes {', '.join(map(str, _field(body, within).choices))}"
    return str(detail)


def _field(body: Any, within: Place) -> Any:
    for step in within:
        body = body.child if hasattr(body, "child") else body.fields[step]
    return body


@contextmanager
def _told_at(document: Document, place: Place) -> Iterator[None]:
    """What a service refuses is told by its place in the file."""
    try:
        yield
    except ValidationError as error:
        told = error.message_dict if hasattr(error, "error_dict") else {"": error.messages}
        field, messages = next(iter(told.items()))
        raise document.error((*place, field) if field else place, messages[0]) from None
    except (Conflict, PermissionDenied, Http404) as error:
        raise document.error(place, str(error)) from None
