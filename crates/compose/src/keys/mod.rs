//! Every key of compose, and what becomes of it. `docs/compose.md` is written from this table, and a test holds the
//! two together; the readers ask it before they look at a value, so that no key is ever passed over in silence.

use std::fmt::Write as _;

use Support::{No, NoEffect, Yes};

use crate::{
    problem::{Problems, code},
    tree::Entry,
};

mod table;

pub(crate) use table::{
    BUILD, DEPLOY, HEALTHCHECK, LIMITS, NETWORK, RESERVATIONS, SERVICE, Section, Support, TOP, VOLUME,
};

/// Whether an entry is to be read. Refusals and warnings are recorded here.
pub(crate) fn admit(section: &Section, entry: &Entry, p: &mut Problems) -> bool {
    if entry.name.starts_with("x-") {
        return entry.name == "x-copal";
    }
    match section.keys.iter().find(|(name, _)| *name == entry.name) {
        Some((_, Yes(_))) => return true,
        Some((_, NoEffect(why))) => {
            p.warn(&entry.key, code::NO_EFFECT, format!("has no effect: {why}"), "remove it");
        }
        Some((_, No(why, fix))) => {
            p.at(&entry.key, code::UNSUPPORTED, format!("cannot be honoured: {why}"), *fix);
        }
        None => unknown(section.keys.iter().map(|(name, _)| *name), entry, p),
    }
    false
}

/// Whether the key is one of these few; for the long forms of ports, mounts and the like.
pub(crate) fn one_of(known: &[&str], entry: &Entry, p: &mut Problems) -> bool {
    if entry.name.starts_with("x-") {
        return false;
    }
    let found = known.contains(&entry.name.as_str());
    if !found {
        unknown(known.iter().copied(), entry, p);
    }
    found
}

fn unknown<'k>(known: impl Iterator<Item = &'k str> + Clone, entry: &Entry, p: &mut Problems) {
    let near = known.clone().map(|k| (distance(k, &entry.name), k)).min().filter(|(d, _)| *d <= 2);
    let fix = match near {
        Some((_, near)) => format!("did you mean `{near}`?"),
        None => {
            let known: Vec<&str> = known.collect();
            if known.len() <= 12 {
                format!("known here: {}; begin your own keys with `x-`", known.join(", "))
            } else {
                "remove it (docs/compose.md lists every key), or begin your own keys with `x-`".to_owned()
            }
        }
    };
    p.at(&entry.key, code::UNKNOWN_KEY, "is not a key of compose at this place", fix);
}

/// Levenshtein's distance, for "did you mean". Names are short (see the tree's bound on keys).
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let next = (diagonal + usize::from(x != y)).min(row[j] + 1).min(row[j + 1] + 1);
            diagonal = std::mem::replace(&mut row[j + 1], next);
        }
    }
    row[b.len()]
}

/// The table of `docs/compose.md`, as Markdown.
#[must_use]
pub fn markdown() -> String {
    let mut out = String::new();
    for section in table::ALL {
        let _ = write!(out, "### `{}`\n\n| key | | |\n|---|---|---|\n", section.title);
        for (name, support) in section.keys {
            let (word, note) = match support {
                Yes(note) => ("honoured", (*note).to_owned()),
                NoEffect(why) => ("no effect (warning)", (*why).to_owned()),
                No(why, fix) => ("refused", format!("{why}. *Instead:* {fix}")),
            };
            let _ = writeln!(out, "| `{name}` | {word} | {} |", note.replace('|', "\\|"));
        }
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Options, parse};

    #[test]
    fn the_documentation_has_the_same_table() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/compose.md");
        let page = std::fs::read_to_string(path).unwrap();
        let (before, rest) = page.split_once("<!-- keys -->\n").unwrap();
        let (table, after) = rest.split_once("<!-- end of keys -->").unwrap();
        let want = format!("\n{}", markdown());
        if std::env::var_os("UPDATE_EXPECTED").is_some() {
            std::fs::write(path, format!("{before}<!-- keys -->\n{want}<!-- end of keys -->{after}"))
                .unwrap();
        } else {
            assert_eq!(table, want, "run this test with UPDATE_EXPECTED=1 and review docs/compose.md");
        }
    }

    #[test]
    fn every_key_is_read_or_refused_as_the_table_says() {
        for (name, support) in SERVICE.keys {
            let image = if *name == "image" { "" } else { "image: a, " };
            let text = format!("services: {{a: {{{image}{name}: }}}}");
            let result = parse(&text, &Options::new("f", "amd64", "generic"));
            let refused = |code: &str| result.as_ref().is_err_and(|all| all.iter().any(|p| p.code == code));
            match support {
                No(..) => assert!(refused(code::UNSUPPORTED), "{name} is not refused"),
                NoEffect(_) => {
                    assert_eq!(result.as_ref().map(|p| p.warnings.len()), Ok(1), "{name} gives no warning");
                }
                // Whether an empty value is one is the key's own matter; that it is looked at is what counts.
                Yes(_) => {
                    assert!(!refused(code::UNSUPPORTED) && !refused(code::UNKNOWN_KEY), "{name} is not read");
                }
            }
        }
    }

    #[test]
    fn a_key_stands_once_in_its_section() {
        for section in table::ALL {
            let names: std::collections::BTreeSet<_> = section.keys.iter().map(|(name, _)| name).collect();
            assert_eq!(names.len(), section.keys.len(), "{}", section.title);
        }
    }

    #[test]
    fn near_misses_are_found() {
        assert_eq!(distance("ports", "prots"), 2);
        assert_eq!(distance("image", "image"), 0);
        assert_eq!(distance("", "abc"), 3);
    }
}
