#!lua
-- Law 1: a run is taken away from the owner with this epoch, who is fenced from here on; all that it committed stays.
-- KEYS: run, answers, events, queue, leases, counters, index running, index queued or quarantined;
--       with a quarantine also: line, expiry, writes
-- ARGV: run id, epoch, now, not before, ready at, crashed (0 or 1), quarantine, thread, keep until, events, counters
local run_id, now, quarantine = ARGV[1], ARGV[3], ARGV[7]
local status, epoch, created, restarts, crashes =
  unpack(redis.call('HMGET', KEYS[1], 'status', 'epoch', 'created', 'restarts', 'crashes'))
if epoch ~= ARGV[2] or status ~= 'running' then
  count(KEYS[6], FENCED_REQUEUE)
  return {'fenced', epoch or '', status or 'deleted'}
end

redis.call('ZREM', KEYS[5], run_id .. ' ' .. epoch)
redis.call('HSET', KEYS[1], 'epoch', string.format('%.0f', epoch + 1), 'owner', '', 'lease', '0', 'updated', now)
if ARGV[6] == '1' then
  local times = {}
  for time in string.gmatch(crashes .. ' ' .. now, '%S+') do table.insert(times, time) end
  redis.call('HSET', KEYS[1], 'restarts', string.format('%.0f', restarts + 1), 'detected', now,
    'crashes', table.concat(times, ' ', math.max(1, #times - CRASHES_KEPT + 1)))
end
if quarantine == '' then
  redis.call('HSET', KEYS[1], 'status', 'queued', 'not_before', ARGV[4])
  make_ready(KEYS[4], run_id, ARGV[5])
else
  redis.call('HSET', KEYS[1], 'status', 'quarantined', 'error', quarantine, 'interrupts', '[]',
    'not_before', '0')
  redis.call('DEL', KEYS[2], KEYS[11])
  leave_line(KEYS[9], KEYS[4], KEYS[10], run_id, ARGV[8], now, ARGV[9])
end
redis.call('ZREM', KEYS[7], run_id)
redis.call('ZADD', KEYS[8], created, run_id)
local i = add_events(KEYS[3], 10)
add_counters(KEYS[6], i)
return record('ok', KEYS[1], KEYS[2])
