-- Events that devices tell of themselves, numbered by them; what they measure; what they have.

-- Of an event a device told: the boot it happened in and its number, by which it is known again. NULL: the cloud noticed it.
ALTER TABLE device_events ADD COLUMN boot_id TEXT;
ALTER TABLE device_events ADD COLUMN seq BIGINT;
-- When the cloud heard of it; NULL: at once.
ALTER TABLE device_events ADD COLUMN received_at BIGINT;
-- A guard below the program's own: none is stored twice.
CREATE UNIQUE INDEX device_events_by_seq ON device_events (device_id, boot_id, seq) WHERE seq IS NOT NULL;

-- The cloud has the device's events up to this number, whichever of them it still keeps.
ALTER TABLE devices ADD COLUMN event_seq BIGINT NOT NULL DEFAULT 0;

-- Spans of time; older ones are joined into longer ones.
CREATE TABLE device_metrics (
    device_id TEXT NOT NULL REFERENCES devices (device_id) ON DELETE CASCADE,
    -- Unix seconds of its end.
    at BIGINT NOT NULL,
    for_s BIGINT NOT NULL,
    -- Whether it was joined of several.
    joined BOOLEAN NOT NULL DEFAULT FALSE,
    -- JSON, as the device told it, within bounds.
    body TEXT NOT NULL,
    PRIMARY KEY (device_id, joined, at)
);

-- The newest that a device told it has.
CREATE TABLE device_facts (
    device_id TEXT PRIMARY KEY REFERENCES devices (device_id) ON DELETE CASCADE,
    at BIGINT NOT NULL,
    body TEXT NOT NULL
);
