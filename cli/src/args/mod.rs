//! The words: every command, option and help text. What they do stands in [`crate::commands`].

mod acts;
mod bundle;
mod logs;
mod os;
mod owner;
mod server;
mod terminal;
mod work;

use std::path::PathBuf;

pub use acts::{ActCommand, How, OneService};
pub use bundle::{AgentCommand, BundleCommand, BundleCreate, BundleWords, Floor};
use clap::{Args, Parser, Subcommand};
pub use logs::Logs;
pub use os::{OsCommand, OsDeploy, OsRelease, OsWithdraw, Place, WindowArg};
pub use owner::{
    CloudArgs, FleetCommand, FleetCreate, KeyRole, KeysCommand, LockArgs, Login, Mode, PolicyArgs,
    RootCommand, Terminal,
};
pub use server::{AuditCommand, FleetRole, MemberCommand, ServerRole, TokenCommand, TokenScope, UserCommand};
pub use terminal::{SessionsCommand, Shell};
pub use work::{
    BuildCommand, CardsCommand, Deploy, DeviceCommand, DeviceConfig, EnrolmentCommand, EnvCommand, EnvSet,
    Push, ReleaseCommand, Scope, Status,
};

/// Work with a fleet of devices: keys, signing, provisioning, deploying.
#[derive(Debug, Parser)]
#[command(
    name = "copal",
    version,
    propagate_version = true,
    max_term_width = 100,
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage, 3 refused by the server, 4 not found, \
                  5 network, 6 not trusted or not proven, 7 not in time."
)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub globals: Globals,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Everywhere")]
pub struct Globals {
    /// Print JSON on standard output, errors as JSON on standard error
    #[arg(long, global = true)]
    pub json: bool,
    /// Print results only, no remarks
    #[arg(long, short, global = true)]
    pub quiet: bool,
    /// Answer yes to every question
    #[arg(long, short, global = true)]
    pub yes: bool,
    /// The fleet, where a command needs one and several exist
    #[arg(long = "fleet", short, global = true, env = "COPAL_FLEET", value_name = "FLEET")]
    pub fleet: Option<String>,
    /// The server, instead of the one last signed in to
    #[arg(long, global = true, env = "COPAL_URL", value_name = "URL")]
    pub url: Option<String>,
    /// Trust a server that shows this key: base64 SHA-256 of a public key in its certificate chain
    #[arg(long, global = true, env = "COPAL_PIN", value_name = "PIN", value_delimiter = ',')]
    pub pin: Vec<String>,
    /// Why you do it, for the server's audit log
    #[arg(long, global = true, env = "COPAL_WHY", value_name = "TEXT")]
    pub why: Option<String>,
    /// The configuration folder [default: ~/.config/copal]
    #[arg(long, global = true, env = "COPAL_HOME", value_name = "DIR")]
    pub home: Option<PathBuf>,
    /// From COPAL_TOKEN only: a token on a command line shows in the list of processes.
    #[arg(skip)]
    pub token: Option<String>,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Sign in to a server
    Login(Login),
    /// Forget the token of the current server
    Logout,
    /// Show who you are on the current server
    Whoami,
    /// The server itself
    #[command(subcommand)]
    Server(ServerCommand),
    /// Root and release keys on this machine
    #[command(subcommand)]
    Keys(KeysCommand),
    /// Fleets
    #[command(subcommand)]
    Fleet(FleetCommand),
    /// The root document of a fleet: whose signatures its devices believe
    #[command(subcommand)]
    Root(RootCommand),
    /// Devices
    #[command(subcommand)]
    Device(DeviceCommand),
    /// Show what services of a device say
    Logs(Logs),
    /// Releases: what may run
    #[command(subcommand)]
    Release(ReleaseCommand),
    /// Operating systems and agents: what devices run below their apps
    #[command(subcommand)]
    Os(OsCommand),
    /// Agents
    #[command(subcommand)]
    Agent(AgentCommand),
    /// Variables of services
    #[command(subcommand)]
    Env(EnvCommand),
    /// Builds
    #[command(subcommand)]
    Build(BuildCommand),
    /// Build and release a folder without git
    Push(Push),
    /// API tokens
    #[command(subcommand)]
    Token(TokenCommand),
    /// People of the server
    #[command(subcommand)]
    User(UserCommand),
    /// What people are on one fleet
    #[command(subcommand)]
    Member(MemberCommand),
    /// Show how the devices of a fleet fare
    Status(Status),
    /// Open a terminal on a device
    Shell(Shell),
    /// Terminals on devices, live and past, and their recordings
    #[command(subcommand)]
    Sessions(SessionsCommand),
    /// Who did what
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Print a completion script
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print versions of this program and of the server
    Version,
}

/// The server itself.
#[derive(Debug, Subcommand)]
pub enum ServerCommand {
    /// Show its version, address, keys and pins
    Show,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_is_in_the_guide_with_an_example() {
        let guide = include_str!("../../../docs/cli.md");
        fn visit(path: &str, command: &clap::Command, guide: &str, missing: &mut Vec<String>) {
            let subs: Vec<_> = command.get_subcommands().filter(|c| c.get_name() != "help").collect();
            if subs.is_empty() && !guide.contains(path) {
                missing.push(path.to_owned());
            }
            for sub in subs {
                visit(&format!("{path} {}", sub.get_name()), sub, guide, missing);
            }
        }
        let mut missing = Vec::new();
        visit("copal", &Cli::command(), guide, &mut missing);
        assert!(missing.is_empty(), "docs/cli.md lacks {missing:?}");
    }

    #[test]
    fn the_help_names_every_command() {
        insta::assert_snapshot!(Cli::command().term_width(100).render_help().to_string());
    }
}
