"""Requests at once, requests and tokens a minute of a deployment: one that is full is passed over."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from time import perf_counter

import pytest

from ailb_project.shared_redis import SharedRedis
from gateway.circuits import REJECTED
from gateway.models import Deployment
from gateway.routing import strategies
from keys.limits.memory import MemoryLimits
from keys.limits.redis import RedisLimits
from tests.support.answers import assert_error
from tests.support.gateway import asking
from tests.support.redis_server import own_prefix
from tests.support.upstream import answers, delta, drops, refuses, says, sends, waits_for
from tests.support.waiting import eventually
from tests.support.world import make_deployment, make_group, make_key, make_price
from tests.through_the_door.test_disconnects import read_until

FULL = {"rpm": {"rpm": 1}, "tpm": {"tpm": 1800}, "parallel": {"max_parallel": 1}}
ASK = {"max_tokens": 250}  # of a bucket of 300, a sixth of 1 800


class Clock:
    def __init__(self):
        self.now = 1_000.0

    def __call__(self):
        return self.now

    def passes(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(gateway):
    """The clock of the gateway's limits and signals, in the test's hands."""
    clock = Clock()
    gateway.plane.limits = gateway.plane.holds.limits = MemoryLimits(clock)
    gateway.plane.signals.clock = clock
    return clock


@pytest.fixture
def pair(gateway, provider, alice):
    """`pair(rpm=1)`: a group whose deployment `a` has these limits, and whose `b` has none."""

    def made(strategy="failover", **limits):
        for name in ("a", "b"):
            make_price(name)
        return make_group(
            "pair", make_deployment(provider, "a", **limits), make_deployment(provider, "b"), strategy=strategy
        )

    return made


@pytest.fixture
def only(provider, alice):
    """`only(rpm=1)`: `gpt-test`, with these limits."""

    def made(**limits):
        make_price()
        return make_deployment(provider, **limits)

    return made


@contextmanager
def busy(gateway, key, upstream, model):
    """A request that runs at `model` meanwhile."""
    done = threading.Event()
    upstream.will(waits_for(done, says(usage=LARGE)), model=model)
    before = len(upstream.requests)
    with ThreadPoolExecutor(1) as client:
        running = client.submit(gateway.chat, key, model=model, **ASK)
        try:
            upstream.wait_for_requests(before + 1)
            yield
        finally:
            done.set()
        assert running.result(10).status == 200


LARGE = {"prompt_tokens": 10, "completion_tokens": 250, "total_tokens": 260}


def by(answer):
    assert answer.status == 200, answer.raw
    return answer.headers["x-ailb-model"]


def asked(upstream):
    return [received.body["model"] for received in upstream.requests]


def limited(answer, says="this deployment"):
    assert_error(answer, 429, "rate_limit_error", "rate_limit_exceeded", says=says)
    return int(answer.headers["retry-after"])


class TestOneThatIsFull:
    @pytest.mark.parametrize("strategy", strategies())
    @pytest.mark.parametrize("limit", FULL)
    def test_is_passed_over(self, gateway, pair, clock, alice, upstream, strategy, limit, stream):
        pair(strategy, **FULL[limit])
        with busy(gateway, alice, upstream, "a"):
            for _ in range(6):
                answer = gateway.chat(alice, model="pair", stream=stream, **ASK)
                assert by(answer) == "b"
                assert answer.headers["x-ailb-attempts"] == "1", "not to be asked is no attempt"
            row = gateway.settlement(answer.id)
            assert (row.deployment, [attempt["deployment"] for attempt in row.attempts]) == ("b", ["b"])
        assert asked(upstream).count("a") == 1

    @pytest.mark.parametrize("limit", ["rpm", "tpm"])
    def test_has_room_again_with_time(self, gateway, pair, clock, alice, upstream, limit):
        pair(**FULL[limit])
        upstream.always(says(usage=LARGE))
        assert [by(gateway.chat(alice, model="pair", **ASK)) for _ in range(3)] == ["a", "b", "b"]
        clock.passes(60)
        assert [by(gateway.chat(alice, model="pair", **ASK)) for _ in range(2)] == ["a", "b"]

    def test_of_several_at_once_no_more_than_it_takes(self, gateway, pair, alice, upstream, stream):
        pair("load_balanced", max_parallel=3)
        free = threading.Event()
        upstream.always(waits_for(free, says()))
        with ThreadPoolExecutor(12) as clients:
            found = [clients.submit(gateway.chat, alice, model="pair", stream=stream) for _ in range(12)]
            upstream.wait_for_requests(12)
            assert asked(upstream).count("a") <= 3
            free.set()
            assert {answer.result(10).status for answer in found} == {200}

    def test_other_deployments_of_the_same_model_have_their_own(self, gateway, provider, alice, upstream, clock):
        make_price("shared")
        members = [make_deployment(provider, name, "shared", rpm=2) for name in ("a", "b")]
        make_group("pair", *members)
        assert [by(gateway.chat(alice, model="pair")) for _ in range(4)] == ["a", "a", "b", "b"]
        limited(gateway.chat(alice, model="pair"))

    def test_under_whatever_name_it_is_asked_for(self, gateway, pair, alice, clock, upstream):
        pair(rpm=3)
        for model in ("a", "upstream/a", "pair"):
            assert by(gateway.chat(alice, model=model)) == "a"
        limited(gateway.chat(alice, model="a"))
        assert by(gateway.chat(alice, model="pair")) == "b"

    def test_for_every_key(self, gateway, only, clock, alice, charlie):
        only(rpm=1)
        assert gateway.chat(alice).status == 200
        limited(gateway.chat(charlie))

    def test_failover_does_not_go_there(self, gateway, provider, alice, clock, upstream, stream):
        for name in ("a", "b", "c"):
            make_price(name)
        a, b, c = (make_deployment(provider, name) for name in ("a", "b", "c"))
        Deployment.objects.filter(name="b").update(rpm=1)
        make_group("three", a, b, c)
        gateway.chat(alice, model="b")
        upstream.will(refuses(500), model="a")
        answer = gateway.chat(alice, model="three", stream=stream)
        assert (by(answer), answer.headers["x-ailb-attempts"]) == ("c", "2")
        assert asked(upstream) == ["b", "a", "c"]

    def test_a_request_that_it_could_never_hold_goes_elsewhere(self, gateway, pair, clock, alice, upstream, stream):
        pair(tpm=600)
        assert by(gateway.chat(alice, model="pair", stream=stream, max_tokens=101)) == "b"
        assert by(gateway.chat(alice, model="pair", stream=stream, max_tokens=50)) == "a"

    def test_a_changed_limit_is_in_force_with_the_next_request(self, gateway, only, clock, alice):
        deployment = only(rpm=1)
        assert gateway.chat(alice).status == 200
        limited(gateway.chat(alice))
        deployment.rpm = None
        deployment.save()
        assert gateway.chat(alice).status == 200


class TestWhatIsTaken:
    ENDS = {
        "success": says(),
        "failure": refuses(500),
        "rate limit": refuses(429, retry_after="0"),
        "client's mistake": refuses(400),
        "no answer": drops(),
        "no JSON": answers(b"<html>"),
    }

    @pytest.mark.parametrize("end", ENDS)
    def test_its_place_is_given_back(self, gateway, only, alice, upstream, stream, end):
        only(max_parallel=1)
        upstream.will(self.ENDS[end])
        first = gateway.chat(alice, stream=stream)
        assert (first.status == 200) == (end == "success")
        gateway.wait_until_quiet()
        gateway.forget_failures()
        assert gateway.chat(alice, stream=stream).status == 200

    def test_after_a_stream_that_was_cut(self, gateway, only, alice, upstream):
        only(max_parallel=1)
        upstream.will(sends(delta("Hel"), 0.05, end="cut"))
        assert not gateway.chat(alice, stream=True).done
        assert gateway.chat(alice, stream=True).done

    @pytest.mark.parametrize("begun", [[], [delta("Hel")]], ids=["nothing", "some"])
    def test_after_a_client_that_left(self, gateway, only, alice, upstream, begun):
        only(max_parallel=1)
        upstream.will(sends(*begun, end="stall"))
        with asking(gateway, alice, stream=True):
            upstream.wait_for_requests(1)
            limited(gateway.chat(alice))
        assert upstream.only.was_dropped()
        eventually(lambda: gateway.chat(alice).status == 200, 2)

    def test_a_stream_has_it_to_its_end(self, gateway, only, alice, upstream):
        only(max_parallel=1)
        done = threading.Event()
        upstream.will(waits_for(done, says()))
        with gateway.chatting(alice, stream=True) as response:
            upstream.wait_for_requests(1)
            limited(gateway.chat(alice), says="1 of 1 requests are running")
            done.set()
            response.read()
        assert gateway.chat(alice).status == 200

    def test_tokens_that_were_not_used_come_back(self, gateway, only, clock, alice, upstream, stream):
        only(tpm=1800)
        upstream.always(says(usage={"prompt_tokens": 5, "completion_tokens": 5, "total_tokens": 10}))
        # Each holds more than 250 of 300 and uses 10.
        assert [gateway.chat(alice, stream=stream, **ASK).status for _ in range(3)] == [200] * 3

    @pytest.mark.parametrize("end", ["cut", "stall"])
    def test_those_of_a_stream_that_ended_early_come_back(self, gateway, only, clock, alice, upstream, end):
        only(tpm=1800)
        upstream.will(sends(delta("Hel"), 0.05, end=end))
        with gateway.chatting(alice, stream=True, **ASK) as response:
            read_until(response, b"Hel" if end == "stall" else b"error")
        gateway.only_closing()
        assert gateway.chat(alice, **ASK).status == 200

    def test_those_that_were_do_not(self, gateway, only, clock, alice, upstream, stream):
        only(tpm=1800)
        upstream.always(says(usage=LARGE))
        assert gateway.chat(alice, stream=stream, **ASK).status == 200
        wait = limited(gateway.chat(alice, stream=stream, **ASK), says="1800 tokens a minute")
        clock.passes(wait)
        assert gateway.chat(alice, stream=stream, **ASK).status == 200

    @pytest.mark.parametrize("end", ["failure", "client's mistake", "no answer"])
    def test_tokens_of_a_failure_come_back(self, gateway, only, clock, alice, upstream, stream, end):
        only(tpm=1800)
        upstream.will(self.ENDS[end])
        assert gateway.chat(alice, stream=stream, **ASK).status >= 400
        assert gateway.chat(alice, stream=stream, **ASK).status == 200

    def test_a_longer_prompt_than_it_looked_is_taken_too(self, gateway, only, clock, alice, upstream):
        """What the provider reports counts there: images and tools are longer than their letters."""
        only(tpm=6000)
        upstream.will(says(usage={"prompt_tokens": 900, "completion_tokens": 10, "total_tokens": 910}))
        assert gateway.chat(alice, max_tokens=100).status == 200
        limited(gateway.chat(alice, max_tokens=800))

    def test_a_caller_that_is_refused_takes_nothing(self, gateway, only, clock, upstream):
        only(rpm=2)
        narrow, wide = make_key(rate_limit_rpm=1), make_key()
        gateway.chat(narrow)
        for _ in range(5):
            assert gateway.chat(narrow).status == 429
        assert gateway.chat(wide).status == 200
        limited(gateway.chat(wide))

    def test_a_refusal_takes_nothing(self, gateway, only, clock, alice):
        only(rpm=6)
        for _ in range(6):
            gateway.chat(alice)
        for _ in range(20):
            limited(gateway.chat(alice))
        clock.passes(10)
        assert gateway.chat(alice).status == 200

    def test_one_that_lacks_tokens_takes_no_place_and_no_request(self, gateway, only, clock, alice, upstream):
        only(tpm=1800, rpm=2, max_parallel=1)
        upstream.always(says(usage=LARGE))
        assert gateway.chat(alice, **ASK).status == 200
        limited(gateway.chat(alice, **ASK), says="1800 tokens a minute")
        clock.passes(10)  # tokens come back at 30 a second, requests at one in 30 s
        assert gateway.chat(alice, **ASK).status == 200, "the refused one was no request"


class TestAllFull:
    @pytest.mark.parametrize("limit", FULL)
    def test_is_429_with_the_limit_and_the_time(self, gateway, only, clock, alice, upstream, limit, stream):
        only(**FULL[limit])
        told = {"rpm": "1 requests a minute", "tpm": "1800 tokens a minute", "parallel": "1 of 1 requests are running"}
        with busy(gateway, alice, upstream, "gpt-test"):
            answer = gateway.chat(alice, stream=stream, **ASK)
            wait = limited(answer, says=told[limit])
            assert "this deployment" in answer.error["message"]
            assert 1 <= wait <= 60
            row = gateway.closing(answer.id)
            assert (row.kind, row.status, row.cost_usd, row.attempts) == ("release", 429, 0, [])
        assert len(upstream.requests) == 1

    def test_the_time_is_true(self, gateway, only, clock, alice, stream):
        only(rpm=4)
        for _ in range(4):
            gateway.chat(alice, stream=stream)
        wait = limited(gateway.chat(alice, stream=stream))
        assert wait == 15
        clock.passes(wait - 1)
        limited(gateway.chat(alice, stream=stream))
        clock.passes(1)
        assert gateway.chat(alice, stream=stream).status == 200

    @pytest.mark.parametrize("strategy", strategies())
    def test_of_several_the_shortest_time(self, gateway, provider, alice, clock, upstream, strategy):
        for name in ("a", "b", "c"):
            make_price(name)
        members = [make_deployment(provider, name, rpm=rpm) for name, rpm in (("a", 1), ("b", 6), ("c", 2))]
        make_group("three", *members, strategy=strategy)
        for name, times in (("a", 1), ("b", 6), ("c", 2)):
            for _ in range(times):
                assert by(gateway.chat(alice, model=name)) == name
        sent = len(upstream.requests)
        assert limited(gateway.chat(alice, model="three")) == 10
        assert len(upstream.requests) == sent

    @pytest.mark.parametrize("order", ["ab", "ba"])
    def test_one_that_never_could_and_one_that_soon_can(self, gateway, provider, alice, clock, upstream, order):
        """Waiting helps: whoever is told not to try again loses an answer."""
        for name in ("a", "b"):
            make_price(name)
        limits = {"a": {"tpm": 600}, "b": {"rpm": 1}}
        make_group("pair", *[make_deployment(provider, name, **limits[name]) for name in order])
        gateway.chat(alice, model="b")
        answer = gateway.chat(alice, model="pair", max_tokens=200)
        assert limited(answer) == 60
        assert "x-should-retry" not in answer.headers
        clock.passes(60)
        assert by(gateway.chat(alice, model="pair", max_tokens=200)) == "b"

    def test_that_never_could_is_told_not_to_try_again(self, gateway, only, clock, alice, upstream, stream):
        only(tpm=600)
        answer = gateway.chat(alice, stream=stream, max_tokens=200)
        assert_error(answer, 429, "rate_limit_error", "request_too_large_for_limit", says="this deployment")
        assert answer.headers["x-should-retry"] == "false"
        assert not upstream.requests

    def test_a_failure_upstream_is_told_before_it(self, gateway, pair, clock, alice, upstream, stream):
        pair(rpm=1)
        gateway.chat(alice, model="a")
        upstream.will(refuses(500, "It broke."), model="b")
        answer = gateway.chat(alice, model="pair", stream=stream)
        assert_error(answer, 502, "upstream_error", "upstream_error", says="It broke.")

    def test_it_is_counted(self, gateway, only, clock, alice):
        only(rpm=1)
        series = 'ailb_rate_limited_total{limit="requests",scope="deployment"}'
        before = gateway.metric(series)
        gateway.chat(alice)
        limited(gateway.chat(alice))
        eventually(lambda: gateway.metric(series) == before + 1)

    def test_it_opens_no_circuit(self, gateway, only, clock, alice):
        only(rpm=1)
        gateway.chat(alice)
        for _ in range(10):
            limited(gateway.chat(alice))
        assert not gateway.plane.circuits.troubled

    def test_the_probe_of_a_circuit_is_not_spent_on_it(self, gateway, only, clock, alice, upstream):
        passed = [0.0]
        gateway.plane.circuits.clock = lambda: perf_counter() + passed[0]
        only(rpm=1)
        upstream.will(refuses(401))
        assert gateway.chat(alice).status == 502
        passed[0] += REJECTED
        limited(gateway.chat(alice))
        clock.passes(60)
        assert gateway.chat(alice).status == 200


@pytest.mark.redis
class TestOverRedis:
    @pytest.fixture
    def planes(self, gateway, redis_url):
        """This gateway's limits, and those of another process."""

        async def opened(prefix):
            clients = [SharedRedis(redis_url, prefix=prefix) for _ in range(2)]
            return clients, [RedisLimits(client, f"gw_{n}") for n, client in enumerate(clients)]

        async def closed(clients, limits):
            for one in (*limits, *clients):
                await one.close()

        with own_prefix(redis_url) as prefix:
            clients, (here, there) = gateway.do(opened(prefix))
            gateway.plane.limits = gateway.plane.holds.limits = here
            yield here, there
            gateway.plane.limits = gateway.plane.holds.limits = MemoryLimits()
            gateway.do(closed(clients, (here, there)))

    def limit_of(self, gateway, name):
        return gateway.plane.snapshot().catalog.deployments[name].limit

    @pytest.mark.parametrize("limit", FULL)
    def test_full_ones_are_passed_over(self, gateway, pair, planes, alice, upstream, limit, stream):
        pair(**FULL[limit])
        with busy(gateway, alice, upstream, "a"):
            assert {by(gateway.chat(alice, model="pair", stream=stream, **ASK)) for _ in range(3)} == {"b"}

    def test_what_another_process_took_counts(self, gateway, only, planes, alice, upstream, stream):
        only(max_parallel=1)
        _, there = planes
        admission = gateway.do(there.admit("req_elsewhere", (self.limit_of(gateway, "gpt-test"),)))
        limited(gateway.chat(alice, stream=stream))

        async def leaves():
            there.leave(admission)

        gateway.do(leaves())
        eventually(lambda: gateway.chat(alice, stream=stream).status == 200, 5)

    @pytest.mark.parametrize("end", ["success", "failure", "no answer"])
    def test_places_are_given_back(self, gateway, only, planes, alice, upstream, stream, end):
        only(max_parallel=1)
        upstream.will(TestWhatIsTaken.ENDS[end])
        gateway.chat(alice, stream=stream)
        eventually(lambda: gateway.chat(alice, stream=stream).status == 200, 5)
        eventually(lambda: gateway.chat(alice, stream=stream).status == 200, 5)

    def test_all_full(self, gateway, only, planes, alice, upstream, stream):
        only(rpm=1)
        assert gateway.chat(alice, stream=stream).status == 200
        assert 50 <= limited(gateway.chat(alice, stream=stream), says="1 requests a minute") <= 60
        assert len(upstream.requests) == 1
