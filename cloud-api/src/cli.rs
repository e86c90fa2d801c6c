//! The command line of `copal-cloud`. Each command is a few lines here; the work is in the rooms.

use std::{
    io::{IsTerminal as _, Read as _},
    path::PathBuf,
    time::SystemTime,
};

use anyhow::{Context as _, bail};
use clap::{Parser, Subcommand};

use crate::{
    api::openapi,
    app::{self, App},
    audit,
    auth::{Caller, Role, Scope, tokens, users},
    backup, blobs,
    config::Config,
    git,
    keys::ServerKeys,
    serve,
    settings::{self, Place, Settings},
    store::{Db, fleets},
    tls::private_ca,
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
    /// Users, from the machine of the server.
    Admin {
        #[command(subcommand)]
        command: AdminCommand,
    },
    /// API tokens, from the machine of the server.
    Token {
        #[command(subcommand)]
        command: TokenCommand,
    },
    /// Print the fingerprints of this server's builder and assign keys, to compare with what `copal fleet create` shows.
    Keys {
        #[command(flatten)]
        place: Place,
    },
    /// The private CA.
    Tls {
        #[command(subcommand)]
        command: TlsCommand,
    },
    /// Write a back-up; the server may run meanwhile. The file holds keys: keep it as you keep those.
    Backup {
        #[command(flatten)]
        place: Place,
        /// The file to write; must not exist.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Restore a back-up into an empty data folder.
    Restore {
        #[command(flatten)]
        place: Place,
        /// The back-up.
        #[arg(long = "in", value_name = "FILE")]
        from: PathBuf,
    },
    /// Remove blobs that no release, tag or recent upload reaches; the server may run meanwhile.
    Gc {
        #[command(flatten)]
        place: Place,
    },
    /// The log of who did what, from the machine of the server.
    Audit {
        #[command(subcommand)]
        command: AuditCommand,
    },
    /// Print the OpenAPI document.
    Openapi,
    /// What git starts during a push.
    #[command(hide = true)]
    Hook {
        /// `pre-receive` or `post-receive`.
        name: String,
    },
}

#[derive(Debug, Subcommand)]
enum AdminCommand {
    /// Make a user, or give an existing one a new password and role.
    Create {
        #[command(flatten)]
        place: Place,
        /// The address to sign in with.
        #[arg(long)]
        email: String,
        /// Read the password from standard input (one line).
        #[arg(long)]
        password_stdin: bool,
        /// owner, admin, developer, operator or viewer.
        #[arg(long, default_value = "owner")]
        role: Role,
    },
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// Make an API token of a user, and print it.
    Create {
        #[command(flatten)]
        place: Place,
        /// Whose.
        #[arg(long)]
        email: String,
        /// What for.
        #[arg(long)]
        name: String,
        /// full, push or read.
        #[arg(long, default_value = "full")]
        scope: Scope,
        /// The only fleet it opens.
        #[arg(long, value_name = "SLUG")]
        fleet: Option<String>,
        /// Seconds until it stops working.
        #[arg(long, value_name = "N")]
        expires_in_s: Option<u32>,
    },
}

#[derive(Debug, Subcommand)]
enum AuditCommand {
    /// Check that no row was changed, removed or put elsewhere; the server may run meanwhile.
    Verify {
        #[command(flatten)]
        place: Place,
        /// A hash noted earlier: check that the log still holds that row, and so was not cut off or written anew.
        #[arg(long, value_name = "HASH")]
        since: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
enum TlsCommand {
    /// Make a private CA and a certificate for this server; say how clients come to trust it.
    Init {
        #[command(flatten)]
        place: Place,
        /// A host name or address people and devices will use. Repeatable.
        #[arg(long = "name", required = true, value_delimiter = ',', value_name = "HOST")]
        names: Vec<String>,
        /// The URL the server will have, for the lines printed [default: https:// and the first name].
        #[arg(long, env = "COPAL_URL", value_name = "URL")]
        url: Option<String>,
    },
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
        Command::Admin { command: AdminCommand::Create { place, email, password_stdin, role } } => {
            let app = open(&place).await?;
            admin_create(&app, &email, password(password_stdin)?, role).await?;
            println!("{email} may sign in as {role}.");
            app.db.close().await;
            Ok(())
        }
        Command::Token {
            command: TokenCommand::Create { place, email, name, scope, fleet, expires_in_s },
        } => {
            let app = open(&place).await?;
            println!("{}", token_create(&app, &email, &name, scope, fleet.as_deref(), expires_in_s).await?);
            app.db.close().await;
            Ok(())
        }
        Command::Keys { place } => {
            let dir = Config::local(data(&place)?).keys();
            println!("{}", ServerKeys::existing(&dir)?.fingerprints());
            Ok(())
        }
        Command::Tls { command: TlsCommand::Init { place, names, url } } => tls_init(&place, &names, url),
        Command::Backup { place, out } => {
            let (files, bytes) = Box::pin(backup::backup(&data(&place)?, &out)).await?;
            println!(
                "{}: {files} files, {bytes} bytes. It holds private keys: keep it where only you read.",
                out.display()
            );
            Ok(())
        }
        Command::Restore { place, from } => {
            let data = data(&place)?;
            let (files, bytes) = Box::pin(backup::restore(&data, &from)).await?;
            println!(
                "{}: {files} files, {bytes} bytes. Start the server on it; then raise the epoch of each fleet, so that its devices \
                 take assignments again: `copal root renew --new-epoch`. Tokens revoked since the back-up work again: revoke them.",
                data.display()
            );
            Ok(())
        }
        Command::Gc { place } => {
            println!("{}", Box::pin(collect(&place)).await?);
            Ok(())
        }
        Command::Audit { command: AuditCommand::Verify { place, since } } => {
            println!("{}", audit_verify(&data(&place)?, since.as_deref()).await?);
            Ok(())
        }
        Command::Hook { name } => {
            let code = tokio::task::spawn_blocking(move || git::hook::run(&name)).await??;
            std::process::exit(code);
        }
        Command::Openapi => {
            print!("{}", openapi::text());
            Ok(())
        }
    }
}

fn data(place: &Place) -> anyhow::Result<PathBuf> {
    settings::data(place, &settings::file(place)?)
}

/// Opens a data folder beside a server that may run on it: the database takes turns.
async fn open(place: &Place) -> anyhow::Result<App> {
    app::open(Config::local(data(place)?)).await
}

fn password(from_stdin: bool) -> anyhow::Result<String> {
    let mut stdin = std::io::stdin();
    if !from_stdin {
        bail!(
            "give --password-stdin and the password on standard input: on the command line others could read it"
        );
    }
    if stdin.is_terminal() {
        eprintln!("Password, then Enter and Ctrl-D (it is shown while you type):");
    }
    let mut text = String::new();
    stdin
        .by_ref()
        .take(4096)
        .read_to_string(&mut text)
        .context("reading the password from standard input")?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

async fn admin_create(app: &App, email: &str, password: String, role: Role) -> anyhow::Result<()> {
    let (email, hash) = users::prepare(app, email, password).await.map_err(told)?;
    let mut tx = app.db.write().await?;
    users::upsert(&mut tx, &email, &hash, role).await.map_err(told)?;
    let detail = serde_json::json!({"role": role});
    audit::note(&mut tx, &Caller::system(), "user.create", &format!("user:{email}"), detail).await?;
    tx.commit().await?;
    Ok(())
}

async fn token_create(
    app: &App,
    email: &str,
    name: &str,
    scope: Scope,
    fleet: Option<&str>,
    expires_in_s: Option<u32>,
) -> anyhow::Result<String> {
    let email = users::normal_email(email).map_err(told)?;
    let user = users::by_email(app, &email).await.map_err(told)?.with_context(|| {
        format!(
            "there is no user {email}: `copal-cloud admin create --email {email} --password-stdin` makes one"
        )
    })?;
    let fleet = match fleet {
        Some(slug) => Some(fleets::by_slug(app, slug).await.map_err(told)?.fleet_id),
        None => None,
    };
    let mut tx = app.db.write().await?;
    let new = tokens::NewToken {
        user_id: &user.id,
        name,
        scope,
        fleet,
        expires_at: expires_in_s.map(|s| app::now_i64() + i64::from(s)),
    };
    let (id, token) = tokens::create(&mut tx, &new).await.map_err(told)?;
    let detail = serde_json::json!({"name": name, "scope": scope, "for": email});
    audit::note(&mut tx, &Caller::system(), "token.create", &format!("token:{id}"), detail).await?;
    tx.commit().await?;
    Ok(token)
}

async fn audit_verify(data: &std::path::Path, since: Option<&str>) -> anyhow::Result<String> {
    let file = Config::local(data.to_owned()).database();
    // Opening would make one.
    anyhow::ensure!(file.exists(), "there is no database {}: is --data the server's folder?", file.display());
    let db = Db::open(&file).await?;
    let verdict = audit::check(&db, since).await;
    db.close().await;
    let verdict = verdict.with_context(|| format!("reading the audit log of {}", file.display()))?;
    if let Some(broken) = verdict.broken {
        bail!("the audit log was changed by other hands than the server's: {broken}");
    }
    let Some((id, hash)) = verdict.head else {
        anyhow::ensure!(since.is_none(), "the audit log is empty, and does not hold the hash noted earlier");
        return Ok("The audit log is empty.".to_owned());
    };
    if let (Some(since), None) = (since, verdict.since) {
        bail!(
            "the {} rows fit together, but none has the hash {since}: the log was cut off, written anew, or is another server's \
             (after a restore, that of the back-up)",
            verdict.rows
        );
    }
    Ok(format!("{} rows, unbroken. Note the newest, row {id}, elsewhere:\n{hash}", verdict.rows))
}

/// A refusal as people at a terminal read it.
#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn told(problem: crate::error::Problem) -> anyhow::Error {
    anyhow::anyhow!("{} ({})", problem.detail(), problem.code())
}

fn tls_init(place: &Place, names: &[String], url: Option<String>) -> anyhow::Result<()> {
    let data = data(place)?;
    let dir = Config::local(data.clone()).tls_dir();
    let pin = private_ca::init(&dir, names, SystemTime::now())?;
    let host = names.first().map_or("localhost", String::as_str);
    let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
    let url = url.unwrap_or_else(|| format!("https://{host}"));
    let url = url.trim_end_matches('/');
    let ca = dir.join("ca.crt");
    println!(
        "The private CA is in {}. Its pin, for `copal login` and devices:\n\n    {pin}\n\n\
         Start the server with it (the port is part of the URL unless it is 443):\n\n    \
         copal-cloud serve --data {} --tls-private-ca --listen 0.0.0.0:443 --url {url}\n\n\
         On each machine that uses git, with a copy of {} (it is no secret):\n\n    \
         git config --global http.{url}/.sslCAInfo /path/to/ca.crt\n\n\
         The command line tool needs only the pin:\n\n    copal login {url} --pin {pin}",
        dir.display(),
        data.display(),
        ca.display()
    );
    Ok(())
}

/// Collects here when no server runs, else lets the running one do it: only that knows its uploads and builds.
async fn collect(place: &Place) -> anyhow::Result<serde_json::Value> {
    let data = data(place)?;
    match serve::lock(&data) {
        Ok(_lock) => {
            let app = app::open(Config::local(data)).await?;
            let report = blobs::gc(&app).await?;
            app.db.close().await;
            Ok(serde_json::to_value(report)?)
        }
        Err(_) => serve::ask(&data, "gc").await,
    }
}
