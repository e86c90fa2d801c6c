//! What the owner does with keys: sign in, keys, fleets, roots.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};
use copal_protocol::documents::{CHECK_EVERY_S, EnvMode, ReleaseMode, Role, TerminalMode};

use super::work::duration;

/// Sign in.
#[derive(Debug, Args)]
pub struct Login {
    /// The server's address
    #[arg(value_name = "URL")]
    pub server: String,
    /// Trust the certificates of this PEM file (the server's own, or its private CA)
    #[arg(long, value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// Sign in by an API token; visible in the list of processes, so prefer --token-stdin
    #[arg(long, conflicts_with = "token_stdin")]
    pub token: Option<String>,
    /// Read the API token from standard input
    #[arg(long)]
    pub token_stdin: bool,
    /// Sign in by password, and make a token for this machine
    #[arg(long, conflicts_with_all = ["token", "token_stdin"])]
    pub email: Option<String>,
    /// Read the password from standard input
    #[arg(long, requires = "email")]
    pub password_stdin: bool,
}

/// Roles of keys people hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum KeyRole {
    /// Signs roots
    Root,
    /// Signs releases
    Release,
    /// Signs operating system releases
    Host,
    /// The server's builder
    Builder,
    /// The server's online key
    Assign,
    /// Signs terminal grants
    Operator,
}

impl From<KeyRole> for Role {
    fn from(role: KeyRole) -> Self {
        match role {
            KeyRole::Root => Self::Root,
            KeyRole::Release => Self::Release,
            KeyRole::Host => Self::Host,
            KeyRole::Builder => Self::Builder,
            KeyRole::Assign => Self::Assign,
            KeyRole::Operator => Self::Operator,
        }
    }
}

/// Keys on this machine.
#[derive(Debug, Subcommand)]
pub enum KeysCommand {
    /// Make root and release keys; never overwrites one
    Init {
        /// A name for this set of keys
        #[arg(long, default_value = "owner")]
        set: String,
        /// How many root keys to make
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=16))]
        count: u32,
        /// How many root keys must sign a root
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=16))]
        threshold: u32,
        /// A label that others see in the root [default: user@host]
        #[arg(long)]
        label: Option<String>,
        /// Protect the files by a passphrase (asked for, or from the file COPAL_KEY_PASSPHRASE_FILE names)
        #[arg(long)]
        passphrase: bool,
    },
    /// Make one more key of a set
    Add {
        /// What it may sign
        #[arg(value_enum)]
        role: KeyRole,
        /// The set
        #[arg(long, default_value = "owner")]
        set: String,
        /// A label that others see in the root [default: user@host]
        #[arg(long)]
        label: Option<String>,
        /// Protect the file by a passphrase (asked for, or from the file COPAL_KEY_PASSPHRASE_FILE names)
        #[arg(long)]
        passphrase: bool,
    },
    /// Show the public halves and where the files are
    Show {
        /// Only this set
        #[arg(long)]
        set: Option<String>,
    },
    /// Write a private key to a file, for a back-up or another machine
    Export {
        /// The key: its keyid or the beginning of it
        key: String,
        /// The set it is in
        #[arg(long, default_value = "owner")]
        set: String,
        /// The file to write
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Add a private key from a file
    Import {
        /// A file that `copal keys export` wrote
        file: PathBuf,
        /// The set to add it to
        #[arg(long, default_value = "owner")]
        set: String,
    },
}

/// Whose signature makes a release runnable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// The server's builder: the server is trusted
    Builder,
    /// The owner's release keys
    Owner,
    /// Both
    Both,
}

impl From<Mode> for ReleaseMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Builder => Self::Builder,
            Mode::Owner => Self::Owner,
            Mode::Both => Self::Both,
        }
    }
}

/// Who may authorise a terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Terminal {
    /// Nobody
    Off,
    /// An operator's signed grant
    Grant,
    /// The server
    Cloud,
}

impl From<Terminal> for TerminalMode {
    fn from(mode: Terminal) -> Self {
        match mode {
            Terminal::Off => Self::Off,
            Terminal::Grant => Self::Grant,
            Terminal::Cloud => Self::Cloud,
        }
    }
}

/// Which variables the server may set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Env {
    /// Any but the denied names
    Open,
    /// Those a service declares as overridable
    Declared,
}

impl From<Env> for EnvMode {
    fn from(mode: Env) -> Self {
        match mode {
            Env::Open => Self::Open,
            Env::Declared => Self::Declared,
        }
    }
}

/// What the owner allows.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Policy")]
pub struct PolicyArgs {
    /// Take the policy from a JSON file (as `copal root show --json` prints it)
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,
    /// Whose signature makes a release runnable
    #[arg(long, value_enum)]
    pub release_mode: Option<Mode>,
    /// Which variables the server may set
    #[arg(long, value_enum)]
    pub env_mode: Option<Env>,
    /// Who may authorise a terminal
    #[arg(long, value_enum)]
    pub terminal: Option<Terminal>,
    /// Allow `privileged: true`
    #[arg(long)]
    pub allow_privileged: bool,
    /// Allow `network_mode: host`
    #[arg(long)]
    pub allow_host_network: bool,
    /// Allow `pid: host`
    #[arg(long)]
    pub allow_host_pid: bool,
    /// Allow `ipc: host`
    #[arg(long)]
    pub allow_host_ipc: bool,
    /// Allow this capability
    #[arg(long, value_name = "CAP", value_delimiter = ',')]
    pub allow_cap: Vec<String>,
    /// Allow this host device; one ending in * allows those beginning so
    #[arg(long, value_name = "PATH", value_delimiter = ',')]
    pub allow_device: Vec<String>,
    /// Allow this host path to be bound, with all below it
    #[arg(long, value_name = "PATH", value_delimiter = ',')]
    pub allow_bind: Vec<String>,
    /// Allow this security_opt
    #[arg(long, value_name = "OPT")]
    pub allow_security_opt: Vec<String>,
    /// Allow this runtime
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub allow_runtime: Vec<String>,
    /// Allow this kernel parameter
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub allow_sysctl: Vec<String>,
    /// Allow this device cgroup rule
    #[arg(long, value_name = "RULE")]
    pub allow_cgroup_rule: Vec<String>,
    /// Allow volumes with driver options
    #[arg(long)]
    pub allow_volume_driver_opts: bool,
    /// Allow newer assignments from a bundle or peer without asking the server
    #[arg(long)]
    pub allow_offline: bool,
}

/// Fleets.
#[derive(Debug, Subcommand)]
pub enum FleetCommand {
    /// Make a fleet, and sign its first root with the keys of this machine
    Create(Box<FleetCreate>),
    /// List the fleets
    List,
    /// Show a fleet
    Show {
        /// The fleet
        #[arg(value_name = "FLEET")]
        which: Option<String>,
    },
    /// Take a fleet off the server, with its releases, images and devices; what devices run keeps running
    Delete {
        /// The fleet
        #[arg(value_name = "FLEET")]
        which: String,
        /// Even where it has devices: none of them can ever log in again
        #[arg(long)]
        force: bool,
    },
    /// Set how often the fleet's devices make their health checks by themselves
    CheckEvery {
        /// The fleet
        #[arg(value_name = "FLEET")]
        which: String,
        /// 10m to 7d; default for as each device says
        #[arg(value_parser = check_every)]
        every: Every,
    },
    /// Take from the server the power to run code of its own, and wait until every device proves it
    Lock(LockArgs),
    /// Give that power back
    Unlock {
        /// The fleet
        #[arg(value_name = "FLEET")]
        which: Option<String>,
    },
}

/// Seconds, or none for what is usual.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Every(pub Option<u32>);

fn check_every(word: &str) -> Result<Every, String> {
    if word == "default" {
        return Ok(Every(None));
    }
    let seconds = u32::try_from(duration(word)?).ok().filter(|s| CHECK_EVERY_S.contains(s));
    seconds.map(|s| Every(Some(s))).ok_or_else(|| "10m to 7d, or default".to_owned())
}

/// Make a fleet.
#[derive(Debug, Args)]
pub struct FleetCreate {
    /// Its name: a-z, 0-9 and -
    pub slug: String,
    /// What its devices are, such as raspberrypi4-64 or generic
    #[arg(long, default_value = "generic")]
    pub device_type: String,
    /// Their architecture: amd64, arm64 or arm
    #[arg(long)]
    pub arch: String,
    /// The keys that sign for it
    #[arg(long, default_value = "owner", value_name = "SET")]
    pub keys: String,
    /// Days the root is good for
    #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=3650))]
    pub days: u32,
    /// Fingerprints (keyids) the server's builder and assign keys must have, instead of asking
    #[arg(long, value_name = "KEYID", value_delimiter = ',')]
    pub expect_key: Vec<String>,
    /// What the owner allows
    #[command(flatten)]
    pub policy: PolicyArgs,
}

/// Lock a fleet.
#[derive(Debug, Args)]
pub struct LockArgs {
    /// The fleet
    #[arg(value_name = "FLEET")]
    pub which: Option<String>,
    /// Whose signature makes a release runnable
    #[arg(long, value_enum, default_value = "owner")]
    pub mode: Mode,
    /// Who may authorise a terminal
    #[arg(long, value_enum, default_value = "off")]
    pub terminal: Terminal,
    /// Seconds to wait for the devices
    #[arg(long, default_value_t = 600, value_name = "SECONDS")]
    pub timeout: u64,
    /// Only judge again whether the devices prove the lock; make no new root
    #[arg(long)]
    pub check: bool,
    /// Do not count cards that were made here and never became a device
    #[arg(long)]
    pub allow_unseen: bool,
}

/// Where the cloud is.
#[derive(Debug, Clone, Default, Args)]
pub struct CloudArgs {
    /// A base URL devices try, in this order
    #[arg(long = "cloud-url", value_name = "URL", value_delimiter = ',')]
    pub urls: Vec<String>,
    /// A pin devices accept
    #[arg(long = "cloud-pin", value_name = "PIN", value_delimiter = ',')]
    pub pins: Vec<String>,
}

/// The root of a fleet.
#[derive(Debug, Subcommand)]
pub enum RootCommand {
    /// Show the newest root
    Show {
        /// The fleet
        #[arg(value_name = "FLEET")]
        which: Option<String>,
        /// From this machine alone
        #[arg(long)]
        offline: bool,
    },
    /// Make the next root with a later expiry
    Renew {
        /// The fleet
        #[arg(value_name = "FLEET")]
        which: Option<String>,
        /// Begin a new epoch of assignments: the server was restored from a back-up
        #[arg(long)]
        new_epoch: bool,
        /// Days the root is good for
        #[arg(long, default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=3650))]
        days: u32,
    },
    /// Put a new key in the place of one: made here for root and release, taken from the server for builder and assign
    Rotate {
        /// The role
        #[arg(value_enum, default_value = "root")]
        role: KeyRole,
        /// The keyid it replaces [default: every key of the role this machine holds; all, for the server's]
        #[arg(long, value_name = "KEYID")]
        old: Option<String>,
    },
    /// List one more key
    AddKey {
        /// The role
        #[arg(value_enum)]
        role: KeyRole,
        /// The public key, base64 (as `copal keys show` prints it)
        public: String,
        /// For people
        #[arg(long, default_value = "")]
        label: String,
    },
    /// List a key no more
    DropKey {
        /// The keyid or the beginning of it
        key: String,
    },
    /// Say how many keys of a role must sign
    Threshold {
        /// The role
        #[arg(value_enum)]
        role: KeyRole,
        /// How many
        count: u32,
    },
    /// Say that a release must not run any more; devices that run it stop it
    RevokeRelease {
        /// The release: its id, the beginning of it, or its version
        release: String,
    },
    /// Say below which release counter nothing is accepted
    SetFloor {
        /// The counter, or a release whose counter it is
        at: String,
        /// `host/<device type>` or `agent/<arch>` [default: the fleet's app]
        #[arg(long, value_name = "WHAT")]
        of: Option<String>,
    },
    /// Change what the owner allows; what is not said stays
    Policy {
        /// What to change
        #[command(flatten)]
        policy: PolicyArgs,
        /// Close every --allow-… first
        #[arg(long)]
        reset: bool,
    },
    /// Say where the cloud is, for devices that have a copal.json already
    Cloud {
        /// The address
        #[command(flatten)]
        cloud: CloudArgs,
    },
    /// Add this machine's signatures to a root another machine began
    Sign {
        /// The file it wrote
        file: PathBuf,
    },
    /// Take over the root of a fleet that another machine made
    Trust {
        /// The fleet
        #[arg(value_name = "FLEET")]
        which: Option<String>,
        /// Its fingerprint, as `copal root show` prints it on that machine
        #[arg(long, value_name = "SHA256")]
        fingerprint: String,
        /// The keys of this machine that sign for it
        #[arg(long, default_value = "owner", value_name = "SET")]
        keys: String,
    },
}
