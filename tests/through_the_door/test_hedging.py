"""One that is later than 19 in 20 of its answers gets a rival: the first to answer is heard, both are paid for."""

import asyncio
import threading
import time
from decimal import Decimal

import pytest

from gateway import attempts
from gateway.deadlines import Deadlines
from gateway.errors import GuardUnavailable
from gateway.models import Deployment, ModelGroup
from gateway.retries import RetryBudget
from gateway.routing.signals import Pace
from tests.support.answers import assert_error, assert_stream_error
from tests.support.gateway import asking
from tests.support.upstream import Left, delta, hangs, refuses, says, sends
from tests.support.waiting import eventually
from tests.support.world import make_budget, make_deployment, make_group, make_price

LATE = 0.2  # seconds after which `a` is later than usual, in the tests that say how fast it is
LONG = "word " * 400  # so that a prompt's estimate is a sum to be seen

DONE = b"data: [DONE]\n\n"
USAGE = {"choices": [], "usage": {"prompt_tokens": 11, "completion_tokens": 4, "total_tokens": 15}}


@pytest.fixture
def group(gateway, provider, alice):
    """`group("a", "b")`: priced deployments in this order, with hedging."""

    def made(*names, **fields):
        for name in names:
            make_price(name)
        return make_group("group", *[make_deployment(provider, name) for name in names], hedging=True, **fields)

    return made


@pytest.fixture
def pair(group):
    return group("a", "b")


@pytest.fixture
def usual(gateway):
    """`usual("a")`: it has always answered within `LATE`, or as late as is said."""

    def known(*names, samples=40, late=LATE):
        for name in names:
            pace = Pace()
            for _ in range(samples):
                for first in (late, None):
                    pace.measured(gateway.plane.signals.clock(), first=first, whole=late, tokens=4)
            gateway.plane.signals.paces[name] = pace

    return known


def asked(upstream):
    return [received.body["model"] for received in upstream.requests]


def tried(row):
    """By deployment, how its attempt ended."""
    found = {attempt["deployment"]: attempt["outcome"] for attempt in row.attempts}
    assert len(found) == len(row.attempts)
    return found


def of(row, deployment):
    (found,) = [attempt for attempt in row.attempts if attempt["deployment"] == deployment]
    return found


def at_rest(gateway):
    gateway.wait_until_quiet()
    in_flight = gateway.plane.signals.in_flight
    eventually(lambda: not any(in_flight.values()), 2, told=lambda: in_flight)
    in_use = [client.in_use for client in gateway.plane._providers.values()]
    assert in_use == [0] * len(in_use)


class TestWhenThereIsOne:
    def test_not_before_twenty_samples(self, gateway, pair, alice, upstream, usual, stream):
        usual("a", samples=19)
        upstream.will(says(delay=LATE * 3), model="a")
        answer = gateway.chat(alice, model="group", stream=stream)
        assert (answer.status, answer.headers["x-ailb-model"]) == (200, "a")
        assert asked(upstream) == ["a"]

    def test_after_twenty_real_ones(self, gateway, pair, alice, upstream, stream):
        for _ in range(20):
            assert gateway.chat(alice, model="group", stream=stream).headers["x-ailb-model"] == "a"
        assert set(asked(upstream)) == {"a"}
        upstream.will(hangs(), model="a")
        answer = gateway.chat(alice, model="group", stream=stream)
        assert (answer.status, answer.text) == (200, "Hello there.")
        assert answer.headers["x-ailb-model"] == "b"
        at_rest(gateway)

    def test_not_while_the_first_is_as_fast_as_usual(self, gateway, pair, alice, upstream, usual, stream):
        usual("a", late=3.0)
        for _ in range(5):
            assert gateway.chat(alice, model="group", stream=stream).headers["x-ailb-attempts"] == "1"
        assert asked(upstream) == ["a"] * 5

    def test_not_in_a_group_without_hedging(self, gateway, pair, alice, upstream, usual, stream):
        ModelGroup.objects.update(hedging=False)
        usual("a")
        upstream.will(says(delay=LATE * 3), model="a")
        assert gateway.chat(alice, model="group", stream=stream).headers["x-ailb-model"] == "a"
        assert asked(upstream) == ["a"]

    def test_not_where_there_is_no_other(self, gateway, group, alice, upstream, usual, stream):
        group("a")
        usual("a")
        upstream.will(says(delay=LATE * 2), model="a")
        answer = gateway.chat(alice, model="group", stream=stream)
        assert (answer.status, asked(upstream)) == (200, ["a"])
        assert tried(gateway.settlement(answer.id)) == {"a": "ok"}

    def test_where_there_is_no_other_nothing_is_spent_on_one(self, gateway, group, alice, upstream, usual, stream):
        group("a")
        usual("a")
        gateway.set(AILB_RETRIES=1)
        gateway.plane.retries = RetryBudget(0.0, 1.0, lambda: 0.0)
        upstream.will(_after(LATE * 2, refuses(500)), model="a")
        answer = gateway.chat(alice, model="group", stream=stream)
        assert (answer.status, asked(upstream)) == (200, ["a", "a"])

    def test_of_streams_and_plain_answers_each_has_its_own_times(self, gateway, pair, alice, upstream):
        for _ in range(20):
            gateway.chat(alice, model="group", stream=True)
        upstream.will(says(delay=0.3), model="a")
        assert gateway.chat(alice, model="group").headers["x-ailb-model"] == "a"
        assert set(asked(upstream)) == {"a"}

    def test_not_where_the_budget_of_retries_has_no_room(self, gateway, pair, alice, upstream, usual, stream):
        usual("a")
        gateway.plane.retries = RetryBudget(0.0, 0.0, lambda: 0.0)
        upstream.will(says(delay=LATE * 3), model="a")
        assert gateway.chat(alice, model="group", stream=stream).headers["x-ailb-model"] == "a"
        assert asked(upstream) == ["a"]

    def test_not_where_the_money_has_no_room(self, gateway, pair, alice, upstream, usual, stream):
        usual("a")
        # An answer of 100 tokens and its prompt: once it fits, twice it does not.
        budget = make_budget("user", "alice", dollars="0.0015")
        upstream.will(says(delay=LATE * 3), model="a")
        answer = gateway.chat(alice, model="group", stream=stream, max_tokens=100)
        assert (answer.status, answer.headers["x-ailb-model"]) == (200, "a")
        assert asked(upstream) == ["a"]
        row = gateway.settlement(answer.id)
        assert tried(row) == {"a": "ok"}
        assert gateway.used(budget)[0] == row.cost_usd == Decimal("0.0000675")

    def test_nor_the_tokens(self, gateway, pair, alice, upstream, usual, stream):
        usual("a")
        budget = make_budget("user", "alice", tokens=150)
        upstream.will(says(delay=LATE * 3), model="a")
        assert gateway.chat(alice, model="group", stream=stream, max_tokens=100).headers["x-ailb-model"] == "a"
        assert asked(upstream) == ["a"]
        gateway.wait_until_quiet()
        assert gateway.used(budget)[1] == 15

    def test_not_while_budgets_cannot_be_asked(self, gateway, pair, alice, upstream, usual, stream, monkeypatch):
        """The first is well: nothing that stands in the way of a second may end it."""
        usual("a")
        make_budget("user", "alice", dollars="1")
        counters = gateway.plane.holds.counters
        hold = counters.hold

        async def away(request_id, *told):
            if "/" in request_id:
                raise GuardUnavailable("Budgets cannot be checked at the moment.")
            await hold(request_id, *told)

        monkeypatch.setattr(counters, "hold", away)
        upstream.will(says(delay=LATE * 3), model="a")
        answer = gateway.chat(alice, model="group", stream=stream, max_tokens=100)
        assert (answer.status, answer.headers["x-ailb-model"], asked(upstream)) == (200, "a", ["a"])
        at_rest(gateway)

    def test_one_whose_circuit_is_open_is_none(self, gateway, group, alice, upstream, usual, stream):
        group("a", "b", "c")
        make_group("alone", Deployment.objects.get(name="b"))
        upstream.will(refuses(401), model="b")
        gateway.chat(alice, model="alone")
        usual("a")
        upstream.will(hangs(), model="a")
        assert gateway.chat(alice, model="group", stream=stream).headers["x-ailb-model"] == "c"
        assert asked(upstream) == ["b", "a", "c"]

    def test_one_without_room_is_none(self, gateway, group, alice, upstream, usual, stream):
        group("a", "b", "c")
        Deployment.objects.filter(name="b").update(rpm=1)
        gateway.chat(alice, model="b")
        usual("a")
        upstream.will(hangs(), model="a")
        assert gateway.chat(alice, model="group", stream=stream).headers["x-ailb-model"] == "c"
        assert asked(upstream) == ["b", "a", "c"]


class TestTheRivalWins:
    def test_it_is_heard_and_the_first_is_dropped(self, gateway, pair, alice, upstream, usual, stream):
        usual("a")
        upstream.will(hangs(), model="a")
        before = time.monotonic()
        answer = gateway.chat(alice, model="group", stream=stream)
        assert (answer.status, answer.text) == (200, "Hello there.")
        assert time.monotonic() - before >= LATE
        assert (answer.headers["x-ailb-model"], answer.headers["x-ailb-attempts"]) == ("b", "2")
        first, rival = upstream.requests
        assert (first.body["model"], rival.body["model"]) == ("a", "b")
        assert rival.arrived - first.arrived >= LATE * 0.9
        assert first.was_dropped(within=2)
        row = gateway.settlement(answer.id)
        assert (row.deployment, row.routed_model, row.served_model, row.status) == ("b", "b", "b", 200)
        assert tried(row) == {"a": "cancelled", "b": "ok"}
        at_rest(gateway)

    def test_both_are_paid_for(self, gateway, pair, alice, upstream, usual, stream):
        usual("a")
        budget = make_budget("user", "alice", dollars="1", tokens=1_000_000)
        upstream.will(hangs(), model="a")
        messages = [{"role": "user", "content": LONG}]
        answer = gateway.chat(alice, model="group", stream=stream, messages=messages, max_tokens=100)
        row = gateway.settlement(answer.id)
        loser = of(row, "a")
        # About four bytes a token: 500 of them.
        assert 480 <= loser["prompt_tokens"] <= 520
        assert Decimal(loser["cost_usd"]) == loser["prompt_tokens"] * Decimal("2.5") / 10**6
        assert "cost_usd" not in of(row, "b")
        assert row.cost_usd == Decimal("0.0000675") + Decimal(loser["cost_usd"])
        assert (row.prompt_tokens, row.completion_tokens) == (11, 4)
        assert gateway.used(budget)[0] == row.cost_usd

    def test_a_stream_that_had_begun_without_content_loses_too(self, gateway, pair, alice, upstream, usual):
        usual("a")
        upstream.will(sends(delta(role="assistant", content=""), end="stall"), model="a")
        answer = gateway.chat(alice, model="group", stream=True)
        assert (answer.text, answer.done) == ("Hello there.", True)
        assert upstream.requests[0].was_dropped()
        row = gateway.settlement(answer.id)
        assert (row.deployment, tried(row)) == ("b", {"a": "cancelled", "b": "ok"})
        at_rest(gateway)

    def test_it_may_break_after_its_first_content(self, gateway, pair, alice, upstream, usual):
        usual("a")
        upstream.will(hangs(), model="a")
        upstream.will(sends(delta("Hel"), 0.05, end="cut"), model="b")
        answer = gateway.chat(alice, model="group", stream=True)
        assert_stream_error(answer, "upstream_error", "upstream_error")
        assert answer.text == "Hel"
        row = gateway.settlement(answer.id)
        assert (row.deployment, row.status) == ("b", 502)
        assert tried(row) == {"a": "cancelled", "b": "upstream_error"}
        at_rest(gateway)

    def test_it_is_counted(self, gateway, pair, alice, upstream, usual):
        usual("a")
        before = _hedges(gateway)
        upstream.will(hangs(), model="a")
        gateway.chat(alice, model="group")
        eventually(lambda: _hedges(gateway) == before + 1, 5)


def _hedges(gateway):
    lines = gateway.send("GET", "/metrics").raw.decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if "hedge" in line and not line.startswith("#"))


class TestTheFirstWins:
    def test_though_a_rival_was_asked(self, gateway, pair, alice, upstream, usual, stream):
        usual("a")
        budget = make_budget("user", "alice", dollars="1")
        upstream.will(_after(LATE * 3, says()), model="a")
        upstream.will(hangs(), model="b")
        answer = gateway.chat(alice, model="group", stream=stream, max_tokens=100)
        assert (answer.status, answer.text) == (200, "Hello there.")
        assert (answer.headers["x-ailb-model"], answer.headers["x-ailb-attempts"]) == ("a", "2")
        assert asked(upstream) == ["a", "b"]
        assert upstream.requests[1].was_dropped(within=2)
        row = gateway.settlement(answer.id)
        assert (row.deployment, row.served_model) == ("a", "a")
        assert tried(row) == {"a": "ok", "b": "cancelled"}
        assert row.cost_usd == Decimal("0.0000675") + Decimal(of(row, "b")["cost_usd"])
        assert gateway.used(budget)[0] == row.cost_usd
        at_rest(gateway)

    @pytest.mark.parametrize("status", [500, 429, 401, 400])
    def test_where_the_rival_fails(self, gateway, pair, alice, upstream, usual, stream, status):
        usual("a")
        upstream.will(_after(LATE * 3, says()), model="a")
        upstream.will(refuses(status), model="b")
        answer = gateway.chat(alice, model="group", stream=stream)
        assert (answer.status, answer.text, answer.headers["x-ailb-model"]) == (200, "Hello there.", "a")
        row = gateway.settlement(answer.id)
        assert row.deployment == "a"
        outcomes = tried(row)
        assert outcomes["a"] == "ok"
        assert outcomes["b"] not in ("ok", "cancelled")
        assert row.cost_usd == Decimal("0.0000675"), "one that failed and told nothing costs nothing"
        at_rest(gateway)


class TestOneFails:
    def test_the_first_after_the_rival_began(self, gateway, pair, alice, upstream, usual, stream):
        usual("a")
        upstream.will(_after(LATE * 2, refuses(500)), model="a")
        upstream.will(_after(LATE * 3, says()), model="b")
        answer = gateway.chat(alice, model="group", stream=stream)
        assert (answer.status, answer.text, answer.headers["x-ailb-model"]) == (200, "Hello there.", "b")
        assert tried(gateway.settlement(answer.id)) == {"a": "upstream_error", "b": "ok"}
        at_rest(gateway)

    def test_the_first_before_it_is_late_is_ordinary_failover(self, gateway, pair, alice, upstream, usual, stream):
        usual("a")
        upstream.will(refuses(500), model="a")
        answer = gateway.chat(alice, model="group", stream=stream)
        assert (answer.status, answer.headers["x-ailb-model"], answer.headers["x-ailb-attempts"]) == (200, "b", "2")
        assert tried(gateway.settlement(answer.id)) == {"a": "upstream_error", "b": "ok"}

    def test_both_and_the_next_answers(self, gateway, group, alice, upstream, usual, stream):
        group("a", "b", "c")
        usual("a")
        upstream.will(_after(LATE * 2, refuses(500)), model="a")
        upstream.will(refuses(503), model="b")
        answer = gateway.chat(alice, model="group", stream=stream)
        assert (answer.status, answer.text, answer.headers["x-ailb-model"]) == (200, "Hello there.", "c")
        assert answer.headers["x-ailb-attempts"] == "3"
        assert asked(upstream) == ["a", "b", "c"]
        assert tried(gateway.settlement(answer.id)) == {"a": "upstream_error", "b": "upstream_error", "c": "ok"}
        at_rest(gateway)

    def test_both_and_there_is_no_next(self, gateway, pair, alice, upstream, usual, stream):
        usual("a")
        budget = make_budget("user", "alice", dollars="1", tokens=100_000)
        upstream.will(_after(LATE * 2, refuses(500)), model="a")
        upstream.will(refuses(503), model="b")
        answer = gateway.chat(alice, model="group", stream=stream, max_tokens=100)
        assert_error(answer, 502, "upstream_error", "upstream_error")
        row = gateway.closing(answer.id)
        assert (row.kind, row.status, row.cost_usd) == ("release", 502, 0)
        assert tried(row) == {"a": "upstream_error", "b": "upstream_error"}
        assert gateway.used(budget) == (0, 0)
        at_rest(gateway)


class TestBothAtOnce:
    """What both say arrives in one turn of the loop: one is heard, the other is no less paid for and closed."""

    @pytest.fixture
    def together(self, gateway, upstream):
        """`together(first, rival)`: both are asked, and what they say arrives while the gateway looks away."""

        def scripted(first, rival):
            upstream.will(_after(LATE * 3, first), model="a")
            upstream.will(_after(LATE * 2, rival), model="b")

        return scripted

    def ask(self, gateway, key, upstream, stream):
        found = []
        thread = threading.Thread(
            target=lambda: found.append(gateway.chat(key, model="group", stream=stream, max_tokens=100))
        )
        before = len(upstream.requests)
        thread.start()
        upstream.wait_for_requests(before + 2)
        gateway.do(_block(LATE * 4))
        thread.join(20)
        (answer,) = found
        return answer

    def test_both_answer(self, gateway, pair, alice, upstream, usual, together, stream):
        budget = make_budget("user", "alice", dollars="1")
        spent = 0
        for _ in range(4):  # which of the two is looked at first is chance
            usual("a")
            together(says("From a"), says("From b"))
            answer = self.ask(gateway, alice, upstream, stream)
            assert answer.status == 200
            row = gateway.settlement(answer.id)
            winner = row.deployment
            assert (answer.text, row.served_model) == (f"From {winner}", winner)
            assert set(tried(row)) == {"a", "b"}, "both are on the ledger"
            at_rest(gateway)
            assert answer.headers["x-ailb-model"] == winner
            loser = of(row, "b" if winner == "a" else "a")
            assert Decimal(loser["cost_usd"]) > 0
            assert row.cost_usd == Decimal("0.0000675") + Decimal(loser["cost_usd"])
            spent += row.cost_usd
            assert gateway.used(budget)[0] == spent

    @pytest.mark.parametrize("failing", ["a", "b"])
    def test_one_fails_and_one_answers(self, gateway, pair, alice, upstream, usual, together, stream, failing):
        for _ in range(4):  # which of the two is looked at first is chance
            usual("a")
            scripts = {"a": says("From a"), "b": says("From b"), failing: refuses(500)}
            together(scripts["a"], scripts["b"])
            answer = self.ask(gateway, alice, upstream, stream)
            well = "b" if failing == "a" else "a"
            assert (answer.status, answer.text) == (200, f"From {well}")
            row = gateway.settlement(answer.id)
            assert (row.deployment, tried(row)) == (well, {well: "ok", failing: "upstream_error"})
            at_rest(gateway)
            gateway.forget_failures()


async def _block(seconds):
    time.sleep(seconds)  # noqa: ASYNC251  # on purpose: the loop looks away


def _after(seconds, script):
    """`script`, after that many seconds; whoever hangs up before is not talked to."""

    async def later(call):
        await asyncio.sleep(seconds)
        if call._connection.lost.is_set():
            raise Left
        await script(call)

    return later


class TestTheClientLeaves:
    def test_both_are_dropped(self, gateway, pair, alice, upstream, usual):
        usual("a")
        budget = make_budget("user", "alice", dollars="1")
        upstream.will(hangs(), model="a")
        upstream.will(hangs(), model="b")
        messages = [{"role": "user", "content": LONG}]
        with asking(gateway, alice, model="group", stream=True, messages=messages, max_tokens=100):
            upstream.wait_for_requests(2)
        assert all(received.was_dropped(within=2) for received in upstream.requests)
        row = gateway.only_closing()
        assert (row.kind, row.status, row.estimated) == ("settlement", 499, True)
        assert tried(row) == {"a": "cancelled", "b": "cancelled"}
        assert gateway.used(budget)[0] == row.cost_usd
        # The prompt, of 400 tokens and more, went to both.
        assert row.cost_usd >= 2 * 400 * Decimal("2.5") / 10**6
        at_rest(gateway)

    def test_while_the_loser_is_being_dropped(self, gateway, pair, alice, upstream, usual, monkeypatch):
        """The winner's stream is nobody's at that moment: it must not stay open."""
        usual("a")
        budget = make_budget("user", "alice", dollars="1")
        dropping, gather = threading.Event(), asyncio.gather

        async def slowly(*tasks, **options):
            ended = await gather(*tasks, **options)
            dropping.set()
            await asyncio.sleep(1)
            return ended

        monkeypatch.setattr(attempts.asyncio, "gather", slowly)
        upstream.will(hangs(), model="a")
        upstream.will(sends(delta("Hel"), end="stall"), model="b")
        with asking(gateway, alice, model="group", stream=True, max_tokens=100):
            assert dropping.wait(5)
        assert all(received.was_dropped(within=2) for received in upstream.requests)
        row = gateway.only_closing()
        assert (row.status, tried(row)) == (499, {"a": "cancelled", "b": "cancelled"})
        assert gateway.used(budget)[0] == row.cost_usd
        at_rest(gateway)

    def test_before_the_rival_began(self, gateway, pair, alice, upstream, usual):
        usual("a")
        upstream.will(hangs(), model="a")
        with asking(gateway, alice, model="group", stream=True):
            upstream.wait_for_requests(1)
        assert upstream.only.was_dropped(within=2)
        time.sleep(LATE * 2)
        assert asked(upstream) == ["a"]
        assert tried(gateway.only_closing()) == {"a": "cancelled"}
        at_rest(gateway)

    def test_a_plain_call_is_drained(self, gateway, pair, alice, upstream, usual):
        usual("a")
        upstream.will(hangs(), model="a")
        upstream.will(_after(LATE * 2, says()), model="b")
        with asking(gateway, alice, model="group"):
            upstream.wait_for_requests(2)
        row = gateway.only_closing()
        assert (row.kind, row.status, row.deployment) == ("settlement", 499, "b")
        assert tried(row) == {"a": "cancelled", "b": "ok"}
        at_rest(gateway)


class TestTheDeadline:
    def test_ends_both(self, gateway, pair, alice, upstream, usual, stream):
        async def replaced():
            gateway.plane.deadlines.close()
            gateway.plane.deadlines = Deadlines(LATE * 4)

        gateway.do(replaced())
        usual("a")
        budget = make_budget("user", "alice", dollars="1")
        upstream.will(hangs(), model="a")
        upstream.will(hangs(), model="b")
        answer = gateway.chat(alice, model="group", stream=stream, max_tokens=100)
        assert_error(answer, 504, "timeout_error", "timeout")
        assert all(received.was_dropped(within=2) for received in upstream.requests)
        row = gateway.closing(answer.id)
        assert row.status == 504
        assert tried(row) == {"a": "cancelled", "b": "cancelled"}
        assert gateway.used(budget)[0] == row.cost_usd
        at_rest(gateway)


class TestHeaders:
    def test_name_whoever_is_heard_though_its_headers_went_out_first(self, gateway, pair, alice, upstream, usual):
        """`a` begins, slowly, once its rival was asked; the rival never says a word."""
        usual("a")
        upstream.will(
            sends(LATE * 2, delta(role="assistant", content=""), LATE, delta("Slow", finish="stop"), USAGE, DONE),
            model="a",
        )
        upstream.will(hangs(), model="b")
        answer = gateway.chat(alice, model="group", stream=True)
        assert (answer.text, answer.done) == ("Slow", True)
        assert asked(upstream) == ["a", "b"]
        assert gateway.settlement(answer.id).deployment == "a"
        assert answer.headers["x-ailb-model"] == "a"
