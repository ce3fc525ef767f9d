"""The servers of a run: the upstream, the bare ones, AILB and its peer, each in its own process on loopback."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path

import msgspec

from benchmarks import portkey
from benchmarks.processes import Server, ServerFailed, family, free_port
from benchmarks.scenarios import CLAUDE_MODEL, OLLAMA_MODEL, OPENAI_MODEL, Scenario
from benchmarks.tools import BUILD, FOLDER

REPOSITORY = FOLDER.parent
# What the environment may say to the gateway; a developer's own must not leak into the figures.
GATEWAY_PREFIXES = ("AILB_", "OPENAI_", "ANTHROPIC_", "OLLAMA_", "ENABLE_", "DATABASE_", "REDIS_", "CHROMA_", "HTTP_")
GATEWAY_NAMES = {"HOST", "GRPC_PORT", "MODULE_ID", "ROUTING_STRATEGY", "DJANGO_SETTINGS_MODULE", "PYTHONPATH"}
START_SECONDS = 60.0
BARE = {"asgi": "bare ASGI callable", "channels": "bare Channels consumer"}
# As long as one of AILB's keys, so that the requests are the same to the byte but for the key itself.
ANY_KEY = "sk-ailb_" + "0" * 49


@dataclass(frozen=True)
class Cores:
    """Who runs where: the server under test has a core for itself."""

    server: int
    clients: int
    all: frozenset[int]

    @classmethod
    def available(cls) -> Cores:
        """The first two cores this process may use; with one only, all share it and the figures are poor."""
        cores = sorted(os.sched_getaffinity(0))
        return cls(server=cores[0], clients=cores[1 % len(cores)], all=frozenset(cores))


@dataclass(frozen=True)
class Target:
    """A server under test, the key that its clients have and what they send beside it.

    `peer` is somebody else's: what goes wrong with it is told, and no failure of the run.
    """

    name: str
    title: str
    server: Server
    key: str
    headers: tuple[str, ...] = ()
    peer: bool = False

    def headers_for(self, scenario: Scenario) -> tuple[str, ...]:
        """All headers of a scenario's request, but for its body's."""
        sdk = anthropic_headers if scenario.of_anthropic else openai_headers
        return (*sdk(self.key), *self.headers)

    def measured_pids(self) -> list[int]:
        """The process that answers HTTP and its descendants: their CPU is what a request is charged."""
        return family(self.server.serving_pid())

    def all_pids(self) -> list[int]:
        """Everything that was started with it, supervisors and job processes too."""
        return family(self.server.pid)


def openai_headers(key: str) -> tuple[str, ...]:
    """What the OpenAI SDK sends beside the body."""
    return (
        f"Authorization: Bearer {key}",
        "Content-Type: application/json",
        "Accept: application/json",
        "Accept-Encoding: identity",
        "User-Agent: OpenAI/Python 3.54.0",
        "X-Stainless-Lang: python",
        "X-Stainless-Async: false",
    )


def anthropic_headers(key: str) -> tuple[str, ...]:
    """What the Anthropic SDK sends beside the body."""
    return (
        f"x-api-key: {key}",
        "anthropic-version: 2023-06-01",
        "Content-Type: application/json",
        "Accept: application/json",
        "Accept-Encoding: identity",
        "User-Agent: Anthropic/Python 2.12.0",
        "X-Stainless-Lang: python",
        "X-Stainless-Async: false",
    )


def start_upstream(logs: Path, cores: Cores) -> Server:
    port = free_port()
    command = [str(BUILD / "upstream"), "--port", str(port)]
    server = Server("upstream", command, port=port, log=logs / "upstream.log", cores=[cores.clients])
    return _ready(server, "/v1/models", seconds=5)


def launch_bare(kind: str, upstream: Server, *, log: Path, cores: Iterable[int]) -> Server:
    """Starts one of bare.py's servers, `asgi` or `channels`, without waiting for it."""
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.bare", kind, "--port", str(port), "--upstream", base_url(upstream)]
    return Server(kind, command, port=port, log=log, cores=cores, folder=REPOSITORY)


def start_bare(kind: str, upstream: Server, logs: Path, cores: Cores) -> Target:
    """One of bare.py's servers on the server core, ready."""
    server = launch_bare(kind, upstream, log=logs / f"{kind}.log", cores=[cores.server])
    return Target(kind, BARE[kind], _ready(server, None, seconds=START_SECONDS), ANY_KEY)


def start_portkey(program: portkey.Program, upstream: Server, logs: Path, cores: Cores) -> Target:
    """Portkey's gateway on the server core, ready, as a peer."""
    server = portkey.launch(program, log=logs / "portkey.log", cores=[cores.server])
    _ready(server, None, seconds=START_SECONDS)
    return Target("portkey", portkey.TITLE, server, ANY_KEY, portkey.headers(base_url(upstream)), peer=True)


def ailb_environment(upstream: Server, data: Path, port: int, admin_key: str) -> dict[str, str]:
    """The environment of a first-time user with one OpenAI key, whose OpenAI is the upstream."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(GATEWAY_PREFIXES) and name not in GATEWAY_NAMES
    }
    return kept | {
        "OPENAI_API_KEY": "sk-bench",
        "OPENAI_BASE_URL": base_url(upstream),
        "OPENAI_MODELS": OPENAI_MODEL,
        "AILB_DATA_DIR": str(data),
        "AILB_ADMIN_KEY": admin_key,
        "HTTP_PORT": str(port),
    }


def further_providers(upstream: Server) -> dict[str, str]:
    """What the environment of one with three providers says more; all three are the upstream."""
    address = base_url(upstream).removesuffix("/v1")
    return {
        "ANTHROPIC_API_KEY": "sk-ant-bench",
        "ANTHROPIC_BASE_URL": address,
        "ANTHROPIC_MODELS": CLAUDE_MODEL,
        "OLLAMA_BASE_URL": address,
        "OLLAMA_MODELS": OLLAMA_MODEL,
        # Nobody sells what runs on one's own machine, and the key has a dollar quota.
        "AILB_UNPRICED": "allow",
    }


def launch_ailb(
    environment: dict[str, str], *, port: int, log: Path, cores: Iterable[int], python: tuple[str, ...] = ()
) -> Server:
    """Starts `manage.py serve` without waiting for it. `python` are options of the interpreter."""
    command = [sys.executable, *python, "manage.py", "serve", "--no-grpc"]
    return Server("AILB", command, port=port, log=log, cores=cores, environment=environment, folder=REPOSITORY)


def start_ailb(
    upstream: Server, *, data: Path, logs: Path, cores: Cores, extra: dict[str, str] | None = None
) -> Target:
    """AILB on the server core, ready, with a virtual key made for the run."""
    port, admin_key = free_port(), secrets.token_urlsafe(32)
    environment = ailb_environment(upstream, data, port, admin_key) | (extra or {})
    server = launch_ailb(environment, port=port, log=logs / "ailb.log", cores=[cores.server])
    _ready(server, "/readyz", seconds=START_SECONDS)
    try:
        key = make_key(port, admin_key)
    except BaseException:
        server.stop()
        raise
    return Target("ailb", "AILB, everything on", server, key)


def make_key(port: int, admin_key: str) -> str:
    """A virtual key with limits that are checked and never reached."""
    connection = HTTPConnection("127.0.0.1", port, timeout=30)
    wanted = {"name": "bench", "monthly_quota_dollars": 1_000_000, "rate_limit_rpm": 100_000_000}
    headers = {"Authorization": f"Bearer {admin_key}", "Content-Type": "application/json"}
    try:
        connection.request("POST", "/api/keys", msgspec.json.encode(wanted), headers)
        answer = connection.getresponse()
        body = answer.read()
    finally:
        connection.close()
    if answer.status != 201:
        raise ServerFailed(f"POST /api/keys answered {answer.status}: {body[:400]!r}")
    key: str = msgspec.json.decode(body)["key"]
    return key


def set_pacing(upstream: Server, delay_us: int) -> None:
    """Tells the upstream how long to pause between the chunks of a stream, in microseconds."""
    connection = HTTPConnection("127.0.0.1", upstream.port, timeout=5)
    try:
        connection.request("POST", f"/_bench?delay_us={delay_us}&coalesce=1")
        connection.getresponse().read()
    finally:
        connection.close()


def base_url(upstream: Server) -> str:
    return f"http://127.0.0.1:{upstream.port}/v1"


def _ready(server: Server, path: str | None, *, seconds: float) -> Server:
    """Waits for `path` to be 200, or for any answer at all; a server that does not come up is stopped."""
    try:
        if path is None:
            server.wait_until_any_answer(seconds=seconds)
        else:
            server.wait_until(path, seconds=seconds)
    except BaseException:
        server.stop()
        raise
    return server
