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

-- Keys come in blocks, each in one order (see redis_codec.py): what a run has, what its parent has, what is of its place
-- (thread and partition; among it the indices by status).
local PLACE = {'heads', 'counters', 'line', 'queue', 'expiry', 'leases',
  'queued', 'running', 'waiting', 'succeeded', 'failed', 'cancelled', 'quarantined'}

local function place_at(i)
  local place = {}
  for j, name in ipairs(PLACE) do place[name] = KEYS[i + j - 1] end
  return place
end

local function run_at(own, parent)
  return {
    run = KEYS[own], events = KEYS[own + 1], writes = KEYS[own + 2], answers = KEYS[own + 3], messages = KEYS[own + 4],
    parent = {run = KEYS[parent], answers = KEYS[parent + 1], events = KEYS[parent + 2]},
  }
end

local FINAL = {succeeded = true, failed = true, cancelled = true, quarantined = true}

-- A text as JSON, escaped exactly as Python's json.dumps(..., ensure_ascii=False) does: answers are compared as texts.
local ESCAPED = {['"'] = '\\"', ['\\'] = '\\\\', ['\n'] = '\\n', ['\r'] = '\\r', ['\t'] = '\\t', ['\f'] = '\\f', ['\b'] = '\\b'}
local function quoted(text)
  return '"' .. string.gsub(text, '[%z\1-\31"\\]', function(c)
    return ESCAPED[c] or string.format('\\u%04x', string.byte(c))
  end) .. '"'
end

local function is_open(interrupts, id)
  for _, interrupt in ipairs(cjson.decode(interrupts)) do
    if interrupt.interrupt_id == id and not interrupt.settled then return true end
  end
  return false
end

-- A run's status and its place in the indices move together.
local function move(run, place, run_id, was, status, created)
  redis.call('HSET', run, 'status', status)
  redis.call('ZREM', place[was], run_id)
  redis.call('ZADD', place[status], created, run_id)
end

-- A run that waited, or was set aside, is to be claimed.
local function wake(run, place, run_id, was, created, at)
  redis.call('HSET', run, 'not_before', '0')
  move(run, place, run_id, was, 'queued', created)
  make_ready(place.queue, run_id, at)
end

-- The end of a child answers its parent, whether the question is open yet or not; the first answer stands.
local function tell_parent(parent, place, parent_id, interrupt, answer, at)
  local status, interrupts, created = unpack(redis.call('HMGET', parent.run, 'status', 'interrupts', 'created'))
  if not status or FINAL[status] then return end
  if redis.call('HSETNX', parent.answers, interrupt, answer) == 0 then return end
  redis.call('RPUSH', parent.events,
    '{"kind":"answered","at":' .. at .. ',"data":{"interrupt_id":' .. quoted(interrupt) .. '}}')
  if status == 'waiting' and is_open(interrupts, interrupt) then
    wake(parent.run, place, parent_id, status, created, at)
  end
end

-- Law 2: all that the end of a run moves, whichever verb brings it. What `retry` goes on with stays. Law 8: the thread's
-- time begins. The next run of its thread becomes ready, and its parent has its answer.
local function end_run(keys, place, run_id, status, at, keep_until)
  local was, thread, created, head, base, rollback, parent_id, interrupt, failure, result = unpack(redis.call('HMGET',
    keys.run, 'status', 'thread', 'created', 'head', 'base', 'rollback', 'parent', 'parent_interrupt', 'error',
    'result'))
  redis.call('HSET', keys.run, 'owner', '', 'lease', '0', 'not_before', '0')
  move(keys.run, place, run_id, was, status, created)
  redis.call('ZREM', place.queue, run_id)
  if status == 'succeeded' or status == 'cancelled' then
    redis.call('HSET', keys.run, 'interrupts', '[]')
    redis.call('DEL', keys.writes, keys.answers, keys.messages)
  end
  if status == 'cancelled' and rollback == '1' and head ~= base then
    if base == '' then
      redis.call('HDEL', place.heads, thread)
    else
      redis.call('HSET', place.heads, thread, base)
    end
  end
  if keep_until == '' then
    redis.call('ZREM', place.expiry, thread)
  else
    redis.call('ZADD', place.expiry, keep_until, thread)
  end
  local first = redis.call('LINDEX', place.line, 0)
  redis.call('LREM', place.line, 1, run_id)
  local following = redis.call('LINDEX', place.line, 0)
  if following and first == run_id then make_ready(place.queue, following, at) end
  if parent_id ~= '' then
    local answer = '{"status":"' .. status .. '","error":' .. quoted(failure) .. ',"result":'
      .. (result == '' and 'null' or result) .. '}'
    tell_parent(keys.parent, place, parent_id, interrupt, answer, at)
  end
end

-- Law 1: who asks something of a child owns its parent with this epoch ('0': somebody else asks).
local function asks_in_vain(run, parent, epoch)
  if epoch == '0' then return false end
  local was, status = unpack(redis.call('HMGET', parent, 'epoch', 'status'))
  return redis.call('HGET', run, 'parent') == '' or was ~= epoch or status ~= 'running'
end

-- A run that nobody owns is cancelled here and now; one that runs is only asked (law 1: its owner writes the end).
local function cancel_run(keys, place, run_id, now, keep_until, asked, finished, counter)
  local status, epoch, cancel = unpack(redis.call('HMGET', keys.run, 'status', 'epoch', 'cancel'))
  if status == 'running' then
    if cancel ~= '1' then
      redis.call('HSET', keys.run, 'cancel', '1', 'updated', now)
      redis.call('RPUSH', keys.events, asked)
    end
  elseif not FINAL[status] then
    redis.call('HSET', keys.run, 'cancel', '1', 'epoch', string.format('%.0f', epoch + 1), 'updated', now)
    redis.call('RPUSH', keys.events, finished)
    count(place.counters, counter)
    end_run(keys, place, run_id, 'cancelled', now, keep_until)
  end
end

-- Blobs that a run names are counted (law 8: what nobody names has an end). `blobs` is a JSON list of digests.
local function name_blobs(named, blobs, by)
  if blobs == '[]' then return end
  for _, digest in ipairs(cjson.decode(blobs)) do
    if redis.call('HINCRBY', named, digest, by) <= 0 then redis.call('HDEL', named, digest) end
  end
end

-- Whether a thread has exactly these runs. Scripts that touch all of them are told which, as their keys have to be
-- declared; if there are others by now, they change nothing and the caller looks again.
local function same_runs(runs, i)
  return table.concat(redis.call('ZRANGE', runs, 0, -1), '\n') == table.concat(ARGV, '\n', i)
end

-- The rows from this checkpoint back to the newest snapshot, along what each is a difference to; a row is a JSON array of what is known of it, then its body.
local function chain(checkpoints, id)
  local rows = {}
  while id ~= '' do
    local row = redis.call('HGET', checkpoints, id)
    if not row then break end
    rows[#rows + 1] = row
    local known = cjson.decode(string.match(row, '^[^\n]*'))
    id = known[3] == 1 and '' or known[7] or known[2]
  end
  return rows
end
