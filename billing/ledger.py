"""The ledger's writer: one thread, one connection, group commits.

A hold's row is committed before the client gets its first byte. Rows that come while a commit runs go together in
the next one; an idle writer commits at once, never on a timer. While the database is out of reach rows go to the
journal on disk (`billing.journal`), synced, and from there into the database when it is back.

Rows gather on the event loop and reach the thread a batch at a time, and a batch is one statement: each time the
thread needs the interpreter's lock the loop's thread has to give it up, which costs more than the insert (measured:
540 µs of CPU a request with a statement a row, docs/decisions/0004).
"""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import msgspec
import structlog
from django.db import (
    DatabaseError,
    DataError,
    IntegrityError,
    InterfaceError,
    connection,
    transaction,
)

from billing.corrections import correct_late_closings
from billing.journal import Journal
from billing.rows import LedgerRow, insert_sql, parameters
from gateway.errors import LedgerUnavailable
from gateway.metrics import LEDGER_PENDING

log = structlog.get_logger()

_BATCH = 128  # rows a statement: 36 columns each, and SQLite takes 32 766 parameters
_RETRY_SECONDS = 1.0  # how long the database is left alone after it failed

# What one bad row raises, whatever its neighbours are.
_BAD_ROW = (DataError, IntegrityError, ValueError, OverflowError)


class _Batch(msgspec.Struct):
    """What goes to the thread at once. `work` runs after the rows were written."""

    rows: list[LedgerRow] = []
    waiters: list["asyncio.Future[None]"] = []
    work: list[Callable[[], Any]] = []


class LedgerWriter:
    """Writes rows in the order given. All methods but `flush` are called on the event loop's thread."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._queue: SimpleQueue[_Batch | None] = SimpleQueue()
        self._gathering = _Batch()
        self._thread_busy = False
        self._submit_scheduled = False
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._retry: list[LedgerRow] = []
        self._database_failed_at: float | None = None
        self._journalled = False

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Write until `stop`."""
        self._loop = loop
        self._thread = threading.Thread(target=self._run, name="ailb-ledger", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """Write all that waits, then end. Rows the database does not take are in the journal."""
        if self._thread is None:
            return
        self._submit()
        self._queue.put(None)
        await asyncio.to_thread(self._thread.join)
        self._thread = None

    def hold(self, row: LedgerRow) -> "asyncio.Future[None]":
        """Queue a row; the future is done once it is durable, or raises `LedgerUnavailable`."""
        assert self._loop is not None
        future = self._loop.create_future()
        self._gathering.waiters.append(future)
        self.put(row)
        return future

    def put(self, row: LedgerRow) -> None:
        """Queue a row that nobody waits for."""
        self._gathering.rows.append(row)
        self._schedule()

    def run_in_order(self, work: Callable[[], Any]) -> None:
        """Run `work` on the writer's thread after everything queued so far was written."""
        self._gathering.work.append(work)
        # What is queued from here on is not seen by `work`: it goes with the next batch.
        self._submit()

    def flush(self, timeout: float = 5.0) -> None:
        """Wait, on another thread than the loop's, until everything queued so far is written; seconds."""
        loop = self._loop
        if self._thread is None or loop is None or loop.is_closed():
            return
        written = threading.Event()
        loop.call_soon_threadsafe(self.run_in_order, written.set)
        written.wait(timeout)

    def _schedule(self) -> None:
        """At the end of this turn of the loop: rows of one turn go together."""
        if not self._thread_busy and not self._submit_scheduled:
            assert self._loop is not None
            self._submit_scheduled = True
            self._loop.call_soon(self._submit)

    def _submit(self) -> None:
        self._submit_scheduled = False
        if self._gathering.rows or self._gathering.work:
            batch, self._gathering = self._gathering, _Batch()
            self._thread_busy = True
            LEDGER_PENDING.set(len(batch.rows))
            self._queue.put(batch)

    def _written(self, batch: _Batch, error: LedgerUnavailable | None) -> None:
        """Back on the loop: wake who waits, and send what has gathered meanwhile."""
        for future in batch.waiters:
            if not future.done():
                if error is None:
                    future.set_result(None)
                else:
                    future.set_exception(error)
                    future.exception()  # seen: a request that has ended meanwhile leaves nobody to await it
        self._thread_busy = False
        LEDGER_PENDING.set(0)
        self._submit()

    # ── on the thread ───────────────────────────────────────────────────────────────────────────────────────────────

    def _run(self) -> None:
        while (batch := self._next()) is not None:
            error = self._store(batch.rows)
            for work in batch.work:
                work()
            assert self._loop is not None
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(self._written, batch, error)
        self._store([])
        connection.close()

    def _next(self) -> _Batch | None:
        """The next batch; an empty one where the database's return has to be tried meanwhile."""
        try:
            return self._queue.get(timeout=_RETRY_SECONDS if self._journalled or self._retry else None)
        except Empty:
            return _Batch()

    def _store(self, rows: list[LedgerRow]) -> LedgerUnavailable | None:
        rows = [*self._retry, *rows] if self._retry else rows
        self._retry = []
        if not rows and not self._journalled:
            return None
        if self._database_may_work():
            try:
                if self._journalled:
                    self._replay()
                insert_all(rows, self._journal)
                self._database_failed_at = None
                return None
            except (DatabaseError, InterfaceError) as error:
                self._note_failure(error)
        return self._to_journal(rows)

    def _to_journal(self, rows: Sequence[LedgerRow]) -> LedgerUnavailable | None:
        if not rows:
            return None
        try:
            self._journal.append(rows)
        except OSError as error:
            log.error("journal_failed", error=type(error).__name__, rows=len(rows))
            # Closing entries are tried again; a hold's caller is refused, so its row must not appear later.
            self._retry = [row for row in rows if row.kind != "hold"]
            return LedgerUnavailable("The request cannot be written down at the moment.", retry_after=5)
        self._journalled = True
        return None

    def _replay(self) -> None:
        """Move this process's journalled rows into the database."""
        replay(self._journal, self._journal.path)
        self._journalled = False

    def _database_may_work(self) -> bool:
        return self._database_failed_at is None or time.monotonic() - self._database_failed_at >= _RETRY_SECONDS

    def _note_failure(self, error: Exception) -> None:
        if self._database_failed_at is None:
            log.error("ledger_goes_to_journal", error=type(error).__name__)
        self._database_failed_at = time.monotonic()
        connection.close()


def insert_all(rows: Sequence[LedgerRow], journal: Journal) -> None:
    """Write any number of rows. One that the database refuses is set aside for a person; its neighbours are written."""
    for start in range(0, len(rows), _BATCH):
        part = rows[start : start + _BATCH]
        try:
            insert(part)
        except _BAD_ROW:
            for row in part:
                _insert_alone(row, journal)


def _insert_alone(row: LedgerRow, journal: Journal) -> None:
    try:
        insert([row])
    except _BAD_ROW as error:
        log.error("ledger_row_rejected", request_id=row.request_id, kind=row.kind, error=type(error).__name__)
        journal.reject(row)


def replay(journal: Journal, path: Path) -> None:
    """Move the rows of the journal at `path` into the database. Raises `DatabaseError`; the file is kept then."""
    rows = journal.read(path)
    insert_all(rows, journal)
    path.unlink(missing_ok=True)
    log.info("journal_replayed", rows=len(rows))


def replay_of_dead(folder: Path, lives: Callable[[str], bool]) -> list[str]:
    """Replay the journals in `folder` of processes that no longer live, and name them: their rows come before the
    sweeper's.
    """
    dead = [(process_id, path) for process_id, path in Journal.left_by(folder) if not lives(process_id)]
    for process_id, path in dead:
        replay(Journal(folder, process_id), path)
    return [process_id for process_id, _ in dead]


def insert(rows: Sequence[LedgerRow]) -> None:
    """Write `rows` in one statement, which is its own transaction. Rows that are already there stay as they are; a
    closing entry that comes after the sweeper's becomes an adjustment.
    """
    vendor = connection.vendor
    values = [value for row in rows for value in parameters(row, vendor)]
    connection.ensure_connection()
    with connection.wrap_database_errors:
        # The driver itself: Django's SQLite cursor translates thousands of placeholders by regular expression.
        mark = "?" if vendor == "sqlite" else "%s"
        count = connection.connection.execute(insert_sql(len(rows), mark), values).rowcount
    if count != len(rows):
        with transaction.atomic(), connection.cursor() as cursor:
            correct_late_closings(cursor, rows, vendor)


_writer: LedgerWriter | None = None


def journals(data_dir: Path) -> Path:
    """Where journals are kept."""
    return data_dir / "journal"


def start(loop: asyncio.AbstractEventLoop, *, data_dir: Path, process_id: str) -> LedgerWriter:
    """Start this process's writer."""
    global _writer
    _writer = LedgerWriter(Journal(journals(data_dir), process_id))
    _writer.start(loop)
    return _writer


def flush() -> None:
    """Wait until this process's writer has written what was queued; nothing to do in a process without one."""
    if _writer is not None:
        _writer.flush()
