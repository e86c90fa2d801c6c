//! The normative text and the code say the same, as far as a program can tell.

use std::{fs, path::PathBuf};

use super::*;
use crate::{
    documents::{
        Action, Assignment, BuildRecord, Freshness, Release, Report, Root, TerminalGrant, TerminalOffer,
    },
    spec,
};

fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(path: &str) -> String {
    fs::read_to_string(repository().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

#[test]
fn every_code_stands_in_the_protocol_text_and_no_other() {
    let text = read("docs/protocol.md");
    for code in Code::ALL {
        assert!(text.contains(&format!("\n| `{code}` | ")), "{code} has no row of its own");
    }
    for word in text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|w| w.starts_with("E_")) {
        let known = Code::ALL.iter().any(|code| code.as_str() == word);
        assert!(known || word == "E_POLICY_", "{word} is no code");
    }
}

#[test]
fn every_field_stands_in_the_protocol_text() {
    let text = read("docs/protocol.md");
    let source = "crates/protocol/src";
    let mut files = ["spec", "device_api", "config", "channel", "diagnosis"]
        .map(|file| format!("{source}/{file}.rs"))
        .to_vec();
    for entry in fs::read_dir(repository().join(source).join("documents")).unwrap() {
        files.push(format!("{source}/documents/{}", entry.unwrap().file_name().to_string_lossy()));
    }
    let mut checked = 0;
    for file in files {
        for line in read(&file).lines() {
            let Some((field, _)) = line.trim().strip_prefix("pub ").and_then(|rest| rest.split_once(": "))
            else {
                continue;
            };
            if field.contains(' ') {
                continue; // a constant or a function
            }
            // Two fields are spelled otherwise in Rust than on the wire.
            let field = match field {
                "public" => "pub",
                "type_" => "type",
                field => field,
            };
            assert!(text.contains(&format!("`{field}`")), "{file}: `{field}` is not described");
            checked += 1;
        }
    }
    assert!(checked > 150, "only {checked} fields were found: the sources are read wrongly");
}

#[test]
fn every_payload_type_stands_there_with_its_bound() {
    fn row<D: Document>() -> String {
        let name = D::PAYLOAD_TYPE.strip_prefix("application/vnd.copal.").unwrap();
        format!("| `{}` |", name.strip_suffix(".v1+json").unwrap())
    }
    let text = read("docs/protocol.md");
    for (row, max) in [
        (row::<Root>(), Root::MAX_BYTES),
        (row::<Release>(), Release::MAX_BYTES),
        (row::<Assignment>(), Assignment::MAX_BYTES),
        (row::<Freshness>(), Freshness::MAX_BYTES),
        (row::<Action>(), Action::MAX_BYTES),
        (row::<BuildRecord>(), BuildRecord::MAX_BYTES),
        (row::<Report>(), Report::MAX_BYTES),
        (row::<TerminalOffer>(), TerminalOffer::MAX_BYTES),
        (row::<TerminalGrant>(), TerminalGrant::MAX_BYTES),
    ] {
        let line = text.lines().find(|line| line.starts_with(&row)).unwrap_or_else(|| panic!("no row {row}"));
        let bound = if max == 1 << 20 { "1 MiB".to_owned() } else { format!("{} KiB", max >> 10) };
        assert!(line.ends_with(&format!("| {bound} |")), "{line}: {bound}");
    }
}

#[test]
fn every_probe_stands_there() {
    let text = read("docs/protocol.md");
    for (name, _) in crate::diagnosis::PROBES {
        assert!(text.contains(&format!("`{name}`")), "{name}");
    }
}

#[test]
fn every_label_stands_there() {
    let text = read("docs/protocol.md");
    for label in [
        spec::LABEL_STRATEGY,
        spec::LABEL_HEALTHY_AFTER,
        spec::LABEL_START_TIMEOUT,
        spec::LABEL_HANDOVER_TIMEOUT,
        spec::LABEL_SECRETS_ENV,
    ] {
        assert!(text.contains(&format!("\n| `{label}` | ")), "{label}");
    }
}

#[test]
fn every_promise_names_tests_that_exist() {
    let text = read("docs/security.md");
    let mut named = 0;
    for link in text.split("[`").skip(1) {
        let Some((name, rest)) = link.split_once("`](../") else {
            panic!("{link:.60}: a test without its file")
        };
        let (path, _) = rest.split_once(')').unwrap();
        assert!(read(path).contains(&format!("fn {name}(")), "{path} has no test {name}");
        named += 1;
    }
    assert!(named > 40, "only {named} tests are named");
}
