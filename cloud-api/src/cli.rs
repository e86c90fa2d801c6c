//! The command line of `copal-cloud`. Each command is a few lines here; the work is in the rooms.

use clap::{Parser, Subcommand};

use crate::{
    api::openapi,
    serve,
    settings::{self, Place, Settings},
};

/// The cloud of Copal: HTTP API, device API, registry, git server, builder, dashboard.
#[derive(Debug, Parser)]
#[command(name = "copal-cloud", version, about, long_about = None)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the cloud.
    Serve {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        settings: Box<Settings>,
    },
    /// Print the OpenAPI document.
    Openapi,
}

/// Runs a command.
///
/// # Errors
/// Says what was tried, why not, and what to do.
pub async fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::Serve { place, settings } => {
            let checked = settings::check(&place, *settings)?;
            Box::pin(serve::run(checked)).await
        }
        Command::Openapi => {
            print!("{}", openapi::text());
            Ok(())
        }
    }
}
