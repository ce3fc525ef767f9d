"""`/api/keys`: what is written is read back, secrets are shown once, every change is on the audit log."""

from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.utils import timezone

from billing.models import Budget
from gateway.models import ConfigVersion
from keys import secrets
from keys.models import Team, User, VirtualKey
from security.models import AuditEntry
from tests.api.doors import Cast, Door, digest, make_key

WHOLE = {
    "name": "reports",
    "user_id": "dora",
    "team": "green",
    "monthly_quota_dollars": 12.5,
    "monthly_quota_tokens": 1_000_000,
    "rate_limit_rpm": 60,
    "rate_limit_tpm": 90_000,
    "max_parallel": 4,
    "allowed_models": ["gpt-4o", "anthropic/claude:latest"],
    "expires_at": "2999-01-01T00:00:00Z",
    "metadata": {"ticket": "OPS-1", "list": [1, 2.5, None, True]},
    "tags": ["batch", "nightly"],
}


def test_all_that_is_given_is_read_back_and_enforced_on_the_row(cast: Cast):
    answer = cast["admin key"].post("/api/keys", **WHOLE)
    assert answer.status == 201
    shown = cast["admin key"].get(f"/api/keys/{answer.body['key_data']['id']}").body
    assert {name: shown[name] for name in WHOLE} == WHOLE
    assert {name: answer.body["key_data"][name] for name in WHOLE} == WHOLE
    row = VirtualKey.objects.get(pk=shown["id"])
    assert (row.rate_limit_rpm, row.rate_limit_tpm, row.max_parallel) == (60, 90_000, 4)
    assert row.allowed_models == WHOLE["allowed_models"]
    budget = Budget.objects.get(scope="key", owner=row.pk)
    assert (budget.period, budget.limit_dollars, budget.limit_tokens) == ("monthly", Decimal("12.5"), 1_000_000)


def test_the_secret_is_shown_once_and_kept_as_a_digest(cast: Cast):
    answer = cast["ada"].post("/api/keys", name="n")
    secret, data = answer.body["key"], answer.body["key_data"]
    assert answer.headers["cache-control"] == "no-store"
    assert secrets.well_formed(secret)
    assert VirtualKey.objects.get(pk=data["id"]).digest == digest(secret)
    assert data["hint"] == secret[-4:]
    for read in (
        cast["ada"].get("/api/keys"),
        cast["ada"].get(f"/api/keys/{data['id']}"),
        cast["ada"].get("/api/audit"),
    ):
        assert secret not in str(read.body)
        assert digest(secret) not in str(read.body)
    assert Door(secret=secret).get("/api/keys").status == 200


def test_nothing_given_is_no_limit(cast: Cast):
    data = cast["ada"].post("/api/keys", name="n").body["key_data"]
    nulls = [name for name in WHOLE if name not in ("name", "metadata", "tags")]
    assert {name: data[name] for name in nulls} == dict.fromkeys(nulls)
    assert (data["metadata"], data["tags"], data["role"], data["status"]) == ({}, [], "member", "active")
    assert data["last_used"] is None
    assert not Budget.objects.filter(owner=data["id"]).exists()


def test_a_user_and_team_named_for_the_first_time_are_made(cast: Cast):
    cast["ada"].post("/api/keys", name="n", user_id="dora", team="green")
    dora = User.objects.get(username="dora")
    assert dora.team == Team.objects.get(name="green")
    assert (dora.role, dora.has_usable_password()) == ("member", False)
    cast["ada"].post("/api/keys", name="n", user_id="dora", team="yellow")
    dora.refresh_from_db()
    assert dora.team == Team.objects.get(name="green"), "an existing user stays in their team"


def test_names_need_not_be_unique(cast: Cast):
    ids = {cast["ada"].post("/api/keys", name="same").body["key_data"]["id"] for _ in range(3)}
    assert len(ids) == 3


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""), ("name", None), ("name", 7), ("name", "x" * 201), ("name", "a\0b"), ("name", "a\nb"),
        ("name", "   "),
        ("user_id", ""), ("user_id", 5), ("user_id", "x" * 201), ("team", ["red"]), ("team", "a\x7fb"),
        ("role", "owner"), ("role", "viewer"), ("role", True), ("role", ["admin"]),
        ("monthly_quota_dollars", "5"), ("monthly_quota_dollars", True), ("monthly_quota_dollars", -1),
        ("monthly_quota_dollars", 9_000_001), ("monthly_quota_dollars", 1e300), ("monthly_quota_dollars", [5]),
        ("monthly_quota_tokens", -1), ("monthly_quota_tokens", 2.5), ("monthly_quota_tokens", 2**63),
        ("rate_limit_rpm", 0), ("rate_limit_rpm", "60"), ("rate_limit_rpm", True), ("rate_limit_rpm", 2**63),
        ("rate_limit_tpm", -5), ("rate_limit_tpm", 1e30), ("max_parallel", 2**31), ("max_parallel", 0),
        ("allowed_models", []), ("allowed_models", "gpt"), ("allowed_models", [1]), ("allowed_models", [""]),
        ("allowed_models", ["a\0"]), ("allowed_models", {"a": 1}), ("allowed_models", ["m"] * 1001),
        ("expires_at", "soon"), ("expires_at", 5), ("expires_at", "2001-01-01T00:00:00Z"), ("expires_at", True),
        ("expires_at", "9999-12-31T23:59:59-12:00"),
        ("metadata", []), ("metadata", "x"), ("metadata", None), ("metadata", {"a": "\0"}), ("metadata", {"\0": 1}),
        ("metadata", {"a": "x" * 20_000}), ("metadata", {"a": [[[[[[[[[[[]]]]]]]]]]]}),
        ("tags", "t"), ("tags", [1]), ("tags", ["t"] * 51), ("tags", ["x" * 101]), ("tags", None),
    ],
)  # fmt: skip
def test_what_is_refused_names_its_field_and_makes_nothing(cast: Cast, field: str, value: object):
    keys, people = VirtualKey.objects.count(), User.objects.count()
    answer = cast["ada"].post("/api/keys", **{"name": "n", field: value})
    assert answer.status == 400
    assert list(answer.body["errors"]) == [field]
    assert (VirtualKey.objects.count(), User.objects.count()) == (keys, people)


@pytest.mark.parametrize(
    ("field", "value", "kept"),
    [
        ("monthly_quota_dollars", 0, 0), ("monthly_quota_dollars", 0.1, 0.1),
        ("monthly_quota_dollars", 9_000_000, 9_000_000),
        ("monthly_quota_dollars", 0.1 + 0.2, 0.3), ("monthly_quota_tokens", 0, 0),
        ("monthly_quota_tokens", 2**63 - 1, 2**63 - 1),
        ("rate_limit_rpm", 2**63 - 1, 2**63 - 1), ("max_parallel", 2**31 - 1, 2**31 - 1), ("rate_limit_tpm", 5.0, 5),
        ("name", "x" * 200, "x" * 200), ("name", "Zoë 💩", "Zoë 💩"), ("user_id", "a/b:c@d", "a/b:c@d"),
        ("expires_at", None, None), ("allowed_models", None, None),
    ],
)  # fmt: skip
def test_what_is_just_allowed_is_kept_exactly(cast: Cast, field: str, value: object, kept: object):
    answer = cast["ada"].post("/api/keys", **{"name": "n", field: value})
    assert answer.status == 201, answer.body
    assert cast["ada"].get(f"/api/keys/{answer.body['key_data']['id']}").body[field] == kept


# ── lists ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_list_is_what_the_caller_may_see_a_page_at_a_time(cast: Cast):
    seen = {
        who: {key["name"] for key in cast[who].get("/api/keys").body["keys"]} for who in ("lea", "alice", "charlie")
    }
    assert seen["lea"] == {"alice's key", "bob's key", "red's key"}
    assert seen["alice"] == {"alice's key"}
    assert seen["charlie"] == {"charlie's key"}
    assert {key["name"] for key in cast["lone key"].get("/api/keys").body["keys"]} == {"lone key"}
    everything = cast["ada"].get("/api/keys").body
    assert (everything["total"], everything["limit"], everything["offset"]) == (6, 50, 0)
    pages = [cast["ada"].get(f"/api/keys?limit=4&offset={offset}").body for offset in (0, 4, 8)]
    assert [len(page["keys"]) for page in pages] == [4, 2, 0]
    assert [key["id"] for page in pages for key in page["keys"]] == [key["id"] for key in everything["keys"]]


def test_status_filters_and_is_shown(cast: Cast):
    past = timezone.now() - timedelta(seconds=1)
    VirtualKey.objects.filter(name="bob's key").update(expires_at=past)
    VirtualKey.objects.filter(name="red's key").update(revoked_at=past, expires_at=past)
    VirtualKey.objects.filter(name="lone key").update(expires_at=timezone.now() + timedelta(hours=1))
    by_status = {
        status: {key["name"] for key in cast["ada"].get(f"/api/keys?status={status}").body["keys"]}
        for status in ("active", "expired", "revoked")
    }
    assert by_status["expired"] == {"bob's key"}
    assert by_status["revoked"] == {"red's key"}
    assert by_status["active"] == {"admin key", "alice's key", "charlie's key", "lone key"}
    for status, names in by_status.items():
        shown = {key["name"]: key["status"] for key in cast["ada"].get("/api/keys").body["keys"]}
        assert {shown[name] for name in names} == {status}


def test_a_page_costs_the_same_queries_however_long_it_is(cast: Cast, django_assert_max_num_queries):
    for index in range(20):
        make_key(f"n{index}", user_id="alice", team="red", monthly_quota_tokens=5)
    with django_assert_max_num_queries(6):  # the key, the page, the quotas, the count
        assert len(cast["admin key"].get("/api/keys").body["keys"]) == 26


# ── changes ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_patch_changes_what_it_names_and_nothing_else(cast: Cast):
    made = cast["ada"].post("/api/keys", **WHOLE).body["key_data"]
    changes: tuple[dict[str, Any], ...] = (
        {"name": "other"}, {"rate_limit_rpm": None}, {"monthly_quota_dollars": 3}, {"monthly_quota_tokens": None},
        {"allowed_models": None}, {"expires_at": None}, {"metadata": {}}, {"tags": []}, {"team": None},
        {"role": "admin"},
    )  # fmt: skip
    for change in changes:
        before = cast["ada"].get(f"/api/keys/{made['id']}").body
        answer = cast["ada"].patch(f"/api/keys/{made['id']}", **change)
        assert answer.status == 200, answer.body
        expected = {**before, **change, **({"team": "green"} if "team" in change else {})}  # its user's, then
        assert {**answer.body, "usage": None} == {**expected, "usage": None}


def test_the_quota_is_the_monthly_budget_both_ways(cast: Cast):
    key = cast.key.pk
    budget = cast.budgets["alice's key"]
    cast["ada"].patch(f"/api/billing/budgets/{budget.pk}", limit_tokens=7)
    assert cast["ada"].get(f"/api/keys/{key}").body["monthly_quota_tokens"] == 7
    cast["ada"].patch(f"/api/keys/{key}", monthly_quota_dollars=None)
    budget.refresh_from_db()
    assert (budget.limit_dollars, budget.limit_tokens) == (None, 7)
    cast["ada"].patch(f"/api/keys/{key}", monthly_quota_tokens=None)
    assert not Budget.objects.filter(pk=budget.pk).exists()


def test_every_change_is_audited_with_what_it_was_and_is(cast: Cast):
    def last() -> Any:
        return AuditEntry.objects.order_by("-id")[0]

    key = cast.key.pk
    cast["lea"].patch(f"/api/keys/{key}", name="other", rate_limit_rpm=9)
    assert (last().actor, last().role, last().via, last().ip) == ("user:lea", "team_lead", "api", "127.0.0.1")
    assert (last().action, last().object_type, last().object_id) == ("update", "keys.virtualkey", key)
    assert last().before == {"name": "alice's key", "rate_limit_rpm": None}
    assert last().after == {"name": "other", "rate_limit_rpm": 9}
    cast["alice's key"].post(f"/api/keys/{key}/rotate", grace_seconds=60)
    assert (last().actor, last().action) == ("user:alice", "rotate")
    assert last().after["previous_digest"] == "(set)"
    cast["admin key"].delete(f"/api/keys/{key}")
    assert (last().actor, last().action) == (f"key:{cast.keys['admin key'].pk}", "revoke")
    assert last().before["revoked_at"] is None
    count = AuditEntry.objects.count()
    cast["ada"].patch(f"/api/keys/{key}", name="other")
    assert AuditEntry.objects.count() == count, "a change of nothing is none"


def test_a_change_raises_the_snapshots_version_and_a_refused_one_does_not(cast: Cast):
    def version() -> int:
        return ConfigVersion.objects.get(section="keys").number

    key, before = cast.key.pk, version()
    cast["alice"].patch(f"/api/keys/{key}", rate_limit_rpm=9)
    assert version() == before
    cast["ada"].patch(f"/api/keys/{key}", rate_limit_rpm=9)
    assert version() > before


# ── revocation and rotation ─────────────────────────────────────────────────────────────────────────────────────────


def test_revocation_is_for_good(cast: Cast):
    path = f"/api/keys/{cast.key.pk}"
    assert cast["alice"].delete(path).status == 204
    assert cast["alice"].get(path).body["status"] == "revoked"
    again = cast["alice"].delete(path)
    assert (again.status, again.body["type"]) == (409, "conflict_error")
    assert cast["alice"].post(f"{path}/rotate").status == 409
    refused = cast["alice's key"].get("/v1/models")
    assert (refused.status, refused.body["error"]["code"]) == (401, "key_revoked")
    cast["ada"].patch(path, expires_at="2999-01-01T00:00:00Z")
    assert cast["alice's key"].get("/api/keys").status == 401
    assert cast["ada"].delete("/api/keys/key_nothing").status == 404


def test_rotation_keeps_the_key_and_ends_the_old_secret_at_once(cast: Cast):
    path = f"/api/keys/{cast.key.pk}/rotate"
    answer = cast["alice's key"].send("POST", path)
    assert answer.status == 200
    assert (answer.body["key_data"]["id"], answer.body["key_data"]["user_id"]) == (cast.key.pk, "alice")
    assert answer.body["key"] != cast.secrets["alice's key"]
    assert cast["alice's key"].get("/api/keys").status == 401
    assert Door(secret=answer.body["key"]).get("/api/keys").status == 200


def test_both_secrets_work_until_the_grace_ends(cast: Cast):
    path = f"/api/keys/{cast.key.pk}/rotate"
    new = Door(secret=cast["ada"].post(path, grace_seconds=3600).body["key"])
    old = cast["alice's key"]
    assert (old.get("/api/keys").status, new.get("/api/keys").status) == (200, 200)
    until = VirtualKey.objects.get(pk=cast.key.pk).previous_until
    assert until is not None
    assert timedelta(minutes=59) < until - timezone.now() <= timedelta(hours=1)
    VirtualKey.objects.filter(pk=cast.key.pk).update(previous_until=timezone.now())
    assert (old.get("/api/keys").status, new.get("/api/keys").status) == (401, 200)


def test_the_same_rotation_again_gives_the_same_secret(cast: Cast):
    path = f"/api/keys/{cast.key.pk}/rotate"
    first = cast["ada"].post(path, rotation_id="r1", grace_seconds=3600).body["key"]
    row = VirtualKey.objects.get(pk=cast.key.pk)
    audited = AuditEntry.objects.count()
    assert cast["ada"].post(path, rotation_id="r1", grace_seconds=3600).body["key"] == first
    after = VirtualKey.objects.get(pk=cast.key.pk)
    assert (after.digest, after.previous_digest, after.previous_until) == (
        row.digest,
        row.previous_digest,
        row.previous_until,
    )
    assert AuditEntry.objects.count() == audited
    assert cast["alice's key"].get("/api/keys").status == 200, "the secret of before is still in its grace"
    other = cast["ada"].post(path, rotation_id="r2").body["key"]
    assert other != first


@pytest.mark.parametrize("then", ["r2", None])
def test_a_rotation_that_was_replaced_stays_dead(cast: Cast, then: str | None):
    path = f"/api/keys/{cast.key.pk}/rotate"
    leaked = cast["ada"].post(path, rotation_id="r1").body["key"]
    live = cast["ada"].post(path, **({"rotation_id": then} if then else {})).body["key"]
    assert cast["ada"].post(path, rotation_id="r1").status == 409
    assert Door(secret=leaked).get("/api/keys").status == 401
    assert Door(secret=live).get("/api/keys").status == 200


def test_two_keys_rotated_under_one_name_get_two_secrets(cast: Cast):
    secrets_ = {
        cast["ada"].post(f"/api/keys/{cast.keys[name].pk}/rotate", rotation_id="r").body["key"]
        for name in ("alice's key", "lone key")
    }
    assert len(secrets_) == 2


@pytest.mark.parametrize(
    ("field", "value"),
    [("grace_seconds", -1), ("grace_seconds", "60"), ("grace_seconds", 30 * 86400 + 1), ("grace_seconds", True),
     ("rotation_id", ""), ("rotation_id", "x" * 101), ("rotation_id", 5), ("grace", 5)],
)  # fmt: skip
def test_bad_rotations(cast: Cast, field: str, value: object):
    answer = cast["ada"].post(f"/api/keys/{cast.key.pk}/rotate", **{field: value})
    assert (answer.status, list(answer.body["errors"])) == (400, [field])
    assert cast["alice's key"].get("/api/keys").status == 200


# ── escalation ──────────────────────────────────────────────────────────────────────────────────────────────────────


def test_nobody_becomes_an_admin_by_an_admins_key(cast: Cast):
    """A lead reaches every key of the team, one with the admin role included: to rotate it would be to hold it."""
    key, _ = make_key("boss", user_id="bob", team="red", role="admin")
    for who in ("lea", "bob"):
        assert cast[who].get(f"/api/keys/{key.pk}").status == 200
        assert cast[who].post(f"/api/keys/{key.pk}/rotate").status == 403
        assert cast[who].patch(f"/api/keys/{key.pk}", name="n").status == 403
        assert cast[who].delete(f"/api/keys/{key.pk}").status == 403
    assert cast["ada"].post(f"/api/keys/{key.pk}/rotate").status == 200


def test_an_admins_ordinary_key_is_nobodys_master_key(cast: Cast):
    _, secret = make_key("mine", user_id="ada")
    door = Door(secret=secret)
    assert {key["name"] for key in door.get("/api/keys").body["keys"]} == {"mine"}
    assert door.get(f"/api/keys/{cast.key.pk}").status == 404
    assert door.get("/api/audit").status == 403
    assert door.get("/api/users").status == 403
    assert door.post("/api/keys", name="n", role="admin").status == 403


def test_a_members_new_key_frees_nobody_from_a_limit(cast: Cast):
    cast["ada"].patch(
        f"/api/keys/{cast.key.pk}", rate_limit_rpm=5, allowed_models=["cheap"], expires_at="2998-01-01T00:00:00Z"
    )
    for who in ("alice", "alice's key"):
        data = cast[who].post("/api/keys", name="n", expires_at="2999-01-01T00:00:00Z").body["key_data"]
        assert data["rate_limit_rpm"] == 5
        assert data["allowed_models"] == ["cheap"]
        assert data["monthly_quota_dollars"] == 50
        assert data["expires_at"] == "2998-01-01T00:00:00Z"
        assert (data["user_id"], data["team"]) == ("alice", "red")


def test_a_members_key_is_as_free_as_the_freest_they_hold(cast: Cast):
    make_key("free", user_id="alice")
    cast["ada"].patch(f"/api/keys/{cast.key.pk}", rate_limit_rpm=5, allowed_models=["cheap"])
    data = cast["alice"].post("/api/keys", name="n").body["key_data"]
    assert (data["rate_limit_rpm"], data["allowed_models"], data["monthly_quota_dollars"]) == (None, None, None)
    assert cast["alice's key"].post("/api/keys", name="n").body["key_data"]["rate_limit_rpm"] == 5, "its own, by a key"


def test_a_lead_stays_within_the_team_and_its_budget(cast: Cast):
    made = cast["lea"].post("/api/keys", name="n", user_id="bob", monthly_quota_dollars=100).body["key_data"]
    assert (made["user_id"], made["team"]) == ("bob", "red")
    for fields in (
        {"monthly_quota_dollars": 100.01}, {"user_id": "charlie"}, {"user_id": "nobody"}, {"team": "blue"},
        {"role": "admin"},
    ):  # fmt: skip
        answer = cast["lea"].post("/api/keys", name="n", **fields)
        assert answer.status == 403, fields
    assert VirtualKey.objects.filter(name="n").count() == 1
    assert not User.objects.filter(username="nobody").exists()


def test_what_a_file_defines_is_changed_in_the_file(cast: Cast):
    key, secret = make_key("declared", managed_by="environment")
    for answer in (
        cast["ada"].patch(f"/api/keys/{key.pk}", name="n"),
        cast["ada"].post(f"/api/keys/{key.pk}/rotate"),
        cast["ada"].delete(f"/api/keys/{key.pk}"),
    ):
        assert (answer.status, answer.body["type"]) == (409, "conflict_error")
        assert "environment" in answer.body["detail"]
    assert Door(secret=secret).get("/api/keys").status == 200
