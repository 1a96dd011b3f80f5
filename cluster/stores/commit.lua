#!lua
-- Laws 1 and 2: everything that one node's end changes moves here, in one script, or is refused.
-- A stale epoch changes nothing but a counter. The same (epoch, seq) again changes nothing but a counter.
-- Several commits of a run go in one call, in order; the first that is refused ends it, those before it stay.
-- KEYS: run, events, writes, answers, messages; effects since the head, checkpoints, history, heads, counters;
--       if one of them has a status other than running also: what its parent has, its place
-- ARGV: run id, thread; then of each commit: number of its arguments, epoch, seq, at, status, step, checkpoint's id, its
--       row, result, error, interrupts, wake at, keep until, listens after, messages taken, events, counters, writes,
--       ids of open interrupts
local run_id, thread = ARGV[1], ARGV[2]
local was, stored_epoch, seq, seq_epoch, cancel, created =
  unpack(redis.call('HMGET', KEYS[1], 'status', 'epoch', 'seq', 'seq_epoch', 'cancel', 'created'))

-- Sent again as they were: the stored one is among these, and so are those before it (their reply was lost).
local sent, at_arg = {}, 3
while ARGV[at_arg] do
  sent[ARGV[at_arg + 2]] = true
  at_arg = at_arg + 1 + ARGV[at_arg]
end

-- The run leaves its owner: to sleep, straight back into the queue, or for good. Its status then.
local function leave(at, status, interrupts, wake_at, keep_until, listens, i)
  local keys, place = run_at(1, 11), place_at(14)
  redis.call('ZREM', place.leases, run_id .. ' ' .. stored_epoch)
  if status ~= 'waiting' then
    end_run(keys, place, run_id, status, at, keep_until)
    return status
  end
  redis.call('HSET', KEYS[1], 'owner', '', 'lease', '0', 'interrupts', interrupts, 'listens', listens)
  local ready = cancel == '1'
  for j = i + 1, i + ARGV[i] do
    ready = ready or redis.call('HEXISTS', KEYS[4], ARGV[j]) == 1
  end
  ready = ready or (listens ~= '' and redis.call('ZCOUNT', KEYS[5], '(' .. listens, '+inf') > 0)
  if ready then
    wake(KEYS[1], place, run_id, 'running', created, at)
    return 'queued'
  end
  if wake_at ~= '0' then redis.call('ZADD', place.queue, wake_at, run_id) end
  redis.call('HSET', KEYS[1], 'not_before', wake_at)
  move(KEYS[1], place, run_id, 'running', 'waiting', created)
  return 'waiting'
end

local told
at_arg = 3
while ARGV[at_arg] do
  local epoch, number, at, status, step, checkpoint, row, result, failure, interrupts, wake_at, keep_until, listens =
    unpack(ARGV, at_arg + 1, at_arg + 13)
  local i = at_arg + 14
  at_arg = at_arg + 1 + ARGV[at_arg]
  if stored_epoch == epoch and seq_epoch == epoch and sent[seq] and tonumber(number) <= tonumber(seq) then
    count(KEYS[10], COMMIT_DUPLICATE)
    told = 'duplicate'
  elseif stored_epoch ~= epoch or was ~= 'running' then
    count(KEYS[10], FENCED_COMMIT)
    return {'fenced', number, epoch}
  elseif tonumber(number) ~= seq + 1 then
    return {'gap', number, seq}
  else
    for j = i + 1, i + ARGV[i] do redis.call('ZREMRANGEBYSCORE', KEYS[5], ARGV[j], ARGV[j]) end
    i = add_events(KEYS[2], i + 1 + ARGV[i])
    i = add_counters(KEYS[10], i)
    count(KEYS[10], COMMIT_OK)
    if checkpoint == '' then
      redis.call('HSET', KEYS[1], 'seq', number, 'seq_epoch', epoch, 'updated', at, 'step', step, 'detected', '0',
        'result', result, 'error', failure)
    else
      redis.call('HSET', KEYS[1], 'seq', number, 'seq_epoch', epoch, 'updated', at, 'step', step, 'detected', '0',
        'result', result, 'error', failure, 'head', checkpoint, 'interrupts', '[]')
      if redis.call('HSET', KEYS[7], checkpoint, row) == 1 then redis.call('RPUSH', KEYS[8], checkpoint) end
      redis.call('HSET', KEYS[9], thread, checkpoint)
      redis.call('DEL', KEYS[3], KEYS[4])
      for _, effect in ipairs(redis.call('HKEYS', KEYS[6])) do
        if redis.call('HGET', KEYS[6], effect) ~= checkpoint then redis.call('HDEL', KEYS[6], effect) end
      end
    end
    i = set_fields(KEYS[3], i)
    seq, seq_epoch, told = number, epoch, 'ok'
    if status ~= 'running' then was = leave(at, status, interrupts, wake_at, keep_until, listens, i) end
  end
end
return {told, cancel}
