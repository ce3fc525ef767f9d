"""Gateways in processes of their own."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.postgres import scratch_database
from tests.support.serving import ADMIN_KEY, SECRETS, Serving
from tests.support.upstream import Upstream

# In the price list: what answers cost is known without a price of ours.
MODEL = "gpt-4o-mini"

# All that comes before serving, and no trace of the process that did it.
PREPARE = """
from ailb_project import bootstrap
from gateway.models import GatewayProcess
bootstrap.prepare(workers=1)
GatewayProcess.objects.all().delete()
"""


def openai_settings(upstream: Upstream, *models: str) -> dict[str, str]:
    """The scripted upstream as the environment's provider."""
    return {
        "OPENAI_API_KEY": "sk-test-upstream-credential-0123456789",
        "OPENAI_BASE_URL": upstream.url,
        "OPENAI_MODELS": ",".join(models or (MODEL,)),
    }


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a first start leaves it; copied, it saves a test the migrations and the price list."""
    folder = tmp_path_factory.mktemp("prepared") / "data"
    gateway = Serving(folder)
    gateway.python(PREPARE)
    return folder


@pytest.fixture(scope="session")
def prepared_postgres(postgres_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The name of a PostgreSQL database as a first start leaves it, to be used as a template."""
    with scratch_database(postgres_url) as url:
        gateway = Serving(tmp_path_factory.mktemp("prepared") / "data", DATABASE_URL=url, **SECRETS)
        gateway.python(PREPARE)
        yield url.rpartition("/")[2]


@pytest.fixture
def postgres(postgres_url: str, prepared_postgres: str) -> Iterator[str]:
    """The URL of a database of the test's own, prepared."""
    with scratch_database(postgres_url, prepared_postgres) as url:
        yield url


@pytest.fixture
def make_gateway(tmp_path: Path, prepared: Path) -> Iterator[Callable[..., Serving]]:
    """Make gateways that are ended with the test. `empty`: on a folder that is not there yet."""
    made: list[Serving] = []

    def make(name: str = "data", *, empty: bool = False, **settings: str) -> Serving:
        folder = tmp_path / name
        if not empty and not folder.exists():
            shutil.copytree(prepared, folder)
        gateway = Serving(folder, **settings)
        made.append(gateway)
        return gateway

    yield make
    for gateway in made:
        gateway.end()


@pytest.fixture
def serving(make_gateway: Callable[..., Serving], upstream: Upstream) -> Serving:
    """A gateway that serves the scripted upstream, ready."""
    return make_gateway(**openai_settings(upstream)).start()


@pytest.fixture
def admin() -> dict[str, str]:
    """The headers of the admin key."""
    return {"authorization": f"Bearer {ADMIN_KEY}"}


def chat(**body: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": "Hi there"}], **body}
