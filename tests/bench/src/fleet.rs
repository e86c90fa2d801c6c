//! What many connected devices cost: memory for each channel, news to all of them, a command to each, all of them coming back at once.
//! The devices are `tests/fleet-sim`'s, in this process; TLS by a private authority, as a small installation has it. They do what an
//! agent does, by connections of their own. Both share this machine's processors, so times hold the devices' own work, too.
//!
//! Rows are printed as they are made: what goes wrong later does not take them away.

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
use copal_fleet_sim::{Fleet, Pace, Seen, raise_file_limit};
use serde_json::{Value, json};

use crate::{Row, cpu_seconds, missing, row, status_kib};

/// How long all may take to come, or to be told.
const PATIENCE: Duration = Duration::from_secs(900);
/// A quiet time in which each device pings exactly once: the cloud asks for a ping every 360 s.
const QUIET: Duration = Duration::from_secs(360);
/// Until connections that idle are let go of: the cloud keeps its end for 30 s.
const SETTLE: Duration = Duration::from_secs(40);
/// How long an agent keeps a connection it does not need.
const KEPT: Duration = Duration::from_secs(90);
/// In which all do something one after the other.
const TURN: Duration = Duration::from_secs(20);
/// Bytes of IP and TCP around each segment: 20, and 20 with 12 of timestamps.
const AROUND: u64 = 52;
/// Files beside those of the channels, on either side.
const OTHER_FILES: u64 = 600;
/// Of an idle day: pings, summaries, rounds of polls, rounds of reports of health.
const PINGS: f64 = 86_400.0 / QUIET.as_secs() as f64;
const SUMMARIES: f64 = 24.0;
const ROUNDS: f64 = 4.0;

/// All rows for a fleet of this size; gives those that are missing. Bytes on the wire are measured where the size is the smaller one:
/// they do not depend on it.
pub(crate) async fn rows(devices: usize) -> Vec<Row> {
    let files = raise_file_limit().unwrap();
    // Three quarters of what the cloud may open is for channels.
    if files < (devices as u64 + OTHER_FILES) / 3 * 4 {
        return vec![missing(
            format!("{devices} devices"),
            format!("{files} open files are too few (ulimit -Hn)"),
        )];
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
    let began = Instant::now();
    let fleet = match enrol(&owner, devices).await {
        Ok(fleet) => fleet,
        Err(error) => return vec![missing(format!("{devices} devices enrol"), format!("{error:#}"))],
    };
    let mut bench = Bench { fleet, devices, missing: Vec::new() };
    let enrolled = format!("{:.1} s", began.elapsed().as_secs_f64());
    bench.say([row(format!("{devices} devices enrol and log in, 32 at a time"), enrolled)]);
    // Without channels there is nothing to measure.
    if bench.come(&cloud).await {
        if devices <= 2_000 {
            bench.idle(&cloud).await;
        }
        bench.deploy(&cloud, &owner, &releases[0]).await;
        bench.ask_all(&cloud).await;
        bench.storm(&mut cloud).await;
    }
    bench.missing
}

async fn enrol(owner: &Owner, devices: usize) -> Result<Fleet, Box<dyn std::error::Error + Send + Sync>> {
    let file = owner.home.path().join("copal.json");
    let uses = devices.to_string();
    owner.ok(&["device", "config", "porch", "--uses", &uses, "--out", file.to_str().unwrap()]).await;
    let file = serde_json::from_slice(&std::fs::read(&file)?)?;
    let mut fleet = Fleet::enrol(file, devices).await?;
    // Nothing happens by itself but pings: what an idle day holds is done when it is measured.
    let never = Duration::from_secs(7 * 86_400);
    fleet.set_pace(Pace { rest: never, checks: never, first: never, summary: never, ..Pace::default() });
    Ok(fleet)
}

struct Bench {
    fleet: Fleet,
    devices: usize,
    missing: Vec<Row>,
}

impl Bench {
    fn say(&self, rows: impl IntoIterator<Item = Row>) {
        rows.into_iter().for_each(|row| row.print());
    }

    /// Waits for something all do; where they do not in time, that row is missing.
    async fn until(&mut self, what: &str, enough: impl Fn(&Seen) -> bool) -> bool {
        let done = self.fleet.until(PATIENCE, enough).await;
        if !done {
            let seen = self.fleet.seen();
            eprintln!("not all {what}: {seen:?}");
            let why = seen.why().unwrap_or_default();
            let what = format!("{} devices {what}", self.devices);
            self.missing.push(missing(what, format!("not within {} s: {why}", PATIENCE.as_secs())));
        }
        done
    }

    fn all(&self) -> u64 {
        self.devices as u64
    }

    /// Everybody comes for the first time. Memory is what a channel takes beside what the cloud knows of a device anyway.
    async fn come(&mut self, cloud: &Cloud) -> bool {
        let (all, devices) = (self.all(), self.devices);
        // What enrolling and logging in left in memory is not the channels'.
        tokio::time::sleep(Duration::from_secs(10)).await;
        // The peak of what was built and enrolled is none of theirs, either.
        let _ = std::fs::write(format!("/proc/{}/clear_refs", cloud.pid()), "5");
        let (before, cpu) = (status_kib(cloud.pid(), "VmRSS:"), cpu_seconds(cloud.pid()));
        let began = Instant::now();
        // One after the other, and each lets go of what it does not need: what many connections by HTTP at once leave in memory
        // is not the channels'.
        self.fleet.keep(Duration::from_secs(1));
        self.fleet.connect(TURN.max(Duration::from_millis(40 * self.all())));
        if !self.until("come", |seen| seen.connected.load(Relaxed) == all).await
            || !self.until("are told", |seen| seen.settled.load(Relaxed) >= all).await
        {
            return false;
        }
        let (took, connecting) = (began.elapsed().as_secs_f64(), cpu_seconds(cloud.pid()) - cpu);
        self.fleet.keep(KEPT);
        tokio::time::sleep(SETTLE).await;
        let rss = |field| status_kib(cloud.pid(), field) * 1.024 / 1e3;
        let (after, peak) = (rss("VmRSS:"), rss("VmHWM:"));
        let before = before * 1.024 / 1e3;
        let seen = self.fleet.seen();
        self.say([
            row(
                format!("memory of the cloud per idle channel, TLS, {devices}"),
                format!("{:.1} KB", (after - before) * 1e3 / devices as f64),
            )
            .goal("<= 15 KB"),
            row(
                "  RSS before, with them and idle, at the peak as they came",
                format!("{before:.0}, {after:.0}, {peak:.0} MB"),
            ),
            row(
                format!("CPU of the cloud to take, tell and hear {devices} (each 3 reports)"),
                format!("{connecting:.1} s in {took:.0}"),
            ),
            row(
                "  TLS handshakes by channels, by HTTP (of these resumed)",
                format!(
                    "{}, {} ({})",
                    seen.channel.connections.load(Relaxed),
                    seen.http.connections.load(Relaxed),
                    seen.http.resumed.load(Relaxed)
                ),
            ),
        ]);
        true
    }

    /// Bytes: of pings in a quiet time, then of what an idle device does a few times a day, each done once by all.
    async fn idle(&mut self, cloud: &Cloud) {
        let all = self.all();
        let each = |bytes: u64| bytes as f64 / all as f64;
        let (cpu, meter) = (cpu_seconds(cloud.pid()), Meter::start(&self.fleet, cloud));
        tokio::time::sleep(QUIET).await;
        let quiet = cpu_seconds(cloud.pid()) - cpu;
        let ping = each(meter.channels(&self.fleet, cloud));

        let before = self.fleet.seen().telemetry.load(Relaxed);
        let meter = Meter::start(&self.fleet, cloud);
        self.fleet.summarise(TURN).await;
        if !self.until("send a summary", |seen| seen.telemetry.load(Relaxed) >= before + all).await {
            return;
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
        let summary = each(meter.channels(&self.fleet, cloud)) - ping * meter.turns();

        let before = self.fleet.seen().polls.load(Relaxed);
        let meter = Meter::start(&self.fleet, cloud);
        self.fleet.poll(TURN).await;
        if !self.until("poll", |seen| seen.polls.load(Relaxed) >= before + all).await {
            return;
        }
        // Until the connections are closed, which is a part of what they cost.
        tokio::time::sleep(SETTLE).await;
        let poll = each(meter.http(&self.fleet, cloud));

        let before = self.fleet.seen().reports.load(Relaxed);
        let meter = Meter::start(&self.fleet, cloud);
        self.fleet.report(TURN).await;
        if !self.until("report", |seen| seen.reports.load(Relaxed) >= before + all).await {
            return;
        }
        tokio::time::sleep(SETTLE).await;
        let report = each(meter.http(&self.fleet, cloud));

        let kilobytes = |bytes: f64| format!("{:.1} KB", bytes / 1e3);
        let day = PINGS * ping + SUMMARIES * summary + ROUNDS * (poll + report);
        self.say([
            row(
                format!(
                    "bytes of an idle channel a day: pings, with TCP and IP (from {} s)",
                    QUIET.as_secs()
                ),
                kilobytes(PINGS * ping),
            )
            .goal("<= 140 KB"),
            row("  and with all an idle device does a day", kilobytes(day))
                .goal("pings, 24 summaries, 4 polls, 4 reports"),
            row(
                "  of it by HTTP, with TLS and logging in; bytes of each",
                kilobytes(ROUNDS * (poll + report)),
            )
            .goal(format!("summary {summary:.0}, poll {poll:.0}, report {report:.0} B")),
            row(
                "CPU of the cloud per idle channel a day (pings)",
                format!("{:.2} s", quiet / self.devices as f64 * 86_400.0 / QUIET.as_secs_f64()),
            ),
        ]);
    }

    /// News for all: the release of before, which each device has to be assigned, told, and to fetch.
    async fn deploy(&mut self, cloud: &Cloud, owner: &Owner, release: &str) {
        let (all, devices) = (self.all(), self.devices);
        let (told, settled) =
            (self.fleet.seen().applied.load(Relaxed), self.fleet.seen().settled.load(Relaxed));
        let handshakes = self.fleet.seen().http.connections.load(Relaxed);
        self.fleet.seen().forget_moments();
        let (began, cpu) = (Instant::now(), cpu_seconds(cloud.pid()));
        owner.ok(&["release", "deploy", release, "--fleet", "porch"]).await;
        if !self.until("are told", |seen| seen.applied.load(Relaxed) >= told + all).await {
            return;
        }
        let (hinted, verified) = self.fleet.seen().since(began);
        let lags = self.fleet.seen().lags();
        self.say([
            row(
                format!("deploy to {devices}: half hinted, all hinted"),
                format!("{:.2}, {:.2} s", at(&hinted, 0.5), at(&hinted, 1.0)),
            ),
            row(
                format!("deploy to {devices}: all fetched and verified it"),
                format!("{:.2} s", at(&verified, 1.0)),
            )
            .goal("a TLS handshake, state, release, freshness")
            .peer(format!("{:.0} s (20 a second)", devices as f64 / 20.0)),
            row(
                format!("from hint to verified, all {devices} at once: median, p95"),
                format!("{:.3}, {:.3} s", at(&lags, 0.5), at(&lags, 0.95)),
            ),
        ]);
        if !self.until("report that they run it", |seen| seen.settled.load(Relaxed) >= settled + all).await {
            return;
        }
        let cpu = cpu_seconds(cloud.pid()) - cpu;
        self.say([
            row(
                format!("deploy to {devices}: all reported that they run it"),
                format!("{:.2} s", began.elapsed().as_secs_f64()),
            ),
            row(
                "CPU of the cloud for that, each device; TLS handshakes",
                format!(
                    "{:.2} ms, {}",
                    cpu * 1e3 / devices as f64,
                    self.fleet.seen().http.connections.load(Relaxed) - handshakes
                ),
            ),
        ]);
    }

    /// A command to each, as a round: signed for its device, told through its states.
    async fn ask_all(&mut self, cloud: &Cloud) {
        let (all, devices) = (self.all(), self.devices);
        let what = format!("a round of pause_updates to {devices}: all done");
        let (began, cpu) = (Instant::now(), cpu_seconds(cloud.pid()));
        let wish = json!({
            "verb": "pause_updates", "args": {"for_s": 60}, "expect_count": all, "delivery": "store", "ttl_s": 3600,
        });
        let (status, round) = cloud.try_call("POST", "/fleets/porch/commands", Some(wish)).await;
        let Some(id) = round["id"].as_str().filter(|_| status == 201) else {
            return self.missing.push(missing(what, format!("{status} {round}")));
        };
        let mut now = Value::Null;
        while began.elapsed() < PATIENCE && now["ended"] != true {
            tokio::time::sleep(Duration::from_secs(1)).await;
            (_, now) = cloud.try_call("GET", &format!("/fleets/porch/commands/{id}"), None).await;
        }
        if now["states"]["done"] != all {
            return self.missing.push(missing(what, now["states"].to_string()));
        }
        let took = began.elapsed().as_secs_f64();
        self.say([
            row(what, format!("{took:.0} s"))
                .goal(format!("asked at 50 a second: {:.0} s", devices as f64 / 50.0)),
            row(
                "CPU of the cloud for that, each device",
                format!("{:.2} ms", (cpu_seconds(cloud.pid()) - cpu) * 1e3 / devices as f64),
            ),
        ]);
    }

    /// The cloud dies and comes back at once; it knows no sessions then, so that all log in again, poll, and open channels.
    async fn storm(&mut self, cloud: &mut Cloud) {
        let (all, devices) = (self.all(), self.devices);
        let (refused, failed) = counts(&self.fleet);
        let opened = self.fleet.seen().opened.load(Relaxed);
        let handshakes =
            |seen: &Seen| seen.http.connections.load(Relaxed) + seen.channel.connections.load(Relaxed);
        let before = handshakes(self.fleet.seen());
        let began = Instant::now();
        cloud.restart().await;
        let busy = Busy::watch(cloud.pid());
        let back =
            |seen: &Seen| seen.opened.load(Relaxed) >= opened + all && seen.connected.load(Relaxed) == all;
        let done = self.until("come back after a crash of the cloud", back).await;
        let took = began.elapsed().as_secs_f64();
        let peak = busy.peak();
        if !done {
            return;
        }
        let (later, broken) = counts(&self.fleet);
        self.say([
            row(format!("{devices} are back after a crash of the cloud"), format!("{took:.1} s"))
                .goal("told: within 5 s and 1 s for each 100"),
            row(
                "CPU of the cloud until then: in all, at the peak",
                format!("{:.1} s, {peak:.0} %", cpu_seconds(cloud.pid())),
            ),
            row(
                "  TLS handshakes, told to wait, failed otherwise",
                format!(
                    "{}, {}, {}",
                    handshakes(self.fleet.seen()) - before,
                    later - refused,
                    broken - failed
                ),
            )
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

/// Bytes from some moment on, with those of TCP and IP around them.
struct Meter {
    began: Instant,
    channel: u64,
    http: u64,
    /// Segments of each connection there was.
    each: BTreeMap<String, u64>,
    /// Segments of all connections of this machine.
    machine: u64,
}

impl Meter {
    fn start(fleet: &Fleet, cloud: &Cloud) -> Self {
        let seen = fleet.seen();
        let (channel, http) = (seen.channel.bytes(), seen.http.bytes());
        Self { began: Instant::now(), channel, http, each: segments(cloud), machine: machine_segments() }
    }

    /// How much of the time between two pings has passed.
    fn turns(&self) -> f64 {
        self.began.elapsed().as_secs_f64() / QUIET.as_secs_f64()
    }

    /// Segments of the connections that were there all the time: channels.
    fn kept(&self, cloud: &Cloud) -> u64 {
        segments(cloud).iter().filter_map(|(who, n)| Some(n - self.each.get(who)?)).sum()
    }

    fn channels(&self, fleet: &Fleet, cloud: &Cloud) -> u64 {
        fleet.seen().channel.bytes() - self.channel + self.kept(cloud) * AROUND
    }

    /// Those by HTTP come and go, so their segments are those of the machine that are no channel's.
    fn http(&self, fleet: &Fleet, cloud: &Cloud) -> u64 {
        let segments = (machine_segments() - self.machine).saturating_sub(self.kept(cloud));
        fleet.seen().http.bytes() - self.http + segments * AROUND
    }
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

/// TCP segments this machine sent so far. On loopback each is sent once, by either side.
fn machine_segments() -> u64 {
    let text = std::fs::read_to_string("/proc/net/snmp").unwrap_or_default();
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let (names, values) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let found = names.split(' ').zip(values.split(' ')).find(|(name, _)| *name == "OutSegs");
    found.and_then(|(_, value)| value.parse().ok()).unwrap_or(0)
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
