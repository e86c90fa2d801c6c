//! Operating systems and agents: bundles that become releases of a fleet.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use copal_protocol::window::Window;

/// Operating systems and agents of a fleet.
#[derive(Debug, Subcommand)]
pub enum OsCommand {
    /// Bundles: an operating system in one file, made and signed on this machine
    #[command(subcommand)]
    Bundle(super::bundle::BundleCommand),
    /// Upload a signed bundle and make it a release of a fleet: an operating system, or an agent
    Release(OsRelease),
    /// List a fleet's operating systems and agents
    List {
        /// The fleet
        #[arg(value_name = "FLEET")]
        which: String,
        /// How many, newest first
        #[arg(long, default_value_t = 20)]
        limit: usize,
    },
    /// Show an operating system or agent, and how many devices run it
    Show {
        /// The fleet
        #[arg(value_name = "FLEET")]
        which: String,
        /// Id, beginning of it, version, or latest
        release: String,
    },
    /// Say which operating system or agent devices should run
    Deploy(OsDeploy),
    /// Take an operating system or agent back: no device is given it any more
    Withdraw(OsWithdraw),
    /// Let a device follow its fleet's operating system and agent again
    Unpin {
        /// Id, beginning of it, or name
        device: String,
    },
    /// Ask devices that undid a release to try it again
    Retry {
        /// The fleet
        #[arg(value_name = "FLEET")]
        which: String,
        /// Id, beginning of it, version, or latest
        release: String,
        /// Where
        #[command(flatten)]
        place: Place,
    },
    /// Set when devices may reboot into another operating system
    Window {
        /// The fleet
        #[arg(value_name = "FLEET")]
        which: String,
        /// HH:MM-HH:MM in UTC, which may cross midnight; none for at any time
        #[arg(value_parser = window)]
        window: WindowArg,
    },
}

/// A window, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WindowArg(pub Option<Window>);

fn window(word: &str) -> Result<WindowArg, String> {
    if word == "none" {
        return Ok(WindowArg(None));
    }
    word.parse().map(|w| WindowArg(Some(w))).map_err(|e| format!("{e}, or none"))
}

/// Some devices; the whole fleet where a command says so.
#[derive(Debug, Clone, Default, Args)]
pub struct Place {
    /// This device (id, beginning of it, or name); it is pinned
    #[arg(long, value_name = "DEVICE", value_delimiter = ',')]
    pub device: Vec<String>,
    /// Devices with this tag; they are pinned
    #[arg(long, value_name = "KEY=VALUE", conflicts_with = "device")]
    pub tag: Option<String>,
    /// The whole fleet
    #[arg(long, conflicts_with_all = ["device", "tag"])]
    pub all: bool,
}

/// Release a bundle.
#[derive(Debug, Args)]
pub struct OsRelease {
    /// The fleet
    #[arg(value_name = "FLEET")]
    pub which: String,
    /// The bundle, signed: `copal os bundle sign`
    pub file: PathBuf,
    /// Deploy it to the whole fleet at once
    #[arg(long, value_name = "WHERE", value_parser = ["all"], conflicts_with_all = ["device", "tag"])]
    pub deploy: Option<String>,
    /// Deploy it to this device (id, beginning of it, or name)
    #[arg(long, value_name = "DEVICE", value_delimiter = ',')]
    pub device: Vec<String>,
    /// Deploy it to devices with this tag
    #[arg(long, value_name = "KEY=VALUE", conflicts_with = "device")]
    pub tag: Option<String>,
    /// Seconds to go on trying without a byte getting through
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    pub patience: u64,
}

/// Deploy.
#[derive(Debug, Args)]
pub struct OsDeploy {
    /// The fleet
    #[arg(value_name = "FLEET")]
    pub which: String,
    /// Id, beginning of it, version, or latest
    pub release: String,
    /// Where
    #[command(flatten)]
    pub place: Place,
    /// Only say how many devices it would be
    #[arg(long)]
    pub dry_run: bool,
    /// Wait until the devices run it and keep it, or one gives up
    #[arg(long)]
    pub wait: bool,
    /// Seconds to wait
    #[arg(long, default_value_t = 3600, value_name = "SECONDS")]
    pub timeout: u64,
}

/// Withdraw.
#[derive(Debug, Args)]
pub struct OsWithdraw {
    /// The fleet
    #[arg(value_name = "FLEET")]
    pub which: String,
    /// Id, beginning of it, version, or latest
    pub release: String,
    /// Why: it is shown wherever the release is listed
    #[arg(long, required_unless_present = "undo")]
    pub reason: Option<String>,
    /// It is good after all: it may be deployed again
    #[arg(long, conflicts_with = "reason")]
    pub undo: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_is_read_or_refused_with_its_form() {
        assert_eq!(window("none"), Ok(WindowArg(None)));
        assert_eq!(window("22:30-04:00").unwrap().0.unwrap().to_string(), "22:30-04:00");
        assert!(window("22:30").unwrap_err().contains("HH:MM-HH:MM"));
    }
}
