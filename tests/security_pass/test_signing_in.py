"""Signing in to the console: guessing, forged forms, sessions, where one is sent afterwards."""

import threading
import time
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth import aauthenticate, hashers
from django.core.exceptions import ValidationError
from django.db import connections
from django.test import Client
from django.utils import timezone

from ailb_project.env import Env
from gateway import first_run
from keys import lockout, services
from keys.actors import COMMAND
from keys.models import LoginFailure, User
from security.models import AuditEntry

LOGIN = "/admin/login/"
PASSWORD, OTHER = "a password of Ada's", "something that she chose"
HOME, CAFE = "203.0.113.1", "203.0.113.2"


@pytest.fixture
def ada(db) -> User:
    return services.create_user(actor=COMMAND, user_id="ada", role="admin", password=PASSWORD)


@pytest.fixture(autouse=True)
def _three_failures(settings) -> None:
    settings.LOGIN_FAILURES = 3


def attempt(username: str, password: str, *, address: str = HOME, client: Client | None = None) -> Any:
    form = {"username": username, "password": password}
    return (client or Client()).post(LOGIN, form, REMOTE_ADDR=address)


def told(response: Any) -> str:
    return "; ".join(response.context["form"].non_field_errors())


# ── lock-out ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("username", ["ada", "nobody"])
def test_after_some_failures_even_the_right_password_is_refused(ada, username: str):
    """And whoever guesses learns nothing about who exists: both are told the same, at the same time."""
    texts = [told(attempt(username, f"wrong {n}")) for n in range(3)]
    refused = attempt(username, PASSWORD)
    assert refused.status_code == 200
    assert "_auth_user_id" not in refused.client.session
    assert len(set(texts)) == 1
    assert "correct" in texts[0]
    assert told(refused) == "Too many failed attempts. Try again in 15 minutes."


def test_a_refused_attempt_costs_no_hashing(ada, monkeypatch):
    for n in range(3):
        attempt("ada", f"wrong {n}")
    monkeypatch.setattr(hashers.Argon2PasswordHasher, "verify", lambda *_: pytest.fail("hashed"))
    assert "Too many" in told(attempt("ada", PASSWORD))


def test_it_ends_by_itself_and_what_was_refused_does_not_draw_it_out(ada, settings):
    settings.LOGIN_LOCK_SECONDS = 1
    begun = time.monotonic()
    for n in range(3):
        attempt("ada", f"wrong {n}")
    while "Too many" in (text := told(response) if (response := attempt("ada", "wrong")).context else ""):
        assert time.monotonic() - begun < 10, text
        time.sleep(0.05)
    LoginFailure.objects.all().delete()
    assert attempt("ada", PASSWORD).status_code == 302


def test_others_at_the_same_address_are_not_locked_out(ada):
    """Behind a proxy everybody has one address."""
    services.create_user(actor=COMMAND, user_id="bob", password=OTHER)
    for n in range(20):
        attempt("ada", f"wrong {n}")
        attempt(f"nobody {n}", "wrong")
    assert attempt("bob", OTHER).status_code == 302


def test_who_comes_from_elsewhere_is_not_locked_out_by_a_stranger(ada):
    for n in range(20):
        attempt("ada", f"wrong {n}", address=CAFE)
    assert attempt("ada", PASSWORD).status_code == 302


def test_many_addresses_do_not_guess_without_end(ada):
    passed = [told(attempt("ada", "wrong", address=f"203.0.113.{n // 3}")) for n in range(40)]
    assert ["Too many" in text for text in passed] == [False] * 30 + [True] * 10


def test_the_right_password_starts_anew(ada):
    for _ in range(3):
        for n in range(2):
            attempt("ada", f"wrong {n}")
        assert attempt("ada", PASSWORD).status_code == 302


def test_who_is_signed_in_stays_so_and_keys_are_not_concerned(ada):
    client = Client()
    assert attempt("ada", PASSWORD, client=client).status_code == 302
    for n in range(5):
        attempt("ada", f"wrong {n}")
    assert client.get("/admin/").status_code == 200
    _, secret = services.create_key(actor=COMMAND, name="admin's", role="admin")
    assert Client().get("/api/keys", headers={"authorization": f"Bearer {secret}"}).status_code == 200


def test_nothing_that_was_typed_is_kept(ada):
    attempt("my-password-in-the-wrong-field", "wrong")
    (row,) = LoginFailure.objects.values()
    assert "my-password" not in str(row)
    assert row["address"] == HOME


def test_old_failures_are_removed(ada):
    LoginFailure.objects.create(account="x", address=HOME, at=timezone.now() - timedelta(hours=1))
    attempt("ada", "wrong")
    assert LoginFailure.objects.count() == 1


def test_the_address_that_a_client_states_is_not_believed(ada):
    for n in range(4):
        refused = Client().post(
            LOGIN,
            {"username": "ada", "password": "wrong"},
            REMOTE_ADDR=HOME,
            headers={"x-forwarded-for": f"10.0.0.{n}"},
        )
    assert "Too many" in told(refused)


def test_of_many_at_once_no_more_than_the_limit_are_looked_at(committed, settings):
    settings.LOGIN_FAILURES = 3
    passed: list[bool] = []

    def guess() -> None:
        passed.append(lockout.begin(account="ada", address=HOME) is not None)
        connections.close_all()

    threads = [threading.Thread(target=guess) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(passed) <= 3
    assert len(passed) == 16


async def test_the_asynchronous_way_in_is_counted_too(transactional_db):
    assert await aauthenticate(None, username="nobody", password="wrong") is None
    assert await LoginFailure.objects.acount() == 1


# ── who exists ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("username", ["ada", "nobody", "keys only", "shut out"])
def test_every_name_costs_one_hash(ada, username: str, monkeypatch):
    services.create_user(actor=COMMAND, user_id="keys only")
    out = services.create_user(actor=COMMAND, user_id="shut out", password=OTHER)
    services.update_user(actor=COMMAND, user=out, changes={"is_active": False})
    hashed: list[str] = []
    for name in ("encode", "verify"):
        real = getattr(hashers.get_hasher(), name)
        monkeypatch.setattr(
            f"django.contrib.auth.hashers.Argon2PasswordHasher.{name}",
            lambda self, *given, real=real, name=name: (hashed.append(name), real(*given))[1],
        )
    text = told(attempt(username, "wrong password"))
    assert len(hashed) == 1
    assert text == told(attempt("another nobody", "wrong password"))


def test_somebody_who_was_shut_out_is_told_what_everybody_is(ada):
    User.objects.filter(pk=ada.pk).update(is_active=False)
    assert told(attempt("ada", PASSWORD)) == told(attempt("ada", "wrong"))


# ── sessions ────────────────────────────────────────────────────────────────────────────────────────────────────────


def signed_in(client: Client | None = None, password: str = PASSWORD) -> Client:
    client = client or Client()
    assert attempt("ada", password, client=client).status_code == 302
    return client


def test_a_session_that_was_planted_is_not_the_one_that_is_signed_in(ada):
    client = Client()
    client.get(LOGIN)
    client.session.save()
    client.cookies["sessionid"] = "planted0planted0planted0planted0"
    signed_in(client)
    assert client.cookies["sessionid"].value not in ("", "planted0planted0planted0planted0")


def test_signing_in_changes_session_and_csrf_token(ada):
    client = Client()
    client.get(LOGIN)
    before = client.cookies["csrftoken"].value
    signed_in(client)
    assert client.cookies["csrftoken"].value != before


def test_a_new_password_gives_a_new_session_and_ends_the_others(ada):
    here, there = signed_in(), signed_in()
    before = here.cookies["sessionid"].value
    change = {"old_password": PASSWORD, "new_password1": OTHER, "new_password2": OTHER}
    assert here.post("/admin/password_change/", change).status_code == 302
    assert here.cookies["sessionid"].value != before
    assert here.get("/admin/").status_code == 200
    assert there.get("/admin/").status_code == 302
    assert there.get("/api/keys").status_code == 401


def test_a_password_that_an_admin_sets_ends_all_sessions_and_must_be_replaced(ada):
    client = signed_in()
    services.set_password(actor=COMMAND, user=ada, password=OTHER, must_change=True)
    assert client.get("/admin/").headers["Location"].startswith(LOGIN)
    assert signed_in(password=OTHER).get("/admin/").headers["Location"] == "/admin/password_change/"


def test_signing_out_ends_it_on_the_server(ada):
    client = signed_in()
    copied = Client()
    copied.cookies["sessionid"] = client.cookies["sessionid"].value
    assert copied.get("/admin/").status_code == 200
    assert client.get("/admin/logout/").status_code == 405, "a link or an image signs nobody out"
    client.post("/admin/logout/")
    assert copied.get("/admin/").status_code == 302


def test_another_role_holds_for_sessions_that_are_there(ada):
    client = signed_in()
    User.objects.filter(pk=ada.pk).update(role="member")
    assert client.get("/admin/gateway/provider/").status_code == 403
    assert client.get("/api/audit").status_code == 403


def test_cookies_are_out_of_reach_of_scripts_and_other_sites(ada):
    client = Client()
    client.get(LOGIN)
    signed_in(client)
    for name in ("sessionid", "csrftoken"):
        cookie = client.cookies[name]
        assert (cookie["httponly"], cookie["samesite"], cookie["path"], cookie["domain"]) == (True, "Lax", "/", "")
    assert client.cookies["sessionid"]["max-age"] == 12 * 60 * 60


# ── forged forms ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def forged(ada) -> Client:
    """Ada's browser on somebody else's page."""
    client = Client(enforce_csrf_checks=True)
    client.force_login(ada)
    return client


@pytest.mark.parametrize("path", [
    "/admin/keys/virtualkey/add/", "/admin/keys/virtualkey/", "/admin/keys/user/add/", "/admin/gateway/provider/",
    "/admin/gateway/provider/add/", "/admin/password_change/", "/admin/logout/", "/admin/keys/user/1/password/",
    "/admin/keys/virtualkey/key_1/rotate/", "/admin/keys/virtualkey/key_1/revoke/",
    "/admin/keys/virtualkey/key_1/delete/",
])  # fmt: skip
@pytest.mark.parametrize("headers", [{}, {"origin": "https://evil.example"}], ids=["no token", "another origin"])
def test_the_console_takes_no_form_without_a_token(forged: Client, path: str, headers: dict):
    assert forged.post(path, {"name": "n"}, headers=headers).status_code == 403


def test_nobody_is_signed_in_by_another_page(ada):
    """Login CSRF: to work in an attacker's account is to give him what one types."""
    client = Client(enforce_csrf_checks=True)
    assert attempt("ada", PASSWORD, client=client).status_code == 403
    assert "sessionid" not in client.cookies


@pytest.mark.parametrize(("method", "path"), [
    ("POST", "/api/keys"), ("PATCH", "/api/keys/key_1"), ("DELETE", "/api/keys/key_1"), ("POST", "/api/users"),
    ("POST", "/api/keys/key_1/rotate"), ("PATCH", "/api/users/ada"), ("POST", "/api/teams"),
    ("PATCH", "/api/teams/red"), ("POST", "/api/billing/budget"), ("PATCH", "/api/billing/budgets/1"),
    ("DELETE", "/api/billing/budgets/1"),
])  # fmt: skip
@pytest.mark.parametrize("content_type", ["application/json", "text/plain", "application/x-www-form-urlencoded"])
def test_writes_of_a_session_at_the_api_want_the_token(forged: Client, method: str, path: str, content_type: str):
    answer = forged.generic(method, path, b'{"name":"n"}', content_type=content_type)
    assert answer.status_code == 403
    assert "CSRF" in answer.json()["detail"]
    assert not AuditEntry.objects.filter(via="api").exists()


def test_with_the_token_they_are_taken(forged: Client):
    forged.get("/admin/keys/virtualkey/add/")
    token = forged.cookies["csrftoken"].value
    answer = forged.post("/api/keys", {"name": "n"}, content_type="application/json", headers={"x-csrftoken": token})
    assert answer.status_code == 201


# ── where one is sent ───────────────────────────────────────────────────────────────────────────────────────────────


ELSEWHERE = (
    "https://evil.example/", "//evil.example/", "/\\evil.example", "///evil.example", "\\\\evil.example",
    "javascript:alert(1)", "http:evil.example", "https:///evil.example", " https://evil.example",
    "/\t/evil.example", "https://testserver@evil.example/", "https://testserver.evil.example/",
)  # fmt: skip


@pytest.mark.parametrize("place", ["query_params", "data"])
def test_signing_in_leads_to_no_other_site(ada, place: str):
    for elsewhere in ELSEWHERE:
        client = Client()
        form = {"username": "ada", "password": PASSWORD}
        sent = {"data": form, place: {"next": elsewhere, **(form if place == "data" else {})}}
        first = client.post(LOGIN, **sent)
        again = client.get(LOGIN, query_params={"next": elsewhere})  # of somebody who is signed in
        for answer in (first, again):
            assert (answer.status_code, answer.headers["Location"]) == (302, "/admin/"), elsewhere


def test_it_leads_where_one_was_going(ada):
    answer = Client().post(LOGIN, {"username": "ada", "password": PASSWORD, "next": "/admin/keys/user/"})
    assert answer.headers["Location"] == "/admin/keys/user/"


# ── passwords ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("password", ["short", "password1234", "ada-lovelace", "x" * 11])
def test_poor_passwords_are_refused_at_every_door(ada, password: str):
    User.objects.filter(pk=ada.pk).update(display_name="ada lovelace", email="ada-lovelace@example.com")
    ada.refresh_from_db()
    with pytest.raises(ValidationError):
        services.set_password(actor=COMMAND, user=ada, password=password)


def test_argon2_is_what_they_are_kept_with(ada):
    assert ada.password.startswith("argon2$argon2id$")


def test_the_first_password_is_long_and_random(committed, settings):
    text = first_run.prepare(Env(AILB_ADMIN_KEY=None))
    assert text is not None
    (line,) = (line for line in text.splitlines() if line.startswith("Login:"))
    assert len(line.split()[3]) >= 20
    assert User.objects.get().must_change_password
