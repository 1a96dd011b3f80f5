#!lua
-- Keep an answer to an open question, once: the first one stands. A run that waits becomes ready by it.
-- KEYS: run, events, answers, its place
-- ARGV: run id, interrupt's id, answer, now, event
local run_id, now = ARGV[1], ARGV[4]
local status, interrupts, created = unpack(redis.call('HMGET', KEYS[1], 'status', 'interrupts', 'created'))
if not status then return {'missing'} end
if FINAL[status] then return {'not open'} end
local answer = redis.call('HGET', KEYS[3], ARGV[2])
if answer == ARGV[3] then return record('ok', KEYS[1], KEYS[3]) end
if answer then return {'conflict'} end
if not is_open(interrupts, ARGV[2]) then return {'not open'} end

redis.call('HSET', KEYS[3], ARGV[2], ARGV[3])
redis.call('HSET', KEYS[1], 'updated', now)
redis.call('RPUSH', KEYS[2], ARGV[5])
if status == 'waiting' then wake(KEYS[1], place_at(4), run_id, status, created, now) end
return record('ok', KEYS[1], KEYS[3])
