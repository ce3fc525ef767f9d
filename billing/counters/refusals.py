"""What a caller is told when a budget refuses: which one, its limit, what is used and reserved, when it resets."""

from datetime import datetime
from decimal import Decimal

from billing.counters.base import Amount
from billing.periods import bounds, is_custom, is_once
from gateway.errors import BudgetExceeded
from gateway.types import BudgetTerms


def _owner(terms: BudgetTerms) -> str:
    return "the organisation" if terms.scope == "organisation" else f"this {terms.scope}"


def exceeded(terms: BudgetTerms, used: Amount, reserved: Amount, at: datetime) -> BudgetExceeded:
    """The refusal of one budget."""
    _, resets_at = bounds(terms.period, terms.tz, at)
    parts = []
    if terms.limit_usd is not None:
        grace = f" and with its grace ${_money(terms.limit_usd)}" if terms.stated_usd is not None else ""
        limit = terms.limit_usd if terms.stated_usd is None else terms.stated_usd
        parts.append(f"${_money(limit)}{grace}, used ${_money(used.usd)}, reserved ${_money(reserved.usd)}")
    if terms.limit_tokens is not None:
        grace = f" and with its grace {terms.limit_tokens}" if terms.stated_tokens is not None else ""
        limit_tokens = terms.limit_tokens if terms.stated_tokens is None else terms.stated_tokens
        parts.append(f"{limit_tokens} tokens{grace}, used {used.tokens}, reserved {reserved.tokens}")
    return BudgetExceeded(
        f"The {_period(terms)} budget of {_owner(terms)} has too little left for this request: "
        f"limit {'; '.join(parts)}.{_reset(terms, resets_at)}",
        limited_by=(terms.scope, "budget"),
    )


def _period(terms: BudgetTerms) -> str:
    return "custom" if is_custom(terms.period) else terms.period


def _reset(terms: BudgetTerms, at: datetime | None) -> str:
    if at is None:
        return ""
    return f" It {'ends' if is_once(terms.period) else 'resets'} at {at:%Y-%m-%dT%H:%M:%SZ}."


def _money(amount: Decimal | None) -> str:
    return f"{(amount or Decimal(0)).normalize():f}"
