"""What a caller is told when a budget refuses: which one, its limit, what is used and reserved, when it resets."""

from datetime import datetime
from decimal import Decimal

from billing.counters.base import Amount
from billing.periods import bounds
from gateway.errors import BudgetExceeded
from gateway.types import BudgetTerms


def _owner(terms: BudgetTerms) -> str:
    return "the organisation" if terms.scope == "organisation" else f"this {terms.scope}"


def exceeded(terms: BudgetTerms, used: Amount, reserved: Amount, at: datetime) -> BudgetExceeded:
    """The refusal of one budget."""
    _, resets_at = bounds(terms.period, terms.tz, at)
    parts = []
    if terms.limit_usd is not None:
        parts.append(f"${_money(terms.limit_usd)}, used ${_money(used.usd)}, reserved ${_money(reserved.usd)}")
    if terms.limit_tokens is not None:
        parts.append(f"{terms.limit_tokens} tokens, used {used.tokens}, reserved {reserved.tokens}")
    reset = f" It resets at {resets_at:%Y-%m-%dT%H:%M:%SZ}." if resets_at is not None else ""
    return BudgetExceeded(
        f"The {terms.period} budget of {_owner(terms)} has too little left for this request: "
        f"limit {'; '.join(parts)}.{reset}",
        limited_by=(terms.scope, "budget"),
    )


def _money(amount: Decimal | None) -> str:
    return f"{(amount or Decimal(0)).normalize():f}"
