-- What was approved of each instance of a run; it never changes, and is read when the instance's turn comes.
CREATE TABLE approved (
    run      INTEGER NOT NULL REFERENCES runs (id),
    instance TEXT NOT NULL,
    document TEXT NOT NULL,
    PRIMARY KEY (run, instance)
);
INSERT INTO approved (run, instance, document)
    SELECT runs.id, entry.key, entry.value FROM runs, json_each(runs.document, '$.approved') AS entry;
UPDATE runs SET document = json_remove(document, '$.approved');

-- Which instances a run of ours ever began to change: what their targets hold is ours (R1.6).
CREATE TABLE begun (
    instance TEXT PRIMARY KEY
);
INSERT INTO begun (instance) SELECT name FROM records WHERE sort = 'begun';
DELETE FROM records WHERE sort = 'begun';
