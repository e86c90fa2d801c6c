//! Daily work: devices, releases, variables, builds.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use copal_filter::Filter;

use super::acts::ActCommand;

/// Devices.
#[derive(Debug, Subcommand)]
pub enum DeviceCommand {
    /// Write the copal.json a device joins the fleet with
    Config(DeviceConfig),
    /// List the devices of a fleet
    List {
        /// The fleet
        #[arg(value_name = "FLEET")]
        which: Option<String>,
        /// Only those with this tag
        #[arg(long, value_name = "KEY=VALUE")]
        tag: Option<String>,
        /// Only those a filter means: 'tag.site = paris and not online' (docs/filter.md)
        #[arg(long, value_name = "FILTER", value_parser = filter)]
        filter: Option<Filter>,
    },
    /// Show a device, and why it is not on target
    Show {
        /// Id, beginning of it, or name
        device: String,
    },
    /// Keep a device on a release, whatever the fleet does
    Pin {
        /// Id, beginning of it, or name
        device: String,
        /// Id, beginning of it, or version
        release: String,
    },
    /// Let a device follow its fleet again
    Unpin {
        /// Id, beginning of it, or name
        device: String,
    },
    /// Shut a device out for good; what it runs keeps running
    Revoke {
        /// Id, beginning of it, or name
        device: String,
    },
    /// Let a waiting or suspected device in
    Accept {
        /// Id, beginning of it, or name
        device: String,
    },
    /// Give a device another name
    Rename {
        /// Id, beginning of it, or name
        device: String,
        /// The new name
        name: String,
    },
    /// Set or remove tags
    Tag {
        /// Id, beginning of it, or name
        device: String,
        /// `key=value` sets, `key=` removes
        #[arg(required = true, value_name = "KEY=VALUE")]
        tags: Vec<String>,
    },
    /// Try a release again that the device gave up on
    Retry {
        /// Id, beginning of it, or name
        device: String,
    },
    /// Show what happened to a device, newest first
    Events {
        /// Id, beginning of it, or name
        device: String,
        /// How many
        #[arg(long, default_value_t = 50)]
        limit: usize,
        /// Only what happened in this time: 2h, 7d
        #[arg(long, value_name = "TIME", value_parser = duration)]
        since: Option<u64>,
        /// Only of this kind: service, boot, update, ...
        #[arg(long)]
        kind: Option<String>,
    },
    /// Show how a device and its services fare: CPU, memory, disk, network, temperature
    Metrics {
        /// Id, beginning of it, or name
        device: String,
        /// Of so long, at most 30d
        #[arg(long, value_name = "TIME", default_value = "1d", value_parser = duration)]
        since: u64,
        /// Go on with a sample every 5 s, until ended
        #[arg(long)]
        watch: bool,
    },
    /// Acts
    #[command(flatten)]
    Act(ActCommand),
    /// Enrolment tokens of a fleet that still let devices in
    #[command(subcommand)]
    Tokens(EnrolmentCommand),
    /// Introduction secrets of cards made on this machine
    #[command(subcommand)]
    Cards(CardsCommand),
}

/// Enrolment tokens.
#[derive(Debug, Subcommand)]
pub enum EnrolmentCommand {
    /// List the tokens that still let devices in
    List {
        /// The fleet
        #[arg(value_name = "FLEET")]
        which: Option<String>,
    },
    /// Let no further device in by a token; those it let in stay
    Revoke {
        /// Its id, as the list shows it
        token: String,
    },
}

/// Cards.
#[derive(Debug, Subcommand)]
pub enum CardsCommand {
    /// List the cards made for a fleet on this machine
    List,
    /// Forget a card that was thrown away, so that no lock waits for it
    Forget {
        /// Its id
        card: String,
    },
}

/// Make a `copal.json`.
#[derive(Debug, Args)]
pub struct DeviceConfig {
    /// The fleet
    #[arg(value_name = "FLEET")]
    pub which: Option<String>,
    /// What the device will be called [default: its host name]
    #[arg(long)]
    pub name: Option<String>,
    /// The file to write; - for standard output
    #[arg(long, default_value = "copal.json", value_name = "FILE")]
    pub out: PathBuf,
    /// Overwrite the file
    #[arg(long)]
    pub force: bool,
    /// How many devices may join with it
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub uses: u32,
    /// How long it may be used: 30m, 12h, 7d
    #[arg(long, default_value = "7d", value_parser = duration)]
    pub expires: u64,
    /// The address devices reach the server at, where it is not the one used here
    #[arg(long, value_name = "URL")]
    pub cloud_url: Option<String>,
}

/// Reads a filter; where it is wrong, shows the place.
pub(super) fn filter(word: &str) -> Result<Filter, String> {
    word.parse()
        .map_err(|e: copal_filter::Error| format!("\n{}", crate::output::safe_lines(&e.pointed(word))))
}

/// Reads `90`, `90s`, `30m`, `12h`, `7d` as seconds.
pub(super) fn duration(word: &str) -> Result<u64, String> {
    let unit = word.chars().last().filter(char::is_ascii_alphabetic);
    let number = word.strip_suffix(|c| Some(c) == unit).unwrap_or(word);
    let factor = match unit {
        None | Some('s') => 1,
        Some('m') => 60,
        Some('h') => 3600,
        Some('d') => 86_400,
        Some(other) => return Err(format!("{other} is no unit; s, m, h and d are")),
    };
    let seconds = number.parse::<u64>().ok().and_then(|n| n.checked_mul(factor)).filter(|s| *s > 0);
    seconds.ok_or_else(|| "a number with s, m, h or d is expected, such as 12h".to_owned())
}

/// Releases.
#[derive(Debug, Subcommand)]
pub enum ReleaseCommand {
    /// List the releases of a fleet
    List {
        /// The fleet
        #[arg(value_name = "FLEET")]
        which: Option<String>,
        /// How many, newest first
        #[arg(long, default_value_t = 20)]
        limit: usize,
    },
    /// Show a release
    Show {
        /// Id, beginning of it, version, or latest
        release: String,
    },
    /// Say what the fleet, or some devices, should run
    Deploy(Deploy),
    /// Check a release against its build record, and sign it with this machine's release key
    Sign {
        /// Id, beginning of it, version, or latest
        release: String,
        /// Sign a release that names no build record
        #[arg(long)]
        no_build_record: bool,
    },
    /// Mark a release as not to be deployed; --undo takes it back
    Invalidate {
        /// Id, beginning of it, or version
        release: String,
        /// Take it back
        #[arg(long)]
        undo: bool,
    },
    /// Write a note on a release
    Note {
        /// Id, beginning of it, or version
        release: String,
        /// The note
        note: String,
    },
    /// Make a draft final, so that it can be deployed
    Finalize {
        /// Id, beginning of it, or version
        release: String,
    },
}

/// Deploy.
#[derive(Debug, Args)]
pub struct Deploy {
    /// Id, beginning of it, or version; `latest` follows the newest release from now on
    pub release: String,
    /// Only this device (id, beginning of it, or name)
    #[arg(long, value_name = "DEVICE", value_delimiter = ',')]
    pub device: Vec<String>,
    /// Only devices with this tag
    #[arg(long, value_name = "KEY=VALUE", conflicts_with = "device")]
    pub tag: Option<String>,
    /// Only devices a filter means now (docs/filter.md); their number is shown, and asked about, first
    #[arg(long, value_name = "FILTER", value_parser = filter, conflicts_with_all = ["device", "tag"])]
    pub filter: Option<Filter>,
    /// Only say how many devices it would be
    #[arg(long)]
    pub dry_run: bool,
    /// Wait until the devices run it, or one fails
    #[arg(long)]
    pub wait: bool,
    /// Seconds to wait
    #[arg(long, default_value_t = 900, value_name = "SECONDS")]
    pub timeout: u64,
}

/// Where a variable is set. Later wins: fleet, service, device, device and service.
#[derive(Debug, Clone, Args)]
pub struct Scope {
    /// For this device only (id, beginning of it, or name)
    #[arg(long, short)]
    pub device: Option<String>,
    /// For this service only
    #[arg(long, short)]
    pub service: Option<String>,
}

/// Variables.
#[derive(Debug, Subcommand)]
pub enum EnvCommand {
    /// List variables; secret values are never shown
    List {
        /// For this device (id, beginning of it, or name)
        #[arg(long, short)]
        device: Option<String>,
    },
    /// Set a variable; services that use it restart
    Set(EnvSet),
    /// Remove a variable
    Unset {
        /// Its name
        name: String,
        /// Where
        #[command(flatten)]
        scope: Scope,
    },
}

/// Set a variable.
#[derive(Debug, Args)]
pub struct EnvSet {
    /// NAME, or NAME=VALUE where the value is no secret
    pub name: String,
    /// The value where it is no secret; - or nothing asks for it, or reads standard input
    #[arg(allow_hyphen_values = true)]
    pub value: Option<String>,
    /// Read the value from a file
    #[arg(long, value_name = "FILE", conflicts_with = "value")]
    pub value_file: Option<PathBuf>,
    /// Seal it to each device's key; nobody can read it back
    #[arg(long)]
    pub secret: bool,
    /// Where
    #[command(flatten)]
    pub scope: Scope,
}

/// Builds.
#[derive(Debug, Subcommand)]
pub enum BuildCommand {
    /// List the builds of a fleet
    List {
        /// The fleet
        #[arg(value_name = "FLEET")]
        which: Option<String>,
        /// How many, newest first
        #[arg(long, default_value_t = 20)]
        limit: usize,
    },
    /// Show a build
    Show {
        /// Its id
        build: String,
    },
    /// Print the log of a build
    Log {
        /// Its id
        build: String,
    },
    /// Follow a build to its end; fails if it fails
    Watch {
        /// Its id [default: the newest of the fleet]
        build: Option<String>,
    },
    /// Build again what failed
    Retry {
        /// Its id
        build: String,
        /// Do not follow it
        #[arg(long)]
        no_watch: bool,
    },
}

/// Push a folder.
#[derive(Debug, Args)]
pub struct Push {
    /// The folder
    #[arg(default_value = ".")]
    pub folder: PathBuf,
    /// A note on the release
    #[arg(long)]
    pub note: Option<String>,
    /// Make a draft that is not deployed
    #[arg(long)]
    pub draft: bool,
    /// Build without the cache
    #[arg(long)]
    pub no_cache: bool,
    /// Do not follow the build
    #[arg(long)]
    pub no_watch: bool,
}

/// Status.
#[derive(Debug, Args)]
pub struct Status {
    /// The fleet
    #[arg(value_name = "FLEET")]
    pub which: Option<String>,
    /// Only devices a filter means: 'not on_target' (docs/filter.md)
    #[arg(long, value_name = "FILTER", value_parser = filter)]
    pub filter: Option<Filter>,
    /// Keep showing it as it changes
    #[arg(long, short)]
    pub watch: bool,
    /// With --watch: end when every device is on target
    #[arg(long, requires = "watch")]
    pub until_on_target: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read() {
        assert_eq!(duration("90"), Ok(90));
        assert_eq!(duration("30m"), Ok(1800));
        assert_eq!(duration("7d"), Ok(604_800));
        for bad in ["", "0", "d", "7w", "-1h", "99999999999999999999d", "1é"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }
}
