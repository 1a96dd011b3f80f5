#!lua flags=no-writes
-- What was streamed after a cursor. A chunk's cursor is its place: the last one has as many before it as were streamed.
-- KEYS: run, chunks
-- ARGV: after, limit
local streamed = redis.call('HGET', KEYS[1], 'streamed')
if not streamed then return {'missing'} end
local gone = streamed - redis.call('LLEN', KEYS[2])
local first = math.max(0, ARGV[1] - gone)
return {'ok', gone + first, redis.call('LRANGE', KEYS[2], first, first + ARGV[2] - 1)}
