//! All tests that cross parts, as one program: linked once, and run as many at a time as the machine has room for, whichever
//! file they stand in.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "tests")]

mod agent_update;
mod arch;
mod attack;
mod badlinks;
mod cli;
mod commands;
mod crowd;
mod fleet;
mod ills;
mod lock;
mod logs;
mod orders;
mod push;
mod registry;
mod restore;
mod rollback;
mod rounds;
mod survive;
mod telemetry;
mod terminal;
mod trust;

/// A file that is not named above would never run.
#[test]
fn every_file_of_tests_is_in_this_program() {
    let files = std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests")).unwrap();
    for file in files {
        let name = file.unwrap().file_name().into_string().unwrap();
        let module = name.strip_suffix(".rs").unwrap();
        let named = format!("mod {module};\n");
        assert!(module == "main" || include_str!("main.rs").contains(&named), "{name}");
    }
}
