import random

import pytest

from gateway.routing.signals import Signals
from tests.gateway.routing.contract import StrategyContract, candidate, share_of_firsts


class TestRandom(StrategyContract):
    strategy = "random"

    def test_weights_are_odds(self):
        candidates = [candidate("one", weight=1), candidate("three", weight=3)]
        shares = share_of_firsts(self.strategy, candidates, Signals(rng=random.Random(7)))
        assert shares["three"] == pytest.approx(0.75, abs=0.04)

    def test_weight_zero_is_a_last_resort(self):
        candidates = [candidate("drained", weight=0), candidate("a"), candidate("b")]
        signals = Signals(rng=random.Random(7))
        assert {self.order(candidates, signals)[-1] for _ in range(100)} == {"drained"}

    def test_the_second_choice_is_drawn_too(self):
        candidates = [candidate("a", weight=100), candidate("b", weight=1), candidate("c", weight=3)]
        signals = Signals(rng=random.Random(7))
        seconds = [self.order(candidates, signals)[1] for _ in range(500)]
        assert 0.6 < seconds.count("c") / 500 < 0.9
