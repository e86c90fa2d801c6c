-- Seconds between the health checks its devices make by themselves; as each device says where absent.
ALTER TABLE fleets ADD COLUMN check_every_s BIGINT;
