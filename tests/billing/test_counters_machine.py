"""Random operations on budget counters, of both stores, beside a model of a few numbers.

Whatever comes in whatever order (holds, settlements, cancellations, processes that die, limits that change, days that
end, a Redis that is away for some): at each admission all that was spent and is held stays within the limit; where
nobody is at work nothing is reserved, and a counter is what the ledger adds up to, to the last digit.
"""

import asyncio
from collections.abc import Coroutine
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, rule

from ailb_project.shared_redis import SharedRedis
from billing.counters import redis as redis_counters
from billing.counters.base import Amount, BudgetCounters
from billing.counters.memory import MemoryCounters
from billing.counters.redis import RedisCounters
from billing.periods import bounds
from gateway.errors import BudgetExceeded, GuardUnavailable
from gateway.types import BudgetTerms
from tests.billing.counters_contract import ALICE, NOTHING, NOW, FakeLedger, FakeWriter
from tests.support.redis_server import own_prefix

D = Decimal
PICO = D("1e-12")
PROCESSES = 3

dollars = st.decimals(min_value=0, max_value=5, places=12)
tokens = st.integers(min_value=0, max_value=500)
requests_served = st.lists(st.tuples(dollars, tokens), min_size=2, max_size=6)


class Open:
    """A request that holds."""

    def __init__(self, name: str, process: int, held: Amount, at: datetime) -> None:
        self.name = name
        self.process = process
        self.held = held
        self.at = at


class CountersMachine(RuleBasedStateMachine):
    """One daily budget of a key, and one of its organisation, over some processes."""

    requests = Bundle("requests")
    away: frozenset[int] = frozenset()
    """Processes that do not reach the store."""
    exact = True
    """Whether a request is refused only where there is really too little left."""
    divisor = 1
    """Requests that are small against a budget leave something to be leased."""
    leased = 0
    """How many were held without the store."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.ledger = FakeLedger()
        self.now = NOW
        self.count = 0
        self.limits = {"key": D(30), "organisation": D(40)}
        self.most_tokens = 2500
        self.opened: dict[str, Open] = {}
        self.spent: dict[tuple[datetime, datetime | None], Amount] = {}
        self.processes = self.do(self.made())

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(work)

    async def made(self) -> list[BudgetCounters]:
        raise NotImplementedError

    async def crashed(self, number: int, orphans: list[Open]) -> None:
        """The process is gone, its orphans are closed on the ledger."""
        raise NotImplementedError

    async def arrived(self, process: int) -> None:
        """What the process told has arrived, where it can."""

    async def at_rest(self) -> None:
        """All that was told has arrived."""

    def terms(self) -> tuple[BudgetTerms, ...]:
        return (
            BudgetTerms(1, "key", "key_1", "daily", "Europe/Amsterdam", self.limits["key"], self.most_tokens),
            BudgetTerms(2, "organisation", "", "daily", "Europe/Amsterdam", self.limits["organisation"], None),
        )

    def day(self, at: datetime) -> tuple[datetime, datetime | None]:
        return bounds("daily", "Europe/Amsterdam", at)

    def committed(self) -> Amount:
        """Spent and held in the current period."""
        today = self.day(self.now)
        spent = self.spent.get(today, NOTHING)
        held = [one.held for one in self.opened.values() if self.day(one.at) == today]
        return Amount(
            (spent.usd or D(0)) + sum((one.usd or D(0) for one in held), D(0)),
            spent.tokens + sum(one.tokens for one in held),
        )

    def fits(self, more: Amount) -> bool:
        now = self.committed()
        usd = (now.usd or D(0)) + (more.usd or D(0))
        return usd <= min(self.limits.values()) and now.tokens + more.tokens <= self.most_tokens

    # ── what happens ────────────────────────────────────────────────────────────────────────────────────────────────

    @initialize(limit=st.integers(min_value=5, max_value=60))
    def some_limit(self, limit: int) -> None:
        self.limits["key"] = D(limit)

    @rule(target=requests, process=st.integers(0, PROCESSES - 1), usd=dollars, many=tokens)
    def hold(self, process: int, usd: Decimal, many: int) -> Open:
        # One that was refused too: which of them it is may depend on time, and rules must not.
        return self.placed(process % len(self.processes), usd, many)

    @rule(process=st.integers(0, PROCESSES - 1), each=requests_served)
    def serve(self, process: int, each: list[tuple[Decimal, int]]) -> None:
        """Requests one after the other, each for what it held."""
        for usd, many in each:
            request = self.placed(process % len(self.processes), usd, many)
            self.close(request, request.held, row_first=False)

    def placed(self, process: int, usd: Decimal, many: int) -> Open:
        """A request; open, where it was let in."""
        self.count += 1
        held = Amount((usd / self.divisor).quantize(PICO), many // self.divisor)
        one = Open(f"r{self.count}", process, held, self.now)
        try:
            self.do(self.processes[process].hold(one.name, self.terms(), one.held, self.now))
        except BudgetExceeded:
            assert not self.fits(one.held) or not self.exact, "refused, and there was room"
            self.settled(one, NOTHING)
            return one
        except GuardUnavailable:
            assert self.away or not self.exact
            self.settled(one, NOTHING)
            return one
        assert self.fits(one.held), "admitted, and there was no room"
        type(self).leased += process in self.away
        self.opened[one.name] = one
        self.ledger.hold(f"gw_{process}", one.name, ALICE, one.held, one.at)
        return one

    @rule(request=consumes(requests), share=st.integers(0, 1000), row_first=st.booleans())
    def settle(self, request: Open, share: int, row_first: bool) -> None:
        held = request.held
        spent = Amount(((held.usd or D(0)) * share / 1000).quantize(PICO), held.tokens * share // 1000)
        self.close(request, spent, row_first=row_first)

    @rule(request=consumes(requests))
    def cancel(self, request: Open) -> None:
        self.close(request, NOTHING, row_first=False)

    @rule(request=consumes(requests), usd=dollars)
    def overrun(self, request: Open, usd: Decimal) -> None:
        """The upstream ignored the cap: it is written as it is."""
        self.close(request, Amount((request.held.usd or D(0)) + usd, request.held.tokens + 7), row_first=True)

    def close(self, request: Open, spent: Amount, *, row_first: bool) -> None:
        if self.opened.pop(request.name, None) is None:
            return  # refused, or closed by the sweeper
        if row_first:
            self.ledger.close(request.name, ALICE, spent, request.at)
        self.settled(request, spent)
        if not row_first:
            self.ledger.close(request.name, ALICE, spent, request.at)
        self.count_spent(request, spent)

    def settled(self, request: Open, spent: Amount) -> None:
        async def told() -> None:
            self.processes[request.process].settle(request.name, ALICE, spent, request.at)
            await self.arrived(request.process)

        self.do(told())

    def count_spent(self, request: Open, spent: Amount) -> None:
        day = self.day(request.at)
        before = self.spent.get(day, NOTHING)
        self.spent[day] = Amount((before.usd or D(0)) + (spent.usd or D(0)), before.tokens + spent.tokens)

    @rule(process=st.integers(0, PROCESSES - 1))
    def crash(self, process: int) -> None:
        process %= len(self.processes)
        orphans = [one for one in self.opened.values() if one.process == process]
        for one in orphans:
            del self.opened[one.name]
            self.ledger.close(one.name, ALICE, one.held, one.at)
            self.count_spent(one, one.held)
        self.do(self.crashed(process, orphans))

    @rule(scope=st.sampled_from(["key", "organisation"]), limit=st.integers(min_value=5, max_value=60))
    def change_limit(self, scope: str, limit: int) -> None:
        self.limits[scope] = D(limit)

    @rule(hours=st.integers(min_value=1, max_value=30))
    def time_passes(self, hours: int) -> None:
        self.now += timedelta(hours=hours)

    @rule()
    def look(self) -> None:
        """What is left is what the model says."""
        if not self.exact:
            return
        self.do(self.at_rest())
        assert self.left() == self.expected_left()

    # ── what must be ────────────────────────────────────────────────────────────────────────────────────────────────

    def left(self) -> tuple[Decimal | None, int | None]:
        """Of budgets so large that nothing is refused."""
        wide = tuple(
            BudgetTerms(one.id, one.scope, one.owner, one.period, one.tz, D(10**6), 10**9) for one in self.terms()
        )
        headroom = self.do(self.processes[0].headroom(wide, self.now))
        return headroom.usd, headroom.tokens

    def expected_left(self) -> tuple[Decimal, int]:
        now = self.committed()
        return D(10**6) - (now.usd or D(0)), 10**9 - now.tokens

    def teardown(self) -> None:
        try:
            for request in list(self.opened.values()):
                self.close(request, NOTHING, row_first=True)
            self.do(self.at_rest())
            assert self.left() == self.expected_left()
            today, spent = self.day(self.now), self.ledger.spent_since
            assert spent("key", "key_1", *today) == spent("organisation", "", *today)
            assert self.left()[0] == D(10**6) - spent("key", "key_1", *today)[0]
        finally:
            self.do(self.closed())
            self.runner.close()

    async def closed(self) -> None:
        for counters in self.processes:
            await counters.close()


class MemoryMachine(CountersMachine):
    """The only process: what it knew is gone with it."""

    async def made(self) -> list[BudgetCounters]:
        return [MemoryCounters(FakeWriter(), self.ledger.spent_since)]  # type: ignore[arg-type]

    async def crashed(self, number: int, orphans: list[Open]) -> None:
        await self.processes[0].close()
        self.processes = await self.made()


class RedisMachine(CountersMachine):
    """Three processes on one Redis. Class attributes are set by the test."""

    url = ""
    prefix = ""
    leases = False
    runs = 0

    async def made(self) -> list[BudgetCounters]:
        type(self).runs += 1
        self.namespace = f"{self.prefix}:{self.runs}"
        return [self.process(number) for number in range(PROCESSES)]

    def process(self, number: int) -> RedisCounters:
        self.count += 1
        client = SharedRedis(self.url, prefix=self.namespace)
        name = f"gw_{number}_{self.count}"
        return RedisCounters(client, FakeWriter(), name, self.ledger.standing, leases=self.leases)  # type: ignore[arg-type]

    async def crashed(self, number: int, orphans: list[Open]) -> None:
        dead = self.processes[number]
        assert isinstance(dead, RedisCounters)
        # It says nothing more, of what it has still to say neither.
        if dead._renewal is not None:
            dead._renewal.cancel()
        dead._leases = None
        dead._client._down = True
        await dead._client.close()
        dead._outbox._queue.clear()
        self.processes[number] = self.process(number)
        sweeper = next(one for index, one in enumerate(self.processes) if index not in self.away)
        assert isinstance(sweeper, RedisCounters)
        await sweeper.release_dead(dead._process_id, [ALICE])

    async def arrived(self, process: int) -> None:
        counters = self.processes[process]
        assert isinstance(counters, RedisCounters)
        if process not in self.away:
            assert await counters._outbox.drained(10)

    async def at_rest(self) -> None:
        for process in range(PROCESSES):
            await self.arrived(process)


class LeaseMachine(RedisMachine):
    """As before, and processes lose Redis and find it again, each by itself."""

    leases = True
    exact = False
    divisor = 30

    @rule(process=st.integers(0, PROCESSES - 1), each=requests_served)
    def lose_redis(self, process: int, each: list[tuple[Decimal, int]]) -> None:
        """In the middle of its traffic."""
        if process in self.away or len(self.away) == PROCESSES - 1:
            return  # one is left to sweep
        self.serve(process, each)
        self.renew(process)
        self.away |= {process}
        self.client(process)._down = True
        self.serve(process, each)

    @rule(process=st.integers(0, PROCESSES - 1))
    def find_redis(self, process: int) -> None:
        self.away -= {process}

        async def back() -> None:
            self.client(process)._came_up()
            self.client(process).schedule()
            await asyncio.sleep(0)

        self.do(back())

    @rule(process=st.integers(0, PROCESSES - 1))
    def renew(self, process: int) -> None:
        counters = self.processes[process]
        assert isinstance(counters, RedisCounters)
        assert counters._leases is not None
        self.do(counters._renew(counters._leases))

    def client(self, process: int) -> SharedRedis:
        counters = self.processes[process]
        assert isinstance(counters, RedisCounters)
        return counters._client

    async def crashed(self, number: int, orphans: list[Open]) -> None:
        self.away -= {number}
        await super().crashed(number, orphans)

    async def at_rest(self) -> None:
        """The end: nobody leases any more."""
        self.away = frozenset()
        for number, one in enumerate(self.processes):
            self.client(number)._came_up()
            self.client(number).schedule()
            assert isinstance(one, RedisCounters)
            assert one._leases is not None
            if one._renewal is not None:
                one._renewal.cancel()
            await one._ask_for_leases(one._leases.give_up_all())
            one._leases = None
        await super().at_rest()


def run(machine: type[CountersMachine], *, examples: int, steps: int) -> None:
    case = machine.TestCase
    case.settings = settings(
        max_examples=examples, stateful_step_count=steps, deadline=None, derandomize=examples < 100, database=None,
        suppress_health_check=list(HealthCheck), phases=[Phase.generate],  # shrinking takes minutes: do it by hand
    )  # fmt: skip
    case().runTest()


SOME = {"examples": 12, "steps": 30}
MANY = {"examples": 200, "steps": 50}  # 10 000 operations


@pytest.fixture
def redis_machine(redis_url, monkeypatch):
    monkeypatch.setattr("ailb_project.shared_redis._CEILING", 5.0)
    monkeypatch.setattr("ailb_project.shared_redis._CONNECT", 5.0)
    monkeypatch.setattr("ailb_project.shared_redis._DRAIN", 5.0)
    # A Redis that is away stays away until the machine says so.
    monkeypatch.setattr(SharedRedis, "_keep_probing", lambda self: None)
    monkeypatch.setattr(redis_counters, "_RENEW", 0.02)
    monkeypatch.setattr(redis_counters, "_RECALL", 0.1)
    with own_prefix(redis_url) as prefix:
        monkeypatch.setattr(RedisMachine, "url", redis_url)
        monkeypatch.setattr(RedisMachine, "prefix", prefix)
        yield


def test_in_process():
    run(MemoryMachine, **SOME)


@pytest.mark.long
def test_in_process_for_long():
    run(MemoryMachine, **MANY)


@pytest.mark.redis
@pytest.mark.parametrize("machine", [RedisMachine, LeaseMachine])
def test_in_redis(redis_machine, machine):
    run(machine, **SOME)


@pytest.mark.redis
@pytest.mark.long
@pytest.mark.parametrize("machine", [RedisMachine, LeaseMachine])
def test_in_redis_for_long(redis_machine, machine):
    run(machine, **MANY)
    assert (machine.leased > 100) == machine.leases
