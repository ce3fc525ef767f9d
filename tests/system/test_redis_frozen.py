"""A Redis that freezes under load: requests go on, on time, and the log says so once (lesson 27)."""

import asyncio
import time
import urllib.request
from collections import Counter

import aiohttp
import pytest

from tests.support.redis_server import OwnRedis
from tests.support.serving import Serving
from tests.support.upstream import says
from tests.support.waiting import eventually
from tests.system.conftest import chat, openai_settings

pytestmark = pytest.mark.redis

USAGE = {"prompt_tokens": 9, "completion_tokens": 10, "total_tokens": 19}
TIMEOUT = 0.09  # of an exchange with Redis: shared_redis._CEILING and _GLANCE
SLACK = 0.05


@pytest.fixture
def own_redis(tmp_path):
    server = OwnRedis(tmp_path)
    server.start()
    yield server
    server.kill()


@pytest.fixture
def frozen_later(own_redis, make_gateway, upstream):
    """A gateway whose Redis will freeze, and a key with limits and a budget."""
    upstream.always(says(usage=USAGE))

    def make(**settings: str) -> tuple[Serving, dict[str, str]]:
        gateway = make_gateway(REDIS_URL=own_redis.url, **settings, **openai_settings(upstream)).start()
        secret = gateway.make_key(
            "--user", "alice", "--rpm", "100000", "--tpm", "60000000", "--monthly-dollars", "1000"
        )
        time.sleep(1.2)  # until the gateway knows it
        return gateway, {"x-api-key": secret}

    return make


async def at_a_rate(
    gateway: Serving, headers: dict[str, str], *, rate: float, seconds: float
) -> list[tuple[int, float]]:
    """Requests sent when they are due, whatever became of those before: each one's status and seconds."""
    loop = asyncio.get_running_loop()
    async with aiohttp.ClientSession(gateway.url, headers=headers, connector=aiohttp.TCPConnector(limit=0)) as session:

        async def ask(due: float) -> tuple[int, float]:
            await asyncio.sleep(due - loop.time())
            async with session.post("/v1/chat/completions", json=chat(max_tokens=10)) as response:
                await response.read()
            return response.status, loop.time() - due

        began = loop.time()
        return await asyncio.gather(*(ask(began + number / rate) for number in range(int(rate * seconds))))


def p99(answers: list[tuple[int, float]]) -> float:
    return sorted(seconds for _, seconds in answers)[-(-len(answers) * 99 // 100) - 1]


def frozen(gateway: Serving, own_redis: OwnRedis, headers: dict[str, str], *, rate: float, seconds: float):
    """What was answered before and while it was frozen, and the lines logged about it."""
    before = asyncio.run(at_a_rate(gateway, headers, rate=rate, seconds=2))
    told = len(gateway.lines())
    own_redis.stall()
    during = asyncio.run(at_a_rate(gateway, headers, rate=rate, seconds=seconds))
    own_redis.go_on()
    asyncio.run(at_a_rate(gateway, headers, rate=rate, seconds=1))
    eventually(lambda: any(line["event"] == "redis_reachable_again" for line in gateway.lines()))
    lines = [line for line in gateway.lines()[told:] if line["event"] != "request"]
    return before, during, lines


def consistent(gateway: Serving, own_redis: OwnRedis) -> None:
    """All that was served meanwhile is in the counters, once, and nothing stays reserved."""
    assert gateway.stop() == 0
    verified = gateway.manage("verify_counters")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    row = verified.stdout.splitlines()[1]
    assert row.count("$0 0 tokens") == 3, row  # open, reserved, leased


def judge(gateway: Serving, own_redis: OwnRedis, headers: dict[str, str], *, rate: float, seconds: float):
    before, during, lines = frozen(gateway, own_redis, headers, rate=rate, seconds=seconds)
    assert Counter(status for status, _ in during) == {200: int(rate * seconds)}
    assert len(lines) <= 5, lines
    events = [line["event"] for line in lines]
    assert events.count("redis_unreachable") == events.count("redis_reachable_again") == 1
    consistent(gateway, own_redis)
    return before, during


def test_for_three_seconds(frozen_later, own_redis):
    gateway, headers = frozen_later()
    before, during = judge(gateway, own_redis, headers, rate=40, seconds=3)
    # A machine that runs other tests beside this one: no bar, but nobody waits for Redis again and again.
    assert p99(during) < max(p99(before), TIMEOUT + SLACK) + 0.5


@pytest.mark.long
def test_for_ten_seconds_at_a_hundred_a_second(frozen_later, own_redis):
    gateway, headers = frozen_later()
    before, during = judge(gateway, own_redis, headers, rate=100, seconds=10)
    assert p99(during) <= max(TIMEOUT, p99(before)) + SLACK, f"{p99(during):.3f} s, {p99(before):.3f} s before"


def test_refusing_where_that_is_asked_for(frozen_later, own_redis):
    gateway, headers = frozen_later(AILB_BUDGETS_WITHOUT_REDIS="refuse")
    _, during, lines = frozen(gateway, own_redis, headers, rate=20, seconds=1)
    statuses = Counter(status for status, _ in during)
    assert set(statuses) == {503}, statuses
    assert len(lines) <= 5
    consistent(gateway, own_redis)


def test_it_is_on_the_metrics(frozen_later, own_redis):
    gateway, headers = frozen_later()

    def up() -> str | None:
        with urllib.request.urlopen(f"{gateway.url}/metrics", timeout=5) as response:
            lines = response.read().decode().splitlines()
        return next((line.split()[-1] for line in lines if line.startswith("ailb_redis_up")), None)

    asyncio.run(at_a_rate(gateway, headers, rate=10, seconds=0.5))
    eventually(lambda: up() == "1.0", told=up)
    own_redis.stall()
    eventually(lambda: up() == "0.0", told=up)
    own_redis.go_on()
    eventually(lambda: up() == "1.0", told=up)
