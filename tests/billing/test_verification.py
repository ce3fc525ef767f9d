"""Counters beside the ledger: `manage.py verify_counters`, the job, and what a start does."""

import asyncio
import io
import threading
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone
from pydantic import SecretStr
from structlog.testing import capture_logs

from ailb_project.shared_redis import SharedRedis
from billing import tasks, verification
from billing.counters import redis as redis_counters
from billing.counters.base import Amount
from billing.counters.redis import RedisCounters
from billing.models import LedgerEntry
from billing.models.alerts import Alert
from gateway.metrics import COUNTER_DRIFT
from gateway.models import GatewayProcess
from tests.billing.counters_contract import ALICE, NOTHING, D, FakeWriter, amount
from tests.billing.test_counters_redis import entry
from tests.support.redis_server import OwnRedis
from tests.support.world import make_budget

pytestmark = pytest.mark.redis


@pytest.fixture
def own_redis(tmp_path):
    server = OwnRedis(tmp_path)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def redis_of_all(committed, own_redis, settings, monkeypatch):
    """The setting names it, and nobody is waited for longer than a moment."""
    settings.ENV = settings.ENV.model_copy(update={"REDIS_URL": SecretStr(own_redis.url)})
    monkeypatch.setattr(verification, "_PATIENCE", 0.3)
    monkeypatch.setattr("ailb_project.shared_redis._CEILING", 5.0)
    GatewayProcess.objects.create(id="gw_1", host="here", pid=1)
    return own_redis


@pytest.fixture
def budget(committed):
    return make_budget("key", "key_1", dollars="100", tokens=10_000)


def with_counters(server: OwnRedis, work: Callable[[RedisCounters], Any]) -> None:
    """Do something as a gateway process does."""

    async def run() -> None:
        counters = RedisCounters(SharedRedis(server.url), FakeWriter(), "gw_1")  # type: ignore[arg-type]
        await work(counters)
        await counters.close()

    asyncio.run(run())


async def request(counters: RedisCounters, budget, name: str, spent: Amount, *, row: bool = True) -> None:
    now = timezone.now()
    await counters.hold(name, (budget.terms(),), amount("5", 50), now)
    counters.settle(name, ALICE, spent, now)
    if row:
        await asyncio.to_thread(written, name, now, spent)


def written(name: str, at: datetime, spent: Amount) -> None:
    entry("hold", name, at, held_usd=D(5), held_prompt_tokens=50)
    entry("settlement", name, at, cost_usd=spent.usd, prompt_tokens=spent.tokens)


def used_by(server: OwnRedis, budget, name: str = "r", spent: str = "1.000000000001") -> None:
    with_counters(server, lambda counters: request(counters, budget, name, amount(spent, 7)))


def only(**options) -> verification.Result:
    (result,) = verification.verify(**options)
    return result


def drifted(scope: str = "key") -> float:
    return COUNTER_DRIFT.labels(scope)._value.get()


def told(*arguments: str) -> str:
    out = io.StringIO()
    call_command("verify_counters", *arguments, stdout=out)
    return out.getvalue()


class TestTheCounterIsWhatTheLedgerSays:
    def test_to_the_last_digit(self, redis_of_all, budget):
        used_by(redis_of_all, budget)
        result = only()
        assert not result.differs
        assert result.counted == result.ledger == Amount(D("1.000000000001"), 7)
        assert result.reserved == result.held == Amount(D(0), 0)

    def test_a_budget_that_nobody_asked_for(self, redis_of_all, budget):
        entry("settlement", "old", timezone.now(), cost_usd=D(3))
        result = only()
        assert (result.counted, result.ledger.usd, result.differs) == (None, 3, False)

    def test_while_requests_run(self, redis_of_all, budget):
        """Rows and messages travel apart, all the time: nothing of that is a difference."""
        stop, failed = threading.Event(), []

        async def traffic(counters: RedisCounters) -> None:
            number = 0
            while not stop.is_set():
                number += 1
                await asyncio.gather(
                    *(request(counters, budget, f"r{number}-{n}", amount("0.001", 1)) for n in range(3))
                )

        thread = threading.Thread(target=with_counters, args=(redis_of_all, traffic))
        thread.start()
        try:
            for _ in range(4):
                result = only()
                if result.differs:
                    failed.append(result)
        finally:
            stop.set()
            thread.join()
        assert not failed
        assert not only().differs
        assert LedgerEntry.objects.count() > 20

    def test_nothing_is_left_of_the_second_reading(self, redis_of_all, budget):
        used_by(redis_of_all, budget)
        only()
        assert not [key for key in redis_of_all.client().keys("*") if b":read-" in key]
        index = redis_of_all.client().keys("*:index:key:key_1")[0]
        assert len(redis_of_all.client().smembers(index)) == 1


class TestItIsNot:
    def test_a_row_that_no_counter_was_told_of(self, redis_of_all, budget):
        used_by(redis_of_all, budget)
        entry("adjustment", "r", timezone.now(), cost_usd=D("0.5"), prompt_tokens=1)
        before = drifted()
        with capture_logs() as logs:
            result = only()
        assert result.differs
        assert (result.counted.usd, result.ledger.usd) == (D("1.000000000001"), D("1.500000000001"))
        assert [line["event"] for line in logs] == ["counter_drift", "alert"]
        assert Alert.objects.get().detail["ledger_usd"] == "1.500000000001"
        assert drifted() == before + 1
        assert only().differs, "looking repairs nothing"

    def test_repaired_it_is(self, redis_of_all, budget):
        used_by(redis_of_all, budget)
        entry("adjustment", "r", timezone.now(), cost_usd=D("0.5"), prompt_tokens=1)
        assert only(repair=True).differs
        result = only()
        assert not result.differs
        assert result.counted == Amount(D("1.500000000001"), 8)

    def test_repaired_while_a_settlement_is_on_its_way(self, redis_of_all, budget):
        """Its row is read, its message comes after the repair: it counts once."""

        async def work(counters: RedisCounters) -> None:
            now = timezone.now()
            await counters.hold("late", (budget.terms(),), amount("5", 50), now)
            await asyncio.to_thread(written, "late", now, amount("2", 1))
            assert (await asyncio.to_thread(only, repair=True)).differs
            counters.settle("late", ALICE, amount("2", 1), now)

        with_counters(redis_of_all, work)
        result = only()
        assert not result.differs
        assert result.counted == Amount(D(2), 1)

    def test_open_requests_stay_reserved(self, redis_of_all, budget):
        async def work(counters: RedisCounters) -> None:
            now = timezone.now()
            await counters.hold("open", (budget.terms(),), amount("5", 50), now)
            await asyncio.to_thread(entry, "hold", "open", now, held_usd=D(5), held_prompt_tokens=50)
            await counters.hold("open/1", (budget.terms(),), amount("1", 0), now)
            await asyncio.to_thread(entry, "adjustment", "x", now, cost_usd=D("0.5"))
            result = await asyncio.to_thread(only, repair=True)
            assert result.differs
            assert result.reserved == result.held == Amount(D(6), 50)
            assert result.unexplained == ()
            headroom = await counters.headroom((budget.terms(),), now)
            assert (headroom.usd, headroom.tokens) == (D("93.5"), 9950)
            for name in ("open", "open/1"):
                counters.settle(name, ALICE, NOTHING, now)
            await asyncio.to_thread(entry, "release", "open", now, cost_usd=D(0))

        with_counters(redis_of_all, work)
        assert not only().differs

    def test_reserved_by_a_request_that_is_over(self, redis_of_all, budget):
        async def work(counters: RedisCounters) -> None:
            now = timezone.now()
            await counters.hold("lost", (budget.terms(),), amount("5", 50), now)
            await asyncio.to_thread(written, "lost", now, amount("0", 0))

        with_counters(redis_of_all, work)
        result = only(repair=True)
        assert result.unexplained == (("gw_1", "lost"),)
        assert result.differs
        result = only()
        assert not result.differs
        assert result.reserved == Amount(D(0), 0)

    def test_reserved_by_nobody(self, redis_of_all, budget):
        used_by(redis_of_all, budget)
        client = redis_of_all.client()
        (key,) = (key for key in client.keys("*:budget:*") if client.type(key) == b"hash")
        client.hset(key, "held", 3)
        result = only(repair=True)
        assert result.differs
        assert (result.reserved.usd, result.held.usd) == (3, 0)
        assert not only().differs


class TestTheCommand:
    def test_it_shows_a_table(self, redis_of_all, budget):
        used_by(redis_of_all, budget)
        heading, row = told().splitlines()
        assert heading.split() == ["budget", "since", "ledger", "open", "counter", "reserved", "leased"]
        assert row.startswith(f"{budget.pk} key key_1 monthly")
        assert row.count("$1.000000000001 7 tokens") == 2

    def test_status_1_where_one_differs(self, redis_of_all, budget, capsys):
        used_by(redis_of_all, budget)
        entry("adjustment", "r", timezone.now(), cost_usd=D("0.5"))
        with pytest.raises(CommandError, match="1 of 1 counters differed") as ended:
            told()
        assert ended.value.returncode == 1
        with pytest.raises(CommandError, match="was repaired"):
            told("--repair")
        assert "differs" not in told()

    def test_redis_that_does_not_answer(self, redis_of_all, budget):
        redis_of_all.kill()
        with pytest.raises(CommandError, match="Redis does not answer: ConnectionError"):
            told()

    def test_in_process_it_says_what_it_cannot_see(self, committed, budget, settings):
        assert settings.ENV.REDIS_URL is None
        entry("settlement", "r", timezone.now(), cost_usd=D("2.5"), prompt_tokens=3)
        entry("hold", "open", timezone.now(), held_usd=D("0.25"), held_prompt_tokens=4)
        lines = told().splitlines()
        assert "$2.5 3 tokens" in lines[1]
        assert "$0.25 4 tokens" in lines[1]
        assert "inside the gateway's process" in lines[2]


class TestTheJob:
    def test_it_repairs(self, redis_of_all, budget):
        used_by(redis_of_all, budget)
        entry("adjustment", "r", timezone.now(), cost_usd=D("0.5"))
        assert tasks.verify_counters() == 1
        assert tasks.verify_counters() == 0

    def test_redis_that_does_not_answer_is_no_error(self, redis_of_all, budget):
        redis_of_all.kill()
        with capture_logs() as logs:
            assert tasks.verify_counters() == 0
        assert [line["event"] for line in logs] == ["counters_not_verified"]

    def test_in_process_there_is_nothing_to_do(self, committed, budget, settings):
        assert tasks.verify_counters() == 0


class TestAStart:
    def test_budgets_are_read_anew(self, redis_of_all, budget):
        used_by(redis_of_all, budget)
        entry("adjustment", "r", timezone.now(), cost_usd=D("0.5"))
        assert redis_counters.read_anew([budget.terms()])

        async def work(counters: RedisCounters) -> None:
            headroom = await counters.headroom((budget.terms(),), timezone.now())
            assert headroom.usd == 100 - D("1.500000000001")

        with_counters(redis_of_all, work)

    def test_without_redis_there_is_nothing_to_do(self, committed, budget):
        assert redis_counters.read_anew([budget.terms()])

    def test_redis_that_does_not_answer_stops_no_start(self, redis_of_all, budget):
        redis_of_all.kill()
        with capture_logs() as logs:
            assert not redis_counters.read_anew([budget.terms()])
        assert [line["event"] for line in logs] == ["budgets_not_read_anew"]
