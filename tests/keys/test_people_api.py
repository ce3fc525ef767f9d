"""`/api/users` and `/api/teams`, and the services behind them."""

from decimal import Decimal

import pytest
from django.core.exceptions import PermissionDenied, ValidationError

from gateway.types import Role
from keys import services
from keys.actors import COMMAND, Actor
from keys.models import Team, User
from keys.policy import Conflict
from security.models import AuditEntry
from tests.api.doors import Cast, make_key

WHOLE = {
    "user_id": "dora",
    "display_name": "Dora D.",
    "email": "dora@example.com",
    "role": "viewer",
    "team": "green",
    "rate_limit_rpm": 5,
    "rate_limit_tpm": 6,
    "max_parallel": 7,
}


def test_a_user_is_made_and_read_back(cast: Cast):
    answer = cast["ada"].post("/api/users", **WHOLE)
    assert answer.status == 201
    shown = cast["ada"].get("/api/users/dora").body
    assert {name: shown[name] for name in WHOLE} == WHOLE
    assert shown == answer.body
    assert shown["is_active"] is True
    dora = User.objects.get(username="dora")
    assert not dora.has_usable_password()
    assert "password" not in shown
    assert cast["ada"].post("/api/users", user_id="dora").status == 409


def test_a_patch_changes_what_it_names(cast: Cast):
    cast["ada"].post("/api/users", **WHOLE)
    for change in ({"display_name": ""}, {"role": "member"}, {"team": None}, {"team": "blue"}, {"is_active": False},
                   {"rate_limit_rpm": None}, {"email": ""}):  # fmt: skip
        before = cast["ada"].get("/api/users/dora").body
        assert cast["ada"].patch("/api/users/dora", **change).body == {**before, **change}


@pytest.mark.parametrize(
    ("field", "value"),
    [("role", "king"), ("is_active", "yes"), ("is_active", 1), ("email", "nowhere"), ("user_id", "other"), ("team", 5),
     ("display_name", "x" * 201), ("password", "x"), ("must_change_password", False), ("max_parallel", 2**31)],
)  # fmt: skip
def test_bad_patches(cast: Cast, field: str, value: object):
    answer = cast["ada"].patch("/api/users/alice", **{field: value})
    assert (answer.status, list(answer.body["errors"])) == (400, [field])


def test_ids_are_free_strings(cast: Cast):
    for user_id in ("a/b", "a b", "a@b.example", "ünï", "a:b", "50%"):
        assert cast["ada"].post("/api/users", user_id=user_id).status == 201
        from urllib.parse import quote

        assert cast["ada"].get(f"/api/users/{quote(user_id)}").body["user_id"] == user_id
        assert cast["ada"].post("/api/teams", name=user_id).status == 201
        assert cast["ada"].get(f"/api/teams/{quote(user_id)}").body["name"] == user_id


def test_lists(cast: Cast):
    def users(who: str) -> list[str]:
        return [user["user_id"] for user in cast[who].get("/api/users").body["users"]]

    assert users("ada") == sorted(["ada", "alice", "bob", "charlie", "fin", "lea", "lex", "vic"])
    assert users("lea") == ["alice", "bob", "lea"]
    page = cast["ada"].get("/api/users?limit=2&offset=1").body
    assert ([user["user_id"] for user in page["users"]], page["total"]) == (["alice", "bob"], 8)
    assert [team["name"] for team in cast["ada"].get("/api/teams").body["teams"]] == ["blue", "red"]
    assert [team["name"] for team in cast["lea"].get("/api/teams").body["teams"]] == ["red"]


def test_a_lead_adds_to_their_own_team_and_nobodys_role(cast: Cast):
    made = cast["lea"].post("/api/users", user_id="dora", display_name="D", rate_limit_rpm=5).body
    assert (made["team"], made["role"]) == ("red", "member")
    assert cast["lea"].post("/api/users", user_id="eve", team="blue").status == 403
    assert cast["lea"].post("/api/users", user_id="eve", role="finance").status == 403
    assert not User.objects.filter(username="eve").exists()


def test_a_lead_without_a_team_reaches_nothing(cast: Cast):
    cast["ada"].patch("/api/users/lea", team=None)
    lea = type(cast["lea"])(user=User.objects.get(username="lea"))
    assert lea.get("/api/keys").body["keys"] == []
    assert lea.get("/api/users").body["users"] == [] or [u["user_id"] for u in lea.get("/api/users").body["users"]] == [
        "lea"
    ]
    assert lea.get("/api/billing/budget").body["budgets"] == []
    assert lea.post("/api/keys", name="n").status == 403
    assert lea.post("/api/users", user_id="dora").status == 403


def test_keys_without_a_team_follow_their_user(cast: Cast):
    assert cast["lea"].get(f"/api/keys/{cast.key.pk}").status == 200
    cast["ada"].patch("/api/users/alice", team="blue")
    assert cast["lea"].get(f"/api/keys/{cast.key.pk}").status == 404
    assert cast["lex"].get(f"/api/keys/{cast.key.pk}").body["team"] == "blue"


def test_teams_are_made_changed_and_audited(cast: Cast):
    made = cast["ada"].post("/api/teams", name="green", cost_centre="CC-1", rate_limit_rpm=5).body
    assert (made["name"], made["cost_centre"], made["rate_limit_rpm"], made["max_parallel"]) == (
        "green",
        "CC-1",
        5,
        None,
    )
    assert cast["ada"].post("/api/teams", name="green").status == 409
    assert cast["ada"].patch("/api/teams/green", cost_centre="CC-2", rate_limit_rpm=None).body["cost_centre"] == "CC-2"
    entry = AuditEntry.objects.filter(action="update").order_by("-id")[0]
    assert (entry.before, entry.after) == (
        {"cost_centre": "CC-1", "rate_limit_rpm": 5},
        {"cost_centre": "CC-2", "rate_limit_rpm": None},
    )
    assert cast["ada"].patch("/api/teams/green", name="other").status == 400


# ── services, from other doors ──────────────────────────────────────────────────────────────────────────────────────


def test_services_ask_the_policy_whoever_calls_them(cast: Cast):
    alice = Actor(role=Role.MEMBER, via="grpc", user_id="alice", team="red")
    bob = User.objects.get(username="bob")
    red = Team.objects.get(name="red")
    calls = [
        lambda: services.create_key(actor=alice, name="n", rate_limit_rpm=5),
        lambda: services.create_key(actor=alice, name="n", user_id="bob"),
        lambda: services.update_key(actor=alice, key=cast.keys["bob's key"], changes={"name": "n"}),
        lambda: services.update_key(actor=alice, key=cast.key, changes={"monthly_quota_dollars": Decimal(1000)}),
        lambda: services.revoke_key(actor=alice, key=cast.keys["bob's key"]),
        lambda: services.rotate_key(actor=alice, key=cast.keys["bob's key"]),
        lambda: services.ensure_user(actor=alice, user_id="dora"),
        lambda: services.ensure_team(actor=alice, name="green"),
        lambda: services.update_user(actor=alice, user=bob, changes={"display_name": "n"}),
        lambda: services.set_role(actor=alice, user=User.objects.get(username="alice"), role="admin"),
        lambda: services.update_team(actor=alice, team=red, changes={"rate_limit_rpm": 5}),
        lambda: services.set_password(actor=alice, user=bob, password="correct horse battery"),
        lambda: services.act_as(actor=alice, user_id="bob", method="GET", path="/"),
    ]
    for call in calls:
        with pytest.raises(PermissionDenied):
            call()


def test_a_lead_sets_nobodys_password(cast: Cast):
    lea = Actor(role=Role.TEAM_LEAD, via="console", user_id="lea", team="red")
    with pytest.raises(PermissionDenied):
        services.set_password(actor=lea, user=User.objects.get(username="alice"), password="correct horse battery")


def test_ones_own_password_is_ones_own_but_not_by_a_key(cast: Cast):
    alice = User.objects.get(username="alice")
    me = Actor(role=Role.MEMBER, via="console", user_id="alice")
    services.set_password(actor=me, user=alice, password="correct horse battery")
    assert User.objects.get(username="alice").check_password("correct horse battery")
    with pytest.raises(PermissionDenied):
        services.set_password(
            actor=Actor(role=Role.MEMBER, via="api", user_id="alice", own_only=True),
            user=alice,
            password="staple tower 77",
        )
    with pytest.raises(ValidationError):
        services.set_password(actor=me, user=alice, password="short")


def test_a_secret_from_the_environment_is_taken_once(cast: Cast):
    key, secret = services.create_key(actor=COMMAND, name="given", secret="a secret of the operator's own")
    assert secret == "a secret of the operator's own"
    with pytest.raises(Conflict):
        services.create_key(actor=COMMAND, name="again", secret=secret)
    services.rotate_key(actor=COMMAND, key=key, grace_seconds=60)
    with pytest.raises(Conflict):
        services.create_key(actor=COMMAND, name="again", secret=secret)


def test_columns_are_checked_at_every_door(cast: Cast):
    for fields in (
        {"name": ""},
        {"name": "x" * 201},
        {"name": "n", "rate_limit_rpm": 0},
        {"name": "n", "role": "king"},
    ):
        with pytest.raises(ValidationError):
            services.create_key(actor=COMMAND, **fields)
    with pytest.raises(ValidationError):
        services.update_key(actor=COMMAND, key=cast.key, changes={"rate_limit_rpm": -1})
    with pytest.raises(ValidationError):
        services.create_user(actor=COMMAND, user_id="")


def test_who_may_see_a_users_keys_is_not_who_may_see_the_user(cast: Cast):
    make_key("second", user_id="alice")
    assert cast["alice"].get("/api/keys").body["total"] == 2
    assert cast["alice"].get("/api/users/alice").status == 403
