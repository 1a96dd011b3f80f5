-- From schema version 2 to 3: documents. In one transaction, under the lock of whoever opens it first.

-- Whoever writes them erases them; every write names the version that it replaces.
CREATE TABLE documents (
    shelf   text COLLATE "C" NOT NULL,
    name    text COLLATE "C" NOT NULL,
    version bigint NOT NULL,
    data    bytea NOT NULL,
    PRIMARY KEY (shelf, name)
);
