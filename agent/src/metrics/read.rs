//! What the kernel counts, at one moment. In: its files. Out: numbers as they stand; what lies between two looks is for
//! [`sums`](super::sums). A file that is not there leaves its number out.

use std::{collections::BTreeMap, path::Path};

use copal_protocol::telemetry::MAX_SERVICES;

use crate::{
    apply::status::AgentStatus,
    diagnostics::{Tree, counter, hottest, room},
};

/// Ticks of `/proc/stat` in a second; Linux shows 100 to programs whatever it counts in.
const TICKS: u64 = 100;
/// Bytes of a sector, in `/proc/diskstats` as everywhere in the kernel.
const SECTOR: u64 = 512;
/// Folders looked through for a container's control group.
const FOLDERS: usize = 256;

/// One look.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Raw {
    pub(super) device: Counted,
    pub(super) services: BTreeMap<String, Counted>,
}

/// Of the device, or of one service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Counted {
    /// Another one begins anew: the container.
    pub(super) of: String,
    /// Microseconds of processor time used so far.
    pub(super) cpu_us: Option<u64>,
    pub(super) gauges: BTreeMap<&'static str, i64>,
    /// What only grows.
    pub(super) counters: BTreeMap<&'static str, u64>,
}

/// Services that have a container, and its id.
pub(super) fn services(status: &AgentStatus) -> Vec<(String, String)> {
    let all = status.apps.values().flat_map(|app| &app.running);
    let sound = |id: &str| !id.is_empty() && id.bytes().all(|b| b.is_ascii_alphanumeric());
    all.filter(|(_, of)| sound(&of.container_id))
        .map(|(name, of)| (name.to_string(), of.container_id.clone()))
        .take(MAX_SERVICES)
        .collect()
}

/// Looks.
pub(super) fn read(tree: &Tree, state_dir: &Path, services: &[(String, String)]) -> Raw {
    let groups = Groups::new(tree);
    Raw {
        device: device(tree, state_dir),
        services: services
            .iter()
            .filter_map(|(name, container)| Some((name.clone(), groups.service(container)?)))
            .collect(),
    }
}

fn device(tree: &Tree, state_dir: &Path) -> Counted {
    let mut seen = Counted::default();
    let stat = tree.text("proc/stat").unwrap_or_default();
    seen.cpu_us = busy(&stat).map(|ticks| ticks * (1_000_000 / TICKS));
    let meminfo = tree.text("proc/meminfo").unwrap_or_default();
    let kilo = |word: &str| counter(&meminfo, word).and_then(|kb| i64::try_from(kb.checked_mul(1024)?).ok());
    let difference = |all: &str, free: &str| Some(kilo(all)? - kilo(free)?);
    let load = tree.text("proc/loadavg").and_then(|text| hundredths(text.split(' ').next()?));
    let disk = room(state_dir).ok().and_then(|(used, _)| i64::try_from(used).ok());
    for (name, value) in [
        ("memory", difference("MemTotal:", "MemAvailable:")),
        ("swap", difference("SwapTotal:", "SwapFree:").filter(|_| kilo("SwapTotal:") != Some(0))),
        ("load", load),
        ("disk", disk),
        ("temperature", hottest(tree)),
    ] {
        seen.gauges.extend(value.map(|value| (name, value)));
    }
    let real = |name: &str| tree.has(&format!("sys/class/net/{name}/device"));
    if let Some((received, sent)) = network(&tree.text("proc/net/dev").unwrap_or_default(), &real) {
        seen.counters.extend([("net_in", received), ("net_out", sent)]);
    }
    let disks = tree.names("sys/block");
    if let Some((read, written)) = disks_of(&tree.text("proc/diskstats").unwrap_or_default(), &disks) {
        seen.counters.extend([("disk_read", read), ("disk_written", written)]);
    }
    let own = tree.text("proc/self/io").and_then(|text| counter(&text, "write_bytes:"));
    seen.counters.extend(own.map(|n| ("agent_written", n)));
    let kills = tree.text("proc/vmstat").and_then(|text| counter(&text, "oom_kill"));
    seen.counters.extend(kills.map(|n| ("oom_kills", n)));
    seen
}

/// Ticks in which a processor did something, of all of them.
fn busy(stat: &str) -> Option<u64> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks: Vec<u64> = line.split_ascii_whitespace().filter_map(|n| n.parse().ok()).collect();
    // user, nice, system; then idle and waiting for disks; then interrupts and what the host took. Guests are in user.
    let of = |at: usize| ticks.get(at).copied().unwrap_or(0);
    (ticks.len() >= 4).then(|| of(0) + of(1) + of(2) + of(5) + of(6) + of(7))
}

/// `1.25` as 125.
fn hundredths(text: &str) -> Option<i64> {
    let (whole, part) = text.split_once('.')?;
    let part = part.get(..2)?;
    Some(whole.parse::<i64>().ok()?.checked_mul(100)? + part.parse::<i64>().ok()?)
}

/// Bytes received and sent by interfaces of hardware; where there is none, by all but those of containers.
fn network(dev: &str, real: &dyn Fn(&str) -> bool) -> Option<(u64, u64)> {
    let lines = dev.lines().filter_map(|line| {
        let (name, numbers) = line.split_once(':')?;
        let numbers: Vec<u64> = numbers.split_ascii_whitespace().filter_map(|n| n.parse().ok()).collect();
        Some((name.trim(), *numbers.first()?, *numbers.get(8)?))
    });
    let virtual_ones = ["lo", "veth", "docker", "br-", "balena", "tun", "dummy"];
    let all: Vec<_> = lines.filter(|(name, ..)| !virtual_ones.iter().any(|v| name.starts_with(v))).collect();
    let hardware: Vec<_> = all.iter().filter(|(name, ..)| real(name)).collect();
    let chosen = if hardware.is_empty() { all.iter().collect() } else { hardware };
    let sum = chosen
        .iter()
        .fold((0_u64, 0_u64), |sum, line| (sum.0.saturating_add(line.1), sum.1.saturating_add(line.2)));
    (!chosen.is_empty()).then_some(sum)
}

/// Bytes read from and written to whole disks.
fn disks_of(stats: &str, disks: &[String]) -> Option<(u64, u64)> {
    let not_flash = ["loop", "ram", "zram", "dm-", "md", "sr", "nbd", "fd"];
    let mut sum: Option<(u64, u64)> = None;
    for line in stats.lines() {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let Some(name) = words.get(2) else { continue };
        if !disks.iter().any(|disk| disk == name) || not_flash.iter().any(|v| name.starts_with(v)) {
            continue;
        }
        let sectors = |at: usize| words.get(at).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
        let (read, written) = sum.unwrap_or_default();
        sum = Some((
            read.saturating_add(sectors(5).saturating_mul(SECTOR)),
            written.saturating_add(sectors(9).saturating_mul(SECTOR)),
        ));
    }
    sum
}

/// Where control groups are: one tree (version 2), or one for each resource.
struct Groups<'a> {
    tree: &'a Tree,
    cpu: &'static str,
    memory: &'static str,
    io: &'static str,
    unified: bool,
}

impl<'a> Groups<'a> {
    fn new(tree: &'a Tree) -> Self {
        let unified = tree.has("sys/fs/cgroup/cgroup.controllers");
        let of = |one| if unified { "sys/fs/cgroup" } else { one };
        Self {
            tree,
            cpu: of("sys/fs/cgroup/cpuacct"),
            memory: of("sys/fs/cgroup/memory"),
            io: of("sys/fs/cgroup/blkio"),
            unified,
        }
    }

    /// The container's own group, below the root of any resource: where engines put it under systemd or not, else wherever a
    /// folder has its id in its name.
    fn find(&self, id: &str) -> Option<String> {
        let usual = [format!("docker/{id}"), format!("system.slice/docker-{id}.scope")];
        if let Some(found) = usual.into_iter().find(|path| self.tree.has(&format!("{}/{path}", self.memory)))
        {
            return Some(found);
        }
        let mut level = vec![String::new()];
        let mut looked = 0;
        for _ in 0..4 {
            let mut next = Vec::new();
            for folder in level {
                looked += 1;
                if looked > FOLDERS {
                    return None;
                }
                for name in self.tree.names(&format!("{}/{folder}", self.memory)) {
                    let path = if folder.is_empty() { name.clone() } else { format!("{folder}/{name}") };
                    if name.contains(id) {
                        return Some(path);
                    }
                    // Files of the kernel have a dot, and so have systemd's groups.
                    let group = !name.contains('.') || name.ends_with(".slice") || name.ends_with(".scope");
                    if group && self.tree.has(&format!("{}/{path}/cgroup.procs", self.memory)) {
                        next.push(path);
                    }
                }
            }
            level = next;
        }
        None
    }

    fn service(&self, container: &str) -> Option<Counted> {
        let path = self.find(container)?;
        let file = |root: &str, name: &str| self.tree.text(&format!("{root}/{path}/{name}"));
        let number = |root: &str, name: &str| file(root, name)?.trim().parse::<u64>().ok();
        let mut seen = Counted { of: container.to_owned(), ..Counted::default() };
        let (usage, stat, inactive) = if self.unified {
            ("memory.current", "memory.stat", "inactive_file")
        } else {
            ("memory.usage_in_bytes", "memory.stat", "total_inactive_file")
        };
        // Files that could be let go of at once are not in use.
        let cache = file(self.memory, stat).and_then(|text| counter(&text, inactive)).unwrap_or(0);
        let memory = number(self.memory, usage).map(|n| n.saturating_sub(cache));
        seen.gauges.extend(memory.and_then(|n| i64::try_from(n).ok()).map(|n| ("memory", n)));
        let io;
        if self.unified {
            seen.cpu_us = file(self.cpu, "cpu.stat").and_then(|text| counter(&text, "usage_usec"));
            io = file(self.io, "io.stat").map(|text| io_unified(&text));
        } else {
            seen.cpu_us = number(self.cpu, "cpuacct.usage").map(|ns| ns / 1000);
            io = file(self.io, "blkio.throttle.io_service_bytes").map(|text| io_split(&text));
        }
        seen.counters.extend(io.into_iter().flat_map(|(r, w)| [("disk_read", r), ("disk_written", w)]));
        let pid = file(self.memory, "cgroup.procs")?.lines().next().and_then(|pid| pid.parse::<u32>().ok());
        let dev = pid.and_then(|pid| self.tree.text(&format!("proc/{pid}/net/dev")));
        // One that shares the host's network has no counters of its own.
        let own = pid.is_some_and(|pid| self.namespace(&pid.to_string()) != self.namespace("self"));
        if let Some((received, sent)) = dev.filter(|_| own).and_then(|dev| network(&dev, &|_| false)) {
            seen.counters.extend([("net_in", received), ("net_out", sent)]);
        }
        Some(seen)
    }

    fn namespace(&self, pid: &str) -> Option<std::path::PathBuf> {
        std::fs::read_link(self.tree.path(&format!("proc/{pid}/ns/net"))).ok()
    }
}

/// `8:0 rbytes=90 wbytes=7 …`
fn io_unified(text: &str) -> (u64, u64) {
    let sum = |word: &str| {
        text.split_ascii_whitespace()
            .filter_map(|part| part.strip_prefix(word)?.parse::<u64>().ok())
            .fold(0, u64::saturating_add)
    };
    (sum("rbytes="), sum("wbytes="))
}

/// `8:0 Read 90`
fn io_split(text: &str) -> (u64, u64) {
    let sum = |word: &str| {
        text.lines()
            .filter_map(|line| {
                let mut words = line.split_ascii_whitespace().skip(1);
                (words.next()? == word).then(|| words.next()?.parse::<u64>().ok())?
            })
            .fold(0, u64::saturating_add)
    };
    (sum("Read"), sum("Write"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnostics::tests::plant;

    #[test]
    fn the_kernels_files_of_the_device_are_read() {
        let dev = "Inter-|   Receive\n face |bytes packets\n lo: 9 0 0 0 0 0 0 0 9 0\n eth0: 100 1 0 0 0 0 0 0 70 1 0\n \
                   docker0: 5 0 0 0 0 0 0 0 5 0\n wlan0: 1 1 0 0 0 0 0 0 2 1 0\n";
        let stats = "179 0 mmcblk0 1 2 10 4 5 6 20 8\n179 1 mmcblk0p1 1 2 10 4 5 6 20 8\n7 0 loop0 1 2 99 4 5 6 99 8\n";
        let (dir, tree) = plant(&[
            ("proc/stat", "cpu  100 5 50 1000 40 3 2 1 0 0\ncpu0 1 1 1 1\n"),
            ("proc/meminfo", "MemTotal: 1000 kB\nMemAvailable: 400 kB\nSwapTotal: 0 kB\nSwapFree: 0 kB\n"),
            ("proc/loadavg", "1.25 0.50 0.10 1/99 12\n"),
            ("proc/net/dev", dev),
            ("proc/diskstats", stats),
            ("sys/block/mmcblk0/size", "1"),
            ("sys/block/loop0/size", "1"),
            ("sys/class/net/eth0/device/vendor", "x"),
            ("sys/class/net/wlan0/device/vendor", "x"),
            ("sys/class/thermal/thermal_zone0/temp", "51540\n"),
            ("proc/self/io", "rchar: 1\nwrite_bytes: 4096\n"),
            ("proc/vmstat", "oom_kill 2\n"),
        ]);
        let seen = read(&tree, dir.path(), &[]).device;
        assert_eq!(seen.cpu_us, Some(161 * 10_000));
        let gauge = |name: &str| seen.gauges.get(name).copied();
        assert_eq!(
            (gauge("memory"), gauge("swap"), gauge("load"), gauge("temperature")),
            (Some(600 * 1024), None, Some(125), Some(51_540))
        );
        assert!(gauge("disk").is_some());
        let expected = [
            ("agent_written", 4096),
            ("disk_read", 5120),
            ("disk_written", 10_240),
            ("net_in", 101),
            ("net_out", 72),
            ("oom_kills", 2),
        ];
        assert_eq!(seen.counters, expected.into());
    }

    #[test]
    fn what_is_missing_is_left_out_and_what_is_odd_does_no_harm() {
        let (dir, tree) = plant(&[
            ("proc/stat", "cpu x y\n"),
            ("proc/meminfo", "MemTotal: 99999999999999999999 kB\n"),
            ("proc/loadavg", "no.x\n"),
            ("proc/net/dev", "eth0: 1 2\n:::\n"),
            ("proc/diskstats", "179 0\n"),
        ]);
        let seen = read(&tree, dir.path(), &[("web".to_owned(), "aa".to_owned())]);
        assert_eq!((seen.device.cpu_us, seen.device.counters.len(), seen.services.len()), (None, 0, 0));
    }

    #[test]
    fn a_services_group_is_found_and_read_in_both_versions() {
        let dev = "eth0: 30 1 0 0 0 0 0 0 40 1 0\nlo: 9 0 0 0 0 0 0 0 9 0\n";
        let two = "sys/fs/cgroup/system.slice/docker-aa.scope";
        let (dir, tree) = plant(&[
            ("sys/fs/cgroup/cgroup.controllers", "cpu\n"),
            (&format!("{two}/cpu.stat"), "usage_usec 7000\nuser_usec 1\n"),
            (&format!("{two}/memory.current"), "5000\n"),
            (&format!("{two}/memory.stat"), "anon 1\ninactive_file 2000\n"),
            (&format!("{two}/io.stat"), "8:0 rbytes=90 wbytes=7 rios=1\n8:16 rbytes=10 wbytes=3\n"),
            (&format!("{two}/cgroup.procs"), "42\n43\n"),
            ("proc/42/net/dev", dev),
        ]);
        std::fs::create_dir_all(dir.path().join("proc/42/ns")).unwrap();
        std::os::unix::fs::symlink("net:[1]", dir.path().join("proc/42/ns/net")).unwrap();
        let services = [("web".to_owned(), "aa".to_owned())];
        let web = &read(&tree, dir.path(), &services).services["web"];
        assert_eq!((web.cpu_us, web.gauges["memory"]), (Some(7000), 3000));
        assert_eq!(
            web.counters,
            [("disk_read", 100), ("disk_written", 10), ("net_in", 30), ("net_out", 40)].into()
        );
        // Version 1, and a group below another one.
        let (dir, tree) = plant(&[
            ("sys/fs/cgroup/cpuacct/outer/docker/aa/cpuacct.usage", "9000000\n"),
            ("sys/fs/cgroup/memory/outer/cgroup.procs", ""),
            ("sys/fs/cgroup/memory/outer/docker/cgroup.procs", ""),
            ("sys/fs/cgroup/memory/outer/docker/aa/memory.usage_in_bytes", "5000\n"),
            ("sys/fs/cgroup/memory/outer/docker/aa/memory.stat", "total_inactive_file 1000\n"),
            ("sys/fs/cgroup/memory/outer/docker/aa/cgroup.procs", "\n"),
            (
                "sys/fs/cgroup/blkio/outer/docker/aa/blkio.throttle.io_service_bytes",
                "8:0 Read 5\n8:0 Write 6\nTotal 11\n",
            ),
        ]);
        let web = &read(&tree, dir.path(), &services).services["web"];
        assert_eq!((web.cpu_us, web.gauges["memory"]), (Some(9000), 4000));
        assert_eq!(web.counters, [("disk_read", 5), ("disk_written", 6)].into());
    }
}
