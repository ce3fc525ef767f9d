"""`/api/billing/usage`: the ledger, a row a request."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.db import connection
from django.db.models import Exists
from django.utils import timezone

from billing import selectors
from billing.models import LedgerEntry
from tests.api.doors import Cast, make_cast
from tests.billing.test_api_budgets import entry

# The contract's list, in its order.
FIELDS = [
    "request_id",
    "client_request_id",
    "created_at",
    "key_id",
    "user_id",
    "team",
    "requested_model",
    "routed_model",
    "served_model",
    "provider",
    "status",
    "prompt_tokens",
    "completion_tokens",
    "cached_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
    "cost_usd",
    "currency",
    "unpriced",
    "estimated",
    "stream",
    "attempts",
    "latency_ms",
    "ttft_ms",
    "overhead_ms",
    "session_id",
    "tags",
    "security_action",
]
UNKNOWN_IN_FLIGHT = [
    "served_model",
    "prompt_tokens",
    "completion_tokens",
    "cached_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
    "cost_usd",
    "latency_ms",
    "ttft_ms",
    "overhead_ms",
]


@pytest.fixture
def cast(db) -> Cast:
    return make_cast()


def rows(cast: Cast, query: str = "", who: str = "ada") -> list[dict[str, Any]]:
    answer = cast[who].get(f"/api/billing/usage{query}")
    assert answer.status == 200, answer.body
    return list(answer.body["results"])


def ids(cast: Cast, query: str = "", who: str = "ada") -> list[str]:
    return [row["request_id"] for row in rows(cast, query, who)]


def hold(request_id: str, cast: Cast, key: str = "alice's key", **fields: Any) -> LedgerEntry:
    owner = {"user_id": key.split("'")[0], "team": "red"} if "'" in key and key != "red's key" else {}
    return entry(request_id, "hold", cast.keys[key].pk, **{**owner, **fields})


def close(
    request_id: str, cast: Cast, kind: str = "settlement", key: str = "alice's key", **fields: Any
) -> LedgerEntry:
    return entry(request_id, kind, cast.keys[key].pk, **{"status": 200, **fields})


def test_a_request_in_flight(cast: Cast):
    at = datetime(2026, 11, 5, 12, 0, 0, 250_000, tzinfo=UTC)
    hold(
        "r1",
        cast,
        created_at=at,
        client_request_id="mine",
        stream=True,
        session_id="s1",
        tags=["a", "b"],
        held_usd=Decimal(9),
    )
    (row,) = rows(cast)
    assert set(row) == set(FIELDS)
    assert row["status"] == "in_flight"
    assert {name: row[name] for name in UNKNOWN_IN_FLIGHT} == dict.fromkeys(UNKNOWN_IN_FLIGHT)
    assert (row["created_at"], row["client_request_id"], row["stream"]) == ("2026-11-05T12:00:00.250000Z", "mine", True)
    assert (row["key_id"], row["user_id"], row["team"]) == (cast.key.pk, "alice", "red")
    assert (row["session_id"], row["tags"], row["attempts"], row["currency"]) == ("s1", ["a", "b"], [], "USD")
    assert (row["unpriced"], row["estimated"]) == (False, False)


def test_a_settled_request(cast: Cast):
    hold("r1", cast, provider="openai", routed_model="gpt-a", requested_model="auto")
    attempts = [{"provider": "openai", "outcome": "timeout"}, {"provider": "azure", "outcome": "ok", "status": 200}]
    close(
        "r1", cast, provider="azure", routed_model="gpt-b", requested_model="auto", served_model="gpt-b-2026",
        status=200,
        prompt_tokens=100, completion_tokens=20, cached_tokens=5, cache_write_tokens=3, reasoning_tokens=2,
        cost_usd=Decimal("0.000123456789"), latency_ms=12.5, ttft_ms=3.25, overhead_ms=0.5, attempts=attempts,
        security_action="flag",
    )  # fmt: skip
    (row,) = rows(cast)
    expected = {
        "requested_model": "auto", "routed_model": "gpt-b", "served_model": "gpt-b-2026", "provider": "azure",
        "status": 200,
        "prompt_tokens": 100, "completion_tokens": 20, "cached_tokens": 5, "cache_write_tokens": 3,
        "reasoning_tokens": 2,
        "cost_usd": "0.000123456789", "latency_ms": 12.5, "ttft_ms": 3.25, "overhead_ms": 0.5, "attempts": attempts,
        "security_action": "flag", "estimated": False,
    }  # fmt: skip
    assert {name: row[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("cost", "shown"),
    [
        ("0", "0"),
        ("5", "5"),
        ("100", "100"),
        ("0.1", "0.1"),
        ("0.000000000001", "0.000000000001"),
        ("1234567.25", "1234567.25"),
    ],
)
def test_costs_are_exact_strings(cast: Cast, cost: str, shown: str):
    hold("r1", cast)
    close("r1", cast, cost_usd=Decimal(cost))
    assert rows(cast)[0]["cost_usd"] == shown


def test_an_unpriced_request_costs_nobody_knows_what(cast: Cast):
    hold("r1", cast, unpriced=True)
    assert rows(cast)[0]["unpriced"] is True
    close("r1", cast, unpriced=True, prompt_tokens=1)
    assert (rows(cast)[0]["cost_usd"], rows(cast)[0]["unpriced"]) == (None, True)


@pytest.mark.parametrize("status", [499, 502, 503])
def test_a_request_that_was_served_nothing_is_closed(cast: Cast, status: int):
    hold("r1", cast)
    close("r1", cast, kind="release", status=status)
    assert (rows(cast)[0]["status"], rows(cast)[0]["cost_usd"]) == (status, None)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)], ids=str)
def test_adjustments_add_up_and_have_the_last_word(cast: Cast, order: tuple[int, ...]):
    """Whatever was written when: the order of the ids is not the order of meaning."""
    hold("r1", cast)
    true: dict[str, Any] = {"served_model": "gpt-b", "latency_ms": 8.0, "status": 200, "estimated": False}
    guessed = {"status": 500, "prompt_tokens": 100, "completion_tokens": 7, "estimated": True}
    writes = [
        lambda: close("r1", cast, cost_usd=Decimal("1.25"), **guessed),
        lambda: close("r1", cast, kind="adjustment", cost_usd=Decimal("0.5"), prompt_tokens=-30, **true),
        lambda: close("r1", cast, kind="adjustment", cost_usd=Decimal("-0.25"), **true),
    ]
    for index in order:
        writes[index]()
    (row,) = rows(cast)
    assert (row["cost_usd"], row["prompt_tokens"], row["completion_tokens"]) == ("1.5", 70, 7)
    assert (row["status"], row["served_model"], row["latency_ms"], row["estimated"]) == (200, "gpt-b", 8.0, False)


def test_one_row_a_request_newest_first(cast: Cast):
    for index in range(5):
        hold(f"r{index}", cast)
    close("r1", cast)
    close("r3", cast)
    assert ids(cast) == ["r4", "r3", "r2", "r1", "r0"]


# ── pages ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_pages_are_whole_and_stay_right_while_requests_come_in(cast: Cast):
    for index in range(7):
        hold(f"r{index}", cast)
    seen: list[list[str]] = []
    path: str | None = "/api/billing/usage?limit=3&user_id=alice&tz=UTC"
    while path is not None:
        answer = cast["ada"].get(path).body
        seen.append([row["request_id"] for row in answer["results"]])
        path = answer["next"]
        assert path is None or path.startswith("/api/billing/usage?")
        hold(f"later{len(seen)}", cast)
    assert seen == [["r6", "r5", "r4"], ["r3", "r2", "r1"], ["r0"]]


def test_a_full_last_page_has_no_next(cast: Cast):
    for index in range(3):
        hold(f"r{index}", cast)
    assert cast["ada"].get("/api/billing/usage?limit=3").body["next"] is None
    assert cast["ada"].get("/api/billing/usage?limit=2").body["next"] is not None


def test_fifty_unless_said(cast: Cast):
    now = timezone.now()
    LedgerEntry.objects.bulk_create(
        LedgerEntry(
            request_id=f"r{index}", kind="hold", key_id=cast.key.pk, created_at=now, written_at=now, process_id="gw",
            provider="p", deployment="d", requested_model="m", routed_model="m", stream=False,
        )
        for index in range(1001)
    )  # fmt: skip
    assert len(rows(cast)) == 50
    answer = cast["ada"].get("/api/billing/usage?limit=1000").body
    assert len(answer["results"]) == 1000
    assert [row["request_id"] for row in cast["ada"].get(answer["next"]).body["results"]] == ["r0"]


def test_a_page_is_few_queries_however_many_rows(cast: Cast, django_assert_max_num_queries):
    for index in range(30):
        hold(f"r{index}", cast)
        close(f"r{index}", cast)
    with django_assert_max_num_queries(5):  # the key, that it was used, the holds, what closed and adjusted them
        assert len(rows(cast, who="admin key")) == 30


@pytest.mark.skipif(connection.vendor != "sqlite", reason="it is SQLite that proves little of an index's condition")
def test_what_closed_a_request_is_found_by_an_index(db):
    """Without, a filter by provider on sixty thousand requests took longer than anybody waited."""
    holds = LedgerEntry.objects.filter(~Exists(selectors._closings()), kind="hold")
    assert "one_closing_a_request" in holds.explain()
    assert "SCAN U0" not in holds.explain()
    later = LedgerEntry.objects.filter(selectors.IS_CLOSING, request_id__in=["r1", "r2"])
    assert "one_closing_a_request" in later.explain()


# ── filters and reach ───────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def ledger(cast: Cast) -> Cast:
    day = datetime(2026, 3, 10, 12, tzinfo=UTC)
    hold("alices", cast, created_at=day, provider="openai", requested_model="auto", routed_model="gpt-a")
    close(
        "alices",
        cast,
        created_at=day,
        provider="azure",
        requested_model="auto",
        routed_model="gpt-b",
        served_model="gpt-b-1",
    )
    hold("bobs", cast, key="bob's key", created_at=day + timedelta(days=1), provider="openai", requested_model="gpt-a")
    hold("charlies", cast, key="charlie's key", team="blue", created_at=day + timedelta(days=2), provider="anthropic")
    hold("reds", cast, key="red's key", team="red", created_at=day + timedelta(days=3), provider="anthropic")
    hold("lones", cast, key="lone key", created_at=day + timedelta(days=4), provider="anthropic")
    return cast


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("key_id={key}", "alices"), ("user_id=bob", "bobs"), ("team=red", "reds bobs alices"),
        ("team=blue", "charlies"),
        ("provider=azure", "alices"), ("provider=openai", "bobs"), ("provider=anthropic", "lones reds charlies"),
        ("model=auto", "alices"), ("model=gpt-b", "alices"), ("model=gpt-b-1", "alices"), ("model=gpt-a", "bobs"),
        ("model=gpt", "lones reds charlies bobs"), ("user_id=bob&team=blue", ""), ("user_id=nobody", ""),
        ("start_date=2026-03-12", "lones reds charlies"), ("end_date=2026-03-12", "bobs alices"),
        ("start_date=2026-03-11T12:00:00Z&end_date=2026-03-12T12:00:00Z", "bobs"),
        ("start_date=2026-03-11T12:00:00%2B00:00&end_date=2026-03-13T14:00:00%2B02:00", "charlies bobs"),
        ("start_date=2026-03-11T12:00:00.000001&end_date=2026-03-13", "charlies"),
        ("start_date=2026-03-11&end_date=2026-03-12&tz=Pacific/Kiritimati", "alices"),
        ("start_date=2026-03-12&end_date=2026-03-12", ""),
    ],
)  # fmt: skip
def test_filters(ledger: Cast, query: str, found: str):
    assert ids(ledger, "?" + query.replace("{key}", ledger.key.pk)) == found.split()


@pytest.mark.parametrize(
    ("who", "found"),
    [
        ("ada", "lones reds charlies bobs alices"), ("admin key", "lones reds charlies bobs alices"),
        ("fin", "lones reds charlies bobs alices"), ("vic", "lones reds charlies bobs alices"),
        ("lea", "reds bobs alices"), ("lex", "charlies"), ("alice", "alices"), ("alice's key", "alices"),
        ("bob", "bobs"),
        ("red's key", "reds"), ("lone key", "lones"),
    ],
)  # fmt: skip
def test_everyone_sees_their_own(ledger: Cast, who: str, found: str):
    assert ids(ledger, who=who) == found.split()
    filtered = ids(ledger, "?user_id=charlie", who=who)
    assert filtered == (["charlies"] if "charlies" in found.split() else [])


def test_a_key_that_was_revoked_keeps_its_rows(ledger: Cast):
    ledger["ada"].delete(f"/api/keys/{ledger.key.pk}")
    assert "alices" in ids(ledger)
    assert ids(ledger, who="alice") == ["alices"]


def test_what_waits_to_be_written_is_written_first(cast: Cast, monkeypatch):
    monkeypatch.setattr("billing.ledger.flush", lambda: hold("late", cast))
    assert ids(cast) == ["late"]


def test_no_pair_of_pages_by_a_forged_cursor(cast: Cast):
    hold("r1", cast)
    from keys.api.queries import cursor

    assert ids(cast, f"?cursor={cursor(2**62)}") == ["r1"]
    assert ids(cast, f"?cursor={cursor(1)}") == []
    assert ids(cast, f"?cursor={cursor(2**62)}", who="charlie") == []
