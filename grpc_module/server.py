"""The gRPC surface as it is today: standard health checking and server reflection. MarchProxy's ModuleService is to
come, and nothing is declared before it is there.

The health of the whole ("") is the truth about the gateway, not about this process: SERVING while the database answers
and at least one gateway process has a fresh heartbeat in it.
"""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Final

import grpc
import structlog
from django.db import DatabaseError, close_old_connections, connections
from django.utils import timezone
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from gateway.models import GatewayProcess

log = structlog.get_logger()

_FRESH: Final = timedelta(seconds=5)
"""Heartbeats come once a second; five missed ones are no accident."""
_CHECK_SECONDS: Final = 1.0
_PATIENCE: Final = 2.0
"""Seconds that the database may take to answer before it counts as out of reach."""
_DRAIN_SECONDS: Final = 2.0
"""What is under way at the end has this long. Only a Watch uses it up, and it has been told by then."""

SERVING: Final = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING: Final = health_pb2.HealthCheckResponse.NOT_SERVING


class PortTaken(Exception):
    """The address cannot be listened on."""


def gateway_serves() -> bool:
    """Whether a gateway process lives and the database says so."""
    close_old_connections()
    fresh = timezone.now() - _FRESH
    try:
        return GatewayProcess.objects.filter(stopped_at=None, heartbeat_at__gte=fresh).exists()
    except DatabaseError:
        connections.close_all()
        return False


class ModuleServer:
    """Listens from `start` on, tells the gateway's health in `run`, ends in `stop`."""

    def __init__(self, check: Callable[[], bool] = gateway_serves) -> None:
        self._check = check
        # One thread, so that the checks keep one database connection.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ailb-grpc-health")
        self._health = health.aio.HealthServicer()
        self._serving: bool | None = None
        # Without this a second server shares the port in silence and gets half of the calls.
        self._server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)

    async def start(self, host: str, port: int) -> int:
        """Returns the port, which 0 lets the system choose. Raises `PortTaken`."""
        try:
            bound = self._server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
        except RuntimeError:
            raise PortTaken from None
        await self._tell(False)  # the servicer's own beginning is SERVING
        await self._server.start()
        return bound

    async def run(self, stopping: asyncio.Event, parent_gone: threading.Event) -> None:
        """Check once a second, until one of the two."""
        check: asyncio.Future[bool] | None = None
        while not (stopping.is_set() or parent_gone.is_set()):
            check = check or asyncio.get_running_loop().run_in_executor(self._thread, self._check)
            done, _ = await asyncio.wait({check}, timeout=_PATIENCE)
            await self._tell(bool(done) and check.result())
            check = None if done else check
            try:
                await asyncio.wait_for(stopping.wait(), _CHECK_SECONDS)
            except TimeoutError:
                continue

    async def stop(self) -> None:
        """Say NOT_SERVING, take nothing new, let end what runs."""
        await self._health.enter_graceful_shutdown()
        await self._server.stop(_DRAIN_SECONDS)
        self._thread.submit(connections.close_all)
        self._thread.shutdown(wait=False)

    async def _tell(self, serving: bool) -> None:
        if serving != self._serving:
            log.info("grpc_health", serving=serving)
        self._serving = serving
        await self._health.set("", SERVING if serving else NOT_SERVING)
