#!lua flags=no-writes
-- What is known of the checkpoints of a thread, oldest of them first, without their bodies.
-- KEYS: history, checkpoints
-- ARGV: first and last place in the history, as LRANGE counts
local rows = {}
for _, id in ipairs(redis.call('LRANGE', KEYS[1], ARGV[1], ARGV[2])) do
  table.insert(rows, string.match(redis.call('HGET', KEYS[2], id), '^[^\n]*'))
end
return rows
