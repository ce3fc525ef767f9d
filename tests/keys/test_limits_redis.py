"""Rate limits in Redis: the contract, and what only several processes and a server that fails can show."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from structlog.testing import capture_logs

from ailb_project.shared_redis import SharedRedis
from gateway.errors import RateLimited
from keys.limits.redis import RedisLimits
from tests.keys.limits_contract import LimitsContract, admitted, limit
from tests.support.redis_server import DeafProxy, OwnRedis, own_prefix, until_reachable

pytestmark = pytest.mark.redis


@pytest.fixture(autouse=True)
def _patient(monkeypatch, request):
    """A busy machine is no fault of Redis; where its faults are the subject, the true limit holds."""
    if "own_redis" not in request.fixturenames:
        monkeypatch.setattr("ailb_project.shared_redis._CEILING", 5.0)
        monkeypatch.setattr("ailb_project.shared_redis._CONNECT", 5.0)


@pytest.fixture
def prefix(redis_url):
    with own_prefix(redis_url) as prefix:
        yield prefix


@pytest.fixture
async def processes(redis_url, prefix) -> AsyncIterator[list[RedisLimits]]:
    """The limits of four gateway processes."""
    found = [RedisLimits(SharedRedis(redis_url, prefix=prefix), f"gw_{number}") for number in range(4)]
    yield found
    for one in found:
        await one.close()


@pytest.fixture
def own_redis(tmp_path):
    server = OwnRedis(tmp_path)
    server.start()
    yield server
    server.kill()


class TestRedisLimits(LimitsContract):
    @pytest.fixture
    def limits(self, processes) -> RedisLimits:
        return processes[0]


async def test_processes_share_a_rate(processes):
    owner = (limit(rpm=50),)
    found = await asyncio.gather(*(admitted(one, owner, 40, f"p{n}-") for n, one in enumerate(processes)))
    assert sum(map(len, found)) == 50


async def test_processes_share_places(processes):
    owner = (limit(max_parallel=7),)
    found = await asyncio.gather(*(admitted(one, owner, 10, f"p{n}-") for n, one in enumerate(processes)))
    assert sum(map(len, found)) == 7


async def test_processes_share_tokens(processes):
    owner = (limit(tpm=6000),)
    await processes[0].take_tokens("r", owner, 900)
    assert 0 <= (await processes[1].take_tokens("r", owner, 100)).remaining < 30
    processes[1].give_back_tokens(owner, 500)
    await asyncio.sleep(0.05)
    await processes[2].take_tokens("r", owner, 500)


async def test_a_place_left_is_free_although_others_were_on_their_way_before(processes):
    owner, another = (limit(max_parallel=1, tpm=600),), (limit("x", max_parallel=1),)
    for turn in range(10):
        first, second = await processes[0].admit(f"a{turn}", another), await processes[0].admit(f"b{turn}", owner)
        await processes[0].take_tokens(f"b{turn}", owner, 100)
        processes[0].leave(first)
        for _ in range(2):
            await asyncio.sleep(0)
        processes[0].give_back_tokens(owner, 100)
        processes[0].leave(second)
        third = await processes[0].admit(f"c{turn}", owner)
        await processes[0].take_tokens(f"c{turn}", owner, 100)
        processes[0].give_back_tokens(owner, 100)
        processes[0].leave(third)


async def test_places_of_a_dead_process_end_with_their_lease(redis_url, prefix):
    dead = RedisLimits(SharedRedis(redis_url, prefix=prefix), "gw_dead", lease=0.3, renew=60)
    alive = RedisLimits(SharedRedis(redis_url, prefix=prefix), "gw_alive")
    owner = (limit(max_parallel=1),)
    await dead.admit("r", owner)
    with pytest.raises(RateLimited):
        await alive.admit("s", owner)
    await asyncio.sleep(0.35)
    await alive.admit("s", owner)
    await dead.close()
    await alive.close()


async def test_a_long_request_keeps_its_place(redis_url, prefix):
    limits = RedisLimits(SharedRedis(redis_url, prefix=prefix), "gw", lease=0.3, renew=0.1)
    owner = (limit(max_parallel=1),)
    admission = await limits.admit("r", owner)
    await asyncio.sleep(0.7)
    with pytest.raises(RateLimited):
        await limits.admit("s", owner)
    limits.leave(admission)
    await limits.admit("s", owner)
    await limits.close()


async def test_a_client_that_leaves_meanwhile_takes_no_place(processes):
    owner = (limit(max_parallel=1, tpm=600),)
    for number in range(20):
        asking = asyncio.create_task(processes[0].admit(f"r{number}", owner))
        for _ in range(number % 5):
            await asyncio.sleep(0)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        if not asking.cancelled():
            processes[0].leave(asking.result())
    await asyncio.sleep(0.1)
    await processes[0].admit("last", owner)


async def test_a_client_that_leaves_as_the_reply_comes_takes_no_place(processes, monkeypatch):
    one, other = processes[:2]
    limits = (limit(max_parallel=1),)
    real = one._client.call

    def called(*arguments):
        call = real(*arguments)
        call.add_done_callback(lambda _: asking.cancel())  # before the task that waits for it goes on
        return call

    monkeypatch.setattr(one._client, "call", called)
    asking = asyncio.create_task(one.admit("r1", limits))
    with pytest.raises(asyncio.CancelledError):
        await asking
    await one._outbox.drained()
    assert await other.admit("r2", limits)


async def test_a_client_that_leaves_meanwhile_takes_no_tokens(processes):
    owner = (limit(tpm=600),)
    for number in range(20):
        asking = asyncio.create_task(processes[0].take_tokens("r", owner, 50))
        for _ in range(number % 5):
            await asyncio.sleep(0)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        if not asking.cancelled():
            processes[0].give_back_tokens(owner, 50)
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.1)
    await processes[1].take_tokens("last", owner, 100)


async def test_a_server_without_the_scripts_learns_them_again(own_redis):
    limits = RedisLimits(SharedRedis(own_redis.url), "gw")
    owner = (limit(rpm=5),)
    await limits.admit("r", owner)
    own_redis.client().script_flush()
    assert (await limits.admit("s", owner)).requests.remaining == 3
    await limits.close()


# ── a Redis that is away: this process's share ──────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("fault", ["kill", "stall"])
async def test_redis_gone_leaves_this_processs_share_in_time_and_says_so_once(own_redis, fault):
    client = SharedRedis(own_redis.url)
    limits = RedisLimits(client, "gw", lambda: 4)
    owner = (limit(rpm=200, tpm=48_000, max_parallel=100),)
    await limits.admit("r", owner)
    getattr(own_redis, fault)()
    with capture_logs() as logs:
        for number in range(50):
            before = time.monotonic()
            limits.leave(await limits.admit(f"r{number}", owner))
            assert time.monotonic() - before < 0.25  # 0.09, and a busy machine
        assert len(await admitted(limits, owner, 20, "s")) <= 5  # one and a bit comes back a second
        await limits.take_tokens("r", owner, 2000)
        with pytest.raises(RateLimited, match="12000 tokens"):
            await limits.take_tokens("r", owner, 2000)
        own_redis.start() if fault == "kill" else own_redis.go_on()
        await until_reachable(client)
        await limits.admit("t", owner)
    assert [line["event"] for line in logs] == ["redis_unreachable", "redis_reachable_again"]
    await limits.close()


async def test_places_in_the_share_count_those_that_redis_let_in(own_redis):
    limits = RedisLimits(SharedRedis(own_redis.url), "gw", lambda: 2)
    owner = (limit(max_parallel=6),)
    first = await admitted(limits, owner, 2, "before")
    own_redis.stall()
    second = await admitted(limits, owner, 5, "during")
    assert (len(first), len(second)) == (2, 1)
    limits.leave(first[0])
    assert len(await admitted(limits, owner, 5, "after")) == 1
    await limits.close()


async def test_what_ran_and_was_taken_meanwhile_is_told_on_return(own_redis):
    """Nobody finds a second bucket full, or the places empty."""
    client = SharedRedis(own_redis.url)
    limits, other = RedisLimits(client, "gw_1", lambda: 2), RedisLimits(SharedRedis(own_redis.url), "gw_2")
    owner = (limit(rpm=60, tpm=6000, max_parallel=4),)
    own_redis.stall()
    running = await admitted(limits, owner, 2)
    await limits.take_tokens("r0", owner, 400)
    limits.give_back_tokens(owner, 100)
    own_redis.go_on()
    await until_reachable(client)
    assert await limits._outbox.drained(5)
    more = await admitted(other, owner, 10, "other")
    assert len(more) == 2
    assert 55 <= more[-1].requests.remaining <= 57  # of 60, two here and two there; one comes back a second
    gauge = await other.take_tokens("s", owner, 100)
    assert 600 <= gauge.remaining < 750  # of 1000, 300 here and 100 there; a hundred come back a second
    for one in running:
        limits.leave(one)
    assert await limits._outbox.drained(5)
    assert len(await admitted(other, owner, 10, "again")) == 2
    await limits.close()
    await other.close()


async def test_left_while_redis_was_away_takes_no_place_on_return(own_redis):
    client = SharedRedis(own_redis.url)
    limits = RedisLimits(client, "gw")
    owner = (limit(max_parallel=1),)
    before = await limits.admit("before", owner)
    own_redis.stall()
    limits.leave(before)
    for number in range(3):
        limits.leave(await limits.admit(f"during{number}", owner))
    own_redis.go_on()
    await until_reachable(client)
    assert await limits._outbox.drained(5)
    await asyncio.sleep(0.1)
    limits.leave(await limits.admit("after", owner))
    await limits.close()


async def test_a_restarted_server_is_found_again_at_the_next_call(own_redis):
    """The connection is dead, the server is not: nobody is refused."""
    limits = RedisLimits(SharedRedis(own_redis.url), "gw")
    owner = (limit(rpm=1000),)
    await limits.admit("r", owner)
    own_redis.kill()
    own_redis.start()
    await limits.admit("s", owner)
    await limits.close()


async def test_a_lost_reply_gives_a_place_back_once(own_redis):
    proxy = DeafProxy(own_redis.port)
    client = SharedRedis(await proxy.start())
    limits, other = RedisLimits(client, "gw_1"), RedisLimits(SharedRedis(own_redis.url), "gw_2")
    owner = (limit(max_parallel=2, tpm=60_000),)
    mine, _ = await limits.admit("mine", owner), await other.admit("another", owner)
    await limits.take_tokens("mine", owner, 10_000)
    proxy.deaf = True
    limits.leave(mine)
    limits.give_back_tokens(owner, 5_000)
    await asyncio.sleep(0.5)
    proxy.deaf = False
    await until_reachable(client)
    await asyncio.sleep(1.2)
    await other.admit("s", owner)
    with pytest.raises(RateLimited):
        await other.admit("t", owner)
    gauge = await other.take_tokens("s", owner, 1)
    assert gauge.remaining < 8_000  # 5 000, and a thousand a second
    await limits.close()
    await other.close()
    await proxy.close()
