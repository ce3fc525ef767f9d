"""Leases of budgets: what a process asks for, and what it may spend of them. Redis is a few lines here."""

from decimal import Decimal

import msgspec
import pytest

from billing.counters.base import Amount, Headroom
from billing.counters.leases import NOTHING, REMEMBERED, Answer, Leases
from tests.billing.counters_contract import amount, budget

D = Decimal


@pytest.fixture(autouse=True)
def _ahead(monkeypatch):
    """Sums that are easy to follow: a lease lasts for twice what was held."""
    monkeypatch.setattr("billing.counters.leases.AHEAD", 2)


KEY, TEAM = "budget:1", "budget:2"
MINE, TEAMS = budget(usd="100"), budget(2, scope="team", owner="red", usd="1000", tokens=100_000)


def renewed(
    leases: Leases, *, left: str = "100", tokens: int | None = None, recalled: bool = False
) -> dict[str, Amount]:
    """A renewal that Redis grants whole; what it had to give."""
    found = {}
    for asked in leases.asking():
        granted = NOTHING if recalled else asked.wanted
        leases.granted(asked, Answer(granted, Headroom(D(left), tokens), recalled))
        found[asked.key] = granted
    return found


def leased(usd: str = "1", times: int = 1, **answer) -> Leases:
    """After requests that held so much each, and two renewals: the first tells what is left."""
    leases = Leases()
    for _ in range(times):
        leases.note([KEY], [MINE], amount(usd))
    renewed(leases, **answer)
    renewed(leases, **answer)
    return leases


def left_of(leases: Leases, terms=MINE, key: str = KEY) -> Decimal | None:
    headroom = leases.headroom([key], [terms])
    return headroom.usd if headroom is not None else None


class TestHowMuchIsAskedFor:
    def test_twice_what_was_held_lately(self):
        assert left_of(leased("0.1", 3)) == D("0.6")

    def test_a_twentieth_of_what_is_left_at_most(self):
        assert left_of(leased("1", 50)) == 5

    def test_nothing_where_that_would_not_do_for_a_request(self):
        assert left_of(leased("6")) is None
        assert left_of(leased("0.5", left="9")) is None

    def test_nothing_of_a_budget_that_is_used_up(self):
        assert left_of(leased(left="0")) is None
        assert left_of(leased(left="-3")) is None

    def test_tokens_as_well_as_dollars(self):
        leases = Leases()
        leases.note([TEAM], [TEAMS], amount("1", 1000))
        for _ in range(2):
            renewed(leases, left="1000", tokens=100_000)
        assert leases.headroom([TEAM], [TEAMS]) == Headroom(D(2), 2000)

    def test_a_budget_of_tokens_alone(self):
        terms, leases = budget(usd=None, tokens=10_000), Leases()
        leases.note([KEY], [terms], amount(None, 100))
        for _ in range(2):
            for asked in leases.asking():
                leases.granted(asked, Answer(asked.wanted, Headroom(None, 10_000), recalled=False))
        assert leases.headroom([KEY], [terms]) == Headroom(None, 200)
        assert leases.hold("a", [KEY], [terms], amount(None, 150))
        assert not leases.hold("b", [KEY], [terms], amount(None, 51))

    def test_given_back_when_nobody_used_it_for_a_while(self):
        leases = leased()
        for _ in range(REMEMBERED - 1):
            found = renewed(leases)
        assert found == {KEY: NOTHING}
        assert leases.asking() == []
        assert not leases.in_use

    def test_nothing_is_asked_for_while_somebody_needs_it_all(self):
        leases = leased()
        assert renewed(leases, recalled=True) == {KEY: NOTHING}
        assert left_of(leases) is None
        leases.note([KEY], [MINE], amount("1"))
        assert [asked.wanted for asked in leases.asking()] == [NOTHING]

    def test_asked_again_at_once_to_give_back_what_is_wanted_back(self):
        leases = leased()
        (asked,) = leases.asking()
        assert leases.granted(asked, Answer(asked.wanted, Headroom(D(100), None), recalled=True))
        (asked,) = leases.asking()
        assert asked.wanted == NOTHING
        assert not leases.granted(asked, Answer(NOTHING, Headroom(D(100), None), recalled=True))


class TestWhatIsBelieved:
    """Never more than Redis keeps for this process, whatever is lost on the way."""

    def test_lowered_before_it_is_asked_for(self):
        leases = leased("1", 10)
        renewed(leases, left="40")
        leases.asking()  # the answer is lost
        assert left_of(leases) == 2

    def test_raised_after_the_answer(self):
        leases = leased("0.1")
        leases.note([KEY], [MINE], amount("1"))
        (asked,) = leases.asking()
        assert asked.wanted.usd == D("2.2")
        assert left_of(leases) == D("0.2")
        leases.granted(asked, Answer(asked.wanted, Headroom(D(100), None), recalled=False))
        assert left_of(leases) == D("2.2")

    def test_held_while_a_renewal_was_under_way(self):
        leases = leased("1")
        (asked,) = leases.asking()
        leases.hold("a", [KEY], [MINE], amount("1.5"))
        leases.granted(asked, Answer(asked.wanted, Headroom(D(100), None), recalled=False))
        assert left_of(leases) == D("0.5")

    def test_touched_leases_are_taken_anew(self):
        leases = leased("1")
        leases.hold("a", [KEY], [MINE], amount("1"))
        assert leases.touched
        leases.told()
        (asked,) = leases.asking()
        assert asked.touched
        assert left_of(leases) is None
        leases.granted(asked, Answer(asked.wanted, Headroom(D(100), None), recalled=False))
        assert left_of(leases) == 2
        leases.settle("a", amount("0.25"))  # Redis holds it: nothing comes back here
        assert left_of(leases) == 2
        assert not leases.touched

    def test_a_limit_that_was_lowered_is_not_overshot(self):
        leases = leased("1")
        lower = msgspec.structs.replace(MINE, limit_usd=D(10))
        assert left_of(leases, lower) is None
        assert not leases.hold("a", [KEY], [lower], amount("0.1"))
        leases.note([KEY], [lower], amount("1"))
        assert left_of(leases, lower) is None
        (asked,) = leases.asking()
        assert asked.touched
        assert asked.terms is lower

    def test_a_limit_that_was_raised_keeps_it(self):
        higher = msgspec.structs.replace(MINE, limit_usd=D(1000))
        assert left_of(leased("1"), higher) == 2

    def test_given_up_for_a_request_and_at_the_end(self):
        leases = leased("1")
        leases.give_up(KEY)
        assert left_of(leases) is None
        leases = leased("1")
        (asked,) = leases.give_up_all()
        assert (asked.wanted, left_of(leases)) == (NOTHING, None)


class TestWhileRedisIsAway:
    def test_up_to_the_lease_and_no_further(self):
        leases = leased("1")
        assert leases.hold("a", [KEY], [MINE], amount("1.5"))
        assert not leases.hold("b", [KEY], [MINE], amount("0.500000000001"))
        assert leases.hold("b", [KEY], [MINE], amount("0.5"))
        assert left_of(leases) is None

    def test_what_is_not_spent_may_be_held_again(self):
        leases = leased("1")
        leases.hold("a", [KEY], [MINE], amount("2"))
        leases.settle("a", amount("0.25"))
        assert left_of(leases) == D("1.75")
        leases.settle("a", amount("9"))  # a request ends once
        assert left_of(leases) == D("1.75")

    def test_spending_above_the_hold_counts(self):
        leases = leased("1")
        leases.hold("a", [KEY], [MINE], amount("1"))
        leases.settle("a", amount("3"))
        assert left_of(leases) is None
        assert not leases.hold("b", [KEY], [MINE], amount("0.1"))

    def test_in_all_leases_or_in_none(self):
        leases = Leases()
        leases.note([KEY, TEAM], [MINE, TEAMS], amount("0.1", 10))
        for _ in range(2):
            renewed(leases, left="100", tokens=100_000)
        assert not leases.hold("a", [KEY, TEAM], [MINE, TEAMS], amount("0.1", 21))
        assert left_of(leases) == D("0.2")
        assert leases.hold("a", [KEY, TEAM], [MINE, TEAMS], amount("0.1", 20))
        assert leases.headroom([KEY, TEAM], [MINE, TEAMS]) is None

    @pytest.mark.parametrize("other", ["budget:1:tomorrow", TEAM])
    def test_a_budget_without_a_lease(self, other):
        leases = leased("1")
        assert not leases.hold("a", [KEY, other], [MINE, TEAMS], amount("0.1"))
        assert leases.headroom([other], [TEAMS]) is None
