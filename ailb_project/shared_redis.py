"""The Redis that gateway processes share: scripts asked of it (`SharedRedis`) and told to it (`Outbox`).

Calls of one tick of the event loop go out together on one of a few connections ("lanes"), each one exchange of a
batch of scripts and its replies (`ailb_project.redis_wire`). The connections themselves are redis-py's: addresses, TLS
and passwords are its work.

Redis 6 or later; one server or a primary with replicas, no cluster; its `maxmemory-policy` must be `noeviction`.
Redis that is slow or gone costs a call at most `_CEILING` seconds, and the first on a connection `_CONNECT`. While it
is gone calls fail at once: no request tries whether it is back, a probe of our own does.
"""

import asyncio
import contextlib
import hashlib
import math
import time
from collections import deque
from collections.abc import Callable, Coroutine
from itertools import chain, islice
from typing import Any

import msgspec
import structlog
from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, RedisError, ResponseError

from ailb_project.redis_wire import Wire
from gateway.metrics import REDIS_UP

log = structlog.get_logger()

PREFIX = "ailb"
"""Every key begins with it. Two installations on one server need a database number each."""
_CEILING = 0.08  # seconds an exchange may take: tens of milliseconds, and more than a fork of a large Redis stalls it
_GLANCE = 0.01  # seconds more, so that a loop that was busy itself reads what has come meanwhile
_CONNECT = 0.2  # seconds an exchange may take that has to connect and to load the scripts first
_LANES = 4  # exchanges under way at once: enough that none waits on a network's round trip, few enough to fill batches
_PROBE = (0.05, 0.25)  # seconds to the first probe when Redis did not answer, and between two while it is gone
_COMPLAIN = 10.0  # seconds between two log lines about the same refusal of Redis
_BATCH = 256  # commands of an outbox in one script: a few milliseconds of Redis's time
_MOST_WAITING = 100_000  # commands an outbox keeps while Redis is gone, ~300 bytes each
_BACKOFF = (0.02, 1.0)  # seconds before an outbox tries again: at first, at most
_DRAIN = 2.0  # seconds an outbox has to empty itself at the end

_encode = msgspec.json.Encoder().encode
Orphaned = Callable[[Any], None]
"""Told the reply that nobody waits for any more, or None where it never came."""


class Unreachable(Exception):
    """Redis did not answer. `sent`: it may still have done what it was asked."""

    def __init__(self, *, sent: bool) -> None:
        super().__init__("sent" if sent else "not sent")
        self.sent = sent


class Script:
    """Lua that runs in Redis: KEYS[1] is our prefix, KEYS[2] the prefix of this run of the server (which ends where it
    restarts, restores an old snapshot or fails over), ARGV[1] the arguments as JSON.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self.sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest().encode()
        self.head = b"*6\r\n$7\r\nEVALSHA\r\n" + _bulk(self.sha) + _bulk(b"2")


def run_prefix(prefix: str, info: dict[str, Any] | bytes) -> bytes:
    """KEYS[2], from what INFO says of the server."""
    if isinstance(info, bytes):
        lines = (line.partition(":") for line in info.decode(errors="replace").splitlines())
        info = {name: value for name, _, value in lines}
    return f"{prefix}:{str(info.get('run_id', ''))[:10]}".encode()


def _bulk(value: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(value), value)


class _Call:
    """One script on its way, and who waits for it."""

    __slots__ = ("_orphaned", "answered", "future", "payload", "script", "sent")

    def __init__(self, script: Script, payload: bytes, future: asyncio.Future[Any], orphaned: Orphaned | None) -> None:
        self.script = script
        self.payload = payload
        self.future = future
        self._orphaned = orphaned
        self.sent = False
        self.answered = False

    def answer(self, reply: Any) -> None:
        """Nothing happens where it was given up."""
        if self.answered:
            return
        self.answered = True
        if not self.future.done():
            self.future.set_result(reply)
        elif self._orphaned is not None:
            self._orphaned(reply)

    def fail(self) -> None:
        """Nothing happens where it was answered."""
        if self.answered:
            return
        self.answered = True
        if not self.future.done():
            self.future.set_exception(Unreachable(sent=self.sent))
        elif self._orphaned is not None and self.sent:
            self._orphaned(None)


class _Lane:
    """One connection, with one exchange at a time."""

    def __init__(self, pool: ConnectionPool, prefix: str, scripts: list[Script], complain: Callable[[Exception], None]):
        self._pool = pool
        self._prefix = prefix
        self._scripts = scripts
        self._complain = complain
        self._connection: AbstractConnection | None = None
        self._wire: Wire | None = None
        self._loaded = 0
        self._keys = b""

    @property
    def is_open(self) -> bool:
        return self._wire is not None and not self._wire.is_lost

    async def exchange(self, calls: list[_Call]) -> None:
        """Send all, then read all replies; of none, only connect."""
        wire = await self._connected()
        if not calls:
            return
        commands = [b"%b%b%b" % (call.script.head, self._keys, _bulk(call.payload)) for call in calls]
        for call in calls:
            call.sent = True
        unknown = []
        for call, reply in zip(calls, await wire.ask(b"".join(commands), len(calls)), strict=True):
            if isinstance(reply, NoScriptError):
                unknown.append(call)
            elif isinstance(reply, ResponseError):
                self._complain(reply)
                call.fail()
            else:
                call.answer(reply)
        if unknown:
            # Somebody emptied the server's memory of scripts; it refused these before doing anything.
            self._loaded = 0
            await self.exchange(unknown)

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        self._wire, self._loaded = None, 0
        if connection is not None:
            with contextlib.suppress(RedisError, OSError):
                await connection.disconnect(nowait=True)

    async def _connected(self) -> Wire:
        if self._wire is None or self._wire.is_lost:
            await self.close()
            connection = self._pool.make_connection()  # type: ignore[no-untyped-call]
            try:
                await connection.connect()
                wire = Wire(connection)
                self._keys = _bulk(self._prefix.encode()) + _bulk(await self._run(wire))
            except BaseException:
                with contextlib.suppress(RedisError, OSError):
                    await connection.disconnect(nowait=True)
                raise
            self._connection, self._wire = connection, wire
        if self._loaded != len(self._scripts):
            await self._load(self._wire)
        return self._wire

    async def _run(self, wire: Wire) -> bytes:
        """Every connection asks: whoever talks to a restarted server has connected to it since."""
        (info,) = await wire.ask(b"*2\r\n" + _bulk(b"INFO") + _bulk(b"server"), 1)
        if isinstance(info, ResponseError):
            # Not allowed. Served all the same; a restart from an old snapshot then goes unnoticed.
            self._complain(info)
            return run_prefix(self._prefix, {})
        return run_prefix(self._prefix, info)

    async def _load(self, wire: Wire) -> None:
        scripts = list(self._scripts)
        head = b"*3\r\n" + _bulk(b"SCRIPT") + _bulk(b"LOAD")
        replies = await wire.ask(b"".join(head + _bulk(script.source.encode()) for script in scripts), len(scripts))
        for reply in replies:
            if isinstance(reply, ResponseError):
                raise reply
        self._loaded = len(scripts)


class SharedRedis:
    """One process's way to Redis; all methods run on its event loop. `url` may carry a password: it is never logged."""

    def __init__(self, url: str, *, prefix: str = PREFIX) -> None:
        # Only a maker of connections: the lanes hold them, each for as long as it works.
        pool: ConnectionPool = ConnectionPool.from_url(
            url, socket_timeout=None, socket_connect_timeout=_CONNECT, driver_info=None
        )
        self._scripts: list[Script] = []
        self._free = [_Lane(pool, prefix, self._scripts, self._complain) for _ in range(_LANES)]
        self._waiting: list[_Call] = []
        self._under_way: list[list[_Call]] = []
        self._outboxes: list[Outbox] = []
        self._scheduled = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._down = False
        self._told_up = False
        self._probe: asyncio.TimerHandle | None = None
        self._probes = 0
        """Since it went down."""
        self._complained: dict[str, float] = {}
        self.on_return: list[Callable[[], None]] = []
        """Called when Redis answers again, before anything else is asked of it."""

    @property
    def is_down(self) -> bool:
        """Whether calls fail at once."""
        return self._down

    def script(self, source: str) -> Script:
        """Make a script known, so that every connection loads it."""
        script = Script(source)
        self._scripts.append(script)
        return script

    def call(self, script: Script, arguments: object, orphaned: Orphaned | None = None) -> asyncio.Future[Any]:
        """Run `script`; the future is its reply, or raises `Unreachable`.

        A connection that breaks under a call is tried once more, so a script may run twice: they are written so that it
        does not matter.
        """
        loop = asyncio.get_running_loop()
        call = _Call(script, _encode(arguments), loop.create_future(), orphaned)
        if self._down:
            self._keep_probing()
            call.fail()
            return call.future
        self._waiting.append(call)
        self.schedule()
        return call.future

    def attach(self, outbox: "Outbox") -> None:
        """Send what is put into `outbox`."""
        self._outboxes.append(outbox)

    def schedule(self) -> None:
        """Send what waits at the end of this tick."""
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._dispatch)

    async def close(self) -> None:
        """Finish what is under way and let go of the connections; a later call opens them again."""
        if self._probe is not None:
            self._probe.cancel()
            self._probe = None
        while self._tasks:
            await asyncio.wait(set(self._tasks))
        for lane in self._free:
            await lane.close()

    def _keep_probing(self) -> None:
        if self._probe is None:
            self._probe = asyncio.get_running_loop().call_later(_PROBE[self._probes > 0], self._try_again)

    def _try_again(self) -> None:
        self._probe = None
        self._probes += 1
        if self._down and self._free:
            self._start(self._probed(self._free.pop()))

    async def _probed(self, lane: _Lane) -> None:
        """Connect anew, for which the server has to answer."""
        await lane.close()
        await self._serve(lane, [])

    def _dispatch(self) -> None:
        self._scheduled = False
        if not self._free or self._down:
            return
        calls = [call for outbox in self._outboxes if (call := outbox.next_call()) is not None]
        calls += self._waiting
        self._waiting = []
        if not calls:
            return
        self._start(self._serve(self._free.pop(), calls))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, lane: _Lane, calls: list[_Call]) -> None:
        self._under_way.append(calls)
        try:
            await _exchange(lane, calls)
        except (OSError, RedisError) as error:  # a timeout is an OSError too
            await lane.close()
            self._went_down(error)
        else:
            self._came_up()
        finally:
            self._under_way.remove(calls)
            for call in calls:
                call.fail()
            self._free.append(lane)
            self._dispatch()

    def _went_down(self, error: Exception) -> None:
        if not self._down:
            log.error("redis_unreachable", error=type(error).__name__)
            REDIS_UP.set(0)
        self._down, self._told_up = True, False
        self._keep_probing()
        waiting, self._waiting = self._waiting, []
        # Nobody waits out the time of another exchange: what one thread does not answer here it does not there.
        for call in chain(waiting, *self._under_way):
            call.fail()

    def _came_up(self) -> None:
        if self._down:
            log.info("redis_reachable_again")
            self._down, self._probes = False, 0
            for returned in self.on_return:
                returned()
        if not self._told_up:
            self._told_up = True
            REDIS_UP.set(1)

    def _complain(self, error: Exception) -> None:
        """Redis answers, with a refusal: full, read-only, a script that fails. Not a line a request."""
        name, now = type(error).__name__, time.monotonic()
        if now - self._complained.get(name, -math.inf) >= _COMPLAIN:
            self._complained[name] = now
            log.error("redis_refused", error=name)


async def _exchange(lane: _Lane, calls: list[_Call]) -> None:
    if lane.is_open:
        try:
            await _within(_CEILING, lane.exchange(calls))
            return
        except TimeoutError:
            raise
        except (OSError, RedisConnectionError):
            # The server may have closed a connection that lay idle, or restarted: once more on a new one.
            await lane.close()
    await _within(_CONNECT, lane.exchange([call for call in calls if not call.answered]))


async def _within(seconds: float, exchange: Coroutine[Any, Any, None]) -> None:
    """Raises `TimeoutError` where it takes longer."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(None) as limit:
        # Not the limit itself: where our own loop was held up the reply may be there, unread.
        timer = loop.call_later(seconds, lambda: limit.reschedule(loop.time() + _GLANCE))
        try:
            await exchange
        finally:
            timer.cancel()


class Outbox:
    """Commands that nobody waits for: sent in order, each applied exactly once, kept while Redis is gone.

    They go with the calls of the same tick, and before them: who asks after `put` sees what it did. `script` gets
    `[process, number, [[age, *command], …], sent]`: `number` counts batches, and the script ignores one that is not
    above the last it applied, so a batch whose reply was lost is safely sent again. `age` is milliseconds since `put`,
    when the batch was sent; `sent` is that moment, in milliseconds on a clock of the process's own.
    """

    def __init__(self, client: SharedRedis, script: Script, process_id: str) -> None:
        self._client = client
        self._script = script
        self._process_id = process_id
        self._queue: deque[tuple[float, list[Any]]] = deque()
        self._number = 0
        self._size = 0  # of the batch that has the number; what is in it never changes
        self._under_way = False
        self._wait = _BACKOFF[0]
        self._not_before = 0.0
        self._dropped = 0
        self._waiters: list[asyncio.Future[None]] = []
        client.attach(self)

    @property
    def pending(self) -> bool:
        """Whether something was put that Redis has not confirmed."""
        return bool(self._queue)

    def put(self, command: list[Any], *, keep: bool = False) -> None:
        """Queue a command; never waits. Where too many wait already it is dropped, unless `keep`."""
        if not keep and len(self._queue) >= _MOST_WAITING:
            self._dropped += 1
            return
        self._queue.append((time.monotonic(), command))
        if not self._under_way:
            self._client.schedule()

    def next_call(self) -> _Call | None:
        """The batch to send now, if there is one and none is under way."""
        now = time.monotonic()
        if not self._queue or self._under_way or now < self._not_before:
            return None
        if not self._size:
            self._number += 1
            self._size = min(len(self._queue), _BATCH)
        # Rounded up: a command is never taken for younger than it is.
        aged = [[math.ceil((now - at) * 1000), *command] for at, command in islice(self._queue, self._size)]
        self._under_way = True
        future = asyncio.get_running_loop().create_future()
        future.add_done_callback(self._ended)
        batch = [self._process_id, self._number, aged, math.floor(now * 1000)]
        return _Call(self._script, _encode(batch), future, None)

    async def drained(self, within: float = _CEILING) -> bool:
        """Wait until all that was put is applied; False where that takes longer than `within` seconds."""
        if self._queue:
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await asyncio.wait({waiter}, timeout=within)
        return not self._queue

    async def close(self) -> None:
        """Give what waits two seconds more."""
        if not await self.drained(_DRAIN):
            log.error("redis_not_drained", commands=len(self._queue))
            self._queue.clear()

    def _ended(self, future: "asyncio.Future[Any]") -> None:
        self._under_way = False
        if future.cancelled():
            return
        if future.exception() is not None:
            self._not_before = time.monotonic() + self._wait
            asyncio.get_running_loop().call_later(self._wait, self._client.schedule)
            self._wait = min(self._wait * 2, _BACKOFF[1])
            return
        for _ in range(self._size):
            self._queue.popleft()
        self._size, self._wait = 0, _BACKOFF[0]
        if self._queue:
            self._client.schedule()
            return
        if self._dropped:
            log.error("redis_commands_dropped", commands=self._dropped)
            self._dropped = 0
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
