use std::time::Duration;

use copal_protocol::{
    channel::{Class, Stored},
    telemetry::{Gauge, Measured, Summary, Telemetry},
};
use serde_json::{Value, json};

use super::{
    notes::{Note, Notes},
    outbox::Outbox,
    sim::{Cloud, Memory},
    *,
};
use crate::clock::Clock;

const SMALL: u64 = 160 << 10;

fn event(n: u64) -> Value {
    json!({"kind": "service", "code": "exited", "message": "x".repeat(100), "data": {"n": n}, "up": n})
}

fn open(memory: &Memory, boot: &str, most: u64) -> Spool {
    Spool::open(Box::new(memory.clone()), boot, most)
}

/// On a channel to a cloud that has so many of its events.
fn connected(memory: &Memory, notes: &Notes, boot: &str, most: u64, stored: u64) -> Outbox {
    let outbox = Outbox::new(open(memory, boot, most), notes.clone(), boot);
    outbox.welcomed(Some(stored));
    outbox
}

/// Sends until nothing waits.
fn drain(spool: &mut Spool, cloud: &mut Cloud) {
    let mut turns = 0;
    while let Some(batch) = spool.batch() {
        let up_to = cloud.take(&batch);
        spool.stored(up_to);
        turns += 1;
        assert!(turns < 10_000, "it does not come to an end");
    }
}

fn numbers(cloud: &Cloud) -> Vec<u64> {
    cloud.events.values().map(|(_, e)| e["data"]["n"].as_u64().unwrap()).collect()
}

#[test]
fn events_are_numbered_over_restarts_and_boots_and_nothing_is_written_when_nothing_happens() {
    let memory = Memory::default();
    let mut cloud = Cloud::default();
    let mut n = 0;
    for boot in ["a", "a", "b", "c"] {
        let mut spool = open(&memory, boot, SMALL);
        for _ in 0..3 {
            spool.append(&[event(n), event(n + 1)], 0).unwrap();
            n += 2;
        }
        if boot != "b" {
            drain(&mut spool, &mut cloud);
        }
    }
    assert_eq!(numbers(&cloud), (0..n).collect::<Vec<_>>());
    assert_eq!(cloud.events.keys().copied().collect::<Vec<_>>(), (1..=n).collect::<Vec<_>>());
    let boots: Vec<&str> = cloud.events.values().map(|(boot, _)| boot.as_str()).collect();
    assert_eq!((boots[11], boots[12], boots[18], cloud.gaps), ("a", "b", "c", 0));
    let writes = memory.0.lock().unwrap().writes;
    for _ in 0..5 {
        let mut spool = open(&memory, "c", SMALL);
        // As a welcome says it.
        spool.stored(cloud.up_to);
        assert_eq!((spool.waiting(), spool.batch()), (0, None));
        drain(&mut spool, &mut cloud);
    }
    assert_eq!(memory.0.lock().unwrap().writes, writes);
    assert_eq!(numbers(&cloud).len() as u64, n, "none twice");
}

/// Appends, sends, restarts and overflows; gives the events that were told to be kept, until the power went.
fn script(memory: &Memory, cloud: &mut Cloud) -> Vec<u64> {
    let mut kept = Vec::new();
    let mut n = 0;
    for round in 0..4_u64 {
        let mut spool = open(memory, &format!("boot {round}"), SMALL);
        for step in 0..6_u64 {
            let events: Vec<Value> = (n..n + 1 + step % 3).map(event).collect();
            let numbers = n..n + events.len() as u64;
            n = numbers.end;
            if spool.append(&events, 0).is_err() {
                return kept;
            }
            kept.extend(numbers);
            if step == 3 && round != 1 {
                drain(&mut spool, cloud);
            }
        }
    }
    kept
}

#[test]
fn whatever_instant_the_power_goes_what_was_kept_comes_once_and_nothing_twice() {
    let mut steps = 0;
    loop {
        let mut ended = true;
        for torn in [0, 1, 40, 150, 300, 10_000] {
            let memory = Memory::default();
            memory.0.lock().unwrap().cut = Some((steps, torn));
            let mut cloud = Cloud::default();
            let kept = script(&memory, &mut cloud);
            ended &= memory.0.lock().unwrap().cut != Some((0, 0));
            // The power is back.
            memory.0.lock().unwrap().cut = None;
            let mut spool = open(&memory, "after", SMALL);
            spool.append(&[event(9_999)], 0).unwrap();
            drain(&mut spool, &mut cloud);
            let mut came = numbers(&cloud);
            assert_eq!(came.pop(), Some(9_999), "what happens after is told, cut {steps} {torn}");
            // What was cut off in its write may be there, or not; all before it is.
            assert!(came.starts_with(&kept), "cut {steps} {torn}: {kept:?} came as {came:?}");
            assert!(came.windows(2).all(|w| w[0] < w[1]), "cut {steps} {torn}: {came:?}");
        }
        if ended {
            break;
        }
        steps += 1;
    }
    assert!(steps > 20, "the script takes {steps} steps");
}

#[test]
fn a_disk_that_is_full_for_a_while_costs_nothing_and_one_that_stays_full_is_counted() {
    let memory = Memory::default();
    let notes = Notes::new(Clock::new(|| 4_000_000_000), || 1);
    let outbox = connected(&memory, &notes, "a", SMALL, 0);
    let note =
        |n: u64| notes.note_at(Note::new("service", "exited", "").with("n", n), Duration::from_secs(n * 400));
    note(0);
    outbox.keep(&notes).unwrap();
    memory.0.lock().unwrap().full = true;
    for n in 1..10 {
        note(n);
        assert!(outbox.keep(&notes).is_err());
    }
    memory.0.lock().unwrap().full = false;
    outbox.keep(&notes).unwrap();
    memory.0.lock().unwrap().full = true;
    for n in 10..310 {
        note(n);
    }
    assert!(outbox.keep(&notes).is_err());
    memory.0.lock().unwrap().full = false;
    outbox.keep(&notes).unwrap();
    let mut cloud = Cloud::default();
    while let Some(batch) = outbox.next(true) {
        let up_to = cloud.take(&batch);
        outbox.stored(Stored { class: Class::Event, up_to });
    }
    let came = numbers(&cloud);
    assert_eq!(came[..10], (0..10).collect::<Vec<_>>()[..]);
    assert_eq!(came[10..], (54..310).collect::<Vec<_>>()[..], "the newest 256");
    assert_eq!(cloud.gaps, 44);
}

#[test]
fn a_week_without_a_cloud_keeps_the_newest_events_up_to_the_bound_and_counts_the_others() {
    // A week, an event every 20 s, and a summary every hour, by a clock of the test's.
    let memory = Memory::default();
    let notes = Notes::new(Clock::new(|| 4_000_000_000), || 1);
    let outbox = connected(&memory, &notes, "a", BYTES, 0);
    let total = 7 * 24 * 180_u64;
    for n in 0..total {
        let now = Duration::from_secs(n * 20);
        // Of many services, so that none comes too often.
        let service = format!("service-{}", n % 100);
        let note =
            Note::new("service", "exited", &"sentence ".repeat(12)).with("service", service).with("n", n);
        notes.note_at(note, now);
        if n % 6 == 5 {
            outbox.keep(&notes).unwrap();
        }
        if n % 180 == 0 {
            outbox.telemetry(&Telemetry::Metrics(Summary { at: Some(n / 180), ..Summary::default() }));
        }
    }
    let on_disk: usize = memory.0.lock().unwrap().files.values().map(Vec::len).sum();
    assert!(on_disk as u64 <= BYTES, "{on_disk} bytes");
    assert!(on_disk as u64 > BYTES / 100 * 95, "up to the bound: {on_disk} bytes");
    // The link is back, after a restart.
    let outbox = {
        drop(outbox);
        connected(&memory, &notes, "b", BYTES, 0)
    };
    let mut cloud = Cloud::default();
    while let Some(batch) = outbox.next(true) {
        assert_eq!(batch.class, Class::Event, "telemetry was in memory");
        let up_to = cloud.take(&batch);
        outbox.stored(Stored { class: Class::Event, up_to });
    }
    let came = numbers(&cloud);
    assert!(came.len() > 10_000, "{}", came.len());
    assert_eq!(came.len() as u64 + cloud.gaps, total, "what is gone is counted");
    let newest: Vec<u64> = (cloud.gaps..total).collect();
    assert_eq!(came, newest, "the oldest went");
    let left: usize = memory.0.lock().unwrap().files.values().map(Vec::len).sum();
    assert!(left <= 128 << 10, "what is stored is forgotten: {left} bytes are left");
}

#[test]
fn of_telemetry_the_newest_stays_and_the_rest_is_counted() {
    let notes = Notes::new(Clock::default(), || 1);
    let outbox = connected(&Memory::default(), &notes, "a", SMALL, 0);
    for at in 0..100 {
        outbox.telemetry(&Telemetry::Metrics(Summary { at: Some(at), ..Summary::default() }));
    }
    assert!(outbox.next(false).is_none(), "no room in the budget");
    let batch = outbox.next(true).unwrap();
    assert_eq!(
        (batch.class, batch.first_seq, batch.dropped, batch.items.len()),
        (Class::Telemetry, 77, 76, 8)
    );
    assert_eq!(batch.items[0]["at"], 76);
    assert!(outbox.next(true).is_none(), "one at a time");
    outbox.restart();
    assert!(outbox.next(true).is_none(), "before the welcome");
    outbox.welcomed(Some(0));
    assert_eq!(outbox.next(true).unwrap(), batch, "again on a new channel");
    outbox.stored(Stored { class: Class::Telemetry, up_to: 84 });
    let batch = outbox.next(true).unwrap();
    assert_eq!((batch.first_seq, batch.dropped), (85, 0));
}

#[test]
fn a_cloud_that_has_less_or_more_than_the_device_knows_is_agreed_with() {
    let memory = Memory::default();
    let mut spool = open(&memory, "a", SMALL);
    let mut cloud = Cloud::default();
    spool.append(&(0..10).map(event).collect::<Vec<_>>(), 0).unwrap();
    drain(&mut spool, &mut cloud);
    // Back from a back-up: it has three of them; the others are on the device still.
    cloud.up_to = 3;
    cloud.events.retain(|seq, _| *seq <= 3);
    spool.stored(3);
    drain(&mut spool, &mut cloud);
    assert_eq!((numbers(&cloud), cloud.gaps), ((0..10).collect(), 0));
    // What the device has no more is a gap, and does not hold up what follows.
    let mut older = Cloud::default();
    for n in 10..2_000 {
        spool.append(&[event(n)], 0).unwrap();
        drain(&mut spool, &mut cloud);
    }
    spool.append(&[event(2_000)], 0).unwrap();
    drain(&mut spool, &mut older);
    assert_eq!(older.events.len() as u64 + older.gaps, 2_001);
    // The device's state was lost; the cloud knows higher numbers.
    let memory = Memory::default();
    let mut spool = open(&memory, "b", SMALL);
    spool.append(&[event(5_000), event(5_001)], 0).unwrap();
    spool.stored(cloud.up_to);
    drain(&mut spool, &mut cloud);
    spool.append(&[event(5_002)], 0).unwrap();
    let mut spool = open(&memory, "b", SMALL);
    drain(&mut spool, &mut cloud);
    assert_eq!(numbers(&cloud)[2_000..], [5_000, 5_001, 5_002]);
}

#[test]
fn a_cloud_that_never_takes_anything_is_not_asked_in_a_circle() {
    let notes = Notes::default();
    let outbox = connected(&Memory::default(), &notes, "a", SMALL, 0);
    notes.note(Note::new("boot", "asked", "x"));
    outbox.keep(&notes).unwrap();
    let mut sent = 0;
    while outbox.next(true).is_some() {
        sent += 1;
        outbox.stored(Stored { class: Class::Event, up_to: 0 });
        assert!(sent < 10);
    }
    outbox.restart();
    assert!(outbox.next(true).is_none(), "before the welcome");
    outbox.welcomed(Some(0));
    assert!(outbox.next(true).is_some(), "the next channel has another try");
}

#[test]
fn an_event_of_before_the_clock_was_set_is_dated_by_the_time_since_the_boot() {
    let memory = Memory::default();
    let early = Notes::new(Clock::new(|| 5), || 10);
    let outbox = connected(&memory, &early, "a", SMALL, 0);
    early.note(Note::new("boot", "asked", "x"));
    outbox.keep(&early).unwrap();
    let undated = outbox.next(true).unwrap();
    assert!(undated.items[0].get("at").is_none() && undated.items[0].get("up").is_none());
    let later = Notes::new(Clock::new(|| 4_000_000_000), || 110);
    let outbox = connected(&memory, &later, "a", SMALL, 0);
    assert_eq!(outbox.next(true).unwrap().items[0]["at"], 3_999_999_900_u64);
    let another_boot = connected(&memory, &later, "b", SMALL, 0);
    assert!(another_boot.next(true).unwrap().items[0].get("at").is_none());
}

#[test]
fn an_event_is_bounded_and_safe_whatever_is_put_into_it() {
    let notes = Notes::default();
    let outbox = connected(&Memory::default(), &notes, "a", SMALL, 0);
    let mut note = Note::new("service", "exited", &"\u{1b}[31mé".repeat(1000));
    for n in 0..100 {
        note = note.with(&n.to_string(), "x".repeat(1000));
    }
    notes.note(note);
    outbox.keep(&notes).unwrap();
    let event = &outbox.next(true).unwrap().items[0];
    assert!(event.to_string().len() <= copal_protocol::telemetry::MAX_EVENT);
    assert!(!event["message"].as_str().unwrap().contains('\u{1b}'));
}

#[test]
fn a_segment_that_cannot_be_read_costs_its_own_events_and_nothing_is_written_over_it() {
    for bad in 0..3 {
        let (memory, mut cloud) = (Memory::default(), Cloud::default());
        let mut spool = open(&memory, "a", SMALL);
        // Segments of 5 KiB.
        for n in 0..90 {
            spool.append(&[event(n)], 0).unwrap();
        }
        drop(spool);
        let (names, before): (Vec<String>, _) = {
            let files = memory.0.lock().unwrap().files.clone();
            (files.keys().cloned().collect(), files)
        };
        assert!(names.len() >= 3, "{names:?}");
        let name = if bad == 2 { names.last().unwrap() } else { &names[bad] };
        memory.0.lock().unwrap().unreadable = Some(name.clone());
        let mut spool = open(&memory, "a", SMALL);
        spool.append(&[event(1_000)], 0).unwrap();
        drain(&mut spool, &mut cloud);
        let came = numbers(&cloud);
        let lost = segment::read(before[name].as_slice()).unwrap().records.len();
        assert_eq!((came.len(), came.last()), (91 - lost, Some(&1_000)), "{name}");
        assert_eq!(memory.0.lock().unwrap().files[name], before[name], "{name} is left alone");
    }
}

#[test]
fn of_a_summary_that_no_batch_holds_some_services_are_left_out() {
    let notes = Notes::new(Clock::default(), || 1);
    let outbox = connected(&Memory::default(), &notes, "a", SMALL, 0);
    let gauges = (0..16).map(|n| (format!("g{n}"), Gauge { min: 1, avg: 2, max: 3, last: 4 })).collect();
    let one = Measured { gauges, ..Measured::default() };
    let services = (0..100).map(|n| (format!("service{n}"), one.clone())).collect();
    outbox.telemetry(&Telemetry::Metrics(Summary { device: one, services, ..Summary::default() }));
    let batch = outbox.next(true).expect("not all of it is left out");
    let sent = batch.items[0]["services"].as_object().unwrap().len();
    assert!(sent > 10 && batch.items[0]["device"]["gauges"]["g0"].is_array(), "{sent}");
}
