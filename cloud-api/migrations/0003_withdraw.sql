-- What a fleet or device was to run before, newest first and separated by commas, so that it goes back there when an
-- operating system or agent is withdrawn. `-` of a device: it followed its fleet.
ALTER TABLE fleets ADD COLUMN before_os TEXT NOT NULL DEFAULT '';
ALTER TABLE fleets ADD COLUMN before_agent TEXT NOT NULL DEFAULT '';
ALTER TABLE devices ADD COLUMN before_os TEXT NOT NULL DEFAULT '';
ALTER TABLE devices ADD COLUMN before_agent TEXT NOT NULL DEFAULT '';
