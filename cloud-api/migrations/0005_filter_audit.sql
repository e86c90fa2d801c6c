-- What filters look devices up by. The tags' index holds all they ask of that table.
DROP INDEX device_tags_by_value;
CREATE INDEX device_tags_by_value ON device_tags (key, value, device_id);
CREATE INDEX releases_by_version ON releases (fleet_id, line, version);

-- Why, where whoever acted said so; and the hash of the row and of all before it. Rows of before have '' until the program
-- has chained them, at its first start.
ALTER TABLE audit ADD COLUMN why TEXT NOT NULL DEFAULT '';
ALTER TABLE audit ADD COLUMN hash TEXT NOT NULL DEFAULT '';

-- Against mistakes of this program; who can write the file can drop them. What shows such a person's hand is the chain.
CREATE TRIGGER audit_rows_stay_as_they_are BEFORE UPDATE ON audit WHEN OLD.hash <> ''
BEGIN
    SELECT RAISE(ABORT, 'a row of the audit log is never changed');
END;
CREATE TRIGGER audit_rows_stay BEFORE DELETE ON audit
BEGIN
    SELECT RAISE(ABORT, 'a row of the audit log is never removed');
END;
