//! Whether updates are paused. In: a person's word, and for how long. Out: `paused` of the [`Nudges`], which keeps anything new
//! from being installed. Kept over restarts (file `pause`) and ended by itself; a device without a clock counts the time of
//! each boot alone, and so never ends a pause too early.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};

use crate::{
    clock::{self, Clock},
    state::{StateDir, StateError},
    target::Nudges,
};

const FILE: &str = "pause";
/// Between looks at a pause that ends by itself: the wall clock may be set meanwhile.
const LOOK: Duration = Duration::from_secs(600);

/// What is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    /// Absent: not paused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pause: Option<Paused>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Paused {
    boot_id: String,
    /// Seconds since that boot.
    since_s: u64,
    /// For so long; absent: until resumed.
    for_s: Option<u32>,
    /// Its end, Unix seconds; absent where the clock was not set.
    until: Option<u64>,
}

/// A moment, by both clocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moment {
    /// The boot.
    pub boot_id: String,
    /// Seconds since it.
    pub uptime_s: u64,
    /// Unix seconds; absent while the clock is not set.
    pub wall: Option<u64>,
}

impl Moment {
    /// Now.
    #[must_use]
    pub fn now(clock: &Clock) -> Self {
        let wall = (!clock.is_unset()).then(|| clock.now());
        Self { boot_id: clock::boot_id(), uptime_s: clock::uptime_s(), wall }
    }
}

/// Seconds left of a pause: 0 when it is over, `None` where it has no end.
fn left(pause: &Paused, now: &Moment) -> Option<u64> {
    let for_s = u64::from(pause.for_s?);
    if pause.boot_id == now.boot_id {
        return Some((pause.since_s + for_s).saturating_sub(now.uptime_s));
    }
    let by_this_boot = for_s.saturating_sub(now.uptime_s);
    let by_clock = pause.until.zip(now.wall).map(|(until, wall)| until.saturating_sub(wall));
    Some(by_clock.map_or(by_this_boot, |left| left.min(by_this_boot)))
}

/// The pause of updates.
pub struct Pause {
    state: Arc<StateDir>,
    clock: Clock,
    nudges: watch::Sender<Nudges>,
    record: Mutex<Record>,
    changed: Notify,
}

impl Pause {
    /// What was said before; what cannot be read counts as paused until a person resumes, as whoever paused had a reason.
    #[must_use]
    pub fn open(state: Arc<StateDir>, clock: Clock, nudges: watch::Sender<Nudges>) -> Self {
        let record = state.load::<Record>(FILE).unwrap_or_else(|error| {
            tracing::error!(%error, "whether updates are paused is lost; they are until resumed");
            let lost = Paused { boot_id: String::new(), since_s: 0, for_s: None, until: None };
            Some(Record { pause: Some(lost) })
        });
        let pause = Self {
            state,
            clock,
            nudges,
            record: Mutex::new(record.unwrap_or_default()),
            changed: Notify::new(),
        };
        pause.tell();
        pause
    }

    /// From now on nothing new is installed; durable when it returns.
    ///
    /// # Errors
    /// Where it cannot be written down; then nothing is changed.
    pub fn pause(&self, for_s: Option<u32>) -> Result<(), StateError> {
        let now = Moment::now(&self.clock);
        let until = for_s.zip(now.wall).map(|(for_s, wall)| wall + u64::from(for_s));
        self.set(Some(Paused { boot_id: now.boot_id, since_s: now.uptime_s, for_s, until }))
    }

    /// Updates go on; durable when it returns.
    ///
    /// # Errors
    /// As [`Self::pause`].
    pub fn resume(&self) -> Result<(), StateError> {
        self.set(None)
    }

    /// Ends a pause when its time is over; runs until dropped.
    pub async fn run(&self) {
        loop {
            let record = self.record();
            let wait = match record.pause.as_ref().map(|pause| left(pause, &Moment::now(&self.clock))) {
                None | Some(None) => None,
                Some(Some(0)) => {
                    tracing::info!("the pause of updates is over");
                    match self.resume() {
                        Ok(()) => None,
                        // It ended all the same; at worst it ends once more after a restart.
                        Err(error) => {
                            tracing::warn!(%error, "that the pause is over cannot be written down");
                            self.nudges.send_modify(|n| n.paused = false);
                            Some(LOOK)
                        }
                    }
                }
                Some(Some(seconds)) => Some(Duration::from_secs(seconds).min(LOOK)),
            };
            match wait {
                Some(wait) => drop(tokio::time::timeout(wait, self.changed.notified()).await),
                None => self.changed.notified().await,
            }
        }
    }

    fn set(&self, pause: Option<Paused>) -> Result<(), StateError> {
        {
            let mut record = self.record.lock().unwrap_or_else(PoisonError::into_inner);
            let next = Record { pause };
            if next != *record {
                self.state.save(FILE, &next)?;
                *record = next;
            }
        }
        self.tell();
        self.changed.notify_one();
        Ok(())
    }

    fn tell(&self) {
        let paused = self.record().pause.is_some();
        self.nudges.send_if_modified(|nudges| std::mem::replace(&mut nudges.paused, paused) != paused);
    }

    fn record(&self) -> Record {
        self.record.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::RealFs;

    fn at(boot: &str, uptime_s: u64, wall: Option<u64>) -> Moment {
        Moment { boot_id: boot.to_owned(), uptime_s, wall }
    }

    #[test]
    fn a_pause_ends_when_its_time_is_over_by_whichever_clock_can_tell() {
        let pause = |until| Paused { boot_id: "a".into(), since_s: 100, for_s: Some(60), until };
        assert_eq!(left(&pause(None), &at("a", 130, None)), Some(30));
        assert_eq!(left(&pause(Some(1)), &at("a", 130, Some(1_000_000))), Some(30), "a clock that leaps");
        assert_eq!(left(&pause(None), &at("a", 160, None)), Some(0));
        // After another boot.
        assert_eq!(left(&pause(Some(1060)), &at("b", 5, Some(1050))), Some(10));
        assert_eq!(left(&pause(Some(1060)), &at("b", 5, Some(2000))), Some(0));
        assert_eq!(left(&pause(Some(1060)), &at("b", 5, None)), Some(55), "no clock: all of it again");
        assert_eq!(left(&pause(None), &at("b", 60, Some(9))), Some(0));
        let open = Paused { for_s: None, ..pause(None) };
        assert_eq!(left(&open, &at("b", 1 << 40, Some(1 << 40))), None);
    }

    #[tokio::test]
    async fn a_pause_is_told_survives_a_restart_and_ends() {
        let dir = tempfile::tempdir().unwrap();
        let open = || {
            let (nudges, seen) = watch::channel(Nudges::default());
            let state = Arc::new(StateDir::open(dir.path(), Arc::new(RealFs)).unwrap());
            (Pause::open(state, Clock::default(), nudges), seen)
        };
        let (pause, seen) = open();
        assert!(!seen.borrow().paused);
        pause.pause(None).unwrap();
        assert!(seen.borrow().paused);
        let (pause, mut seen) = open();
        assert!(seen.borrow_and_update().paused);
        pause.pause(Some(0)).unwrap();
        let ended = async {
            while seen.borrow_and_update().paused {
                seen.changed().await.unwrap();
            }
        };
        tokio::select! {
            () = pause.run() => panic!("it never ends"),
            () = ended => {}
        }
        assert!(!open().1.borrow().paused);
    }
}
