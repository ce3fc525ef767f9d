"""The gRPC surface, through a real channel, and as the process that `serve` starts."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from asgiref.sync import sync_to_async
from django.db import DatabaseError
from django.utils import timezone
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from gateway.models import GatewayProcess
from grpc_module import server as module
from grpc_module.server import NOT_SERVING, SERVING, ModuleServer, PortTaken, gateway_serves

MANAGE = Path(__file__).resolve().parents[2] / "manage.py"
HEALTH = health_pb2.HealthCheckRequest()


@pytest.fixture(autouse=True)
def _brisk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHECK_SECONDS", 0.02)
    monkeypatch.setattr(module, "_DRAIN_SECONDS", 0.2)


class Gateway:
    """Stands in for the database's answer."""

    def __init__(self) -> None:
        self.serves = False
        self.hangs = threading.Event()
        self.hangs.set()

    def check(self) -> bool:
        self.hangs.wait(10)
        return self.serves


@asynccontextmanager
async def running(check=gateway_serves) -> AsyncIterator[grpc.aio.Channel]:
    server, stopping = ModuleServer(check), asyncio.Event()
    port = await server.start("127.0.0.1", 0)
    telling = asyncio.create_task(server.run(stopping, threading.Event()))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
        stopping.set()
        await telling
        await server.stop()


async def told(channel: grpc.aio.Channel, status: int, within: float = 10) -> None:
    """`status` is told before long."""
    deadline = time.monotonic() + within
    stub = health_pb2_grpc.HealthStub(channel)
    while (answer := await stub.Check(HEALTH)).status != status:
        assert time.monotonic() < deadline, answer
        await asyncio.sleep(0.01)


async def test_health_follows_the_heartbeat(committed):
    async with running() as channel:
        await told(channel, NOT_SERVING)
        process = await sync_to_async(GatewayProcess.objects.create)(id="gw_1", host="h", pid=1)
        await told(channel, SERVING)
        beats = GatewayProcess.objects.filter(pk=process.pk)
        await sync_to_async(beats.update)(heartbeat_at=timezone.now() - timedelta(seconds=6))
        await told(channel, NOT_SERVING)
        await sync_to_async(beats.update)(heartbeat_at=timezone.now())
        await told(channel, SERVING)
        await sync_to_async(beats.update)(stopped_at=timezone.now())
        await told(channel, NOT_SERVING)


async def test_a_service_that_does_not_exist_is_not_declared():
    async with running(lambda: True) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for name in ("marchproxy.module.ModuleService", "grpc.health.v1.Health"):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await stub.Check(health_pb2.HealthCheckRequest(service=name))
            assert refused.value.code() == grpc.StatusCode.NOT_FOUND


async def test_watch_tells_each_change_and_the_end():
    gateway = Gateway()
    server, stopping = ModuleServer(gateway.check), asyncio.Event()
    port = await server.start("127.0.0.1", 0)
    telling = asyncio.create_task(server.run(stopping, threading.Event()))
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(HEALTH)
        assert (await watch.read()).status == NOT_SERVING
        gateway.serves = True
        assert (await watch.read()).status == SERVING
        stopping.set()
        await telling
        ending = asyncio.create_task(server.stop())
        assert (await watch.read()).status == NOT_SERVING
        await asyncio.wait_for(ending, 5)


async def test_a_database_that_hangs_is_not_serving(monkeypatch):
    monkeypatch.setattr(module, "_PATIENCE", 0.1)
    gateway = Gateway()
    gateway.serves = True
    async with running(gateway.check) as channel:
        await told(channel, SERVING)
        gateway.hangs.clear()
        await told(channel, NOT_SERVING)
        gateway.hangs.set()
        await told(channel, SERVING)


def test_a_database_that_fails_is_not_serving(db, monkeypatch):
    def fail(*args, **kwargs):
        raise DatabaseError

    monkeypatch.setattr(GatewayProcess.objects, "filter", fail)
    monkeypatch.setattr(module.connections, "close_all", lambda: None)
    assert gateway_serves() is False


async def test_reflection_names_what_is_there_and_no_more():
    async with running(lambda: True) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        asked = iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        answers = [answer async for answer in stub.ServerReflectionInfo(asked)]
    names = {service.name for service in answers[0].list_services_response.service}
    assert names == {"grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection"}


async def test_the_parents_end_is_the_end():
    server, gone = ModuleServer(lambda: True), threading.Event()
    await server.start("127.0.0.1", 0)
    telling = asyncio.create_task(server.run(asyncio.Event(), gone))
    gone.set()
    await asyncio.wait_for(telling, 5)
    await server.stop()


async def test_a_taken_port_is_refused_grpc_servers_included():
    first, second = ModuleServer(lambda: True), ModuleServer(lambda: True)
    port = await first.start("127.0.0.1", 0)
    with pytest.raises(PortTaken):
        await second.start("127.0.0.1", port)
    await first.stop()
    await second.stop()


# ── the process ─────────────────────────────────────────────────────────────────────────────────────────────────────


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@pytest.fixture
def start(tmp_path) -> Iterator[object]:
    """Start `run_grpc` on a port, with a data folder of its own."""
    started: list[subprocess.Popen[bytes]] = []

    def run(port: int) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, str(MANAGE), "run_grpc"],
            env={**os.environ, "AILB_DATA_DIR": str(tmp_path), "GRPC_PORT": str(port), "HOST": "127.0.0.1"},
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        started.append(process)
        return process

    yield run
    for process in started:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stderr):
            assert pipe is not None
            pipe.close()


def answered(port: int) -> int:
    """The status, once the server is there. There is no gateway: it cannot be SERVING."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        return int(health_pb2_grpc.HealthStub(channel).Check(HEALTH, timeout=30, wait_for_ready=True).status)


@pytest.mark.parametrize("end", ["SIGTERM", "SIGINT", "the parent's death"])
def test_the_process_ends_in_order(start, end):
    port = free_port()
    process = start(port)
    assert answered(port) == NOT_SERVING
    if end.startswith("SIG"):
        process.send_signal(getattr(signal, end))
    else:
        process.stdin.close()
    assert process.wait(10) == 0


def test_a_taken_port_is_one_line_and_code_2(start):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        process = start(port)
        assert process.wait(30) == 2
    assert process.stderr.read().decode().splitlines() == [
        f"CommandError: GRPC_PORT: got {port}; takes a free port on 127.0.0.1"
    ]
