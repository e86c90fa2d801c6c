-- What devices were told to do or to tell, and what came of it.
CREATE TABLE commands (
    -- Rises; what lists are ordered by.
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    -- 32 hex digits; what the device knows it by.
    id TEXT NOT NULL UNIQUE,
    device_id TEXT NOT NULL REFERENCES devices (device_id) ON DELETE CASCADE,
    verb TEXT NOT NULL,
    -- JSON, without the verb.
    args TEXT NOT NULL,
    -- direct or store
    delivery TEXT NOT NULL,
    ttl_s BIGINT NOT NULL,
    -- Who asked, and why.
    asked_by TEXT NOT NULL,
    why TEXT NOT NULL,
    -- The signed Action; NULL for a question, which needs no signature.
    envelope BLOB,
    -- queued, delivered, accepted, running; done, failed, rejected, expired, unreachable, unknown
    state TEXT NOT NULL,
    code TEXT,
    message TEXT NOT NULL DEFAULT '',
    -- JSON, as the device gave it.
    result TEXT,
    created_at BIGINT NOT NULL,
    delivered_at BIGINT,
    accepted_at BIGINT,
    running_at BIGINT,
    ended_at BIGINT,
    -- When it ends by itself if nothing is heard until then.
    due_at BIGINT NOT NULL,
    -- The channel it was last sent on; on every further one it is sent again until it ended.
    epoch BIGINT
);
CREATE INDEX commands_by_device ON commands (device_id, number);
CREATE INDEX commands_open ON commands (device_id, number) WHERE ended_at IS NULL;
CREATE INDEX commands_due ON commands (due_at) WHERE ended_at IS NULL;

-- Of the newest action signed for the device.
ALTER TABLE devices ADD COLUMN action_seq BIGINT NOT NULL DEFAULT 0;
