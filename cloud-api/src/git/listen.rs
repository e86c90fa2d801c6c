//! The server's side of the hooks: decides whether a push is accepted, and what its pusher reads.

use std::{
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, PoisonError, atomic::Ordering},
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader},
    net::{UnixListener, UnixStream},
    process::Command,
};

use super::{
    Prepared, Push,
    hook::{Hello, Word},
    plan::{self, Kind, Target},
    repo,
};
use crate::{
    app::App,
    audit,
    blobs::TempFile,
    build::{self, Follower, Job, Outcome},
    releases::{self, ReleaseStatus},
};

/// The longest first line of a hook.
const MAX_HELLO: u64 = 8 << 20;

/// How long a hook may take to say who it is.
const HELLO_TIME: Duration = Duration::from_secs(10);

/// Listens on `run/hook.sock`, which only the server's own user may open.
pub(super) fn start(app: &App) -> anyhow::Result<()> {
    let path = repo::socket(app);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    let listener = UnixListener::bind(&path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    let app = app.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = app.stopping.cancelled() => return,
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        tokio::spawn(Box::pin(serve(app.clone(), stream)));
                    }
                    Err(error) => {
                        tracing::error!(%error, "accepting a git hook");
                        tokio::time::sleep(Duration::from_millis(200)).await;
                    }
                },
            }
        }
    });
    Ok(())
}

/// Speaks to the pusher, through the hook.
struct Voice(tokio::net::unix::OwnedWriteHalf);

impl Voice {
    /// A hook that is gone has lost its pusher; what goes on goes on without it.
    async fn word(&mut self, word: &Word) {
        if let Ok(mut line) = serde_json::to_vec(word) {
            line.push(b'\n');
            let _ = self.0.write_all(&line).await;
        }
    }

    async fn say(&mut self, text: impl Into<String>) {
        self.word(&Word::Say(text.into())).await;
    }

    async fn follow(&mut self, mut log: Follower) {
        while let Ok(Some(piece)) = log.next().await {
            self.say(String::from_utf8_lossy(&piece).trim_end_matches('\n')).await;
        }
    }
}

async fn serve(app: App, stream: UnixStream) {
    let (reader, writer) = stream.into_split();
    let mut voice = Voice(writer);
    let mut line = String::new();
    let mut reader = BufReader::new(reader.take(MAX_HELLO));
    let read = tokio::time::timeout(HELLO_TIME, reader.read_line(&mut line)).await;
    let hello: Option<Hello> = read.ok().and_then(Result::ok).and_then(|_| serde_json::from_str(&line).ok());
    let code = match hello.and_then(|hello| Some((app.git.push(&hello.push)?, hello))) {
        None => {
            voice.say("this is no push of this server").await;
            1
        }
        Some((push, hello)) => match hello.hook.as_str() {
            "pre-receive" if !push.pre_seen.swap(true, Ordering::SeqCst) => {
                match Box::pin(pre_receive(&app, &push, &hello, &mut voice)).await {
                    Ok(()) => 0,
                    Err(why) => {
                        voice.say(format!("\nREFUSED  {why}\n")).await;
                        1
                    }
                }
            }
            "post-receive" if !push.post_seen.swap(true, Ordering::SeqCst) => {
                Box::pin(post_receive(&app, &push, &hello, &mut voice)).await;
                0
            }
            _ => 1,
        },
    };
    voice.word(&Word::Exit(code)).await;
}

/// Git with the objects of this push, which are in quarantine until it is accepted.
fn quarantined<const N: usize>(app: &App, push: &Push, objects: &Path, args: [&str; N]) -> Command {
    let repo = repo::path(app, push.fleet.fleet_id);
    let mut git = repo::git(app, &repo, args);
    git.env("GIT_OBJECT_DIRECTORY", objects)
        .env("GIT_ALTERNATE_OBJECT_DIRECTORIES", repo.join("objects"))
        .env("GIT_QUARANTINE_PATH", objects);
    git
}

/// The quarantine a hook named, if it is one of this repository.
fn quarantine(app: &App, push: &Push, named: Option<&str>) -> Result<PathBuf, String> {
    let objects = repo::path(app, push.fleet.fleet_id).join("objects");
    let Some(named) = named else { return Ok(objects) };
    let inside = std::fs::canonicalize(named)
        .ok()
        .zip(std::fs::canonicalize(&objects).ok())
        .filter(|(named, objects)| named.parent() == Some(objects));
    inside.map(|(named, _)| named).ok_or_else(|| "git's quarantine is not where it should be".to_owned())
}

async fn pre_receive(app: &App, push: &Arc<Push>, hello: &Hello, voice: &mut Voice) -> Result<(), String> {
    let options = plan::options(&hello.options)?;
    let existing = repo::default_branch(app, push.fleet.fleet_id).await;
    let default = plan::default_branch(existing.as_deref(), &hello.updates);
    let (targets, said) = plan::targets(&hello.updates, default.as_deref())?;
    let objects = quarantine(app, push, hello.objects.as_deref())?;
    for line in said {
        voice.say(line).await;
    }
    // What the default branch will be at when this push is through: a version tag on it deploys.
    let mut tip = match &default {
        Some(name) => repo::resolve(app, push.fleet.fleet_id, &format!("refs/heads/{name}")).await,
        None => None,
    };
    let mut targets_by_commit: Vec<(String, Vec<Target>)> = Vec::new();
    for target in targets {
        let commit = commit_of(app, push, &objects, &target).await?;
        if target.kind == Kind::DefaultBranch {
            tip = Some(commit.clone());
        }
        match targets_by_commit.iter_mut().find(|(have, _)| *have == commit) {
            Some((_, same)) => same.push(target),
            None => targets_by_commit.push((commit, vec![target])),
        }
    }
    for (commit, targets) in targets_by_commit {
        let versions: Vec<&Target> = targets.iter().filter(|t| t.version.is_some()).collect();
        if versions.len() > 1 {
            let names: Vec<&str> = versions.iter().map(|t| t.short()).collect();
            return Err(format!("{} name the same commit; one release has one version", names.join(" and ")));
        }
        let version = versions.first().and_then(|t| t.version.clone());
        let deploys = targets.iter().any(|t| match t.kind {
            Kind::DefaultBranch => true,
            Kind::Tag => tip.as_ref() == Some(&commit),
            Kind::OtherBranch => false,
        });
        let Some(main) = targets.first() else { continue };
        let request = build::Request {
            fleet: push.fleet.clone(),
            commit: Some(commit.clone()),
            source: commit.clone(),
            branch: main.short().to_owned(),
            options: build::Options { draft: options.draft || !deploys, nocache: options.nocache, version },
            note: options.note.clone(),
            pushed_by: push.caller.who.clone(),
        };
        let job = submit(app, push, &objects, &commit, request, voice).await?;
        if options.nowait {
            voice.say(format!("Not waiting. Follow it: copal build watch {}", job.id)).await;
            tokio::spawn(later(app.clone(), push.clone(), job, main.name.clone(), commit));
            continue;
        }
        let release = wait(app, push, &job, voice).await?;
        push.prepared().push(Prepared { reference: main.name.clone(), commit, release });
    }
    Ok(())
}

/// The commit a ref shall point to; a tag object is followed.
async fn commit_of(app: &App, push: &Push, objects: &Path, target: &Target) -> Result<String, String> {
    let name = format!("{}^{{commit}}", target.object);
    let out =
        repo::run(quarantined(app, push, objects, ["rev-parse", "--verify", "--end-of-options", &name]))
            .await
            .map_err(|_| format!("{} does not point to a commit", target.short()))?;
    Ok(String::from_utf8_lossy(&out).trim().to_owned())
}

/// Hands the tree of a commit to the builder, or joins the build that is under way.
async fn submit(
    app: &App,
    push: &Push,
    objects: &Path,
    commit: &str,
    request: build::Request,
    voice: &mut Voice,
) -> Result<Arc<Job>, String> {
    let (job, joined) = match app.builds.find(&request) {
        Some(job) => (job, true),
        None => {
            let tar = archive(app, push, objects, commit).await?;
            build::submit(app, request, tar.path()).await.map_err(|p| p.detail().to_owned())?
        }
    };
    if joined {
        voice.say(format!("{} is being built already; joining build {}", &commit[..12], job.id)).await;
    } else {
        voice.say(format!("Building {} as build {}", &commit[..12], job.id)).await;
    }
    Ok(job)
}

/// Copies a commit's tree out of the quarantine, which goes when the push does.
async fn archive(app: &App, push: &Push, objects: &Path, commit: &str) -> Result<TempFile, String> {
    let internal = |error: &dyn std::fmt::Display| {
        tracing::error!(%error, "copying a pushed tree");
        "something failed in the cloud; its log has the cause. Push again.".to_owned()
    };
    let tree = repo::run(quarantined(app, push, objects, ["ls-tree", "-r", "-z", "--full-tree", commit]))
        .await
        .map_err(|e| internal(&e))?;
    if let Some(entry) = tree.split(|b| *b == 0).find(|entry| entry.starts_with(b"160000 ")) {
        let path = entry.splitn(2, |b| *b == b'\t').nth(1).unwrap_or(b"");
        return Err(format!(
            "{} is a submodule; its files are not in this repository, so they cannot be built. Copy them in (git rm --cached {0}; git add {0}), or use git subtree",
            String::from_utf8_lossy(path).escape_debug()
        ));
    }
    let temp = TempFile::make(&app.config.data.join("scratch")).map_err(|e| internal(&e))?;
    let mut git = quarantined(app, push, objects, ["archive", "--format=tar", commit]);
    let mut child = git
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| internal(&e))?;
    let stdout = child.stdout.take().ok_or_else(|| internal(&"no output"))?;
    // The unpacked size is bounded again while unpacking; this bounds the copy.
    let max = app.config.build.context.saturating_mul(2).max(64 << 20);
    let mut file = tokio::fs::File::create(temp.path()).await.map_err(|e| internal(&e))?;
    let copied = tokio::io::copy(&mut stdout.take(max), &mut file).await.map_err(|e| internal(&e))?;
    file.flush().await.map_err(|e| internal(&e))?;
    if copied >= max {
        return Err(format!(
            "the commit's files are more than {max} bytes; leave out what the build does not need"
        ));
    }
    let status = child.wait().await.map_err(|e| internal(&e))?;
    if status.success() { Ok(temp) } else { Err(internal(&"git archive failed")) }
}

/// Streams a build to its end; answers its release, if this push is the one to move the ref.
async fn wait(app: &App, push: &Arc<Push>, job: &Arc<Job>, voice: &mut Voice) -> Result<String, String> {
    let mut waiting = Waiting::join(app, &job.id, push);
    voice.follow(job.follow()).await;
    match job.outcome().await {
        // The log above ends with why.
        Outcome::Failed { .. } => Err(format!(
            "nothing was released, devices keep what they run, and {} did not move",
            job.request.branch
        )),
        Outcome::Succeeded { release } => {
            let owner = waiting.owner();
            if owner.id == push.id {
                if build::may_still_release(app, &push.caller.author(), push.fleet.fleet_id).await {
                    return Ok(release);
                }
                if let Err(problem) = releases::discard(app, &release).await {
                    tracing::error!(%problem, release, "discarding a release whose pusher was shut out");
                }
                return Err(format!(
                    "{} may not push to {} any more: nothing was released, and {} did not move",
                    push.caller.email, push.fleet.slug, job.request.branch
                ));
            }
            // Two pushes would move the same ref; git lets only one.
            let mut ended = owner.ended.subscribe();
            let _ = ended.wait_for(|ended| *ended).await;
            waiting.leave();
            Err(format!(
                "another push of the same commit finished this build and moved {}; there is nothing left to do (git fetch)",
                job.request.branch
            ))
        }
    }
}

/// A push that waits for a build; it leaves when dropped.
struct Waiting<'a> {
    app: &'a App,
    build: &'a str,
    push: &'a Arc<Push>,
}

impl<'a> Waiting<'a> {
    fn join(app: &'a App, build: &'a str, push: &'a Arc<Push>) -> Self {
        let mut map = app.git.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        map.entry(build.to_owned()).or_default().push(push.clone());
        Self { app, build, push }
    }

    /// Who moves the ref: the newest whose pusher still listens, else the newest. Settled by whoever asks first, by
    /// leaving only that one in the list.
    fn owner(&mut self) -> Arc<Push> {
        let mut map = self.app.git.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let list = map.entry(self.build.to_owned()).or_default();
        let owner =
            list.iter().rev().find(|p| !p.is_gone()).or_else(|| list.last()).unwrap_or(self.push).clone();
        list.clear();
        list.push(owner.clone());
        owner
    }

    fn leave(&mut self) {
        let mut map = self.app.git.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(list) = map.get_mut(self.build) {
            list.retain(|p| !*p.ended.borrow() && p.id != self.push.id);
            if list.is_empty() {
                map.remove(self.build);
            }
        }
    }
}

/// A build that its pusher did not wait for: the ref has moved already; the release follows.
async fn later(app: App, push: Arc<Push>, job: Arc<Job>, reference: String, commit: String) {
    let Outcome::Succeeded { release } = job.outcome().await else { return };
    let mut ended = push.ended.subscribe();
    let _ = ended.wait_for(|ended| *ended).await;
    let prepared = Prepared { reference, commit, release };
    if settled_by_ref(&app, &push, &prepared).await {
        note(&app, &push, &prepared).await;
    }
}

/// Publishes what was prepared if its ref is there, discards it otherwise; answers which.
async fn settled_by_ref(app: &App, push: &Push, prepared: &Prepared) -> bool {
    let short = prepared.reference.rsplit_once("heads/").or_else(|| prepared.reference.rsplit_once("tags/"));
    let name = prepared
        .reference
        .strip_prefix("refs/heads/")
        .or_else(|| prepared.reference.strip_prefix("refs/tags/"))
        .or(short.map(|s| s.1))
        .unwrap_or(&prepared.reference);
    let moved = repo::contains(app, push.fleet.fleet_id, name, &prepared.commit).await;
    let result = if moved {
        releases::publish(app, &prepared.release).await.map(|_| ())
    } else {
        releases::discard(app, &prepared.release).await
    };
    if let Err(problem) = result {
        tracing::error!(%problem, release = prepared.release, moved, "settling a release after its push");
    }
    moved
}

/// When receive-pack has ended: whatever post-receive did not see is settled by looking at the ref.
pub(super) async fn settle(app: &App, push: &Arc<Push>) {
    let left: Vec<Prepared> = std::mem::take(&mut *push.prepared());
    for prepared in left {
        if settled_by_ref(app, push, &prepared).await {
            note(app, push, &prepared).await;
        }
    }
    let mut map = app.git.waiting.lock().unwrap_or_else(PoisonError::into_inner);
    map.retain(|_, list| {
        list.retain(|p| p.id != push.id);
        !list.is_empty()
    });
}

/// The audit row of a ref that moved.
async fn note(app: &App, push: &Push, prepared: &Prepared) {
    let detail = serde_json::json!({
        "ref": prepared.reference, "commit": prepared.commit, "release": prepared.release,
    });
    let written = async {
        let mut tx = app.db.write().await?;
        audit::note(&mut tx, &push.caller, "git.push", &format!("fleet:{}", push.fleet.slug), detail).await?;
        tx.commit().await
    };
    if let Err(error) = written.await {
        tracing::error!(%error, "noting a push");
    }
}

async fn post_receive(app: &App, push: &Arc<Push>, hello: &Hello, voice: &mut Voice) {
    let fleet = push.fleet.fleet_id;
    if repo::default_branch(app, fleet).await.is_none()
        && let Some(name) = plan::default_branch(None, &hello.updates)
        && let Err(error) = repo::set_default_branch(app, fleet, &name).await
    {
        tracing::error!(%error, "setting the default branch");
    }
    let moved = |p: &Prepared| hello.updates.iter().any(|u| u.name == p.reference);
    let (through, rest): (Vec<_>, Vec<_>) =
        std::mem::take(&mut *push.prepared()).into_iter().partition(moved);
    *push.prepared() = rest;
    for prepared in through {
        match releases::publish(app, &prepared.release).await {
            Ok(status) => {
                note(app, push, &prepared).await;
                voice.say(announcement(app, push, &prepared.release, status).await).await;
            }
            Err(problem) => {
                tracing::error!(%problem, release = prepared.release, "publishing");
                voice
                    .say(format!(
                        "release {} is built and could not be published: {}",
                        prepared.release,
                        problem.detail()
                    ))
                    .await;
            }
        }
    }
}

/// What was released, and what happens now.
async fn announcement(app: &App, push: &Push, release: &str, status: ReleaseStatus) -> String {
    let fleet = &push.fleet;
    let version: String = sqlx::query_scalar("SELECT version FROM releases WHERE id = $1")
        .bind(release)
        .fetch_one(app.db.read())
        .await
        .unwrap_or_default();
    let target: Option<(Option<String>, bool)> =
        sqlx::query_as("SELECT target_release, pinned FROM fleets WHERE fleet_id = $1")
            .bind(fleet.fleet_id.to_string())
            .fetch_optional(app.db.read())
            .await
            .ok()
            .flatten();
    let devices: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM devices WHERE fleet_id = $1 AND state = 'accepted' AND pinned_release IS NULL",
    )
    .bind(fleet.fleet_id.to_string())
    .fetch_one(app.db.read())
    .await
    .unwrap_or(0);
    let next = match (status, target) {
        (ReleaseStatus::Final, Some((Some(target), _))) if target == release => match devices {
            0 => "no device runs this fleet yet; the first that joins gets it".to_owned(),
            1 => "deploying to 1 device".to_owned(),
            n => format!("deploying to {n} devices"),
        },
        (ReleaseStatus::Final, Some((Some(pinned), true))) => format!(
            "not deployed: the fleet is pinned to {}; do: copal release deploy --fleet {} latest",
            &pinned[..12.min(pinned.len())],
            fleet.slug
        ),
        (ReleaseStatus::Final, _) => "final, not deployed".to_owned(),
        (ReleaseStatus::Draft, _) => {
            format!("a draft, not deployed; do: copal release deploy --fleet {} {version}", fleet.slug)
        }
        (ReleaseStatus::AwaitingSignature, _) => {
            format!("waits for the owner's signature; do: copal release sign {release}")
        }
        (other, _) => format!("{other:?}"),
    };
    format!(
        "\nRELEASED  {} {version} · {release}\n  {}/releases/{release}\n  {next}\n",
        fleet.slug, app.config.url
    )
}
