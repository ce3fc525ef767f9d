"""One that fails before its first content is followed by another, as long as there is one, time and money."""

import random
import threading
import time
from decimal import Decimal

import pytest

from gateway import retries
from gateway.deadlines import Deadlines
from gateway.models import Deployment
from gateway.retries import RetryBudget
from tests.support.answers import assert_error, assert_stream_error
from tests.support.dialect_registry import PROVIDERS, serve
from tests.support.dialects import Say, Tokens
from tests.support.gateway import asking
from tests.support.upstream import answers, bytes_of, delta, drops, hangs, refuses, says, sends
from tests.support.world import fall_back, make_budget, make_deployment, make_group, make_price, make_provider

# What a deployment does that another may make up for; the status that it is remembered with.
FAULTS = {
    "500": (refuses(500), 500),
    "503": (refuses(503), 503),
    "429": (refuses(429, retry_after="30"), 429),
    "401": (refuses(401), 401),
    "403": (refuses(403), 403),
    "402": (refuses(402), 402),
    "404": (refuses(404), 404),
    "no answer": (drops(), None),
    "no HTTP": (bytes_of(b"Good morning\r\n\r\n"), None),
    "no JSON": (answers(b"<html>", 200), 200),
}


@pytest.fixture
def deployments(gateway, provider, alice):
    """`deployments("a", "b")`: priced ones of these names."""

    def made(*names, **fields):
        for name in names:
            make_price(name)
        return [make_deployment(provider, name, **fields) for name in names]

    return made


@pytest.fixture
def pair(deployments):
    return make_group("pair", *deployments("a", "b"))


@pytest.fixture
def quick(gateway):
    """Pauses before the same deployment is asked again are noted, and not made."""
    pauses = []

    class Dice(random.Random):
        def uniform(self, low, high):
            pauses.append((low, high))
            return 0.0

    gateway.plane.signals.rng = Dice(1)
    return pauses


def asked(upstream):
    return [received.body["model"] for received in upstream.requests]


def tried(row):
    return [(attempt["deployment"], attempt["outcome"], attempt["status"]) for attempt in row.attempts]


class TestOverDeployments:
    @pytest.mark.parametrize("fault", FAULTS)
    def test_the_next_one_answers(self, gateway, pair, alice, upstream, stream, fault):
        script, status = FAULTS[fault]
        upstream.will(script, model="a")
        answer = gateway.chat(alice, model="pair", stream=stream)
        assert (answer.status, answer.text) == (200, "Hello there.")
        assert (answer.headers["x-ailb-model"], answer.headers["x-ailb-attempts"]) == ("b", "2")
        assert asked(upstream) == ["a", "b"]
        assert upstream.requests[0].body["messages"] == upstream.requests[1].body["messages"]
        row = gateway.settlement(answer.id)
        assert (row.requested_model, row.routed_model, row.served_model) == ("pair", "b", "b")
        assert (row.deployment, row.status, row.cost_usd) == ("b", 200, Decimal("0.0000675"))
        (first, _, told), second = tried(row)
        assert (first, told) == ("a", status)
        assert second == ("b", "ok", 200)
        assert row.attempts[0]["error"]
        assert "cost_usd" not in row.attempts[0]
        assert 0 <= row.attempts[0]["started_ms"] <= row.attempts[1]["started_ms"]

    def test_the_clients_mistake_is_nobody_elses(self, gateway, pair, alice, upstream, stream):
        upstream.will(refuses(400, "Bad temperature", param="temperature"), model="a")
        answer = gateway.chat(alice, model="pair", stream=stream)
        assert answer.status == 400
        assert asked(upstream) == ["a"]
        row = gateway.closing(answer.id)
        assert (row.kind, row.status, tried(row)) == ("release", 400, [("a", "invalid_request", 400)])

    def test_the_last_ones_failure_is_told(self, gateway, pair, alice, upstream, stream):
        upstream.will(refuses(500, "The first."), model="a")
        upstream.will(refuses(503, "The second."), model="b")
        answer = gateway.chat(alice, model="pair", stream=stream)
        assert_error(answer, 502, "upstream_error", "upstream_error", says="The second.")
        row = gateway.closing(answer.id)
        assert (row.kind, row.status, row.cost_usd, row.unpriced) == ("release", 502, 0, False)
        assert tried(row) == [("a", "upstream_error", 500), ("b", "upstream_error", 503)]

    def test_a_first_byte_that_does_not_come(self, gateway, pair, provider, alice, upstream, stream):
        provider.first_byte_timeout = 0.2
        provider.save()
        upstream.will(hangs(), model="a")
        answer = gateway.chat(alice, model="pair", stream=stream)
        assert (answer.status, answer.headers["x-ailb-model"]) == (200, "b")
        assert upstream.requests[0].was_dropped()
        assert tried(gateway.settlement(answer.id)) == [("a", "timeout", None), ("b", "ok", 200)]

    @pytest.mark.parametrize("end", ["cut", "reset", "orderly"])
    def test_a_stream_that_ends_before_its_first_content(self, gateway, pair, alice, upstream, end):
        upstream.will(sends(delta(role="assistant", content=""), 0.02, end=end), model="a")
        answer = gateway.chat(alice, model="pair", stream=True)
        assert (answer.status, answer.text, answer.done) == (200, "Hello there.", True)
        assert asked(upstream) == ["a", "b"]
        row = gateway.settlement(answer.id)
        assert (row.deployment, row.served_model) == ("b", "b")
        assert [name for name, _, _ in tried(row)] == ["a", "b"]

    def test_a_stream_that_stalls_before_its_first_content(self, gateway, pair, provider, alice, upstream):
        provider.idle_timeout = 0.2
        provider.save()
        upstream.will(sends(delta(role="assistant", content=""), end="stall"), model="a")
        answer = gateway.chat(alice, model="pair", stream=True)
        assert (answer.text, answer.done) == ("Hello there.", True)
        assert upstream.requests[0].was_dropped()
        assert tried(gateway.settlement(answer.id)) == [("a", "timeout", 200), ("b", "ok", 200)]

    def test_an_error_event_before_the_first_content(self, gateway, pair, alice, upstream):
        upstream.will(sends(delta(role="assistant", content=""), {"error": {"message": "On fire."}}), model="a")
        answer = gateway.chat(alice, model="pair", stream=True)
        assert (answer.text, answer.done) == ("Hello there.", True)
        assert asked(upstream) == ["a", "b"]

    @pytest.mark.parametrize("end", ["cut", "reset", "orderly"])
    def test_after_the_first_content_it_is_the_clients_to_see(self, gateway, pair, alice, upstream, end):
        upstream.will(sends(delta("Hel"), 0.05, end=end), model="a")
        answer = gateway.chat(alice, model="pair", stream=True)
        assert_stream_error(answer, "upstream_error", "upstream_error")
        assert answer.text == "Hel"
        assert asked(upstream) == ["a"]
        row = gateway.settlement(answer.id)
        assert (row.deployment, row.status, row.estimated) == ("a", 502, True)
        assert tried(row) == [("a", "upstream_error", 200)]
        assert "cost_usd" not in row.attempts[0], "it is the answer, not beside it"

    def test_over_providers(self, gateway, committed, provider, alice, upstream, stream):
        other = make_provider(upstream.url, "other")
        make_price("a")
        make_price("b", provider="other", input=Decimal(1), output=Decimal(1))
        make_group("pair", make_deployment(provider, "a"), make_deployment(other, "b"))
        upstream.will(refuses(500), model="a")
        answer = gateway.chat(alice, model="pair", stream=stream)
        assert (answer.status, answer.headers["x-ailb-provider"]) == (200, "other")
        row = gateway.settlement(answer.id)
        assert (row.provider, row.cost_usd) == ("other", Decimal("0.000015"))
        assert [attempt["provider"] for attempt in row.attempts] == ["upstream", "other"]

    def test_over_dialects(self, gateway, committed, alice, upstream, stream):
        claude = serve(upstream, "anthropic", "a", slug="first")
        serve(upstream, "openai", "b", slug="second", model="gpt-5.1")
        make_group("pair", *Deployment.objects.order_by("name"))
        upstream.will(claude.refuses(529), model=claude.model)
        answer = gateway.chat(alice, model="pair", stream=stream)
        assert (answer.status, answer.text, answer.headers["x-ailb-model"]) == (200, "Hello there.", "b")
        assert [received.path for received in upstream.requests] == ["/v1/messages", "/v1/chat/completions"]

    def test_a_long_line_of_them(self, gateway, deployments, alice, upstream, stream):
        names = [f"model-{n:02}" for n in range(12)]
        make_group("many", *deployments(*names))
        for name in names[:-1]:
            upstream.will(refuses(500), model=name)
        answer = gateway.chat(alice, model="many", stream=stream)
        assert (answer.status, answer.headers["x-ailb-attempts"]) == (200, "12")
        assert asked(upstream) == names
        assert len(gateway.settlement(answer.id).attempts) == 12

    def test_the_decision_is_with_the_row(self, gateway, pair, alice, upstream, stream):
        upstream.will(refuses(500), model="a")
        row = gateway.settlement(gateway.chat(alice, model="pair", stream=stream).id)
        assert row.detail["routing"] == {"pool": "pair", "strategy": "failover", "of": 2}


class TestOverFallbacks:
    def test_after_the_groups_own(self, gateway, deployments, alice, upstream, stream):
        a, b, c = deployments("a", "b", "c")
        make_group("main", a, b, fallbacks=[make_group("spare", c)])
        upstream.will(refuses(500), model="a")
        upstream.will(refuses(500), model="b")
        answer = gateway.chat(alice, model="main", stream=stream)
        assert (answer.status, answer.headers["x-ailb-model"], answer.headers["x-ailb-attempts"]) == (200, "c", "3")
        row = gateway.settlement(answer.id)
        assert (row.requested_model, row.routed_model, row.deployment) == ("main", "c", "c")
        assert [name for name, _, _ in tried(row)] == ["a", "b", "c"]
        assert row.detail["routing"]["pool"] == "spare"

    def test_are_not_asked_while_the_group_answers(self, gateway, deployments, alice, upstream):
        a, c = deployments("a", "c")
        make_group("main", a, fallbacks=[make_group("spare", c)], strategy="random")
        assert {gateway.chat(alice, model="main").headers["x-ailb-model"] for _ in range(10)} == {"a"}

    def test_nested_ones_depth_first(self, gateway, deployments, alice, upstream, stream):
        a, b, c, d = deployments("a", "b", "c", "d")
        deep = make_group("deep", c)
        make_group("main", a, fallbacks=[make_group("second", b, fallbacks=[deep]), make_group("third", d)])
        upstream.always(refuses(500))
        answer = gateway.chat(alice, model="main", stream=stream)
        assert_error(answer, 502, "upstream_error", "upstream_error")
        assert asked(upstream) == ["a", "b", "c", "d"]

    def test_a_circle_of_them_ends(self, gateway, deployments, alice, upstream, stream):
        a, b = deployments("a", "b")
        one = make_group("one", a)
        other = make_group("other", b, fallbacks=[one])
        fall_back(one, other)
        upstream.always(refuses(500))
        assert gateway.chat(alice, model="one", stream=stream).status == 502
        assert asked(upstream) == ["a", "b"]
        gateway.forget_failures()
        assert gateway.chat(alice, model="other", stream=stream).status == 502
        assert asked(upstream)[2:] == ["b", "a"]

    def test_one_without_deployments_is_a_way_to_the_next(self, gateway, deployments, alice, upstream):
        a, c = deployments("a", "c")
        last = make_group("last", c)
        make_group("main", a, fallbacks=[make_group("empty", fallbacks=[last])])
        upstream.will(refuses(500), model="a")
        assert gateway.chat(alice, model="main").headers["x-ailb-model"] == "c"

    def test_a_group_of_nothing_but_fallbacks(self, gateway, deployments, alice, stream):
        (c,) = deployments("c")
        make_group("alias", fallbacks=[make_group("real", c)])
        answer = gateway.chat(alice, model="alias", stream=stream)
        assert (answer.status, answer.headers["x-ailb-model"]) == (200, "c")

    def test_one_that_is_in_both_is_not_asked_twice(self, gateway, deployments, alice, upstream, stream):
        """That would be the same deployment again: without a pause, and beyond the retries that are allowed."""
        a, b = deployments("a", "b")
        make_group("main", a, fallbacks=[make_group("spare", a, b)])
        upstream.will(refuses(500), model="a")
        answer = gateway.chat(alice, model="main", stream=stream)
        assert (answer.status, answer.headers["x-ailb-model"]) == (200, "b")
        assert asked(upstream) == ["a", "b"]

    def test_each_has_its_own_strategy(self, gateway, deployments, alice, upstream):
        a, c, d = deployments("a", "c", "d")
        make_group("main", a, fallbacks=[make_group("spare", c, d, strategy="round_robin")])
        upstream.always(refuses(401), model="a")
        gateway.chat(alice, model="main")
        found = [gateway.chat(alice, model="main").headers["x-ailb-model"] for _ in range(6)]
        assert sorted(found) == ["c", "c", "c", "d", "d", "d"]

    def test_while_the_groups_own_are_open_they_answer_at_once(self, gateway, deployments, alice, upstream, stream):
        a, c = deployments("a", "c")
        make_group("main", a, fallbacks=[make_group("spare", c)])
        upstream.always(refuses(401), model="a")
        gateway.chat(alice, model="main", stream=stream)
        answer = gateway.chat(alice, model="main", stream=stream)
        assert (answer.headers["x-ailb-model"], answer.headers["x-ailb-attempts"]) == ("c", "1")
        assert tried(gateway.settlement(answer.id)) == [("c", "ok", 200)]


class TestTheOverallDeadline:
    @pytest.fixture
    def within(self, gateway):
        def seconds(limit):
            async def replaced():
                gateway.plane.deadlines.close()
                gateway.plane.deadlines = Deadlines(limit)

            gateway.do(replaced())

        return seconds

    def test_is_504_and_costs_nothing(self, gateway, pair, alice, upstream, within, stream):
        budget = make_budget("user", "alice", dollars="1", tokens=100_000)
        within(0.3)
        upstream.will(hangs(), model="a")
        before = time.monotonic()
        answer = gateway.chat(alice, model="pair", stream=stream)
        assert 0.25 < time.monotonic() - before < 3
        assert_error(answer, 504, "timeout_error", "timeout")
        assert upstream.only.was_dropped()
        row = gateway.closing(answer.id)
        assert (row.kind, row.status, row.cost_usd) == ("release", 504, 0)
        assert [name for name, _, _ in tried(row)] == ["a"]
        assert gateway.used(budget) == (0, 0)

    def test_all_attempts_together_have_it(self, gateway, deployments, provider, alice, upstream, within, stream):
        provider.first_byte_timeout = 0.2
        provider.save()
        names = [f"model-{n}" for n in range(8)]
        make_group("many", *deployments(*names))
        upstream.always(hangs())
        within(0.5)
        before = time.monotonic()
        answer = gateway.chat(alice, model="many", stream=stream)
        assert time.monotonic() - before < 3
        assert_error(answer, 504, "timeout_error", "timeout")
        assert 2 <= len(upstream.requests) <= 4
        assert all(received.was_dropped() for received in upstream.requests)
        assert len(gateway.closing(answer.id).attempts) == len(upstream.requests)

    def test_a_stream_past_its_first_content_has_all_the_time(self, gateway, pair, alice, upstream, within):
        within(0.5)
        upstream.will(sends(delta("Slow"), 0.9, delta("ly.", finish="stop"), b"data: [DONE]\n\n"), model="a")
        answer = gateway.chat(alice, model="pair", stream=True)
        assert (answer.text, answer.done) == ("Slowly.", True)

    def test_a_role_is_no_content(self, gateway, pair, alice, upstream, within):
        within(0.3)
        upstream.will(sends(delta(role="assistant", content=""), end="stall"), model="a")
        answer = gateway.chat(alice, model="pair", stream=True)
        assert_stream_error(answer, "timeout_error", "timeout")
        assert upstream.only.was_dropped()
        assert gateway.closing(answer.id).status == 504

    def test_a_plain_answer_must_be_whole(self, gateway, pair, alice, upstream, within):
        within(0.3)
        upstream.will(says(delay=1.0), model="a")
        assert_error(gateway.chat(alice, model="pair"), 504, "timeout_error", "timeout")

    def test_the_pause_before_another_try_is_in_it(self, gateway, model, alice, upstream, within, stream, monkeypatch):
        gateway.set(AILB_RETRIES=5)
        within(0.3)
        monkeypatch.setattr(retries, "pause", lambda again, rng: 5.0)
        upstream.always(refuses(500))
        assert_error(gateway.chat(alice, stream=stream), 504, "timeout_error", "timeout")
        assert len(upstream.requests) == 1

    def test_each_request_has_its_own(self, gateway, model, alice, upstream, within):
        within(1.2)
        upstream.will(hangs(), says(delay=0.6), hangs())
        found = []
        threads = [threading.Thread(target=lambda: found.append(gateway.chat(alice).status)) for _ in range(3)]
        for number, thread in enumerate(threads):
            thread.start()
            upstream.wait_for_requests(number + 1)
            time.sleep(0.1)
        for thread in threads:
            thread.join(10)
        assert sorted(found) == [200, 504, 504]

    def test_it_says_nothing_of_the_deployment(self, gateway, model, alice, upstream, within):
        within(0.4)
        upstream.will(*[hangs()] * 6)
        assert [gateway.chat(alice).status for _ in range(7)] == [504] * 6 + [200]

    def test_what_had_been_reported_is_paid_for(self, gateway, committed, alice, upstream, within):
        budget = make_budget("user", "alice", dollars="1")
        claude = serve(upstream, "anthropic")
        within(0.3)
        start = claude.pieces(Say(text="Hi", tokens=Tokens(1000, 5)))[0]
        upstream.will(claude.plays({}, start, end="stall"))
        answer = gateway.chat(alice, model="the-model", stream=True, max_tokens=50)
        assert_stream_error(answer, "timeout_error", "timeout")
        row = gateway.closing(answer.id)
        assert row.attempts[0]["prompt_tokens"] == 1000
        assert Decimal("0.0025") <= row.cost_usd < Decimal("0.0027")
        assert gateway.used(budget)[0] == row.cost_usd


class TestTheSameDeploymentAgain:
    @pytest.mark.parametrize("fault", ["500", "503", "no answer", "no HTTP", "no JSON"])
    def test_one_that_broke(self, gateway, model, alice, upstream, quick, stream, fault):
        gateway.set(AILB_RETRIES=2)
        script, status = FAULTS[fault]
        upstream.will(script, script)
        answer = gateway.chat(alice, stream=stream)
        assert (answer.status, answer.text) == (200, "Hello there.")
        assert answer.headers["x-ailb-attempts"] == "3"
        row = gateway.settlement(answer.id)
        assert [(name, told) for name, _, told in tried(row)] == [("gpt-test", status)] * 2 + [("gpt-test", 200)]
        assert row.cost_usd == Decimal("0.0000675")

    @pytest.mark.parametrize("times", [0, 1, 2, 4])
    def test_as_often_as_is_said(self, gateway, model, alice, upstream, quick, stream, times):
        gateway.set(AILB_RETRIES=times)
        upstream.always(refuses(500))
        answer = gateway.chat(alice, stream=stream)
        assert_error(answer, 502, "upstream_error", "upstream_error")
        assert len(upstream.requests) == 1 + times
        row = gateway.closing(answer.id)
        assert (row.kind, len(row.attempts)) == ("release", 1 + times)
        assert len(quick) == times

    def test_the_pause_is_drawn_and_may_be_longer_each_time(self, gateway, model, alice, upstream, quick):
        gateway.set(AILB_RETRIES=4)
        upstream.always(refuses(500))
        gateway.chat(alice)
        assert [low for low, _ in quick] == [0.0] * 4
        longest = [high for _, high in quick]
        assert longest == sorted(longest)
        assert longest[-1] > longest[0] > 0

    def test_the_pause_is_made(self, gateway, model, alice, upstream, stream, monkeypatch):
        gateway.set(AILB_RETRIES=1)
        monkeypatch.setattr(retries, "pause", lambda again, rng: 0.3)
        upstream.will(refuses(500))
        assert gateway.chat(alice, stream=stream).status == 200
        first, second = upstream.requests
        assert second.arrived - first.arrived >= 0.29

    @pytest.mark.parametrize("fault", ["429", "401", "402", "403", "404"])
    def test_not_one_that_refused(self, gateway, model, alice, upstream, quick, stream, fault):
        gateway.set(AILB_RETRIES=3)
        upstream.will(FAULTS[fault][0])
        answer = gateway.chat(alice, stream=stream)
        assert answer.status == 502
        assert len(upstream.requests) == 1
        assert not quick
        assert len(gateway.closing(answer.id).attempts) == 1

    @pytest.mark.parametrize("status", [400, 413, 422])
    def test_not_the_clients_mistake(self, gateway, model, alice, upstream, quick, stream, status):
        gateway.set(AILB_RETRIES=3)
        upstream.will(refuses(status))
        assert gateway.chat(alice, stream=stream).status == 400
        assert len(upstream.requests) == 1

    def test_not_one_that_was_too_slow(self, gateway, model, provider, alice, upstream, quick, stream):
        gateway.set(AILB_RETRIES=3)
        provider.first_byte_timeout = 0.2
        provider.save()
        upstream.will(hangs())
        assert_error(gateway.chat(alice, stream=stream), 504, "timeout_error", "timeout")
        assert len(upstream.requests) == 1

    def test_not_one_that_asks_to_wait(self, gateway, model, alice, upstream, quick, stream):
        gateway.set(AILB_RETRIES=3)
        upstream.will(refuses(503, retry_after="20"))
        assert gateway.chat(alice, stream=stream).status == 502
        assert len(upstream.requests) == 1

    def test_not_past_its_first_content(self, gateway, model, alice, upstream, quick):
        gateway.set(AILB_RETRIES=3)
        upstream.will(sends(delta("Hel"), 0.05, end="cut"))
        assert_stream_error(gateway.chat(alice, stream=True), "upstream_error", "upstream_error")
        assert len(upstream.requests) == 1

    def test_others_come_first(self, gateway, pair, alice, upstream, quick, stream):
        gateway.set(AILB_RETRIES=1)
        upstream.will(refuses(500), model="a")
        upstream.will(refuses(500), model="b")
        answer = gateway.chat(alice, model="pair", stream=stream)
        assert (answer.status, answer.headers["x-ailb-attempts"]) == (200, "3")
        assert asked(upstream) == ["a", "b", "b"]

    def test_no_more_where_the_budget_of_retries_is_used_up(self, gateway, model, alice, upstream, quick, stream):
        gateway.set(AILB_RETRIES=5)
        clock = [0.0]
        gateway.plane.retries = RetryBudget(0.5, 2.0, lambda: clock[0])
        upstream.will(*[refuses(500)] * 3)
        assert gateway.chat(alice, stream=stream).status == 502
        assert len(upstream.requests) == 3, "two that were saved up"
        gateway.forget_failures()
        upstream.will(refuses(500))
        assert gateway.chat(alice, stream=stream).status == 502, "half of one is earned"
        assert len(upstream.requests) == 4
        upstream.will(refuses(500))
        gateway.forget_failures()
        assert gateway.chat(alice, stream=stream).status == 200, "and the other half"
        assert len(upstream.requests) == 6
        clock[0] += 2.0
        upstream.will(refuses(500))
        gateway.forget_failures()
        assert gateway.chat(alice, stream=stream).status == 200, "time earns too"

    def test_an_outage_is_not_multiplied(self, gateway, deployments, alice, upstream, quick):
        gateway.set(AILB_RETRIES=3)
        gateway.plane.retries = RetryBudget(*retries.AGAIN, lambda: 0.0)
        (only,) = deployments("only")
        make_group("group", only)
        upstream.always(refuses(500))
        for _ in range(50):
            assert gateway.chat(alice, model="group").status == 502
            gateway.forget_failures()
        assert len(upstream.requests) <= 50 * 1.2 + 10

    def test_failover_has_a_budget_too(self, gateway, pair, alice, upstream, stream):
        gateway.plane.failovers = RetryBudget(0.0, 1.0, lambda: 0.0)
        upstream.will(refuses(500), refuses(500), model="a")
        assert gateway.chat(alice, model="pair", stream=stream).status == 200
        answer = gateway.chat(alice, model="pair", stream=stream)
        assert_error(answer, 502, "upstream_error", "upstream_error")
        assert asked(upstream) == ["a", "b", "a"]


class TestMoney:
    @pytest.fixture
    def claude(self, gateway, committed, alice, upstream):
        """Two of Anthropic's dialect, which says what a prompt costs before its first word: `pair`."""
        claude = serve(upstream, "anthropic", "a", model="claude-a")
        serve(upstream, "anthropic", "b", model="claude-b")
        make_group("pair", *Deployment.objects.order_by("name"))
        return claude

    def breaks(self, claude, prompt=1000):
        """A stream that tells its usage and then fails, before the first word."""
        start = claude.pieces(Say(text="Hi", tokens=Tokens(prompt, 5)))[0]
        return claude.plays({}, start, 0.02, claude.error_event("The machine caught fire."))

    def answers(self, claude):
        return claude.says(Say(text="Hello there.", tokens=Tokens(1000, 4)))

    def test_what_a_failed_attempt_cost_is_part_of_the_request(self, gateway, claude, alice, upstream):
        budget = make_budget("user", "alice", dollars="1")
        upstream.will(self.breaks(claude), model="claude-a")
        upstream.will(self.answers(claude), model="claude-b")
        answer = gateway.chat(alice, model="pair", stream=True, max_tokens=50)
        assert (answer.status, answer.text) == (200, "Hello there.")
        row = gateway.settlement(answer.id)
        failed, ok = row.attempts
        assert (failed["deployment"], failed["prompt_tokens"]) == ("a", 1000)
        wasted = Decimal(failed["cost_usd"])
        assert Decimal("0.0025") <= wasted <= Decimal("0.00251")
        assert "cost_usd" not in ok
        assert (row.prompt_tokens, row.completion_tokens) == (1000, 4)
        assert row.cost_usd == Decimal("0.00254") + wasted
        assert gateway.used(budget)[0] == row.cost_usd

    def test_though_nobody_answered(self, gateway, claude, alice, upstream):
        budget = make_budget("user", "alice", dollars="1")
        upstream.will(self.breaks(claude), model="claude-a")
        upstream.will(self.breaks(claude, 2000), model="claude-b")
        answer = gateway.chat(alice, model="pair", stream=True, max_tokens=50)
        assert_stream_error(answer, "upstream_error", "upstream_error")
        row = gateway.settlement(answer.id)
        costs = [Decimal(attempt["cost_usd"]) for attempt in row.attempts]
        assert [attempt["prompt_tokens"] for attempt in row.attempts] == [1000, 2000]
        assert (row.status, row.cost_usd) == (502, sum(costs))
        assert row.cost_usd >= Decimal("0.0075")
        assert row.estimated
        assert gateway.used(budget)[0] == row.cost_usd

    def test_of_no_price_it_is_unpriced_and_not_free(self, gateway, committed, alice, upstream):
        # Lesson 9.
        provider = make_provider(f"http://127.0.0.1:{upstream.port}", kind="anthropic")
        make_deployment(provider, "the-model", "claude-of-no-price")
        upstream.will(self.breaks(PROVIDERS["anthropic"]), model="claude-of-no-price")
        answer = gateway.chat(alice, model="the-model", stream=True, max_tokens=50)
        row = gateway.settlement(answer.id)
        assert row.attempts[0]["prompt_tokens"] == 1000
        assert "cost_usd" not in row.attempts[0]
        assert (row.cost_usd, row.unpriced) == (None, True)

    def test_too_little_for_a_further_attempt(self, gateway, claude, alice, upstream):
        budget = make_budget("user", "alice", dollars="0.002")
        upstream.will(self.breaks(claude), model="claude-a")
        upstream.will(self.answers(claude), model="claude-b")
        answer = gateway.chat(alice, model="pair", stream=True, max_tokens=50)
        assert_stream_error(answer, "upstream_error", "upstream_error")
        assert [received.body["model"] for received in upstream.requests] == ["claude-a"]
        row = gateway.settlement(answer.id)
        assert (row.status, row.cost_usd) == (502, Decimal(row.attempts[0]["cost_usd"]))
        assert gateway.used(budget)[0] == row.cost_usd, "spent, and nothing reserved"

    def test_nor_for_the_same_one_again(self, gateway, committed, alice, upstream, quick):
        gateway.set(AILB_RETRIES=3)
        claude = serve(upstream, "anthropic")
        budget = make_budget("user", "alice", dollars="0.002")
        upstream.always(self.breaks(claude))
        answer = gateway.chat(alice, model="the-model", stream=True, max_tokens=50)
        assert_stream_error(answer, "upstream_error", "upstream_error")
        assert len(upstream.requests) == 1
        assert gateway.used(budget)[0] == gateway.settlement(answer.id).cost_usd

    def test_enough_for_one_more_and_not_for_two(self, gateway, committed, alice, upstream, quick):
        gateway.set(AILB_RETRIES=5)
        claude = serve(upstream, "anthropic")
        # Held of an answer: about 0.0008. Two of 0.0025 fit beside it, a third does not.
        budget = make_budget("user", "alice", dollars="0.006")
        upstream.always(self.breaks(claude))
        answer = gateway.chat(alice, model="the-model", stream=True, max_tokens=50)
        assert_stream_error(answer, "upstream_error", "upstream_error")
        row = gateway.settlement(answer.id)
        assert len(upstream.requests) == len(row.attempts) == 3
        assert gateway.used(budget)[0] == row.cost_usd == sum(Decimal(a["cost_usd"]) for a in row.attempts)

    def test_a_budget_that_is_too_small_from_the_start_holds_nothing(self, gateway, pair, alice, upstream, stream):
        budget = make_budget("user", "alice", dollars="0.000001")
        answer = gateway.chat(alice, model="pair", stream=stream, max_tokens=100)
        assert_error(answer, 402, "insufficient_quota", "budget_exceeded")
        assert not upstream.requests
        assert gateway.used(budget) == (0, 0)

    def test_failures_that_told_nothing_cost_nothing(self, gateway, pair, alice, upstream, stream):
        budget = make_budget("user", "alice", dollars="1", tokens=100_000)
        upstream.will(refuses(500), model="a")
        answer = gateway.chat(alice, model="pair", stream=stream, max_tokens=50)
        assert answer.status == 200
        gateway.wait_until_quiet()
        assert gateway.used(budget) == (Decimal("0.0000675"), 15)

    def test_a_client_that_leaves_the_second_attempt(self, gateway, claude, alice, upstream):
        budget = make_budget("user", "alice", dollars="1")
        upstream.will(self.breaks(claude), model="claude-a")
        upstream.will(hangs(), model="claude-b")
        with asking(gateway, alice, model="pair", stream=True, max_tokens=50):
            upstream.wait_for_requests(2)
        assert upstream.last.was_dropped()
        row = gateway.only_closing()
        assert (row.kind, row.status) == ("settlement", 499)
        assert [name for name, _, _ in tried(row)] == ["a", "b"]
        assert row.cost_usd > Decimal(row.attempts[0]["cost_usd"]) >= Decimal("0.0025")
        assert gateway.used(budget)[0] == row.cost_usd
