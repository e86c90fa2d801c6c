//! How long an update takes and how long a service is away, beside the distribution's docker-compose doing the same
//! change on the same engine in the same run.

use std::{
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use copal_e2e::{
    engine,
    repo::{STAY, Services},
    unique,
    world::World,
};

use crate::{Row, median, percentile, row};

const ROUNDS: usize = 20;

fn line(round: usize) -> String {
    format!(
        "/bin/busybox mkdir -p /www; echo {round} > /www/index.html; trap 'exit 0' TERM; \
         /bin/busybox httpd -f -p 80 -h /www & wait $!"
    )
}

pub(crate) async fn rows() -> Vec<Row> {
    let (copal, compose) = (Copal::new().await, Compose::new());
    let (mut ours, mut gaps, mut notice, mut theirs, mut their_gaps) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
    // By turns, so that whatever else the machine does meets both alike.
    for round in 1..=ROUNDS {
        let one = copal.update(round).await;
        ours.push(one.took);
        gaps.push(one.away);
        notice.push(one.after_build);
        let (took, away) = compose.update(round);
        theirs.push(took);
        their_gaps.push(away);
    }
    let (mine, peer) = (median(&mut ours), median(&mut theirs));
    let seconds = |value: f64| format!("{value:.2} s");
    let compose = |value: f64| format!("docker-compose: {value:.2} s");
    vec![
        row("from end of build to the new container answering (median)", seconds(median(&mut notice)))
            .goal("<= 2 s beyond pull and start"),
        row("update of one of three services, with build (median)", seconds(mine)).peer(compose(peer)),
        row("  beside docker-compose up --build", format!("{:.2} x", mine / peer)).goal("<= 1.1 x"),
        row("a service is away during its update (median)", seconds(median(&mut gaps)))
            .peer(compose(median(&mut their_gaps))),
        row("a service is away during its update (p95)", seconds(percentile(&mut gaps, 95.0)))
            .peer(compose(percentile(&mut their_gaps, 95.0))),
    ]
}

/// One update of ours, in seconds.
struct Times {
    /// From push to the new page.
    took: f64,
    /// From the end of the build to the new page.
    after_build: f64,
    /// How long no page answered.
    away: f64,
}

/// The change as a push.
struct Copal {
    world: World,
    port: u16,
}

impl Copal {
    async fn new() -> Self {
        let world = World::new(1).await;
        let port = free_port();
        let options = format!(
            "ports: [\"127.0.0.1:{port}:80\"]\nlabels: {{io.copal.update.healthy-after: 1s}}\nstop_grace_period: 2s"
        );
        Services { services: &[("web", &line(0), &options), ("worker", STAY, ""), ("store", STAY, "")] }
            .write_to(&world.repo);
        world.push_and_settle("first").await;
        Self { world, port }
    }

    async fn update(&self, round: usize) -> Times {
        let repo = &self.world.repo;
        repo.write("web/run.sh", format!("#!/bin/busybox sh\n{}\n", line(round)));
        repo.commit("next");
        let watch = Watch::start(self.port, round);
        let began = Instant::now();
        let output = repo.push_args(&["copal", "HEAD:main"]).await;
        assert!(output.status.success(), "{}", copal_e2e::text(&output));
        let built = Instant::now();
        let (seen, away) = watch.end();
        let release = self.world.latest().await["id"].as_str().unwrap().to_owned();
        self.world.on_target(&release).await;
        Times {
            took: (seen - began).as_secs_f64(),
            after_build: seen.saturating_duration_since(built).as_secs_f64(),
            away,
        }
    }
}

/// The same change by docker-compose.
struct Compose {
    dir: tempfile::TempDir,
    project: String,
    port: u16,
}

impl Compose {
    fn new() -> Self {
        let new = Self {
            dir: tempfile::tempdir().unwrap(),
            project: format!("bench{}", unique()),
            port: free_port(),
        };
        for (name, line) in [("web", line(0).as_str()), ("worker", STAY), ("store", STAY)] {
            new.write(&format!("{name}/busybox"), &std::fs::read("/bin/busybox").unwrap());
            new.write(&format!("{name}/run.sh"), format!("#!/bin/busybox sh\n{line}\n").as_bytes());
            new.write(
                &format!("{name}/Dockerfile"),
                b"FROM scratch\nCOPY busybox /bin/busybox\nCOPY run.sh /run.sh\nCMD [\"/bin/busybox\", \"sh\", \"/run.sh\"]\n",
            );
        }
        let yaml = format!(
            "version: \"3\"\nservices:\n  web:\n    build: ./web\n    ports: [\"127.0.0.1:{}:80\"]\n    stop_grace_period: 2s\n\
             \n  worker:\n    build: ./worker\n  store:\n    build: ./store\n",
            new.port
        );
        new.write("docker-compose.yml", yaml.as_bytes());
        new.up();
        new
    }

    fn write(&self, file: &str, content: &[u8]) {
        let file = self.dir.path().join(file);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, content).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&file, mode).unwrap();
    }

    fn up(&self) {
        let output = self.command(&["up", "-d", "--build"]).output().unwrap();
        assert!(output.status.success(), "{}", copal_e2e::text(&output));
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("docker-compose");
        command.args(["-p", &self.project]).args(args).current_dir(self.dir.path());
        command
    }

    /// Seconds to the new page, and seconds no page answered.
    fn update(&self, round: usize) -> (f64, f64) {
        // Another page than ours, so that nothing is in the build cache.
        let round = round + 1000;
        self.write("web/run.sh", format!("#!/bin/busybox sh\n{}\n", line(round)).as_bytes());
        let watch = Watch::start(self.port, round);
        let began = Instant::now();
        self.up();
        let (seen, away) = watch.end();
        ((seen - began).as_secs_f64(), away)
    }
}

impl Drop for Compose {
    fn drop(&mut self) {
        let _ = self.command(&["down", "-v", "--rmi", "local", "-t", "1"]).output();
        engine::remove_all(&self.project, None);
    }
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Asks for a page again and again until it shows `round`.
struct Watch {
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<(Instant, f64)>,
}

impl Watch {
    fn start(port: u16, round: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let given_up = stop.clone();
        let thread = std::thread::spawn(move || {
            let (mut away, mut gap) = (None::<Instant>, 0.0);
            let limit = Instant::now() + Duration::from_secs(120);
            loop {
                let page = page(port);
                match (&page, away) {
                    (None, None) => away = Some(Instant::now()),
                    (Some(_), Some(since)) => {
                        gap += since.elapsed().as_secs_f64();
                        away = None;
                    }
                    _ => {}
                }
                if page.as_deref() == Some(&round.to_string()) {
                    return (Instant::now(), gap);
                }
                assert!(Instant::now() < limit && !given_up.load(Relaxed), "the page never showed {round}");
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        Self { stop, thread }
    }

    fn end(self) -> (Instant, f64) {
        let seen = self.thread.join().unwrap();
        self.stop.store(true, Relaxed);
        seen
    }
}

fn page(port: u16) -> Option<String> {
    use std::io::{Read as _, Write as _};
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], port));
    let mut stream = std::net::TcpStream::connect_timeout(&address, Duration::from_millis(200)).ok()?;
    stream.set_read_timeout(Some(Duration::from_millis(500))).ok()?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let body = answer.split_once("\r\n\r\n")?.1.trim().to_owned();
    answer.starts_with("HTTP/1.").then_some(body)
}
