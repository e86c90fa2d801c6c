//! Certificates: from files that are read again when they change, by a private CA of our own, or by ACME.
//!
//! In: [`crate::config::Tls`]. Out: a [`Terminator`] that takes connections through their handshake, and the pins
//! devices are given. Never here: HTTP.

pub mod private_ca;

mod acme;
mod files;
mod terminator;

pub use terminator::Terminator;
