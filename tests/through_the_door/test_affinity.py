"""Requests that belong together meet at one deployment, whose provider's cache then holds what they share."""

import random
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import pytest

from gateway.affinity import KEPT, LONG, Holders
from tests.support.upstream import refuses, says, waits_for
from tests.support.world import make_deployment, make_group, make_key, make_price

FOUR = ("a", "b", "c", "d")
SPREADING = ("load_balanced", "random", "round_robin")
TEXT = "The quick brown fox jumps over the lazy dog. " * 200
assert len(TEXT) > 2 * LONG


@pytest.fixture
def group(gateway, provider, alice):
    """`group(strategy)`: four deployments alike; memory of sessions is off, so that prompts are the clients'."""
    gateway.set(ENABLE_MEMORY=False)
    gateway.plane.signals.rng = random.Random(7)

    def made(strategy, names=FOUR, **prices):
        for name in names:
            make_price(name, **prices)
        return make_group("group", *[make_deployment(provider, name) for name in names], strategy=strategy)

    return made


def by(answer):
    assert answer.status == 200, answer.raw
    return answer.headers["x-ailb-model"]


def long_prompt(beginning, end="What now?"):
    return [{"role": "system", "content": f"{beginning} {TEXT}"}, {"role": "user", "content": end}]


class TestASession:
    @pytest.mark.parametrize("strategy", SPREADING)
    def test_stays_at_its_deployment(self, gateway, group, alice, upstream, strategy, stream):
        group(strategy)
        answers = [gateway.chat(alice, model="group", stream=stream, session_id="one") for _ in range(12)]
        (deployment,) = {by(answer) for answer in answers}
        assert {received.body["model"] for received in upstream.requests} == {deployment}
        assert "session_id" not in upstream.last.body
        row = gateway.settlement(answers[-1].id)
        assert (row.session_id, row.deployment) == ("one", deployment)
        assert row.detail["routing"] == {"pool": "group", "strategy": strategy, "of": 4, "held": [deployment]}

    @pytest.mark.parametrize("strategy", SPREADING)
    def test_without_one_they_spread(self, gateway, group, alice, strategy):
        group(strategy)
        found = Counter(by(gateway.chat(alice, model="group")) for _ in range(40))
        assert len(found) == 4

    @pytest.mark.parametrize("strategy", SPREADING)
    def test_different_ones_spread(self, gateway, group, alice, strategy):
        group(strategy)
        found = Counter(by(gateway.chat(alice, model="group", session_id=f"session {n}")) for n in range(60))
        assert len(found) == 4
        assert max(found.values()) <= 30

    def test_by_the_header_too(self, gateway, group, alice):
        group("round_robin")
        headers = {"x-session-id": "one"}
        assert len({by(gateway.chat(alice, model="group", headers=headers)) for _ in range(8)}) == 1

    def test_each_has_its_own_home(self, gateway, group, alice):
        group("round_robin")
        for session in ("one", "two", "three"):
            homes = {by(gateway.chat(alice, model="group", session_id=session)) for _ in range(5)}
            assert len(homes) == 1, session

    def test_another_users_of_the_same_name_is_another(self, gateway, group, alice, bob, charlie):
        group("random")
        keys = [alice, bob, charlie, *[make_key(f"user-{n}") for n in range(9)]]
        homes = [by(gateway.chat(key, model="group", session_id="one")) for key in keys]
        assert len(set(homes)) > 1
        assert [by(gateway.chat(key, model="group", session_id="one")) for key in keys] == homes

    def test_two_keys_of_one_user_share_it(self, gateway, group, alice):
        group("round_robin")
        keys = [alice, make_key("alice"), make_key("alice")]
        assert len({by(gateway.chat(key, model="group", session_id="one")) for key in keys * 3}) == 1

    def test_it_moves_where_its_deployment_fails_and_stays_there(self, gateway, group, alice, upstream, stream):
        group("round_robin")
        ask = {"model": "group", "stream": stream, "session_id": "one"}
        home = by(gateway.chat(alice, **ask))
        upstream.will(refuses(401), model=home)
        new = by(gateway.chat(alice, **ask))
        assert new != home
        assert {by(gateway.chat(alice, **ask)) for _ in range(6)} == {new}

    def test_it_leaves_one_whose_circuit_is_open(self, gateway, group, alice, upstream, stream):
        group("random")
        ask = {"model": "group", "stream": stream, "session_id": "one"}
        home = by(gateway.chat(alice, **ask))
        upstream.always(refuses(503, retry_after="60"), model=home)
        gateway.chat(alice, **ask)
        before = len(upstream.requests)
        assert all(by(gateway.chat(alice, **ask)) != home for _ in range(5))
        assert home not in {received.body["model"] for received in upstream.requests[before:]}

    @pytest.mark.parametrize("strategy", SPREADING)
    def test_it_leaves_one_that_has_more_than_its_share(self, gateway, group, alice, upstream, strategy):
        group(strategy)
        home = by(gateway.chat(alice, model="group", session_id="one"))
        free = threading.Event()
        upstream.always(waits_for(free, says()), model=home)
        try:
            with ThreadPoolExecutor(16) as clients:
                for _ in range(16):
                    clients.submit(gateway.chat, alice, model=home)
                upstream.wait_for_requests(17)
                found = {by(gateway.chat(alice, model="group", session_id="one")) for _ in range(3)}
                assert home not in found
                free.set()
        finally:
            free.set()

    def test_it_leaves_one_without_room(self, gateway, group, alice, upstream):
        group("random").deployments.update(max_parallel=1)
        home = by(gateway.chat(alice, model="group", session_id="one"))
        free = threading.Event()
        upstream.will(waits_for(free, says()), model=home)
        with ThreadPoolExecutor(1) as client:
            busy = client.submit(gateway.chat, alice, model="group", session_id="one")
            upstream.wait_for_requests(2)
            assert by(gateway.chat(alice, model="group", session_id="one")) != home
            free.set()
            assert by(busy.result(10)) == home

    def test_it_is_kept_as_long_as_a_cache_keeps_it(self, gateway, group, alice, upstream):
        group("load_balanced")
        holders, now = gateway.plane.signals.holders, [0.0]
        holders._clock = lambda: now[0]
        answer = gateway.chat(alice, model="group", session_id="one")
        now[0] = KEPT - 1
        held = gateway.settlement(gateway.chat(alice, model="group", session_id="one").id).detail["routing"]["held"]
        assert held == [by(answer)]
        now[0] += KEPT + 1
        row = gateway.settlement(gateway.chat(alice, model="group", session_id="one").id)
        assert "held" not in row.detail["routing"]

    def test_a_failed_request_leaves_nothing_in_a_cache(self, gateway, group, alice, upstream):
        group("random")
        upstream.always(refuses(500))
        assert gateway.chat(alice, model="group", session_id="one").status == 502
        gateway.forget_failures()
        upstream.forget()
        row = gateway.settlement(gateway.chat(alice, model="group", session_id="one").id)
        assert "held" not in row.detail["routing"]

    def test_under_failover_priority_comes_before_it(self, gateway, provider, alice, upstream):
        gateway.set(ENABLE_MEMORY=False)
        for name in ("a", "b"):
            make_price(name)
        make_group("group", make_deployment(provider, "a"), make_deployment(provider, "b", priority=1))
        upstream.will(refuses(500), model="a")
        ask = {"model": "group", "session_id": "one"}
        assert by(gateway.chat(alice, **ask)) == "b"
        assert by(gateway.chat(alice, **ask)) == "a"


class TestALongBeginning:
    @pytest.mark.parametrize("strategy", SPREADING)
    def test_stays_at_its_deployment(self, gateway, group, alice, strategy, stream):
        group(strategy)
        found = {
            by(gateway.chat(alice, model="group", stream=stream, messages=long_prompt("One.", f"Question {n}")))
            for n in range(10)
        }
        assert len(found) == 1

    def test_different_ones_spread(self, gateway, group, alice):
        group("load_balanced")
        found = {by(gateway.chat(alice, model="group", messages=long_prompt(f"Text {n}."))) for n in range(30)}
        assert len(found) == 4

    def test_a_short_one_is_nothing_to_hold(self, gateway, group, alice):
        group("round_robin")
        messages = [{"role": "user", "content": "Hi"}]
        assert len({by(gateway.chat(alice, model="group", messages=messages)) for _ in range(8)}) == 4

    def test_whoever_asks(self, gateway, group, alice, charlie):
        # What a provider caches is the installation's: there is one account.
        group("round_robin")
        found = {by(gateway.chat(key, model="group", messages=long_prompt("One."))) for key in (alice, charlie) * 3}
        assert len(found) == 1

    def test_in_parts_too(self, gateway, group, alice):
        group("round_robin")
        parts = [{"type": "text", "text": TEXT}]
        found = {
            by(
                gateway.chat(
                    alice,
                    model="group",
                    messages=[{"role": "system", "content": parts}, {"role": "user", "content": f"Question {n}"}],
                )
            )
            for n in range(6)
        }
        assert len(found) == 1

    def test_it_falls_on_the_same_deployment_in_every_process(self, gateway, group, alice):
        """One that remembers nothing, as another process or after a restart, draws the same."""
        group("load_balanced")
        for n in range(8):
            found = set()
            for _ in range(4):
                gateway.plane.signals.holders = Holders()
                found.add(by(gateway.chat(alice, model="group", messages=long_prompt(f"Text {n}."))))
            assert len(found) == 1


class Cache:
    """Providers with prompt caches, a deployment each: what one saw before, by its beginning, it has cached."""

    def __init__(self, upstream):
        self.prompt = self.cached = 0
        self._seen = {name: set() for name in FOUR}
        for name in FOUR:
            upstream.always(self._script(name), model=name)

    def _script(self, name):
        async def script(call):
            texts = [str(message["content"]) for message in call.received.body["messages"]]
            beginning = texts[0][:LONG]
            prompt = sum(map(len, texts)) // 4
            cached = len(texts[0]) // 4 if beginning in self._seen[name] else 0
            self._seen[name].add(beginning)
            self.prompt += prompt
            self.cached += cached
            usage = {"prompt_tokens": prompt, "completion_tokens": 4, "total_tokens": prompt + 4}
            await says(usage={**usage, "prompt_tokens_details": {"cached_tokens": cached}})(call)

        return script

    @property
    def share(self):
        return self.cached / self.prompt


class TestTheCachedTokens:
    @pytest.mark.parametrize("strategy", SPREADING)
    def test_four_in_five_of_a_conversation(self, gateway, group, alice, upstream, strategy, stream):
        group(strategy, cached_input=Decimal("0.25"))
        cache = Cache(upstream)
        rows = []
        for n in range(40):
            answer = gateway.chat(alice, model="group", stream=stream, messages=long_prompt("One.", f"Question {n}"))
            rows.append(gateway.settlement(answer.id))
        assert cache.share >= 0.8
        cached, prompt = (sum(getattr(row, f"{what}_tokens") for row in rows) for what in ("cached", "prompt"))
        assert cached / prompt == pytest.approx(cache.share)
        assert sum(row.cost_usd for row in rows) < prompt * Decimal("2.5") / 10**6 / 3

    @pytest.mark.parametrize("strategy", SPREADING)
    def test_of_ten_sessions_four_requests_each(self, gateway, group, alice, upstream, strategy):
        group(strategy)
        cache = Cache(upstream)
        turns = [(session, turn) for turn in range(4) for session in range(10)]
        for session, turn in turns:
            messages = long_prompt(f"Session {session}.", f"Question {turn}")
            by(gateway.chat(alice, model="group", session_id=f"session {session}", messages=messages))
        assert cache.share >= 0.7, "all but the first of each"

    def test_clearly_less_of_what_has_nothing_in_common(self, gateway, group, alice, upstream):
        group("load_balanced")
        cache = Cache(upstream)
        for n in range(40):
            by(gateway.chat(alice, model="group", messages=long_prompt(f"Text {n}.")))
        assert cache.share <= 0.1


class TestCost:
    @pytest.fixture
    def pair(self, gateway, provider, alice):
        """`usual` is cheaper; what `cacheable` has cached is cheaper still."""
        gateway.set(ENABLE_MEMORY=False)
        make_price("usual", input=Decimal(2), output=Decimal(10))
        make_price("cacheable", input=Decimal("2.5"), cached_input=Decimal("0.25"), output=Decimal(10))
        members = [make_deployment(provider, name) for name in ("usual", "cacheable")]
        return make_group("group", *members, strategy="cost_optimized")

    def test_the_cached_one_where_that_makes_it_cheaper(self, gateway, pair, alice, upstream, stream):
        ask = {"model": "group", "stream": stream, "messages": long_prompt("One."), "session_id": "one"}
        upstream.will(refuses(500), model="usual")
        assert by(gateway.chat(alice, **ask)) == "cacheable"
        gateway.forget_failures()
        assert [by(gateway.chat(alice, **ask)) for _ in range(3)] == ["cacheable"] * 3
        others = {**ask, "messages": long_prompt("Two."), "session_id": "two"}
        assert by(gateway.chat(alice, **others)) == "usual"

    def test_not_where_the_other_is_cheaper_all_the_same(self, gateway, provider, alice, upstream):
        gateway.set(ENABLE_MEMORY=False)
        make_price("usual", input=Decimal("0.1"), output=Decimal(1))
        make_price("cacheable", input=Decimal("2.5"), cached_input=Decimal("0.25"), output=Decimal(10))
        members = [make_deployment(provider, name) for name in ("usual", "cacheable")]
        make_group("group", *members, strategy="cost_optimized")
        ask = {"model": "group", "messages": long_prompt("One."), "session_id": "one"}
        upstream.will(refuses(500), model="usual")
        assert by(gateway.chat(alice, **ask)) == "cacheable"
        gateway.forget_failures()
        assert by(gateway.chat(alice, **ask)) == "usual"
