"""Writing people and teams."""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import msgspec
from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import PermissionDenied
from django.db.models import Model, QuerySet

from gateway.types import Role
from keys import policy, selectors
from keys.actors import Actor
from keys.models import Team, User, VirtualKey
from keys.policy import Conflict, Reach
from keys.services.rows import add, given, save
from keys.writing import alone
from security import audit

M = TypeVar("M", bound=Model)


def ensure_team(*, actor: Actor, name: str) -> Team:
    """The team of this name, made where it is named for the first time; two at once make one."""
    return _ensure(Team.objects.filter(name=name), lambda: create_team(actor=actor, name=name))


def ensure_user(*, actor: Actor, user_id: str, team: str | None = None) -> User:
    """The user of this id, made (in `team`) where named for the first time; an existing one stays in their team."""
    people: QuerySet[User] = User.objects.select_related("team").filter(username=user_id)
    return _ensure(people, lambda: create_user(actor=actor, user_id=user_id, team=team))


def _ensure(rows: QuerySet[M], create: Callable[[], M]) -> M:
    if (found := rows.first()) is not None:
        return found
    try:
        return create()
    except Conflict:  # another transaction named it at the same moment
        return rows.get()


@alone(VirtualKey)
def create_team(
    *,
    actor: Actor,
    name: str,
    cost_centre: str = "",
    rate_limit_rpm: int | None = None,
    rate_limit_tpm: int | None = None,
    max_parallel: int | None = None,
    max_wait_ms: int | None = None,
    queue_weight: int = 1,
    managed_by: str = "",
) -> Team:
    """Make a team. Raises `Conflict` where there is one of this name."""
    policy.require_over(actor, "people", "create")
    limits = {"rate_limit_rpm": rate_limit_rpm, "rate_limit_tpm": rate_limit_tpm, "max_parallel": max_parallel}
    queue = {"max_wait_ms": max_wait_ms, "queue_weight": queue_weight}
    team = Team(name=name, cost_centre=cost_centre, managed_by=managed_by, **limits, **queue)
    add(actor, team, "There is a team of this name already.")
    return team


@alone(VirtualKey)
def update_team(*, actor: Actor, team: Team, changes: Mapping[str, Any]) -> Team:
    """Change columns of a team. Its name is for good: the ledger and budgets know it by that."""
    # Its leads are bound by its limits, so they do not set them.
    policy.require_over(actor, "people", "update")
    team = Team.objects.select_for_update().get(pk=team.pk)
    policy.refuse_managed(actor, team.managed_by)
    save(actor, team, changes)
    return team


@alone(VirtualKey)
def create_user(
    *,
    actor: Actor,
    user_id: str,
    team: str | None = None,
    role: str = Role.MEMBER.value,
    display_name: str = "",
    email: str = "",
    rate_limit_rpm: int | None = None,
    rate_limit_tpm: int | None = None,
    max_parallel: int | None = None,
    password: str | None = None,
    must_change_password: bool = False,
) -> User:
    """Make a person or program. Without a password they only own keys. Raises `Conflict` where there is one already."""
    limits = {"rate_limit_rpm": rate_limit_rpm, "rate_limit_tpm": rate_limit_tpm, "max_parallel": max_parallel}
    told = {"display_name": display_name, "email": email, "role": role, **limits}
    secret = {"password": password, "must_change_password": must_change_password or None}
    policy.require(actor, "people", "create")
    named = given({**told, **secret}, besides={"role": Role.MEMBER.value}) - {""}
    policy.require_fields(actor, "people", "create", {name for name in named if told.get(name) != ""})
    user = User(
        username=user_id,
        team=_team_of_new_user(actor, team),
        must_change_password=must_change_password,
        **told,
    )
    user.set_password(password)
    add(actor, user, "There is a user of this id already.")
    return user


@alone(VirtualKey)
def update_user(*, actor: Actor, user: User, changes: Mapping[str, Any]) -> User:
    """Change fields of a person, by their names in the API."""
    user = User.objects.select_for_update(of=("self",)).select_related("team").get(pk=user.pk)
    team = user.team.name if user.team is not None else None
    policy.require_over(actor, "people", "update", user_id=user.username, team=team)
    policy.require_fields(actor, "people", "update", changes.keys())
    values = dict(changes)
    if "team" in values:
        values["team"] = ensure_team(actor=actor, name=name) if (name := values["team"]) else None
    save(actor, user, values)
    return user


def set_role(*, actor: Actor, user: User, role: str) -> User:
    """Give a person another role."""
    return update_user(actor=actor, user=user, changes={"role": role})


@alone(VirtualKey)
def set_password(*, actor: Actor, user: User, password: str, must_change: bool = False) -> User:
    """Let a person sign in with `password`. Their own is theirs to change, others' an admin's."""
    if actor.user_id != user.username or actor.own_only:
        policy.require(actor, "people", "update")
        policy.require_fields(actor, "people", "update", {"password"})
    validate_password(password, user)
    user.set_password(password)
    user.must_change_password = must_change
    user.save(update_fields=["password", "must_change_password"])
    audit.record(actor=actor, action="set_password", target=user, after={"must_change_password": must_change})
    return user


@alone(VirtualKey)
def act_as(*, actor: Actor, user_id: str, method: str, path: str) -> Actor:
    """An admin narrowed to one user's own things, and that written down. On a write, a user who is named for the first
    time is made; a read shows that they have nothing.
    """
    policy.require(actor, "people", "act_as")
    user = ensure_user(actor=actor, user_id=user_id) if method not in ("GET", "HEAD") else _named(user_id)
    told = {"user_id": user_id, "method": method, "path": path}
    audit.record(actor=actor, action="act_as", target=user, after=told)
    team = user.team.name if user.team is not None else None
    # A member's role, so that nothing that looks at the role alone takes the call for an admin's.
    return msgspec.structs.replace(actor, role=Role.MEMBER, own_only=True, user_id=user_id, team=team, key_id=None)


def _named(user_id: str) -> User:
    found: User | None = User.objects.select_related("team").filter(username=user_id).first()
    return found if found is not None else User(username=user_id)


def _team_of_new_user(actor: Actor, team: str | None) -> Team | None:
    if policy.reach(actor, "people", "create") is Reach.TEAM:
        return own_team(actor, team)
    return ensure_team(actor=actor, name=team) if team is not None else None


def own_team(actor: Actor, team: str | None) -> Team:
    """The team that a lead names, which is theirs. Raises `PermissionDenied`."""
    found = selectors.teams(actor=actor).filter(name=team or actor.team).first()
    if found is None:
        raise PermissionDenied("team: that is not your team.")
    return found
