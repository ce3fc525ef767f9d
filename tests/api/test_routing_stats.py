"""`GET /api/routing/stats`: what requests at the door add up to, and who is shown how much of it."""

import pytest
from django.db import connection

from gateway import lifespan
from gateway.models import RoutingStatistics
from gateway.statistics import requests, storage
from gateway.statistics.selectors import WINDOWS
from gateway.statistics.tallies import Load, Recorder
from tests.api.doors import EVERYONE, Cast
from tests.support.gateway import asking
from tests.support.upstream import hangs, refuses, says
from tests.support.waiting import eventually
from tests.support.world import make_deployment, make_key

PATH = "/api/routing/stats"
TOTALS = {"total_requests", "successful_requests", "failed_requests"}
FIGURES = {
    "requests", "success_rate", "avg_latency_ms", "p50_latency_ms", "p95_latency_ms", "p99_latency_ms", "in_flight",
    "circuit", "last_error",
}  # fmt: skip


def of_another_process(*latencies):
    """What another gateway process counted of `gpt-test` lately."""
    counted = Recorder()
    for latency in latencies:
        counted.ended("upstream", "gpt-test", 200, latency)
    counted.attempt_failed("upstream", "gpt-test", "timeout", None)
    storage.write("another", counted.tallies, Load())


# ── who is shown what ───────────────────────────────────────────────────────────────────────────────────────────────


def test_admins_and_viewers_see_all_the_others_totals(cast: Cast):
    of_another_process(100.0, 200.0)
    for who in EVERYONE:
        answer = cast[who].get(PATH)
        if who == "nobody":
            assert answer.status == 401
        elif who in ("ada", "vic", "admin key"):
            assert set(answer.body) == TOTALS | {"providers", "deployments"}, who
        else:
            assert answer.body == {"total_requests": 2, "successful_requests": 2, "failed_requests": 0}, who


def test_an_admin_who_acts_as_a_user_sees_what_the_user_sees(cast: Cast):
    assert set(cast["admin key"].get(PATH, **{"X-User-ID": "alice"}).body) == TOTALS


def test_the_shape(cast: Cast):
    of_another_process(*[float(n) for n in range(100, 200)])
    body = cast["vic"].get(PATH).body
    assert set(body["providers"]) == {"upstream"}
    assert set(body["deployments"]) == {"gpt-test"}
    figures = body["deployments"]["gpt-test"]
    assert set(figures) == FIGURES
    assert (figures["requests"], figures["success_rate"], figures["avg_latency_ms"]) == (101, 0.990099, 149.5)
    assert figures["p50_latency_ms"] == pytest.approx(149, rel=0.01)
    assert figures["p99_latency_ms"] == pytest.approx(198, rel=0.01)
    assert (figures["in_flight"], figures["circuit"]) == (0, "closed")
    error = figures["last_error"]
    assert (set(error), error["code"], error["status"]) == ({"code", "status", "at"}, "timeout", None)


@pytest.mark.parametrize("window", WINDOWS)
def test_the_windows(cast: Cast, window: str):
    of_another_process(100.0)
    assert cast["ada"].get(f"{PATH}?window={window}").body["total_requests"] == 1


@pytest.mark.parametrize("query", ["window=2h", "window=", "window=3600", "window=1h%00", "since=1h", "window=1H"])
def test_no_other_window(cast: Cast, query: str):
    answer = cast["ada"].get(f"{PATH}?{query}")
    assert answer.status == 400
    assert set(answer.body["errors"]) == {query.partition("=")[0]}


# ── through the door ────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture
def stats(gateway, committed):
    """`stats()`: what an admin is shown now."""
    admin = make_key(role="admin")

    def asked(query=""):
        answer = gateway.send("GET", PATH + query, key=admin)
        assert answer.status == 200, answer.raw
        return answer.body

    return asked


def totals(told):
    return tuple(told[name] for name in ("total_requests", "successful_requests", "failed_requests"))


def test_a_request_that_was_just_answered_is_in(gateway, model, alice, stats, stream):
    before = stats()
    assert totals(before) == (0, 0, 0)
    assert before["deployments"]["gpt-test"]["p50_latency_ms"] is None
    for number in range(1, 6):
        assert gateway.chat(alice, stream=stream).status == 200
        told = stats()
        assert totals(told) == (number, number, 0)
        figures = told["deployments"]["gpt-test"]
        assert (figures["requests"], figures["success_rate"]) == (number, 1.0)
        assert 0 < figures["p50_latency_ms"] <= figures["p95_latency_ms"] <= figures["p99_latency_ms"]
        assert told["providers"]["upstream"] == figures


def test_failures(gateway, model, alice, upstream, stats, stream):
    upstream.always(refuses(500))
    assert gateway.chat(alice, stream=stream).status == 502
    upstream.always(says())
    assert gateway.chat(alice, stream=stream).status == 200
    assert totals(stats()) == (2, 1, 1)


def test_what_is_the_clients_own_doing_counts_in_neither(gateway, model, alice, upstream, stats):
    upstream.will(refuses(400))
    assert gateway.chat(alice).status == 400
    assert gateway.chat(alice, model="unknown").status == 404
    assert gateway.chat(None).status == 401
    assert totals(stats()) == (0, 0, 0)


def test_a_request_that_no_deployment_could_take_failed(gateway, model, alice, upstream, stats, stream):
    upstream.always(refuses(401))
    assert gateway.chat(alice, stream=stream).status == 502
    assert gateway.chat(alice, stream=stream).status == 503
    assert totals(stats()) == (2, 0, 2)
    told = eventually(lambda: (s := stats())["deployments"]["gpt-test"]["circuit"] != "closed" and s)
    assert told["deployments"]["gpt-test"]["circuit"] == told["providers"]["upstream"]["circuit"] == "open"


def test_what_is_in_flight(gateway, model, alice, upstream, stats):
    upstream.will(hangs())
    with asking(gateway, alice, stream=True):
        told = eventually(lambda: (s := stats())["deployments"]["gpt-test"]["in_flight"] and s)
        assert told["deployments"]["gpt-test"]["in_flight"] == told["providers"]["upstream"]["in_flight"] == 1
        assert told["total_requests"] == 0
    eventually(lambda: stats()["deployments"]["gpt-test"]["in_flight"] == 0)


def test_all_processes_together(gateway, model, alice, stats):
    of_another_process(*[60_000.0] * 99)
    gateway.chat(alice)
    told = stats()
    assert totals(told) == (100, 100, 0)
    assert told["deployments"]["gpt-test"]["p50_latency_ms"] == pytest.approx(60_000, rel=0.01)


def test_a_restart_keeps_the_numbers(gateway, model, alice, stats):
    for _ in range(3):
        gateway.chat(alice)
    gateway.do(lifespan.close())
    assert not requests.tallies
    gateway.plane = gateway.do(lifespan.plane())
    assert totals(stats()) == (3, 3, 0)
    gateway.chat(alice)
    assert totals(stats()) == (4, 4, 0)


def test_others_see_it_soon(gateway, model, alice):
    """Within about a second, in the database."""
    gateway.chat(alice)
    assert eventually(lambda: sum(RoutingStatistics.objects.values_list("succeeded", flat=True)), 5) == 1


def test_a_database_that_refuses_them_loses_none(gateway, model, alice, stats):
    """The requests are served, and their ledger is written, all the same."""
    table = RoutingStatistics._meta.db_table
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER TABLE {table} RENAME TO elsewhere")
    try:
        answers = [gateway.chat(alice) for _ in range(3)]
        eventually(lambda: gateway.plane._statistics._failing)
        assert len(gateway.entries(answers[0].id)) == 2
    finally:
        with connection.cursor() as cursor:
            cursor.execute(f"ALTER TABLE elsewhere RENAME TO {table}")
    assert totals(stats()) == (3, 3, 0)
    eventually(lambda: sum(RoutingStatistics.objects.values_list("succeeded", flat=True)) == 3)
    assert totals(stats()) == (3, 3, 0)


def test_names_of_models_are_keys_as_they_are(gateway, provider, alice, stats):
    make_deployment(provider, "org/model:7b-ü")
    assert gateway.chat(alice, model="org/model:7b-ü").status == 200
    assert stats()["deployments"]["org/model:7b-ü"]["requests"] == 1
