"""The contract of budget counters.

`used` is what the ledger's closing entries and adjustments add up to in the period; `reserved` is what open holds
keep back. A hold is admitted only if, in every budget that applies, used + reserved + hold stays within the limit:
so a budget is never overshot, and reserved is zero at rest.
"""

from datetime import datetime
from decimal import Decimal
from typing import Protocol

import msgspec

from gateway.types import BudgetTerms


class Amount(msgspec.Struct, frozen=True):
    """What is held or spent: US dollars (None: no price is known) and tokens."""

    usd: Decimal | None
    tokens: int


class Headroom(msgspec.Struct, frozen=True):
    """What is left in the tightest of some budgets; None where none limits it."""

    usd: Decimal | None
    tokens: int | None


class Owners(msgspec.Struct, frozen=True):
    """Whose budgets a request's spending counts in."""

    key_id: str
    user_id: str | None
    team: str | None

    def pairs(self) -> list[tuple[str, str]]:
        """(scope, owner), the organisation last."""
        found = [("key", self.key_id), ("user", self.user_id), ("team", self.team), ("organisation", "")]
        return [(scope, owner) for scope, owner in found if owner is not None]


class BudgetCounters(Protocol):
    async def refuse_used_up(self, terms: tuple[BudgetTerms, ...], at: datetime) -> None:
        """Raises `BudgetExceeded` where one is used up, as far as was heard within the last second: no request is let
        in by this, it only spares work on those that `hold` would refuse.
        """

    async def headroom(self, terms: tuple[BudgetTerms, ...], at: datetime) -> Headroom:
        """What the budgets still have. Raises `BudgetExceeded` where one is used up."""

    async def hold(self, request_id: str, terms: tuple[BudgetTerms, ...], amount: Amount, at: datetime) -> None:
        """Reserve in all budgets or in none. Raises `BudgetExceeded`, naming the budget."""

    def settle(self, request_id: str, owners: Owners, spent: Amount, at: datetime) -> None:
        """Give back what the request reserved and count what it spent (zero where nothing was served).

        `at` is when the request arrived: spending belongs to that period. Never waits.
        """

    async def close(self) -> None:
        """Let go of connections, after what was settled has been sent."""
