"""Hypothesis, told how many cases and from which seed; the seed of a failure makes the same cases again."""

import os
import secrets
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import hypothesis
import pytest
from hypothesis import HealthCheck, Phase, strategies

T = TypeVar("T")

SEED_VARIABLE = "AILB_TEST_FUZZ_SEED"
_FAST_SEED = 1
"""`make test` says the same of the same tree each time; what it does not look at is `make test-long`'s."""


def shares(fast: int, long: int) -> Any:
    """Both runs of a test: `cases` in `make test`, and in `make test-long`."""
    return pytest.mark.parametrize(
        "cases", [pytest.param(fast, id="fast"), pytest.param(long, id="long", marks=pytest.mark.long)]
    )


def seed_of(request: pytest.FixtureRequest) -> int:
    """The seed of this run: told, or another each time; of the fast share always the same."""
    if told := os.environ.get(SEED_VARIABLE):
        return int(told)
    return secrets.randbelow(2**32) if request.node.get_closest_marker("long") else _FAST_SEED


def explore(seed: int, cases: int, source: strategies.SearchStrategy[T], check: Callable[[T], None]) -> None:
    """`check` each of `cases` examples of `source`."""

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=cases,
        database=None,  # the seed is enough, and a test writes to no checkout
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        print_blob=False,
    )
    @hypothesis.given(source)
    def each(case: T) -> None:
        check(case)

    try:
        each()
    except BaseException as error:
        error.add_note(f"Again: {SEED_VARIABLE}={seed} with the same number of cases ({cases}).")
        raise


def say(request: pytest.FixtureRequest, line: str) -> None:
    """On the terminal whatever pytest captures: a failure that kills the run must leave its seed."""
    with request.config.pluginmanager.getplugin("capturemanager").global_and_fixture_disabled():
        sys.stdout.write(f"\n{line}\n")
        sys.stdout.flush()
