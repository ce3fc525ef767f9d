"""What `billing.counters.base.BudgetCounters` promises, wherever the counts are."""

import asyncio
import random
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from billing.counters.base import Amount, BudgetCounters, Owners
from billing.counters.standing import OpenHold, Standing
from gateway.errors import BudgetExceeded
from gateway.types import BudgetTerms

NOW = datetime.now(UTC)
ALICE = Owners("key_1", "alice", "red")
D = Decimal


def budget(
    number: int = 1, *, scope="key", owner="key_1", period="monthly", tz="UTC", usd: str | None = "10", tokens=None
) -> BudgetTerms:
    return BudgetTerms(number, scope, owner, period, tz, None if usd is None else D(usd), tokens)


def amount(usd: str | None, tokens: int = 0) -> Amount:
    return Amount(None if usd is None else D(usd), tokens)


NOTHING = amount("0")


class FakeLedger:
    """What is written down, told in both ways that counters ask. Safe to ask from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holds: dict[str, tuple[str, Owners, Amount, datetime]] = {}
        self._closed: dict[str, tuple[Owners, Amount, datetime, datetime]] = {}
        self.readings = 0
        self.before_reading: Callable[[], None] = lambda: None
        self.after_reading: Callable[[], None] = lambda: None

    def hold(self, process: str, request: str, owners: Owners, held: Amount, at: datetime = NOW) -> None:
        with self._lock:
            self._holds[request] = (process, owners, held, at)

    def close(
        self, request: str, owners: Owners, spent: Amount, at: datetime = NOW, *, written: datetime | None = None
    ) -> None:
        with self._lock:
            self._closed[request] = (owners, spent, at, written or datetime.now(UTC))

    def total(self) -> Decimal:
        with self._lock:
            return sum((spent.usd or D(0) for _, spent, _, _ in self._closed.values()), D(0))

    def spent_since(self, scope: str, owner: str, start: datetime, until: datetime | None) -> tuple[Decimal, int]:
        standing = self.standing(scope, owner, start, until, NOW, with_open=False)
        return standing.spent.usd or D(0), standing.spent.tokens

    def standing(
        self, scope: str, owner: str, start: datetime, until: datetime | None, since: datetime, *, with_open: bool
    ) -> Standing:
        self.before_reading()

        def counts(owners: Owners, at: datetime) -> bool:
            return (scope, owner) in owners.pairs() and start <= at and (until is None or at < until)

        with self._lock:
            self.readings += 1
            closed = {name: row for name, row in self._closed.items() if counts(row[0], row[2])}
            held = [
                OpenHold(process, name, held)
                for name, (process, owners, held, at) in self._holds.items()
                if with_open and name not in self._closed and counts(owners, at)
            ]
            usd = sum((spent.usd or D(0) for _, spent, _, _ in closed.values()), D(0))
            tokens = sum(spent.tokens for _, spent, _, _ in closed.values())
            late = tuple(name for name, row in closed.items() if row[3] >= since)
        self.after_reading()
        return Standing(Amount(usd, tokens), late, tuple(held))


class FakeWriter:
    """Has written everything already."""

    def run_in_order(self, work: Callable[[], Any]) -> None:
        work()


async def left(counters: BudgetCounters, terms: BudgetTerms, at: datetime = NOW) -> Decimal | None:
    """Dollars; zero where it is used up."""
    try:
        return (await counters.headroom((terms,), at)).usd
    except BudgetExceeded:
        return D(0)


async def held(counters: BudgetCounters, terms: tuple[BudgetTerms, ...], each: Amount, times: int, name="r") -> int:
    """How many of `times` holds at once were placed."""
    tries = [counters.hold(f"{name}{number}", terms, each, NOW) for number in range(times)]
    found = await asyncio.gather(*tries, return_exceptions=True)
    assert all(one is None or isinstance(one, BudgetExceeded) for one in found), found
    return found.count(None)


class CountersContract:
    """Subclasses give `counters`, which read `ledger`."""

    @pytest.fixture
    def ledger(self) -> FakeLedger:
        return FakeLedger()

    async def test_up_to_the_limit_and_no_further(self, counters):
        await counters.hold("a", (budget(),), amount("9.999999999999"), NOW)
        await counters.hold("b", (budget(),), amount("0.000000000001"), NOW)
        with pytest.raises(BudgetExceeded):
            await counters.hold("c", (budget(),), amount("0.000000000001"), NOW)

    async def test_exact_at_once(self, counters):
        assert await held(counters, (budget(usd="30"),), amount("1"), 100) == 30

    async def test_refusal_names_the_budget(self, counters, ledger):
        ledger.close("old", ALICE, amount("4", 7))
        terms = (budget(usd="100"), budget(2, scope="team", owner="red", usd="10", tokens=1000))
        await counters.hold("a", terms, amount("5.5", 3), NOW)
        with pytest.raises(BudgetExceeded) as refused:
            await counters.hold("b", terms, amount("1"), NOW)
        assert "monthly budget of this team" in refused.value.message
        assert "limit $10, used $4, reserved $5.5; 1000 tokens, used 7, reserved 3" in refused.value.message
        assert "It resets at" in refused.value.message

    async def test_all_budgets_or_none(self, counters):
        mine, teams = budget(usd="10"), budget(2, scope="team", owner="red", usd="3")
        assert await held(counters, (mine, teams), amount("1"), 10) == 3
        assert await left(counters, mine) == 7

    async def test_tokens_are_limited_too(self, counters):
        terms = budget(usd=None, tokens=100)
        assert await held(counters, (terms,), amount(None, 30), 10) == 3
        headroom = await counters.headroom((terms,), NOW)
        assert (headroom.usd, headroom.tokens) == (None, 10)

    async def test_settled_is_counted_and_the_rest_given_back(self, counters):
        await counters.hold("a", (budget(tokens=100),), amount("8", 80), NOW)
        counters.settle("a", ALICE, amount("2.5", 20), NOW)
        headroom = await counters.headroom((budget(tokens=100),), NOW)
        assert (headroom.usd, headroom.tokens) == (D("7.5"), 80)

    async def test_one_after_the_other_never_meets_itself(self, counters):
        for number in range(20):
            await counters.hold(f"r{number}", (budget(),), amount("10"), NOW)
            counters.settle(f"r{number}", ALICE, NOTHING, NOW)

    async def test_released_leaves_nothing_behind(self, counters):
        assert await held(counters, (budget(),), amount("1"), 20) == 10
        for number in range(20):
            counters.settle(f"r{number}", ALICE, NOTHING, NOW)
        assert await left(counters, budget()) == 10

    async def test_spending_above_the_hold_is_counted_as_it_is(self, counters):
        await counters.hold("a", (budget(),), amount("1"), NOW)
        counters.settle("a", ALICE, amount("11"), NOW)
        with pytest.raises(BudgetExceeded, match="used \\$11, reserved \\$0"):
            await counters.headroom((budget(),), NOW)

    async def test_refused_and_asked_again_for_less(self, counters):
        with pytest.raises(BudgetExceeded):
            await counters.hold("a", (budget(),), amount("11"), NOW)
        await counters.hold("a", (budget(),), amount("9"), NOW)
        counters.settle("a", ALICE, amount("9"), NOW)
        assert await left(counters, budget()) == 1

    async def test_starts_from_the_ledger(self, counters, ledger):
        ledger.close("old", ALICE, amount("3.25", 10))
        ledger.close("others", Owners("key_2", "bob", "blue"), amount("5"))
        headroom = await counters.headroom((budget(tokens=100),), NOW)
        assert (headroom.usd, headroom.tokens) == (D("6.75"), 90)

    async def test_is_read_once(self, counters, ledger):
        await asyncio.gather(*(left(counters, budget()) for _ in range(50)))
        assert await held(counters, (budget(),), amount("1"), 20) == 10
        assert ledger.readings == 1

    async def test_headroom_is_of_the_tightest(self, counters):
        terms = (budget(usd="10"), budget(2, scope="team", owner="red", usd="4", tokens=500), budget(3, usd=None))
        headroom = await counters.headroom(terms, NOW)
        assert (headroom.usd, headroom.tokens) == (4, 500)

    async def test_used_up_is_refused(self, counters, ledger):
        ledger.close("old", ALICE, amount("10"))
        with pytest.raises(BudgetExceeded):
            await counters.headroom((budget(usd="20"), budget(2, scope="user", owner="alice")), NOW)

    async def test_counts_where_nothing_was_held(self, counters):
        """A budget that was made while the request ran."""
        teams, everybodys = budget(2, scope="team", owner="red"), budget(3, scope="organisation", owner="")
        assert await left(counters, teams) == 10
        assert await left(counters, everybodys) == 10
        counters.settle("a", ALICE, amount("1"), NOW)
        counters.settle("b", Owners("key_2", None, None), amount("2"), NOW)
        await asyncio.sleep(0.1)
        assert await left(counters, teams) == 9
        assert await left(counters, everybodys) == 7

    async def test_spending_belongs_to_the_period_of_arrival(self, counters):
        daily = budget(period="daily")
        tomorrow = NOW + timedelta(days=1)
        await counters.hold("a", (daily,), amount("6"), NOW)
        await counters.hold("b", (daily,), amount("6"), tomorrow)
        counters.settle("a", ALICE, amount("5"), NOW)
        counters.settle("b", ALICE, amount("1"), tomorrow)
        await asyncio.sleep(0.1)
        assert await left(counters, daily, tomorrow) == 9

    async def test_total_never_ends(self, counters, ledger):
        long_ago = datetime(2001, 1, 1, tzinfo=UTC)
        ledger.close("old", ALICE, amount("4"), long_ago)
        assert await left(counters, budget(period="total")) == 6

    async def test_a_price_that_nobody_knows_holds_tokens_only(self, counters):
        await counters.hold("a", (budget(tokens=100),), amount(None, 60), NOW)
        counters.settle("a", ALICE, amount(None, 50), NOW)
        headroom = await counters.headroom((budget(tokens=100),), NOW)
        assert (headroom.usd, headroom.tokens) == (10, 50)

    @pytest.mark.parametrize("whole", ["0", "9007", "123456789", "999999999000"])
    async def test_every_place_counts(self, counters, ledger, whole):
        """Pico-dollars of more than 9 007 dollars are past 2^53, where doubles lose the last places."""
        ledger.close("old", ALICE, amount(f"{whole}.199254740993"))
        terms = (budget(usd=f"{whole}.199254740995"),)
        assert await left(counters, terms[0]) == D("0.000000000002")
        assert await held(counters, terms, amount("0.000000000001"), 5) == 2
        with pytest.raises(BudgetExceeded, match=f"used \\${whole}.199254740993, reserved \\$0.000000000002"):
            await counters.headroom(terms, NOW)

    async def test_long_sums_are_exact(self, counters):
        dice = random.Random(7)
        limit, spent, open_ = D("1000000"), D(0), {}
        terms = (budget(usd=str(limit), tokens=10**15),)
        for number in range(300):
            usd = D(dice.randrange(10**16)).scaleb(-12)
            await counters.hold(f"r{number}", terms, Amount(usd, 10**9 + number), NOW)
            open_[f"r{number}"] = usd
            if dice.random() < 0.8:
                name = dice.choice(list(open_))
                cost = open_.pop(name) * dice.randrange(1000) / 1000
                cost = cost.quantize(D("0.000000000001"))
                counters.settle(name, ALICE, Amount(cost, 1), NOW)
                spent += cost
        expected = limit - spent - sum(open_.values())
        for name in open_:
            counters.settle(name, ALICE, NOTHING, NOW)
        await asyncio.sleep(0.2)
        headroom = await counters.headroom(terms, NOW)
        assert expected < headroom.usd == limit - spent
        assert headroom.tokens == 10**15 - (300 - len(open_))
