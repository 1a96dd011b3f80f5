#!lua
-- Make a run durable, as queued (law 2: with its events, counters, index entries and seed, or not at all).
-- Sent twice it finds its own run; started twice under one key it finds the first. Runs of a thread stand in line;
-- if those before it are to be cancelled, the caller names them, and is told if they are others by now.
-- KEYS: run, answers, events, runs of the thread, keys of the thread, checkpoints, history, threads, blobs named,
--       index all, its place, parent (or the run itself, if it has none); then of each run to be cancelled: run, events, writes, answers, messages, its parent's
-- ARGV: run id, thread, now, key, digest, seed's id, seed's row, busy, blobs, keep until, event asked, event finished,
--       parent's epoch (0: not asked for), fields, events, counters, then id and counter of finished runs of each run to be cancelled
if redis.call('EXISTS', KEYS[1]) == 1 then return record('ok', KEYS[1], KEYS[2]) end
if ARGV[13] ~= '0' then -- law 1
  local epoch, status = unpack(redis.call('HMGET', KEYS[24], 'epoch', 'status'))
  if epoch ~= ARGV[13] or status ~= 'running' then
    count(place_at(11).counters, FENCED_CREATE)
    return {'fenced'}
  end
end
local run_id, thread, now, key, seed, busy = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[6], ARGV[8]
if key ~= '' then
  local known = redis.call('HGET', KEYS[5], key)
  if known then
    local digest, other = string.match(known, '^([^\n]*)\n(.*)$')
    return {digest == ARGV[5] and 'known' or 'conflict', other}
  end
end
if seed ~= '' and redis.call('EXISTS', KEYS[4]) == 1 then return {'not new'} end
local place = place_at(11)
local line = busy == 'enqueue' and {} or redis.call('LRANGE', place.line, 0, -1)
if line[1] and busy == 'reject' then return {'busy', line[1]} end

local behind_fields = 15 + 2 * ARGV[14]
local behind_events = behind_fields + 1 + ARGV[behind_fields]
local others = behind_events + 1 + 2 * ARGV[behind_events]
for n, other in ipairs(line) do
  if ARGV[others + 2 * n - 2] ~= other then return {'line', line} end
end
if ARGV[others + 2 * #line] then return {'line', line} end
for n, other in ipairs(line) do
  local keys = run_at(25 + 8 * (n - 1), 30 + 8 * (n - 1))
  redis.call('HSET', keys.run, 'rollback', busy == 'rollback' and '1' or '0')
  cancel_run(keys, place, other, now, ARGV[10], ARGV[11], ARGV[12], ARGV[others + 2 * n - 1])
end

set_fields(KEYS[1], 14)
redis.call('HSET', KEYS[1], 'nth', redis.call('ZCARD', KEYS[4]) + 1)
add_counters(place.counters, add_events(KEYS[3], behind_fields))
redis.call('ZADD', KEYS[4], now, run_id)
redis.call('ZADD', KEYS[8], 0, thread)
redis.call('ZADD', KEYS[10], now, run_id)
redis.call('ZADD', place.queued, now, run_id)
redis.call('ZREM', place.expiry, thread)
name_blobs(KEYS[9], ARGV[9], 1)
if key ~= '' then redis.call('HSET', KEYS[5], key, ARGV[5] .. '\n' .. run_id) end
if seed ~= '' then
  redis.call('HSET', KEYS[6], seed, ARGV[7])
  redis.call('RPUSH', KEYS[7], seed)
  redis.call('HSET', place.heads, thread, seed)
end
if redis.call('RPUSH', place.line, run_id) == 1 then make_ready(place.queue, run_id, now) end
return record('ok', KEYS[1], KEYS[2])
