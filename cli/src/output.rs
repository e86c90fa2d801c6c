//! What goes to standard output: tables for people, JSON for programs. No colours are used, so NO_COLOR needs no care.
//! Text that came from elsewhere is made safe for a terminal before it is shown.

use std::io::{IsTerminal as _, Write as _};

use comfy_table::{ContentArrangement, Table, presets};
use serde_json::{Value, json};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// How a command prints.
#[derive(Debug, Clone, Copy)]
pub struct Out {
    /// JSON on standard output, nothing else there.
    pub json: bool,
    /// No remarks, only results.
    pub quiet: bool,
}

impl Out {
    /// Prints a result: `value` for programs, `human` for people.
    pub fn result(&self, value: &Value, human: impl FnOnce() -> String) {
        let text = if self.json { value.to_string() } else { human() };
        if !text.is_empty() {
            self.line(text.trim_end_matches('\n'));
        }
    }

    /// Prints a list: `{"items":[…]}` for programs, a table for people.
    pub fn list(&self, items: &[Value], columns: &[&str], row: impl Fn(&Value) -> Vec<String>) {
        self.result(&json!({ "items": items }), || {
            if items.is_empty() && !self.quiet {
                return "none".to_owned();
            }
            table(columns, items.iter().map(row))
        });
    }

    /// Prints a line of the result. A closed pipe (`| head`) is no error.
    pub fn line(&self, text: &str) {
        let _ = writeln!(std::io::stdout(), "{text}");
    }

    /// Prints a remark for people to standard error.
    pub fn remark(&self, text: impl AsRef<str>) {
        if !self.quiet && !self.json {
            eprintln!("{}", text.as_ref());
        }
    }

    /// Whether progress may be drawn.
    #[must_use]
    pub fn interactive(&self) -> bool {
        !self.json && !self.quiet && std::io::stderr().is_terminal()
    }
}

/// A table without borders: two spaces between columns, nothing after the last.
pub fn table(columns: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(columns.iter().map(|c| c.to_uppercase()));
    for row in rows {
        table.add_row(row.into_iter().map(|cell| safe(&cell)));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
}

/// Pairs, one a line.
#[must_use]
pub fn pairs(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    rows.iter().map(|(name, value)| format!("{name:width$}  {}\n", safe(value).trim_end())).collect()
}

/// Makes one line of foreign text harmless on a terminal: control characters (escape sequences, line breaks) and
/// characters that turn the direction of text become `\u{..}`. A line break stays where it is ours to keep: see
/// [`safe_lines`].
#[must_use]
pub fn safe(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_harmful(c) && c != '\n' {
            out.extend(c.escape_unicode());
        } else if c == '\n' {
            out.push_str("\n  ");
        } else {
            out.push(c);
        }
    }
    out
}

/// The same for a log: line breaks and tabs stay, the rest is dropped, so that colours do not become litter.
#[must_use]
pub fn safe_lines(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\n' | '\t' => out.push(c),
            '\x1b' if chars.peek() == Some(&'[') => {
                chars.next();
                while chars.next_if(|c| matches!(c, ' '..='?')).is_some() {}
                chars.next_if(|c| matches!(c, '@'..='~'));
            }
            c if is_harmful(c) => {}
            c => out.push(c),
        }
    }
    out
}

fn is_harmful(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

/// The text of a field; empty where it is absent or no scalar.
#[must_use]
pub fn text(value: &Value, field: &str) -> String {
    scalar(&value[field])
}

/// A scalar as text.
#[must_use]
pub fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        Value::Bool(b) => if *b { "yes" } else { "no" }.to_owned(),
        _ => String::new(),
    }
}

/// The first characters of a long name.
#[must_use]
pub fn short(id: &str) -> String {
    id.chars().take(12).collect()
}

/// Who signed a release, by role and the beginning of the key's id.
#[must_use]
pub fn signed_by(release: &Value) -> String {
    let signed = release["signed_by"].as_array().into_iter().flatten();
    signed.map(|s| format!("{} {}", text(s, "role"), short(&text(s, "keyid")))).collect::<Vec<_>>().join(", ")
}

/// Unix seconds (or a text that already is a time) as `2026-01-31T12:00:00Z`.
#[must_use]
pub fn when(value: &Value) -> String {
    match value.as_i64().and_then(|s| OffsetDateTime::from_unix_timestamp(s).ok()) {
        Some(time) => time.format(&Rfc3339).unwrap_or_default(),
        None => scalar(value),
    }
}

/// How long ago Unix seconds are, as people say it.
#[must_use]
pub fn ago(value: &Value, now: u64) -> String {
    let Some(then) = value.as_u64() else { return scalar(value) };
    match now.saturating_sub(then) {
        0..10 => "now".to_owned(),
        s @ 10..120 => format!("{s} s ago"),
        s @ 120..7200 => format!("{} min ago", s / 60),
        s @ 7200..172_800 => format!("{} h ago", s / 3600),
        s => format!("{} d ago", s / 86_400),
    }
}

/// Bytes as people say them.
#[must_use]
pub fn bytes(n: u64) -> String {
    indicatif::HumanBytes(n).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_from_elsewhere_cannot_steer_the_terminal() {
        assert_eq!(safe("a\x1b]0;title\x07b"), "a\\u{1b}]0;title\\u{7}b");
        assert_eq!(safe("evil\u{202e}txt"), "evil\\u{202e}txt");
        assert_eq!(safe("fine é 漢"), "fine é 漢");
        assert_eq!(safe_lines("\x1b[31mred\x1b[0m\tx\r\ny\x07"), "red\tx\ny");
        assert_eq!(safe_lines("\x1b[999999"), "");
    }

    #[test]
    fn tables_align_and_end_where_their_text_ends() {
        let rows = [vec!["porch".to_owned(), "2".to_owned()], vec!["a".to_owned(), String::new()]];
        insta::assert_snapshot!(table(&["fleet", "devices"], rows.into_iter()), @r"
        FLEET  DEVICES
        porch  2
        a
        ");
    }

    #[test]
    fn times_are_said_as_people_say_them() {
        assert_eq!(ago(&json!(100), 105), "now");
        assert_eq!(ago(&json!(100), 400), "5 min ago");
        assert_eq!(ago(&json!(100), 90), "now");
        assert_eq!(ago(&Value::Null, 90), "");
        assert_eq!(when(&json!(0)), "1970-01-01T00:00:00Z");
    }
}
