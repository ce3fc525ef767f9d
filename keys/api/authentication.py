"""Who calls the control plane: a virtual key, looked up in the database, or a signed-in session.

Both give an `Actor` as `request.auth`. An admin-role key acts as an admin; any other key acts for its user, on that
user's own things (`own_only`), and a key without a user on itself.
"""

from datetime import timedelta
from typing import Any

from django.conf import settings
from django.core.exceptions import PermissionDenied
from django.utils import timezone
from drf_spectacular.extensions import OpenApiAuthenticationExtension
from rest_framework.authentication import BaseAuthentication, SessionAuthentication
from rest_framework.request import Request

from gateway.errors import AuthenticationFailed, KeyExpired, KeyRevoked
from gateway.types import Role
from keys import secrets, selectors
from keys.actors import Actor
from keys.models import KeyStatus, User, VirtualKey

_LONGEST = 512  # as on the data plane: hashing more would be the client's choice of our time
_TOUCHED_EVERY = timedelta(minutes=1)  # `last_used` to the minute; a write a request would be dear


class KeyPrincipal:
    """What `request.user` is for a key."""

    is_authenticated = True
    is_anonymous = False

    def __init__(self, key: VirtualKey) -> None:
        self.key = key
        self.pk = key.pk

    def __str__(self) -> str:
        return f"key:{self.pk}"


class KeyAuthentication(BaseAuthentication):
    """`Authorization: Bearer`, or the headers of the Anthropic and Azure SDKs."""

    def authenticate(self, request: Request) -> tuple[KeyPrincipal, Actor] | None:
        secret = _secret(request)
        if secret is None:
            return None
        key = _key(secret)
        _touch(key)
        return KeyPrincipal(key), _actor_of_key(key, ip=request.META.get("REMOTE_ADDR"))

    def authenticate_header(self, request: Request) -> str:
        return "Bearer"


class ConsoleSession(SessionAuthentication):
    """Somebody signed in to the console; writes need the CSRF token."""

    def authenticate(self, request: Request) -> tuple[Any, Any] | None:
        found = super().authenticate(request)
        if found is None:
            return None
        user = found[0]
        if user.must_change_password:
            raise PermissionDenied("Change the first password before anything else.")
        return user, actor_of_user(user, via="api", ip=request.META.get("REMOTE_ADDR"))


def actor_of_user(user: User, *, via: str, ip: str | None) -> Actor:
    """A person at the console or its API, with their role's rights."""
    team = user.team.name if user.team is not None else None
    return Actor(role=Role(user.role), via=via, user_id=user.username, team=team, ip=ip)


def _actor_of_key(key: VirtualKey, *, ip: str | None) -> Actor:
    admin = key.role == Role.ADMIN
    return Actor(
        role=Role.ADMIN if admin else Role.MEMBER,
        via="api",
        user_id=selectors.user_id_of(key),
        team=selectors.team_of(key),
        key_id=key.pk,
        ip=ip,
        own_only=not admin,
    )


def _secret(request: Request) -> str | None:
    scheme, _, value = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer" and value.strip():
        return value.strip()
    return (request.headers.get("x-api-key") or request.headers.get("api-key") or "").strip() or None


def _key(secret: str) -> VirtualKey:
    """The live key of this secret. Raises `AuthenticationFailed`."""
    if len(secret) > _LONGEST:
        raise AuthenticationFailed("The API key is not known.")
    digest = secrets.digest(secret, settings.KEY_PEPPER)
    rows = VirtualKey.objects.select_related("user__team", "team")
    key = rows.filter(digest=digest).first() or rows.filter(previous_digest=digest).first()
    if key is None:
        raise AuthenticationFailed("The API key is not known.")
    if key.status is KeyStatus.REVOKED:
        raise KeyRevoked("The API key was revoked.")
    if key.status is KeyStatus.EXPIRED:
        raise KeyExpired("The API key has expired.")
    if key.digest != digest and (key.previous_until is None or key.previous_until <= timezone.now()):
        raise AuthenticationFailed("The API key was replaced by rotation.")
    return key


def _touch(key: VirtualKey) -> None:
    now = timezone.now()
    if key.last_used is None or now - key.last_used > _TOUCHED_EVERY:
        VirtualKey.objects.filter(pk=key.pk).update_quietly(last_used=now)


class KeyScheme(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]  # its __init_subclass__
    """How the OpenAPI document describes it."""

    target_class = KeyAuthentication
    name = "virtualKey"

    def get_security_definition(self, auto_schema: Any) -> dict[str, str]:
        return {"type": "http", "scheme": "bearer", "description": "A virtual key, `sk-ailb_…`."}


class SessionScheme(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]
    target_class = ConsoleSession
    name = "consoleSession"

    def get_security_definition(self, auto_schema: Any) -> dict[str, str]:
        return {"type": "apiKey", "in": "cookie", "name": settings.SESSION_COOKIE_NAME}
