//! Taking secrets out of text that leaves the device: those that are known, and what looks like one. Too much is taken rather
//! than too little.

/// What stands in a secret's place.
pub const GONE: &str = "(redacted)";
/// A known value shorter than this is taken out where its place is known, but is not looked for everywhere: it could be any word.
const SHORTEST: usize = 6;
/// Variables whose values are no secrets and stand in many texts.
const PLAIN: &[&str] = &["PATH", "HOME", "LANG", "LC_ALL", "PWD", "TERM", "HOSTNAME", "TZ", "SHELL", "USER"];
/// A name with one of these names a secret.
const WORDS: &[&str] = &[
    "password",
    "passwd",
    "passphrase",
    "secret",
    "token",
    "apikey",
    "api_key",
    "api-key",
    "accesskey",
    "access_key",
    "private_key",
    "privatekey",
    "credential",
    "authorization",
    "psk",
    "wpa_key",
];

/// Takes secrets out.
#[derive(Clone, Default)]
pub struct Redactor {
    /// The longest first: one may hold another.
    known: Vec<String>,
}

impl Redactor {
    /// Knows these values to be secret.
    #[must_use]
    pub fn new(values: impl IntoIterator<Item = String>) -> Self {
        let mut known = Vec::new();
        for value in values {
            // A secret of several lines (a key file) may stand somewhere line by line, or escaped.
            known.extend(value.lines().map(|line| line.trim().to_owned()));
            known.push(value);
        }
        known.retain(|value| value.len() >= SHORTEST);
        known.sort_by(|a, b| b.len().cmp(&a.len()).then_with(|| a.cmp(b)));
        known.dedup();
        Self { known }
    }

    /// Knows also the values of these variables, `NAME=VALUE`.
    #[must_use]
    pub fn with_env<'a>(self, env: impl IntoIterator<Item = &'a String>) -> Self {
        let values = env.into_iter().filter_map(|pair| pair.split_once('='));
        let values = values.filter(|(name, _)| !PLAIN.contains(name)).map(|(_, value)| value.to_owned());
        Self::new(self.known.into_iter().chain(values))
    }

    /// The text without secrets.
    #[must_use]
    pub fn text(&self, text: &str) -> String {
        let mut out = text.to_owned();
        for known in &self.known {
            if out.contains(known.as_str()) {
                out = out.replace(known.as_str(), GONE);
            }
        }
        let lines: Vec<String> = out.split('\n').map(|line| named(&without_userinfo(line))).collect();
        lines.join("\n")
    }

    /// JSON without secrets: all text of it, whole where its name says so.
    pub fn json(&self, value: &mut serde_json::Value) {
        use serde_json::Value;
        match value {
            Value::String(text) => *text = self.text(text),
            Value::Array(items) => items.iter_mut().for_each(|item| self.json(item)),
            Value::Object(fields) => {
                for (name, field) in fields {
                    if is_secret(name) && !field.is_null() {
                        *field = GONE.into();
                    } else {
                        self.json(field);
                    }
                }
            }
            _ => {}
        }
    }
}

/// Whether something of this name is a secret.
#[must_use]
pub fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    WORDS.iter().any(|word| name.contains(word))
}

/// A line (or a URL) without the user and password of URLs.
#[must_use]
pub fn without_userinfo(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        out.push_str(before);
        let end = after.find(|c: char| c.is_whitespace() || matches!(c, '/' | '?' | '#' | '"' | '\''));
        let authority = &after[..end.unwrap_or(after.len())];
        if let Some((_, host)) = authority.rsplit_once('@') {
            out.push_str(GONE);
            out.push('@');
            out.push_str(host);
        } else {
            out.push_str(authority);
        }
        rest = &after[authority.len()..];
    }
    out.push_str(rest);
    out
}

/// A line without what follows a name of [`WORDS`]: `NAME=value`, `"name": "value"`, `--name value`, `Bearer value`.
fn named(line: &str) -> String {
    let lower = line.to_ascii_lowercase();
    let mut out = String::with_capacity(line.len());
    let mut at = 0;
    while let Some(found) = next_name(&lower, at) {
        let Some((from, to)) = value_after(&lower, &found) else {
            out.push_str(&line[at..found.end]);
            at = found.end;
            continue;
        };
        out.push_str(&line[at..from]);
        out.push_str(GONE);
        at = to;
    }
    out.push_str(&line[at..]);
    out
}

struct Found {
    start: usize,
    end: usize,
    bearer: bool,
}

/// The next name of a secret from `at` on, with all of the word it stands in.
fn next_name(lower: &str, at: usize) -> Option<Found> {
    let rest = &lower[at..];
    let hits = WORDS.iter().chain(&["bearer "]).filter_map(|word| Some((rest.find(word)?, *word)));
    let (offset, word) = hits.min()?;
    let bearer = word == "bearer ";
    let part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
    let start = at + offset;
    let begin = lower[..start]
        .rfind(|c| !part(c))
        .map_or(0, |i| i + lower[i..].chars().next().map_or(1, char::len_utf8));
    let mut end = start + word.len();
    if !bearer {
        end += lower[end..].find(|c| !part(c)).unwrap_or(lower.len() - end);
    }
    Some(Found { start: begin, end, bearer })
}

/// Where the value that belongs to a name begins and ends; `None` where none follows.
fn value_after(lower: &str, name: &Found) -> Option<(usize, usize)> {
    let mut from = name.end;
    let skip = |from: usize, what: &[char]| {
        from + (lower[from..].len() - lower[from..].trim_start_matches(what).len())
    };
    if !name.bearer {
        let after_quote = skip(from, &['"', '\'', '\\']);
        let after_space = skip(after_quote, &[' ', '\t']);
        let option = lower[name.start..].starts_with("--");
        match lower[after_space..].chars().next() {
            Some('=' | ':') => from = skip(after_space + 1, &[' ', '\t']),
            Some(_) if option && after_space > after_quote => from = after_space,
            _ => return None,
        }
    }
    let quoted = skip(from, &['\\']);
    let quote = lower[quoted..].chars().next().filter(|c| matches!(c, '"' | '\''));
    if let Some(quote) = quote {
        let escaped = quoted > from;
        from = quoted + 1;
        return Some((from, end_of_quoted(lower, from, quote, escaped)));
    }
    for scheme in ["bearer ", "basic ", "digest "] {
        if lower[from..].starts_with(scheme) {
            from += scheme.len();
        }
    }
    let stop = |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | ',' | ';' | '&' | '}' | ']' | ')');
    let end = lower[from..].find(stop).map_or(lower.len(), |i| from + i);
    (end > from).then_some((from, end))
}

/// Where a quoted value ends. A quote inside is escaped or doubled; where the first one is escaped itself (JSON in JSON), so is the
/// last.
fn end_of_quoted(lower: &str, from: usize, quote: char, escaped: bool) -> usize {
    let bytes = lower.as_bytes();
    let mut at = from;
    while let Some(found) = lower[at..].find(quote) {
        let here = at + found;
        let behind_backslash = here > from && bytes[here - 1] == b'\\';
        let doubled = lower[here + 1..].starts_with(quote);
        if behind_backslash == escaped && !doubled {
            return if escaped { here - 1 } else { here };
        }
        at = here + if doubled { 2 } else { 1 };
    }
    lower.len()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_looks_like_a_secret_is_taken_out() {
        for (text, left) in [
            ("DB_PASSWORD=hunter2 PORT=80", "DB_PASSWORD=(redacted) PORT=80"),
            ("\"api_key\": \"k-1 2\", \"n\": 1", "\"api_key\": \"(redacted)\", \"n\": 1"),
            ("run --token abc --fast", "run --token (redacted) --fast"),
            ("run --secret-key=abc", "run --secret-key=(redacted)"),
            ("Authorization: Bearer aaa.bbb", "Authorization: Bearer (redacted)"),
            ("curl -H 'x: Bearer aaa.bbb'", "curl -H 'x: Bearer (redacted)'"),
            ("GET https://me:pw@host:8080/a?b#c @x", "GET https://(redacted)@host:8080/a?b#c @x"),
            ("two http://a@h http://b@h", "two http://(redacted)@h http://(redacted)@h"),
            ("?token=abc&x=1", "?token=(redacted)&x=1"),
            ("password: 'it''s'; x", "password: '(redacted)'; x"),
            ("{\"password\": \"a\\\"b\", \"n\": 1}", "{\"password\": \"(redacted)\", \"n\": 1}"),
            ("{\\\"token\\\":\\\"abc\\\"}", "{\\\"token\\\":\\\"(redacted)\\\"}"),
            ("the token is missing", "the token is missing"),
            ("no secret here: 5", "no secret here: 5"),
            ("plain", "plain"),
        ] {
            let out = Redactor::default().text(text);
            assert_eq!(out, left);
        }
    }

    #[test]
    fn known_secrets_are_found_anywhere() {
        let env = ["GREETING=correct horse".to_owned(), "PATH=/usr/bin".to_owned(), "DEBUG=1".to_owned()];
        let redactor = Redactor::new(["line one\nline two".to_owned()]).with_env(&env);
        assert_eq!(redactor.text("it said correct horse, 1 /usr/bin"), "it said (redacted), 1 /usr/bin");
        assert_eq!(redactor.text("x line two y"), "x (redacted) y");
        let mut value = serde_json::json!({"a": ["correct horse"], "Token": {"deep": 1}, "n": 1});
        redactor.json(&mut value);
        assert_eq!(value, serde_json::json!({"a": [GONE], "Token": GONE, "n": 1}));
    }

    proptest! {
        #[test]
        fn any_text_is_taken_and_no_value_of_a_named_secret_is_left(text: String, value in "[a-zA-Z0-9]{8,20}") {
            let _ = Redactor::default().text(&text);
            let out = Redactor::default().text(&format!("{text} MY_TOKEN={value}"));
            prop_assert!(!out.contains(&value), "{out}");
            let known = Redactor::new([value.clone()]).text(&format!("{text}{value}{text}"));
            prop_assert!(!known.contains(&value));
        }
    }
}
