"""The gateway as a client meets it: the real ASGI application under a real uvicorn, on a thread of the test process.

So a test knocks at the door with HTTP, and looks at the same database with the ORM. The server lives as long as the
session; each test has a data plane of its own (`Gateway`), opened before it and closed, at rest, after it.
"""

import asyncio
import json
import socket
import threading
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, TypeVar

import httpx2
import msgspec
import uvicorn

from billing import ledger
from billing.models import Budget, LedgerEntry
from billing.spending import spent_since
from gateway import lifespan
from gateway.plane import Plane
from gateway.snapshot import store
from tests.support.answers import Answer, read
from tests.support.waiting import PATIENCE, eventually
from tests.support.world import Key

T = TypeVar("T")
Json = dict[str, Any]

CLOSING = ("settlement", "release")
MESSAGES = ({"role": "user", "content": "Hi there"},)


class Server:
    """uvicorn with the settings that `serve` gives it, but for the lifespan: data planes come and go with the tests."""

    def __init__(self) -> None:
        from ailb_project.asgi import application
        from ailb_project.http_protocol import Protocol

        self.socket = socket.create_server(("127.0.0.1", 0), backlog=512)
        self.port: int = self.socket.getsockname()[1]
        config = uvicorn.Config(
            application, loop="uvloop", http=Protocol, ws="none", lifespan="off", access_log=False, log_config=None,
            server_header=False, proxy_headers=False, timeout_keep_alive=75, timeout_graceful_shutdown=5,
        )  # fmt: skip
        self._server = uvicorn.Server(config)
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="gateway", daemon=True)
        self._thread.start()
        eventually(lambda: self._server.started)

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=self._server.config.get_loop_factory()) as runner:
            self.loop = runner.get_loop()
            runner.run(self._server.serve(sockets=[self.socket]))

    def do(self, work: Awaitable[T]) -> T:
        """Run a coroutine on the gateway's loop."""

        async def awaited() -> T:
            return await work

        return asyncio.run_coroutine_threadsafe(awaited(), self.loop).result(30)

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join()


class Gateway:
    """One test's data plane behind the session's server."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.port = server.port
        self.url = f"http://127.0.0.1:{server.port}"
        self.plane: Plane = server.do(lifespan.plane())
        self.set(AILB_RETRIES=0)  # scripts say what each call gets: a test of retries allows them
        self._client = httpx2.Client(base_url=self.url, timeout=30, trust_env=False)

    def set(self, **settings: Any) -> None:
        """Other settings than the environment's, for this test's data plane."""
        self.plane.env = self.plane.env.model_copy(update=settings)

    # ── knocking ────────────────────────────────────────────────────────────────────────────────────────────────────

    def send(self, method: str, path: str, *, key: Key | None = None, **options: Any) -> Answer:
        """Any request. `options` are httpx2's."""
        headers = {**(key.bearer if key is not None else {}), **options.pop("headers", {})}
        return read(self._client.request(method, path, headers=headers, **options))

    def chat(self, key: Key | None, *, headers: dict[str, Any] | None = None, **body: Any) -> Answer:
        """A chat completion, read to its end. `stream` is a field of the body like any other."""
        return self.send("POST", "/v1/chat/completions", key=key, headers=headers or {}, json=chat_body(**body))

    @contextmanager
    def chatting(self, key: Key, **body: Any) -> Iterator[httpx2.Response]:
        """A chat completion that is still coming in; leaving the block leaves the gateway."""
        # A client of its own: closing it closes the socket.
        with (
            httpx2.Client(base_url=self.url, timeout=30, trust_env=False) as client,
            client.stream("POST", "/v1/chat/completions", headers=key.bearer, json=chat_body(**body)) as response,
        ):
            yield response

    def forget_failures(self) -> None:
        """Close every circuit: for a test that fails one deployment in many ways, one after the other."""
        self.plane.circuits._circuits.clear()
        self.plane.circuits.troubled.clear()

    # ── looking ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def entries(self, request_id: str) -> list[LedgerEntry]:
        """A request's entries in the order in which they were written, once it is closed."""

        def written() -> list[LedgerEntry]:
            ledger.flush()
            found = list(LedgerEntry.objects.filter(request_id=request_id).order_by("id"))
            return found if any(entry.kind in CLOSING for entry in found) else []

        return eventually(written)

    def closing(self, request_id: str) -> LedgerEntry:
        """A request's one closing entry; it has one hold before it and nothing else."""
        hold, closing = self.entries(request_id)
        assert hold.kind == "hold"
        assert closing.kind in CLOSING
        return closing

    def settlement(self, request_id: str) -> LedgerEntry:
        """What a request that was served cost."""
        closing = self.closing(request_id)
        assert closing.kind == "settlement", closing.detail
        return closing

    def only_closing(self) -> LedgerEntry:
        """The closing entry of the test's only request, where the client got no id."""

        def held() -> list[str]:
            ledger.flush()
            return list(LedgerEntry.objects.filter(kind="hold").values_list("request_id", flat=True))

        (request_id,) = eventually(held)
        return self.closing(request_id)

    def do(self, work: Awaitable[T]) -> T:
        """Run a coroutine on the gateway's loop."""
        return self._server.do(work)

    def metric(self, series: str) -> float:
        """A series of `/metrics`, by its name and labels in the order of the text; 0 where there is none."""
        lines = self.send("GET", "/metrics").raw.decode().splitlines()
        return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{series} ")), 0.0)

    def used(self, budget: Budget) -> tuple[Decimal, int]:
        """Dollars and tokens that this process counts against a budget, reservations included."""
        much, many = Decimal(10**9), 10**15
        terms = msgspec.structs.replace(budget.terms(), limit_usd=much, limit_tokens=many)
        left = self.do(self.plane.holds.counters.headroom((terms,), datetime.now(UTC)))
        assert left.usd is not None
        assert left.tokens is not None
        return much - left.usd, many - left.tokens

    # ── the end ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def assert_at_rest(self) -> None:
        """Every hold has exactly one closing entry, nothing is reserved, nobody is counted as running, and the
        counters are what the ledger adds up to.
        """
        # A client that left a moment ago may not have been noticed yet.
        eventually(lambda: not self._unclosed() and not self.plane._tasks, 3, told=self._unclosed)
        for budget in Budget.objects.all():
            since, until = self._period(budget)
            told = spent_since(budget.scope, budget.owner, since, until)
            assert self.used(budget) == told, f"{budget}: counted {self.used(budget)}, the ledger says {told}"
        running = getattr(self.plane.limits, "_running", {})
        assert not running, f"counted as running: {dict(running)}"

    def _unclosed(self) -> dict[str, list[str]]:
        """The requests whose entries are not one hold and one closing."""
        ledger.flush()
        kinds: dict[str, list[str]] = {}
        for request_id, kind in LedgerEntry.objects.order_by("id").values_list("request_id", "kind"):
            kinds.setdefault(request_id, []).append(kind)
        return {
            request_id: found
            for request_id, found in kinds.items()
            if found.count("hold") != 1 or sum(kind in CLOSING for kind in found) != 1
        }

    @staticmethod
    def _period(budget: Budget) -> tuple[datetime, datetime | None]:
        from billing.periods import bounds

        terms = budget.terms()
        return bounds(terms.period, terms.tz, datetime.now(UTC))

    def wait_until_quiet(self, within: float = PATIENCE) -> None:
        """Until what runs beside requests has ended and the ledger is written."""
        eventually(lambda: not self.plane._tasks, within)
        ledger.flush()

    def close(self) -> None:
        self._client.close()
        self._server.do(lifespan.close())
        store.forget()


@contextmanager
def asking(gateway: Gateway, key: Key, **body: Any) -> Iterator[socket.socket]:
    """A chat request sent on a raw socket, whose answer nobody has read yet; leaving the block leaves the gateway."""
    content = json.dumps(chat_body(**body)).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\nauthorization: Bearer {key.secret}\r\n"
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=PATIENCE) as connection:
        connection.sendall(head.encode() + b"content-length: %d\r\n\r\n" % len(content) + content)
        yield connection


def chat_body(**body: Any) -> Json:
    """A chat request's JSON; None takes a field out."""
    full = {"model": "gpt-test", "messages": list(MESSAGES), **body}
    return {name: value for name, value in full.items() if value is not None}
