-- From schema version 3 to 4: differences to a checkpoint before the parent. What is stored has none.
ALTER TABLE checkpoints ADD COLUMN since TEXT NOT NULL DEFAULT '';
