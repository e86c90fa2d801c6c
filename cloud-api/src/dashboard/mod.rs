//! (room of its own; see the crate doc)
