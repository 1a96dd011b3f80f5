#!lua flags=no-writes
-- All there is of a thread, as of one moment.
-- KEYS: runs of the thread, checkpoints, history, heads, expiry, queue,
--       then of each run: run, answers, events, writes, receipts, messages, ids sent
-- ARGV: thread, ids of the runs
if not same_runs(KEYS[1], 2) then return {'changed'} end
local rows = {}
for i, id in ipairs(redis.call('LRANGE', KEYS[3], 0, -1)) do rows[i] = redis.call('HGET', KEYS[2], id) end
local runs = {}
for i = 2, #ARGV do
  local at = 7 + 7 * (i - 2)
  runs[i - 1] = {
    redis.call('HGETALL', KEYS[at]),
    redis.call('HGETALL', KEYS[at + 1]),
    redis.call('ZSCORE', KEYS[6], ARGV[i]),
    redis.call('LRANGE', KEYS[at + 2], 0, -1),
    redis.call('HGETALL', KEYS[at + 3]),
    redis.call('HVALS', KEYS[at + 4]),
    redis.call('ZRANGE', KEYS[at + 5], 0, -1, 'WITHSCORES'),
    redis.call('HGETALL', KEYS[at + 6]),
  }
end
return {'ok', redis.call('HGET', KEYS[4], ARGV[1]) or '', redis.call('ZSCORE', KEYS[5], ARGV[1]), rows, runs}
