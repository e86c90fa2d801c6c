-- Where no new terminals are opened, because an admin said so. The owner's Root alone allows any; this only holds them back.
CREATE TABLE terminal_brakes (
    -- A fleet's id; empty for the whole server.
    fleet_id TEXT PRIMARY KEY,
    -- Who, and why in their words.
    who TEXT NOT NULL,
    why TEXT NOT NULL,
    created_at BIGINT NOT NULL
);
