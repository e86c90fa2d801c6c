//! The desk with hands that count, a disk that can fail, and an agent that can die at any step.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::{
    collections::BTreeMap,
    io,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use copal_protocol::{
    channel::{Ack, AckState, Command, Order, Question, Read},
    documents::{Act, Action, Delivery, Reason, Root},
    envelope::Envelope,
    ids::CommandId,
    testing::{OwnerKeys, sign},
    verify,
};
use futures_util::future::BoxFuture;
use serde_json::Value;
use tokio::{sync::mpsc, time::Instant};

use super::{Acks, Deps, Hands, Received, journal::KEPT, run};
use crate::{
    apply::status::reason,
    clock::{Clock, build_time},
    state::{Fs, RealFs, StateDir},
};

/// A disk that stops taking writes after a number of steps: what an agent that dies there leaves.
#[derive(Default)]
struct Disk {
    left: Mutex<Option<usize>>,
    steps: AtomicUsize,
    /// It takes nothing, and the agent lives.
    full: AtomicBool,
}

impl Disk {
    fn step(&self) -> io::Result<()> {
        self.steps.fetch_add(1, Ordering::Relaxed);
        if self.full.load(Ordering::Relaxed) {
            return Err(io::Error::other("full"));
        }
        match self.left.lock().unwrap().as_mut() {
            Some(0) => Err(io::Error::other("dead")),
            Some(n) => {
                *n -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn dead(&self) -> bool {
        *self.left.lock().unwrap() == Some(0)
    }
}

impl Fs for Disk {
    fn read(&self, path: &Path, max: usize) -> io::Result<Vec<u8>> {
        RealFs.read(path, max)
    }
    fn write_synced(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        self.step()?;
        std::fs::write(path, bytes)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step()?;
        RealFs.rename(from, to)
    }
    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        RealFs.remove(path)
    }
    fn make_dir(&self, dir: &Path) -> io::Result<()> {
        RealFs.make_dir(dir)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        RealFs.list(dir)
    }
}

/// Hands that count what they do. An act takes two seconds, and takes effect in the middle.
#[derive(Default)]
struct Counting {
    done: Mutex<Vec<Act>>,
    fails: Mutex<Option<Reason>>,
}

struct Shared(Arc<Counting>, Arc<Disk>);

impl Hands for Shared {
    fn act(&self, act: Act) -> BoxFuture<'static, Result<String, Reason>> {
        let (counting, disk) = (self.0.clone(), self.1.clone());
        Box::pin(async move {
            tokio::time::sleep(Duration::from_secs(1)).await;
            // An act is a step like those of the disk, so that the agent may die right before and right after it.
            if disk.step().is_err() && !disk.full.load(Ordering::Relaxed) {
                return std::future::pending().await;
            }
            counting.done.lock().unwrap().push(act.clone());
            tokio::time::sleep(Duration::from_secs(1)).await;
            if matches!(act, Act::Reboot {}) {
                return std::future::pending().await;
            }
            let fails = counting.fails.lock().unwrap().clone();
            fails.map_or(Ok("so it is".to_owned()), Err)
        })
    }

    fn answer(&self, _: Question) -> BoxFuture<'static, Result<Value, Reason>> {
        Box::pin(async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Ok(serde_json::json!({"probes": []}))
        })
    }
}

/// When and where an agent starts.
#[derive(Clone, Copy)]
struct At {
    boot: u32,
    booted: Instant,
    clock: fn() -> u64,
    epoch: u64,
}

struct Device {
    dir: tempfile::TempDir,
    disk: Arc<Disk>,
    counting: Arc<Counting>,
    at: At,
    acks: Arc<Acks>,
    commands: mpsc::Sender<Received>,
    agent: tokio::task::JoinHandle<()>,
    /// Every ack that left, by command.
    heard: BTreeMap<CommandId, Vec<Ack>>,
}

impl Device {
    fn new() -> Self {
        let (dir, disk, counting) = (tempfile::tempdir().unwrap(), Arc::default(), Arc::default());
        let at = At { boot: 0, booted: Instant::now(), clock: no_clock, epoch: 1 };
        let (acks, commands, agent) = start(dir.path(), &disk, &counting, at);
        Self { dir, disk, counting, at, acks, commands, agent, heard: BTreeMap::new() }
    }

    /// The agent dies and starts again; perhaps the whole device does.
    async fn restart(&mut self, boots: bool) {
        self.agent.abort();
        let _ = (&mut self.agent).await;
        *self.disk.left.lock().unwrap() = None;
        if boots {
            (self.at.boot, self.at.booted) = (self.at.boot + 1, Instant::now());
        }
        (self.acks, self.commands, self.agent) = start(self.dir.path(), &self.disk, &self.counting, self.at);
    }

    async fn send(&self, command: Command) {
        assert!(self.commands.send(Received { command, at: Instant::now() }).await.is_ok());
    }

    async fn tell(&self, action: &Action) {
        self.send(command(action)).await;
    }

    /// Lets time pass, and takes what is told meanwhile.
    async fn hear(&mut self) {
        for _ in 0..100 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let (acks, last) = self.acks.take(64);
            for ack in acks {
                self.heard.entry(ack.id).or_default().push(ack);
            }
            last.into_iter().for_each(|last| self.acks.taken(last));
        }
    }

    /// The end that was told of a command; all that were told are the same.
    fn end(&self, action: &Action) -> Option<Ack> {
        let ends: Vec<&Ack> =
            self.heard.get(&action.id).into_iter().flatten().filter(|a| a.state.is_final()).collect();
        assert!(ends.windows(2).all(|two| two[0] == two[1]), "{ends:?}");
        ends.first().map(|ack| (*ack).clone())
    }

    fn done(&self) -> Vec<Act> {
        self.counting.done.lock().unwrap().clone()
    }
}

type Life = (Arc<Acks>, mpsc::Sender<Received>, tokio::task::JoinHandle<()>);

/// A device that does not know the time.
fn no_clock() -> u64 {
    12
}

fn start(dir: &Path, disk: &Arc<Disk>, counting: &Arc<Counting>, at: At) -> Life {
    let At { boot, booted, clock, epoch } = at;
    let keys = OwnerKeys::fixed();
    let root = keys.trusted(&Root { assign_epoch: epoch, ..keys.root() });
    let acks = Arc::new(Acks::default());
    let (commands, told) = mpsc::channel(200);
    let identity = keys.identity();
    let deps = Deps {
        state: Arc::new(StateDir::open(dir, disk.clone()).unwrap()),
        epoch: Box::new(move || epoch),
        judge: Box::new(move |envelope: &Envelope| verify::action(&root, &identity, envelope)),
        hands: Arc::new(Shared(counting.clone(), disk.clone())),
        policy: dir.join("policy.toml"),
        acks: acks.clone(),
        boot_id: format!("{boot:032x}"),
        uptime_s: Box::new(move || booted.elapsed().as_secs()),
        clock: Clock::new(clock),
        notes: crate::spool::Notes::default(),
        now: 2_000_000_000,
    };
    (acks, commands, tokio::spawn(run(deps, told)))
}

fn command(action: &Action) -> Command {
    let keys = OwnerKeys::fixed();
    Command { id: action.id, age_s: 0, order: Order::Action(sign(action, &[&keys.assign])) }
}

fn action(seq: u64, act: Act) -> Action {
    OwnerKeys::fixed().action(seq, act)
}

fn restart_web() -> Act {
    Act::RestartService { service: "web".parse().unwrap() }
}

fn stop_web() -> Act {
    Act::StopService { service: "web".parse().unwrap() }
}

#[tokio::test(start_paused = true)]
async fn a_command_is_told_as_it_goes_and_done_once_however_often_it_comes() {
    let mut device = Device::new();
    let action = action(1, restart_web());
    for _ in 0..3 {
        device.tell(&action).await;
    }
    device.hear().await;
    device.tell(&action).await;
    device.hear().await;
    device.restart(false).await;
    device.tell(&action).await;
    device.hear().await;
    assert_eq!(device.done(), [restart_web()]);
    let states: Vec<AckState> = device.heard[&action.id].iter().map(|a| a.state).collect();
    assert_eq!(states[..3], [AckState::Accepted, AckState::Running, AckState::Running]);
    assert_eq!(device.end(&action).unwrap().message, "so it is");
}

#[tokio::test(start_paused = true)]
async fn what_is_forged_foreign_or_changed_is_not_done_and_not_remembered() {
    let mut device = Device::new();
    let keys = OwnerKeys::fixed();
    let real = action(1, restart_web());
    let by_other = Command { order: Order::Action(sign(&real, &[&keys.builder])), ..command(&real) };
    let mut foreign = real.clone();
    foreign.device_id = copal_protocol::ids::DeviceId::from_bytes([7; 16]);
    let renamed = Command { id: CommandId::from_bytes([9; 16]), ..command(&real) };
    for (bad, code) in
        [(by_other, "E_SIG_WRONG_ROLE"), (command(&foreign), "E_DEVICE_MISMATCH"), (renamed, "E_PAYLOAD")]
    {
        let id = bad.id;
        device.heard.clear();
        device.send(bad).await;
        device.hear().await;
        let ack = &device.heard[&id][0];
        assert_eq!((ack.state, ack.code.as_deref()), (AckState::Rejected, Some(code)));
    }
    assert_eq!(device.disk.steps.load(Ordering::Relaxed), 0, "nothing is written for them");
    device.heard.clear();
    device.tell(&real).await;
    device.hear().await;
    assert_eq!(device.end(&real).unwrap().state, AckState::Done, "the real one is still done");
    assert_eq!(device.done(), [restart_web()]);
}

#[tokio::test(start_paused = true)]
async fn one_from_before_what_is_remembered_is_old_for_ever() {
    let mut device = Device::new();
    for seq in 1..=KEPT as u64 + 3 {
        device.tell(&action(seq, Act::CheckUpdate {})).await;
        device.hear().await;
    }
    let done = device.done().len();
    device.restart(true).await;
    device.heard.clear();
    for seq in [1, KEPT as u64 + 3] {
        device.tell(&action(seq, Act::CheckUpdate {})).await;
    }
    device.hear().await;
    assert_eq!(device.end(&action(1, restart_web())).unwrap().code.as_deref(), Some("action_old"));
    assert_eq!(device.end(&action(KEPT as u64 + 3, restart_web())).unwrap().state, AckState::Done);
    assert_eq!(device.done().len(), done);
}

#[tokio::test(start_paused = true)]
async fn who_uses_all_numbers_up_is_outlived_by_a_new_epoch() {
    let mut device = Device::new();
    let top = copal_protocol::documents::MAX_INTEGER;
    for seq in top - KEPT as u64..=top {
        device.tell(&action(seq, Act::CheckUpdate {})).await;
        device.hear().await;
    }
    let (burnt, known) = (action(2_000_000_000, stop_web()), action(top, Act::CheckUpdate {}));
    device.tell(&burnt).await;
    device.hear().await;
    assert_eq!(device.end(&burnt).unwrap().code.as_deref(), Some("action_old"));
    // The owner signs a root with another epoch, and the device has it.
    device.at.epoch = 2;
    device.restart(false).await;
    device.heard.clear();
    let anew = Action { assign_epoch: 2, ..action(2_000_000_001, stop_web()) };
    let of_before = action(top - 1000, restart_web());
    for action in [&anew, &of_before, &known] {
        device.tell(action).await;
    }
    device.hear().await;
    assert_eq!(device.end(&anew).unwrap().state, AckState::Done);
    assert_eq!(device.end(&of_before).unwrap().code.as_deref(), Some("action_old"));
    assert_eq!(device.end(&known).unwrap().state, AckState::Done, "what was done has its answer still");
    assert_eq!(device.done().last(), Some(&stop_web()));
}

#[tokio::test(start_paused = true)]
async fn commands_out_of_order_are_all_done() {
    let mut device = Device::new();
    for seq in [5, 3, 4, 1] {
        device.tell(&action(seq, stop_web())).await;
    }
    device.hear().await;
    assert_eq!(device.done().len(), 4);
}

#[tokio::test(start_paused = true)]
async fn one_whose_time_is_over_when_it_is_taken_expires() {
    let mut device = Device::new();
    let late = action(1, restart_web());
    device.send(Command { age_s: 3601, ..command(&late) }).await;
    let waited = action(2, restart_web());
    let at = Instant::now();
    tokio::time::advance(Duration::from_secs(3600)).await;
    let received = Received { command: Command { age_s: 30, ..command(&waited) }, at };
    assert!(device.commands.send(received).await.is_ok());
    let just = action(3, restart_web());
    device.send(Command { age_s: 3600, ..command(&just) }).await;
    device.hear().await;
    assert_eq!(device.end(&late).unwrap().state, AckState::Expired);
    assert_eq!(device.end(&waited).unwrap().state, AckState::Expired, "it aged on the way");
    assert_eq!(device.end(&just).unwrap().state, AckState::Done);
    device.tell(&late).await;
    device.hear().await;
    assert_eq!(device.done().len(), 1, "a second time it is as late as the first");
}

#[tokio::test(start_paused = true)]
async fn one_that_is_said_to_be_young_expires_by_its_signed_time_where_the_clock_is_set() {
    let mut device = Device::new();
    device.at.clock = || build_time() + 100_000;
    device.restart(false).await;
    let issued =
        |seq, ago: u64| Action { issued_at: build_time() + 100_000 - ago, ..action(seq, restart_web()) };
    let (kept_back, ahead, just) = (issued(1, 3600 + 301), issued(2, 3600 + 300), issued(3, 0));
    for action in [&kept_back, &ahead, &just] {
        device.tell(action).await;
    }
    device.hear().await;
    assert_eq!(device.end(&kept_back).unwrap().state, AckState::Expired, "whatever the cloud says of it");
    assert_eq!(device.end(&ahead).unwrap().state, AckState::Done, "clocks may differ a little");
    assert_eq!(device.end(&just).unwrap().state, AckState::Done);
    // What has no clock goes by what it is told: it would else take everything for new, or for old.
    let mut device = Device::new();
    device.tell(&kept_back).await;
    device.hear().await;
    assert_eq!(device.end(&kept_back).unwrap().state, AckState::Done);
}

#[tokio::test(start_paused = true)]
async fn the_policy_of_the_device_has_the_last_word_and_its_answer_stays() {
    let mut device = Device::new();
    let policy = device.dir.path().join("policy.toml");
    std::fs::write(&policy, "[actions]\ndeny = [\"reboot\"]\n").unwrap();
    let (no, yes) = (action(1, Act::Reboot {}), action(2, stop_web()));
    device.tell(&no).await;
    device.tell(&yes).await;
    device.hear().await;
    assert_eq!(device.end(&no).unwrap().code.as_deref(), Some("policy_local"));
    std::fs::remove_file(&policy).unwrap();
    device.tell(&no).await;
    device.hear().await;
    assert_eq!(device.end(&no).unwrap().state, AckState::Rejected);
    assert_eq!(device.done(), [stop_web()]);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_written_down_is_not_begun() {
    let mut device = Device::new();
    *device.disk.left.lock().unwrap() = Some(0);
    let action = action(1, restart_web());
    device.tell(&action).await;
    device.hear().await;
    assert_eq!(device.heard[&action.id][0].code.as_deref(), Some("E_STATE_IO"));
    assert!(device.done().is_empty());
    *device.disk.left.lock().unwrap() = None;
    device.tell(&action).await;
    device.heard.clear();
    device.hear().await;
    assert_eq!(device.end(&action).unwrap().state, AckState::Done);
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_told_with_its_cause() {
    let mut device = Device::new();
    *device.counting.fails.lock().unwrap() = Some(reason("start_failed", "exec format error"));
    let action = action(1, restart_web());
    device.tell(&action).await;
    device.hear().await;
    let end = device.end(&action).unwrap();
    assert_eq!((end.state, end.code.as_deref()), (AckState::Failed, Some("start_failed")));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_taken_once_a_restart_was_begun() {
    let mut device = Device::new();
    device.tell(&action(1, Act::Reboot {})).await;
    device.hear().await;
    let after = action(2, restart_web());
    device.tell(&after).await;
    device.hear().await;
    assert!(!device.heard.contains_key(&after.id), "the next boot gets it anew");
    device.restart(true).await;
    device.hear().await;
    assert_eq!(device.end(&action(1, Act::Reboot {})).unwrap().state, AckState::Done);
    device.tell(&after).await;
    device.hear().await;
    assert_eq!(device.done(), [Act::Reboot {}, restart_web()]);
}

#[tokio::test(start_paused = true)]
async fn a_disk_that_takes_nothing_is_no_reason_not_to_restart_once() {
    let mut device = Device::new();
    device.disk.full.store(true, Ordering::Relaxed);
    let (reboot, other) = (action(1, Act::Reboot {}), action(2, restart_web()));
    device.tell(&other).await;
    device.hear().await;
    assert_eq!(device.end(&other).unwrap().code.as_deref(), Some("E_STATE_IO"));
    device.tell(&reboot).await;
    device.tell(&reboot).await;
    device.hear().await;
    assert_eq!((device.end(&reboot), device.done()), (None, vec![Act::Reboot {}]));
    // The disk is as it was, and the cloud sends it again: this boot began after it was asked for.
    device.restart(true).await;
    for age_s in [25, 35] {
        device.send(Command { age_s, ..command(&reboot) }).await;
        device.hear().await;
    }
    assert_eq!((device.end(&reboot).unwrap().state, device.done().len()), (AckState::Done, 1));
}

#[tokio::test(start_paused = true)]
async fn questions_are_answered_and_leave_nothing_behind() {
    let mut device = Device::new();
    let ask = |n, age_s| {
        let what = Question::Probes { names: Vec::new() };
        let order = Order::Read(Read { what, ttl_s: 30, delivery: Delivery::Direct });
        Command { id: CommandId::from_bytes([n; 16]), age_s, order }
    };
    for n in 1..=4 {
        device.send(ask(n, 0)).await;
    }
    device.send(ask(9, 31)).await;
    device.hear().await;
    let end = |n: u8| device.heard[&CommandId::from_bytes([n; 16])].last().unwrap().clone();
    assert_eq!((end(1).state, end(1).result), (AckState::Done, Some(serde_json::json!({"probes": []}))));
    assert_eq!((end(3).state, end(4).state), (AckState::Done, AckState::Done), "in turn");
    assert_eq!(end(9).state, AckState::Expired);
    assert_eq!(device.disk.steps.load(Ordering::Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn all_that_waited_for_a_device_is_done_when_it_comes_in_one_burst() {
    let mut device = Device::new();
    let acts: Vec<Action> = (1..=60).map(|seq| action(seq, restart_web())).collect();
    for (n, act) in acts.iter().enumerate() {
        device.tell(act).await;
        let order = Order::Read(Read {
            what: Question::Probes { names: Vec::new() },
            ttl_s: 3600,
            delivery: Delivery::Store,
        });
        device.send(Command { id: CommandId::from_bytes([100 + n as u8; 16]), age_s: 0, order }).await;
    }
    for _ in 0..5 {
        device.hear().await;
    }
    let states: Vec<AckState> = device.heard.values().map(|acks| acks.last().unwrap().state).collect();
    assert_eq!(states, [AckState::Done; 120]);
    assert_eq!(device.done().len(), 60);
}

/// Kills the agent (or the device) at every step from the command's arrival to its end, and looks what becomes of it.
async fn die_everywhere(act: Act, boots: bool) -> BTreeMap<String, usize> {
    let mut ends = BTreeMap::new();
    for at in 0.. {
        let mut device = Device::new();
        let action = action(1, act.clone());
        *device.disk.left.lock().unwrap() = Some(at);
        device.tell(&action).await;
        device.hear().await;
        let died = device.disk.dead();
        let told = device.end(&action);
        device.restart(boots).await;
        device.hear().await;
        // The cloud that has not heard of an end sends it again; one that has may, too.
        for _ in 0..2 {
            device.tell(&action).await;
            device.hear().await;
        }
        let what = format!("{act:?} died at {at}, boots: {boots}");
        let refused = told.as_ref().is_some_and(|t| t.code.as_deref() == Some("E_STATE_IO"));
        if refused {
            // It was not begun: the cloud was told so, and may ask anew.
            device.heard.remove(&action.id);
            device.tell(&action).await;
            device.hear().await;
        }
        if matches!(act, Act::Reboot {}) {
            // It comes about in the end.
            device.restart(boots).await;
            device.hear().await;
        }
        let end = device.end(&action).unwrap_or_else(|| panic!("{what}: never told"));
        let times = device.done().len();
        if !act.is_idempotent() {
            assert!(times <= 1, "{what}: done {times} times");
        }
        match end.state {
            AckState::Done => {
                assert!(times >= 1 || matches!(act, Act::Reboot {}), "{what}: said done, and was not");
            }
            AckState::Unknown => assert!(!act.is_idempotent(), "{what}"),
            other => panic!("{what}: {other:?}"),
        }
        *ends.entry(format!("{:?}", end.state)).or_default() += 1;
        if !died {
            assert!(at > 4, "too few steps to mean anything: {at}");
            return ends;
        }
    }
    unreachable!("there are not that many steps")
}

#[tokio::test(start_paused = true)]
async fn dying_at_any_step_does_it_at_most_once_and_tells_one_end() {
    for boots in [false, true] {
        let once = die_everywhere(restart_web(), boots).await;
        assert!(once.contains_key("Done") && once.contains_key("Unknown"), "{once:?}");
        let again = die_everywhere(stop_web(), boots).await;
        assert_eq!(again.keys().collect::<Vec<_>>(), ["Done"]);
    }
    assert!(die_everywhere(Act::PurgeData { volume: None }, false).await.contains_key("Unknown"));
    let restarted = die_everywhere(Act::Reboot {}, true).await;
    assert_eq!(restarted.keys().collect::<Vec<_>>(), ["Done"]);
}

/// Kills the agent (or the device) at every step, leaves it off until the command's time is over, and looks what becomes of it.
async fn come_back_too_late(act: Act, boots: bool) -> BTreeMap<String, usize> {
    let mut ends = BTreeMap::new();
    for at in 0.. {
        let mut device = Device::new();
        let action = action(1, act.clone());
        *device.disk.left.lock().unwrap() = Some(at);
        device.tell(&action).await;
        device.hear().await;
        if !device.disk.dead() {
            return ends;
        }
        device.agent.abort();
        device.heard.clear();
        let times = device.done().len();
        tokio::time::advance(Duration::from_secs(3600)).await;
        device.restart(boots).await;
        device.hear().await;
        let what = format!("{act:?} died at {at}, boots: {boots}");
        assert!(
            !boots || device.end(&action).is_none_or(|end| end.code.as_deref() != Some("expired")),
            "{what}"
        );
        // The cloud that has not heard of an end sends it again, and again.
        for _ in 0..2 {
            device.send(Command { age_s: 3620, ..command(&action) }).await;
            device.hear().await;
        }
        let end = device.end(&action).unwrap_or_else(|| panic!("{what}: never told"));
        assert_eq!(device.done().len(), times, "{what}: done when its time was over: {end:?}");
        assert!(times == 0 || end.state != AckState::Expired, "{what}: it was begun: {end:?}");
        *ends.entry(format!("{:?}", end.state)).or_default() += 1;
    }
    unreachable!("there are not that many steps")
}

#[tokio::test(start_paused = true)]
async fn what_was_cut_short_and_comes_back_after_its_time_is_never_done_and_told_once() {
    for boots in [false, true] {
        for act in [stop_web(), restart_web(), Act::PauseUpdates { for_s: None }] {
            let ends = come_back_too_late(act, boots).await;
            assert!(ends.contains_key("Expired") && ends.contains_key("Unknown"), "{ends:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn after_a_boot_what_was_cut_short_waits_for_the_clouds_word_of_its_age() {
    let mut device = Device::new();
    let action = action(1, stop_web());
    device.tell(&action).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert_eq!(device.done().len(), 1, "in the middle of it");
    device.restart(true).await;
    device.hear().await;
    assert!(device.end(&action).is_none(), "how long it was off, it does not know");
    assert_eq!(device.done().len(), 1);
    device.send(Command { age_s: 60, ..command(&action) }).await;
    device.hear().await;
    assert_eq!(device.end(&action).unwrap().state, AckState::Done);
    assert_eq!(device.done().len(), 2, "what can be done twice is done again in its time");
}
