#!lua flags=no-writes
-- Which of these commands the user may not execute. Whatever a script has done stays (law 2) when a command in its
-- middle is refused, so none is begun by a user who may not do all of them.
-- ARGV: for each command how many words it has, then these
local denied = {}
local i = 1
while i <= #ARGV do
  local last = i + tonumber(ARGV[i])
  if redis.acl_check_cmd and not redis.acl_check_cmd(unpack(ARGV, i + 1, last)) then
    denied[#denied + 1] = ARGV[i + 1]
  end
  i = last + 1
end
return denied
