#!lua
-- A document of another store is taken over, if there is none of its name.
-- KEYS: documents of the shelf, their names, shelves
-- ARGV: shelf, name, version and bytes as they are kept
if redis.call('HSETNX', KEYS[1], ARGV[2], ARGV[3]) == 0 then return 0 end
redis.call('ZADD', KEYS[2], 0, ARGV[2])
redis.call('SADD', KEYS[3], ARGV[1])
return 1
