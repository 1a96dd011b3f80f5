#!lua
-- Law 1: a lease is kept for the epoch that has it, and for no other. One call for all runs of a partition.
-- KEYS: leases, counters, then the runs
-- ARGV: lease until, then id and epoch of each run
local told = {}
for i = 3, #KEYS do
  local run_id, epoch = ARGV[2 * i - 4], ARGV[2 * i - 3]
  local was, status, cancel = unpack(redis.call('HMGET', KEYS[i], 'epoch', 'status', 'cancel'))
  if was ~= epoch then
    count(KEYS[2], FENCED_RENEW)
    told[i - 2] = 'lost'
  elseif status ~= 'running' then
    told[i - 2] = 'given back'
  else
    redis.call('ZADD', KEYS[1], ARGV[1], run_id .. ' ' .. epoch)
    redis.call('HSET', KEYS[i], 'lease', ARGV[1])
    told[i - 2] = cancel == '1' and 'cancelled' or 'kept'
  end
end
return told
