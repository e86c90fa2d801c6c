//! Service logs.

use std::path::PathBuf;

use clap::Args;
use copal_protocol::logs::Moment;

/// Service logs of a device.
#[derive(Debug, Args)]
pub struct Logs {
    /// Id, beginning of it, or name
    pub device: String,
    /// Go on with what comes; a line that breaks is taken up where it broke
    #[arg(long, short = 'f')]
    pub follow: bool,
    /// Only of this service; may be given several times
    #[arg(long, value_name = "SERVICE")]
    pub service: Vec<String>,
    /// So many lines from before, of those that are asked for [default: 200; with --since all]
    #[arg(long, short = 'n', value_name = "LINES", value_parser = clap::value_parser!(u32).range(0..=100_000))]
    pub tail: Option<u32>,
    /// Lines after this number
    #[arg(long, value_name = "SEQ", conflicts_with = "tail")]
    pub since_seq: Option<u64>,
    /// Only lines said then or later, by the device's clock: 10m, 2h30m or 7d ago, or 2026-11-23T08:00 (UTC, or with +01:00)
    #[arg(long, value_name = "WHEN")]
    pub since: Option<Moment>,
    /// Only lines said before then
    #[arg(long, value_name = "WHEN", conflicts_with = "follow")]
    pub until: Option<Moment>,
    /// Only lines with this text in them, whatever their case; the device looks for it
    #[arg(long, value_name = "TEXT")]
    pub search: Option<String>,
    /// What is searched for has this case
    #[arg(long, requires = "search")]
    pub match_case: bool,
    /// Write to a file
    #[arg(long, short = 'o', value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// The fleet, where a device's name is of several; as everywhere, but -f means to follow here
    #[arg(id = "fleet", long = "fleet", value_name = "FLEET", help_heading = "Everywhere")]
    pub of_fleet: Option<String>,
}
