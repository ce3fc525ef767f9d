"""Signatures of webhooks, by Standard Webhooks 1.0 (https://www.standardwebhooks.com): HMAC-SHA256 over id, time and
body, so that a receiver knows who sent it and refuses what somebody sends again.
"""

import base64
import binascii
import hashlib
import hmac
import secrets
from collections.abc import Mapping
from datetime import datetime

PREFIX = "whsec_"
_BYTES = 32
_FEWEST_BYTES, _MOST_BYTES = 24, 64  # of the specification


def new_secret() -> str:
    """`whsec_` and base64 of random bytes."""
    return PREFIX + base64.b64encode(secrets.token_bytes(_BYTES)).decode()


def is_secret(text: str) -> bool:
    """Whether it is one of the specification: 24 to 64 bytes in base64, with the prefix."""
    if not text.startswith(PREFIX):
        return False
    try:
        return _FEWEST_BYTES <= len(_key(text)) <= _MOST_BYTES
    except (binascii.Error, ValueError):
        return False


def headers(secret: str, *, message_id: str, body: bytes, at: datetime) -> Mapping[str, str]:
    """The three headers that go with `body`."""
    timestamp = str(int(at.timestamp()))
    signed = b".".join((message_id.encode(), timestamp.encode(), body))
    signature = base64.b64encode(hmac.new(_key(secret), signed, hashlib.sha256).digest()).decode()
    return {"webhook-id": message_id, "webhook-timestamp": timestamp, "webhook-signature": f"v1,{signature}"}


def _key(secret: str) -> bytes:
    return base64.b64decode(secret.removeprefix(PREFIX), validate=True)
