//! Processes killed for want of memory since the boot, and of which service.

use copal_protocol::diagnosis::{ProbeResult, Unit, Verdict};

use super::{
    kernel_log,
    tree::{Tree, counter},
};

pub(super) const NAME: &str = "oom";
/// What the kernel says when it kills.
const KILLED: &[&str] = &["Killed process ", "oom-kill:"];

/// A service whose container runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// What it is called.
    pub name: String,
    /// The engine's id of its container.
    pub container: String,
    /// The engine says that its last end was for want of memory.
    pub killed: bool,
}

/// What there is to see.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Seen {
    /// Kills since the boot; absent on old kernels.
    pub kills: Option<u64>,
    /// The kernel's last word on it, where its log can be read.
    pub last: Option<String>,
    /// Services, and kills in each since its container started.
    pub services: Vec<(Service, u64)>,
}

/// Looks.
#[must_use]
pub fn read(tree: &Tree, services: Vec<Service>) -> Seen {
    let last = kernel_log::find(tree, KILLED).ok().and_then(|(_, last)| last);
    let kills = counter(&tree.text("proc/vmstat").unwrap_or_default(), "oom_kill");
    let services = services
        .into_iter()
        .map(|service| {
            let kills = in_container(tree, &service.container).unwrap_or(0);
            (service, kills)
        })
        .collect();
    Seen { kills, last, services }
}

/// Kills in a container, by its control group: version 2 under systemd or not, then version 1.
fn in_container(tree: &Tree, id: &str) -> Option<u64> {
    if id.is_empty() || !id.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return None;
    }
    let files = [
        format!("sys/fs/cgroup/system.slice/docker-{id}.scope/memory.events"),
        format!("sys/fs/cgroup/docker/{id}/memory.events"),
        format!("sys/fs/cgroup/memory/docker/{id}/memory.oom_control"),
        format!("sys/fs/cgroup/memory/system.slice/docker-{id}.scope/memory.oom_control"),
    ];
    files.iter().find_map(|file| counter(&tree.text(file)?, "oom_kill"))
}

/// Judges.
#[must_use]
pub fn judge(seen: &Seen) -> Vec<ProbeResult> {
    let count = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let mut results = vec![match seen.kills {
        None => ProbeResult::new(NAME, Verdict::Unknown, "/proc/vmstat does not tell"),
        Some(0) => {
            ProbeResult::new(NAME, Verdict::Ok, "nothing was killed for want of memory since the boot")
                .value(0, Unit::Count)
                .threshold(0)
        }
        Some(kills) => {
            let last = seen.last.as_ref().map(|l| format!("; the last: {l}")).unwrap_or_default();
            ProbeResult::new(
                NAME,
                Verdict::Warning,
                &format!("processes killed for want of memory since the boot{last}"),
            )
            .value(count(kills), Unit::Count)
            .threshold(0)
            .advice("give the service that grows a limit of its own (mem_limit), so that no other one is hit")
        }
    }];
    for (service, kills) in seen.services.iter().filter(|(service, kills)| *kills > 0 || service.killed) {
        let detail = if service.killed {
            "its last end was for want of memory".to_owned()
        } else {
            "processes of it were killed for want of memory since its container started".to_owned()
        };
        results.push(
            ProbeResult::new(NAME, Verdict::Warning, &detail)
                .of(&service.name)
                .value(count(*kills), Unit::Count)
                .threshold(0)
                .advice("raise its mem_limit, or mend what grows"),
        );
    }
    results
}

#[cfg(test)]
mod tests {
    use super::{super::tests::plant, *};

    fn service(name: &str, container: &str, killed: bool) -> Service {
        Service { name: name.to_owned(), container: container.to_owned(), killed }
    }

    #[test]
    fn kills_are_counted_for_the_device_and_for_each_service() {
        let (_dir, tree) = plant(&[
            ("proc/vmstat", "nr_free 1\noom_kill 4\n"),
            ("dev/kmsg", "3,1,5000000,-;Out of memory: Killed process 42 (web)\n"),
            ("sys/fs/cgroup/system.slice/docker-aa.scope/memory.events", "max 9\noom 3\noom_kill 2\n"),
            ("sys/fs/cgroup/docker/bb/memory.events", "oom_kill 0\n"),
            (
                "sys/fs/cgroup/memory/docker/cc/memory.oom_control",
                "oom_kill_disable 0\nunder_oom 0\noom_kill 1\n",
            ),
        ]);
        let services = [
            ("web", "aa", false),
            ("db", "bb", false),
            ("old", "cc", false),
            ("gone", "dd", true),
            ("odd", "../x", false),
        ];
        let services = services.map(|(name, id, killed)| service(name, id, killed)).to_vec();
        let results = judge(&read(&tree, services));
        let told: Vec<_> = results.iter().map(|r| (r.subject.as_deref(), r.value, r.verdict)).collect();
        use Verdict::Warning;
        assert_eq!(
            told,
            [
                (None, Some(4), Warning),
                (Some("web"), Some(2), Warning),
                (Some("old"), Some(1), Warning),
                (Some("gone"), Some(0), Warning)
            ]
        );
        assert!(results[0].detail.contains("Killed process 42 (web)"), "{results:?}");
    }

    #[test]
    fn no_kills_are_well_and_no_counter_is_unknown() {
        let (_dir, tree) = plant(&[("proc/vmstat", "oom_kill 0\n")]);
        assert_eq!(judge(&read(&tree, vec![service("web", "aa", false)]))[0].verdict, Verdict::Ok);
        let (_dir, tree) = plant(&[]);
        assert_eq!(judge(&read(&tree, vec![]))[0].verdict, Verdict::Unknown);
    }
}
