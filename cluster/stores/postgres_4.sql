-- From schema version 3 to 4: differences to a checkpoint before the parent. What is stored has none. In one transaction,
-- under the lock of whoever opens it first.

ALTER TABLE checkpoints ADD COLUMN since text COLLATE "C" NOT NULL DEFAULT '';
