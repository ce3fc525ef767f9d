"""`manage.py serve_http`: one of several HTTP processes, started by `serve --workers N`."""

import os
import signal
import socket
import threading
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand

from ailb_project import http_server
from ailb_project.children import until_parent_dies


class Command(BaseCommand):
    help = "Serve HTTP on a socket that the parent listens on. Started by `serve --workers N`."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--fd", type=int, required=True, help="the listening socket's file descriptor")

    def handle(self, *args: Any, **options: Any) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            # uvicorn raises its signal again after a graceful end: by then it has been obeyed.
            signal.signal(number, signal.SIG_IGN)
        gone = until_parent_dies()
        threading.Thread(target=_end_with, args=(gone,), name="ailb-orphaned", daemon=True).start()
        http_server.run(socket.socket(fileno=options["fd"]))


def _end_with(parent_gone: threading.Event) -> None:
    parent_gone.wait()
    os.kill(os.getpid(), signal.SIGTERM)
