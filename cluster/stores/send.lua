#!lua
-- Put a message into a run's mailbox, once (its id is remembered, also after it was taken). Law 8: a full one refuses.
-- A run that listens to it becomes ready.
-- KEYS: run, events, answers, messages, ids sent, its place, parent
-- ARGV: run id, message's id, now, message, event up to the message's number, parent's epoch
local status, listens, created = unpack(redis.call('HMGET', KEYS[1], 'status', 'listens', 'created'))
if not status then return {'missing'} end
if asks_in_vain(KEYS[1], KEYS[19], ARGV[6]) then
  count(place_at(6).counters, FENCED_SEND)
  return {'fenced'}
end
if FINAL[status] then return record('final', KEYS[1], KEYS[3]) end
local known = redis.call('HGET', KEYS[5], ARGV[2])
if known then return {'ok', known} end
local size = redis.call('ZCARD', KEYS[4])
if size >= MAILBOX_MAX then return {'full', size} end

local n = redis.call('HLEN', KEYS[5]) + 1
redis.call('HSET', KEYS[5], ARGV[2], n)
redis.call('ZADD', KEYS[4], n, ARGV[4])
redis.call('RPUSH', KEYS[2], ARGV[5] .. n .. '}}')
if status == 'waiting' and listens ~= '' and n > tonumber(listens) then
  wake(KEYS[1], place_at(6), ARGV[1], status, created, ARGV[3])
end
return {'ok', n}
