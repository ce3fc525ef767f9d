"""What budget counters do inside Redis, in Lua: each script is one atomic step.

Keys, all under KEYS[2], the prefix of this run of the server: one that was restarted, restored or promoted starts anew,
from the ledger (`ailb_project.shared_redis`).

    budget:{id}:{period}:{start}  hash: `used`, `used_pico`, `used_tokens`, the same of `held` and `leased`, start,
                                  until, state, `lease:{process}`, `recalled`, …
    {budget}:arrived              hash, while the ledger is read: request → its settlement
    {budget}:closed               set, for a while after: requests whose settlements the reading already had
    held:{process}                hash: request → [usd, pico, tokens, [budget, …]], what it holds and where
    leased-by:{process}           set: the budgets of which it has a lease
    renewed:{process}             the number of its last renewal
    index:{owner}                 set: the owner's budgets that are counted
    recent:{owner}                sorted set by arrival: settlements of the last `LATE` milliseconds
    offset:{process}:{hour}       the least difference between Redis's clock and the process's, ms
    applied:{process}             the last batch of its outbox that was applied
    void:{request}                its settlement came before its hold: the hold must not be placed any more
    swept:{process}               when what it held was given back

Money is a pair: whole dollars and pico-dollars below 10^12, both exact in Lua's doubles (2^53) for any amount that the
ledger's column takes.

How `used` is loaded so that every settlement counts once, though its ledger row and its message to Redis travel
separately: `BEGIN` opens `arrived`, which collects settlements from then on, and puts in those of the last `LATE`
milliseconds; then the ledger is read; `FINISH` adds to the ledger's sum what arrived and was not in it. A settlement
whose message comes after that is skipped if the reading had it (`closed`), or if it is older than `LATE` before the
reading began: by then its row was on the ledger.
"""

COMMON = """
local args = cjson.decode(ARGV[1])
local run = KEYS[2]
local PICO = 1e12
local LATE = 5000
local HOUR = 3600000

local function milliseconds()
  local clock = redis.call('TIME')
  return clock[1] * 1000 + math.floor(clock[2] / 1000)
end

local function text(number) return string.format('%.0f', number) end

-- a pair plus a pair; a negative amount is a pair of negatives
local function sum(usd, pico, usd2, pico2)
  local all = pico + pico2
  local carry = math.floor(all / PICO)
  return usd + usd2 + carry, all - carry * PICO
end

local function add(budget, name, usd, pico, tokens)
  local was = redis.call('HMGET', budget, name, name .. '_pico', name .. '_tokens')
  usd, pico = sum(tonumber(was[1] or '0'), tonumber(was[2] or '0'), usd, pico)
  redis.call('HSET', budget, name, text(usd), name .. '_pico', text(pico), name .. '_tokens',
    text(tonumber(was[3] or '0') + tokens))
end

-- a budget whose hash was lost has forgotten what was held; FINISH finds it on the ledger
local function give_back(record)
  for _, budget in ipairs(record[4]) do
    local was = redis.call('HMGET', budget, 'held', 'fresh')
    if was[1] and not was[2] then add(budget, 'held', -record[1], -record[2], -record[3]) end
  end
end

-- a request that was refused and settled with nothing may be held after all, and settled again
local function arrive(arrived, request, entry)
  local was = redis.call('HGET', arrived, request)
  if not was or string.find(was, ' 0 0 0 %S+$') then redis.call('HSET', arrived, request, entry) end
end

-- the budgets of a hold that were never read from the ledger, as "load 1 3"
local function to_load(budgets)
  local missing
  for i, budget in ipairs(budgets) do
    if redis.call('HGET', run .. ':' .. budget, 'state') ~= 'loaded' then
      missing = (missing or 'load') .. ' ' .. i
    end
  end
  return missing
end

local FIELDS = {'used', 'used_pico', 'used_tokens', 'held', 'held_pico', 'held_tokens', 'leased', 'leased_pico',
  'leased_tokens'}
local function figures(budget)
  local all = redis.call('HMGET', run .. ':' .. budget, unpack(FIELDS))
  for i = 7, 9 do all[i] = all[i] or '0' end
  return all
end

-- what is used, held and leased, and one amount more, against a limit; of a limit's two, false is none
local function beyond(now, usd, pico, tokens, limit, limit_tokens)
  if limit then
    local all, all_pico = sum(tonumber(now[1]), tonumber(now[2]), tonumber(now[4]), tonumber(now[5]))
    all, all_pico = sum(all, all_pico, tonumber(now[7]), tonumber(now[8]))
    all, all_pico = sum(all, all_pico, usd, pico)
    if all > limit[1] or (all == limit[1] and all_pico > limit[2]) then return true end
  end
  return limit_tokens and tonumber(now[3]) + tonumber(now[6]) + tonumber(now[9]) + tokens > limit_tokens
end

-- a process's lease of a budget, by its key, which it has not any more
local function end_lease(budget, process)
  local lease = redis.call('HGET', budget, 'lease:' .. process)
  if not lease then return 0, 0, 0 end
  local usd, pico, tokens = string.match(lease, '^(%S+) (%S+) (%S+)$')
  usd, pico, tokens = tonumber(usd), tonumber(pico), tonumber(tokens)
  redis.call('HDEL', budget, 'lease:' .. process)
  add(budget, 'leased', -usd, -pico, -tokens)
  return usd, pico, tokens
end
"""

# args: [budget, …] → "load 1 3" | "used pico tokens held pico tokens leased pico tokens", those nine for each
HEADROOM = (
    COMMON
    + """
local missing = to_load(args)
if missing then return missing end
local all = {}
for i, budget in ipairs(args) do all[i] = table.concat(figures(budget), ' ') end
return table.concat(all, ' ')
"""
)

# args: process, request, usd, pico, tokens, [budget, …], [[usd, pico] or false, …], [tokens or false, …],
# [the number of a budget whose leases are wanted back, …]
# → 1 | "load 1 3" | "void" | "over 2" and its nine figures. The same request again changes nothing.
HOLD = (
    COMMON
    + """
local request, usd, pico, tokens, budgets = args[2], args[3], args[4], args[5], args[6]
local records = run .. ':held:' .. args[1]
if redis.call('EXISTS', run .. ':void:' .. request) == 1 then return 'void' end
if redis.call('HEXISTS', records, request) == 1 then return 1 end
local missing = to_load(budgets)
if missing then return missing end
for _, i in ipairs(args[9]) do
  local budget = run .. ':' .. budgets[i]
  redis.call('HSET', budget, 'recalled', text(milliseconds()))
  end_lease(budget, args[1])
end
for i, budget in ipairs(budgets) do
  local now = figures(budget)
  if beyond(now, usd, pico, tokens, args[7][i], args[8][i]) then
    return 'over ' .. i .. ' ' .. table.concat(now, ' ')
  end
end
local names = {}
for i, budget in ipairs(budgets) do
  names[i] = run .. ':' .. budget
  add(names[i], 'held', usd, pico, tokens)
end
redis.call('HSET', records, request, cjson.encode({usd, pico, tokens, names}))
redis.call('PEXPIRE', records, 24 * HOUR)
return 1
"""
)

# A process's renewal of its leases. args: process, number, how long a recall counts (ms),
# [[budget, usd, pico, tokens, [usd, pico] or false, tokens or false, touched], …]
# → the number again (0: an old one, that changes nothing; -1: the process counts as dead); then for each
# "usd pico tokens" of its lease now, the nine figures, and 1 where it is wanted back; "" where it is not counted here
#
# A lease is never less than both what it was and what is asked for, unless it was touched: its process counts on that.
LEASE = (
    COMMON
    + """
local process, renewed = args[1], run .. ':renewed:' .. args[1]
if redis.call('EXISTS', run .. ':swept:' .. process) == 1 then return {-1} end
if tonumber(redis.call('GET', renewed) or '0') >= args[2] then return {0} end
redis.call('SET', renewed, text(args[2]), 'PX', 24 * HOUR)
local now = milliseconds()

local function lower(usd, pico, usd2, pico2)
  if usd < usd2 or (usd == usd2 and pico < pico2) then return usd, pico end
  return usd2, pico2
end

local function renew(one)
  local name, usd, pico, tokens, limit, limit_tokens, touched = unpack(one)
  local budget = run .. ':' .. name
  local is = redis.call('HMGET', budget, 'state', 'generation', 'recalled')
  if not is[2] then return '' end
  local recalled = is[3] and now - tonumber(is[3]) < args[3]
  local old, old_pico, old_tokens = end_lease(budget, process)
  if touched then old, old_pico, old_tokens = 0, 0, 0 end
  local low, low_pico = lower(usd, pico, old, old_pico)
  local low_tokens = math.min(tokens, old_tokens)
  local more = low ~= usd or low_pico ~= pico or low_tokens ~= tokens
  if more and (recalled or is[1] ~= 'loaded' or beyond(figures(name), usd, pico, tokens, limit, limit_tokens)) then
    usd, pico, tokens = low, low_pico, low_tokens
  end
  if usd ~= 0 or pico ~= 0 or tokens ~= 0 then
    redis.call('HSET', budget, 'lease:' .. process, text(usd) .. ' ' .. text(pico) .. ' ' .. text(tokens))
    add(budget, 'leased', usd, pico, tokens)
    redis.call('SADD', run .. ':leased-by:' .. process, budget)
    redis.call('PEXPIRE', run .. ':leased-by:' .. process, 70 * 24 * HOUR)
  else
    redis.call('SREM', run .. ':leased-by:' .. process, budget)
  end
  return table.concat({text(usd), text(pico), text(tokens), table.concat(figures(name), ' '), recalled and 1 or 0}, ' ')
end

local all = {args[2]}
for i, one in ipairs(args[4]) do all[i + 1] = renew(one) end
return all
"""
)

# A batch of an `Outbox`: [age, unsure, request, usd, pico, tokens, at, [owner, …]]; unsure: its hold may still be on
# its way. `at` is the request's arrival, ms. Or [age, "hold", request, usd, pico, tokens, [budget, …]]: what was held
# of a lease.
SETTLE = (
    COMMON
    + """
local process = args[1]
local applied = run .. ':applied:' .. process
if tonumber(redis.call('GET', applied) or '0') >= args[2] then return 0 end
redis.call('SET', applied, text(args[2]), 'PX', 24 * HOUR)
local now = milliseconds()
local records = run .. ':held:' .. process

-- how much longer than others of its process this batch was on its way: it may have lain in a stalled server's buffer
local function lateness(sent)
  local hour = math.floor(now / HOUR)
  local key = run .. ':offset:' .. process .. ':'
  local offset, this, last = now - sent, redis.call('GET', key .. hour), redis.call('GET', key .. hour - 1)
  if not this or offset < tonumber(this) then redis.call('SET', key .. hour, text(offset), 'PX', 3 * HOUR) end
  return offset - math.min(offset, tonumber(this or offset), tonumber(last or offset))
end
local late = lateness(args[4])

local function end_hold(unsure, request)
  local record = redis.call('HGET', records, request)
  if record then
    redis.call('HDEL', records, request)
    give_back(cjson.decode(record))
  end
  if unsure then redis.call('SET', run .. ':void:' .. request, 1, 'PX', HOUR) end
end

-- no limit is asked: the lease covers it. A budget that is lost or being read finds it on the ledger (FINISH).
local function hold(request, usd, pico, tokens, budgets)
  if redis.call('HEXISTS', records, request) == 1 then return end
  local names = {}
  for _, budget in ipairs(budgets) do
    local name = run .. ':' .. budget
    local is = redis.call('HMGET', name, 'held', 'fresh')
    if is[1] and not is[2] then
      table.insert(names, name)
      add(name, 'held', usd, pico, tokens)
    end
  end
  redis.call('HSET', records, request, cjson.encode({usd, pico, tokens, names}))
  redis.call('PEXPIRE', records, 24 * HOUR)
end

local function count(budget, request, settled, at, usd, pico, tokens, entry)
  local is = redis.call('HMGET', budget, 'state', 'start', 'until', 'began')
  if not is[2] then return false end
  if at < tonumber(is[2]) or at >= tonumber(is[3]) then return true end
  if is[1] == 'loaded' then
    if settled >= tonumber(is[4]) - LATE and redis.call('SISMEMBER', budget .. ':closed', request) == 0 then
      add(budget, 'used', usd, pico, tokens)
    end
  elseif redis.call('EXISTS', budget .. ':arrived') == 1 then
    arrive(budget .. ':arrived', request, entry)
  end
  return true
end

local function settle(age, unsure, request, usd, pico, tokens, at, owners)
  end_hold(unsure, request)
  local settled = now - age - late
  local entry = table.concat({text(settled), request, text(usd), text(pico), text(tokens), text(at)}, ' ')
  for _, owner in ipairs(owners) do
    local recent, index = run .. ':recent:' .. owner, run .. ':index:' .. owner
    redis.call('ZADD', recent, now, entry)
    redis.call('ZREMRANGEBYSCORE', recent, '-inf', now - LATE - 1000)
    redis.call('PEXPIRE', recent, 2 * LATE)
    for _, budget in ipairs(redis.call('SMEMBERS', index)) do
      if not count(budget, request, settled, at, usd, pico, tokens, entry) then redis.call('SREM', index, budget) end
    end
  end
end

for _, command in ipairs(args[3]) do
  if command[2] == 'hold' then hold(unpack(command, 3)) else settle(unpack(command)) end
end
return 1
"""
)

# args: budget, owner, start, until, expiry (ms since the epoch), lock (ms), process
# → "loaded" | "wait" | "read", began, generation, 1 where what was held is not known either
BEGIN = (
    COMMON
    + """
local budget, owner = run .. ':' .. args[1], args[2]
local now = milliseconds()
local is = redis.call('HMGET', budget, 'state', 'lock', 'generation', 'fresh', 'reader')
if is[1] == 'loaded' then return {'loaded'} end
if tonumber(is[2] or '0') > now and is[5] ~= args[7] then return {'wait'} end
if not is[3] then
  redis.call('HSET', budget, 'used', 0, 'used_pico', 0, 'used_tokens', 0, 'held', 0, 'held_pico', 0, 'held_tokens', 0,
    'leased', 0, 'leased_pico', 0, 'leased_tokens', 0, 'start', text(args[3]), 'until', text(args[4]),
    'generation', 0, 'fresh', 1)
  is[3], is[4] = '0', '1'
end
redis.call('HSET', budget, 'lock', text(now + args[6]), 'reader', args[7])
redis.call('PEXPIREAT', budget, text(args[5]))
redis.call('SADD', run .. ':index:' .. owner, budget)
redis.call('PEXPIRE', run .. ':index:' .. owner, 70 * 24 * HOUR)
local arrived = budget .. ':arrived'
redis.call('HSETNX', arrived, '', '')
redis.call('PEXPIRE', arrived, HOUR)
for _, entry in ipairs(redis.call('ZRANGEBYSCORE', run .. ':recent:' .. owner, now - LATE, '+inf')) do
  local settled, request, at = string.match(entry, '^(%S+) (%S+) .* (%S+)$')
  at = tonumber(at)
  if tonumber(settled) >= now - LATE and at >= args[3] and at < args[4] then
    arrive(arrived, request, entry)
  end
end
return {'read', text(now), is[3], is[4] and 1 or 0}
"""
)

# args: budget, began, generation, [usd, pico, tokens] on the ledger, [request closed lately, …],
# [[process, request, usd, pico, tokens] open on the ledger, …] → 1 | 0: read again
FINISH = (
    COMMON
    + """
local budget, began = run .. ':' .. args[1], args[2]
local is = redis.call('HMGET', budget, 'state', 'generation', 'fresh')
if is[1] == 'loaded' then return 1 end
local arrived = budget .. ':arrived'
if tonumber(is[2]) ~= args[3] or redis.call('EXISTS', arrived) == 0 then return 0 end
for _, hold in ipairs(args[6]) do
  local swept = redis.call('GET', run .. ':swept:' .. hold[1])
  if swept and tonumber(swept) >= began then return 0 end
end

local usd, pico, tokens = unpack(args[4])
local closed = {}
for _, request in ipairs(args[5]) do closed[request] = true end
local came = redis.call('HGETALL', arrived)
local ended = {}
for i = 1, #came, 2 do
  local request = came[i]
  ended[request] = true
  local settled, its_usd, its_pico, its_tokens = string.match(came[i + 1], '^(%S+) %S+ (%S+) (%S+) (%S+)')
  if settled and tonumber(settled) >= began - LATE and not closed[request] then
    usd, pico = sum(usd, pico, tonumber(its_usd), tonumber(its_pico))
    tokens = tokens + tonumber(its_tokens)
  end
end

local function hold_again(process, request, its_usd, its_pico, its_tokens)
  if ended[request] then return end
  local records = run .. ':held:' .. process
  local kept = redis.call('HGET', records, request)
  local record = kept and cjson.decode(kept) or {its_usd, its_pico, its_tokens, {}}
  local known = false
  for _, name in ipairs(record[4]) do known = known or name == budget end
  if is[3] or not known then add(budget, 'held', record[1], record[2], record[3]) end
  if known then return end
  table.insert(record[4], budget)
  redis.call('HSET', records, request, cjson.encode(record))
  redis.call('PEXPIRE', records, 24 * HOUR)
end
for _, hold in ipairs(args[6]) do hold_again(unpack(hold)) end

redis.call('HSET', budget, 'used', text(usd), 'used_pico', text(pico), 'used_tokens', text(tokens), 'state', 'loaded',
  'began', text(began))
redis.call('HDEL', budget, 'lock', 'reader', 'fresh')
redis.call('DEL', arrived, budget .. ':closed')
for i = 1, #args[5], 1000 do
  redis.call('SADD', budget .. ':closed', unpack(args[5], i, math.min(i + 999, #args[5])))
end
redis.call('PEXPIRE', budget .. ':closed', HOUR)
return 1
"""
)

# args: budget. The ledger could not be read: whoever comes next may try.
ABANDON = COMMON + "redis.call('HDEL', run .. ':' .. args[1], 'lock') return 1"

# args: process, [owner, …]. The process is dead and its holds are closed on the ledger: nothing stays held or leased,
# and the budgets concerned are read from the ledger again, which knows more than Redis was told.
RELEASE = (
    COMMON
    + """
local records = run .. ':held:' .. args[1]
local stale = {}
local all = redis.call('HGETALL', records)
for i = 2, #all, 2 do
  local record = cjson.decode(all[i])
  give_back(record)
  for _, budget in ipairs(record[4]) do stale[budget] = true end
end
for _, owner in ipairs(args[2]) do
  for _, budget in ipairs(redis.call('SMEMBERS', run .. ':index:' .. owner)) do stale[budget] = true end
end
-- what it spent of a lease it may not have told
local leased = run .. ':leased-by:' .. args[1]
for _, budget in ipairs(redis.call('SMEMBERS', leased)) do
  end_lease(budget, args[1])
  stale[budget] = true
end
redis.call('DEL', leased)
for budget in pairs(stale) do
  if redis.call('HEXISTS', budget, 'generation') == 1 then
    redis.call('HINCRBY', budget, 'generation', 1)
    redis.call('HDEL', budget, 'state', 'lock')
  end
end
redis.call('DEL', records)
redis.call('SET', run .. ':swept:' .. args[1], text(milliseconds()), 'PX', HOUR)
return #all / 2
"""
)

# args: [budget, …]. They are read from the ledger when somebody asks next; what is held stays. → how many
READ_ANEW = (
    COMMON
    + """
local found = 0
for _, name in ipairs(args) do
  local budget = run .. ':' .. name
  if redis.call('HEXISTS', budget, 'generation') == 1 then
    redis.call('HINCRBY', budget, 'generation', 1)
    redis.call('HDEL', budget, 'state', 'lock')
    found = found + 1
  end
end
return found
"""
)

# A budget beside the same budget read anew, which is counted like any other meanwhile. args: budget, the other,
# [process, …], repair → "" where one of them is not loaded, else its nine figures, the other's three of `used`, and
# three of what the processes' records hold in it. With `repair` it takes these over.
COMPARE = (
    COMMON
    + """
local budget, anew = run .. ':' .. args[1], run .. ':' .. args[2]
if redis.call('HGET', budget, 'state') ~= 'loaded' or redis.call('HGET', anew, 'state') ~= 'loaded' then return '' end
local usd, pico, tokens = 0, 0, 0
for _, process in ipairs(args[3]) do
  local all = redis.call('HVALS', run .. ':held:' .. process)
  for _, record in ipairs(all) do
    record = cjson.decode(record)
    for _, name in ipairs(record[4]) do
      if name == budget then
        usd, pico = sum(usd, pico, record[1], record[2])
        tokens = tokens + record[3]
      end
    end
  end
end
if args[4] then
  local was = redis.call('HMGET', anew, 'used', 'used_pico', 'used_tokens', 'began')
  redis.call('HSET', budget, 'used', was[1], 'used_pico', was[2], 'used_tokens', was[3], 'began', was[4], 'held',
    text(usd), 'held_pico', text(pico), 'held_tokens', text(tokens))
  -- which settlements that are still on their way it has already
  redis.call('DEL', budget .. ':closed')
  if redis.call('EXISTS', anew .. ':closed') == 1 then redis.call('RENAME', anew .. ':closed', budget .. ':closed') end
end
local now = table.concat(figures(args[1]), ' ')
local read = table.concat(redis.call('HMGET', anew, 'used', 'used_pico', 'used_tokens'), ' ')
return table.concat({now, read, text(usd), text(pico), text(tokens)}, ' ')
"""
)

# args: budget, owner. It was counted beside another one for a while.
FORGET = (
    COMMON
    + """
local budget = run .. ':' .. args[1]
redis.call('SREM', run .. ':index:' .. args[2], budget)
return redis.call('DEL', budget, budget .. ':arrived', budget .. ':closed')
"""
)

# args: budget, [process, …] → [process, request] for each record that holds something in it
HOLDERS = (
    COMMON
    + """
local budget, found = run .. ':' .. args[1], {}
for _, process in ipairs(args[2]) do
  local all = redis.call('HGETALL', run .. ':held:' .. process)
  for i = 1, #all, 2 do
    for _, name in ipairs(cjson.decode(all[i + 1])[4]) do
      if name == budget then found[#found + 1] = {process, all[i]} end
    end
  end
end
return found
"""
)

# args: [[process, request], …]. What they hold is given back, in all their budgets.
DROP = (
    COMMON
    + """
for _, one in ipairs(args) do
  local records = run .. ':held:' .. one[1]
  local record = redis.call('HGET', records, one[2])
  if record then
    redis.call('HDEL', records, one[2])
    give_back(cjson.decode(record))
  end
end
return #args
"""
)
