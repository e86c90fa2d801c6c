-- Until when a device is away by its own word, sparing its bytes (Unix seconds); absent where it is not.
ALTER TABLE devices ADD COLUMN expected BIGINT;
