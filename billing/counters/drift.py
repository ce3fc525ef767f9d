"""A counter that is not what the ledger adds up to: logged, counted, and alerted once a day."""

from decimal import Decimal
from typing import Any

import structlog

from billing.alerts import raise_soon
from billing.counters.base import Amount
from gateway.metrics import COUNTER_DRIFT

log = structlog.get_logger()

ALERT = "counter_drift"


def report(scope: str, *, budget: int, counted: Amount, ledger: Amount, unexplained: int = 0) -> dict[str, Any]:
    """`unexplained`: reservations of which the ledger has no open hold. Returns what an alert tells of it, which the
    data plane has raised already; a command or a job writes it itself.
    """
    COUNTER_DRIFT.labels(scope).inc()
    detail = {
        "scope": scope,
        "budget": budget,
        "counted_usd": _dollars(counted),
        "counted_tokens": counted.tokens,
        "ledger_usd": _dollars(ledger),
        "ledger_tokens": ledger.tokens,
        "unexplained_holds": unexplained,
    }
    log.error("counter_drift", **detail)
    raise_soon(ALERT, subject(budget), detail)
    return detail


def subject(budget: int) -> str:
    return f"budget {budget}"


def _dollars(amount: Amount) -> str:
    return f"{(amount.usd or Decimal(0)).normalize():f}"
