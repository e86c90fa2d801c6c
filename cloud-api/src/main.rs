//! The `copal-cloud` program.
#![forbid(unsafe_code)]

fn main() {}
