#!lua
-- Add to the counters.
-- KEYS: counters
-- ARGV: counters
add_counters(KEYS[1], 1)
return 1
