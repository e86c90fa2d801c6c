//! What a person sets: `copal.json`, and where the agent keeps its things.
//!
//! In: files and flags. Out: a checked [`DeviceFile`] with its root. Never here: a half-usable file taken for a usable
//! one; each error names the file, the field and the next step.

use std::{
    net::IpAddr,
    path::{Path, PathBuf},
};

use copal_protocol::{
    config::DeviceFile,
    documents::{Document as _, Root},
    envelope::Envelope,
    json,
    verify::{self, Verified},
};

/// Where `copal.json` is looked for when no `--config` says otherwise: first found wins.
pub const CONFIG_PLACES: &[&str] =
    &["/etc/copal/copal.json", "/boot/firmware/copal.json", "/boot/copal.json"];
const MAX_CONFIG: u64 = 256 << 10;

/// Why the settings cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{code}: {detail}")]
pub struct SettingsError {
    /// Stable.
    pub code: &'static str,
    /// What was tried, on what, why not, what to do.
    pub detail: String,
}

fn error(code: &'static str, detail: impl Into<String>) -> SettingsError {
    SettingsError { code, detail: detail.into() }
}

/// Flags that more than one command takes.
#[derive(Debug, Clone, clap::Args)]
pub struct Places {
    /// copal.json; by default /etc/copal, /boot/firmware, then /boot.
    #[arg(long, env = "COPAL_CONFIG", global = true)]
    pub config: Option<PathBuf>,
    /// Durable state (mode 0700).
    #[arg(long, env = "COPAL_STATE_DIR", default_value = "/var/lib/copal", global = true)]
    pub state_dir: PathBuf,
    /// What may be lost at a reboot: locks, secrets, status; a tmpfs.
    #[arg(long, env = "COPAL_RUN_DIR", default_value = "/run/copal", global = true)]
    pub run_dir: PathBuf,
    /// The engine's socket, such as unix:///var/run/docker.sock.
    #[arg(long, env = "DOCKER_HOST", global = true)]
    pub docker_host: Option<String>,
    /// How this agent's containers begin; different for each agent that shares an engine.
    #[arg(long, env = "COPAL_NAME_PREFIX", default_value = "copal", global = true, value_parser = prefix)]
    pub name_prefix: String,
    /// What the operating system's image says of its slots; absent on devices whose system Copal does not update.
    #[arg(long, env = "COPAL_OS_CONFIG", default_value = crate::os::config::PLACE, global = true, hide = true)]
    pub os_config: PathBuf,
    /// What this device lets itself be told, whatever the cloud says.
    #[arg(long, env = "COPAL_POLICY", default_value = crate::orders::policy::PLACE, global = true)]
    pub policy: PathBuf,
    /// Bytes the device and its cloud may say to each other in a month, both ways, images aside. Spread over the month; where a day's
    /// share is used, logs are left out, then telemetry, then the channel itself. Below 2000000 there is none. By default as many as
    /// it needs.
    #[arg(long, env = "COPAL_MAX_BYTES_MONTH", global = true)]
    pub max_bytes_month: Option<u64>,
    /// Bytes that events waiting for the cloud may take on the disk, at least 65536.
    #[arg(long, env = "COPAL_SPOOL_BYTES", default_value_t = crate::spool::BYTES, global = true, value_parser = clap::value_parser!(u64).range(65_536..))]
    pub spool_bytes: u64,
    /// Seconds between summaries of metrics.
    #[arg(long, env = "COPAL_METRICS_EVERY_S", default_value_t = 3600, global = true, hide = true, value_parser = clap::value_parser!(u64).range(2..=86_400))]
    pub metrics_every_s: u64,
    /// Bytes of each service's log that are kept on this device.
    #[arg(long, env = "COPAL_LOG_BYTES_SERVICE", default_value_t = 4 << 20, global = true, value_parser = clap::value_parser!(u64).range(64 << 10..))]
    pub log_bytes_service: u64,
    /// Bytes of all services' logs together.
    #[arg(long, env = "COPAL_LOG_BYTES", default_value_t = 32 << 20, global = true, value_parser = clap::value_parser!(u64).range(64 << 10..))]
    pub log_bytes: u64,
    /// Seconds between the health checks the device makes by itself, about; 0 for none but those after a start and after an update.
    /// By default as its fleet says, else 21600.
    #[arg(long, env = "COPAL_CHECK_EVERY", global = true)]
    pub check_every: Option<u64>,
    /// Polls, visits, logins and idle connections go by clocks that run so many times as fast: a day is measured in minutes.
    #[arg(long, env = "COPAL_HURRY", default_value_t = 1, global = true, hide = true, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub hurry: u32,
    /// The command that restarts the device, words parted by spaces; by default what the image says.
    #[arg(long, env = "COPAL_REBOOT_COMMAND", default_value = "", global = true, hide = true)]
    pub reboot_command: String,
    /// Where the kernel shows lights.
    #[arg(long, env = "COPAL_LEDS", default_value = crate::orders::LEDS, global = true, hide = true)]
    pub leds: PathBuf,
}

impl Places {
    /// Relative folders are meant from where the command was given; the engine binds absolute ones only.
    ///
    /// # Errors
    /// Where the current folder is not known.
    pub fn make_absolute(&mut self) -> std::io::Result<()> {
        for folder in [&mut self.state_dir, &mut self.run_dir, &mut self.os_config, &mut self.policy] {
            *folder = std::path::absolute(&*folder)?;
        }
        Ok(())
    }
}

fn prefix(text: &str) -> Result<String, String> {
    let sound = !text.is_empty()
        && text.len() <= 32
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !text.starts_with('-');
    if sound {
        Ok(text.to_owned())
    } else {
        Err("lowercase letters, digits and -, at most 32, not beginning with -".to_owned())
    }
}

/// A `copal.json` whose every field was checked.
#[derive(Debug, Clone)]
pub struct Joined {
    /// The file.
    pub file: DeviceFile,
    /// Its root, which satisfied itself.
    pub root: Verified<Root>,
    /// That root's envelope.
    pub root_envelope: Vec<u8>,
}

/// Finds and checks `copal.json`.
///
/// # Errors
/// `config_missing`, `config_invalid`, or the root's own code.
pub fn load(config: Option<&Path>) -> Result<Joined, SettingsError> {
    let path = find(config)?;
    let bytes = read_bounded(&path, MAX_CONFIG)
        .map_err(|e| error("config_missing", format!("cannot read {}: {e}", path.display())))?;
    check(&bytes).map_err(|e| SettingsError { detail: format!("{}: {}", path.display(), e.detail), ..e })
}

fn find(config: Option<&Path>) -> Result<PathBuf, SettingsError> {
    const NEXT: &str = "make it with `copal device config <fleet>` on your machine and copy it there";
    if let Some(path) = config {
        if path.exists() {
            return Ok(path.to_owned());
        }
        return Err(error("config_missing", format!("there is no {}: {NEXT}", path.display())));
    }
    CONFIG_PLACES.iter().map(PathBuf::from).find(|p| p.exists()).ok_or_else(|| {
        error("config_missing", format!("no copal.json in any of {}: {NEXT}", CONFIG_PLACES.join(", ")))
    })
}

/// Reads a file that should have at most `max` bytes.
///
/// # Errors
/// The system's, and one that names the limit.
pub fn read_bounded(path: &Path, max: u64) -> std::io::Result<Vec<u8>> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max {
        return Err(std::io::Error::other(format!("larger than {max} bytes")));
    }
    Ok(bytes)
}

fn check(bytes: &[u8]) -> Result<Joined, SettingsError> {
    let invalid = |what: String| {
        error(
            "config_invalid",
            format!("{what}; make it again with `copal device config`, and do not edit it by hand"),
        )
    };
    let file: DeviceFile =
        json::from_slice(bytes, json::PAYLOAD_DEPTH).map_err(|e| invalid(e.to_string()))?;
    if file.spec != 1 {
        return Err(error(
            "config_invalid",
            format!("format {} is newer than this agent: install a newer agent", file.spec),
        ));
    }
    check_url(&file.cloud_url).map_err(|e| invalid(format!("cloud_url: {e}")))?;
    for pin in &file.tls_pins {
        pin.parse::<copal_tls::Pin>().map_err(|e| invalid(format!("tls_pins: {e}")))?;
    }
    if copal_protocol::enrol::split_token(&file.enrolment_token).is_none() {
        return Err(invalid("enrolment_token is not `id.secret`".to_owned()));
    }
    if file.introduction.as_deref().is_some_and(|i| copal_protocol::enrol::split_token(i).is_none()) {
        return Err(invalid("introduction is not `id.secret`".to_owned()));
    }
    if file.device_type.is_empty() || file.device_type.len() > 64 {
        return Err(invalid("device_type is empty or longer than 64".to_owned()));
    }
    let root_envelope = serde_json::to_vec(&file.root).map_err(|e| invalid(format!("root: {e}")))?;
    let root = Envelope::parse::<Root>(&root_envelope)
        .and_then(|envelope| verify::first_root(&envelope, file.fleet_id))
        .map_err(|e| error(e.code.as_str(), format!("root: {}", e.detail)))?;
    debug_assert_eq!(root.fleet_id(), file.fleet_id);
    Ok(Joined { file, root, root_envelope })
}

/// Whether a base URL may be used: https, or http where nobody else can listen.
///
/// # Errors
/// What is wrong with it.
pub fn check_url(text: &str) -> Result<(), String> {
    let uri: http::Uri = text.parse().map_err(|e| format!("{text:?} is no URL: {e}"))?;
    let host = uri.host().unwrap_or_default();
    if host.is_empty() {
        return Err(format!("{text:?} names no host"));
    }
    if uri.authority().is_some_and(|a| a.as_str().contains('@')) {
        return Err("a URL with a user name or password in it is refused".to_owned());
    }
    if uri.query().is_some() {
        return Err(format!("{text:?} has a query: give only the base, such as https://copal.example.org"));
    }
    match uri.scheme_str() {
        Some("https") => Ok(()),
        Some("http") if is_loopback(host) => Ok(()),
        Some("http") => Err(format!(
            "plain http to {host} can be read and changed on the way: use https (only loopback may be http)"
        )),
        _ => Err(format!("{text:?} is neither https nor http")),
    }
}

/// Whether a host can only be this machine.
#[must_use]
pub fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare.eq_ignore_ascii_case("localhost") || bare.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// This machine's architecture as OCI spells it.
#[must_use]
pub fn arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        other => other,
    }
}

/// The platform whose images run here, such as `linux/arm64`.
#[must_use]
pub fn platform() -> String {
    format!("linux/{}", arch())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plain_http_is_for_loopback_only() {
        for good in
            ["https://cloud.example", "http://127.0.0.1:8080", "http://localhost:1", "http://[::1]:80"]
        {
            assert_eq!(check_url(good), Ok(()), "{good}");
        }
        for bad in [
            "http://cloud.example",
            "http://127.0.0.1.example",
            "http://localhost.example",
            "ftp://127.0.0.1",
            "https://user:pass@cloud.example",
            "https://",
            "https://x/?a=b",
            "cloud.example",
            "",
        ] {
            assert!(check_url(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_missing_file_tells_how_to_make_one() {
        let error = load(Some(Path::new("/nonexistent/copal.json"))).unwrap_err();
        assert_eq!(error.code, "config_missing");
        assert!(error.detail.contains("copal device config"), "{error}");
    }

    #[test]
    fn a_half_usable_file_is_refused_with_its_field() {
        for (text, word) in [("", "EOF"), ("[]", "invalid"), (r#"{"spec":1}"#, "missing field")] {
            let error = check(text.as_bytes()).unwrap_err();
            assert_eq!(error.code, "config_invalid", "{text}");
            assert!(error.detail.contains(word), "{error}");
        }
    }
}
