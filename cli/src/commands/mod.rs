//! One file a group of commands: what was asked comes in, the rooms of the crate decide, the result is printed.

mod account;
mod acts;
mod audit;
mod builds;
mod bundles;
mod devices;
mod fleets;
mod keys;
mod lock;
mod login;
mod logs;
mod os;
mod os_bundle;
mod people;
mod releases;
mod roots;
mod rounds;
mod status;
mod telemetry;
mod terminal;
mod variables;
mod wait;

use clap::CommandFactory as _;

use crate::{
    args::{Cli, Command},
    context::Context,
    failure::Result,
};

/// Runs a command line.
///
/// # Errors
/// What the command could not do, with its exit code.
pub async fn run(cli: Cli) -> Result<()> {
    let mut globals = cli.globals;
    globals.token = std::env::var("COPAL_TOKEN").ok().filter(|token| !token.is_empty());
    if let Command::Completions { shell } = cli.command {
        clap_complete::generate(shell, &mut Cli::command(), "copal", &mut std::io::stdout());
        return Ok(());
    }
    let ctx = Context::new(globals)?;
    match cli.command {
        Command::Login(args) => login::login(&ctx, args).await,
        Command::Logout => login::logout(&ctx),
        Command::Whoami => account::whoami(&ctx).await,
        Command::Server(crate::args::ServerCommand::Show) => account::server(&ctx).await,
        Command::Keys(command) => keys::run(&ctx, command),
        Command::Fleet(command) => Box::pin(fleets::run(&ctx, command)).await,
        Command::Root(command) => Box::pin(roots::run(&ctx, command)).await,
        Command::Device(command) => Box::pin(devices::run(&ctx, command)).await,
        Command::Logs(args) => Box::pin(logs::run(&ctx, args)).await,
        Command::Release(command) => Box::pin(releases::run(&ctx, command)).await,
        Command::Agent(command) => os_bundle::agent(&ctx, command),
        Command::Os(command) => Box::pin(os::run(&ctx, command)).await,
        Command::Env(command) => variables::run(&ctx, command).await,
        Command::Build(command) => builds::run(&ctx, command).await,
        Command::Push(args) => builds::push(&ctx, args).await,
        Command::Token(command) => account::tokens(&ctx, command).await,
        Command::User(command) => people::users(&ctx, command).await,
        Command::Member(command) => people::members(&ctx, command).await,
        Command::Status(args) => Box::pin(status::run(&ctx, args)).await,
        Command::Shell(args) => Box::pin(terminal::shell(&ctx, args)).await,
        Command::Sessions(command) => Box::pin(terminal::sessions(&ctx, command)).await,
        Command::Audit(command) => audit::run(&ctx, command).await,
        Command::Completions { .. } => Ok(()),
        Command::Version => account::version(&ctx).await,
    }
}
