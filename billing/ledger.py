"""The ledger's writer: one thread, one connection, group commits.

A hold's row is committed before the client gets its first byte. Rows that wait while a commit runs go together in
the next one; an idle writer commits at once, never on a timer. While the database is out of reach rows go to the
journal on disk (`billing.journal`), synced, and from there into the database when it is back.
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
from django.db import DatabaseError, DataError, IntegrityError, InterfaceError, OperationalError, connection, transaction

from billing.corrections import correct_late_closings
from billing.journal import Journal
from billing.rows import INSERT, LedgerRow, parameters
from gateway.errors import LedgerUnavailable
from gateway.metrics import LEDGER_PENDING

log = structlog.get_logger()

_BATCH = 256  # rows a commit: enough for thousands of requests a second, little enough that a commit stays short
_RETRY_SECONDS = 1.0  # how long the database is left alone after it failed

Waiter = asyncio.Future[None] | threading.Event


class _Item(msgspec.Struct):
    row: LedgerRow | None
    waiter: Waiter | None = None
    work: Callable[[], None] | None = None


class LedgerWriter:
    """Writes rows in the order given. `put`, `hold` and `run_in_order` are called on the event loop's thread."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._queue: SimpleQueue[_Item | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._database_failed_at: float | None = None
        self._journalled = False

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Replay what earlier processes journalled, then write until `stop`."""
        self._loop = loop
        self._replay()
        self._thread = threading.Thread(target=self._run, name="ailb-ledger", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Write all that waits, then end. Rows the database does not take are in the journal."""
        self._queue.put(None)
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def hold(self, row: LedgerRow) -> "asyncio.Future[None]":
        """Queue a row; the future is done once it is durable, or raises `LedgerUnavailable`."""
        assert self._loop is not None
        future = self._loop.create_future()
        # A request that ends before its hold is durable leaves nobody to await the future.
        future.add_done_callback(_seen)
        self._queue.put(_Item(row, future))
        return future

    def put(self, row: LedgerRow) -> None:
        """Queue a row that nobody waits for."""
        self._queue.put(_Item(row))

    def run_in_order(self, work: Callable[[], Any]) -> None:
        """Run `work` on the writer's thread after everything queued so far was written."""
        self._queue.put(_Item(None, None, work))

    def flush(self, timeout: float = 5.0) -> None:
        """Wait, on any other thread, until everything queued so far is written; seconds."""
        if self._thread is None or threading.current_thread() is self._thread:
            return
        event = threading.Event()
        self._queue.put(_Item(None, event))
        event.wait(timeout)

    def _run(self) -> None:
        ending = False
        while not ending:
            items, ending = self._next_batch()
            try:
                self._write(items)
            finally:
                LEDGER_PENDING.set(self._queue.qsize())
        connection.close()

    def _next_batch(self) -> tuple[list[_Item], bool]:
        """What waits, up to a batch; blocks while nothing does. A piece of work ends its batch: it sees what was before."""
        items: list[_Item] = []
        try:
            item = self._queue.get(timeout=_RETRY_SECONDS if self._journalled else None)
            while item is not None:
                items.append(item)
                if item.work is not None or len(items) >= _BATCH:
                    return items, False
                item = self._queue.get_nowait()
        except Empty:
            return items, False
        return items, True

    def _write(self, items: list[_Item]) -> None:
        rows = [item.row for item in items if item.row is not None]
        error = self._store(rows) if rows or self._journalled else None
        for item in items:
            if item.work is not None:
                item.work()
        waiters = [item.waiter for item in items if item.waiter is not None]
        if waiters:
            self._wake(waiters, error)

    def _store(self, rows: Sequence[LedgerRow]) -> LedgerUnavailable | None:
        if self._database_may_work():
            try:
                if self._journalled:
                    self._replay()
                self._commit(rows)
                self._note_database(works=True)
                return None
            except (OperationalError, InterfaceError) as error:
                self._note_database(works=False, error=error)
        return self._to_journal(rows)

    def _commit(self, rows: Sequence[LedgerRow]) -> None:
        if not rows:
            return
        try:
            insert(rows)
        except (DataError, IntegrityError, ValueError, OverflowError):
            for row in rows:
                self._commit_alone(row)

    def _commit_alone(self, row: LedgerRow) -> None:
        """One bad row must not take its neighbours along."""
        try:
            insert([row])
        except (DataError, IntegrityError, ValueError, OverflowError) as error:
            log.error("ledger_row_rejected", request_id=row.request_id, kind=row.kind, error=type(error).__name__)
            self._journal.reject(row)

    def _to_journal(self, rows: Sequence[LedgerRow]) -> LedgerUnavailable | None:
        try:
            self._journal.append(rows)
        except OSError as error:
            log.error("journal_failed", error=type(error).__name__, rows=len(rows))
            # Closing entries are tried again; a hold's caller is refused, so its row must not appear later.
            for row in rows:
                if row.kind != "hold":
                    self._queue.put(_Item(row))
            time.sleep(0.05)  # a full disk is not helped by a busy loop
            return LedgerUnavailable("The request cannot be written down at the moment.", retry_after=5)
        self._journalled = self._journalled or bool(rows)
        return None

    def _replay(self) -> None:
        """Move journalled rows into the database, this process's and those of dead ones."""
        for path in self._journal.files():
            rows = self._journal.read(path)
            for start in range(0, len(rows), _BATCH):
                self._commit(rows[start : start + _BATCH])
            path.unlink(missing_ok=True)
            log.info("journal_replayed", rows=len(rows))
        self._journalled = False

    def _database_may_work(self) -> bool:
        return self._database_failed_at is None or time.monotonic() - self._database_failed_at >= _RETRY_SECONDS

    def _note_database(self, *, works: bool, error: DatabaseError | None = None) -> None:
        if works:
            self._database_failed_at = None
            return
        if self._database_failed_at is None:
            log.error("ledger_goes_to_journal", error=type(error).__name__)
        self._database_failed_at = time.monotonic()
        connection.close()

    def _wake(self, waiters: list[Waiter], error: LedgerUnavailable | None) -> None:
        assert self._loop is not None
        futures = [waiter for waiter in waiters if isinstance(waiter, asyncio.Future)]
        for waiter in waiters:
            if isinstance(waiter, threading.Event):
                waiter.set()
        if futures and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(_resolve, futures, error)


def _resolve(futures: list["asyncio.Future[None]"], error: LedgerUnavailable | None) -> None:
    for future in futures:
        if future.done():
            continue
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)


def _seen(future: "asyncio.Future[None]") -> None:
    if not future.cancelled():
        future.exception()


def insert(rows: Sequence[LedgerRow]) -> None:
    """Commit `rows` in one transaction. Rows that are already there stay as they are; a closing entry that comes after
    the sweeper's becomes an adjustment.
    """
    vendor = connection.vendor
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.executemany(INSERT, [parameters(row, vendor) for row in rows])
        if cursor.rowcount != len(rows):
            correct_late_closings(cursor, rows, vendor)


_writer: LedgerWriter | None = None


def start(loop: asyncio.AbstractEventLoop, *, data_dir: Path, process_id: str) -> LedgerWriter:
    """Start this process's writer."""
    global _writer
    _writer = LedgerWriter(Journal(data_dir / "journal", process_id))
    _writer.start(loop)
    return _writer


def flush() -> None:
    """Wait until this process's writer has written what was queued; nothing to do in a process without one."""
    if _writer is not None:
        _writer.flush()
