"""What strategies know of the past, and the plan that asks them."""

import pytest

from gateway.routing import strategies, strategy, strategy_choices
from gateway.routing.signals import Pace, Signals
from gateway.types import Limit
from tests.gateway.routing.contract import candidate


def test_what_is_in_flight_is_counted():
    signals = Signals()
    signals.started("a")
    signals.started("a")
    signals.ended("a")
    assert signals.in_flight == {"a": 1}
    signals.ended("a")
    signals.ended("a")
    assert signals.in_flight == {"a": 0}


def test_two_processes_do_not_share_theirs():
    one, other = Signals(), Signals()
    one.started("a")
    one.measured("a", first=1.0, whole=2.0, tokens=10)
    assert (other.in_flight, other.paces) == ({}, {})


class TestPace:
    def test_a_slower_answer_counts_at_once_and_a_faster_one_with_time(self):
        pace = Pace()
        pace.measured(0.0, first=1.0, whole=1.0, tokens=1)
        pace.measured(1.0, first=3.0, whole=3.0, tokens=1)
        assert pace.first == 3.0
        pace.measured(2.0, first=1.0, whole=1.0, tokens=1)
        assert 2.5 < pace.first < 3.0
        pace.measured(62.0, first=1.0, whole=1.0, tokens=1)
        assert pace.first == pytest.approx(1.0, abs=0.01)

    def test_what_comes_after_the_first_token_is_the_time_of_the_others(self):
        pace = Pace()
        pace.measured(0.0, first=1.0, whole=3.0, tokens=100)
        assert pace.expected(100) == pytest.approx(3.0)
        assert pace.expected(200) == pytest.approx(5.0)
        assert pace.expected(100, cached=True) == pytest.approx(2.5)

    def test_plain_answers_tell_it_too(self):
        pace = Pace()
        pace.measured(0.0, first=None, whole=2.0, tokens=100)
        assert pace.expected(50) == pytest.approx(1.0)
        pace.measured(100.0, first=1.0, whole=1.5, tokens=50)
        pace.measured(200.0, first=None, whole=3.0, tokens=100)
        assert pace.expected(100) == pytest.approx(3.0)

    def test_late_is_later_than_nineteen_in_twenty(self):
        pace = Pace()
        for number in range(19):
            pace.measured(number, first=0.1, whole=1.0, tokens=1)
        assert pace.late_after(stream=True) is None
        pace.measured(20, first=7.0, whole=8.0, tokens=1)
        assert pace.late_after(stream=True) == 7.0
        for number in range(180):
            pace.measured(20 + number, first=0.1, whole=1.0, tokens=1)
        assert pace.late_after(stream=True) == 0.1
        assert pace.late_after(stream=False) is None


class TestOverload:
    def test_a_handful_is_no_load(self):
        signals = Signals(in_flight={"a": 7})
        assert not signals.overloaded(candidate("a"), [candidate("a"), candidate("b")])

    def test_more_than_half_again_its_share_is(self):
        candidates = [candidate("a"), candidate("b", weight=3)]
        signals = Signals(in_flight={"a": 8, "b": 12})
        assert signals.overloaded(candidates[0], candidates)
        signals.in_flight["b"] = 30
        assert not signals.overloaded(candidates[0], candidates)

    def test_no_room_is(self):
        limited = candidate("a", limit=Limit("deployment", "a", rpm=None, tpm=None, max_parallel=1))
        assert Signals(in_flight={"a": 1}).overloaded(limited, [limited])


def test_the_settings_name_the_strategies_there_are():
    from ailb_project.env import STRATEGIES

    assert sorted(STRATEGIES) == strategies()
    assert [value for value, _ in strategy_choices()] == strategies()


def test_there_is_no_other():
    with pytest.raises(KeyError):
        strategy("signals")
    with pytest.raises(KeyError):
        strategy("fastest")
