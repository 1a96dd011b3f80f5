#!lua flags=allow-oom
-- Law 8: not one key of a thread stays, and its place in every index goes. Allowed when memory is full: it makes room.
-- KEYS: line, runs of the thread, keys of the thread, checkpoints, history, heads, expiry, threads, blobs named,
--       index all, four indices of final runs, then all keys of each run
-- ARGV: thread, time by which it has to have expired (empty: any), number of keys of a run, ids of the runs
if redis.call('LLEN', KEYS[1]) > 0 then return {'unfinished', redis.call('LINDEX', KEYS[1], 0)} end
if not same_runs(KEYS[2], 4) then return {'changed'} end
if ARGV[2] ~= '' then
  local keep_until = redis.call('ZSCORE', KEYS[7], ARGV[1])
  if not keep_until or tonumber(keep_until) > tonumber(ARGV[2]) then return {'kept'} end
end
for i = 4, #ARGV do
  for index = 10, 14 do redis.call('ZREM', KEYS[index], ARGV[i]) end
  name_blobs(KEYS[9], redis.call('HGET', KEYS[15 + (i - 4) * ARGV[3]], 'blobs'), -1)
end
redis.call('HDEL', KEYS[6], ARGV[1])
redis.call('ZREM', KEYS[7], ARGV[1])
redis.call('ZREM', KEYS[8], ARGV[1])
redis.call('UNLINK', unpack(KEYS, 1, 5))
for from = 15, #KEYS, CHUNK do
  redis.call('UNLINK', unpack(KEYS, from, math.min(from + CHUNK - 1, #KEYS)))
end
return {'deleted'}
