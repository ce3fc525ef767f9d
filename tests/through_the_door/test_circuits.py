"""Deployments that fail are left alone, and found again when they are well."""

import threading
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter

import pytest

from gateway.circuits import FAILURES, LONGEST_OPEN, OPEN
from gateway.circuits_redis import RedisCircuits
from tests.support.answers import assert_error
from tests.support.dialect_registry import serve
from tests.support.upstream import DONE, answers, delta, hangs, refuses, says, sends, waits_for
from tests.support.world import make_deployment, make_group


@pytest.fixture
def time(gateway):
    """`time(seconds)` moves the circuits' clock on."""
    passed = [0.0]
    gateway.plane.circuits.clock = lambda: perf_counter() + passed[0]

    def move(seconds):
        passed[0] += seconds

    return move


@pytest.fixture
def pair(gateway, provider, alice):
    return make_group("pair", make_deployment(provider, "a"), make_deployment(provider, "b"))


def asked(upstream, model):
    return sum(received.body["model"] == model for received in upstream.requests)


def test_a_dead_one_of_two_gets_six_requests_in_a_minute_and_is_found_again(gateway, pair, alice, upstream, time):
    upstream.always(refuses(500), model="a")
    for second in range(60):
        answer = gateway.chat(alice, model="pair", stream=second % 2 == 0)
        assert (answer.status, answer.headers["x-ailb-model"]) == (200, "b")
        time(1)
    assert asked(upstream, "a") <= 6
    upstream.always(says(), model="a")
    for _ in range(15):
        if gateway.chat(alice, model="pair").headers["x-ailb-model"] == "a":
            break
        time(1)
    else:
        pytest.fail("not back within 15 s")
    assert all(gateway.chat(alice, model="pair").headers["x-ailb-model"] == "a" for _ in range(5))


def test_the_only_one_is_not_asked_while_it_is_open(gateway, model, alice, upstream, time, stream):
    upstream.will(*[refuses(500)] * FAILURES)
    for _ in range(FAILURES):
        assert gateway.chat(alice, stream=stream).status == 502
    assert gateway.metric('ailb_circuit_state{deployment="gpt-test"}') == 2
    answer = gateway.chat(alice, stream=stream)
    assert_error(answer, 503, "overloaded_error", "no_healthy_deployment", says="Try again in 7 s")
    assert answer.headers["retry-after"] == "7"
    assert len(upstream.requests) == FAILURES
    time(OPEN)
    assert gateway.metric('ailb_circuit_state{deployment="gpt-test"}') == 1
    assert gateway.chat(alice, stream=stream).status == 200
    assert gateway.metric('ailb_circuit_state{deployment="gpt-test"}') == 0


def test_a_prompt_is_counted_by_us_while_it_is_open(gateway, committed, alice, upstream):
    provider = serve(upstream, "anthropic")
    upstream.always(refuses(500))
    for _ in range(FAILURES):
        assert gateway.chat(alice, model="the-model").status == 502
    before = len(upstream.requests)
    body = {"model": "the-model", "messages": [{"role": "user", "content": "Hi"}]}
    answer = gateway.send("POST", "/v1/messages/count_tokens", key=alice, json=body)
    assert answer.status == 200
    assert answer.body["input_tokens"] > 0
    assert len(upstream.requests) == before, provider.kind


@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_honoured(gateway, model, alice, upstream, time, status):
    upstream.will(refuses(status, retry_after="30"), refuses(status, retry_after="100"))
    assert gateway.chat(alice).status == 502
    assert gateway.chat(alice).headers["retry-after"] == "30"
    time(30)
    assert gateway.chat(alice).status == 502
    assert gateway.chat(alice).headers["retry-after"] == "100"
    time(99)
    assert gateway.chat(alice).status == 503
    time(1)
    assert gateway.chat(alice).status == 200


def test_limits_of_which_nothing_is_left_are(gateway, model, alice, upstream):
    upstream.will(refuses(429, x_ratelimit_remaining_tokens="0", x_ratelimit_reset_tokens="1m5s"))
    gateway.chat(alice)
    assert gateway.chat(alice).headers["retry-after"] == "65"


@pytest.mark.parametrize("status", [401, 402, 403])
def test_rejected_credentials_until_they_are_changed(gateway, model, provider, alice, upstream, stream, status):
    upstream.will(refuses(status))
    assert_error(gateway.chat(alice, stream=stream), 502, "upstream_error", "upstream_credentials_rejected")
    assert_error(gateway.chat(alice, stream=stream), 503, "overloaded_error", "no_healthy_deployment")
    provider.set_credentials(api_key="sk-another-credential-0123456789")
    provider.save()
    assert gateway.chat(alice, stream=stream).status == 200


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, {"type": "invalid_request_error", "message": "Your credit balance is too low to access the API."}),
        (429, {"type": "insufficient_quota", "code": "insufficient_quota", "message": "You exceeded your quota."}),
        (429, {"type": ["odd"], "code": {"odd": 1}, "message": "Insufficient Balance"}),
    ],
)  # fmt: skip
def test_an_account_without_credit_is_left_alone(gateway, model, alice, upstream, stream, status, error):
    upstream.will(answers({"error": error}, status))
    assert_error(gateway.chat(alice, stream=stream), 502, "upstream_error", "upstream_credentials_rejected")
    assert_error(gateway.chat(alice, stream=stream), 503, "overloaded_error", "no_healthy_deployment")
    assert len(upstream.requests) == 1


def test_one_whose_answer_says_that_nothing_is_left_comes_last(gateway, provider, alice, upstream):
    make_group("pool", make_deployment(provider, "a"), make_deployment(provider, "b"), strategy="load_balanced")
    used_up = {"x_ratelimit_remaining_requests": "0", "x_ratelimit_reset_requests": "30s"}
    upstream.always(sends(delta("Hi"), delta(finish="stop"), DONE, **used_up), model="a")
    served = [gateway.chat(alice, model="pool", stream=True).headers["x-ailb-model"] for _ in range(40)]
    assert served.count("a") <= 1


def test_the_clients_mistakes_open_nothing(gateway, model, alice, upstream, stream):
    upstream.will(*[refuses(400)] * 30)
    assert {gateway.chat(alice, stream=stream).status for _ in range(30)} == {400}
    assert gateway.chat(alice, stream=stream).status == 200


def test_streams_that_are_cut_count(gateway, model, alice, upstream):
    upstream.will(*[sends(delta("Half"), 0.05, end="cut")] * FAILURES)
    for _ in range(FAILURES):
        assert gateway.chat(alice, stream=True).status == 200
    assert_error(gateway.chat(alice, stream=True), 503, "overloaded_error", "no_healthy_deployment")


def test_timeouts_count(gateway, model, provider, alice, upstream):
    provider.first_byte_timeout = 0.1
    provider.save()
    upstream.will(*[hangs()] * FAILURES)
    assert [gateway.chat(alice).status for _ in range(FAILURES + 1)] == [504] * FAILURES + [503]


def test_one_probe_however_many_ask(gateway, model, alice, upstream, time, stream):
    upstream.will(*[refuses(500)] * FAILURES)
    for _ in range(FAILURES):
        gateway.chat(alice, stream=stream)
    time(OPEN)
    well = threading.Event()
    upstream.always(waits_for(well, says()))
    with ThreadPoolExecutor(10) as clients:
        answers = [clients.submit(gateway.chat, alice, stream=stream) for _ in range(10)]
        upstream.wait_for_requests(FAILURES + 1)
        refused = [answer for answer in answers if _status(answer) == 503]
        well.set()
    assert len(refused) == 9
    assert len(upstream.requests) == FAILURES + 1


def _status(answer):
    try:
        return answer.result(1.5).status
    except TimeoutError:
        return None


def test_a_client_that_leaves_gives_the_probe_back(gateway, model, alice, upstream, time):
    upstream.will(*[refuses(500)] * FAILURES, sends(delta(role="assistant", content=""), end="stall"))
    for _ in range(FAILURES):
        gateway.chat(alice)
    time(OPEN)
    with gateway.chatting(alice, stream=True):
        upstream.wait_for_requests(FAILURES + 1)
        assert gateway.chat(alice).status == 503
    assert upstream.last.was_dropped()
    gateway.wait_until_quiet()
    assert gateway.chat(alice).status == 200


def test_both_dead_are_asked_five_times_each(gateway, pair, alice, upstream):
    upstream.always(refuses(500))
    statuses = [gateway.chat(alice, model="pair").status for _ in range(12)]
    assert statuses[0] == 502
    assert statuses[-1] == 503
    assert (asked(upstream, "a"), asked(upstream, "b")) == (FAILURES, FAILURES)


@pytest.mark.redis
def test_two_planes_over_redis_share(gateway, model, alice, upstream, redis_url):
    from ailb_project.shared_redis import SharedRedis
    from tests.support.redis_server import own_prefix
    from tests.support.waiting import eventually

    async def opened(prefix):
        clients = [SharedRedis(redis_url, prefix=prefix) for _ in range(2)]
        return clients, [RedisCircuits(client, f"gw_{n}", b"pepper") for n, client in enumerate(clients)]

    async def closed(clients, circuits):
        for one in (*circuits, *clients):
            await one.close()

    with own_prefix(redis_url) as prefix:
        clients, (here, there) = gateway.do(opened(prefix))
        gateway.plane.circuits = gateway.plane.signals.circuits = here
        deployment = gateway.plane.snapshot().catalog.deployments["gpt-test"]

        async def fails_there():
            there.rejected(there.enter(deployment), wait=None)

        try:
            assert gateway.chat(alice).status == 200
            gateway.do(fails_there())
            eventually(lambda: gateway.chat(alice).status == 503, 2)
            sent = len(upstream.requests)
            assert gateway.chat(alice).status == 503
            assert len(upstream.requests) == sent
        finally:
            gateway.do(closed(clients, (here, there)))


def test_the_longest_open_time_keeps_the_promise_of_fifteen_seconds():
    assert LONGEST_OPEN < 15
