"""The one server-side step that stores a batch: a script, or a transaction between two calls of another."""

from __future__ import annotations

import hashlib
from typing import Final

__all__ = ["BRACKET", "BRACKET_SHA", "SCRIPT", "SHA"]

# Every write before the first XADD is one that changes nothing, so that a missing right, a full
# memory or a key of the wrong type is found while the batch is still wholly unstored. A failing
# trim must not undo an append, hence pcall.
SCRIPT: Final = b"""
-- KEYS: stream, mark, meta [, registry]
-- ARGV: 1 first sequence, 2 events, 3 mark's life in ms, 4 newest ts in ms, 5 a fresh incarnation,
--       6 max_events or 0, 7 max age in ms or 0, 8 shard, 9 "event" or "packed", 10... entries
if redis.replicate_commands then redis.replicate_commands() end -- before Redis 7
local call, args = redis.call, ARGV -- locals: looked up for every event
local stream, mark, meta = KEYS[1], KEYS[2], KEYS[3]
local first, n = tonumber(ARGV[1]), tonumber(ARGV[2])
local packed = ARGV[9] == 'packed'
local prev = redis.call('GET', mark)
local known = redis.call('HMGET', meta, 'inc', 'lead', 'packed', 'shard', 'steps', 'events')
local incarnation = known[1]
local next = tonumber(prev or '0')
if first + n <= next then
  return {0, prev, '', incarnation or ''}
end
local skip = 0
if next > first then skip = next - first end
if packed and skip > 0 then
  return {-1, prev, '', incarnation or ''}
end
redis.call('SET', mark, prev or '0', 'PX', ARGV[3])
if not incarnation or redis.call('EXISTS', stream) == 0 then
  incarnation, known = ARGV[5], {}
  redis.call('DEL', meta)
  redis.call('HSET', meta, 'inc', incarnation)
end
if KEYS[4] and not known[4] then
  redis.call('XADD', KEYS[4], 'MAXLEN', '~', '100000', '*', 'shard', ARGV[8])
  redis.call('HSET', meta, 'shard', ARGV[8])
end
local id, first_id
if packed then
  id = redis.call('XADD', stream, '*', 'b', ARGV[10])
  first_id = id
else
  local from = 10 + 2 * skip
  first_id = call('XADD', stream, '*', 'd', args[from], 'dedup_id', args[from + 1])
  id = first_id
  for i = from + 2, #args, 2 do
    id = call('XADD', stream, '*', 'd', args[i], 'dedup_id', args[i + 1])
  end
end
redis.call('SET', mark, string.format('%.0f', first + n), 'PX', ARGV[3])
if packed and not known[3] then redis.call('HSET', meta, 'packed', '1') end
local lead = tonumber(ARGV[4]) - tonumber(string.match(first_id, '^%d+')) + 1
if lead > tonumber(known[2] or '0') then
  redis.call('HSET', meta, 'lead', string.format('%.0f', lead))
end
local keep, age = tonumber(ARGV[6]), tonumber(ARGV[7])
if keep > 0 and not packed then
  redis.pcall('XTRIM', stream, 'MAXLEN', keep < 1000 and '=' or '~', ARGV[6])
elseif keep > 0 then
  -- An entry holds many events: remember every eighth of max_events which entry began there.
  local events, step = tonumber(known[6] or '0'), math.max(1, math.floor(keep / 8))
  local steps = known[5] or ''
  if events == 0 or math.floor((events + n) / step) > math.floor(events / step) then
    steps = steps .. string.format('%.0f', events) .. '=' .. first_id .. ' '
  end
  local cut, from = nil, 1
  for count, at, rest in string.gmatch(steps, '(%d+)=(%S+) ()') do
    if tonumber(count) > events + n - keep then break end
    cut, from = at, rest - string.len(count .. '=' .. at .. ' ')
  end
  if cut then redis.pcall('XTRIM', stream, 'MINID', cut) end
  redis.call('HSET', meta, 'events', string.format('%.0f', events + n), 'steps', string.sub(steps, from))
end
if age > 0 then
  local now = redis.call('TIME')
  local ms = now[1] * 1000 + math.floor(now[2] / 1000) - age
  redis.pcall('XTRIM', stream, 'MINID', '~', string.format('%.0f', ms) .. '-0')
end
return {n - skip, prev, id, incarnation}
"""

SHA: Final = hashlib.sha1(SCRIPT, usedforsecurity=False).hexdigest().encode()

# What stands before and behind the XADDs of a transaction; see `transaction`. "open" renames the
# stream if the batch is new, after it has made every kind of command and of access that "close"
# makes: a missing right is found while nothing is renamed. "close" begins with a write that a full
# memory does not forbid; after it none does. Without an "open" that succeeded, what the XADDs made is
# nobody's, and is deleted: by "close", or, if that could not run, by the next "open" or "mend".
BRACKET: Final = b"""
-- KEYS: stream, mark, meta, staging
-- ARGV: 1 "open", "close" or "mend", 2 first sequence, 3 mark's life in ms, 4 newest ts in ms,
--       5 max_events or 0, 6 max age in ms or 0, 7 a token, new for each transaction,
--       8 the mark and 9 the stream's incarnation as they were acknowledged last,
--       10 "unlogged": only while there is no append-only file
-- The field "open" of meta: token:entries before:ms between "open" and "close", token=entries added after.
if redis.replicate_commands then redis.replicate_commands() end -- before Redis 7
local call = redis.call
local stream, mark, meta, staging = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
if ARGV[1] == 'open' then
  -- Without MULTI each command would run by itself. Redis 7 can tell; an older one is not asked this.
  local may = redis.acl_check_cmd
  if not may or not may('MULTI') or not may('EXEC') then return 0 end
  if ARGV[10] == 'unlogged' then -- somebody may have switched it on since it was looked at
    local facts = redis.pcall('INFO', 'persistence')
    if type(facts) ~= 'string' or not string.find(facts, '\\naof_enabled:0', 1, true) then return 0 end
  end
  -- Every command and access of "close", so that a missing right is found while nothing is renamed.
  local inc, open = unpack(call('HMGET', meta, 'inc', 'open'))
  local now = call('TIME')
  local there, left = call('TYPE', stream).ok, call('TYPE', staging).ok
  if left == 'stream' and call('EXISTS', stream) == 0 and string.match(open or '', '^%x+:%d') then
    call('RENAME', staging, stream) -- before the XADDs, which would add to it
    call('HSET', meta, 'open', '')
    return 0
  end
  if left == 'stream' then call('DEL', staging) end -- of a transaction whose "open" and "close" failed
  if call('GET', staging) then return 0 end -- also since TYPE asks for no right to read
  if call('GET', mark) ~= ARGV[8] or tonumber(ARGV[8]) > tonumber(ARGV[2]) then return 0 end
  if inc ~= ARGV[9] or there ~= 'stream' then return 0 end
  call('SET', mark, ARGV[8], 'PX', ARGV[3])
  local ms = string.format('%.0f', now[1] * 1000 + math.floor(now[2] / 1000))
  call('HSET', meta, 'open', ARGV[7] .. ':' .. call('XLEN', stream) .. ':' .. ms)
  local renamed = redis.pcall('RENAME', stream, staging)
  if renamed.err then call('HSET', meta, 'open', '') end -- else it would tell of a stream to be renamed back
  return renamed
end
local known = redis.pcall('HMGET', meta, 'open', 'lead')
local opened, before, began = string.match(known[1] or '', '^(%x+):(%d+):(%d+)$')
if ARGV[1] ~= 'close' or opened ~= ARGV[7] then
  if call('TYPE', staging).ok == 'stream' then
    if call('EXISTS', stream) == 1 or (not known.err and not opened) then
      call('DEL', staging)
    elseif opened then
      call('RENAME', staging, stream)
      call('HSET', meta, 'open', '')
    end
  end
  return 0
end
call('RENAME', staging, stream)
local stored = call('XLEN', stream) - tonumber(before)
call('HSET', meta, 'open', string.format('%s=%.0f', opened, stored))
call('SET', mark, string.format('%.0f', tonumber(ARGV[2]) + stored), 'PX', ARGV[3])
local lead = tonumber(ARGV[4]) - tonumber(began) + 1 -- no id is older than "open"
if lead > tonumber(known[2] or '0') then
  call('HSET', meta, 'lead', string.format('%.0f', lead))
end
local keep, age = tonumber(ARGV[5]), tonumber(ARGV[6])
if keep > 0 then redis.pcall('XTRIM', stream, 'MAXLEN', keep < 1000 and '=' or '~', ARGV[5]) end
if age > 0 then redis.pcall('XTRIM', stream, 'MINID', '~', string.format('%.0f', began - age) .. '-0') end
return 1
"""

BRACKET_SHA: Final = hashlib.sha1(BRACKET, usedforsecurity=False).hexdigest().encode()
