-- Operating systems and agents: host releases, the blobs they are made of, and what devices say of both.

-- app, os or agent. Each line has its own counters, targets, pins and retries.
ALTER TABLE releases ADD COLUMN line TEXT NOT NULL DEFAULT 'app';
DROP INDEX releases_by_counter;
CREATE UNIQUE INDEX releases_by_counter ON releases (fleet_id, line, counter);

-- What the fleet's devices should run of the other lines, unless a device is pinned.
ALTER TABLE fleets ADD COLUMN target_os TEXT;
ALTER TABLE fleets ADD COLUMN target_agent TEXT;
-- `HH:MM-HH:MM` in UTC: when devices may reboot into another operating system; NULL for at any time.
ALTER TABLE fleets ADD COLUMN reboot_window TEXT;

ALTER TABLE devices ADD COLUMN pinned_os TEXT;
ALTER TABLE devices ADD COLUMN pinned_agent TEXT;
ALTER TABLE devices ADD COLUMN retry_os BIGINT NOT NULL DEFAULT 0;
ALTER TABLE devices ADD COLUMN retry_agent BIGINT NOT NULL DEFAULT 0;
-- As held_back, of the other lines.
ALTER TABLE devices ADD COLUMN held_back_os TEXT;
ALTER TABLE devices ADD COLUMN held_back_agent TEXT;
-- From the newest report, as JSON: slots, reason and progress of the operating system, and of the agent.
ALTER TABLE devices ADD COLUMN host_report TEXT;
ALTER TABLE devices ADD COLUMN agent_report TEXT;
-- The release of each that runs and is no trial.
ALTER TABLE devices ADD COLUMN running_os TEXT;
ALTER TABLE devices ADD COLUMN running_agent TEXT;

ALTER TABLE assignments ADD COLUMN os_id TEXT;
ALTER TABLE assignments ADD COLUMN agent_id TEXT;

-- Blobs on their way here, in pieces. How far one is, is the length of its file; a blob that the fleet knows is done.
CREATE TABLE uploads (
    id TEXT PRIMARY KEY,
    fleet_id TEXT NOT NULL REFERENCES fleets (fleet_id) ON DELETE CASCADE,
    digest TEXT NOT NULL,
    size BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    touched_at BIGINT NOT NULL,
    UNIQUE (fleet_id, digest)
);
