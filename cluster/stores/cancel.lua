#!lua
-- A run that nobody owns is cancelled here and now; one that runs is only asked (law 1: its owner writes the end).
-- KEYS: run, answers, events, queue, line, writes, counters, expiry, index queued, index waiting, index cancelled
-- ARGV: run id, thread, now, keep until, event asked, event finished, counter of finished runs
local run_id, now = ARGV[1], ARGV[3]
local status, epoch, created, cancel = unpack(redis.call('HMGET', KEYS[1], 'status', 'epoch', 'created', 'cancel'))
if not status then return {'missing'} end
if status == 'running' and cancel ~= '1' then
  redis.call('HSET', KEYS[1], 'cancel', '1', 'updated', now)
  redis.call('RPUSH', KEYS[3], ARGV[5])
elseif status == 'queued' or status == 'waiting' then
  redis.call('HSET', KEYS[1], 'status', 'cancelled', 'cancel', '1', 'epoch', string.format('%.0f', epoch + 1),
    'updated', now, 'interrupts', '[]', 'not_before', '0')
  redis.call('DEL', KEYS[2], KEYS[6])
  redis.call('ZREM', KEYS[4], run_id)
  redis.call('ZREM', status == 'queued' and KEYS[9] or KEYS[10], run_id)
  redis.call('ZADD', KEYS[11], created, run_id)
  redis.call('RPUSH', KEYS[3], ARGV[6])
  count(KEYS[7], ARGV[7])
  leave_line(KEYS[5], KEYS[4], KEYS[8], run_id, ARGV[2], now, ARGV[4])
end
return record('ok', KEYS[1], KEYS[2])
