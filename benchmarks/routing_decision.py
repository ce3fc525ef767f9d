"""What a routing decision costs: `python -m benchmarks.routing_decision`.

The whole of `gateway.planning.plan`, and the first deployment of what it returns, over 100 healthy deployments, by each
strategy; in this process, the garbage collector as the data plane has it. Times are the thread's CPU time, collections
included: on a busy machine the clock on the wall would tell of others. Beside it stands a yardstick of the same run,
parsing the request's half kilobyte of JSON, so that figures of two machines can be compared. Ends with status 0 whether
or not the bars were met.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import random
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.bars import verdict
from benchmarks.measure import Strangers
from benchmarks.processes import pinned_to
from benchmarks.scenarios import chat_body
from benchmarks.targets import Cores

if TYPE_CHECKING:
    from billing.pricebook import Book
    from gateway.types import Deployment

DEPLOYMENTS = 100
MOST_US = 50.0  # at p99
WARM_UP = 2000  # decisions before any is timed: imports, the price book's memo
BUSY = 3  # requests in flight at a deployment, on the average
SESSIONS = 50  # conversations whose providers may hold a prompt cache

Decide = Callable[[int], Awaitable[object]]
"""Makes one decision; the argument is its number."""


@dataclass(frozen=True)
class Times:
    """Microseconds, by nearest rank."""

    p50: float
    p99: float

    @classmethod
    def of(cls, nanoseconds: Sequence[int]) -> Times:
        ranked = sorted(nanoseconds)
        p50, p99 = (ranked[-(-len(ranked) * percent // 100) - 1] / 1000 for percent in (50, 99))
        return cls(p50, p99)


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    strangers = Strangers()
    cores = Cores.available()
    with tempfile.TemporaryDirectory(prefix="ailb-bench-") as folder, pinned_to([cores.server]):
        _set_up_django(Path(folder))
        asyncio.run(_measure(options.decisions))
    print(f"other processes of the machine took {strangers.cores():.2f} of {len(cores.all)} cores meanwhile")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.routing_decision", description=__doc__)
    parser.add_argument("--decisions", type=int, default=20_000, help="of each strategy (default 20000)")
    return parser


def _set_up_django(data: Path) -> None:
    """Settings, for the modules that the gateway's import; nothing is read from a database."""
    os.environ |= {"DJANGO_SETTINGS_MODULE": "ailb_project.settings", "AILB_DATA_DIR": str(data)}
    import django

    django.setup()


async def _measure(decisions: int) -> None:
    from gateway.routing import strategies

    body = chat_body("all")
    yardstick = await _timed(_yardstick(body), decisions)
    print(f"{decisions} decisions each, over {DEPLOYMENTS} healthy deployments; bar: {MOST_US:g} µs at p99")
    print(_told(f"parsing {len(body)} bytes of JSON", yardstick))
    for strategy in strategies():
        for title, sessions in ((strategy, 0), (f"{strategy}, in sessions", SESSIONS)):
            times = await _timed(_decision(strategy, sessions), decisions)
            multiple = f"{times.p50 / yardstick.p50:5.1f} x parsing"
            print(f"{_told(title, times)}, {multiple}; {verdict(times.p99, MOST_US)}", flush=True)


def _told(title: str, times: Times) -> str:
    return f"{title:34} p50 {times.p50:6.1f}  p99 {times.p99:6.1f} µs"


async def _timed(decide: Decide, number: int) -> Times:
    """Each decision on its own, after a warm-up; what is alive by then is left out of collections, as in the gateway
    (`gateway.plane.open_plane`).
    """
    for n in range(WARM_UP):
        await decide(n)
    gc.collect()
    gc.freeze()
    clock, taken = time.thread_time_ns, []
    for n in range(number):
        before = clock()
        await decide(n)
        taken.append(clock() - before)
    gc.unfreeze()
    return Times.of(taken)


def _yardstick(body: str) -> Decide:
    encoded, decode = body.encode(), msgspec.json.decode

    async def parse(_: int) -> object:
        return decode(encoded)

    return parse


# ── what is decided: all that knows the gateway's own types ─────────────────────────────────────────────────────────


def _decision(strategy: str, sessions: int) -> Decide:
    """A decision by `strategy`, of requests without a session or of so many sessions in turn."""
    from gateway import planning
    from gateway.circuits_memory import MemoryCircuits
    from gateway.registry import Pool, Route
    from gateway.types import ChatRequest

    rng = random.Random(1)
    deployments = tuple(_deployment(n, rng) for n in range(DEPLOYMENTS))
    route = Route("all", (Pool("all", deployments, strategy),))
    signals = planning.Health(circuits=MemoryCircuits(), rng=rng)
    book = _book(deployments)
    body = msgspec.json.decode(chat_body("all"))

    def request(session: int | None) -> ChatRequest:
        return ChatRequest(
            body=body, model="all", stream=True, include_usage=False, n=1, max_output=body["max_tokens"],
            session_id=None if session is None else f"session-{session}", rag_collection=None, rag_top_k=3,
            routing_strategy=None, tags=(), end_user=None,
        )  # fmt: skip

    def lived_through(deployment: Deployment) -> None:
        """Requests in flight, and a pace."""
        for _ in range(rng.randrange(2 * BUSY)):
            signals.started(deployment.name)
        signals.measured(deployment.name, first=rng.uniform(0.2, 2.0), whole=rng.uniform(2.0, 9.0), tokens=200)

    for deployment in deployments:
        lived_through(deployment)
    requests = [request(n) for n in range(sessions)] or [request(None)]

    async def decide(number: int) -> object:
        asked = requests[number % len(requests)]
        plan = await planning.plan(route, asked, "user:alice", signals=signals, book=book, default="load_balanced")
        if plan.key is not None:
            signals.holders.served(plan.key, plan.first.name)
        return plan.first

    return decide


def _deployment(number: int, rng: random.Random) -> Deployment:
    from gateway.types import Deployment, ProviderConfig

    provider = ProviderConfig(
        id=number, slug=f"provider-{number}", kind="openai", base_url="http://127.0.0.1:9/v1", headers={},
        price_book=f"provider-{number}", connect_timeout=5.0, first_byte_timeout=60.0, idle_timeout=60.0,
        trusted_network=True,
    )  # fmt: skip
    return Deployment(
        name=f"deployment-{number}", provider=provider, upstream_model="gpt-4o-mini", weight=rng.randint(1, 10),
        priority=rng.randint(0, 3), max_output=None, context_window=None,
    )  # fmt: skip


def _book(deployments: Sequence[Deployment]) -> Book:
    """A price at each, no two alike."""
    from billing.pricebook import Book, PriceRow

    long_ago = datetime(2020, 1, 1, tzinfo=UTC)
    return Book(
        PriceRow(
            id=n, provider=deployment.provider.price_book, model=deployment.upstream_model, deployment="", match=None,
            source="config", effective_from=long_ago, effective_until=None, daily_from=None, daily_until=None,
            input=Decimal(n + 1) / 10, output=Decimal(2 * n + 3) / 10, cached_input=None, cache_write_5m=None,
            cache_write_1h=None, reasoning=None, audio_input=None, audio_output=None, request=Decimal(0), tiers=[],
            service_tiers={},
        )
        for n, deployment in enumerate(deployments)
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
