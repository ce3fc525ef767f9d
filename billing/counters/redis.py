"""Budget counters of several processes, in Redis. What happens there is in `billing.counters.redis_scripts`.

Exact while Redis and the database work: a hold is atomic over all its budgets, and each settlement counts once. A Redis
that restarts, loses its memory, comes back with an old snapshot or hands over to a replica is noticed (its `run_id` is
part of every key), and each budget is read from the ledger again, open holds included. What remains:

- A process that cannot reach the database journals its rows. What it settled more than 5 s before another process reads
  a budget, and has not replayed by then, is missing from that budget until it is read again.
- Adjustments to the ledger count when a budget is next read from it.
- What Redis loses in a failover and the ledger does not have yet either: the holds of the last milliseconds.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from datetime import UTC, datetime, timedelta
from decimal import ROUND_CEILING, ROUND_HALF_EVEN, Decimal
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
_CLOSED_LATELY = timedelta(seconds=10)
_LOCK = 5_000  # milliseconds that one process reads a budget before another tries too
_POLL = 0.02
_LOAD = 10.0  # seconds a request waits for a budget to be read
_SWEEP_TIMEOUT = 1.0

ReadStanding = Callable[..., Standing]


class _Counted(msgspec.Struct, frozen=True):
    """A budget in one period."""

    key: str
    owner: str
    scope_and_owner: tuple[str, str]
    start: datetime
    until: datetime | None

    def covers(self, at: datetime) -> bool:
        return self.start <= at and (self.until is None or at < self.until)


class RedisCounters:
    """`BudgetCounters` shared by all processes on one Redis."""

    def __init__(
        self, client: SharedRedis, writer: LedgerWriter, process_id: str, read: ReadStanding = read_standing
    ) -> None:
        self._client = client
        self._writer = writer
        self._process_id = process_id
        self._read = read
        self._headroom = client.script(lua.HEADROOM)
        self._hold = client.script(lua.HOLD)
        self._begin = client.script(lua.BEGIN)
        self._finish = client.script(lua.FINISH)
        self._abandon = client.script(lua.ABANDON)
        self._release = client.script(lua.RELEASE)
        self._outbox = Outbox(client, client.script(lua.SETTLE), process_id)
        self._held: dict[str, bool] = {}
        """Requests that were held: False; of which that is not certain: True."""
        self._counted: dict[tuple[int, str, str], _Counted] = {}
        self._loading: dict[str, asyncio.Task[None]] = {}

    async def headroom(self, terms: tuple[BudgetTerms, ...], at: datetime) -> Headroom:
        if not terms:
            return Headroom(None, None)
        counted = [self._period(budget, at) for budget in terms]
        try:
            figures = await self._ask(
                self._headroom,
                [one.key for one in counted],
                counted,
                lambda words: _headroom(terms, words)[1] is not None,
            )
        except Unreachable:
            raise _unavailable() from None
        headroom, used_up = _headroom(terms, figures)
        if used_up is not None:
            raise _refusal(terms[used_up], figures[6 * used_up : 6 * used_up + 6], at)
        return headroom

    async def hold(self, request_id: str, terms: tuple[BudgetTerms, ...], amount: Amount, at: datetime) -> None:
        if not terms:
            return
        counted = [self._period(budget, at) for budget in terms]
        arguments = [
            self._process_id,
            request_id,
            *_split(amount.usd, ROUND_CEILING),
            amount.tokens,
            [one.key for one in counted],
            [False if budget.limit_usd is None else _split(budget.limit_usd) for budget in terms],
            [False if budget.limit_tokens is None else budget.limit_tokens for budget in terms],
        ]
        # Unsure from here until an answer: a caller that is cancelled settles, and the hold may come after that.
        self._held[request_id] = True
        try:
            words = await self._ask(self._hold, arguments, counted, lambda words: words[0] == b"over")
        except Unreachable as error:
            if not error.sent:
                self._held.pop(request_id, None)
            raise _unavailable() from None
        if words[0] == b"1":
            self._held[request_id] = False
            return
        self._held.pop(request_id, None)
        raise _refusal(terms[int(words[1]) - 1], words[2:], at) if words[0] == b"over" else _unavailable()

    def settle(self, request_id: str, owners: Owners, spent: Amount, at: datetime) -> None:
        unsure = self._held.pop(request_id, None)
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
        await self._outbox.close()
        await self._client.close()

    def _period(self, budget: BudgetTerms, at: datetime) -> _Counted:
        name = (budget.id, budget.period, budget.tz)
        counted = self._counted.get(name)
        if counted is None or not counted.covers(at):
            start, until = bounds(budget.period, budget.tz, at)
            key = f"budget:{budget.id}:{budget.period}:{start.timestamp():.0f}"
            counted = _Counted(key, f"{budget.scope}:{budget.owner}", (budget.scope, budget.owner), start, until)
            self._counted[name] = counted
        return counted

    async def _ask(
        self, script: Script, arguments: list[Any], counted: list[_Counted], refused: Callable[[list[bytes]], bool]
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

    async def _ask_once(self, script: Script, arguments: list[Any], counted: list[_Counted]) -> list[bytes]:
        """An answer once all the budgets have been read from the ledger."""
        while True:
            reply = await self._client.call(script, arguments)
            words: list[bytes] = reply.split() if isinstance(reply, bytes) else [b"%d" % reply]
            if words[0] != b"load":
                return words
            await self._load_all([counted[int(index) - 1] for index in words[1:]])

    async def _load_all(self, counted: list[_Counted]) -> None:
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

    async def _load(self, counted: _Counted) -> None:
        """Read a budget from the ledger, or wait until another process has."""
        until = counted.until or _END
        expires = counted.until + timedelta(days=1) if counted.until else timezone.now() + _KEPT
        arguments = [counted.key, counted.owner, _ms(counted.start), _ms(until), _ms(expires), _LOCK, self._process_id]
        while True:
            reply = await self._client.call(self._begin, arguments)
            if reply[0] == b"loaded":
                return
            if reply[0] == b"wait":
                await asyncio.sleep(_POLL)
                continue
            began, generation, fresh = int(reply[1]), int(reply[2]), bool(reply[3])
            standing = await self._standing(counted, fresh=fresh)
            if await self._client.call(self._finish, _told(counted.key, began, generation, standing)):
                return

    async def _standing(self, counted: _Counted, *, fresh: bool) -> Standing:
        lately = timezone.now() - _CLOSED_LATELY
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
    url = settings.ENV.REDIS_URL
    if url is None:
        return True
    try:
        with redis.Redis.from_url(
            url.get_secret_value(), socket_timeout=_SWEEP_TIMEOUT, socket_connect_timeout=_SWEEP_TIMEOUT
        ) as client:
            run = run_prefix(prefix, client.info("server"))
            arguments = msgspec.json.encode([process_id, _names(owners)])
            client.eval(lua.RELEASE, 2, prefix, run, arguments)
    except redis.RedisError as error:
        log.error("holds_not_given_back", process_id=process_id, error=type(error).__name__)
        return False
    return True


def _done(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)


def _names(owners: Iterable[Owners]) -> list[str]:
    return sorted({f"{scope}:{owner}" for one in owners for scope, owner in one.pairs()})


def _ms(at: datetime) -> int:
    return int(at.timestamp() * 1000)


def _told(key: str, began: int, generation: int, standing: Standing) -> list[Any]:
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


def _joined(usd: bytes, pico: bytes) -> Decimal:
    return Decimal(int(usd) * _PICO + int(pico)).scaleb(-PLACES)


def _headroom(terms: tuple[BudgetTerms, ...], figures: list[bytes]) -> tuple[Headroom, int | None]:
    """What is left in the tightest, and the first budget that has nothing left."""
    usd: Decimal | None = None
    tokens: int | None = None
    for index, budget in enumerate(terms):
        used, pico, used_tokens, held, held_pico, held_tokens = figures[6 * index : 6 * index + 6]
        if budget.limit_usd is not None:
            left = budget.limit_usd - _joined(used, pico) - _joined(held, held_pico)
            usd = left if usd is None else min(usd, left)
        if budget.limit_tokens is not None:
            left_tokens = budget.limit_tokens - int(used_tokens) - int(held_tokens)
            tokens = left_tokens if tokens is None else min(tokens, left_tokens)
        if (usd is not None and usd <= 0) or (tokens is not None and tokens <= 0):
            return Headroom(usd, tokens), index
    return Headroom(usd, tokens), None


def _refusal(budget: BudgetTerms, figures: list[bytes], at: datetime) -> Exception:
    used, pico, used_tokens, held, held_pico, held_tokens = figures
    return exceeded(
        budget,
        Amount(_joined(used, pico), int(used_tokens)),
        Amount(_joined(held, held_pico), int(held_tokens)),
        at,
    )
