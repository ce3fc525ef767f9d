"""Closing what dead processes held; and who is dead at all."""

import fcntl
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from decimal import Decimal

import pytest
from django.conf import settings as django_settings
from django.db import connections
from django.utils import timezone

from billing import ledger, sweeper
from billing.journal import Journal
from billing.models import LedgerEntry
from billing.spending import spent_since
from gateway import lifespan, liveness, recovery, tasks
from gateway.models import GatewayProcess
from tests.support.ledger import make_row
from tests.support.waiting import eventually

D = Decimal
HERE = socket.gethostname()


@pytest.fixture
def data_dir(committed, tmp_path, settings):
    settings.DATA_DIR = tmp_path / "data"
    (settings.DATA_DIR / "run").mkdir(parents=True)
    return settings.DATA_DIR


def dead_process(process_id="gw_dead", **fields):
    """A process whose lock, in this folder, nobody holds; one that is `elsewhere` has its lock elsewhere."""
    if fields.get("host", HERE) == HERE:
        (django_settings.DATA_DIR / "run" / f"{process_id}.lock").touch()
    return GatewayProcess.objects.create(**{"id": process_id, "host": HERE, "pid": 4, **fields})


@pytest.fixture
def lives(data_dir):
    """Let a process live: its lock is held, as its kernel would."""
    held = []

    def live(process_id, host=HERE):
        lock = open(data_dir / "run" / f"{process_id}.lock", "w")  # noqa: SIM115  # held until the test's end
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held.append(lock)
        return GatewayProcess.objects.create(id=process_id, host=host, pid=4)

    yield live
    for lock in held:
        lock.close()


def hold_of(process_id, **fields):
    row = make_row(process_id=process_id, **fields)
    ledger.insert([row])
    return row


def sweep(data_dir):
    return sweeper.close_orphans(dead=liveness.dead(data_dir=data_dir))


def kinds():
    return list(LedgerEntry.objects.order_by("id").values_list("kind", flat=True))


class TestClosing:
    def test_an_orphan_costs_its_prompt_and_held_output(self, data_dir):
        dead_process()
        hold = hold_of(
            "gw_dead", client_request_id="mine", session_id="s", tags=("a",), stream=True, security_action="flag",
            detail={"end_user": "u"},
        )  # fmt: skip
        assert sweep(data_dir) == 1
        closing = LedgerEntry.objects.get(kind="settlement")
        assert (closing.status, closing.estimated) == (500, True)
        assert (closing.prompt_tokens, closing.completion_tokens, closing.cost_usd) == (100, 900, D("0.01"))
        assert (closing.key_id, closing.user_id, closing.team) == (hold.key_id, "alice", "red")
        assert (closing.client_request_id, closing.session_id, closing.tags, closing.stream) == (
            "mine",
            "s",
            ["a"],
            True,
        )
        assert closing.security_action == "flag"
        assert closing.detail == {"end_user": "u", "error": "process_died"}
        assert closing.created_at == LedgerEntry.objects.get(kind="hold").created_at

    def test_the_budgets_have_it(self, data_dir):
        dead_process()
        hold_of("gw_dead")
        sweep(data_dir)
        assert spent_since("user", "alice", timezone.now() - timedelta(days=1), None) == (D("0.01"), 1000)

    def test_what_is_closed_stays_as_it_is(self, data_dir):
        dead_process()
        for kind in ("settlement", "release"):
            hold = hold_of("gw_dead")
            ledger.insert([make_row(kind, hold.request_id, process_id="gw_dead")])
        assert sweep(data_dir) == 0
        assert kinds() == ["hold", "settlement", "hold", "release"]

    def test_again_is_nothing(self, data_dir):
        dead_process()
        hold_of("gw_dead")
        assert [sweep(data_dir), sweep(data_dir)] == [1, 0]
        assert kinds() == ["hold", "settlement"]

    def test_however_many_there_are(self, data_dir):
        dead_process()
        ledger.insert([make_row(process_id="gw_dead") for _ in range(800)])
        ledger.insert([make_row(process_id="gw_dead") for _ in range(450)])
        assert sweep(data_dir) == 1250
        assert LedgerEntry.objects.filter(kind="settlement").count() == 1250

    def test_an_unpriced_orphan_stays_unpriced(self, data_dir):
        dead_process()
        hold_of("gw_dead", held_usd=None, unpriced=True)
        sweep(data_dir)
        closing = LedgerEntry.objects.get(kind="settlement")
        assert (closing.cost_usd, closing.unpriced) == (None, True)

    def test_two_sweepers_at_once_close_each_once(self, data_dir):
        dead_process()
        ledger.insert([make_row(process_id="gw_dead") for _ in range(300)])
        barrier = threading.Barrier(3)

        def one(_):
            barrier.wait()
            try:
                return sweep(data_dir)
            finally:
                connections.close_all()

        with ThreadPoolExecutor(3) as pool:
            list(pool.map(one, range(3)))
        assert LedgerEntry.objects.filter(kind="settlement").count() == 300

    def test_true_figures_that_come_later_correct_it(self, data_dir):
        dead_process()
        hold = hold_of("gw_dead")
        sweep(data_dir)
        ledger.insert([make_row("settlement", hold.request_id, process_id="gw_dead")])
        assert spent_since("user", "alice", timezone.now() - timedelta(days=1), None) == (D("0.0000675"), 15)


class TestWhoIsDead:
    def test_one_whose_lock_is_held_lives(self, data_dir, lives):
        lives("gw_alive")
        hold_of("gw_alive")
        assert sweep(data_dir) == 0
        assert liveness.alive(data_dir=data_dir) == [f"{HERE}:4"]

    def test_one_whose_lock_is_free_is_dead_at_once(self, data_dir):
        dead_process(heartbeat_at=timezone.now())
        hold_of("gw_dead")
        assert liveness.alive(data_dir=data_dir) == []
        assert sweep(data_dir) == 1

    def test_one_elsewhere_is_dead_when_it_is_silent(self, data_dir):
        now = timezone.now()
        dead_process("gw_silent", host="elsewhere", heartbeat_at=now - timedelta(minutes=5))
        dead_process("gw_beating", host="elsewhere", heartbeat_at=now)
        hold_of("gw_silent")
        hold_of("gw_beating")
        assert liveness.alive(data_dir=data_dir) == ["elsewhere:4"]
        assert sweep(data_dir) == 1
        assert LedgerEntry.objects.get(kind="settlement").request_id == LedgerEntry.objects.get(
            kind="hold", process_id="gw_silent"
        ).request_id  # fmt: skip

    def test_one_of_this_host_with_another_data_folder_lives_while_it_beats(self, data_dir):
        """Two installations of one PostgreSQL on one host, each with its own AILB_DATA_DIR: the lock of the other is
        not in this folder, which says nothing about its life.
        """
        GatewayProcess.objects.create(id="gw_neighbour", host=HERE, pid=5, heartbeat_at=timezone.now())
        hold_of("gw_neighbour")
        assert sweep(data_dir) == 0, "a live process's hold was closed under its hands"
        assert liveness.alive(data_dir=data_dir) == [f"{HERE}:5"]

    def test_an_orderly_end_leaves_nothing(self, data_dir):
        process_id = liveness.sign_on(data_dir=data_dir)
        assert liveness.alive(data_dir=data_dir) != []
        liveness.sign_off(process_id)
        assert liveness.alive(data_dir=data_dir) == []
        assert not list((data_dir / "run").iterdir())
        assert GatewayProcess.objects.get().stopped_at is not None

    def test_the_heartbeat_beats_once_a_second(self, data_dir, monkeypatch):
        process_id = liveness.sign_on(data_dir=data_dir)
        GatewayProcess.objects.update(heartbeat_at=timezone.now() - timedelta(hours=1))
        heart = liveness.Heartbeat(process_id)
        heart.beat()
        assert GatewayProcess.objects.get().heartbeat_at < timezone.now() - timedelta(minutes=59)
        monkeypatch.setattr(liveness, "_BEAT_SECONDS", 0)
        heart.beat()
        assert GatewayProcess.objects.get().heartbeat_at > timezone.now() - timedelta(minutes=1)
        liveness.sign_off(process_id)


class TestAfterTheSweep:
    def test_rows_of_processes_are_kept_a_month(self, data_dir):
        now = timezone.now()
        dead_process("gw_old", swept_at=now - timedelta(days=31))
        dead_process("gw_new", swept_at=now - timedelta(days=29))
        dead_process("gw_open")
        assert tasks.forget_old_processes() == 1
        assert set(GatewayProcess.objects.values_list("pk", flat=True)) == {"gw_new", "gw_open"}

    def test_the_job_sweeps(self, data_dir):
        dead_process()
        hold_of("gw_dead")
        assert tasks.recover() == 1

    def test_a_hold_that_only_a_dead_processs_journal_has_is_closed_too(self, data_dir, gateway_starts):
        """The database was away, the hold went to the journal, then the process was killed. The next start replays the
        journal: the hold is there, its process is not, and nobody else would ever close it.
        """
        dead_process()
        Journal(data_dir / "journal", "gw_dead").append([make_row(process_id="gw_dead")])
        gateway_starts()
        eventually(lambda: tasks.recover() >= 0 and kinds() == ["hold", "settlement"], 3, told=kinds)

    def test_a_journal_whose_process_was_swept_long_ago_is_no_exception(self, data_dir, gateway_starts):
        """Its host was silent for a minute and another swept it; then it is back, with the journal on its disk."""
        dead_process(swept_at=timezone.now(), stopped_at=timezone.now())
        for process_id in ("gw_dead", "gw_forgotten"):
            Journal(data_dir / "journal", process_id).append([make_row(process_id=process_id)])
        gateway_starts()
        expected = ["hold", "hold", "settlement", "settlement"]
        eventually(lambda: tasks.recover() >= 0 and sorted(kinds()) == expected, 3, told=kinds)

    def test_the_journal_of_a_process_that_lives_is_its_own(self, data_dir, lives):
        lives("gw_alive")
        Journal(data_dir / "journal", "gw_alive").append([make_row(process_id="gw_alive")])
        tasks.recover()
        assert kinds() == []
        assert [name for name, _ in Journal.left_by(data_dir / "journal")] == ["gw_alive"]

    def test_its_closing_in_the_journal_is_its_closing(self, data_dir, gateway_starts):
        dead_process()
        hold = make_row(process_id="gw_dead")
        Journal(data_dir / "journal", "gw_dead").append(
            [hold, make_row("settlement", hold.request_id, process_id="gw_dead")]
        )
        gateway_starts()
        tasks.recover()
        assert kinds() == ["hold", "settlement"]
        assert spent_since("user", "alice", timezone.now() - timedelta(days=1), None) == (D("0.0000675"), 15)


@pytest.fixture
def gateway_starts(data_dir, _server):
    """What a start does with the past: as `serve`, put it in order; then open the data plane."""

    def start():
        recovery.recover(data_dir=django_settings.DATA_DIR)
        _server.do(lifespan.plane())

    yield start
    _server.do(lifespan.close())
