//! Terminals on devices, and what is kept of them.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::work::duration;

/// Open a terminal.
#[derive(Debug, Args)]
pub struct Shell {
    /// Id of a device, beginning of it, or name
    pub device: String,
    /// The service, as the compose file names it
    pub service: Option<String>,
    /// On the device itself, where its own policy file allows that
    #[arg(long, conflicts_with = "service")]
    pub host: bool,
    /// Why; it stands in the audit log, in the recording, and on the device
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    /// Sign a grant with the operator key of this machine, though the root known here does not ask for one
    #[arg(long)]
    pub grant: bool,
    /// How long it may last, at most 30m, under a grant 15m
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub max: Option<u64>,
    /// After how long without a key pressed it ends, at most 5m
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub idle: Option<u64>,
}

/// What is kept of terminals.
#[derive(Debug, Subcommand)]
pub enum SessionsCommand {
    /// List terminals, live and past, newest first
    List {
        /// Only of this device: id, beginning of it, or name
        #[arg(long)]
        device: Option<String>,
        /// Only those that are open
        #[arg(long)]
        live: bool,
        /// How many
        #[arg(long, default_value_t = 50)]
        limit: usize,
    },
    /// Show who opened a terminal, why, and how it ended
    Show {
        /// The session's id
        session: String,
    },
    /// Play a recording on this terminal
    Replay {
        /// The session's id
        session: String,
        /// So many times as fast
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
        speed: u32,
        /// Without any pause: every byte, as it came
        #[arg(long)]
        fast: bool,
    },
    /// Keep a recording as a file (asciicast version 2); one made under a grant is fetched from its device with another
    Download {
        /// The session's id
        session: String,
        /// The file [default: SESSION.cast]
        #[arg(long, short)]
        out: Option<PathBuf>,
    },
    /// End a terminal at once, whoever opened it; or all of a device, of the fleet, or of the server
    Kill {
        /// The session's id
        #[arg(required_unless_present = "all", conflicts_with = "all")]
        session: Option<String>,
        /// Every one of the fleet
        #[arg(long)]
        all: bool,
        /// With --all, only those on this device: id, beginning of it, or name
        #[arg(long, requires = "all")]
        device: Option<String>,
        /// With --all, of the whole server, for its admins
        #[arg(long, requires = "all", conflicts_with = "device")]
        server: bool,
    },
    /// Open no new terminals on the fleet until `on`, whatever its root allows; those that are open go on
    Off {
        /// On the whole server, for its admins
        #[arg(long)]
        server: bool,
    },
    /// No longer hold terminals back; whether any opens is up to the fleet's root and the device
    On {
        /// On the whole server, for its admins
        #[arg(long)]
        server: bool,
    },
}
