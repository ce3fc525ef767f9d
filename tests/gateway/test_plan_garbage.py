"""A request leaves nothing behind that only the garbage collector finds: its prompt would stay until that runs."""

import gc
import random

from billing.pricebook import Book
from gateway.circuits_memory import MemoryCircuits
from gateway.doors.chat import ChatDoor
from gateway.planning import Health, plan
from gateway.registry import Pool, Route
from gateway.routing import strategies
from tests.gateway.routing.contract import candidate

BODY = b'{"model": "pool", "messages": [{"role": "user", "content": "Hi"}], "session_id": "s"}'


async def test_a_plan_is_no_circle():
    deployments = tuple(candidate(name) for name in "abc")
    route = Route("pool", (Pool("pool", deployments), Pool("spare", deployments)))
    signals, book = Health(circuits=MemoryCircuits(), rng=random.Random(1)), Book([])
    request = ChatDoor().parse(BODY, {})
    for default in strategies():
        await plan(route, request, "user:alice", signals=signals, book=book, default=default)
        gc.collect()
        gc.disable()
        try:
            for _ in range(200):
                await plan(route, request, "user:alice", signals=signals, book=book, default=default)
            assert gc.collect() < 200, default
        finally:
            gc.enable()
