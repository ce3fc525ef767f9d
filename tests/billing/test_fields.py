"""Money in the database: exact, in sums too, on SQLite and on PostgreSQL."""

from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal

import dj_database_url
import pytest
from django.db import connection, connections
from django.db.models import F, Max, Min, Sum
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from billing.fields import QUANTUM, MoneyField, from_database, to_database
from billing.models import Budget, LedgerEntry
from tests.support.ledger import make_row
from tests.support.postgres import scratch_database

D = Decimal
amounts = st.decimals(min_value=-(10**6), max_value=10**6, places=12)


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database(request: pytest.FixtureRequest, committed: None) -> Iterator[str]:
    """The alias of a database of this kind that has the ledger."""
    if request.param == "sqlite":
        yield "default"
        return
    with scratch_database(request.getfixturevalue("postgres_url")) as url:
        parsed = dj_database_url.parse(url)
        connections.databases["postgres"] = {**connections.databases["default"], **parsed, "OPTIONS": {}, "TEST": {}}
        try:
            with connections["postgres"].schema_editor() as editor:
                editor.create_model(LedgerEntry)
                editor.create_model(Budget)
            yield "postgres"
        finally:
            connections["postgres"].close()
            del connections["postgres"]
            del connections.databases["postgres"]


def entries(alias: str, *costs: Decimal | None) -> list[LedgerEntry]:
    rows = [make_row("adjustment", cost_usd=cost) for cost in costs]
    made = [_entry(row) for row in rows]
    return LedgerEntry.objects.using(alias).bulk_create(made)


def _entry(row):
    values = {name: getattr(row, name) for name in row.__struct_fields__}
    for name in ("created_at", "written_at"):
        values[name] = datetime.fromtimestamp(values[name], UTC)
    return LedgerEntry(**{**values, "tags": [], "attempts": []})


@pytest.mark.parametrize(
    "cost",
    ["0", "0.000000000001", "0.1", "0.3", "0.0000675", "1234567.891234567891", "999999.999999999999",
     "-0.000000000001", "9000000"],
)  # fmt: skip
def test_what_goes_in_comes_out(database, cost):
    (made,) = entries(database, D(cost))
    found = LedgerEntry.objects.using(database).get(pk=made.pk)
    assert found.cost_usd == D(cost)
    assert isinstance(found.cost_usd, Decimal)
    assert LedgerEntry.objects.using(database).filter(cost_usd=D(cost)).exists()


def test_null_stays_null(database):
    (made,) = entries(database, None)
    assert LedgerEntry.objects.using(database).get(pk=made.pk).cost_usd is None
    assert LedgerEntry.objects.using(database).aggregate(sum=Sum("cost_usd", output_field=MoneyField()))["sum"] is None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors], max_examples=20)
@given(costs=st.lists(amounts, min_size=1, max_size=30))
def test_sums_are_exact(database, costs):
    rows = LedgerEntry.objects.using(database)
    rows.all()._raw_delete(database)
    entries(database, *costs)
    found = rows.aggregate(sum=Sum("cost_usd", output_field=MoneyField()), least=Min("cost_usd"), most=Max("cost_usd"))
    assert found == {"sum": sum(costs, D(0)), "least": min(costs), "most": max(costs)}


def test_a_thousand_tenths_are_a_hundred(database):
    entries(database, *[D("0.1")] * 1000)
    assert LedgerEntry.objects.using(database).aggregate(sum=Sum("cost_usd"))["sum"] == 100


def test_it_is_compared_and_ordered_as_a_number(database):
    entries(database, D("10"), D("9"), D("-1"), D("0.5"))
    rows = LedgerEntry.objects.using(database)
    assert list(rows.order_by("cost_usd").values_list("cost_usd", flat=True)) == [D("-1"), D("0.5"), D("9"), D("10")]
    assert rows.filter(cost_usd__gt=D("0.5")).count() == 2
    assert rows.filter(cost_usd__in=[D("9"), D("10")]).count() == 2
    assert rows.filter(cost_usd__range=(D("0"), D("9"))).count() == 2


def test_more_places_are_rounded_to_even_once(database):
    (made, other) = entries(database, D("0.0000000000005"), D("0.0000000000015"))
    rows = LedgerEntry.objects.using(database).in_bulk()
    assert rows[made.pk].cost_usd == 0
    assert rows[other.pk].cost_usd == D("0.000000000002")


def test_a_form_takes_a_number_as_it_is_typed(committed):
    field = MoneyField()
    assert field.to_python("0.1") == D("0.1")
    with pytest.raises(Exception, match="decimal"):
        field.clean("ten", None)


def test_an_update_by_expression_is_exact(committed):
    budget = Budget.objects.create(scope="organisation", limit_dollars=D("0.1"))
    Budget.objects.filter(pk=budget.pk).update(limit_dollars=D("0.3"))
    budget.refresh_from_db()
    assert budget.limit_dollars == D("0.3")
    assert Budget.objects.filter(limit_dollars=F("limit_dollars")).exists()


@given(amounts)
def test_the_drivers_form_is_its_own_inverse(amount):
    for vendor in ("sqlite", "postgresql"):
        assert from_database(to_database(amount, vendor), vendor) == amount
    assert to_database(None, "sqlite") is None
    assert isinstance(to_database(amount, "sqlite"), int)


def test_sqlite_keeps_integers_and_postgres_numerics():
    field = LedgerEntry._meta.get_field("cost_usd")
    assert field.db_type(connection) == ("bigint" if connection.vendor == "sqlite" else "numeric(24, 12)")
    assert D(10) ** -12 == QUANTUM
