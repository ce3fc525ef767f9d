"""Writing virtual keys."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from django.conf import settings
from django.core.exceptions import PermissionDenied, ValidationError
from django.db.models import Q
from django.utils import timezone

from billing import selectors as billing_selectors
from billing import services as billing
from gateway.types import Role
from keys import policy, secrets, selectors
from keys.actors import Actor
from keys.models import KeyStatus, Team, User, VirtualKey
from keys.policy import Conflict, Reach
from keys.services.people import ensure_team, ensure_user, own_team
from keys.services.rows import given, insert, save
from keys.writing import alone
from security import audit
from security.models import AuditEntry

QUOTA_FIELDS = {"monthly_quota_dollars": "limit_dollars", "monthly_quota_tokens": "limit_tokens"}
"""A key's monthly quota is its monthly budget: these fields are that row's columns."""

_DEFAULTS = {"role": Role.MEMBER.value, "queue_weight": 1}
"""To say these is to say nothing."""

_USED = "A key with this secret exists already."

MAX_GRACE = timedelta(days=30)
"""A month to roll a secret out to the slowest consumer; longer, and the old one is simply a second secret."""


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
    max_wait_ms: int | None = None,
    queue_weight: int = 1,
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
        "max_wait_ms": max_wait_ms,
        "queue_weight": queue_weight,
        "allowed_models": list(allowed_models) if allowed_models is not None else None,
    }
    fields = {
        "name": name,
        "role": role,
        "expires_at": expires_at,
        "metadata": dict(metadata or {}),
        "tags": list(tags or []),
    }
    named = {"name", *given(fields | limits | {"user_id": user_id, "team": team}, besides=_DEFAULTS)}
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
    save(actor, key, values)
    _set_quota(actor, key, {name: changes[name] for name in QUOTA_FIELDS if name in changes})
    return key


@alone(VirtualKey)
def revoke_key(*, actor: Actor, key: VirtualKey, reason: str = "") -> VirtualKey:
    """End a key for good. Raises `Conflict` where it has ended already: of two at once, one learns so."""
    key = _lock(key)
    _require_over_key(actor, key, "revoke")
    _refuse_revoked(key)
    ended = {"revoked_at": timezone.now(), "revoked_reason": reason, "previous_digest": "", "previous_until": None}
    save(actor, key, ended, action="revoke")
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
    save(actor, key, {**replaced, **_digest_columns(secret)}, action="rotate")
    return key, secret, True


@alone(VirtualKey)
def replace_secret(*, actor: Actor, key: VirtualKey, secret: str) -> VirtualKey:
    """Give a key, one that a file defines, another secret; those that it had end at once."""
    key = _lock(key)
    _require_over_key(actor, key, "rotate")
    _refuse_revoked(key)
    _refuse_used(_digest_columns(secret)["digest"])
    save(actor, key, {**_digest_columns(secret), "previous_digest": "", "previous_until": None}, action="rotate")
    return key


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
    policy.refuse_managed(actor, key.managed_by)


def _refuse_revoked(key: VirtualKey) -> None:
    if key.status is KeyStatus.REVOKED:
        raise Conflict("The key is already revoked.")


def _require_key_fields(actor: Actor, action: str, names: Iterable[str]) -> None:
    names = set(names)
    policy.require(actor, "keys", action)
    policy.require_fields(actor, "key_limits", "update", names & policy.LIMIT_FIELDS)
    policy.require_fields(actor, "keys", action, names - policy.LIMIT_FIELDS)


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
        return _colleague(actor, user_id), own_team(actor, team)
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


def _no_freer(actor: Actor, user: User | None, expires_at: datetime | None) -> tuple[dict[str, Any], datetime | None]:
    """The limits of a key that a member makes: the loosest of those they hold, so that a new key frees nobody from
    a limit. Through a key, that key's own. Whose keys have all ended has the last one's: to revoke one's only key, or
    to see it expire, frees nobody either.
    """
    rows = list(VirtualKey.objects.filter(**({"pk": actor.key_id} if actor.key_id is not None else {"user": user})))
    held = [row for row in rows if row.status is KeyStatus.ACTIVE] or rows[:1]  # newest first
    quotas = billing_selectors.key_quotas([row.pk for row in held])
    limits: dict[str, Any] = {name: _loosest([getattr(row, name) for row in held]) for name in policy.RATE_FIELDS}
    # Here None is the strictest: it does not wait, or no longer than its team may.
    limits["max_wait_ms"] = max((row.max_wait_ms for row in held if row.max_wait_ms is not None), default=None)
    limits["queue_weight"] = max((row.queue_weight for row in held), default=1)
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
    _refuse_used(key.digest)
    insert(key, _USED)


def _refuse_used(digest: str) -> None:
    """Among the current ones the unique column decides in the end: of two at once, one is refused there."""
    if VirtualKey.objects.filter(Q(digest=digest) | Q(previous_digest=digest)).exists():
        raise Conflict(_USED)


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
        billing.set_key_quota(actor=actor, key_id=key.pk, limits=limits, managed_by=key.managed_by)
