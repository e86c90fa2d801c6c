//! What takes a channel's place while a budget of bytes has no room for one: every few hours the device logs in, exchanges what
//! there is to say in one call or two, and goes, telling when it comes again.
//!
//! 1. Hello; the cloud answers with the assignment's hash and what it wants done.
//! 2. Events that wait, and how what was wanted ended, as far as that is quick.
//! 3. Where the hash is news, and about once a day, a poll; and reports meanwhile, all over the one connection.
//!
//! The next visit comes when the budget has room for one like the last, but within a day whatever was used: no device is dark.

use std::{sync::Arc, time::Duration};

use copal_protocol::{
    channel::{DeviceFrame, Welcome},
    telemetry::Sheds,
};
use tokio::time::Instant;

use super::{
    End, Line,
    exchange::{self, ACKS, Over},
    meter::Meter,
    pace::share,
};
use crate::cloud::random;

/// What a visit takes, before one was made.
const COST: u64 = 6_000;
/// After a visit that failed, and twice as long after the next.
const AGAIN: Duration = Duration::from_secs(300);
/// Later than was said, and still no reason to worry: the line was bad, or the device slow.
const LATE: Duration = Duration::from_secs(600);
/// Batches of one visit.
const BATCHES: usize = 4;

/// When to come.
#[derive(Debug)]
pub(super) struct Visits {
    bounds: (Duration, Duration),
    /// Bytes of one, by the last ones.
    cost: u64,
    failed: u32,
    polled: Option<Instant>,
    /// When the next one comes, where that was said already.
    due: Option<Instant>,
}

impl Visits {
    pub(super) fn new(bounds: (Duration, Duration)) -> Self {
        Self { bounds, cost: COST, failed: 0, polled: None, due: None }
    }

    /// Until the next one, where it is not spread.
    fn pause(&self, meter: &Meter) -> Duration {
        let pause = meter.until_room(self.cost).max(self.bounds.0).min(self.bounds.1);
        if self.failed == 0 { pause } else { pause.min(AGAIN * (1 << (self.failed - 1).min(8))) }
    }

    /// The device has just left a channel, with a word: nothing is to be said before its time.
    pub(super) fn left(&mut self, meter: &Meter) {
        self.due = Some(self.next(meter));
    }

    /// When the next one comes.
    fn next(&self, meter: &Meter) -> Instant {
        let pause = self.pause(meter);
        Instant::now() + pause.mul_f64(SPREAD.0) + share(pause.mul_f64(SPREAD.1 - SPREAD.0), random())
    }

    /// Within what time the next one comes, as the cloud is told.
    pub(super) fn within_s(&self, meter: &Meter) -> u32 {
        let most = self.bounds.1.min(meter.until_room(2 * self.cost).max(self.bounds.0));
        u32::try_from((most.mul_f64(SPREAD.1) + LATE).as_secs()).unwrap_or(u32::MAX)
    }
}

/// A visit comes between the first and the second of its time, so that a fleet does not come in step.
const SPREAD: (f64, f64) = (0.85, 1.15);

/// Visits until there is room for a channel.
pub(super) async fn run(line: &mut Line) {
    let mut due = line.visits.due.take().unwrap_or_else(Instant::now);
    while line.tell_budget() == Sheds::Polls {
        if due <= Instant::now() {
            let before = line.meter.used();
            line.spare.send_replace(false);
            let visited = visit(line).await;
            line.spare.send_replace(true);
            // Counts what passed meanwhile.
            line.tell_budget();
            match visited {
                Ok(()) => {
                    line.visits.failed = 0;
                    let took = line.meter.used().saturating_sub(before).min(4 * COST);
                    line.visits.cost = (line.visits.cost + took) / 2;
                }
                Err(why) => {
                    tracing::info!(why, "a visit to the cloud failed; it is made again");
                    line.visits.failed += 1;
                }
            }
            due = line.visits.next(&line.meter);
        }
        let left = due.saturating_duration_since(Instant::now());
        tokio::time::sleep(left.min(line.pace.look)).await;
    }
}

async fn visit(line: &mut Line) -> Result<(), String> {
    let spoken = speak(line).await;
    let (welcome, why) = match spoken {
        Ok(welcome) => (welcome, None),
        Err(over) => (None, Some(over)),
    };
    // It also brings the cloud's word that what is there is the newest.
    let poll = line.visits.polled.is_none_or(|at| at.elapsed() >= line.visits.bounds.1 * 5 / 6);
    if line.talk.visited(welcome.as_ref(), poll) {
        line.visits.polled = Some(Instant::now());
    }
    tokio::time::sleep(line.pace.stay).await;
    match why {
        None => Ok(()),
        Some(over) => Err(match over.end(None) {
            End::Refused(error) => error.to_string(),
            End::NotTaken(why) => why,
            End::Bye(bye, _) => format!("the cloud says {}", bye.code),
            _ => "it broke".to_owned(),
        }),
    }
}

/// Says and hears what there is.
async fn speak(line: &mut Line) -> Result<Option<Welcome>, Over> {
    let session = Arc::clone(&line.session);
    line.talk.acks.restart();
    line.talk.outbox.restart();
    let hello = line.talk.hello(false);
    let (acks, last) = line.talk.acks.take(ACKS);
    let frames = [hello].into_iter().chain(acks.into_iter().map(DeviceFrame::Ack)).chain([line.leave()]);
    let said = exchange::say(line, &session, frames.collect(), last).await?;
    let welcome = said.welcome;
    let mut commands = said.commands;
    for _ in 0..BATCHES {
        let Some(batch) = line.batch() else { break };
        let frames = vec![batch, line.leave()];
        commands |= exchange::say(line, &session, frames, None).await?.commands;
    }
    // What was asked for is told of while it goes on; what takes longer, at the next visit.
    let until = Instant::now() + line.pace.stay;
    if !commands {
        return Ok(welcome);
    }
    loop {
        let acks = line.talk.acks.clone();
        if tokio::time::timeout_at(until, acks.news()).await.is_err() {
            return Ok(welcome);
        }
        let (acks, last) = acks.take(ACKS);
        if last.is_none() {
            continue;
        }
        let frames = acks.into_iter().map(DeviceFrame::Ack).chain([line.leave()]).collect();
        exchange::say(line, &session, frames, last).await?;
    }
}
