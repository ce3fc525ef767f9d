from gateway.routing.signals import Signals
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

    def test_weight_zero_has_no_turn(self):
        assert self.firsts([candidate("a", weight=0), candidate("b")], 5) == "bbbbb"

    def test_all_drained_is_better_than_nobody(self):
        assert self.order([candidate("a", weight=0), candidate("b", weight=0)]) == ["a", "b"]

    def test_a_newcomer_takes_its_turn_at_once(self):
        signals = Signals()
        self.firsts([candidate("a"), candidate("b")], 9, signals)
        assert set(self.firsts([candidate("a"), candidate("b"), candidate("c")], 3, signals)) == {"a", "b", "c"}

    def test_models_do_not_take_each_others_turns(self):
        signals = Signals()
        turns = [
            self.firsts([candidate("a"), candidate("b")], 1, signals)
            + self.firsts([candidate("x"), candidate("y")], 1, signals)
            for _ in range(4)
        ]
        assert turns == ["ax", "by", "ax", "by"]
