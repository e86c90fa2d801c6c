//! One step: what it does, and what is written down around it.

use std::{
    sync::{Arc, PoisonError},
    time::Duration,
};

use copal_protocol::documents::Reason;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Trouble, Updater, Worker, facts_slot};
use crate::{
    apply::status::reason,
    os::{
        Slot,
        journal::{Journal, Key},
        machine::{self, Aim, Facts, Step, Wanted, Work},
        ports::From,
    },
};

/// The last report before a restart gets this long to leave.
const FAREWELL: Duration = Duration::from_secs(2);
/// A restart that does not come within this failed.
const REBOOT: Duration = Duration::from_secs(120);

impl Updater {
    pub(super) async fn act(
        &mut self,
        step: &Step,
        facts: &Facts,
        journal: &Journal,
        now: u64,
    ) -> Result<(), Trouble> {
        let next = machine::after(step, facts, journal, now);
        if let Some(over) = &journal.attempt
            && next.attempt.is_none()
            && !matches!(step, Step::Settle)
        {
            self.end(over.key);
        }
        match step {
            Step::Rest | Step::Wait(_) => {}
            Step::Note | Step::Judge(_) => {
                // A journal that cannot be written must not keep a sick trial from being undone.
                self.remember(next);
            }
            Step::Commit => {
                let slot = facts.booted.as_ref().map_or(Slot::A, |b| b.slot);
                self.boot(move |boot| boot.commit(slot)).await?;
            }
            Step::Keep(why) => {
                tracing::error!(code = why.code, message = why.message, "the slot that runs is kept");
                let slot = facts_slot(facts);
                self.boot(move |boot| boot.commit(slot)).await?;
                self.remember(next);
            }
            Step::GoBack => {
                let verdict = journal.attempt.as_ref().and_then(|a| a.verdict.as_ref());
                let why = verdict
                    .map(|v| v.reason.clone())
                    .or_else(|| journal.parked.as_ref().map(|p| p.reason.clone()));
                self.tell(facts, journal, why);
                self.boot(|boot| boot.rollback()).await?;
                self.restart(false).await?;
            }
            Step::Settle => {
                // First, and whatever becomes of the rest: a data partition that is full must not cost the committed slot its
                // boots.
                if facts.works && !self.told {
                    match self.boot(|boot| boot.mark_well()).await {
                        Ok(()) => self.told = true,
                        Err(Trouble(why)) => {
                            tracing::warn!(
                                code = why.code,
                                message = why.message,
                                "the slot is not called well"
                            );
                        }
                    }
                }
                if let Some(attempt) = journal.attempt.as_ref().filter(|a| a.factory.is_none()) {
                    self.deps.documents.commit(attempt.key.release)?;
                }
                self.keep(next)?;
                self.deps.installer.forget(facts_slot(facts)).await;
            }
            Step::Disarm => {
                self.remember(next);
                self.boot(|boot| boot.rollback()).await?;
            }
            Step::MarkWell => {
                self.boot(|boot| boot.mark_well()).await?;
                self.told = true;
                if next != *journal {
                    self.remember(next);
                }
            }
            Step::Retire(slot) => {
                let slot = *slot;
                self.boot(move |boot| boot.mark_unbootable(slot)).await?;
                self.keep(next)?;
            }
            Step::Compare => self.compare(facts).await?,
            Step::Adopt => {
                if let Aim::Release(wanted) = &facts.aim {
                    self.deps.documents.commit(wanted.key.release)?;
                }
                self.keep(next)?;
            }
            Step::Preflight => self.check(facts).await,
            Step::Install => self.install(journal).await?,
            Step::Failed(failure) => {
                tracing::warn!(
                    code = failure.reason.code,
                    message = failure.reason.message,
                    "the installation failed"
                );
                self.stop_work().await;
                let parks = next.attempt.is_none();
                self.keep(next)?;
                if parks {
                    self.deps.installer.forget(facts_slot(facts).other()).await;
                }
            }
            Step::Installed => {
                self.stop_work().await;
                self.keep(next)?;
            }
            Step::Cancel => self.cancel(facts, journal, next).await?,
            Step::Arm => self.arm(facts, journal, next).await?,
            Step::Reboot => {
                let what = journal.attempt.as_ref().map_or_else(String::new, |a| a.version.to_string());
                let why =
                    reason("os_trial", format!("the device restarts into operating system {what} on trial"));
                self.tell(facts, journal, Some(why));
                self.restart(true).await?;
            }
            Step::Conclude(conclusion) => {
                tracing::warn!(
                    code = conclusion.reason.code,
                    message = conclusion.reason.message,
                    "the trial was undone"
                );
                self.remember(next);
                if conclusion.then == machine::Then::Park {
                    self.deps.installer.forget(facts_slot(facts).other()).await;
                }
            }
            // What stands before the word that the system works must not wait for the disk.
            Step::Forget | Step::Unarm | Step::Know(_) => self.remember(next),
            Step::GiveUp(why) => {
                tracing::warn!(code = why.code, message = why.message, "the release keeps the cloud away");
                self.keep(next)?;
                self.deps.installer.forget(facts_slot(facts).other()).await;
            }
            Step::Begin(_) | Step::Doubt(_) | Step::Park(_) | Step::Differs | Step::Reached => {
                self.keep(next)?;
            }
        }
        self.failures = 0;
        Ok(())
    }

    async fn compare(&mut self, facts: &Facts) -> Result<(), Trouble> {
        let Aim::Release(wanted) = &facts.aim else { return Ok(()) };
        let release = self.deps.documents.release(wanted.key.release)?;
        let same = self.deps.installer.same(&release, facts_slot(facts)).await?;
        self.same = Some((wanted.key, same));
        Ok(())
    }

    /// Everything that is known before the first byte is written.
    async fn check(&mut self, facts: &Facts) {
        let Aim::Release(wanted) = &facts.aim else { return };
        let found = self.suits(wanted, facts_slot(facts).other()).await;
        if let Err(why) = &found {
            tracing::warn!(
                code = why.code,
                message = why.message,
                "the operating system cannot be installed here"
            );
        }
        self.preflight = Some((wanted.key, Instant::now(), found));
    }

    pub(super) async fn suits(&self, wanted: &Wanted, slot: Slot) -> Result<(), Reason> {
        let release = self.deps.documents.release(wanted.key.release)?;
        self.reads_data(&release.version, release.data_schema)?;
        self.boot(|boot| boot.probe()).await.map_err(|Trouble(why)| why)?;
        self.deps.installer.check(&release, slot).await
    }

    /// Whether an image reads what the data partition holds, the container engine's storage among it: what runs reads it, so
    /// what reads only older formats may not be put in its place.
    pub(super) fn reads_data(&self, version: &semver::Version, reads: Option<u64>) -> Result<(), Reason> {
        let have = self.deps.config.data_schema;
        match reads.filter(|reads| *reads < have) {
            None => Ok(()),
            Some(reads) => {
                let message = format!(
                    "{version} reads a data partition (the container engine's storage among it) of format {reads}, this device's is \
                     {have}, written by {}: it would not be read, or be lost; release an image that reads format {have}",
                    self.deps.config.version
                );
                Err(reason("os_incompatible", message))
            }
        }
    }

    async fn install(&mut self, journal: &Journal) -> Result<(), Trouble> {
        let Some(attempt) = &journal.attempt else { return Ok(()) };
        let slot = attempt.slot;
        let release = self.deps.documents.release(attempt.key.release)?;
        // Each time: a slot that is being written must not boot, whatever became of it meanwhile.
        self.boot(move |boot| boot.mark_unbootable(slot)).await?;
        let from = attempt.file.clone().map_or(From::Cloud, From::File);
        let work = self.work.clone();
        let set = move |now: Work| *work.lock().unwrap_or_else(PoisonError::into_inner) = now;
        set(Work::Busy { verifying: false, done: 0, total: 0 });
        let tell = set.clone();
        let told = Arc::new(move |verifying, done, total| tell(Work::Busy { verifying, done, total }));
        let cancel = CancellationToken::new();
        let work = self.deps.installer.install(release, slot, from, told, cancel.clone());
        let task = tokio::spawn(async move {
            match work.await {
                Ok(()) => set(Work::Done),
                Err(failure) => set(Work::Failed(failure)),
            }
        });
        self.worker = Some(Worker { task, cancel });
        Ok(())
    }

    pub(super) async fn stop_work(&mut self) {
        if let Some(mut worker) = self.worker.take() {
            worker.cancel.cancel();
            // It ends soon, so that no write of it comes after what follows.
            let _ = (&mut worker.task).await;
        }
        *self.work.lock().unwrap_or_else(PoisonError::into_inner) = Work::Idle;
    }

    async fn cancel(&mut self, facts: &Facts, journal: &Journal, next: Journal) -> Result<(), Trouble> {
        let ended = next.last.as_ref().and_then(|l| l.reason.clone());
        self.tell(facts, journal, ended);
        self.stop_work().await;
        if let Some(attempt) = journal.attempt.as_ref().filter(|a| !a.back) {
            let slot = attempt.slot;
            self.boot(move |boot| boot.mark_unbootable(slot)).await?;
            self.deps.installer.forget(slot).await;
        }
        self.keep(next)
    }

    async fn arm(&mut self, facts: &Facts, journal: &Journal, next: Journal) -> Result<(), Trouble> {
        let Some(attempt) = next.attempt.clone() else { return Ok(()) };
        let (slot, token) = (attempt.slot, attempt.token());
        // The factory's image has no document; its floor was looked at when it was asked for, and is at each decision.
        let release = match attempt.factory {
            Some(_) => None,
            None => Some(self.deps.documents.release(attempt.key.release)?),
        };
        if release.is_some() {
            self.deps.documents.begin(attempt.key.release)?;
        }
        self.keep(next)?;
        let there = attempt.back || attempt.whole;
        let finished = match release.filter(|_| !there) {
            Some(release) => self.deps.installer.finish(&release, slot).await,
            None => Ok(()),
        };
        let armed = match finished {
            Err(failure) => Err(failure.reason),
            Ok(()) => self.boot(move |boot| boot.arm_trial(slot, &token)).await.map_err(|Trouble(why)| why),
        };
        if let Err(why) = armed {
            tracing::warn!(code = why.code, message = why.message, "no trial was armed");
            let next = machine::not_armed(&why, journal, self.deps.device.now());
            if next.attempt.is_none() {
                self.end(attempt.key);
            }
            self.keep(next)?;
            let shown = self.journal.clone().unwrap_or_default();
            self.tell(facts, &shown, Some(why));
        }
        Ok(())
    }

    /// Restarts; returns only where that did not happen.
    async fn restart(&mut self, into_trial: bool) -> Result<(), Trouble> {
        tokio::time::sleep(FAREWELL).await;
        self.boot(move |boot| boot.reboot(into_trial)).await?;
        tokio::time::sleep(REBOOT).await;
        Err(Trouble(reason("os_reboot", "the device was told to restart and did not: restart it by hand")))
    }

    /// Its trials are over, and none was committed: it is judged as new from here on.
    fn end(&self, key: Key) {
        if let Err(why) = self.deps.documents.end(key.release) {
            tracing::warn!(
                code = why.code,
                message = why.message,
                "that a release was begun stays written down"
            );
        }
    }
}
