"""Reading keys, people and limits, narrowed to what the actor may see: other people's are not found."""

from collections.abc import Mapping

import msgspec
from django.db.models import Q, QuerySet
from django.http import Http404
from django.utils import timezone

from gateway.types import BudgetTerms
from keys import policy
from keys.actors import Actor
from keys.models import KeyStatus, RateLimit, Team, User, VirtualKey

KEY_TEAM = ("team__name", "user__team__name")
"""A key's team is its own, else its user's: as the data plane reads it."""


class KeyRow(msgspec.Struct, frozen=True):
    """A key as it is shown: with its monthly budget, which is another app's row."""

    key: VirtualKey
    quota: BudgetTerms | None
    usage: object | None = None
    """`billing.selectors.Figures` of this month, where one key is asked for."""

    @property
    def user_id(self) -> str | None:
        return user_id_of(self.key)

    @property
    def team(self) -> str | None:
        return team_of(self.key)


def user_id_of(key: VirtualKey) -> str | None:
    return key.user.username if key.user is not None else None


def team_of(key: VirtualKey) -> str | None:
    if key.team is not None:
        return key.team.name
    return key.user.team.name if key.user is not None and key.user.team is not None else None


def keys(*, actor: Actor, action: str = "read", status: str | None = None) -> QuerySet[VirtualKey]:
    """The keys that the action reaches, newest first."""
    rows = VirtualKey.objects.select_related("user__team", "team")
    scoped = policy.scope(rows, actor, "keys", action, user="user__username", team=KEY_TEAM, key="pk")
    return scoped if status is None else scoped.filter(_has_status(status))


def _has_status(status: str) -> Q:
    """`VirtualKey.status`, as a condition."""
    expired = Q(expires_at__lte=timezone.now())
    by_status: Mapping[str, Q] = {
        KeyStatus.REVOKED: Q(revoked_at__isnull=False),
        KeyStatus.EXPIRED: Q(revoked_at=None) & expired,
        KeyStatus.ACTIVE: Q(revoked_at=None) & (Q(expires_at=None) | ~expired),
    }
    return by_status[status]


def find_key(*, actor: Actor, key_id: str) -> VirtualKey:
    """Raises `Http404` for an unknown key and for another's alike."""
    found = keys(actor=actor).filter(pk=key_id).first()
    if found is None:
        raise Http404("No such key.")
    return found


def people(*, actor: Actor, action: str = "read") -> QuerySet[User]:
    """The people that the action reaches, by name."""
    rows = User.objects.select_related("team")
    return policy.scope(rows, actor, "people", action, user="username", team="team__name")


def find_user(*, actor: Actor, user_id: str) -> User:
    """Raises `Http404`."""
    found = people(actor=actor).filter(username=user_id).first()
    if found is None:
        raise Http404("No such user.")
    return found


def teams(*, actor: Actor, action: str = "read") -> QuerySet[Team]:
    """The teams that the action reaches, by name."""
    return policy.scope(Team.objects.all(), actor, "people", action, team="name")


def find_team(*, actor: Actor, name: str) -> Team:
    """Raises `Http404`."""
    found = teams(actor=actor).filter(name=name).first()
    if found is None:
        raise Http404("No such team.")
    return found


def limits(*, actor: Actor, scope: str | None = None) -> QuerySet[RateLimit]:
    """The limits of everybody, by scope, owner and model: all of them, for who may see them."""
    rows = policy.scope(RateLimit.objects.all(), actor, "limits")
    return rows if scope is None else rows.filter(scope=scope)


def find_limit(*, actor: Actor, limit_id: int) -> RateLimit:
    """Raises `Http404`."""
    found = limits(actor=actor).filter(pk=limit_id).first()
    if found is None:
        raise Http404("No such limit.")
    return found
