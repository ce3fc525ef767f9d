"""A minute never sees more tokens than the limit and its burst, on clocks of the test's own: Redis's too."""

import asyncio
import random
from collections.abc import Iterator

import pytest
import redis

from ailb_project.shared_redis import SharedRedis
from gateway.errors import RateLimited
from keys.limits import redis as redis_limits
from keys.limits.base import Limits
from keys.limits.memory import MemoryLimits
from keys.limits.redis import RedisLimits
from tests.keys.limits_contract import limit
from tests.support.redis_server import own_prefix

TPM = 600
BURST = 100
MINUTE = 60.0


class Clock:
    """Seconds. With `server`, the scripts in Redis read it too."""

    def __init__(self, server: redis.Redis | None = None, key: str = "") -> None:
        self._server = server
        self._key = key
        self.move_to(1_800_000_000.0)

    def __call__(self) -> float:
        return self.now

    def move_to(self, now: float) -> None:
        self.now = now
        if self._server is not None:
            seconds, microseconds = divmod(round(now * 1e6), 10**6)
            self._server.delete(self._key)
            self._server.rpush(self._key, seconds, microseconds)


@pytest.fixture
def prefix(redis_url) -> Iterator[str]:
    with own_prefix(redis_url) as prefix:
        yield prefix


@pytest.fixture
def simulated(monkeypatch) -> None:
    """Scripts that read the clock of their prefix instead of the server's."""
    monkeypatch.setattr("ailb_project.shared_redis._CEILING", 5.0)
    monkeypatch.setattr("ailb_project.shared_redis._CONNECT", 5.0)
    for name in ("_ADMIT", "_TAKE", "_APPLY"):
        source = getattr(redis_limits, name)
        assert "redis.call('TIME')" in source
        faked = source.replace("redis.call('TIME')", "redis.call('LRANGE', KEYS[1] .. ':clock', 0, 1)")
        monkeypatch.setattr(redis_limits, name, faked)


async def hammered(stores: list[Limits], clock: Clock, dice: random.Random, seconds: float) -> list[tuple[float, int]]:
    """When how many tokens were let in, of clients that ask for all they can get; what some give back is not counted
    as taken.
    """
    owner = (limit(tpm=TPM),)
    admitted: list[tuple[float, int]] = []

    async def ask(store: Limits, tokens: int) -> None:
        try:
            await store.take_tokens("r", owner, tokens)
        except RateLimited:
            return
        unused = dice.choice([0, 0, tokens // 2, tokens])
        store.give_back_tokens(owner, unused)
        admitted.append((clock.now, tokens - unused))

    until = clock.now + seconds
    while clock.now < until:
        await asyncio.gather(*(ask(dice.choice(stores), dice.randint(1, BURST)) for _ in range(8)))
        await asyncio.sleep(0)
        clock.move_to(clock.now + dice.choice([0.0001, 0.05, 0.5, 3.0]))
    return admitted


def most_in_a_minute(admitted: list[tuple[float, int]]) -> int:
    return max(sum(tokens for at, tokens in admitted if start <= at <= start + MINUTE) for start, _ in admitted)


@pytest.mark.parametrize("seed", range(5))
async def test_in_process(seed):
    clock = Clock()
    admitted = await hammered([MemoryLimits(clock)], clock, random.Random(seed), 200)
    assert 500 < most_in_a_minute(admitted) <= TPM + BURST


@pytest.mark.redis
@pytest.mark.parametrize("seed", range(2))
async def test_in_redis_by_several_processes(redis_url, prefix, simulated, seed):
    with redis.Redis.from_url(redis_url) as server:
        clock = Clock(server, f"{prefix}:clock")
        stores: list[Limits] = [RedisLimits(SharedRedis(redis_url, prefix=prefix), f"gw_{n}") for n in range(3)]
        admitted = await hammered(stores, clock, random.Random(seed), 150)
        for store in stores:
            await store.close()
    assert 400 < most_in_a_minute(admitted) <= TPM + BURST
