//! What people at the device ask for.

use copal_protocol::documents::Reason;

use super::{Ask, Trouble, Updater, aim};
use crate::{
    apply::status::reason,
    os::{
        journal::{Attempt, Journal, Key, Parked, Stage},
        machine::Aim,
        told::SlotsStatus,
    },
};

impl Updater {
    /// A person at the device asks; the device's own floor and the running slot bind as ever.
    pub(super) async fn asked(&mut self, ask: Ask) -> Result<String, Reason> {
        let refused = |message: &str| Err(reason("os_cancelled", message));
        let booted = self.boot(|boot| boot.active()).await.map_err(|Trouble(why)| why);
        if ask == Ask::Status {
            let host = self.lines.status.borrow().host.clone();
            let journal = self.journal.clone().unwrap_or_default();
            let floor = self.deps.documents.floor();
            let told = SlotsStatus::new(&self.deps.config, floor, booted, journal, host);
            return serde_json::to_string(&told).map_err(|e| reason("os_cancelled", e.to_string()));
        }
        let booted = booted?;
        if let Some(why) = &self.blind {
            return Err(why.clone());
        }
        let Some(journal) = self.journal.clone() else {
            return refused("the journal of OS updates is not readable");
        };
        if booted.trial || booted.armed {
            return refused("a trial is under way; wait until it ended (copal-agent os status)");
        }
        let slot = booted.slot.other();
        let target = self.lines.targets.borrow().clone();
        let (attempt, parked) = match ask {
            Ask::Install { wanted, file } => {
                if journal.image(booted.slot).is_some_and(|i| i.release == wanted.key.release) {
                    return refused("this release runs already");
                }
                self.suits(&wanted, slot).await?;
                let mut attempt = Attempt::new(wanted.key, wanted.version, wanted.counter, slot);
                attempt.file = Some(file);
                (attempt, journal.parked.clone())
            }
            Ask::Status | Ask::Rollback => {
                let Some(image) =
                    journal.image(slot).filter(|i| !i.bad && journal.attempt.is_none()).cloned()
                else {
                    return refused("the other slot holds no release that is known to be whole");
                };
                let floor = self.deps.documents.floor();
                if image.counter < floor {
                    let message =
                        format!("{} (counter {}) is below the floor {floor}", image.version, image.counter);
                    return Err(reason("os_rolled_back", message));
                }
                self.deps.documents.release(image.release)?;
                let why = reason(
                    "os_rolled_back",
                    format!("a person at the device went back to {}", image.version),
                );
                let parked = match aim(target.as_deref()) {
                    Aim::Release(wanted) => Some(Parked { key: wanted.key, reason: why }),
                    _ => journal.parked.clone(),
                };
                // Each time counts anew: a person asks.
                let key = Key { release: image.release, retry: self.deps.device.now() };
                let mut attempt = Attempt::new(key, image.version, image.counter, slot);
                attempt.back = true;
                attempt.stage = Stage::Ready;
                (attempt, parked)
            }
        };
        if journal.attempt.is_some() {
            self.stop_work().await;
        }
        let said = format!("{} is put into slot {slot} and tried", attempt.version);
        let attempt = Attempt { by_hand: true, ..attempt };
        let mut next = Journal { parked, ..journal };
        if !attempt.back {
            next.slots.remove(&slot);
        }
        next.attempt = Some(attempt);
        self.keep(next).map_err(|Trouble(why)| why)?;
        Ok(said)
    }
}
