"""Two requests at once: on SQLite the transactions queue, on PostgreSQL rows and constraints decide."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from threading import Barrier, Event
from typing import Any

import pytest
from django.db import connections, transaction

from billing import services as billing
from billing.models import Budget
from keys import services
from keys.actors import COMMAND
from keys.models import Team, User, VirtualKey
from keys.policy import Conflict
from security.models import AuditEntry
from tests.api.doors import digest, make_key

pytestmark = pytest.mark.usefixtures("committed")

AT_ONCE = 8


def at_once(work: Callable[[int], Any]) -> list[Any]:
    """Run `work(0…)` on threads that start together; what one raises is its result."""
    barrier = Barrier(AT_ONCE)

    def run(index: int) -> Any:
        try:
            barrier.wait(10)
            return work(index)
        except Conflict as conflict:
            return conflict
        finally:
            connections.close_all()

    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(run, range(AT_ONCE)))


def copies(key: VirtualKey) -> list[VirtualKey]:
    """The key as each of them found it, before any of them changed it."""
    return [VirtualKey.objects.get(pk=key.pk) for _ in range(AT_ONCE)]


def test_a_team_and_user_named_by_many_for_the_first_time_are_made_once():
    made = at_once(lambda index: services.create_key(actor=COMMAND, name=f"n{index}", user_id="dora", team="green"))
    assert {key.user_id for key, _ in made} == {User.objects.get(username="dora").pk}
    assert Team.objects.filter(name="green").count() == 1
    assert VirtualKey.objects.filter(user__username="dora", team__name="green").count() == AT_ONCE
    assert AuditEntry.objects.filter(object_type="keys.team").count() == 1
    assert AuditEntry.objects.filter(object_type="keys.user").count() == 1


def test_writers_who_make_things_in_different_orders_do_not_wait_in_a_circle():
    """On PostgreSQL one of them would be ended, after a second, for a deadlock."""
    make_key("n")  # the version row is there
    team_made = Event()

    def work(index: int) -> Any:
        if index:
            team_made.wait(10)
            return services.create_user(actor=COMMAND, user_id="dora") if index == 1 else None
        with transaction.atomic():
            services.create_team(actor=COMMAND, name="green")
            team_made.set()
            time.sleep(0.3)  # the other is in the middle of it
            return services.create_user(actor=COMMAND, user_id="dora")

    first, second, *_ = at_once(work)
    assert isinstance(first, User)
    assert isinstance(second, Conflict)


def test_of_many_who_make_the_same_user_one_succeeds():
    made = at_once(lambda index: services.create_user(actor=COMMAND, user_id="dora"))
    assert sum(isinstance(result, User) for result in made) == 1
    assert sum(isinstance(result, Conflict) for result in made) == AT_ONCE - 1


def test_of_many_revocations_one_is_the_one():
    key, _ = make_key("n")
    found = copies(key)
    results = at_once(lambda index: services.revoke_key(actor=COMMAND, key=found[index]))
    assert sum(isinstance(result, VirtualKey) for result in results) == 1
    assert sum(isinstance(result, Conflict) for result in results) == AT_ONCE - 1
    assert AuditEntry.objects.filter(action="revoke").count() == 1


def test_one_rotation_asked_for_many_times_is_one():
    key, before = make_key("n")
    found = copies(key)
    results = at_once(
        lambda index: services.rotate_key(actor=COMMAND, key=found[index], grace_seconds=60, rotation_id="r1")
    )
    assert len({secret for _, secret, _ in results}) == 1
    assert sum(created for _, _, created in results) == 1
    key.refresh_from_db()
    assert (key.digest, key.previous_digest) == (digest(results[0][1]), digest(before))


def test_unnamed_rotations_leave_one_live_secret():
    key, _ = make_key("n")
    found = copies(key)
    results = at_once(lambda index: services.rotate_key(actor=COMMAND, key=found[index]))
    key.refresh_from_db()
    assert [digest(secret) for _, secret, _ in results].count(key.digest) == 1
    assert AuditEntry.objects.filter(action="rotate").count() == AT_ONCE


def test_changes_of_different_fields_do_not_undo_each_other():
    key, _ = make_key("n")
    found = copies(key)
    fields = ["rate_limit_rpm", "rate_limit_tpm", "max_parallel", "monthly_quota_tokens"]
    at_once(
        lambda index: services.update_key(actor=COMMAND, key=found[index], changes={fields[index % 4]: 100 + index % 4})
    )
    key.refresh_from_db()
    assert (key.rate_limit_rpm, key.rate_limit_tpm, key.max_parallel) == (100, 101, 102)
    assert Budget.objects.get(owner=key.pk).limit_tokens == 103


def test_a_budget_set_by_many_is_one_row_and_one_of_their_values():
    at_once(
        lambda index: billing.set_budget(
            actor=COMMAND, scope="organisation", owner="", limit_dollars=Decimal(index + 1), limit_tokens=None
        )
    )
    budget = Budget.objects.get()
    assert budget.limit_dollars in {Decimal(index + 1) for index in range(AT_ONCE)}
    assert AuditEntry.objects.filter(action="create").count() == 1
    last: Any = AuditEntry.objects.order_by("-id")[0]
    assert Decimal(last.after["limit_dollars"]) == budget.limit_dollars
