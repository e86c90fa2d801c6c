//! `environment:` and `env_file:`.

use std::collections::BTreeMap;

use crate::{
    Options, keys,
    problem::{Problems, code},
    read,
    tree::{Node, Value},
};

/// Bytes of an `env_file` at most.
const MAX_ENV_FILE: usize = 64 << 10;
/// Files a service may name.
const MAX_ENV_FILES: usize = 16;

/// What the agent gives to every service.
const INJECTED: &[&str] = &[
    "COPAL",
    "COPAL_APP_ID",
    "COPAL_DEVICE_ID",
    "COPAL_SERVICE_NAME",
    "COPAL_DEVICE_TYPE",
    "COPAL_LOCK_DIR",
];

/// The name of a variable, where it is one.
pub(crate) fn variable_name(text: &str) -> Option<String> {
    let sane = !text.is_empty()
        && text.len() <= 256
        && !text.contains('=')
        && !text.chars().any(|c| c.is_control() || c.is_whitespace());
    sane.then(|| text.to_owned())
}

/// `environment:`.
pub(crate) fn inline(node: &Node, p: &mut Problems) -> BTreeMap<String, String> {
    let mut variables = BTreeMap::new();
    for (name, value, at) in read::pairs(node, p) {
        if variable_name(&name).is_none() {
            p.at(
                at,
                code::INVALID,
                format!("`{}` is not the name of a variable", read::shown(&name)),
                "write NAME=value",
            );
            continue;
        }
        if INJECTED.contains(&name.as_str()) {
            p.at(
                at,
                code::CONFLICT,
                format!("{name} is set by the agent"),
                "remove it; the service finds the true value",
            );
            continue;
        }
        let Some(value) = value else {
            p.at(
                at,
                code::MISSING,
                format!("{name} has no value: a device has no shell to take it from"),
                format!("write `{name}=` for an empty value, or remove it here and set it with `copal env set {name}=…`"),
            );
            continue;
        };
        if variables.insert(name.clone(), value).is_some() {
            p.at(at, code::DUPLICATE_KEY, format!("{name} is set twice"), "keep one of the two");
        }
    }
    variables
}

/// `env_file:`; later files win.
pub(crate) fn files(node: &Node, options: &Options<'_>, p: &mut Problems) -> BTreeMap<String, String> {
    let mut variables = BTreeMap::new();
    let items = read::one_or_many(node, p);
    if items.len() > MAX_ENV_FILES {
        p.at(node, code::LIMIT, format!("names more than {MAX_ENV_FILES} files"), "join them");
    }
    for item in items.iter().take(MAX_ENV_FILES) {
        let (mut path, mut required) = (None, true);
        if let Value::Map(entries) = &item.value {
            for entry in entries {
                if !keys::one_of(&["path", "required", "format"], entry, p) {
                    continue;
                }
                match entry.name.as_str() {
                    "path" => path = Some(&entry.node),
                    "required" => required = read::boolean(&entry.node, p).unwrap_or(true),
                    _ => p.at(
                        &entry.node,
                        code::UNSUPPORTED,
                        "cannot be honoured: one format is read",
                        "remove it",
                    ),
                }
            }
            if path.is_none() {
                p.at(item, code::MISSING, "has no `path`", "write `path: <file>`");
            }
        } else {
            path = Some(item);
        }
        let Some(at) = path else { continue };
        let Some(path) =
            read::parsed(at, p, "a file of the project", |t| read::relative_path(t).filter(|f| f != "."))
        else {
            continue;
        };
        let Some(load) = options.files else {
            p.at(at, code::FILE, "cannot be read here", "write the variables under `environment:`");
            continue;
        };
        match load(&path) {
            Ok(text) if text.len() > MAX_ENV_FILE => p.at(
                at,
                code::LIMIT,
                format!("{path} is {} bytes long; at most {MAX_ENV_FILE} are read", text.len()),
                "shorten it",
            ),
            Ok(text) => parse(&text, &path, &mut variables, p),
            Err(_) if !required => {}
            Err(why) => p.at(
                at,
                code::FILE,
                format!("{path} cannot be read: {why}"),
                "add the file to the repository, or remove the line",
            ),
        }
    }
    variables
}

/// Lines of `NAME=value`, `export NAME="value"`, comments. A problem names the line of that file.
fn parse(text: &str, path: &str, variables: &mut BTreeMap<String, String>, p: &mut Problems) {
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let line = line.strip_prefix("export ").unwrap_or(line).trim_start();
        let read = line
            .split_once('=')
            .and_then(|(name, value)| Some((variable_name(name.trim_end())?, unquote(value.trim())?)));
        match read {
            Some((name, value)) if !value.contains('\0') => {
                variables.insert(name, value);
            }
            _ => {
                let mut problem = p.make(
                    (number as u64 + 1, 1),
                    String::new(),
                    code::INVALID,
                    "is not NAME=value (a quoted value ends on its line)",
                    "write NAME=value, or begin the line with #",
                );
                problem.file = path.to_owned();
                p.push(problem);
            }
        }
    }
}

/// A value without its quotes: single ones keep everything, double ones know escapes, bare ones end at ` #`.
fn unquote(value: &str) -> Option<String> {
    let after_quote = |rest: &str| {
        let rest = rest.trim_start();
        rest.is_empty() || rest.starts_with('#')
    };
    if let Some(rest) = value.strip_prefix('\'') {
        let (inside, after) = rest.split_once('\'')?;
        return after_quote(after).then(|| inside.to_owned());
    }
    let Some(rest) = value.strip_prefix('"') else {
        return Some(value.split_once(" #").map_or(value, |(value, _)| value.trim_end()).to_owned());
    };
    let mut out = String::new();
    let mut chars = rest.chars();
    loop {
        match chars.next()? {
            '"' => return after_quote(chars.as_str()).then_some(out),
            '\\' => match chars.next()? {
                'n' => out.push('\n'),
                'r' => out.push('\r'),
                't' => out.push('\t'),
                other => out.push(other),
            },
            other => out.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_an_env_file() {
        let mut p = Problems::new("docker-compose.yml");
        let mut variables = BTreeMap::new();
        let text = "# note\nA=1\nexport B = two words # note\nC='a # b'\nD=\"x\\ny\" # note\nE=\nF=a#b\nbad line\nG='open\n";
        parse(text, "app.env", &mut variables, &mut p);
        let want = [("A", "1"), ("B", "two words"), ("C", "a # b"), ("D", "x\ny"), ("E", ""), ("F", "a#b")];
        assert_eq!(variables, want.map(|(k, v)| (k.to_owned(), v.to_owned())).into());
        let places: Vec<_> = p.list.iter().map(|p| (p.file.as_str(), p.line)).collect();
        assert_eq!(places, [("app.env", 8), ("app.env", 9)]);
    }
}
