"""Circuits that all gateway processes share through Redis: what opens in one is open in the others within a second.

No request waits for it. Every process decides by its own picture, tells its changes through an `Outbox`, and reads what
the others told four times a second. While Redis is away each goes on by itself. The process that opened a circuit
probes it first, the others half a second later and not while it is being probed.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from hashlib import blake2b
from time import perf_counter
from typing import Any

import msgspec

from ailb_project.shared_redis import Outbox, SharedRedis
from gateway.circuits import Circuit
from gateway.circuits_memory import MemoryCircuits
from gateway.types import Deployment

_READ_EVERY = 0.25  # seconds; the promise is one second
_DEFERENCE = 0.5  # seconds by which others let the opener probe first: two readings, so that they see its probe
_PROBE = 30.0  # seconds for which a probe keeps the others away: it may be long, or its process dead

# A hash of what is not closed, by deployment and configuration: {till, owner, firm, trips, reason, probe}, times in
# milliseconds on Redis's clock. An hour after its time an entry is nobody's: its deployment has no traffic, or is gone.
_COMMON = """
local args = cjson.decode(ARGV[1])
local clock = redis.call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local key = KEYS[1] .. ':circuits'
"""

# A batch of an `Outbox`: [age, "open", id, seconds, firm, trips, reason] | [age, "closed", id]
# | [age, "probing", id, seconds] | [age, "free", id]
_APPLY = (
    _COMMON
    + """
local applied = KEYS[1] .. ':circuits-applied:' .. args[1]
if tonumber(redis.call('GET', applied) or '0') >= args[2] then return 0 end
redis.call('SET', applied, args[2], 'EX', 86400)
for _, command in ipairs(args[3]) do
  local at, what, id = now - command[1], command[2], command[3]
  local held = redis.call('HGET', key, id)
  local record = held and cjson.decode(held)
  if what == 'closed' then
    redis.call('HDEL', key, id)
  elseif what == 'open' then
    local till = at + command[4] * 1000
    if record and record.till >= till then
      record.firm, record.trips = record.firm or command[5], math.max(record.trips, command[6])
    elseif till > now then
      record = {till = till, owner = args[1], firm = command[5], trips = command[6], reason = command[7]}
    end
    if record then record.probe = 0 end
  elseif record then
    record.probe = what == 'probing' and at + command[4] * 1000 or 0
    if what == 'probing' then record.owner = args[1] end
  end
  if what ~= 'closed' and record then
    redis.call('HSET', key, id, cjson.encode(record))
    redis.call('EXPIRE', key, 86400)
  end
end
return 1
"""
)

# → [this run of the server, [[id, milliseconds left, owner, firm, trips, reason, milliseconds of its probe], …]]
_READ = (
    _COMMON
    + """
local found = {}
local all = redis.call('HGETALL', key)
for i = 1, #all, 2 do
  local r = cjson.decode(all[i + 1])
  if r.till < now - 3600000 then
    redis.call('HDEL', key, all[i])
  else
    found[#found + 1] = {all[i], r.till - now, r.owner, r.firm, r.trips, r.reason, r.probe - now}
  end
end
return {KEYS[2], #found > 0 and cjson.encode(found) or '[]'}
"""
)


class _Record(msgspec.Struct, frozen=True, array_like=True):
    key: str
    left_ms: float
    owner: str
    firm: bool
    trips: int
    reason: str
    probe_ms: float


_decode = msgspec.json.Decoder(list[_Record], strict=False).decode
_encode = msgspec.json.Encoder(order="deterministic", enc_hook=dict).encode


class RedisCircuits(MemoryCircuits):
    """`MemoryCircuits` that hear of each other. `pepper` keys the digest of a configuration, credentials included."""

    def __init__(
        self, client: SharedRedis, process_id: str, pepper: bytes, clock: Callable[[], float] = perf_counter
    ) -> None:
        super().__init__(clock)
        self._client = client
        self._process_id = process_id
        self._pepper = pepper[:64]
        self._read = client.script(_READ)
        self._outbox = Outbox(client, client.script(_APPLY), process_id)
        self._keys: dict[str, tuple[Circuit, str]] = {}
        self._picture: dict[str, tuple[float, _Record]] = {}
        """What was read, and when."""
        self._changes = 0
        self._changed: dict[str, int] = {}
        """By key, the number of our last change: a reading that was asked for before it had arrived knows less."""
        self._seen: set[str] = set()
        """Keys that Redis had: where one of them has gone, somebody closed it."""
        self._run: bytes | None = None
        self._told_up_to = 0
        self._timer = asyncio.get_running_loop().call_soon(self._ask)

    async def close(self) -> None:
        """Tell what is still to be told. The client is the limits' to close."""
        self._timer.cancel()
        await self._outbox.close()

    # ── telling ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _share(self, circuit: Circuit, what: str) -> None:
        key = self._key(circuit)
        self._changes += 1
        self._changed[key] = self._changes
        if what in ("opened", "extended"):
            seconds = max(circuit.until - self.clock(), 0.0)
            self._outbox.put(["open", key, seconds, circuit.firm, circuit.trips, circuit.reason])
        elif what == "probing":
            self._outbox.put(["probing", key, _PROBE])
        else:
            self._outbox.put([what, key])

    def _key(self, circuit: Circuit) -> str:
        name = circuit.deployment.name
        known = self._keys.get(name)
        if known is None or known[0] is not circuit:
            digest = blake2b(_encode(circuit.deployment), key=self._pepper, digest_size=12).hexdigest()
            known = self._keys[name] = (circuit, f"{name}:{digest}")
        return known[1]

    # ── hearing ─────────────────────────────────────────────────────────────────────────────────────────────────────

    def _of(self, deployment: Deployment) -> Circuit:
        before = self._circuits.get(deployment.name)
        circuit = super()._of(deployment)
        if circuit is not before and (heard := self._picture.get(self._key(circuit))) is not None:
            self._adopt(circuit, *heard)
        return circuit

    def _ask(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(_READ_EVERY, self._ask)
        if not self._outbox.pending:
            self._told_up_to = self._changes
        self._client.call(self._read, []).add_done_callback(partial(self._heard, self._told_up_to))

    def _heard(self, told_up_to: int, reply: "asyncio.Future[Any]") -> None:
        if reply.cancelled() or reply.exception() is not None:
            return  # Redis is away, and `SharedRedis` has said so: our own picture goes on
        run, text = reply.result()
        now, records = self.clock(), _decode(text)
        self._picture = {record.key: (now, record) for record in records}
        self._changed = {key: number for key, number in self._changed.items() if number > told_up_to}
        restarted, self._run = self._run not in (None, run), run
        if restarted:
            self._seen.clear()  # it may have forgotten everything, which is no sign that anything was closed
        for circuit in list(self._circuits.values()):
            key = self._key(circuit)
            if key in self._changed:
                continue
            heard = self._picture.get(key)
            if heard is not None:
                self._adopt(circuit, *heard)
            elif circuit.opened and key in self._seen:
                circuit.release()
                self._note_closed(circuit, "closed_elsewhere")
            elif circuit.opened and restarted:
                self._share(circuit, "extended")
        self._seen = set(self._picture)

    def _adopt(self, circuit: Circuit, read_at: float, record: _Record) -> None:
        if record.owner == self._process_id:
            return
        probed = read_at + record.probe_ms / 1000 if record.probe_ms > 0 else 0.0
        if circuit.adopt(
            read_at + record.left_ms / 1000 + _DEFERENCE,
            firm=record.firm, trips=record.trips, reason=record.reason, elsewhere_until=probed,
        ):  # fmt: skip
            self._note_opened(circuit, elsewhere=True)
