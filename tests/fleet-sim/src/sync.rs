//! Polls, and what follows from one that brings something: documents fetched and verified, and told as if they were installed.
//! As the agent's synchronisation: a held poll while there is no channel, a rest of hours while one is up, and at once where
//! the channel speaks of something else or is gone.

use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use copal_protocol::{
    device_api::FreshnessRequest,
    documents::{Assignment, Release, Root},
    envelope::Envelope,
    ids::{AppId, Sha256Hex},
    verify::{self, AssignmentMark, Code, ExpectedRelease, Platform, Purpose, ReleaseMarks, Verified},
};
use tokio::sync::watch;

use crate::{
    device::{Device, Nudges, arch},
    http::{Call, Refused},
    pace::{Pace, backoff, jittered},
    report::{App, Told},
    tell::now,
};

/// After one poll the cloud did not hold.
const SHORTLY: Duration = Duration::from_secs(2);
/// Between two polls, however often somebody nudges.
const APART: Duration = Duration::from_millis(50);
/// Where only a person can change something.
const PERSON: Duration = Duration::from_secs(30);
/// Roots followed in one go.
const ROOTS: usize = 64;

struct Sync {
    device: Arc<Device>,
    pace: Pace,
    nudges: watch::Receiver<Nudges>,
    told: watch::Sender<Told>,
    /// What the next poll names.
    settled: Option<Sha256Hex>,
    polled: bool,
    walked: Option<Instant>,
    /// The newest Root this device fetched, and the version it last looked for because the channel spoke of it.
    root: u64,
    sought: Option<u64>,
    /// Releases it has already.
    apps: Vec<App>,
}

/// Polls until dropped.
pub(crate) async fn run(device: Arc<Device>, pace: Pace, told: watch::Sender<Told>) {
    let nudges = device.nudges.subscribe();
    let root = device.shared.first_root;
    let mut sync = Sync {
        device,
        pace,
        nudges,
        told,
        settled: None,
        polled: false,
        walked: None,
        root,
        sought: None,
        apps: Vec::new(),
    };
    let (mut failures, mut unheld) = (0_u32, 0_u32);
    loop {
        sync.nudges.mark_unchanged();
        let apart = tokio::time::sleep(APART);
        let cycle = Box::pin(sync.cycle()).await;
        apart.await;
        let pause = match cycle {
            // Something was heard while the cloud held the poll.
            Ok(None) => continue,
            Ok(Some(held)) => {
                failures = 0;
                unheld = if held { 0 } else { unheld + 1 };
                match unheld {
                    _ if sync.may_rest() => jittered(sync.rest()),
                    0 => continue,
                    1 => jittered(SHORTLY.min(sync.pace.poll)),
                    _ => jittered(sync.pace.poll),
                }
            }
            Err(error) => {
                failures += 1;
                let wait = backoff(failures);
                let person = Refused::of(&error).is_some_and(Refused::needs_a_person);
                match sync.device.shared.seen.failed(&error) {
                    Some(later) => later + wait.min(later / 4),
                    None if person => wait.max(jittered(PERSON)),
                    None => wait,
                }
            }
        };
        let mut nudges = sync.nudges.clone();
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = nudged(&mut nudges) => {}
        }
    }
}

impl Sync {
    fn up(&self) -> bool {
        self.nudges.borrow().up
    }

    /// Whether the channel would tell of anything worth a poll.
    fn may_rest(&self) -> bool {
        self.up() && self.settled.is_some()
    }

    fn rest(&self) -> Duration {
        let hinted = self.nudges.borrow().hinted.map(|(etag, _)| etag);
        if hinted.is_none() || hinted == self.settled { self.pace.rest } else { self.pace.poll }
    }

    /// One round: whether the cloud held the poll or brought something, so that asking again at once is right; `None` where
    /// something was heard meanwhile.
    async fn cycle(&mut self) -> anyhow::Result<Option<bool>> {
        self.device.token().await?;
        let said = self.nudges.borrow().root;
        let newer = said != self.sought && said > Some(self.root);
        let aged = self.device.aged.swap(false, Relaxed);
        if newer || aged || self.walked.is_none_or(|at| at.elapsed() >= self.pace.roots) {
            self.walk().await?;
            self.sought = said;
        }
        let wait = if !self.polled || self.may_rest() { 0 } else { self.pace.wait_s };
        let path = format!("/device/v1/state?wait={wait}");
        let call = Call { etag: self.settled, wait: Duration::from_secs(wait), ..Call::get(&path) };
        let began = Instant::now();
        let mut nudges = self.nudges.clone();
        let answer = tokio::select! {
            answer = self.device.call(call) => answer?,
            () = nudged(&mut nudges), if wait > 0 => return Ok(None),
        };
        self.polled = true;
        let seen = &self.device.shared.seen;
        seen.polls.fetch_add(1, Relaxed);
        if answer.status != 200 {
            seen.unchanged.fetch_add(1, Relaxed);
            return Ok(Some(began.elapsed() + SHORTLY >= Duration::from_secs(wait)));
        }
        self.take(&answer.body).await?;
        Ok(Some(true))
    }

    /// Fetches newer roots. All devices share the newest that any of them verified.
    async fn walk(&mut self) -> anyhow::Result<()> {
        for _ in 0..ROOTS {
            let path = format!("/device/v1/roots/{}", self.root + 1);
            let answer = match self.device.call(Call::get(&path)).await {
                Err(error) if Refused::of(&error).is_some_and(|refused| refused.status == 404) => break,
                answer => answer?,
            };
            let shared = &self.device.shared;
            if shared.root().version == self.root {
                shared.set_root(verify::next_root(&shared.root(), &Envelope::parse::<Root>(&answer.body)?)?);
            }
            self.root += 1;
        }
        self.walked = Some(Instant::now());
        Ok(())
    }

    /// Verifies an assignment and all that belongs to it; from then on it counts as installed.
    async fn take(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        let hinted = self.nudges.borrow().hinted;
        let (device, mark) = (self.device.clone(), self.device.mind().mark);
        let envelope = Envelope::parse::<Assignment>(bytes)?;
        let judge = || verify::assignment(&device.shared.root(), &device.identity(), &mark, &envelope);
        let assignment = match judge() {
            Err(error)
                if matches!(error.code, Code::RootBehind | Code::SigUnknownKey | Code::SigWrongRole) =>
            {
                self.walk().await?;
                judge()?
            }
            judged => judged?,
        };
        let mark = AssignmentMark::of(&assignment);
        let mut apps = Vec::new();
        for wanted in &assignment.apps {
            let held = self.apps.iter().find(|app| app.release == wanted.sha256).cloned();
            apps.push(match held {
                Some(app) => app,
                None => self.release(wanted.app_id, wanted.sha256).await?,
            });
        }
        self.ask_freshness(&mark).await?;
        self.device.mind().mark = mark;
        self.settled = Some(assignment.sha256());
        // Two releases of an app stay on a device: the one that runs and the one to go back to.
        let now: BTreeSet<Sha256Hex> = apps.iter().map(|app| app.release).collect();
        let before = std::mem::replace(&mut self.apps, apps.clone());
        self.apps.extend(before.into_iter().filter(|app| !now.contains(&app.release)).take(apps.len()));
        let at = hinted.filter(|(etag, _)| *etag == assignment.sha256()).map(|(_, at)| at);
        self.device.shared.seen.applied(at);
        self.told.send_replace(Told { mark, apps });
        Ok(())
    }

    async fn release(&self, app_id: AppId, sha256: Sha256Hex) -> anyhow::Result<App> {
        let path = format!("/device/v1/releases/{sha256}");
        let answer = self.device.call(Call::get(&path)).await?;
        let platform = Platform {
            device_type: self.device.shared.file.device_type.clone(),
            arch: arch().to_owned(),
            agent: env!("CARGO_PKG_VERSION").parse().context("this program's version")?,
            os: None,
        };
        let release: Verified<Release> = verify::release(
            &self.device.shared.root(),
            &ExpectedRelease::app(app_id, sha256),
            &ReleaseMarks::default(),
            &platform,
            Purpose::Install { now: now() },
            &Envelope::parse::<Release>(&answer.body)?,
        )?;
        Ok(App::of(app_id, &release))
    }

    async fn ask_freshness(&self, mark: &AssignmentMark) -> anyhow::Result<()> {
        let mut nonce = [0; 32];
        getrandom::fill(&mut nonce)?;
        let nonce = Sha256Hex::from_bytes(nonce);
        let body = serde_json::to_vec(&FreshnessRequest { nonce })?;
        let answer = self.device.call(Call::post("/device/v1/freshness", body)).await?;
        let envelope = Envelope::parse::<copal_protocol::documents::Freshness>(&answer.body)?;
        verify::freshness(&self.device.shared.root(), &self.device.identity(), nonce, mark, &envelope)?;
        Ok(())
    }
}

async fn nudged(nudges: &mut watch::Receiver<Nudges>) {
    if nudges.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}
