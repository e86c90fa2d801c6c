//! `copal`: the owner's command line.
//!
//! In: words on a command line, answers of a server, files in the owner's configuration folder. Out: tables or JSON,
//! signed documents, an exit code. Never here: trust in what a server says about keys. What decides what may run is
//! made and signed here ([`roots`]) and proven by devices ([`lock`]); a server only carries it.
//!
//! | room | what it holds |
//! |---|---|
//! | [`args`] | the words: every command, option and help text |
//! | [`commands`] | one file a group of commands: asks, decides by the rooms below, prints |
//! | [`roots`] | root documents: making N+1, signing, the local chain |
//! | [`lock`] | whether devices prove a lock |
//! | [`inspect`] | what an owner is about to sign, and whether it is what a builder recorded |
//! | [`home`] | the configuration folder: servers, credentials, keys, chains, introduction secrets |
//! | [`http`] | the server's API: TLS pins, bounded answers, problems, events |
//! | [`shell`] | terminals: this side's, and grants |
//! | [`upload`] | large blobs in pieces, through lost connections |
//! | [`context`] | folder, output and address a command works with; which fleet, device or release a word means |
//! | [`output`] | tables, JSON, what is safe on a terminal |
//! | [`failure`] | errors and exit codes |
#![forbid(unsafe_code)]

pub mod args;
pub mod commands;
pub mod context;
pub mod failure;
pub mod home;
pub mod http;
pub mod inspect;
pub mod lock;
pub mod output;
pub mod pack;
pub mod roots;
pub mod shell;
pub mod upload;
