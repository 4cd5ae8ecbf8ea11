-- Which component digest an instance had applied from when until when: a fact that later merges do not undo (R3.5).
-- `since` moves on while its checks do not answer.
CREATE TABLE had_applied (
    instance TEXT NOT NULL,
    digest   TEXT NOT NULL,
    since    TEXT NOT NULL,
    until    TEXT,
    PRIMARY KEY (instance, digest, since)
);
INSERT INTO had_applied (instance, digest, since)
    SELECT instance, json_extract(document, '$.digest'), applied_at FROM applied;
