"""The HTTP server of one process: uvicorn, told what the gateway needs of it."""

import socket
from typing import Any

import uvicorn
from django.conf import settings

from ailb_project.http_protocol import Protocol
from gateway.lifespan import open_now


class Server(uvicorn.Server):
    """uvicorn, whose probes say `draining` from the signal on."""

    def handle_exit(self, sig: int, frame: Any) -> None:
        plane = open_now()
        if plane is not None:
            plane.draining = True
        super().handle_exit(sig, frame)


def run(listening: socket.socket) -> bool:
    """Serve on `listening` until SIGTERM or Ctrl-C. Returns whether it ever started."""
    from ailb_project.asgi import application

    config = uvicorn.Config(
        application,
        loop="uvloop",
        http=Protocol,
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=int(settings.ENV.AILB_SHUTDOWN_SECONDS),
    )
    server = Server(config)
    server.run(sockets=[listening])
    return server.started


def listen() -> socket.socket:
    """Listen on HOST:HTTP_PORT. Raises `OSError` where the port is taken."""
    host, port = settings.ENV.HOST, settings.ENV.HTTP_PORT
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind((host, port))
    listening.listen(4096)
    return listening
