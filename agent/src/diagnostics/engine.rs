//! Whether the container engine answers, and how steadily it runs.

use std::time::{Duration, Instant};

use copal_protocol::diagnosis::{ProbeResult, Unit, Verdict};

use super::ask::ask;
use crate::engine::{ApiVersion, Engine, EngineError, EngineInfo, EngineVersion};

pub(super) const NAME: &str = "engine";
/// An engine that takes longer for its version hangs, or its disk does.
const PATIENCE: Duration = Duration::from_secs(8);
/// Milliseconds beyond which everything it does is slow.
const SLOW: i64 = 2000;
/// Units that may be the engine's.
const UNITS: &[&str] = &["docker.service", "balena.service", "balena-engine.service"];
/// Ways to keep layers that copy whole files or were given up upstream.
const POOR_DRIVERS: &[&str] = &["vfs", "aufs", "devicemapper"];

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// What answers, and in how many milliseconds.
    pub version: Result<(EngineVersion, i64), EngineError>,
    /// What it says of itself.
    pub info: Option<EngineInfo>,
    /// How often systemd started it again since the boot; absent where systemd does not run it.
    pub restarts: Option<u64>,
}

/// Asks the engine.
pub async fn read(engine: &Engine, restarts: Option<u64>) -> Seen {
    let began = Instant::now();
    let version = match tokio::time::timeout(PATIENCE, engine.version()).await {
        Ok(version) => version,
        Err(_) => Err(EngineError::Timeout { what: "asking the version".to_owned(), after: PATIENCE }),
    };
    let ms = i64::try_from(began.elapsed().as_millis()).unwrap_or(i64::MAX);
    let info = match &version {
        Ok(_) => tokio::time::timeout(PATIENCE, engine.info()).await.ok().and_then(Result::ok),
        Err(_) => None,
    };
    Seen { version: version.map(|v| (v, ms)), info, restarts }
}

/// How often systemd started the engine again. A unit that does not exist counts nothing.
#[must_use]
pub fn restarts() -> Option<u64> {
    let arguments = [&["show", "--property=LoadState,NRestarts"], UNITS].concat();
    counted(&ask("systemctl", &arguments, Duration::from_secs(3))?)
}

fn counted(text: &str) -> Option<u64> {
    let of = |unit: &str| {
        let field = |name: &str| unit.lines().find_map(|line| line.strip_prefix(name));
        if field("LoadState=") == Some("loaded") { field("NRestarts=")?.parse::<u64>().ok() } else { None }
    };
    text.split("\n\n").filter_map(of).max()
}

/// Judges.
#[must_use]
pub fn judge(seen: &Seen) -> Vec<ProbeResult> {
    let (version, ms) = match &seen.version {
        Ok(answer) => answer,
        Err(error) => {
            let advice = if error.is_absent() {
                "start it (systemctl start docker) and see why it ended (journalctl -u docker); services come back by themselves"
            } else {
                "it hangs: look at the disk first (disk, disk_health), then restart it; containers go on under live-restore"
            };
            return vec![ProbeResult::new(NAME, Verdict::Failed, &error.to_string()).advice(advice)];
        }
    };
    let mut detail = format!("{} (API {})", version.version, version.api);
    let mut concerns: Vec<(String, &str)> = Vec::new();
    if let Some(info) = &seen.info {
        detail += &format!(", {}, {} of {} containers run", info.driver, info.running, info.containers);
        if POOR_DRIVERS.contains(&info.driver.as_str()) {
            concerns.push((
                format!("storage driver {}", info.driver),
                "set overlay2 in its daemon.json (images are pulled anew)",
            ));
        }
    }
    if version.api < ApiVersion::OLDEST {
        concerns.push((
            format!("API {} is older than {}", version.api, ApiVersion::OLDEST),
            "install engine 20.10 or later",
        ));
    }
    if *ms > SLOW {
        concerns.push((format!("took {ms} ms to answer"), "look at the load and at the disk"));
    }
    let mut result = |restarts: Option<u64>| {
        if let Some(restarts @ 1..) = restarts {
            let why = "see why it ended: journalctl -u docker, and the result of oom";
            concerns.insert(0, (format!("started again {restarts} times since the boot"), why));
        }
        for (concern, _) in &concerns {
            detail += &format!("; {concern}");
        }
        let verdict = if concerns.is_empty() { Verdict::Ok } else { Verdict::Warning };
        let result = ProbeResult::new(NAME, verdict, &detail);
        result.advice(concerns.first().map_or("", |(_, advice)| advice))
    };
    let result = result(seen.restarts);
    vec![match seen.restarts {
        Some(restarts) => result.value(i64::try_from(restarts).unwrap_or(i64::MAX), Unit::Count).threshold(0),
        None => result,
    }]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(driver: &str, api: ApiVersion, ms: i64, restarts: Option<u64>) -> Seen {
        let version = EngineVersion {
            version: "27.0".to_owned(),
            api,
            os: "linux".to_owned(),
            arch: "arm64".to_owned(),
        };
        let info =
            EngineInfo { driver: driver.to_owned(), running: 2, containers: 3, ..EngineInfo::default() };
        Seen { version: Ok((version, ms)), info: Some(info), restarts }
    }

    #[test]
    fn an_engine_that_answers_is_judged_by_how_well() {
        let new = ApiVersion(1, 46);
        for (seen, verdict, word) in [
            (
                seen("overlay2", new, 5, Some(0)),
                Verdict::Ok,
                "27.0 (API 1.46), overlay2, 2 of 3 containers run",
            ),
            (seen("overlay2", new, 5, None), Verdict::Ok, "overlay2"),
            (seen("overlay2", new, 5, Some(2)), Verdict::Warning, "started again 2 times"),
            (seen("vfs", new, 5, None), Verdict::Warning, "storage driver vfs"),
            (seen("overlay2", ApiVersion(1, 40), 5, None), Verdict::Warning, "older than 1.41"),
            (seen("overlay2", new, 2001, None), Verdict::Warning, "2001 ms"),
        ] {
            let result = judge(&seen).remove(0);
            assert_eq!(result.verdict, verdict, "{result:?}");
            assert!(result.detail.contains(word), "{result:?}");
            assert_eq!(result.advice.is_empty(), verdict == Verdict::Ok);
        }
    }

    #[test]
    fn restarts_are_those_of_units_that_exist() {
        let text = "LoadState=loaded\nNRestarts=3\n\nNRestarts=9\nLoadState=not-found\n";
        assert_eq!(counted(text), Some(3));
        assert_eq!(counted("LoadState=not-found\nNRestarts=0\n"), None);
        assert_eq!(counted("nonsense"), None);
    }

    #[tokio::test]
    async fn an_engine_that_is_away_fails_with_advice() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("engine.sock");
        let engine = Engine::connect(Some(&format!("unix://{}", socket.display())));
        let missing = judge(&read(&engine, None).await).remove(0);
        // As after a crash: the socket is there, and nobody listens.
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
        let dead = judge(&read(&engine, None).await).remove(0);
        for result in [missing, dead] {
            assert_eq!(result.verdict, Verdict::Failed, "{result:?}");
            assert!(
                result.detail.contains("no container engine answers") && result.advice.contains("start it"),
                "{result:?}"
            );
        }
    }
}
