"""The data plane's way to the ORM: off the event loop, on a few threads that keep their connections.

Only for requests that use memory or documents, and for records that are rare. A request's own path never comes here.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, ParamSpec, TypeVar

from django.db import close_old_connections, connections

P = ParamSpec("P")
T = TypeVar("T")

_THREADS = 4  # as many as one process's memory lookups need; each holds a database connection
_executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="ailb-orm")


def _with_fresh_connection(work: Callable[[], T]) -> T:
    close_old_connections()
    return work()


async def in_thread(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Run `work`, which may use the ORM, on a thread; what it raises is raised here."""
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(_executor, _with_fresh_connection, partial(work, *args, **kwargs))


def close() -> None:
    """Wait for what runs and close the threads' connections."""
    global _executor
    closing: list[Any] = [_executor.submit(connections.close_all) for _ in range(_THREADS)]
    for future in closing:
        future.result()
    _executor.shutdown(wait=True)
    _executor = ThreadPoolExecutor(_THREADS, thread_name_prefix="ailb-orm")
