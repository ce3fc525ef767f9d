"""Several processes on one database: refused without Redis; a change by another is in force within a second."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import aiohttp
import httpx2
import psutil
import pytest

from tests.support.redis_server import OwnRedis
from tests.support.serving import SECRETS, open_requests
from tests.support.upstream import delta, says, sends
from tests.support.waiting import eventually
from tests.system.conftest import chat, openai_settings

SLACK = 0.4  # seconds for a busy machine on top of the promised one: a request's own time, the clocks' reading


def refused(gateway, within=60):
    """The one line with which a start was refused."""
    assert gateway.wait(within) != 0
    lines = [line for line in gateway.told().splitlines() if not line.startswith("{")]
    (line,) = lines
    return line


class TestWithoutRedis:
    def test_a_second_process_is_refused_with_one_line(self, serving, make_gateway):
        second = make_gateway().start(ready=False)  # the same folder, another port
        line = refused(second)
        assert line.startswith("CommandError: REDIS_URL: got nothing; another gateway process (")
        assert str(serving.process.pid) in line
        assert serving.status("/readyz") == 200

    def test_several_workers_are_refused(self, make_gateway):
        line = refused(make_gateway().start("--workers", "2", ready=False))
        assert line.startswith("CommandError: --workers: got 2; takes 1")
        assert "REDIS_URL" in line

    def test_after_the_first_has_ended_the_second_may(self, serving, make_gateway):
        serving.stop()
        assert make_gateway().start().stop() == 0

    def test_of_two_that_start_at_once_one_serves(self, make_gateway):
        both = [make_gateway("data"), make_gateway("data")]
        for gateway in both:
            gateway.start(ready=False)
        # Until each of them serves or has ended.
        eventually(lambda: all(g.process.poll() is not None or g.status("/readyz") == 200 for g in both), 60)
        assert sorted(gateway.process.poll() is None for gateway in both) == [False, True]

    @pytest.mark.postgres
    def test_with_postgresql_one_with_a_folder_of_its_own_is_refused_too(self, postgres, make_gateway, upstream):
        settings = {"DATABASE_URL": postgres, **SECRETS, **openai_settings(upstream)}
        make_gateway("one", empty=True, **settings).start()
        second = make_gateway("two", empty=True, **settings).start(ready=False)
        eventually(lambda: second.process.poll() is not None or second.status("/readyz") == 200, 30)
        assert second.status("/readyz") is None, "it serves beside the first, each with limits of its own"
        assert "REDIS_URL" in refused(second)


class Hammer:
    """A client that asks without a pause and writes down when each request was sent and how it was answered."""

    def __init__(self, url, secret):
        self._url = url
        self._headers = {"authorization": f"Bearer {secret}"}
        self._stop = threading.Event()
        self.seen = []

    def __enter__(self):
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))
        self._thread.start()
        eventually(lambda: any(status == 200 for _, status in self.seen))
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    async def _run(self):
        async with aiohttp.ClientSession(headers=self._headers) as session:
            await asyncio.gather(*(self._ask(session) for _ in range(3)))

    async def _ask(self, session):
        while not self._stop.is_set():
            sent = time.time()
            async with session.post(f"{self._url}/v1/chat/completions", json=chat()) as response:
                await response.read()
                self.seen.append((sent, response.status))
            await asyncio.sleep(0.002)

    def wait_for(self, status):
        eventually(lambda: self.seen[-1][1] == status, 10)

    def last(self, status):
        """When the last request that was answered so was sent."""
        return max(sent for sent, answered in self.seen if answered == status)


REVOKE = """
import time
from keys.actors import COMMAND
from keys.models import VirtualKey
from keys.services import revoke_key
revoke_key(actor=COMMAND, key=VirtualKey.objects.get(name="test"))
print(time.time())
"""
BULK = """
import time
from django.utils import timezone
from keys.models import VirtualKey
VirtualKey.objects.filter(name="test").update(revoked_at=timezone.now())
print(time.time())
"""


class TestAChangeByAnotherProcess:
    @pytest.mark.parametrize("program", [REVOKE, BULK], ids=["service", "bulk update"])
    def test_a_revoked_key_is_dead_within_a_second(self, serving, upstream, program):
        secret = serving.make_key("--user", "alice")
        with Hammer(serving.url, secret) as hammer:
            committed = float(serving.python(program))
            hammer.wait_for(401)
            time.sleep(0.3)
        assert hammer.last(200) < committed + 1 + SLACK
        assert {status for _, status in hammer.seen} == {200, 401}
        assert hammer.seen[-1][1] == 401

    def test_a_disabled_model_is_gone_within_a_second(self, serving, upstream, admin):
        secret = serving.make_key()
        program = (
            "import time; from gateway.models import Deployment\n"
            "Deployment.objects.update(enabled=False); print(time.time())"
        )
        with Hammer(serving.url, secret) as hammer:
            committed = float(serving.python(program))
            hammer.wait_for(404)
        assert hammer.last(200) < committed + 1 + SLACK


@pytest.fixture
def own_redis(tmp_path):
    """Two installations on one Redis need a database number each: this one is alone on its server."""
    server = OwnRedis(tmp_path)
    server.start()
    yield server
    server.kill()


@pytest.mark.postgres
@pytest.mark.redis
def test_two_processes_with_redis_share_one_budget(postgres, own_redis, make_gateway, upstream):
    """Lesson 16: counters of each process multiplied the cap by their number."""
    upstream.always(says(usage={"prompt_tokens": 9, "completion_tokens": 10}, delay=0.1))
    settings = {"DATABASE_URL": postgres, "REDIS_URL": own_redis.url, **SECRETS, **openai_settings(upstream)}
    gateways = [make_gateway(name, empty=True, **settings).start() for name in ("one", "two")]
    secret = (
        gateways[0]
        .python(
            "from keys.actors import COMMAND; from keys.services import create_key\n"
            "print(create_key(actor=COMMAND, name='shared', monthly_quota_tokens=190)[1])"
        )
        .strip()
    )
    time.sleep(1.2)

    def ask(number):
        url = f"{gateways[number % 2].url}/v1/chat/completions"
        headers = {"x-api-key": secret}
        return httpx2.post(url, json=chat(max_tokens=10), headers=headers, timeout=30, trust_env=False).status_code

    with ThreadPoolExecutor(20) as pool:
        statuses = list(pool.map(ask, range(40)))
    # 503: a Redis that is slow to answer on a busy machine refuses, it does not wave through.
    assert set(statuses) <= {200, 402, 503}
    assert 402 in statuses
    assert 1 <= statuses.count(200) <= 10


@pytest.mark.redis
def test_workers_share_a_port_a_budget_and_their_metrics(own_redis, make_gateway, upstream, admin):
    upstream.always(says(usage={"prompt_tokens": 9, "completion_tokens": 10}, delay=0.1))
    gateway = make_gateway(REDIS_URL=own_redis.url, **openai_settings(upstream)).start("--workers", "2")
    secret = gateway.python(
        "from keys.actors import COMMAND; from keys.services import create_key\n"
        "print(create_key(actor=COMMAND, name='shared', monthly_quota_tokens=190)[1])"
    ).strip()
    time.sleep(1.2)

    def ask(headers):
        # A connection each: the kernel gives them to the workers in turn.
        url = f"{gateway.url}/v1/chat/completions"
        return httpx2.post(url, json=chat(max_tokens=10), headers=headers, timeout=30, trust_env=False).status_code

    with ThreadPoolExecutor(20) as pool:
        statuses = list(pool.map(lambda _: ask({"x-api-key": secret}), range(40)))
        others = list(pool.map(lambda _: ask(admin), range(40)))
    assert 1 <= statuses.count(200) <= 10
    assert set(statuses) <= {200, 402, 503}
    assert set(others) == {200}
    processes = {process for (process,) in gateway.rows("SELECT DISTINCT process_id FROM billing_ledgerentry")}
    assert len(processes) == 2
    served = statuses.count(200) + 40
    series = 'ailb_requests_total{model="gpt-4o-mini",provider="openai",status="200"}'

    def counted():
        text = httpx2.get(f"{gateway.url}/metrics", trust_env=False).text
        return next((float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(series)), 0)

    eventually(lambda: counted() == served, 5, told=counted)

    def told():
        return httpx2.get(f"{gateway.url}/api/routing/stats", headers=admin, trust_env=False).json()

    eventually(lambda: told()["successful_requests"] == served, 5, told=told)
    assert gateway.stop() == 0
    assert open_requests(gateway.kinds()) == {}
    eventually(lambda: not gateway.is_running())


@pytest.mark.redis
def test_a_worker_that_dies_is_replaced_and_its_holds_are_closed(own_redis, make_gateway, upstream, admin):
    gateway = make_gateway(REDIS_URL=own_redis.url, **openai_settings(upstream)).start("--workers", "2", jobs=True)
    upstream.will(sends(delta("Hi"), end="stall"))
    url = f"{gateway.url}/v1/chat/completions"
    with (
        httpx2.Client(headers=admin, timeout=30, trust_env=False) as client,
        client.stream("POST", url, json=chat(stream=True)) as response,
    ):
        next(response.iter_raw())
        workers = [child for child in psutil.Process(gateway.process.pid).children() if "serve_http" in child.cmdline()]
        assert len(workers) == 2
        for worker in workers:
            worker.kill()
    eventually(lambda: gateway.status("/readyz") == 200, 30)
    eventually(lambda: open_requests(gateway.kinds()) == {}, 30, told=gateway.kinds)
    assert httpx2.post(url, json=chat(), headers=admin, trust_env=False).status_code == 200
    assert gateway.stop() == 0
