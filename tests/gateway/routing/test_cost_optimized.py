import math

from gateway.routing.signals import Occasion
from tests.gateway.routing.contract import StrategyContract, candidate


class TestCostOptimized(StrategyContract):
    strategy = "cost_optimized"

    def by(self, **costs):
        return Occasion(cost=costs.__getitem__)

    def test_the_cheapest_first(self):
        candidates = [candidate("dear"), candidate("free"), candidate("cheap")]
        assert self.order(candidates, occasion=self.by(dear=100, free=0, cheap=10)) == ["free", "cheap", "dear"]

    def test_unknown_is_not_free(self):
        candidates = [candidate("unknown"), candidate("dear")]
        assert self.order(candidates, occasion=self.by(unknown=math.inf, dear=10**20)) == ["dear", "unknown"]

    def test_equal_ones_go_by_priority(self):
        candidates = [candidate("spare", priority=1), candidate("main", priority=0)]
        assert self.order(candidates, occasion=self.by(spare=1, main=1)) == ["main", "spare"]
