"""The optional steps: memory and documents. They cost nothing when unused, and a request outlives their failure."""

from time import perf_counter

import structlog

from ailb_project.env import Env
from gateway import metrics
from gateway.errors import UnsupportedParameter
from gateway.types import Caller, ChatRequest, Citation
from memory import recall as memory
from rag import retrieval
from security.detectors.base import ScreenPolicy

log = structlog.get_logger()


async def recall(
    request: ChatRequest, caller: Caller, window: int | None, policy: ScreenPolicy, env: Env
) -> ChatRequest:
    """The request with what its session remembers."""
    if request.session_id is None or not env.ENABLE_MEMORY:
        return request
    started = perf_counter()
    try:
        return await memory.recall(request, caller, window, policy)
    except memory.MemoryUnavailable:
        return _skipped("recall", request)
    finally:
        metrics.MEMORY_LOOKUP.observe(perf_counter() - started)


async def augment(
    request: ChatRequest, caller: Caller, policy: ScreenPolicy, env: Env
) -> tuple[ChatRequest, tuple[Citation, ...]]:
    """The request with passages of its collection, and what they are cited as.

    Raises `CollectionNotFound`, `UnsupportedParameter` where documents are switched off.
    """
    if request.rag_collection is None:
        return request, ()
    if not env.ENABLE_RAG:
        raise UnsupportedParameter("'rag_collection' is switched off here.", param="rag_collection")
    metrics.RAG_QUERIES.inc()
    started = perf_counter()
    try:
        return await retrieval.augment(request, caller, policy)
    except retrieval.KnowledgeUnavailable:
        return _skipped("augment", request), ()
    finally:
        metrics.RAG_SEARCH.observe(perf_counter() - started)


async def remember(request: ChatRequest, caller: Caller, text: str, env: Env) -> None:
    """Keep the turn, where the request belongs to a session."""
    if request.session_id is None or not env.ENABLE_MEMORY:
        return
    try:
        await memory.remember(request, caller, text)
    except memory.MemoryUnavailable:
        _skipped("remember", request)


def _skipped(step: str, request: ChatRequest) -> ChatRequest:
    metrics.SKIPPED.labels(step).inc()
    log.warning("step_skipped", step=step)
    return request
