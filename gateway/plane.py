"""The data plane of one process: what requests share, made at start and closed at the end."""

import asyncio
import gc
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import structlog
from django.conf import settings

from ailb_project.env import Env
from billing import ledger
from billing.counters.base import BudgetCounters
from billing.counters.memory import MemoryCounters
from billing.holds import Holds
from billing.ledger import LedgerWriter
from gateway import background, liveness, metrics, providers
from gateway.circuits_memory import MemoryCircuits
from gateway.deadlines import Deadlines
from gateway.planning import Health
from gateway.providers.base import Provider
from gateway.retries import AGAIN, FAILOVERS, RetryBudget
from gateway.snapshot import Snapshot, store
from gateway.statistics.publisher import Publisher
from gateway.types import ProviderConfig
from keys.limits.base import Limits
from keys.limits.memory import MemoryLimits
from keys.waiting import Queues

log = structlog.get_logger()

_PUBLISH_SECONDS = 1.0
_RETIRED_SECONDS = 5.0  # between two looks at a pool that is no longer wanted


class Plane:
    """Everything a request's path needs, and nothing per request."""

    def __init__(
        self,
        *,
        env: Env,
        pepper: bytes,
        process_id: str,
        writer: LedgerWriter,
        limits: Limits,
        counters: BudgetCounters,
        circuits: MemoryCircuits,
    ) -> None:
        self.env = env
        self.loop = asyncio.get_running_loop()
        self.pepper = pepper
        self.process_id = process_id
        self.writer = writer
        self.limits = limits
        self.circuits = circuits
        self.signals = Health(circuits=circuits)
        self.queues = Queues()
        self.deadlines = Deadlines(env.AILB_REQUEST_TIMEOUT_SECONDS)
        self.failovers = RetryBudget(*FAILOVERS)
        self.retries = RetryBudget(*AGAIN)
        self.holds = Holds(
            counters=counters, limits=limits, writer=writer, process_id=process_id, unpriced=env.AILB_UNPRICED
        )
        self.draining = False
        self._providers: dict[int, Provider] = {}
        self._retired: set[Provider] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._publisher = asyncio.get_running_loop().call_later(_PUBLISH_SECONDS, self._publish)
        metrics.circuits = lambda: circuits.states(self.snapshot().catalog.deployments)
        self._statistics = Publisher(process_id, writer, self.signals.in_flight, self.cut_off_for)

    def snapshot(self) -> Snapshot:
        return store.current()

    def cut_off_for(self) -> float:
        """Seconds that the database has been out of reach."""
        return store.seconds_cut_off()

    def provider(self, config: ProviderConfig) -> Provider:
        """The client of a configured provider, with its pool; a changed configuration gets a new one."""
        client = self._providers.get(config.id)
        if client is None or client.config is not config:
            for retired in self._retired:
                if retired.config is config:
                    return retired  # of a request that began before the change
            old, client = client, providers.vendor(config.kind)(config)
            if old is not None and old.config == config:
                # The snapshot was read again and this provider is as it was: its pool stays.
                old.config = config
                return old
            client.on_used_up = self.signals.used_up
            self._providers[config.id] = client
            if old is not None:
                self._retired.add(old)
                # Not at once: a request may have it in hand and not have begun.
                asyncio.get_running_loop().call_later(_RETIRED_SECONDS, self._close_retired, old)
        return client

    def _close_retired(self, provider: Provider) -> None:
        """Close an old pool once the last request through it has ended."""
        if provider.in_use:
            asyncio.get_running_loop().call_later(_RETIRED_SECONDS, self._close_retired, provider)
        else:
            self._retired.discard(provider)
            self.spawn(provider.close())

    def spawn(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run `work` beside the request; the shutdown waits for it."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _publish(self) -> None:
        """Hand what was counted to prometheus_client: another process may be the one that is scraped."""
        metrics.publish()
        self._publisher = asyncio.get_running_loop().call_later(_PUBLISH_SECONDS, self._publish)

    async def close(self) -> None:
        """Finish what runs beside requests, write the ledger out, let go of everything."""
        self._publisher.cancel()
        self.deadlines.close()
        metrics.circuits = dict
        while self._tasks:
            await asyncio.gather(*self._tasks, return_exceptions=True)
        self._statistics.close()
        await self.writer.stop()
        await self.holds.counters.close()
        await self.circuits.close()
        await self.limits.close()
        for provider in (*self._providers.values(), *self._retired):
            await provider.close()
        await asyncio.to_thread(self._sign_off)

    def _sign_off(self) -> None:
        store.stop_polling()
        liveness.sign_off(self.process_id)
        background.close()


async def open_plane() -> Plane:
    """Start this process's data plane. Raises `DatabaseError` where there is no database yet."""
    env: Env = settings.ENV
    data_dir: Path = settings.DATA_DIR
    loop = asyncio.get_running_loop()
    process_id = await asyncio.to_thread(liveness.signed_on, data_dir=data_dir)
    writer = await asyncio.to_thread(ledger.start, loop, data_dir=data_dir, process_id=process_id)
    heart = liveness.Heartbeat(process_id)
    await asyncio.to_thread(store.start_polling, heart.beat)
    limits, counters, circuits = _shared(env, writer, process_id, heart) if env.REDIS_URL else _alone(writer)
    plane = Plane(
        env=env, pepper=settings.KEY_PEPPER, process_id=process_id, writer=writer, limits=limits, counters=counters,
        circuits=circuits,
    )  # fmt: skip
    # What is loaded by now stays: a full collection would look through all of it, 60 ms at a time.
    gc.collect()
    gc.freeze()
    log.info("data_plane_open", process_id=process_id)
    return plane


def _alone(writer: LedgerWriter) -> tuple[Limits, BudgetCounters, MemoryCircuits]:
    """Of this process, the only one."""
    return MemoryLimits(), MemoryCounters(writer), MemoryCircuits()


def _shared(
    env: Env, writer: LedgerWriter, process_id: str, heart: liveness.Heartbeat
) -> tuple[Limits, BudgetCounters, MemoryCircuits]:
    """Limits and budgets that all gateway processes count together, and what they know of deployments."""
    from ailb_project.shared_redis import SharedRedis
    from billing.counters.redis import RedisCounters
    from gateway.circuits_redis import RedisCircuits
    from keys.limits.redis import RedisLimits

    assert env.REDIS_URL is not None
    client = SharedRedis(env.REDIS_URL.get_secret_value())
    return (
        RedisLimits(client, process_id, lambda: heart.processes),
        RedisCounters(client, writer, process_id, leases=env.AILB_BUDGETS_WITHOUT_REDIS == "lease"),
        RedisCircuits(client, process_id, settings.KEY_PEPPER),
    )
