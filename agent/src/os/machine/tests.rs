//! What is decided in which situation, as a table that people review.

use copal_protocol::{documents::Reason, ids::Sha256Hex};

use super::{Aim, Facts, Failure, Gate, Health, Step, Wanted, Work, after, decide};
use crate::{
    apply::status::reason,
    os::{
        Slot,
        boot::Booted,
        journal::{Attempt, Before, Content, Image, Journal, Key, Parked, Pause, Stage, TrialBoot, Verdict},
    },
};

fn key(name: &str, retry: u64) -> Key {
    Key { release: Sha256Hex::of(name.as_bytes()), retry }
}

fn wanted(name: &str) -> Aim {
    Aim::Release(Wanted { key: key(name, 0), version: semver::Version::new(2, 0, 0), counter: 20 })
}

fn image(name: &str, counter: u64) -> Content {
    let version = semver::Version::new(counter, 0, 0);
    Content::Release(Image {
        release: Sha256Hex::of(name.as_bytes()),
        version,
        counter,
        bad: false,
        gone: false,
        factory: None,
    })
}

fn attempt(stage: Stage) -> Attempt {
    Attempt { stage, ..Attempt::new(key("new", 0), semver::Version::new(2, 0, 0), 20, Slot::B) }
}

/// Slot a runs release `old`, the cloud wants `new`.
fn facts() -> Facts {
    Facts {
        boot_id: "now".to_owned(),
        uptime_s: 100,
        booted: Ok(Booted::settled(Slot::A)),
        version: semver::Version::new(1, 0, 0),
        own_floor: 0,
        data_schema: 1,
        trial_limit: 3,
        one_shot: false,
        floor: 0,
        works: true,
        told: true,
        aim: wanted("new"),
        may_install: true,
        online: true,
        same: None,
        preflight: None,
        work: Work::Idle,
        gate: Gate::Open,
        settled: true,
        locks: Vec::new(),
        health: Health::Going("nothing yet".to_owned()),
        way_back: true,
        blind: None,
        pause_left: 0,
        now_well: Before::default(),
    }
}

fn journal(attempt: Option<Attempt>) -> Journal {
    Journal {
        slots: [(Slot::A, image("old", 10)), (Slot::B, Content::Empty)].into(),
        attempt,
        ..Journal::default()
    }
}

fn booted(facts: &mut Facts, change: impl FnOnce(&mut Booted)) {
    if let Ok(booted) = &mut facts.booted {
        change(booted);
    }
}

fn trial(facts: &mut Facts) {
    booted(facts, |b| (b.slot, b.trial, b.tries) = (Slot::B, true, 1));
}

/// Back in slot a after `arms` trials of `new`.
fn back(facts: &mut Facts, arms: u32) {
    let mut first = [0; 8];
    first.copy_from_slice(&key("new", 0).release.as_bytes()[..8]);
    booted(facts, |b| (b.arms, b.arms_for, b.fell_back) = (arms, Some(first), true));
}

fn trials(ids: &[&str]) -> Vec<TrialBoot> {
    ids.iter().map(|id| TrialBoot { boot_id: (*id).to_owned(), uptime_s: 20 }).collect()
}

fn said(step: &Step) -> String {
    let short = |why: &Reason| format!("{}: {}", why.code, why.message);
    match step {
        Step::Wait(why) => format!("wait, {}", short(why)),
        Step::Judge(v) => {
            format!("judge, {}{}", if v.again { "try again later, " } else { "" }, short(&v.reason))
        }
        Step::Conclude(c) => format!("conclude, {:?}, {}", c.then, short(&c.reason)),
        Step::Begin(a) => format!("begin in slot {}", a.slot),
        Step::Failed(f) => format!("failed, {}", short(&f.reason)),
        Step::Know(i) => format!("know {} with floor {}", i.version, i.counter),
        Step::Park(p) => format!("park, {}", short(&p.reason)),
        Step::Keep(why) => format!("keep, {}", short(why)),
        other => format!("{other:?}"),
    }
}

fn bad(gone: bool) -> Content {
    Content::Release(Image { bad: true, gone, ..attempt(Stage::Ready).image() })
}

/// Slot a runs the factory's image.
fn from_factory(facts: &mut Facts, journal: &mut Journal) {
    let image = Image::of_factory(Slot::A, &facts.version, facts.own_floor, facts.data_schema);
    journal.slots = [(Slot::A, Content::Release(image))].into();
}

fn going_back(_: &mut Facts, journal: &mut Journal) {
    journal.attempt = Some(Attempt { by_hand: true, back: true, ..attempt(Stage::Ready) });
}

fn unread() -> Option<Reason> {
    Some(reason("E_STATE_IO", "the journal cannot be read"))
}

/// A line of the table.
type Line = (&'static str, fn(&mut Facts, &mut Journal));

const TABLE: &[Line] = &[
    ("a new target", |_, _| {}),
    ("a new target that fits", |f, _| f.preflight = Some(Ok(()))),
    ("a new target that does not fit", |f, _| f.preflight = Some(Err(reason("os_no_space", "too large")))),
    ("a new target the cloud did not vouch for", |f, _| f.may_install = false),
    ("the target runs", |f, _| f.aim = wanted("old")),
    ("no target", |f, _| f.aim = Aim::None),
    ("the target is not known", |f, _| f.aim = Aim::Unknown),
    ("the bootloader was not told that this system works", |f, _| f.told = false),
    ("it does not work yet", |f, _| (f.told, f.works) = (false, false)),
    ("the boot state cannot be read", |f, _| f.booted = Err(reason("os_root_mismatch", "who knows"))),
    ("another slot runs than is committed", |f, _| booted(f, |b| b.committed = Slot::B)),
    ("something is armed and nobody knows why", |f, _| booted(f, |b| b.armed = true)),
    ("the other slot is below the floor", |f, j| {
        f.floor = 10;
        j.slots.insert(Slot::B, image("older", 9));
    }),
    ("the other slot may be below the floor", |f, j| {
        f.floor = 10;
        j.slots.remove(&Slot::B);
    }),
    ("the factory's image, not known yet", |_, j| j.slots.clear()),
    ("the factory's image, written anew by hand", |f, j| {
        from_factory(f, j);
        f.own_floor = 3;
    }),
    ("the factory's image, of another version", from_factory),
    ("the factory's image, of the target's version", |f, j| {
        f.version = semver::Version::new(2, 0, 0);
        from_factory(f, j);
    }),
    ("it is the target", |f, j| {
        f.version = semver::Version::new(2, 0, 0);
        from_factory(f, j);
        f.same = Some(true);
    }),
    ("it is not", |f, j| {
        f.version = semver::Version::new(2, 0, 0);
        from_factory(f, j);
        f.same = Some(false);
    }),
    ("the factory's image in the other slot is not below the floor", |f, j| {
        f.floor = 10;
        j.slots.insert(Slot::B, Content::Release(Image::of_factory(Slot::B, &f.version, 10, 1)));
    }),
    ("and now it is", |f, j| {
        f.floor = 11;
        j.slots.insert(Slot::B, Content::Release(Image::of_factory(Slot::B, &f.version, 10, 1)));
    }),
    ("a person goes back", going_back),
    ("and the floor rose meanwhile", |f, j| {
        going_back(f, j);
        f.floor = 21;
    }),
    ("begun", |_, j| j.attempt = Some(attempt(Stage::Installing))),
    ("at work", |f, j| {
        j.attempt = Some(attempt(Stage::Installing));
        f.work = Work::Busy { verifying: false, done: 1, total: 2 };
    }),
    ("reading back", |f, j| {
        j.attempt = Some(attempt(Stage::Installing));
        f.work = Work::Busy { verifying: true, done: 1, total: 2 };
    }),
    ("written", |f, j| {
        j.attempt = Some(attempt(Stage::Installing));
        f.work = Work::Done;
    }),
    ("not written", |f, j| {
        j.attempt = Some(attempt(Stage::Installing));
        f.work = Work::Failed(Failure { reason: reason("os_write", "no"), passing: false });
    }),
    ("not written a moment ago", |f, j| {
        f.pause_left = 300;
        let pause = Pause { since: 1000, until: 1300, reason: reason("os_write", "no") };
        j.attempt = Some(Attempt { pause: Some(pause), ..attempt(Stage::Installing) });
    }),
    ("the target went away meanwhile", |f, j| {
        j.attempt = Some(attempt(Stage::Installing));
        f.aim = Aim::None;
    }),
    ("the target went back to what runs", |f, j| {
        j.attempt = Some(attempt(Stage::Ready));
        f.aim = wanted("old");
    }),
    ("the target became another", |f, j| {
        j.attempt = Some(attempt(Stage::Ready));
        f.aim = wanted("newer");
    }),
    ("installed", |_, j| j.attempt = Some(attempt(Stage::Ready))),
    ("installed, outside the window", |f, j| {
        j.attempt = Some(attempt(Stage::Ready));
        f.gate = Gate::Opens(3601);
    }),
    ("installed, window and no clock", |f, j| {
        j.attempt = Some(attempt(Stage::Ready));
        f.gate = Gate::NoClock;
    }),
    ("installed, a service holds its lock", |f, j| {
        j.attempt = Some(attempt(Stage::Ready));
        f.locks = vec!["web".to_owned(), "db".to_owned()];
    }),
    ("installed, just started", |f, j| {
        j.attempt = Some(attempt(Stage::Ready));
        f.settled = false;
    }),
    ("installed, tried without the cloud, which is away", |f, j| {
        j.attempt = Some(Attempt { inconclusive: 1, ..attempt(Stage::Ready) });
        f.online = false;
    }),
    ("armed", |f, j| {
        j.attempt = Some(attempt(Stage::Armed));
        booted(f, |b| b.armed = true);
    }),
    ("armed, and the target went away", |f, j| {
        j.attempt = Some(attempt(Stage::Armed));
        booted(f, |b| b.armed = true);
        f.aim = Aim::None;
    }),
    ("power cut before the arming took effect", |_, j| j.attempt = Some(attempt(Stage::Armed))),
    ("first look in the trial", |f, j| {
        trial(f);
        j.attempt = Some(attempt(Stage::Armed));
    }),
    ("in the trial", |f, j| {
        trial(f);
        j.attempt = Some(Attempt { trials: trials(&["now"]), ..attempt(Stage::Armed) });
    }),
    ("the trial is well", |f, j| {
        trial(f);
        f.health = Health::Well;
        j.attempt = Some(Attempt { trials: trials(&["now"]), ..attempt(Stage::Armed) });
    }),
    ("the trial is sick", |f, j| {
        trial(f);
        f.health = Health::Sick(reason("os_unhealthy", "service web was well before and is not"));
        j.attempt = Some(Attempt { trials: trials(&["now"]), ..attempt(Stage::Armed) });
    }),
    ("the trial lacks the cloud alone", |f, j| {
        trial(f);
        f.health = Health::Away;
        j.attempt = Some(Attempt { trials: trials(&["now"]), ..attempt(Stage::Armed) });
    }),
    ("the release on trial was revoked", |f, j| {
        trial(f);
        f.health = Health::Well;
        f.aim = Aim::Refused("E_RELEASE_REVOKED".to_owned());
        j.attempt = Some(Attempt { trials: trials(&["now"]), ..attempt(Stage::Armed) });
    }),
    ("judged, not gone back yet", |f, j| {
        trial(f);
        f.health = Health::Well;
        let verdict = Verdict { again: false, reason: reason("os_unhealthy", "sick") };
        j.attempt =
            Some(Attempt { verdict: Some(verdict), trials: trials(&["now"]), ..attempt(Stage::Armed) });
    }),
    ("a trial nobody remembers, well", |f, _| {
        trial(f);
        f.health = Health::Well;
    }),
    ("a trial nobody remembers, sick", |f, _| {
        trial(f);
        f.health = Health::Sick(reason("os_unhealthy", "no"));
    }),
    ("the committed slot gave way, and held the target", |f, j| {
        trial(f);
        booted(f, |b| b.fell_why = Some("sick".to_owned()));
        f.aim = wanted("old");
        j.slots.insert(Slot::B, image("older", 9));
    }),
    ("the committed slot gave way to one that failed its trial", |f, j| {
        trial(f);
        booted(f, |b| b.fell_why = Some("sick".to_owned()));
        (f.health, f.aim) = (Health::Well, Aim::None);
        j.slots.insert(Slot::B, bad(false));
    }),
    ("the other slot failed its trial, this one is not called well yet", |f, j| {
        (f.told, f.works, f.aim) = (false, false, Aim::None);
        j.slots.insert(Slot::B, bad(false));
    }),
    ("the other slot failed its trial, this one is called well", |f, j| {
        f.aim = Aim::None;
        j.slots.insert(Slot::B, bad(false));
    }),
    ("it was made unbootable", |f, j| {
        f.aim = Aim::None;
        j.slots.insert(Slot::B, bad(true));
    }),
    ("sick on trial after the boot state was lost, and no other slot boots", |f, _| {
        trial(f);
        booted(f, |b| b.fell_why = Some("lost".to_owned()));
        f.way_back = false;
        f.health = Health::Away;
    }),
    ("well on trial, and no other slot boots", |f, _| {
        trial(f);
        f.way_back = false;
        f.health = Health::Well;
    }),
    ("a release on trial is sick, and no other slot boots", |f, j| {
        trial(f);
        f.way_back = false;
        f.health = Health::Sick(reason("os_unhealthy", "service web was well before and is not"));
        j.attempt = Some(Attempt { trials: trials(&["now"]), ..attempt(Stage::Armed) });
    }),
    ("the journal cannot be read, and the bootloader was not told that this system works", |f, j| {
        (f.told, f.blind) = (false, unread());
        *j = Journal::default();
    }),
    ("the journal cannot be read", |f, j| {
        f.blind = unread();
        booted(f, |b| b.armed = true);
        *j = Journal::default();
    }),
    ("the journal cannot be read in a trial that is well", |f, j| {
        trial(f);
        (f.health, f.blind) = (Health::Well, unread());
        *j = Journal::default();
    }),
    ("the journal cannot be read until the trial's time is over", |f, j| {
        trial(f);
        (f.health, f.blind) = (Health::Sick(unread().unwrap()), unread());
        *j = Journal::default();
    }),
    ("trusted by the bootloader after the boot state was lost, not by a commit", |f, j| {
        booted(f, |b| (b.slot, b.committed, b.fell_why) = (Slot::B, Slot::B, Some("lost".to_owned())));
        f.told = false;
        j.attempt = Some(Attempt { trials: trials(&["now"]), ..attempt(Stage::Armed) });
    }),
    ("the same, and it is well", |f, j| {
        booted(f, |b| (b.slot, b.committed, b.fell_why) = (Slot::B, Slot::B, Some("lost".to_owned())));
        (f.told, f.health) = (false, Health::Well);
        j.attempt = Some(Attempt { trials: trials(&["now"]), ..attempt(Stage::Armed) });
    }),
    ("committed, not settled", |f, j| {
        booted(f, |b| (b.slot, b.committed) = (Slot::B, Slot::B));
        j.attempt = Some(Attempt { trials: trials(&["now"]), ..attempt(Stage::Armed) });
    }),
    ("back, judged sick", |f, j| {
        back(f, 1);
        let verdict = Verdict { again: false, reason: reason("os_unhealthy", "sick") };
        j.attempt =
            Some(Attempt { verdict: Some(verdict), trials: trials(&["then"]), ..attempt(Stage::Armed) });
    }),
    ("back, the cloud was away", |f, j| {
        back(f, 1);
        let verdict = Verdict { again: true, reason: reason("os_cloud_unreachable", "away") };
        j.attempt =
            Some(Attempt { verdict: Some(verdict), trials: trials(&["then"]), ..attempt(Stage::Armed) });
    }),
    ("back, the cloud was away for the third time", |f, j| {
        back(f, 3);
        let verdict = Verdict { again: true, reason: reason("os_cloud_unreachable", "away") };
        j.attempt = Some(Attempt { verdict: Some(verdict), inconclusive: 2, ..attempt(Stage::Armed) });
    }),
    ("back, nothing was seen of the trial", |f, j| {
        back(f, 1);
        j.attempt = Some(attempt(Stage::Armed));
    }),
    ("back, the bootloader tried as often as it may", |f, j| {
        back(f, 1);
        booted(f, |b| b.fell_why = Some("tries".to_owned()));
        j.attempt = Some(attempt(Stage::Armed));
    }),
    ("back, the firmware gives a trial one boot, whatever ended it", |f, j| {
        back(f, 1);
        f.one_shot = true;
        booted(f, |b| b.fell_why = Some("tries".to_owned()));
        j.attempt = Some(attempt(Stage::Armed));
    }),
    ("back, the trial was seen once", |f, j| {
        back(f, 1);
        j.attempt = Some(Attempt { trials: trials(&["then"]), ..attempt(Stage::Armed) });
    }),
    ("back, the trial was seen twice", |f, j| {
        back(f, 1);
        j.attempt = Some(Attempt { trials: trials(&["then", "later"]), ..attempt(Stage::Armed) });
    }),
    ("back, the third trial was seen twice", |f, j| {
        back(f, 3);
        j.attempt = Some(Attempt { trials: trials(&["then", "later"]), ..attempt(Stage::Armed) });
    }),
    ("parked", |_, j| j.parked = Some(Parked { key: key("new", 0), reason: reason("os_unhealthy", "sick") })),
    ("parked, a person asks again", |f, j| {
        j.parked = Some(Parked { key: key("new", 0), reason: reason("os_unhealthy", "sick") });
        f.aim =
            Aim::Release(Wanted { key: key("new", 1), version: semver::Version::new(2, 0, 0), counter: 20 });
    }),
    ("by hand, while the cloud wants another", |f, j| {
        j.attempt = Some(Attempt { by_hand: true, ..attempt(Stage::Ready) });
        f.aim = wanted("other");
    }),
];

#[test]
fn what_is_decided_in_each_situation() {
    let mut text = String::new();
    for (name, change) in TABLE {
        let (mut facts, mut journal) = (facts(), journal(None));
        change(&mut facts, &mut journal);
        text.push_str(&format!("{name}\n    {}\n", said(&decide(&facts, &journal))));
    }
    insta::assert_snapshot!(text);
}

#[test]
fn trials_without_the_cloud_come_at_growing_distances_up_to_a_day() {
    let mut journal = journal(Some(attempt(Stage::Armed)));
    let mut waits = Vec::new();
    for n in 0..7 {
        let mut facts = facts();
        back(&mut facts, 1 + n % 3);
        let verdict = Verdict { again: true, reason: reason("os_cloud_unreachable", "away") };
        let a = journal.attempt.as_mut().unwrap();
        (a.stage, a.verdict, a.trials) = (Stage::Armed, Some(verdict), trials(&["then"]));
        let token = a.token();
        booted(&mut facts, |b| b.arms_for = Some(token.as_bytes()[..8].try_into().unwrap()));
        let step = decide(&facts, &journal);
        journal = after(&step, &facts, &journal, 0);
        waits.push(journal.attempt.as_ref().unwrap().pause.as_ref().unwrap().until / 3600);
    }
    assert_eq!(waits, [1, 2, 24, 8, 16, 24, 24]);
    assert_eq!(journal.parked, None);
}
