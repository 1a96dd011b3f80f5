#!lua
-- Keep an answer to an open question, once: the first one stands. A run that waits becomes ready by it.
-- KEYS: run, answers, events, queue, index waiting, index queued
-- ARGV: run id, interrupt's id, answer, now, event
local run_id, now = ARGV[1], ARGV[4]
local status, interrupts, created = unpack(redis.call('HMGET', KEYS[1], 'status', 'interrupts', 'created'))
if not status then return {'missing'} end
local answer = redis.call('HGET', KEYS[2], ARGV[2])
if answer == ARGV[3] then return record('ok', KEYS[1], KEYS[2]) end
if answer then return {'conflict', answer} end
local open = false
for _, interrupt in ipairs(cjson.decode(interrupts)) do
  open = open or (interrupt.interrupt_id == ARGV[2] and not interrupt.settled)
end
if not open then return {'not open', status} end

redis.call('HSET', KEYS[2], ARGV[2], ARGV[3])
redis.call('HSET', KEYS[1], 'updated', now)
redis.call('RPUSH', KEYS[3], ARGV[5])
if status == 'waiting' then
  redis.call('HSET', KEYS[1], 'status', 'queued', 'not_before', '0')
  redis.call('ZREM', KEYS[5], run_id)
  redis.call('ZADD', KEYS[6], created, run_id)
  make_ready(KEYS[4], run_id, now)
end
return record('ok', KEYS[1], KEYS[2])
