//! Lines of service logs, as a device keeps and tells them: one JSON object and a line end each.

use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{channel::OpenLogs, spec::parse_duration_ms};

/// The most bytes of a line's text; what is longer is cut on the device.
pub const MAX_LINE: usize = 8 << 10;
/// The most bytes of one record with all that is around the text, escaped as JSON is.
pub const MAX_RECORD: usize = 64 << 10;
/// The most lines from before that are told.
pub const MAX_TAIL: u32 = 100_000;
/// The most characters that are searched for.
pub const MAX_SEARCH: usize = 200;
/// What a device says in its hello that looks by itself which lines are wanted ([`Only`]).
pub const FEATURE_ONLY: &str = "logs_only";

/// One line of a log, or a count of lines that are not kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogLine {
    /// Rises over the device's life and all its services; some numbers are left out. First, so that it is found without parsing.
    pub seq: u64,
    /// Numbers what is kept of its service without a gap: what is missing between two was let go of for want of room.
    pub n: u64,
    /// The service.
    pub service: String,
    /// When the container said it, as the engine saw: RFC 3339 in UTC, nanoseconds.
    pub at: String,
    /// The container: the first 12 digits of its id.
    pub container: String,
    /// It came from standard error.
    #[serde(default, skip_serializing_if = "is_false")]
    pub stderr: bool,
    /// It was longer, and the rest is not kept.
    #[serde(default, skip_serializing_if = "is_false")]
    pub cut: bool,
    /// The text, secrets taken out. Absent where this is a count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<String>,
    /// So many lines are not kept: the service said more than its rate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dropped: Option<u64>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_false(b: &bool) -> bool {
    !b
}

/// The number of a record, found by its first bytes.
#[must_use]
pub fn seq_of(record: &[u8]) -> Option<u64> {
    let digits = record.strip_prefix(b"{\"seq\":")?;
    let end = digits.iter().position(|b| !b.is_ascii_digit())?;
    std::str::from_utf8(&digits[..end]).ok()?.parse().ok()
}

/// Which lines are wanted; what is absent wants all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Only {
    /// Said then or later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Moment>,
    /// Said before then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Moment>,
    /// With this text in them, as it is: no pattern. At most [`MAX_SEARCH`] characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub search: Option<String>,
    /// Whether upper and lower case differ.
    #[serde(default, skip_serializing_if = "is_false")]
    pub match_case: bool,
}

/// A moment by the clock that lines are stamped with, which is the device's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Moment {
    /// Unix seconds.
    At(u64),
    /// So many seconds before that clock's now.
    AgoS(u64),
}

/// Why a text is no moment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is neither a duration such as 10m, 2h30m or 7d, nor a time such as 2026-11-23T08:00 (UTC) or 2026-11-23T08:00:00+01:00"
)]
pub struct ParseMomentError(String);

impl Moment {
    const fn unix(self, now: u64) -> u64 {
        match self {
            Self::At(at) => at,
            Self::AgoS(ago) => now.saturating_sub(ago),
        }
    }

    /// The moment that was meant, where it is asked for again so many seconds later.
    #[must_use]
    pub const fn later(self, seconds: u64) -> Self {
        match self {
            Self::At(at) => Self::At(at),
            Self::AgoS(ago) => Self::AgoS(ago.saturating_add(seconds)),
        }
    }

    /// Whether this is certainly not before the other.
    #[must_use]
    pub const fn is_past(self, other: Self) -> bool {
        match (self, other) {
            (Self::At(this), Self::At(other)) => this >= other,
            (Self::AgoS(this), Self::AgoS(other)) => this <= other,
            (Self::At(_), Self::AgoS(_)) | (Self::AgoS(_), Self::At(_)) => false,
        }
    }
}

impl FromStr for Moment {
    type Err = ParseMomentError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(ms) = parse_duration_ms(text) {
            return Ok(Self::AgoS(ms / 1000));
        }
        let shown = || ParseMomentError(text.chars().take(40).collect());
        instant(text.trim()).map(Self::At).ok_or_else(shown)
    }
}

/// Unix seconds of a time as RFC 3339 writes it; without an offset in UTC, seconds and the time of day may be left out.
fn instant(text: &str) -> Option<u64> {
    let two = |digits: &str| digits.parse::<u64>().ok().filter(|_| digits.len() == 2);
    let date = text.get(..10)?;
    let rest = text.get(10..)?;
    let (time, east, west) = if let Some(time) = rest.strip_suffix(['Z', 'z']) {
        (time, 0, 0)
    } else if let Some(sign) = rest.rfind(['+', '-']) {
        let (h, m) = rest.get(sign + 1..)?.split_once(':')?;
        let offset = two(h).filter(|h| *h < 24)? * 3600 + two(m).filter(|m| *m < 60)? * 60;
        if rest[sign..].starts_with('+') { (&rest[..sign], offset, 0) } else { (&rest[..sign], 0, offset) }
    } else {
        (rest, 0, 0)
    };
    let time = match time.strip_prefix(['T', 't', ' ']) {
        Some(minutes) if minutes.len() == 5 => format!("{minutes}:00"),
        Some(time) => time.to_owned(),
        None if rest.is_empty() => "00:00:00".to_owned(),
        None => return None,
    };
    let (s, _) = unix(&format!("{date}T{time}Z"))?;
    (s + west).checked_sub(east)
}

/// Seconds and nanoseconds since 1970 of a time as the engine writes it, in UTC.
#[must_use]
pub fn unix(at: &str) -> Option<(u64, u32)> {
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

/// Tells which lines are wanted. Each is judged by its own time: after a clock that jumped their order is not that of their times.
#[derive(Debug, Clone, Default)]
pub struct Sieve {
    since: Option<u64>,
    until: Option<u64>,
    search: Option<String>,
    match_case: bool,
}

impl Sieve {
    /// For what is asked for at this moment of the clock that stamps lines, in Unix seconds.
    #[must_use]
    pub fn new(asked: &OpenLogs, now: u64) -> Self {
        let Some(only) = &asked.only else { return Self::default() };
        let search = only.search.as_ref().filter(|text| !text.is_empty());
        let search = search.map(|text| if only.match_case { text.clone() } else { text.to_lowercase() });
        let unix = |moment: Option<Moment>| moment.map(|moment| moment.unix(now));
        Self { since: unix(only.since), until: unix(only.until), search, match_case: only.match_case }
    }

    /// Whether every line is wanted.
    #[must_use]
    pub const fn takes_all(&self) -> bool {
        self.since.is_none() && self.until.is_none() && self.search.is_none()
    }

    /// Whether this line is wanted. A count of lines that are not kept is, whatever is searched for: who knows what they said.
    #[must_use]
    pub fn takes(&self, line: &LogLine) -> bool {
        let in_time = match (self.since, self.until, unix(&line.at)) {
            (None, None, _) | (_, _, None) => true,
            (since, until, Some((at, _))) => {
                since.is_none_or(|since| since <= at) && until.is_none_or(|until| at < until)
            }
        };
        in_time
            && match (&self.search, &line.line) {
                (Some(search), Some(text)) if self.match_case => text.contains(search),
                (Some(search), Some(text)) => text.to_lowercase().contains(search),
                _ => true,
            }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_read_as_people_write_them() {
        for (text, moment) in [
            ("10m", Moment::AgoS(600)),
            ("2h30m", Moment::AgoS(9000)),
            ("7d", Moment::AgoS(604_800)),
            ("0s", Moment::AgoS(0)),
            ("2000-02-29", Moment::At(951_782_400)),
            ("2000-02-29T23:59", Moment::At(951_868_740)),
            ("2000-02-29 23:59:59", Moment::At(951_868_799)),
            ("2000-02-29T23:59:59.5Z", Moment::At(951_868_799)),
            ("2000-02-29T23:59Z", Moment::At(951_868_740)),
            ("2000-03-01T01:59:59+02:00", Moment::At(951_868_799)),
            ("2000-02-29T20:29:59-03:30", Moment::At(951_868_799)),
        ] {
            assert_eq!(text.parse(), Ok(moment), "{text}");
        }
        for not in [
            "",
            "10",
            "-10m",
            "yesterday",
            "2000-02-29T",
            "2000-13-01",
            "2000-02-29T24:00",
            "2000-02-29T23:59+2",
            "2000-02-29T23:59+25:00",
            "2000-02-29Tä3:59",
            "1970-01-01T00:00+01:00",
            "2000-02-29+01:00",
            "2000-02-2é",
        ] {
            assert!(not.parse::<Moment>().is_err(), "{not}");
        }
        assert_eq!(Moment::AgoS(600).later(5), Moment::AgoS(605));
        assert_eq!(Moment::At(600).later(5), Moment::At(600));
        assert!(Moment::At(6).is_past(Moment::At(6)) && !Moment::At(5).is_past(Moment::At(6)));
        assert!(Moment::AgoS(6).is_past(Moment::AgoS(6)) && !Moment::AgoS(7).is_past(Moment::AgoS(6)));
        assert!(!Moment::AgoS(7).is_past(Moment::At(0)) && !Moment::At(u64::MAX).is_past(Moment::AgoS(0)));
    }

    #[test]
    fn times_of_the_engine_are_read() {
        assert_eq!(unix("1970-01-01T00:00:00Z"), Some((0, 0)));
        assert_eq!(unix("2000-02-29T23:59:59.5Z"), Some((951_868_799, 500_000_000)));
        assert_eq!(unix("2026-11-23T04:17:14.000000001Z"), Some((1_795_407_434, 1)));
        for not in
            ["", "Z", "2026-11-23", "2026-11-23 04:17:14Z", "2026-13-23T04:17:14Z", "2026-11-23T04:17:14.Z"]
        {
            assert_eq!(unix(not), None, "{not}");
        }
    }

    #[test]
    fn a_line_is_judged_by_its_own_time_and_by_its_text() {
        let line = |at: &str, text: &str| LogLine {
            seq: 1,
            n: 1,
            service: "web".to_owned(),
            at: at.to_owned(),
            container: "0123456789ab".to_owned(),
            stderr: false,
            cut: false,
            line: Some(text.to_owned()),
            dropped: None,
        };
        let sieve = |only: Only| Sieve::new(&OpenLogs { only: Some(only), ..OpenLogs::default() }, 1000);
        let none = sieve(Only::default());
        assert!(none.takes_all() && none.takes(&line("?", "")) && Sieve::default().takes_all());
        let between =
            sieve(Only { since: Some(Moment::AgoS(100)), until: Some(Moment::At(960)), ..Only::default() });
        for (at, takes) in [
            ("1970-01-01T00:14:59.999Z", false),
            ("1970-01-01T00:15:00Z", true),
            ("1970-01-01T00:15:59.999Z", true),
            ("1970-01-01T00:16:00Z", false),
            ("no time at all", true),
        ] {
            assert_eq!(between.takes(&line(at, "x")), takes, "{at}");
        }
        let search = |text: &str, match_case| {
            sieve(Only { search: Some(text.to_owned()), match_case, ..Only::default() })
        };
        assert!(search("ärger.", false).takes(&line("", "Viel ÄRGER.")));
        assert!(!search("ärger.", false).takes(&line("", "Viel ÄRGERE")), "no pattern");
        assert!(
            search("Ärger", true).takes(&line("", "Ärger"))
                && !search("Ärger", true).takes(&line("", "ärger"))
        );
        assert!(search("x", false).takes(&LogLine { line: None, dropped: Some(3), ..line("", "") }));
        assert!(search("", false).takes_all());
        assert_eq!(sieve(Only { since: Some(Moment::AgoS(u64::MAX)), ..Only::default() }).since, Some(0));
    }

    #[test]
    fn a_record_begins_with_its_number() {
        let mut line = LogLine {
            seq: 12,
            n: 3,
            service: "web".to_owned(),
            at: "2026-01-02T03:04:05.000000006Z".to_owned(),
            container: "0123456789ab".to_owned(),
            stderr: false,
            cut: false,
            line: Some("hello".to_owned()),
            dropped: None,
        };
        let text = serde_json::to_string(&line).unwrap();
        assert_eq!(
            text,
            r#"{"seq":12,"n":3,"service":"web","at":"2026-01-02T03:04:05.000000006Z","container":"0123456789ab","line":"hello"}"#
        );
        assert_eq!(seq_of(text.as_bytes()), Some(12));
        (line.line, line.dropped, line.stderr, line.cut) = (None, Some(7), true, true);
        let text = serde_json::to_string(&line).unwrap();
        assert!(text.ends_with(r#""stderr":true,"cut":true,"dropped":7}"#), "{text}");
        for not in ["", "{", "{\"seq\":", "{\"seq\":}", "{\"seq\":12", "x{\"seq\":12}"] {
            assert_eq!(seq_of(not.as_bytes()), None, "{not}");
        }
    }
}
