//! Variables in scalars: `${VAR}`, its defaults, and `$$`.
//!
//! Only what the caller gave has a value (`COPAL_ARCH`, `COPAL_DEVICE_TYPE` and the like): neither the shell of the
//! builder nor an `.env` file is looked at, so that the same commit always gives the same release.

use std::collections::BTreeMap;

use crate::{
    problem::{Problems, code},
    tree::{Node, Value},
};

const MAX_NESTING: usize = 8;
const MAX_TEXT: usize = 256 << 10;

/// Replaces variables in every scalar below `node`.
pub(crate) fn interpolate(node: &mut Node, vars: &BTreeMap<String, String>, problems: &mut Problems) {
    let failure = match &mut node.value {
        Value::Null => None,
        Value::Scalar(text) => {
            let mut failure = None;
            if text.contains('$') {
                match expand(text, vars, 0) {
                    Ok(expanded) => *text = expanded,
                    Err(error) => failure = Some(error),
                }
            }
            if text.contains('\0') {
                failure =
                    Some((code::INVALID, "contains a NUL character".to_owned(), "remove it".to_owned()));
            }
            failure
        }
        Value::List(items) => {
            items.iter_mut().for_each(|item| interpolate(item, vars, problems));
            None
        }
        Value::Map(entries) => {
            for entry in entries.iter_mut().filter(|e| !e.name.starts_with("x-") || e.name == "x-copal") {
                interpolate(&mut entry.node, vars, problems);
            }
            None
        }
    };
    if let Some((code, message, fix)) = failure {
        problems.at(node, code, message, fix);
    }
}

type Failure = (&'static str, String, String);

fn expand(text: &str, vars: &BTreeMap<String, String>, nesting: usize) -> Result<String, Failure> {
    let bad = |message: String| {
        (code::INVALID, message, "write `$$` for a dollar sign that is meant as one".to_owned())
    };
    if nesting > MAX_NESTING {
        return Err((
            code::LIMIT,
            format!("variables nest deeper than {MAX_NESTING}"),
            "nest less".to_owned(),
        ));
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(dollar) = rest.find('$') {
        out.push_str(&rest[..dollar]);
        rest = &rest[dollar + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some(after) = rest.strip_prefix('{') {
            let end = closing_brace(after).ok_or_else(|| bad("`${` is not closed by `}`".to_owned()))?;
            out.push_str(&braced(&after[..end], vars, nesting)?);
            rest = &after[end + 1..];
        } else {
            let name = name_at(rest);
            if name.is_empty() {
                return Err(bad("a `$` that begins no variable".to_owned()));
            }
            out.push_str(vars.get(name).ok_or_else(|| unset(name))?);
            rest = &rest[name.len()..];
        }
        if out.len() > MAX_TEXT {
            return Err((
                code::LIMIT,
                format!("grows beyond {MAX_TEXT} bytes"),
                "repeat the variable less".to_owned(),
            ));
        }
    }
    out.push_str(rest);
    Ok(out)
}

/// What stands between the braces: a name, or a name with one of `:-`, `-`, `:?`, `?`, `:+`, `+` and a word.
fn braced(inside: &str, vars: &BTreeMap<String, String>, nesting: usize) -> Result<String, Failure> {
    let name = name_at(inside);
    let bad = || {
        let shown: String = inside.chars().take(40).collect();
        (
            code::INVALID,
            format!("`${{{shown}}}` is not a variable"),
            "write ${NAME}, ${NAME:-default}, ${NAME:?message} or ${NAME:+text}, and `$$` for a dollar sign"
                .to_owned(),
        )
    };
    if name.is_empty() {
        return Err(bad());
    }
    let operator = &inside[name.len()..];
    let set = vars.get(name);
    if operator.is_empty() {
        return set.cloned().ok_or_else(|| unset(name));
    }
    // With a colon, an empty value counts as none.
    let (value, operator) = match operator.strip_prefix(':') {
        Some(operator) => (set.filter(|v| !v.is_empty()), operator),
        None => (set, operator),
    };
    let mut chars = operator.chars();
    let kind = chars.next().ok_or_else(bad)?;
    let word = chars.as_str();
    match (kind, value) {
        ('-', Some(value)) | ('?', Some(value)) => Ok(value.clone()),
        ('-', None) | ('+', Some(_)) => expand(word, vars, nesting + 1),
        ('+', None) => Ok(String::new()),
        ('?', None) => {
            let word: String = word.chars().filter(|c| !c.is_control()).take(200).collect();
            let (code, message, fix) = unset(name);
            Err((code, if word.is_empty() { message } else { format!("{message}: {word}") }, fix))
        }
        _ => Err(bad()),
    }
}

fn unset(name: &str) -> Failure {
    (
        code::UNSET_VARIABLE,
        format!(
            "the variable {name} has no value here: only COPAL_* variables are known when a release is built"
        ),
        format!(
            "give a default `${{{name}:-value}}`, write `$${name}` if the container's own shell is to replace it, or set \
             it on the devices with `copal env set {name}=…`"
        ),
    )
}

fn name_at(text: &str) -> &str {
    let end = text
        .char_indices()
        .find(|(i, c)| !(c.is_ascii_alphabetic() || *c == '_' || (*i > 0 && c.is_ascii_digit())))
        .map_or(text.len(), |(i, _)| i);
    &text[..end]
}

/// Where the brace closes that was opened just before `text`.
fn closing_brace(text: &str) -> Option<usize> {
    let mut depth = 0_usize;
    let bytes = text.as_bytes();
    let mut i = 0;
    while i < bytes.len() {
        match bytes[i] {
            b'$' if bytes.get(i + 1) == Some(&b'$') => i += 1,
            b'$' if bytes.get(i + 1) == Some(&b'{') => {
                depth += 1;
                i += 1;
            }
            b'}' if depth == 0 => return Some(i),
            b'}' => depth -= 1,
            _ => {}
        }
        i += 1;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expand_with(text: &str) -> Result<String, &'static str> {
        let vars = BTreeMap::from([("A", "1"), ("EMPTY", "")].map(|(k, v)| (k.to_owned(), v.to_owned())));
        expand(text, &vars, 0).map_err(|e| e.0)
    }

    #[test]
    fn variables_and_defaults_as_compose_has_them() {
        for (text, want) in [
            ("plain", "plain"),
            ("$A-${A}", "1-1"),
            ("$$A ${A}", "$A 1"),
            ("${X:-d}", "d"),
            ("${X-d}", "d"),
            ("${EMPTY:-d}", "d"),
            ("${EMPTY-d}", ""),
            ("${X:-${Y:-${A}}}", "1"),
            ("${A:+yes}${X:+no}", "yes"),
            ("${A:?needed}", "1"),
            ("${X:-a$$b}", "a$b"),
        ] {
            assert_eq!(expand_with(text).as_deref(), Ok(want), "{text}");
        }
    }

    #[test]
    fn what_has_no_value_or_makes_no_sense_is_refused() {
        for (text, want) in [
            ("$X", code::UNSET_VARIABLE),
            ("${X}", code::UNSET_VARIABLE),
            ("${X:?say}", code::UNSET_VARIABLE),
            ("${", code::INVALID),
            ("${A", code::INVALID),
            ("$", code::INVALID),
            ("a $ b", code::INVALID),
            ("${A!b}", code::INVALID),
            ("${}", code::INVALID),
        ] {
            assert_eq!(expand_with(text), Err(want), "{text}");
        }
        let deep = format!("{}x{}", "${X:-".repeat(20), "}".repeat(20));
        assert_eq!(expand_with(&deep), Err(code::LIMIT));
    }
}
