//! Recordings of terminals: asciicast version 2, a JSON header line and one line an event, which common players read.
//!
//! JSON holds text only, and what a terminal says may be any bytes. What is valid UTF-8 stands in `o` events; what is not stands between
//! them in `copal-bytes` events, base64, which other players leave out. Read back in order they are the bytes that came, to the last one.
//! What is typed is not recorded: it is seen where the terminal shows it, and a password is not.

use std::{fmt::Write as _, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD as BASE64};
use serde_json::{Value, json};

/// The code of events that hold bytes.
const BYTES: &str = "copal-bytes";
/// So few bytes are text, whatever they take.
const SHORT: usize = 256;
/// The longest line that is read back, bytes.
pub const MAX_LINE: usize = 1 << 20;

/// The first line.
#[must_use]
pub fn header(cols: u16, rows: u16, unix: Option<u64>, title: &str) -> String {
    let mut header = json!({"version": 2, "width": cols, "height": rows, "title": title});
    if let Some(unix) = unix {
        header["timestamp"] = unix.into();
    }
    header["env"] = json!({"TERM": "xterm-256color"});
    format!("{header}\n")
}

/// Turns what happens into lines.
#[derive(Debug, Default)]
pub struct Recorder {
    /// The beginning of a character whose end has not come.
    held: Vec<u8>,
}

impl Recorder {
    /// The terminal said this, so long after the beginning.
    #[must_use]
    pub fn output(&mut self, at: Duration, bytes: &[u8]) -> String {
        let mut all = std::mem::take(&mut self.held);
        all.extend_from_slice(bytes);
        let (mut begins, mut ends, mut at_byte) = (None, 0, 0);
        while let Err(error) = std::str::from_utf8(&all[at_byte..]) {
            let bad = at_byte + error.valid_up_to();
            let Some(length) = error.error_len() else {
                // A character that is cut; its end may come.
                self.held = all.split_off(bad);
                break;
            };
            begins.get_or_insert(bad);
            (ends, at_byte) = (bad + length, bad + length);
        }
        let mut lines = String::new();
        let mut rest = all.as_slice();
        // Binary output has text in it by chance: from the first to the last byte that is none it is one event, or a recording would
        // be many times its size.
        if let Some(begins) = begins {
            text(&mut lines, at, &all[..begins]);
            event(&mut lines, at, BYTES, &BASE64.encode(&all[begins..ends]));
            rest = &all[ends..];
        }
        text(&mut lines, at, rest);
        lines
    }

    /// The window changed.
    #[must_use]
    pub fn resize(&self, at: Duration, cols: u16, rows: u16) -> String {
        let mut line = String::new();
        event(&mut line, at, "r", &format!("{cols}x{rows}"));
        line
    }

    /// Nothing more comes.
    #[must_use]
    pub fn finish(&mut self, at: Duration) -> String {
        let mut line = String::new();
        let held = std::mem::take(&mut self.held);
        if !held.is_empty() {
            event(&mut line, at, BYTES, &BASE64.encode(held));
        }
        line
    }
}

/// Valid UTF-8 as text, unless JSON would make it several times as long: much of it are control characters then.
fn text(lines: &mut String, at: Duration, bytes: &[u8]) {
    if bytes.is_empty() {
        return;
    }
    let controls = bytes.iter().filter(|b| b.is_ascii_control()).count();
    match std::str::from_utf8(bytes) {
        Ok(text) if bytes.len() < SHORT || controls < bytes.len() / 5 => event(lines, at, "o", text),
        _ => event(lines, at, BYTES, &BASE64.encode(bytes)),
    }
}

fn event(lines: &mut String, at: Duration, code: &str, data: &str) {
    let (s, us) = (at.as_secs(), at.subsec_micros());
    let data = Value::from(data);
    // Writing to a string cannot fail.
    let _ = writeln!(lines, "[{s}.{us:06},\"{code}\",{data}]");
}

/// What a line of a recording says.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The terminal said these bytes.
    Output(Vec<u8>),
    /// The window has this size from now on.
    Resize(u16, u16),
    /// Something else.
    Other,
}

/// Reads one line after the header; `None` where it is none.
#[must_use]
pub fn read(line: &str) -> Option<(Duration, Event)> {
    if line.len() > MAX_LINE {
        return None;
    }
    let (at, code, data): (f64, String, String) = serde_json::from_str(line).ok()?;
    let at = Duration::try_from_secs_f64(at).ok()?;
    let event = match code.as_str() {
        "o" => Event::Output(data.into_bytes()),
        BYTES => Event::Output(BASE64.decode(data).ok()?),
        "r" => {
            let (cols, rows) = data.split_once('x')?;
            Event::Resize(cols.parse().ok()?, rows.parse().ok()?)
        }
        _ => Event::Other,
    };
    Some((at, event))
}

/// Every byte the terminal said.
#[must_use]
pub fn output(recording: &str) -> Vec<u8> {
    let events = recording.lines().skip(1).filter_map(read);
    events
        .filter_map(|(_, event)| match event {
            Event::Output(bytes) => Some(bytes),
            _ => None,
        })
        .flatten()
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn record(pieces: &[Vec<u8>]) -> String {
        let mut recorder = Recorder::default();
        let mut text = header(80, 24, Some(1_800_000_000), "device web");
        for (n, piece) in pieces.iter().enumerate() {
            text += &recorder.output(Duration::from_millis(1500 * n as u64), piece);
        }
        text + &recorder.finish(Duration::from_secs(99))
    }

    #[test]
    fn a_recording_is_an_asciicast() {
        let mut recorder = Recorder::default();
        let mut text = header(80, 24, Some(1_800_000_000), "device web");
        text += &recorder.output(Duration::from_micros(1_500_042), b"\x1b[1mh\xc3");
        text += &recorder.output(Duration::from_secs(2), b"\xa9\r\n\xff\xfe\x00!");
        text += &recorder.resize(Duration::from_secs(3), 100, 30);
        text += &recorder.output(Duration::from_secs(4), b"\xe2\x82");
        text += &recorder.finish(Duration::from_secs(5));
        insta::assert_snapshot!(text, @r#"
        {"env":{"TERM":"xterm-256color"},"height":24,"timestamp":1800000000,"title":"device web","version":2,"width":80}
        [1.500042,"o","\u001b[1mh"]
        [2.000000,"o","é\r\n"]
        [2.000000,"copal-bytes","//4="]
        [2.000000,"o","\u0000!"]
        [3.000000,"r","100x30"]
        [5.000000,"copal-bytes","4oI="]
        "#);
        assert_eq!(read("[3.0,\"r\",\"100x30\"]"), Some((Duration::from_secs(3), Event::Resize(100, 30))));
        assert_eq!(read("[3.0,\"i\",\"x\"]"), Some((Duration::from_secs(3), Event::Other)));
        for bad in ["", "{}", "[1,2,3]", "[-1,\"o\",\"\"]", "[1,\"r\",\"x\"]", "[1,\"copal-bytes\",\"!\"]"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_recording_is_not_many_times_what_was_shown() {
        let mut random = 1_u32;
        let noise = std::iter::repeat_with(|| {
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (random >> 24) as u8
        });
        let noise: Vec<u8> = noise.take(100_000).collect();
        for shown in [noise, vec![0; 100_000], "a line\r\n".repeat(12_500).into_bytes()] {
            let recording = record(&shown.chunks(16 << 10).map(<[u8]>::to_vec).collect::<Vec<_>>());
            assert_eq!(output(&recording), shown);
            assert!(recording.len() < shown.len() * 2, "{} for {}", recording.len(), shown.len());
        }
    }

    proptest! {
        #[test]
        fn any_bytes_in_any_pieces_come_back(pieces in proptest::collection::vec(
            proptest::collection::vec(prop_oneof![any::<u8>(), 0xc0..=0xf4_u8, 0x80..=0x9f_u8, 0x20..=0x7e_u8], 0..40), 0..8))
        {
            prop_assert_eq!(output(&record(&pieces)), pieces.concat());
        }
    }
}
