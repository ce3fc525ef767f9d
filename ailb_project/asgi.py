"""The ASGI application: inference and probes go to consumers, everything else to Django."""

import os
from typing import Any

from channels.routing import ProtocolTypeRouter, URLRouter
from django.core.asgi import get_asgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "ailb_project.settings")
django_application = get_asgi_application()

from django.conf import settings  # noqa: E402
from django.urls import path, re_path  # noqa: E402

from gateway import health  # noqa: E402
from gateway.consumers import ChatConsumer, CountTokensConsumer, MessagesConsumer  # noqa: E402
from gateway.lifespan import lifespan  # noqa: E402

http = URLRouter(
    [
        path("v1/chat/completions", ChatConsumer.as_asgi()),
        path("v1/messages", MessagesConsumer.as_asgi()),
        path("v1/messages/count_tokens", CountTokensConsumer.as_asgi()),
        path("livez", health.Livez.as_asgi()),
        path("readyz", health.Readyz.as_asgi()),
        path("healthz", health.Healthz.as_asgi()),
        path("metrics", health.Metrics.as_asgi()),
        re_path("", django_application),  # type: ignore[arg-type]  # Channels' router takes ASGI applications
    ]
)


# Whole paths: found without matching pattern after pattern, 5 µs of a request that has none to spare.
_straight = {f"/{route.pattern}": route.callback for route in http.routes if str(route.pattern)}


async def dispatch(scope: Any, receive: Any, send: Any) -> None:
    """The consumer of this very path, else whatever the router finds."""
    await _straight.get(scope["path"], http)(scope, receive, send)


def _with_cors(application: object) -> object:
    """Browsers of the origins that AILB_CORS_ORIGINS names may call; without any nothing is wrapped."""
    origins = settings.ENV.AILB_CORS_ORIGINS
    if not origins:
        return application
    from starlette.middleware.cors import CORSMiddleware

    return CORSMiddleware(
        application,  # type: ignore[arg-type]
        allow_origins=list(origins),
        allow_methods=["GET", "POST"],
        allow_headers=["*"],
        expose_headers=["*"],
    )


application = ProtocolTypeRouter({"http": _with_cors(dispatch), "lifespan": lifespan})
