"""Which gateway processes live: a heartbeat row each, and a lock file that the kernel drops with the process.

A process on this host is dead when its lock can be taken; one elsewhere when its heartbeat is old.
"""

import fcntl
import os
import socket
import time
from datetime import timedelta
from pathlib import Path
from typing import TextIO

from django.db.models import Q
from django.utils import timezone

from gateway.identifiers import new_process_id
from gateway.models import GatewayProcess

_BEAT_SECONDS = 1.0
# A process elsewhere that is silent this long is dead. Longer than a database restart: its rows are in its journal.
_SILENT = timedelta(seconds=60)

_locks: dict[str, TextIO] = {}


_signed_on: str | None = None


def sign_on(*, data_dir: Path) -> str:
    """Take the lock and write the row of this run of this process; returns its id."""
    process_id = new_process_id()
    folder = data_dir / "run"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = open(folder / f"{process_id}.lock", "w")  # noqa: SIM115  # held as long as the process lives
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    _locks[process_id] = lock
    GatewayProcess.objects.create(id=process_id, host=socket.gethostname(), pid=os.getpid())
    return process_id


def sign_on_early(*, data_dir: Path) -> None:
    """`sign_on` while the start is still alone, so that of two that start at once the second sees the first."""
    global _signed_on
    _signed_on = sign_on(data_dir=data_dir)


def signed_on(*, data_dir: Path) -> str:
    """The id under which this process signed on early, else that of signing on now."""
    global _signed_on
    early, _signed_on = _signed_on, None
    return early or sign_on(data_dir=data_dir)


def sign_off(process_id: str) -> None:
    """The orderly end: nothing is left open, so there is nothing to sweep."""
    now = timezone.now()
    GatewayProcess.objects.filter(pk=process_id).update(stopped_at=now, heartbeat_at=now)
    lock = _locks.pop(process_id, None)
    if lock is not None:
        Path(lock.name).unlink(missing_ok=True)
        lock.close()


class Heartbeat:
    """Tells the database once a second that this process lives, and counts those that do."""

    def __init__(self, process_id: str) -> None:
        self._process_id = process_id
        self._last = time.monotonic()
        self.processes = 1
        """How many live, this one included, as of the last beat."""

    def beat(self) -> None:
        """Called more often than it writes."""
        if time.monotonic() - self._last < _BEAT_SECONDS:
            return
        self._last = time.monotonic()
        now = timezone.now()
        GatewayProcess.objects.filter(pk=self._process_id).update(heartbeat_at=now)
        living = GatewayProcess.objects.filter(stopped_at=None, swept_at=None, heartbeat_at__gte=now - _SILENT)
        self.processes = max(living.count(), 1)


def dead(*, data_dir: Path) -> Q:
    """The processes that no longer live, whose holds nobody will close; as a filter of `GatewayProcess`.

    One whose lock file is in this folder is dead when its lock can be taken; of any other only the heartbeat tells.
    """
    known = {path.stem: path for path in (data_dir / "run").glob("*.lock")}
    gone = [process_id for process_id, path in known.items() if not _held(path)]
    silent = Q(heartbeat_at__lt=timezone.now() - _SILENT) & ~Q(pk__in=known)
    return Q(pk__in=gone) | silent | Q(stopped_at__isnull=False)


def alive(*, data_dir: Path) -> list[str]:
    """The processes that serve this database now, as host:pid."""
    gone = dead(data_dir=data_dir)
    return [str(process) for process in GatewayProcess.objects.filter(stopped_at=None, swept_at=None).exclude(gone)]


def lives_here(process_id: str, *, data_dir: Path) -> bool:
    """Whether a process that keeps its lock in this folder runs."""
    return _held(data_dir / "run" / f"{process_id}.lock")


def clean_up(*, data_dir: Path) -> None:
    """Remove the lock files of processes whose holds were closed; until then they tell who is dead."""
    locks = {path.stem: path for path in (data_dir / "run").glob("*.lock")}
    for process_id in GatewayProcess.objects.filter(pk__in=locks, swept_at__isnull=False).values_list("pk", flat=True):
        locks[process_id].unlink(missing_ok=True)


def _held(path: Path) -> bool:
    """Whether some process holds the lock."""
    try:
        with open(path) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
