"""Waiting one's turn at a limit: who is served when, by limits with a clock of their own on a real event loop."""

import asyncio
from collections import Counter

import pytest

from gateway.errors import RateLimited
from gateway.types import Limit
from keys.limits.base import Admission
from keys.limits.memory import MemoryLimits
from keys.waiting import ADMISSION, Queues

TEAM = Limit("team", "red", rpm=None, tpm=None, max_parallel=1)


class World:
    """A line at one limit, and what was served in which order."""

    def __init__(self, limit=TEAM) -> None:
        self.limits = MemoryLimits()
        self.queues = Queues()
        self.limit = limit
        self.served: list[str] = []
        self.positions: dict[str, int] = {}
        self._numbers = iter(range(10_000))

    async def ask(self, key, *, weight=1, seconds=5.0, limits=None, work=0.005):
        name, limits = f"{key}-{next(self._numbers)}", limits or (self.limit,)
        admission: Admission = await self.queues.admitted(
            lambda: self.limits.admit(name, limits), limits, ADMISSION, key=key, weight=weight, seconds=seconds,
            told=lambda position: self.positions.setdefault(name, position),
        )  # fmt: skip
        self.served.append(key)
        await asyncio.sleep(work)
        self.limits.leave(admission)
        self.queues.freed(limits)


def run(work):
    return asyncio.run(asyncio.wait_for(work, 20))


def test_who_meets_no_limit_does_not_wait():
    async def work():
        world = World()
        await world.ask("a")
        assert (world.served, world.positions, world.queues._lines) == (["a"], {}, {})

    run(work())


def test_a_key_that_asks_for_much_keeps_nobody_waiting_for_all_of_it():
    async def work():
        world = World()
        async with asyncio.TaskGroup() as group:
            for _ in range(20):
                group.create_task(world.ask("greedy"))
            await asyncio.sleep(0.002)
            group.create_task(world.ask("modest"))
        assert world.served.index("modest") <= 2
        assert world.queues._lines == {}

    run(work())


def test_shares_go_by_weight():
    async def work():
        world = World()
        async with asyncio.TaskGroup() as group:
            group.create_task(world.ask("first", work=0.02))
            await asyncio.sleep(0)
            for _ in range(30):
                group.create_task(world.ask("three", weight=3, work=0.001))
                group.create_task(world.ask("one", work=0.001))
        early = Counter(world.served[1:25])
        assert early["three"] == 18
        assert early["one"] == 6

    run(work())


def test_the_position_is_told():
    async def work():
        world = World()
        async with asyncio.TaskGroup() as group:
            for _ in range(4):
                group.create_task(world.ask("a"))
        assert sorted(world.positions.values()) == [1, 2, 3]

    run(work())


def test_after_its_time_it_is_refused_and_leaves_the_line():
    async def work():
        world = World()
        running = asyncio.create_task(world.ask("long", work=0.5))
        await asyncio.sleep(0)
        with pytest.raises(RateLimited):
            await world.ask("short", seconds=0.05)
        assert world.queues._lines == {}
        await running

    run(work())


def test_who_leaves_lets_the_next_one_through():
    async def work():
        world = World()
        running = asyncio.create_task(world.ask("long", work=0.05))
        await asyncio.sleep(0)
        leaver, stayer = asyncio.create_task(world.ask("leaver")), asyncio.create_task(world.ask("stayer"))
        await asyncio.sleep(0.01)
        leaver.cancel()
        await asyncio.gather(running, stayer)
        assert world.served == ["long", "stayer"]
        assert world.queues._lines == {}

    run(work())


def test_a_wait_that_is_longer_than_theirs_is_refused_at_once():
    async def work():
        world = World(Limit("key", "k", rpm=1, tpm=None, max_parallel=None))
        await world.ask("k")
        with pytest.raises(RateLimited) as refused:
            await world.ask("k", seconds=1.0)
        assert refused.value.retry_after > 50
        assert world.positions == {}

    run(work())


def test_a_rate_is_kept_and_used_to_the_full():
    async def work():
        world = World(Limit("team", "red", rpm=1200, tpm=None, max_parallel=None))
        world.limits._requests._full_at["team", "red"] = world.limits._requests._clock() + 60.0  # the burst is spent
        started = asyncio.get_running_loop().time()
        await asyncio.gather(*(world.ask(key) for key in "abcde" * 2))
        took = asyncio.get_running_loop().time() - started
        assert 0.45 < took < 2.0  # ten at one every 50 ms
        assert Counter(world.served[:5]) == Counter("abcde")

    run(work())


def test_one_that_another_limit_keeps_does_not_keep_the_others():
    async def work():
        world = World()
        own = Limit("key", "slow", rpm=None, tpm=None, max_parallel=1)
        holder = await world.limits.admit("holder", (own,))
        running = asyncio.create_task(world.ask("long", work=0.03))
        await asyncio.sleep(0)
        slow = asyncio.create_task(world.ask("slow", limits=(TEAM, own)))
        others = [asyncio.create_task(world.ask("other")) for _ in range(3)]
        await asyncio.gather(running, *others)
        assert world.served == ["long", "other", "other", "other"]
        world.limits.leave(holder)
        await slow
        assert world.queues._lines == {}

    run(work())
