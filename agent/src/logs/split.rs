//! From what the engine says to lines. Pure.

use crate::{diagnostics::redact::Redactor, engine::Part};
use copal_protocol::logs::{MAX_LINE, unix};

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
