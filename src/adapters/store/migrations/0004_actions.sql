-- An instance may have several actions: what says no to one action, or proposes one, lists them. Observations are made
-- again.
DELETE FROM observations;
UPDATE records SET document = json_remove(json_set(document, '$.actions', json_array(json_extract(document, '$.action'))), '$.action')
    WHERE sort = 'snooze';
UPDATE records SET document = json_set(
        document,
        '$.actions', (SELECT json_group_object(key, json_array(value)) FROM json_each(document, '$.actions')),
        '$.cuts', (SELECT json_group_array(value) FROM json_each(document, '$.cuts')))
    WHERE sort = 'proposal';
