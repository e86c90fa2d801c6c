-- Terminals on devices: who, why, what came of it. What was seen in one is in a file, or on the device alone.
CREATE TABLE terminal_sessions (
    -- Rises; what lists are ordered by.
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    -- 32 hex digits; what the device knows it by.
    id TEXT NOT NULL UNIQUE,
    device_id TEXT NOT NULL REFERENCES devices (device_id) ON DELETE CASCADE,
    -- service, host or recording
    kind TEXT NOT NULL,
    -- The service, or the session whose recording it is.
    of TEXT NOT NULL DEFAULT '',
    -- cloud or grant, as the fleet's newest Root says.
    mode TEXT NOT NULL,
    -- Who opened it, who that person is (a token's person, too), and why.
    who TEXT NOT NULL,
    user_id TEXT NOT NULL,
    reason TEXT NOT NULL,
    -- What was asked for.
    cols BIGINT NOT NULL,
    rows BIGINT NOT NULL,
    max_s BIGINT NOT NULL,
    idle_s BIGINT NOT NULL,
    -- opening, open, ended
    state TEXT NOT NULL,
    code TEXT,
    message TEXT NOT NULL DEFAULT '',
    exit_code BIGINT,
    bytes_in BIGINT NOT NULL DEFAULT 0,
    bytes_out BIGINT NOT NULL DEFAULT 0,
    -- Bytes of the recording here; NULL where there is none, or none any more.
    recording_bytes BIGINT,
    recording_sha256 TEXT,
    created_at BIGINT NOT NULL,
    opened_at BIGINT,
    ended_at BIGINT
);
CREATE INDEX terminal_sessions_by_device ON terminal_sessions (device_id, number);
CREATE INDEX terminal_sessions_live ON terminal_sessions (number) WHERE ended_at IS NULL;
