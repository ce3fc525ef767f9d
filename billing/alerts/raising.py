"""The data plane's way to raise an alert: put down now, written on a thread.

Each subject counts once a day (UTC): what goes wrong with every request would fill the list and its readers' mailboxes.
The log and the metrics have every occurrence.
"""

import threading
from collections import deque
from collections.abc import Mapping
from datetime import UTC, date, datetime, time
from typing import Any

import msgspec
import structlog
from django.db import Error, connections

log = structlog.get_logger()

_MOST = 1000  # alerts that wait for the database, and subjects that are remembered as told


class Raised(msgspec.Struct, frozen=True):
    """An alert that is not written yet."""

    kind: str
    subject: str
    detail: Mapping[str, Any]
    at: datetime

    @property
    def once(self) -> tuple[str, str, date]:
        return self.kind, self.subject, self.at.date()


class AlertQueue:
    """Writes between `start` and `stop`, while the data plane is open; nothing is raised at other times."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[Raised] = deque(maxlen=_MOST)
        self._told: set[tuple[str, str, date]] = set()
        self._stopping = False
        self._thread: threading.Thread | None = None

    def put(self, kind: str, subject: str, detail: Mapping[str, Any]) -> None:
        """Raise an alert of `kind` (an `AlertKind`) soon, unless this process did today. Never waits for the database.

        `detail` is JSON: no secrets, no prompts.
        """
        raised = Raised(kind, subject, detail, datetime.now(UTC))
        with self._changed:
            if self._thread is None or raised.once in self._told:
                return
            if len(self._told) >= _MOST:
                self._told.clear()
            self._told.add(raised.once)
            self._waiting.append(raised)
            self._changed.notify()

    def start(self) -> None:
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="ailb-alerts", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Write what waits, then end."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._told.clear()

    def _run(self) -> None:
        while (batch := self._next()) is not None:
            for raised in batch:
                self._write(raised)
            connections.close_all()  # the next one may be days away

    def _next(self) -> list[Raised] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._stopping)
            batch = list(self._waiting)
            self._waiting.clear()
        return batch or None

    def _write(self, raised: Raised) -> None:
        from billing.alerts import recording

        try:
            recording.record(
                kind=raised.kind,
                subject=raised.subject,
                period_start=datetime.combine(raised.at.date(), time(tzinfo=UTC)),
                detail=raised.detail,
                at=raised.at,
            )
        except Error as error:
            log.error("alert_not_written", kind=raised.kind, subject=raised.subject, error=type(error).__name__)
            with self._changed:
                self._told.discard(raised.once)  # what goes on is raised again


queue = AlertQueue()
raise_soon = queue.put
