import random

import pytest

from gateway.routing.signals import Occasion, Signals
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

    def test_what_belongs_together_meets(self):
        candidates = [candidate("a"), candidate("b"), candidate("c")]
        for point in (0.1, 0.5, 0.9):
            assert len({self.order(candidates, Signals(), Occasion(point=point))[0] for _ in range(20)}) == 1
        shares = [self.order(candidates, Signals(), Occasion(point=n / 300))[0] for n in range(300)]
        assert [shares.count(name) for name in "abc"] == [100, 100, 100]

    def test_a_holder_goes_first_until_it_is_overloaded(self):
        candidates = [candidate("a"), candidate("b"), candidate("c")]
        signals, occasion = Signals(in_flight={"b": 7}, rng=random.Random(7)), Occasion(held={"b"})
        assert share_of_firsts(self.strategy, candidates, signals, 50, occasion)["b"] == 1
        signals.in_flight["b"] = 20
        assert share_of_firsts(self.strategy, candidates, signals, 300, occasion)["b"] < 0.5
