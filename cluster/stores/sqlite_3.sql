-- From schema version 2 to 3: documents.

-- Whoever writes them erases them; every write names the version that it replaces.
CREATE TABLE documents (
    shelf   TEXT NOT NULL,
    name    TEXT NOT NULL,
    version INTEGER NOT NULL,
    data    BLOB NOT NULL,
    PRIMARY KEY (shelf, name)
);
