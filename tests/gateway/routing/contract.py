"""What every strategy keeps. Subclass it in `tests/gateway/routing/test_<strategy>.py`."""

import math
import random
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, NamedTuple

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gateway.routing import strategies, strategy
from gateway.routing.signals import Occasion, Pace, Signals
from gateway.types import Deployment
from tests.gateway.providers.contract import configured, deployed

# Subclasses run the same test on other data: an example that was kept for one is merely tried by the next.
_shared = settings(max_examples=50, suppress_health_check=[HealthCheck.differing_executors])

_CONFIG = configured("demo")


def candidate(name: str, *, weight: int = 1, priority: int = 0, **fields: Any) -> Deployment:
    return deployed(_CONFIG, name=name, upstream_model=name, weight=weight, priority=priority, **fields)


def paced(first: float, token: float = 0.0, at: float = 0.0) -> Pace:
    """A deployment that takes `first` seconds to its first token and `token` for each."""
    pace = Pace()
    pace.first, pace.token, pace.at = first, token, at
    return pace


def names(ordered: Iterable[Deployment]) -> list[str]:
    return [deployment.name for deployment in ordered]


class Situation(NamedTuple):
    """Some candidates, any past that they may have had, and a request."""

    candidates: list[Deployment]
    in_flight: dict[str, int]
    paces: dict[str, float]
    turns: dict[str, float]
    occasion: Occasion

    def signals(self, seed: int = 0) -> Signals:
        return Signals(
            in_flight=dict(self.in_flight),
            paces={name: paced(first) for name, first in self.paces.items()},
            turns={"": dict(self.turns)},
            rng=random.Random(seed),
            clock=lambda: 1.0,
        )


@st.composite
def situations(draw: st.DrawFn) -> Situation:
    chosen = draw(st.lists(st.sampled_from("abcdefgh"), unique=True, min_size=1))
    candidates = [candidate(name, weight=draw(st.integers(0, 5)), priority=draw(st.integers(-2, 2))) for name in chosen]
    some = st.sampled_from(chosen)
    occasion = Occasion(
        held=draw(st.sets(some)),
        point=draw(st.none() | st.floats(0, 1, exclude_max=True)),
        tokens=draw(st.floats(0, 1000)),
        cost={name: draw(st.floats(0, 1e18) | st.just(math.inf)) for name in chosen}.__getitem__,
    )
    return Situation(
        candidates,
        draw(st.dictionaries(some, st.integers(0, 50))),
        draw(st.dictionaries(some, st.floats(0, 60))),
        draw(st.dictionaries(some, st.floats(-10, 10))),
        occasion,
    )


class StrategyContract:
    strategy: ClassVar[str]

    def order(
        self, candidates: Sequence[Deployment], signals: Signals | None = None, occasion: Occasion | None = None
    ) -> list[str]:
        signals = signals or Signals(rng=random.Random(1))
        return names(strategy(self.strategy).order(candidates, signals, occasion or Occasion()))

    def test_it_is_known_by_its_modules_name(self):
        assert self.strategy in strategies()
        assert strategy(self.strategy).order.__module__ == f"gateway.routing.{self.strategy}"

    @_shared
    @given(situations())
    def test_every_candidate_comes_once(self, situation):
        found = self.order(situation.candidates, situation.signals(), situation.occasion)
        assert sorted(found) == sorted(names(situation.candidates))

    @_shared
    @given(situations())
    def test_the_candidates_are_left_as_they_are(self, situation):
        before = tuple(situation.candidates)
        self.order(situation.candidates, situation.signals(), situation.occasion)
        assert tuple(situation.candidates) == before

    @_shared
    @given(situations(), st.integers(0, 1000))
    def test_the_same_past_and_the_same_dice_give_the_same_order(self, situation, seed):
        first, again = (self.order(situation.candidates, situation.signals(seed), situation.occasion) for _ in range(2))
        assert first == again

    @_shared
    @given(situations())
    def test_every_candidate_has_a_score_and_asking_changes_nothing(self, situation):
        signals, judge = situation.signals(), strategy(self.strategy)
        scores = [judge.score(d, signals, situation.occasion) for d in situation.candidates]
        assert all(isinstance(score, int | float) for score in scores)
        fresh = situation.signals()
        assert (signals.turns, signals.in_flight, signals.exploring) == (fresh.turns, fresh.in_flight, fresh.exploring)

    def test_one_candidate_is_first(self):
        assert self.order([candidate("only")]) == ["only"]

    def test_a_tuple_will_do(self):
        assert sorted(self.order((candidate("a"), candidate("b")), Signals())) == ["a", "b"]


def share_of_firsts(
    name: str, candidates: list[Deployment], signals: Signals, draws: int = 3000, occasion: Occasion | None = None
) -> dict[str, float]:
    """How often each came first."""
    occasion = occasion or Occasion()
    firsts = [next(strategy(name).order(candidates, signals, occasion)).name for _ in range(draws)]
    return {d.name: firsts.count(d.name) / draws for d in candidates}
