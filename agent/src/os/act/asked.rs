//! What people at the device ask for.

use copal_protocol::documents::Reason;

use super::{Ask, Trouble, Updater, aim};
use crate::{
    apply::status::reason,
    os::{
        journal::{Attempt, Content, Journal, Key, Parked, Stage},
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
                if journal.attempt.is_some() {
                    return refused("an update is under way; wait until it ended (copal-agent os status)");
                }
                let image = match journal.slots.get(&slot) {
                    Some(Content::Release(image)) if !image.bad => image.clone(),
                    Some(Content::Release(image)) => {
                        return refused(&format!("{} in slot {slot} was tried and undone", image.version));
                    }
                    Some(Content::Empty) => return refused(&format!("slot {slot} is empty")),
                    None => {
                        return refused(&format!(
                            "what slot {slot} holds is not known here: install a bundle instead (copal-agent os install)"
                        ));
                    }
                };
                let floor = self.deps.documents.floor();
                if image.counter < floor {
                    let message = match image.factory {
                        Some(_) => format!(
                            "nothing below counter {floor} may run here any more, and the factory's image {} vouches only for {}",
                            image.version, image.counter
                        ),
                        None => {
                            format!(
                                "{} (counter {}) is below the floor {floor}",
                                image.version, image.counter
                            )
                        }
                    };
                    return Err(reason("os_rolled_back", message));
                }
                let reads = match image.factory {
                    Some(factory) => Some(factory.data_schema),
                    None => self.deps.documents.release(image.release)?.data_schema,
                };
                self.reads_data(&image.version, reads)?;
                let whole =
                    self.boot(move |boot| boot.is_bootable(slot)).await.map_err(|Trouble(why)| why)?;
                if !whole {
                    let message = format!(
                        "{} in slot {slot} cannot boot: its first bytes are not there",
                        image.version
                    );
                    return Err(reason("os_slot_invalid", message));
                }
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
                attempt.factory = image.factory;
                attempt.stage = Stage::Ready;
                (attempt, parked)
            }
        };
        if journal.attempt.is_some() {
            self.stop_work().await;
        }
        let said = if attempt.back {
            format!("{} in slot {slot} is tried", attempt.version)
        } else {
            format!("{} is put into slot {slot} and tried", attempt.version)
        };
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
