//! The channel to the cloud: one WebSocket, opened by the device. In: frames of the cloud. Out: hints for the synchronisation,
//! commands for [`orders`](crate::orders), and acks on their way back.
//!
//! ```text
//! cloud ──hint──▶ nudges ──▶ target::Sync polls at once
//!       ──cmd───▶ orders ──ack──▶ acks ──▶ cloud
//!       ◀──batch── outbox ◀── events and telemetry; ──stored──▶ outbox
//!       ──open──▶ streams ◀──data──▶ cloud
//! ```
//! 1. Once the device is enrolled, open a WebSocket ([`socket`]); where something on the way lets none through, exchange the same
//!    frames by long poll ([`exchange`]) and try a WebSocket again every quarter of an hour.
//! 2. While it is up, polls rest. When it ends they go on at once, and it comes back at a random moment ([`pace`]).
//! 3. Where a budget of bytes has no room for it ([`meter`]) the device says so and goes; until there is room again it only visits
//!    the cloud every few hours ([`visits`]).
//!
//! Nothing here decides what runs, and nothing is lost with it: the truth is a poll, and commands are numbered and journalled.
//! Never here: a port that listens; anything believed because it came this way.

mod exchange;
pub mod meter;
pub mod pace;
mod socket;
pub mod streams;
mod talk;
mod visits;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use copal_protocol::{
    channel::{DeviceFrame, StreamOf, Welcome},
    telemetry::{Budget, Sheds},
};
use tokio::sync::{mpsc, watch};

use self::{
    meter::Meter,
    pace::{Keepalive, Pace, Reconnect, share},
    talk::{Bye, Talk},
    visits::Visits,
};
use crate::{
    apply::hush::Hush,
    clock::Clock,
    cloud::random,
    identity::{Session, SessionError},
    orders::{Acks, Received},
    spool::{Note, Outbox},
    state::StateDir,
    target::{Condition, Nudges},
};

/// Failures to connect in a row after which exchanges are tried: what resets every upgrade may let requests pass.
const SILENT: u32 = 3;
/// How long the first of those go on.
const SOON: Duration = Duration::from_secs(60);
/// Before a channel goes another way, what is to be said by it has this long.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// At least this long between tries where only a person can change something.
const PERSON: Duration = Duration::from_secs(30);

/// What the channel works with.
pub struct Deps {
    /// Speaks for the device.
    pub session: Arc<Session>,
    /// The synchronisation's ear.
    pub nudges: watch::Sender<Nudges>,
    /// How it stands.
    pub condition: watch::Receiver<Condition>,
    /// Where commands go.
    pub commands: mpsc::Sender<Received>,
    /// Acks on their way out.
    pub acks: Arc<Acks>,
    /// Holds the byte meter.
    pub state: Arc<StateDir>,
    /// Wall clock, for the meter's months.
    pub clock: Clock,
    /// How often what.
    pub pace: Pace,
    /// Bytes a month; absent: as many as it takes.
    pub max_bytes_month: Option<u64>,
    /// What there are streams of.
    pub streams: streams::Kinds,
    /// Events and telemetry on their way out.
    pub outbox: Arc<Outbox>,
    /// Where it is told how much of the budget is used.
    pub budget: watch::Sender<Option<Budget>>,
    /// Where it is told whether bytes are to be spared: true but for visits, while there is no room for a channel.
    pub spare: watch::Sender<bool>,
    /// Counts changes of the way to the cloud: each ends the channel, which comes back the new way.
    pub moved: watch::Receiver<u64>,
}

/// How a channel, or a try of one, ended.
enum End {
    /// The cloud cannot be reached, or says no.
    Refused(SessionError),
    /// Nothing of this kind passes.
    NotTaken(String),
    /// It was upgraded, and broke before the cloud's welcome: something on the way swallows what follows, or the cloud just stopped.
    Unwelcome(String),
    /// It was up for so long, and broke.
    Broken(String, Duration),
    /// The cloud ended it, after it was up for so long.
    Bye(Bye, Duration),
    /// It is time to try a WebSocket again.
    Again,
    /// The budget of bytes has no room for it.
    Budget,
}

/// The way to the cloud, over many channels.
struct Line {
    session: Arc<Session>,
    talk: Talk,
    clock: Clock,
    pace: Pace,
    meter: Meter,
    keepalive: Keepalive,
    reconnect: Reconnect,
    /// What the cloud asks for between pings.
    ping: Duration,
    /// After so long without a word the cloud ends the channel.
    lease: Duration,
    budget: watch::Sender<Option<Budget>>,
    spare: watch::Sender<bool>,
    visits: Visits,
}

impl Line {
    fn unix(&self) -> Option<u64> {
        (!self.clock.is_unset()).then(|| self.clock.now())
    }

    /// Events and telemetry to send now, as far as the budget has room for them.
    fn batch(&mut self) -> Option<DeviceFrame> {
        let room = self.tell_budget() < Sheds::Telemetry;
        self.talk.outbox.next(room).map(DeviceFrame::Batch)
    }

    /// Why a stream is not opened for want of budget. Terminals and bundles are somebody's who asked for them.
    fn refuses(&mut self, of: &StreamOf) -> Option<streams::End> {
        let sheds = self.tell_budget();
        let left_out = match of {
            StreamOf::Logs(_) => sheds >= Sheds::Logs,
            StreamOf::Metrics {} => sheds >= Sheds::Telemetry,
            StreamOf::Terminal(_) | StreamOf::Bundle {} | StreamOf::Unknown => false,
        };
        let message = "the device's budget of bytes for this month (max_bytes_month) is nearly used";
        left_out.then(|| streams::End::because("over_budget", message))
    }

    /// Tells how much of the budget is used, and what is left out by now.
    fn tell_budget(&mut self) -> Sheds {
        let now = self.unix();
        let now = self.meter.budget(now);
        let sheds = now.map_or(Sheds::Nothing, |b| b.sheds);
        let before = self.budget.borrow().map_or(Sheds::Nothing, |b| b.sheds);
        self.budget.send_if_modified(|told| std::mem::replace(told, now) != now);
        if before != sheds {
            let message = match sheds {
                Sheds::Nothing => "the budget of bytes has room again",
                Sheds::Logs => {
                    "four fifths of what may be used by now of the budget of bytes are used: logs stay on the device"
                }
                Sheds::Telemetry => {
                    "nine tenths of what may be used by now of the budget of bytes are used: telemetry is left out, too"
                }
                Sheds::Polls if now.is_some_and(|b| b.no_channel) => {
                    "the budget of bytes (max_bytes_month) is too small for a channel: the device only asks every few hours"
                }
                Sheds::Polls => {
                    "what may be used by now of the budget of bytes is used: the device has no channel, and asks every few hours"
                }
            };
            tracing::info!(sheds = sheds.as_str(), message);
            self.talk.outbox.note(Note::new("budget", sheds.as_str(), message));
            let spare = sheds == Sheds::Polls;
            self.talk.nudges.send_if_modified(|nudges| {
                nudges.seldom = spare;
                false
            });
            self.spare.send_replace(spare);
        }
        sheds
    }

    /// The device's word that it goes.
    fn leave(&self) -> DeviceFrame {
        DeviceFrame::Leave { code: "budget".to_owned(), back_within_s: self.visits.within_s(&self.meter) }
    }

    fn welcome(&mut self, welcome: &Welcome) {
        tracing::info!(epoch = welcome.epoch, ping_s = welcome.ping_s, "the channel is up");
        self.ping = Duration::from_secs(welcome.ping_s.max(1).into());
        self.lease = Duration::from_secs(welcome.lease_s.into());
        self.reconnect.set_window(Duration::from_secs(welcome.reconnect_window_s.into()));
    }
}

/// Keeps a channel up until dropped.
pub async fn run(deps: Deps) {
    let Deps {
        session,
        nudges,
        mut condition,
        commands,
        acks,
        state,
        clock,
        pace,
        max_bytes_month,
        mut moved,
        streams: kinds,
        outbox,
        budget,
        spare,
    } = deps;
    // Whoever enrols it does the first poll as well.
    if condition.wait_for(|c| c.device_id.is_some()).await.is_err() {
        return std::future::pending().await;
    }
    let requests = session.cloud().tally();
    let mut line = Line {
        session,
        talk: Talk { nudges, condition, commands, acks, kinds, outbox },
        clock,
        meter: Meter::open(state, max_bytes_month, requests),
        keepalive: Keepalive::new(pace.keepalive),
        reconnect: Reconnect::new(&pace),
        ping: pace.keepalive.1,
        lease: Duration::ZERO,
        visits: Visits::new(pace.visits),
        pace,
        budget,
        spare,
    };
    line.tell_budget();
    tokio::time::sleep(share(line.pace.first, random())).await;
    let mut said = Hush::default();
    // Until when frames are exchanged by long poll.
    let mut by_exchange: Option<Instant> = None;
    let mut silent = 0_u32;
    // Upgrades in a row after which no welcome came.
    let mut unwelcome = 0_u32;
    // Exchanges went well until a WebSocket was to be tried again.
    let mut exchanges_pass = false;
    loop {
        let acks = Arc::clone(&line.talk.acks);
        let talking = async {
            if line.tell_budget() == Sheds::Polls {
                Box::pin(visits::run(&mut line)).await;
            }
            match by_exchange {
                None => Box::pin(socket::run(&mut line)).await,
                Some(until) => Box::pin(exchange::run(&mut line, until)).await,
            }
        };
        let way = *moved.borrow();
        let moves = async {
            let changed = moved.changed().await;
            // What it was told to do is answered on the line it came by, where that still takes anything: it may be long until the next.
            let _ = tokio::time::timeout(LAST_WORDS, acks.all_sent()).await;
            changed
        };
        let end = tokio::select! {
            end = talking => Some(end),
            Ok(()) = moves => None,
        };
        let goes = *moved.borrow_and_update() != way;
        let Some(end) = end.filter(|_| !goes) else {
            tracing::info!("the way to the cloud changed; the channel comes back by it");
            line.talk.down();
            line.keepalive.forget();
            by_exchange = None;
            continue;
        };
        if matches!(end, End::Budget) {
            line.talk.spare();
            continue;
        }
        line.talk.down();
        let again = line.pace.socket_again;
        let mut least = None;
        let mut say = |code: &str, why: &str| {
            if let Some(times) = said.failed(code, why) {
                tracing::info!(code, why, times, "no channel; polls go on");
            }
        };
        match end {
            End::Again => {
                by_exchange = None;
                exchanges_pass = true;
                continue;
            }
            End::Budget => continue,
            End::Unwelcome(why) => {
                say("no_welcome", &why);
                unwelcome += 1;
                let until = if unwelcome < SILENT { again.min(SOON) } else { again };
                by_exchange = Some(Instant::now() + until);
                continue;
            }
            End::NotTaken(why) if by_exchange.is_none() => {
                say("no_websocket", &why);
                by_exchange = Some(Instant::now() + again);
                continue;
            }
            End::NotTaken(why) => {
                say("no_exchange", &why);
                by_exchange = None;
                least = Some(again);
            }
            End::Refused(error) => {
                say(error.code(), &error.to_string());
                if let SessionError::Cloud(error) = &error {
                    least = error.retry_after();
                }
                if error.needs_a_person() {
                    least = Some(least.unwrap_or_default().max(PERSON));
                }
                silent = if matches!(&error, SessionError::Cloud(e) if e.code() == "E_TRANSPORT") {
                    silent + 1
                } else {
                    0
                };
                by_exchange = match by_exchange {
                    // What lets exchanges pass resets the upgrade.
                    None if silent > 0 && exchanges_pass => {
                        by_exchange = Some(Instant::now() + again);
                        continue;
                    }
                    // Or there is no network at all: then a WebSocket is due soon after it comes back.
                    None if silent >= SILENT => Some(Instant::now() + again.min(SOON)),
                    other => other.filter(|until| *until > Instant::now()),
                };
            }
            End::Broken(why, up) => {
                say("broken", &why);
                line.reconnect.was_up(up);
                silent = 0;
                if by_exchange.is_none() {
                    unwelcome = 0;
                }
                exchanges_pass &= by_exchange.is_some();
            }
            End::Bye(bye, up) => {
                say(&bye.code, "the cloud ended the channel");
                line.reconnect.was_up(up);
                line.reconnect.set_window(bye.within);
                silent = 0;
                unwelcome = 0;
                if bye.code == "device_revoked" {
                    least = Some(PERSON);
                }
            }
        }
        let wait = line.reconnect.wait(least, random());
        tokio::time::sleep(wait).await;
    }
}
