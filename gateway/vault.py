"""Credentials at rest, providers' and webhooks': MultiFernet, newest key first, so that keys can be rotated."""

from functools import cache
from typing import Any

import msgspec
from cryptography.fernet import Fernet, InvalidToken, MultiFernet
from django.conf import settings


class VaultError(Exception):
    """A sealed value that none of AILB_ENCRYPTION_KEYS opens."""


@cache
def _fernet(keys: tuple[str, ...]) -> MultiFernet:
    return MultiFernet([Fernet(key) for key in keys])


def seal(value: dict[str, Any]) -> str:
    """Encrypt a JSON object."""
    return _fernet(tuple(settings.ENCRYPTION_KEYS)).encrypt(msgspec.json.encode(value)).decode()


def open_sealed(token: str) -> dict[str, Any]:
    """The inverse of `seal`; an empty token is an empty object. Raises `VaultError`."""
    if not token:
        return {}
    try:
        plain = _fernet(tuple(settings.ENCRYPTION_KEYS)).decrypt(token.encode())
    except InvalidToken:
        raise VaultError("none of AILB_ENCRYPTION_KEYS opens a stored credential") from None
    opened: dict[str, Any] = msgspec.json.decode(plain)
    return opened
