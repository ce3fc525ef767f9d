"""Who the control plane takes a caller for."""

from datetime import timedelta

import pytest
from django.test import Client
from django.utils import timezone

from gateway.types import Role
from keys.actors import Actor
from keys.api.authentication import KeyAuthentication
from keys.models import User, VirtualKey
from keys.services import ensure_user, set_password
from security.models import AuditEntry
from tests.api.doors import Cast, Door, make_key


@pytest.mark.parametrize(
    "header",
    ["Authorization: Bearer {}", "Authorization: bearer   {} ", "x-api-key: {}", "api-key: {}", "X-API-Key:  {} "],
)
def test_headers_that_carry_a_key(cast: Cast, header: str):
    name, value = header.format(cast.secrets["alice's key"]).split(":", 1)
    answer = Door().get("/api/keys", **{name: value.removeprefix(" ")})  # as servers hand it over
    assert [key["name"] for key in answer.body["keys"]] == ["alice's key"]


@pytest.mark.parametrize(
    "header", ["Authorization: Basic {}", "Authorization: {}", "Authorization: Bearer", "Cookie: key={}"]
)
def test_headers_that_do_not(cast: Cast, header: str):
    name, value = header.format(cast.secrets["alice's key"]).split(":", 1)
    assert Door().get("/api/keys", **{name: value.strip()}).status == 401


def test_a_bearer_key_goes_before_a_session_and_a_bad_one_is_not_made_up_for_by_one(cast: Cast):
    client = cast["ada"].client()
    secret = cast.secrets["alice's key"]
    mine = client.get("/api/keys", headers={"Authorization": f"Bearer {secret}"})
    assert mine.json()["total"] == 1
    assert client.get("/api/keys", headers={"Authorization": "Bearer sk-ailb_bad"}).status_code == 401


def test_v1_ignores_cookies(cast: Cast):
    assert cast["ada"].get("/v1/models").status == 401
    assert cast["ada"].get("/v1/embeddings").status == 401


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"revoked_at": timezone.now()}, "key_revoked"),
        ({"expires_at": timezone.now()}, "key_expired"),
        ({"expires_at": timezone.now() - timedelta(days=1), "revoked_at": timezone.now()}, "key_revoked"),
        ({"digest": "0" * 64}, "invalid_api_key"),
    ],
)
def test_keys_that_ended(cast: Cast, change: dict, code: str):
    VirtualKey.objects.filter(pk=cast.key.pk).update(**change)
    answer = cast["alice's key"].get("/v1/models")
    assert (answer.status, answer.body["error"]["code"]) == (401, code)
    assert cast["alice's key"].get("/api/keys").status == 401


def test_an_expired_or_revoked_key_has_no_grace_either(cast: Cast):
    later = timezone.now() + timedelta(hours=1)
    row = VirtualKey.objects.get(pk=cast.key.pk)
    VirtualKey.objects.filter(pk=row.pk).update(digest="0" * 64, previous_digest=row.digest, previous_until=later)
    assert cast["alice's key"].get("/api/keys").status == 200
    VirtualKey.objects.filter(pk=row.pk).update(revoked_at=timezone.now())
    assert cast["alice's key"].get("/api/keys").status == 401


def _actor(cast: Cast, name: str, **headers: str) -> Actor:
    from django.test import RequestFactory
    from rest_framework.request import Request

    request = RequestFactory().get("/", headers={"Authorization": f"Bearer {cast.secrets[name]}", **headers})
    found = KeyAuthentication().authenticate(Request(request))
    assert found is not None
    return found[1]


def test_actors_of_keys(cast: Cast):
    admin = _actor(cast, "admin key")
    assert (admin.role, admin.own_only, admin.key_id, admin.via) == (
        Role.ADMIN,
        False,
        cast.keys["admin key"].pk,
        "api",
    )
    alice = _actor(cast, "alice's key")
    assert (alice.role, alice.own_only, alice.user_id, alice.team) == (Role.MEMBER, True, "alice", "red")
    lone = _actor(cast, "lone key")
    assert (lone.user_id, lone.team, lone.own_only) == (None, None, True)
    assert _actor(cast, "red's key").team == "red"


def test_last_used_is_noted_without_a_new_snapshot(cast: Cast):
    from gateway.models import ConfigVersion

    before = ConfigVersion.objects.get(section="keys").number
    cast["alice's key"].get("/api/keys")
    used = VirtualKey.objects.get(pk=cast.key.pk).last_used
    assert used is not None
    assert timezone.now() - used < timedelta(seconds=30)
    cast["alice's key"].get("/api/keys")
    assert VirtualKey.objects.get(pk=cast.key.pk).last_used == used, "to the minute: not a write a request"
    assert ConfigVersion.objects.get(section="keys").number == before


def test_somebody_who_may_not_sign_in_has_no_session(cast: Cast):
    door = cast["alice"]
    client = door.client()
    assert client.get("/api/keys").status_code == 200
    User.objects.filter(username="alice").update(is_active=False)
    assert client.get("/api/keys").status_code == 401


# ── X-User-ID ───────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("who", ["admin key", "ada"])
def test_an_admin_narrowed_to_a_user_sees_and_does_what_that_user_may(cast: Cast, who: str):
    seen = cast[who].get("/api/keys", **{"X-User-ID": "alice"}).body["keys"]
    assert [key["name"] for key in seen] == ["alice's key"]
    bobs = cast.keys["bob's key"].pk
    assert cast[who].get(f"/api/keys/{bobs}", **{"X-User-ID": "alice"}).status == 404
    assert cast[who].get("/api/audit", **{"X-User-ID": "alice"}).status == 403
    made = cast[who].send("POST", "/api/keys", {"name": "n"}, {"X-User-ID": "alice"}).body["key_data"]
    assert made["user_id"] == "alice"
    limited = cast[who].send("POST", "/api/keys", {"name": "n", "rate_limit_rpm": 5}, {"X-User-ID": "alice"})
    assert limited.status == 403


def test_it_is_audited_as_the_admins_doing(cast: Cast):
    cast["ada"].get("/api/keys", **{"X-User-ID": "alice"})
    entry = AuditEntry.objects.get(action="act_as")
    assert (entry.actor, entry.role) == ("user:ada", "admin")
    assert entry.after == {"user_id": "alice", "method": "GET", "path": "/api/keys"}


@pytest.mark.parametrize("who", ["fin", "lea", "vic", "alice", "alice's key", "lone key"])
@pytest.mark.parametrize("user_id", ["alice", "bob", "nobody"])
def test_from_anyone_else_it_is_refused(cast: Cast, who: str, user_id: str):
    assert cast[who].get("/api/keys", **{"X-User-ID": user_id}).status == 403
    assert not AuditEntry.objects.filter(action="act_as").exists()


def test_an_unknown_user_has_nothing_and_is_made_by_a_write_alone(cast: Cast):
    assert cast["ada"].get("/api/keys", **{"X-User-ID": "dora"}).body["keys"] == []
    assert not User.objects.filter(username="dora").exists()
    assert cast["ada"].send("POST", "/api/keys", {"name": "n"}, {"X-User-ID": "dora"}).status == 201
    assert User.objects.filter(username="dora").exists()


@pytest.mark.parametrize("user_id", ["", " ", "x" * 201, "a\0b", b"\xff".decode("latin-1")])
def test_names_that_are_none(cast: Cast, user_id: str):
    answer = cast["ada"].get("/api/keys", **{"X-User-ID": user_id})
    assert (answer.status, list(answer.body["errors"])) == (400, ["X-User-ID"])


def test_a_name_in_utf8(cast: Cast):
    ensure_user(actor=Actor(role=Role.ADMIN, via="command"), user_id="zoë")
    make_key("hers", user_id="zoë")
    seen = cast["ada"].get("/api/keys", **{"X-User-ID": "zoë".encode().decode("latin-1")}).body["keys"]
    assert [key["name"] for key in seen] == ["hers"]


def test_v1_takes_no_notice_of_it(cast: Cast, monkeypatch):
    monkeypatch.setattr("gateway.api.visible", lambda catalog, allowed: [])
    assert cast["alice's key"].get("/v1/models", **{"X-User-ID": "bob"}).status == 200


# ── the first password ──────────────────────────────────────────────────────────────────────────────────────────────


def _given_a_password(cast: Cast, must_change: bool) -> Client:
    ada = cast["ada"].user
    assert ada is not None
    actor = Actor(role=Role.ADMIN, via="command")
    set_password(actor=actor, user=ada, password="correct horse battery", must_change=must_change)
    client = Client()
    client.force_login(ada)
    return client


def test_whoever_was_given_a_password_can_only_replace_it(cast: Cast):
    client = _given_a_password(cast, must_change=True)
    for path in ("/admin/", "/admin/keys/virtualkey/", "/admin/nothing/"):
        answer = client.get(path)
        assert (answer.status_code, answer.headers["Location"]) == (302, "/admin/password_change/")
    assert client.get("/admin/password_change/").status_code == 200
    refused = client.get("/api/keys")
    assert (refused.status_code, refused.json()["type"]) == (403, "permission_error")
    assert client.get("/api/keys", headers={"Authorization": f"Bearer {cast.secrets['admin key']}"}).status_code == 200


def test_afterwards_everything_is_open(cast: Cast):
    client = _given_a_password(cast, must_change=True)
    change = {
        "old_password": "correct horse battery",
        "new_password1": "staple tower 77",
        "new_password2": "staple tower 77",
    }
    assert client.post("/admin/password_change/", change).status_code == 302
    assert client.get("/admin/").status_code == 200
    assert client.get("/api/keys").status_code == 200
    assert AuditEntry.objects.filter(action="set_password", actor="user:ada").count() == 1


def test_others_are_left_alone(cast: Cast):
    assert _given_a_password(cast, must_change=False).get("/admin/").status_code == 200
    assert Client().get("/admin/").headers["Location"].startswith("/admin/login/")
