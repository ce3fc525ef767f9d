"""A ledger entry on its way to the database: one typed value, its columns in the table's order."""

from datetime import UTC, datetime
from decimal import Decimal
from functools import cache
from typing import Any

import msgspec

from billing.fields import to_database
from gateway.types import Attempt


class LedgerRow(msgspec.Struct, frozen=True, array_like=True):
    """Mirrors `billing.models.LedgerEntry`. Times are seconds since the epoch, money US dollars."""

    request_id: str
    kind: str
    created_at: float
    written_at: float
    process_id: str
    client_request_id: str | None
    key_id: str
    user_id: str | None
    team: str | None
    provider: str
    deployment: str
    requested_model: str
    routed_model: str
    served_model: str | None
    status: int | None
    stream: bool
    held_usd: Decimal | None
    held_prompt_tokens: int | None
    held_output_tokens: int | None
    prompt_tokens: int | None
    completion_tokens: int | None
    cached_tokens: int | None
    cache_write_tokens: int | None
    reasoning_tokens: int | None
    cost_usd: Decimal | None
    price_id: int | None
    unpriced: bool
    estimated: bool
    latency_ms: float | None
    ttft_ms: float | None
    overhead_ms: float | None
    session_id: str | None
    tags: tuple[str, ...]
    attempts: tuple[Attempt, ...]
    security_action: str | None
    detail: dict[str, Any]


COLUMNS = LedgerRow.__struct_fields__
_TIMES = tuple(COLUMNS.index(name) for name in ("created_at", "written_at"))
_MONEY = tuple(COLUMNS.index(name) for name in ("held_usd", "cost_usd"))
_JSON = tuple(COLUMNS.index(name) for name in ("tags", "attempts", "detail"))
_NOTHING = {index: "{}" if COLUMNS[index] == "detail" else "[]" for index in _JSON}
_encode = msgspec.json.Encoder(enc_hook=str).encode

_INTO = f"INSERT INTO billing_ledgerentry ({', '.join(COLUMNS)}) VALUES "  # noqa: S608  # constants


@cache
def insert_sql(rows: int, mark: str) -> str:
    """One statement for `rows` rows, with the driver's placeholder; rows that are there already are passed over."""
    values = f"({', '.join([mark] * len(COLUMNS))})"
    return f"{_INTO}{', '.join([values] * rows)} ON CONFLICT DO NOTHING"


def parameters(row: LedgerRow, vendor: str) -> list[Any]:
    """The row as the driver of `vendor` takes it."""
    values = list(msgspec.structs.astuple(row))
    if vendor == "sqlite":
        for index in _TIMES:
            # As Django writes them there: naive UTC text.
            values[index] = datetime.fromtimestamp(values[index], UTC).isoformat(" ")[:-6]
    else:
        for index in _TIMES:
            values[index] = datetime.fromtimestamp(values[index], UTC)
    for index in _MONEY:
        if values[index] is not None:
            values[index] = to_database(values[index], vendor)
    for index in _JSON:
        value = values[index]
        values[index] = _encode(value).decode() if value else _NOTHING[index]
    return values
