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

use copal_e2e::{engine, repo::Services, unique, world::World};

use crate::{Row, median, percentile, row};

const ROUNDS: usize = 7;

fn line(round: usize) -> String {
    format!(
        "/bin/busybox mkdir -p /www; echo {round} > /www/index.html; trap 'exit 0' TERM; \
         /bin/busybox httpd -f -p 80 -h /www & wait $!"
    )
}

pub(crate) async fn rows() -> Vec<Row> {
    let (mut ours, mut gaps, mut notice) = copal().await;
    let mut theirs = compose();
    let (mine, peer) = (median(&mut ours), median(&mut theirs));
    vec![
        row(
            "from end of build to the new container running (median)",
            format!("{:.2} s", median(&mut notice)),
            "goal <= 2 s beyond the engine's own pull and start",
        ),
        row(
            "update of one of three services, build included (median)",
            format!("{mine:.2} s"),
            format!("docker-compose up --build: {peer:.2} s; ratio {:.2} (goal <= 1.1)", mine / peer),
        ),
        row("the service is away during its update (median)", format!("{:.2} s", median(&mut gaps)), ""),
        row(
            "the service is away during its update (p95)",
            format!("{:.2} s", percentile(&mut gaps, 95.0)),
            "",
        ),
    ]
}

/// Seconds from push to the new page, seconds the page was away, seconds from the end of the build to the page.
async fn copal() -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let world = World::new(1).await;
    let port = free_port();
    let options = format!(
        "ports: [\"127.0.0.1:{port}:80\"]\nlabels: {{io.copal.update.healthy-after: 1s}}\nstop_grace_period: 2s"
    );
    let stay = copal_e2e::repo::STAY;
    Services { services: &[("web", &line(0), &options), ("worker", stay, ""), ("store", stay, "")] }
        .write_to(&world.repo);
    world.push_and_settle("first").await;
    let (mut times, mut gaps, mut notices) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=ROUNDS {
        world.repo.write("web/run.sh", format!("#!/bin/busybox sh\n{}\n", line(round)));
        world.repo.commit("next");
        let watch = Watch::start(port, round);
        let began = Instant::now();
        let output = world.repo.push_args(&["copal", "HEAD:main"]).await;
        assert!(output.status.success(), "{}", copal_e2e::text(&output));
        let built = Instant::now();
        let (seen, gap) = watch.end();
        times.push((seen - began).as_secs_f64());
        notices.push(seen.saturating_duration_since(built).as_secs_f64());
        gaps.push(gap);
        let release = world.latest().await["id"].as_str().unwrap().to_owned();
        world.on_target(&release).await;
    }
    (times, gaps, notices)
}

fn compose() -> Vec<f64> {
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    let project = format!("bench{}", unique());
    let write = |file: &str, content: &[u8]| {
        let file = dir.path().join(file);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, content).unwrap();
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&file, mode).unwrap();
    };
    let stay = copal_e2e::repo::STAY;
    for (name, line) in [("web", line(0).as_str()), ("worker", stay), ("store", stay)] {
        write(&format!("{name}/busybox"), &std::fs::read("/bin/busybox").unwrap());
        write(&format!("{name}/run.sh"), format!("#!/bin/busybox sh\n{line}\n").as_bytes());
        write(
            &format!("{name}/Dockerfile"),
            b"FROM scratch\nCOPY busybox /bin/busybox\nCOPY run.sh /run.sh\nCMD [\"/bin/busybox\", \"sh\", \"/run.sh\"]\n",
        );
    }
    let yaml = format!(
        "version: \"3\"\nservices:\n  web:\n    build: ./web\n    ports: [\"127.0.0.1:{port}:80\"]\n    stop_grace_period: 2s\n\
         \n  worker:\n    build: ./worker\n  store:\n    build: ./store\n"
    );
    write("docker-compose.yml", yaml.as_bytes());
    let up = || {
        let output = Command::new("docker-compose")
            .args(["-p", &project, "up", "-d", "--build"])
            .current_dir(dir.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", copal_e2e::text(&output));
    };
    up();
    let mut times = Vec::new();
    for round in 1..=ROUNDS {
        write("web/run.sh", format!("#!/bin/busybox sh\n{}\n", line(round + 100)).as_bytes());
        let watch = Watch::start(port, round + 100);
        let began = Instant::now();
        up();
        times.push((watch.end().0 - began).as_secs_f64());
    }
    let _ = Command::new("docker-compose")
        .args(["-p", &project, "down", "-v", "--rmi", "local", "-t", "1"])
        .current_dir(dir.path())
        .output();
    engine::remove_all(&project, None);
    times
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
