#!lua flags=no-writes
-- Some documents of a shelf with their names, in order, as of one moment.
-- KEYS: documents of the shelf, their names
-- ARGV: ZRANGEBYLEX or ZREVRANGEBYLEX, from, to, how many
local found = {}
for i, name in ipairs(redis.call(ARGV[1], KEYS[2], ARGV[2], ARGV[3], 'LIMIT', 0, ARGV[4])) do
  found[2 * i - 1], found[2 * i] = name, redis.call('HGET', KEYS[1], name)
end
return found
