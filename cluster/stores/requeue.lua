#!lua
-- Law 1: a run is taken away from the owner with this epoch, who is fenced from here on; all that it committed stays.
-- KEYS: run, events, writes, answers, messages, what its parent has, its place
-- ARGV: run id, epoch, now, not before, ready at, crashed (0 or 1), quarantine, keep until, events, counters
local run_id, now, quarantine = ARGV[1], ARGV[3], ARGV[7]
local keys, place = run_at(1, 6), place_at(9)
local status, epoch, created, restarts, crashes =
  unpack(redis.call('HMGET', keys.run, 'status', 'epoch', 'created', 'restarts', 'crashes'))
if epoch ~= ARGV[2] or status ~= 'running' then
  count(place.counters, FENCED_REQUEUE)
  return {'fenced', epoch or '', status or 'deleted'}
end

redis.call('ZREM', place.leases, run_id .. ' ' .. epoch)
redis.call('HSET', keys.run, 'epoch', string.format('%.0f', epoch + 1), 'owner', '', 'lease', '0', 'updated', now)
if ARGV[6] == '1' then
  local times = {}
  for time in string.gmatch(crashes .. ' ' .. now, '%S+') do table.insert(times, time) end
  redis.call('HSET', keys.run, 'restarts', string.format('%.0f', restarts + 1), 'detected', now,
    'crashes', table.concat(times, ' ', math.max(1, #times - CRASHES_MAX + 1)))
end
add_counters(place.counters, add_events(keys.events, 9))
if quarantine == '' then
  redis.call('HSET', keys.run, 'not_before', ARGV[4])
  move(keys.run, place, run_id, status, 'queued', created)
  make_ready(place.queue, run_id, ARGV[5])
else
  redis.call('HSET', keys.run, 'error', quarantine)
  end_run(keys, place, run_id, 'quarantined', now, ARGV[8])
end
return record('ok', keys.run, keys.answers)
