#!lua flags=no-writes
-- What a checkpoint stands on: the rows from it back to the newest snapshot.
-- KEYS: checkpoints
-- ARGV: checkpoint's id
return chain(KEYS[1], ARGV[1])
