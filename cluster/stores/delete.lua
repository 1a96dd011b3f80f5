#!lua flags=allow-oom
-- Law 8: not one key of a thread stays, and its place in every index goes. Allowed when memory is full: it makes room.
-- The caller names the runs it knows of; if there are others by now, nothing is changed and it looks again.
-- KEYS: line, runs of the thread, keys of the thread, checkpoints, history, heads, expiry, index all,
--       four indices of final runs, then all keys of the runs
-- ARGV: thread, time by which it has to have expired (empty: any), ids of the runs
if redis.call('LLEN', KEYS[1]) > 0 then return {'unfinished', redis.call('LINDEX', KEYS[1], 0)} end
local runs = redis.call('ZRANGE', KEYS[2], 0, -1)
if table.concat(runs, '\n') ~= table.concat(ARGV, '\n', 3) then return {'changed'} end
if ARGV[2] ~= '' then
  local keep_until = redis.call('ZSCORE', KEYS[7], ARGV[1])
  if not keep_until or tonumber(keep_until) > tonumber(ARGV[2]) then return {'kept'} end
end
for _, run_id in ipairs(runs) do
  for index = 8, 12 do redis.call('ZREM', KEYS[index], run_id) end
end
redis.call('HDEL', KEYS[6], ARGV[1])
redis.call('ZREM', KEYS[7], ARGV[1])
redis.call('UNLINK', unpack(KEYS, 1, 5))
for from = 13, #KEYS, CHUNK do
  redis.call('UNLINK', unpack(KEYS, from, math.min(from + CHUNK - 1, #KEYS)))
end
return {'deleted'}
