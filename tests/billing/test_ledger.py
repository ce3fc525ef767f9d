"""The ledger's writer: what is promised is on disk, whatever the database does."""

import asyncio
import threading
import time
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from django.db import (
    InterfaceError,
    InternalError,
    NotSupportedError,
    OperationalError,
    ProgrammingError,
)

from billing import ledger
from billing.journal import Journal
from billing.ledger import LedgerWriter
from billing.models import LedgerEntry
from billing.models.ledger import AppendOnlyError
from billing.spending import spent_since
from gateway.errors import LedgerUnavailable
from gateway.types import Attempt
from tests.support.ledger import make_row
from tests.support.waiting import eventually

D = Decimal


class Loop:
    """An event loop on a thread, as the data plane's."""

    def __init__(self):
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def do(self, work, within=10):
        async def awaited():
            found = work()
            return await found if asyncio.isfuture(found) or asyncio.iscoroutine(found) else found

        return asyncio.run_coroutine_threadsafe(awaited(), self.loop).result(within)

    def close(self):
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


@pytest.fixture
def loop():
    loop = Loop()
    yield loop
    loop.close()


@pytest.fixture
def journal(tmp_path):
    return Journal(tmp_path / "journal", "gw_test")


@pytest.fixture
def writer(committed, loop, journal):
    writer = LedgerWriter(journal)
    writer.start(loop.loop)
    yield writer
    loop.do(writer.stop)


@pytest.fixture
def database(monkeypatch):
    """A switch: `database.fails(error)` until `database.works()`."""

    class Database:
        def __init__(self):
            self.error = None
            self.tries = 0
            insert = ledger.insert

            def tried(rows):
                self.tries += 1
                if self.error is not None:
                    raise self.error
                insert(rows)

            monkeypatch.setattr(ledger, "insert", tried)

        def fails(self, error):
            self.error = error

        def works(self):
            self.error = None

    monkeypatch.setattr(ledger, "_RETRY_SECONDS", 0.1)
    return Database()


def stored():
    return list(LedgerEntry.objects.order_by("id").values_list("request_id", "kind"))


class TestWriting:
    def test_a_hold_is_there_when_its_future_is_done(self, writer, loop):
        row = make_row()
        loop.do(lambda: writer.hold(row))
        assert stored() == [(row.request_id, "hold")]

    def test_every_column_arrives(self, writer, loop):
        attempt = Attempt("upstream", "gpt-test", "ok", 200, 1.5, 20.25)
        row = make_row(
            "settlement", created_at=1_760_000_000.125, cost_usd=D("0.123456789012"), tags=("a", "ü"),
            attempts=(attempt,), detail={"finish_reason": "stop"}, estimated=True, stream=True, session_id="s",
        )  # fmt: skip
        loop.do(lambda: writer.put(row))
        writer.flush()
        entry = LedgerEntry.objects.get()
        assert entry.created_at == datetime.fromtimestamp(1_760_000_000.125, UTC)
        assert (entry.cost_usd, entry.tags, entry.detail) == (
            D("0.123456789012"),
            ["a", "ü"],
            {"finish_reason": "stop"},
        )
        assert entry.attempts == [
            {"provider": "upstream", "deployment": "gpt-test", "outcome": "ok", "status": 200,
             "started_ms": 1.5, "latency_ms": 20.25}
        ]  # fmt: skip
        assert (entry.estimated, entry.stream, entry.unpriced, entry.session_id) == (True, True, False, "s")

    def test_they_come_in_the_order_given(self, writer, loop):
        rows = [make_row() for _ in range(500)]

        def put_all():
            for row in rows:
                writer.put(row)

        loop.do(put_all)
        writer.flush()
        assert [request_id for request_id, _ in stored()] == [row.request_id for row in rows]

    def test_many_that_wait_together_share_a_commit(self, writer, loop, database):
        async def hold_all():
            await asyncio.gather(*(writer.hold(make_row()) for _ in range(100)))

        loop.do(hold_all)
        assert len(stored()) == 100
        assert database.tries < 30

    def test_work_in_order_sees_what_came_before_it_and_nothing_later(self, writer, loop):
        seen = []

        def queue():
            for _ in range(10):
                writer.put(make_row())
            writer.run_in_order(lambda: seen.append(LedgerEntry.objects.count()))
            for _ in range(10):
                writer.put(make_row())

        loop.do(queue)
        writer.flush()
        assert seen == [10]
        assert len(stored()) == 20

    def test_stopping_writes_all_that_waits(self, committed, loop, journal):
        # Lesson 13: queued spend was lost on SIGTERM.
        writer = LedgerWriter(journal)
        writer.start(loop.loop)

        async def put_and_stop():
            for _ in range(300):
                writer.put(make_row("settlement"))
            await writer.stop()

        loop.do(put_and_stop)
        assert len(stored()) == 300
        loop.do(writer.stop)  # twice is once

    def test_flushing_where_nobody_writes_returns_at_once(self, journal):
        started = time.monotonic()
        LedgerWriter(journal).flush()
        assert time.monotonic() - started < 1


class TestTwice:
    def test_the_same_row_again_changes_nothing(self, committed):
        hold = make_row()
        closing = make_row("settlement", hold.request_id)
        for _ in range(3):
            ledger.insert([hold])
            ledger.insert([hold, closing])
        assert stored() == [(hold.request_id, "hold"), (hold.request_id, "settlement")]

    def test_one_closing_a_request_whatever_its_kind(self, committed):
        hold = make_row()
        ledger.insert([hold, make_row("settlement", hold.request_id)])
        ledger.insert([make_row("release", hold.request_id)])
        assert [kind for _, kind in stored()] == ["hold", "settlement"]


class TestLateClosings:
    """The sweeper closed what it took for orphaned; then the true figures come."""

    def swept(self, **fields):
        hold = make_row()
        ledger.insert([hold])
        told = {"cost_usd": D("0.01"), "prompt_tokens": 100, "completion_tokens": 900, **fields}
        ledger.insert(
            [make_row("settlement", hold.request_id, process_id="sweeper", estimated=True, status=500, **told)]
        )
        return hold.request_id

    def test_the_difference_becomes_an_adjustment(self, committed):
        request_id = self.swept()
        ledger.insert(
            [make_row("settlement", request_id, cost_usd=D("0.0000675"), prompt_tokens=11, completion_tokens=4)]
        )
        adjustment = LedgerEntry.objects.get(kind="adjustment")
        assert adjustment.cost_usd == D("0.0000675") - D("0.01")
        assert (adjustment.prompt_tokens, adjustment.completion_tokens) == (11 - 100, 4 - 900)
        assert adjustment.detail["reason"] == "late_usage"
        spent, tokens = spent_since("user", "alice", datetime(2020, 1, 1, tzinfo=UTC), None)
        assert (spent, tokens) == (D("0.0000675"), 15)

    def test_a_late_release_takes_all_of_it_back(self, committed):
        request_id = self.swept()
        nothing = {"cost_usd": D(0), "prompt_tokens": 0, "completion_tokens": 0}
        ledger.insert([make_row("release", request_id, **nothing)])
        assert spent_since("user", "alice", datetime(2020, 1, 1, tzinfo=UTC), None) == (0, 0)

    def test_once_however_often_it_is_tried(self, committed):
        request_id = self.swept()
        late = make_row("settlement", request_id)
        for _ in range(3):
            ledger.insert([late])
        assert LedgerEntry.objects.filter(kind="adjustment").count() == 1

    def test_right_figures_need_no_adjustment(self, committed):
        request_id = self.swept(cost_usd=D("0.0000675"), prompt_tokens=11, completion_tokens=4)
        ledger.insert([make_row("settlement", request_id)])
        assert not LedgerEntry.objects.filter(kind="adjustment").exists()

    def test_its_neighbours_are_written_with_it(self, committed):
        request_id = self.swept()
        others = [make_row("settlement") for _ in range(5)]
        ledger.insert([others[0], make_row("settlement", request_id), *others[1:]])
        assert LedgerEntry.objects.filter(kind="settlement").count() == 6
        assert LedgerEntry.objects.filter(kind="adjustment").count() == 1

    def test_an_unpriced_one_stays_unpriced(self, committed):
        request_id = self.swept(cost_usd=None, unpriced=True)
        ledger.insert(
            [make_row("settlement", request_id, cost_usd=None, unpriced=True, prompt_tokens=11, completion_tokens=4)]
        )
        adjustment = LedgerEntry.objects.get(kind="adjustment")
        assert adjustment.cost_usd is None
        assert adjustment.prompt_tokens == 11 - 100


class TestWithoutTheDatabase:
    ERRORS = (OperationalError, InterfaceError, InternalError, ProgrammingError, NotSupportedError)

    @pytest.mark.parametrize("error", ERRORS)
    def test_a_hold_is_on_disk_all_the_same_and_nobody_waits_in_vain(self, writer, loop, journal, database, error):
        database.fails(error("gone"))
        row = make_row()
        loop.do(lambda: writer.hold(row), within=5)
        kept = journal.read(journal.path)
        assert kept == [row]
        assert stored() == []
        database.works()

    @pytest.mark.parametrize("error", ERRORS)
    def test_when_it_is_back_the_journal_moves_into_it(self, writer, loop, journal, database, error):
        database.fails(error("gone"))
        rows = [make_row() for _ in range(3)]
        for row in rows:
            loop.do(lambda row=row: writer.hold(row), within=5)
        database.works()
        # By itself, without another request.
        eventually(lambda: len(stored()) == 3)
        assert [request_id for request_id, _ in stored()] == [row.request_id for row in rows]
        eventually(lambda: not journal.path.exists())

    def test_order_is_kept_across_the_outage(self, writer, loop, journal, database):
        hold = make_row()
        loop.do(lambda: writer.hold(hold))
        database.fails(OperationalError("gone"))
        loop.do(lambda: writer.put(make_row("settlement", hold.request_id)))
        writer.flush()
        database.works()
        eventually(lambda: len(stored()) == 2)
        assert [kind for _, kind in stored()] == ["hold", "settlement"]

    def test_it_is_left_alone_for_a_while(self, writer, loop, database, monkeypatch):
        monkeypatch.setattr(ledger, "_RETRY_SECONDS", 60)
        database.fails(OperationalError("gone"))
        for _ in range(20):
            loop.do(lambda: writer.hold(make_row()))
        assert database.tries == 1

    def test_what_a_dead_process_journalled_is_written(self, committed, tmp_path):
        rows = {process: [make_row(process_id=process) for _ in range(3)] for process in ("gw_dead", "gw_alive")}
        for process, journalled in rows.items():
            Journal(tmp_path, process).append(journalled)
        ledger.replay_of_dead(tmp_path, lambda process: process == "gw_alive")
        assert [request_id for request_id, _ in stored()] == [row.request_id for row in rows["gw_dead"]]
        assert [process for process, _ in Journal.left_by(tmp_path)] == ["gw_alive"]

    def test_a_journal_that_was_replayed_halfway_is_replayed_again_without_doubles(self, committed, tmp_path):
        rows = [make_row(process_id="gw_dead") for _ in range(300)]
        Journal(tmp_path, "gw_dead").append(rows)
        ledger.insert(rows[:100])
        ledger.replay_of_dead(tmp_path, lambda process: False)
        assert len(stored()) == 300

    def test_a_replay_that_fails_keeps_the_journal(self, committed, tmp_path, database):
        Journal(tmp_path, "gw_dead").append([make_row(process_id="gw_dead")])
        database.fails(OperationalError("gone"))
        with pytest.raises(OperationalError):
            ledger.replay_of_dead(tmp_path, lambda process: False)
        database.works()
        ledger.replay_of_dead(tmp_path, lambda process: False)
        assert len(stored()) == 1

    def test_stopping_without_it_keeps_the_rows(self, committed, loop, journal, database):
        writer = LedgerWriter(journal)
        writer.start(loop.loop)
        database.fails(OperationalError("gone"))

        async def put_and_stop():
            for _ in range(10):
                writer.put(make_row("settlement"))
            await writer.stop()

        loop.do(put_and_stop)
        database.works()
        assert len(journal.read(journal.path)) == 10


class TestWithoutTheDiskToo:
    def test_a_hold_is_refused(self, writer, loop, journal, database, monkeypatch):
        database.fails(OperationalError("gone"))
        monkeypatch.setattr(journal, "append", _full)
        with pytest.raises(LedgerUnavailable) as caught:
            loop.do(lambda: writer.hold(make_row()))
        assert caught.value.retry_after
        # Its caller was refused: it must not appear later.
        monkeypatch.undo()
        eventually(lambda: not writer._retry)
        assert stored() == []

    def test_a_closing_is_tried_again_until_it_is_written(self, writer, loop, journal, database, monkeypatch):
        hold = make_row()
        loop.do(lambda: writer.hold(hold))
        database.fails(OperationalError("gone"))
        append = journal.append
        monkeypatch.setattr(journal, "append", _full)
        loop.do(lambda: writer.put(make_row("settlement", hold.request_id)))
        writer.flush()
        assert [kind for _, kind in stored()] == ["hold"]
        monkeypatch.setattr(journal, "append", append)
        database.works()
        eventually(lambda: [kind for _, kind in stored()] == ["hold", "settlement"])


def _full(rows):
    raise OSError(28, "No space left on device")


class TestBadRows:
    def test_one_does_not_take_its_neighbours_along(self, writer, loop, tmp_path):
        bad = make_row("settlement", prompt_tokens=2**70)
        good = [make_row("settlement") for _ in range(4)]

        def put_all():
            for row in (*good[:2], bad, *good[2:]):
                writer.put(row)

        loop.do(put_all)
        writer.flush()
        assert {request_id for request_id, _ in stored()} == {row.request_id for row in good}
        assert bad.request_id in (tmp_path / "journal" / "rejected.txt").read_text()

    def test_the_writer_goes_on_after_it(self, writer, loop):
        loop.do(lambda: writer.put(make_row("settlement", prompt_tokens=2**70)))
        row = make_row()
        loop.do(lambda: writer.hold(row))
        assert stored() == [(row.request_id, "hold")]


class TestAppendOnly:
    def test_entries_are_neither_changed_nor_deleted(self, committed):
        ledger.insert([make_row()])
        entry = LedgerEntry.objects.get()
        entry.cost_usd = D(5)
        for change in (
            entry.save,
            entry.delete,
            LedgerEntry.objects.all().delete,
            lambda: LedgerEntry.objects.update(cost_usd=0),
            lambda: LedgerEntry.objects.filter(pk=entry.pk).update(status=1),
        ):
            with pytest.raises(AppendOnlyError):
                change()
        assert LedgerEntry.objects.get().cost_usd is None


class TestSpending:
    def test_it_is_closings_and_adjustments_of_the_owner_in_the_period(self, committed):
        noon = 1_760_000_000.0
        for user, cost, at in (
            ("alice", "1", noon),
            ("alice", "2", noon + 60),
            ("bob", "4", noon),
            ("alice", "8", noon - 86_400),
        ):
            ledger.insert(
                [
                    make_row(user_id=user, created_at=at),
                    make_row("settlement", user_id=user, cost_usd=D(cost), created_at=at),
                ]
            )
        ledger.insert(
            [make_row("adjustment", cost_usd=D("-0.5"), prompt_tokens=-1, completion_tokens=0, created_at=noon)]
        )
        start, until = datetime.fromtimestamp(noon, UTC), datetime.fromtimestamp(noon + 60, UTC)
        assert spent_since("user", "alice", start, None) == (D("2.5"), 29)
        assert spent_since("user", "alice", start, until) == (D("0.5"), 14)
        assert spent_since("team", "red", start, until)[0] == D("4.5")
        assert spent_since("key", "key_1", start, until)[0] == D("4.5")
        assert spent_since("organisation", "", start, until)[0] == D("4.5")
        assert spent_since("user", "nobody", start, None) == (0, 0)

    def test_an_unpriced_answer_counts_its_tokens(self, committed):
        ledger.insert([make_row("settlement", cost_usd=None, unpriced=True)])
        assert spent_since("user", "alice", datetime(2020, 1, 1, tzinfo=UTC), None) == (0, 15)


def test_two_writers_of_one_database_wait_for_each_other(committed, loop, tmp_path):
    """SQLite has one writer at a time: nobody's row is lost to `database is locked`."""
    writers = [LedgerWriter(Journal(tmp_path / name, name)) for name in ("gw_a", "gw_b")]
    for writer in writers:
        writer.start(loop.loop)

    async def hold_all():
        await asyncio.gather(*(writers[n % 2].hold(make_row()) for n in range(200)))

    loop.do(hold_all)
    assert len(stored()) == 200
    for writer in writers:
        loop.do(writer.stop)
