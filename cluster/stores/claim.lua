#!lua
-- Law 1: one owner. Whoever finds the run ready takes it, and the epoch grows; everyone after that is too late.
-- The same call sent again (its reply was lost) finds its own name on the run and is told yes.
-- KEYS: run, answers, events, queue, leases, heads, index queued, index waiting, index running
-- ARGV: run id, owner, lease until, now, event up to its epoch, name of this call
local run_id, now = ARGV[1], ARGV[4]
local status, epoch, seq, thread, created, call =
  unpack(redis.call('HMGET', KEYS[1], 'status', 'epoch', 'seq', 'thread', 'created', 'call'))
if not status then return {'missing'} end
if call == ARGV[6] then return record('ok', KEYS[1], KEYS[2]) end
local ready_at = redis.call('ZSCORE', KEYS[4], run_id)
if not ready_at or tonumber(ready_at) > tonumber(now) then
  return record('conflict', KEYS[1], KEYS[2])
end

epoch = string.format('%.0f', epoch + 1)
redis.call('HSET', KEYS[1], 'status', 'running', 'epoch', epoch, 'owner', ARGV[2], 'lease', ARGV[3],
  'not_before', '0', 'updated', now, 'call', ARGV[6])
if seq == '0' then
  local head = redis.call('HGET', KEYS[6], thread) or ''
  redis.call('HSET', KEYS[1], 'head', head, 'base', head)
end
redis.call('ZREM', KEYS[4], run_id)
redis.call('ZADD', KEYS[5], ARGV[3], run_id .. ' ' .. epoch)
redis.call('ZREM', status == 'queued' and KEYS[7] or KEYS[8], run_id)
redis.call('ZADD', KEYS[9], created, run_id)
redis.call('RPUSH', KEYS[3], ARGV[5] .. epoch .. '}}')
return record('ok', KEYS[1], KEYS[2])
