"""Requests and tokens a minute, and requests at once."""

import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from keys.actors import SYSTEM
from keys.limits.memory import MemoryLimits
from keys.models import Team, User
from keys.services import update_team
from tests.support.answers import assert_error
from tests.support.gateway import asking
from tests.support.upstream import hangs, refuses, says, sends
from tests.support.waiting import eventually
from tests.support.world import make_budget, make_key, row_of


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self):
        self.now = 1_000.0

    def __call__(self):
        return self.now

    def passes(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(gateway):
    """The clock of the gateway's rate limits, in the test's hands."""
    clock = Clock()
    limits = MemoryLimits(clock)
    gateway.plane.limits = limits
    gateway.plane.holds.limits = limits
    return clock


def limited(answer, says=None):
    assert_error(answer, 429, "rate_limit_error", "rate_limit_exceeded", says=says)
    return int(answer.headers["retry-after"])


class TestRequestsAMinute:
    def test_as_many_as_the_limit_says_then_no_more(self, gateway, model, clock, upstream, stream):
        key = make_key(rate_limit_rpm=3)
        assert [gateway.chat(key, stream=stream).status for _ in range(3)] == [200] * 3
        limited(gateway.chat(key, stream=stream), says="3 requests a minute")
        assert len(upstream.requests) == 3

    def test_the_time_to_wait_is_true(self, gateway, model, clock, stream):
        key = make_key(rate_limit_rpm=4)
        for _ in range(4):
            gateway.chat(key, stream=stream)
        wait = limited(gateway.chat(key, stream=stream))
        assert wait == 15
        clock.passes(wait - 1)
        assert limited(gateway.chat(key, stream=stream)) == 1
        clock.passes(1)
        assert gateway.chat(key, stream=stream).status == 200
        limited(gateway.chat(key, stream=stream))

    def test_capacity_comes_back_at_the_refill_rate(self, gateway, model, clock):
        key = make_key(rate_limit_rpm=6)
        for _ in range(6):
            gateway.chat(key)
        for _ in range(20):
            limited(gateway.chat(key))  # asking in vain costs nothing
        clock.passes(30)
        assert [gateway.chat(key).status for _ in range(4)] == [200, 200, 200, 429]

    def test_it_works_by_the_real_clock_too(self, gateway, model):
        key = make_key(rate_limit_rpm=120)
        while (answer := gateway.chat(key)).status == 200:
            pass
        time.sleep(limited(answer))
        assert gateway.chat(key).status == 200

    @pytest.mark.parametrize("scope", ["user", "team"])
    def test_users_and_teams_have_theirs(self, gateway, model, alice, clock, stream, scope):
        second = make_key("alice") if scope == "user" else make_key("bob", "red")
        owner = User.objects.get(username="alice") if scope == "user" else Team.objects.get(name="red")
        owner.rate_limit_rpm = 2
        owner.save()
        assert gateway.chat(alice, stream=stream).status == 200
        assert gateway.chat(second, stream=stream).status == 200
        limited(gateway.chat(alice, stream=stream), says=f"this {scope}")
        limited(gateway.chat(second, stream=stream), says=f"this {scope}")

    def test_a_stranger_is_not_slowed_down(self, gateway, model, alice, charlie, clock):
        update_team(actor=SYSTEM, team=Team.objects.get(name="red"), changes={"rate_limit_rpm": 1})
        gateway.chat(alice)
        limited(gateway.chat(alice))
        assert gateway.chat(charlie).status == 200

    def test_a_request_that_one_limit_refuses_is_taken_from_none(self, gateway, model, alice, clock):
        user = User.objects.get(username="alice")
        user.rate_limit_rpm = 1
        user.save()
        key, wide = make_key("alice", rate_limit_rpm=2), make_key("alice")
        gateway.chat(wide)
        for _ in range(5):
            limited(gateway.chat(key), says="this user")
        user.rate_limit_rpm = None
        user.save()
        assert [gateway.chat(key).status for _ in range(3)] == [200, 200, 429]

    def test_a_raised_limit_refills_at_its_own_rate_at_once(self, gateway, model, clock):
        key = make_key(rate_limit_rpm=1)
        gateway.chat(key)
        assert limited(gateway.chat(key)) == 60
        row = row_of(key)
        row.rate_limit_rpm = 10
        row.save()
        clock.passes(limited(gateway.chat(key)))
        assert gateway.chat(key).status == 200
        assert clock.now <= 1_006

    def test_a_failed_request_counts_as_one(self, gateway, model, clock, upstream):
        key = make_key(rate_limit_rpm=2)
        upstream.will(refuses(500), refuses(500))
        assert [gateway.chat(key).status for _ in range(3)] == [502, 502, 429]

    def test_no_limit_is_no_limit(self, gateway, model, alice):
        answers = [gateway.chat(alice) for _ in range(30)]
        assert {answer.status for answer in answers} == {200}
        assert not [name for name in answers[0].headers if name.startswith("x-ratelimit")]


class TestHeaders:
    def test_they_tell_limit_rest_and_reset(self, gateway, model, clock, stream):
        key = make_key(rate_limit_rpm=60)
        seen = []
        for _ in range(3):
            headers = gateway.chat(key, stream=stream).headers
            names = ("limit", "remaining", "reset")
            seen.append([headers[f"x-ratelimit-{name}-requests"] for name in names])
        assert seen == [["60", "59", "1s"], ["60", "58", "2s"], ["60", "57", "3s"]]

    def test_the_tightest_of_several_is_told(self, gateway, model, alice, clock):
        user = User.objects.get(username="alice")
        user.rate_limit_rpm = 3
        user.save()
        headers = gateway.chat(make_key("alice", rate_limit_rpm=100)).headers
        assert (headers["x-ratelimit-limit-requests"], headers["x-ratelimit-remaining-requests"]) == ("3", "2")

    def test_tokens_have_theirs(self, gateway, model, clock, stream):
        key = make_key(rate_limit_tpm=60_000)
        headers = gateway.chat(key, stream=stream, max_tokens=100).headers
        assert headers["x-ratelimit-limit-tokens"] == "60000"
        assert 9_800 <= int(headers["x-ratelimit-remaining-tokens"]) < 9_900
        assert headers["x-ratelimit-reset-tokens"].endswith("ms")

    @pytest.mark.parametrize("limit", ["requests", "tokens"])
    def test_a_refusal_tells_them_too(self, gateway, model, clock, stream, limit):
        # Lesson 24: on every 200 and 429.
        key = make_key(**({"rate_limit_rpm": 1} if limit == "requests" else {"rate_limit_tpm": 1200}))
        answer = gateway.chat(key, stream=stream, max_tokens=150)
        while answer.status == 200:
            answer = gateway.chat(key, stream=stream, max_tokens=150)
        limited(answer)
        assert answer.headers[f"x-ratelimit-limit-{limit}"] in ("1", "1200")
        # Less than such a request takes: 150 of output and its prompt of 9.
        assert int(answer.headers[f"x-ratelimit-remaining-{limit}"]) < 159
        assert f"x-ratelimit-reset-{limit}" in answer.headers


class TestTokensAMinute:
    """A bucket holds a sixth of a minute's tokens; a request takes its prompt and its output cap, and gets back what it
    did not use.
    """

    def test_what_is_not_used_comes_back(self, gateway, model, clock, upstream, stream):
        key = make_key(rate_limit_tpm=6_000)
        upstream.always(says(usage={"prompt_tokens": 10, "completion_tokens": 10}))
        # Each holds more than 900 of the 1 000 that the bucket has, and uses 20.
        assert [gateway.chat(key, stream=stream, max_tokens=900).status for _ in range(4)] == [200] * 4

    def test_what_is_used_does_not(self, gateway, model, clock, upstream, stream):
        key = make_key(rate_limit_tpm=6_000)
        upstream.always(says(usage={"prompt_tokens": 400, "completion_tokens": 500}))
        assert gateway.chat(key, stream=stream, max_tokens=900).status == 200
        wait = limited(gateway.chat(key, stream=stream, max_tokens=900), says="6000 tokens a minute")
        assert 8 <= wait <= 9  # 900 tokens at a hundred a second, less the hundred that are left
        clock.passes(wait)
        assert gateway.chat(key, stream=stream, max_tokens=900).status == 200

    def test_one_that_no_bucket_could_hold_is_told_not_to_try_again(self, gateway, model, clock, upstream, stream):
        key = make_key(rate_limit_tpm=600)
        answer = gateway.chat(key, stream=stream, max_tokens=101)
        assert_error(answer, 429, "rate_limit_error", "request_too_large_for_limit")
        assert answer.headers["x-should-retry"] == "false"
        assert "retry-after" not in answer.headers
        assert not upstream.requests

    def test_a_long_cap_is_held_at_4096(self, gateway, model, clock):
        key = make_key(rate_limit_tpm=30_000)
        assert gateway.chat(key, max_tokens=100_000).status == 200

    def test_close_to_the_limit_the_prompt_is_counted_exactly(self, gateway, model, clock, stream):
        # 400 bytes of spaces and letters are some 100 tokens: by their bytes they would not fit.
        key = make_key(rate_limit_tpm=1_800)
        messages = [{"role": "user", "content": "word " * 80}]
        assert gateway.chat(key, stream=stream, messages=messages, max_tokens=150).status == 200

    def test_five_at_once_never_take_more_than_there_is(self, gateway, model, clock, upstream):
        # LiteLLM#18730: 663 tokens passed a limit of 100.
        key = make_key(rate_limit_tpm=6_000)
        upstream.always(says(usage={"prompt_tokens": 10, "completion_tokens": 290}, delay=0.1))
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: gateway.chat(key, max_tokens=300), range(8)))
        assert sorted(answer.status for answer in answers) == [200] * 3 + [429] * 5

    def test_a_failure_gives_all_of_it_back(self, gateway, model, clock, upstream, stream):
        key = make_key(rate_limit_tpm=6_000)
        upstream.will(*[refuses(500)] * 5)
        assert [gateway.chat(key, stream=stream, max_tokens=900).status for _ in range(5)] == [502] * 5
        gateway.forget_failures()
        assert gateway.chat(key, stream=stream, max_tokens=900).status == 200

    def test_a_refused_budget_takes_no_tokens(self, gateway, model, clock):
        key = make_key(rate_limit_tpm=6_000)
        budget = make_budget("key", key.id, tokens=10)
        for _ in range(5):
            assert gateway.chat(key, max_tokens=900).status == 402
        budget.delete()
        assert gateway.chat(key, max_tokens=900).status == 200


class TestAtOnce:
    def test_no_more_than_the_limit_run_together(self, gateway, model, alice, upstream, stream):
        key = make_key(max_parallel=2)
        upstream.always(hangs())
        with ThreadPoolExecutor(2) as pool:
            running = [pool.submit(gateway.chat, key, stream=stream) for _ in range(2)]
            upstream.wait_for_requests(2)
            wait = limited(gateway.chat(key, stream=stream), says="2 of 2")
            assert wait == 1
            upstream.forget()  # the connections break: both end
            assert [future.result().status for future in running] == [502, 502]
        upstream.always(says())
        assert gateway.chat(key, stream=stream).status == 200

    @pytest.mark.parametrize("scope", ["user", "team"])
    def test_users_and_teams_have_theirs(self, gateway, model, alice, bob, upstream, scope):
        second = make_key("alice") if scope == "user" else bob
        owner = User.objects.get(username="alice") if scope == "user" else Team.objects.get(name="red")
        owner.max_parallel = 1
        owner.save()
        upstream.will(sends(0.3, end="stall"))
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(gateway.chat, alice, stream=True)
            upstream.wait_for_requests(1)
            limited(gateway.chat(second), says=f"this {scope}")
            upstream.forget()
            running.result()

    def test_a_client_that_leaves_frees_its_place(self, gateway, model, upstream):
        key = make_key(max_parallel=1)
        upstream.will(hangs())
        with asking(gateway, key, stream=True):
            upstream.wait_for_requests(1)
            limited(gateway.chat(key))
        eventually(lambda: gateway.chat(key).status == 200)

    @pytest.mark.parametrize("wrong", [{"model": "nobody"}, {"n": 0}, {"rag_collection": "nobody's"}])
    def test_a_refused_request_frees_its_place(self, gateway, model, wrong):
        key = make_key(max_parallel=1)
        for _ in range(3):
            assert gateway.chat(key, **wrong).status in (400, 404)
        assert gateway.chat(key).status == 200
