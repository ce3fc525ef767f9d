"""What every test finds: a database that threads see, a scripted upstream, the gateway behind its door, and the cast.

Alice and Bob are of team red, Charlie of team blue; what is Alice's Bob may see where the team does, Charlie never.
"""

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import hypothesis
import pytest
from django.db import connection, connections, transaction
from django.test.utils import setup_databases, teardown_databases

from gateway import background
from gateway.snapshot import store
from tests.support.gateway import Gateway, Server
from tests.support.real_model import real_model  # noqa: F401  # a fixture for all
from tests.support.upstream import Upstream
from tests.support.world import Key, make_deployment, make_key, make_price, make_provider

# Two busy cores: how long an example takes says nothing, and a slow machine is no reason to look at fewer.
hypothesis.settings.register_profile("busy", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("busy")

POSTGRES_URL = os.environ.get("TEST_DATABASE_URL") or "postgres://root@127.0.0.1:5432/test"
REDIS_URL = os.environ.get("TEST_REDIS_URL") or "redis://127.0.0.1:6379/15"
_UNREACHABLE = "no {} at {}: start one, or name it in {}"

# Rows that migrations and the framework make, once for all tests.
_KEPT = {"django_migrations", "django_content_type", "auth_permission"}


# ── the database ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="session")
def django_db_modify_db_settings(tmp_path_factory: pytest.TempPathFactory) -> None:
    """SQLite in a file, which the gateway's threads see too; without the syncs that only a power cut needs."""
    database = connections.settings["default"]
    if database["ENGINE"] != "django.db.backends.sqlite3":
        return
    database.setdefault("TEST", {})["NAME"] = str(tmp_path_factory.mktemp("database") / "test.sqlite3")
    options = database["OPTIONS"]
    options["init_command"] = options["init_command"].replace("synchronous=FULL", "synchronous=OFF")


@pytest.fixture(scope="session")
def django_db_setup(
    django_test_environment: None, django_db_blocker: Any, django_db_modify_db_settings: None
) -> Iterator[None]:
    """As pytest-django's, which makes a database only where it sees its own marks and fixtures among the tests."""
    with django_db_blocker.unblock():
        made = setup_databases(verbosity=0, interactive=False, aliases={"default"})
    yield
    with django_db_blocker.unblock():
        teardown_databases(made, verbosity=0)


@pytest.fixture(autouse=True)
def _nothing_is_left_behind() -> Iterator[None]:
    """What one test configured the next does not see, nor the connections of the ORM's threads."""
    yield
    store.forget()
    if background._executor._threads:
        background.close()


@pytest.fixture
def committed(django_db_setup: None, django_db_blocker: Any) -> Iterator[None]:
    """The database for tests that share it with the gateway's threads: what is written is committed, and wiped out
    afterwards (a tenth of the time of Django's own flush, which makes permissions anew).
    """
    with django_db_blocker.unblock():
        yield
        _wipe()
        connections.close_all()


def _wipe() -> None:
    tables = [name for name in connection.introspection.django_table_names(only_existing=True) if name not in _KEPT]
    with transaction.atomic(), connection.cursor() as cursor:
        for table in tables:
            cursor.execute(f"DELETE FROM {connection.ops.quote_name(table)}")


# ── the gateway ─────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(scope="session")
def _upstream() -> Iterator[Upstream]:
    upstream = Upstream()
    yield upstream
    upstream.close()


@pytest.fixture
def upstream(_upstream: Upstream) -> Iterator[Upstream]:
    """A scripted OpenAI-compatible server."""
    _upstream.forget()
    yield _upstream
    _upstream.forget()


@pytest.fixture(scope="session")
def _server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
def gateway(committed: None, _server: Server, upstream: Upstream, settings: Any, tmp_path: Path) -> Iterator[Gateway]:
    """The gateway, with an open data plane. After the test everything must be at rest."""
    settings.DATA_DIR = tmp_path / "data"
    settings.DATA_DIR.mkdir()
    store.forget()
    gateway = Gateway(_server)
    try:
        yield gateway
        gateway.assert_at_rest()
    finally:
        gateway.close()


@pytest.fixture
def provider(committed: None, upstream: Upstream) -> Any:
    """The scripted upstream as a provider."""
    return make_provider(upstream.url)


@pytest.fixture
def model(provider: Any) -> Any:
    """A priced deployment at it, `gpt-test`: 2.50 dollars a million tokens in, 10 out."""
    make_price()
    return make_deployment(provider)


@pytest.fixture
def alice(committed: None) -> Key:
    return make_key("alice", "red")


@pytest.fixture
def bob(committed: None) -> Key:
    return make_key("bob", "red")


@pytest.fixture
def charlie(committed: None) -> Key:
    return make_key("charlie", "blue")


@pytest.fixture(params=[False, True], ids=["plain", "stream"])
def stream(request: pytest.FixtureRequest) -> bool:
    """A stream is the same path: every gate is tested for both."""
    wanted: bool = request.param
    return wanted


# ── servers that may not be there ───────────────────────────────────────────────────────────────────────────────────


def _reachable(url: str, port: int) -> bool:
    parts = urlsplit(url)
    try:
        socket.create_connection((parts.hostname or "127.0.0.1", parts.port or port), timeout=2).close()
    except OSError:
        return False
    return True


def _where(url: str) -> str:
    """A URL without its password."""
    return urlsplit(url).netloc.rpartition("@")[2]


@pytest.fixture(scope="session")
def postgres_url() -> str:
    """A PostgreSQL server where a test may make databases: TEST_DATABASE_URL, or the usual local one."""
    if not _reachable(POSTGRES_URL, 5432):
        pytest.skip(_UNREACHABLE.format("PostgreSQL", _where(POSTGRES_URL), "TEST_DATABASE_URL"))
    return POSTGRES_URL


@pytest.fixture(scope="session")
def redis_url() -> str:
    """A Redis server whose numbered database tests may empty: TEST_REDIS_URL, or number 15 of the usual local one."""
    if not _reachable(REDIS_URL, 6379):
        pytest.skip(_UNREACHABLE.format("Redis", _where(REDIS_URL), "TEST_REDIS_URL"))
    return REDIS_URL


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say loudly what a green run did not look at."""
    reasons: dict[str, int] = {}
    for report in terminalreporter.stats.get("skipped", ()):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reasons[reason] = reasons.get(reason, 0) + 1
    if reasons:
        terminalreporter.section("NOT TESTED", red=True, bold=True)
        for reason, number in sorted(reasons.items()):
            terminalreporter.line(f"{number:4d} skipped: {reason.removeprefix('Skipped: ')}", red=True)
