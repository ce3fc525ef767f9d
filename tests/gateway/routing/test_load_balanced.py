import random

import pytest

from gateway.routing.signals import Signals
from tests.gateway.routing.contract import StrategyContract, candidate, share_of_firsts


class TestLoadBalanced(StrategyContract):
    strategy = "load_balanced"

    def test_of_two_the_less_busy_one(self):
        signals = Signals(in_flight={"busy": 9}, rng=random.Random(7))
        shares = share_of_firsts(self.strategy, [candidate("busy"), candidate("idle")], signals, 200)
        assert shares["idle"] == 1

    def test_load_is_measured_by_weight(self):
        # Four running of weight 8 are less than two of weight 1.
        signals = Signals(in_flight={"big": 4, "small": 2}, rng=random.Random(7))
        shares = share_of_firsts(self.strategy, [candidate("big", weight=8), candidate("small")], signals, 200)
        assert shares["big"] == 1

    def test_at_equal_load_weights_are_odds(self):
        signals = Signals(rng=random.Random(7))
        shares = share_of_firsts(self.strategy, [candidate("a"), candidate("b")], signals)
        assert shares["a"] == pytest.approx(0.5, abs=0.05)

    def test_a_drained_one_stays_last_however_idle(self):
        signals = Signals(in_flight={"a": 50}, rng=random.Random(7))
        for _ in range(100):
            assert self.order([candidate("drained", weight=0), candidate("a")], signals) == ["a", "drained"]

    def test_the_busiest_of_three_is_never_first(self):
        signals = Signals(in_flight={"a": 9}, rng=random.Random(7))
        candidates = [candidate("a"), candidate("b"), candidate("c")]
        assert share_of_firsts(self.strategy, candidates, signals, 300)["a"] == 0
