//! A bundle for support: one file with what a person needs who cannot see the device, and no secret.
//!
//! Two nets: what is secret by its place (variables, tokens, keys) is taken out there, and every value known to be secret is
//! then looked for in every text, whatever it stands in. What merely looks like a secret goes, too.

use std::{io, path::Path};

use copal_protocol::diagnosis::Diagnosis;
use serde::Serialize;
use serde_json::{Value, json};

use super::{Deps, Link, Tree, ask::ask, kernel_log, redact::Redactor, tarball::Tarball};
use crate::{
    clock::system_time,
    engine::{EngineInfo, Inspection},
    os::{OsConfig, journal::Journal},
    settings::{self, Places},
    state::StateDir,
};

/// Bytes of the whole, before compression: what it takes on a disk is less.
pub const MOST: usize = 20 << 20;
/// Bytes of any one file of it.
const MOST_OF_ONE: usize = 2 << 20;
/// Files of secrets that are looked at.
const SECRET_FILES: usize = 1024;
/// Units of systemd whose last lines are taken along.
const UNITS: &[&str] = &["copal-agent", "docker", "balena-engine"];
/// Lines of each.
const UNIT_LINES: &str = "500";
/// What reading a journal may take: on a worn card it is slow.
const JOURNAL: std::time::Duration = std::time::Duration::from_secs(10);
/// Lines of the kernel's log, the newest.
const KERNEL_LINES: usize = 2000;
/// Files that tell of the system, and hold no secret but by mistake.
const SYSTEM: &[&str] = &[
    "etc/hostname",
    "etc/hosts",
    "etc/os-release",
    "etc/resolv.conf",
    "proc/cmdline",
    "proc/cpuinfo",
    "proc/diskstats",
    "proc/interrupts",
    "proc/loadavg",
    "proc/meminfo",
    "proc/modules",
    "proc/net/dev",
    "proc/net/if_inet6",
    "proc/net/ipv6_route",
    "proc/net/route",
    "proc/net/wireless",
    "proc/partitions",
    "proc/pressure/cpu",
    "proc/pressure/io",
    "proc/pressure/memory",
    "proc/self/mountinfo",
    "proc/uptime",
    "proc/version",
    "proc/vmstat",
    "sys/devices/virtual/dmi/id/product_name",
    "sys/firmware/devicetree/base/model",
];

/// What the bundle is made of, gathered before anything is written.
pub struct Gathered {
    /// The health checks.
    pub diagnosis: Diagnosis,
    /// The engine, where it answers.
    pub info: Option<EngineInfo>,
    /// Our containers.
    pub containers: Vec<Inspection>,
    /// Values known to be secret besides those of containers and of `copal.json`: opened secrets of targets.
    pub secrets: Vec<String>,
}

/// Gathers what has to be asked for.
pub async fn gather(deps: &Deps) -> Gathered {
    let diagnosis = super::diagnose(deps, &[]).await.unwrap_or(Diagnosis { probes: Vec::new(), taken_at: 0 });
    let asking = async {
        let info = deps.engine.info().await.ok();
        let containers = deps.engine.look(&deps.whose(), true).await.unwrap_or_default();
        (info, containers)
    };
    let (info, containers) = tokio::time::timeout(super::PATIENCE, asking).await.unwrap_or_default();
    Gathered { diagnosis, info, containers, secrets: secrets(&deps.link) }
}

/// Secrets and variables of what should run here.
fn secrets(link: &Link) -> Vec<String> {
    let Link::Own { store, session } = link else { return Vec::new() };
    let apps = store.resolved().apps;
    let opened = apps.values().flat_map(|app| app.secrets.values()).flat_map(|vars| vars.values());
    let opened = opened.map(|secret| String::from_utf8_lossy(&secret.0).into_owned());
    let set = apps.values().flat_map(|app| app.env.values()).flat_map(|vars| vars.values()).cloned();
    opened.chain(set).chain(session.cloud().hidden()).collect()
}

/// The secrets that services are given as files. An agent that runs beside this program has opened them; here they are found.
fn secret_files(folder: &Path, depth: usize) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().take(SECRET_FILES);
    let mut found = Vec::new();
    for entry in entries {
        match entry.file_type() {
            Ok(kind) if kind.is_dir() && depth > 0 => found.extend(secret_files(&entry.path(), depth - 1)),
            Ok(kind) if kind.is_file() => {
                let bytes = settings::read_bounded(&entry.path(), 1 << 20).unwrap_or_default();
                found.push(String::from_utf8_lossy(&bytes).into_owned());
            }
            _ => {}
        }
    }
    found.truncate(SECRET_FILES);
    found
}

/// Writes the bundle.
///
/// # Errors
/// The system's.
pub fn write<W: io::Write>(
    out: W,
    deps: &Deps,
    gathered: &Gathered,
    state: Option<&StateDir>,
) -> io::Result<W> {
    let now = system_time();
    let config = read_config(&deps.places);
    let known = gathered.secrets.iter().cloned().chain(config_secrets(config.as_ref()));
    let known = known.chain(secret_files(&deps.places.run_dir.join("secrets"), 4));
    let redactor =
        Redactor::new(known).with_env(gathered.containers.iter().flat_map(|container| container.env.iter()));
    let mut bundle = Writer { tarball: Tarball::new(out, now, MOST), redactor };

    bundle.text("README.txt", README)?;
    bundle.text(
        "about.txt",
        &format!("agent {}\ntime {now} (Unix seconds, by the device)\n", crate::version()),
    )?;
    bundle.text("diagnosis.txt", &gathered.diagnosis.to_text())?;
    bundle.json("diagnosis.json", &gathered.diagnosis)?;
    let status = deps.places.run_dir.join("status.json");
    bundle.told(
        "status.json",
        read(&status).and_then(|text| serde_json::from_str(&text).map_err(|e| e.to_string())),
    )?;
    bundle.told("copal.json", config.map(redacted_config))?;
    bundle.told("os.json", os_config(&deps.places))?;
    let journal = match state {
        Some(state) => Journal::load(state).map_err(|e| e.to_string()),
        None => Err("the running agent has it; `copal-agent os status` tells".to_owned()),
    };
    bundle
        .told("os-journal.json", journal.and_then(|j| serde_json::to_value(j).map_err(|e| e.to_string())))?;
    match &gathered.info {
        Some(info) => bundle.json("engine.json", info)?,
        None => bundle.text("engine.json", "{\"missing\": \"the engine does not answer\"}\n")?,
    }
    for container in &gathered.containers {
        let name: String = container
            .container
            .name
            .chars()
            .filter(|c| c.is_ascii_alphanumeric() || "._-".contains(*c))
            .collect();
        bundle.json(
            &format!("containers/{}.json", name.get(..64).unwrap_or(&name)),
            &redacted_container(&container.whole),
        )?;
    }
    match kernel_log::read(&deps.tree, KERNEL_LINES) {
        Ok(lines) => bundle.text("kernel.log", &lines.join("\n"))?,
        Err(why) => bundle.text("kernel.log", &why)?,
    }
    for unit in UNITS.iter().filter(|_| deps.tree.is_real()) {
        let words = ["--unit", unit, "--lines", UNIT_LINES, "--no-pager", "--output", "short-iso", "--quiet"];
        if let Some(lines) = ask("journalctl", &words, JOURNAL).filter(|lines| !lines.trim().is_empty()) {
            bundle.text(&format!("journal/{unit}.log"), &copal_protocol::text::inert(&lines))?;
        }
    }
    for file in SYSTEM {
        if let Some(text) = system(&deps.tree, file) {
            bundle.text(&format!("system/{}", file.replace('/', "_")), &text)?;
        }
    }
    bundle.tarball.finish()
}

const README: &str = "A Copal support bundle.\n\
    diagnosis.txt   the health checks\nstatus.json     what the agent says of itself\n\
    copal.json      how the device was set up, without its tokens\nos.json, os-journal.json   the slots of the operating system\n\
    engine.json, containers/   the engine and our containers, without the values of variables\n\
    kernel.log, journal/, system/   the kernel, the units of agent and engine, the machine\n\
    Secrets were taken out on the device and stand as (redacted). Look through it before you pass it on.\n";

struct Writer<W: io::Write> {
    tarball: Tarball<W>,
    redactor: Redactor,
}

impl<W: io::Write> Writer<W> {
    fn text(&mut self, name: &str, text: &str) -> io::Result<()> {
        let text = self.redactor.text(text);
        // The end of a log tells more than its beginning.
        let mut from = text.len().saturating_sub(MOST_OF_ONE);
        while !text.is_char_boundary(from) {
            from += 1;
        }
        self.tarball.add(&format!("copal-support/{name}"), &text.as_bytes()[from..])
    }

    fn json(&mut self, name: &str, value: &impl Serialize) -> io::Result<()> {
        let mut value = serde_json::to_value(value)?;
        self.redactor.json(&mut value);
        let text = serde_json::to_string_pretty(&value)?;
        // Once more as text: a value may have become visible by how it is written.
        self.text(name, &text)
    }

    fn told(&mut self, name: &str, value: Result<Value, String>) -> io::Result<()> {
        self.json(name, &value.unwrap_or_else(|why| json!({"missing": why})))
    }
}

fn read(path: &Path) -> Result<String, String> {
    let bytes =
        settings::read_bounded(path, MOST_OF_ONE as u64).map_err(|e| format!("{}: {e}", path.display()))?;
    String::from_utf8(bytes).map_err(|e| format!("{}: {e}", path.display()))
}

fn system(tree: &Tree, file: &str) -> Option<String> {
    Some(tree.text(file)?.replace('\0', ""))
}

/// `copal.json` as it is, sound or not: a broken one is what support wants to see.
fn read_config(places: &Places) -> Result<Value, String> {
    let candidates = settings::CONFIG_PLACES.iter().map(std::path::PathBuf::from);
    let found = places.config.clone().or_else(|| candidates.into_iter().find(|path| path.exists()));
    let path = found.ok_or("there is none")?;
    serde_json::from_str(&read(&path)?).map_err(|e| format!("{} is no JSON: {e}", path.display()))
}

/// The secret halves of its tokens.
fn config_secrets(config: Result<&Value, &String>) -> Vec<String> {
    let token = |name: &str| {
        let text = config.ok()?.get(name)?.as_str()?;
        Some(text.split_once('.').map_or(text, |(_, secret)| secret).to_owned())
    };
    ["enrolment_token", "introduction"].into_iter().filter_map(token).collect()
}

fn redacted_config(mut config: Value) -> Value {
    for name in ["enrolment_token", "introduction"] {
        if let Some(field) = config.get_mut(name) {
            // The public half names it; the cloud's list of tokens shows the same.
            let id = field.as_str().and_then(|text| text.split_once('.')).map_or("", |(id, _)| id);
            *field = format!("{id}.{}", super::redact::GONE).into();
        }
    }
    // Another name, so that the id is not taken for the secret.
    if let Some(fields) = config.as_object_mut()
        && let Some(field) = fields.remove("enrolment_token")
    {
        fields.insert("enrolment".to_owned(), field);
    }
    config
}

fn os_config(places: &Places) -> Result<Value, String> {
    match OsConfig::load(&places.os_config)? {
        None => Err("this device's operating system is not Copal's to update".to_owned()),
        Some(config) => serde_json::to_value(config).map_err(|e| e.to_string()),
    }
}

/// A container without what is secret by its place: values of variables, options of log drivers and volumes, build arguments in
/// the image's history. Labels, commands and paths stay, less what looks like a secret.
fn redacted_container(whole: &[u8]) -> Value {
    let mut whole = serde_json::from_slice(whole).unwrap_or_default();
    take_values(&mut whole);
    whole
}

fn take_values(value: &mut Value) {
    match value {
        Value::Array(items) => {
            let mut named = false;
            for item in items {
                // `--token` and its value stand apart in lists of arguments.
                if let (true, Value::String(text)) = (named, &mut *item) {
                    *text = super::redact::GONE.to_owned();
                }
                let option = item.as_str().filter(|text| text.starts_with('-') && !text.contains('='));
                named = option.is_some_and(super::redact::is_secret);
                take_values(item);
            }
        }
        Value::Object(fields) => {
            for (name, field) in fields {
                match (name.as_str(), field) {
                    ("Env", Value::Array(pairs)) => {
                        for pair in pairs {
                            let named = pair
                                .as_str()
                                .and_then(|pair| pair.split_once('='))
                                .map_or("", |(name, _)| name);
                            *pair = format!("{named}={}", super::redact::GONE).into();
                        }
                    }
                    // Of log drivers and of volumes.
                    ("Config", Value::Object(options)) if !options.contains_key("Image") => gone(options),
                    ("DriverOpts" | "Options" | "Sysctls", Value::Object(options)) => gone(options),
                    (_, field) => take_values(field),
                }
            }
        }
        _ => {}
    }
}

fn gone(options: &mut serde_json::Map<String, Value>) {
    options.values_mut().for_each(|value| *value = super::redact::GONE.into());
}

#[cfg(test)]
#[path = "bundle_tests.rs"]
mod tests;
