//! Whether a trial is well: pure, from one look at the device and how it was before the reboot.
//!
//! Well means: the engine answers (where the image has one), every service that was well before is well again, the cloud
//! answers if it did before, and every executable of the hooks folder exits 0; all of that in two looks with
//! [`STEADY`] in between. What was sick before does not count, or a sick service would keep an OS fix from a device.

use std::collections::BTreeSet;

use copal_protocol::documents::{Reason, ServiceState};

use super::{
    Slot,
    journal::{Before, Journal},
    machine::Health,
};
use crate::apply::status::{AgentStatus, reason};

/// Seconds everything has to stay well.
pub const STEADY: u64 = 10;

/// One look at the device.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Look {
    /// Seconds since the trial was first seen in this boot.
    pub elapsed_s: u64,
    /// The most it may take.
    pub timeout_s: u64,
    /// The image has an engine.
    pub has_engine: bool,
    /// How the device is.
    pub now: Before,
    /// Why the hooks are not well; absent where they are, `None` inside where they have not run yet.
    pub hooks: Hooks,
    /// Seconds for which everything has been well.
    pub well_for_s: u64,
    /// Why the journal cannot be read; without it nothing is known to compare with, so nothing is well.
    pub blind: Option<Reason>,
}

/// How the hooks went.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Hooks {
    /// Not run since the rest became well.
    #[default]
    NotRun,
    /// All exited 0.
    Well,
    /// One did not.
    Sick(Reason),
}

/// What the trial of a slot is compared with. A trial that nobody remembers has nothing to be compared with, so it has to
/// reach the cloud: from there it can be mended. A slot that proved itself before has nothing to show.
#[must_use]
pub fn expected(journal: &Journal, slot: Slot) -> Before {
    let tried = journal.tried(slot);
    if let Some(before) = tried.and_then(|a| a.before.clone()) {
        return before;
    }
    let proven = tried.is_none() && journal.image(slot).is_some_and(|image| !image.bad);
    Before { cloud: !proven, ..Before::default() }
}

/// What is missing, the most telling first; empty where all but the hooks is well. The cloud comes last: it alone is no
/// fault of the release.
#[must_use]
pub fn missing(look: &Look, before: Option<&Before>) -> Vec<Reason> {
    let mut all: Vec<Reason> = look.blind.iter().cloned().collect();
    if look.has_engine && !look.now.engine {
        all.push(reason("os_unhealthy", "the container engine does not answer"));
    }
    let none = Before::default();
    let before = before.unwrap_or(&none);
    for service in before.services.difference(&look.now.services) {
        let mut why = reason("os_unhealthy", format!("service {service} was well before and is not"));
        why.service = service.rsplit('/').next().and_then(|name| name.parse().ok());
        all.push(why);
    }
    if before.cloud && !look.now.cloud {
        all.push(reason("os_cloud_unreachable", "the cloud, which was reached before, is not"));
    }
    all
}

/// Judges a trial.
#[must_use]
pub fn judge(look: &Look, before: Option<&Before>) -> Health {
    let missing = missing(look, before);
    let over = look.elapsed_s >= look.timeout_s;
    let first = missing.first().cloned().or_else(|| match &look.hooks {
        Hooks::Sick(why) => Some(why.clone()),
        Hooks::NotRun | Hooks::Well => None,
    });
    match first {
        None if look.hooks == Hooks::Well && look.well_for_s >= STEADY => Health::Well,
        None if over && look.hooks == Hooks::NotRun => {
            Health::Sick(reason("os_unhealthy", "its health checks did not end in time"))
        }
        None => Health::Going("everything is well so far".to_owned()),
        Some(why) if over && why.code == "os_cloud_unreachable" => Health::Away,
        Some(why) if over => Health::Sick(why),
        Some(why) => Health::Going(why.message),
    }
}

/// The services that are well, as `app/service`, and whether all of them are.
#[must_use]
pub fn services(status: &AgentStatus) -> (BTreeSet<String>, bool) {
    let mut well = BTreeSet::new();
    let mut all = true;
    for (app, of) in &status.apps {
        for (name, service) in &of.running {
            if matches!(
                service.state,
                ServiceState::Running | ServiceState::Healthy | ServiceState::Completed
            ) {
                well.insert(format!("{app}/{name}"));
            } else {
                all = false;
            }
        }
    }
    (well, all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn before(cloud: bool, services: &[&str]) -> Before {
        Before { cloud, engine: true, services: services.iter().map(|s| (*s).to_owned()).collect() }
    }

    fn look(now: Before) -> Look {
        Look {
            timeout_s: 300,
            has_engine: true,
            now,
            hooks: Hooks::Well,
            well_for_s: STEADY,
            ..Look::default()
        }
    }

    #[test]
    fn what_was_well_must_be_well_again_and_what_was_sick_does_not_block() {
        let was = before(true, &["a/web", "a/db"]);
        assert_eq!(judge(&look(before(true, &["a/web", "a/db", "a/new"])), Some(&was)), Health::Well);
        assert_eq!(judge(&look(before(true, &[])), Some(&before(true, &[]))), Health::Well);
        let sick = look(before(true, &["a/web"]));
        assert!(matches!(judge(&sick, Some(&was)), Health::Going(_)));
        let late = Look { elapsed_s: 300, ..sick };
        let Health::Sick(why) = judge(&late, Some(&was)) else { panic!("not sick") };
        assert_eq!((why.code.as_str(), why.service.unwrap().as_str()), ("os_unhealthy", "db"));
    }

    #[test]
    fn a_cloud_that_is_away_is_told_apart_from_a_sick_release() {
        let was = before(true, &["a/web"]);
        let away = Look { elapsed_s: 300, ..look(before(false, &["a/web"])) };
        assert_eq!(judge(&away, Some(&was)), Health::Away);
        let both = Look { elapsed_s: 300, ..look(before(false, &[])) };
        assert!(matches!(judge(&both, Some(&was)), Health::Sick(_)));
        assert_eq!(judge(&look(before(false, &["a/web"])), Some(&before(false, &["a/web"]))), Health::Well);
    }

    #[test]
    fn well_for_a_moment_is_not_well() {
        let brief = Look { well_for_s: STEADY - 1, ..look(before(true, &[])) };
        assert!(matches!(judge(&brief, None), Health::Going(_)));
        let not_run = Look { hooks: Hooks::NotRun, ..look(before(true, &[])) };
        assert!(matches!(judge(&not_run, None), Health::Going(_)));
        assert!(matches!(judge(&Look { elapsed_s: 300, ..not_run }, None), Health::Sick(_)));
    }

    #[test]
    fn an_engine_counts_only_where_the_image_has_one() {
        let without = Before { engine: false, ..before(true, &[]) };
        assert!(matches!(judge(&look(without.clone()), None), Health::Going(_)));
        assert_eq!(judge(&Look { has_engine: false, ..look(without) }, None), Health::Well);
    }

    #[test]
    fn a_trial_that_nobody_remembers_has_to_reach_the_cloud_unless_its_slot_proved_itself_before() {
        use crate::os::journal::{Attempt, Content, Key, Stage};
        let key = Key { release: copal_protocol::ids::Sha256Hex::of(b"r"), retry: 0 };
        let attempt = Attempt::new(key, semver::Version::new(2, 0, 0), 7, Slot::B);
        let offline = look(before(false, &[]));
        let lost = expected(&Journal::default(), Slot::B);
        assert!(matches!(judge(&offline, Some(&lost)), Health::Going(_)));
        assert_eq!(judge(&Look { elapsed_s: 300, ..offline.clone() }, Some(&lost)), Health::Away);
        let mut journal = Journal::default();
        journal.slots.insert(Slot::B, Content::Release(attempt.image()));
        assert_eq!(judge(&offline, Some(&expected(&journal, Slot::B))), Health::Well);
        // What another attempt saw is none of this slot's.
        let armed = Attempt { stage: Stage::Armed, before: Some(before(false, &["a/web"])), ..attempt };
        journal.attempt = Some(armed);
        assert_eq!(expected(&journal, Slot::B), before(false, &["a/web"]));
        assert_eq!(expected(&journal, Slot::A), Before { cloud: true, ..Before::default() });
    }

    #[test]
    fn with_a_journal_that_cannot_be_read_nothing_becomes_well() {
        let blind = Some(reason("E_STATE_IO", "cannot read the journal"));
        let unread = Look { blind, ..look(before(true, &[])) };
        assert!(matches!(judge(&unread, None), Health::Going(_)));
        assert!(matches!(judge(&Look { elapsed_s: 300, ..unread }, None), Health::Sick(_)));
    }

    #[test]
    fn a_hook_that_fails_is_named() {
        let sick = Hooks::Sick(reason("os_unhealthy", "health check 10-modem exited with 3"));
        let late = Look { elapsed_s: 300, hooks: sick, ..look(before(true, &[])) };
        let Health::Sick(why) = judge(&late, None) else { panic!("not sick") };
        assert!(why.message.contains("10-modem"));
    }
}
