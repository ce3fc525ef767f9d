"""`serve --server daphne`: the other ASGI server, for those who run it already. Twice uvicorn's CPU a request."""

import asyncio

from daphne.endpoints import build_endpoint_description_strings
from daphne.server import Server
from django.conf import settings
from twisted.internet import reactor
from twisted.internet.defer import Deferred

from gateway import lifespan


def run() -> None:
    """Serve until SIGTERM or Ctrl-C. daphne has no lifespan, so the data plane is opened and closed from here."""
    from ailb_project.asgi import application

    server = Server(
        application,
        endpoints=build_endpoint_description_strings(host=settings.ENV.HOST, port=settings.ENV.HTTP_PORT),
        server_name="",
        http_timeout=None,
        application_close_timeout=int(settings.ENV.AILB_SHUTDOWN_SECONDS),
    )
    reactor.callWhenRunning(lambda: Deferred.fromFuture(asyncio.ensure_future(lifespan.plane())))
    reactor.addSystemEventTrigger("before", "shutdown", _close)  # type: ignore[arg-type]  # the stub lacks a name
    server.run()


def _close() -> "Deferred[None]":
    plane = lifespan.open_now()
    if plane is not None:
        plane.draining = True
    return Deferred.fromFuture(asyncio.ensure_future(lifespan.close()))
