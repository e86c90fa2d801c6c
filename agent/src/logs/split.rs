//! From what the engine says to lines. Pure.

use crate::{diagnostics::redact::Redactor, engine::Part};
use copal_protocol::logs::MAX_LINE;

/// Bytes of a line that are looked at for secrets; the rest, up to its end, is left out.
const MAX_LOOKED_AT: usize = 2 * MAX_LINE;

/// A line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) at: String,
    pub(super) stderr: bool,
    pub(super) cut: bool,
    pub(super) text: String,
}

/// Lines that have begun.
#[derive(Debug, Default)]
pub(super) struct Splitter {
    raw: Begun,
    out: Begun,
    err: Begun,
}

#[derive(Debug, Default)]
struct Begun {
    at: String,
    bytes: Vec<u8>,
    /// The rest is left out.
    cut: bool,
    /// Times are in the bytes.
    timed: bool,
}

impl Splitter {
    /// Takes a part; the lines that it ends.
    pub(super) fn take(&mut self, part: &Part, redactor: &Redactor) -> Vec<Line> {
        let mut lines = Vec::new();
        match part {
            Part::Message { stderr, bytes } => {
                let begun = if *stderr { &mut self.err } else { &mut self.out };
                // Each message has its time, also where it goes on with a line that was too long for one.
                let text = match time_before(bytes) {
                    Some((at, text)) => {
                        at.clone_into(&mut begun.at);
                        text
                    }
                    None => bytes,
                };
                begun.take(text, *stderr, redactor, &mut lines);
            }
            Part::Raw(bytes) => {
                self.raw.timed = true;
                self.raw.take(bytes, false, redactor, &mut lines);
            }
        }
        lines
    }

    /// The log ended: what has no line end is a line, too.
    pub(super) fn end(&mut self, redactor: &Redactor) -> Vec<Line> {
        let mut lines = Vec::new();
        for (begun, stderr) in [(&mut self.raw, false), (&mut self.out, false), (&mut self.err, true)] {
            begun.end(stderr, redactor, &mut lines);
        }
        lines
    }
}

impl Begun {
    fn take(&mut self, text: &[u8], stderr: bool, redactor: &Redactor, lines: &mut Vec<Line>) {
        // A progress bar ends its lines by returning to their beginning.
        for piece in text.split_inclusive(|b| matches!(b, b'\n' | b'\r')) {
            let ends = piece.last().is_some_and(|b| matches!(b, b'\n' | b'\r'));
            let piece = if ends { &piece[..piece.len() - 1] } else { piece };
            let room = MAX_LOOKED_AT.saturating_sub(self.bytes.len());
            self.cut |= piece.len() > room;
            self.bytes.extend_from_slice(&piece[..piece.len().min(room)]);
            if ends {
                self.end(stderr, redactor, lines);
            }
        }
    }

    fn end(&mut self, stderr: bool, redactor: &Redactor, lines: &mut Vec<Line>) {
        let bytes = std::mem::take(&mut self.bytes);
        let mut cut = std::mem::take(&mut self.cut);
        let text = match time_before(&bytes) {
            Some((at, text)) if self.timed => {
                at.clone_into(&mut self.at);
                text
            }
            _ => &bytes,
        };
        if text.is_empty() {
            return;
        }
        let mut text = redactor.text(&String::from_utf8_lossy(text));
        if text.len() > MAX_LINE {
            cut = true;
            let end = (0..=MAX_LINE).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
            text.truncate(end);
        }
        lines.push(Line { at: self.at.clone(), stderr, cut, text });
    }
}

/// The engine's time at the beginning of a line, and what follows it.
fn time_before(bytes: &[u8]) -> Option<(&str, &[u8])> {
    let space = bytes.iter().take(40).position(|b| *b == b' ')?;
    let at = std::str::from_utf8(&bytes[..space]).ok()?;
    unix(at)?;
    Some((at, &bytes[space + 1..]))
}

/// Seconds and nanoseconds since 1970 of a time as the engine writes it, in UTC.
pub(super) fn unix(at: &str) -> Option<(u64, u32)> {
    let bytes = at.as_bytes();
    let at = at.strip_suffix('Z')?;
    let shape = |i: usize, c: u8| bytes.get(i) == Some(&c);
    if !(shape(4, b'-') && shape(7, b'-') && shape(10, b'T') && shape(13, b':') && shape(16, b':')) {
        return None;
    }
    let number = |from: usize, to: usize| -> Option<u64> {
        let digits = at.get(from..to)?;
        digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok()).flatten()
    };
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    let (h, m, s) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
    if year < 1970 || !(1..=12).contains(&month) || !(1..=31).contains(&day) || h > 23 || m > 59 || s > 60 {
        return None;
    }
    let nanos = match at.get(19..)? {
        "" => 0,
        fraction => {
            let digits = fraction.strip_prefix('.')?;
            if digits.is_empty() || digits.len() > 9 || !digits.bytes().all(|b| b.is_ascii_digit()) {
                return None;
            }
            format!("{digits:0<9}").parse().ok()?
        }
    };
    // Days since 1970-03-01's like, years beginning in March.
    let (y, mp) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = 365 * y + y / 4 - y / 100 + y / 400 + (153 * mp + 2) / 5 + day - 1;
    Some(((days - 719_468) * 86_400 + h * 3600 + m * 60 + s, nanos))
}
