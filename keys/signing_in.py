"""Signing in to the console with a password."""

from typing import Any

from asgiref.sync import sync_to_async
from django.conf import settings
from django.contrib.auth.backends import ModelBackend
from django.core.exceptions import ValidationError
from django.http import HttpRequest
from unfold.forms import AuthenticationForm

from keys import lockout
from keys.models import User


class PasswordBackend(ModelBackend):
    """Django's own, which takes as long for a name that nobody has, behind `keys.lockout`."""

    def authenticate(
        self, request: HttpRequest | None, username: str | None = None, password: str | None = None, **others: Any
    ) -> User | None:
        if username is None or password is None:
            return None
        address = request.META.get("REMOTE_ADDR") if request is not None else None
        attempt = lockout.begin(account=username, address=address or "")
        if attempt is None:
            if request is not None:
                request.login_refused = True  # type: ignore[attr-defined]  # for the form
            return None
        user: Any = super().authenticate(request, username, password)
        if user is not None:
            lockout.succeed(attempt)
        return user  # type: ignore[no-any-return]

    async def aauthenticate(self, request: HttpRequest | None, *given: Any, **others: Any) -> User | None:
        """Django's would go round the lock-out."""
        user: User | None = await sync_to_async(self.authenticate)(request, *given, **others)
        return user


class SignInForm(AuthenticationForm):
    """Says that it was too often, whether or not there is such a person."""

    def get_invalid_login_error(self) -> ValidationError:
        if getattr(self.request, "login_refused", False):
            minutes = -(-settings.LOGIN_LOCK_SECONDS // 60)
            return ValidationError(f"Too many failed attempts. Try again in {minutes} minutes.", code="locked")
        error: ValidationError = super().get_invalid_login_error()
        return error
