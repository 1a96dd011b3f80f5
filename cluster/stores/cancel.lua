#!lua
-- A run that nobody owns is cancelled here and now; one that runs is only asked (law 1: its owner writes the end).
-- KEYS: run, events, writes, answers, messages, what its parent has, its place
-- ARGV: run id, now, keep until, event asked, event finished, counter of finished runs, parent's epoch
if redis.call('EXISTS', KEYS[1]) == 0 then return {'missing'} end
if asks_in_vain(KEYS[1], KEYS[6], ARGV[7]) then
  count(place_at(9).counters, FENCED_CANCEL)
  return {'fenced'}
end
cancel_run(run_at(1, 6), place_at(9), unpack(ARGV, 1, 6))
return record('ok', KEYS[1], KEYS[4])
