-- The statements of documents; each verb is one BEGIN IMMEDIATE ... COMMIT, which begins with a look at what there is.

-- name: document
SELECT name, version, data FROM documents WHERE shelf = ? AND name = ?;

-- name: set_document
INSERT INTO documents (shelf, name, version, data) VALUES (?, ?, ?, ?)
ON CONFLICT (shelf, name) DO UPDATE SET version = excluded.version, data = excluded.data;

-- name: documents
SELECT name, version, data FROM documents WHERE shelf = ? AND name > ? ORDER BY name LIMIT ?;

-- name: last_documents
SELECT name, version, data FROM documents WHERE shelf = ? AND name > ? ORDER BY name DESC LIMIT ?;

-- name: erase_document
DELETE FROM documents WHERE shelf = ? AND name = ?;

-- name: shelves
SELECT shelf, count(*) AS documents FROM documents GROUP BY shelf ORDER BY shelf;
