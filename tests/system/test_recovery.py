"""A dead deployment is left alone, and found again when it is well: in real time, at a hundred requests a second."""

import asyncio
from collections import Counter
from dataclasses import dataclass
from time import monotonic

import aiohttp
import httpx2
import pytest

from tests.support.serving import open_requests
from tests.support.upstream import drops, refuses, says
from tests.support.waiting import eventually

RATE = 100  # requests a second
MOST_A_MINUTE = 6
BACK_WITHIN = 15.0  # seconds
WELL_FIRST = 2.0  # seconds of traffic before it dies: a gateway that has just started is no slower than it ever is
ENOUGH = 5  # answers of a recovered deployment after which it counts as back: one may be the probe's

DEAD = {"refuses": refuses(500), "unwell": refuses(503), "hangs up": drops()}


@dataclass(frozen=True)
class Told:
    """One answer: when it came and who gave it, or that it failed."""

    at: float
    status: int
    by: str | None


class Traffic:
    """A hundred requests a second, streams and plain ones in turn, from when the block is entered until it is left.

    They are sent when they are due, whether or not the ones before have been answered.
    """

    def __init__(self, gateway, headers, model):
        self._url, self._headers, self._model = f"{gateway.url}/v1/chat/completions", headers, model
        self.told = []

    async def __aenter__(self):
        self._session = aiohttp.ClientSession(headers=self._headers, connector=aiohttp.TCPConnector(limit=0))
        self._running = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_):
        self._running.cancel()
        await asyncio.gather(*self._asking)
        await self._session.close()

    async def _run(self):
        self._asking, began, number = set(), monotonic(), 0
        while True:
            task = asyncio.create_task(self._ask(number % 2 == 0))
            self._asking.add(task)
            task.add_done_callback(self._asking.discard)
            number += 1
            await asyncio.sleep(max(began + number / RATE - monotonic(), 0))

    async def _ask(self, stream):
        body = {"model": self._model, "messages": [{"role": "user", "content": "Hi"}], "stream": stream}
        async with self._session.post(self._url, json=body) as response:
            whole = await response.read()
        assert not stream or response.status != 200 or whole.endswith(b"data: [DONE]\n\n")
        self.told.append(Told(monotonic(), response.status, response.headers.get("x-ailb-model")))

    def answers_of(self, deployment, since):
        return [told.at for told in self.told if told.by == deployment and told.at >= since]


@pytest.fixture
def make_pair(make_gateway, upstream, admin):
    """A gateway with a group of two, `dead` first, under a strategy."""

    def make(strategy):
        gateway = make_gateway(AILB_UNPRICED="allow").start()
        with httpx2.Client(base_url=gateway.url, headers=admin, timeout=30, trust_env=False) as api:

            def post(path, **body):
                answer = api.post(path, json=body)
                assert answer.status_code == 201, answer.text

            post("/api/providers", slug="scripted", kind="openai", base_url=upstream.url, api_key="sk-test-0123456789")
            for name in ("dead", "good"):
                post("/api/deployments", name=name, provider="scripted", upstream_model=name)
            post("/api/models", name="pair", strategy=strategy, deployments=["dead", "good"])
        return gateway

    return make


@dataclass(frozen=True)
class Found:
    """What came to pass while `dead` was dead, and until it was back."""

    told: list[Told]
    answered: int
    """Requests that were answered while it was dead."""
    asked: list[float]
    """Seconds after its death at which it was sent a request, until it was well."""
    back_after: float


async def dead_for(seconds, gateway, admin, upstream, script):
    """Traffic while `dead` is well, then dead for so long, and until it is back."""
    async with Traffic(gateway, admin, "pair") as traffic:
        await asyncio.sleep(WELL_FIRST)
        upstream.always(script, model="dead")
        died, before = monotonic(), len(traffic.told)
        await asyncio.sleep(seconds)
        upstream.always(says(), model="dead")
        well, answered = monotonic(), len(traffic.told) - before
        back = await asyncio.to_thread(
            eventually, lambda: traffic.answers_of("dead", well)[ENOUGH - 1 :], BACK_WITHIN + 5
        )
    mine = [one.arrived for one in upstream.requests if one.body["model"] == "dead"]
    asked = [round(at - died, 2) for at in mine if died <= at < well]
    return Found(traffic.told, answered, asked, back[0] - well)


def judge(gateway, seconds, found):
    assert found.answered > 0.8 * RATE * seconds, "the clients or the machine were too slow for this test"
    assert Counter(told.status for told in found.told) == {200: len(found.told)}
    assert len(found.asked) <= MOST_A_MINUTE, found.asked
    assert found.back_after <= BACK_WITHIN
    eventually(lambda: open_requests(gateway.kinds()) == {}, 20)


def test_soon_left_alone_and_soon_back(make_pair, upstream, admin):
    """It recovers right after the first probe has failed: the longest way back there is."""
    gateway = make_pair("failover")
    judge(gateway, 8, asyncio.run(dead_for(8, gateway, admin, upstream, refuses(500))))


@pytest.mark.long
@pytest.mark.parametrize("death", DEAD)
@pytest.mark.parametrize("strategy", ["load_balanced", "failover", "round_robin", "latency_optimized"])
def test_six_requests_in_a_minute_and_back_within_fifteen_seconds(make_pair, upstream, admin, strategy, death):
    gateway = make_pair(strategy)
    judge(gateway, 60, asyncio.run(dead_for(60, gateway, admin, upstream, DEAD[death])))
