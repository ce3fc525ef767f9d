"""Who may do what: the one table that the API, the console and gRPC ask (http-api.md section 4).

A grant says how far an action reaches (everybody's things, the team's, one's own, none) and, where that matters,
which fields it may write or show. Nothing here looks at a request or at an object's contents: doors ask `require`
before they do anything, selectors narrow what is found with `scope`, so that other people's objects are not found
(404), and services ask `require_over` and `require_fields` again, so that no door can forget.
"""

from collections.abc import Iterable, Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Any, TypeVar

import msgspec
from django.core.exceptions import PermissionDenied
from django.db.models import Model, Q, QuerySet

from gateway.types import Role
from keys.actors import Actor

M = TypeVar("M", bound=Model)


class Conflict(Exception):
    """The object's own state forbids it: already revoked, taken, defined elsewhere. The message is for the caller."""


class Reach(StrEnum):
    """Whose things an action may touch; each includes the ones before it."""

    NONE = "none"
    OWN = "own"
    TEAM = "team"
    ALL = "all"


class Grant(msgspec.Struct, frozen=True):
    """One cell of the table. `fields` are those it may write or, on a read, be shown; None is all of them."""

    reach: Reach
    fields: frozenset[str] | None = None


KEY_FIELDS = frozenset({"name", "user_id", "team", "role", "expires_at", "metadata", "tags"})
LIMIT_FIELDS = frozenset(
    {
        "monthly_quota_dollars",
        "monthly_quota_tokens",
        "rate_limit_rpm",
        "rate_limit_tpm",
        "max_parallel",
        "max_wait_ms",
        "queue_weight",
        "allowed_models",
    }
)
RATE_FIELDS = frozenset({"rate_limit_rpm", "rate_limit_tpm", "max_parallel"})
BUDGET_LIMITS = frozenset({"limit_dollars", "limit_tokens"})

ACTIONS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "keys": ("read", "create", "update", "rotate", "revoke"),
        "key_limits": ("read", "update"),
        "limits": ("read", "create", "update", "delete"),
        "spend": ("read",),
        "budgets": ("read", "create", "update", "delete"),
        "alerts": ("read", "update"),
        "webhooks": ("read", "create", "update", "delete"),
        "prices": ("read", "create", "update", "delete"),
        "reports": ("read", "create"),
        "providers": ("read", "create", "update", "delete"),
        "routing": ("read", "create", "update", "delete"),
        "routing_stats": ("read",),
        "policies": ("read", "create", "update", "delete"),
        "security_events": ("read",),
        "security_counts": ("read",),
        "sessions": ("read", "create", "delete"),
        "collections": ("read", "create", "delete"),
        "people": ("read", "create", "update", "act_as"),
        "audit": ("read",),
    }
)
"""Every resource and what can be done with it. `policies` are security's, `key_limits` are LIMIT_FIELDS of a key,
`limits` those of everybody."""

_ALL = Grant(Reach.ALL)
_TEAM = Grant(Reach.TEAM)
_OWN = Grant(Reach.OWN)
_NAMES = Grant(Reach.ALL, frozenset({"slug", "name"}))
_TOTALS = Grant(Reach.ALL, frozenset({"total_requests", "successful_requests", "failed_requests"}))
_READ_ALL = {"read": _ALL}


def _write(grant: Grant, resource: str) -> dict[str, Grant]:
    return dict.fromkeys(ACTIONS[resource], grant)


MATRIX: Mapping[Role, Mapping[str, Mapping[str, Grant]]] = MappingProxyType(
    {
        Role.ADMIN: {resource: _write(_ALL, resource) for resource in ACTIONS},
        Role.FINANCE: {
            "keys": _READ_ALL,
            "key_limits": _READ_ALL,
            "limits": _READ_ALL,
            "spend": _READ_ALL,
            "budgets": _write(_ALL, "budgets"),
            "alerts": _write(_ALL, "alerts"),
            "prices": _write(_ALL, "prices"),
            "reports": _write(_ALL, "reports"),
            "providers": {"read": _NAMES},
            "routing": {"read": _NAMES},
            "routing_stats": {"read": _TOTALS},
            "policies": {"read": _NAMES},
            "people": _READ_ALL,
        },
        Role.TEAM_LEAD: {
            "keys": {
                **_write(_TEAM, "keys"),
                "create": Grant(Reach.TEAM, KEY_FIELDS - {"role"}),
                "update": Grant(Reach.TEAM, KEY_FIELDS - {"role", "user_id", "team"}),
            },
            # A larger share of the queue is at the expense of other teams.
            "key_limits": {"read": _TEAM, "update": Grant(Reach.TEAM, LIMIT_FIELDS - {"queue_weight"})},
            "spend": {"read": _TEAM},
            # The team's own budget only downwards, those below it within it: billing.services sees to the amounts.
            "budgets": {**_write(_TEAM, "budgets"), "update": Grant(Reach.TEAM, BUDGET_LIMITS)},
            "routing_stats": {"read": _TOTALS},
            "security_counts": {"read": _TEAM},
            "people": {
                "read": _TEAM,
                "create": Grant(Reach.TEAM, frozenset({"user_id", "team", "display_name", "email"}) | RATE_FIELDS),
                "update": Grant(Reach.TEAM, frozenset({"display_name"}) | RATE_FIELDS),
            },
        },
        Role.MEMBER: {
            "keys": {
                **_write(_OWN, "keys"),
                "create": Grant(Reach.OWN, frozenset({"name", "expires_at", "metadata", "tags"})),
                "update": Grant(Reach.OWN, frozenset({"name"})),
            },
            "key_limits": {"read": _OWN},
            "spend": {"read": _OWN},
            "budgets": {"read": _OWN},
            "routing_stats": {"read": _TOTALS},
            "security_counts": {"read": _OWN},
            "sessions": _write(_OWN, "sessions"),
            "collections": _write(_OWN, "collections"),
        },
        Role.VIEWER: {
            "keys": _READ_ALL,
            "key_limits": _READ_ALL,
            "limits": _READ_ALL,
            "spend": _READ_ALL,
            "budgets": _READ_ALL,
            "alerts": _READ_ALL,
            "prices": _READ_ALL,
            "reports": _READ_ALL,
            "providers": _READ_ALL,
            "routing": _READ_ALL,
            "routing_stats": _READ_ALL,
            "policies": _READ_ALL,
            "security_counts": _READ_ALL,
            "people": _READ_ALL,
        },
    }
)

_NOTHING = Grant(Reach.NONE, frozenset())


def role(actor: Actor) -> Role:
    """The row of the table that applies: a person's key is a member's, whatever the person is."""
    return Role.MEMBER if actor.own_only else actor.role


def grant(actor: Actor, resource: str, action: str) -> Grant:
    """The cell. `KeyError` for a resource or action that does not exist: a typing slip must not read as 'none'."""
    if action not in ACTIONS[resource]:
        raise KeyError(f"{resource} has no action {action!r}")
    return MATRIX[role(actor)].get(resource, {}).get(action, _NOTHING)


def reach(actor: Actor, resource: str, action: str) -> Reach:
    """How far the action reaches for this actor."""
    return grant(actor, resource, action).reach


def allowed_fields(actor: Actor, resource: str, action: str) -> frozenset[str] | None:
    """The fields it may write, or be shown; None is all, empty is none."""
    return grant(actor, resource, action).fields


def require(actor: Actor, resource: str, action: str) -> None:
    """Raise `PermissionDenied` where the action reaches nothing at all."""
    if reach(actor, resource, action) is Reach.NONE:
        raise PermissionDenied(
            f"The role {role(actor).value} may not {action.replace('_', ' ')} {resource.replace('_', ' ')}."
        )


def require_fields(actor: Actor, resource: str, action: str, names: Iterable[str]) -> None:
    """Raise `PermissionDenied` naming the fields that this actor may not write."""
    allowed = allowed_fields(actor, resource, action)
    refused = [] if allowed is None else sorted(set(names) - allowed)
    if refused:
        raise PermissionDenied(f"The role {role(actor).value} may not set {', '.join(refused)}.")


def require_over(
    actor: Actor,
    resource: str,
    action: str,
    *,
    user_id: str | None = None,
    team: str | None = None,
    key_id: str | None = None,
) -> None:
    """Raise `PermissionDenied` unless the action reaches the thing of this owner."""
    require(actor, resource, action)
    if not _covers(actor, reach(actor, resource, action), user_id=user_id, team=team, key_id=key_id):
        raise PermissionDenied(f"That is not yours to {action}.")


def refuse_managed(actor: Actor, managed_by: str) -> None:
    """What the environment or a file defines is applied again at each start: elsewhere it is only read.

    Raises `Conflict`.
    """
    if managed_by and actor.via not in (managed_by, "system", "command"):
        raise Conflict(f"It is defined by the {managed_by}: change it there.")


def _covers(actor: Actor, reach: Reach, *, user_id: str | None, team: str | None, key_id: str | None) -> bool:
    if reach is Reach.ALL:
        return True
    if reach is Reach.TEAM and team is not None and team == actor.team:
        return True
    if actor.user_id is not None:
        return user_id == actor.user_id
    return key_id is not None and key_id == actor.key_id


def scope(
    rows: QuerySet[M],
    actor: Actor,
    resource: str,
    action: str = "read",
    *,
    user: str | None = None,
    team: str | Iterable[str] = (),
    key: str | None = None,
) -> QuerySet[M]:
    """The rows that the action reaches. `user`, `team` and `key` are the lookups that lead to their owner's user id,
    team name (the first that is not null counts) and key id.
    """
    distance = reach(actor, resource, action)
    if distance is Reach.ALL:
        return rows
    if distance is Reach.NONE:
        return rows.none()
    teams = (team,) if isinstance(team, str) else tuple(team)
    within = _own(actor, user, key)
    if distance is Reach.TEAM and actor.team is not None:
        within = [*within, *_first_is(teams, actor.team)]
    return rows.filter(_any(within)) if within else rows.none()


def _own(actor: Actor, user: str | None, key: str | None) -> list[Q]:
    """A key without a user owns itself, no more."""
    if actor.user_id is not None:
        return [Q(**{user: actor.user_id})] if user is not None else []
    return [Q(**{key: actor.key_id})] if key is not None and actor.key_id is not None else []


def _first_is(lookups: tuple[str, ...], value: str) -> list[Q]:
    return [Q(**{name: value, **_null(lookups[:index])}) for index, name in enumerate(lookups)]


def _null(lookups: Iterable[str]) -> dict[str, Any]:
    return {f"{name}__isnull": True for name in lookups}


def _any(conditions: Iterable[Q]) -> Q:
    combined = Q()
    for condition in conditions:
        combined |= condition
    return combined
