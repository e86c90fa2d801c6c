//! From checked settings to a running server, and to its end.

use std::{fs, os::unix::fs::DirBuilderExt as _, path::Path, time::Duration};

use anyhow::Context as _;
use nix::fcntl::{Flock, FlockArg};
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    task::JoinHandle,
};

use super::{control, listener};
use crate::{
    api::{metrics, setup},
    app::{self, App},
    blobs, build, commands, devices,
    settings::{self, Checked},
    telemetry, terminal,
    tls::Terminator,
};

/// Holds a data folder for this process; dropped, it is free again.
pub type Lock = Flock<fs::File>;

/// Takes the data folder, making it where there is none.
///
/// # Errors
/// When another process has it.
pub fn lock(data: &Path) -> anyhow::Result<Lock> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(data)
        .with_context(|| format!("making the data folder {}", data.display()))?;
    let path = data.join("lock");
    let file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .with_context(|| format!("opening {}", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| match error {
        nix::errno::Errno::EWOULDBLOCK => anyhow::anyhow!(
            "another copal-cloud runs on the data folder {}; stop it first, or name another folder",
            data.display()
        ),
        error => anyhow::anyhow!("locking {}: {error}", path.display()),
    })
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// When it cannot start; says what to change.
pub async fn run(checked: Checked) -> anyhow::Result<()> {
    let Checked { mut config, url } = checked;
    let lock = lock(&config.data)?;
    let terminator = Terminator::start(&config)?;
    let listen = TcpListener::bind(config.listen).await.with_context(|| {
        format!("listening on {} (is the port in use? choose another with --listen)", config.listen)
    })?;
    let bound = listen.local_addr().context("the address listened on")?;
    config.listen = bound;
    config.url = url.unwrap_or_else(|| settings::default_url(&config.tls, bound));
    config.tls_pins = terminator.as_ref().map(|t| t.pins.clone()).unwrap_or_default();
    let app = app::open(config).await?;
    crate::git::start(&app).await?;

    let presence = start_rooms(&app).await?;

    let capacity = listener::capacity();
    // A quarter stays for polls, people and pushes, however many devices there are; half of that for polls that are held, since
    // those of devices that find no channel would fill it.
    app.channels.allow(capacity / 4 * 3, capacity / 8);
    app.channels.ping_max(app.config.ping_max_s);
    let router = super::router(app.clone());
    let server =
        tokio::spawn(listener::run(listen, terminator.clone(), router, app.stopping.clone(), capacity));
    let told = app.config.run().join("listen");
    write(&told, &format!("{bound}\n"))?;
    tracing::info!(url = app.config.url, listen = %bound, capacity, "copal-cloud {} is ready", env!("CARGO_PKG_VERSION"));

    // Fleets are made far from here: this is what their makers compare with, and no secret.
    eprintln!(
        "The fingerprints of this server's keys, to compare with what `copal fleet create` shows:\n{}",
        app.keys.fingerprints()
    );
    if let Some(link) = setup::link(&app).await? {
        // To the one who started it, not to the log.
        println!("There is no user yet. Make the first admin here (works once):\n\n    {link}\n");
    }

    let asked = wait_for_signal(terminator.as_ref()).await?;
    tracing::info!(signal = asked, "stopping");
    app.stopping.cancel();
    let _ = fs::remove_file(&told);
    app.channels.farewell().await;
    server.await.context("the listener")?;
    presence.await.context("writing down which devices were seen")?;
    app.db.close().await;
    drop(lock);
    tracing::info!("stopped");
    Ok(())
}

async fn wait_for_signal(terminator: Option<&Terminator>) -> anyhow::Result<&'static str> {
    let mut term = signal(SignalKind::terminate()).context("waiting for SIGTERM")?;
    let mut int = signal(SignalKind::interrupt()).context("waiting for SIGINT")?;
    let mut hup = signal(SignalKind::hangup()).context("waiting for SIGHUP")?;
    loop {
        tokio::select! {
            _ = term.recv() => return Ok("SIGTERM"),
            _ = int.recv() => return Ok("SIGINT"),
            _ = hup.recv() => if let Some(terminator) = terminator { terminator.reload(); },
        }
    }
}

/// What rooms do at a start and beside requests, before the first of these comes in. A room adds its line here.
async fn start_rooms(app: &App) -> anyhow::Result<JoinHandle<()>> {
    // A data folder may lie too deep for a socket's name (108 bytes); all but `copal-cloud gc` works without it.
    if let Err(error) = control::listen(app) {
        tracing::warn!(error = %format!("{error:#}"), "commands of this machine cannot reach this server");
    }
    blobs::prepare(app).context("emptying the folder of uploads")?;
    build::reconcile(app).await?;
    terminal::reconcile(app).await.context("ending terminals of an earlier run")?;
    tokio::spawn(collect(app.clone()));
    tokio::spawn(commands::run(app.clone()));
    tokio::spawn(metrics::run(app.clone()));
    // Writes down once more what it knows when the cloud stops, so its end is waited for.
    Ok(tokio::spawn(devices::run(app.clone())))
}

/// Collects garbage once a day, beginning an hour after the start.
async fn collect(app: App) {
    let mut wait = Duration::from_secs(3600);
    loop {
        tokio::select! {
            () = app.stopping.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
        wait = Duration::from_secs(24 * 3600);
        match blobs::gc(&app).await {
            Ok(report) => tracing::info!(blobs = report.blobs, bytes = report.bytes, "collected garbage"),
            Err(error) => {
                tracing::warn!(error = %format!("{error:#}"), "collecting garbage; tried again in a day");
            }
        }
        if let Err(problem) = telemetry::prune(&app).await {
            tracing::warn!(%problem, "dropping old metrics; tried again in a day");
        }
    }
}

/// Whole or not at all: whoever waits for the file must not read half an address.
fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    let temp = path.with_extension("new");
    fs::write(&temp, text)
        .and_then(|()| fs::rename(&temp, path))
        .with_context(|| format!("writing {}", path.display()))
}
