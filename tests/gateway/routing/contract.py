"""What every strategy keeps. Subclass it in `tests/gateway/routing/test_<strategy>.py`."""

import random
from typing import ClassVar

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.routing import order, strategies
from gateway.routing.signals import Signals
from gateway.types import Deployment
from tests.gateway.providers.contract import configured, deployed

# Subclasses run the same test on other data: an example that was kept for one is merely tried by the next.
_shared = settings(max_examples=50, suppress_health_check=[HealthCheck.differing_executors])

_CONFIG = configured("demo")


def candidate(name: str, *, weight: int = 1, priority: int = 0) -> Deployment:
    return deployed(_CONFIG, name=name, upstream_model=name, weight=weight, priority=priority)


def names(ordered: list[Deployment]) -> list[str]:
    return [deployment.name for deployment in ordered]


@st.composite
def situations(draw: st.DrawFn) -> tuple[list[Deployment], Signals]:
    """Some candidates and any past that they may have had."""
    chosen = draw(st.lists(st.sampled_from("abcdefgh"), unique=True, min_size=1))
    candidates = [candidate(name, weight=draw(st.integers(0, 5)), priority=draw(st.integers(-2, 2))) for name in chosen]
    some = st.sampled_from(chosen)
    costs = draw(st.dictionaries(some, st.none() | st.decimals(0, 1, places=6)))
    signals = Signals(
        in_flight=draw(st.dictionaries(some, st.integers(0, 50))),
        latency=draw(st.dictionaries(some, st.floats(0, 60))),
        turns=draw(st.dictionaries(some, st.floats(-10, 10))),
        cost=costs.get,
        rng=random.Random(draw(st.integers(0, 10))),
    )
    return candidates, signals


class StrategyContract:
    strategy: ClassVar[str]

    def order(self, candidates: list[Deployment], signals: Signals | None = None) -> list[str]:
        return names(order(self.strategy)(candidates, signals or Signals(rng=random.Random(1))))

    def test_it_is_known_by_its_modules_name(self):
        assert self.strategy in strategies()
        assert order(self.strategy).__module__ == f"gateway.routing.{self.strategy}"

    @_shared
    @given(situations())
    def test_every_candidate_comes_once(self, situation):
        candidates, signals = situation
        assert sorted(self.order(candidates, signals)) == sorted(names(candidates))

    @_shared
    @given(situations())
    def test_the_candidates_are_left_as_they_are(self, situation):
        candidates, signals = situation
        before = tuple(candidates)
        self.order(candidates, signals)
        assert tuple(candidates) == before

    @_shared
    @given(situations(), st.integers(0, 1000))
    def test_the_same_past_and_the_same_dice_give_the_same_order(self, situation, seed):
        candidates, signals = situation

        def copied() -> Signals:
            return Signals(
                in_flight=dict(signals.in_flight), latency=dict(signals.latency), turns=dict(signals.turns),
                cost=signals.cost, rng=random.Random(seed),
            )  # fmt: skip

        assert self.order(candidates, copied()) == self.order(candidates, copied())

    def test_one_candidate_is_first(self):
        assert self.order([candidate("only")]) == ["only"]

    def test_a_tuple_will_do(self):
        assert sorted(names(order(self.strategy)((candidate("a"), candidate("b")), Signals()))) == ["a", "b"]


def share_of_firsts(
    strategy: str, candidates: list[Deployment], signals: Signals, draws: int = 3000
) -> dict[str, float]:
    """How often each came first."""
    firsts = [order(strategy)(candidates, signals)[0].name for _ in range(draws)]
    return {d.name: firsts.count(d.name) / draws for d in candidates}
