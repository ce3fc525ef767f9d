"""What strategies know of the past, and the plan that asks them."""

import pytest

from gateway.routing import order, strategies, strategy_choices
from gateway.routing.signals import Signals


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
    one.answered("a", 1.0)
    assert (other.in_flight, other.latency) == ({}, {})


def test_a_slower_answer_counts_at_once_and_a_faster_one_gradually():
    signals = Signals()
    signals.answered("a", 1.0)
    signals.answered("a", 3.0)
    assert signals.latency["a"] == 3.0
    signals.answered("a", 1.0)
    assert signals.latency["a"] == pytest.approx(2.6)
    for _ in range(30):
        signals.answered("a", 1.0)
    assert signals.latency["a"] == pytest.approx(1.0, abs=0.01)


def test_the_settings_name_the_strategies_there_are():
    from ailb_project.env import STRATEGIES

    assert sorted(STRATEGIES) == strategies()
    assert [value for value, _ in strategy_choices()] == strategies()


def test_there_is_no_other():
    with pytest.raises(KeyError):
        order("signals")
    with pytest.raises(KeyError):
        order("fastest")
