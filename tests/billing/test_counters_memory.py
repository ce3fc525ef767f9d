"""Budget counters in process."""

import pytest

from billing.counters.memory import MemoryCounters
from tests.billing.counters_contract import CountersContract, FakeLedger, FakeWriter


class TestMemoryCounters(CountersContract):
    @pytest.fixture
    def counters(self, ledger: FakeLedger) -> MemoryCounters:
        return MemoryCounters(FakeWriter(), ledger.spent_since)  # type: ignore[arg-type]
