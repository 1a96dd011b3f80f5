#!lua
-- Keep bytes under their digest, and when they were put last.
-- KEYS: blob, times of blobs
-- ARGV: digest, bytes, now
redis.call('SET', KEYS[1], ARGV[2], 'NX')
redis.call('ZADD', KEYS[2], ARGV[3], ARGV[1])
return 1
