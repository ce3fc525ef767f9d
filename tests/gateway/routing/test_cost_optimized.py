from decimal import Decimal

from gateway.routing.signals import Signals
from tests.gateway.routing.contract import StrategyContract, candidate


class TestCostOptimized(StrategyContract):
    strategy = "cost_optimized"

    def by(self, **costs):
        return Signals(cost={name: Decimal(cost) if cost is not None else None for name, cost in costs.items()}.get)

    def test_the_cheapest_first(self):
        candidates = [candidate("dear"), candidate("free"), candidate("cheap")]
        assert self.order(candidates, self.by(dear="0.1", free="0", cheap="0.01")) == ["free", "cheap", "dear"]

    def test_unknown_is_not_free(self):
        candidates = [candidate("unknown"), candidate("dear")]
        assert self.order(candidates, self.by(unknown=None, dear="99")) == ["dear", "unknown"]

    def test_equal_ones_go_by_priority(self):
        candidates = [candidate("spare", priority=1), candidate("main", priority=0)]
        assert self.order(candidates, self.by(spare="1", main="1")) == ["main", "spare"]
