"""Budget counters in Redis: the contract, then several processes, then everything that goes wrong."""

import asyncio
import random
import threading
import time
from collections.abc import AsyncIterator, Callable
from datetime import datetime, timedelta

import pytest
import redis
from django.db import DatabaseError
from django.utils import timezone
from pydantic import SecretStr
from structlog.testing import capture_logs

from ailb_project.shared_redis import SharedRedis
from billing.counters import redis as redis_counters
from billing.counters.base import Amount, Owners
from billing.counters.redis import RedisCounters, give_back_process
from billing.counters.standing import OpenHold, read_standing
from billing.models import LedgerEntry
from gateway.errors import BudgetExceeded, GuardUnavailable
from gateway.types import Limit
from keys.limits.redis import RedisLimits
from tests.billing.counters_contract import (
    ALICE,
    NOTHING,
    NOW,
    CountersContract,
    D,
    FakeLedger,
    FakeWriter,
    amount,
    budget,
    held,
    left,
)
from tests.support.redis_server import DeafProxy, OwnRedis, own_prefix, until_reachable

redis_only = pytest.mark.redis
BOB = Owners("key_2", "bob", "blue")


@pytest.fixture(autouse=True)
def _patient(monkeypatch, request):
    """A busy machine is no fault of Redis; where its faults are the subject, the true limit holds."""
    if "own_redis" not in request.fixturenames:
        monkeypatch.setattr("ailb_project.shared_redis._CEILING", 5.0)
        monkeypatch.setattr("ailb_project.shared_redis._CONNECT", 5.0)


@pytest.fixture
def ledger() -> FakeLedger:
    return FakeLedger()


@pytest.fixture
def prefix(redis_url):
    with own_prefix(redis_url) as prefix:
        yield prefix


def process(url: str, ledger: FakeLedger, name: str = "gw_1", **client) -> RedisCounters:
    return RedisCounters(SharedRedis(url, **client), FakeWriter(), name, ledger.standing)  # type: ignore[arg-type]


@pytest.fixture
async def processes(redis_url, prefix, ledger) -> AsyncIterator[list[RedisCounters]]:
    """The counters of four gateway processes, over one ledger."""
    found = [process(redis_url, ledger, f"gw_{number}", prefix=prefix) for number in range(4)]
    yield found
    for one in found:
        await one.close()


@pytest.fixture
def own_redis(tmp_path):
    server = OwnRedis(tmp_path)
    server.start()
    yield server
    server.kill()


async def applied(*counters: RedisCounters) -> None:
    """All that was settled has reached Redis."""
    for one in counters:
        assert await one._outbox.drained(10)


@redis_only
class TestRedisCounters(CountersContract):
    @pytest.fixture
    def counters(self, processes) -> RedisCounters:
        return processes[0]

    @pytest.fixture
    def ledger(self, ledger) -> FakeLedger:
        return ledger


# ── several processes ───────────────────────────────────────────────────────────────────────────────────────────────


@redis_only
async def test_processes_share_a_budget(processes):
    terms = (budget(usd="30"), budget(2, scope="organisation", owner="", usd="1000"))
    placed = await asyncio.gather(*(held(one, terms, amount("1"), 25, f"p{n}-") for n, one in enumerate(processes)))
    assert sum(placed) == 30


@redis_only
async def test_one_process_reads_for_all(processes, ledger):
    ledger.close("old", ALICE, amount("1"))
    ledger.before_reading = lambda: time.sleep(0.1)
    assert await asyncio.gather(*(left(one, budget()) for one in processes)) == [9] * 4
    assert ledger.readings == 1


@redis_only
async def test_the_same_hold_again_changes_nothing(processes):
    for _ in range(3):
        await processes[0].hold("a", (budget(),), amount("4"), NOW)
    assert await left(processes[1], budget()) == 6


@redis_only
async def test_a_budget_with_other_terms_is_another(processes):
    await processes[0].hold("a", (budget(period="daily"),), amount("4"), NOW)
    assert await left(processes[0], budget(period="weekly")) == 10
    assert await left(processes[1], budget(period="daily")) == 6


# ── every settlement once, whatever comes first ─────────────────────────────────────────────────────────────────────


class Paused:
    """The ledger's reading stops before or after it looked, until `go_on`."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self._on = threading.Event()

    def __call__(self) -> None:
        self.reached.set()
        self._on.wait(10)

    async def until_reached(self) -> None:
        await asyncio.to_thread(self.reached.wait, 10)

    def go_on(self) -> None:
        self._on.set()


@redis_only
@pytest.mark.parametrize("moment", ["before_reading", "after_reading"])
@pytest.mark.parametrize("row", ["written first", "written meanwhile", "written later"])
@pytest.mark.parametrize("message", ["came first", "came meanwhile", "came later"])
async def test_settled_by_another_process_while_a_budget_is_read(processes, ledger, moment, row, message):
    """The row of a settlement and its message to Redis travel apart; it counts once in every order."""
    reader, other = processes[:2]
    paused = Paused()
    setattr(ledger, moment, paused)

    def write() -> None:
        ledger.close("a", ALICE, amount("4"))

    if row == "written first":
        write()
    if message == "came first":
        other.settle("a", ALICE, amount("4"), NOW)
        await applied(other)
    asking = asyncio.create_task(left(reader, budget()))
    await paused.until_reached()
    if row == "written meanwhile":
        write()
    if message == "came meanwhile":
        other.settle("a", ALICE, amount("4"), NOW)
        await applied(other)
    paused.go_on()
    await asking
    if message == "came later":
        # It was settled before, and was on its way all the time.
        other.settle("a", ALICE, amount("4"), NOW)
        await applied(other)
    if row == "written later":
        write()
    assert await left(reader, budget()) == 6


@redis_only
async def test_a_message_older_than_the_reading_is_in_it(processes, ledger, monkeypatch):
    """Redis was out of this process's reach for a minute; the rows were written all the while."""
    ledger.close("a", ALICE, amount("4"), written=NOW - timedelta(minutes=1))
    assert await left(processes[0], budget()) == 6
    late = processes[1]
    late._outbox._queue.append(
        (time.monotonic() - 60, [False, "a", 4, 0, 0, int(NOW.timestamp() * 1000), ["key:key_1"]])
    )
    late.settle("b", ALICE, amount("1"), NOW)
    await applied(late)
    assert await left(processes[0], budget()) == 5


@redis_only
async def test_a_message_that_lay_in_a_stalled_servers_buffer_is_as_old_as_it_is(own_redis, ledger, monkeypatch):
    """Sent at once, executed much later: a budget that is read then has its row."""
    late, reader = process(own_redis.url, ledger, "gw_late"), process(own_redis.url, ledger, "gw_reader")
    await left(late, budget(2, scope="organisation", owner=""))
    late.settle("first", BOB, NOTHING, NOW)
    await applied(late)
    own_redis.stall()
    late.settle("a", ALICE, amount("4"), NOW)
    ledger.close("a", ALICE, amount("4"), written=NOW - timedelta(minutes=1))  # so long ago, for the reader
    await asyncio.sleep(5.5)
    own_redis.go_on()
    await applied(late)
    assert await left(reader, budget()) == 6
    await late.close()
    await reader.close()


@redis_only
async def test_an_open_request_is_held_in_a_budget_made_meanwhile(processes, ledger):
    ledger.hold("gw_1", "a", ALICE, amount("4"))
    assert await left(processes[0], budget()) == 6
    processes[1].settle("a", ALICE, amount("1"), NOW)
    await applied(processes[1])
    assert await left(processes[0], budget()) == 9


@redis_only
@pytest.mark.parametrize("seed", range(3))
async def test_random_traffic_ends_where_the_ledger_does(processes, ledger, seed):
    """Four processes hold and settle, rows are written late and in any order, and the budgets are read anew again and
    again: spent never passes the limit, and in the end counters and ledger agree to the last place.
    """
    dice = random.Random(seed)
    terms = (budget(usd="60"), budget(2, scope="team", owner="red", usd="50"))
    writing: list[asyncio.Task[None]] = []

    async def write(name: str, spent: Amount) -> None:
        await asyncio.sleep(dice.random() * 0.03)
        ledger.close(name, ALICE, spent)

    async def request(one: RedisCounters, number: int, name: str) -> None:
        most = D(dice.randrange(10**12)).scaleb(-12)
        try:
            await one.hold(name, terms, Amount(most, 1), NOW)
        except BudgetExceeded:
            one.settle(name, ALICE, NOTHING, NOW)
            return
        ledger.hold(f"gw_{number}", name, ALICE, Amount(most, 1))
        await asyncio.sleep(dice.random() * 0.02)
        spent = Amount((most * dice.choice([0, 1, 1]) / dice.choice([1, 3])).quantize(D("1e-12")), 1)
        writing.append(asyncio.create_task(write(name, spent)))
        one.settle(name, ALICE, spent, NOW)

    async def client(number: int, name: str) -> None:
        for turn in range(25):
            await request(processes[number], number, f"{name}-{turn}")

    async def read_anew() -> None:
        while True:
            await asyncio.sleep(0.02)
            await processes[0].release_dead("gw_nobody", [ALICE])

    reading = asyncio.create_task(read_anew())
    await asyncio.gather(*(client(number % 4, f"c{number}") for number in range(16)))
    reading.cancel()
    await asyncio.gather(*writing)
    await applied(*processes)
    assert ledger.total() <= 50
    assert ledger.readings > 10
    assert await left(processes[2], terms[0]) == 60 - ledger.total()
    assert await left(processes[3], terms[1]) == 50 - ledger.total()
    await processes[0].release_dead("gw_nobody", [ALICE])
    assert await left(processes[3], terms[1]) == 50 - ledger.total()


@redis_only
async def test_an_open_request_that_ends_while_a_budget_is_read_is_not_held(processes, ledger):
    ledger.hold("gw_1", "a", ALICE, amount("4"))
    paused = Paused()
    ledger.after_reading = paused
    asking = asyncio.create_task(left(processes[0], budget()))
    await paused.until_reached()
    processes[1].settle("a", ALICE, amount("1"), NOW)
    await applied(processes[1])
    paused.go_on()
    assert await asking == 9


@redis_only
async def test_a_budget_that_redis_lost_alone_is_read_again(redis_url, prefix, processes, ledger):
    """Evicted, or expired: what was held in it is on the ledger, and ends while that is read."""
    one, two = processes[:2]
    for name in ("a", "b"):
        await one.hold(name, (budget(),), amount("3"), NOW)
        ledger.hold("gw_0", name, ALICE, amount("3"))
    with redis.Redis.from_url(redis_url) as client:
        assert client.delete(*client.keys(f"{prefix}:*:budget:1:*")) >= 1
    paused = Paused()
    ledger.after_reading = paused
    asking = asyncio.create_task(left(two, budget()))
    await paused.until_reached()
    one.settle("a", ALICE, amount("1"), NOW)
    await applied(one)
    paused.go_on()
    assert await asking == 6
    one.settle("b", ALICE, NOTHING, NOW)
    await applied(one)
    assert await left(two, budget()) == 9


@redis_only
async def test_what_is_settled_is_free_although_others_were_on_their_way_before(processes):
    counters = processes[0]
    for turn in range(10):
        await counters.hold(f"a{turn}", (budget(2, scope="user", owner="x"),), amount("1"), NOW)
        await counters.hold(f"b{turn}", (budget(),), amount("10"), NOW)
        counters.settle(f"a{turn}", BOB, NOTHING, NOW)
        for _ in range(2):
            await asyncio.sleep(0)
        counters.settle(f"b{turn}", ALICE, NOTHING, NOW)
        assert await left(counters, budget()) == 10
        await counters.hold(f"c{turn}", (budget(),), amount("10"), NOW)
        counters.settle(f"c{turn}", ALICE, NOTHING, NOW)


# ── processes that die ──────────────────────────────────────────────────────────────────────────────────────────────


@redis_only
async def test_what_a_dead_process_held_is_given_back_and_its_closing_counted(processes, ledger):
    alive, dead = processes[:2]
    await alive.hold("mine", (budget(),), amount("2"), NOW)
    await dead.hold("theirs", (budget(),), amount("3"), NOW)
    assert await left(alive, budget()) == 5
    ledger.close("theirs", ALICE, amount("3"))  # the sweeper's estimate
    assert await alive.release_dead("gw_1") == 1
    assert await left(alive, budget()) == 5
    assert await alive.release_dead("gw_1") == 0
    alive.settle("mine", ALICE, amount("1"), NOW)
    ledger.close("mine", ALICE, amount("1"))
    await applied(alive)
    assert await left(alive, budget()) == 6


@redis_only
async def test_the_sweeper_reads_budgets_of_orphans_that_held_nothing(redis_url, prefix, processes, ledger, settings):
    """It settled, told Redis 1 dollar, and died before its row was written: the sweeper's estimate is the truth."""
    settings.ENV = settings.ENV.model_copy(update={"REDIS_URL": SecretStr(redis_url)})
    alive, dead = processes[:2]
    await dead.hold("theirs", (budget(),), amount("3"), NOW)
    dead.settle("theirs", ALICE, amount("1"), NOW)
    await applied(dead)
    assert await left(alive, budget()) == 9
    ledger.close("theirs", ALICE, amount("3"))
    assert await asyncio.to_thread(give_back_process, "gw_1", [ALICE], prefix=prefix)
    assert await left(alive, budget()) == 7


async def test_the_sweeper_without_redis_has_nothing_to_do(settings):
    assert settings.ENV.REDIS_URL is None
    assert give_back_process("gw_1")


async def test_the_sweeper_comes_again_where_redis_does_not_answer(settings):
    settings.ENV = settings.ENV.model_copy(update={"REDIS_URL": SecretStr("redis://127.0.0.1:1/0")})
    with capture_logs() as logs:
        assert not give_back_process("gw_1")
    assert [line["event"] for line in logs] == ["holds_not_given_back"]


@redis_only
async def test_swept_while_a_budget_is_read(processes, ledger):
    """The reading saw an open hold that was closed and given back before it ended: it reads again."""
    ledger.hold("gw_1", "theirs", ALICE, amount("3"))
    paused = Paused()
    ledger.after_reading = paused
    asking = asyncio.create_task(left(processes[0], budget()))
    await paused.until_reached()
    ledger.close("theirs", ALICE, amount("2"))
    await processes[2].release_dead("gw_1")
    paused.go_on()
    assert await asking == 8


@redis_only
async def test_closed_by_the_sweeper_while_a_budget_is_read(processes, ledger):
    paused = Paused()
    ledger.after_reading = paused
    asking = asyncio.create_task(left(processes[0], budget()))
    await paused.until_reached()
    ledger.close("theirs", ALICE, amount("2"))
    await processes[2].release_dead("gw_1", [ALICE])
    paused.go_on()
    assert await asking == 8


# ── a database that fails ───────────────────────────────────────────────────────────────────────────────────────────


@redis_only
async def test_a_ledger_that_cannot_be_read_refuses_until_it_can(processes, ledger):
    def fail() -> None:
        raise DatabaseError

    ledger.before_reading = fail
    with capture_logs() as logs:
        for one in processes:
            with pytest.raises(GuardUnavailable):
                await one.hold("a", (budget(),), amount("1"), NOW)
    assert {line["event"] for line in logs} == {"budget_not_loaded"}
    ledger.before_reading = lambda: None
    assert await left(processes[1], budget()) == 10


# ── a Redis that fails ──────────────────────────────────────────────────────────────────────────────────────────────


@redis_only
@pytest.mark.parametrize("fault", ["kill", "stall"])
async def test_redis_gone_refuses_in_time_and_says_so_once(own_redis, ledger, fault):
    counters = process(own_redis.url, ledger)
    terms = (budget(),)
    await counters.hold("open", terms, amount("3"), NOW)
    ledger.hold("gw_1", "open", ALICE, amount("3"))
    getattr(own_redis, fault)()
    with capture_logs() as logs:
        for number in range(50):
            before = time.monotonic()
            with pytest.raises(GuardUnavailable) as refused:
                await counters.hold(f"r{number}", terms, amount("1"), NOW)
            assert time.monotonic() - before < 0.4  # 0.2, and a busy machine
            assert refused.value.retry_after == 1
            counters.settle(f"r{number}", ALICE, NOTHING, NOW)
        counters.settle("open", ALICE, amount("2"), NOW)
        ledger.close("open", ALICE, amount("2"))
        own_redis.start() if fault == "kill" else own_redis.go_on()
        await applied(counters)
        assert await left(counters, budget()) == 8
    assert [line["event"] for line in logs] == ["redis_unreachable", "redis_reachable_again"]
    await counters.close()


@redis_only
async def test_holds_in_a_stalled_servers_buffer_reserve_nothing(own_redis, ledger):
    """It lay in a stalled server's buffer while its caller gave up."""
    counters = process(own_redis.url, ledger)
    assert await left(counters, budget()) == 10
    own_redis.stall()
    tries = await asyncio.gather(
        *(counters.hold(f"r{number}", (budget(),), amount("1"), NOW) for number in range(5)), return_exceptions=True
    )
    assert {type(one) for one in tries} == {GuardUnavailable}
    for number in range(5):
        counters.settle(f"r{number}", ALICE, NOTHING, NOW)
    own_redis.go_on()
    await applied(counters)
    await asyncio.sleep(0.1)
    assert await left(counters, budget()) == 10
    await counters.close()


@redis_only
async def test_a_hold_after_its_settlement_is_void(processes):
    """The order that a stalled server may choose, made here."""
    counters = processes[0]
    counters._held["a"] = True
    counters.settle("a", ALICE, NOTHING, NOW)
    with pytest.raises(GuardUnavailable):
        await counters.hold("a", (budget(),), amount("1"), NOW)
    assert await left(counters, budget()) == 10


@redis_only
async def test_lost_replies_count_nothing_twice(own_redis, ledger):
    proxy = DeafProxy(own_redis.port)
    counters = process(await proxy.start(), ledger)
    for name in ("a", "b"):
        await counters.hold(name, (budget(),), amount("2"), NOW)
    proxy.deaf = True
    counters.settle("a", ALICE, amount("1.5"), NOW)
    with pytest.raises(GuardUnavailable):
        await counters.hold("c", (budget(),), amount("1"), NOW)
    counters.settle("c", ALICE, NOTHING, NOW)
    counters.settle("b", ALICE, amount("0.5"), NOW)
    await asyncio.sleep(0.6)
    proxy.deaf = False
    await applied(counters)
    assert await left(counters, budget()) == 8
    await counters.close()
    await proxy.close()


@redis_only
async def test_cancelled_holds_leave_nothing_reserved(processes):
    for number in range(30):
        asking = asyncio.create_task(processes[0].hold(f"r{number}", (budget(),), amount("1"), NOW))
        for _ in range(number % 6):
            await asyncio.sleep(0)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        processes[0].settle(f"r{number}", ALICE, NOTHING, NOW)
    await applied(processes[0])
    await asyncio.sleep(0.1)
    assert await left(processes[1], budget()) == 10


async def restarted(server: OwnRedis, how: str, between: Callable[[], None]) -> None:
    if how == "old snapshot":
        server.client().save()
    between()
    await asyncio.sleep(0.1)
    server.kill()
    server.start()


@redis_only
@pytest.mark.parametrize("how", ["empty", "old snapshot"])
async def test_redis_restarted_counts_from_the_ledger_again(own_redis, ledger, how):
    """What was spent and what is held were in Redis's memory only, or are there as they were some time ago."""
    one, two = process(own_redis.url, ledger, "gw_1"), process(own_redis.url, ledger, "gw_2")
    terms = (budget(),)
    await one.hold("a", terms, amount("2"), NOW)
    ledger.hold("gw_1", "a", ALICE, amount("2"))
    await two.hold("b", terms, amount("3"), NOW)
    ledger.hold("gw_2", "b", ALICE, amount("3"))

    def between() -> None:
        one.settle("a", ALICE, amount("1"), NOW)
        ledger.close("a", ALICE, amount("1"))

    await restarted(own_redis, how, between)
    assert await held(two, terms, amount("1"), 20) == 6  # of ten, 1 is spent and 3 are held
    two.settle("b", ALICE, amount("3"), NOW)
    for number in range(20):
        two.settle(f"r{number}", ALICE, NOTHING, NOW)
    await applied(two)
    assert await left(one, budget()) == 6
    await one.close()
    await two.close()


@redis_only
async def test_nobody_is_refused_where_a_restart_went_unnoticed(own_redis, ledger):
    counters = process(own_redis.url, ledger)
    await counters.hold("a", (budget(),), amount("1"), NOW)
    own_redis.kill()
    own_redis.start()
    await counters.hold("b", (budget(),), amount("1"), NOW)
    await counters.close()


@redis_only
async def test_a_full_redis_refuses_and_recovers(own_redis, ledger):
    counters = process(own_redis.url, ledger)
    await counters.hold("a", (budget(),), amount("1"), NOW)
    own_redis.client().config_set("maxmemory", "1")
    with capture_logs() as logs:
        for number in range(5):
            with pytest.raises(GuardUnavailable):
                await counters.hold(f"r{number}", (budget(),), amount("1"), NOW)
            counters.settle(f"r{number}", ALICE, NOTHING, NOW)
        counters.settle("a", ALICE, amount("1"), NOW)
        await asyncio.sleep(0.2)
        own_redis.client().config_set("maxmemory", "0")
        await applied(counters)
    assert await left(counters, budget()) == 9
    assert [line["event"] for line in logs] == ["redis_refused"]
    await counters.close()


@redis_only
async def test_closing_while_redis_is_gone_ends(own_redis, ledger, monkeypatch):
    monkeypatch.setattr("ailb_project.shared_redis._DRAIN", 0.3)
    counters = process(own_redis.url, ledger)
    await counters.hold("a", (budget(),), amount("1"), NOW)
    own_redis.kill()
    counters.settle("a", ALICE, amount("1"), NOW)
    with capture_logs() as logs:
        await counters.close()
    assert "redis_not_drained" in {line["event"] for line in logs}


@redis_only
async def test_limits_and_counters_share_a_client_and_close_one_after_the_other(redis_url, prefix, ledger):
    client = SharedRedis(redis_url, prefix=prefix)
    limits, counters = RedisLimits(client, "gw_1"), RedisCounters(client, FakeWriter(), "gw_1", ledger.standing)
    parallel = (Limit("key", "key_1", None, None, 1),)
    admission = await limits.admit("a", parallel)
    await counters.hold("a", (budget(),), amount("5"), NOW)
    counters.settle("a", ALICE, amount("1"), NOW)
    await counters.close()
    limits.leave(admission)
    await limits.close()
    later = process(redis_url, ledger, "gw_2", prefix=prefix)
    assert await left(later, budget()) == 9
    await later.close()
    again = RedisLimits(SharedRedis(redis_url, prefix=prefix), "gw_3")
    await again.admit("b", parallel)
    await again.close()


# ── leases: what goes on while Redis is away ────────────────────────────────────────────────────────────────────────

RICH = (budget(usd="1000"),)


@pytest.fixture
async def make(ledger, monkeypatch) -> AsyncIterator[Callable[..., RedisCounters]]:
    """Makes the counters of processes with leases, or without; they are closed with the test, Redis there or not."""
    monkeypatch.setattr("ailb_project.shared_redis._DRAIN", 0.2)
    monkeypatch.setattr("billing.counters.leases.AHEAD", 2)
    made: list[RedisCounters] = []

    def make(url: str, name: str = "gw_1", *, leases: bool = True, **client) -> RedisCounters:
        counters = RedisCounters(SharedRedis(url, **client), FakeWriter(), name, ledger.standing, leases=leases)  # type: ignore[arg-type]
        made.append(counters)
        return counters

    yield make
    for counters in made:
        await counters.close()


async def used_once(counters: RedisCounters, ledger: FakeLedger, name: str, terms=RICH, usd: str = "1") -> None:
    """A request, and the renewal after it: the budget is leased."""
    await counters.hold(name, terms, amount(usd), NOW)
    counters.settle(name, ALICE, amount(usd), NOW)
    ledger.close(name, ALICE, amount(usd))
    await counters._renew(counters._leases)


def leased_in(server: redis.Redis) -> D:
    """Dollars in all budgets."""
    return sum(
        (D(server.hget(key, "leased").decode()) + D(server.hget(key, "leased_pico").decode()).scaleb(-12))
        for key in server.scan_iter("ailb:*:budget:*")
        if server.type(key) == b"hash" and server.hexists(key, "leased")
    )


@redis_only
@pytest.mark.parametrize("fault", ["kill", "stall"])
async def test_requests_go_on_against_the_lease_and_no_further(own_redis, ledger, make, fault):
    counters = make(own_redis.url)
    await used_once(counters, ledger, "first")
    getattr(own_redis, fault)()
    assert (await counters.headroom(RICH, NOW)).usd == 2  # twice what was held
    for name in ("a", "b"):
        await counters.hold(name, RICH, amount("1"), NOW)
    with pytest.raises(GuardUnavailable):
        await counters.hold("c", RICH, amount("0.1"), NOW)
    counters.settle("c", ALICE, NOTHING, NOW)
    counters.settle("a", ALICE, amount("0.5"), NOW)
    await counters.hold("d", RICH, amount("0.5"), NOW)
    with pytest.raises(GuardUnavailable):
        await counters.headroom(RICH, NOW)
    own_redis.kill()
    counters.settle("b", ALICE, NOTHING, NOW)
    counters.settle("d", ALICE, NOTHING, NOW)


@redis_only
async def test_what_was_held_and_settled_meanwhile_arrives_once(own_redis, ledger, make):
    proxy = DeafProxy(own_redis.port)
    counters, other = make(await proxy.start()), make(own_redis.url, "gw_2", leases=False)
    await used_once(counters, ledger, "first")
    assert leased_in(own_redis.client()) == 2
    # What it asks arrives, and no answer comes back: the holds are in Redis and against the lease.
    proxy.deaf = True
    for name in ("a", "b", "c"):
        await counters.hold(name, RICH, amount("0.5"), NOW)
    counters.settle("a", ALICE, amount("0.25"), NOW)
    counters.settle("b", ALICE, amount("0.5"), NOW)
    await asyncio.sleep(0.6)
    proxy.deaf = False
    await until_reachable(counters._client)
    await applied(counters)
    assert await left(other, RICH[0]) == 1000 - 1 - D("0.75") - D("0.5") - leased_in(own_redis.client())
    counters.settle("c", ALICE, NOTHING, NOW)
    await counters._renew(counters._leases)
    await applied(counters)
    await counters.close()
    assert leased_in(own_redis.client()) == 0
    assert await left(other, RICH[0]) == D("998.25")
    await other.close()
    await proxy.close()


@redis_only
async def test_all_processes_together_never_overshoot(own_redis, ledger, make):
    """Each spends all that it can: with Redis, without it, and with it again."""
    limit = D("40")
    terms = (budget(usd=str(limit)),)
    processes = [make(own_redis.url, f"gw_{number}") for number in range(4)]
    for number, one in enumerate(processes):
        await used_once(one, ledger, f"first{number}", terms, "0.5")
    assert leased_in(own_redis.client()) > 2

    async def spend(one: RedisCounters, name: str, times: int) -> None:
        for turn in range(times):
            try:
                await one.hold(f"{name}-{turn}", terms, amount("0.5"), NOW)
            except (GuardUnavailable, BudgetExceeded):
                one.settle(f"{name}-{turn}", ALICE, NOTHING, NOW)
                continue
            ledger.hold("gw", f"{name}-{turn}", ALICE, amount("0.5"))
            await asyncio.sleep(0)
            one.settle(f"{name}-{turn}", ALICE, amount("0.5"), NOW)
            ledger.close(f"{name}-{turn}", ALICE, amount("0.5"))

    for turn in range(3):
        await asyncio.gather(*(spend(one, f"up{turn}-{number}", 3) for number, one in enumerate(processes)))
        own_redis.stall()
        await asyncio.gather(*(spend(one, f"away{turn}-{number}", 9) for number, one in enumerate(processes)))
        assert ledger.total() <= limit
        own_redis.go_on()
        await asyncio.gather(*(until_reachable(one._client) for one in processes))
        await applied(*processes)
        await asyncio.gather(*(one._renew(one._leases) for one in processes))
    assert ledger.total() > 20
    await asyncio.gather(*(spend(one, f"last-{number}", 60) for number, one in enumerate(processes)))
    assert ledger.total() == limit
    for one in processes:
        await one.close()
    assert leased_in(own_redis.client()) == 0
    later = make(own_redis.url, "gw_later", leases=False)
    assert await left(later, terms[0]) == 0
    await later.close()


@redis_only
async def test_a_lease_keeps_no_request_out_that_the_budget_can_pay_for(redis_url, prefix, ledger, make):
    """Its own lease goes at once, the others' with their next renewal."""
    mine, other = (make(redis_url, name, prefix=prefix) for name in ("gw_mine", "gw_other"))
    for number, one in enumerate((mine, other)):
        await used_once(one, ledger, f"first{number}")
    before = time.monotonic()
    await mine.hold("all", RICH, amount("998"), NOW)
    assert time.monotonic() - before < 1.4
    assert mine._leases.headroom(["x"], RICH) is None
    with pytest.raises(BudgetExceeded, match=r"used \$2, reserved \$998"):
        await mine.hold("more", RICH, amount("0.000000000001"), NOW)
    mine.settle("more", ALICE, NOTHING, NOW)
    mine.settle("all", ALICE, NOTHING, NOW)
    await mine.close()
    await other.close()


@redis_only
async def test_a_lease_that_nobody_gives_back_is_no_budget_exceeded(own_redis, ledger, make, monkeypatch):
    """Its process is gone and not swept yet: trying again helps."""
    monkeypatch.setattr(redis_counters, "_RECALL", 0.1)
    dead, alive = make(own_redis.url, "gw_dead"), make(own_redis.url, "gw_alive")
    await used_once(dead, ledger, "first")
    dead._renewal.cancel()
    with pytest.raises(GuardUnavailable):
        await alive.hold("all", RICH, amount("999"), NOW)
    alive.settle("all", ALICE, NOTHING, NOW)
    assert await alive.release_dead("gw_dead") == 0
    await alive.hold("again", RICH, amount("999"), NOW)
    alive.settle("again", ALICE, NOTHING, NOW)
    await alive.close()


@redis_only
async def test_a_dead_processs_lease_goes_and_what_it_spent_is_read(own_redis, ledger, make):
    """It spent of its lease while Redis was away, and died before it could say so."""
    dead, alive = make(own_redis.url, "gw_dead"), make(own_redis.url, "gw_alive", leases=False)
    await used_once(dead, ledger, "first")
    own_redis.stall()
    await dead.hold("away", RICH, amount("1"), NOW)
    dead.settle("away", ALICE, amount("1"), NOW)
    ledger.close("away", ALICE, amount("1"))
    dead._renewal.cancel()
    dead._client._probe.cancel()
    own_redis.go_on()
    await alive.release_dead("gw_dead")
    assert await left(alive, RICH[0]) == 998
    assert leased_in(own_redis.client()) == 0
    await alive.close()


@redis_only
async def test_a_process_that_counts_as_dead_has_no_leases(own_redis, ledger, make):
    counters, sweeper = make(own_redis.url), make(own_redis.url, "gw_sweeper", leases=False)
    await used_once(counters, ledger, "first")
    await sweeper.release_dead("gw_1")
    await counters._renew(counters._leases)
    assert leased_in(own_redis.client()) == 0
    own_redis.stall()
    with pytest.raises(GuardUnavailable):
        await counters.hold("a", RICH, amount("0.1"), NOW)
    own_redis.kill()


@redis_only
async def test_a_restarted_redis_knows_of_no_lease_and_reads_what_was_spent(own_redis, ledger, make):
    counters = make(own_redis.url)
    await used_once(counters, ledger, "first")
    own_redis.kill()
    await counters.hold("away", RICH, amount("1.5"), NOW)
    ledger.hold("gw_1", "away", ALICE, amount("1.5"))
    own_redis.start()
    await until_reachable(counters._client)
    assert await left(counters, RICH[0]) == D("997.5")
    counters.settle("away", ALICE, amount("1"), NOW)
    ledger.close("away", ALICE, amount("1"))
    await applied(counters)
    assert await left(counters, RICH[0]) == 998
    await counters.close()


@redis_only
async def test_without_leases_nothing_is_leased_and_all_is_refused(own_redis, ledger, make):
    counters = make(own_redis.url, leases=False)
    await counters.hold("a", RICH, amount("1"), NOW)
    await asyncio.sleep(0.1)
    assert leased_in(own_redis.client()) == 0
    own_redis.stall()
    with pytest.raises(GuardUnavailable):
        await counters.hold("b", RICH, amount("0.1"), NOW)
    own_redis.kill()


@redis_only
async def test_an_unused_budget_is_not_leased_for_long(own_redis, ledger, make, monkeypatch):
    monkeypatch.setattr(redis_counters, "_RENEW", 0.01)
    counters = make(own_redis.url)
    await used_once(counters, ledger, "first")
    assert leased_in(own_redis.client()) > 0
    await asyncio.wait_for(counters._renewal, 5)
    assert leased_in(own_redis.client()) == 0
    assert counters._renewal is None
    await used_once(counters, ledger, "second")
    assert leased_in(own_redis.client()) > 0
    await counters.close()


# ── where a budget stands by the ledger ─────────────────────────────────────────────────────────────────────────────


def entry(kind: str, request: str, at: datetime = NOW, **values) -> None:
    LedgerEntry.objects.create(
        **{
            "request_id": request, "kind": kind, "created_at": at, "written_at": timezone.now(), "process_id": "gw_1",
            "key_id": "key_1", "user_id": "alice", "team": "red", "provider": "p", "deployment": "d",
            "requested_model": "m", "routed_model": "m", "stream": False, **values,
        }
    )  # fmt: skip


@pytest.mark.django_db
class TestReadStanding:
    START, UNTIL = NOW - timedelta(hours=1), NOW + timedelta(hours=1)

    def read(self, scope: str, owner: str, since=NOW - timedelta(seconds=10), *, with_open=True):
        return read_standing(scope, owner, self.START, self.UNTIL, since, with_open=with_open)

    def test_sums_names_and_open_holds(self):
        entry("hold", "old", held_usd=D(5))
        entry("settlement", "old", written_at=NOW - timedelta(minutes=5), cost_usd=D("1.000000000001"), prompt_tokens=3)
        entry("hold", "new", held_usd=D(5))
        entry("settlement", "new", cost_usd=D("2.000000000002"), prompt_tokens=4, completion_tokens=5)
        entry("adjustment", "old", cost_usd=D("-0.5"), prompt_tokens=-1)
        entry("release", "none", cost_usd=D(0))
        entry("hold", "open", held_usd=D("0.25"), held_prompt_tokens=10, held_output_tokens=20)
        for scope, owner in (("key", "key_1"), ("user", "alice"), ("team", "red"), ("organisation", "")):
            standing = self.read(scope, owner)
            assert standing.spent == Amount(D("2.500000000003"), 11)
            assert set(standing.closed) == {"new", "none"}
            assert standing.open == (OpenHold("gw_1", "open", Amount(D("0.25"), 30)),)

    def test_others_and_other_periods_are_left_out(self):
        entry("settlement", "theirs", key_id="key_2", cost_usd=D(1))
        entry("settlement", "before", self.START - timedelta(seconds=1), cost_usd=D(1))
        entry("settlement", "after", self.UNTIL, cost_usd=D(1))
        entry("hold", "before2", self.START - timedelta(seconds=1), held_usd=D(1))
        entry("settlement", "first", self.START, cost_usd=D(1))
        standing = self.read("key", "key_1")
        assert standing.spent == Amount(D(1), 0)
        assert standing.open == ()

    def test_unpriced_and_empty(self):
        assert self.read("key", "key_1").spent == Amount(D(0), 0)
        entry("settlement", "a", cost_usd=None, prompt_tokens=7)
        entry("hold", "b", held_usd=None, held_prompt_tokens=7)
        assert self.read("key", "key_1").spent == Amount(D(0), 7)
        assert self.read("key", "key_1").open[0].amount == Amount(None, 7)
        assert self.read("key", "key_1", with_open=False).open == ()


def test_amounts_split_and_joined():
    for text in ("0", "1", "0.000000000001", "9007.199254740993", "999999999999.999999999999"):
        usd, pico = redis_counters._split(D(text))
        assert 0 <= pico < 10**12
        assert redis_counters.joined(b"%d" % usd, b"%d" % pico) == D(text)
    assert redis_counters._split(D("-0.25")) == (-1, 750_000_000_000)
    assert redis_counters._split(D("0.0000000000001")) == (0, 0)
    assert redis_counters._split(D("0.0000000000001"), "ROUND_CEILING") == (0, 1)
