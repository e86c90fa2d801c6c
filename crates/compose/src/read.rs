//! Scalars, lists and maps read as what a key wants, with a problem at the place where they are something else.

use std::{collections::BTreeMap, str::FromStr};

use copal_protocol::{ids::Name, spec::parse_duration_ms};

use crate::{
    problem::{Problems, code},
    tree::{Entry, Node, Value},
};

/// The entries of a map; none where it is empty (`key:` with nothing after it counts as empty).
pub(crate) fn map<'n>(node: &'n Node, p: &mut Problems) -> &'n [Entry] {
    match &node.value {
        Value::Map(entries) => entries,
        Value::Null => &[],
        _ => {
            p.at(
                node,
                code::INVALID,
                format!("must be a map, is {}", node.kind()),
                "write `key: value` lines below it",
            );
            &[]
        }
    }
}

/// The items of a list.
pub(crate) fn list<'n>(node: &'n Node, p: &mut Problems) -> &'n [Node] {
    match &node.value {
        Value::List(items) => items,
        Value::Null => &[],
        _ => {
            p.at(
                node,
                code::INVALID,
                format!("must be a list, is {}", node.kind()),
                "write `- item` lines below it",
            );
            &[]
        }
    }
}

/// The items of a list, or the node itself where it is a single value.
pub(crate) fn one_or_many<'n>(node: &'n Node, p: &mut Problems) -> &'n [Node] {
    match &node.value {
        Value::Scalar(_) => std::slice::from_ref(node),
        _ => list(node, p),
    }
}

/// The text of a scalar.
pub(crate) fn text<'n>(node: &'n Node, p: &mut Problems) -> Option<&'n str> {
    match &node.value {
        Value::Scalar(text) => Some(text),
        _ => {
            p.at(
                node,
                code::INVALID,
                format!("must be a single value, is {}", node.kind()),
                "write one value",
            );
            None
        }
    }
}

/// The text of a scalar that is not empty.
pub(crate) fn word<'n>(node: &'n Node, p: &mut Problems) -> Option<&'n str> {
    let text = text(node, p)?;
    if text.trim().is_empty() {
        p.at(node, code::INVALID, "is empty", "give it a value or remove the key");
        return None;
    }
    Some(text)
}

/// Records that a value is not what the key wants.
pub(crate) fn invalid(node: &Node, p: &mut Problems, want: &str) {
    let shown: String = match &node.value {
        Value::Scalar(text) => {
            let shown: String = text.chars().take(60).flat_map(char::escape_debug).collect();
            format!("`{shown}`")
        }
        _ => node.kind().to_owned(),
    };
    p.at(node, code::INVALID, format!("cannot be {shown}"), format!("write {want}"));
}

/// Reads a word by `parse`; `want` says what it should be.
pub(crate) fn parsed<T>(
    node: &Node,
    p: &mut Problems,
    want: &str,
    parse: impl FnOnce(&str) -> Option<T>,
) -> Option<T> {
    let text = word(node, p)?;
    let value = parse(text.trim());
    if value.is_none() {
        invalid(node, p, want);
    }
    value
}

/// `true` and `false`, and the older spellings that people still write.
pub(crate) fn boolean(node: &Node, p: &mut Problems) -> Option<bool> {
    parsed(node, p, "`true` or `false`", |t| match t.to_ascii_lowercase().as_str() {
        "true" | "yes" | "on" => Some(true),
        "false" | "no" | "off" => Some(false),
        _ => None,
    })
}

/// A whole number within a range.
pub(crate) fn integer(node: &Node, p: &mut Problems, min: i64, max: i64) -> Option<i64> {
    parsed(node, p, &format!("a whole number from {min} to {max}"), |t| {
        t.parse().ok().filter(|n| (min..=max).contains(n))
    })
}

/// Bytes: `64m`, `1.5g`, `512k`, `1024`. Units are powers of 1024, as in compose.
pub(crate) fn bytes(node: &Node, p: &mut Problems) -> Option<u64> {
    parsed(node, p, "a size such as `64m`, `1g` or `512k`", parse_bytes)
}

fn parse_bytes(text: &str) -> Option<u64> {
    let split = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let shift = match text[split..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return None,
    };
    let number = &text[..split];
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(1 << shift).filter(|n| i64::try_from(*n).is_ok());
    }
    let fraction: f64 = number.parse().ok()?;
    #[allow(clippy::cast_precision_loss, reason = "a power of two is exact")]
    let bytes = fraction * (1_u64 << shift) as f64;
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked: positive and below 2^60"
    )]
    (bytes.is_finite() && bytes < (1_u64 << 60) as f64).then_some(bytes as u64)
}

/// Milliseconds of a duration.
pub(crate) fn duration_ms(node: &Node, p: &mut Problems) -> Option<u64> {
    parsed(node, p, "a duration such as `30s`, `500ms` or `1m30s`", parse_duration_ms)
}

/// A service, volume or network name.
pub(crate) fn name(text: &str, node: &Node, p: &mut Problems) -> Option<Name> {
    let name = Name::from_str(text).ok();
    if name.is_none() {
        p.at(
            node,
            code::INVALID,
            "is not a name",
            "use letters, digits, `_`, `.` and `-`, begin with a letter or digit, at most 63 characters",
        );
    }
    name
}

/// Pairs, as a map (`KEY: value`) or as a list (`- KEY=value`). The value is absent where none was given.
pub(crate) fn pairs<'n>(node: &'n Node, p: &mut Problems) -> Vec<(String, Option<String>, &'n Node)> {
    let mut pairs: Vec<(String, Option<String>, &Node)> = Vec::new();
    match &node.value {
        Value::Null => {}
        Value::Map(entries) => {
            for entry in entries {
                match &entry.node.value {
                    Value::Scalar(text) => pairs.push((entry.name.clone(), Some(text.clone()), &entry.node)),
                    Value::Null => pairs.push((entry.name.clone(), None, &entry.node)),
                    _ => invalid(&entry.node, p, "a single value"),
                }
            }
        }
        Value::List(items) => {
            for item in items {
                let Some(text) = text(item, p) else { continue };
                match text.split_once('=') {
                    Some((key, value)) => pairs.push((key.to_owned(), Some(value.to_owned()), item)),
                    None => pairs.push((text.to_owned(), None, item)),
                }
            }
        }
        Value::Scalar(_) => {
            p.at(
                node,
                code::INVALID,
                "must be a map or a list of KEY=value",
                "write `KEY: value` lines below it",
            );
        }
    }
    pairs
}

/// Pairs without repetition; an absent value is an empty one.
pub(crate) fn pair_map(node: &Node, p: &mut Problems) -> BTreeMap<String, String> {
    let mut map = BTreeMap::new();
    for (key, value, at) in pairs(node, p) {
        if key.trim().is_empty() {
            p.at(at, code::INVALID, "has no name before the `=`", "write KEY=value");
        } else if map.insert(key.clone(), value.unwrap_or_default()).is_some() {
            p.at(at, code::DUPLICATE_KEY, format!("{} stands twice", shown(&key)), "keep one of the two");
        }
    }
    map
}

/// A text fit to be shown: short, without control characters.
pub(crate) fn shown(text: &str) -> String {
    let mut out: String = text.chars().take(60).flat_map(char::escape_debug).collect();
    if text.chars().count() > 60 {
        out.push('…');
    }
    out
}

/// An absolute path inside a container or on the host: no `..`, no double or trailing slashes.
pub(crate) fn absolute_path(text: &str) -> Option<String> {
    if !text.starts_with('/') || text.chars().any(char::is_control) {
        return None;
    }
    let parts: Vec<&str> = text.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    if parts.contains(&"..") {
        return None;
    }
    Some(format!("/{}", parts.join("/")))
}

/// A path below the project's folder, as `a/b` (`.` for the folder itself): it cannot climb out.
pub(crate) fn relative_path(text: &str) -> Option<String> {
    if text.starts_with('/')
        || text.starts_with('~')
        || text.contains('\\')
        || text.chars().any(char::is_control)
    {
        return None;
    }
    let mut parts: Vec<&str> = Vec::new();
    for part in text.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(if parts.is_empty() { ".".to_owned() } else { parts.join("/") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_as_compose_writes_them() {
        for (text, want) in [
            ("1024", 1024),
            ("1b", 1),
            ("64m", 64 << 20),
            ("64MB", 64 << 20),
            ("1.5g", 3 << 29),
            ("2 GiB", 2 << 30),
            ("0.5k", 512),
        ] {
            assert_eq!(parse_bytes(text), Some(want), "{text}");
        }
        for bad in ["", "m", "-1", "1x", "1.2.3m", "99999999999999999999", "99999999t", "1e9"] {
            assert_eq!(parse_bytes(bad), None, "{bad}");
        }
    }

    #[test]
    fn paths_cannot_climb_out() {
        for (text, want) in [("./web/", "web"), (".", "."), ("", "."), ("a/../b", "b"), ("a//b", "a/b")] {
            assert_eq!(relative_path(text).as_deref(), Some(want), "{text}");
        }
        for bad in ["..", "a/../../b", "/etc", "~/x", "a\\..\\b"] {
            assert_eq!(relative_path(bad), None, "{bad}");
        }
        assert_eq!(absolute_path("/a//b/./").as_deref(), Some("/a/b"));
        assert_eq!(absolute_path("/").as_deref(), Some("/"));
        for bad in ["a", "", "/a/../b", "/a\nb"] {
            assert_eq!(absolute_path(bad), None, "{bad}");
        }
    }
}
