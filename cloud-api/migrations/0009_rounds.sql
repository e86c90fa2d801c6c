-- Rounds: the same asked of many devices of a fleet at once.
CREATE TABLE fleet_commands (
    -- Rises; what lists are ordered by.
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    fleet_id TEXT NOT NULL REFERENCES fleets (fleet_id) ON DELETE CASCADE,
    verb TEXT NOT NULL,
    -- JSON, without the verb, as it may be shown.
    args TEXT NOT NULL,
    -- The same with its secrets, until every device was asked; NULL where there are none.
    args_whole TEXT,
    -- Canonical; '' for every device of the fleet.
    filter TEXT NOT NULL,
    -- Whether it changes something.
    acts BOOLEAN NOT NULL,
    -- direct or store
    delivery TEXT NOT NULL,
    ttl_s BIGINT NOT NULL,
    -- Who asked, and why.
    asked_by TEXT NOT NULL,
    why TEXT NOT NULL,
    -- How many devices were meant.
    total BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    -- When the last device had ended.
    ended_at BIGINT
);
CREATE INDEX fleet_commands_by_fleet ON fleet_commands (fleet_id, number);
CREATE INDEX fleet_commands_open ON fleet_commands (number) WHERE ended_at IS NULL;

CREATE TABLE fleet_command_devices (
    fleet_command BIGINT NOT NULL REFERENCES fleet_commands (number) ON DELETE CASCADE,
    device_id TEXT NOT NULL REFERENCES devices (device_id) ON DELETE CASCADE,
    -- NULL until it was asked, and where it was not asked at all.
    command_id TEXT,
    -- As of commands; queued before it was asked, too.
    state TEXT NOT NULL DEFAULT 'queued',
    code TEXT,
    message TEXT NOT NULL DEFAULT '',
    -- Of probes: JSON, the worst verdict of each check.
    checks TEXT,
    -- The worst of these.
    verdict TEXT,
    ended_at BIGINT,
    PRIMARY KEY (fleet_command, device_id)
);
CREATE INDEX fleet_command_devices_to_ask ON fleet_command_devices (fleet_command, device_id)
    WHERE command_id IS NULL AND ended_at IS NULL;
CREATE INDEX fleet_command_devices_open ON fleet_command_devices (fleet_command) WHERE ended_at IS NULL;
-- What is taken away with a device.
CREATE INDEX fleet_command_devices_by_device ON fleet_command_devices (device_id);

-- The round a command belongs to.
ALTER TABLE commands ADD COLUMN fleet_command BIGINT;

-- What each device's health checks last found, as its reports say.
CREATE TABLE device_checks (
    device_id TEXT NOT NULL REFERENCES devices (device_id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    -- The worst of the check's subjects: ok, unknown, warning or failed.
    verdict TEXT NOT NULL,
    -- Of the worst subject; '' where all is well.
    subject TEXT,
    detail TEXT NOT NULL DEFAULT '',
    advice TEXT NOT NULL DEFAULT '',
    -- When it was found last, by the device's clock where that makes sense; since when the cloud knows this verdict.
    at BIGINT NOT NULL,
    since BIGINT NOT NULL,
    PRIMARY KEY (device_id, name)
);
CREATE INDEX device_checks_by_verdict ON device_checks (name, verdict, device_id);
-- The worst of these; NULL where nothing was heard.
ALTER TABLE devices ADD COLUMN health TEXT;
-- When the newest round of checks was, and the same as the device told it, by which it is known again.
ALTER TABLE devices ADD COLUMN health_at BIGINT;
ALTER TABLE devices ADD COLUMN health_told BIGINT;
CREATE INDEX devices_by_health ON devices (fleet_id, health);
