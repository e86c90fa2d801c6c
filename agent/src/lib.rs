//! The supervisor on the device: brings what runs to what verified documents say should run, and says why where it
//! cannot.
//!
//! In: signed documents from the cloud, and what the engine shows. Out: containers, and signed reports.
//! Never here: anything run on the word of the cloud alone; containers this agent did not make.
//!
//! ```text
//! target ──▶ supervisor: observe ──▶ plan ──▶ apply ──▶ status ──▶ report
//!                 ▲                              │
//!                 └───────── engine events ◀─────┘
//! ```
//! Beside them: [`settings`] (`copal.json`, flags), [`state`] (durable, checksummed files), [`clock`], [`identity`]
//! (keys, enrolment, login), [`cloud`] (bounded HTTP with pins), [`channel`] (the
//! WebSocket that brings hints and commands), [`spool`] (what happened, until the cloud has it), [`metrics`], [`orders`]
//! (what people tell this device to do, once), [`terminal`] (a person's shell), [`logs`] (what
//! services say, kept on disk).
#![forbid(unsafe_code)]

pub mod apply;
pub mod channel;
pub mod clock;
pub mod cloud;
pub mod commands;
pub mod diagnostics;
pub mod engine;
pub mod identity;
pub mod images;
pub mod logs;
pub mod metrics;
pub mod network;
pub mod observe;
pub mod orders;
pub mod os;
pub mod plan;
pub mod report;
pub mod selfupdate;
pub mod settings;
pub mod spool;
pub mod state;
pub mod supervisor;
pub mod target;
pub mod terminal;

/// This agent's version.
#[must_use]
pub fn version() -> semver::Version {
    env!("CARGO_PKG_VERSION").parse().unwrap_or(semver::Version::new(0, 0, 0))
}
