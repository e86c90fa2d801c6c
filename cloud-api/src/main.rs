//! The `copal-cloud` program: logging, then [`copal_cloud::cli`].
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser as _;
use copal_cloud::cli;
use tracing_subscriber::EnvFilter;

#[tokio::main]
async fn main() -> ExitCode {
    let cli = cli::Cli::parse();
    // Standard output belongs to what a command prints.
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_env_filter(
            EnvFilter::try_from_env("COPAL_LOG").unwrap_or_else(|_| EnvFilter::new("info,sqlx=warn")),
        )
        .init();
    match Box::pin(cli::run(cli)).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("copal-cloud: {error:#}");
            ExitCode::FAILURE
        }
    }
}
