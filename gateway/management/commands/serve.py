"""`manage.py serve`: prepare, then run HTTP and jobs until one SIGTERM or Ctrl-C."""

import signal
import sys
from argparse import ArgumentParser
from typing import Any

import structlog
import uvicorn
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.db import connections

from ailb_project import bootstrap
from ailb_project.children import Children
from gateway import first_run
from gateway.lifespan import open_now

log = structlog.get_logger()


class _Server(uvicorn.Server):
    """uvicorn, whose probes say `draining` from the signal on."""

    def handle_exit(self, sig: int, frame: Any) -> None:
        plane = open_now()
        if plane is not None:
            plane.draining = True
        super().handle_exit(sig, frame)


class Command(BaseCommand):
    help = "Run the gateway: applies migrations, then serves HTTP, gRPC and jobs until SIGTERM or Ctrl-C."
    requires_system_checks: list[str] = []  # checks are for `manage.py check`; a start has its own

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--workers", type=int, default=1, help="HTTP processes; more than one needs REDIS_URL")
        parser.add_argument("--server", choices=["uvicorn", "daphne"], default="uvicorn")
        parser.add_argument("--no-grpc", action="store_true", help="do not start the gRPC server")
        parser.add_argument("--no-jobs", action="store_true", help="a Celery worker and beat run the jobs")

    def handle(self, *args: Any, **options: Any) -> None:
        # After a graceful end uvicorn raises its signal again; by then it has been obeyed, and the exit is orderly.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, _ended)
        try:
            text = bootstrap.prepare(workers=options["workers"])
        except bootstrap.StartRefused as error:
            raise CommandError(str(error)) from None
        connections.close_all()
        if text is not None:
            first_run.show(text, settings.DATA_DIR)
        children = Children(commands(options))
        children.start()
        try:
            _serve(options)
        finally:
            children.stop()


def commands(options: dict[str, Any]) -> list[list[str]]:
    """The management commands that run beside HTTP."""
    wanted = []
    if not options["no_jobs"]:
        wanted.append(["run_jobs"])
    if not options["no_grpc"]:
        wanted.append(["run_grpc"])
    return wanted


def _ended(number: int, frame: Any) -> None:
    if not _serving:
        sys.exit(0)


_serving = False


def _serve(options: dict[str, Any]) -> None:
    global _serving
    env = settings.ENV
    from ailb_project.asgi import application

    log.info("listening", host=env.HOST, port=env.HTTP_PORT, server=options["server"])
    _serving = True
    if options["server"] == "daphne":
        from ailb_project.daphne_server import run

        run(application)
        return
    config = uvicorn.Config(
        application,
        host=env.HOST,
        port=env.HTTP_PORT,
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=int(env.AILB_SHUTDOWN_SECONDS),
        backlog=4096,
    )
    server = _Server(config)
    server.run()
    if not server.started:
        raise CommandError(f"HTTP_PORT: got {env.HTTP_PORT}; takes a free port on {env.HOST}")
