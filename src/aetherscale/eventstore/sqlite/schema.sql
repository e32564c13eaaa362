-- One event log. It only grows: triggers refuse every UPDATE and DELETE.

-- Who recorded the events from first_seq on. One row, and one more for each time that the log was imported.
CREATE TABLE epochs (
    first_seq  INTEGER PRIMARY KEY,
    node       TEXT NOT NULL,
    epoch      TEXT NOT NULL,
    created_us INTEGER NOT NULL
) STRICT;

-- Names are spelled out once: small integer keys make index pages, which is what large batches wait for, small.
CREATE TABLE streams (
    id   INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE
) STRICT;

CREATE TABLE types (
    id         INTEGER PRIMARY KEY,
    name       TEXT NOT NULL,
    schema     INTEGER NOT NULL,
    written_by TEXT NOT NULL,
    UNIQUE (name, schema)
) STRICT;

CREATE TABLE events (
    seq            INTEGER PRIMARY KEY,
    stream_id      INTEGER NOT NULL REFERENCES streams (id),
    version        INTEGER NOT NULL,
    type_id        INTEGER NOT NULL REFERENCES types (id),
    time_us        INTEGER NOT NULL,
    tenant         TEXT NOT NULL,
    actor          TEXT NOT NULL,
    command_id     TEXT NOT NULL,
    correlation_id TEXT NOT NULL,
    causation_id   TEXT,
    data           BLOB NOT NULL,
    UNIQUE (stream_id, version)
) STRICT;

-- Which commands were accepted. The key is the tenant, a NUL and the command's id.
CREATE TABLE commands (
    key       BLOB PRIMARY KEY,
    digest    BLOB NOT NULL,
    first_seq INTEGER NOT NULL,
    last_seq  INTEGER NOT NULL,
    batch     INTEGER NOT NULL REFERENCES batches (number)
) STRICT, WITHOUT ROWID;

-- The hash chain: one link for each commit.
CREATE TABLE batches (
    number   INTEGER PRIMARY KEY,
    last_seq INTEGER NOT NULL,
    link     BLOB NOT NULL
) STRICT;

CREATE TRIGGER epochs_keep BEFORE UPDATE ON epochs BEGIN SELECT RAISE(ABORT, 'the event log only grows'); END;
CREATE TRIGGER epochs_stay BEFORE DELETE ON epochs BEGIN SELECT RAISE(ABORT, 'the event log only grows'); END;
CREATE TRIGGER streams_keep BEFORE UPDATE ON streams BEGIN SELECT RAISE(ABORT, 'the event log only grows'); END;
CREATE TRIGGER streams_stay BEFORE DELETE ON streams BEGIN SELECT RAISE(ABORT, 'the event log only grows'); END;
CREATE TRIGGER types_keep BEFORE UPDATE ON types BEGIN SELECT RAISE(ABORT, 'the event log only grows'); END;
CREATE TRIGGER types_stay BEFORE DELETE ON types BEGIN SELECT RAISE(ABORT, 'the event log only grows'); END;
CREATE TRIGGER events_keep BEFORE UPDATE ON events BEGIN SELECT RAISE(ABORT, 'the event log only grows'); END;
CREATE TRIGGER events_stay BEFORE DELETE ON events BEGIN SELECT RAISE(ABORT, 'the event log only grows'); END;
CREATE TRIGGER commands_keep BEFORE UPDATE ON commands BEGIN SELECT RAISE(ABORT, 'the event log only grows'); END;
CREATE TRIGGER commands_stay BEFORE DELETE ON commands BEGIN SELECT RAISE(ABORT, 'the event log only grows'); END;
CREATE TRIGGER batches_keep BEFORE UPDATE ON batches BEGIN SELECT RAISE(ABORT, 'the event log only grows'); END;
CREATE TRIGGER batches_stay BEFORE DELETE ON batches BEGIN SELECT RAISE(ABORT, 'the event log only grows'); END;
