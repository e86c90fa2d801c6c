-- What a person may do on one fleet, beside what the role on the server gives. The greater of the two counts.
CREATE TABLE members (
    fleet_id TEXT NOT NULL REFERENCES fleets (fleet_id) ON DELETE CASCADE,
    user_id TEXT NOT NULL REFERENCES users (id) ON DELETE CASCADE,
    role TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (fleet_id, user_id)
);

CREATE INDEX members_of_user ON members (user_id);
