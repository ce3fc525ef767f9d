"""A budget that many spend at once over several processes: what is on the ledger stays within it, to the last token."""

import asyncio
import random
import re
from collections import Counter

import aiohttp
import psycopg
import pytest

from tests.support.redis_server import OwnRedis
from tests.support.serving import SECRETS, Serving, open_requests
from tests.support.upstream import delta, refuses, says, sends
from tests.support.waiting import eventually
from tests.system.conftest import chat, openai_settings

# The prompt is 9 tokens by count; each request holds those and 10 of output at least, and uses just that where it comes
# to its end.
EACH = 19
USAGE = {"prompt_tokens": 9, "completion_tokens": 10, "total_tokens": EACH}
# Besides answers: nobody could be asked, the budget, the upstream, a Redis that was slow on a busy machine.
EXPECTED = {200, 402, 502, 503, "left"}


def mixed(dice: random.Random):
    """An upstream that fails, cuts streams, and is fast or slow."""

    async def script(call):
        chance = dice.random()
        if chance < 0.05:
            await refuses(500)(call)
        elif chance < 0.08 and call.wants_stream:
            await sends(delta("Hello"), 0.05, end="cut")(call)
        else:
            await says("Hello", " there", usage=USAGE, delay=dice.choice([0.0, 0.05, 0.3]))(call)

    return script


async def crowd(gateway: Serving, secret: str, number: int, dice: random.Random) -> Counter[int | str]:
    """So many requests at once, plain and streams; some clients leave in the middle. How they were answered."""
    headers = {"x-api-key": secret, "connection": "close"}  # a connection each: the kernel gives them to all workers
    timeout = aiohttp.ClientTimeout(60)
    async with aiohttp.ClientSession(
        gateway.url, headers=headers, timeout=timeout, connector=aiohttp.TCPConnector(limit=0)
    ) as session:

        async def ask() -> int | str:
            patience = dice.choice([None] * 8 + [0.05, 0.4])
            body = chat(stream=dice.random() < 0.5, max_tokens=10)
            try:
                async with asyncio.timeout(patience), session.post("/v1/chat/completions", json=body) as response:
                    await response.read()
                    return response.status
            except (TimeoutError, aiohttp.ClientPayloadError):
                return "left"

        return Counter(await asyncio.gather(*(ask() for _ in range(number))))


async def until_used_up(gateway: Serving, secret: str) -> int:
    """One request after the other; how many were served."""
    served = 0
    async with aiohttp.ClientSession(gateway.url, headers={"x-api-key": secret}) as session:
        while True:
            async with session.post("/v1/chat/completions", json=chat(max_tokens=10)) as response:
                if response.status == 402:
                    return served
                if response.status == 200:
                    served += 1
                else:
                    assert response.status == 503, await response.text()
                    await asyncio.sleep(0.1)


def make_budgets(gateway: Serving, requests: int) -> str:
    """A key's for so many requests, and one of everybody in dollars; the key's secret."""
    program = f"""
from decimal import Decimal
from billing.services import set_budget
from keys.actors import COMMAND
from keys.services import create_key
set_budget(actor=COMMAND, scope="organisation", owner="", period="total", limit_dollars=Decimal(100), limit_tokens=None)
print(create_key(actor=COMMAND, name="shared", monthly_quota_tokens={requests * EACH})[1])
"""
    return gateway.python(program).strip()


def spent(rows: list[tuple[str, int | None, int | None]]) -> int:
    """Tokens."""
    return sum((prompt or 0) + (output or 0) for kind, prompt, output in rows if kind != "hold")


ENTRIES = "SELECT kind, prompt_tokens, completion_tokens FROM billing_ledgerentry"


def judge(gateway: Serving, entries, secret: str, requests: int, at_once: int, upstream, seed: int) -> None:
    """Let a crowd at it, then the rest one by one; `entries` reads the ledger."""
    dice = random.Random(seed)
    upstream.always(mixed(dice))
    answers = asyncio.run(crowd(gateway, secret, at_once, dice))
    assert set(answers) <= EXPECTED, answers
    limit = requests * EACH
    assert answers[200] * EACH <= limit
    assert answers[200] > 0, answers
    eventually(lambda: open_requests(kinds_of(entries)) == {}, 20, told=lambda: open_requests(kinds_of(entries)))
    assert spent(entries(ENTRIES)) <= limit, answers
    upstream.always(says(usage=USAGE))
    asyncio.run(until_used_up(gateway, secret))
    eventually(lambda: open_requests(kinds_of(entries)) == {}, 20)
    left = limit - spent(entries(ENTRIES))
    assert 0 <= left < EACH, f"{left} tokens are left: something stays reserved, or the budget was overshot"
    assert gateway.stop() == 0
    verified = gateway.manage("verify_counters")
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert_at_rest(verified.stdout)


def kinds_of(entries) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for request, kind in entries("SELECT request_id, kind FROM billing_ledgerentry ORDER BY id"):
        found.setdefault(request, []).append(kind)
    return found


def assert_at_rest(table: str) -> None:
    """Nothing is open, reserved or leased; with Redis each counter shows what the ledger does."""
    _, *rows = [line for line in table.splitlines() if re.match(r"(budget|\d+) ", line)]
    assert len(rows) == 2
    for row in rows:
        _, _, ledger, open_, counter, reserved, leased, *_ = [*re.split(r"  +", row), ""]
        assert open_ == "$0 0 tokens", row
        if counter != "-":
            assert (counter, reserved, leased) == (ledger, "$0 0 tokens", "$0 0 tokens"), row


@pytest.fixture
def own_redis(tmp_path):
    server = OwnRedis(tmp_path)
    server.start()
    yield server
    server.kill()


def over_processes(make_gateway, postgres, own_redis, upstream, *, workers, requests, at_once, seed):
    settings = {"DATABASE_URL": postgres, "REDIS_URL": own_redis.url, **SECRETS, **openai_settings(upstream)}
    gateway = make_gateway("data", empty=True, **settings).start("--workers", str(workers))
    secret = make_budgets(gateway, requests)
    with psycopg.connect(postgres, autocommit=True) as database:
        judge(
            gateway, lambda query: database.execute(query).fetchall(), secret, requests, at_once, upstream, seed
        )  # fmt: skip
        processes = database.execute("SELECT count(DISTINCT process_id) FROM billing_ledgerentry").fetchone()
    assert processes is not None
    if processes[0] == 1:
        pytest.skip("one process served all: the kernel gave it every connection, and nothing was shared")


def in_one_process(make_gateway, upstream, *, requests, at_once, seed):
    gateway = make_gateway(**openai_settings(upstream)).start()
    secret = make_budgets(gateway, requests)
    judge(gateway, gateway.rows, secret, requests, at_once, upstream, seed)


@pytest.mark.postgres
@pytest.mark.redis
def test_over_two_processes(make_gateway, postgres, own_redis, upstream):
    over_processes(make_gateway, postgres, own_redis, upstream, workers=2, requests=40, at_once=120, seed=1)


@pytest.mark.postgres
@pytest.mark.redis
@pytest.mark.long
@pytest.mark.parametrize("seed", range(4))
def test_five_hundred_over_four_processes(make_gateway, postgres, own_redis, upstream, seed):
    over_processes(make_gateway, postgres, own_redis, upstream, workers=4, requests=150, at_once=500, seed=seed)


def test_in_one_process(make_gateway, upstream):
    in_one_process(make_gateway, upstream, requests=40, at_once=120, seed=1)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(2))
def test_five_hundred_in_one_process(make_gateway, upstream, seed):
    in_one_process(make_gateway, upstream, requests=150, at_once=500, seed=seed)
