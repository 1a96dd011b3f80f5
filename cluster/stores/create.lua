#!lua
-- Make a run durable, as queued (law 2: with its events, counters, index entries and seed, or not at all).
-- Sent twice it finds its own run; started twice under one key it finds the first. Runs of a thread stand in line.
-- KEYS: run, answers, events, line, runs of the thread, keys of the thread, checkpoints, history, heads, queue,
--       index queued, index all, expiry, counters
-- ARGV: run id, thread, now, key, digest, seed's id, seed's row, fields, events, counters
if redis.call('EXISTS', KEYS[1]) == 1 then return record('ok', KEYS[1], KEYS[2]) end
local run_id, thread, now, key, seed = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[6]
if key ~= '' then
  local known = redis.call('HGET', KEYS[6], key)
  if known then
    local digest, other = string.match(known, '^([^\n]*)\n(.*)$')
    return {digest == ARGV[5] and 'known' or 'conflict', other}
  end
end
if seed ~= '' and redis.call('EXISTS', KEYS[5]) == 1 then return {'not new'} end

local i = set_fields(KEYS[1], 8)
i = add_events(KEYS[3], i)
add_counters(KEYS[14], i)
redis.call('ZADD', KEYS[5], now, run_id)
redis.call('ZADD', KEYS[11], now, run_id)
redis.call('ZADD', KEYS[12], now, run_id)
redis.call('ZREM', KEYS[13], thread)
if key ~= '' then redis.call('HSET', KEYS[6], key, ARGV[5] .. '\n' .. run_id) end
if seed ~= '' then
  redis.call('HSET', KEYS[7], seed, ARGV[7])
  redis.call('RPUSH', KEYS[8], seed)
  redis.call('HSET', KEYS[9], thread, seed)
end
if redis.call('RPUSH', KEYS[4], run_id) == 1 then make_ready(KEYS[10], run_id, now) end
return record('ok', KEYS[1], KEYS[2])
