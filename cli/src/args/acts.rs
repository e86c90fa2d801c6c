//! Acts of one device or of many: services, data, reboot, updates, network, health checks.

use clap::{Args, Subcommand};
use copal_filter::Filter;

use super::work::{duration, filter};

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
        /// Id, beginning of it, or name; with --filter the fleet
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
        /// Id, beginning of it, or name; with --filter the fleet
        device: String,
        /// How
        #[command(flatten)]
        how: How,
    },
    /// Let a device look for something new at once
    Check {
        /// Id, beginning of it, or name; with --filter the fleet
        device: String,
        /// How
        #[command(flatten)]
        how: How,
    },
    /// Let a device install nothing new until it is resumed
    Pause {
        /// Id, beginning of it, or name; with --filter the fleet
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
        /// Id, beginning of it, or name; with --filter the fleet
        device: String,
        /// How
        #[command(flatten)]
        how: How,
    },
    /// Make a device's light blink, so that it is found
    Blink {
        /// Id, beginning of it, or name; with --filter the fleet
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
        /// Id, beginning of it, or name; with --filter the fleet
        device: String,
        /// Only these checks
        #[arg(value_name = "CHECK")]
        checks: Vec<String>,
        /// How
        #[command(flatten)]
        how: How,
    },
    /// Set the proxy and the time servers of a device, or show them; undone by the device where it does not reach the cloud afterwards
    Network {
        /// Id, beginning of it, or name; with --filter the fleet
        device: String,
        /// http://[user:password@]host:port, or `none`; `-` reads it from standard input
        #[arg(long, value_name = "URL")]
        proxy: Option<String>,
        /// Names or addresses, at most 8, or `default` for the system's own
        #[arg(long, value_name = "HOST,…", value_delimiter = ',')]
        ntp: Option<Vec<String>>,
        /// How
        #[command(flatten)]
        how: How,
    },
    /// Fetch a device's support bundle: checks, status, logs, without secrets
    SupportBundle {
        /// Id, beginning of it, or name
        device: String,
        /// The file to write
        #[arg(long, short, value_name = "FILE")]
        out: std::path::PathBuf,
        /// Overwrite the file
        #[arg(long)]
        force: bool,
    },
    /// Show what the health checks of a device last found
    Health {
        /// Id, beginning of it, or name
        device: String,
    },
    /// List what was asked of a device and what came of it, newest first
    Commands {
        /// Id, beginning of it, or name
        device: String,
        /// Take this one back, where it was not sent yet: its id, or the beginning of it
        #[arg(long, value_name = "ID")]
        cancel: Option<String>,
        /// How many
        #[arg(long, default_value_t = 20)]
        limit: usize,
    },
}

/// A service of a device.
#[derive(Debug, Args)]
pub struct OneService {
    /// Id, beginning of it, or name; with --filter the fleet
    pub device: String,
    /// The service, as the compose file names it
    pub service: String,
}

/// How something is asked.
#[derive(Debug, Args)]
pub struct How {
    /// Ask every device of a fleet that a filter means: 'tag.site = paris and online' (docs/filter.md)
    #[arg(long, value_name = "FILTER", value_parser = filter)]
    pub filter: Option<Filter>,
    /// Only where the filter means so many devices
    #[arg(long, value_name = "COUNT", requires = "filter")]
    pub expect: Option<u64>,
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
