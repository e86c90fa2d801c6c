//! Lines, rings and readers, without an engine.

use std::{path::Path, time::Instant};

use bytes::Bytes;
use copal_protocol::{
    channel::OpenLogs,
    logs::{LogLine, MAX_LINE, Moment, Only, Sieve},
};
use proptest::prelude::*;

use super::{
    rate::Account,
    read::Reader,
    ring::Rings,
    split::{Line, Splitter},
    *,
};
use crate::{diagnostics::redact::Redactor, engine::Part, state::RealFs};

const AT: &str = "2026-11-23T04:17:14.000000001Z";

fn said(stderr: bool, text: &str) -> Part {
    Part::Message { stderr, bytes: Bytes::from(format!("{AT} {text}")) }
}

fn texts(lines: &[Line]) -> Vec<&str> {
    lines.iter().map(|line| line.text.as_str()).collect()
}

fn line(text: &str) -> Line {
    Line { at: AT.to_owned(), stderr: false, cut: false, text: text.to_owned() }
}

fn rings(dir: &Path, limits: Limits, boot: &str) -> Rings {
    let state = Arc::new(StateDir::open(dir.join("state"), Arc::new(RealFs)).unwrap());
    Rings::open(dir.join("logs"), limits, state, boot).unwrap()
}

fn reader(dir: &Path, services: &[&str], after: Option<u64>, tail: u32) -> Reader {
    only(dir, services, after, tail, Only::default(), 0)
}

fn only(dir: &Path, services: &[&str], after: Option<u64>, tail: u32, only: Only, now: u64) -> Reader {
    let services = services.iter().map(|s| (*s).to_owned()).collect();
    let sieve = Sieve::new(&OpenLogs { only: Some(only), ..OpenLogs::default() }, now);
    Reader::open(dir.join("logs"), services, after, tail, sieve).unwrap()
}

fn all(reader: &mut Reader) -> Vec<LogLine> {
    let mut lines = Vec::new();
    loop {
        let (batch, more) = reader.batch(1000).unwrap();
        assert!(batch.is_empty() || batch.ends_with(b"\n"), "whole lines");
        if batch.is_empty() && !more {
            return lines;
        }
        let batch = batch.split(|b| *b == b'\n').filter(|line| !line.is_empty());
        lines.extend(batch.map(|line| serde_json::from_slice::<LogLine>(line).unwrap()));
    }
}

fn numbers(lines: &[LogLine]) -> Vec<u64> {
    lines.iter().map(|line| line.seq).collect()
}

#[test]
fn messages_become_lines_and_streams_do_not_mix() {
    let (mut splitter, none) = (Splitter::default(), Redactor::default());
    assert!(splitter.take(&said(false, "half "), &none).is_empty());
    let error = splitter.take(&said(true, "2020-01-01T00:00:00Z its own time\n"), &none);
    assert_eq!(
        (texts(&error), error[0].stderr, error[0].at.as_str()),
        (vec!["2020-01-01T00:00:00Z its own time"], true, AT)
    );
    assert_eq!(texts(&splitter.take(&said(false, "and half\r\n\n"), &none)), ["half and half"]);
    assert!(splitter.take(&said(false, "last \u{1b}[31mwords\u{fffd}"), &none).is_empty());
    assert_eq!(texts(&splitter.end(&none)), ["last \u{1b}[31mwords\u{fffd}"]);
    assert!(splitter.end(&none).is_empty());
}

#[test]
fn a_terminal_s_output_is_lines_too_and_a_progress_bar_does_not_grow() {
    let (mut splitter, none) = (Splitter::default(), Redactor::default());
    let raw = format!("{AT} one\r\n2026-11-23T04:17:15Z 10 %\r20 %\r");
    let mut lines = Vec::new();
    for byte in raw.as_bytes() {
        lines.extend(splitter.take(&Part::Raw(Bytes::copy_from_slice(&[*byte])), &none));
    }
    assert_eq!(texts(&lines), ["one", "10 %", "20 %"]);
    assert_eq!((lines[0].at.as_str(), lines[2].at.as_str()), (AT, "2026-11-23T04:17:15Z"));
    for _ in 0..100 {
        assert!(splitter.take(&Part::Raw(Bytes::from(vec![b'x'; 100_000])), &none).is_empty());
    }
    let line = &splitter.end(&none)[0];
    assert_eq!((line.text.len(), line.cut), (MAX_LINE, true));
}

#[test]
fn a_long_line_is_cut_with_a_mark_and_secrets_go_before_it_is() {
    let redactor = Redactor::new(["hunter2hunter2".to_owned()]);
    let mut splitter = Splitter::default();
    let long = format!("{}hunter2hunter2 é{}\n", "x".repeat(MAX_LINE - 5), "y".repeat(100_000));
    let lines = splitter.take(&said(false, &long), &redactor);
    assert!(lines[0].cut && lines[0].text.len() <= MAX_LINE && !lines[0].text.contains("hunter"));
    let lines = splitter.take(&said(false, "password=abc hunter2hunter2\n"), &redactor);
    assert_eq!(texts(&lines), ["password=(redacted) (redacted)"]);
    assert!(!lines[0].cut);
}

#[test]
fn what_is_more_than_the_rate_is_counted() {
    let rate = Rate { lines: 10, bytes: 1000, lines_burst: 20, bytes_burst: 2000 };
    let start = Instant::now();
    let mut account = Account::new(rate, start);
    assert_eq!((0..50).filter(|_| account.keeps(1, start)).count(), 20);
    assert_eq!(account.dropped, 30);
    assert_eq!((0..50).filter(|_| account.keeps(1, start + std::time::Duration::from_secs(1))).count(), 10);
    let later = start + std::time::Duration::from_secs(3600);
    assert!(!account.keeps(2001, later) && account.keeps(2000, later) && !account.keeps(1, later));
}

#[test]
fn numbers_go_on_after_a_restart_and_skip_after_a_power_cut() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = rings(dir.path(), Limits::of(4 << 20, 32 << 20), "boot 1");
    first.push("web", "aaa", line("one"));
    first.push("db", "bbb", line("two"));
    first.push_dropped("web", "aaa", AT.to_owned(), 7);
    first.write();
    first.push("web", "aaa", line("not written"));
    drop(first);
    let mut second = rings(dir.path(), Limits::of(4 << 20, 32 << 20), "boot 1");
    second.push("web", "aaa", line("three"));
    assert_eq!(second.write(), 4, "what was not written was seen by nobody");
    let lines = all(&mut reader(dir.path(), &[], Some(0), 0));
    assert_eq!(numbers(&lines), [1, 2, 3, 4]);
    assert_eq!(lines.iter().map(|l| l.n).collect::<Vec<_>>(), [1, 1, 2, 3]);
    assert_eq!((lines[2].dropped, lines[2].line.as_deref()), (Some(7), None));
    drop(second);
    let mut third = rings(dir.path(), Limits::of(4 << 20, 32 << 20), "boot 2");
    third.push("web", "aaa", line("four"));
    assert!(third.write() > 1 << 20, "the power cut may have taken lines that somebody saw");
    std::fs::remove_dir_all(dir.path().join("logs")).unwrap();
    let mut fourth = rings(dir.path(), Limits::of(4 << 20, 32 << 20), "boot 2");
    fourth.push("web", "aaa", line("five"));
    assert!(fourth.write() > 2 << 20, "no number is given twice, though the lines are gone");
}

#[test]
fn a_torn_end_is_taken_off_and_damage_is_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = rings(dir.path(), Limits::of(4 << 20, 32 << 20), "b");
    for n in 0..3 {
        first.push("web", "aaa", line(&format!("line {n}")));
    }
    first.write();
    drop(first);
    let path = super::ring::file(&dir.path().join("logs/web"), 1);
    let mut text = std::fs::read(&path).unwrap();
    let second = text.iter().position(|b| *b == b'\n').unwrap() + 1;
    text[second] = 0;
    text.extend_from_slice(b"{\"seq\":4,\"n\":4,\"serv");
    std::fs::write(&path, &text).unwrap();
    let mut again = rings(dir.path(), Limits::of(4 << 20, 32 << 20), "b");
    again.push("web", "aaa", line("line 3"));
    again.write();
    assert_eq!(numbers(&all(&mut reader(dir.path(), &["web"], Some(0), 0))), [1, 3, 4]);
    assert_eq!(numbers(&all(&mut reader(dir.path(), &["web"], None, 2))), [3, 4]);
    drop(again);
    std::fs::write(&path, "nothing of ours".repeat(4096)).unwrap();
    let mut anew = rings(dir.path(), Limits::of(4 << 20, 32 << 20), "b");
    anew.push("web", "aaa", line("line 4"));
    assert!(anew.write() > 1 << 20);
}

#[test]
fn a_file_that_cannot_be_read_costs_its_own_lines() {
    let dir = tempfile::tempdir().unwrap();
    let mut first = rings(dir.path(), Limits::of(4 << 20, 32 << 20), "b");
    first.push("db", "aaa", line("of another"));
    first.push("web", "aaa", line("of before"));
    first.write();
    drop(first);
    // Reads of a folder fail, as those of bad sectors do.
    std::fs::create_dir(super::ring::file(&dir.path().join("logs/web"), 900)).unwrap();
    let mut again = rings(dir.path(), Limits::of(4 << 20, 32 << 20), "b");
    again.push("web", "aaa", line("after"));
    assert!(again.write() > 1 << 20, "numbers go on past all that may have been in it");
    let said: Vec<_> =
        all(&mut reader(dir.path(), &["db"], Some(0), 0)).into_iter().map(|l| l.line).collect();
    assert_eq!(said, [Some("of another".to_owned())]);
}

#[test]
fn each_ring_and_all_together_are_bounded_and_the_oldest_go() {
    let dir = tempfile::tempdir().unwrap();
    let limits = Limits::of(64 << 10, 160 << 10);
    let mut all_rings = rings(dir.path(), limits, "b");
    let text = "x".repeat(500);
    for service in ["a", "b", "c", "d"] {
        for _ in 0..300 {
            all_rings.push(service, "ccc", line(&text));
        }
        all_rings.write();
    }
    let on_disk = |service: &str| -> u64 {
        let folder = dir.path().join("logs").join(service);
        std::fs::read_dir(folder).map_or(0, |files| files.map(|f| f.unwrap().metadata().unwrap().len()).sum())
    };
    assert!(on_disk("a") < 32 << 10, "what was silent for longest went first");
    assert!(on_disk("d") > 40 << 10 && on_disk("d") <= 100 << 10);
    let sum: u64 = ["a", "b", "c", "d"].iter().map(|s| on_disk(s)).sum();
    assert!(sum <= limits.all, "{sum}");
    let left = all(&mut reader(dir.path(), &["d"], Some(0), 0));
    assert_eq!((left.last().unwrap().seq, left.last().unwrap().n), (1200, 300));
    assert!(left[0].n > 100, "which shows how many are gone");
}

#[test]
fn where_a_container_was_left_off_is_found_in_the_ring() {
    let dir = tempfile::tempdir().unwrap();
    let mut rings = rings(dir.path(), Limits::of(64 << 10, 32 << 20), "b");
    rings.push(
        "web",
        "aaaaaaaaaaaa",
        Line { at: "2026-01-01T00:00:00Z".to_owned(), ..line("says \"container\":\"bbb\"") },
    );
    rings.write();
    for _ in 0..50 {
        rings.push("web", "cccccccccccc", line(&"y".repeat(500)));
    }
    rings.write();
    assert_eq!(rings.last_of("web", "aaaaaaaaaaaa").as_deref(), Some("2026-01-01T00:00:00Z"));
    rings.push_dropped("web", "aaaaaaaaaaaa", "2026-01-02T00:00:00Z".to_owned(), 3);
    assert_eq!(rings.last_of("web", "aaaaaaaaaaaa").as_deref(), Some("2026-01-02T00:00:00Z"));
    assert_eq!(rings.last_of("web", "bbb"), None);
    assert_eq!(rings.last_of("db", "aaaaaaaaaaaa"), None);
}

#[test]
fn a_reader_begins_where_it_is_told_to() {
    let dir = tempfile::tempdir().unwrap();
    let mut rings = rings(dir.path(), Limits::of(64 << 10, 32 << 20), "b");
    for n in 1..=200_u64 {
        rings.push(if n % 3 == 0 { "db" } else { "web" }, "aaa", line(&"z".repeat(200)));
        if n % 7 == 0 {
            rings.write();
        }
    }
    rings.write();
    let dir = dir.path();
    assert_eq!(numbers(&all(&mut reader(dir, &[], Some(150), 0))), (151..=200).collect::<Vec<_>>());
    assert_eq!(numbers(&all(&mut reader(dir, &["db"], Some(190), 0))), [192, 195, 198]);
    assert_eq!(numbers(&all(&mut reader(dir, &["db"], None, 2))), [195, 198]);
    assert_eq!(numbers(&all(&mut reader(dir, &[], None, 5))), [196, 197, 198, 199, 200]);
    assert_eq!(all(&mut reader(dir, &[], None, 9999)).len(), 200);
    assert!(all(&mut reader(dir, &[], None, 0)).is_empty());
    assert!(all(&mut reader(dir, &[], Some(u64::MAX), 0)).is_empty());
    assert!(all(&mut reader(dir, &["none"], Some(0), 0)).is_empty());
}

#[test]
fn only_what_is_wanted_is_told_and_counts_for_the_last_lines() {
    let dir = tempfile::tempdir().unwrap();
    let mut rings = rings(dir.path(), Limits::of(4 << 20, 32 << 20), "b");
    // The clock: ahead at first, then set right, a line a second.
    for n in 1..=3000_u64 {
        let at = if n <= 10 { 9000 + n } else { n };
        let at = format!("1970-01-01T{:02}:{:02}:{:02}.5Z", at / 3600, at / 60 % 60, at % 60);
        let text = if n % 500 == 0 { format!("Oops {n}") } else { "z".repeat(400) };
        rings.push(if n % 2 == 0 { "web" } else { "db" }, "aaa", Line { at, ..line(&text) });
    }
    rings.push_dropped("web", "aaa", "1970-01-01T00:50:00Z".to_owned(), 7);
    rings.write();
    let dir = dir.path();
    let search = |text: &str| Only { search: Some(text.to_owned()), ..Only::default() };
    let asked = |after, tail, wanted: Only| numbers(&all(&mut only(dir, &[], after, tail, wanted, 3000)));
    assert_eq!(asked(None, 100, search("oops")), [500, 1000, 1500, 2000, 2500, 3000, 3001]);
    assert_eq!(
        asked(None, 2, search("oops")),
        [2500, 3000, 3001],
        "the last two of them, and what is not kept"
    );
    assert_eq!(asked(Some(2000), 0, search("oops 2")), [2500, 3001]);
    assert_eq!(asked(None, 2, Only { match_case: true, ..search("oops") }), [3001]);
    let (since, until) = (Some(Moment::AgoS(2)), Some(Moment::At(2999)));
    let late: Vec<u64> = (1..=10).chain(2998..=3001).collect();
    assert_eq!(asked(None, 5000, Only { since, ..Only::default() }), late, "each by the time it bears");
    assert_eq!(asked(None, 2, Only { since, ..Only::default() }), [2999, 3000, 3001]);
    assert_eq!(asked(None, 100, Only { since, until, ..Only::default() }), [2998]);
    assert_eq!(asked(None, 2, Only { until, ..Only::default() }), [2997, 2998]);

    let mut nothing = only(dir, &[], Some(0), 0, search("nowhere to be found"), 0);
    let pieces = std::iter::from_fn(|| nothing.batch(1000).unwrap().1.then_some(())).count();
    assert!(pieces > 3, "what takes long is done in pieces");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// Writers that restart and readers that come back after the last number they saw: every line once, in its order.
    #[test]
    fn readers_see_every_line_once_whatever_the_steps(steps in prop::collection::vec((0_u8..6, 0_usize..3000), 1..80)) {
        let dir = tempfile::tempdir().unwrap();
        // Many small files, none of which goes.
        let limits = Limits { file: 4 << 10, ..Limits::of(64 << 20, 64 << 20) };
        let mut rings = Some(rings(dir.path(), limits, "b"));
        let (mut wanted, mut seen, mut last) = (Vec::new(), Vec::new(), 0_u64);
        let mut following = reader(dir.path(), &[], Some(0), 0);
        let mut n = 0;
        for (step, size) in steps {
            match step {
                0..=2 => for _ in 0..=size % 20 {
                    n += 1;
                    let text = format!("{n} {}", "w".repeat(size));
                    rings.as_mut().unwrap().push(["web", "db", "mq"][usize::from(step)], "aaa", line(&text));
                    wanted.push(text);
                },
                3 => { rings.as_mut().unwrap().write(); }
                4 => {
                    rings.as_mut().unwrap().write();
                    drop(rings.take());
                    rings = Some(super::tests::rings(dir.path(), limits, "b"));
                }
                _ => {
                    for line in all(&mut following) {
                        prop_assert!(line.seq > last);
                        last = line.seq;
                        seen.push(line.line.unwrap());
                    }
                    if size % 2 == 0 {
                        following = reader(dir.path(), &[], Some(last), 0);
                    }
                }
            }
        }
        rings.as_mut().unwrap().write();
        seen.extend(all(&mut following).into_iter().map(|line| line.line.unwrap()));
        prop_assert_eq!(seen, wanted);
    }
}
