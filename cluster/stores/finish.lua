#!lua
-- Law 5: the outcome of a started effect is written by whoever has its token, whoever owns the run by now; also when
-- the effect was given up as unknown meanwhile (late knowledge is knowledge).
-- KEYS: receipts, events, counters
-- ARGV: effect, token, new state (done or unknown), outcome, events, counters
local known = redis.call('HGET', KEYS[1], ARGV[1])
if not known then return 0 end
local state, token, rest = string.match(known, '^(%l+)\n([^\n]*)\n([^\n]*)')
if token ~= ARGV[2] or state == 'done' or state == ARGV[3] then return 0 end
redis.call('HSET', KEYS[1], ARGV[1], table.concat({ARGV[3], token, rest, ARGV[4]}, '\n'))
add_counters(KEYS[3], add_events(KEYS[2], 5))
return 1
