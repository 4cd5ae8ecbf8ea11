-- Facts that the daemon keeps. JSON documents are the types of the same name in the code.
CREATE TABLE meta (
    name  TEXT PRIMARY KEY,
    value BLOB NOT NULL
);

-- What came in and is to be looked at once: webhook deliveries by their id, comments by theirs.
CREATE TABLE inbox (
    id          TEXT PRIMARY KEY,
    received_at TEXT NOT NULL,
    document    TEXT NOT NULL,
    handled_at  TEXT
);
CREATE INDEX inbox_open ON inbox (received_at) WHERE handled_at IS NULL;

-- The last observation of each instance, and the last without an error.
CREATE TABLE observations (
    instance    TEXT PRIMARY KEY,
    observed_at TEXT NOT NULL,
    document    TEXT NOT NULL
);

-- What is applied (R1.1).
CREATE TABLE applied (
    instance   TEXT PRIMARY KEY,
    applied_at TEXT NOT NULL,
    document   TEXT NOT NULL
);

-- Plans that were shown, by what they are about: `head/staging`, `pull/12/staging`.
CREATE TABLE plans (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    subject    TEXT NOT NULL,
    digest     TEXT NOT NULL,
    planned_at TEXT NOT NULL,
    comment    INTEGER,
    document   TEXT NOT NULL
);
CREATE INDEX plans_subject ON plans (subject, id);

CREATE TABLE runs (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    environment TEXT NOT NULL,
    state       TEXT NOT NULL,
    created_at  TEXT NOT NULL,
    ended_at    TEXT,
    document    TEXT NOT NULL
);
CREATE INDEX runs_open ON runs (environment) WHERE ended_at IS NULL;

-- Append-only: what happened in which order. `journal::next_status` says what may follow what.
CREATE TABLE journal (
    seq      INTEGER PRIMARY KEY AUTOINCREMENT,
    run      INTEGER NOT NULL REFERENCES runs (id),
    instance TEXT,
    at       TEXT NOT NULL,
    token    INTEGER NOT NULL,
    event    TEXT NOT NULL
);
CREATE INDEX journal_run ON journal (run, seq);

-- Which run holds which instance.
CREATE TABLE run_locks (
    instance TEXT PRIMARY KEY,
    run      INTEGER NOT NULL REFERENCES runs (id)
);

-- Which daemon acts in which environment; a higher token fences off a lower one.
CREATE TABLE leases (
    environment TEXT PRIMARY KEY,
    holder      TEXT NOT NULL,
    token       INTEGER NOT NULL,
    expires_at  TEXT NOT NULL
);

-- What is to be said to the forge, once for each key.
CREATE TABLE outbox (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    name       TEXT NOT NULL UNIQUE,
    created_at TEXT NOT NULL,
    attempts   INTEGER NOT NULL DEFAULT 0,
    next_at    TEXT NOT NULL,
    sent_at    TEXT,
    failed     TEXT,
    document   TEXT NOT NULL
);
CREATE INDEX outbox_open ON outbox (next_at) WHERE sent_at IS NULL;

-- Small documents by name: pull requests as they were last seen, proposals, spent remediations, schedules.
CREATE TABLE records (
    sort     TEXT NOT NULL,
    name     TEXT NOT NULL,
    at       TEXT NOT NULL,
    document TEXT NOT NULL,
    PRIMARY KEY (sort, name)
);

-- Append-only: who did what; each entry carries the hash of the one before.
CREATE TABLE audit (
    seq       INTEGER PRIMARY KEY AUTOINCREMENT,
    at        TEXT NOT NULL,
    principal TEXT NOT NULL,
    action    TEXT NOT NULL,
    subject   TEXT NOT NULL,
    detail    TEXT NOT NULL,
    hash      TEXT NOT NULL
);
