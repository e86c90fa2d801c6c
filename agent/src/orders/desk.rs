//! Takes commands one by one, and sees to each until its end is told. Thin: [`journal`](super::journal) decides what becomes of
//! a command, [`Hands`] do it.
//!
//! One task, up to [`MOST`] acts and [`READS`] questions under way; the rest waits in turn, acts apart from questions. After a
//! restart was begun no further act is taken: the next boot gets them anew from the cloud.

use std::{collections::VecDeque, path::PathBuf, sync::Arc, time::Duration};

use copal_protocol::{
    channel::{Ack, AckState, MAX_MESSAGE, Order, Read},
    documents::{Act, Action, Reason},
    envelope::Envelope,
    ids::CommandId,
    verify::{self, Verified},
};
use futures_util::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered};
use tokio::sync::mpsc;

use super::{
    Acks, Hands, Received,
    journal::{Admission, End, Journal, Moment, Place},
    policy::Policy,
};
use crate::{
    clock::Clock,
    spool::{Note, Notes},
    state::{StateDir, StateError},
};

const FILE: &str = "orders";
/// Acts under way at once.
const MOST: usize = 8;
/// Questions under way at once.
const READS: usize = 2;
/// Commands that wait here at once, of all that a cloud has under way for a device; more wait in the channel.
const WAITING: usize = 128;
/// How often, and how long apart, an end is tried to be written down.
const TRIES: u32 = 12;
const AGAIN: Duration = Duration::from_secs(5);
/// Seconds by which this device's clock and the cloud's may differ, and nothing is read from it.
const SLACK: u64 = 300;
/// Room for all of an ack but its result.
const HEAD: usize = 8 << 10;

/// Judges an envelope as an action of this device, by today's root.
pub type Judge = Box<dyn Fn(&Envelope) -> Result<Verified<Action>, verify::Error> + Send + Sync>;

/// What the desk works with.
pub struct Deps {
    /// Holds the journal.
    pub state: Arc<StateDir>,
    /// Judges actions.
    pub judge: Judge,
    /// The epoch that today's root is in.
    pub epoch: Box<dyn Fn() -> u64 + Send + Sync>,
    /// Do them.
    pub hands: Arc<dyn Hands>,
    /// The policy file.
    pub policy: PathBuf,
    /// The way out.
    pub acks: Arc<Acks>,
    /// The kernel's id of this boot.
    pub boot_id: String,
    /// Seconds since it began, sleep included.
    pub uptime_s: Box<dyn Fn() -> u64 + Send + Sync>,
    /// Tells how old an action is by when it was signed.
    pub clock: Clock,
    /// Where refusals are told.
    pub notes: Notes,
    /// Unix seconds now: a lost journal takes everything from before this as done.
    pub now: u64,
}

/// What ended.
struct Ended {
    id: CommandId,
    end: End,
    /// A question, which no journal knows.
    read: bool,
    /// How often it could not be written down.
    tries: u32,
}

struct Desk {
    deps: Deps,
    journal: Journal,
    under_way: FuturesUnordered<BoxFuture<'static, Ended>>,
    reads: Vec<CommandId>,
    /// Acts that wait for others to end.
    acts_wait: VecDeque<Received>,
    /// Questions that wait for others to be answered.
    reads_wait: VecDeque<Received>,
    /// A restart of the device that is under way.
    rebooting: Option<CommandId>,
}

/// Runs until dropped. First it finishes what was under way when the agent last ended.
pub async fn run(deps: Deps, mut commands: mpsc::Receiver<Received>) {
    let journal = match deps.state.load::<Journal>(FILE) {
        Ok(journal) => journal.unwrap_or_default(),
        Err(error @ (StateError::Lost { .. } | StateError::Content { .. })) => {
            tracing::error!(%error, "what was done of commands is lost; none from before now is done any more");
            Journal::after_loss(Place { epoch: (deps.epoch)(), seq: deps.now })
        }
        Err(error) => {
            tracing::error!(%error, "commands cannot be written down, so none is done until the agent starts again");
            return refuse_all(&deps.acks, commands, &error).await;
        }
    };
    let mut desk = Desk {
        deps,
        journal,
        under_way: FuturesUnordered::new(),
        reads: Vec::new(),
        acts_wait: VecDeque::new(),
        reads_wait: VecDeque::new(),
        rebooting: None,
    };
    desk.recover();
    loop {
        desk.take_turns();
        let room = desk.acts_wait.len() + desk.reads_wait.len() < WAITING;
        tokio::select! {
            Some(ended) = desk.under_way.next(), if !desk.under_way.is_empty() => desk.end(ended),
            received = commands.recv(), if room => match received {
                Some(received) => desk.wait(received),
                // Nobody can tell anything any more; what is under way goes on.
                None if desk.under_way.is_empty() => return std::future::pending().await,
                None => while let Some(ended) = desk.under_way.next().await {
                    desk.end(ended);
                },
            },
        }
    }
}

async fn refuse_all(acks: &Acks, mut commands: mpsc::Receiver<Received>, error: &StateError) {
    while let Some(Received { command, .. }) = commands.recv().await {
        acks.push(End::not(AckState::Rejected, error.code(), error.to_string()).ack(command.id));
    }
    std::future::pending::<()>().await;
}

/// How an act ended.
fn ended(end: Result<String, Reason>) -> End {
    match end {
        Ok(message) => End::done(message),
        Err(why) if why.code == "not_supported" => End::not(AckState::Rejected, &why.code, why.message),
        Err(why) => End::not(AckState::Failed, &why.code, why.message),
    }
}

impl Desk {
    fn recover(&mut self) {
        let before = self.journal.clone();
        for (id, act) in self.journal.cut_short() {
            if let Some(end) = self.deps.hands.after_restart(&act) {
                self.journal.end(id, ended(end));
            }
        }
        let now = Moment { boot_id: &self.deps.boot_id, uptime_s: (self.deps.uptime_s)() };
        let again = self.journal.recover(now);
        if self.journal != before
            && let Err(error) = self.save()
        {
            tracing::warn!(%error, "how commands ended cannot be written down; it is found out again after a restart");
        }
        self.journal.untold().into_iter().for_each(|ack| self.deps.acks.push(ack));
        for (id, act) in again {
            tracing::info!(%id, verb = act.verb(), "goes on with what a restart of the agent cut short");
            self.begin(id, act, true);
        }
    }

    fn wait(&mut self, received: Received) {
        let line = match &received.command.order {
            Order::Action(_) => &mut self.acts_wait,
            Order::Read(_) => &mut self.reads_wait,
        };
        // A channel that came back brings what was not answered yet again.
        if line.iter().all(|before| before.command.id != received.command.id) {
            line.push_back(received);
        }
    }

    /// Takes what waited for as long as there is room.
    fn take_turns(&mut self) {
        while self.rebooting.is_none()
            && self.under_way.len() - self.reads.len() < MOST
            && let Some(received) = self.acts_wait.pop_front()
        {
            self.take(received);
        }
        while self.reads.len() < READS
            && let Some(received) = self.reads_wait.pop_front()
        {
            self.take(received);
        }
    }

    fn take(&mut self, Received { command, at }: Received) {
        let age = u64::from(command.age_s) + at.elapsed().as_secs();
        match command.order {
            Order::Read(read) => self.read(command.id, read, age),
            Order::Action(envelope) => {
                if let Err(end) = self.act(command.id, &envelope, age) {
                    if end.state != AckState::Done {
                        let code = end.code.as_deref().unwrap_or_default();
                        tracing::warn!(id = %command.id, code, "a command is not done: {}", end.message);
                    }
                    self.deps.acks.push(end.ack(command.id));
                }
            }
        }
    }

    /// Begins an action, or says why not.
    fn act(&mut self, id: CommandId, envelope: &Envelope, age: u64) -> Result<(), End> {
        let rejected = |code: &str, message: String| End::not(AckState::Rejected, code, message);
        // Nothing of a forged one is remembered: it must not push out what was real.
        let action = (self.deps.judge)(envelope).map_err(|e| rejected(e.code.as_str(), e.detail))?;
        if action.id != id {
            return Err(rejected(
                "E_PAYLOAD",
                format!("command {id} carries an action called {}", action.id),
            ));
        }
        let age = self.age(age, action.issued_at);
        self.deps.acks.told().into_iter().for_each(|id| self.journal.told(id));
        let place = Place { epoch: action.assign_epoch, seq: action.seq };
        let admission = self.journal.admit(id, place);
        let cut = admission == Admission::Cut;
        match admission {
            Admission::New if place.epoch < (self.deps.epoch)() => {
                let message = format!("of epoch {}, which this device's root has ended", place.epoch);
                return Err(rejected("action_old", message));
            }
            Admission::New | Admission::Cut => {}
            Admission::Ended(end) => return Err(end),
            Admission::UnderWay => {
                self.say(id, AckState::Running);
                return Ok(());
            }
            Admission::Old => {
                let message = format!("number {} is from before what this device remembers", action.seq);
                return Err(rejected("action_old", message));
            }
            Admission::Full => {
                return Err(rejected("busy", "too many commands are not told yet; ask again".to_owned()));
            }
        }
        let left = u64::from(action.ttl_s).checked_sub(age);
        let verb = action.act.verb();
        let allowed = || {
            Policy::load(&self.deps.policy).check(verb).map_err(|why| {
                self.deps.notes.note(Note::new("policy", "denied", &why).with("verb", verb));
                rejected("policy_local", why)
            })
        };
        let before = self.journal.clone();
        let now = Moment { boot_id: &self.deps.boot_id, uptime_s: (self.deps.uptime_s)() };
        // Whatever is written down: a restart that comes again in a boot that began after it was asked for has come about.
        let restarted = matches!(action.act, Act::Reboot {}) && now.uptime_s < age;
        let came_about = || End::done("the device has started since this was asked");
        let may = if cut && restarted {
            self.journal.end(id, came_about());
            Err(came_about())
        } else if cut {
            // It was allowed when it was accepted.
            self.journal.take_up(id, now, left)
        } else {
            let left = left.ok_or_else(|| {
                let message = format!("{age} s old, and good for {} s", action.ttl_s);
                End::not(AckState::Expired, "expired", message)
            });
            let left = left.and_then(|left| allowed().map(|()| left));
            self.journal.note(id, place, action.act.clone(), now, left.clone());
            left.map(drop)
        };
        let saved = self.save();
        if saved.is_err() && matches!(action.act, Act::Reboot {}) && !cut && may.is_ok() {
            // It may be what mends the disk. That it is done once, the time of the boot says.
            if restarted {
                self.journal = before;
                return Err(came_about());
            }
            tracing::warn!(%id, "told to restart the device, which cannot be written down");
            self.say(id, AckState::Accepted);
            self.begin(id, action.act.clone(), false);
            return Ok(());
        }
        if let Err(error) = saved {
            self.journal = before;
            if cut {
                // What came of it before is not known, so nothing is said; the cloud asks again.
                tracing::warn!(%id, %error, "a command that was cut short cannot be taken up");
                return Ok(());
            }
            return Err(rejected(
                error.code(),
                format!("it cannot be written down, so it is not begun: {error}"),
            ));
        }
        may?;
        tracing::info!(%id, verb, "told to");
        self.say(id, AckState::Accepted);
        self.begin(id, action.act.clone(), true);
        Ok(())
    }

    /// How old an action is: as old as it is said to be, which nobody signed, and as its signed time makes it by a clock that was set.
    fn age(&self, said: u64, issued_at: u64) -> u64 {
        let clock = &self.deps.clock;
        let signed = if clock.is_unset() { 0 } else { clock.now().saturating_sub(issued_at) };
        said.max(signed.saturating_sub(SLACK))
    }

    /// Begins what was accepted; where it is to be `written` down that it begins, then only once it is.
    fn begin(&mut self, id: CommandId, act: Act, written: bool) {
        if self.journal.begin(id)
            && let Err(error) = self.save()
            && written
        {
            let message = format!("that it begins cannot be written down, so it is not begun: {error}");
            let end = End::not(AckState::Failed, error.code(), message);
            let not_begun = async move { Ended { id, end, read: false, tries: 0 } };
            return self.under_way.push(Box::pin(not_begun));
        }
        self.say(id, AckState::Running);
        if matches!(act, Act::Reboot {}) {
            self.rebooting = Some(id);
        }
        let hands = self.deps.hands.clone();
        self.under_way.push(Box::pin(async move {
            Ended { id, end: ended(hands.act(act).await), read: false, tries: 0 }
        }));
    }

    fn read(&mut self, id: CommandId, read: Read, age: u64) {
        if self.reads.contains(&id) {
            return self.say(id, AckState::Running);
        }
        if age > u64::from(read.ttl_s) {
            let message = format!("{age} s old, and good for {} s", read.ttl_s);
            return self.deps.acks.push(End::not(AckState::Expired, "expired", message).ack(id));
        }
        self.say(id, AckState::Running);
        self.reads.push(id);
        let hands = self.deps.hands.clone();
        self.under_way.push(Box::pin(async move {
            let end = match hands.answer(read.what).await {
                Ok(result) => End { result: Some(result), ..End::done("") },
                Err(why) if why.code == "not_supported" => {
                    End::not(AckState::Rejected, &why.code, why.message)
                }
                Err(why) => End::not(AckState::Failed, &why.code, why.message),
            };
            Ended { id, end, read: true, tries: 0 }
        }));
    }

    fn end(&mut self, Ended { id, end, read, tries }: Ended) {
        if read {
            self.reads.retain(|of| *of != id);
            let bytes = end.result.as_ref().map_or(0, |result| result.to_string().len());
            let end = if bytes > MAX_MESSAGE - HEAD {
                let message = format!("the answer has {bytes} bytes, which no message holds: ask for less");
                End::not(AckState::Failed, "result_too_large", message)
            } else {
                end
            };
            return self.deps.acks.push(end.ack(id));
        }
        // A restart that got here did not come about.
        self.rebooting.take_if(|of| *of == id);
        self.deps.acks.told().into_iter().for_each(|id| self.journal.told(id));
        self.journal.end(id, end.clone());
        if let Err(error) = self.save() {
            if tries < TRIES {
                // Told before it is written down, it would be told otherwise after a crash.
                let again = async move {
                    tokio::time::sleep(AGAIN).await;
                    Ended { id, end, read, tries: tries + 1 }
                };
                return self.under_way.push(Box::pin(again));
            }
            tracing::warn!(%id, %error, "that a command ended cannot be written down; it is told all the same");
        }
        let code = end.code.as_deref().unwrap_or("done");
        tracing::info!(%id, code, message = end.message, "a command ended");
        self.deps.acks.push(end.ack(id));
    }

    fn say(&self, id: CommandId, state: AckState) {
        self.deps.acks.push(Ack { id, state, code: None, message: String::new(), result: None });
    }

    fn save(&self) -> Result<(), StateError> {
        self.deps.state.save(FILE, &self.journal).map(drop)
    }
}
