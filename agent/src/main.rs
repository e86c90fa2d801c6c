//! `copal-agent`: the command line over the library of the same name.
#![forbid(unsafe_code)]

use std::{ffi::OsStr, os::unix::process::CommandExt as _, process::ExitCode};

use clap::{Parser, Subcommand};
use copal_agent::{
    commands, selfupdate,
    settings::{Places, SettingsError},
};
use tracing_subscriber::{filter::Targets, layer::SubscriberExt as _, util::SubscriberInitExt as _};

/// The Copal supervisor: runs on this device what its fleet's owner signed.
#[derive(Parser)]
#[command(name = "copal-agent", version, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    places: Places,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Supervise this device (what the systemd unit does).
    Run,
    /// What runs here, and why not what should.
    Status {
        /// For programs.
        #[arg(long)]
        json: bool,
    },
    /// What would be done to bring one state to one target, from files, offline.
    Plan(commands::plan::PlanArgs),
    /// Judge signed documents given as files, offline; exit code 1 when one is refused.
    Verify(commands::verify::VerifyArgs),
    /// The operating system's two slots (root only).
    #[command(subcommand)]
    Os(commands::os::OsCommand),
    /// Health checks of this device; exit code 1 when one failed.
    Diagnose(commands::diagnose::DiagnoseArgs),
    /// One file for whoever helps from afar: checks, status, logs, without secrets.
    SupportBundle(commands::support_bundle::BundleArgs),
    /// Terminals that are open on this device.
    #[command(subcommand)]
    Terminal(commands::terminal::TerminalCommand),
    /// Takes a terminal and becomes a shell; the agent starts it.
    #[command(name = copal_agent::terminal::CHILD, hide = true)]
    TerminalChild {
        /// The terminal, and what to become.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
    /// Make the run folders before the engine starts (a unit ordered before it does).
    Prepare,
    /// The version.
    Version,
}

fn main() -> ExitCode {
    if cfg!(panic = "abort") && BACK_TRACES.into_iter().any(|name| asks(std::env::var_os(name).as_deref())) {
        let error = without_back_traces();
        eprintln!(
            "copal-agent: unset {}: an error may end this program ({error})",
            BACK_TRACES.join(" and ")
        );
    }
    let mut cli = Cli::parse();
    if let Err(error) = cli.places.make_absolute() {
        eprintln!("copal-agent: the current folder is not known, so relative folders mean nothing: {error}");
        return ExitCode::FAILURE;
    }
    let (levels, problem) = levels(&std::env::var("RUST_LOG").unwrap_or_default());
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    tracing_subscriber::registry().with(levels).with(lines).init();
    if let Some(problem) = problem {
        tracing::warn!("{problem}");
    }
    match perform(&cli) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("copal-agent: {error:#}");
            if error.downcast_ref::<SettingsError>().is_some() {
                ExitCode::from(78)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}

/// What makes each panic, and each error, take a trace of the stack.
const BACK_TRACES: [&str; 2] = ["RUST_BACKTRACE", "RUST_LIB_BACKTRACE"];

fn asks(value: Option<&OsStr>) -> bool {
    value.is_some_and(|value| value != "0")
}

/// Starts anew as the same process. The program that is shipped has no tables for unwinding (docs/decisions/0006): whoever walks the
/// stack there aborts, so that with such a variable every error that is met, and not only a panic, would end the agent.
fn without_back_traces() -> std::io::Error {
    let mut words = std::env::args_os();
    let mut again = std::process::Command::new("/proc/self/exe");
    if let Some(name) = words.next() {
        again.arg0(name);
    }
    for name in BACK_TRACES {
        again.env(name, "0");
    }
    again.args(words).exec()
}

/// What `RUST_LOG` asks for: a level, or levels by module. Anything else is `info`, and why. The fields of spans are no
/// filter here: matching them would cost the device a regex engine.
fn levels(wish: &str) -> (Targets, Option<String>) {
    let usual = Targets::new().with_default(tracing::Level::INFO);
    if wish.is_empty() {
        return (usual, None);
    }
    match wish.parse() {
        Ok(targets) => (targets, None),
        Err(error) => {
            let why = format!(
                "RUST_LOG cannot be read ({error}); logging at info. It takes a level, or levels by module, as in \
                 info,copal_agent=debug"
            );
            (usual, Some(why))
        }
    }
}

fn perform(cli: &Cli) -> anyhow::Result<bool> {
    match &cli.command {
        Command::Run => {
            let launched = selfupdate::launch::launch(&cli.places);
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(commands::run::run(&cli.places, launched))?;
        }
        Command::Status { json } => commands::status::status(&cli.places, *json)?,
        Command::Plan(args) => commands::plan::plan(args, &cli.places.name_prefix)?,
        Command::Verify(args) => return commands::verify::verify(args),
        Command::Os(command) => return commands::os::os(&cli.places, command),
        Command::Diagnose(args) => return commands::diagnose::diagnose(&cli.places, args),
        Command::SupportBundle(args) => commands::support_bundle::support_bundle(&cli.places, args)?,
        Command::Terminal(command) => return commands::terminal::terminal(&cli.places, command),
        Command::TerminalChild { words } => copal_agent::terminal::child(words)?,
        Command::Prepare => commands::prepare::prepare(&cli.places)?,
        Command::Version => println!("{}", env!("CARGO_PKG_VERSION")),
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use tracing::Level;

    use super::levels;

    #[test]
    fn levels_are_taken_by_module() {
        let (targets, problem) = levels("warn,copal_agent=debug");
        assert_eq!(problem, None);
        assert!(targets.would_enable("copal_agent::supervisor", &Level::DEBUG));
        assert!(!targets.would_enable("copal_agent::supervisor", &Level::TRACE));
        assert!(!targets.would_enable("hyper::client", &Level::INFO));
    }

    #[test]
    fn without_a_wish_or_with_a_wrong_one_it_is_info() {
        let (targets, problem) = levels("");
        assert!(problem.is_none() && targets.would_enable("anything", &Level::INFO));
        assert!(!targets.would_enable("anything", &Level::DEBUG));
        let (targets, problem) = levels("copal_agent=loud");
        assert!(problem.unwrap().contains("RUST_LOG"));
        assert!(targets.would_enable("anything", &Level::INFO));
    }
}
