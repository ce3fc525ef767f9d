"""`/api/billing/budget` and `/api/billing/budgets`: set, read back, and true to the ledger."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.core.exceptions import PermissionDenied
from django.utils import timezone

from billing import periods, services
from billing.models import Budget, LedgerEntry
from gateway.types import Role
from keys.actors import Actor
from security.models import AuditEntry
from tests.api.doors import Cast, make_cast, make_key


@pytest.fixture
def cast(db) -> Cast:
    return make_cast()


def entry(request_id: str, kind: str, key_id: str, **fields: Any) -> LedgerEntry:
    """A row of the ledger, as its writer makes them."""
    now = timezone.now()
    return LedgerEntry.objects.create(
        **{
            "request_id": request_id, "kind": kind, "key_id": key_id, "created_at": now, "written_at": now,
            "process_id": "gw", "provider": "openai", "deployment": "gpt", "requested_model": "gpt",
            "routed_model": "gpt",
            "stream": False, **fields,
        }
    )  # fmt: skip


def settled(request_id: str, key_id: str, dollars: str, tokens: int = 0, **fields: Any) -> None:
    entry(request_id, "hold", key_id, held_usd=Decimal(99), held_prompt_tokens=99, held_output_tokens=99, **fields)
    costs = {"cost_usd": Decimal(dollars), "prompt_tokens": tokens, "completion_tokens": 0, "status": 200}
    entry(request_id, "settlement", key_id, **costs, **fields)


def figures(cast: Cast, who: str = "ada") -> dict:
    answer = cast[who].get(f"/api/billing/budget/{cast.key.pk}")
    assert answer.status == 200
    return dict(answer.body)


# ── a key's month ───────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_fresh_budget(cast: Cast):
    resets = periods.bounds("monthly", "UTC", timezone.now())[1]
    assert resets is not None
    assert figures(cast) == {
        "id": cast.budgets["alice's key"].pk,
        "key_id": cast.key.pk,
        "period": "monthly",
        "monthly_limit_dollars": 50.0,
        "monthly_limit_tokens": None,
        "current_spend": 0.0,
        "current_tokens": 0,
        "reserved": 0.0,
        "reserved_tokens": 0,
        "remaining_budget": 50.0,
        "resets_at": resets.isoformat().replace("+00:00", "Z"),
        "status": "healthy",
    }


def test_a_key_without_a_quota_has_figures_and_no_limits(cast: Cast):
    key = cast.keys["bob's key"].pk
    settled("r1", key, "1.25", tokens=7)
    told = cast["ada"].get(f"/api/billing/budget/{key}").body
    assert (told["id"], told["monthly_limit_dollars"], told["monthly_limit_tokens"], told["remaining_budget"]) == (
        None,
    ) * 4
    assert (told["current_spend"], told["current_tokens"], told["status"]) == (1.25, 7, "healthy")


def test_spend_is_what_was_settled_and_adjusted_of_this_key_in_this_period(cast: Cast):
    key = cast.key.pk
    settled("r1", key, "1.000000000001", tokens=10)
    settled("r2", key, "2", tokens=20)
    entry("r2", "adjustment", key, cost_usd=Decimal("-0.5"), prompt_tokens=5)
    settled("r3", cast.keys["bob's key"].pk, "7", tokens=70)
    start = periods.bounds("monthly", "UTC", timezone.now())[0]
    settled("r4", key, "100", tokens=100, created_at=start - timedelta(microseconds=1))
    settled("r5", key, "0.25", created_at=start)
    entry("r6", "hold", key, held_usd=Decimal(3))
    entry("r6", "release", key, status=503)
    entry("r7", "hold", key, held_usd=Decimal(3))
    entry("r7", "settlement", key, cost_usd=None, unpriced=True, prompt_tokens=1, status=200)
    told = figures(cast)
    assert told["current_spend"] == 2.750000000001
    assert told["current_tokens"] == 36
    assert (told["reserved"], told["reserved_tokens"]) == (0.0, 0)
    assert told["remaining_budget"] == 47.249999999999


def test_open_holds_are_reserved(cast: Cast):
    key = cast.key.pk
    entry("r1", "hold", key, held_usd=Decimal("1.5"), held_prompt_tokens=10, held_output_tokens=20)
    entry("r2", "hold", key, held_usd=None, held_prompt_tokens=5, held_output_tokens=None)
    entry("r3", "hold", cast.keys["bob's key"].pk, held_usd=Decimal(9), held_prompt_tokens=9)
    settled("r4", key, "0.5")
    told = figures(cast)
    assert (told["reserved"], told["reserved_tokens"], told["current_spend"]) == (1.5, 35, 0.5)
    assert told["remaining_budget"] == 48.0
    entry("r1", "settlement", key, cost_usd=Decimal("0.25"), status=200)
    assert (figures(cast)["reserved"], figures(cast)["current_spend"]) == (0.0, 0.75)


@pytest.mark.parametrize(
    ("spent", "status", "left"),
    [("39.999999999999", "healthy", 10.000000000001), ("40", "warning", 10), ("49.99", "warning", 0.01),
     ("50", "exceeded", 0), ("51", "exceeded", 0)],
)  # fmt: skip
def test_status_by_dollars(cast: Cast, spent: str, status: str, left: float):
    settled("r1", cast.key.pk, spent)
    told = figures(cast)
    assert (told["status"], told["remaining_budget"]) == (status, left)


@pytest.mark.parametrize(("tokens", "status"), [(799, "healthy"), (800, "warning"), (1000, "exceeded")])
def test_status_by_tokens_is_the_worse_of_the_two(cast: Cast, tokens: int, status: str):
    cast["ada"].patch(f"/api/keys/{cast.key.pk}", monthly_quota_tokens=1000)
    settled("r1", cast.key.pk, "1", tokens=tokens)
    assert figures(cast)["status"] == status


def test_a_budget_of_nothing_is_exceeded(cast: Cast):
    cast["ada"].patch(f"/api/keys/{cast.key.pk}", monthly_quota_dollars=0)
    told = figures(cast)
    assert (told["monthly_limit_dollars"], told["remaining_budget"], told["status"]) == (0.0, 0.0, "exceeded")


def test_the_month_is_the_budgets_own_time_zones(cast: Cast, monkeypatch):
    """Lesson 20: in Tokyo the month is nine hours ahead."""
    moment = datetime(2026, 3, 31, 16, 0, tzinfo=UTC)  # 1 April, 01:00, there
    monkeypatch.setattr("billing.selectors.timezone.now", lambda: moment)
    settled("r1", cast.key.pk, "1", created_at=datetime(2026, 3, 31, 14, 59, 59, tzinfo=UTC))
    settled("r2", cast.key.pk, "2", created_at=datetime(2026, 3, 31, 15, 0, tzinfo=UTC))
    assert (figures(cast)["current_spend"], figures(cast)["resets_at"]) == (3.0, "2026-04-01T00:00:00Z")
    cast["ada"].patch(_path(cast), tz="Asia/Tokyo")
    assert (figures(cast)["current_spend"], figures(cast)["resets_at"]) == (2.0, "2026-04-30T15:00:00Z")


def _path(cast: Cast, name: str = "alice's key") -> str:
    return f"/api/billing/budgets/{cast.budgets[name].pk}"


def test_what_waits_to_be_written_is_written_first(cast: Cast, monkeypatch):
    monkeypatch.setattr("billing.ledger.flush", lambda: settled("late", cast.key.pk, "4"))
    assert figures(cast)["current_spend"] == 4.0


def test_a_key_shows_this_months_usage(cast: Cast):
    settled("r1", cast.key.pk, "41.5", tokens=12)
    usage = cast["alice"].get(f"/api/keys/{cast.key.pk}").body["usage"]
    assert (usage["spend"], usage["tokens"], usage["status"]) == (41.5, 12, "warning")
    assert usage["resets_at"] == figures(cast)["resets_at"]


# ── budgets ─────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("whose", "scope", "owner"),
    [
        ({"user_id": "bob"}, "user", "bob"),
        ({"team": "blue"}, "team", "blue"),
        ({"organisation": True}, "organisation", ""),
    ],
)
@pytest.mark.parametrize("period", ["daily", "weekly", "total"])
def test_a_budget_is_set_and_read_back(cast: Cast, whose: dict, scope: str, owner: str, period: str):
    terms = {"period": period, "tz": "Europe/Amsterdam", "limit_dollars": 0.125, "limit_tokens": 5}
    answer = cast["fin"].post("/api/billing/budget", **whose, **terms)
    assert answer.status == 201
    expected = {"scope": scope, "key_id": None, "user_id": None, "team": None, "organisation": False, **whose, **terms}
    shown = cast["fin"].get(f"/api/billing/budgets/{answer.body['id']}").body
    assert {name: shown[name] for name in expected} == expected
    assert shown["current"]["status"] == "healthy"
    assert Budget.objects.get(pk=answer.body["id"]).owner == owner


def test_to_set_it_again_replaces_it_whole(cast: Cast):
    first = (
        cast["ada"]
        .post("/api/billing/budget", key_id=cast.key.pk, limit_dollars=9, limit_tokens=9, tz="Asia/Tokyo")
        .body
    )
    second = cast["ada"].post("/api/billing/budget", key_id=cast.key.pk, limit_dollars=8)
    assert (second.status, second.body["id"]) == (201, first["id"])
    assert (second.body["limit_dollars"], second.body["limit_tokens"], second.body["tz"]) == (8.0, None, "UTC")
    assert cast["ada"].get(f"/api/keys/{cast.key.pk}").body["monthly_quota_dollars"] == 8.0


def test_monthly_names_are_accepted_for_monthly_budgets(cast: Cast):
    answer = cast["ada"].post("/api/billing/budget", user_id="bob", monthly_limit_dollars=7, monthly_limit_tokens=8)
    assert (answer.body["limit_dollars"], answer.body["limit_tokens"], answer.body["period"]) == (7.0, 8, "monthly")


def test_owners_named_for_the_first_time_are_made_by_an_admin_alone(cast: Cast):
    assert cast["fin"].post("/api/billing/budget", user_id="dora", limit_dollars=1).status == 403
    assert cast["ada"].post("/api/billing/budget", user_id="dora", limit_dollars=1).status == 201
    assert cast["ada"].post("/api/billing/budget", team="green", limit_dollars=1).status == 201
    assert cast["ada"].get("/api/users/dora").status == cast["ada"].get("/api/teams/green").status == 200
    assert cast["ada"].post("/api/billing/budget", key_id="key_none", limit_dollars=1).status == 404


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"limit_dollars": 1}, "non_field_errors"),
        ({"user_id": "bob", "team": "red", "limit_dollars": 1}, "non_field_errors"),
        ({"organisation": False, "limit_dollars": 1}, "non_field_errors"),
        ({"user_id": "bob"}, "limit_dollars"),
        ({"user_id": "bob", "limit_dollars": None}, "limit_dollars"),
        ({"user_id": "bob", "limit_dollars": -1}, "limit_dollars"),
        ({"user_id": "bob", "limit_dollars": "5"}, "limit_dollars"),
        ({"user_id": "bob", "limit_dollars": 10_000_000}, "limit_dollars"),
        ({"user_id": "bob", "limit_tokens": 2**63}, "limit_tokens"),
        ({"user_id": "bob", "limit_tokens": 1.5}, "limit_tokens"),
        ({"user_id": "bob", "limit_tokens": 1, "period": "hourly"}, "period"),
        ({"user_id": "bob", "limit_tokens": 1, "tz": "Mars"}, "tz"),
        ({"user_id": "bob", "limit_tokens": 1, "tz": "../etc/passwd"}, "tz"),
        ({"user_id": "bob", "limit_tokens": 1, "tz": 5}, "tz"),
        ({"user_id": None, "limit_tokens": 1}, "user_id"),
        ({"organisation": "true", "limit_tokens": 1}, "organisation"),
        ({"user_id": "bob", "period": "daily", "monthly_limit_dollars": 1}, "monthly_limit_dollars"),
        ({"user_id": "bob", "limit_dollars": 2, "monthly_limit_dollars": 1}, "monthly_limit_dollars"),
        ({"user_id": "bob", "limit_dollars": 2, "owner": "x"}, "owner"),
    ],
)
def test_what_is_no_budget(cast: Cast, fields: dict, wrong: str):
    before = Budget.objects.count()
    answer = cast["ada"].post("/api/billing/budget", **fields)
    assert (answer.status, list(answer.body["errors"])) == (400, [wrong])
    assert Budget.objects.count() == before


def test_changes_are_what_they_name_audited_and_leave_a_limit(cast: Cast):
    answer = cast["fin"].patch(_path(cast), limit_tokens=5)
    assert (answer.body["limit_dollars"], answer.body["limit_tokens"]) == (50.0, 5)
    entry = AuditEntry.objects.order_by("-id")[0]
    assert (entry.actor, entry.action, entry.before, entry.after) == (
        "user:fin", "update", {"limit_tokens": None}, {"limit_tokens": 5},
    )  # fmt: skip
    assert cast["fin"].patch(_path(cast), limit_tokens=None).status == 200
    assert cast["fin"].patch(_path(cast), limit_dollars=None).status == 400
    assert Budget.objects.get(pk=cast.budgets["alice's key"].pk).limit_dollars == 50
    for fields in ({"scope": "team"}, {"owner": "x"}, {"period": "daily"}, {"key_id": "k"}, {"id": 5}):
        assert cast["fin"].patch(_path(cast), **fields).status == 400


def test_a_lifted_budget_is_gone_and_audited(cast: Cast):
    assert cast["fin"].delete(_path(cast)).status == 204
    assert cast["fin"].get(_path(cast)).status == cast["fin"].delete(_path(cast)).status == 404
    assert cast["ada"].get(f"/api/keys/{cast.key.pk}").body["monthly_quota_dollars"] is None
    entry: Any = AuditEntry.objects.order_by("-id")[0]
    assert (entry.action, entry.object_type) == ("delete", "billing.budget")
    assert Decimal(entry.before["limit_dollars"]) == 50


def test_lists_show_what_the_caller_may_see(cast: Cast):
    make_key("blue's", team="blue", monthly_quota_tokens=5)

    def seen(who: str) -> set[str]:
        answer = cast[who].get("/api/billing/budget").body
        assert answer["total"] == len(answer["budgets"])
        return {
            f"{budget['scope']} {budget['key_id'] or budget['user_id'] or budget['team']}"
            for budget in answer["budgets"]
        }

    hers = {f"key {cast.key.pk}", "user alice"}
    assert seen("alice") == seen("alice's key") == hers
    assert seen("lea") == hers | {"team red"}
    assert seen("bob") == seen("charlie") == seen("lone key") == set()
    assert len(seen("lex")) == 1
    assert seen("ada") == seen("fin") == seen("vic")
    assert len(seen("ada")) == 5


@pytest.mark.parametrize("name", ["alice", "red", "organisation"])
def test_figures_of_users_teams_and_the_organisation(cast: Cast, name: str):
    settled("r1", cast.key.pk, "3", tokens=30, user_id="alice", team="red")
    settled("r2", cast.keys["charlie's key"].pk, "5", tokens=50, user_id="charlie", team="blue")
    entry("r3", "hold", cast.key.pk, held_usd=Decimal(1), user_id="alice", team="red")
    told = cast["ada"].get(_path(cast, name)).body["current"]
    spent = 8.0 if name == "organisation" else 3.0
    assert (told["current_spend"], told["reserved"]) == (spent, 1.0)
    assert told["remaining_budget"] == float(cast.budgets[name].limit_dollars or 0) - spent - 1


def test_a_total_never_resets(cast: Cast):
    settled("r1", cast.key.pk, "3", created_at=datetime(2020, 1, 1, tzinfo=UTC))
    made = cast["ada"].post("/api/billing/budget", key_id=cast.key.pk, period="total", limit_dollars=9).body
    told = cast["ada"].get(f"/api/billing/budgets/{made['id']}").body["current"]
    assert (told["resets_at"], told["current_spend"], told["remaining_budget"]) == (None, 3.0, 6.0)


def test_a_leads_ceiling_is_the_teams_budget_of_the_same_period(cast: Cast):
    key = cast.key.pk
    assert cast["lea"].post("/api/billing/budget", key_id=key, limit_dollars=100).status == 201
    assert cast["lea"].post("/api/billing/budget", key_id=key, limit_dollars=100.01).status == 403
    assert cast["lea"].post("/api/billing/budget", key_id=key, period="daily", limit_dollars=500).status == 201
    assert cast["lea"].patch(f"/api/keys/{key}", monthly_quota_dollars=None).status == 200, "the team's still applies"
    assert cast["lea"].post("/api/billing/budget", team="red", limit_tokens=5).status == 403, "that lifts the dollars"
    assert cast["lea"].post("/api/billing/budget", team="red", limit_dollars=40, limit_tokens=5).status == 201
    assert cast["lea"].post("/api/billing/budget", key_id=key, limit_dollars=41).status == 403
    assert Budget.objects.get(scope="team", period="monthly").limit_dollars == 40


def test_services_ask_the_policy_whoever_calls_them(cast: Cast):
    lex = Actor(role=Role.TEAM_LEAD, via="grpc", user_id="lex", team="blue")
    alice = Actor(role=Role.MEMBER, via="grpc", user_id="alice", team="red")
    for actor in (lex, alice):
        for budget in cast.budgets.values():
            with pytest.raises(PermissionDenied):
                services.update_budget(actor=actor, budget=budget, changes={"limit_dollars": Decimal(1)})
            with pytest.raises(PermissionDenied):
                services.delete_budget(actor=actor, budget=budget)
            with pytest.raises(PermissionDenied):
                services.set_budget(
                    actor=actor, scope=budget.scope, owner=budget.owner, limit_dollars=Decimal(1), limit_tokens=None
                )
    assert {budget.limit_dollars for budget in Budget.objects.all()} == {50, 60, 100, 1000}


# ── periods, modes, thresholds ──────────────────────────────────────────────────────────────────────────────────────


def test_what_is_omitted_is_as_documented(cast: Cast):
    made = cast["ada"].post("/api/billing/budget", user_id="bob", limit_dollars=1).body
    told = {name: made[name] for name in ("mode", "grace_percent", "alert_thresholds", "starts_on", "days", "repeats")}
    assert told == {
        "mode": "hard", "grace_percent": 10, "alert_thresholds": [50, 80, 100], "starts_on": None, "days": None,
        "repeats": False,
    }  # fmt: skip


def test_a_custom_period_and_its_figures(cast: Cast, monkeypatch):
    moment = datetime(2026, 4, 1, tzinfo=UTC)
    monkeypatch.setattr("billing.selectors.timezone.now", lambda: moment)
    dates = {"period": "custom", "starts_on": "2026-03-03", "days": 45, "tz": "Europe/Amsterdam"}
    made = cast["ada"].post("/api/billing/budget", key_id=cast.key.pk, limit_dollars=10, **dates)
    assert made.status == 201
    assert {name: made.body[name] for name in dates} == dates
    for day, dollars in ((datetime(2026, 3, 2, 22, 59, tzinfo=UTC), "1"), (datetime(2026, 3, 2, 23, tzinfo=UTC), "2")):
        settled(f"r{dollars}", cast.key.pk, dollars, created_at=day)
    path = f"/api/billing/budgets/{made.body['id']}"
    current = cast["ada"].get(path).body["current"]
    assert (current["current_spend"], current["remaining_budget"], current["resets_at"]) == (2.0, 8.0, None)
    repeated = cast["ada"].patch(path, repeats=True, days=14).body
    assert (repeated["repeats"], repeated["days"]) == (True, 14)
    assert (repeated["current"]["current_spend"], repeated["current"]["resets_at"]) == (0.0, "2026-04-13T22:00:00Z")


def test_a_grace_is_above_the_limit_that_is_told(cast: Cast):
    made = cast["ada"].patch(_path(cast), mode="grace", grace_percent=20).body
    assert (made["limit_dollars"], made["mode"], made["grace_percent"]) == (50.0, "grace", 20)
    settled("r1", cast.key.pk, "55")
    assert (figures(cast)["remaining_budget"], figures(cast)["status"]) == (0.0, "exceeded")
    assert figures(cast)["monthly_limit_dollars"] == 50.0
    assert cast["ada"].get(f"/api/keys/{cast.key.pk}").body["monthly_quota_dollars"] == 50.0
    terms = Budget.objects.get(pk=cast.budgets["alice's key"].pk).terms()
    assert (terms.limit_usd, terms.stated_usd) == (Decimal(60), Decimal(50))


def test_a_keys_quota_leaves_its_budgets_other_terms_alone(cast: Cast):
    cast["ada"].patch(_path(cast), mode="grace", alert_thresholds=[90, 10])
    cast["ada"].patch(f"/api/keys/{cast.key.pk}", monthly_quota_dollars=7)
    told = cast["ada"].get(_path(cast)).body
    assert (told["limit_dollars"], told["mode"], told["alert_thresholds"]) == (7.0, "grace", [10, 90])


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"period": "custom"}, "starts_on"),
        ({"period": "custom", "starts_on": "2026-03-03"}, "days"),
        ({"period": "custom", "starts_on": "3 March", "days": 5}, "starts_on"),
        ({"period": "custom", "starts_on": "1999-12-31", "days": 5}, "starts_on"),
        ({"period": "custom", "starts_on": 20260303, "days": 5}, "starts_on"),
        ({"period": "custom", "starts_on": "2026-03-03", "days": 0}, "days"),
        ({"period": "custom", "starts_on": "2026-03-03", "days": 3661}, "days"),
        ({"period": "custom", "starts_on": "2026-03-03", "days": "45"}, "days"),
        ({"period": "monthly", "starts_on": "2026-03-03", "days": 45}, "starts_on"),
        ({"repeats": True}, "starts_on"),
        ({"mode": "soft"}, "mode"),
        ({"grace_percent": 0}, "grace_percent"),
        ({"grace_percent": 101}, "grace_percent"),
        ({"alert_thresholds": "50"}, "alert_thresholds"),
        ({"alert_thresholds": [0]}, "alert_thresholds"),
        ({"alert_thresholds": [1001]}, "alert_thresholds"),
        ({"alert_thresholds": [50, 50]}, "alert_thresholds"),
        ({"alert_thresholds": [50.5]}, "alert_thresholds"),
        ({"alert_thresholds": list(range(1, 22))}, "alert_thresholds"),
        ({"alert_thresholds": None}, "alert_thresholds"),
    ],
)
def test_what_are_no_terms(cast: Cast, fields: dict, wrong: str):
    answer = cast["ada"].post("/api/billing/budget", user_id="bob", limit_dollars=1, **fields)
    assert (answer.status, list(answer.body["errors"])) == (400, [wrong])


def test_a_lead_changes_nothing_but_the_limits_of_the_teams_own(cast: Cast):
    def put(**fields: Any) -> int:
        return cast["lea"].post("/api/billing/budget", **{"team": "red", "limit_dollars": 90, **fields}).status

    assert [put(), put(mode="grace"), put(alert_thresholds=[]), put(tz="Asia/Tokyo")] == [201, 403, 403, 403]
    assert cast["lea"].post("/api/billing/budget", user_id="alice", limit_dollars=5, mode="grace").status == 201
