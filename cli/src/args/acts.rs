//! Acts of one device: services, data, reboot, updates, health checks.

use clap::{Args, Subcommand};

use super::work::duration;

/// Acts of one device.
#[derive(Debug, Subcommand)]
pub enum ActCommand {
    /// Restart a service on a device
    Restart {
        /// The device and the service
        #[command(flatten)]
        of: OneService,
        /// How
        #[command(flatten)]
        how: How,
    },
    /// Stop a service on a device until it is started again or the device gets something new
    Stop {
        /// The device and the service
        #[command(flatten)]
        of: OneService,
        /// How
        #[command(flatten)]
        how: How,
    },
    /// Start a service that was stopped
    Start {
        /// The device and the service
        #[command(flatten)]
        of: OneService,
        /// How
        #[command(flatten)]
        how: How,
    },
    /// Empty the volumes of a device's app; images stay
    Purge {
        /// Id, beginning of it, or name
        device: String,
        /// Only this volume
        #[arg(long)]
        volume: Option<String>,
        /// How
        #[command(flatten)]
        how: How,
    },
    /// Restart a device
    Reboot {
        /// Id, beginning of it, or name
        device: String,
        /// How
        #[command(flatten)]
        how: How,
    },
    /// Let a device look for something new at once
    Check {
        /// Id, beginning of it, or name
        device: String,
        /// How
        #[command(flatten)]
        how: How,
    },
    /// Let a device install nothing new until it is resumed
    Pause {
        /// Id, beginning of it, or name
        device: String,
        /// Go on by itself after this time: 30m, 2h
        #[arg(long = "for", value_name = "TIME", value_parser = duration)]
        time: Option<u64>,
        /// How
        #[command(flatten)]
        how: How,
    },
    /// End a pause
    Resume {
        /// Id, beginning of it, or name
        device: String,
        /// How
        #[command(flatten)]
        how: How,
    },
    /// Make a device's light blink, so that it is found
    Blink {
        /// Id, beginning of it, or name
        device: String,
        /// How long, at most 10m
        #[arg(long = "for", value_name = "TIME", default_value = "30s", value_parser = duration)]
        time: u64,
        /// How
        #[command(flatten)]
        how: How,
    },
    /// Run a device's health checks and show what they found
    Diagnose {
        /// Id, beginning of it, or name
        device: String,
        /// Only these checks
        #[arg(value_name = "CHECK")]
        checks: Vec<String>,
        /// How
        #[command(flatten)]
        how: How,
    },
    /// List what was asked of a device and what came of it, newest first
    Commands {
        /// Id, beginning of it, or name
        device: String,
        /// How many
        #[arg(long, default_value_t = 20)]
        limit: usize,
    },
}

/// A service of a device.
#[derive(Debug, Args)]
pub struct OneService {
    /// Id, beginning of it, or name
    pub device: String,
    /// The service, as the compose file names it
    pub service: String,
}

/// How something is asked.
#[derive(Debug, Args)]
pub struct How {
    /// Wait for a device that is away, at most this long: 2h, 1d; else it is now or not at all
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub ttl: Option<u64>,
    /// Do not wait for what comes of it
    #[arg(long)]
    pub no_wait: bool,
    /// How long to wait for what comes of it
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = duration)]
    pub timeout: u64,
}
