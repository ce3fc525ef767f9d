"""Configuration as the data plane sees it: one immutable value, at most a second old.

A change is in force in the process that made it before its response goes out (`gateway.versioning` calls on commit),
and elsewhere when the poll sees the section's number move. Only sections that moved are read again.
"""

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import structlog
from django.db import DatabaseError, close_old_connections, connection

from billing import pricebook
from gateway import registry, versioning
from keys import authentication, scoped_limits
from security import policies

log = structlog.get_logger()

POLL_SECONDS = 0.25  # the promise is one second; twice a second at least
_CUT_OFF_AFTER = 3.0  # seconds without a successful poll before the database counts as out of reach


class Snapshot(msgspec.Struct, frozen=True):
    """Everything a request needs to know of the configuration."""

    versions: Mapping[str, int]
    credentials: authentication.Credentials
    catalog: registry.Catalog
    prices: pricebook.Book
    policies: policies.ScreenPolicies
    limits: scoped_limits.ScopedLimits


# What each section of `ConfigVersion` fills.
_SECTIONS: dict[str, tuple[str, Callable[[], Any]]] = {
    "keys": ("credentials", authentication.load),
    "catalog": ("catalog", registry.load),
    "prices": ("prices", pricebook.load),
    "policies": ("policies", policies.load_policies),
    "limits": ("limits", scoped_limits.load),
}


class SnapshotStore:
    """Holds the snapshot of this process and keeps it fresh."""

    def __init__(self) -> None:
        self._current: Snapshot | None = None
        self._lock = threading.Lock()
        self._seen = 0.0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def current(self) -> Snapshot:
        """The snapshot; read from the database at the first call."""
        if self._current is None:
            self.refresh()
        assert self._current is not None
        return self._current

    def seconds_cut_off(self) -> float:
        """How long the database has been out of reach; 0 while polls succeed or none runs."""
        if self._thread is None:
            return 0.0
        silent = time.monotonic() - self._seen
        return silent if silent > _CUT_OFF_AFTER else 0.0

    def refresh(self) -> None:
        """Read again what has changed. Raises `DatabaseError`."""
        with self._lock:
            # The numbers are read before the rows: a change in between is read now and once more at the next poll.
            versions = _versions()
            old = self._current
            changed = [s for s in _SECTIONS if old is None or versions.get(s, 0) != old.versions.get(s, 0)]
            if changed:
                parts = {_SECTIONS[s][0]: _SECTIONS[s][1]() for s in changed}
                kept = {} if old is None else {field: getattr(old, field) for field, _ in _SECTIONS.values()}
                self._current = Snapshot(versions=versions, **{**kept, **parts})
            self._seen = time.monotonic()

    def refresh_if_used(self) -> None:
        """After a commit in this process; a process that serves nothing has no snapshot to refresh."""
        if self._current is None:
            return
        try:
            self.refresh()
        except DatabaseError as error:
            # The change is committed; the poll will find it.
            log.warning("snapshot_refresh_failed", error=type(error).__name__)

    def forget(self) -> None:
        """Drop the snapshot, so that the next use reads all of it."""
        with self._lock:
            self._current = None

    def start_polling(self, also: Callable[[], None]) -> None:
        """Poll on a thread of its own until `stop_polling`; `also` runs after each successful poll."""
        self.current()
        self._stop.clear()
        self._thread = threading.Thread(target=self._poll, args=(also,), name="ailb-snapshot", daemon=True)
        self._thread.start()

    def stop_polling(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _poll(self, also: Callable[[], None]) -> None:
        reachable = True
        while not self._stop.wait(POLL_SECONDS):
            try:
                close_old_connections()
                self.refresh()
                also()
            except DatabaseError as error:
                if reachable:
                    log.error("database_unreachable", error=type(error).__name__)
                reachable = False
                connection.close()
            else:
                if not reachable:
                    log.info("database_reachable_again")
                reachable = True
        connection.close()


def _versions() -> dict[str, int]:
    with connection.cursor() as cursor:
        cursor.execute("SELECT section, number FROM gateway_configversion")
        return dict(cursor.fetchall())


store = SnapshotStore()
versioning.on_change(store.refresh_if_used)


def current() -> Snapshot:
    """This process's snapshot."""
    return store.current()
