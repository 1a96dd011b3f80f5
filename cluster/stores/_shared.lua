-- Pieces that the scripts of the Redis store share; the loader puts them behind the first line of each.
-- Times and other fractions are passed and kept as text: Lua would print them with 14 digits only.

local CHUNK = 1000 -- unpack() takes some thousand values at most

-- Lists in ARGV are a count, then the items. Each of these returns the index behind its list.
local function add_events(key, i)
  local last = i + tonumber(ARGV[i])
  for from = i + 1, last, CHUNK do
    redis.call('RPUSH', key, unpack(ARGV, from, math.min(from + CHUNK - 1, last)))
  end
  return last + 1
end

local function add_counters(key, i)
  local last = i + 2 * tonumber(ARGV[i])
  for j = i + 1, last, 2 do
    -- Whole numbers three times as fast; fractions come with a field name of their own, which HINCRBY never meets.
    local command = string.find(ARGV[j + 1], '[.e]') and 'HINCRBYFLOAT' or 'HINCRBY'
    redis.call(command, key, ARGV[j], ARGV[j + 1])
  end
  return last + 1
end

local function set_fields(key, i)
  local last = i + 2 * tonumber(ARGV[i])
  for from = i + 1, last, CHUNK do
    redis.call('HSET', key, unpack(ARGV, from, math.min(from + CHUNK - 1, last)))
  end
  return last + 1
end

local function count(key, sample)
  redis.call('HINCRBY', key, sample, 1)
end

local function record(tag, run, answers)
  return {tag, redis.call('HGETALL', run), redis.call('HGETALL', answers)}
end

-- What is ready at some time: a hint for whoever waits in wait_work. A channel is no key.
local function make_ready(queue, run_id, at)
  redis.call('ZADD', queue, at, run_id)
  redis.call('PUBLISH', CHANNEL, '')
end

-- Law 8 and the order of a thread: a final run leaves the line; the next one becomes ready, or the thread's time begins.
local function leave_line(line, queue, expiry, run_id, thread, at, keep_until)
  local first = redis.call('LINDEX', line, 0)
  redis.call('LREM', line, 1, run_id)
  local following = redis.call('LINDEX', line, 0)
  if not following then
    if keep_until ~= '' then redis.call('ZADD', expiry, keep_until, thread) end
  elseif first == run_id then
    make_ready(queue, following, at)
  end
end

-- The rows from this checkpoint back to the newest snapshot; a row is a JSON array of what is known of it, then its body.
local function chain(checkpoints, id)
  local rows = {}
  while id ~= '' do
    local row = redis.call('HGET', checkpoints, id)
    if not row then break end
    rows[#rows + 1] = row
    local parent, snapshot = unpack(cjson.decode(string.match(row, '^[^\n]*')), 2, 3)
    id = snapshot == 1 and '' or parent
  end
  return rows
end
