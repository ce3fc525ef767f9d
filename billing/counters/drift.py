"""A counter that is not what the ledger adds up to: said once, and counted."""

from decimal import Decimal

import structlog

from billing.counters.base import Amount
from gateway.metrics import COUNTER_DRIFT

log = structlog.get_logger()


def report(scope: str, *, budget: int, counted: Amount, ledger: Amount, unexplained: int = 0) -> None:
    """`unexplained`: reservations of which the ledger has no open hold."""
    COUNTER_DRIFT.labels(scope).inc()
    log.error(
        "counter_drift",
        scope=scope,
        budget=budget,
        counted_usd=_dollars(counted),
        counted_tokens=counted.tokens,
        ledger_usd=_dollars(ledger),
        ledger_tokens=ledger.tokens,
        unexplained_holds=unexplained,
    )


def _dollars(amount: Amount) -> str:
    return f"{(amount.usd or Decimal(0)).normalize():f}"
