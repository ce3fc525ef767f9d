"""What the fuzzers share: one gateway a test process, and the seed."""

from collections.abc import Iterator

import pytest

from tests.fuzz.explore import SEED_VARIABLE, say, seed_of
from tests.fuzz.target import Target


@pytest.fixture(scope="session")
def _target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    folder = tmp_path_factory.mktemp("fuzzed") / "data"
    folder.mkdir()
    target = Target(folder)
    try:
        yield target.start()
    finally:
        target.stop()


@pytest.fixture
def target(_target: Target) -> Iterator[Target]:
    """The gateway; after each test it must be as well as before."""
    _target.renew()
    _target.began_with = _target.memory()
    yield _target
    _target.assert_well()


@pytest.fixture
def seed(request: pytest.FixtureRequest, _target: Target) -> Iterator[int]:
    """Told on the terminal where it is another each time."""
    found = seed_of(request)
    long = request.node.get_closest_marker("long") is not None
    before = _target.asked
    if long:
        say(request, f"{request.node.name}: {SEED_VARIABLE}={found}")
    yield found
    if long:
        say(request, f"{request.node.name}: {_target.asked - before} cases, {_target.asked} so far")
