"""Leases: what a process may let its budgets spend while Redis is away. Pure; `billing.counters.redis` asks Redis.

A lease is reserved in Redis under the process's name, beside what requests hold, so that all that is used, held and
leased stays within the limit and no budget is overshot by the processes together. One is taken of each budget that is
in use, renewed twice a second, small against what is left, and given back when the budget is not used any more.

What a process believes to have is at no moment more than what Redis keeps for it: it lowers its own figure before it
asks for less, and raises it after the answer. While Redis is away requests hold against it (`hold`); what they did not
spend may be held again. When Redis is back it is told of all that in order, and keeps the whole lease meanwhile; the
renewal after that takes a new one (`told`).
"""

from collections import deque
from collections.abc import Iterable
from decimal import ROUND_FLOOR, Decimal

import msgspec

from billing.counters.base import Amount, Headroom
from billing.fields import QUANTUM
from gateway.types import BudgetTerms

ZERO = Decimal(0)
NOTHING = Amount(ZERO, 0)
SHARE = 20  # a process leases at most a twentieth of what is left, so that the others have nearly all of it
REMEMBERED = 20  # renewals, ten seconds: a budget that nobody used for so long is no longer leased
AHEAD = 6  # a lease is to last for six times the time that is remembered: a minute


class Asked(msgspec.Struct, frozen=True):
    """What is asked of Redis for one budget. `touched`: something was held against the lease it has."""

    key: str
    terms: BudgetTerms
    wanted: Amount
    touched: bool


class Answer(msgspec.Struct, frozen=True):
    """`left` is what nobody used, held or leased, and this process's lease; `recalled`: somebody needs it all."""

    granted: Amount
    left: Headroom
    recalled: bool


class _Lease:
    """Of one budget in one period."""

    __slots__ = ("_past", "held_tokens", "held_usd", "largest", "left", "recalled", "terms", "tokens", "touched", "usd")

    def __init__(self, terms: BudgetTerms) -> None:
        self.terms = terms
        self.usd = ZERO
        self.tokens = 0
        """With `usd`, what may still be held without Redis."""
        self.touched = False
        self.recalled = False
        self.left: Headroom | None = None
        self.held_usd = ZERO
        self.held_tokens = 0
        """With `held_usd`, what requests held since the last renewal."""
        self._past: deque[tuple[Decimal, int]] = deque(maxlen=REMEMBERED)
        self.largest = NOTHING

    def change_to(self, terms: BudgetTerms) -> None:
        """The budget allows something else than it did. What was leased of a higher limit may be too much."""
        if _lowered(self.terms, terms):
            self.lower_to(NOTHING)
            self.touched = True
        self.terms = terms

    def lower_to(self, amount: Amount) -> None:
        self.usd = min(self.usd, amount.usd or ZERO)
        self.tokens = min(self.tokens, amount.tokens)

    def wanted(self) -> Amount:
        """As much as will be held in a while at the pace of the last; nothing where a lease of a tolerable size would
        not do for a single request.
        """
        usd = sum((usd for usd, _ in self._past), ZERO)
        tokens = sum(tokens for _, tokens in self._past)
        if self.recalled or self.left is None or not (usd or tokens):
            return NOTHING
        terms, left = self.terms, self.left
        most_usd = max(left.usd or ZERO, ZERO) / SHARE if terms.limit_usd is not None else ZERO
        most_tokens = max(left.tokens or 0, 0) // SHARE if terms.limit_tokens is not None else 0
        if terms.limit_usd is not None and most_usd < (self.largest.usd or ZERO):
            return NOTHING
        if terms.limit_tokens is not None and most_tokens < self.largest.tokens:
            return NOTHING
        dollars = min(most_usd, AHEAD * usd).quantize(QUANTUM, ROUND_FLOOR)
        return Amount(dollars, min(most_tokens, AHEAD * tokens))

    def remember(self) -> bool:
        """A renewal's time is over; whether the budget was in use lately."""
        self._past.append((self.held_usd, self.held_tokens))
        self.held_usd, self.held_tokens = ZERO, 0
        if any(usd or tokens for usd, tokens in self._past):
            return True
        self.largest = NOTHING
        return False


class Leases:
    """The leases of one process, by the key of a budget in its period."""

    def __init__(self) -> None:
        self._by_key: dict[str, _Lease] = {}
        self._open: dict[str, tuple[tuple[_Lease, ...], Amount]] = {}
        """By request, what is held against leases."""

    # ── while Redis is there ────────────────────────────────────────────────────────────────────────────────────────

    def note(self, keys: Iterable[str], terms: Iterable[BudgetTerms], amount: Amount) -> None:
        """A request holds so much: what is in use is to be leased."""
        for key, one in zip(keys, terms, strict=True):
            lease = self._by_key.get(key)
            if lease is None:
                lease = self._by_key[key] = _Lease(one)
            elif lease.terms is not one:
                lease.change_to(one)
            lease.held_usd += amount.usd or ZERO
            lease.held_tokens += amount.tokens
            if amount.tokens > lease.largest.tokens or (amount.usd or ZERO) > (lease.largest.usd or ZERO):
                lease.largest = _larger(lease.largest, amount)

    def asking(self) -> list[Asked]:
        """A renewal: what to ask for. From here on no more than that is believed to be there."""
        asked = []
        for key, lease in list(self._by_key.items()):
            in_use = lease.remember()
            wanted = lease.wanted()
            if not in_use and not lease.usd and not lease.tokens and not lease.touched:
                del self._by_key[key]
                continue
            lease.lower_to(wanted)
            asked.append(Asked(key, lease.terms, wanted, lease.touched))
        return asked

    def granted(self, asked: Asked, answer: Answer) -> bool:
        """What Redis said to a renewal; whether to ask again at once."""
        lease = self._by_key.get(asked.key)
        if lease is None:
            return False
        first = lease.left is None
        lease.left, lease.recalled = answer.left, answer.recalled
        if asked.touched:
            lease.touched = False
        if answer.recalled:
            lease.lower_to(NOTHING)
            return answer.granted != NOTHING
        if not lease.touched:  # else something was held meanwhile, of what was there before
            lease.usd, lease.tokens = answer.granted.usd or ZERO, answer.granted.tokens
        return first

    @property
    def in_use(self) -> bool:
        """Whether there is anything to renew or to give back."""
        return bool(self._by_key)

    @property
    def touched(self) -> bool:
        """Whether anything was held here."""
        return any(lease.touched for lease in self._by_key.values())

    def forget(self) -> None:
        """Redis has none of ours."""
        self._by_key.clear()
        self._open.clear()

    def give_up(self, key: str) -> None:
        """A request needs what is leased."""
        if (lease := self._by_key.get(key)) is not None:
            lease.lower_to(NOTHING)
            lease.recalled = True

    def give_up_all(self) -> list[Asked]:
        """At the end: what to ask for so that nothing stays leased."""
        for lease in self._by_key.values():
            lease.lower_to(NOTHING)
        return [Asked(key, lease.terms, NOTHING, touched=True) for key, lease in self._by_key.items()]

    def told(self) -> None:
        """Redis knows of all that was held here: what is left of those leases is to be asked for anew."""
        for lease in self._by_key.values():
            if lease.touched:
                lease.lower_to(NOTHING)
        self._open.clear()

    # ── while it is away ────────────────────────────────────────────────────────────────────────────────────────────

    def headroom(self, keys: Iterable[str], terms: Iterable[BudgetTerms]) -> Headroom | None:
        """What may still be held; None where one of the budgets has no lease, or used it up."""
        usd: Decimal | None = None
        tokens: int | None = None
        for key, one in zip(keys, terms, strict=True):
            lease = self._usable(key, one)
            if lease is None:
                return None
            if one.limit_usd is not None:
                usd = lease.usd if usd is None else min(usd, lease.usd)
            if one.limit_tokens is not None:
                tokens = lease.tokens if tokens is None else min(tokens, lease.tokens)
        if (usd is not None and usd <= 0) or (tokens is not None and tokens <= 0):
            return None
        return Headroom(usd, tokens)

    def hold(self, request_id: str, keys: Iterable[str], terms: Iterable[BudgetTerms], amount: Amount) -> bool:
        """Hold in all the leases or in none; False where that is not possible."""
        found = []
        for key, one in zip(keys, terms, strict=True):
            lease = self._usable(key, one)
            if lease is None or not _holds(lease, one, amount):
                return False
            found.append(lease)
        for lease in found:
            lease.touched = True
        self._move(found, amount, -1)
        self._open[request_id] = (tuple(found), amount)
        return True

    def settle(self, request_id: str, spent: Amount) -> None:
        """Give back what a request held here above what it spent."""
        held = self._open.pop(request_id, None)
        if held is not None:
            leases, amount = held
            self._move(leases, amount, 1)
            self._move(leases, spent, -1)

    @staticmethod
    def _move(leases: Iterable[_Lease], amount: Amount, sign: int) -> None:
        for lease in leases:
            lease.usd += sign * (amount.usd or ZERO)
            lease.tokens += sign * amount.tokens

    def _usable(self, key: str, terms: BudgetTerms) -> _Lease | None:
        """A limit that was lowered since is not to be overshot either."""
        lease = self._by_key.get(key)
        if lease is None or _lowered(lease.terms, terms):
            return None
        return lease


def _holds(lease: _Lease, terms: BudgetTerms, amount: Amount) -> bool:
    if terms.limit_usd is not None and (amount.usd or ZERO) > lease.usd:
        return False
    return terms.limit_tokens is None or amount.tokens <= lease.tokens


def _lowered(before: BudgetTerms, now: BudgetTerms) -> bool:
    def less(limit: Decimal | int | None, than: Decimal | int | None) -> bool:
        return limit is not None and (than is None or limit < than)

    return less(now.limit_usd, before.limit_usd) or less(now.limit_tokens, before.limit_tokens)


def _larger(one: Amount, other: Amount) -> Amount:
    return Amount(max(one.usd or ZERO, other.usd or ZERO), max(one.tokens, other.tokens))
