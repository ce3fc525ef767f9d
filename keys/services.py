"""Writing keys and people. Every change asks the policy, is audited in the same transaction, and reaches the data
plane by the model's own version.

Raises `django.core.exceptions.PermissionDenied` (403), `ValidationError` (400, by field) and `policy.Conflict` (409).
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, TypeVar

import msgspec
from django.conf import settings
from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import PermissionDenied, ValidationError
from django.db import IntegrityError, transaction
from django.db.models import Model, QuerySet
from django.utils import timezone

from billing import selectors as billing_selectors
from billing import services as billing
from gateway.types import Role
from keys import policy, secrets, selectors
from keys.actors import Actor
from keys.models import KeyStatus, Team, User, VirtualKey
from keys.policy import Conflict, Reach
from keys.writing import alone
from security import audit
from security.models import AuditEntry

M = TypeVar("M", bound=Model)

QUOTA_FIELDS = {"monthly_quota_dollars": "limit_dollars", "monthly_quota_tokens": "limit_tokens"}
"""A key's monthly quota is its monthly budget: these fields are that row's columns."""

MAX_GRACE = timedelta(days=30)
"""A month to roll a secret out to the slowest consumer; longer, and the old one is simply a second secret."""


# ── keys ────────────────────────────────────────────────────────────────────────────────────────────────────────────


@alone(VirtualKey)
def create_key(
    *,
    actor: Actor,
    name: str,
    user_id: str | None = None,
    team: str | None = None,
    role: str = Role.MEMBER.value,
    monthly_quota_dollars: Decimal | None = None,
    monthly_quota_tokens: int | None = None,
    rate_limit_rpm: int | None = None,
    rate_limit_tpm: int | None = None,
    max_parallel: int | None = None,
    allowed_models: Sequence[str] | None = None,
    expires_at: datetime | None = None,
    metadata: Mapping[str, Any] | None = None,
    tags: Sequence[str] | None = None,
    secret: str | None = None,
    managed_by: str = "",
) -> tuple[VirtualKey, str]:
    """Make a key; the second value is its secret, which nothing can show again.

    A user or team that is named for the first time is made by whoever may make people. `secret` is for keys that
    come from the environment. A member's key is never freer than those they hold.
    """
    limits = {
        "monthly_quota_dollars": monthly_quota_dollars,
        "monthly_quota_tokens": monthly_quota_tokens,
        "rate_limit_rpm": rate_limit_rpm,
        "rate_limit_tpm": rate_limit_tpm,
        "max_parallel": max_parallel,
        "allowed_models": list(allowed_models) if allowed_models is not None else None,
    }
    fields = {
        "name": name,
        "role": role,
        "expires_at": expires_at,
        "metadata": dict(metadata or {}),
        "tags": list(tags or []),
    }
    named = {"name", *_given(fields | limits | {"user_id": user_id, "team": team}, besides={"role": Role.MEMBER.value})}
    _require_key_fields(actor, "create", named - _own_values(actor, user_id=user_id, team=team))
    user, group = _owners_of_new_key(actor, user_id, team)
    if policy.reach(actor, "keys", "create") is Reach.OWN:
        limits, fields["expires_at"] = _no_freer(actor, user, expires_at)
    secret = secret if secret is not None else secrets.new_secret()
    columns = {name: value for name, value in limits.items() if name not in QUOTA_FIELDS}
    key = VirtualKey(user=user, team=group, managed_by=managed_by, **fields, **columns, **_digest_columns(secret))
    _insert_key(key)
    audit.record(actor=actor, action="create", target=key, after=audit.state(key))
    _set_quota(actor, key, {name: limits[name] for name in QUOTA_FIELDS if limits[name] is not None})
    return key, secret


@alone(VirtualKey)
def update_key(*, actor: Actor, key: VirtualKey, changes: Mapping[str, Any]) -> VirtualKey:
    """Change fields of a key, by their names in the API."""
    key = _lock(key)
    _require_over_key(actor, key, "update")
    _require_key_fields(actor, "update", changes.keys())
    values = {name: value for name, value in changes.items() if name not in QUOTA_FIELDS}
    if "user_id" in values:
        values["user"] = ensure_user(actor=actor, user_id=name) if (name := values.pop("user_id")) else None
    if "team" in values:
        values["team"] = ensure_team(actor=actor, name=name) if (name := values["team"]) else None
    _save(actor, key, values)
    _set_quota(actor, key, {name: changes[name] for name in QUOTA_FIELDS if name in changes})
    return key


@alone(VirtualKey)
def revoke_key(*, actor: Actor, key: VirtualKey, reason: str = "") -> VirtualKey:
    """End a key for good. Raises `Conflict` where it has ended already: of two at once, one learns so."""
    key = _lock(key)
    _require_over_key(actor, key, "revoke")
    _refuse_revoked(key)
    ended = {"revoked_at": timezone.now(), "revoked_reason": reason, "previous_digest": "", "previous_until": None}
    _save(actor, key, ended, action="revoke")
    return key


@alone(VirtualKey)
def rotate_key(
    *, actor: Actor, key: VirtualKey, grace_seconds: int = 0, rotation_id: str | None = None
) -> tuple[VirtualKey, str, bool]:
    """Give a key a new secret; the old one works for `grace_seconds` more, and one older still ends at once.

    The same `rotation_id` again returns the same secret and changes nothing (the third value is False), so that a
    client whose answer was lost asks once more. One that a later rotation replaced stays dead: `Conflict`.
    """
    key = _lock(key)
    _require_over_key(actor, key, "rotate")
    _refuse_revoked(key)
    secret = _rotated_secret(key, rotation_id)
    if rotation_id is not None and key.rotation_id == rotation_id:
        return key, secret, False
    grace = min(timedelta(seconds=max(grace_seconds, 0)), MAX_GRACE)
    replaced = {
        "previous_digest": key.digest if grace else "",
        "previous_until": timezone.now() + grace if grace else None,
        "rotation_id": rotation_id or "",
    }
    _save(actor, key, {**replaced, **_digest_columns(secret)}, action="rotate")
    return key, secret, True


def _lock(key: VirtualKey) -> VirtualKey:
    """The row as it is now, kept from others until the transaction ends. SQLite's transactions lock as a whole."""
    return VirtualKey.objects.select_for_update(of=("self",)).select_related("user__team", "team").get(pk=key.pk)


def _require_over_key(actor: Actor, key: VirtualKey, action: str) -> None:
    """The table, and what it cannot say: an admin's key is an admin's to change, or a team lead could rotate himself
    into one; and what a file defines is changed in the file.
    """
    owner = {"user_id": selectors.user_id_of(key), "team": selectors.team_of(key), "key_id": key.pk}
    policy.require_over(actor, "keys", action, **owner)
    if key.role == Role.ADMIN and policy.role(actor) is not Role.ADMIN:
        raise PermissionDenied(f"Only an admin may {action} a key with the admin role.")
    _refuse_managed(actor, key.managed_by)


def _refuse_managed(actor: Actor, managed_by: str) -> None:
    if managed_by and actor.via in ("api", "console", "grpc"):
        raise Conflict(f"It is defined by the {managed_by}: change it there.")


def _refuse_revoked(key: VirtualKey) -> None:
    if key.status is KeyStatus.REVOKED:
        raise Conflict("The key is already revoked.")


def _require_key_fields(actor: Actor, action: str, names: Iterable[str]) -> None:
    names = set(names)
    policy.require(actor, "keys", action)
    policy.require_fields(actor, "key_limits", "update", names & policy.LIMIT_FIELDS)
    policy.require_fields(actor, "keys", action, names - policy.LIMIT_FIELDS)


def _given(fields: Mapping[str, Any], *, besides: Mapping[str, Any]) -> set[str]:
    """The names of the fields that say something."""
    return {name for name, value in fields.items() if value not in (None, [], {}) and value != besides.get(name)}


def _own_values(actor: Actor, *, user_id: str | None, team: str | None) -> set[str]:
    """To name oneself as the owner is to name nothing."""
    own = {"user_id"} if user_id is not None and user_id == actor.user_id else set()
    return own | ({"team"} if team is not None and team == actor.team else set())


def _owners_of_new_key(actor: Actor, user_id: str | None, team: str | None) -> tuple[User | None, Team | None]:
    distance = policy.reach(actor, "keys", "create")
    if distance is Reach.ALL:
        user = ensure_user(actor=actor, user_id=user_id, team=team) if user_id is not None else None
        return user, ensure_team(actor=actor, name=team) if team is not None else None
    if distance is Reach.TEAM:
        return _colleague(actor, user_id), _own_team(actor, team)
    if actor.user_id is None:
        raise PermissionDenied("A key without a user creates no keys.")
    return User.objects.select_related("team").get(username=actor.user_id), None


def _colleague(actor: Actor, user_id: str | None) -> User | None:
    if user_id is None:
        return None
    found = selectors.people(actor=actor, action="update").filter(username=user_id).first()
    if found is None:
        raise PermissionDenied("user_id: nobody of that name is in your team.")
    return found


def _own_team(actor: Actor, team: str | None) -> Team:
    found = selectors.teams(actor=actor).filter(name=team or actor.team).first()
    if found is None:
        raise PermissionDenied("team: that is not your team.")
    return found


def _no_freer(actor: Actor, user: User | None, expires_at: datetime | None) -> tuple[dict[str, Any], datetime | None]:
    """The limits of a key that a member makes: the loosest of those they hold, so that a new key frees nobody from
    a limit. Through a key, that key's own. Whose keys have all ended has the last one's: to revoke one's only key, or
    to see it expire, frees nobody either.
    """
    rows = list(VirtualKey.objects.filter(**({"pk": actor.key_id} if actor.key_id is not None else {"user": user})))
    held = [row for row in rows if row.status is KeyStatus.ACTIVE] or rows[:1]  # newest first
    quotas = billing_selectors.key_quotas([row.pk for row in held])
    limits: dict[str, Any] = {name: _loosest([getattr(row, name) for row in held]) for name in policy.RATE_FIELDS}
    for name, attribute in (("monthly_quota_dollars", "limit_usd"), ("monthly_quota_tokens", "limit_tokens")):
        limits[name] = _loosest([getattr(quotas.get(row.pk), attribute, None) for row in held])
    models: list[list[str] | None] = [row.allowed_models for row in held]
    named = {name for names in models if names is not None for name in names}
    limits["allowed_models"] = sorted(named) if models and None not in models else None
    latest = _loosest([row.expires_at for row in held])
    return limits, min((end for end in (expires_at, latest) if end is not None), default=None)


def _loosest(values: Sequence[Any]) -> Any:
    return None if not values or None in values else max(values)


def _insert_key(key: VirtualKey) -> None:
    if key.expires_at is not None and key.expires_at <= timezone.now():
        raise ValidationError({"expires_at": "That is in the past."})
    key.clean_fields(exclude={"user", "team"})
    if VirtualKey.objects.filter(previous_digest=key.digest).exists():
        raise Conflict("A key with this secret exists already.")
    _insert(key, "A key with this secret exists already.")


def _digest_columns(secret: str) -> dict[str, str]:
    return {"digest": secrets.digest(secret, settings.KEY_PEPPER), "hint": secrets.hint(secret)}


def _rotated_secret(key: VirtualKey, rotation_id: str | None) -> str:
    if rotation_id is None:
        return secrets.new_secret()
    if key.rotation_id != rotation_id and _was_used(key, rotation_id):
        # The secret would be the one that was replaced, perhaps because it leaked.
        raise Conflict("This rotation was followed by another one; use a new rotation_id.")
    return secrets.rotation_secret(pepper=settings.KEY_PEPPER, key_id=key.pk, rotation_id=rotation_id)


def _was_used(key: VirtualKey, rotation_id: str) -> bool:
    rotations = AuditEntry.objects.filter(object_type=key._meta.label_lower, object_id=key.pk, action="rotate")
    return rotations.filter(after__rotation_id=rotation_id).exists()


def _set_quota(actor: Actor, key: VirtualKey, quota: Mapping[str, Any]) -> None:
    if quota:
        limits = {QUOTA_FIELDS[name]: value for name, value in quota.items()}
        billing.set_key_quota(actor=actor, key_id=key.pk, limits=limits)


# ── people ──────────────────────────────────────────────────────────────────────────────────────────────────────────


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
) -> Team:
    """Make a team. Raises `Conflict` where there is one of this name."""
    policy.require_over(actor, "people", "create")
    limits = {"rate_limit_rpm": rate_limit_rpm, "rate_limit_tpm": rate_limit_tpm, "max_parallel": max_parallel}
    team = Team(name=name, cost_centre=cost_centre, **limits)
    _add(actor, team, "There is a team of this name already.")
    return team


@alone(VirtualKey)
def update_team(*, actor: Actor, team: Team, changes: Mapping[str, Any]) -> Team:
    """Change columns of a team. Its name is for good: the ledger and budgets know it by that."""
    # Its leads are bound by its limits, so they do not set them.
    policy.require_over(actor, "people", "update")
    team = Team.objects.select_for_update().get(pk=team.pk)
    _save(actor, team, changes)
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
    named = _given({**told, **secret}, besides={"role": Role.MEMBER.value}) - {""}
    policy.require_fields(actor, "people", "create", {name for name in named if told.get(name) != ""})
    user = User(
        username=user_id,
        team=_team_of_new_user(actor, team),
        must_change_password=must_change_password,
        **told,
    )
    user.set_password(password)
    _add(actor, user, "There is a user of this id already.")
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
    _save(actor, user, values)
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
        return _own_team(actor, team)
    return ensure_team(actor=actor, name=team) if team is not None else None


# ── rows and their audit ────────────────────────────────────────────────────────────────────────────────────────────


def _add(actor: Actor, row: Model, taken: str) -> None:
    row.clean_fields(exclude={"team"})
    _insert(row, taken)
    audit.record(actor=actor, action="create", target=row, after=audit.state(row))


def _insert(row: Model, taken: str) -> None:
    """A unique column decides between two at once: a look beforehand could not."""
    try:
        with transaction.atomic():
            row.save(force_insert=True)
    except IntegrityError:
        raise Conflict(taken) from None


def _save(actor: Actor, row: Model, values: Mapping[str, Any], action: str = "update") -> None:
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
