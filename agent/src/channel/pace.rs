//! When to ping, when to take the other side for dead, when to come back. Pure: time and randomness are arguments.

use std::time::{Duration, Instant};

/// How often what. The defaults are for the field; tests hurry.
#[derive(Debug, Clone)]
pub struct Pace {
    /// Between pings: more often than the first only where that is too seldom for the network, never more seldom than the second,
    /// nor than the cloud asks for. Proxies often let go of what idled for a minute.
    pub keepalive: (Duration, Duration),
    /// A ping not answered within this is tried once more.
    pub pong: Duration,
    /// The cloud's first frame comes within this.
    pub welcome: Duration,
    /// A message that cannot be written within this ends the channel.
    pub write: Duration,
    /// The longest wait before the first try after a start.
    pub first: Duration,
    /// Come back within this after a break, until the cloud says otherwise.
    pub window: Duration,
    /// The longest wait between tries.
    pub longest: Duration,
    /// A channel that was up for so long counts as good: waits begin anew.
    pub stable: Duration,
    /// Where no WebSocket passes: between tries of one.
    pub socket_again: Duration,
    /// Where no WebSocket passes: seconds the cloud may hold an exchange.
    pub wait_s: u64,
    /// Between looks at the budget of bytes.
    pub look: Duration,
    /// Without a channel for want of budget, between visits: the first, and up to the second where there is no room for them.
    pub visits: (Duration, Duration),
    /// How long a visit lasts after all was said: reports and what a poll brought go on its connection.
    pub stay: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        let s = Duration::from_secs;
        Self {
            keepalive: (s(45), s(20 * 60)),
            pong: s(20),
            welcome: s(20),
            write: s(30),
            first: s(2),
            window: s(60),
            longest: s(300),
            stable: s(60),
            socket_again: s(15 * 60),
            wait_s: 50,
            look: s(60),
            visits: (s(4 * 3600), s(24 * 3600)),
            stay: s(15),
        }
    }
}

impl Pace {
    /// What takes hours is done so many times as often.
    #[must_use]
    pub fn hurried(self, times: u32) -> Self {
        let times = times.max(1);
        Self { visits: (self.visits.0 / times, self.visits.1 / times), look: self.look / times, ..self }
    }
}

/// How long a connection may idle before what is between forgets it. It begins with what nearly all networks keep, goes up step by
/// step while idle times are survived, and down where a connection died of one. Beyond an idle time that one died of it goes only
/// after many more were survived, twice as many each time: a break costs as much as twenty pings.
#[derive(Debug, Clone)]
pub struct Keepalive {
    bounds: (Duration, Duration),
    now: Duration,
    good: u32,
    /// The shortest idle time that one died of, and how many are to be survived before it is tried again.
    fatal: Option<(Duration, u32)>,
}

/// Between pings at least, whatever the network does: one that forgets sooner is left to polls.
const LEAST: Duration = Duration::from_secs(10);
/// Between pings at first.
const FIRST: Duration = Duration::from_secs(180);
/// What is let go of sooner was not let go of for idling.
const IDLE: Duration = Duration::from_secs(20);
/// Idle times survived in a row after which a longer one is tried; and at most, beyond one that was fatal.
const GOOD: (u32, u32) = (4, 512);

impl Keepalive {
    /// Nothing is known.
    #[must_use]
    pub fn new(bounds: (Duration, Duration)) -> Self {
        Self { bounds, now: bounds.1.min(FIRST), good: 0, fatal: None }
    }

    /// The time between pings, where the cloud asks for `asked` at least.
    #[must_use]
    pub fn every(&self, asked: Duration) -> Duration {
        self.now.min(asked)
    }

    /// A ping after an idle time was answered; the cloud asks for `asked` at least.
    pub fn survived(&mut self, asked: Duration) {
        self.good += 1;
        let next = self.now.mul_f64(1.25).min(self.bounds.1);
        let enough = match self.fatal {
            Some((fatal, times)) if next >= fatal => times,
            _ => GOOD.0,
        };
        // What is not tried is not known to be survived.
        if self.good >= enough && self.now < asked {
            self.good = 0;
            self.now = next;
        }
    }

    /// The connection died after it idled for `every`.
    pub fn died(&mut self, every: Duration) {
        self.good = 0;
        let idle = every.min(self.now);
        let times = self.fatal.map_or(GOOD.0, |(_, times)| times);
        self.fatal = Some((idle, (times * 2).min(GOOD.1)));
        // What most networks survive is tried before anything shorter; where that was too long, a little less, and less again.
        self.now = (idle / 2).max(self.bounds.0.min(idle * 3 / 4)).max(LEAST);
    }

    /// The way to the cloud is another one: what was learned is of the old one.
    pub fn forget(&mut self) {
        *self = Self::new(self.bounds);
    }
}

/// What is due on an open channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Due {
    /// Nothing yet.
    Nothing,
    /// A ping.
    Ping,
    /// The other side is gone.
    Dead,
}

/// Watches over an open channel.
#[derive(Debug)]
pub struct Watch {
    every: Duration,
    pong: Duration,
    /// When something was sent last.
    sent: Instant,
    /// When something was heard last.
    heard: Instant,
    /// Pings without an answer: how many, the last of them when, and whether the first came after an idle time.
    open: Option<(u32, Instant, bool)>,
}

impl Watch {
    /// From now on.
    #[must_use]
    pub fn new(every: Duration, pong: Duration, now: Instant) -> Self {
        Self { every, pong, sent: now, heard: now, open: None }
    }

    /// Another time between pings.
    pub fn set_every(&mut self, every: Duration) {
        self.every = every;
    }

    /// Something was sent that asks for no answer.
    pub fn sent(&mut self, now: Instant) {
        self.sent = now;
    }

    /// A ping was sent.
    pub fn pinged(&mut self, now: Instant) {
        let idle = now.saturating_duration_since(self.sent) >= self.every;
        self.sent = now;
        self.open = Some(match self.open {
            None => (1, now, idle),
            Some((n, _, idle)) => (n + 1, now, idle),
        });
    }

    /// Anything was heard. Whether that ends an idle time that was survived.
    pub fn heard(&mut self, now: Instant) -> bool {
        self.heard = now;
        self.open.take().is_some_and(|(_, _, idle)| idle)
    }

    /// The connection died: the idle time it died of, if it did. A ping that was not answered followed one; or it was let go of in
    /// the middle of one.
    #[must_use]
    pub fn died_idle(&self, now: Instant) -> Option<Duration> {
        let idle = now.saturating_duration_since(self.sent.max(self.heard));
        match self.open {
            Some((_, _, after_idle)) => after_idle.then_some(self.every),
            None => (idle >= IDLE).then_some(idle.min(self.every)),
        }
    }

    /// When something is due next.
    #[must_use]
    pub fn next(&self) -> Instant {
        match self.open {
            Some((_, at, _)) => at + self.pong,
            None => self.sent + self.every,
        }
    }

    /// What is due now.
    #[must_use]
    pub fn due(&self, now: Instant) -> Due {
        match self.open {
            _ if now < self.next() => Due::Nothing,
            Some((n, ..)) if n >= 2 => Due::Dead,
            _ => Due::Ping,
        }
    }
}

/// When to come back.
#[derive(Debug, Clone)]
pub struct Reconnect {
    window: Duration,
    longest: Duration,
    stable: Duration,
    failures: u32,
}

impl Reconnect {
    /// Nothing has failed yet.
    #[must_use]
    pub fn new(pace: &Pace) -> Self {
        Self { window: pace.window, longest: pace.longest, stable: pace.stable, failures: 0 }
    }

    /// The cloud's wish; an hour is the most it gets.
    pub fn set_window(&mut self, window: Duration) {
        self.window = window.clamp(Duration::from_secs(1), Duration::from_secs(3600));
    }

    /// A channel was up for so long.
    pub fn was_up(&mut self, time: Duration) {
        if time >= self.stable {
            self.failures = 0;
        }
    }

    /// The wait before the next try: a random share of the window, which doubles while tries fail. `least` is what the cloud
    /// asked for with a refusal.
    pub fn wait(&mut self, least: Option<Duration>, random: u64) -> Duration {
        let most = self.window.max(self.longest);
        let ceiling = self.window.saturating_mul(1 << self.failures.min(16)).min(most);
        self.failures = self.failures.saturating_add(1);
        least.unwrap_or_default() + share(ceiling, random)
    }
}

/// A random share of a time.
#[must_use]
pub fn share(of: Duration, random: u64) -> Duration {
    of.mul_f64((random >> 11) as f64 / (1_u64 << 53) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn it_goes_up_while_idle_times_are_survived_as_far_as_the_cloud_asks() {
        let mut keepalive = Keepalive::new((s(45), s(1200)));
        let survive = |keepalive: &mut Keepalive, asked, times| {
            (0..times).for_each(|_| keepalive.survived(asked));
            keepalive.every(asked)
        };
        assert_eq!(survive(&mut keepalive, s(360), 3), s(180));
        assert_eq!(survive(&mut keepalive, s(360), 1), s(225));
        assert_eq!(survive(&mut keepalive, s(360), 1000), s(360), "no further than it was asked");
        assert_eq!(keepalive.every(s(5)), s(5), "a cloud that wants more gets more");
        assert!(keepalive.every(s(9999)) < s(500), "what was not tried is not known");
        assert_eq!(survive(&mut keepalive, s(9999), 1000), s(1200), "never more than 20 minutes");
    }

    #[test]
    fn an_idle_death_halves_the_time_and_what_was_fatal_is_tried_ever_more_seldom() {
        let mut keepalive = Keepalive::new((s(60), s(1200)));
        keepalive.died(s(240));
        assert_eq!(keepalive.every(s(240)), s(90), "of what it was");
        keepalive.died(s(120));
        assert_eq!(keepalive.every(s(240)), s(60), "first its bound");
        let mut hasty = keepalive.clone();
        hasty.died(s(60));
        assert_eq!(hasty.every(s(240)), s(45), "and where that dies, too, less");
        for _ in 0..20 {
            hasty.died(hasty.every(s(240)));
        }
        assert_eq!(hasty.every(s(240)), LEAST);
        let mut quick = Keepalive::new((s(45), s(1200)));
        quick.died(s(21));
        assert!(quick.every(s(180)) < s(20), "below what it died of");
        // 60 s hold, and 90 s were fatal: 75 s are tried soon, and what comes after them is not.
        (0..4).for_each(|_| keepalive.survived(s(1200)));
        assert_eq!(keepalive.every(s(1200)), s(75));
        (0..15).for_each(|_| keepalive.survived(s(1200)));
        assert_eq!(keepalive.every(s(1200)), s(75), "it died of that twice");
        keepalive.survived(s(1200));
        assert!(keepalive.every(s(1200)) > s(90));
        keepalive.died(s(90));
        (0..19).for_each(|_| keepalive.survived(s(1200)));
        assert!(keepalive.every(s(1200)) < s(90), "and now it takes longer");
        keepalive.forget();
        assert_eq!(keepalive.every(s(1200)), s(180), "another network");
    }

    #[test]
    fn two_pings_without_an_answer_are_a_death_and_anything_heard_is_life() {
        let start = Instant::now();
        let mut watch = Watch::new(s(100), s(10), start);
        assert_eq!(watch.due(start + s(99)), Due::Nothing);
        assert_eq!(watch.due(start + s(100)), Due::Ping);
        watch.pinged(start + s(100));
        assert_eq!(watch.due(start + s(109)), Due::Nothing);
        assert!(watch.heard(start + s(110)), "an idle time was survived");
        watch.sent(start + s(150));
        assert_eq!(watch.due(start + s(200)), Due::Nothing, "what was sent kept it alive");
        watch.pinged(start + s(151));
        assert!(!watch.heard(start + s(152)), "it had not idled");
        assert_eq!(watch.died_idle(start + s(160)), None);
        assert_eq!(watch.died_idle(start + s(212)), Some(s(60)), "let go of after a minute");
        watch.pinged(start + s(300));
        assert_eq!(watch.due(start + s(310)), Due::Ping, "once more");
        watch.pinged(start + s(310));
        assert_eq!(watch.due(start + s(319)), Due::Nothing);
        assert_eq!(watch.due(start + s(320)), Due::Dead);
        assert_eq!(watch.died_idle(start + s(320)), Some(s(100)));
    }

    #[test]
    fn devices_come_back_spread_over_the_window_which_doubles_while_that_fails() {
        let mut reconnect = Reconnect::new(&Pace { window: s(40), ..Pace::default() });
        assert_eq!(reconnect.wait(None, 0), Duration::ZERO);
        let ceilings: Vec<u64> =
            (0..5).map(|_| reconnect.wait(None, u64::MAX).as_secs_f64().round() as u64).collect();
        assert_eq!(ceilings, [80, 160, 300, 300, 300]);
        reconnect.was_up(s(59));
        assert!(reconnect.wait(None, u64::MAX) > s(299), "59 s are not stable");
        reconnect.was_up(s(60));
        assert!(reconnect.wait(None, u64::MAX) <= s(40));
        reconnect.set_window(s(900));
        assert!(reconnect.wait(None, u64::MAX) > s(890), "a long window is kept to");
        assert!(reconnect.wait(Some(s(33)), 0) >= s(33), "never before the cloud wants it");
        reconnect.set_window(s(1 << 40));
        assert!(reconnect.wait(None, u64::MAX) <= s(3600));
    }
}
