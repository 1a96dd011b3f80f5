#!lua
-- Laws 1 and 2: everything that one node's end changes moves here, in one script, or is refused.
-- A stale epoch changes nothing but a counter. The same (epoch, seq) again changes nothing but a counter.
-- KEYS: run, events, writes, answers, effects since the head, checkpoints, history, heads, counters;
--       with a status other than running also: line, queue, leases, expiry, index running, queued and of that status
-- ARGV: run id, epoch, seq, at, status, step, thread, checkpoint's id, its row, result, error,
--       interrupts, wake at, keep until, events, counters, writes, ids of open interrupts
local run_id, at, status, checkpoint = ARGV[1], ARGV[4], ARGV[5], ARGV[8]
local was, epoch, seq, seq_epoch, cancel, created =
  unpack(redis.call('HMGET', KEYS[1], 'status', 'epoch', 'seq', 'seq_epoch', 'cancel', 'created'))
if epoch == ARGV[2] and seq == ARGV[3] and seq_epoch == epoch then
  count(KEYS[9], COMMIT_DUPLICATE)
  return {'duplicate', cancel}
end
if epoch ~= ARGV[2] or was ~= 'running' then
  count(KEYS[9], FENCED_COMMIT)
  return {'fenced', epoch or '', was or 'deleted'}
end
if tonumber(ARGV[3]) ~= seq + 1 then return {'gap', seq} end

local i = add_events(KEYS[2], 15)
i = add_counters(KEYS[9], i)
count(KEYS[9], COMMIT_OK)
if checkpoint == '' then
  redis.call('HSET', KEYS[1], 'seq', ARGV[3], 'seq_epoch', epoch, 'updated', at, 'step', ARGV[6], 'detected', '0',
    'result', ARGV[10], 'error', ARGV[11])
else
  redis.call('HSET', KEYS[1], 'seq', ARGV[3], 'seq_epoch', epoch, 'updated', at, 'step', ARGV[6], 'detected', '0',
    'result', ARGV[10], 'error', ARGV[11], 'head', checkpoint, 'interrupts', '[]')
  if redis.call('HSET', KEYS[6], checkpoint, ARGV[9]) == 1 then redis.call('RPUSH', KEYS[7], checkpoint) end
  redis.call('HSET', KEYS[8], ARGV[7], checkpoint)
  redis.call('DEL', KEYS[3], KEYS[4])
  for _, effect in ipairs(redis.call('HKEYS', KEYS[5])) do
    if redis.call('HGET', KEYS[5], effect) ~= checkpoint then redis.call('HDEL', KEYS[5], effect) end
  end
end
i = set_fields(KEYS[3], i)
if status == 'running' then return {'ok', cancel} end

-- The run leaves its owner: to sleep, straight back into the queue, or for good.
local index = KEYS[16]
redis.call('ZREM', KEYS[12], run_id .. ' ' .. epoch)
redis.call('HSET', KEYS[1], 'owner', '', 'lease', '0')
if status == 'waiting' then
  local wake_at = ARGV[13]
  local ready = cancel == '1'
  for j = i + 1, i + ARGV[i] do
    ready = ready or redis.call('HEXISTS', KEYS[4], ARGV[j]) == 1
  end
  if ready then
    status, index, wake_at = 'queued', KEYS[15], '0'
    make_ready(KEYS[11], run_id, at)
  elseif wake_at ~= '0' then
    redis.call('ZADD', KEYS[11], wake_at, run_id)
  end
  redis.call('HSET', KEYS[1], 'interrupts', ARGV[12], 'not_before', wake_at)
else
  redis.call('HSET', KEYS[1], 'interrupts', '[]', 'not_before', '0')
  redis.call('DEL', KEYS[3], KEYS[4])
  leave_line(KEYS[10], KEYS[11], KEYS[13], run_id, ARGV[7], at, ARGV[14])
end
redis.call('HSET', KEYS[1], 'status', status)
redis.call('ZREM', KEYS[14], run_id)
redis.call('ZADD', index, created, run_id)
return {'ok', cancel}
