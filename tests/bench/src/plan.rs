//! How long planning takes.

use std::time::Instant;

use copal_agent::{
    observe::State,
    plan::{offline, wanted::Context},
};

use crate::{Row, median, row};

pub(crate) fn rows() -> Vec<Row> {
    let context = Context {
        instance: "bench".to_owned(),
        prefix: "bench".to_owned(),
        hash_key: [7; 32],
        platform: "linux/amd64".to_owned(),
        device_id: "00112233445566778899aabbccddeeff".to_owned(),
        device_type: "generic".to_owned(),
    };
    [(3, "", "6 ms"), (10, "", "140 ms"), (30, "", "1,100 ms"), (100, "< 5 ms", "21,800 ms")]
        .into_iter()
        .map(|(services, goal, peer)| {
            let target = offline::sample(services);
            let mut times: Vec<f64> = (0..51)
                .map(|_| {
                    let began = Instant::now();
                    // Hashing every service's config is part of deciding, so it is part of the time.
                    let plan = offline::plan(&context, &State::default(), &target).unwrap();
                    let took = began.elapsed().as_secs_f64() * 1e3;
                    assert!(plan.steps() >= services);
                    took
                })
                .collect();
            let took = format!("{:.3} ms", median(&mut times));
            row(format!("plan of a fresh install, {services} services"), took).goal(goal).peer(peer)
        })
        .collect()
}
