"""Budgets' periods, thresholds and modes as a program meets them: set through the API, met at the door."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from billing import periods
from billing.alerts import thresholds
from billing.models import Alert, LedgerEntry
from tests.support.answers import assert_error
from tests.support.upstream import says
from tests.support.world import Key, make_budget, make_key

COST = Decimal("0.0000675")  # of an answer where nothing was scripted: 11 tokens in, 4 out
TOKENS = 15


@pytest.fixture
def admin(committed: None) -> Key:
    return make_key(role="admin")


@pytest.fixture
def api(gateway: Any, admin: Key) -> Callable[..., Any]:
    """`/api`, at the same door, as an admin."""

    def call(method: str, path: str, status: int, **fields: Any) -> Any:
        answer = gateway.send(method, path, key=admin, json=fields or None)
        assert answer.status == status, answer.raw
        return answer.body

    return call


def refused(answer: Any) -> str:
    return str(assert_error(answer, 402, "insufficient_quota", "budget_exceeded")["message"])


def today(tz: str = "UTC") -> date:
    return datetime.now(ZoneInfo(tz)).date()


def test_lesson_17_what_is_accepted_is_saved_and_enforced(gateway, model, alice, api, stream):
    """Through the API alone: set, read back, exceed, refused; raise it, and within a second it passes."""
    terms = {
        "period": "custom", "starts_on": f"{today() - timedelta(days=2)}", "days": 45, "repeats": True, "tz": "UTC",
        "limit_dollars": 0.0001, "limit_tokens": 10_000, "mode": "grace", "grace_percent": 30,
        "alert_thresholds": [10, 100],
    }  # fmt: skip
    made = api("POST", "/api/billing/budget", 201, key_id=alice.id, **terms)
    path = f"/api/billing/budgets/{made['id']}"
    shown = api("GET", path, 200)
    assert {name: shown[name] for name in terms} == terms

    assert gateway.chat(alice, stream=stream, max_tokens=5).status == 200
    message = refused(gateway.chat(alice, stream=stream, max_tokens=5))
    gateway.wait_until_quiet()
    assert "custom budget of this key" in message
    assert "limit $0.0001 and with its grace $0.00013" in message
    assert "used $0.0000675, reserved $0" in message
    _, resets = periods.bounds(periods.custom(today() - timedelta(days=2), 45, repeats=True), "UTC", datetime.now(UTC))
    assert f"It resets at {resets:%Y-%m-%dT%H:%M:%SZ}" in message
    assert api("GET", path, 200)["current"]["current_spend"] == float(COST)

    raised = time.monotonic()
    api("PATCH", path, 200, limit_dollars=1)
    assert gateway.chat(alice, stream=stream, max_tokens=5).status == 200
    assert time.monotonic() - raised < 1


@pytest.mark.parametrize("mode", ["hard", "grace"])
def test_requests_pass_up_to_the_limit_and_its_grace_and_not_one_more(gateway, model, alice, upstream, mode):
    """Tokens, so that the arithmetic is plain: each request uses 15 of 150, with 20 % of grace of 180."""
    budget = make_budget("key", alice.id, tokens=150, mode=mode, grace_percent=20)
    usage = {"prompt_tokens": 9, "completion_tokens": 6}
    upstream.will(*(says(usage=usage) for _ in range(20)))
    statuses = [gateway.chat(alice, max_tokens=6).status for _ in range(20)]
    gateway.wait_until_quiet()
    limit = 150 if mode == "hard" else 180
    assert statuses == sorted(statuses)
    assert limit - 40 < gateway.used(budget)[1] <= limit
    message = refused(gateway.chat(alice, max_tokens=1000))
    told = "limit 150 tokens, used" if mode == "hard" else "limit 150 tokens and with its grace 180, used"
    assert told in message


@pytest.mark.parametrize(("mode", "most"), [("hard", 100), ("grace", 125)])
def test_nobody_overshoots_limit_and_grace_at_once(gateway, model, alice, mode, most):
    budget = make_budget("key", alice.id, tokens=100, mode=mode, grace_percent=25)
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda _: gateway.chat(alice, max_tokens=4).status, range(32)))
    gateway.wait_until_quiet()
    assert set(answers) == {200, 402}
    assert answers.count(200) * TOKENS == gateway.used(budget)[1] <= most


class TestCustomPeriods:
    @pytest.mark.parametrize("tz", ["UTC", "Asia/Tokyo", "Europe/Amsterdam"])
    def test_a_project_is_limited_while_it_lasts(self, gateway, model, alice, stream, tz):
        make_budget("key", alice.id, tokens=1, period="custom", tz=tz, starts_on=today(tz), days=1)
        message = refused(gateway.chat(alice, stream=stream, max_tokens=100))
        midnight = datetime.combine(today(tz) + timedelta(days=1), datetime.min.time(), ZoneInfo(tz)).astimezone(UTC)
        assert "custom budget of this key" in message
        assert f"It ends at {midnight:%Y-%m-%dT%H:%M:%SZ}." in message

    @pytest.mark.parametrize("days_off", [1, -45])
    def test_before_and_after_it_does_not_apply(self, gateway, model, alice, stream, days_off):
        start = today() + timedelta(days=days_off)
        make_budget("key", alice.id, tokens=1, period="custom", starts_on=start, days=45)
        assert gateway.chat(alice, stream=stream, max_tokens=100).status == 200

    def test_a_repeating_one_begins_anew(self, gateway, model, alice, stream):
        make_budget(
            "key", alice.id, tokens=1, period="custom", starts_on=today() - timedelta(45), days=45, repeats=True
        )
        assert "It resets at" in refused(gateway.chat(alice, stream=stream, max_tokens=100))

    def test_what_was_spent_before_it_began_does_not_count(self, gateway, model, alice):
        gateway.chat(alice)
        gateway.wait_until_quiet()
        yesterday = datetime.now(UTC) - timedelta(days=1)
        LedgerEntry.objects.all()._raw_delete("default")
        assert gateway.chat(alice).status == 200
        gateway.wait_until_quiet()
        budget = make_budget("key", alice.id, tokens=1000, period="custom", starts_on=yesterday.date(), days=30)
        assert gateway.used(budget)[1] == TOKENS


def test_lesson_19_thresholds_by_real_requests(gateway, model, alice, stream):
    """Ten requests fill a tenth of the budget each; every threshold is told of at its request, once."""
    make_budget("key", alice.id, tokens=10 * TOKENS, alert_thresholds=[50, 80, 99, 100])
    watch, told = thresholds.Watch(), []
    for _ in range(10):
        assert gateway.chat(alice, stream=stream, max_tokens=4).status == 200
        gateway.wait_until_quiet()
        told.append(thresholds.notice(watch))
    assert told == [0, 0, 0, 0, 1, 0, 0, 1, 0, 2]
    alerts = Alert.objects.filter(kind="budget_threshold")
    assert sorted(alerts.values_list("level", flat=True)) == [50, 80, 99, 100]


@pytest.mark.parametrize("tz", ["Asia/Tokyo", "Europe/Amsterdam"])
def test_lesson_20_the_reset_that_is_told_is_a_local_midnight(gateway, model, alice, api, tz):
    api("POST", "/api/billing/budget", 201, key_id=alice.id, period="monthly", tz=tz, limit_tokens=1)
    message = refused(gateway.chat(alice, max_tokens=100))
    resets = datetime.strptime(message.rpartition("resets at ")[2], "%Y-%m-%dT%H:%M:%SZ.").replace(tzinfo=UTC)
    local = resets.astimezone(ZoneInfo(tz))
    assert (local.day, local.hour, local.minute) == (1, 0, 0)
    assert local.date() > today(tz)
