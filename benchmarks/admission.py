"""What admission and hold cost: `python -m benchmarks.admission`.

From the limits to the hold, of a request whose key, user, team and organisation have a budget each and limits on
requests, tokens and concurrency: `Limits.admit`, `Holds.refuse_used_up` and `Holds.place`, the ledger's row made but
not written. In this process, and with Redis (`--redis URL`, a prefix of its own), one request after the other and eight
at once, as they come on a busy loop. What ends the request (`settle`, `leave`) is not timed; what it tells Redis is, as
it goes with the calls of the next. Times are the thread's CPU time. Beside them stands a yardstick of the same run,
parsing the request's half kilobyte of JSON. Ends with status 0 whether or not the bars were met.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import secrets
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.bars import verdict
from benchmarks.measure import Strangers
from benchmarks.processes import pinned_to
from benchmarks.scenarios import chat_body
from benchmarks.targets import Cores

if TYPE_CHECKING:
    from billing.counters.base import BudgetCounters
    from billing.counters.standing import Standing
    from gateway.types import Caller, ChatRequest, Deployment
    from keys.limits.base import Limits

MOST_US = {"in process": 60.0, "Redis": 200.0}
WARM_UP = 500
ROUNDS = 15  # the median of so many: other processes' caches are in the way of some
AT_ONCE = (1, 8)
SCOPES = (("key", "key_1"), ("user", "alice"), ("team", "red"), ("organisation", ""))

Serve = Callable[[str], Awaitable[Callable[[], None]]]
"""Admit and hold the request of this id; what it returns ends it."""


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    strangers = Strangers()
    cores = Cores.available()
    with tempfile.TemporaryDirectory(prefix="ailb-bench-") as folder, pinned_to([cores.server]):
        _set_up_django(Path(folder))
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:  # the gateway's
            runner.run(_measure(options.requests, options.redis))
    print(f"other processes of the machine took {strangers.cores():.2f} of {len(cores.all)} cores meanwhile")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.admission", description=__doc__)
    parser.add_argument("--requests", type=int, default=1000, help=f"of each of {ROUNDS} rounds (default 1000)")
    parser.add_argument("--redis", default="redis://127.0.0.1:6379/15", help="'' for none")
    return parser


def _set_up_django(data: Path) -> None:
    """Settings, for the modules that the gateway's import; nothing is read from a database."""
    os.environ |= {"DJANGO_SETTINGS_MODULE": "ailb_project.settings", "AILB_DATA_DIR": str(data)}
    import django

    django.setup()


async def _measure(requests: int, redis: str) -> None:
    body = chat_body("gpt-4o-mini").encode()
    parsing = _median([_parsing(body, requests) for _ in range(ROUNDS)])
    print(f"CPU of admission and hold, {len(SCOPES)} budgets and limits; {ROUNDS} rounds of {requests} requests")
    print(f"{f'parsing {len(body)} bytes of JSON':46} {parsing:6.1f} µs")
    for place, (limits, counters) in _stores(redis).items():
        for title, capped in (("its own cap", True), ("no cap", False)):
            serve = _serving(limits, counters, capped=capped)
            for at_once in AT_ONCE:
                took = await _timed(serve, requests, at_once)
                told = f"{place}, {title}, {at_once} at once"
                print(f"{told:46} {took:6.1f} µs, {took / parsing:5.1f} x parsing; {verdict(took, MOST_US[place])}")
        await counters.close()
        await limits.close()


def _median(figures: Sequence[float]) -> float:
    return sorted(figures)[len(figures) // 2]


def _parsing(body: bytes, times: int) -> float:
    """Microseconds each."""
    decode = msgspec.json.decode
    began = time.thread_time_ns()
    for _ in range(times):
        decode(body)
    return (time.thread_time_ns() - began) / 1000 / times


async def _timed(serve: Serve, requests: int, at_once: int) -> float:
    """Microseconds a request, the median of the rounds; collections as the gateway has them."""
    await _round(serve, WARM_UP, at_once)
    gc.collect()
    gc.freeze()
    took = [await _round(serve, requests, at_once) for _ in range(ROUNDS)]
    gc.unfreeze()
    return _median(took)


async def _round(serve: Serve, requests: int, at_once: int) -> float:
    spent = 0
    for number in range(requests // at_once):
        # Of one or of many: gathering costs a task each, which a request has anyhow.
        began = time.thread_time_ns()
        if at_once == 1:
            ends = [await serve(f"req_{number}")]
        else:
            ends = await asyncio.gather(*(serve(f"req_{number}_{n}") for n in range(at_once)))
        spent += time.thread_time_ns() - began
        for end in ends:
            end()
    return spent / 1000 / (requests // at_once * at_once)


# ── what is measured: all that knows the gateway's own types ────────────────────────────────────────────────────────


class _Paper:
    """A ledger's writer that writes nothing."""

    def hold(self, row: Any) -> asyncio.Future[None]:
        done = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done

    def put(self, row: Any) -> None:
        """Thrown away."""

    def run_in_order(self, work: Callable[[], Any]) -> None:
        work()


def _stores(redis: str) -> dict[str, tuple[Limits, BudgetCounters]]:
    from billing.counters.memory import MemoryCounters
    from keys.limits.memory import MemoryLimits

    paper: Any = _Paper()
    stores: dict[str, tuple[Limits, BudgetCounters]] = {
        "in process": (MemoryLimits(), MemoryCounters(paper, lambda *_: (Decimal(0), 0)))
    }
    if redis:
        from ailb_project.shared_redis import SharedRedis
        from billing.counters.redis import RedisCounters
        from keys.limits.redis import RedisLimits

        client = SharedRedis(redis, prefix=f"ailb-bench-{secrets.token_hex(6)}")
        stores["Redis"] = (RedisLimits(client, "gw"), RedisCounters(client, paper, "gw", _nothing_spent, leases=True))
    return stores


def _nothing_spent(*_: Any, **__: Any) -> Standing:
    from billing.counters.base import Amount
    from billing.counters.standing import Standing

    return Standing(Amount(Decimal(0), 0), (), ())


def _serving(limits: Limits, counters: BudgetCounters, *, capped: bool) -> Serve:
    from billing.holds import Facts, Holds, Outcome
    from gateway.errors import RateLimited
    from gateway.types import Usage

    holds = Holds(counters=counters, limits=limits, writer=_paper(), process_id="gw", unpriced="block")
    caller, deployment, request = _caller(), _deployment(), _request(capped=capped)
    book = _book(deployment)
    outcome = Outcome(status=200, deployment=deployment, usage=Usage(120, 60), attempts=())

    async def serve(request_id: str) -> Callable[[], None]:
        now = time.time()
        admission = await limits.admit(request_id, caller.limits)
        await holds.refuse_used_up(caller, now)
        facts = Facts(request_id, now, datetime.fromtimestamp(now, UTC), caller, None, request.model, None)
        hold = await holds.place(facts, request, (deployment,), book, deployment)

        def end() -> None:
            hold.settle(outcome)
            with suppress(RateLimited):
                limits.leave(admission)

        return end

    return serve


def _paper() -> Any:
    return _Paper()


def _caller() -> Caller:
    from gateway.types import BudgetTerms, Caller, Limit, Role

    return Caller(
        key_id="key_1", key_name="bench", user_id="alice", team="red", role=Role.MEMBER, allowed_models=None,
        limits=tuple(Limit(scope, owner, 10**9, 10**12, 10**6) for scope, owner in SCOPES),
        budgets=tuple(
            BudgetTerms(number, scope, owner, "monthly", "UTC", Decimal(10**6), 10**12)
            for number, (scope, owner) in enumerate(SCOPES)
        ),
        tags=(),
    )  # fmt: skip


def _deployment() -> Deployment:
    from gateway.types import Deployment, ProviderConfig

    provider = ProviderConfig(
        id=1, slug="openai", kind="openai", base_url="http://127.0.0.1:9/v1", headers={}, price_book="openai",
        connect_timeout=5.0, first_byte_timeout=60.0, idle_timeout=60.0, trusted_network=True,
    )  # fmt: skip
    return Deployment(
        name="gpt-4o-mini", provider=provider, upstream_model="gpt-4o-mini", weight=1, priority=0, max_output=16_384,
        context_window=None,
    )  # fmt: skip


def _request(*, capped: bool) -> ChatRequest:
    from gateway.types import ChatRequest

    body = msgspec.json.decode(chat_body("gpt-4o-mini"))
    return ChatRequest(
        body=body, model="gpt-4o-mini", stream=True, include_usage=False, n=1, max_output=500 if capped else None,
        session_id=None, rag_collection=None, rag_top_k=3, routing_strategy=None, tags=(), end_user=None,
    )  # fmt: skip


def _book(deployment: Deployment) -> Any:
    from billing.pricebook import Book, PriceRow

    return Book(
        [
            PriceRow(
                id=1, provider=deployment.provider.price_book, model=deployment.upstream_model, deployment="",
                match=None, source="config", effective_from=datetime(2020, 1, 1, tzinfo=UTC), effective_until=None,
                daily_from=None, daily_until=None, input=Decimal("0.15"), output=Decimal("0.6"),
                cached_input=Decimal("0.075"), cache_write_5m=None, cache_write_1h=None, reasoning=None,
                audio_input=None, audio_output=None, request=Decimal(0), tiers=[], service_tiers={},
            )
        ]
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
