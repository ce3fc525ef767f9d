"""Budget counters of a single process. All run on the event loop, so a check and its reservation are one step."""

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta
from decimal import Decimal

import msgspec
import structlog
from django.db import DatabaseError

from billing.counters import drift
from billing.counters.base import Amount, Headroom, Owners
from billing.counters.refusals import exceeded
from billing.ledger import LedgerWriter
from billing.periods import bounds
from billing.spending import spent_since
from gateway.errors import GuardUnavailable
from gateway.types import BudgetTerms

log = structlog.get_logger()

ZERO = Decimal(0)
_LATE = timedelta(hours=6)  # no request lives longer: one that arrived before a period's end may hold after it
_VERIFY = 86_400.0  # seconds between two comparisons with the ledger
SpentSince = Callable[[str, str, datetime, datetime | None], tuple[Decimal, int]]
"""(scope, owner, from, until) → dollars and tokens on the ledger."""


_Terms = tuple[int, str, str]
"""Of a budget, what a counter depends on: its id, period and time zone."""


class _Counter:
    """One budget in one period."""

    __slots__ = (
        "failed", "loaded", "owner", "ready", "reserved_tokens", "reserved_usd", "start", "tokens", "until", "usd",
    )  # fmt: skip

    def __init__(self, owner: tuple[str, str], start: datetime, until: datetime | None, loaded: "asyncio.Future[None]"):
        self.owner = owner
        self.start = start
        self.until = until
        self.usd = self.reserved_usd = ZERO
        self.tokens = self.reserved_tokens = 0
        self.loaded = loaded
        self.ready = self.failed = False

    def covers(self, at: datetime) -> bool:
        return self.start <= at and (self.until is None or at < self.until)

    def is_over(self, at: datetime) -> bool:
        """Whether nobody can ask for it any more at `at`, or hold anything in it."""
        if self.reserved_usd or self.reserved_tokens:
            return False
        return self.failed or (self.until is not None and self.until < at - _LATE)


class _Reservation(msgspec.Struct, frozen=True):
    counters: tuple[_Counter, ...]
    amount: Amount


class MemoryCounters:
    """`BudgetCounters` in this process; `used` is read from the ledger when a budget is first asked for."""

    def __init__(self, writer: LedgerWriter, read: SpentSince = spent_since) -> None:
        self._writer = writer
        self._read = read
        self._by_budget: dict[_Terms, list[_Counter]] = {}
        """Around a period's end both the old one and the new one are asked for."""
        self._by_owner: dict[tuple[str, str], set[_Counter]] = {}
        self._held: dict[str, _Reservation] = {}
        self._verification: asyncio.Task[None] | None = None

    async def refuse_used_up(self, terms: tuple[BudgetTerms, ...], at: datetime) -> None:
        for budget, counter in zip(terms, await self._counters(terms, at), strict=True):
            usd, most = budget.limit_usd, budget.limit_tokens
            if (usd is not None and counter.usd + counter.reserved_usd >= usd) or (
                most is not None and counter.tokens + counter.reserved_tokens >= most
            ):
                raise self._refusal(budget, counter, at)

    async def headroom(self, terms: tuple[BudgetTerms, ...], at: datetime) -> Headroom:
        usd: Decimal | None = None
        tokens: int | None = None
        for budget, counter in zip(terms, await self._counters(terms, at), strict=True):
            if budget.limit_usd is not None:
                left = budget.limit_usd - counter.usd - counter.reserved_usd
                usd = left if usd is None else min(usd, left)
            if budget.limit_tokens is not None:
                left_tokens = budget.limit_tokens - counter.tokens - counter.reserved_tokens
                tokens = left_tokens if tokens is None else min(tokens, left_tokens)
            if (usd is not None and usd <= 0) or (tokens is not None and tokens <= 0):
                raise self._refusal(budget, counter, at)
        return Headroom(usd, tokens)

    async def hold(self, request_id: str, terms: tuple[BudgetTerms, ...], amount: Amount, at: datetime) -> None:
        counters = await self._counters(terms, at)
        usd = amount.usd or ZERO
        # From here to the end nothing awaits: no other request comes in between.
        for budget, counter in zip(terms, counters, strict=True):
            over_usd = budget.limit_usd is not None and counter.usd + counter.reserved_usd + usd > budget.limit_usd
            over_tokens = (
                budget.limit_tokens is not None
                and counter.tokens + counter.reserved_tokens + amount.tokens > budget.limit_tokens
            )
            if over_usd or over_tokens:
                raise self._refusal(budget, counter, at)
        for counter in counters:
            counter.reserved_usd += usd
            counter.reserved_tokens += amount.tokens
        self._held[request_id] = _Reservation(tuple(counters), amount)

    def settle(self, request_id: str, owners: Owners, spent: Amount, at: datetime) -> None:
        reservation = self._held.pop(request_id, None)
        if reservation is not None:
            for counter in reservation.counters:
                counter.reserved_usd -= reservation.amount.usd or ZERO
                counter.reserved_tokens -= reservation.amount.tokens
        if not self._by_owner:
            return
        # Not only the budgets that were held: one that was made since counts this request too.
        for pair in owners.pairs():
            for counter in self._by_owner.get(pair, ()):
                if counter.covers(at):
                    counter.usd += spent.usd or ZERO
                    counter.tokens += spent.tokens

    async def close(self) -> None:
        """End the daily comparison."""
        if self._verification is not None:
            self._verification.cancel()

    async def verify(self) -> int:
        """Read each budget once more and compare; the ledger is right. Returns how many differed."""
        counters = [(number, one) for (number, *_), found in self._by_budget.items() for one in found]
        return sum([await self._differs(number, counter) for number, counter in counters])

    async def _differs(self, number: int, counter: _Counter) -> bool:
        # Beside the old one: both are told of the same settlements while the ledger is read.
        anew = self._counter(counter.owner, counter.start, counter.until)
        try:
            await anew.loaded
        except GuardUnavailable:
            return False
        finally:
            self._by_owner[anew.owner].discard(anew)
        if not counter.ready or (counter.usd, counter.tokens) == (anew.usd, anew.tokens):
            return False
        drift.report(
            counter.owner[0], budget=number, counted=Amount(counter.usd, counter.tokens),
            ledger=Amount(anew.usd, anew.tokens),
        )  # fmt: skip
        counter.usd, counter.tokens = anew.usd, anew.tokens
        return True

    async def _verify_daily(self) -> None:
        while True:
            await asyncio.sleep(_VERIFY)
            await self.verify()

    async def _counters(self, terms: tuple[BudgetTerms, ...], at: datetime) -> list[_Counter]:
        found = []
        for budget in terms:
            counters = self._by_budget.get((budget.id, budget.period, budget.tz), ())
            for counter in counters:
                if counter.covers(at) and not counter.failed:
                    break
            else:
                counter = self._new_counter(budget, at)
            if not counter.ready:
                await asyncio.shield(counter.loaded)
            found.append(counter)
        return found

    def _new_counter(self, budget: BudgetTerms, at: datetime) -> _Counter:
        counter = self._counter((budget.scope, budget.owner), *bounds(budget.period, budget.tz, at))
        before = self._by_budget.setdefault((budget.id, budget.period, budget.tz), [])
        for one in before:
            if one.is_over(at):
                self._by_owner[one.owner].discard(one)
        before[:] = [*(one for one in before if not one.is_over(at)), counter]
        if self._verification is None:
            self._verification = asyncio.get_running_loop().create_task(self._verify_daily())
        return counter

    def _counter(self, owner: tuple[str, str], start: datetime, until: datetime | None) -> _Counter:
        """One that counts from now on, and reads what was before."""
        counter = _Counter(owner, start, until, asyncio.get_running_loop().create_future())
        self._by_owner.setdefault(counter.owner, set()).add(counter)
        self._load(counter)
        return counter

    def _load(self, counter: _Counter) -> None:
        """Add what the ledger already has.

        On the writer's thread, after everything queued so far: what is settled before now is in the ledger's sum, what
        is settled from now on is counted by `settle`. Nothing is missed and nothing counted twice.
        """
        loop = asyncio.get_running_loop()

        def read() -> None:
            try:
                usd, tokens = self._read(*counter.owner, counter.start, counter.until)
            except DatabaseError as error:
                log.error("budget_not_loaded", scope=counter.owner[0], error=type(error).__name__)
                loop.call_soon_threadsafe(_fail, counter)
            else:
                loop.call_soon_threadsafe(_add, counter, usd, tokens)

        self._writer.run_in_order(read)

    @staticmethod
    def _refusal(budget: BudgetTerms, counter: _Counter, at: datetime) -> Exception:
        return exceeded(
            budget, Amount(counter.usd, counter.tokens), Amount(counter.reserved_usd, counter.reserved_tokens), at
        )


def _add(counter: _Counter, usd: Decimal, tokens: int) -> None:
    counter.usd += usd
    counter.tokens += tokens
    counter.ready = True
    counter.loaded.set_result(None)


def _fail(counter: _Counter) -> None:
    counter.failed = True
    counter.loaded.set_exception(GuardUnavailable("The budget cannot be checked at the moment.", retry_after=5))
    counter.loaded.exception()  # seen: nobody may be waiting
