import random

import pytest

from gateway.routing import strategy
from gateway.routing.signals import Occasion, Signals
from tests.gateway.routing.contract import StrategyContract, candidate, paced


class World:
    """Deployments that take known times, and a clock."""

    def __init__(self, **seconds: float) -> None:
        self.seconds = seconds
        self.now = 0.0
        self.signals = Signals(rng=random.Random(7), clock=lambda: self.now)
        self.candidates = [candidate(name) for name in seconds]
        self.asked: list[str] = []

    def ask(self, times: int = 1, every: float = 0.1) -> list[str]:
        """`times` requests, one after the other; returns where they went."""
        for _ in range(times):
            name = next(strategy("latency_optimized").order(self.candidates, self.signals, Occasion(tokens=100))).name
            first = self.seconds[name] * random.Random(len(self.asked)).uniform(0.7, 1.3)
            self.now += every
            self.signals.measured(name, first=first, whole=first * 2, tokens=100)
            self.asked.append(name)
        return self.asked[-times:]


class TestLatencyOptimized(StrategyContract):
    strategy = "latency_optimized"

    def test_the_fastest_first(self):
        candidates = [candidate("slow"), candidate("fast"), candidate("middling")]
        signals = Signals(paces={"slow": paced(2.0), "fast": paced(0.2), "middling": paced(1.0)})
        assert self.order(candidates, signals) == ["fast", "middling", "slow"]

    def test_a_long_answer_goes_by_the_time_a_token(self):
        candidates = [candidate("prompt"), candidate("fluent")]
        signals = Signals(paces={"prompt": paced(0.1, token=0.05), "fluent": paced(1.0, token=0.01)})
        assert self.order(candidates, signals, Occasion(tokens=5))[0] == "prompt"
        assert self.order(candidates, signals, Occasion(tokens=500))[0] == "fluent"

    def test_a_prompt_in_the_cache_is_read_sooner(self):
        candidates = [candidate("cold"), candidate("warm")]
        signals = Signals(paces={"cold": paced(0.8), "warm": paced(1.0)})
        assert self.order(candidates, signals)[0] == "cold"
        assert self.order(candidates, signals, Occasion(held={"warm"}))[0] == "warm"
        signals.paces["warm"] = paced(4.0)
        assert self.order(candidates, signals, Occasion(held={"warm"}))[0] == "cold"

    def test_one_that_was_never_measured_is_tried_by_one_request(self):
        signals = Signals(paces={"known": paced(0.1)})
        candidates = [candidate("known"), candidate("new")]
        assert self.order(candidates, signals) == ["new", "known"]
        signals.started("new")
        assert self.order(candidates, signals) == ["known", "new"]

    @pytest.mark.parametrize("every", [0.01, 0.1, 1.0])
    def test_one_five_times_slower_gets_a_twentieth_at_most(self, every):
        world = World(a=0.2, slow=1.0, b=0.2)
        world.ask(200, every)
        assert world.ask(1000, every).count("slow") <= 50

    @pytest.mark.parametrize("every", [0.01, 0.1, 1.0])
    def test_and_is_found_again_within_a_minute_of_its_recovery(self, every):
        world = World(a=0.5, slow=2.5)
        world.ask(200, every)
        world.seconds["slow"] = 0.1
        found = world.ask(int(60 / every), every)
        assert found[-20:].count("slow") >= 19

    def test_one_that_turns_slow_is_left_at_once(self):
        world = World(a=0.2, b=0.3)
        world.ask(50)
        world.seconds["a"] = 3.0
        assert world.ask(30).count("a") <= 2
