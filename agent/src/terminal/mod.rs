//! Terminals: a person's shell in a service's container, or on the device itself. In: streams of the cloud that ask for one.
//! Out: their bytes; what is open, for whoever stands at the device; processes that are really gone afterwards.
//!
//! 1. The policy file of this device is asked ([`Policy`](crate::orders::policy::Policy)), then Root: `off` refuses, `cloud` opens, `grant`
//!    wants an operator's signature against an offer of this device ([`grant`]); from then on the cloud sees ciphertext.
//! 2. A file says that it is open before anything is ([`open`]); removing it ends the session.
//! 3. A shell is started by whoever can ([`doors`]) and its bytes go both ways ([`talk`]), within bounds ([`bounds`]).
//! 4. At the end every process of the session is killed, whatever it has become; what a crash of the agent left over, at the next start.
//!
//! Under a grant the session is recorded here ([`recordings`]), and the recording leaves the device by another grant only.
//! Never here: a shell without a reason; a terminal that outlives its channel, its bounds or its leave.

pub mod bounds;
pub mod doors;
pub mod grant;
mod host;
pub mod open;
mod processes;
mod pty;
pub mod recordings;
mod service;
mod talk;
#[cfg(test)]
mod tests;

use std::{path::PathBuf, sync::Arc, time::Duration};

use copal_protocol::{
    channel::{OpenTerminal, StreamOf},
    documents::{
        MAX_GRANT_S, MAX_IDLE_S, MAX_REASON, MAX_TERMINAL_BYTES, MAX_TERMINAL_S, TerminalMode, TerminalTarget,
    },
    text,
};
use futures_util::future::BoxFuture;
use tokio::{sync::Semaphore, time::Instant};

use self::{
    bounds::Bounds,
    doors::Doors,
    grant::Trust,
    open::{Folder, Record},
    recordings::Recordings,
    talk::Talk,
};
use crate::{
    channel::streams::{End, Source, StreamIo},
    clock::Clock,
    orders::policy::Policy,
    spool::{Note, Notes},
};

pub use host::{CHILD, child};

/// Terminals at once.
const MOST: usize = 4;
/// How long the cloud is kept waiting for the end while processes are killed.
const KILL: Duration = Duration::from_secs(4);

/// What terminals work with.
pub struct Deps {
    /// Starts shells, and ends them.
    pub doors: Box<dyn Doors>,
    /// What Root says, and who this device is.
    pub trust: Box<dyn Trust>,
    /// The policy file.
    pub policy: PathBuf,
    /// Where open sessions are seen.
    pub folder: Folder,
    /// Where those under a grant are kept.
    pub recordings: Recordings,
    /// For times that people read.
    pub clock: Clock,
    /// Where sessions are told as events.
    pub notes: Notes,
}

/// Opens terminals.
pub struct Terminals {
    deps: Arc<Deps>,
    room: Arc<Semaphore>,
}

impl Terminals {
    /// Ends what an agent that died left over.
    #[must_use]
    pub fn new(deps: Deps) -> Self {
        let deps = Arc::new(deps);
        let left = deps.clone();
        tokio::spawn(async move {
            for record in left.folder.all() {
                tracing::warn!(session = %record.session_id, "a terminal was left over by an agent that ended; its processes are killed");
                left.doors.kill(&record).await;
                left.folder.remove(record.session_id);
            }
        });
        Self { deps, room: Arc::new(Semaphore::new(MOST)) }
    }

    /// Ends all that are open and waits until they are gone, not for long.
    pub async fn end_all(&self) {
        for record in self.deps.folder.all() {
            let _ = self.deps.folder.ask_end(record.session_id);
        }
        let _ = tokio::time::timeout(KILL, self.room.acquire_many(MOST as u32)).await;
    }
}

impl Source for Terminals {
    fn run(&self, of: StreamOf, io: StreamIo) -> BoxFuture<'static, End> {
        let StreamOf::Terminal(open) = of else {
            return Box::pin(async { End::because("not_supported", "this is no terminal") });
        };
        let Ok(place) = self.room.clone().try_acquire_owned() else {
            let why = format!("{MOST} terminals are open on this device; end one");
            return Box::pin(async move { End::because("busy", why) });
        };
        let deps = self.deps.clone();
        // Apart from whoever waits for it: what was begun is ended, too, when the channel goes in the middle.
        let session = tokio::spawn(async move {
            let end = session(&deps, open, &io).await;
            drop(place);
            end
        });
        Box::pin(async move {
            session.await.unwrap_or_else(|e| End::because("failed", format!("the terminal broke: {e}")))
        })
    }
}

/// One session, from what was asked to its end.
async fn session(deps: &Arc<Deps>, asked: OpenTerminal, io: &StreamIo) -> End {
    let session = asked.session_id;
    match run(deps, asked, io).await {
        Ok(end) | Err(end) => {
            tracing::info!(%session, code = end.code, exit_code = end.exit_code, "the terminal is closed");
            let message = format!("a terminal was closed, or not opened: {}", end.code);
            let note = Note::new("terminal", "closed", &message).with("session", session.to_string());
            deps.notes.note(note.with("code", end.code.as_str()).with("exit_code", end.exit_code));
            end
        }
    }
}

async fn run(deps: &Arc<Deps>, asked: OpenTerminal, io: &StreamIo) -> Result<End, End> {
    let mode = allowed(deps, &asked.target, asked.mode)?;
    let words = |words: &str| text::one_line(words, MAX_REASON);
    let (mut who, mut reason) = (words(&asked.who), words(&asked.reason));
    if reason.trim().is_empty() {
        return Err(End::because("reason_missing", "a terminal needs a reason"));
    }
    let mut bounds = Bounds {
        lasts: Duration::from_secs(asked.max_s.min(MAX_TERMINAL_S).into()),
        idle: Duration::from_secs(asked.idle_s.min(MAX_IDLE_S).into()),
        bytes: asked.max_bytes.min(MAX_TERMINAL_BYTES),
    };
    let (mut line, mut signed_by) = (None, None);
    if mode == TerminalMode::Grant {
        let granted = grant::ask(&*deps.trust, &asked, io).await?;
        bounds.lasts = bounds.lasts.min(Duration::from_secs(granted.grant.max_s.min(MAX_GRANT_S).into()));
        bounds.bytes = bounds.bytes.min(granted.grant.max_bytes);
        // What the operator signed is told here, not what the cloud says of them.
        (who, reason) = (words(&granted.grant.operator), words(&granted.grant.reason));
        signed_by = Some(words(&granted.signed_by));
        line = Some(granted);
    }
    if let TerminalTarget::Recording(of) = asked.target {
        let Some(granted) = line else {
            return Err(End::because(
                "recording_unknown",
                "sessions without a grant are recorded by the cloud",
            ));
        };
        tracing::warn!(session = %asked.session_id, recording = %of, who, signed_by, reason, "the recording of a terminal is read");
        return deps.recordings.send(of, granted.line.says, io).await;
    }
    let mut record = Record {
        session_id: asked.session_id,
        target: asked.target.clone(),
        who,
        reason,
        since: (!deps.clock.is_unset()).then(|| deps.clock.now()),
        granted: line.is_some(),
        signed_by,
        container: None,
        shell: String::new(),
        exec: None,
        pid: None,
    };
    // Found, and shown, before anything of it runs: what cannot be seen at the device is not opened.
    deps.doors.find(&mut record).await?;
    deps.folder.claim(&record)?;
    tracing::warn!(session = %record.session_id, target = %record.target, who = record.who, signed_by = record.signed_by, reason = record.reason, "a terminal is opened");
    let message = format!("{} opened a terminal in {}: {}", record.who, record.target, record.reason);
    deps.notes.note(
        Note::new("terminal", "opened", &message)
            .with("session", record.session_id.to_string())
            .with("who", record.who.as_str())
            .with("signed_by", record.signed_by.clone())
            .with("target", record.target.to_string()),
    );
    let ended = match deps.doors.open(&mut record, asked.cols, asked.rows).await {
        Err(refused) => Err(refused),
        Ok(pty) => {
            if deps.folder.is_open(record.session_id) {
                let _ = deps.folder.write(&record);
            }
            let recording = match &line {
                Some(_) => match deps.recordings.begin(&record, asked.cols, asked.rows) {
                    Ok(recording) => Ok(Some(recording)),
                    Err(why) => Err(why),
                },
                None => Ok(None),
            };
            match recording {
                Err(refused) => Err(refused),
                Ok(recording) => {
                    io.opened();
                    let (says, hears) = match line {
                        Some(granted) => {
                            let line = granted.line;
                            (Some(line.says), Some((line.hears, granted.records)))
                        }
                        None => (None, None),
                    };
                    let talk = Talk { io, bounds, recording, begun: Instant::now() };
                    Ok(talk.run(pty, says, hears, || still_allowed(deps, &record)).await)
                }
            }
        }
    };
    // In a task of its own: a cloud that waits no longer does not stop it.
    let (deps, record) = (deps.clone(), record);
    let killing = tokio::spawn(async move {
        deps.doors.kill(&record).await;
        deps.folder.remove(record.session_id);
    });
    let _ = tokio::time::timeout(KILL, killing).await;
    ended
}

/// What Root wants, where the policy file of this device has nothing against it, and the cloud goes by the same.
fn allowed(
    deps: &Deps,
    target: &TerminalTarget,
    by_cloud: Option<TerminalMode>,
) -> Result<TerminalMode, End> {
    let host = matches!(target, TerminalTarget::Host);
    Policy::load(&deps.policy).check_terminal(host).map_err(|why| End::because("policy_local", why))?;
    match deps.trust.mode() {
        TerminalMode::Off => {
            Err(End::because("terminal_off", "the fleet's Root has terminals off; its owner can change that"))
        }
        mode if by_cloud.is_some_and(|by_cloud| by_cloud != mode) => {
            let says = |mode| match mode {
                TerminalMode::Off => "are off",
                TerminalMode::Grant => "need an operator's grant, and the device records them",
                TerminalMode::Cloud => "are the cloud's to open and to record",
            };
            let why = format!(
                "by the Root this device trusts terminals {}; by the one the cloud goes by they {}. Open it again when the device has the newest Root",
                says(mode),
                says(by_cloud.unwrap_or(mode))
            );
            Err(End::because("terminal_mode", why))
        }
        mode => Ok(mode),
    }
}

/// Asked again while it is open.
fn still_allowed(deps: &Deps, record: &Record) -> Result<(), End> {
    if !deps.folder.is_open(record.session_id) {
        return Err(End::because("killed_on_device", "a person at the device ended it"));
    }
    match allowed(deps, &record.target, None) {
        Ok(TerminalMode::Grant) if !record.granted => {
            Err(End::because("policy_changed", "the fleet's Root now asks for a grant"))
        }
        Ok(_) => Ok(()),
        Err(end) => Err(End::because("policy_changed", end.message)),
    }
}
