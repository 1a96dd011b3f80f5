#!lua
-- Take a failed or quarantined run up again from its head, if its thread has not gone on since.
-- KEYS: run, events, answers, its place
-- ARGV: run id, now, event
local run_id, now = ARGV[1], ARGV[2]
local status, epoch, created, thread, head =
  unpack(redis.call('HMGET', KEYS[1], 'status', 'epoch', 'created', 'thread', 'head'))
if not status then return {'missing'} end
if not FINAL[status] then return record('ok', KEYS[1], KEYS[3]) end
if status == 'succeeded' or status == 'cancelled' then return record('not retryable', KEYS[1], KEYS[3]) end
local place = place_at(4)
local unfinished = redis.call('LINDEX', place.line, 0)
local now_at = redis.call('HGET', place.heads, thread) or ''
if unfinished or now_at ~= head then
  local told = record(unfinished and 'busy' or 'went on', KEYS[1], KEYS[3])
  told[4] = unfinished or now_at
  return told
end

redis.call('HSET', KEYS[1], 'epoch', string.format('%.0f', epoch + 1), 'error', '', 'crashes', '', 'detected', '0',
  'updated', now)
redis.call('RPUSH', KEYS[2], ARGV[3])
redis.call('RPUSH', place.line, run_id)
redis.call('ZREM', place.expiry, thread)
wake(KEYS[1], place, run_id, status, created, now)
return record('ok', KEYS[1], KEYS[3])
