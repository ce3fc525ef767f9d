"""Alerts are raised at the right moment, once each, whoever looks."""

import os
import threading
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.core import mail
from django.core.exceptions import PermissionDenied
from django.db import DatabaseError, InterfaceError, connections
from django.utils import timezone
from django.utils.module_loading import import_string

from ailb_project.jobs import JOBS
from billing import periods, services
from billing.alerts import messages, raising, recording, thresholds
from billing.alerts import services as alerts
from billing.models import Alert, Budget, Delivery, LedgerEntry
from gateway.types import Role
from keys.actors import COMMAND, Actor
from security.models import AuditEntry
from tests.support.waiting import eventually
from tests.support.world import make_budget


def spend(dollars: str, tokens: int = 0, *, at: datetime | None = None, **whose: Any) -> None:
    """A settlement on the ledger."""
    number = LedgerEntry.objects.count()
    LedgerEntry.objects.create(
        **{
            "request_id": f"r{number}", "kind": "settlement", "created_at": at or timezone.now(),
            "written_at": timezone.now(), "process_id": "gw", "key_id": "k1", "user_id": "alice", "team": "red",
            "provider": "openai", "deployment": "gpt", "requested_model": "gpt", "routed_model": "gpt",
            "stream": False, "cost_usd": Decimal(dollars), "prompt_tokens": tokens, "completion_tokens": 0, **whose,
        }
    )  # fmt: skip


def levels(watch: thresholds.Watch | None = None) -> list[int]:
    """Look once; the thresholds that have been told of so far."""
    thresholds.notice(watch or thresholds.Watch())
    return list(Alert.objects.order_by("id").values_list("level", flat=True))


@pytest.fixture
def budget(db: None) -> Budget:
    return make_budget("team", "red", dollars="10")


class TestThresholds:
    @pytest.mark.parametrize(
        ("spent", "told"),
        [("0", []), ("4.999999999999", []), ("5", [50]), ("7.99", [50]), ("8", [50, 80]), ("9.999999999999", [50, 80]),
         ("10", [50, 80, 100]), ("25", [50, 80, 100])],
    )  # fmt: skip
    def test_by_dollars_to_the_last_digit(self, budget, spent, told):
        spend(spent)
        assert levels() == told

    @pytest.mark.parametrize(("tokens", "told"), [(989, []), (990, [99]), (1000, [99])])
    def test_lesson_19_a_threshold_of_99_is_not_reached_before(self, db, tokens, told):
        make_budget("user", "alice", tokens=1000, alert_thresholds=[99])
        spend("0", tokens)
        assert levels() == told

    def test_of_dollars_and_tokens_whichever_is_nearer(self, db):
        make_budget("key", "k1", dollars="100", tokens=100)
        spend("1", 80)
        assert levels() == [50, 80]

    def test_each_is_told_once_as_spending_goes_on(self, budget):
        watch = thresholds.Watch()
        seen = []
        for _ in range(12):
            spend("1")
            seen.append(levels(watch))
        assert seen == [[]] * 4 + [[50]] * 3 + [[50, 80]] * 2 + [[50, 80, 100]] * 3
        assert Delivery.objects.count() == 0

    def test_custom_ones_beyond_the_limit_too(self, db):
        make_budget("organisation", dollars="10", alert_thresholds=[150, 25])
        spend("14.99")
        assert levels() == [25]
        spend("0.01")
        assert levels() == [25, 150]

    def test_without_thresholds_there_are_no_alerts(self, db):
        make_budget("organisation", dollars="10", alert_thresholds=[])
        spend("100")
        assert levels() == []

    def test_of_nothing_there_is_no_part(self, db):
        make_budget("team", "red", dollars="0", tokens=0)
        spend("0")
        assert levels() == []

    @pytest.mark.parametrize(
        ("scope", "owner", "told"),
        [("key", "k1", True), ("key", "k2", False), ("user", "alice", True), ("user", "bob", False),
         ("team", "red", True), ("team", "blue", False), ("organisation", "", True)],
    )  # fmt: skip
    def test_whose_spending_it_is(self, db, scope, owner, told):
        make_budget(scope, owner, dollars="10", alert_thresholds=[50])
        spend("6")
        assert bool(levels()) is told

    def test_adjustments_count_and_holds_do_not(self, budget):
        spend("6", kind="hold", request_id="h")
        assert levels() == []
        spend("4")
        spend("1", kind="adjustment", request_id="r1")
        assert levels() == [50]

    def test_what_it_says(self, budget):
        spend("8.25", 7)
        thresholds.notice(thresholds.Watch())
        alert = Alert.objects.get(level=80)
        start, end = periods.bounds("monthly", "UTC", timezone.now())
        assert end is not None
        assert (alert.kind, alert.subject, alert.period_start) == ("budget_threshold", str(budget.pk), start)
        assert alert.detail == {
            "scope": "team", "owner": "red", "period": "monthly", "tz": "UTC", "mode": "hard", "limit_dollars": 10.0,
            "limit_tokens": None, "spent_dollars": 8.25, "spent_tokens": 7,
            "period_end": f"{end:%Y-%m-%dT%H:%M:%SZ}",
        }  # fmt: skip


class TestPeriods:
    def at(self, monkeypatch: pytest.MonkeyPatch, moment: str) -> None:
        now = datetime.fromisoformat(moment).replace(tzinfo=UTC)
        monkeypatch.setattr("billing.alerts.thresholds.timezone.now", lambda: now)

    @pytest.mark.parametrize(
        ("tz", "before", "after"),
        [
            ("UTC", "2026-03-31T23:59:59", "2026-04-01T00:00:00"),
            # Lesson 20: nine hours ahead; and summer time, which began on 29 March.
            ("Asia/Tokyo", "2026-03-31T14:59:59", "2026-03-31T15:00:00"),
            ("Europe/Amsterdam", "2026-03-31T21:59:59", "2026-03-31T22:00:00"),
        ],
    )
    def test_a_new_month_is_told_anew_from_local_midnight(self, db, monkeypatch, tz, before, after):
        make_budget("team", "red", dollars="10", tz=tz, alert_thresholds=[50])
        moments = [datetime.fromisoformat(text).replace(tzinfo=UTC) for text in (before, after)]
        watch = thresholds.Watch()
        spend("6", at=moments[0])
        self.at(monkeypatch, before)
        assert levels(watch) == [50]
        self.at(monkeypatch, after)
        spend("4.99", at=moments[1])
        assert levels(watch) == [50]
        spend("0.01", at=moments[1])
        assert levels(watch) == [50, 50]
        assert Alert.objects.values("period_start").distinct().count() == 2

    def test_a_custom_period_is_told_of_while_it_lasts(self, db, monkeypatch):
        dates = {"starts_on": datetime(2026, 3, 3).date(), "days": 45}
        make_budget("team", "red", dollars="10", period="custom", tz="Asia/Tokyo", **dates)
        for moment in ("2026-03-02T14:59:59", "2026-03-02T15:00:00", "2026-04-16T15:00:00"):
            spend("5", at=datetime.fromisoformat(moment).replace(tzinfo=UTC))
        self.at(monkeypatch, "2026-03-02T14:59:59")
        assert levels() == []
        self.at(monkeypatch, "2026-04-16T15:00:00")
        assert levels() == []
        self.at(monkeypatch, "2026-04-16T14:59:59")
        assert levels() == [50], "5 of the 15 dollars were spent within it"

    def test_a_raised_limit_moves_the_thresholds_and_repeats_none(self, budget):
        watch = thresholds.Watch()
        spend("5")
        assert levels(watch) == [50]
        services.update_budget(actor=COMMAND, budget=budget, changes={"limit_dollars": Decimal(20)})
        spend("5")
        assert levels(watch) == [50]
        spend("6")
        assert levels(watch) == [50, 80]


class TestReading:
    def test_a_long_period_is_read_once_and_then_only_what_came_since(self, budget, monkeypatch):
        monkeypatch.setattr(thresholds, "_UNSETTLED", 0)
        read: list[Any] = []
        until, since = thresholds._spent_until, thresholds._spent_since
        monkeypatch.setattr(thresholds, "_spent_until", lambda *told: read.append(("until", told[1])) or until(*told))
        monkeypatch.setattr(thresholds, "_spent_since", lambda *told: read.append(("since", told[1])) or since(*told))
        watch = thresholds.Watch()
        spend("4")
        newest = LedgerEntry.objects.order_by("-id")[0].pk
        assert levels(watch) == []
        spend("1")
        assert levels(watch) == [50]
        assert read == [("until", newest), ("since", newest), ("since", newest)]

    def test_it_is_read_anew_after_ten_minutes(self, budget, monkeypatch):
        monkeypatch.setattr(thresholds, "_UNSETTLED", 0)
        watch = thresholds.Watch()
        spend("1", id=100)
        assert levels(watch) == []
        spend("5", id=50)  # committed late: its id was given before
        assert levels(watch) == []
        now = timezone.now() + timedelta(minutes=11)
        monkeypatch.setattr("billing.alerts.thresholds.timezone.now", lambda: now)
        spend("0", id=101)
        assert levels(watch) == [50]

    def test_ids_that_were_given_and_not_committed_yet_are_not_missed(self, budget):
        watch = thresholds.Watch()
        spend("1", id=100)
        assert levels(watch) == []
        spend("5", id=50)
        assert levels(watch) == [50]

    def test_nothing_is_summed_while_nothing_moves(self, budget, monkeypatch, django_assert_num_queries):
        watch = thresholds.Watch()
        spend("1")
        levels(watch)
        now = timezone.now() + timedelta(minutes=2)
        monkeypatch.setattr("billing.alerts.thresholds.timezone.now", lambda: now)
        with django_assert_num_queries(2):
            thresholds.notice(watch)
        services.update_budget(actor=COMMAND, budget=budget, changes={"limit_dollars": Decimal(2)})
        assert levels(watch) == [50]

    def test_one_query_reads_all_keys(self, db, django_assert_num_queries):
        for number in range(30):
            make_budget("key", f"k{number}", dollars="10")
            spend("9", key_id=f"k{number}")
        with django_assert_num_queries(2):
            spans = {thresholds.Span("key", *periods.bounds("monthly", "UTC", timezone.now()))}
            (spent,) = (thresholds.Watch()._of(*spans, 0, timezone.now()),)
        assert len(spent) == 30


class TestRaces:
    def test_two_workers_that_look_at_once_tell_it_once(self, committed):
        make_budget("team", "red", dollars="10")
        spend("9")
        ready = threading.Barrier(4)

        def look() -> None:
            ready.wait()
            thresholds.notice(thresholds.Watch())
            connections.close_all()

        threads = [threading.Thread(target=look) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(Alert.objects.values_list("level", flat=True)) == [50, 80]

    def test_two_processes_too(self, committed, settings):
        """Forked before either has looked, so that both find nothing told."""
        settings.ALERT_EMAILS = ["ops@example.com"]
        make_budget("team", "red", dollars="10")
        spend("10")
        connections.close_all()
        children = []
        for _ in range(2):
            pid = os.fork()
            if pid == 0:
                try:
                    thresholds.notice(thresholds.Watch())
                    os._exit(0)
                finally:
                    os._exit(1)
            children.append(pid)
        assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0]
        assert sorted(Alert.objects.values_list("level", flat=True)) == [50, 80, 100]
        assert Delivery.objects.count() == 3


class TestRaisedOnTheDataPlane:
    @pytest.fixture
    def queue(self, committed):
        queue = raising.AlertQueue()
        queue.start()
        yield queue
        queue.stop()

    def test_it_is_written_once_a_day_for_each_subject(self, queue):
        for deployment in ("gpt", "gpt", "claude"):
            queue.put("upstream_credentials", deployment, {"provider": "upstream"})
        queue.stop()
        assert sorted(Alert.objects.values_list("subject", flat=True)) == ["claude", "gpt"]
        alert = Alert.objects.get(subject="gpt")
        assert (alert.kind, alert.level, alert.detail) == ("upstream_credentials", 0, {"provider": "upstream"})
        assert alert.period_start == alert.at.replace(hour=0, minute=0, second=0, microsecond=0)

    def test_by_two_processes_too(self, queue):
        other = raising.AlertQueue()
        other.start()
        queue.put("overrun", "gpt", {})
        other.put("overrun", "gpt", {})
        other.stop()
        queue.stop()
        assert Alert.objects.count() == 1

    def test_it_comes_without_waiting_for_the_end(self, queue):
        queue.put("overrun", "gpt", {"request_id": "r1"})
        eventually(Alert.objects.exists)

    def test_a_process_that_serves_nothing_raises_nothing(self, committed):
        queue = raising.AlertQueue()
        queue.put("overrun", "gpt", {})
        queue.start()
        queue.stop()
        assert not Alert.objects.exists()

    @pytest.mark.parametrize("error", [DatabaseError, InterfaceError])
    def test_a_database_that_is_gone_loses_the_alert_and_not_the_thread(self, queue, monkeypatch, error):
        record = recording.record

        def gone(**told: Any) -> None:
            raise error

        monkeypatch.setattr(recording, "record", gone)
        queue.put("overrun", "gpt", {})
        eventually(lambda: not queue._told)
        monkeypatch.setattr(recording, "record", record)
        queue.put("overrun", "gpt", {})
        eventually(Alert.objects.exists)


class TestAcknowledging:
    @pytest.fixture
    def alert(self, db: None) -> Alert:
        made = recording.record(kind="overrun", subject="gpt", period_start=timezone.now(), detail={})
        assert made is not None
        return made

    def test_the_first_is_remembered_and_audited(self, alert):
        ada = Actor(role=Role.ADMIN, via="api", user_id="ada")
        first = alerts.acknowledge(actor=ada, alert=alert)
        assert (first.acknowledged_by, first.acknowledged_at is None) == ("user:ada", False)
        again = alerts.acknowledge(actor=COMMAND, alert=alert)
        assert (again.acknowledged_by, again.acknowledged_at) == ("user:ada", first.acknowledged_at)
        assert AuditEntry.objects.filter(action="acknowledge").count() == 1

    def test_not_by_everybody(self, alert):
        with pytest.raises(PermissionDenied):
            alerts.acknowledge(actor=Actor(role=Role.VIEWER, via="api", user_id="vic"), alert=alert)


class TestJobs:
    def test_both_run_every_few_seconds(self, budget, settings):
        settings.ALERT_EMAILS = ["ops@example.com"]
        spend("6")
        tasks = {job.task: import_string(job.task) for job in JOBS if job.seconds <= 5}
        assert (tasks["billing.tasks.watch_budgets"](), tasks["billing.tasks.deliver_alerts"]()) == (1, 1)
        (message,) = mail.outbox
        assert message.subject == "AILB: The monthly budget of team red has reached 50 %: 6.0 of 10.0 dollars used."

    def test_the_organisations_has_words(self, db):
        make_budget("organisation", tokens=10, alert_thresholds=[100])
        spend("0", 10)
        thresholds.notice(thresholds.Watch())
        told = messages.text(Alert.objects.get())
        assert told == "The monthly budget of the organisation has reached 100 %: 10 of 10 tokens used."
