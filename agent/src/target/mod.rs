//! What should run: signed documents in, a [`model::Target`] out.

pub mod model;
