"""Rate limits of several processes, in Redis: the same buckets as `keys.limits.memory`, on Redis's clock.

Requests that run are members of a sorted set a limit, scored with the end of a lease that their process renews: what
a dead process left behind ends by itself within `_LEASE`. A call that Redis answered to a broken connection may be
counted in a rate twice; never in concurrency.

While Redis does not answer, each process admits what its own part of the limits holds (`keys.limits.share`). When it is
back it is told of the requests that run and of what was taken meanwhile.
"""

import asyncio
from collections.abc import Callable
from typing import Any

from ailb_project.shared_redis import Orphaned, Outbox, Script, SharedRedis, Unreachable
from gateway.types import Limit
from keys.limits import refusals
from keys.limits.base import Admission, Gauge
from keys.limits.memory import Owner, token_burst
from keys.limits.share import LocalShare

_LEASE = 60.0  # seconds that a running request counts without a sign of life from its process
_RENEW = 20.0  # a third of it: two renewals may get lost

# Times are microseconds since 2026, so that a double still tells hundredths of one apart. A bucket is the time at which
# it will be full again (GCRA); `slack` forgives what rounding took.
_COMMON = """
local args = cjson.decode(ARGV[1])
local clock = redis.call('TIME')
local now = (clock[1] - 1767225600) * 1e6 + clock[2]
local slack = 0.5
local prefix = KEYS[1]

local function full_at(key)
  return math.max(tonumber(redis.call('GET', key) or '0'), now)
end

local function take(key, interval, units)
  local at = full_at(key) + units * interval
  if at <= now then
    redis.call('DEL', key)
  else
    redis.call('SET', key, string.format('%.17g', at), 'PX', math.ceil((at - now) / 1000) + 1)
  end
  return at
end

local function gauge(tightest, index, at, interval, burst)
  local behind = math.max(at - now, 0)
  local remaining = math.max(math.floor(burst - behind / interval + 1e-6), 0)
  if tightest and tightest[2] <= remaining then return tightest end
  return {index, remaining, math.ceil(behind)}
end

local function lease(key, id, seconds)
  redis.call('ZADD', key, now + seconds * 1e6, id)
  redis.call('PEXPIRE', key, math.ceil(seconds * 2000))
end
"""

# args: request id, lease, [[owner, requests a minute or false, max parallel or false], …]
# → ["parallel", limit, running] | ["requests", limit, microseconds] | [tightest limit, remaining, microseconds] | []
_ADMIT = (
    _COMMON
    + """
local id, seconds, limits = args[1], args[2], args[3]
for i, limit in ipairs(limits) do
  local running = prefix .. ':running:' .. limit[1]
  if limit[3] then
    redis.call('ZREMRANGEBYSCORE', running, '-inf', now)
    local count = redis.call('ZCARD', running)
    if count >= limit[3] and not redis.call('ZSCORE', running, id) then return {'parallel', i, count} end
  end
  if limit[2] then
    local interval = 60e6 / limit[2]
    local wait = full_at(prefix .. ':requests:' .. limit[1]) + (1 - limit[2]) * interval - now
    if wait > slack then return {'requests', i, math.ceil(wait)} end
  end
end
local tightest
for i, limit in ipairs(limits) do
  if limit[3] then lease(prefix .. ':running:' .. limit[1], id, seconds) end
  if limit[2] then
    local interval = 60e6 / limit[2]
    local at = take(prefix .. ':requests:' .. limit[1], interval, 1)
    tightest = gauge(tightest, i, at, interval, limit[2])
  end
end
return tightest or {}
"""
)

# args: tokens, [[owner, tokens a minute, burst], …] → ["tokens", limit, microseconds] | [tightest limit, remaining, …]
_TAKE = (
    _COMMON
    + """
local tokens, limits = args[1], args[2]
for i, limit in ipairs(limits) do
  local interval = 60e6 / limit[2]
  local wait = full_at(prefix .. ':tokens:' .. limit[1]) + (tokens - limit[3]) * interval - now
  if wait > slack then return {'tokens', i, math.ceil(wait)} end
end
local tightest
for i, limit in ipairs(limits) do
  local interval = 60e6 / limit[2]
  local at = take(prefix .. ':tokens:' .. limit[1], interval, tokens)
  tightest = gauge(tightest, i, at, interval, limit[3])
end
return tightest
"""
)

# A batch of an `Outbox`: [age, "leave", id, [owner, …]] | [age, "give", tokens, [[owner, tokens a minute], …]]
# | [age, "renew", lease, [[id, owner, …], …]] | [age, "took", requests or tokens, units, owner, so many a minute]
_APPLY = (
    _COMMON
    + """
local applied = prefix .. ':limits-applied:' .. args[1]
if tonumber(redis.call('GET', applied) or '0') >= args[2] then return 0 end
redis.call('SET', applied, args[2], 'EX', 86400)
for _, command in ipairs(args[3]) do
  if command[2] == 'leave' then
    for _, owner in ipairs(command[4]) do redis.call('ZREM', prefix .. ':running:' .. owner, command[3]) end
  elseif command[2] == 'give' then
    for _, limit in ipairs(command[4]) do
      take(prefix .. ':tokens:' .. limit[1], 60e6 / limit[2], -command[3])
    end
  elseif command[2] == 'took' then
    take(prefix .. ':' .. command[3] .. ':' .. command[5], 60e6 / command[6], command[4])
  else
    for _, request in ipairs(command[4]) do
      for i = 2, #request do lease(prefix .. ':running:' .. request[i], request[1], command[3]) end
    end
  end
end
return 1
"""
)

_REFUSED = (b"parallel", b"requests", b"tokens")


class RedisLimits:
    """`Limits` shared by all processes on one Redis."""

    def __init__(
        self,
        client: SharedRedis,
        process_id: str,
        processes: Callable[[], int] = lambda: 1,
        *,
        lease: float = _LEASE,
        renew: float = _RENEW,
    ) -> None:
        """`processes` tells how many gateway processes live."""
        self._client = client
        self._admit = client.script(_ADMIT)
        self._take = client.script(_TAKE)
        self._outbox = Outbox(client, client.script(_APPLY), process_id)
        self._share = LocalShare(processes)
        self._lease = lease
        self._renew_every = renew
        self._running: dict[str, tuple[Owner, ...]] = {}
        self._untold: set[str] = set()
        """Those of them that Redis does not know."""
        self._renewal: asyncio.TimerHandle | None = None
        client.on_return.append(self._returned)

    async def admit(self, request_id: str, limits: tuple[Limit, ...]) -> Admission:
        wanted = [limit for limit in limits if limit.rpm is not None or limit.max_parallel is not None]
        if not wanted:
            return Admission(request_id, limits)
        parallel = tuple((limit.scope, limit.owner) for limit in wanted if limit.max_parallel is not None)

        def end(_: Any) -> None:
            # The client left while Redis was asked, or it did not answer: nobody will give that place back.
            self._tell_left(request_id, parallel)

        try:
            reply = await self._ask(self._admit, [request_id, self._lease, _terms(wanted)], end)
        except Unreachable:
            gauge = self._share.admit(wanted)
            if parallel:
                self._untold.add(request_id)
        else:
            self._refuse(reply, wanted)
            gauge = _gauge(reply, [limit.rpm for limit in wanted])
        if parallel:
            self._running[request_id] = parallel
            self._share.enter(parallel)
            self._keep_renewing()
        return Admission(request_id, limits, gauge)

    async def take_tokens(self, request_id: str, limits: tuple[Limit, ...], tokens: int) -> Gauge | None:
        wanted = [(limit, limit.tpm, token_burst(limit.tpm)) for limit in limits if limit.tpm is not None]
        if not wanted:
            return None
        for limit, _, burst in wanted:
            if tokens > burst:
                raise refusals.too_large(limit, tokens, burst)

        def give_back(reply: Any) -> None:
            if reply is not None and reply[0] not in _REFUSED:
                self.give_back_tokens(limits, tokens)

        arguments = [tokens, [[_name(limit.scope, limit.owner), tpm, burst] for limit, tpm, burst in wanted]]
        try:
            reply = await self._ask(self._take, arguments, give_back)
        except Unreachable:
            return self._share.take_tokens(limits, tokens)
        self._refuse(reply, [limit for limit, _, _ in wanted], tokens)
        return _gauge(reply, [tpm for _, tpm, _ in wanted])

    def give_back_tokens(self, limits: tuple[Limit, ...], tokens: int) -> None:
        if self._client.is_down:
            # A bucket in Redis has filled up by itself before this could arrive there.
            self._share.give_back_tokens(limits, tokens)
            return
        wanted = [[_name(limit.scope, limit.owner), limit.tpm] for limit in limits if limit.tpm is not None]
        if wanted and tokens:
            self._outbox.put(["give", tokens, wanted])

    def leave(self, admission: Admission) -> None:
        parallel = self._running.pop(admission.request_id, None)
        if parallel is None:
            return
        self._share.leave(parallel)
        if admission.request_id in self._untold:
            self._untold.discard(admission.request_id)
        else:
            self._tell_left(admission.request_id, parallel)

    async def close(self) -> None:
        """Let go of connections, after what was given back has been sent."""
        if self._renewal is not None:
            self._renewal.cancel()
        await self._outbox.close()
        await self._client.close()

    async def _ask(self, script: Script, arguments: list[Any], orphaned: Orphaned) -> list[Any]:
        """One script's answer. A refusal counts only after what this process gave back before has arrived: a caller who
        sends its requests one after the other must not meet itself. Raises `Unreachable`.
        """
        pending = self._outbox.pending
        try:
            reply = await self._reply(script, arguments, orphaned)
            if pending and reply and reply[0] in _REFUSED and await self._outbox.drained():
                reply = await self._reply(script, arguments, orphaned)
        except Unreachable as error:
            if error.sent:
                orphaned(None)
            raise
        return list(reply)

    async def _reply(self, script: Script, arguments: list[Any], orphaned: Orphaned) -> Any:
        call = self._client.call(script, arguments, orphaned)
        try:
            return await call
        except asyncio.CancelledError:
            if call.done() and not call.cancelled() and call.exception() is None:
                orphaned(call.result())  # it came, and whoever asked left in the same moment
            raise

    @staticmethod
    def _refuse(reply: list[Any], wanted: list[Limit], tokens: int = 0) -> None:
        if not reply or reply[0] not in _REFUSED:
            return
        limit, value = wanted[reply[1] - 1], reply[2]
        if reply[0] == b"parallel":
            raise refusals.parallel(limit, value)
        if reply[0] == b"requests":
            rpm = limit.rpm or 1
            raise refusals.rate(limit, "requests", rpm, value / 1e6, burst=rpm, units=1)
        tpm = limit.tpm or 1
        raise refusals.rate(limit, "tokens", tpm, value / 1e6, burst=token_burst(tpm), units=tokens)

    def _tell_left(self, request_id: str, parallel: tuple[Owner, ...]) -> None:
        if parallel:
            self._outbox.put(["leave", request_id, [_name(*owner) for owner in parallel]])

    def _keep_renewing(self) -> None:
        if self._renewal is None:
            self._renewal = asyncio.get_running_loop().call_later(self._renew_every, self._renew)

    def _renew(self) -> None:
        self._renewal = None
        if self._running:
            if not self._client.is_down:
                self._tell_running()
            self._keep_renewing()

    def _tell_running(self) -> None:
        running = [[name, *(_name(*owner) for owner in owners)] for name, owners in self._running.items()]
        self._outbox.put(["renew", self._lease, running])
        self._untold.clear()

    def _returned(self) -> None:
        """Redis is back: it learns what happened here meanwhile."""
        if self._running:
            self._tell_running()
        for (kind, owner, per_minute), units in self._share.hand_over():
            self._outbox.put(["took", kind, units, _name(*owner), per_minute])


def _terms(wanted: list[Limit]) -> list[list[Any]]:
    return [[_name(one.scope, one.owner), _or_false(one.rpm), _or_false(one.max_parallel)] for one in wanted]


def _name(scope: str, owner: str) -> str:
    return f"{scope}:{owner}"


def _or_false(number: int | None) -> int | bool:
    """Lua has no null in arrays."""
    return False if number is None else number


def _gauge(reply: list[Any], per_minute: list[int | None]) -> Gauge | None:
    if not reply:
        return None
    index, remaining, behind = reply
    return Gauge(per_minute[index - 1] or 0, remaining, behind / 1e6)
