#!lua
-- The next version of a document, if the present one is the one that the caller knows. The same write again is answered
-- as it was; another one is told what there is.
-- KEYS: documents of the shelf, their names, shelves
-- ARGV: shelf, name, version that is replaced (0: none), bytes
local found = redis.call('HGET', KEYS[1], ARGV[2])
local version = found and string.match(found, '^%d+') or '0'
local written = string.format('%.0f', ARGV[3] + 1) .. '\n' .. ARGV[4]
if found == written then return {'ok'} end
if version ~= ARGV[3] then return {'overtaken', found} end
redis.call('HSET', KEYS[1], ARGV[2], written)
if not found then
  redis.call('ZADD', KEYS[2], 0, ARGV[2])
  redis.call('SADD', KEYS[3], ARGV[1])
end
return {'ok'}
