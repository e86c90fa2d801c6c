//! How ids, sizes, times and text from devices are written on a page. Escaping is the template's; here is what
//! escaping does not mend.

use std::fmt::Display;

use copal_protocol::text::inert;
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

/// Text from a device or a build.
#[askama::filter_fn]
pub(super) fn plain<T: Display>(text: T, _: &dyn askama::Values) -> askama::Result<String> {
    Ok(inert(&text.to_string()))
}

/// Text as one word of a shell.
#[askama::filter_fn]
pub(super) fn shell<T: Display>(text: T, _: &dyn askama::Values) -> askama::Result<String> {
    Ok(shell_text(&text.to_string()))
}

fn shell_text(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_of_a_shell_stays_one() {
        assert_eq!(shell_text("tag.site = \"a b\""), "'tag.site = \"a b\"'");
        assert_eq!(shell_text("x' ; rm"), r"'x'\'' ; rm'");
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
