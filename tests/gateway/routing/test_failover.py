from gateway.routing.signals import Occasion
from tests.gateway.routing.contract import StrategyContract, candidate


class TestFailover(StrategyContract):
    strategy = "failover"

    def test_the_lowest_priority_number_goes_first(self):
        assert self.order([candidate("spare", priority=2), candidate("main", priority=-1), candidate("next")]) == [
            "main", "next", "spare",
        ]  # fmt: skip

    def test_equal_ones_keep_their_order(self):
        assert self.order([candidate("b"), candidate("a"), candidate("c")]) == ["b", "a", "c"]

    def test_of_equal_ones_a_holder_of_the_prompt_goes_first(self):
        candidates = [candidate("a"), candidate("b"), candidate("spare", priority=1)]
        assert self.order(candidates, occasion=Occasion(held={"b", "spare"})) == ["b", "a", "spare"]
