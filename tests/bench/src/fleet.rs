//! What many connected devices cost: memory for each channel, news to all of them, all of them coming back at once.
//! The devices are `tests/fleet-sim`'s, in this process; TLS by a private authority, as a small installation has it.
//! Both share this machine's processors, so times hold the devices' own work, too.

use std::{
    collections::BTreeMap,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use copal_e2e::{
    cloud::Cloud,
    owner::Owner,
    repo::{Repo, STAY, Services},
};
use copal_fleet_sim::{Fleet, Seen, raise_file_limit};

use crate::{Row, cpu_seconds, row, status_kib};

/// How long all may take to come, or to be told.
const PATIENCE: Duration = Duration::from_secs(600);
/// A quiet time in which each device pings exactly once: the cloud asks for a ping every 180 s.
const QUIET: Duration = Duration::from_secs(180);
/// Until what was begun before is over.
const SETTLE: Duration = Duration::from_secs(10);
/// Bytes of IP and TCP around each segment: 20, and 20 with 12 of timestamps.
const AROUND: u64 = 52;
/// Files beside those of the channels, on either side.
const OTHER_FILES: u64 = 600;

/// All rows for a fleet of this size. Bytes on the wire are measured where the size is the smaller one: they do not depend on it.
pub(crate) async fn rows(devices: usize) -> Vec<Row> {
    let files = raise_file_limit().unwrap();
    // Three quarters of what the cloud may open is for channels.
    if files < (devices as u64 + OTHER_FILES) / 3 * 4 {
        return vec![
            row(format!("{devices} devices"), "not measured")
                .goal(format!("{files} open files are too few (ulimit -Hn)")),
        ];
    }
    let mut cloud = Cloud::start_private_ca(&[]).await;
    let owner = Owner::sign_in(&cloud).await;
    owner.fleet("porch", &[]).await;
    let repo = Repo::new(&cloud, "porch");
    let mut releases = Vec::new();
    for round in 1..=2 {
        Services { services: &[("app", &format!("echo {round}; {STAY}"), "")] }.write_to(&repo);
        repo.push_ok("works").await;
        let list = cloud.get("/fleets/porch/releases").await;
        releases.push(list["items"][0]["id"].as_str().unwrap().to_owned());
    }
    let mut bench = Bench { fleet: enrol(&owner, devices).await, devices, rows: Vec::new() };
    bench.come(&cloud).await;
    if devices <= 2_000 {
        bench.idle(&cloud).await;
    }
    bench.deploy(&cloud, &owner, &releases[0]).await;
    bench.storm(&mut cloud).await;
    bench.rows
}

async fn enrol(owner: &Owner, devices: usize) -> Fleet {
    let file = owner.home.path().join("copal.json");
    let uses = devices.to_string();
    owner.ok(&["device", "config", "porch", "--uses", &uses, "--out", file.to_str().unwrap()]).await;
    let file = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    Fleet::enrol(file, devices).await.unwrap()
}

struct Bench {
    fleet: Fleet,
    devices: usize,
    rows: Vec<Row>,
}

impl Bench {
    async fn until(&self, what: &str, enough: impl Fn(&Seen) -> bool) {
        let done = self.fleet.until(PATIENCE, enough).await;
        assert!(done, "not all {what}: {:?}", self.fleet.seen());
    }

    fn all(&self) -> u64 {
        self.devices as u64
    }

    /// Everybody comes for the first time. Memory is what a channel takes beside what the cloud knows of a device anyway.
    async fn come(&mut self, cloud: &Cloud) {
        let (all, devices) = (self.all(), self.devices);
        // What enrolling and logging in left in memory is not the channels'.
        tokio::time::sleep(SETTLE).await;
        let (before, cpu) = (status_kib(cloud.pid(), "VmRSS:"), cpu_seconds(cloud.pid()));
        self.fleet.connect(Duration::from_secs(20));
        self.until("came", |seen| seen.connected.load(Relaxed) == all).await;
        self.until("were told", |seen| seen.applied.load(Relaxed) >= all).await;
        let connecting = cpu_seconds(cloud.pid()) - cpu;
        tokio::time::sleep(SETTLE).await;
        let each = (status_kib(cloud.pid(), "VmRSS:") - before) * 1.024 / devices as f64;
        self.rows.extend([
            row(format!("memory of the cloud per idle channel, TLS, {devices}"), format!("{each:.1} KB"))
                .goal("<= 15 KB"),
            row(format!("CPU of the cloud to take and tell {devices}"), format!("{connecting:.1} s")),
        ]);
    }

    /// Nothing happens but pings.
    async fn idle(&mut self, cloud: &Cloud) {
        let passed = |fleet: &Fleet| {
            let bytes = fleet.seen().sent.load(Relaxed) + fleet.seen().received.load(Relaxed);
            (bytes, segments(cloud))
        };
        let (cpu, before) = (cpu_seconds(cloud.pid()), passed(&self.fleet));
        tokio::time::sleep(QUIET).await;
        let (cpu, after) = (cpu_seconds(cloud.pid()) - cpu, passed(&self.fleet));
        // Of those that were there all the time: the connections for logging in come and go.
        let segments = |after: &BTreeMap<String, u64>| -> u64 {
            after.iter().filter_map(|(who, n)| Some(n - before.1.get(who)?)).sum()
        };
        let bytes = (after.0 - before.0) + segments(&after.1) * AROUND;
        let day = 86_400.0 / QUIET.as_secs_f64();
        let each = bytes as f64 / self.devices as f64 * day;
        self.rows.extend([
            row(
                format!("bytes of an idle channel a day, with TCP and IP (from {} s)", QUIET.as_secs()),
                format!("{:.1} KB", each / 1000.0),
            )
            .goal("<= 140 KB"),
            row(
                "CPU of the cloud per idle channel a day",
                format!("{:.2} s", cpu / self.devices as f64 * day),
            ),
        ]);
    }

    /// News for all: the release of before, which each device has to be assigned, told, and to fetch.
    async fn deploy(&mut self, cloud: &Cloud, owner: &Owner, release: &str) {
        let (all, devices) = (self.all(), self.devices);
        let told = self.fleet.seen().applied.load(Relaxed);
        self.fleet.seen().forget_moments();
        let (began, cpu) = (Instant::now(), cpu_seconds(cloud.pid()));
        owner.ok(&["release", "deploy", release, "--fleet", "porch"]).await;
        self.until("were told", |seen| seen.applied.load(Relaxed) >= told + all).await;
        let cpu = cpu_seconds(cloud.pid()) - cpu;
        let (hinted, verified) = self.fleet.seen().since(began);
        let lags = self.fleet.seen().lags();
        self.rows.extend([
            row(
                format!("deploy to {devices}: half hinted, all hinted"),
                format!("{:.2}, {:.2} s", at(&hinted, 0.5), at(&hinted, 1.0)),
            ),
            row(format!("deploy to {devices}: all verified it"), format!("{:.2} s", at(&verified, 1.0)))
                .peer(format!("{:.0} s (20 a second)", devices as f64 / 20.0)),
            row(
                format!("from hint to verified, all {devices} at once: median, p95"),
                format!("{:.3}, {:.3} s", at(&lags, 0.5), at(&lags, 0.95)),
            ),
            row("CPU of the cloud for that, each device", format!("{:.2} ms", cpu * 1e3 / devices as f64)),
        ]);
    }

    /// The cloud dies and comes back at once; it knows no sessions then, so that all log in again.
    async fn storm(&mut self, cloud: &mut Cloud) {
        let (all, devices) = (self.all(), self.devices);
        let (refused, failed) = counts(&self.fleet);
        let opened = self.fleet.seen().opened.load(Relaxed);
        let began = Instant::now();
        cloud.restart().await;
        let busy = Busy::watch(cloud.pid());
        self.until("came back", |seen| {
            seen.opened.load(Relaxed) >= opened + all && seen.connected.load(Relaxed) == all
        })
        .await;
        let took = began.elapsed().as_secs_f64();
        let peak = busy.peak();
        let (later, broken) = counts(&self.fleet);
        self.rows.extend([
            row(format!("{devices} are back after a crash of the cloud"), format!("{took:.1} s"))
                .goal("told: within 5 s and 1 s for each 100"),
            row(
                "CPU of the cloud until then: in all, at the peak",
                format!("{:.1} s, {peak:.0} %", cpu_seconds(cloud.pid())),
            ),
            row("  told to wait, failed otherwise", format!("{}, {}", later - refused, broken - failed))
                .goal(self.fleet.seen().why().filter(|_| broken > failed).unwrap_or_default()),
        ]);
    }
}

fn counts(fleet: &Fleet) -> (u64, u64) {
    (fleet.seen().refused.load(Relaxed), fleet.seen().failed.load(Relaxed))
}

fn at(list: &[Duration], share: f64) -> f64 {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index of a list")]
    let index = (list.len().saturating_sub(1) as f64 * share) as usize;
    list.get(index).map_or(f64::NAN, Duration::as_secs_f64)
}

/// TCP segments of each connection to the cloud so far, both ways, as the system counts them; by the devices' addresses.
fn segments(cloud: &Cloud) -> BTreeMap<String, u64> {
    let output = Command::new("ss").args(["-tinHO", "dst", cloud.address()]).output();
    let output = output.expect("ss, of iproute2");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let count = |line: &str| -> u64 {
        let words = line.split_whitespace();
        words
            .filter_map(|word| word.strip_prefix("segs_out:").or_else(|| word.strip_prefix("segs_in:")))
            .map(|n| n.parse::<u64>().unwrap())
            .sum()
    };
    text.lines().filter_map(|line| Some((line.split_whitespace().nth(3)?.to_owned(), count(line)))).collect()
}

/// How busy a process is at most, looked at every half second.
struct Busy {
    peak: Arc<AtomicU32>,
    over: Arc<AtomicBool>,
}

impl Busy {
    fn watch(pid: u32) -> Self {
        let (peak, over) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicBool::new(false)));
        let (seen, end) = (peak.clone(), over.clone());
        // A thread of its own: the devices keep this program's others busy.
        std::thread::spawn(move || {
            let (mut cpu, mut at) = (cpu_seconds(pid), Instant::now());
            while !end.load(Relaxed) {
                std::thread::sleep(Duration::from_millis(500));
                let (now, later) = (cpu_seconds(pid), Instant::now());
                #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "per cents")]
                seen.fetch_max(((now - cpu) / (later - at).as_secs_f64() * 100.0) as u32, Relaxed);
                (cpu, at) = (now, later);
            }
        });
        Self { peak, over }
    }

    fn peak(self) -> f64 {
        self.over.store(true, Relaxed);
        f64::from(self.peak.load(Relaxed))
    }
}
