"""Virtual keys as strings: how they are made, checked and hashed. Pure but for the pepper that callers pass in."""

import hashlib
import hmac
import secrets as entropy
import zlib

PREFIX = "sk-ailb_"
_ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_BODY = 43  # 32 bytes in base62
_CHECK = 6  # 32 bits in base62
LENGTH = len(PREFIX) + _BODY + _CHECK


def _base62(number: int, width: int) -> str:
    digits = []
    for _ in range(width):
        number, rest = divmod(number, 62)
        digits.append(_ALPHABET[rest])
    return "".join(reversed(digits))


def _checksum(body: str) -> str:
    return _base62(zlib.crc32(body.encode()), _CHECK)


def new_secret(entropy_bytes: bytes | None = None) -> str:
    """A virtual key: prefix, 32 bytes in base62, checksum. The checksum finds typing slips and leaks, no more."""
    raw = entropy.token_bytes(32) if entropy_bytes is None else entropy_bytes
    body = _base62(int.from_bytes(raw, "big"), _BODY)
    return f"{PREFIX}{body}{_checksum(body)}"


def rotation_secret(*, pepper: bytes, key_id: str, rotation_id: str) -> str:
    """The secret of a named rotation: the same for the same name, so that a client whose answer was lost asks again."""
    return new_secret(hmac.digest(pepper, f"rotate\0{key_id}\0{rotation_id}".encode(), "sha256"))


def well_formed(secret: str) -> bool:
    """Whether it could be a virtual key at all: length, prefix and checksum."""
    if len(secret) != LENGTH or not secret.startswith(PREFIX):
        return False
    body = secret[len(PREFIX) : -_CHECK]
    return _checksum(body) == secret[-_CHECK:]


def digest(secret: str, pepper: bytes) -> str:
    """HMAC-SHA256 in hex: what the database keeps of a secret."""
    return hmac.digest(pepper, secret.encode("utf-8", "surrogatepass"), hashlib.sha256).hex()


def hint(secret: str) -> str:
    """Enough of a secret to tell two apart in a list, too little to use."""
    return secret[-4:]


def new_key_id() -> str:
    return f"key_{entropy.token_hex(10)}"
