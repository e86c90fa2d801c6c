//! How long planning takes, by number of services: an install from nothing, and the look that finds nothing to do.
//! `cargo run --release -p copal-agent --example plan_time`
#![allow(clippy::print_stdout, reason = "a table is what it is for")]

use std::time::Instant;

use copal_agent::{
    observe::State,
    plan::{Policy, offline, plan, wanted::Context},
};

fn main() {
    let cx = Context {
        instance: "bench".into(),
        prefix: "copal".into(),
        hash_key: [1; 32],
        platform: "linux/amd64".into(),
        device_id: "d".into(),
        device_type: "generic".into(),
    };
    let policy = Policy { prefix: cx.prefix.clone(), ..Policy::default() };
    println!("services   making one of the release   planning the install   steps");
    for n in [3, 10, 30, 100] {
        let file = offline::sample(n);
        let begun = Instant::now();
        let Ok(wanted) = offline::wanted(&cx, &file) else { return };
        let made = begun.elapsed();
        let state = State::default();
        let runs = 100;
        let begun = Instant::now();
        let mut steps = 0;
        for _ in 0..runs {
            steps = plan(&state, &wanted, &policy).steps();
        }
        let each = begun.elapsed() / runs;
        println!("{n:8}   {made:>25.1?}   {each:>20.1?}   {steps:5}");
    }
}
