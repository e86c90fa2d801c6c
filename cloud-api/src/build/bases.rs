//! Which images a Dockerfile builds upon, so that a build takes none of another fleet's from the engine they share.
//!
//! The engine looks for a base among its own images first, by name or by the first digits of an id, and keeps those
//! that other builds made. What is refused: the names those have, and ids. Variables in `FROM` are filled in as the
//! builder does; what cannot be read so is refused too.

use std::collections::BTreeMap;

/// What every image of a build is called first.
pub(super) const OURS: &str = "copal-build-";

/// What the agent calls the images of a device that shares the engine.
const DEVICES: &str = "copal.local";

/// Why a Dockerfile is refused.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refused {
    /// The line the instruction begins on, from 1.
    pub(super) line: usize,
    pub(super) why: String,
}

/// Looks at every `FROM` and `COPY --from`.
pub(super) fn check(text: &str, args: &BTreeMap<String, String>) -> Result<(), Refused> {
    look(text, '\\', args)?;
    // Whether a directive that changes the escape character counts is the builder's to say: both ways must be sound.
    if text.to_ascii_lowercase().contains("escape") { look(text, '`', args) } else { Ok(()) }
}

fn look(text: &str, escape: char, args: &BTreeMap<String, String>) -> Result<(), Refused> {
    let mut known: BTreeMap<String, String> = BTreeMap::new();
    let mut stages: Vec<Option<String>> = Vec::new();
    for (line, instruction) in joined(text, escape) {
        let refuse = |why: String| Err(Refused { line, why });
        let mut words = instruction.split_whitespace().peekable();
        // What stands behind ONBUILD happens as well, if only in the next build.
        while words.next_if(|w| w.eq_ignore_ascii_case("onbuild")).is_some() {}
        match words.next().unwrap_or("").to_ascii_uppercase().as_str() {
            "ARG" if stages.is_empty() => {
                for word in words {
                    let (name, default) = word.split_once('=').unwrap_or((word, ""));
                    let value = match args.get(name) {
                        Some(given) => Some(given.clone()),
                        None => fill(default, &known),
                    };
                    // Left as it stands where it cannot be read: whoever uses it is refused.
                    known.insert(name.to_owned(), value.unwrap_or_else(|| "$".to_owned()));
                }
            }
            "FROM" => {
                let mut words = words.filter(|w| !w.starts_with("--"));
                let written = words.next().unwrap_or("");
                let Some(base) = fill(written, &known).filter(|base| !base.contains('$')) else {
                    return refuse(format!(
                        "the base {written:?} cannot be read; write the image's name, or ARG with a plain value before the first FROM"
                    ));
                };
                if !is_stage(&base, &stages)
                    && let Err(why) = image(&base)
                {
                    return refuse(why);
                }
                let named = words.next().is_some_and(|w| w.eq_ignore_ascii_case("as"));
                stages.push(words.next().filter(|_| named).map(str::to_ascii_lowercase));
            }
            "COPY" | "ADD" => {
                for from in words.filter_map(|w| w.strip_prefix("--from=")) {
                    let index = from.parse::<usize>().is_ok_and(|i| i < stages.len());
                    if !index
                        && !is_stage(from, &stages)
                        && let Err(why) = image(from)
                    {
                        return refuse(why);
                    }
                }
            }
            _ => {}
        }
    }
    Ok(())
}

fn is_stage(name: &str, stages: &[Option<String>]) -> bool {
    let name = name.to_ascii_lowercase();
    stages.iter().any(|s| s.as_deref() == Some(name.as_str()))
}

/// Whether an image of this name may be taken from the engine.
pub(super) fn image(name: &str) -> Result<(), String> {
    let lower = name.to_ascii_lowercase();
    if lower.split('/').any(|part| part.starts_with(OURS) || part.starts_with(DEVICES)) {
        return Err(format!(
            "{name} is what another build left in the engine, and no base for this one; use the image it was made from, or copy its Dockerfile's stage"
        ));
    }
    let hex = !lower.is_empty() && lower.bytes().all(|b| b.is_ascii_hexdigit());
    if hex || lower.starts_with("sha256:") {
        return Err(format!(
            "{name} may be the id of an image of somebody else's build; write a name with a tag, such as {name}:latest",
        ));
    }
    Ok(())
}

/// Instructions as the builder joins them: nothing comes between a line and the one that continues it.
fn joined(text: &str, escape: char) -> Vec<(usize, String)> {
    let mut out: Vec<(usize, String)> = Vec::new();
    let mut open = false;
    for (index, raw) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        let line = raw.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let end = raw.trim_end_matches([' ', '\t', '\r']);
        let part = end.strip_suffix(escape);
        match out.last_mut().filter(|_| open) {
            Some((_, instruction)) => instruction.push_str(part.unwrap_or(raw)),
            None => out.push((index + 1, part.unwrap_or(raw).trim_start().to_owned())),
        }
        open = part.is_some();
    }
    out
}

/// Fills variables in and takes quotes away; `None` for what this does not read.
fn fill(word: &str, known: &BTreeMap<String, String>) -> Option<String> {
    let word: String = word.chars().filter(|c| !matches!(c, '"' | '\'')).collect();
    if word.contains(['\\', '`']) {
        return None;
    }
    let mut out = String::new();
    let mut rest = word.as_str();
    while let Some((before, after)) = rest.split_once('$') {
        out.push_str(before);
        let name_end =
            |text: &str| text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len());
        if let Some(inner) = after.strip_prefix('{') {
            let (inner, behind) = inner.split_once('}')?;
            let (name, modifier) = inner.split_at(name_end(inner));
            let value = known.get(name).map_or("", String::as_str);
            if name.is_empty() || modifier.contains('$') {
                return None;
            }
            match modifier.get(..2) {
                None if modifier.is_empty() => out.push_str(value),
                Some(":-") if value.is_empty() => out.push_str(&modifier[2..]),
                Some(":-") => out.push_str(value),
                Some(":+") if value.is_empty() => {}
                Some(":+") => out.push_str(&modifier[2..]),
                _ => return None,
            }
            rest = behind;
        } else {
            let (name, behind) = after.split_at(name_end(after));
            if name.is_empty() {
                return None;
            }
            out.push_str(known.get(name).map_or("", String::as_str));
            rest = behind;
        }
    }
    out.push_str(rest);
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> Option<usize> {
        check(text, &BTreeMap::new()).err().map(|r| r.line)
    }

    #[test]
    fn a_build_takes_no_image_of_another_fleet_from_the_engine() {
        for text in [
            "FROM copal-build-0123/other/web:latest",
            "FROM docker.io/copal-build-0123/other/web",
            "FROM index.docker.io/Copal-Build-0123/other/web",
            "FROM --platform=linux/amd64 copal-build-0123/other/web",
            "FROM \"copal-build-0123/other/web\"",
            "FROM copal-bui\\\nld-0123/other/web",
            "FR\\\nOM copal-build-0123/other/web",
            "# a=b\n# escape=`\nFR\\\nOM copal-build-0123/other/web",
            "# escape=`\nFR`\nOM copal-build-0123/other/web",
            "ARG B=copal-build-0123\nFROM $B/other/web",
            "ARG A=copal\nARG B=${A}-build-0123\nFROM ${B}/other/web",
            "ARG A\nFROM ${A:-copal-build-0123/other/web}",
            "ARG A=1\nFROM ${A:+copal-build-0123/other/web}",
            "FROM ${A:-${B}}",
            "FROM ${A#x}",
            "FROM a1b2c3",
            "FROM sha256:a1b2",
            "FROM a",
            "FROM alpine\nCOPY --from=copal-build-0123/other/web / /",
            "FROM alpine\ncopy --chown=1:1 --from=a1 / /",
            "FROM alpine\nCOPY --from=1 / /",
            "FROM alpine\nONBUILD COPY --from=copal.local/ab / /",
            "FROM alpine\nCOPY --from=late / /\nCOPY --from=cafe / /\nFROM alpine AS cafe",
        ] {
            assert!(refused(text).is_some(), "{text}");
        }
        let args = BTreeMap::from([("B".to_owned(), "copal-build-0123/other/web".to_owned())]);
        assert!(check("ARG B=alpine\nFROM $B", &args).is_err(), "a build argument wins over its default");
    }

    #[test]
    fn a_service_takes_no_image_of_another_fleet_from_the_engine_by_name_or_id() {
        for name in
            ["copal-build-0123/other/web:latest", "docker.io/copal-build-0123/x", "ab12", "sha256:ab12"]
        {
            assert!(image(name).is_err(), "{name}");
        }
        for name in ["redis:7", "redis", "ghcr.io/x/y@sha256:0123", "cafe:latest"] {
            assert_eq!(image(name), Ok(()), "{name}");
        }
    }

    #[test]
    fn ordinary_dockerfiles_pass() {
        for text in [
            "FROM scratch\nCOPY a /a",
            "FROM alpine:3.20 AS build\nRUN make\nFROM scratch\nCOPY --from=build /a /a\nCOPY --from=0 /b /b",
            "ARG V=3.20\nFROM alpine:${V}\nARG X=$Y\nRUN echo $X ${Z#q}",
            "ARG V\nFROM alpine:${V:-3.20}",
            "FROM node:22 AS Cafe\nFROM cafe\nCOPY --from=CAFE / /",
            "FROM registry.example:5000/a/b@sha256:0123\nCOPY --from=ghcr.io/x/y:1 / /",
            "FROM alpine \\\n  AS a\n# comment\nCOPY --from=a \\\n  # inside\n  /x /y",
            "FROM cafe:latest",
        ] {
            assert_eq!(check(text, &BTreeMap::new()), Ok(()), "{text}");
        }
    }

    #[test]
    fn the_refusal_names_the_line() {
        assert_eq!(refused("# one\n\nFROM alpine\nRUN x \\\n y\nCOPY --from=ab / /"), Some(6));
    }
}
