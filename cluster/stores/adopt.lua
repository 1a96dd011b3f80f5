#!lua
-- Law 2: a thread of another store is taken over whole, if there is none of its name. The caller says what to write.
-- KEYS: runs of the thread, then all that is written to
-- ARGV: of each command: number of its words behind the name and the key; its name; which of KEYS; those words
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
local i = 1
while ARGV[i] do
  local last = i + 2 + ARGV[i]
  redis.call(ARGV[i + 1], KEYS[tonumber(ARGV[i + 2])], unpack(ARGV, i + 3, last))
  i = last + 1
end
redis.call('PUBLISH', CHANNEL, '')
return 1
