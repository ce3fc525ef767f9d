from gateway.routing.signals import Occasion, Signals
from tests.gateway.routing.contract import StrategyContract, candidate


class TestRoundRobin(StrategyContract):
    strategy = "round_robin"

    def firsts(self, candidates, number, signals=None):
        signals = signals or Signals()
        return "".join(self.order(candidates, signals)[0] for _ in range(number))

    def test_each_in_turn(self):
        assert self.firsts([candidate("a"), candidate("b"), candidate("c")], 6) == "abcabc"

    def test_shares_by_weight_without_bursts(self):
        # nginx's own example: 5, 1 and 1 give a a b a c a a.
        candidates = [candidate("a", weight=5), candidate("b"), candidate("c")]
        assert self.firsts(candidates, 14) == "aabacaa" * 2

    def test_a_newcomer_takes_its_turn_at_once(self):
        signals = Signals()
        self.firsts([candidate("a"), candidate("b")], 9, signals)
        assert set(self.firsts([candidate("a"), candidate("b"), candidate("c")], 3, signals)) == {"a", "b", "c"}

    def test_pools_do_not_take_each_others_turns(self):
        signals, candidates = Signals(), [candidate("a"), candidate("b")]
        turns = [self.order(candidates, signals, Occasion(pool))[0] for _ in range(4) for pool in ("one", "other")]
        assert "".join(turns) == "aabbaabb"

    def test_a_holder_goes_first_and_its_turn_is_over(self):
        signals, candidates = Signals(), [candidate("a"), candidate("b")]
        assert self.order(candidates, signals, Occasion(held={"b"})) == ["b", "a"]
        assert self.firsts(candidates, 3, signals) == "aab"  # b has had its turn
