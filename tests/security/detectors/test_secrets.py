"""Credentials by their format. All are made up, and put together here so that no scanner of repositories takes them
for leaks.
"""

import json
import string

import pytest

from keys.secrets import PREFIX, new_secret
from security.detectors import secrets
from tests.security.builders import policy
from tests.security.contract import DetectorContract

_RANDOM = "aB3dE5gH7jK9mN1pQ2sT4vW6yZ8"
_OWN = new_secret(bytes(range(32)))
_LINES = "\n".join(["MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7VJTUt9Us8cKj"] * 3)


def _pem(kind: str = "RSA ", lines: str = _LINES) -> str:
    return f"-----BEGIN {kind}PRIVATE " + f"KEY-----\n{lines}\n-----END {kind}PRIVATE " + "KEY-----"


class TestSecrets(DetectorContract):
    name = "secrets"
    policy = policy()
    held = [
        _OWN,
        "sk-" + "ant-api03-" + _RANDOM * 3,
        "sk-" + "proj-" + _RANDOM * 5,
        "sk-" + "svcacct-" + _RANDOM * 5,
        "sk-" + _RANDOM[:20] + "T3Blbk" + "FJ" + _RANDOM[:20],
        "AKIA" + "Q3EGRZ7WXY2LMN4P",
        "ASIA" + "Q3EGRZ7WXY2LMN4P",
        "AKIA" + "QTEGRZSWXYBLMNDP",  # one of thirty has no digit
        "ghp_" + (_RANDOM * 2)[:36],
        "ghs_" + (_RANDOM * 2)[:36],
        "github_" + "pat_" + (_RANDOM * 4)[:82],
        "xox" + "b-123456789012-1234567890123-" + _RANDOM[:24],
        "AI" + "za" + (_RANDOM * 2)[:35],
        _pem(),
        _pem(""),
        _pem("OPENSSH "),
    ]
    clean = [
        "What is a risk-free, desk-bound task-oriented sk-learn-based way?",
        "Set OPENAI_API_KEY=sk-... or sk-proj-your-openai-api-key-goes-here",
        _OWN[:-1] + ("0" if _OWN[-1] != "0" else "1"),  # not a key: its checksum is another's
        _OWN[:-1],
        "desk-" + (_RANDOM * 2)[:48],  # part of a longer word
        "AKIA is a prefix, ASIA a continent, SOUTHEASTASIA" + "Q3EGRZ7WXY2LMN4P",
        "AKIA" + "Q3EGRZ7WXY2LMN4PX",
        "ghp_tooshort1 gho_ xoxo-hugs-and-kisses",
        "A file begins with -----BEGIN PRIVATE " + "KEY----- and ends with -----END PRIVATE " + "KEY-----.",
        "-----BEGIN CERTIFICATE-----\n" + _LINES + "\n-----END CERTIFICATE-----",
    ]
    hostile = [
        "sk-",
        "sk-ant-",
        "sk-proj-a1",
        PREFIX,
        PREFIX + "a" * 49,
        "AKIA",
        " AIza",
        "gho_",
        "xoxb-",
        "-----BEGIN PRIVATE " + "KEY-----",
        "-----BEGIN PRIVATE " + "KEY-----\n" + "A" * 19 + "\n",
        "-----BEGIN A A A ",
        "-----END PRIVATE " + "KEY-----",
    ]


@pytest.mark.parametrize("secret", TestSecrets.held, ids=lambda secret: secret[:12])
def test_a_secret_is_found_in_the_json_of_tool_arguments(secret):
    # The escape of a line end is a letter before the secret.
    arguments = json.dumps({"text": f"the key:\n{secret}\nand more"})
    (hit,) = secrets.find(arguments, policy())
    cleaned = arguments[: hit.start] + secrets.REPLACEMENT + arguments[hit.end :]
    assert json.loads(cleaned) == {"text": "the key:\n[secret removed]\nand more"}


def test_a_private_key_without_its_end_is_found_to_its_last_line():
    begun = "-----BEGIN PRIVATE " + f"KEY-----\n{_LINES}"
    text = f"Look: {begun}\nWhat is wrong with it?"
    (hit,) = secrets.find(text, policy())
    assert text[hit.start : hit.end] == begun


def test_two_private_keys_are_two():
    text = f"{_pem()} and {_pem('EC ')}"
    assert [text[hit.start : hit.end] for hit in secrets.find(text, policy())] == [_pem(), _pem("EC ")]


@pytest.mark.parametrize("neighbour", [*string.ascii_letters, *string.digits, "_", "-", "é"])
def test_our_own_key_is_found_inside_anything(neighbour):
    (hit,) = secrets.find(f"{neighbour}{_OWN}{neighbour}", policy())
    assert (hit.start, hit.end) == (1, 1 + len(_OWN))
