//! The supervisor on the device: brings what runs to what verified documents say should run, and says why where it
//! cannot.
//!
//! ```text
//! target ──▶ supervisor: observe ──▶ plan ──▶ apply ──▶ status ──▶ report
//!                 ▲                              │
//!                 └───────── engine events ◀─────┘
//! ```
#![forbid(unsafe_code)]

pub mod apply;
pub mod engine;
pub mod target;
