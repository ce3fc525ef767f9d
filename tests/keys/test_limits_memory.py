"""Rate limits in process."""

import pytest

from keys.limits.memory import MemoryLimits
from tests.keys.limits_contract import LimitsContract


class TestMemoryLimits(LimitsContract):
    @pytest.fixture
    def limits(self) -> MemoryLimits:
        return MemoryLimits()
