//! `copal-agent`: the command line over the library of the same name.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use copal_agent::{
    commands,
    settings::{Places, SettingsError},
};
use tracing_subscriber::EnvFilter;

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
    /// Make the run folders before the engine starts (a unit ordered before it does).
    Prepare,
    /// The version.
    Version,
}

fn main() -> ExitCode {
    let mut cli = Cli::parse();
    if let Err(error) = cli.places.make_absolute() {
        eprintln!("copal-agent: the current folder is not known, so relative folders mean nothing: {error}");
        return ExitCode::FAILURE;
    }
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
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

fn perform(cli: &Cli) -> anyhow::Result<bool> {
    match &cli.command {
        Command::Run => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(commands::run::run(&cli.places))?;
        }
        Command::Status { json } => commands::status::status(&cli.places, *json)?,
        Command::Plan(args) => commands::plan::plan(args, &cli.places.name_prefix)?,
        Command::Verify(args) => return commands::verify::verify(args),
        Command::Prepare => commands::prepare::prepare(&cli.places)?,
        Command::Version => println!("{}", env!("CARGO_PKG_VERSION")),
    }
    Ok(true)
}
