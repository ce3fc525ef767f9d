import random

import pytest

from gateway.routing.signals import Signals
from tests.gateway.routing.contract import StrategyContract, candidate, share_of_firsts


class Dice(random.Random):
    """Never explores."""

    def random(self):
        return 0.99


class TestLatencyOptimized(StrategyContract):
    strategy = "latency_optimized"

    def test_the_fastest_first(self):
        candidates = [candidate("slow"), candidate("fast"), candidate("middling")]
        signals = Signals(latency={"slow": 2.0, "fast": 0.2, "middling": 1.0}, rng=Dice())
        assert self.order(candidates, signals) == ["fast", "middling", "slow"]

    def test_one_that_was_never_measured_is_tried(self):
        signals = Signals(latency={"known": 0.1}, rng=Dice())
        assert self.order([candidate("known"), candidate("new")], signals) == ["new", "known"]

    def test_weight_zero_is_a_last_resort(self):
        signals = Signals(latency={"a": 5.0, "drained": 0.1}, rng=Dice())
        assert self.order([candidate("drained", weight=0), candidate("a")], signals) == ["a", "drained"]

    def test_now_and_then_another_is_tried(self):
        signals = Signals(latency={"fast": 0.1, "slow": 1.0}, rng=random.Random(7))
        shares = share_of_firsts(self.strategy, [candidate("fast"), candidate("slow")], signals)
        assert shares["slow"] == pytest.approx(0.05, abs=0.02)

    def test_a_drained_one_is_not_tried_for_the_sake_of_it(self):
        signals = Signals(latency={"a": 0.1, "drained": 1.0}, rng=random.Random(7))
        shares = share_of_firsts(self.strategy, [candidate("a"), candidate("drained", weight=0)], signals)
        assert shares["drained"] == 0
