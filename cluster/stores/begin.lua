#!lua
-- Law 4: an effect is on record before it happens, once. Law 1: only the run's owner begins one.
-- A receipt is kept as four lines: state, token, what else is known of it, outcome (the first three without newlines).
-- KEYS: run, events, receipts, effects since the head, counters
-- ARGV: epoch, effect, checkpoint's id, state, token, what else, outcome, events, counters
local epoch, status = unpack(redis.call('HMGET', KEYS[1], 'epoch', 'status'))
if epoch ~= ARGV[1] or status ~= 'running' then
  count(KEYS[5], FENCED_BEGIN)
  return {'fenced', epoch or '', status or 'deleted'}
end
local known = redis.call('HGET', KEYS[3], ARGV[2])
if known then
  local state, token = string.match(known, '^(%l+)\n([^\n]*)')
  if token == ARGV[5] or state ~= 'unknown' then
    return {state == ARGV[4] and token == ARGV[5] and 'fresh' or 'known', known}
  end
end
local receipt = table.concat(ARGV, '\n', 4, 7)
redis.call('HSET', KEYS[3], ARGV[2], receipt)
redis.call('HSET', KEYS[4], ARGV[2], ARGV[3])
add_counters(KEYS[5], add_events(KEYS[2], 8))
return {'fresh', receipt}
