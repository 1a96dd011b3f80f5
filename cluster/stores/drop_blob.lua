#!lua flags=allow-oom
-- Law 8: a blob that no run named has its end, unless it was put again since the caller looked.
-- KEYS: blob, times of blobs
-- ARGV: digest, put at this time or before
local put_at = redis.call('ZSCORE', KEYS[2], ARGV[1])
if not put_at or tonumber(put_at) > tonumber(ARGV[2]) then return 0 end
redis.call('UNLINK', KEYS[1])
redis.call('ZREM', KEYS[2], ARGV[1])
return 1
