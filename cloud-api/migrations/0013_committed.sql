-- The newest commit of a device is looked up with its reports: among its own, not among all that ever happened to it.
CREATE INDEX device_events_committed ON device_events (device_id, id) WHERE kind = 'committed';
