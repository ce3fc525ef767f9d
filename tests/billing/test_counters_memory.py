"""Budget counters in process."""

from datetime import timedelta

import pytest
from structlog.testing import capture_logs

from billing.counters import memory
from billing.counters.memory import MemoryCounters
from gateway.errors import BudgetExceeded
from tests.billing.counters_contract import ALICE, NOW, CountersContract, FakeLedger, FakeWriter, amount, budget, left


@pytest.fixture
def ledger() -> FakeLedger:
    return FakeLedger()


@pytest.fixture
def counters(ledger: FakeLedger) -> MemoryCounters:
    return MemoryCounters(FakeWriter(), ledger.spent_since)  # type: ignore[arg-type]


class TestMemoryCounters(CountersContract):
    @pytest.fixture
    def ledger(self, ledger: FakeLedger) -> FakeLedger:
        return ledger

    @pytest.fixture
    def counters(self, counters: MemoryCounters) -> MemoryCounters:
        return counters


async def test_around_midnight_no_reservation_is_forgotten(counters):
    """A request that arrived before it and holds after it: both days go on counting what they hold."""
    daily, tomorrow = budget(period="daily"), NOW + timedelta(days=1)
    await counters.hold("new", (daily,), amount("6"), tomorrow)
    await counters.hold("old", (daily,), amount("7"), NOW)
    with pytest.raises(BudgetExceeded):
        await counters.hold("more", (daily,), amount("5"), tomorrow)
    counters.settle("more", ALICE, amount("0"), tomorrow)
    assert await left(counters, daily, tomorrow) == 4
    assert await left(counters, daily) == 3


async def test_days_that_are_over_are_forgotten(counters):
    daily = budget(period="daily")
    for day in range(5):
        at = NOW + timedelta(days=day)
        await counters.hold(f"r{day}", (daily,), amount("6"), at)
        counters.settle(f"r{day}", ALICE, amount("1"), at)
    (kept,) = counters._by_budget.values()
    assert len(kept) <= 2
    assert len(counters._by_owner["key", "key_1"]) == len(kept)


async def test_another_time_zone_is_another_day(counters, ledger):
    ledger.close("old", ALICE, amount("4"), NOW)
    assert await left(counters, budget(period="daily")) == 6
    other = budget(period="daily", tz="Pacific/Kiritimati")
    assert await left(counters, other, NOW + timedelta(days=3)) == 10


async def test_a_counter_that_differs_is_told_once_and_put_right(counters, ledger):
    await counters.hold("open", (budget(),), amount("2"), NOW)
    assert await counters.verify() == 0
    ledger.close("from elsewhere", ALICE, amount("3", 5))
    with capture_logs() as logs:
        assert await counters.verify() == 1
        assert await counters.verify() == 0
    assert [(line["event"], line["counted_usd"], line["ledger_usd"]) for line in logs] == [("counter_drift", "0", "3")]
    assert await left(counters, budget()) == 5
    assert len(counters._by_owner["key", "key_1"]) == 1


async def test_it_is_compared_by_itself(counters, ledger, monkeypatch):
    monkeypatch.setattr(memory, "_VERIFY", 0.01)
    await left(counters, budget())
    ledger.close("from elsewhere", ALICE, amount("3"))
    for _ in range(100):
        if await left(counters, budget()) == 7:
            break
        await memory.asyncio.sleep(0.01)
    assert await left(counters, budget()) == 7
    await counters.close()
