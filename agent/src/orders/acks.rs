//! Acks on their way to the cloud: each is kept until the channel took it, and sent anew on every new channel. In: acks. Out:
//! those to send now. Bounded: where nobody takes them, what is not final goes first, then the oldest; an end that matters is in
//! the journal too.

use std::{
    collections::VecDeque,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use copal_protocol::{channel::Ack, ids::CommandId};
use tokio::sync::Notify;

/// The most acks under way.
const MOST: usize = 256;
/// The most bytes of results under way.
const BYTES: usize = 1 << 20;

/// The way out. Shared by whoever acts and whoever sends.
#[derive(Default)]
pub struct Acks {
    inner: Mutex<Inner>,
    news: Notify,
}

#[derive(Default)]
struct Inner {
    last: u64,
    waiting: VecDeque<Waiting>,
    told: Vec<CommandId>,
}

struct Waiting {
    number: u64,
    ack: Ack,
    bytes: usize,
    sent: bool,
}

impl Acks {
    /// Takes one more.
    pub fn push(&self, ack: Ack) {
        let bytes = ack.result.as_ref().map_or(0, |value| value.to_string().len());
        self.with(|inner| {
            inner.last += 1;
            inner.waiting.push_back(Waiting { number: inner.last, ack, bytes, sent: false });
            while inner.waiting.len() > MOST || inner.bytes() > BYTES {
                let at = inner.waiting.iter().position(|w| !w.ack.state.is_final()).unwrap_or(0);
                inner.waiting.remove(at);
            }
        });
        self.news.notify_one();
    }

    /// Waits until something was pushed since the last time somebody waited.
    pub async fn news(&self) {
        self.news.notified().await;
    }

    /// A new channel: nothing was sent on it yet.
    pub fn restart(&self) {
        self.with(|inner| inner.waiting.iter_mut().for_each(|w| w.sent = false));
    }

    /// What is to be sent now, at most `most`, and the number of the last of them. It counts as sent.
    pub fn take(&self, most: usize) -> (Vec<Ack>, Option<u64>) {
        self.with(|inner| {
            let mut last = None;
            let mut acks = Vec::new();
            for waiting in inner.waiting.iter_mut().filter(|w| !w.sent).take(most) {
                waiting.sent = true;
                last = Some(waiting.number);
                acks.push(waiting.ack.clone());
            }
            (acks, last)
        })
    }

    /// Waits until everything that is to be said was sent.
    pub async fn all_sent(&self) {
        // What is taken is written a moment later.
        const MOMENT: Duration = Duration::from_millis(20);
        loop {
            tokio::time::sleep(MOMENT).await;
            if self.with(|inner| inner.waiting.iter().all(|w| w.sent)) {
                return;
            }
        }
    }

    /// The cloud has everything that was sent up to this number.
    pub fn taken(&self, up_to: u64) {
        self.with(|inner| {
            let (taken, rest): (VecDeque<Waiting>, _) =
                std::mem::take(&mut inner.waiting).into_iter().partition(|w| w.sent && w.number <= up_to);
            inner.waiting = rest;
            inner.told.extend(taken.iter().filter(|w| w.ack.state.is_final()).map(|w| w.ack.id));
        });
    }

    /// Commands whose end the cloud has; each is given once.
    pub fn told(&self) -> Vec<CommandId> {
        self.with(|inner| std::mem::take(&mut inner.told))
    }

    fn with<T>(&self, f: impl FnOnce(&mut Inner) -> T) -> T {
        f(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Inner {
    fn bytes(&self) -> usize {
        self.waiting.iter().map(|w| w.bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use copal_protocol::channel::AckState;

    use super::*;

    fn ack(n: u8, state: AckState, result: usize) -> Ack {
        let result = (result > 0).then(|| "x".repeat(result).into());
        Ack { id: CommandId::from_bytes([n; 16]), state, code: None, message: String::new(), result }
    }

    #[test]
    fn what_was_not_taken_is_sent_on_the_next_channel() {
        let acks = Acks::default();
        acks.push(ack(1, AckState::Running, 0));
        acks.push(ack(1, AckState::Done, 0));
        let (sent, first) = acks.take(64);
        assert_eq!(sent.len(), 2);
        assert_eq!(acks.take(64).0.len(), 0, "once a channel");
        acks.push(ack(2, AckState::Done, 0));
        acks.restart();
        assert_eq!(acks.take(2).0.len(), 2);
        // The second command's was not sent on this one.
        acks.taken(u64::MAX);
        assert_eq!(acks.told(), [CommandId::from_bytes([1; 16])]);
        let (rest, last) = acks.take(64);
        assert_eq!(rest[0].id, CommandId::from_bytes([2; 16]));
        acks.taken(first.unwrap());
        assert!(acks.told().is_empty(), "another one's number");
        acks.taken(last.unwrap());
        assert_eq!(acks.told().len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn last_words_are_waited_for() {
        let acks = Acks::default();
        acks.all_sent().await;
        acks.push(ack(1, AckState::Running, 0));
        let soon = Duration::from_secs(9);
        assert!(tokio::time::timeout(soon, acks.all_sent()).await.is_err(), "nobody took it");
        acks.take(64);
        tokio::time::timeout(soon, acks.all_sent()).await.unwrap();
    }

    #[test]
    fn a_cloud_that_takes_nothing_costs_a_bounded_memory() {
        let acks = Acks::default();
        for n in 0..2000_u32 {
            acks.push(ack(n as u8, AckState::Running, 0));
            acks.push(ack(n as u8, AckState::Done, 100_000));
        }
        acks.with(|inner| assert!(inner.waiting.len() <= MOST && inner.bytes() <= BYTES));
        acks.with(|inner| assert!(inner.waiting.iter().all(|w| w.ack.state.is_final())));
    }
}
