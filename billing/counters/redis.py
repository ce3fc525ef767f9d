"""Budget counters of several processes, in Redis. What happens there is in `billing.counters.redis_scripts`.

Exact while Redis and the database work: a hold is atomic over all its budgets, and each settlement counts once. A Redis
that restarts, loses its memory, comes back with an old snapshot or hands over to a replica is noticed (its `run_id` is
part of every key), and each budget is read from the ledger again, open holds included. What remains:

- A process that cannot reach the database journals its rows. What it settled more than 5 s before another process reads
  a budget, and has not replayed by then, is missing from that budget until it is read again.
- Adjustments to the ledger count when a budget is next read from it.
- What Redis loses in a failover and the ledger does not have yet either: the holds of the last milliseconds.

While Redis does not answer, requests are held against leases (`billing.counters.leases`, docs/decisions/0011), and
refused where there is none. What they hold and settle is told to Redis in that order when it is back, each once.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import ROUND_CEILING, ROUND_HALF_EVEN, Decimal
from time import monotonic
from typing import Any

import msgspec
import redis
import structlog
from django.conf import settings
from django.db import DatabaseError
from django.utils import timezone

from ailb_project.shared_redis import PREFIX, Outbox, Script, SharedRedis, Unreachable, run_prefix
from billing.counters import redis_scripts as lua
from billing.counters.base import Amount, Headroom, Owners
from billing.counters.leases import NOTHING, Answer, Asked, Leases
from billing.counters.refusals import exceeded
from billing.counters.standing import Standing, read_standing
from billing.fields import PLACES
from billing.ledger import LedgerWriter
from billing.periods import bounds
from gateway.background import in_thread
from gateway.errors import GuardUnavailable
from gateway.types import BudgetTerms

log = structlog.get_logger()

_PICO: int = 10**PLACES
_END = datetime(9999, 12, 31, tzinfo=UTC)
_KEPT = timedelta(days=30)  # a counter without an end is read from the ledger anew after this
# Rows closed this long before a reading are told apart by name: 5 s that Redis asks for (`LATE`), 5 s of difference
# between the clocks of two hosts.
CLOSED_LATELY = timedelta(seconds=10)
_LOCK = 5_000  # milliseconds that one process reads a budget before another tries too
_POLL = 0.02
_LOAD = 10.0  # seconds a request waits for a budget to be read
_SWEEP_TIMEOUT = 1.0
_HEARD = 1.0  # seconds for which a budget that had room is not asked for before a hold
_RENEW = 0.5  # seconds between two renewals of leases: so long at most one that is wanted back stays away
_RECALL = 1.5  # seconds a request waits for the leases of others
_RECALLED = 10_000  # milliseconds for which a budget is not leased again, once a request needed all of it
_FIGURES = 9  # words a budget: used, held and leased, each dollars, pico-dollars, tokens

ReadStanding = Callable[..., Standing]


class Counted(msgspec.Struct, frozen=True):
    """A budget in one period; `key` and `owner` as Redis has them."""

    key: str
    owner: str
    scope_and_owner: tuple[str, str]
    start: datetime
    until: datetime | None

    @classmethod
    def of(cls, budget: BudgetTerms, at: datetime) -> "Counted":
        start, until = bounds(budget.period, budget.tz, at)
        key = f"budget:{budget.id}:{budget.period}:{start.timestamp():.0f}"
        return cls(key, f"{budget.scope}:{budget.owner}", (budget.scope, budget.owner), start, until)

    def covers(self, at: datetime) -> bool:
        return self.start <= at and (self.until is None or at < self.until)

    def begin(self, reader: str) -> list[Any]:
        """What `lua.BEGIN` takes."""
        until = self.until or _END
        expires = self.until + timedelta(days=1) if self.until else timezone.now() + _KEPT
        return [self.key, self.owner, _ms(self.start), _ms(until), _ms(expires), _LOCK, reader]


class RedisCounters:
    """`BudgetCounters` shared by all processes on one Redis."""

    def __init__(
        self,
        client: SharedRedis,
        writer: LedgerWriter,
        process_id: str,
        read: ReadStanding = read_standing,
        *,
        leases: bool = False,
    ) -> None:
        """`leases`: whether requests go on against them while Redis is away."""
        self._client = client
        self._writer = writer
        self._process_id = process_id
        self._read = read
        self._headroom = client.script(lua.HEADROOM)
        self._hold = client.script(lua.HOLD)
        self._lease = client.script(lua.LEASE)
        self._begin = client.script(lua.BEGIN)
        self._finish = client.script(lua.FINISH)
        self._abandon = client.script(lua.ABANDON)
        self._release = client.script(lua.RELEASE)
        self._outbox = Outbox(client, client.script(lua.SETTLE), process_id)
        self._held: dict[str, bool] = {}
        """Requests that were held: False; of which that is not certain: True."""
        self._counted: dict[tuple[int, str, str], Counted] = {}
        self._loading: dict[str, asyncio.Task[None]] = {}
        self._room_until: dict[int, float] = {}
        """By budget, until when it is taken for granted that something is left of it."""
        self._leases = Leases() if leases else None
        self._renewals = 0
        self._renewal: asyncio.Task[None] | None = None

    async def refuse_used_up(self, terms: tuple[BudgetTerms, ...], at: datetime) -> None:
        now = monotonic()
        if any(self._room_until.get(budget.id, 0.0) < now for budget in terms):
            await self.headroom(terms, at)

    async def headroom(self, terms: tuple[BudgetTerms, ...], at: datetime) -> Headroom:
        if not terms:
            return Headroom(None, None)
        counted = [self._period(budget, at) for budget in terms]
        keys = [one.key for one in counted]
        try:
            figures = await self._ask(
                self._headroom, keys, counted, lambda words: _headroom(terms, words)[1] is not None
            )
        except Unreachable:
            leased = self._leases.headroom(keys, terms) if self._leases is not None else None
            if leased is None:
                raise _unavailable() from None
            return leased
        headroom, used_up = _headroom(terms, figures)
        if used_up is not None:
            raise self._refused(terms[used_up], figures[_FIGURES * used_up :], at)
        self._heard_of_room(terms)
        return headroom

    async def hold(self, request_id: str, terms: tuple[BudgetTerms, ...], amount: Amount, at: datetime) -> None:
        if not terms:
            return
        counted = [self._period(budget, at) for budget in terms]
        keys = [one.key for one in counted]
        recalled: list[int] = []
        arguments = [
            self._process_id,
            request_id,
            *_split(amount.usd, ROUND_CEILING),
            amount.tokens,
            keys,
            [False if budget.limit_usd is None else _split(budget.limit_usd) for budget in terms],
            [False if budget.limit_tokens is None else budget.limit_tokens for budget in terms],
            recalled,
        ]
        # Unsure from here until an answer: a caller that is cancelled settles, and the hold may come after that.
        self._held[request_id] = True
        try:
            words = await self._ask(self._hold, arguments, counted, lambda words: words[0] == b"over")
            if words[0] == b"over" and any(word != b"0" for word in words[8:]):
                words = await self._recall(words, arguments, recalled, counted, terms, amount)
        except Unreachable as error:
            self._hold_without_redis(request_id, keys, terms, amount, sent=error.sent)
            return
        if words[0] == b"1":
            self._held[request_id] = False
            self._heard_of_room(terms)
            self._note(keys, terms, amount)
            return
        self._held.pop(request_id, None)
        raise self._refused(terms[int(words[1]) - 1], words[2:], at) if words[0] == b"over" else _unavailable()

    def _heard_of_room(self, terms: tuple[BudgetTerms, ...]) -> None:
        until = monotonic() + _HEARD
        for budget in terms:
            self._room_until[budget.id] = until

    def _refused(self, budget: BudgetTerms, figures: list[bytes], at: datetime) -> Exception:
        self._room_until.pop(budget.id, None)
        return _refusal(budget, figures, at)

    async def _recall(
        self,
        words: list[bytes],
        arguments: list[Any],
        recalled: list[int],
        counted: list[Counted],
        terms: tuple[BudgetTerms, ...],
        amount: Amount,
    ) -> list[bytes]:
        """The hold's answer once the leases that are in its way have been given back. Ours are at once, the others'
        with their next renewal; those of a dead process when it is swept.
        """
        until = asyncio.get_running_loop().time() + _RECALL
        while words[0] == b"over":
            number = int(words[1])
            if not _fits_without_leases(terms[number - 1], words[2:], amount):
                break
            if number not in recalled:
                recalled.append(number)
                if self._leases is not None:
                    self._leases.give_up(counted[number - 1].key)
            elif asyncio.get_running_loop().time() > until:
                return [b"leased"]
            else:
                await asyncio.sleep(_POLL)
            words = await self._ask(self._hold, arguments, counted, lambda words: words[0] == b"over")
        return words

    def _hold_without_redis(
        self, request_id: str, keys: list[str], terms: tuple[BudgetTerms, ...], amount: Amount, *, sent: bool
    ) -> None:
        """Raises `GuardUnavailable` where the leases do not cover it. `sent`: Redis may hold it all the same."""
        if self._leases is None or not self._leases.hold(request_id, keys, terms, amount):
            if not sent:
                self._held.pop(request_id, None)
            raise _unavailable() from None
        self._held[request_id] = sent
        command = ["hold", request_id, *_split(amount.usd, ROUND_CEILING), amount.tokens, keys]
        self._outbox.put(command, keep=True)

    def settle(self, request_id: str, owners: Owners, spent: Amount, at: datetime) -> None:
        unsure = self._held.pop(request_id, None)
        if self._leases is not None:
            self._leases.settle(request_id, spent)
        command = [
            bool(unsure),
            request_id,
            *_split(spent.usd),
            spent.tokens,
            int(at.timestamp() * 1000),
            [f"{scope}:{owner}" for scope, owner in owners.pairs()],
        ]
        # What was held is given back however long Redis is gone; others count only in budgets made meanwhile.
        self._outbox.put(command, keep=unsure is not None)

    async def release_dead(self, process_id: str, owners: Iterable[Owners] = ()) -> int:
        """As `give_back_process`. Raises `GuardUnavailable`."""
        try:
            return int(await self._client.call(self._release, [process_id, _names(owners)]))
        except Unreachable:
            raise _unavailable() from None

    async def close(self) -> None:
        for task in self._loading.values():
            task.cancel()
        if self._renewal is not None:
            self._renewal.cancel()
            await asyncio.wait({self._renewal})
        if self._leases is not None:
            await self._ask_for_leases(self._leases.give_up_all())
        await self._outbox.close()
        await self._client.close()

    # ── leases ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _note(self, keys: list[str], terms: tuple[BudgetTerms, ...], amount: Amount) -> None:
        if self._leases is None:
            return
        self._leases.note(keys, terms, amount)
        if self._renewal is None:
            self._renewal = asyncio.get_running_loop().create_task(self._keep_renewing(self._leases))

    async def _keep_renewing(self, leases: Leases) -> None:
        while leases.in_use:
            await self._renew(leases)
            await asyncio.sleep(_RENEW)
        self._renewal = None

    async def _renew(self, leases: Leases) -> None:
        if self._client.is_down:
            return
        if leases.touched:
            if not await self._outbox.drained():
                return
            leases.told()
        # At once again after the first, which tells what is left, and where one is wanted back.
        while (asked := leases.asking()) and await self._ask_for_leases(asked):
            pass

    async def _ask_for_leases(self, asked: list[Asked]) -> bool:
        """Have Redis lease what is asked for, as far as it goes; whether to ask again at once."""
        leases = self._leases
        if leases is None or not asked or self._client.is_down:
            return False
        self._renewals += 1
        try:
            reply = await self._client.call(
                self._lease, [self._process_id, self._renewals, _RECALLED, [_asked(one) for one in asked]]
            )
        except Unreachable:
            return False
        if reply[0] < 0:
            leases.forget()
        again = [leases.granted(one, _answer(one.terms, told)) for one, told in zip(asked, reply[1:], strict=False)]
        return any(again)

    # ── asking ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _period(self, budget: BudgetTerms, at: datetime) -> Counted:
        name = (budget.id, budget.period, budget.tz)
        counted = self._counted.get(name)
        if counted is None or not counted.covers(at):
            counted = self._counted[name] = Counted.of(budget, at)
        return counted

    async def _ask(
        self, script: Script, arguments: list[Any], counted: list[Counted], refused: Callable[[list[bytes]], bool]
    ) -> list[bytes]:
        """A script's answer in words. A refusal counts only after what this process settled before has arrived: who
        sends its requests one after the other must not meet itself.
        """
        pending = self._outbox.pending
        try:
            async with asyncio.timeout(_LOAD):
                words = await self._ask_once(script, arguments, counted)
                if pending and refused(words) and await self._outbox.drained():
                    words = await self._ask_once(script, arguments, counted)
                return words
        except TimeoutError:
            raise _unavailable() from None

    async def _ask_once(self, script: Script, arguments: list[Any], counted: list[Counted]) -> list[bytes]:
        """An answer once all the budgets have been read from the ledger."""
        while True:
            reply = await self._client.call(script, arguments)
            words: list[bytes] = reply.split() if isinstance(reply, bytes) else [b"%d" % reply]
            if words[0] != b"load":
                return words
            await self._load_all([counted[int(index) - 1] for index in words[1:]])

    async def _load_all(self, counted: list[Counted]) -> None:
        for one in counted:
            if one.key not in self._loading:
                self._loading[one.key] = self._start(self._load(one), one.key)
        for one in counted:
            task = self._loading.get(one.key)
            if task is not None:
                await asyncio.shield(task)

    def _start(self, work: Coroutine[Any, Any, None], key: str) -> "asyncio.Task[None]":
        task = asyncio.get_running_loop().create_task(work)

        def ended(task: "asyncio.Task[None]") -> None:
            del self._loading[key]
            if not task.cancelled():
                task.exception()  # seen: nobody may be waiting any more

        task.add_done_callback(ended)
        return task

    async def _load(self, counted: Counted) -> None:
        """Read a budget from the ledger, or wait until another process has."""
        arguments = counted.begin(self._process_id)
        while True:
            reply = await self._client.call(self._begin, arguments)
            if reply[0] == b"loaded":
                return
            if reply[0] == b"wait":
                await asyncio.sleep(_POLL)
                continue
            began, generation, fresh = int(reply[1]), int(reply[2]), bool(reply[3])
            standing = await self._standing(counted, fresh=fresh)
            if await self._client.call(self._finish, finish(counted.key, began, generation, standing)):
                return

    async def _standing(self, counted: Counted, *, fresh: bool) -> Standing:
        lately = timezone.now() - CLOSED_LATELY
        await self._own_rows_written()
        try:
            return await in_thread(
                self._read, *counted.scope_and_owner, counted.start, counted.until, lately, with_open=fresh
            )
        except DatabaseError as error:
            log.error("budget_not_loaded", scope=counted.scope_and_owner[0], error=type(error).__name__)
            await self._client.call(self._abandon, [counted.key])
            raise GuardUnavailable("The budget cannot be checked at the moment.", retry_after=5) from None

    async def _own_rows_written(self) -> None:
        loop = asyncio.get_running_loop()
        written = loop.create_future()
        self._writer.run_in_order(lambda: loop.call_soon_threadsafe(_done, written))
        await written


def _unavailable() -> GuardUnavailable:
    return GuardUnavailable("Budgets cannot be checked at the moment.", retry_after=1)


def give_back_process(process_id: str, owners: Iterable[Owners] = (), *, prefix: str = PREFIX) -> bool:
    """Give back what a dead process held. For the sweeper, after the closing entries are committed.

    The budgets concerned, and those of `owners` (whose orphaned holds were closed), are read from the ledger again.
    False where Redis does not answer: to be called again.
    """
    try:
        with evaluating(prefix) as evaluate:
            if evaluate is not None:
                evaluate(lua.RELEASE, [process_id, _names(owners)])
    except redis.RedisError as error:
        log.error("holds_not_given_back", process_id=process_id, error=type(error).__name__)
        return False
    return True


def read_anew(budgets: Iterable[BudgetTerms], *, prefix: str = PREFIX) -> bool:
    """At a start: have these budgets' current periods read from the ledger, whatever Redis remembers of them. False
    where it does not answer.
    """
    keys = [Counted.of(budget, timezone.now()).key for budget in budgets]
    try:
        with evaluating(prefix) as evaluate:
            if evaluate is not None and keys:
                evaluate(lua.READ_ANEW, keys)
    except redis.RedisError as error:
        log.error("budgets_not_read_anew", error=type(error).__name__)
        return False
    return True


Evaluate = Callable[[str, Any], Any]
"""Runs a script with its arguments. Raises `redis.RedisError`."""


@contextmanager
def evaluating(prefix: str = PREFIX) -> Iterator[Evaluate | None]:
    """For commands and jobs: scripts one at a time, without an event loop. None where there is no Redis."""
    url = settings.ENV.REDIS_URL
    if url is None:
        yield None
        return
    with redis.Redis.from_url(
        url.get_secret_value(), socket_timeout=_SWEEP_TIMEOUT, socket_connect_timeout=_SWEEP_TIMEOUT
    ) as client:
        run = run_prefix(prefix, client.info("server"))
        yield lambda script, arguments: client.eval(script, 2, prefix, run, msgspec.json.encode(arguments))


def _done(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


def _names(owners: Iterable[Owners]) -> list[str]:
    return sorted({f"{scope}:{owner}" for one in owners for scope, owner in one.pairs()})


def _ms(at: datetime) -> int:
    return int(at.timestamp() * 1000)


def finish(key: str, began: int, generation: int, standing: Standing) -> list[Any]:
    """What `lua.FINISH` takes."""
    held = [
        [hold.process_id, hold.request_id, *_split(hold.amount.usd, ROUND_CEILING), hold.amount.tokens]
        for hold in standing.open
    ]
    spent = [*_split(standing.spent.usd), standing.spent.tokens]
    return [key, began, generation, spent, standing.closed, held]


def _split(usd: Decimal | None, rounding: str = ROUND_HALF_EVEN) -> tuple[int, int]:
    """Whole dollars, and pico-dollars from 0 up to one dollar. A hold is rounded up, a settlement as on the ledger."""
    if not usd:
        return 0, 0
    pico: int = int(usd.scaleb(PLACES).to_integral_value(rounding))
    return divmod(pico, _PICO)


def joined(usd: bytes, pico: bytes) -> Decimal:
    """A pair of Redis's as dollars."""
    return Decimal(int(usd) * _PICO + int(pico)).scaleb(-PLACES)


def _asked(one: Asked) -> list[Any]:
    limit, limit_tokens = one.terms.limit_usd, one.terms.limit_tokens
    return [
        one.key,
        *_split(one.wanted.usd),
        one.wanted.tokens,
        False if limit is None else _split(limit),
        False if limit_tokens is None else limit_tokens,
        one.touched,
    ]


def _answer(terms: BudgetTerms, told: bytes) -> Answer:
    if not told:
        return Answer(NOTHING, Headroom(None, None), recalled=False)
    usd, pico, tokens, *figures, recalled = told.split()
    granted = Amount(joined(usd, pico), int(tokens))
    left = _left(terms, figures, leases=True)
    mine = Headroom(
        None if left.usd is None else left.usd + (granted.usd or 0),
        None if left.tokens is None else left.tokens + granted.tokens,
    )
    return Answer(granted, mine, recalled=recalled == b"1")


def _left(terms: BudgetTerms, figures: list[bytes], *, leases: bool) -> Headroom:
    """What is neither used nor held, nor, with `leases`, leased."""
    used, pico, tokens, held, held_pico, held_tokens, leased, leased_pico, leased_tokens = figures[:_FIGURES]
    usd_left, tokens_left = None, None
    if terms.limit_usd is not None:
        usd_left = terms.limit_usd - joined(used, pico) - joined(held, held_pico)
        usd_left -= joined(leased, leased_pico) if leases else 0
    if terms.limit_tokens is not None:
        tokens_left = terms.limit_tokens - int(tokens) - int(held_tokens)
        tokens_left -= int(leased_tokens) if leases else 0
    return Headroom(usd_left, tokens_left)


def _fits_without_leases(terms: BudgetTerms, figures: list[bytes], amount: Amount) -> bool:
    left = _left(terms, figures, leases=False)
    if left.usd is not None and (amount.usd or 0) > left.usd:
        return False
    return left.tokens is None or amount.tokens <= left.tokens


def _headroom(terms: tuple[BudgetTerms, ...], words: list[bytes]) -> tuple[Headroom, int | None]:
    """What is left in the tightest, and the first budget that has nothing left. What is leased counts as gone only as
    long as there is something else: a request that needs it gets it.
    """
    usd: Decimal | None = None
    tokens: int | None = None
    for index, budget in enumerate(terms):
        figures = words[_FIGURES * index : _FIGURES * (index + 1)]
        whole, rest = _left(budget, figures, leases=False), _left(budget, figures, leases=True)
        if whole.usd is not None and rest.usd is not None:
            left = rest.usd if rest.usd > 0 else whole.usd
            usd = left if usd is None else min(usd, left)
        if whole.tokens is not None and rest.tokens is not None:
            left_tokens = rest.tokens if rest.tokens > 0 else whole.tokens
            tokens = left_tokens if tokens is None else min(tokens, left_tokens)
        if (usd is not None and usd <= 0) or (tokens is not None and tokens <= 0):
            return Headroom(usd, tokens), index
    return Headroom(usd, tokens), None


def _refusal(budget: BudgetTerms, figures: list[bytes], at: datetime) -> Exception:
    used, pico, used_tokens, held, held_pico, held_tokens = figures[:6]
    return exceeded(
        budget,
        Amount(joined(used, pico), int(used_tokens)),
        Amount(joined(held, held_pico), int(held_tokens)),
        at,
    )
