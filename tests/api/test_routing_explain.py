"""`POST /api/routing/explain`: where a request would go, without its going anywhere."""

import pytest

from gateway.circuits import FAILURES_WITH_ANOTHER
from tests.support.upstream import refuses
from tests.support.world import make_deployment, make_group, make_key, make_price, make_weight

PATH = "/api/routing/explain"
QUESTION = [{"role": "user", "content": "Hi there"}]


@pytest.fixture
def admin(committed):
    return make_key("ada", role="admin")


@pytest.fixture
def explain(gateway, admin):
    def asked(model="pool", **body):
        answer = gateway.send("POST", PATH, key=admin, json={"model": model, "messages": QUESTION, **body})
        assert answer.status == 200, answer.body
        return answer.body

    return asked


def test_the_cheapest_is_chosen_and_the_scores_say_why(explain, gateway, provider, alice, upstream):
    make_price("dear", input="50", output="50")
    make_price("cheap", input="1", output="1")
    make_group(
        "pool", *(make_deployment(provider, name) for name in ("unpriced", "dear", "cheap")), strategy="cost_optimized"
    )
    body = explain()
    assert (body["model"], body["strategy"], body["chosen"]) == ("pool", "cost_optimized", "cheap")
    assert [(row["deployment"], row["position"]) for row in body["candidates"]] == [
        ("cheap", 1), ("dear", 2), ("unpriced", 3),
    ]  # fmt: skip
    cheap, dear, unpriced = (row["score"] for row in body["candidates"])
    assert 0 < cheap < dear
    assert unpriced is None
    assert gateway.chat(alice, model="pool").headers["x-ailb-model"] == "cheap"
    assert len(upstream.requests) == 1


def test_asking_changes_nothing(explain, gateway, provider, alice):
    make_group("pool", *(make_deployment(provider, name) for name in "abc"), strategy="round_robin")
    for expected in "abcab":
        assert {explain()["chosen"] for _ in range(3)} == {expected}
        assert gateway.chat(alice, model="pool").headers["x-ailb-model"] == expected


def test_why_some_are_left_out(explain, gateway, provider, alice, upstream):
    deployments = [
        make_deployment(provider, "blind", capabilities={"vision": False}),
        make_deployment(provider, "small", context_window=5),
        make_deployment(provider, "broken"),
        make_deployment(provider, "able"),
    ]
    make_group("pool", *deployments)
    upstream.always(refuses(401), model="broken")
    assert gateway.chat(alice, model="broken").status == 502
    image = {"type": "image_url", "image_url": {"url": "https://images.example/cat.png"}}
    body = explain(messages=[{"role": "user", "content": [image]}])
    assert body["chosen"] == "able"
    assert {row["deployment"]: row["left_out"] for row in body["candidates"]} == {
        "able": None, "blind": "vision", "small": "context", "broken": "circuit",
    }  # fmt: skip
    states = {row["deployment"]: row["circuit"] for row in body["candidates"]}
    assert (states["broken"], states["able"]) == ("open", "closed")


def test_one_that_comes_last_since_it_failed(explain, gateway, provider, alice, upstream):
    """Its circuit opened early: it is tried where nobody else answers, and was not among those whose price counted."""
    for name in "abc":
        make_price(name)
    make_group("pool", *(make_deployment(provider, name) for name in "abc"), strategy="cost_optimized")
    upstream.always(refuses(500), model="a")
    for _ in range(FAILURES_WITH_ANOTHER):
        assert gateway.chat(alice, model="pool").status == 200
    rows = explain()["candidates"]
    assert [(row["deployment"], row["position"], row["score"] is None) for row in rows] == [
        ("b", 1, False), ("c", 2, False), ("a", 3, True),
    ]  # fmt: skip


def test_what_is_drained_and_what_is_in_two_pools(explain, provider):
    a, b, c = (make_deployment(provider, name, version=name) for name in "abc")
    group = make_group("pool", a, b, fallbacks=[make_group("spare", b, c)])
    make_weight("a", 0, group)
    rows = explain()["candidates"]
    assert [(row["deployment"], row["pool"], row["position"], row["left_out"]) for row in rows] == [
        ("b", "pool", 1, None), ("c", "spare", 2, None), ("a", "pool", None, "drained"),
    ]  # fmt: skip


def test_a_request_that_nobody_can_serve_has_no_choice(explain, provider):
    make_group("pool", make_deployment(provider, "mute", capabilities={"chat": False}))
    body = explain()
    assert (body["chosen"], body["strategy"]) == (None, None)
    assert [(row["left_out"], row["position"]) for row in body["candidates"]] == [("chat", None)]


def test_sessions_are_those_of_whoever_asks(explain, gateway, admin, provider):
    make_group("pool", *(make_deployment(provider, name) for name in "abcdef"), strategy="random")
    served = gateway.chat(admin, model="pool", session_id="s").headers["x-ailb-model"]
    body = explain(session_id="s")
    assert body["chosen"] == served
    assert [row["deployment"] for row in body["candidates"] if row["holds_cache"]] == [served]


def test_what_is_wrong_with_the_request(gateway, admin, provider):
    make_deployment(provider, "a")
    for body, status in (({"model": "a"}, 400), ({"model": "nobody", "messages": QUESTION}, 404), ([], 400)):
        assert gateway.send("POST", PATH, key=admin, json=body).status == status


def test_the_decision_is_kept_with_the_request(gateway, admin, provider, alice):
    make_group("pool", make_deployment(provider, "a"), make_deployment(provider, "b"), strategy="round_robin")
    make_deployment(provider, "alone")
    gateway.chat(alice, model="alone")
    gateway.chat(alice, model="pool")
    rows = gateway.send("GET", "/api/billing/usage", key=admin).body["results"]
    assert [row.get("routing") for row in rows] == [{"pool": "pool", "strategy": "round_robin", "of": 2}, None]
