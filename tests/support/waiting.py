"""Waiting for what happens on another thread or in another process."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PATIENCE = 10.0  # seconds that a test waits for something that happens at once on a quiet machine


def eventually(
    found: Callable[[], T], within: float = PATIENCE, every: float = 0.01, told: Callable[[], object] | None = None
) -> T:
    """The first true value of `found()`. Fails after `within` seconds with what `told()` says, or the last one."""
    deadline = time.monotonic() + within
    while not (value := found()):
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within} s: {told() if told is not None else value!r}")
        time.sleep(every)
    return value
