#!lua flags=allow-oom
-- Law 8: a document goes, if it is still the version that the caller knows. Allowed when memory is full: it makes room.
-- KEYS: documents of the shelf, their names, shelves
-- ARGV: shelf, name, version
local found = redis.call('HGET', KEYS[1], ARGV[2])
if not found then return {'ok'} end
if string.match(found, '^%d+') ~= ARGV[3] then return {'overtaken', found} end
redis.call('HDEL', KEYS[1], ARGV[2])
redis.call('ZREM', KEYS[2], ARGV[2])
if redis.call('EXISTS', KEYS[1]) == 0 then redis.call('SREM', KEYS[3], ARGV[1]) end
return {'ok'}
