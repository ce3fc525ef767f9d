"""A closing entry that comes after its hold was closed as orphaned: the difference becomes an adjustment."""

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import msgspec

from billing.fields import from_database
from billing.rows import LedgerRow, insert_sql, parameters

CLOSING = ("settlement", "release")
_TOKENS = ("prompt_tokens", "completion_tokens", "cached_tokens", "cache_write_tokens", "reasoning_tokens")


def correct_late_closings(cursor: Any, rows: Sequence[LedgerRow], vendor: str) -> None:
    """Add what is missing for closings among `rows` that another process's entry stood in for."""
    closings = {row.request_id: row for row in rows if row.kind in CLOSING}
    if not closings:
        return
    marks = ", ".join(["%s"] * len(closings))
    cursor.execute(
        f"SELECT request_id, cost_usd, {', '.join(_TOKENS)} FROM billing_ledgerentry "  # noqa: S608  # constants
        f"WHERE kind IN ('settlement', 'release') AND process_id <> %s AND request_id IN ({marks})",
        [rows[0].process_id, *closings],
    )
    adjustments = [_adjustment(closings[written[0]], written, vendor) for written in cursor.fetchall()]
    for row in adjustments:
        if row is not None and not _adjusted(cursor, row):
            cursor.execute(insert_sql(1, "%s"), parameters(row, vendor))


def _adjustment(true: LedgerRow, written: Sequence[Any], vendor: str) -> LedgerRow | None:
    cost = _less(true.cost_usd, from_database(written[1], vendor))
    tokens = {name: (getattr(true, name) or 0) - (was or 0) for name, was in zip(_TOKENS, written[2:], strict=True)}
    if not cost and not any(tokens.values()):
        return None
    return msgspec.structs.replace(
        true,
        kind="adjustment",
        cost_usd=cost,
        **tokens,
        detail={**true.detail, "reason": "late_usage"},
    )


def _less(true: Decimal | None, written: Decimal | None) -> Decimal | None:
    return None if true is None else true - (written or Decimal(0))


def _adjusted(cursor: Any, row: LedgerRow) -> bool:
    """Whether an earlier try of the same batch already wrote it."""
    cursor.execute(
        "SELECT 1 FROM billing_ledgerentry WHERE request_id = %s AND kind = 'adjustment' AND process_id = %s",
        [row.request_id, row.process_id],
    )
    return cursor.fetchone() is not None
