//! How ids, sizes, times and text from devices are written on a page. Escaping is the template's; here is what
//! escaping does not mend.

use std::fmt::Display;

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// The first 12 characters of an id.
#[askama::filter_fn]
pub(super) fn short<T: Display>(id: T, _: &dyn askama::Values) -> askama::Result<String> {
    Ok(id.to_string().chars().take(12).collect())
}

/// The first 12 digits of a digest; a dash for none.
#[askama::filter_fn]
pub(super) fn digest<T: Display>(digest: T, _: &dyn askama::Values) -> askama::Result<String> {
    let text = digest.to_string();
    let digits: String = text.strip_prefix("sha256:").unwrap_or(&text).chars().take(12).collect();
    Ok(if digits.is_empty() { "–".to_owned() } else { digits })
}

/// Bytes in the unit that leaves one to three digits.
#[askama::filter_fn]
pub(super) fn bytes(count: &u64, _: &dyn askama::Values) -> askama::Result<String> {
    Ok(bytes_text(*count))
}

fn bytes_text(count: u64) -> String {
    #[allow(clippy::cast_precision_loss, reason = "shown with one decimal")]
    let mut value = count as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if value < 999.5 {
            return if unit == "B" { format!("{count} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1000.0;
    }
    format!("{value:.1} TB")
}

/// Unix seconds as a date and time in UTC, for readers without scripts.
#[askama::filter_fn]
pub(super) fn utc(seconds: &u64, _: &dyn askama::Values) -> askama::Result<String> {
    Ok(utc_text(*seconds))
}

fn utc_text(seconds: u64) -> String {
    i64::try_from(seconds)
        .ok()
        .and_then(|s| OffsetDateTime::from_unix_timestamp(s).ok())
        .and_then(|t| t.format(&Rfc3339).ok())
        .map_or_else(|| "an unknown time".to_owned(), |t| t.replace('T', " ").replace('Z', " UTC"))
}

/// Who can run code on a fleet's devices, in words.
#[askama::filter_fn]
pub(super) fn mode<T: Display>(mode: T, _: &dyn askama::Values) -> askama::Result<&'static str> {
    Ok(match mode.to_string().as_str() {
        "owner" => "only the owner's release keys",
        "both" => "the owner and this server together",
        _ => "this server (it is trusted)",
    })
}

/// Text from a device or a build: escape sequences, other control characters and characters that turn the reading
/// direction are taken out; line ends and tabs stay.
#[askama::filter_fn]
pub(super) fn plain<T: Display>(text: T, _: &dyn askama::Values) -> askama::Result<String> {
    Ok(plain_text(&text.to_string()))
}

pub(super) fn plain_text(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match c {
            // CSI and OSC sequences: to their final byte.
            '\u{1b}' if rest.next_if_eq(&'[').is_some() => {
                while rest.next().is_some_and(|c| !('\u{40}'..='\u{7e}').contains(&c)) {}
            }
            '\u{1b}' if rest.next_if_eq(&']').is_some() => {
                while rest.next().is_some_and(|c| c != '\u{7}' && c != '\u{1b}') {}
                rest.next_if_eq(&'\\');
            }
            '\n' | '\t' => out.push(c),
            // Marks that embed, override or isolate a direction could show a text as another.
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}' => {}
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_sequences_and_direction_marks_are_taken_out() {
        assert_eq!(plain_text("\u{1b}[31mred\u{1b}[0m\ttab\r\nnext"), "red\ttab\nnext");
        assert_eq!(plain_text("a\u{1b}]0;title\u{7}b"), "ab");
        assert_eq!(plain_text("exe\u{202e}gpj.txt"), "exegpj.txt");
        assert_eq!(plain_text("plain é ✓"), "plain é ✓");
        assert_eq!(plain_text("\u{1b}["), "");
    }

    #[test]
    fn sizes_read_well() {
        let all: Vec<String> =
            [0, 999, 1_000, 999_499, 999_999, 5_660_000, 1_000_000_000_000].map(bytes_text).into();
        assert_eq!(all, ["0 B", "999 B", "1.0 kB", "999.5 kB", "1.0 MB", "5.7 MB", "1.0 TB"]);
    }

    #[test]
    fn times_are_utc() {
        assert_eq!(utc_text(1_790_000_000), "2026-09-21 14:13:20 UTC");
        assert_eq!(utc_text(u64::MAX), "an unknown time");
    }
}
