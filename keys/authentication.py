"""Who a request's key belongs to: the data plane's side, on the snapshot alone."""

import hmac
from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from billing import periods
from gateway.errors import AuthenticationFailed, KeyExpired, KeyRevoked, Unavailable
from gateway.types import BudgetTerms, Caller, Limit, Role
from keys import secrets

# Longer than any key we mint and any admin key a person types; hashing more would be the client's choice of our time.
_LONGEST = 512


class Credential(msgspec.Struct, frozen=True):
    """One digest's meaning. Times are seconds since the epoch; None is never."""

    digest: str
    caller: Caller
    revoked: bool
    expires_at: float | None
    valid_until: float | None
    """End of a rotated secret's grace."""
    dated: bool = False
    """Some budget of the caller's applies on certain days only."""


_CACHED = 10_000  # secrets whose digest is remembered: an HMAC costs 4 to 17 µs


class Credentials:
    """Every key that could be presented, by digest; lives as long as one snapshot, and its cache with it."""

    def __init__(self, by_digest: Mapping[str, Credential]) -> None:
        self.by_digest = by_digest
        self._seen: dict[str, Credential] = {}

    def find(self, secret: str, pepper: bytes) -> Credential | None:
        """What `secret` stands for."""
        found = self._seen.get(secret)
        if found is not None:
            return found
        digest = secrets.digest(secret, pepper)
        found = self.by_digest.get(digest)
        if found is None or not hmac.compare_digest(found.digest, digest):
            return None
        if len(self._seen) >= _CACHED:
            self._seen.clear()
        self._seen[secret] = found
        return found


def authenticate(
    credentials: Credentials, secret: str | None, *, pepper: bytes, now: float, cut_off: bool = False
) -> Caller:
    """The caller behind `secret`, as a client sent it.

    `cut_off`: the database is out of reach, so a well-formed unknown key may be a new one. Raises
    `AuthenticationFailed` (or `KeyRevoked`, `KeyExpired`), `Unavailable` when cut off.
    """
    if not secret or len(secret) > _LONGEST:
        raise AuthenticationFailed("No API key was given. Send it as 'Authorization: Bearer sk-ailb_…'.")
    found = credentials.find(secret, pepper)
    if found is None:
        if cut_off and secrets.well_formed(secret):
            raise Unavailable("This key cannot be checked at the moment.", code="guard_unavailable", retry_after=5)
        raise AuthenticationFailed("The API key is not known.")
    if found.revoked:
        raise KeyRevoked("The API key was revoked.")
    if found.expires_at is not None and found.expires_at <= now:
        raise KeyExpired("The API key has expired.")
    if found.valid_until is not None and found.valid_until <= now:
        raise AuthenticationFailed("The API key was replaced by rotation.")
    return _on_this_day(found.caller, now) if found.dated else found.caller


def _on_this_day(caller: Caller, now: float) -> Caller:
    """With the budgets alone whose period has begun and not ended."""
    at = datetime.fromtimestamp(now, UTC)
    budgets = tuple(terms for terms in caller.budgets if periods.covers(terms.period, terms.tz, at))
    return msgspec.structs.replace(caller, budgets=budgets)


_COLUMNS = (
    "id", "name", "role", "digest", "previous_digest", "previous_until", "allowed_models", "expires_at", "revoked_at",
    "tags", "rate_limit_rpm", "rate_limit_tpm", "max_parallel", "max_wait_ms", "queue_weight",
    "user__username", "user__rate_limit_rpm", "user__rate_limit_tpm", "user__max_parallel",
    "team__name", "team__rate_limit_rpm", "team__rate_limit_tpm", "team__max_parallel",
    "team__max_wait_ms", "user__team__max_wait_ms", "team__queue_weight", "user__team__queue_weight",
    "user__team__name", "user__team__rate_limit_rpm", "user__team__rate_limit_tpm", "user__team__max_parallel",
)  # fmt: skip


def load() -> Credentials:
    """Read every key: for the snapshot."""
    from billing.models import Budget
    from keys.models import VirtualKey

    budgets: dict[tuple[str, str], list[BudgetTerms]] = defaultdict(list)
    for budget in Budget.objects.order_by("id"):
        budgets[budget.scope, budget.owner].append(budget.terms())
    rows = VirtualKey.objects.order_by().values_list(*_COLUMNS).iterator(chunk_size=2000)
    found = (c for row in rows for c in _credentials(dict(zip(_COLUMNS, row, strict=True)), budgets))
    return Credentials({credential.digest: credential for credential in found})


def _credentials(row: dict[str, Any], budgets: Mapping[tuple[str, str], list[BudgetTerms]]) -> Iterable[Credential]:
    caller = _caller(row, budgets)
    revoked = row["revoked_at"] is not None
    expires_at = _epoch(row["expires_at"])
    dated = any(periods.is_custom(terms.period) for terms in caller.budgets)
    yield Credential(row["digest"], caller, revoked, expires_at, None, dated)
    if row["previous_digest"]:
        until = _epoch(row["previous_until"]) or 0.0
        yield Credential(row["previous_digest"], caller, revoked, expires_at, until, dated)


def _caller(row: dict[str, Any], budgets: Mapping[tuple[str, str], list[BudgetTerms]]) -> Caller:
    key_id, user = row["id"], row["user__username"]
    team_prefix = "team__" if row["team__name"] is not None else "user__team__"
    team = row[f"{team_prefix}name"]
    owners = [("key", key_id), *([("user", user)] if user else []), *([("team", team)] if team else [])]
    limits = [
        _limit(row, "", "key", key_id),
        _limit(row, "user__", "user", user),
        _limit(row, team_prefix, "team", team),
    ]
    return Caller(
        key_id=key_id,
        key_name=row["name"],
        user_id=user,
        team=team,
        role=Role(row["role"]),
        allowed_models=frozenset(row["allowed_models"]) if row["allowed_models"] is not None else None,
        limits=tuple(limit for limit in limits if limit is not None),
        budgets=tuple(terms for owner in [*owners, ("organisation", "")] for terms in budgets.get(owner, ())),
        tags=tuple(row["tags"] or ()),
        max_wait_ms=row["max_wait_ms"] if row["max_wait_ms"] is not None else row[f"{team_prefix}max_wait_ms"],
        queue_weight=row["queue_weight"] * (row[f"{team_prefix}queue_weight"] or 1),
    )


def _limit(row: dict[str, Any], prefix: str, scope: str, owner: str | None) -> Limit | None:
    values = (row[f"{prefix}rate_limit_rpm"], row[f"{prefix}rate_limit_tpm"], row[f"{prefix}max_parallel"])
    return None if owner is None or values == (None, None, None) else Limit(scope, owner, *values)


def _epoch(moment: datetime | None) -> float | None:
    return moment.timestamp() if moment is not None else None
