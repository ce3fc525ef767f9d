"""Whether each budget's counter is what the ledger adds up to, to the last digit; and making it so.

In Redis a budget is read once more, under another name, beside the one that counts, and both are told of the same
settlements from then on: once those that were on their way have arrived they are equal, traffic or not. A repair puts
the new reading in the place of the old one in one step, so that at no moment less counts than was spent. What is
reserved is compared with what the processes hold, and that with the open holds on the ledger.

In process the counters are the gateway's own, which compares them itself (`MemoryCounters`).
"""

import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from decimal import Decimal
from typing import Any

import msgspec
from django.utils import timezone

from billing.alerts import recording
from billing.counters import drift
from billing.counters import redis_scripts as lua
from billing.counters.base import Amount
from billing.counters.redis import CLOSED_LATELY, Counted, Evaluate, evaluating, finish, joined
from billing.counters.standing import read_standing
from billing.models import Budget, LedgerEntry
from billing.models.ledger import IS_CLOSING, Kind
from gateway.models import GatewayProcess

_PATIENCE = 3.0  # seconds for settlements to arrive that were on their way, and for holds to be written down
_LOOK = 0.1
_READINGS = 10  # of a budget that is given back, and so has to be read again, while it is read
_CHUNK = 500  # requests looked up at once

Holder = tuple[str, str]
"""Process and request."""


class Result(msgspec.Struct, frozen=True):
    """One budget's current period. `counted` None: nobody counts it outside of the gateway's process, or nobody has
    asked for it since it was last to be read.
    """

    budget: Budget
    since: datetime
    ledger: Amount
    open: Amount
    """What the ledger's open holds reserve."""
    counted: Amount | None = None
    reserved: Amount | None = None
    held: Amount | None = None
    """What the processes' records add up to."""
    leased: Amount | None = None
    unexplained: tuple[Holder, ...] = ()
    """Records of which the ledger has no open hold."""

    @property
    def differs(self) -> bool:
        if self.counted is None:
            return False
        return self.counted != self.ledger or self.reserved != self.held or bool(self.unexplained)


class _Figures(msgspec.Struct, frozen=True):
    used: Amount
    reserved: Amount
    leased: Amount
    anew: Amount
    held: Amount

    @property
    def agree(self) -> bool:
        return self.used == self.anew and self.reserved == self.held


def verify(*, repair: bool = False, budgets: Iterable[Budget] | None = None) -> Iterator[Result]:
    """Compare every budget; a difference is logged, counted and alerted. Raises `redis.RedisError`, `DatabaseError`."""
    with evaluating() as evaluate:
        for budget in Budget.objects.order_by("id") if budgets is None else budgets:
            result = _by_ledger(budget)
            if evaluate is not None:
                result = _RedisBudget(evaluate, budget).compared(result, repair=repair)
            if result.differs:
                _tell(result)
            yield result


def _tell(result: Result) -> None:
    assert result.counted is not None
    budget, now = result.budget, timezone.now()
    detail = drift.report(
        budget.scope, budget=budget.pk, counted=result.counted, ledger=result.ledger,
        unexplained=len(result.unexplained),
    )  # fmt: skip
    recording.record(
        kind=drift.ALERT,
        subject=drift.subject(budget.pk),
        period_start=now.replace(hour=0, minute=0, second=0, microsecond=0),
        detail=detail,
        at=now,
    )


def _by_ledger(budget: Budget) -> Result:
    now = timezone.now()
    counted = Counted.of(budget.terms(), now)
    standing = read_standing(*counted.scope_and_owner, counted.start, counted.until, now, with_open=True)
    dollars = sum((hold.amount.usd or Decimal(0) for hold in standing.open), Decimal(0))
    return Result(
        budget, counted.start, standing.spent, Amount(dollars, sum(hold.amount.tokens for hold in standing.open))
    )


class _RedisBudget:
    """One budget in Redis, in its current period."""

    def __init__(self, evaluate: Evaluate, budget: Budget) -> None:
        self._evaluate = evaluate
        self._counted = Counted.of(budget.terms(), timezone.now())
        self._anew = msgspec.structs.replace(self._counted, key=f"{self._counted.key}:read-{secrets.token_hex(4)}")

    def compared(self, result: Result, *, repair: bool) -> Result:
        """`result` with what Redis counts, before it was repaired."""
        unexplained = self._unexplained()
        try:
            figures = self._figures_beside_a_new_reading()
            if figures is None:
                return result
            compared = msgspec.structs.replace(
                result, ledger=figures.anew, counted=figures.used, reserved=figures.reserved, held=figures.held,
                leased=figures.leased, unexplained=unexplained,
            )  # fmt: skip
            if repair and compared.differs:
                if unexplained:
                    self._evaluate(lua.DROP, unexplained)
                self._figures(repair=True)
            return compared
        finally:
            self._evaluate(lua.FORGET, [self._anew.key, self._anew.owner])

    def _figures_beside_a_new_reading(self) -> _Figures | None:
        """Once they agree, or do not after a while; None where the budget is to be read anyhow."""
        if self._figures_or_none(self._counted.key) is None or not self._read():
            return None
        until = time.monotonic() + _PATIENCE
        while (figures := self._figures()) is not None and not figures.agree and time.monotonic() < until:
            time.sleep(_LOOK)
        return figures

    def _read(self) -> bool:
        """Read the ledger into the other budget. What is open is not its to hold."""
        reader = f"verify-{secrets.token_hex(4)}"
        for _ in range(_READINGS):
            reply = self._evaluate(lua.BEGIN, self._anew.begin(reader))
            if reply[0] == b"loaded":
                return True
            standing = read_standing(
                *self._anew.scope_and_owner, self._anew.start, self._anew.until, timezone.now() - CLOSED_LATELY,
                with_open=False,
            )  # fmt: skip
            if self._evaluate(lua.FINISH, finish(self._anew.key, int(reply[1]), int(reply[2]), standing)):
                return True
        return False

    def _figures(self, *, repair: bool = False) -> _Figures | None:
        return self._figures_or_none(self._anew.key, repair=repair)

    def _figures_or_none(self, anew: str, *, repair: bool = False) -> _Figures | None:
        words = self._evaluate(lua.COMPARE, [self._counted.key, anew, _processes(), repair]).split()
        if not words:
            return None
        return _Figures(*(_amount(words[start : start + 3]) for start in range(0, len(words), 3)))

    # ── what is reserved ────────────────────────────────────────────────────────────────────────────────────────────

    def _unexplained(self) -> tuple[Holder, ...]:
        """Records whose request is not open on the ledger, at two looks: between them a hold is written down, and what
        was settled reaches Redis.
        """
        suspect = self._without_open_hold()
        if suspect:
            time.sleep(_PATIENCE)
            suspect &= self._without_open_hold()
        return tuple(sorted(suspect))

    def _without_open_hold(self) -> set[Holder]:
        found = self._evaluate(lua.HOLDERS, [self._counted.key, _processes()])
        holders = {(process.decode(), request.decode()) for process, request in found}
        open_ = _open({_request(name) for _, name in holders})
        return {holder for holder in holders if _request(holder[1]) not in open_}


def _processes() -> list[str]:
    return list(GatewayProcess.objects.values_list("pk", flat=True))


def _request(name: str) -> str:
    """Whose record it is: a request's renewals have a number behind its id."""
    return name.partition("/")[0]


def _open(requests: Iterable[str]) -> set[str]:
    """Those that are held on the ledger and not closed."""
    names = sorted(requests)
    found: set[str] = set()
    for start in range(0, len(names), _CHUNK):
        entries = LedgerEntry.objects.filter(request_id__in=names[start : start + _CHUNK])
        held = entries.filter(kind=Kind.HOLD).values_list("request_id", flat=True)
        found |= set(held) - set(entries.filter(IS_CLOSING).values_list("request_id", flat=True))
    return found


def _amount(words: Sequence[Any]) -> Amount:
    return Amount(joined(words[0], words[1]), int(words[2]))
