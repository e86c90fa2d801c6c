//! The cloud: where a push becomes a release, and a release an assignment for every device.
//!
//! ```text
//! git/ → build/ → registry/ → releases/ → (signature) → rollouts/ → assignments/ → devices/ (poll)
//! ```
//!
//! | room | what it does |
//! |---|---|
//! | [`serve`] | listeners, TLS, request ids, limits, shutdown; joins the routers of the other rooms |
//! | [`api`] | `/api/v1` for people and CI, one file an endpoint group |
//! | [`auth`] | people: passwords, sessions, tokens, what each may do |
//! | [`audit`] | who did what, on what, when, from where |
//! | [`git`] | smart HTTP push and clone |
//! | [`build`] | source → images |
//! | [`registry`] | OCI distribution |
//! | [`blobs`] | bytes by digest, and their garbage collection |
//! | [`uploads`] | large blobs in pieces, resumed where they were cut |
//! | [`releases`] | what was built, signed and may run |
//! | [`rollouts`] | who gets which release when |
//! | [`variables`] | variables and secrets |
//! | [`assignments`] | what each device should run, signed |
//! | [`devices`] | what devices ask and report |
//! | [`channel`] | what reaches devices at once, and which of them are connected |
//! | [`telemetry`] | what devices tell of themselves besides reports: events, metrics, facts |
//! | [`terminal`] | a person's shell on a device, its recording |
//! | [`commands`] | what people ask of one device or of many, and what came of it |
//! | `health` | what devices' health checks last found |
//! | [`dashboard`] | pages |
//! | [`backup`] | back-up and restore |
//! | [`bus`] | hints between rooms and replicas |
//! | [`store`] | the database |
//! | [`tls`] | certificates: files, a private CA, ACME |
//! | [`cli`], [`settings`] | the command line, and from flags, environment and file to a checked [`config`] |
#![forbid(unsafe_code)]

pub mod api;
pub mod app;
pub mod assignments;
pub mod audit;
pub mod auth;
pub mod backup;
pub mod blobs;
pub mod build;
pub mod bus;
pub mod channel;
pub mod cli;
pub mod commands;
pub mod config;
pub mod dashboard;
pub mod devices;
pub mod error;
pub mod git;
pub(crate) mod health;
pub mod keys;
pub mod registry;
pub mod releases;
pub mod rollouts;
pub mod serve;
pub mod settings;
pub mod store;
pub mod telemetry;
pub mod terminal;
#[cfg(test)]
pub(crate) mod testing;
pub mod tls;
pub mod uploads;
pub mod variables;
