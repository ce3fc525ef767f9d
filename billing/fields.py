"""Money in the database, exact on every database."""

from decimal import ROUND_HALF_EVEN, Decimal
from typing import Any

from django.db import models
from django.db.backends.base.base import BaseDatabaseWrapper

PLACES = 12
QUANTUM = Decimal(1).scaleb(-PLACES)


class MoneyField(models.DecimalField):  # type: ignore[type-arg]  # generic at type-check time only
    """US dollars with 12 decimal places.

    PostgreSQL keeps `numeric(24, 12)`. SQLite has no exact decimal (its NUMERIC affinity turns long decimals
    into floats, and SUM adds floats), so there the column is an integer of pico-dollars: exact, and exact in sums
    up to 9.2 million dollars.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("max_digits", 24)
        kwargs.setdefault("decimal_places", PLACES)
        super().__init__(*args, **kwargs)

    def get_internal_type(self) -> str:
        # Not DecimalField: Django's SQLite backend would cast and convert through floats.
        return "MoneyField"

    def db_type(self, connection: BaseDatabaseWrapper) -> str:
        return "bigint" if connection.vendor == "sqlite" else f"numeric({self.max_digits}, {self.decimal_places})"

    def get_db_prep_value(self, value: Any, connection: BaseDatabaseWrapper, prepared: bool = False) -> Any:
        value = self.to_python(value)
        return to_database(value, connection.vendor)

    def get_db_prep_save(self, value: Any, connection: BaseDatabaseWrapper) -> Any:
        if hasattr(value, "as_sql"):
            return value
        return self.get_db_prep_value(value, connection)

    def from_db_value(self, value: Any, expression: Any, connection: BaseDatabaseWrapper) -> Decimal | None:
        return from_database(value, connection.vendor)


def to_database(value: Decimal | None, vendor: str) -> Decimal | int | None:
    """What the driver is given for `value`: also used by the ledger's raw inserts."""
    if value is None:
        return value
    # Here on every database: PostgreSQL would round half up.
    rounded = value.quantize(QUANTUM, rounding=ROUND_HALF_EVEN)
    return int(rounded.scaleb(PLACES)) if vendor == "sqlite" else rounded


def from_database(value: Any, vendor: str) -> Decimal | None:
    """The inverse of `to_database`, for columns and their sums."""
    if value is None:
        return None
    return Decimal(value).scaleb(-PLACES) if vendor == "sqlite" else Decimal(value)
