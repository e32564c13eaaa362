-- What `log archive` adds to a log of schema 1, which then has schema 2. Sealed events stand here, and no longer in
-- `events`; the hash chain goes on over both, since `batches` stays as it is.

-- Whole commits, one after the other, from the first event on: their rows as MessagePack, compressed with zlib.
CREATE TABLE segments (
    first_seq INTEGER PRIMARY KEY,
    last_seq  INTEGER NOT NULL UNIQUE,
    least_us  INTEGER NOT NULL,
    data      BLOB NOT NULL
) STRICT;

-- Which streams a segment has events of, and the version that each has reached at its end.
CREATE TABLE segment_streams (
    stream_id INTEGER NOT NULL REFERENCES streams (id),
    version   INTEGER NOT NULL,
    first_seq INTEGER NOT NULL REFERENCES segments (first_seq),
    PRIMARY KEY (stream_id, version)
) STRICT, WITHOUT ROWID;

CREATE TRIGGER segments_keep BEFORE UPDATE ON segments BEGIN SELECT RAISE(ABORT, 'the event log only grows'); END;
CREATE TRIGGER segments_stay BEFORE DELETE ON segments BEGIN SELECT RAISE(ABORT, 'the event log only grows'); END;
CREATE TRIGGER segment_streams_keep BEFORE UPDATE ON segment_streams
    BEGIN SELECT RAISE(ABORT, 'the event log only grows'); END;
CREATE TRIGGER segment_streams_stay BEFORE DELETE ON segment_streams
    BEGIN SELECT RAISE(ABORT, 'the event log only grows'); END;
