//! Writes down when the agent was built: the lowest time a correct clock can show. `SOURCE_DATE_EPOCH` makes it
//! reproducible.

use std::time::{SystemTime, UNIX_EPOCH};

fn main() {
    println!("cargo:rerun-if-env-changed=SOURCE_DATE_EPOCH");
    println!("cargo:rerun-if-changed=build.rs");
    let time = std::env::var("SOURCE_DATE_EPOCH")
        .ok()
        .and_then(|t| t.parse::<u64>().ok())
        .unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()));
    println!("cargo:rustc-env=COPAL_BUILD_TIME={time}");
}
