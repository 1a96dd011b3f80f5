#!lua flags=allow-oom
-- Delete checkpoints, and the receipts that hang on them; not those that an unfinished run or the thread stands on.
-- KEYS: runs of the thread, checkpoints, history, heads, then run, receipts and effects since the head of each run
-- ARGV: thread, number of checkpoints, their ids, ids of the runs
local runs_at = 3 + ARGV[2]
if not same_runs(KEYS[1], runs_at) then return -1 end
local kept = {[redis.call('HGET', KEYS[4], ARGV[1]) or ''] = true}
for i = 5, #KEYS, 3 do
  local status, head, base = unpack(redis.call('HMGET', KEYS[i], 'status', 'head', 'base'))
  if not FINAL[status] then kept[head], kept[base] = true, true end
end
local gone, number = {}, 0
for i = 3, runs_at - 1 do
  local id = ARGV[i]
  if not kept[id] and redis.call('HDEL', KEYS[2], id) == 1 then
    redis.call('LREM', KEYS[3], 1, id)
    gone[id], number = true, number + 1
  end
end
if number == 0 then return 0 end
for i = 6, #KEYS, 3 do
  for _, effect in ipairs(redis.call('HKEYS', KEYS[i])) do
    if gone[string.match(effect, '^[^\n]*')] then
      redis.call('HDEL', KEYS[i], effect)
      redis.call('HDEL', KEYS[i + 1], effect)
    end
  end
end
return number
