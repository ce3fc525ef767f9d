"""From an empty folder, or an older release's database, to one that can be served."""

import fcntl
from collections.abc import Generator
from contextlib import contextmanager

import structlog
from django.conf import settings
from django.core.management import call_command
from django.db import connection
from django.db.migrations.executor import MigrationExecutor

from billing import pricebook
from billing.counters import redis as counters
from billing.models import Budget
from gateway import config_file, environment, first_run, liveness, providers, recovery

log = structlog.get_logger()

_ADVISORY_LOCK = 0x41494C42  # "AILB": any number that nothing else in the database takes


class StartRefused(Exception):
    """The installation cannot be started like this; the message is for the operator."""


def prepare(*, workers: int) -> str | None:
    """Migrate, apply the configuration file and the environment, make first-run secrets, close what dead processes
    held.

    Returns what a first start has to show. Raises `StartRefused`.
    """
    providers.check()
    settings.DATA_DIR.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _alone():
        _migrate()
        _refuse_second_process(workers)
        pricebook.seed_prices()
        _apply_config_file()
        environment.apply(settings.ENV)
        text = first_run.prepare(settings.ENV)
        recovery.recover(data_dir=settings.DATA_DIR)
        counters.read_anew(budget.terms() for budget in Budget.objects.all())
        if workers == 1:
            liveness.sign_on_early(data_dir=settings.DATA_DIR)
    return text


@contextmanager
def _alone() -> Generator[None, None, None]:
    """One process prepares at a time: two that start at once would both migrate."""
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_lock(%s)", [_ADVISORY_LOCK])
            try:
                yield
            finally:
                cursor.execute("SELECT pg_advisory_unlock(%s)", [_ADVISORY_LOCK])
        return
    with open(settings.DATA_DIR / "start.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _migrate() -> None:
    executor = MigrationExecutor(connection)
    if executor.migration_plan(executor.loader.graph.leaf_nodes()):
        call_command("migrate", interactive=False, verbosity=0)


def _apply_config_file() -> None:
    """Before the environment, whose demo provider stays away where the file has models."""
    if settings.ENV.AILB_CONFIG is None:
        return
    try:
        changes = config_file.apply(settings.ENV.AILB_CONFIG)
    except config_file.ConfigError as error:
        raise StartRefused(f"AILB_CONFIG: {error}") from None
    log.info("configuration_file_applied", file=str(settings.ENV.AILB_CONFIG), changes=len(changes))


def _refuse_second_process(workers: int) -> None:
    """Limits and budgets are counted in process unless Redis is there: two processes would each allow them whole."""
    if settings.ENV.REDIS_URL is not None:
        return
    if workers > 1:
        raise StartRefused(f"--workers: got {workers}; takes 1 unless REDIS_URL is set, since limits are shared there")
    alive = liveness.alive(data_dir=settings.DATA_DIR)
    if alive:
        raise StartRefused(
            f"REDIS_URL: got nothing; another gateway process ({', '.join(alive)}) serves this database, and several "
            "share their limits and budgets in Redis"
        )
