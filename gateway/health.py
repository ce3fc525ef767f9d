"""`/livez`, `/readyz`, `/healthz`, `/metrics`: answered on the event loop, so that a stuck database stalls none."""

import asyncio
import hmac
import ipaddress
from collections.abc import Awaitable, Callable
from time import time
from typing import Any

import msgspec
from channels.generic.http import AsyncHttpConsumer
from django.conf import settings
from django.http.request import split_domain_port, validate_host
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest, multiprocess
from prometheus_client import REGISTRY as LOCAL

from gateway import metrics
from gateway.errors import GatewayError
from gateway.exchange import Exchange
from gateway.lifespan import open_now
from gateway.plane import Plane
from gateway.types import Role
from keys.authentication import authenticate

Send = Callable[[dict[str, Any]], Awaitable[None]]


class _Probe(AsyncHttpConsumer):
    """A GET that reads no body."""

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Send) -> None:
        if scope["method"] not in ("GET", "HEAD"):
            await self.reply(send, 405, {"detail": "This endpoint takes GET.", "type": "method_not_allowed"})
            return
        await self.respond(scope, send)

    async def respond(self, scope: dict[str, Any], send: Send) -> None:
        raise AssertionError("a probe answers")

    @staticmethod
    async def reply(send: Send, status: int, body: Any, content_type: bytes = b"application/json") -> None:
        data = body if isinstance(body, bytes) else msgspec.json.encode(body)
        headers = [
            (b"content-type", content_type),
            (b"content-length", b"%d" % len(data)),
            (b"cache-control", b"no-store"),
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": data})


class Livez(_Probe):
    """The process runs and its event loop turns."""

    async def respond(self, scope: dict[str, Any], send: Send) -> None:
        await self.reply(send, 200, {"status": "alive"})


class Readyz(_Probe):
    """Whether new requests should come here."""

    async def respond(self, scope: dict[str, Any], send: Send) -> None:
        problem = _problem(open_now())
        await self.reply(send, 503 if problem else 200, {"status": problem or "ready"})


class Healthz(_Probe):
    """Whether it can serve; an admin's key is told more."""

    async def respond(self, scope: dict[str, Any], send: Send) -> None:
        plane = open_now()
        problem = _problem(plane)
        body: dict[str, Any] = {"status": "unhealthy" if problem else "healthy"}
        if plane is not None and _is_admin(plane, scope):
            catalog = plane.snapshot().catalog
            body |= {
                "problem": problem,
                "module_id": plane.env.MODULE_ID,
                "process_id": plane.process_id,
                "database": {"cut_off_seconds": round(plane.cut_off_for(), 1)},
                "deployments": len(catalog.deployments),
                "draining": plane.draining,
            }
        await self.reply(send, 503 if problem else 200, body)


class Metrics(_Probe):
    """Prometheus' text: open on loopback, elsewhere with AILB_METRICS_TOKEN."""

    async def respond(self, scope: dict[str, Any], send: Send) -> None:
        if not _may_scrape(scope):
            await self.reply(send, 401, {"detail": "A bearer token is needed.", "type": "authentication_error"})
            return
        metrics.publish()
        text = await asyncio.to_thread(_exposition)
        await self.reply(send, 200, text, CONTENT_TYPE_LATEST.encode())


def _problem(plane: Plane | None) -> str | None:
    if plane is None:
        return "starting"
    if plane.draining:
        return "draining"
    if plane.cut_off_for() > plane.env.AILB_DATABASE_GRACE_SECONDS:
        return "database out of reach"
    return None


def _is_admin(plane: Plane, scope: dict[str, Any]) -> bool:
    secret = _secret(scope)
    try:
        caller = authenticate(plane.snapshot().credentials, secret, pepper=plane.pepper, now=time())
    except GatewayError:
        return False
    return caller.role is Role.ADMIN


def _secret(scope: dict[str, Any]) -> str | None:
    return Exchange.secret_of(dict(scope["headers"]))


def _may_scrape(scope: dict[str, Any]) -> bool:
    token = settings.ENV.AILB_METRICS_TOKEN
    given = _secret(scope)
    if (
        token is not None
        and given is not None
        and hmac.compare_digest(given.encode(), token.get_secret_value().encode())
    ):
        return True
    headers = dict(scope["headers"])
    if not _is_ours(headers.get(b"host", b"")):
        return False  # a page of a name that was made to point here (DNS rebinding)
    # Behind a proxy on this host everyone comes from loopback: what was forwarded is judged by its token alone.
    forwarded = b"x-forwarded-for" in headers or b"forwarded" in headers
    return not forwarded and _on_loopback(scope.get("client"))


def _is_ours(host: bytes) -> bool:
    name, _ = split_domain_port(host.decode("latin-1"))
    return validate_host(name, [*settings.ALLOWED_HOSTS, "localhost", "127.0.0.1", "[::1]"])


def _on_loopback(client: Any) -> bool:
    if not client:
        return True  # a Unix socket
    try:
        return ipaddress.ip_address(client[0]).is_loopback
    except ValueError:
        return False


def _exposition() -> bytes:
    """All processes' series where several write to PROMETHEUS_MULTIPROC_DIR, else this one's."""
    if settings.PROMETHEUS_MULTIPROC_DIR:
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)
    return generate_latest(LOCAL)
