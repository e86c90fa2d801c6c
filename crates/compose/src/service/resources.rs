//! Limits: memory, processors, processes, kernel parameters; and what of `deploy:` says the same.

use std::collections::BTreeMap;

use copal_protocol::spec::{ServiceSpec, Ulimit};

use crate::{
    keys,
    problem::{Problems, code},
    read,
    tree::{Node, Value},
};

/// The engine refuses less.
const MIN_MEMORY: u64 = 6 << 20;

/// Reads the keys of this room; false for the others.
pub(super) fn read_key(spec: &mut ServiceSpec, key: &str, node: &Node, p: &mut Problems) -> bool {
    match key {
        "mem_limit" => said_once(&mut spec.mem_limit, memory(node, p), node, p),
        "mem_reservation" => said_once(&mut spec.mem_reservation, memory(node, p), node, p),
        "memswap_limit" => {
            spec.memswap_limit = match &node.value {
                Value::Scalar(t) if t.trim() == "-1" => Some(-1),
                _ => read::bytes(node, p).and_then(|n| i64::try_from(n).ok()),
            };
        }
        "shm_size" => spec.shm_size = read::bytes(node, p),
        "cpus" => said_once(&mut spec.nano_cpus, cpus(node, p), node, p),
        "cpu_shares" => {
            spec.cpu_shares = read::integer(node, p, 2, 262_144).and_then(|n| u64::try_from(n).ok());
        }
        "cpuset" => spec.cpuset = read::parsed(node, p, "processors such as `0-2,4`", cpuset),
        "pids_limit" => said_once(&mut spec.pids_limit, pids(node, p), node, p),
        "oom_score_adj" => spec.oom_score_adj = read::integer(node, p, -1000, 1000),
        "sysctls" => spec.sysctls = sysctls(node, p),
        "ulimits" => spec.ulimits = ulimits(node, p),
        "scale" => one_replica(node, p),
        "deploy" => deploy(spec, node, p),
        _ => return false,
    }
    true
}

/// The same limit can stand at the service and under `deploy`: it must be the same.
fn said_once<T: PartialEq + Copy>(field: &mut Option<T>, value: Option<T>, node: &Node, p: &mut Problems) {
    if field.is_some() && value.is_some() && *field != value {
        p.at(
            node,
            code::CONFLICT,
            "says something else than the same limit under `deploy`",
            "keep one of the two",
        );
    }
    if value.is_some() {
        *field = value;
    }
}

fn memory(node: &Node, p: &mut Problems) -> Option<u64> {
    let bytes = read::bytes(node, p)?;
    if bytes > 0 && bytes < MIN_MEMORY {
        p.at(node, code::INVALID, "is less than the engine accepts", "write at least `6m`");
    }
    // 0 means unlimited, which is what happens where nothing is said.
    (bytes > 0).then_some(bytes)
}

fn cpus(node: &Node, p: &mut Problems) -> Option<u64> {
    let billionths = read::parsed(node, p, "a number of processors such as `0.5`", |t| {
        let n: f64 = t.parse().ok()?;
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked: 0 to 1024")]
        (0.0..=1024.0).contains(&n).then(|| (n * 1e9).round() as u64)
    })?;
    (billionths > 0).then_some(billionths)
}

fn pids(node: &Node, p: &mut Problems) -> Option<i64> {
    // Every spelling of "unlimited" (-1, 0) is the engine's default.
    read::integer(node, p, -1, 4_194_304).filter(|n| *n > 0)
}

fn cpuset(text: &str) -> Option<String> {
    let mut chosen = std::collections::BTreeSet::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last) = (first.trim().parse::<u16>().ok()?, last.trim().parse::<u16>().ok()?);
        if first > last || last > 1023 {
            return None;
        }
        chosen.extend(first..=last);
    }
    // One spelling: runs joined, in order.
    let mut runs: Vec<(u16, u16)> = Vec::new();
    for n in chosen {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == n => *last = n,
            _ => runs.push((n, n)),
        }
    }
    let one = |(a, b): &(u16, u16)| if a == b { a.to_string() } else { format!("{a}-{b}") };
    Some(runs.iter().map(one).collect::<Vec<_>>().join(","))
}

fn sysctls(node: &Node, p: &mut Problems) -> BTreeMap<String, String> {
    let all = read::pair_map(node, p);
    for name in all.keys() {
        if !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-/*".contains(&b)) {
            p.at(
                node,
                code::INVALID,
                format!("`{}` is not a kernel parameter", read::shown(name)),
                "write `net.core.somaxconn: 1024`",
            );
        }
    }
    all
}

fn ulimits(node: &Node, p: &mut Problems) -> BTreeMap<String, Ulimit> {
    let mut all = BTreeMap::new();
    for entry in read::map(node, p) {
        if !entry.name.bytes().all(|b| b.is_ascii_lowercase()) {
            p.at(
                &entry.key,
                code::INVALID,
                "is not a limit",
                "write one such as `nofile`, `nproc`, `memlock` or `core`",
            );
            continue;
        }
        if let Value::Map(entries) = &entry.node.value {
            let (mut soft, mut hard) = (None, None);
            for entry in entries {
                if keys::one_of(&["soft", "hard"], entry, p) {
                    let value = read::integer(&entry.node, p, -1, i64::MAX);
                    if entry.name == "soft" { soft = value } else { hard = value }
                }
            }
            match (soft, hard) {
                (Some(soft), Some(hard)) if soft != -1 && soft <= hard || hard == -1 => {
                    all.insert(entry.name.clone(), Ulimit { soft, hard });
                }
                (Some(_), Some(_)) => {
                    p.at(&entry.node, code::INVALID, "has a soft limit above the hard one", "lower `soft`");
                }
                _ => p.at(
                    &entry.node,
                    code::MISSING,
                    "needs both `soft` and `hard`",
                    "write both, or one number for both",
                ),
            }
        } else if let Some(n) = read::integer(&entry.node, p, -1, i64::MAX) {
            all.insert(entry.name.clone(), Ulimit { soft: n, hard: n });
        }
    }
    all
}

fn one_replica(node: &Node, p: &mut Problems) {
    if read::integer(node, p, 0, i64::MAX).is_some_and(|n| n != 1) {
        p.at(
            node,
            code::UNSUPPORTED,
            "cannot be honoured: a device runs each service once",
            "remove it, or write a second service",
        );
    }
}

fn deploy(spec: &mut ServiceSpec, node: &Node, p: &mut Problems) {
    for entry in read::map(node, p) {
        if !keys::admit(&keys::DEPLOY, entry, p) {
            continue;
        }
        match entry.name.as_str() {
            "replicas" => one_replica(&entry.node, p),
            "mode" => {
                read::parsed(&entry.node, p, "`replicated`", |t| (t == "replicated").then_some(()));
            }
            _ => {
                for entry in read::map(&entry.node, p) {
                    if !keys::one_of(&["limits", "reservations"], entry, p) {
                        continue;
                    }
                    let (section, limits) = match entry.name.as_str() {
                        "limits" => (&keys::LIMITS, true),
                        _ => (&keys::RESERVATIONS, false),
                    };
                    for entry in read::map(&entry.node, p) {
                        if !keys::admit(section, entry, p) {
                            continue;
                        }
                        let value = &entry.node;
                        match (entry.name.as_str(), limits) {
                            ("cpus", _) => said_once(&mut spec.nano_cpus, cpus(value, p), value, p),
                            ("pids", _) => said_once(&mut spec.pids_limit, pids(value, p), value, p),
                            (_, true) => said_once(&mut spec.mem_limit, memory(value, p), value, p),
                            (_, false) => said_once(&mut spec.mem_reservation, memory(value, p), value, p),
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_have_one_spelling() {
        for (text, want) in [("0", "0"), ("4,0-2", "0-2,4"), ("1,2,3", "1-3"), ("0-1,1-2", "0-2")] {
            assert_eq!(cpuset(text).as_deref(), Some(want), "{text}");
        }
        for bad in ["", "a", "2-1", "0-99999", "1,"] {
            assert_eq!(cpuset(bad), None, "{bad}");
        }
    }
}
