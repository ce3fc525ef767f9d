"""Who may come in."""

from datetime import timedelta

import pytest
from django.utils import timezone

from gateway.types import Role
from keys import secrets
from keys.actors import SYSTEM
from keys.models import VirtualKey
from keys.services import revoke_key, rotate_key
from tests.support.answers import assert_error
from tests.support.world import Key, make_key, row_of

WELL_FORMED = secrets.new_secret()


def refused(gateway, headers, stream):
    """The answer to a request with these headers, which must never reach an upstream."""
    body = {"model": "gpt-test", "messages": [{"role": "user", "content": "Hi"}], "stream": stream}
    return gateway.send("POST", "/v1/chat/completions", headers=headers, json=body)


class TestHeaders:
    @pytest.mark.parametrize(
        "header",
        [
            lambda secret: {"authorization": f"Bearer {secret}"},
            lambda secret: {"authorization": f"bearer  {secret}"},
            lambda secret: {"x-api-key": secret},
            lambda secret: {"api-key": secret},
            lambda secret: {"authorization": "Basic dXNlcjpwYXNz", "x-api-key": secret},
        ],
        ids=["Bearer", "lower case and spaces", "x-api-key", "api-key", "beside a proxy's Basic"],
    )
    def test_the_key_is_taken_from(self, gateway, model, alice, stream, header):
        answer = refused(gateway, header(alice.secret), stream)
        assert answer.status == 200
        assert gateway.settlement(answer.id).key_id == alice.id

    def test_a_cookie_is_no_credential(self, gateway, model, alice, upstream, stream):
        answer = refused(gateway, {"cookie": f"sessionid=x; api-key={alice.secret}"}, stream)
        assert_error(answer, 401, "authentication_error", "invalid_api_key")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": ""},
        {"authorization": "Bearer"},
        {"authorization": "Basic dXNlcjpwYXNz"},
        {"authorization": "Bearer sk-somebody-elses"},
        {"authorization": f"Bearer {WELL_FORMED}"},
        {"authorization": f"Bearer {WELL_FORMED[:-1]}"},
        {"authorization": f"Bearer {'x' * 10_000}"},
        {"x-api-key": "ö".encode()},
        {"x-api-key": b"\xff\xfe"},
    ],
    ids=[
        "no header", "empty", "no key", "another scheme", "another provider's key", "an unknown key",
        "a cut-off key", "a very long key", "not ASCII", "not UTF-8",
    ],
)  # fmt: skip
def test_no_or_unknown_credentials(gateway, model, upstream, stream, headers):
    assert_error(refused(gateway, headers, stream), 401, "authentication_error", "invalid_api_key")
    assert not upstream.requests


def test_the_refusal_does_not_repeat_the_key(gateway, model, alice):
    almost = alice.secret[:-1] + ("0" if alice.secret[-1] != "0" else "1")
    answer = refused(gateway, {"authorization": f"Bearer {almost}"}, False)
    assert almost not in answer.raw.decode()


def test_who_asks_is_looked_at_before_what_they_ask(gateway, model):
    answer = gateway.send("POST", "/v1/chat/completions", content=b"{nonsense")
    assert_error(answer, 401, "authentication_error", "invalid_api_key")


class TestRevocation:
    def test_a_revoked_key_is_dead_at_once_where_it_was_revoked(self, gateway, model, alice, upstream, stream):
        assert gateway.chat(alice, stream=stream).status == 200
        revoke_key(actor=SYSTEM, key=row_of(alice))
        assert_error(gateway.chat(alice, stream=stream), 401, "authentication_error", "key_revoked")
        assert len(upstream.requests) == 1

    def test_one_revoked_past_the_services_is_dead_too(self, gateway, model, alice, stream):
        assert gateway.chat(alice, stream=stream).status == 200
        VirtualKey.objects.filter(pk=alice.id).update(revoked_at=timezone.now())
        assert_error(gateway.chat(alice, stream=stream), 401, "authentication_error", "key_revoked")

    def test_a_deleted_key_is_unknown(self, gateway, model, alice):
        assert gateway.chat(alice).status == 200
        VirtualKey.objects.filter(pk=alice.id).delete()
        assert_error(gateway.chat(alice), 401, "authentication_error", "invalid_api_key")

    def test_others_are_not_touched(self, gateway, model, alice, bob, stream):
        revoke_key(actor=SYSTEM, key=row_of(alice))
        assert gateway.chat(bob, stream=stream).status == 200

    def test_what_a_key_has_begun_it_may_finish(self, gateway, model, alice, upstream):
        with gateway.chatting(alice, stream=True) as response:
            revoke_key(actor=SYSTEM, key=row_of(alice))
            assert response.read().endswith(b"data: [DONE]\n\n")


class TestExpiry:
    def test_an_expired_key(self, gateway, model, stream):
        key = make_key(expires_at=timezone.now() + timedelta(days=1))
        assert gateway.chat(key, stream=stream).status == 200
        VirtualKey.objects.filter(pk=key.id).update(expires_at=timezone.now() - timedelta(seconds=1))
        assert_error(gateway.chat(key, stream=stream), 401, "authentication_error", "key_expired")

    def test_it_expires_by_the_clock_alone(self, gateway, model):
        key = make_key(expires_at=timezone.now() + timedelta(seconds=0.5))
        assert gateway.chat(key).status == 200
        while timezone.now() < row_of(key).expires_at:
            pass
        assert_error(gateway.chat(key), 401, "authentication_error", "key_expired")


class TestRotation:
    def test_both_secrets_work_until_the_grace_ends_then_only_the_new(self, gateway, model, alice, stream):
        _, secret, _ = rotate_key(actor=SYSTEM, key=row_of(alice), grace_seconds=60)
        new = Key(alice.id, secret)
        assert gateway.chat(alice, stream=stream).status == 200
        assert gateway.chat(new, stream=stream).status == 200
        VirtualKey.objects.filter(pk=alice.id).update(previous_until=timezone.now() - timedelta(seconds=1))
        assert_error(gateway.chat(alice, stream=stream), 401, "authentication_error", "invalid_api_key")
        assert gateway.chat(new, stream=stream).status == 200

    def test_without_grace_the_old_one_ends_at_once(self, gateway, model, alice):
        _, secret, _ = rotate_key(actor=SYSTEM, key=row_of(alice))
        assert_error(gateway.chat(alice), 401, "authentication_error", "invalid_api_key")
        assert gateway.chat(Key(alice.id, secret)).status == 200

    def test_revoking_ends_a_grace_too(self, gateway, model, alice):
        rotate_key(actor=SYSTEM, key=row_of(alice), grace_seconds=60)
        revoke_key(actor=SYSTEM, key=row_of(alice))
        assert gateway.chat(alice).status == 401

    def test_both_are_one_key_to_the_ledger(self, gateway, model, alice):
        _, secret, _ = rotate_key(actor=SYSTEM, key=row_of(alice), grace_seconds=60)
        answers = [gateway.chat(alice), gateway.chat(Key(alice.id, secret))]
        assert {gateway.settlement(answer.id).key_id for answer in answers} == {alice.id}


def test_a_new_key_works_at_once(gateway, model, alice):
    gateway.chat(alice)  # the snapshot is there
    assert gateway.chat(make_key("newcomer")).status == 200


def test_an_admins_key_may_ask_too(gateway, model, stream):
    answer = gateway.chat(make_key(role=Role.ADMIN.value), stream=stream)
    assert answer.status == 200


class TestWithoutTheDatabase:
    """Known keys go on for a grace; a key that may be new is not called wrong."""

    @pytest.fixture
    def cut_off(self, gateway, monkeypatch):
        def for_seconds(seconds):
            monkeypatch.setattr(type(gateway.plane), "cut_off_for", lambda plane: seconds)

        return for_seconds

    def test_known_keys_go_on(self, gateway, model, alice, cut_off, stream):
        cut_off(60.0)
        assert gateway.chat(alice, stream=stream).status == 200

    def test_unknown_ones_are_told_that_they_cannot_be_checked(self, gateway, model, cut_off, stream):
        cut_off(60.0)
        answer = refused(gateway, {"authorization": f"Bearer {WELL_FORMED}"}, stream)
        assert_error(answer, 503, "overloaded_error", "guard_unavailable")
        assert int(answer.headers["retry-after"]) >= 1

    def test_what_is_no_key_of_ours_is_still_wrong(self, gateway, model, cut_off):
        cut_off(60.0)
        answer = refused(gateway, {"authorization": "Bearer sk-other"}, False)
        assert_error(answer, 401, "authentication_error", "invalid_api_key")

    def test_the_grace_has_an_end(self, gateway, model, alice, upstream, cut_off, stream):
        cut_off(gateway.plane.env.AILB_DATABASE_GRACE_SECONDS + 1)
        answer = gateway.chat(alice, stream=stream)
        assert_error(answer, 503, "overloaded_error", "guard_unavailable")
        assert not upstream.requests
