-- Who asked for what happens later: the person, and the token where one was used. Looked at again before it happens.
-- '' of what was asked before this was kept.
ALTER TABLE commands ADD COLUMN user_id TEXT NOT NULL DEFAULT '';
ALTER TABLE commands ADD COLUMN token_id TEXT;
ALTER TABLE fleet_commands ADD COLUMN user_id TEXT NOT NULL DEFAULT '';
ALTER TABLE fleet_commands ADD COLUMN token_id TEXT;
