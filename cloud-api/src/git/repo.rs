//! Bare repositories, and git run in a bare environment: nothing of the server's, of a person's or of the machine's
//! configuration reaches it.

use std::{
    ffi::OsStr,
    io,
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::Context as _;
use copal_protocol::ids::FleetId;
use tokio::{io::AsyncReadExt as _, process::Command};

use crate::app::App;

/// The largest pack a push may send.
const MAX_INPUT: u64 = 2 << 30;

/// The most bytes of a helper's answer.
const MAX_ANSWER: u64 = 64 << 20;

pub(super) fn path(app: &App, fleet: FleetId) -> PathBuf {
    app.config.git().join(format!("{fleet}.git"))
}

fn hooks_dir(app: &App) -> PathBuf {
    app.config.run().join("hooks")
}

pub(super) fn socket(app: &App) -> PathBuf {
    app.config.run().join("hook.sock")
}

pub(super) async fn check_git() -> anyhow::Result<()> {
    let output = Command::new("git").arg("--version").stdin(Stdio::null()).output().await;
    let output = output.context("running git; install it: apt-get install git")?;
    anyhow::ensure!(output.status.success(), "git does not run; install it: apt-get install git");
    Ok(())
}

/// The hooks are the same for every repository: they call this program, whose path the environment carries.
pub(super) fn write_hooks(app: &App) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = hooks_dir(app);
    std::fs::create_dir_all(&dir)?;
    for name in ["pre-receive", "post-receive"] {
        let file = dir.join(name);
        std::fs::write(&file, format!("#!/bin/sh\nexec \"$COPAL_HOOK_BINARY\" hook {name}\n"))?;
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755))?;
    }
    Ok(())
}

/// Git in a repository, with everything set that an environment or configuration file could otherwise change.
pub(super) fn git<A: AsRef<OsStr>>(app: &App, repo: &Path, args: impl IntoIterator<Item = A>) -> Command {
    let hooks = hooks_dir(app);
    let max_input = MAX_INPUT.to_string();
    let config: [(&str, &OsStr); 18] = [
        ("core.hooksPath", hooks.as_os_str()),
        ("safe.directory", repo.as_os_str()),
        ("receive.maxInputSize", max_input.as_ref()),
        ("transfer.fsckObjects", "true".as_ref()),
        // Old histories have these; they harm nobody.
        ("receive.fsck.zeroPaddedFilemode", "warn".as_ref()),
        ("receive.fsck.badTimezone", "warn".as_ref()),
        ("receive.fsck.missingSpaceBeforeDate", "warn".as_ref()),
        ("receive.denyDeletes", "true".as_ref()),
        ("receive.advertisePushOptions", "true".as_ref()),
        // Seconds of silence after which a sign of life is sent, so that proxies keep the connection during a build.
        ("receive.keepAlive", "5".as_ref()),
        ("receive.shallowUpdate", "false".as_ref()),
        ("gc.autoDetach", "true".as_ref()),
        ("core.protectHFS", "true".as_ref()),
        ("core.protectNTFS", "true".as_ref()),
        ("core.askPass", "".as_ref()),
        ("credential.helper", "".as_ref()),
        ("protocol.allow", "never".as_ref()),
        ("pack.windowMemory", "256m".as_ref()),
    ];
    let mut command = Command::new("git");
    command
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into()))
        .env("HOME", "/nonexistent")
        .env("LC_ALL", "C")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_ATTR_NOSYSTEM", "1")
        .env("GIT_TERMINAL_PROMPT", "0")
        .env("GIT_DIR", repo)
        .env("GIT_CONFIG_COUNT", config.len().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .current_dir(repo)
        .args(args);
    for (i, (key, value)) in config.iter().enumerate() {
        command.env(format!("GIT_CONFIG_KEY_{i}"), key).env(format!("GIT_CONFIG_VALUE_{i}"), value);
    }
    command
}

/// The repository of a fleet, made when it is asked for first.
pub(super) async fn open(app: &App, fleet: FleetId) -> anyhow::Result<PathBuf> {
    let repo = path(app, fleet);
    if tokio::fs::try_exists(repo.join("HEAD")).await? {
        return Ok(repo);
    }
    // Made beside and moved into place: two first requests at once, or a stop in between, leave a whole one.
    let fresh = app.config.git().join(format!("{fleet}.{}.new", crate::registry::random_id()?));
    tokio::fs::create_dir_all(&fresh).await?;
    let output = git(app, &fresh, ["init", "--bare", "--quiet", "--template=", "--initial-branch=main"])
        .output()
        .await
        .context("running git init")?;
    anyhow::ensure!(output.status.success(), "git init: {}", String::from_utf8_lossy(&output.stderr));
    match tokio::fs::rename(&fresh, &repo).await {
        Ok(()) => {}
        Err(_) if tokio::fs::try_exists(repo.join("HEAD")).await? => {
            tokio::fs::remove_dir_all(&fresh).await?;
        }
        Err(error) => return Err(error).context("moving the new repository into place"),
    }
    Ok(repo)
}

/// Runs a helper and answers what it prints.
pub(super) async fn run(mut command: Command) -> anyhow::Result<Vec<u8>> {
    let mut child = command.kill_on_drop(true).spawn().context("running git")?;
    let mut out = Vec::new();
    let mut stdout = child.stdout.take().context("git's output")?.take(MAX_ANSWER);
    let mut stderr = child.stderr.take().context("git's messages")?.take(64 << 10);
    let mut said = String::new();
    let (read, _) = tokio::join!(stdout.read_to_end(&mut out), stderr.read_to_string(&mut said));
    anyhow::ensure!(read? < usize::try_from(MAX_ANSWER)?, "git answered more than {MAX_ANSWER} bytes");
    let status = child.wait().await?;
    anyhow::ensure!(status.success(), "git: {}", said.trim());
    Ok(out)
}

/// What a ref points to.
pub(super) async fn resolve(app: &App, fleet: FleetId, reference: &str) -> Option<String> {
    let repo = path(app, fleet);
    let command = git(
        app,
        &repo,
        ["rev-parse", "--verify", "--quiet", "--end-of-options", &format!("{reference}^{{commit}}")],
    );
    let out = run(command).await.ok()?;
    Some(String::from_utf8(out).ok()?.trim().to_owned())
}

/// Whether the branch or tag of this name is at the commit, or went on from it.
pub(super) async fn contains(app: &App, fleet: FleetId, name: &str, commit: &str) -> bool {
    let repo = path(app, fleet);
    for reference in [format!("refs/heads/{name}"), format!("refs/tags/{name}")] {
        if resolve(app, fleet, &reference).await.is_some()
            && run(git(app, &repo, ["merge-base", "--is-ancestor", commit, &reference])).await.is_ok()
        {
            return true;
        }
    }
    false
}

/// The branch that deploys: where `HEAD` points, once that branch is there.
pub(super) async fn default_branch(app: &App, fleet: FleetId) -> Option<String> {
    let repo = path(app, fleet);
    let out = run(git(app, &repo, ["symbolic-ref", "--short", "HEAD"])).await.ok()?;
    let name = String::from_utf8(out).ok()?.trim().to_owned();
    resolve(app, fleet, &format!("refs/heads/{name}")).await?;
    Some(name)
}

pub(super) async fn set_default_branch(app: &App, fleet: FleetId, name: &str) -> anyhow::Result<()> {
    let repo = path(app, fleet);
    run(git(app, &repo, ["symbolic-ref", "HEAD", &format!("refs/heads/{name}")])).await.map(|_| ())
}
