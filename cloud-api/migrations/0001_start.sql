-- Times are Unix seconds. Ids of fleets, apps, devices are 32 hex digits; releases are named by their payload's SHA-256.
-- The dialect is what SQLite and PostgreSQL both read, BLOB and AUTOINCREMENT aside.

CREATE TABLE meta (
    key TEXT PRIMARY KEY,
    value TEXT NOT NULL
);

CREATE TABLE users (
    id TEXT PRIMARY KEY,
    email TEXT NOT NULL UNIQUE,
    password_hash TEXT NOT NULL,
    role TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    disabled_at BIGINT
);

CREATE TABLE sessions (
    id_hash TEXT PRIMARY KEY,
    user_id TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL
);

CREATE TABLE tokens (
    id TEXT PRIMARY KEY,
    user_id TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    hash TEXT NOT NULL UNIQUE,
    scope TEXT NOT NULL,
    fleet_id TEXT,
    created_at BIGINT NOT NULL,
    expires_at BIGINT,
    last_used_at BIGINT,
    revoked_at BIGINT
);

CREATE TABLE fleets (
    fleet_id TEXT PRIMARY KEY,
    slug TEXT NOT NULL UNIQUE,
    app_id TEXT NOT NULL UNIQUE,
    device_type TEXT NOT NULL,
    arch TEXT NOT NULL,
    -- Of the newest uploaded root; 0 and 'builder' before the first.
    root_version BIGINT NOT NULL DEFAULT 0,
    release_mode TEXT NOT NULL DEFAULT 'builder',
    -- What the fleet's devices should run, unless a device is pinned.
    target_release TEXT,
    -- Whether a person chose target_release: then a new release does not move it.
    pinned BOOLEAN NOT NULL DEFAULT FALSE,
    created_at BIGINT NOT NULL
);

CREATE TABLE roots (
    fleet_id TEXT NOT NULL REFERENCES fleets (fleet_id) ON DELETE CASCADE,
    version BIGINT NOT NULL,
    sha256 TEXT NOT NULL,
    envelope BLOB NOT NULL,
    uploaded_at BIGINT NOT NULL,
    PRIMARY KEY (fleet_id, version)
);

CREATE TABLE enrolment_tokens (
    id TEXT PRIMARY KEY,
    fleet_id TEXT NOT NULL REFERENCES fleets (fleet_id) ON DELETE CASCADE,
    -- The secret part, encrypted with the key outside the database: a proof under it must be checked.
    secret BLOB NOT NULL,
    note TEXT NOT NULL,
    uses_left BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    revoked_at BIGINT
);

CREATE TABLE devices (
    device_id TEXT PRIMARY KEY,
    fleet_id TEXT NOT NULL REFERENCES fleets (fleet_id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    state TEXT NOT NULL,
    public_key TEXT NOT NULL,
    seal_key TEXT NOT NULL,
    introduction_id TEXT,
    introduction_mac TEXT,
    arch TEXT NOT NULL,
    device_type TEXT NOT NULL,
    enrolment_token TEXT,
    created_at BIGINT NOT NULL,
    last_seen BIGINT,
    pinned_release TEXT,
    -- Rises when a person asks to try a parked release again.
    retry BIGINT NOT NULL DEFAULT 0,
    -- Refresh links: what the next login must show, and what it showed before.
    link_hash TEXT,
    link_previous_hash TEXT,
    clone_suspected BOOLEAN NOT NULL DEFAULT FALSE,
    -- From the newest report.
    report BLOB,
    report_boot_id TEXT,
    report_counter BIGINT NOT NULL DEFAULT 0,
    -- assign_epoch the newest report speaks of; with seq_applied it says which assignment runs.
    report_epoch BIGINT NOT NULL DEFAULT 0,
    report_at BIGINT,
    agent_version TEXT,
    os_version TEXT,
    root_version BIGINT,
    lock_state TEXT,
    seq_applied BIGINT NOT NULL DEFAULT 0,
    committed_release TEXT,
    reason TEXT,
    progress TEXT,
    running TEXT,
    -- Why the cloud cannot give this device the release it should have, as a reason's JSON; NULL when it can.
    held_back TEXT
);
CREATE UNIQUE INDEX devices_by_key ON devices (fleet_id, public_key);
CREATE INDEX devices_by_fleet ON devices (fleet_id, device_id);

CREATE TABLE device_tags (
    device_id TEXT NOT NULL REFERENCES devices (device_id) ON DELETE CASCADE,
    key TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (device_id, key)
);
CREATE INDEX device_tags_by_value ON device_tags (key, value);

CREATE TABLE device_events (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    device_id TEXT NOT NULL REFERENCES devices (device_id) ON DELETE CASCADE,
    at BIGINT NOT NULL,
    kind TEXT NOT NULL,
    code TEXT NOT NULL,
    message TEXT NOT NULL,
    data TEXT NOT NULL
);
CREATE INDEX device_events_by_device ON device_events (device_id, id);

-- The newest signed assignment of each device. The bytes are stored and served, never made again for unchanged content.
CREATE TABLE assignments (
    device_id TEXT PRIMARY KEY REFERENCES devices (device_id) ON DELETE CASCADE,
    assign_epoch BIGINT NOT NULL,
    seq BIGINT NOT NULL,
    sha256 TEXT NOT NULL,
    -- Of what it says, without seq and time: equal content is not signed again.
    content_sha256 TEXT NOT NULL,
    release_id TEXT,
    envelope BLOB NOT NULL,
    issued_at BIGINT NOT NULL
);

CREATE TABLE builds (
    id TEXT PRIMARY KEY,
    fleet_id TEXT NOT NULL REFERENCES fleets (fleet_id) ON DELETE CASCADE,
    -- The commit, or the SHA-256 of an uploaded context.
    source TEXT NOT NULL,
    branch TEXT NOT NULL,
    platform TEXT NOT NULL,
    -- Canonical text of the push options that change the outcome.
    options TEXT NOT NULL,
    note TEXT NOT NULL DEFAULT '',
    draft BOOLEAN NOT NULL DEFAULT FALSE,
    status TEXT NOT NULL,
    error TEXT,
    release_id TEXT,
    pushed_by TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    started_at BIGINT,
    finished_at BIGINT
);
CREATE INDEX builds_by_fleet ON builds (fleet_id, created_at);

CREATE TABLE releases (
    -- SHA-256 of the payload.
    id TEXT PRIMARY KEY,
    fleet_id TEXT NOT NULL REFERENCES fleets (fleet_id) ON DELETE CASCADE,
    counter BIGINT NOT NULL,
    version TEXT NOT NULL,
    source TEXT NOT NULL,
    branch TEXT NOT NULL,
    -- built (not yet published), draft, awaiting_signature, final, invalidated
    status TEXT NOT NULL,
    -- Whether publishing makes it a draft: it came from another branch, or was pushed so.
    draft BOOLEAN NOT NULL DEFAULT FALSE,
    note TEXT NOT NULL,
    envelope BLOB NOT NULL,
    build_record BLOB,
    build_id TEXT,
    size BIGINT NOT NULL,
    created_at BIGINT NOT NULL
);
CREATE UNIQUE INDEX releases_by_counter ON releases (fleet_id, counter);

-- What a release keeps alive, and what a device of its fleet may pull. role: manifest, config or layer.
CREATE TABLE release_blobs (
    release_id TEXT NOT NULL REFERENCES releases (id) ON DELETE CASCADE,
    repo TEXT NOT NULL,
    digest TEXT NOT NULL,
    role TEXT NOT NULL,
    PRIMARY KEY (release_id, repo, digest)
);
CREATE INDEX release_blobs_by_digest ON release_blobs (digest);

CREATE TABLE blobs (
    digest TEXT PRIMARY KEY,
    size BIGINT NOT NULL,
    created_at BIGINT NOT NULL
);

-- Which repositories a blob was pushed to or mounted into: a digest alone opens nothing.
CREATE TABLE repo_blobs (
    repo TEXT NOT NULL,
    digest TEXT NOT NULL REFERENCES blobs (digest) ON DELETE CASCADE,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (repo, digest)
);

CREATE TABLE manifests (
    repo TEXT NOT NULL,
    digest TEXT NOT NULL,
    media_type TEXT NOT NULL,
    subject TEXT,
    artifact_type TEXT,
    body BLOB NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (repo, digest)
);
CREATE INDEX manifests_by_subject ON manifests (repo, subject);

-- A layer's tar, by its own digest, and the compressed blob it is stored as: equal layers are compressed once.
CREATE TABLE layers (
    diff_id TEXT PRIMARY KEY,
    digest TEXT NOT NULL REFERENCES blobs (digest) ON DELETE CASCADE,
    size BIGINT NOT NULL
);

CREATE TABLE image_tags (
    repo TEXT NOT NULL,
    tag TEXT NOT NULL,
    digest TEXT NOT NULL,
    updated_at BIGINT NOT NULL,
    PRIMARY KEY (repo, tag)
);

-- scope: fleet_id always; device_id and service narrow it. '' rather than NULL, so that the key is unique.
CREATE TABLE variables (
    id TEXT PRIMARY KEY,
    fleet_id TEXT NOT NULL REFERENCES fleets (fleet_id) ON DELETE CASCADE,
    device_id TEXT NOT NULL DEFAULT '',
    service TEXT NOT NULL DEFAULT '',
    name TEXT NOT NULL,
    secret BOOLEAN NOT NULL,
    -- A secret one is encrypted with the key outside the database.
    value BLOB NOT NULL,
    -- Rises with each change, so that a sealed copy is known to be stale.
    version BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    UNIQUE (fleet_id, device_id, service, name)
);

-- Ciphertexts are kept: sealing again would change the assignment for nothing.
CREATE TABLE sealed_secrets (
    variable_id TEXT NOT NULL REFERENCES variables (id) ON DELETE CASCADE,
    device_id TEXT NOT NULL REFERENCES devices (device_id) ON DELETE CASCADE,
    service TEXT NOT NULL,
    version BIGINT NOT NULL,
    ciphertext TEXT NOT NULL,
    PRIMARY KEY (variable_id, device_id, service)
);

CREATE TABLE audit (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    at BIGINT NOT NULL,
    who TEXT NOT NULL,
    source TEXT NOT NULL,
    verb TEXT NOT NULL,
    object TEXT NOT NULL,
    detail TEXT NOT NULL
);
