"""kill -9 under load: every answer that a client received is on the ledger, and nothing stays open."""

import asyncio
import json
import time

import aiohttp

from tests.support.serving import ADMIN_KEY, open_requests
from tests.support.upstream import says
from tests.support.waiting import eventually
from tests.system.conftest import chat, openai_settings

HEADERS = {"authorization": f"Bearer {ADMIN_KEY}"}


class Load:
    """Clients that ask until the gateway dies, and write down what they received."""

    def __init__(self, url):
        self._url = url
        self.plain = []
        """Request ids of plain answers that were received whole."""
        self.begun = []
        """Of streams whose headers came."""
        self.whole = []
        """Of streams that came to their `[DONE]`."""

    async def run(self, clients, until):
        async with aiohttp.ClientSession(headers=HEADERS) as session:
            await asyncio.gather(*(self._ask(session, n % 2 == 0, until) for n in range(clients)))

    async def _ask(self, session, stream, until):
        while not until.is_set():
            try:
                async with session.post(f"{self._url}/v1/chat/completions", json=chat(stream=stream)) as response:
                    assert response.status == 200, await response.text()
                    request_id = response.headers["x-request-id"]
                    if stream:
                        self.begun.append(request_id)
                    body = await response.read()
                (self.whole if stream else self.plain).append(request_id)
                assert body
            except (aiohttp.ClientError, ConnectionError):
                return


async def killed_under_load(serving, clients=30, after=1.5):
    load, until = Load(serving.url), asyncio.Event()
    running = asyncio.create_task(load.run(clients, until))
    await asyncio.sleep(after)
    await asyncio.to_thread(serving.kill)
    until.set()
    await running
    return load


def test_every_answer_has_its_row_and_every_orphan_is_closed(serving, upstream):
    # Streams that take a while, so that many are in the middle when it comes.
    upstream.always(says(*["word"] * 5, delay=0.03))
    load = asyncio.run(killed_under_load(serving, after=1.5))
    assert len(load.plain) >= 10
    assert len(load.begun) > len(load.whole) > 0, "some streams were cut in the middle"

    before = serving.kinds()
    received = {*load.plain, *load.begun}
    assert received - set(before) == set(), "answers that are not on the ledger"
    orphans = {request for request, kinds in before.items() if kinds == ["hold"]}
    assert orphans, "some requests were in flight"

    serving.start()  # ready means: what the dead process held is closed
    after = serving.kinds()
    assert open_requests(after) == {}
    assert set(after) == set(before)
    closed = serving.rows(
        "SELECT request_id, kind, status, estimated, process_id, cost_usd, prompt_tokens, completion_tokens "
        "FROM billing_ledgerentry WHERE process_id = 'sweeper'"
    )
    assert {row[0] for row in closed} == orphans
    assert {row[1:5] for row in closed} == {("settlement", 500, 1, "sweeper")}
    assert all(cost > 0 and prompt > 0 and completion > 0 for *_, cost, prompt, completion in closed)
    # What was settled before stays as it was.
    settled = serving.rows(
        "SELECT count(*) FROM billing_ledgerentry WHERE kind = 'settlement' AND process_id <> 'sweeper'"
    )
    assert settled[0][0] == len(before) - len(orphans)
    assert serving.stop() == 0


def test_killed_again_and_again_nothing_is_lost_or_doubled(serving, upstream):
    upstream.always(says("a", "b", delay=0.02))
    received = set()
    for _ in range(2):
        load = asyncio.run(killed_under_load(serving, clients=10, after=0.5))
        received |= {*load.plain, *load.begun}
        serving.start()
    kinds = serving.kinds()
    assert received <= set(kinds)
    assert open_requests(kinds) == {}


def test_the_job_closes_orphans_without_a_restart(serving, upstream):
    """`run_jobs`, or a Celery worker, on the same folder sees that the process is gone."""
    upstream.always(says(*["word"] * 50, delay=0.1))

    async def ask():
        async with aiohttp.ClientSession(serving.url, headers=HEADERS) as session:
            response = await session.post("/v1/chat/completions", json=chat(stream=True))
            await response.content.readany()
            await asyncio.to_thread(serving.kill)

    asyncio.run(ask())
    assert open_requests(serving.kinds())
    told = serving.python("from gateway.tasks import recover; print(recover())")
    assert told.strip().splitlines()[-1] == "1"
    assert open_requests(serving.kinds()) == {}


def test_the_budget_knows_what_was_spent_before_the_crash(make_gateway, upstream):
    serving = make_gateway(**openai_settings(upstream)).start()
    secret = serving.make_key("--user", "alice", "--monthly-dollars", "0.015")
    upstream.always(says(usage={"prompt_tokens": 1000, "completion_tokens": 12_000}))  # gpt-4o-mini: 0.00735 dollars

    async def ask():
        headers = {"x-api-key": secret}
        async with aiohttp.ClientSession(serving.url, headers=headers) as session:
            response = await session.post("/v1/chat/completions", json=chat(max_tokens=12_000))
            return response.status, json.loads(await response.read())

    assert asyncio.run(ask())[0] == 200
    eventually(lambda: open_requests(serving.kinds()) == {})
    serving.kill()
    serving.start()
    status, body = asyncio.run(ask())
    assert status == 402, body
    assert "used $0.00735" in body["error"]["message"]


def test_a_lock_that_was_left_behind_keeps_nobody_out(serving, upstream):
    serving.kill()
    started = time.monotonic()
    serving.start()
    assert time.monotonic() - started < 30
    assert serving.stop() == 0
