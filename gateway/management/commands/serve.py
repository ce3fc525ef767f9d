"""`manage.py serve`: prepare, then run HTTP, gRPC and jobs until one SIGTERM or Ctrl-C."""

import os
import shutil
import signal
import socket
import sys
import threading
from argparse import ArgumentParser
from typing import Any

import structlog
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.db import connections

from ailb_project import bootstrap, http_server
from ailb_project.children import Children
from gateway import first_run

log = structlog.get_logger()


class Command(BaseCommand):
    help = "Run the gateway: applies migrations, then serves HTTP, gRPC and jobs until SIGTERM or Ctrl-C."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--workers", type=int, default=1, help="HTTP processes; more than one needs REDIS_URL")
        parser.add_argument("--server", choices=["uvicorn", "daphne"], default="uvicorn")
        parser.add_argument("--no-grpc", action="store_true", help="do not start the gRPC server")
        parser.add_argument("--no-jobs", action="store_true", help="a Celery worker and beat run the jobs")

    def handle(self, *args: Any, **options: Any) -> None:
        ended = threading.Event()
        # After a graceful end uvicorn raises its signal again: by then it has been obeyed. Before, it ends the start.
        serving = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: ended.set() if serving.is_set() else sys.exit(0))
        listening = self._prepare(options)
        children = Children(_commands(options, listening.fileno()), pass_fds=(listening.fileno(),))
        children.start()
        serving.set()
        log.info("listening", host=settings.ENV.HOST, port=settings.ENV.HTTP_PORT, server=options["server"])
        try:
            _serve(options, listening, ended)
        finally:
            children.stop()

    def _prepare(self, options: dict[str, Any]) -> socket.socket:
        if options["workers"] < 1:
            raise CommandError(f"--workers: got {options['workers']}; takes 1 or more")
        if options["workers"] > 1 and options["server"] == "daphne":
            raise CommandError("--workers: daphne runs one process; takes 1, or --server uvicorn")
        try:
            # First of all: a port that is taken must not be found out after the database was changed.
            listening = http_server.listen()
        except OSError:
            env = settings.ENV
            raise CommandError(f"HTTP_PORT: got {env.HTTP_PORT}; takes a free port on {env.HOST}") from None
        try:
            text = bootstrap.prepare(workers=options["workers"])
        except bootstrap.StartRefused as error:
            raise CommandError(str(error)) from None
        connections.close_all()
        if text is not None:
            first_run.show(text, settings.DATA_DIR)
        return listening


def _commands(options: dict[str, Any], listening: int) -> list[list[str]]:
    """The management commands that run beside, or for several workers instead of, this process's own HTTP."""
    wanted = []
    if options["workers"] > 1:
        # Emptied at each start: what an earlier run counted is not this one's.
        folder = settings.DATA_DIR / "run" / "metrics"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, mode=0o700)
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)
        wanted += [["serve_http", "--fd", str(listening)]] * options["workers"]
    if not options["no_jobs"]:
        wanted.append(["run_jobs"])
    if not options["no_grpc"]:
        wanted.append(["run_grpc"])
    return wanted


def _serve(options: dict[str, Any], listening: socket.socket, ended: threading.Event) -> None:
    if options["workers"] > 1:
        ended.wait()
    elif options["server"] == "daphne":
        from ailb_project import daphne_server

        listening.close()  # daphne binds for itself
        daphne_server.run()
    elif not http_server.run(listening):
        raise CommandError("The gateway could not be started; the log says why.")
