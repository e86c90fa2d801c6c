//! Parses the command line, runs the command, turns its failure into text and an exit code.
#![forbid(unsafe_code)]

use std::process::ExitCode;

use clap::Parser as _;
use copal_cli::{args::Cli, commands, failure::Failure};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let json = cli.globals.json;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done = match runtime {
        Ok(runtime) => {
            let done = runtime.block_on(Box::pin(commands::run(cli)));
            // A read of standard input may still be waiting on its thread; ending must not wait for it.
            runtime.shutdown_background();
            done
        }
        Err(error) => Err(Failure::local("start", error)),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.print(json);
            ExitCode::from(failure.kind.exit_code())
        }
    }
}
