//! Compose files as people write them, and what becomes of each: `good/` to normalised JSON, `bad/` to problems.
//! The expected output stands beside the input, is written with `UPDATE_EXPECTED=1`, and is reviewed as code is.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use copal_compose::{Options, Problem, Project, parse};
use copal_protocol::{documents::Policy, spec::ServiceSpec};

fn files(folder: &str) -> Vec<PathBuf> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests").join(folder);
    let mut files: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|e| e == "yml"));
    files.sort();
    files
}

fn read(path: &Path) -> Result<Project, Vec<Problem>> {
    let name = path.file_name().unwrap().to_str().unwrap();
    let load = |path: &str| match path {
        "app.env" => Ok("FROM_FILE=yes\nMODE=file\n".to_owned()),
        _ => Err("there is no such file".to_owned()),
    };
    let deny_all = Policy::default();
    let mut options = Options::new("docker-compose.yml", "arm64", "raspberrypi4-64");
    options.files = Some(&load);
    if name.starts_with("policy") {
        options.allow = Some(&deny_all);
    }
    parse(&fs::read_to_string(path).unwrap(), &options)
}

fn compare(path: &Path, extension: &str, got: &str, wrong: &mut Vec<String>) {
    let expected = path.with_extension(extension);
    if std::env::var_os("UPDATE_EXPECTED").is_some() {
        fs::write(&expected, got).unwrap();
    } else if fs::read_to_string(&expected).unwrap_or_default() != got {
        wrong.push(format!("{} differs; got:\n{got}", expected.display()));
    }
}

#[test]
fn good_files_become_the_expected_specs() {
    let (mut wrong, mut count) = (Vec::new(), 0);
    for path in files("good") {
        count += 1;
        match read(&path) {
            Ok(project) => {
                for service in project.services.values() {
                    // A device reads exactly what was written.
                    let json = serde_json::to_string(&service.spec).unwrap();
                    assert_eq!(serde_json::from_str::<ServiceSpec>(&json).unwrap(), service.spec, "{json}");
                }
                let mut json = serde_json::to_string_pretty(&project).unwrap();
                json.push('\n');
                compare(&path, "json", &json, &mut wrong);
            }
            Err(problems) => {
                wrong.push(format!("{}:\n{}", path.display(), text(&problems)));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count > 20, "the corpus has gone: {count} files");
}

#[test]
fn bad_files_are_refused_with_every_problem_and_its_line() {
    let (mut wrong, mut count) = (Vec::new(), 0);
    for path in files("bad") {
        count += 1;
        match read(&path) {
            Ok(_) => wrong.push(format!("{} was accepted", path.display())),
            Err(problems) => compare(&path, "txt", &text(&problems), &mut wrong),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count > 10, "the corpus has gone: {count} files");
}

#[test]
fn the_sample_runs_without_any_allowance_of_the_owner() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../images/apps/sample/docker-compose.yml");
    let deny_all = Policy::default();
    let mut options = Options::new("docker-compose.yml", "amd64", "generic");
    options.allow = Some(&deny_all);
    let project =
        parse(&fs::read_to_string(path).unwrap(), &options).unwrap_or_else(|p| panic!("{}", text(&p)));
    assert_eq!(project.services.len(), 3);
    assert!(project.warnings.is_empty(), "{}", text(&project.warnings));
    assert_eq!(project.services["web"].spec.healthy_after_ms(), Some(10_000));
}

fn text(problems: &[Problem]) -> String {
    problems.iter().map(|p| format!("[{}] {p}\n", p.code)).collect()
}
