#!lua
-- Law 1: only the owner of a run streams. Law 8: the last CHUNKS_MAX chunks are kept.
-- KEYS: run, chunks
-- ARGV: epoch, chunks
local epoch, status = unpack(redis.call('HMGET', KEYS[1], 'epoch', 'status'))
if epoch ~= ARGV[1] or status ~= 'running' then return {'fenced'} end
add_events(KEYS[2], 2)
redis.call('HINCRBY', KEYS[1], 'streamed', ARGV[2])
redis.call('LTRIM', KEYS[2], -CHUNKS_MAX, -1)
return {'ok'}
