import random

import pytest

from gateway.routing.signals import Occasion, Signals
from gateway.types import Limit
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

    def test_one_without_room_comes_last(self):
        full = candidate("full", limit=Limit("deployment", "full", rpm=None, tpm=None, max_parallel=3))
        signals = Signals(in_flight={"full": 3, "a": 50, "b": 60}, rng=random.Random(7))
        for _ in range(50):
            assert self.order([full, candidate("a"), candidate("b")], signals)[-1] == "full"
        signals.in_flight["full"] = 2
        assert share_of_firsts(self.strategy, [full, candidate("a")], signals, 50)["full"] == 1

    def test_one_whose_limit_is_used_up_comes_last_until_it_refills(self):
        now = [0.0]
        signals = Signals(full_until={"a": 5.0}, rng=random.Random(7), clock=lambda: now[0])
        candidates = [candidate("a"), candidate("b")]
        assert share_of_firsts(self.strategy, candidates, signals, 50)["a"] == 0
        now[0] = 5.0
        assert share_of_firsts(self.strategy, candidates, signals, 200)["a"] > 0.3

    def test_a_holder_goes_first_until_it_is_overloaded(self):
        candidates = [candidate("a"), candidate("b"), candidate("c")]
        signals, occasion = Signals(in_flight={"b": 7}, rng=random.Random(7)), Occasion(held={"b"})
        assert share_of_firsts(self.strategy, candidates, signals, 50, occasion)["b"] == 1
        signals.in_flight["b"] = 20
        assert share_of_firsts(self.strategy, candidates, signals, 50, occasion)["b"] == 0

    def test_what_belongs_together_meets_where_nobody_holds_it_yet(self):
        candidates = [candidate("a"), candidate("b"), candidate("c")]
        signals = Signals(in_flight={"b": 5}, rng=random.Random(7))
        assert share_of_firsts(self.strategy, candidates, signals, 50, Occasion(point=0.5))["b"] == 1
