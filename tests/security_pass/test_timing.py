"""What a clock, a counter or a look at the source would tell somebody who guesses."""

import ast
import hmac
import re
from pathlib import Path

import pytest
from django.conf import settings as django_settings
from pydantic import SecretStr

from keys import authentication, secrets
from keys.models import VirtualKey
from tests.api.doors import Cast, Door

ROOT = Path(__file__).resolve().parents[2]
APPS = ("ailb_project", "gateway", "keys", "billing", "security", "memory", "rag", "grpc_module")
SECRET = re.compile(r"(?i)(secret|token|digest|password|pepper|admin_key|api_key|signature|credential)(?!s?\w)")
# Comparisons that look like it and are none: what a client sends takes no part in them, or has been found already.
ALLOWED = {
    "hashlib.file_digest(file, 'sha256').hexdigest() != _SHA256": "a file of ours",
    "hashlib.sha256(path.read_bytes()).hexdigest() != sha256": "a file of ours",
    "row.credentials != _stored_credentials(row)": "whether a row changed meanwhile",
    "provider.credentials != sealed": "whether a row changed meanwhile",
    "_stored_key(provider) != definition.api_key": "the operator's, at the start",
    "key.digest != digest": "the operator's, at the start; which of a row's two digests it was found by",
    "new == self.cleaned_data.get('old_password')": "two fields of one form",
    "_checksum(body) == secret[-_CHECK:]": "a checksum that everybody can compute",
    "len(secret) != LENGTH": "a length",
}


def comparisons() -> list[tuple[str, str]]:
    """Every `==`, `!=`, `in` and `startswith` whose sides are named like secrets."""
    found = []
    for path in sorted(path for app in APPS for path in (ROOT / app).rglob("*.py") if "migrations" not in path.parts):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Compare) or not isinstance(node.ops[0], ast.Eq | ast.NotEq):
                continue
            sides = [node.left, *node.comparators]
            if any(isinstance(side, ast.Constant) for side in sides):
                continue
            if any(SECRET.search(ast.unparse(side)) for side in sides):
                found.append((str(path.relative_to(ROOT)), ast.unparse(node)))
    return found


def test_no_secret_is_compared_with_an_equals_sign():
    assert [(path, code) for path, code in comparisons() if code not in ALLOWED] == []


@pytest.fixture
def compared(monkeypatch) -> list[tuple]:
    seen: list[tuple] = []
    real = hmac.compare_digest
    monkeypatch.setattr("hmac.compare_digest", lambda a, b: (seen.append((a, b)), real(a, b))[1])
    return seen


def test_a_key_is_compared_by_its_keyed_digest(compared):
    pepper, secret = b"pepper", secrets.new_secret()
    digest = secrets.digest(secret, pepper)
    credential = authentication.Credential(digest, None, False, None, None)  # type: ignore[arg-type]
    assert authentication.Credentials({digest: credential}).find(secret, pepper) is credential
    assert (digest, digest) in compared


def test_the_metrics_token_is_compared_in_constant_time(gateway, settings, compared):
    settings.ENV = settings.ENV.model_copy(update={"AILB_METRICS_TOKEN": SecretStr("a-token-for-prometheus")})
    forwarded = {"x-forwarded-for": "10.0.0.1"}
    for token, status in (("a-token-for-prometheus", 200), ("a-token-for-prometheuz", 401), ("ö", 401), ("x", 401)):
        bearer = {"authorization": f"Bearer {token}".encode()}
        assert gateway.send("GET", "/metrics", headers={**forwarded, **bearer}).status == status
    assert len([pair for pair in compared if b"a-token-for-prometheus" in pair]) >= 3


@pytest.mark.parametrize("secret", ["sk-wrong", secrets.new_secret(b"0" * 32), "x" * 511, "x" * 10_000, "ö" * 200])
def test_guessing_keys_at_the_api_is_cheap_and_writes_nothing(cast: Cast, django_assert_max_num_queries, secret: str):
    with django_assert_max_num_queries(2) as asked:
        assert Door(secret=secret).get("/api/keys").status == 401
    assert not [query for query in asked.captured_queries if not query["sql"].startswith("SELECT")]


def test_guessing_keys_at_v1_asks_no_database(gateway, model, alice):
    """The snapshot has every key; 256 bits need no lock-out, only that a guess costs less than what it could find."""
    known = gateway.plane.snapshot().credentials
    for _ in range(50):
        assert gateway.chat(None, headers={"x-api-key": secrets.new_secret()}).status == 401
    assert len(known._seen) == 0, "wrong ones are not remembered"


def test_what_is_told_of_a_key_that_is_none_is_the_same_for_all(cast: Cast):
    almost = cast.secrets["alice's key"][:-1] + "0"
    bodies = {str(Door(secret=secret).get("/api/keys").body) for secret in ("sk-x", secrets.new_secret(), almost)}
    assert len(bodies) == 1


def test_the_pepper_is_long_and_is_not_djangos_key():
    assert len(django_settings.KEY_PEPPER) >= 16
    assert django_settings.SECRET_KEY.encode() != django_settings.KEY_PEPPER
    assert VirtualKey._meta.get_field("digest").max_length == 64
