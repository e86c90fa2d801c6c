//! How long planning takes.

use std::time::Instant;

use crate::{Row, median, row};

pub(crate) fn rows() -> Vec<Row> {
    [(3, "peer 6 ms"), (10, "peer 140 ms"), (30, "peer 1,100 ms"), (100, "goal < 5 ms; peer 21,800 ms")]
        .into_iter()
        .map(|(services, beside)| {
            let case = copal_agent::bench::plan_case(services);
            let mut times: Vec<f64> = (0..51)
                .map(|_| {
                    let began = Instant::now();
                    let steps = case.plan();
                    let took = began.elapsed().as_secs_f64() * 1e3;
                    assert!(steps >= services);
                    took
                })
                .collect();
            row(format!("plan of a fresh install, {services} services"), format!("{:.3} ms", median(&mut times)), beside)
        })
        .collect()
}
