"""`manage.py run_grpc`: the gRPC server in a process of its own, which `serve` starts and stops."""

import asyncio
import os
import signal
from typing import Any

import structlog
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from ailb_project.children import until_parent_dies

# gRPC's own lines on standard error are not JSON, and say again what is raised. It reads this once, when imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from grpc_module.server import ModuleServer, PortTaken

log = structlog.get_logger()


class Command(BaseCommand):
    help = "Serve gRPC on HOST:GRPC_PORT until SIGTERM, or until standard input closes."
    requires_system_checks: list[str] = []

    def handle(self, *args: Any, **options: Any) -> None:
        host, port = settings.ENV.HOST, settings.ENV.GRPC_PORT
        try:
            asyncio.run(serve(host, port))
        except PortTaken:
            raise CommandError(f"GRPC_PORT: got {port}; takes a free port on {host}", returncode=2) from None


async def serve(host: str, port: int) -> None:
    """Serve until a signal comes or the parent dies. Raises `PortTaken`."""
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    server = ModuleServer()
    await server.start(host, port)
    log.info("grpc_listening", host=host, port=port)
    await server.run(stopping, until_parent_dies())
    await server.stop()
