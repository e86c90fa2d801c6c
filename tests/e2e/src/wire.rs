//! A line between this machine and a network namespace of a test's own, on which packets are late, lost, or swallowed altogether.
//!
//! Each end is a TUN device whose packets `socat` hands to this process; what TCP makes of that is the kernel's own. So it works
//! with kernels that have no `sch_netem`. Needs root (as an engine does) and `/dev/net/tun`; everything goes when it is dropped,
//! and the interfaces go even when the test is killed.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tempfile::TempDir;
use tokio::{net::UnixDatagram, sync::mpsc, task::JoinHandle};

use crate::{cloud::path, text, unique};

const PREFIX: &str = "copal-wire";
/// Packets under way at once; more are lost, as on any line.
const ROOM: usize = 4096;

/// How the line is.
#[derive(Debug, Clone, Copy, Default)]
pub struct Weather {
    /// Of a hundred packets so many are lost, each way.
    pub loss: u8,
    /// How long a packet takes, each way.
    pub delay: Duration,
    /// Nothing passes, and nobody is told.
    pub cut: bool,
}

/// The line.
pub struct Wire {
    /// The namespace at its far end.
    pub netns: String,
    /// This machine's address on it.
    pub here: Ipv4Addr,
    /// The same in IPv6.
    pub here6: Ipv6Addr,
    weather: Arc<Mutex<Weather>>,
    bytes: Arc<AtomicU64>,
    ends: Vec<Child>,
    pumps: Vec<JoinHandle<()>>,
    _dir: TempDir,
}

impl Wire {
    /// A good line, by IPv4.
    pub async fn lay() -> Self {
        Self::between(false).await
    }

    /// A good line, by IPv6 alone.
    pub async fn lay6() -> Self {
        Self::between(true).await
    }

    async fn between(six: bool) -> Self {
        sweep();
        let dir = TempDir::new().unwrap();
        let word = unique();
        let netns = format!("{PREFIX}-{}-{word}", std::process::id());
        let (near, far) = (format!("cw{word}"), "wire0");
        let bytes: [u8; 4] = hex::decode(&word).unwrap().try_into().unwrap();
        // A net of four addresses somewhere in 10.128.0.0/9, and one of IPv6's private ones.
        let net = u32::from(Ipv4Addr::new(10, 128 | bytes[0], bytes[1], bytes[2] & 0xfc));
        let net6 = (0xfd00_u128 << 112) | (u128::from(u32::from_be_bytes(bytes)) << 64);
        let (here, there) = (Ipv4Addr::from(net + 1), Ipv4Addr::from(net + 2));
        let (here6, there6) = (Ipv6Addr::from(net6 + 1), Ipv6Addr::from(net6 + 2));

        run(&["ip", "netns", "add", &netns]);
        let mut wire = Self {
            netns: netns.clone(),
            here,
            here6,
            weather: Arc::default(),
            bytes: Arc::default(),
            ends: Vec::new(),
            pumps: Vec::new(),
            _dir: dir,
        };
        let inside = format!("--net=/run/netns/{netns}");
        let sockets = wire._dir.path().to_owned();
        let ours = [bind(&sockets.join("near")), bind(&sockets.join("far"))].map(Arc::new);
        wire.ends.push(end(&[], &near, &sockets, "near"));
        wire.ends.push(end(&["nsenter", &inside], far, &sockets, "far"));
        run(&["ip", "-n", &netns, "link", "set", "lo", "up"]);
        appears(&["ip", "link", "show", &near], &sockets).await;
        appears(&["ip", "-n", &netns, "link", "show", far], &sockets).await;
        let addresses = if six {
            [format!("{here6}/64"), format!("{there6}/64")]
        } else {
            [format!("{here}/30"), format!("{there}/30")]
        };
        // An address of IPv6 would first be asked for, which nobody answers here.
        let nodad: &[&str] = if six { &["nodad"] } else { &[] };
        run(&[&["ip", "addr", "add", &addresses[0], "dev", &near], nodad].concat());
        run(&[&["ip", "-n", &netns, "addr", "add", &addresses[1], "dev", far], nodad].concat());
        run(&["ip", "link", "set", &near, "up"]);
        run(&["ip", "-n", &netns, "link", "set", far, "up"]);
        let [a, b] = ours;
        wire.pump(a.clone(), b.clone(), sockets.join("far.end"));
        wire.pump(b, a, sockets.join("near.end"));
        wire
    }

    /// Carries packets from one end to the other.
    fn pump(&mut self, from: Arc<UnixDatagram>, to: Arc<UnixDatagram>, end: std::path::PathBuf) {
        let (late, mut due) = mpsc::channel::<(Instant, Vec<u8>)>(ROOM);
        let (weather, bytes) = (self.weather.clone(), self.bytes.clone());
        self.pumps.push(tokio::spawn(async move {
            let mut packet = vec![0; 65_536];
            while let Ok(length) = from.recv(&mut packet).await {
                bytes.fetch_add(length as u64, Relaxed);
                let now = *weather.lock().unwrap();
                let mut dice = [0; 2];
                getrandom::fill(&mut dice).unwrap();
                if now.cut || u16::from_be_bytes(dice) % 100 < u16::from(now.loss) {
                    continue;
                }
                // Full: lost.
                let _ = late.try_send((Instant::now() + now.delay, packet[..length].to_vec()));
            }
        }));
        let weather = self.weather.clone();
        self.pumps.push(tokio::spawn(async move {
            while let Some((at, packet)) = due.recv().await {
                tokio::time::sleep_until(at.into()).await;
                if !weather.lock().unwrap().cut {
                    let _ = to.send_to(&packet, &end).await;
                }
            }
        }));
    }

    /// Another weather from now on.
    pub fn weather(&self, weather: Weather) {
        *self.weather.lock().unwrap() = weather;
    }

    /// Bytes that were put on the line so far, both ways, with IP and TCP.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Relaxed)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.pumps.iter().for_each(JoinHandle::abort);
        for end in &mut self.ends {
            let _ = end.kill();
            let _ = end.wait();
        }
        let _ = Command::new("ip").args(["netns", "del", &self.netns]).output();
    }
}

/// Removes what tests that were killed left behind: their namespaces bear the ids of processes that are no more.
fn sweep() {
    for entry in std::fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let pid = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').nth(1));
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            let _ = Command::new("ip").args(["netns", "del", &name]).output();
        }
    }
}

fn bind(file: &Path) -> UnixDatagram {
    UnixDatagram::bind(file).unwrap()
}

/// One end: packets of a TUN device go to the socket `name`, and those for it come to `name.end`.
fn end(prefix: &[&str], device: &str, sockets: &Path, name: &str) -> Child {
    let log = std::fs::File::create(sockets.join(format!("{name}.log"))).unwrap();
    let tun = format!("TUN,tun-name={device},iff-no-pi");
    let socket = sockets.join(name);
    let datagrams = format!("UNIX-SENDTO:{},bind={}.end", path(&socket), path(&socket));
    // It ends with this thread, which is the test's own, whatever becomes of the test.
    let words = ["setpriv", "--pdeathsig", "KILL", "socat", "-b", "65536", &tun, &datagrams];
    let words = [prefix, &words].concat();
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
    command.spawn().expect("util-linux and socat are installed (tests/setup.sh engine)")
}

async fn appears(words: &[&str], sockets: &Path) {
    for _ in 0..100 {
        if Command::new(words[0]).args(&words[1..]).output().unwrap().status.success() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let said = |name| std::fs::read_to_string(sockets.join(name)).unwrap_or_default();
    panic!(
        "no line could be laid: it needs root, /dev/net/tun and socat (tests/setup.sh engine): {}{}",
        said("near.log"),
        said("far.log")
    );
}

fn run(words: &[&str]) {
    let output = Command::new(words[0]).args(&words[1..]).output().expect("iproute2 is installed");
    assert!(
        output.status.success(),
        "{words:?}: {}; a test of bad lines needs root, and leave to make network namespaces",
        text(&output)
    );
}
