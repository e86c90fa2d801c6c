//! Brings plans about. In: a plan and what it speaks of. Out: effects in the engine, and a status. Never here: deciding
//! what should run, or remembering what could be read.

pub mod backoff;
pub mod hush;
pub mod lane;
mod patience;
pub mod ports;
pub mod shared;
pub mod status;
pub mod trial;
