//! The text of a segment: lines, each with a checksum, so that a torn or flipped one is seen. Pure.
//!
//! ```text
//! 9f86d081884c7d65 {"v":1,"first":7,"acked":6,"boot":"…"}     the head
//! 60303ae22b998861 {"n":7,"e":{"kind":"service",…}}           an event
//! fd61a03af4f77d87 {"boot":"…"}                               from here on another boot
//! a4e624d686e03ed2 {"acked":9}                                the cloud has these
//! ```
//! The first line that is not whole ends the segment: what follows it was never told to be kept.

use copal_protocol::json;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

/// The format; a later one is left alone.
pub(super) const VERSION: u32 = 1;
/// How deep an event may be nested, and the line around it.
const DEPTH: usize = 12;
const SUM: usize = 16;

/// The first line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Head {
    pub(super) v: u32,
    /// No event in here has a lower number, and none before it a number as high.
    pub(super) first: u64,
    /// The cloud has everything up to this.
    pub(super) acked: u64,
    /// The boot of the events that follow.
    pub(super) boot: String,
}

/// Another line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub(super) enum Line {
    Event {
        n: u64,
        /// As it goes to the cloud, and seconds since the boot (`up`).
        e: Value,
    },
    Boot {
        boot: String,
    },
    Acked {
        acked: u64,
    },
}

/// An event with its number and boot.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Record {
    pub(super) n: u64,
    pub(super) boot: String,
    pub(super) event: Value,
}

/// A segment as it was read.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Read {
    pub(super) head: Head,
    pub(super) records: Vec<Record>,
    /// The highest the cloud was known to have.
    pub(super) acked: u64,
    /// The boot of the last event.
    pub(super) boot: String,
    /// Everything in it was whole: more may be appended.
    pub(super) whole: bool,
}

/// Adds a line.
pub(super) fn push(out: &mut String, line: &impl Serialize) {
    // These types hold nothing that JSON cannot.
    let Ok(text) = serde_json::to_string(line) else { return };
    out.push_str(&sum(text.as_bytes()));
    out.push(' ');
    out.push_str(&text);
    out.push('\n');
}

fn sum(text: &[u8]) -> String {
    hex::encode(&Sha256::digest(text)[..SUM / 2])
}

/// One line without its end.
fn line(bytes: &[u8]) -> Option<&[u8]> {
    let (head, text) = bytes.split_at_checked(SUM + 1)?;
    (head[SUM] == b' ' && head[..SUM] == *sum(text).as_bytes()).then_some(text)
}

/// Whether a later agent wrote it: one that was tried here and went back.
pub(super) fn is_later(bytes: &[u8]) -> bool {
    let head = bytes.split(|b| *b == b'\n').next().and_then(line);
    let head = head.and_then(|text| json::from_slice::<Value>(text, DEPTH).ok());
    head.and_then(|head| head["v"].as_u64()).is_some_and(|v| v > u64::from(VERSION))
}

/// Reads a segment as far as it is whole; `None` where not even its head is.
pub(super) fn read(bytes: &[u8]) -> Option<Read> {
    let end = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
    let mut whole = end == bytes.len();
    let mut lines = bytes[..end].split(|b| *b == b'\n');
    // What follows the last line end.
    lines.next_back();
    let head: Head = json::from_slice(line(lines.next()?)?, DEPTH).ok().filter(|h: &Head| h.v == VERSION)?;
    let mut boot = head.boot.clone();
    let (mut records, mut acked): (Vec<Record>, u64) = (Vec::new(), head.acked);
    for bytes in lines {
        match line(bytes).and_then(|text| json::from_slice::<Line>(text, DEPTH).ok()) {
            Some(Line::Event { n, e }) if n >= head.first && records.last().is_none_or(|r| r.n < n) => {
                records.push(Record { n, boot: boot.clone(), event: e });
            }
            Some(Line::Boot { boot: next }) => boot = next,
            Some(Line::Acked { acked: up_to }) => acked = acked.max(up_to),
            Some(Line::Event { .. }) | None => {
                whole = false;
                break;
            }
        }
    }
    Some(Read { head, records, acked, boot, whole })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn text() -> String {
        let mut text = String::new();
        push(&mut text, &Head { v: VERSION, first: 7, acked: 3, boot: "a".to_owned() });
        push(&mut text, &Line::Event { n: 7, e: json!({"kind": "x"}) });
        push(&mut text, &Line::Boot { boot: "b".to_owned() });
        push(&mut text, &Line::Acked { acked: 5 });
        push(&mut text, &Line::Event { n: 9, e: json!({"kind": "y"}) });
        text
    }

    #[test]
    fn what_was_written_is_read() {
        let read = read(text().as_bytes()).unwrap();
        let records: Vec<_> = read.records.iter().map(|r| (r.n, r.boot.as_str())).collect();
        assert_eq!(records, [(7, "a"), (9, "b")]);
        assert_eq!((read.acked, read.boot.as_str(), read.whole), (5, "b", true));
    }

    #[test]
    fn a_segment_that_is_cut_or_flipped_anywhere_gives_only_what_was_whole() {
        let text = text();
        let whole = read(text.as_bytes()).unwrap();
        for end in 0..text.len() {
            let Some(cut) = read(&text.as_bytes()[..end]) else { continue };
            assert!(whole.records.starts_with(&cut.records), "cut at {end}");
            // Between two lines nothing shows that more was to come; appending there is right.
            assert_eq!(cut.whole, text.as_bytes()[end - 1] == b'\n', "cut at {end}");
        }
        for bit in 0..text.len() * 8 {
            let mut flipped = text.clone().into_bytes();
            flipped[bit / 8] ^= 1 << (bit % 8);
            if let Some(read) = read(&flipped) {
                assert!(whole.records.starts_with(&read.records) && !read.whole, "bit {bit}");
            }
        }
    }

    #[test]
    fn a_later_format_is_left_alone() {
        let mut text = String::new();
        push(&mut text, &json!({"v": 2, "first": 1, "acked": 0, "boot": ""}));
        assert_eq!(read(text.as_bytes()), None);
        assert!(is_later(text.as_bytes()) && !is_later(self::text().as_bytes()) && !is_later(b"torn"));
    }
}
