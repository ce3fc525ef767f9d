"""Budgets, prices and policies in the console, and the lists that grow long."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.utils import timezone

from billing.models import Budget, LedgerEntry, Price
from security.models import AuditEntry, Policy
from tests.console.pages import World, entry, make_price, submit, url
from tests.console.test_keys import errors

# ── policies, budgets, prices ───────────────────────────────────────────────────────────────────────────────────────


def test_a_policy_has_a_select_a_category(ada, world: World):
    assert submit(ada, url("change", world["security.policy"]), do_secret="block").status_code == 302
    assert Policy.objects.get(name="strict").actions == {"secret": "block"}
    assert submit(ada, url("change", world["security.policy"]), do_secret="").status_code == 302
    assert Policy.objects.get(name="strict").actions == {}


def test_two_policies_in_force_are_refused_on_the_form(ada, world: World):
    response = submit(ada, url("add", "security.policy"), name="other", scope="organisation")
    assert response.status_code == 200
    disabled = submit(ada, url("add", "security.policy"), name="other", scope="organisation", enabled=None)
    assert disabled.status_code == 302
    chosen = {"action": "enable", "_selected_action": [Policy.objects.get(name="other").pk]}
    page = ada.post(url("changelist", "security.policy"), chosen, follow=True)
    assert page.status_code == 200
    assert not Policy.objects.get(name="other").enabled


@pytest.mark.parametrize("label", ["billing.budget", "security.policy"])
def test_an_owner_who_is_not_there_is_refused(ada, world: World, label: str):
    response = submit(ada, url("add", label), name="x", scope="team", owner="redd", limit_dollars="1")
    assert "There is no such team." in errors(response)


def test_a_team_s_budget_only_goes_down_for_its_lead(lea, world: World):
    red = world.cast.budgets["red"]
    assert submit(lea, url("change", red), limit_dollars="90").status_code == 302
    beyond = submit(lea, url("change", red), limit_dollars="95")
    assert "beyond the team" in errors(beyond)
    assert Budget.objects.get(pk=red.pk).limit_dollars == 90
    refused = lea.post(url("delete", red), {"post": "yes"}, follow=True)
    assert "beyond the team" in refused.content.decode()
    assert Budget.objects.filter(pk=red.pk).exists()
    assert lea.get(url("change", world.cast.budgets["organisation"])).status_code == 404


def test_a_new_price_closes_the_one_in_force(ada, world: World):
    old = world["billing.price"]
    response = submit(ada, url("add", "billing.price"), provider="openai", model="gpt-test", input="3", output="12")
    assert response.status_code == 302, errors(response)

    new = Price.objects.exclude(pk=old.pk).get()
    old.refresh_from_db()
    assert old.effective_until == new.effective_from
    closed: Any
    made: Any
    closed, made = AuditEntry.objects.filter(object_type="billing.price").order_by("id")
    assert (closed.action, closed.object_id, set(closed.after)) == ("update", str(old.pk), {"effective_until"})
    assert (made.action, made.object_id) == ("create", str(new.pk))
    # The same again changes nothing.
    submit(ada, url("add", "billing.price"), provider="openai", model="gpt-test", input="3", output="12")
    assert (Price.objects.count(), AuditEntry.objects.filter(object_type="billing.price").count()) == (2, 2)


def test_an_unusual_price_wants_a_confirmation(ada, world: World):
    typed = {"provider": "openai", "model": "dear", "input": "2500", "output": "10"}
    assert "confirm it" in errors(submit(ada, url("add", "billing.price"), **typed))
    assert submit(ada, url("add", "billing.price"), **typed, confirmed="on").status_code == 302


def test_a_price_in_force_is_neither_rewritten_nor_deleted(ada, world: World):
    price = world["billing.price"]
    submit(ada, url("change", price), input="1")
    assert Price.objects.get(pk=price.pk).input == price.input
    assert ada.post(url("delete", price), {"post": "yes"}).status_code == 403
    chosen = {"action": "delete_selected", "post": "yes", "_selected_action": [price.pk]}
    ada.post(url("changelist", "billing.price"), chosen)
    assert Price.objects.filter(pk=price.pk).exists()


def test_a_planned_price_is_withdrawn(ada, world: World):
    planned = make_price("later", effective_from=timezone.now() + timedelta(days=2))
    assert ada.post(url("delete", planned), {"post": "yes"}).status_code == 302
    assert not Price.objects.filter(pk=planned.pk).exists()


# ── long lists ──────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "label", ["billing.ledgerentry", "security.auditentry", "security.securityevent", "memory.turn"]
)
def test_long_lists_are_not_counted(ada, world: World, label: str, django_assert_max_num_queries):
    with django_assert_max_num_queries(8) as queries:
        page = ada.get(url("changelist", label))
    assert page.status_code == 200
    table = type(world[label])._meta.db_table
    assert not [query["sql"] for query in queries if "COUNT(" in query["sql"] and f'FROM "{table}"' in query["sql"]]
    assert "9999999999" not in page.content.decode()


def test_the_ledger_is_paged_and_filtered_by_day(ada, world: World):
    key = world["keys.virtualkey"].pk
    days = [datetime(2026, 1, day, 23, 30, tzinfo=UTC) for day in (1, 2, 3)]
    moments = [day for day in days for _ in range(20)]
    LedgerEntry.objects.bulk_create(LedgerEntry(**entry(key, at, 100 + number)) for number, at in enumerate(moments))
    first = ada.get(url("changelist", "billing.ledgerentry")).context["cl"].result_list
    second = ada.get(url("changelist", "billing.ledgerentry"), {"p": 2}).context["cl"].result_list
    assert (len(first), len(second)) == (50, 11)

    def number(**query) -> int:
        return len(ada.get(url("changelist", "billing.ledgerentry"), query).context["cl"].result_list)

    assert number(created_at_from="2026-01-02", created_at_to="2026-01-02") == 20
    assert number(created_at_from="2026-01-02", created_at_to="2026-01-03") == 40
    assert number(created_at_to="2026-01-01") == 20
    assert number(created_at_from="nonsense") == 50
    assert number(q="r105") == 1
    assert number(q="r10") == 0, "whole ids: an index answers"
    assert number(kind__exact="hold") == 0
    assert number(user_id="alice", created_at_to="2026-01-01") == 20
    assert number(user_id="ali") == 0
    assert number(user_id="", team="", created_at_to="2026-01-01") == 20, "left empty, as browsers send it"
