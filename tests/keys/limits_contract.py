"""What `keys.limits.base.Limits` promises, wherever the buckets are. Rates are slow against a test's length where a
count must be exact, and fast where it waits.
"""

import asyncio

import pytest

from gateway.errors import RateLimited, RequestTooLargeForLimit
from gateway.types import Limit
from keys.limits.base import Admission, Limits


def limit(owner: str = "k", *, scope: str = "key", rpm=None, tpm=None, max_parallel=None) -> Limit:
    return Limit(scope, owner, rpm, tpm, max_parallel)


async def admitted(limits: Limits, wanted: tuple[Limit, ...], times: int, name: str = "r") -> list[Admission]:
    """Those of `times` requests at once that were let in."""
    tries = [limits.admit(f"{name}{number}", wanted) for number in range(times)]
    found = await asyncio.gather(*tries, return_exceptions=True)
    assert all(isinstance(one, Admission | RateLimited) for one in found), found
    return [one for one in found if isinstance(one, Admission)]


class LimitsContract:
    """Subclasses give `limits`."""

    async def test_nothing_limits(self, limits):
        admission = await limits.admit("r", (limit(),))
        assert admission.requests is None
        assert await limits.take_tokens("r", (limit(),), 10**9) is None
        limits.leave(admission)
        assert (await limits.admit("r2", ())).requests is None

    async def test_exactly_the_rate_passes_at_once(self, limits):
        assert len(await admitted(limits, (limit(rpm=20),), 100)) == 20

    async def test_two_owners_do_not_share(self, limits):
        assert len(await admitted(limits, (limit("one", rpm=3),), 5)) == 3
        assert len(await admitted(limits, (limit("two", rpm=3),), 5)) == 3
        assert len(await admitted(limits, (limit("one", scope="team", rpm=3),), 5)) == 3

    async def test_all_limits_or_none(self, limits):
        key, team = limit(rpm=10), limit("t", scope="team", rpm=2)
        assert len(await admitted(limits, (key, team), 6)) == 2
        admission = await limits.admit("r", (key,))
        assert admission.requests.remaining == 7

    async def test_gauge_is_of_the_tightest(self, limits):
        admission = await limits.admit("r", (limit(rpm=10), limit("t", scope="team", rpm=3), limit("u", rpm=30)))
        assert (admission.requests.limit, admission.requests.remaining) == (3, 2)
        assert 19 < admission.requests.reset <= 20

    async def test_wait_is_the_true_one(self, limits):
        fast = (limit(rpm=300),)
        while True:
            try:
                await limits.admit("r", fast)
            except RateLimited as error:
                refusal = error
                break
        assert 0 < refusal.retry_after <= 0.2
        assert "this key" in refusal.message
        assert "300 requests" in refusal.message
        await asyncio.sleep(refusal.retry_after)
        await limits.admit("r", fast)

    async def test_parallel_is_exact(self, limits):
        owner = (limit(max_parallel=3),)
        running = await admitted(limits, owner, 10)
        assert len(running) == 3
        with pytest.raises(RateLimited, match="3 of 3") as refused:
            await limits.admit("another", owner)
        assert refused.value.retry_after == 1.0

    async def test_a_place_left_is_free_at_once(self, limits):
        owner = (limit(max_parallel=1),)
        for number in range(20):
            limits.leave(await limits.admit(f"r{number}", owner))

    async def test_parallel_refusal_takes_no_rate(self, limits):
        owner = (limit(rpm=10, max_parallel=1),)
        first = await limits.admit("r", owner)
        assert await admitted(limits, owner, 5) == []
        limits.leave(first)
        assert (await limits.admit("last", owner)).requests.remaining == 8

    async def test_rate_refusal_takes_no_place(self, limits):
        owner = (limit(rpm=1, max_parallel=5),)
        await limits.admit("r", owner)
        assert await admitted(limits, owner, 5) == []
        assert len(await admitted(limits, (limit(max_parallel=5),), 10, "s")) == 4

    async def test_tokens_are_exact(self, limits):
        owner = (limit(tpm=600),)

        async def take(number: int) -> bool:
            try:
                await limits.take_tokens(f"r{number}", owner, 9)
            except RateLimited:
                return False
            return True

        assert (
            sum(await asyncio.gather(*(take(number) for number in range(50)))) == 11
        )  # 100 at once, less than one more

    async def test_tokens_of_all_limits_or_none(self, limits):
        key, team = limit(tpm=6000), limit("t", scope="team", tpm=60)
        with pytest.raises(RequestTooLargeForLimit, match="this team"):
            await limits.take_tokens("r", (key, team), 11)
        assert (await limits.take_tokens("r", (key, team), 10)).remaining == 0
        with pytest.raises(RateLimited, match="60 tokens"):
            await limits.take_tokens("r", (key, team), 5)
        gauge = await limits.take_tokens("r", (key,), 500)
        assert gauge.limit == 6000
        assert 490 <= gauge.remaining < 600  # ten and 500 of 1000 taken; a hundred a second come back

    async def test_too_large_helps_no_wait(self, limits):
        with pytest.raises(RequestTooLargeForLimit) as refused:
            await limits.take_tokens("r", (limit(tpm=600),), 101)
        assert refused.value.retry_after is None

    async def test_tokens_come_back_with_time(self, limits):
        owner = (limit(tpm=6000),)
        await limits.take_tokens("r", owner, 1000)
        with pytest.raises(RateLimited) as refused:
            await limits.take_tokens("r", owner, 20)
        assert 0.1 < refused.value.retry_after <= 0.2
        await asyncio.sleep(refused.value.retry_after)
        await limits.take_tokens("r", owner, 20)

    async def test_tokens_given_back_are_there_at_once(self, limits):
        owner = (limit(tpm=600),)
        await limits.take_tokens("r", owner, 100)
        limits.give_back_tokens(owner, 70)
        assert (await limits.take_tokens("r", owner, 70)).remaining == 0

    async def test_never_more_than_the_burst_comes_back(self, limits):
        owner = (limit(tpm=600),)
        await limits.take_tokens("r", owner, 10)
        limits.give_back_tokens(owner, 90)
        await asyncio.sleep(0.05)
        assert (await limits.take_tokens("r", owner, 100)).remaining == 0
        with pytest.raises(RateLimited):
            await limits.take_tokens("r", owner, 10)

    async def test_what_was_used_above_the_hold_is_taken(self, limits):
        owner = (limit(tpm=600),)
        await limits.take_tokens("r", owner, 50)
        limits.give_back_tokens(owner, -100)
        await asyncio.sleep(0.05)
        with pytest.raises(RateLimited) as refused:
            await limits.take_tokens("r", owner, 10)
        assert refused.value.retry_after == pytest.approx(6, abs=0.5)  # 150 taken of 100: 50 and 10, ten a second
