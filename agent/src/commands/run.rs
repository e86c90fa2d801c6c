//! `copal-agent run`: puts the rooms together and runs them until told to stop.
//!
//! | task | takes | gives |
//! |---|---|---|
//! | `target::Sync` | the cloud's documents | targets, its condition |
//! | `supervisor` | targets, engine events | its status |
//! | `channel` | frames of the cloud, acks | hints, commands |
//! | `orders` | commands of the channel | asks of the supervisor, nudges, acks |
//! | `logs` | what containers say | rings on disk, streams |
//! | `os` | targets, services, condition | the operating system's status; restarts |
//! | `selfupdate::Updater` | targets, the others' states | its status; another binary in this process's place |
//! | `report::Reporter` | status of all, condition | signed reports, `status.json` |
//! | `terminal` | streams of the channel | shells, for as long as they may be |
//! | `spool` | what happened, of all of them | events kept until the cloud has them |
//! | `metrics` | files of the kernel, services | telemetry; samples for who watches |
//! | `diagnostics::watch` | time, updates that ended | what health checks found |
//! | `diagnostics::door` | questions of programs on this device | results of health checks |
//! | watchdog | time | systemd's pings |

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::Context as _;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{mpsc, watch},
};

use super::rooms::Rooms;
use crate::{
    apply::status::{AgentStatus, reason},
    channel, clock,
    diagnostics::{
        self, Link, Tree,
        fetch::Bundles,
        watch::{self as rounds, Health},
    },
    engine::Engine,
    images::Pulls,
    logs, metrics,
    network::{self, Network},
    orders::{self, Acks, RealHands, pause::Pause},
    os::{
        self, OsStatus,
        disk::{Disks, RealDisks},
    },
    report::{About, Counter, Listening, Reporter},
    selfupdate::{
        self, SelfStatus, Updater,
        launch::{self, Launched},
    },
    settings::{self, Places},
    spool::{self, Folder, Note, Notes, Outbox, Spool},
    supervisor::{self, Deps, holds::Holds},
    target::{Channels, Checker, Condition, Nudges, Pace, Sync},
    terminal::{self, Terminals},
};

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// Settings or state that cannot be used.
pub async fn run(places: &Places, launched: Launched) -> anyhow::Result<()> {
    super::prepare::folders(places)?;
    let rooms = Rooms::open(places)?;
    let _lock = rooms.lock()?;
    rooms.session.identity(|identity| {
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            fleet = %identity.fleet_id(),
            instance = identity.instance(),
            key = %identity.signing().public().id(),
            "copal-agent starts"
        );
    });
    let notes = Notes::new(rooms.clock.clone(), clock::uptime_s);
    let folder = Box::new(Folder::new(places.state_dir.join("spool")));
    let events = Spool::open(folder, &clock::boot_id(), places.spool_bytes);
    let boot =
        spool::boot(&Tree::new("/"), events.last().as_ref(), &clock::boot_id(), env!("CARGO_PKG_VERSION"));
    boot.notes.into_iter().for_each(|note| notes.note(note));
    let outbox = Arc::new(Outbox::new(events, notes.clone(), &clock::boot_id()));
    let engine = Engine::connect(places.docker_host.as_deref());
    let images = Arc::new(Pulls::new(engine.clone(), rooms.session.clone(), settings::platform()));
    let counter = Counter::open(rooms.state.clone(), rooms.clock.now())?;

    let (sync, Channels { targets, condition, checked }) = Sync::new(
        rooms.session.clone(),
        rooms.store.clone(),
        rooms.clock.clone(),
        Pace::default().hurried(places.hurry),
    );
    let (nudges, nudged) = watch::channel(Nudges::default());
    let pause = Arc::new(Pause::open(rooms.state.clone(), rooms.clock.clone(), nudges.clone()));
    let sync = sync.listening(nudged);
    let (asking, asks) = mpsc::channel(8);
    let holds = Holds::open(rooms.state.clone(), &clock::boot_id());
    let acks = Arc::new(Acks::default());
    let (commands, told) = mpsc::channel(32);
    let network = Network::open(
        rooms.state.clone(),
        rooms.cloud.clone(),
        Path::new("/"),
        network::Pace::from_environment(),
    );
    let network = Arc::new(network);
    let health = Arc::new(Health::open(rooms.state.clone()));
    let link = Link::Own { session: rooms.session.clone(), store: rooms.store.clone() };
    let checks = diagnostics::Deps::new(places.clone(), rooms.clock.clone(), engine.clone(), link, true);
    let checks = Arc::new(checks.telling(notes.clone(), &health.known()));
    let (log_streams, collect_logs) = service_logs(&rooms, places, engine.clone());
    let hands = RealHands {
        asks: asking,
        pause: pause.clone(),
        updates: Checker { nudges: nudges.clone(), checked },
        reboot: rooms.reboot_command(places),
        leds: places.leds.clone(),
        checks: checks.clone(),
        health: health.clone(),
        network: network.clone(),
    };
    let bundles = Arc::new(Bundles::new(checks.clone(), rooms.state.clone()));
    let terminals = Arc::new(Terminals::new(terminal::Deps {
        doors: Box::new(terminal::doors::OwnDoors {
            engine: engine.clone(),
            instance: rooms.session.identity(crate::identity::Identity::instance),
        }),
        trust: Box::new(terminal::grant::OwnTrust {
            store: rooms.store.clone(),
            session: rooms.session.clone(),
        }),
        policy: places.policy.clone(),
        folder: terminal::open::Folder::of(&places.run_dir),
        recordings: terminal::recordings::Recordings::of(&places.state_dir),
        clock: rooms.clock.clone(),
        notes: notes.clone(),
    }));
    let (status_writer, status) = watch::channel(AgentStatus::default());
    let (budget_writer, budget) = watch::channel(None);
    let (spare_writer, spare) = watch::channel(false);
    let measuring = metrics::Deps {
        tree: Tree::new("/"),
        state_dir: places.state_dir.clone(),
        status: status.clone(),
        clock: rooms.clock.clone(),
        every: Duration::from_secs(places.metrics_every_s),
        budget: budget.clone(),
        boot_reason: boot.reason,
        checks: checks.clone(),
        looking: Arc::default(),
    };
    let kinds = channel::streams::Kinds {
        metrics: Some(Arc::new(metrics::Live(measuring.clone()))),
        bundle: Some(bundles),
        terminal: Some(terminals.clone()),
        logs: Some(Arc::new(log_streams)),
    };
    let channel = channel::run(channel::Deps {
        session: rooms.session.clone(),
        nudges,
        condition: condition.clone(),
        commands,
        acks: acks.clone(),
        state: rooms.state.clone(),
        clock: rooms.clock.clone(),
        pace: channel::pace::Pace::default().hurried(places.hurry),
        moved: network.moved(),
        max_bytes_month: places.max_bytes_month,
        streams: kinds,
        outbox: outbox.clone(),
        budget: budget_writer,
        spare: spare_writer,
    });
    let orders = orders::run(rooms.orders(places, Arc::new(hands), acks.clone(), notes.clone()), told);
    let (os_writer, os_status) = watch::channel(OsStatus::default());
    let (self_writer, self_status) = watch::channel(SelfStatus::default());
    let updater = Updater {
        session: rooms.session.clone(),
        state: rooms.state.clone(),
        clock: rooms.clock.clone(),
        since: tokio::time::Instant::now(),
        engine: Arc::new(engine.clone()),
        store: rooms.store.clone(),
        launched: launched.clone(),
        pace: selfupdate::Pace::from_environment(),
        targets: targets.clone(),
        condition: condition.clone(),
        status: status.clone(),
        told: self_writer,
    };
    let reporter = Reporter {
        about: About::this_system(rooms.session.identity(crate::identity::Identity::fleet_id)),
        session: rooms.session.clone(),
        clock: rooms.clock.clone(),
        counter,
        heard: Listening {
            status: status.clone(),
            os: os_status,
            agent: self_status,
            condition: condition.clone(),
            budget: budget.clone(),
            health: health.told(),
            spare,
        },
        notes: notes.clone(),
        status_file: places.run_dir.join("status.json"),
    };
    let hears = rounds::Hears { status: status.clone(), targets: targets.clone(), budget };
    let looking = rounds::run(checks.clone(), health, places.check_every, hears);
    let (os_targets, os_condition) = (targets.clone(), condition.clone());
    let lines = move |asks| os::Lines {
        targets: os_targets,
        condition: os_condition,
        apps: status,
        asks,
        status: os_writer,
    };
    let update_os = update_os(&rooms, places, engine.clone(), lines);
    let supervised = notes.clone();
    let supervise = async {
        let device_id = enrolled(condition).await;
        let deps = Deps {
            engine: Arc::new(engine),
            images,
            ledger: rooms.store.clone(),
            settings: rooms.supervisor_settings(places, &device_id),
            holds,
            notes: supervised,
        };
        supervisor::run(deps, targets, status_writer, asks).await;
    };

    notify(&[sd_notify::NotifyState::Ready]);
    let another = tokio::select! {
        () = Box::pin(sync.run()) => false,
        () = Box::pin(reporter.run()) => false,
        () = Box::pin(supervise) => false,
        () = Box::pin(channel) => false,
        () = Box::pin(orders) => false,
        () = spool::run(notes.clone(), outbox.clone()) => false,
        () = Box::pin(metrics::run(measuring, notes.clone(), outbox.clone())) => false,
        () = Box::pin(collect_logs) => false,
        () = pause.run() => false,
        () = network.guard(&checks.link, &notes) => false,
        () = Box::pin(update_os) => false,
        () = Box::pin(diagnostics::door::serve(checks.clone())) => false,
        () = Box::pin(looking) => false,
        () = Box::pin(updater.run()) => true,
        () = watchdog() => false,
        () = stop_asked() => {
            tracing::info!("stopping as asked; containers stay up");
            false
        }
    };
    // A shell that nobody can end any more must not stay.
    terminals.end_all().await;
    // What is not written down now is lost.
    notes.note(Note::new("agent", "stopped", "the agent stops; what it runs goes on"));
    outbox.flush();
    if another {
        return Err(launch::again(&launched)).context("the installed agent could not be started again");
    }
    notify(&[sd_notify::NotifyState::Stopping]);
    Ok(())
}

/// Service logs: their streams, and what collects them.
fn service_logs(
    rooms: &Rooms,
    places: &Places,
    engine: Engine,
) -> (logs::Logs, impl Future<Output = ()> + use<>) {
    let dir = places.state_dir.join("logs");
    let (written, read) = watch::channel(0);
    let store = rooms.store.clone();
    let secrets = move || {
        let apps = store.resolved().apps;
        let opened = apps.values().flat_map(|app| app.secrets.values()).flat_map(|vars| vars.values());
        opened.map(|secret| String::from_utf8_lossy(&secret.0).into_owned()).collect()
    };
    let deps = logs::Deps {
        engine,
        instance: rooms.session.identity(crate::identity::Identity::instance),
        dir: dir.clone(),
        limits: logs::Limits::of(places.log_bytes_service, places.log_bytes),
        state: rooms.state.clone(),
        boot_id: clock::boot_id(),
        secrets: Box::new(secrets),
        written,
    };
    (logs::Logs { dir, written: read }, logs::run(deps))
}

/// The operating system's updater, where the image has two slots.
async fn update_os(
    rooms: &Rooms,
    places: &Places,
    engine: Engine,
    lines: impl FnOnce(mpsc::Receiver<os::Asked>) -> os::Lines,
) {
    let (asking, asks) = mpsc::channel(4);
    let lines = lines(asks);
    let Some(config) = rooms.os.clone() else { return os::unmanaged(lines.targets, lines.status).await };
    let disks: Arc<dyn Disks> = Arc::new(RealDisks);
    let boot = match os::boot::open(&config, disks.clone()) {
        Ok(boot) => boot,
        Err(error) => {
            tracing::error!(code = error.code(), %error, "the operating system is not updated");
            lines.status.send_modify(|s| s.reason = Some(reason(error.code(), error.to_string())));
            return std::future::pending().await;
        }
    };
    let device = os::around::ThisDevice {
        clock: rooms.clock.clone(),
        engine,
        run_dir: places.run_dir.clone(),
        hooks: config.hooks.clone(),
    };
    let slots = os::slots::Slots::new(
        config.clone(),
        disks,
        Arc::new(os::slots::Cloud(rooms.session.clone())),
        rooms.state.clone(),
    );
    let deps = os::Deps {
        config,
        boot: Arc::from(boot),
        installer: Arc::new(slots),
        documents: Arc::new(os::around::Stored(rooms.store.clone())),
        device: Arc::new(device),
        state: rooms.state.clone(),
    };
    let door = os::door::serve(&places.run_dir, rooms.store.clone(), rooms.clock.clone(), asking);
    tokio::join!(os::run(deps, lines), door);
}

/// The device's id, once there is one: before that nothing could be assigned.
async fn enrolled(mut condition: watch::Receiver<Condition>) -> String {
    loop {
        let id = condition.borrow_and_update().device_id;
        match id {
            Some(id) => return id.to_string(),
            None => {
                if condition.changed().await.is_err() {
                    return std::future::pending().await;
                }
            }
        }
    }
}

async fn stop_asked() {
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}

/// Pings systemd from the same thread everything else runs on: a hang anywhere there stops the pings.
async fn watchdog() {
    let Some(limit) = sd_notify::watchdog_enabled() else { return std::future::pending().await };
    loop {
        notify(&[sd_notify::NotifyState::Watchdog]);
        tokio::time::sleep((limit / 3).max(Duration::from_millis(100))).await;
    }
}

fn notify(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(e) = sd_notify::notify(state) {
        tracing::debug!(error = %e, "systemd could not be notified");
    }
}
