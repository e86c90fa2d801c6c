//! Lines of service logs, as a device keeps and tells them: one JSON object and a line end each.

use serde::{Deserialize, Serialize};

/// The most bytes of a line's text; what is longer is cut on the device.
pub const MAX_LINE: usize = 8 << 10;
/// The most bytes of one record with all that is around the text, escaped as JSON is.
pub const MAX_RECORD: usize = 64 << 10;
/// The most lines from before that are told.
pub const MAX_TAIL: u32 = 100_000;

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

#[cfg(test)]
mod tests {
    use super::*;

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
