"""A process's part of the limits while Redis is away, on a clock of the test's own."""

import pytest

from gateway.errors import RateLimited
from keys.limits.share import LocalShare, Taken
from tests.keys.limits_contract import limit

OWNER = ("key", "k")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def share(clock: Clock, processes: int = 4) -> LocalShare:
    return LocalShare(lambda: processes, clock)


def passed(one: LocalShare, *limits, times: int) -> int:
    for number in range(times):
        try:
            one.admit(limits)
        except RateLimited:
            return number
    return times


def test_the_parts_together_are_the_limit(clock):
    assert sum(passed(share(clock), limit(rpm=100), times=100) for _ in range(4)) == 100


def test_a_part_is_one_at_least(clock):
    one = share(clock, 50)
    assert passed(one, limit(rpm=3), times=3) == 1
    one.take_tokens((limit(tpm=10),), 1)
    one.enter([OWNER])
    with pytest.raises(RateLimited, match="1 of 1"):
        one.admit((limit(max_parallel=3),))


def test_nobody_counted_is_one(clock):
    assert passed(share(clock, 0), limit(rpm=10), times=20) == 10


def test_all_limits_or_none(clock):
    one = share(clock, 1)
    assert passed(one, limit("a", rpm=2), limit("b", rpm=10), times=5) == 2
    assert passed(one, limit("b", rpm=10), times=20) == 8


def test_it_fills_up_at_its_part_of_the_rate(clock):
    one = share(clock)
    assert passed(one, limit(rpm=240), times=100) == 60
    clock.now += 2
    assert passed(one, limit(rpm=240), times=100) == 2


def test_a_request_larger_than_the_part_passes_once_and_the_next_waits_for_it(clock):
    """The whole limit holds 100; a part of four 25. Nobody is told that it never could."""
    one = share(clock)
    one.take_tokens((limit(tpm=600),), 60)
    with pytest.raises(RateLimited) as refused:
        one.take_tokens((limit(tpm=600),), 1)
    assert refused.value.retry_after == pytest.approx((60 - 24) / 2.5)
    clock.now += refused.value.retry_after
    one.take_tokens((limit(tpm=600),), 1)


def test_places(clock):
    one = share(clock, 2)
    one.enter([OWNER, ("team", "t")])
    assert passed(one, limit(max_parallel=4), times=1) == 1
    one.enter([OWNER])
    with pytest.raises(RateLimited):
        one.admit((limit(max_parallel=4),))
    one.leave([OWNER, ("team", "t")])
    one.leave([OWNER])
    assert not one._places


def test_what_is_handed_over_is_what_has_not_come_back(clock):
    one = share(clock, 2)
    passed(one, limit(rpm=60), times=10)
    one.take_tokens((limit(tpm=6000),), 300)
    one.give_back_tokens((limit(tpm=6000),), 100)
    clock.now += 2
    assert dict(one.hand_over()) == {Taken("requests", OWNER, 60): 9, Taken("tokens", OWNER, 6000): 100}
    assert one.hand_over() == []


def test_a_second_outage_hands_over_its_own(clock):
    one = share(clock, 1)
    passed(one, limit(rpm=60), times=30)
    one.hand_over()
    passed(one, limit(rpm=60), times=5)
    assert one.hand_over() == [(Taken("requests", OWNER, 60), 5)]
