#!lua flags=no-writes
-- Everything to go on with, as of one moment: record, chain to the head, pending writes, receipts since the head,
-- mailbox.
-- KEYS: run, answers, writes, checkpoints, receipts, effects since the head, messages
local head = redis.call('HGET', KEYS[1], 'head')
if not head then return {'missing'} end
local found = record('ok', KEYS[1], KEYS[2])
found[4] = chain(KEYS[4], head)
found[5] = redis.call('HGETALL', KEYS[3])
found[6] = {}
for _, effect in ipairs(redis.call('HKEYS', KEYS[6])) do
  table.insert(found[6], redis.call('HGET', KEYS[5], effect))
end
found[7] = redis.call('ZRANGE', KEYS[7], 0, -1, 'WITHSCORES')
return found
